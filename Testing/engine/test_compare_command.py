"""`peftseg compare` on a tiny model and small scans: runs, going on after an end, the report, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftseg import cli
from peftseg.compare import Task
from peftseg.compare_candidates import make_candidates
from peftseg.comparison import Comparison, run_comparison
from peftseg.errors import BadInput, PeftsegError
from peftseg.events import Reporter
from peftseg.locks import FileLock
from peftseg.models import resolve
from peftseg.study import LabelState, read_support_folder
from small_scans import BOTH, make_scan_files, write_tiny_model

STRUCTURES = "bright ball=1,dark ball=2"
VARYING = ("seconds", "memory_mib")


def write_folder(folder: Path, numbers: range) -> None:
    for name in ("images", "labels", "made"):
        (folder / name).mkdir(parents=True)
    for number in numbers:
        item = make_scan_files(folder / "made", number)
        shutil.move(item.image, folder / "images" / f"p{number}.nii.gz")
        shutil.move(item.labels, folder / "labels" / f"p{number}.nii.gz")
    shutil.rmtree(folder / "made")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder with model, support (4 scans) and test (2 scans); not to be changed."""
    root = tmp_path_factory.mktemp("study")
    write_tiny_model(root / "model")
    write_folder(root / "support", range(4))
    write_folder(root / "test", range(10, 12))
    return root


def command(study: Path, out: Path, *more: str, epochs: str = "1") -> list[str]:
    folders = ["--model", str(study / "model"), "--support", str(study / "support"), "--test", str(study / "test")]
    fixed = ["--structures", STRUCTURES, "--device", "cpu", "--out", str(out), "--epochs", epochs]
    return ["compare", *folders, *fixed, *more]


def rows_in(out: Path) -> list[dict[str, str]]:
    with (out / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def runs_in(out: Path) -> Counter:
    """How many rows each run has."""
    return Counter((row["candidate"], row["shots"], row["draw"]) for row in rows_in(out))


@pytest.fixture(scope="module")
def compared(study, tmp_path_factory) -> Path:
    """The folder of a finished comparison."""
    out = tmp_path_factory.mktemp("compared") / "out"
    what = ["--methods", "linear_probe,lora,full", "--shots", "2,3", "--seeds", "2", "--ranks", "2,4"]
    assert cli.main(command(study, out, *what)) == 0
    return out


def test_every_run_has_one_row_a_scan_and_structure(compared):
    labels = ("linear_probe", "lora", "full", "lora rank=2", "lora rank=4")
    assert runs_in(compared) == {(label, k, d): 4 for label in labels for k in "23" for d in "01"}
    rows = rows_in(compared)
    assert {(row["scan"], row["structure"]) for row in rows} == {(p, s.name) for p in ("p10", "p11") for s in BOTH}
    assert all(0 <= float(row[metric]) <= 1 for row in rows for metric in ("dice", "surface_dice"))
    assert {row["epochs"] for row in rows} == {"1"}
    assert {row["initial_rank"] for row in rows if row["candidate"] == "lora rank=4"} == {"4"}
    assert all(float(row["memory_mib"]) > 100 for row in rows), "torch alone takes more"


def test_the_trained_share_is_told_by_kind(compared):
    by_label = {row["candidate"]: row for row in rows_in(compared)}
    probe, full = by_label["linear_probe"], by_label["full"]
    # A 1 x 1 x 1 convolution from 8 channels to background and two structures.
    assert (probe["trained_head"], probe["trained"], probe["trained_adapter"]) == (str(3 * (8 + 1)), "27", "0")
    assert full["trained"] == full["base_total"]
    for row in by_label.values():
        kinds = [int(row[f"trained_{kind}"]) for kind in ("adapter", "norm", "head", "decoder", "body")]
        assert sum(kinds) == int(row["trained"])
    assert int(by_label["lora"]["trained_adapter"]) > int(by_label["lora rank=2"]["trained_adapter"]) > 0


def test_the_report_says_what_was_found(compared):
    text = (compared / "report.md").read_text(encoding="utf-8")
    assert "research use only" in text
    assert "missing" not in text
    for heading in ("## 2 shots", "## 3 shots", "### Paired differences", "## Robustness to the initial rank"):
        assert heading in text
    for words in ("surface Dice 1 mm", "process, resident set", "on the Pareto front", "rank at the end", "buffers"):
        assert words in text
    scores = text.partition("## 2 shots")[2].partition("### By structure")[0]
    assert "| full | 2 | " in scores
    assert "100.00%" in scores
    assert "rank=" not in scores, "other ranks have a table of their own"
    ranks = text.partition("## Robustness")[2]
    assert [f"| lora | {rank} | " in ranks for rank in (2, 4, 16)] == [True] * 3
    for name in ("dice", "surface_dice", "pareto", "shots", "ranks"):
        assert f"]({name}.png)" in text
        assert (compared / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_start_runs_nothing_and_writes_the_same_report(study, compared, capsys):
    before = {name: (compared / name).read_bytes() for name in ("runs.csv", "report.md", "compare.json", "pareto.png")}
    what = ["--methods", "linear_probe,lora,full", "--shots", "2,3", "--seeds", "2", "--ranks", "2,4"]
    assert cli.main(command(study, compared, *what)) == 0
    assert {name: (compared / name).read_bytes() for name in before} == before
    assert "No run is missing" in capsys.readouterr().err


def test_the_same_command_gives_the_same_scores_and_draws_are_other_scans(study, compared, tmp_path):
    assert cli.main(command(study, tmp_path / "out", "--methods", "lora", "--shots", "2", "--seeds", "2")) == 0
    again, first = (
        [
            {k: v for k, v in row.items() if k not in VARYING}
            for row in rows_in(out)
            if row["candidate"] == "lora" and row["shots"] == "2"
        ]
        for out in (tmp_path / "out", compared)
    )
    assert again == first
    assert len({tuple(row["dice"] for row in first if row["draw"] == draw) for draw in "01"}) == 2


def test_methods_and_draws_can_be_added(study, tmp_path):
    out = tmp_path / "out"
    assert cli.main(command(study, out, "--methods", "linear_probe", "--shots", "2", "--seeds", "1")) == 0
    before = (out / "runs.csv").read_bytes()
    assert cli.main(command(study, out, "--methods", "bitfit,linear_probe", "--shots", "2", "--seeds", "2")) == 0
    assert (out / "runs.csv").read_bytes().startswith(before)
    assert runs_in(out) == {(label, "2", d): 4 for label in ("linear_probe", "bitfit") for d in "01"}
    assert list(json.loads((out / "compare.json").read_text())["candidates"]) == ["linear_probe", "bitfit"]


def test_a_killed_comparison_goes_on_where_it_was(study, tmp_path):
    out = tmp_path / "out"
    what = ["--methods", "linear_probe,full", "--shots", "2", "--seeds", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "peftseg", *command(study, out, *what, epochs="30")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for_a_run(out, process)
        process.kill()
    before = (out / "runs.csv").read_bytes()
    assert 0 < len(runs_in(out)) < 4
    assert set(runs_in(out).values()) == {4}, "no run is half there"
    assert cli.main(command(study, out, *what, epochs="30")) == 0
    assert (out / "runs.csv").read_bytes().startswith(before)
    assert runs_in(out) == {(label, "2", d): 4 for label in ("linear_probe", "full") for d in "01"}


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal of Unix")
def test_control_c_keeps_and_reports_what_is_done(study, tmp_path):
    out = tmp_path / "out"
    what = ["--methods", "linear_probe,full", "--shots", "2", "--seeds", "3"]
    with subprocess.Popen(
        [sys.executable, "-m", "peftseg", *command(study, out, *what, epochs="300")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_a_run(out, process)
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed) == (3, "")
    assert "1 of 6 runs are kept" in told
    assert "Traceback" not in told
    assert "**5 are missing" in (out / "report.md").read_text()
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".png") == [
        *(".lock", "compare.json", "report.md", "runs.csv")
    ]


def wait_for_a_run(out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (out / "runs.csv").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--epochs", "2"], ["epochs was 1, is 2"]),
        (["--tolerance", "2"], ["tolerance_mm was 1.0, is 2.0"]),
        (["--budget", "5"], ["budget_minutes was not given, is 5.0"]),
        (["--structures", "bright ball=1"], ["structures.dark ball was 2, is not given"]),
        (["--option", "lora.alpha=3"], ["lora.options.alpha"]),
    ],
)
def test_a_changed_setting_is_refused_with_what_differs(study, compared, capsys, more, named):
    before = {p.name: p.read_bytes() for p in compared.iterdir()}
    assert cli.main([*command(study, compared, "--methods", "lora", "--shots", "2"), *more]) == 2
    told = capsys.readouterr().err
    assert not [text for text in (*named, "other settings", "--out") if text not in told], told
    assert {p.name: p.read_bytes() for p in compared.iterdir()} == before


def test_corrected_labels_are_another_comparison(study, compared, tmp_path, capsys):
    shutil.copytree(study, tmp_path / "study")
    shutil.copy(study / "support/labels/p1.nii.gz", tmp_path / "study/support/labels/p0.nii.gz")
    assert cli.main(command(tmp_path / "study", compared, "--methods", "lora", "--shots", "2")) == 2
    assert "support.p0 was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--methods", "lora,magic"], ["'magic'", "arena", "scratch", "all"]),
        (["--methods", "lora", "--option", "lora.rnk=3"], ["'rnk'", "rank"]),
        (["--methods", "lora", "--option", "full.lr_head=1"], ["'full'", "valid: lora"]),
        (["--methods", "lora", "--option", "rank=1"], ["method.key=value"]),
        (["--methods", "full", "--ranks", "8"], ["full", "lora", "arena"]),
        (["--methods", "lora", "--ranks", "8,x"], ["'x'", "--ranks"]),
        (["--shots", "0"], ["'0'", "--shots"]),
        (["--methods", "full", "--shots", "5"], ["5 shots", "4 support scans", "1 to 4"]),
        (["--seeds", "0"], ["--seeds is 0"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--epochs", "0"], ["--epochs is 0"]),
        (["--budget", "nan"], ["--budget is nan"]),
        (["--tolerance", "-1"], ["--tolerance is -1"]),
        (["--device", "gpu"], ["'gpu'", "cpu"]),
        (["--methods", "full", "--shots", "2", "--precision", "fp8"], ["fp8", "bf16"]),
        (["--methods", "adaptformer", "--shots", "2"], ["No layer"]),
        (["--test", "nowhere"], ["test folder nowhere"]),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(study, tmp_path, capsys, more, named):
    assert cli.main([*command(study, tmp_path / "out"), *more]) == 2
    told = capsys.readouterr().err
    assert not [text for text in named if text not in told], told
    assert not (tmp_path / "out").exists()


def test_a_scan_to_learn_from_is_no_test_scan(study, tmp_path, capsys):
    shutil.copytree(study, tmp_path / "study")
    for part in ("images", "labels"):
        shutil.copy(study / "support" / part / "p2.nii.gz", tmp_path / "study/test" / part / "renamed.nii.gz")
    assert cli.main(command(tmp_path / "study", tmp_path / "out", "--methods", "full", "--shots", "2")) == 2
    assert "The test scan renamed is also the support scan p2" in capsys.readouterr().err


def make_comparison(study: Path, *methods: str) -> Comparison:
    support, test = (read_support_folder(study / part, BOTH) for part in ("support", "test"))
    task = Task("tiny", BOTH, support, test)
    cpu = torch.device("cpu")
    return Comparison(resolve(study / "model"), task, make_candidates(methods), (2,), (0, 1), cpu, epochs=1)


def test_two_processes_do_not_write_into_one_folder(study, tmp_path):
    holder = [sys.executable, "-c", _HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match="Another process"):
            run_comparison(make_comparison(study, "linear_probe"), tmp_path, Reporter.silent())
        process.stdin.close()
    assert not (tmp_path / "runs.csv").exists()
    assert FileLock(tmp_path / ".lock").acquire()


_HOLD = """
import sys
from pathlib import Path
from peftseg.locks import FileLock
assert FileLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_with_all_methods_those_that_do_not_fit_are_left_out_and_named(study, tmp_path):
    wanted = replace(make_comparison(study, "linear_probe", "adaptformer"), skipping=True, draws=(0,))
    result = run_comparison(wanted, tmp_path, Reporter.silent())
    assert (result["done"], result["missing"]) == (1, 0)
    assert "adaptformer does not fit tiny" in result["skipped"][0]
    assert "Left out: adaptformer" in (tmp_path / "report.md").read_text()


def test_a_training_that_fails_does_not_stop_the_others(study, tmp_path, capsys):
    out = tmp_path / "out"
    wild = ["--option", "full.lr_body=1e38", "--option", "full.lr_decoder=1e38", "--option", "full.lr_head=1e38"]
    what = ["--methods", "full,linear_probe", "--shots", "2", "--seeds", "1", *wild]
    assert cli.main(command(study, out, *what, epochs="4")) == 1
    assert runs_in(out) == {("linear_probe", "2", "0"): 4}
    told = capsys.readouterr().err
    assert "Failed: full, 2 shots, draw 0" in told
    text = (out / "report.md").read_text()
    assert "Failed: full" in text
    assert "**1 are missing" in text


def test_structures_that_a_test_scan_does_not_label_are_not_scored_there(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study/test/support.json").write_text(json.dumps({"p10": {"dark ball": "not labelled"}}))
    wanted = replace(make_comparison(tmp_path / "study", "linear_probe"), draws=(0,))
    run_comparison(wanted, tmp_path / "out", Reporter.silent())
    assert [(row["scan"], row["structure"]) for row in rows_in(tmp_path / "out")] == [
        *(("p10", "bright ball"), ("p11", "bright ball"), ("p11", "dark ball"))
    ]
    sliced = replace(wanted.task.test[0], states={"dark ball": LabelState(slices=(3,))})
    partly = replace(wanted, task=replace(wanted.task, test=(sliced,)))
    with pytest.raises(PeftsegError, match="some slices only"):
        run_comparison(partly, tmp_path / "other", Reporter.silent())


def test_without_matplotlib_there_is_a_report_without_plots(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    reporter = Reporter.silent()
    run_comparison(replace(make_comparison(study, "linear_probe"), draws=(0,)), tmp_path, reporter)
    assert "png" not in (tmp_path / "report.md").read_text()
    warnings = [event["message"] for event in reporter.events if event["event"] == "warning"]
    assert any("peftseg[report]" in text for text in warnings)
    assert any("One draw" in text for text in warnings)


def test_with_json_every_line_is_an_event(study, compared, capsys):
    assert cli.main(command(study, compared, "--methods", "lora", "--shots", "2", "--seeds", "2", "--json")) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["log", "finished"]
    assert (events[-1]["done"], events[-1]["missing"], events[-1]["failed"]) == (2, 0, [])


def test_help_says_what_is_written_and_how_to_go_on(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "runs.csv",
        "report.md",
        "only what is missing is run",
        "--methods",
        "--ranks",
        "scratch",
        "METHOD.KEY",
    ):
        assert words in text
