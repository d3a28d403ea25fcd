"""`peftseg compare` on a tiny model and small scans: runs, going on after an end, the report, and what is refused."""

from __future__ import annotations

import copy
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
from peftseg.adapters.features import POOL
from peftseg.compare import Task, draw_support
from peftseg.compare_candidates import make_candidates
from peftseg.compare_rows import mean_of
from peftseg.comparison import Comparison, run_comparison
from peftseg.errors import BadInput, PeftsegError
from peftseg.events import Reporter
from peftseg.locks import FileLock
from peftseg.models import resolve
from peftseg.study import LabelState, read_support_folder
from small_scans import BOTH, make_scan_files, write_tiny_model

STRUCTURES = "bright ball=1,dark ball=2"
VARYING = ("seconds", "cpu_seconds", "memory_mib", "memory_added_mib")


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


@pytest.mark.slow
def test_every_run_has_one_row_a_scan_and_structure(compared):
    labels = ("linear_probe", "lora", "full", "lora rank=2", "lora rank=4")
    assert runs_in(compared) == {(label, k, d): 4 for label in labels for k in "23" for d in "01"}
    rows = rows_in(compared)
    assert {(row["scan"], row["structure"]) for row in rows} == {(p, s.name) for p in ("p10", "p11") for s in BOTH}
    scores = [float(row[metric]) for row in rows for metric in ("dice", "surface_dice")]
    assert 0 <= min(scores) <= max(scores) <= 1
    assert {row["epochs"] for row in rows} == {"1"}
    assert {row["initial_rank"] for row in rows if row["candidate"] == "lora rank=4"} == {"4"}
    memory = [(float(row["memory_added_mib"]), float(row["memory_mib"])) for row in rows]
    assert min(peak for _, peak in memory) > 100, "torch alone takes more"
    assert min(added for added, _ in memory) >= 0
    assert max(added - peak for added, peak in memory) < 0
    assert min(float(row["cpu_seconds"]) for row in rows) > 0, "the shortest training takes hundredths of a second"


def test_the_trained_share_is_told_by_kind(compared):
    by_label = {row["candidate"]: row for row in rows_in(compared)}
    probe, full = by_label["linear_probe"], by_label["full"]
    # A 1 x 1 x 1 convolution from 8 channels to background and two structures.
    assert (probe["trained_head"], probe["trained"], probe["trained_adapter"]) == (str(3 * (8 + 1)), "27", "0")
    assert full["trained"] == full["base_total"]
    for row in by_label.values():
        kinds = [int(row[f"trained_{kind}"]) for kind in ("adapter", "norm", "head", "decoder", "body")]
        assert sum(kinds) == int(row["trained"])
        at_start = [int(row[f"trained_{kind}_at_start"]) for kind in ("adapter", "norm", "head", "decoder", "body")]
        assert (row["trained_at_start"], at_start) == (row["trained"], kinds), "none of these prunes"
    assert int(by_label["lora"]["trained_adapter"]) > int(by_label["lora rank=2"]["trained_adapter"]) > 0


def test_the_effective_rank_is_that_of_the_change_and_not_the_option(compared):
    by_label = {row["candidate"]: row for row in rows_in(compared)}
    assert (by_label["lora rank=2"]["rank"], by_label["lora rank=4"]["rank"]) == ("2.0", "4.0")
    assert 1 <= float(by_label["lora rank=2"]["effective_rank"]) <= 2
    assert 1 <= float(by_label["lora rank=4"]["effective_rank"]) <= 4
    assert float(by_label["full"]["effective_rank"]) > 4
    assert by_label["linear_probe"]["effective_rank"] == "", "it changes the head alone"
    assert "| effective rank |" in (compared / "report.md").read_text(encoding="utf-8")


def test_the_report_says_what_was_found(compared):
    text = (compared / "report.md").read_text(encoding="utf-8")
    assert "research use only" in text
    assert "missing" not in text
    headings = ("Paired differences", "Paired differences of surface Dice 1 mm")
    for heading in ("## 2 shots", "## 3 shots", *(f"### {h}" for h in headings), "## Robustness to the initial rank"):
        assert f"\n{heading}\n" in text
    assert "\n| Surface Dice 1 mm minus that of |" in text
    for words in (
        *("surface Dice 1 mm", "on the Pareto front", "rank at the end", "buffers", "Holm's method for all pairs"),
        *("the peak (process, resident set) and memory added that peak minus", "all trainings here ran in one process"),
        f"patches of their first {POOL} epochs",
    ):
        assert words in text
    assert "do not have the same draws" not in text
    scores = text.partition("## 2 shots")[2].partition("### By structure")[0]
    assert "| full | 2 | " in scores
    assert "100.00%" in scores
    assert "rank=" not in scores, "other ranks have a table of their own"
    ranks = text.partition("## Robustness")[2]
    assert [f"| lora | {rank} | " in ranks for rank in (2, 4, 16)] == [True] * 3
    for name in ("dice", "surface_dice", "pareto", "shots", "ranks", "share", "time", "memory", "effective_rank"):
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
    return Comparison(resolve(study / "model"), (task,), make_candidates(methods), (2,), (0, 1), cpu, epochs=1)


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


def test_scans_that_cannot_be_used_are_all_told_before_anything_runs(two_tasks, tmp_path, capsys):
    """Though the draw that is asked for takes none of the support scans among them."""
    shutil.copytree(two_tasks, tmp_path / "study")
    root = tmp_path / "study"
    unlabelled = make_scan_files(root, 3, structures=BOTH[:1])
    for part, scan in (("support", "p2"), ("more/support", "p21")):
        shutil.copy(unlabelled.labels, root / part / "labels" / f"{scan}.nii.gz")
    (root / "more/test/images/p31.nii.gz").write_bytes(b"no image")
    assert 2 not in draw_support(4, 1, 0)
    assert 21 - 20 not in draw_support(3, 1, 0)
    what = ("--methods", "linear_probe", "--shots", "1", "--seeds", "1")
    assert cli.main(with_tasks(root, write_tasks(root, TASKS), tmp_path / "out", *what)) == 2
    told = capsys.readouterr().err
    assert "3 of 12 scans cannot be used" in told
    for where in (
        "the support scan p2 of task 'both balls': p2: 'dark ball' (label value 2) has no voxels",
        "the support scan p21 of task 'dark': p21: 'dark ball'",
        "the test scan p31 of task 'dark'",
    ):
        assert where in told
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_for_any_reason_is_named_and_the_others_go_on(study, tmp_path):
    """A scan that goes away in the middle."""
    shutil.copytree(study, tmp_path / "study")
    wanted = replace(make_comparison(tmp_path / "study", "linear_probe"), draws=tuple(range(6)))
    drawn = {draw: draw_support(4, 2, draw) for draw in wanted.draws}
    lost = drawn[1][0] if drawn[1][0] not in drawn[0] else drawn[1][1]
    assert lost not in drawn[0]
    without = [draw for draw in wanted.draws if lost not in drawn[draw]]
    after = [draw for draw in without if draw > 1]
    assert after, "there is something left to do after the first failure"

    def lose(kind: str, fields: dict) -> None:
        if kind == "progress" and (fields["stage"], fields["step"]) == ("compare", 1):
            (tmp_path / f"study/support/images/p{lost}.nii.gz").unlink()

    result = run_comparison(wanted, tmp_path / "out", Reporter(lose))
    assert {int(draw) for _, _, draw in runs_in(tmp_path / "out")} == set(without)
    assert (result["done"], result["missing"]) == (len(without), 6 - len(without))
    assert len(result["failed"]) == 6 - len(without)
    assert all(f"p{lost}.nii.gz" in text for text in result["failed"])
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert f"{len(result['failed'])} failed, see below" in report
    assert f"- Failed: {result['failed'][0]}" in report


def test_the_model_as_it_is_is_compared_where_it_segments_everything_itself(study, tmp_path, capsys):
    out = tmp_path / "out"
    what = ("--methods", "zero-shot,linear_probe", "--shots", "2", "--seeds", "2", "--ranks")
    assert cli.main([*command(study, out, *what, ""), "--structures", "bright ball=1"]) == 0
    rows = [row for row in rows_in(out) if row["candidate"] == "zero-shot"]
    assert runs_in(out) == {(label, "2", d): 2 for label in ("zero-shot", "linear_probe") for d in "01"}
    assert {(r["trained"], r["trained_head_at_start"], r["epochs"]) for r in rows} == {("0", "0", "0")}
    assert [r["dice"] for r in rows if r["draw"] == "0"] == [r["dice"] for r in rows if r["draw"] == "1"]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "| zero-shot | 2 | " in text
    assert cli.main([*command(study, out, *what, ""), "--structures", "bright ball=1"]) == 0
    assert "No run is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--methods", "zero-shot"], ["tiny does not segment dark ball by itself"]),
        (["--methods", "lora,zero-shot", "--option", "zero-shot.rank=3"], ["'zero-shot' has no option rank"]),
        (["--methods", "zero-shot", "--ranks", "3"], ["None of zero-shot has a rank"]),
    ],
)
def test_the_model_as_it_is_is_refused_where_it_cannot_be_compared(study, tmp_path, capsys, more, named):
    assert cli.main([*command(study, tmp_path / "out"), "--shots", "2", *more]) == 2
    told = capsys.readouterr().err
    assert not [text for text in named if text not in told], told
    assert not (tmp_path / "out").exists()


def test_with_all_methods_the_model_as_it_is_is_left_out_where_it_does_not_know_a_structure(study, tmp_path):
    wanted = replace(make_comparison(study, "linear_probe", "zero-shot"), skipping=True, draws=(0,))
    result = run_comparison(wanted, tmp_path, Reporter.silent())
    assert (result["done"], result["missing"]) == (1, 0)
    assert "zero-shot does not fit tiny" in result["skipped"][0]


def test_structures_that_a_test_scan_does_not_label_are_not_scored_there(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study/test/support.json").write_text(json.dumps({"p10": {"dark ball": "not labelled"}}))
    wanted = replace(make_comparison(tmp_path / "study", "linear_probe"), draws=(0,))
    run_comparison(wanted, tmp_path / "out", Reporter.silent())
    assert [(row["scan"], row["structure"]) for row in rows_in(tmp_path / "out")] == [
        *(("p10", "bright ball"), ("p11", "bright ball"), ("p11", "dark ball"))
    ]
    task = wanted.tasks[0]
    sliced = replace(task.test[0], states={"dark ball": LabelState(slices=(3,))})
    partly = replace(wanted, tasks=(replace(task, test=(sliced,)),))
    with pytest.raises(PeftsegError, match="some slices only"):
        run_comparison(partly, tmp_path / "other", Reporter.silent())


def test_scans_of_one_patient_count_once_in_the_report_and_not_in_the_rows(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    of_patients = tmp_path / "study/test/support.json"
    out, same = tmp_path / "out", ["--methods", "linear_probe,full", "--seeds", "2", "--shots", "2"]
    write_folder(tmp_path / "third", range(12, 13))
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / "third" / kind / "p12.nii.gz", tmp_path / "study/test" / kind)
    of_patients.write_text(json.dumps({"p10": {"patient": "a"}, "p11": {"patient": "b"}, "p12": {"patient": "b"}}))
    assert cli.main(command(tmp_path / "study", out, *same)) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "3 to test on (of 2 patients: scores are averaged over a patient's scans first" in text
    rows = rows_in(out)
    assert {row["scan"] for row in rows} == {"p10", "p11", "p12"}
    own = [row for row in rows if row["candidate"] == "full"]
    dice = {scan: [float(r["dice"]) for r in own if r["scan"] == scan] for scan in ("p10", "p11", "p12")}
    expected = (mean_of(dice["p10"]) + mean_of(dice["p11"] + dice["p12"])) / 2
    assert f"{expected:.3f}" != f"{mean_of([float(r['dice']) for r in own]):.3f}"
    assert f"| full | 2 | {expected:.3f} |" in text.partition("### By structure")[0]
    of_patients.write_text(json.dumps({scan: {"patient": "a"} for scan in dice}))
    assert cli.main(command(tmp_path / "study", tmp_path / "other", *same)) == 0
    assert "all of one patient**: each counts" in (tmp_path / "other" / "report.md").read_text(encoding="utf-8")


TASKS = {
    "both balls": {"support": "support", "test": "test", "structures": {"bright ball": 1, "dark ball": 2}},
    "dark": {"support": "more/support", "test": "more/test", "structures": "dark ball=2"},
}


def write_tasks(folder: Path, tasks: object) -> Path:
    """The file, in a folder that is not that of the call."""
    path = folder / "tasks.json"
    listed = [{"name": name, **task} for name, task in tasks.items()] if isinstance(tasks, dict) else tasks
    path.write_text(listed if isinstance(listed, str) else json.dumps(listed), encoding="utf-8")
    return path


def with_tasks(study: Path, file: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--device", "cpu", "--out", str(out), "--epochs", "1", "--tasks", str(file)]
    return ["compare", "--model", str(study / "model"), *fixed, *more]


@pytest.fixture(scope="module")
def two_tasks(study, tmp_path_factory) -> Path:
    """A folder as `study`, with the scans of a second task; not to be changed."""
    root = tmp_path_factory.mktemp("two") / "study"
    shutil.copytree(study, root)
    write_folder(root / "more/support", range(20, 23))
    write_folder(root / "more/test", range(30, 33))
    return root


@pytest.fixture(scope="module")
def compared_tasks(two_tasks, tmp_path_factory) -> Path:
    """The folder of a finished comparison on two tasks."""
    out = tmp_path_factory.mktemp("compared_tasks") / "out"
    what = ["--methods", "linear_probe,lora", "--shots", "2", "--seeds", "2", "--ranks", "2"]
    assert cli.main(with_tasks(two_tasks, write_tasks(two_tasks, TASKS), out, *what)) == 0
    return out


@pytest.mark.slow
def test_several_tasks_are_run_in_one_call_and_folder(compared_tasks):
    rows = rows_in(compared_tasks)
    found = {(r["task"], r["candidate"], r["draw"]) for r in rows}
    assert found == {(t, c, d) for t in TASKS for c in ("linear_probe", "lora", "lora rank=2") for d in "01"}
    assert {r["structure"] for r in rows if r["task"] == "dark"} == {"dark ball"}
    assert {r["scan"] for r in rows if r["task"] == "dark"} == {"p30", "p31", "p32"}
    assert [r["draw"] for r in rows] == sorted(r["draw"] for r in rows), "an early end is a fair comparison"
    settings = json.loads((compared_tasks / "compare.json").read_text())
    assert list(settings["tasks"]) == list(TASKS)
    assert settings["tasks"]["dark"]["structures"] == {"dark ball": 2}


def test_the_report_of_several_tasks_has_a_section_over_all_and_one_for_each(compared_tasks):
    text = (compared_tasks / "report.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## All tasks", "## Task: both balls", "## Task: dark"]
    assert "- Task dark: dark ball; scans: 3 to draw support sets from, 3 to test on" in text
    over_all, both, dark = text.split("\n## ")[1:]
    assert "#### By task" in over_all
    assert "#### By structure" not in over_all
    assert "#### By structure" in both
    assert all("### Robustness to the initial rank" in section for section in (over_all, both, dark))
    names = [
        *(f"{mark}{kind}" for mark in ("", "task1_", "task2_") for kind in ("dice", "pareto", "share", "time", "ranks"))
    ]
    for name in names:
        assert f"]({name}.png)" in text
        assert (compared_tasks / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = [r for r in rows_in(compared_tasks) if r["candidate"] == "lora"]
    # By hand: structures within a scan, scans and draws within a task, tasks.
    means = {t: [float(r["dice"]) for r in rows if r["task"] == t] for t in TASKS}
    mean = sum(sum(values) / len(values) for values in means.values()) / 2
    line = next(line for line in over_all.splitlines() if line.startswith("| lora | 2 | "))
    assert line.split(" | ")[2] == f"{mean:.3f}"


def test_tasks_go_on_where_they_were_and_can_be_added(two_tasks, compared_tasks, tmp_path, capsys):
    first = {"both balls": TASKS["both balls"]}
    file = write_tasks(two_tasks, first)
    out, what = tmp_path / "out", ("--methods", "linear_probe", "--shots", "2", "--seeds", "1")
    assert cli.main(with_tasks(two_tasks, file, out, *what)) == 0
    before = (out / "runs.csv").read_bytes()
    assert "## All tasks" not in (out / "report.md").read_text()
    assert cli.main(with_tasks(two_tasks, write_tasks(two_tasks, TASKS), out, *what)) == 0
    assert (out / "runs.csv").read_bytes().startswith(before)
    assert {r["task"] for r in rows_in(out)} == set(TASKS)
    # One method more, in one task only: it is in that task's tables, and said to be missing in the others.
    write_tasks(two_tasks, first)
    assert cli.main(with_tasks(two_tasks, file, out, "--methods", "bitfit", *what[2:])) == 0
    over_all, both, dark = (out / "report.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert "no run in some of the tasks: bitfit" in over_all
    assert ("| bitfit" in over_all, "| bitfit" in both, "| bitfit" in dark) == (False, True, False)
    capsys.readouterr()
    write_tasks(two_tasks, TASKS)
    before = {p.name: p.read_bytes() for p in compared_tasks.iterdir()}
    assert cli.main(with_tasks(two_tasks, file, compared_tasks, "--methods", "lora", *what[2:])) == 0
    assert "No run is missing" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in compared_tasks.iterdir()} == before


def test_a_changed_setting_of_one_task_is_refused_and_named(two_tasks, compared_tasks, capsys):
    other = TASKS | {"dark": TASKS["dark"] | {"structures": {"dark ball": 1}}}
    file = write_tasks(two_tasks, other)
    assert cli.main(with_tasks(two_tasks, file, compared_tasks, "--methods", "lora", "--shots", "2")) == 2
    assert "dark.structures.dark ball was 2, is 1" in capsys.readouterr().err


def changed(**fields: object) -> dict:
    return TASKS | {"dark": {**TASKS["dark"], **fields}}


@pytest.mark.parametrize(
    ("tasks", "named"),
    [
        ("[{", ["tasks.json", "JSON"]),
        ('[{"name": "a", "name": "b"}]', ["'name'", "twice"]),
        ({}, ["a list of tasks"]),
        ({"dark": 3}, ["a list of tasks"]),
        ([3], ["task 1 of tasks.json", "3 (int)"]),
        ([{"name": "a", **TASKS["dark"]}] * 2, ["'a'", "two tasks"]),
        ([TASKS["dark"]], ["task 1 of tasks.json", "lacks name"]),
        ([{"name": "a", "structures": {}}], ["lacks support, test"]),
        (changed(shots=3), ["'shots'", "structures"]),
        (changed(support=["a"]), ["support of task 2", "expected a text"]),
        (changed(name=" "), ["name of task 2"]),
        (changed(name="a\nb"), ["name of task 2"]),
        (changed(structures={}), ["structures of task 2", "empty"]),
        (changed(structures=["dark ball"]), ["structures of task 2"]),
        (changed(structures={"dark ball": "2"}), ["'dark ball'", '"2" (str)']),
        (changed(structures={"dark ball": True}), ["'dark ball'", "true (bool)"]),
        (changed(structures={"dark ball": 0}), ["task 2", "1 to 65535"]),
        (changed(structures={"a": 2, "b": 2}), ["task 2", "value 2 twice"]),
        (changed(support="nowhere"), ["support folder", "nowhere"]),
        (changed(test="support"), ["scan p0 of task 'dark'", "support scan p0 of task 'both balls'"]),
        (changed(support="test"), ["scan p10 of task 'both balls'", "support scan p10 of task 'dark'"]),
    ],
)
def test_tasks_that_are_wrong_are_told_before_anything_runs(two_tasks, tmp_path, capsys, tasks, named):
    listed = [] if tasks == {} else tasks
    listed = json.dumps(tasks) if tasks == {"dark": 3} else listed
    file = write_tasks(two_tasks, listed)
    assert cli.main(with_tasks(two_tasks, file, tmp_path / "out", "--methods", "lora", "--shots", "2")) == 2
    told = capsys.readouterr().err
    assert not [text for text in named if text not in told], told
    assert not (tmp_path / "out").exists()


def test_the_file_of_tasks_stands_in_place_of_the_flags_of_one(study, two_tasks, tmp_path, capsys):
    file = write_tasks(two_tasks, TASKS)
    assert cli.main([*command(study, tmp_path / "out"), "--tasks", str(file)]) == 2
    assert "--tasks does not go with --support, --test, --structures" in capsys.readouterr().err
    assert cli.main(["compare", "--model", str(study / "model"), "--test", "x", "--out", str(tmp_path / "out")]) == 2
    assert "--support, --structures is missing" in capsys.readouterr().err


def test_shots_must_suffice_in_every_task(two_tasks, tmp_path, capsys):
    file = write_tasks(two_tasks, TASKS)
    assert cli.main(with_tasks(two_tasks, file, tmp_path / "out", "--methods", "lora", "--shots", "4")) == 2
    told = capsys.readouterr().err
    assert "4 shots cannot be drawn from 3 support scans of task 'dark'" in told
    assert "1 to 3" in told


def test_a_folder_of_format_1_goes_on(study, compared, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    settings = json.loads((out / "compare.json").read_text())
    old = {k: v for k, v in copy.deepcopy(settings).items() if k != "tasks"}
    old |= settings["tasks"]["tiny"] | {"format": 1}
    del old["candidates"]["lora"]["options"]["form"]  # an option that the method got since
    (out / "compare.json").write_text(json.dumps(old))
    rows = (out / "runs.csv").read_bytes()
    what = ("--methods", "lora", "--shots", "2", "--seeds", "2")
    assert cli.main(command(study, out, *what)) == 0
    assert "No run is missing" in capsys.readouterr().err
    assert (out / "runs.csv").read_bytes() == rows
    assert json.loads((out / "compare.json").read_text()) == settings
    (out / "compare.json").write_text(json.dumps(old))
    assert cli.main(command(study, out, *what, "--structures", "bright ball=1")) == 2
    assert "structures.dark ball was 2, is not given" in capsys.readouterr().err
    for damaged, words in (
        ("[]", "damaged"),
        (json.dumps(old | {"structures": None, "format": 0}), "damaged"),
        (json.dumps(settings | {"format": 3}), "format 3"),
    ):
        (out / "compare.json").write_text(damaged)
        assert cli.main(command(study, out, *what)) == 2
        assert words in capsys.readouterr().err


def test_auto_is_a_method_like_others_and_its_rows_say_what_it_chose(study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    what = ("--methods", "auto,lora,linear_probe", "--option", "auto.methods=lora,linear_probe", "--ranks", "2")
    assert cli.main(command(study, out, *what, "--shots", "2", "--seeds", "1")) == 0
    rows = {row["candidate"]: row for row in rows_in(out)}
    chosen = rows["auto"]["chosen"]
    assert chosen.startswith(("LoRA", "Linear probe"))
    assert {rows[label]["chosen"] for label in rows if label != "auto"} == {""}
    assert (rows["auto"]["method"], rows["auto"]["initial_rank"]) == ("auto", "")
    twin = rows["lora" if chosen.startswith("LoRA") else "linear_probe"]
    same = ("trained", "trained_adapter", "trained_head", "base_total", "epochs", "rank")
    if "," not in chosen:  # its usual options
        assert [rows["auto"][key] for key in same] == [twin[key] for key in same]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert f"| auto | {chosen} | 1 |" in text
    assert "| auto |" not in text.partition("## Robustness")[2].partition("## Plots")[0]


def test_auto_that_can_try_nothing_is_refused_before_anything_runs_or_left_out(study, tmp_path, capsys):
    def start(*methods: str) -> int:
        wanted = ("--methods", ",".join(methods), "--option", "auto.methods=adaptformer")
        return cli.main(command(study, tmp_path / "out", *wanted, "--shots", "2", "--seeds", "1"))

    assert start("auto") == 2
    assert "Nothing that 'auto' may try fits" in capsys.readouterr().err
    for option, words in (("auto.methods=magic", "'magic'"), ("auto.search_share=1.0", "search_share is 1.0")):
        what = ("--methods", "auto", "--option", option, "--shots", "2")
        assert cli.main(command(study, tmp_path / "out", *what)) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    wanted = replace(make_comparison(study, "linear_probe"), skipping=True, draws=(0,))
    auto = make_candidates(("auto",), {"auto.methods": "adaptformer"})
    result = run_comparison(replace(wanted, candidates=(*wanted.candidates, *auto)), tmp_path / "o", Reporter.silent())
    assert "auto does not fit tiny" in result["skipped"][0]


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
        "zero-shot",
        "METHOD.KEY",
        "--tasks FILE.json",
        '"support":',
    ):
        assert words in text
