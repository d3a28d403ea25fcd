"""Comparison of methods: numbers by hand, paired differences, and that adapting teaches a real structure."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from peftseg.adapters import attach
from peftseg.compare import Candidate, Task, draw_support, run_candidate
from peftseg.compare_bootstrap import holm, verdict
from peftseg.compare_candidates import SCRATCH_RATES, make_candidates
from peftseg.compare_rank import effective_rank, mean_effective_rank
from peftseg.compare_report import paired_table, rank_rows, summaries, write_report
from peftseg.compare_rows import (
    FIELDS,
    OPTIONAL,
    SHARE,
    append_rows,
    draw_spread,
    in_common_draws,
    in_every_task,
    interval,
    is_done,
    mean_of,
    over_patients,
    over_structures,
    paired_differences,
    read_rows,
    score_table,
    spread_over_tasks,
)
from peftseg.compare_settings import patients_of_task, same_patients, task_settings
from peftseg.compare_tables import knows_start, share_table
from peftseg.compare_tasks import task_warnings
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.models import NetworkSpec, Structure, read_model_dir, resolve
from peftseg.networks import build
from peftseg.pareto import pareto_front, thesis_front, thesis_scores
from peftseg.peak_memory import MIB, PROCESS
from peftseg.study import read_support_folder
from peftseg.volume import file_stem
from small_scans import BRIGHT, make_scan_files, write_tiny_model


def rows_of(candidate: str, scores: dict[tuple[int, str], float], task: str = "t", structure: str = "s") -> list[dict]:
    same = {"task": task, "candidate": candidate, "shots": "5", "structure": structure, "surface_dice": "0.5"}
    return [same | {"draw": str(d), "scan": scan, "dice": str(score)} for (d, scan), score in scores.items()]


def test_differences_are_paired_by_draw_and_scan():
    rng = np.random.default_rng(0)
    cells = [(draw, f"scan{k}") for draw in range(5) for k in range(6)]
    hard = {cell: rng.uniform(0.2, 0.9) for cell in cells}
    better = {cell: score + 0.02 + rng.normal(0, 0.002) for cell, score in hard.items()}
    noisy = {cell: score + rng.normal(0, 0.05) for cell, score in hard.items()}
    rows = rows_of("base", hard) + rows_of("better", better) + rows_of("noisy", noisy)
    found = paired_differences(rows, "base")
    assert set(found) == {"better", "noisy"}
    mean, low, high = found["better"].mean, found["better"].low, found["better"].high
    assert found["better"].runs == 5
    assert mean == pytest.approx(0.02, abs=0.002)
    assert 0.015 < low < high < 0.025  # though scores themselves spread over 0.7
    assert found["noisy"].low < 0 < found["noisy"].high
    table = paired_table(rows)
    line = next(line for line in table.splitlines() if line.startswith("| better"))
    assert line.split(" | ")[1].startswith(f"**{mean:+.3f} ("), "no tie, so it is bold"
    back = next(line for line in table.splitlines() if line.startswith("| base"))
    assert f"**{-mean:+.3f} ({-high:+.3f} to {-low:+.3f})**" in back
    assert "**" not in next(line for line in table.splitlines() if line.startswith("| noisy")).split(" | ")[1]


def test_only_runs_that_both_have_count():
    base = rows_of("base", {(0, "a"): 0.5, (1, "a"): 0.5})
    other = rows_of("other", {(0, "a"): 0.6, (2, "a"): 0.9})
    found = paired_differences(base + other, "base")["other"]
    assert found.runs == 1
    assert found.mean == pytest.approx(0.1)
    assert paired_differences(base + rows_of("other", {(2, "a"): 0.9}), "base") == {}


def test_an_interval_is_that_of_resampled_draws_and_patients():
    assert interval(np.array([[0.7]])) == (0.7, 0.7)
    # Two draws of one patient: a resample is (0, 0), (0, 1) or (1, 1), with chance 1/4, 1/2 and 1/4; deviations from 0.5
    # are enlarged by sqrt(2 / 1).
    wide = 0.5 * math.sqrt(2)
    assert interval(np.array([[0.0], [1.0]])) == (pytest.approx(0.5 - wide), pytest.approx(0.5 + wide))
    assert interval(np.array([[0.4, np.nan], [0.6, np.nan]])) == (
        pytest.approx(0.5 - 0.2 * wide),
        pytest.approx(0.5 + 0.2 * wide),
    )
    assert all(math.isnan(bound) for bound in interval(np.full((2, 2), np.nan)))
    table = np.random.default_rng(1).uniform(size=(4, 7))
    apart = table.mean(0) + (table - table.mean(0)) * math.sqrt(4 / 3)
    rng = np.random.default_rng(0)
    means = [apart[rng.integers(4, size=4)][:, rng.integers(7, size=7)].mean() for _ in range(10_000)]
    assert interval(table) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)


def test_intervals_hold_the_truth_nearly_as_often_as_they_say_at_three_draws():
    """Without the correction for few draws it is 0.89; draws and patients spread as on the test scans."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        spread = (rng.normal(0, size, shape) for size, shape in ((0.005, (3, 1)), (0.01, (1, 12)), (0.01, (3, 12))))
        low, high = interval(sum(spread), repeats=2000)
        held += low <= 0 <= high
    assert held / 400 > 0.92


def test_with_one_draw_there_is_no_verdict_and_no_p_value():
    rows = rows_of("base", {(0, f"p{n}"): 0.5 for n in range(6)})
    rows += rows_of("other", {(0, f"p{n}"): 0.6 + 0.001 * n for n in range(6)})
    found = paired_differences(rows, "base")["other"]
    assert found.draws == 1
    assert found.low > 0.09
    assert math.isnan(found.p)
    table = paired_table(rows)
    assert f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}), one draw" in table
    assert "**" not in table


def test_p_values_agree_with_the_intervals_and_are_adjusted_step_by_step():
    rng = np.random.default_rng(0)
    cells = [(draw, f"p{n}") for draw in range(5) for n in range(8)]
    rows = rows_of("base", dict.fromkeys(cells, 0.5))
    for label, shift in (("far", 0.05), ("near", 0.006), ("same", 0.0)):
        rows += rows_of(label, {cell: 0.5 + shift + rng.normal(0, 0.01) for cell in cells})
    found = paired_differences(rows, "base")
    assert found["far"].p < 0.001
    for difference in found.values():
        assert (difference.p < 0.05) == (not difference.low <= 0 <= difference.high)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan}) == {
        "a": pytest.approx(0.03),
        "c": pytest.approx(0.06),
        "b": pytest.approx(0.06),
        "d": pytest.approx(math.nan, nan_ok=True),
    }
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    table = paired_table(rows)
    assert "**, p 0.001" in next(line for line in table.splitlines() if line.startswith("| far"))


def test_what_is_no_tie_is_decided_by_the_adjusted_p_value():
    """An interval without 0 is no verdict where there are many comparisons."""
    rng = np.random.default_rng(1)
    cells = [(draw, f"p{n}") for draw in range(4) for n in range(8)]
    rows = rows_of("base", dict.fromkeys(cells, 0.5))
    for number in range(5):
        rows += rows_of(f"other {number}", {cell: 0.5 + 0.007 * (number == 0) + rng.normal(0, 0.01) for cell in cells})
    alone = [row for row in rows if row["candidate"] in ("base", "other 0")]
    found = paired_differences(alone, "base")["other 0"]
    assert found.low > 0
    cell = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    assert f"**{cell}**, p" in paired_table(alone)
    assert f"| {cell}, p" in paired_table(rows), "a tie, with the same interval"
    assert (verdict(0.1, 0.049), verdict(-0.1, 0.049), verdict(0.1, 0.05)) == ("better", "worse", "tie")
    assert verdict(0.1, math.nan) == "unknown"


def test_with_very_many_methods_a_large_difference_is_still_none_of_chance():
    """With as many resamples as for few methods the smallest p-value times the number of pairs would be above 0.05."""
    cells = [(draw, scan) for draw in range(2) for scan in "pq"]
    rows = [row for n in range(24) for row in rows_of(f"m{n}", dict.fromkeys(cells, 0.9 if n == 0 else 0.5))]
    line = next(line for line in paired_table(rows).splitlines() if line.startswith("| m0 |"))
    assert line.count("**+0.400 (+0.400 to +0.400)**, p 0.0") == 23


def test_surface_dice_is_tested_as_dice_is():
    rng = np.random.default_rng(0)
    cells = [(draw, f"p{n}") for draw in range(5) for n in range(8)]
    rows = rows_of("base", dict.fromkeys(cells, 0.5)) + rows_of("other", dict.fromkeys(cells, 0.5))
    for row in rows[len(cells) :]:
        row["surface_dice"] = str(0.6 + rng.normal(0, 0.01))
    found = paired_differences(over_structures(rows), "base", metric="surface_dice")["other"]
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert found.p < 0.001
    table = paired_table(rows, "surface_dice", "Surface Dice")
    assert table.startswith("| Surface Dice minus that of | base | other |")
    assert f"| **{found.mean:+.3f} (" in table
    assert "**" not in paired_table(rows), "their Dice is the same"


def counted(label: str, at_start: dict[str, int] | None, left: dict[str, int], **more: str) -> list[dict]:
    """Rows of one run with counts by kind; kinds that are not named are 0."""
    facts = {key: str(left.get(key, 0)) for key in SHARE}
    facts |= {"trained": str(sum(left.values()) - left.get("buffers", 0)), "base_total": "1000", "method": label}
    if at_start is not None:
        facts |= {f"{key}_at_start": str(at_start.get(key, 0)) for key in SHARE if key != "buffers"}
        facts |= {"trained_at_start": str(sum(at_start.values()))}
    return [row | facts | more for row in rows_of(label, {(0, "p"): 0.5, (0, "q"): 0.7})]


def test_the_trained_share_by_kind_is_that_of_the_start(tmp_path):
    left = {"trained_adapter": 20, "trained_head": 30, "buffers": 7}
    rows = counted("arena", {"trained_adapter": 70, "trained_head": 30}, left) + counted("older", None, left)
    append_rows(tmp_path / "runs.csv", rows)
    facts = summaries(read_rows(tmp_path / "runs.csv"))
    lines = share_table(facts, ["arena", "older"]).splitlines()
    assert lines[2] == "| arena | 70 | 0 | 30 | 0 | 0 | 7 | 100 | 10.00% | 1,000 |"
    assert lines[3] == "| older | 20 | 0 | 30 | 0 | 0 | 7 | 50 | 5.00% | 1,000 |"
    assert (knows_start(facts["arena"]), knows_start(facts["older"])) == (True, False)
    settings = {"model": "m", "epochs": 1, "budget_minutes": None, "device": "cpu", "precision": "fp32"}
    settings |= {"tolerance_mm": 1.0, "tasks": {"t": {"structures": {"s": 1}, "support": {}, "test": {}}}}
    report = write_report(tmp_path, read_rows(tmp_path / "runs.csv"), settings, 0, [], [], Reporter.silent())
    assert "pruned (of older only the count after pruning is known). Buffers" in report.read_text(encoding="utf-8")


def test_methods_are_compared_over_the_draws_that_they_have_in_common():
    rows = rows_of("a", {(0, "p"): 0.5, (1, "p"): 0.5, (2, "p"): 0.9}) + rows_of("b", {(0, "p"): 0.5, (1, "p"): 0.5})
    late = rows_of("late", {(0, "p"): 0.5})
    kept, left_out = in_common_draws(rows + late, of=("a", "b", "not run"))
    assert {(row["candidate"], row["draw"]) for row in kept} == {(label, d) for label in "ab" for d in "01"}
    assert left_out == ["late"]
    assert {row["draw"] for row in in_common_draws(rows + late)[0]} == {"0"}
    other = rows_of("a", {(3, "q"): 0.5}, task="u") + rows_of("b", {(3, "q"): 0.5}, task="u")
    assert {(row["task"], row["draw"]) for row in in_common_draws(rows + other)[0]} == {
        ("t", "0"),
        ("t", "1"),
        ("u", "3"),
    }


def test_the_effective_rank_of_a_known_change():
    frame = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    equal = frame[:, :3] @ frame[:3]
    assert effective_rank(equal) == pytest.approx(3)
    assert effective_rank(2.5 * equal) == pytest.approx(3), "it does not depend on the size"
    assert effective_rank(torch.outer(torch.arange(4.0), torch.ones(6))) == pytest.approx(1)
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert effective_rank(torch.diag(shares)) == pytest.approx(2 * math.sqrt(2))  # exp(1.5 ln 2)
    assert effective_rank(torch.zeros(3, 4)) == 0


def test_the_effective_rank_of_lora_is_that_of_its_product():
    """In the unfolding of output channels against all else; layers with the same change count alike."""
    entry = NetworkSpec(
        "segresnet", {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]}
    )
    network, anatomy = build(entry, 2)
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    attached = attach(network, anatomy, "lora", {"rank": 4, "form": "window"}, True)
    assert mean_effective_rank(attached, start) is None, "nothing is changed yet"
    with torch.no_grad():
        for number, factors in enumerate(attached.labelled_factors().values()):
            factors.B.zero_()
            factors.B[:, 0] = 1.0
            if number == 0:  # two components of equal size, at right angles
                factors.A[1] = 0.0
                factors.A[0, :2] = torch.tensor([1.0, 0.0])
                factors.A[0, 2:] = 0.0
                factors.A[1, 1] = 1.0
                factors.B[::2, 0], factors.B[1::2, 0] = 1.0, 0.0
                factors.B[1::2, 1] = 1.0
    layers = len(attached.labelled_factors())
    assert mean_effective_rank(attached, start) == pytest.approx((2 + (layers - 1)) / layers, abs=0.01)
    with torch.no_grad():
        attached.network.get_parameter("up_samples.0.0.conv.weight").add_(torch.rand(8, 16, 1, 1, 1))
    assert mean_effective_rank(attached, start) == pytest.approx((2 + (layers - 1)) / layers, abs=0.01), "no decoder"
    beside = attach(*build(entry, 2), "conv_adapter", {}, True)
    assert mean_effective_rank(beside, start) is None, "it does not merge"


def test_structures_count_equally_and_a_structure_that_is_nowhere_does_not_count():
    first = rows_of("a", {(0, "p"): 0.2, (0, "q"): 0.4}, structure="s1")
    second = rows_of("a", {(0, "p"): 0.6, (0, "q"): math.nan}, structure="s2")
    found = over_structures(first + second)
    assert [(row["scan"], float(row["dice"])) for row in found] == [
        ("p", pytest.approx(0.4)),
        ("q", pytest.approx(0.4)),
    ]
    assert math.isnan(mean_of([math.nan]))
    assert draw_spread(np.array([[0.1, 0.3], [0.3, 0.5]])) == pytest.approx(math.sqrt(0.02))
    assert math.isnan(draw_spread(np.array([[0.1, 0.3]])))


def test_scores_of_the_thesis_are_those_of_its_table_5_5():
    sizes = {"UNet": (19, 12.8, 12.5), "SegResNet": (4.7, 1.1, 0.7)}
    dices = {"UNet": (0.90, 0.68, 0.83), "SegResNet": (0.89, 0.60, 0.84)}
    scores = {name: [round(s, 3) for s in thesis_scores(dices[name], sizes[name])] for name in sizes}
    assert scores == {"UNet": [0.5, 0.477, 0.841], "SegResNet": [0.5, 0.45, 0.914]}
    # It keeps ConvAdapter only; that full fine-tuning is the most accurate and so unbeaten is lost.
    assert [thesis_front(dices[name], sizes[name]) for name in sizes] == [[False, False, True]] * 2
    assert [pareto_front(dices[name], sizes[name]) for name in sizes] == [[True, False, True]] * 2


def test_the_pareto_front_holds_what_nothing_beats():
    #          best  small  beaten  equal in size  twin of the small one  unknown
    dices = (0.90, 0.50, 0.70, 0.80, 0.50, math.nan)
    sizes = (1000, 10, 500, 400, 10, 1)
    assert pareto_front(dices, sizes) == [True, True, False, True, True, False]
    assert pareto_front((0.8, 0.7), (5, 5)) == [True, False]
    assert thesis_scores((0.8, 0.8), (5, 5)) == [1.0, 1.0]


def test_support_sets_are_redrawn_per_draw_and_repeatable():
    sets = [tuple(draw_support(20, 5, draw)) for draw in range(6)]
    assert len(set(sets)) == 6
    assert all(len(set(chosen)) == 5 for chosen in sets)
    assert sets[3] == tuple(draw_support(20, 5, 3))


@pytest.fixture
def of_two_patients(tmp_path) -> Task:
    """Four scans, two of each patient, and none to test on."""
    items = tuple(
        dataclasses.replace(make_scan_files(tmp_path, n), patient=patient) for n, patient in enumerate((1, 2, 1, 2))
    )
    return Task("t", (BRIGHT,), items)


def test_a_fold_scores_no_other_scan_of_a_drawn_patient(of_two_patients, tmp_path):
    entry = read_model_dir(write_tiny_model(tmp_path))
    (drawn,) = draw_support(4, 1, 0)
    rows = run_candidate(
        entry, of_two_patients, Candidate("probe", "linear_probe"), 1, 0, torch.device("cpu"), epochs=1
    )
    others = {file_stem(item.image) for n, item in enumerate(of_two_patients.support) if (n - drawn) % 2}
    assert {row["scan"] for row in rows} == others
    unknown = dataclasses.replace(
        of_two_patients, support=tuple(dataclasses.replace(item, patient=None) for item in of_two_patients.support)
    )
    rows = run_candidate(entry, unknown, Candidate("probe", "linear_probe"), 1, 0, torch.device("cpu"), epochs=1)
    assert len({row["scan"] for row in rows}) == 3


def test_a_fold_without_another_patient_is_refused(of_two_patients, tmp_path):
    entry = read_model_dir(write_tiny_model(tmp_path))
    shots = next(k for k in (2, 3) if {n % 2 for n in draw_support(4, k, 0)} == {0, 1})
    with pytest.raises(BadInput, match="of the task 't' are of all patients"):
        run_candidate(entry, of_two_patients, Candidate("probe", "linear_probe"), shots, 0, torch.device("cpu"))


def with_patients(task: Task, patients: tuple[int | None, ...]) -> Task:
    """The task with its scans as test scans of these patients."""
    pairs = zip(task.support, patients, strict=True)
    return dataclasses.replace(task, test=tuple(dataclasses.replace(item, patient=patient) for item, patient in pairs))


def test_a_warning_says_that_all_test_scans_are_of_one_patient(of_two_patients):
    told = list(task_warnings([with_patients(of_two_patients, (1, 1, 1, 1))], [1], 1))
    assert len(told) == 1
    assert "All test scans are of one patient" in told[0]
    for patients in ((1, 2, 1, 2), (1, None, 1, None), (None,) * 4):
        assert list(task_warnings([with_patients(of_two_patients, patients)], [1], 1)) == []


def test_scans_of_one_patient_are_known_from_the_settings(of_two_patients):
    scans = [file_stem(item.image) for item in of_two_patients.support]

    def found(*patients: int | None) -> dict[str, str]:
        settings = {"tasks": task_settings([with_patients(of_two_patients, patients)])}
        assert patients_of_task(settings["tasks"]["t"]) == dict(zip(scans, patients, strict=True))
        return {scan: first for (_, scan), first in same_patients(settings).items()}

    assert found(7, 2, 7, 3) == {scans[0]: scans[0], scans[2]: scans[0]}
    assert found(7, None, 7, None) == {scans[0]: scans[0], scans[2]: scans[0]}
    assert found(7, 7, 7, 7) == {}, "nothing else to compare"
    assert found(None, None, None, None) == {}


def test_a_patient_counts_once_however_many_scans_there_are():
    scores = {(d, scan): score for d in (0, 1) for scan, score in (("p", 0.2), ("q", 0.4), ("q2", 0.8))}
    rows = rows_of("a", scores) + rows_of("a", {(0, "q"): 0.6, (0, "q2"): math.nan}, structure="s2")
    found = over_patients(rows, {("t", "q"): "q", ("t", "q2"): "q", ("other", "p"): "q"})
    tables = score_table(found)
    assert np.allclose(tables["t", "a", "s"], [[0.2, 0.6], [0.2, 0.6]])
    assert np.allclose(tables["t", "a", "s2"], [[0.6]]), "what is nowhere does not count"
    assert np.allclose(score_table(over_structures(found))["t", "a", "all"], [[0.2, 0.6], [0.2, 0.6]])
    assert over_patients(rows, {}) == rows
    # A scan beside one of the same score tells nothing: the interval is that of two patients.
    alone = {(d, scan): score for d in (0, 1) for scan, score in (("p", 0.2), ("r", 0.4), ("s", 0.5), ("q", 0.6))}
    twice = rows_of("a", alone) + rows_of("a", {(d, f"q{n}"): 0.6 for d in (0, 1) for n in range(9)})
    patients = {("t", f"q{n}"): "q" for n in range(9)}
    once = score_table(over_patients(twice, patients))["t", "a", "s"]
    assert interval(once) == pytest.approx(interval(score_table(rows_of("a", alone))["t", "a", "s"]), abs=0.01)
    assert interval(score_table(twice)["t", "a", "s"])[0] > interval(once)[0], "as scans it would be narrower"


def test_rows_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    append_rows(path, rows_of("a", {(0, "p"): 0.5}))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            append_rows(path, rows_of("a", {(1, "p"): 0.5, (1, "q"): 0.5}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["runs.csv"]
    append_rows(path, rows_of("a", {(1, "p"): 0.6}))
    assert path.read_bytes().startswith(before)
    rows = read_rows(path)
    assert tuple(rows[0]) == (*FIELDS, *OPTIONAL)
    assert is_done(rows, "t", "a", 5, 1)
    assert not is_done(rows, "t", "a", 5, 2)
    assert not is_done(rows, "t", "a", 50, 1)


def test_a_file_with_fewer_columns_keeps_them(tmp_path):
    path = tmp_path / "old.csv"
    head = "task,candidate,shots,draw,scan,structure,dice,surface_dice\n"
    path.write_text(head)
    append_rows(path, [row | {"device": "cpu"} for row in rows_of("a", {(0, "p"): 0.5})])
    assert path.read_text() == head + "t,a,5,0,p,s,0.5,0.5\n"


def test_an_older_file_gets_new_columns_when_a_run_fills_them(tmp_path, monkeypatch):
    path = tmp_path / "old.csv"
    quoted = [row | {"memory_of": "process, resident set"} for row in rows_of("a", {(0, "p"): 0.5})]
    append_rows(path, quoted, FIELDS)
    assert path.read_text().splitlines()[0] == ",".join(FIELDS)
    before = path.read_bytes()
    new = [row | {"cpu_seconds": 12.5} for row in rows_of("a", {(1, "p"): 0.6})]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            append_rows(path, new)
    assert path.read_bytes() == before
    assert [row[key] for row in read_rows(path) for key in OPTIONAL] == [""] * len(OPTIONAL)
    append_rows(path, new)
    head, first, second = path.read_text().splitlines()
    assert head == ",".join((*FIELDS, "cpu_seconds"))
    assert (first, second[-5:]) == (before.decode().splitlines()[1] + ",", ",12.5")
    rows = read_rows(path)
    assert [(row["cpu_seconds"], row["effective_rank"]) for row in rows] == [("", ""), ("12.5", "")]
    assert rows[0]["memory_of"] == "process, resident set"
    # A program of before appends to it, and its lines may be put below the new header by a merge of two files.
    append_rows(path, rows_of("a", {(2, "p"): 0.7}))
    path.write_text(path.read_text() + first[:-1].replace(",5,0,", ",5,3,") + "\n")
    assert [row["cpu_seconds"] for row in read_rows(path)] == ["", "12.5", "", ""]
    path.write_text(path.read_text() + "t,a,5,4,p\n")
    with pytest.raises(BadInput, match="Line 6"):
        append_rows(path, [row | {"effective_rank": 2.0} for row in new])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("task,candidate\nt,a\n", "surface_dice"),
        ("task,candidate,shots,draw,scan,structure,dice,surface_dice\nt,a,5,0,p\n", "Line 2"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, named):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(BadInput, match=named):
        read_rows(tmp_path / "runs.csv")


def test_summaries_take_facts_once_a_run_and_the_largest_memory():
    rows = rows_of("a", {(0, "p"): 0.5, (0, "q"): 0.7, (1, "p"): 0.6})
    facts = {"trained": "100", "base_total": "1000", "seconds": "4", "memory_mib": "10", "rank": "", "buffers": "0"}
    rows = [row | facts for row in rows]
    rows[2] |= {"trained": "200", "memory_mib": "30", "seconds": "8"}
    found = summaries(rows)["a"]
    assert (found["trained"], found["share"], found["seconds"], found["memory"]) == (150, 0.15, 6, 30)
    assert found["dice"] == pytest.approx(0.6)
    assert found["dice_spread"] == pytest.approx(0.0)  # draws: 0.6 and 0.6
    assert math.isnan(found["rank"])


def test_over_tasks_each_task_counts_once_whatever_its_scans_and_structures():
    many = {(d, f"p{n}"): 0.2 + 0.1 * d for d in range(2) for n in range(9)}
    first = rows_of("a", many, "large", "s1") + rows_of("a", many, "large", "s2")
    second = rows_of("a", {(0, "q"): 0.8, (1, "q"): 0.6}, "small")
    facts = {"base_total": "1000", "memory_mib": "10"}
    rows = [r | facts | {"trained": "100", "seconds": "2"} for r in first]
    rows += [r | facts | {"trained": "300", "seconds": "8", "memory_mib": "30"} for r in second]
    found = summaries(rows)["a"]
    assert found["dice"] == pytest.approx((0.25 + 0.7) / 2)
    assert found["draws"] == 2
    assert (found["trained"], found["share"], found["seconds"], found["memory"]) == (200, 0.2, 5, 30)
    # Means over tasks are 0.5 in draw 0 and 0.45 in draw 1.
    assert found["dice_spread"] == pytest.approx(0.05 / math.sqrt(2))
    # Draws are resampled in each task by itself, so the ends are those of all four pairs.
    # Deviations within a task are enlarged by sqrt(2): 0.25 -/+ 0.0707 and 0.7 -/+ 0.1414.
    assert found["dice_interval"] == (
        pytest.approx(0.475 - 0.15 / math.sqrt(2)),
        pytest.approx(0.475 + 0.15 / math.sqrt(2)),
    )
    alone = summaries([r for r in rows if r["task"] == "large"])["a"]
    table = score_table(over_structures(first))["large", "a", "all"]
    assert (alone["dice_interval"], alone["dice_spread"]) == (interval(table), pytest.approx(draw_spread(table)))
    uneven = over_structures(rows + rows_of("a", {(2, "q"): 0.1}, "small"))
    assert spread_over_tasks(uneven) == pytest.approx(found["dice_spread"]), "draw 2 is in one task only"


def test_a_method_that_lacks_a_task_is_not_compared_over_tasks():
    rows = rows_of("a", {(0, "p"): 0.5}, "t") + rows_of("a", {(0, "q"): 0.5}, "u") + rows_of("b", {(0, "p"): 0.9}, "t")
    kept, left_out = in_every_task(rows, ("t", "u"))
    assert ({row["candidate"] for row in kept}, left_out) == ({"a"}, ["b"])
    assert in_every_task(rows, ("t",)) == (rows, [])
    assert in_every_task(rows, ("t", "u", "v")) == ([], ["a", "b"])


def test_methods_take_their_options_and_ranks():
    found = make_candidates(["lora", "full", "adalora", "scratch"], {"lora.lr_head": 0.5, "lora.rank": 8}, (8, 4))
    assert [c.label for c in found] == [
        *("lora", "full", "adalora", "scratch", "lora rank=4"),
        *("adalora rank=8", "adalora rank=4"),
    ]  # lora has rank 8 already
    by_label = {c.label: c for c in found}
    assert by_label["lora rank=4"].options == {"lr_head": 0.5, "rank": 4}
    assert by_label["adalora rank=4"].options == {"start_rank": 4, "rank": 4}, "it cannot end above where it starts"
    assert by_label["adalora rank=8"].options == {"start_rank": 8, "rank": 8}
    assert by_label["scratch"].scratch
    assert by_label["scratch"].options == SCRATCH_RATES
    rows = [
        {"candidate": c.label, "initial_rank": str(c.options.get("start_rank", c.options.get("rank", "")))}
        for c in found
    ]
    assert {row["candidate"] for row in rank_rows(rows)} == {"lora", "lora rank=4", "adalora rank=8", "adalora rank=4"}


def test_peak_memory_sees_what_is_allocated_and_given_back():
    """In a process of its own: this one may have memory to spare."""
    code = (
        "import time, numpy, torch; from peftseg.peak_memory import PeakMemory\n"
        "with PeakMemory(torch.device('cpu')) as before: pass\n"
        "with PeakMemory(torch.device('cpu')) as during:\n"
        f"    block = numpy.ones({300 * MIB}, numpy.uint8); time.sleep(0.1); del block\n"
        "print(during.measures, during.mib - before.mib)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert " ".join(printed[:-1]) == PROCESS
    assert 280 < float(printed[-1]) < 400


@pytest.mark.realdata
@pytest.mark.slow
def test_the_default_method_learns_the_hippocampus_from_five_scans(shared_data):
    """The floor is far under the table in Docs/results.md: a fifth of its epochs."""
    structures = (Structure("hippocampus", 1), Structure("amygdala", 6))
    support = read_support_folder(shared_data / "subcortical_ixi" / "support", structures)
    task = Task("ixi", structures, support[:5], support[5:7])
    rows = run_candidate(resolve("brain-t1"), task, Candidate("LoRA", "lora"), 5, 0, torch.device("cpu"), epochs=24)
    means = {s.name: np.mean([row["dice"] for row in rows if row["structure"] == s.name]) for s in structures}
    assert means["hippocampus"] > 0.72
    assert means["amygdala"] > 0.65
