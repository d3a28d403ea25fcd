"""The benches of the comparison of methods: frozen rates, comparable draws, runs in processes of their own."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from peftseg.adapters import attach
from peftseg.compare import ZERO_SHOT, Candidate, Task, run_candidate
from peftseg.compare_rows import Difference, append_rows, read_rows
from peftseg.errors import BadInput
from peftseg.models import NetworkSpec, resolve
from peftseg.networks import build
from peftseg.weights import load_base
from small_scans import BOTH, BRIGHT, make_scan_files, write_tiny_model

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as when a script of the folder is started

import arena_experiment  # noqa: E402
import experiment  # noqa: E402
import experiment_tables  # noqa: E402
import make_models  # noqa: E402
import runs  # noqa: E402


@pytest.fixture
def copied(tmp_path) -> experiment.Regime:
    """The experiment with a copy of its rates."""
    path = tmp_path / "rates.json"
    path.write_bytes(experiment.RATES.read_bytes())
    return experiment.Regime(experiment.TASKS, experiment.SUPPORT_ROWS, tmp_path / "test.csv", path)


def best_of(regime: experiment.Regime) -> dict[str, float]:
    labels = [c.label for c in experiment.base_candidates(regime)]
    return {label: experiment._best(experiment.fold_scores(label, regime)) for label in labels}


def test_the_search_of_the_committed_rows_gives_the_committed_rates(copied):
    """Though the method table has other defaults of some methods by now."""
    before = copied.rates.read_bytes()
    experiment.write_rates(best_of(copied), copied)
    assert copied.rates.read_bytes() == before


def test_every_frozen_rate_is_its_base_rate_times_the_factor():
    frozen = json.loads(experiment.RATES.read_text())
    labels = {c.label for c in experiment.candidates()}
    assert set(frozen) == {*labels, "auto"}
    for candidate in experiment.base_candidates():
        record = frozen[candidate.label]
        assert experiment.at_factor(candidate, record["factor"]).options == record["options"]
    assert frozen["spatial_adapter"]["base_rates"] == {"lr_adapter": 0.001, "lr_head": 0.003}


def test_rates_that_test_scans_were_scored_with_are_not_replaced_unasked(copied):
    before = copied.rates.read_bytes()
    other = best_of(copied) | {"lora": 3.0}
    with pytest.raises(BadInput, match="other rates of lora than"):
        experiment.write_rates(other, copied)
    assert copied.rates.read_bytes() == before
    experiment.write_rates(other, copied, overwrite=True)
    old, new = json.loads(before), json.loads(copied.rates.read_text())
    assert new["lora"]["options"] == old["lora"]["options"] | {
        "lr_adapter": 0.03,
        "lr_decoder": 0.009,
        "lr_head": 0.009,
    }
    assert new["lora"]["base_rates"] == old["lora"]["base_rates"]
    assert {k: v for k, v in new.items() if k != "lora"} == {k: v for k, v in old.items() if k != "lora"}


def test_a_first_search_keeps_the_rates_of_the_method_table(tmp_path):
    regime = experiment.Regime(experiment.TASKS, tmp_path / "s", tmp_path / "t", tmp_path / "r.json", ("bitfit",))
    experiment.write_rates({"bitfit": 3.0}, regime)
    record = json.loads(regime.rates.read_text())
    assert list(record) == ["bitfit"]
    assert record["bitfit"]["base_rates"] == {"lr_adapter": 0.01, "lr_decoder": 0.003, "lr_head": 0.003}
    assert record["bitfit"]["options"]["lr_adapter"] == 0.03


def test_the_frozen_decoder_has_rows_and_rates_of_its_own_and_known_structures():
    novel, frozen = experiment.NOVEL, experiment.FROZEN_DECODER
    assert not {novel.support_rows, novel.test_rows, novel.rates} & {
        frozen.support_rows,
        frozen.test_rows,
        frozen.rates,
    }
    assert not set(novel.tasks) & set(frozen.tasks)
    known = {s.name for s in resolve(experiment.BASE).known_structures}
    assert all(set(values) <= known for _, values in frozen.tasks.values())
    assert {c.label for c in experiment.base_candidates(frozen)} == set(frozen.labels)


def test_the_layer_subset_matches_layers_of_the_base():
    network, _ = load_base(resolve(experiment.BASE))
    named = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv3d)]
    chosen = [n for n in named if re.fullmatch(arena_experiment.DEEPEST, n)]
    assert 0 < len(chosen) < len(named)
    assert "lora, two deepest stages" in {c.label for c in arena_experiment.candidates()}


def test_on_the_base_with_attention_lora_and_arena_adapt_it():
    """LoRA queries, keys and values, ARENA keys and values of all eight blocks; tuning the decoder adapts none."""
    parts = {}
    for candidate in arena_experiment.swin_candidates():
        network, anatomy = build(NetworkSpec("swinunetr", make_models.SWIN), 7)
        attached = attach(network, anatomy, candidate.method, candidate.options, train_decoder=True)
        parts[candidate.label] = [name.rpartition(".")[2] for name in attached.state() if "::A." in name]
    assert [sorted(parts[label]) for label in ("lora", "lora, rates x 3")] == [sorted("qkv" * 8)] * 2
    assert [sorted(parts[label]) for label in ("arena", "arena paper")] == [sorted("kv" * 8)] * 2
    assert parts["decoder"] == []


def row(label: str, draw: int, scan: str, dice: float, task: str = "t", method: str = "lora", **more) -> dict:
    keys = {
        "task": task,
        "candidate": label,
        "shots": 5,
        "draw": draw,
        "scan": scan,
        "structure": "s",
        "method": method,
    }
    facts = {"trained": 100, "base_total": 1000, "device": "cpu", **dict.fromkeys(experiment_tables.SHARE, 0)}
    return keys | facts | {"dice": dice, "surface_dice": dice} | more


def printed(folder: Path, capsys, rows: list[dict], beside: list[dict] = ()) -> str:
    """The tables of these rows; methods with a frozen factor are lora, full and adalora."""
    (folder / "rates.json").write_text(
        json.dumps({m: {"factor": 1.0, "options": {}} for m in ("lora", "full", "adalora")})
    )
    for name, found in (("test.csv", rows), ("references.csv", beside)):
        if found:
            append_rows(folder / name, found)
    paths = (folder / name for name in ("support.csv", "test.csv", "references.csv", "rates.json"))
    experiment_tables.print_tables(*paths, ("known",), 5)
    return capsys.readouterr().out


def test_tables_are_over_the_draws_that_all_methods_have(tmp_path, capsys):
    rows = [row(m, d, p, 0.5) for m in ("lora", "full") for d in (0, 1) for p in "pq"]
    rows += [row("lora", 2, p, 0.9) for p in "pq"] + [row("auto", 0, p, 0.8) for p in "pq"]
    beside = [row("nnU-Net", d, p, 0.4, method="nnUNetTrainer") for d in (0, 1, 2) for p in "pq"]
    beside += [row("multi-atlas", d, p, 0.3, method="registration", base_total=0) for d in (0, 1) for p in "pq"]
    text = printed(tmp_path, capsys, rows, beside)
    assert "Draws: t 0, 1. Not in these tables, as runs are missing: auto." in text
    assert "0.9" not in text.partition("### 5 shots")[2].partition("### Novel")[0]
    costs = text.partition("### Size, costs and the front")[2]
    assert "| lora | 100 (10.0%) |" in costs
    reference = next(line for line in costs.splitlines() if line.startswith("| multi-atlas"))
    assert reference.startswith("| multi-atlas | 100 | 0 |")
    assert reference.endswith("|  |  |"), "front and score compare methods of one base"


def test_a_method_without_runs_in_a_task_is_named_and_left_out(tmp_path, capsys):
    rows = [row("lora", d, "p", 0.5, task) for d in (0, 1) for task in "tu"] + [
        row("full", d, "p", 0.9) for d in (0, 1)
    ]
    text = printed(tmp_path, capsys, rows)
    assert "missing: full." in text
    assert "| full |" not in text


def test_auto_stands_beside_the_best_fixed_method_of_each_task_and_of_their_mean(tmp_path, capsys):
    """lora is best on t, full on u and on the mean; nnU-Net, better still, is no method."""
    dices = {"lora": (0.7, 0.5), "full": (0.6, 0.8), "auto": (0.7, 0.692)}
    rows = [
        row(label, d, p, dice + (p == "q") * 0.01, task, method=label)
        for label, both in dices.items()
        for task, dice in zip("tu", both, strict=True)
        for d in (0, 1)
        for p in "pq"
    ]
    beside = [row("nnU-Net", d, p, 0.9, task, method="nnUNetTrainer") for d in (0, 1) for task in "tu" for p in "pq"]
    text = printed(tmp_path, capsys, rows, beside).partition("### auto against")[2]
    assert "| t | lora, 0.705 | +0.000" in text
    assert "| u | full, 0.805 | -0.108" in text
    assert "| mean of the tasks | full, 0.705 | -0.004" in text
    assert "on the mean of the tasks: met." in text
    (tmp_path / "test.csv").unlink()
    (tmp_path / "references.csv").unlink()
    fewer = [r for r in rows if r["candidate"] != "auto" or r["draw"] == 0]
    text = printed(tmp_path, capsys, fewer).partition("### auto against")[2]
    assert "Draws: t 0; u 0." in text, "over the draws that it has"
    assert "| u | full, 0.805 | -0.108" in text


def test_costs_tell_what_is_known_and_whose_count_is_after_pruning(tmp_path, capsys):
    rows = [row("full", d, "p", 0.5, method="full", trained=500, cpu_seconds=40.0) for d in (0, 1)]
    rows += [row("adalora", d, "p", 0.6, method="adalora", trained=80) for d in (0, 1)]
    text = printed(tmp_path, capsys, rows)
    assert "processor s" in text
    assert "memory added" not in text
    assert "Of adalora these rows have only the count after pruning." in text
    (tmp_path / "test.csv").unlink()
    text = printed(tmp_path, capsys, [r | {"trained_at_start": 600 if r["method"] == "adalora" else 500} for r in rows])
    assert "only the count" not in text
    costs = text.partition("### Size, costs and the front")[2]
    full = next(line for line in costs.splitlines() if line.startswith("| full"))
    assert "| yes |" in full, "it trained fewer values, though AdaLoRA's adapter holds fewer in the end"


def test_with_one_draw_a_table_gives_no_verdict(tmp_path, capsys):
    text = printed(tmp_path, capsys, [row(m, 0, p, s) for m, s in (("lora", 0.5), ("full", 0.6)) for p in "pq"])
    assert "| full | +0.100 (+0.100 to +0.100), one draw |" in text
    assert "better" not in text


def test_words_follow_the_adjusted_p_value_and_not_the_interval():
    found = Difference(4, 2, -0.018, -0.038, -0.001, 0.04)
    assert experiment_tables.paired_cell(found, 0.239) == "-0.018 (-0.038 to -0.001), tie, p 0.239"
    assert experiment_tables.paired_cell(found, 0.049) == "-0.018 (-0.038 to -0.001), worse, p 0.049"
    assert experiment_tables.paired_cell(found).endswith("), worse"), "without a p-value there is the interval alone"


def test_every_run_has_a_process_of_its_own_and_an_end_of_one_is_told(tmp_path):
    def tell(number: int) -> list[dict]:
        if number == 9:
            os._exit(3)
        if number == 8:
            raise BadInput("Eight.", "Take seven.")
        return [{"process": os.getpid(), "number": number}]

    found = [rows[0] for rows in runs.in_own_processes(tell, [(n,) for n in range(5)], 2, lambda: None)]
    assert sorted(f["number"] for f in found) == list(range(5))
    assert len({f["process"] for f in found} | {os.getpid()}) == 6
    with pytest.raises(RuntimeError, match="exit code 3"):
        list(runs.in_own_processes(tell, [(9,)], 2, lambda: None))
    with pytest.raises(BadInput, match="Eight"):
        list(runs.in_own_processes(tell, [(8,), (1,)], 1, lambda: None))


def test_runs_that_the_file_holds_are_not_repeated(tmp_path, capsys):
    def one(label: str) -> list[dict]:
        return [row(label, 0, "p", 0.5, seconds=1.0, cpu_seconds=0.5)]

    jobs = [(("t", label, 5, 0), (label,)) for label in "ab"]
    runs.keep_rows(one, jobs[:1], tmp_path / "rows.csv", 2, lambda: None)
    runs.keep_rows(one, jobs, tmp_path / "rows.csv", 2, lambda: None)
    assert "1 runs to do" in capsys.readouterr().out
    assert [(r["candidate"], r["cpu_seconds"]) for r in read_rows(tmp_path / "rows.csv")] == [
        ("a", "0.5"),
        ("b", "0.5"),
    ]


def test_the_base_as_it_is_is_scored_where_it_knows_all_structures(tmp_path):
    entry = resolve(write_tiny_model(tmp_path / "model"))
    items = tuple(make_scan_files(tmp_path, n) for n in range(3))
    task, candidate = Task("t", (BRIGHT,), items[:2], items[2:]), Candidate(ZERO_SHOT, ZERO_SHOT)
    rows = run_candidate(entry, task, candidate, 1, 0, torch.device("cpu"), precision="fp32")
    assert [(r["structure"], r["trained"], r["epochs"], r["method"]) for r in rows] == [
        ("bright ball", 0, 0, ZERO_SHOT)
    ]
    assert rows[0]["base_total"] > 0
    append_rows(tmp_path / "rows.csv", rows)
    assert len(read_rows(tmp_path / "rows.csv")) == 1
    with pytest.raises(BadInput, match="tiny does not segment dark ball"):
        run_candidate(entry, Task("t", BOTH, items[:2], items[2:]), candidate, 1, 0, torch.device("cpu"))


def test_a_row_tells_what_trained_before_pruning(tmp_path):
    entry = resolve(write_tiny_model(tmp_path / "model"))
    items = tuple(make_scan_files(tmp_path, n) for n in range(3))
    trained = run_candidate(
        entry,
        Task("t", BOTH, items[:2], items[2:]),
        Candidate("adalora", "adalora"),
        1,
        0,
        torch.device("cpu"),
        epochs=3,
    )
    assert trained[0]["trained_at_start"] > trained[0]["trained"], "it prunes"
    kinds = ("adapter", "norm", "head", "decoder", "body")
    assert sum(trained[0][f"trained_{kind}_at_start"] for kind in kinds) == trained[0]["trained_at_start"]
    pruned = [kind for kind in kinds if trained[0][f"trained_{kind}_at_start"] != trained[0][f"trained_{kind}"]]
    assert pruned == ["adapter"]


def test_sizes_of_support_sets_are_compared_on_the_draws_that_all_of_them_have(tmp_path, capsys):
    rows = [row("lora", d, p, 0.5 + 0.1 * d) for d in (0, 1) for p in "pq"]
    rows += [row("lora", 0, p, 0.4, shots=1) for p in "pq"]
    text = printed(tmp_path, capsys, rows).partition("### By number of shots")[2]
    assert "| t | lora | 0.400 (0.400 to 0.400), draws: 1 | 0.500 (0.500 to 0.500), draws: 1 |" in text
    assert "minus" not in text, "there is nothing to compare it with"


def test_differences_are_told_size_by_size(tmp_path, capsys):
    rows = [row(label, d, p, 0.5 + gain, shots=k) for label, k, gain in (
        ("lora", 1, 0.0), ("full", 1, -0.2), ("lora", 5, 0.1), ("full", 5, 0.2)
    ) for d in (0, 1, 2) for p in "pq"]  # fmt: skip
    text = printed(tmp_path, capsys, rows).partition("### By number of shots")[2]
    (line,) = (line for line in text.splitlines() if line.startswith("| full |"))
    assert line.startswith("| full | -0.200 (-0.200 to -0.200), worse, p < 0.001 | +0.100 (+0.100 to +0.100), better")
    assert "| method | minus lora, 1 shots | minus lora, 5 shots |" in text
