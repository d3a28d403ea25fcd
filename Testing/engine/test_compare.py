"""Comparison of methods: numbers by hand, paired differences, and that adapting teaches a real structure."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from peftseg.compare import Candidate, Task, draw_support, run_candidate
from peftseg.compare_candidates import SCRATCH_RATES, make_candidates
from peftseg.compare_report import paired_table, rank_rows, summaries
from peftseg.compare_rows import (
    FIELDS,
    append_rows,
    differences,
    draw_spread,
    in_every_task,
    interval,
    is_done,
    mean_of,
    over_structures,
    read_rows,
    score_table,
    spread_over_tasks,
)
from peftseg.errors import BadInput
from peftseg.models import Structure, resolve
from peftseg.pareto import pareto_front, thesis_front, thesis_scores
from peftseg.peak_memory import MIB, PROCESS
from peftseg.study import read_support_folder


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
    found = differences(rows, "base")
    assert set(found) == {"better", "noisy"}
    runs, mean, low, high = found["better"]
    assert runs == 5
    assert mean == pytest.approx(0.02, abs=0.002)
    assert 0.015 < low < high < 0.025  # though scores themselves spread over 0.7
    assert found["noisy"][2] < 0 < found["noisy"][3]
    table = paired_table(rows)
    line = next(line for line in table.splitlines() if line.startswith("| better"))
    assert line.split(" | ")[1].startswith(f"**{mean:+.3f} ("), "no tie, so it is bold"
    back = next(line for line in table.splitlines() if line.startswith("| base"))
    assert f"**{-mean:+.3f} ({-high:+.3f} to {-low:+.3f})**" in back
    assert "**" not in next(line for line in table.splitlines() if line.startswith("| noisy")).split(" | ")[1]


def test_only_runs_that_both_have_count():
    base = rows_of("base", {(0, "a"): 0.5, (1, "a"): 0.5})
    other = rows_of("other", {(0, "a"): 0.6, (2, "a"): 0.9})
    runs, mean, _, _ = differences(base + other, "base")["other"]
    assert runs == 1
    assert mean == pytest.approx(0.1)
    assert differences(base + rows_of("other", {(2, "a"): 0.9}), "base") == {}


def test_an_interval_is_that_of_resampled_draws_and_patients():
    assert interval(np.array([[0.7]])) == (0.7, 0.7)
    # Two draws of one patient: a resample is (0, 0), (0, 1) or (1, 1), with chance 1/4, 1/2 and 1/4.
    assert interval(np.array([[0.0], [1.0]])) == (0.0, 1.0)
    assert interval(np.array([[0.4, np.nan], [0.6, np.nan]])) == (pytest.approx(0.4), pytest.approx(0.6))
    assert all(math.isnan(bound) for bound in interval(np.full((2, 2), np.nan)))
    table = np.random.default_rng(1).uniform(size=(4, 7))
    rng = np.random.default_rng(0)
    means = [table[rng.integers(4, size=4)][:, rng.integers(7, size=7)].mean() for _ in range(2000)]
    assert interval(table) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


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
    assert tuple(rows[0]) == FIELDS
    assert is_done(rows, "t", "a", 5, 1)
    assert not is_done(rows, "t", "a", 5, 2)
    assert not is_done(rows, "t", "a", 50, 1)


def test_a_file_with_fewer_columns_keeps_them(tmp_path):
    path = tmp_path / "old.csv"
    head = "task,candidate,shots,draw,scan,structure,dice,surface_dice\n"
    path.write_text(head)
    append_rows(path, [row | {"device": "cpu"} for row in rows_of("a", {(0, "p"): 0.5})])
    assert path.read_text() == head + "t,a,5,0,p,s,0.5,0.5\n"


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
    assert found["dice_interval"] == (pytest.approx(0.4), pytest.approx(0.55))
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
