"""The command line, mostly as a real process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from peftseg import cli, cli_options, foundation_models, jobs
from peftseg.adapter_file import save_adapter
from peftseg.cli_options import PALETTE, parse_numbers, parse_options, parse_structures
from peftseg.cli_progress import ProgressBar, cell, describe, duration, table
from peftseg.config import ApplyJob
from peftseg.download import file_hash
from peftseg.errors import BadInput
from peftseg.models import (
    Intensity,
    ModelEntry,
    NetworkSpec,
    Preprocessing,
    Source,
    Structure,
    catalogue,
    read_model_dir,
)
from peftseg.networks import build
from peftseg.paths import jobs_dir
from peftseg.weights import load_base, save_model
from small_scans import make_scan_files, write_tiny_model
from test_library import RECIPE

RUN_HERE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import job_runners
from peftseg.cli_jobs import run_here
sys.exit(run_here(Path(sys.argv[2]), sys.argv[3] == "json", {"apply": job_runners.run_apply}))
"""
SUBCOMMANDS = (
    "adapt",
    "check",
    "compare",
    "apply",
    "rank",
    "evaluate",
    "pretrain",
    "models",
    "methods",
    "adapters",
    "jobs",
    "worker",
    "demo",
    "doctor",
)


def peftseg(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "peftseg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make_job(behaviour: str, out: Path) -> Path:
    return jobs.create_job(ApplyJob("none", None, (str(out / behaviour),), str(out), device="cpu"))


def run_here(jobdir: Path, how: str = "text") -> list[str]:
    return [sys.executable, "-c", RUN_HERE, str(Path(__file__).parent), str(jobdir), how]


def test_help_lists_every_subcommand():
    done = peftseg("--help")
    assert done.returncode == 0
    assert not [name for name in SUBCOMMANDS if name not in done.stdout]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["COMMAND"]),
        (["adaptt"], ["'adaptt'", "adapt"]),
        (["models", "--jsn"], ["'--jsn'", "--json"]),
        (["models", "--js"], ["'--js'", "--json"]),
        (["models", "extra"], ["'extra'"]),
        (["models", "download"], ["ID"]),
        (["models", "remove", "brain-t1", "--jsn"], ["'--jsn'", "--json"]),
        (["jobs", "stop"], ["'stop'", "cancel"]),
        (["jobs", "cancel", "abc"], ["'abc'"]),
        (["adapters"], ["list"]),
        (["apply", "--input", ".", "--out", "x"], ["--adapter", "--model"]),
        (["apply", "--adapter", "a", "--model", "b", "--input", ".", "--out", "x"], ["not allowed with"]),
        (["apply", "--adapter", "a", "--input", "nowhere.nii", "--out", "x"], ["nowhere.nii"]),
        (["apply", "--adapter", "a", "--input", ".", "--out", "x", "--format", "dicom"], ["'dicom'", "nifti", "nrrd"]),
        (["apply", "--adapter", "a", "--input", ".", "--out", "x", "--device", "gpu"], ["'gpu'", "cuda"]),
        (["apply", "--model", "none-such", "--input", ".", "--out", "x"], ["'none-such'"]),
        (
            ["adapt", "--model", "m", "--support", "s", "--structures", "a=1", "--out", "o", "--epochs", "x"],
            ["--epochs"],
        ),
        (
            ["adapt", "--model", "m", "--support", "s", "--structures", "a=1", "--out", "o", "--method", "magic"],
            ["'magic'", "arena", "lora"],
        ),
        (
            ["adapt", "--model", "m", "--support", "s", "--structures", "a=1", "--out", "o", "--option", "rnk=3"],
            ["'rnk'", "rank"],
        ),
        (["apply", "--adapter", "a", "--input", ".", "--out", "x", "--names", "mine"], ["'mine'", "keep (the files'"]),
        (["worker", "nowhere"], ["nowhere", "job.json"]),
        (["pretrain", "--data", "nowhere", "--structures", "a=1", "--out", "o"], ["nowhere"]),
    ],
)
def test_what_is_wrong_is_told_with_what_is_right_and_exit_code_2(arguments, named, capsys, own_home):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("Error: ")
    assert not [text for text in named if text not in output.err], output.err
    assert not list(jobs_dir().iterdir()), "no job folder stays behind"


def test_bad_input_ends_a_real_process_with_code_2_and_no_traceback():
    done = peftseg("methods", "--sed", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Unknown option of peftseg methods '--sed'" in done.stderr
    assert "Traceback" not in done.stderr


def test_structures_are_read_with_values_and_colours_of_their_own():
    found = parse_structures(" hippocampus = 1, amygdala=6")
    assert [(s.name, s.value) for s in found] == [("hippocampus", 1), ("amygdala", 6)]
    assert [s.colour for s in found] == [*PALETTE[:2]]
    assert len(set(PALETTE)) == 12
    assert parse_structures(",".join(f"s{i}={i}" for i in range(1, 14)))[12].colour == PALETTE[0]


def test_a_structure_that_the_model_knows_takes_its_colour_and_code():
    class Entry:
        structures = (Structure("liver", 5, (9, 9, 9), "code"),)

    assert parse_structures("spleen=2,liver=1", Entry()) == (
        Structure("spleen", 2, PALETTE[0]),
        Structure("liver", 1, (9, 9, 9), "code"),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "name=value"),
        ("a", "'a'"),
        ("a=", "'a='"),
        ("=1", "'=1'"),
        ("a=b", "'a=b'"),
        ("a=0", "1 to 65535"),
        ("a=65536", "1 to 65535"),
        ("a=1.5", "'a=1.5'"),
        ("a=-1", "'a=-1'"),
        ("a=1=2", "'a=1=2'"),
        ("a=²", "name=value"),
        ("a=1,", "name=value"),
        ("a=1,a=2", "name a twice"),
        ("a=1,b=1", "value 1 twice"),
    ],
)
def test_structures_that_cannot_be_read_are_named(text, named):
    with pytest.raises(BadInput, match=named):
        parse_structures(text)


def test_options_take_numbers_words_and_truth_values():
    pairs = ["rank=8", "lam=0.5", "mode=sora", "on=true", "layers=a=b"]
    assert parse_options(pairs) == {"rank": 8, "lam": 0.5, "mode": "sora", "on": True, "layers": "a=b"}
    for wrong, named in ((["rank"], "key=value"), (["=3"], "key=value"), (["a=1", "a=2"], "twice")):
        with pytest.raises(BadInput, match=named):
            parse_options(wrong)


def test_three_numbers_are_three_numbers():
    assert parse_numbers("1,2,2.5", float, "--spacing") == (1.0, 2.0, 2.5)
    assert parse_numbers(None, int, "--patch") is None
    for wrong in ("1,2", "1,2,x", ""):
        with pytest.raises(BadInput, match="--patch"):
            parse_numbers(wrong, int, "--patch")


def test_a_job_runs_here_with_its_result_on_stdout_and_its_folder_gone(tmp_path):
    jobdir = make_job("quick", tmp_path)
    done = subprocess.run(run_here(jobdir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "answer: 42"
    assert "100% work 1/1, loss 0.250" in done.stderr
    assert "a library prints" not in done.stdout + done.stderr
    assert not jobdir.exists()


def test_with_json_every_line_of_stdout_is_an_event(tmp_path):
    done = subprocess.run(run_here(make_job("quick", tmp_path), "json"), capture_output=True, text=True, check=False)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["started", "progress", "finished"]
    assert done.stderr == ""


def test_a_crash_is_told_without_a_traceback_and_the_job_kept_with_its_log(tmp_path):
    jobdir = make_job("crashes", tmp_path)
    done = subprocess.run(run_here(jobdir), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "seven by nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"peftseg jobs resume {jobdir.name[:8]}" in done.stderr
    assert "Traceback" in (jobdir / "worker.log").read_text()
    listed = peftseg("jobs", "list")
    assert jobdir.name[:8] in listed.stdout
    assert "failed" in listed.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal of Unix")
def test_control_c_cancels_the_job_and_ends_with_code_3(tmp_path):
    jobdir = make_job("cooperative", tmp_path)
    with subprocess.Popen(run_here(jobdir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "work" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - asked < 2.0
    assert (process.returncode, out) == (3, "")
    assert "cancelled" in err
    assert "Traceback" not in err
    assert not jobdir.exists(), "there is nothing to resume"


@pytest.mark.skipif(sys.platform == "win32", reason="reads a pipe line by line")
def test_a_job_on_another_terminal_is_listed_and_cancelled_from_here(tmp_path):
    jobdir = make_job("cooperative", tmp_path)
    (jobdir / "checkpoint.safetensors").touch()
    with subprocess.Popen(run_here(jobdir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "work" not in process.stderr.readline():
            assert process.poll() is None
        listed = json.loads(peftseg("jobs", "list", "--json").stdout)
        assert [(j["id"], j["state"], j["alive"]) for j in listed] == [(jobdir.name, "running", True)]
        refused = peftseg("jobs", "resume", jobdir.name)
        assert (refused.returncode, "runs already" in refused.stderr) == (2, True)
        done = peftseg("jobs", "cancel", jobdir.name[:6])
        _, err = process.communicate(timeout=20)
    assert (done.returncode, process.returncode) == (0, 3)
    assert "is cancelled" in done.stdout
    assert "peftseg jobs resume" in err, "it has a checkpoint"
    assert peftseg("jobs", "clean").stdout == "1 job(s) cleaned up.\n"
    assert not jobdir.exists()


def test_a_worker_process_ends_with_the_jobs_exit_code_and_prints_nothing(tmp_path):
    jobdir = make_job("quick", tmp_path)
    (jobdir / "job.json").write_text('{"protocol": 99}')
    done = peftseg("worker", str(jobdir))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    again = peftseg("worker", str(jobdir))
    assert (again.returncode, "has ended" in again.stderr) == (2, True)


def test_methods_and_models_are_listed_as_text_and_json():
    text, data = peftseg("methods"), peftseg("methods", "--json")
    assert "arena: " in text.stdout
    methods = {m["name"]: m for m in json.loads(data.stdout)}
    assert {"arena", "lora"} <= set(methods)
    assert "rank" in [o["name"] for o in methods["lora"]["options"]]
    assert isinstance(json.loads(peftseg("models", "--json").stdout), list)


@pytest.fixture
def tiny(tmp_path) -> ModelEntry:
    """A model folder with a small network, and beside it the same weights as a public checkpoint."""
    entry = ModelEntry(
        id="tiny",
        title="Tiny",
        modality="CT",
        structures=(Structure("liver", 1),),
        network=NetworkSpec("segresnet", {"init_filters": 8}),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(16, 16, 16),
        overlap=0.5,
        licence="MIT",
    )
    network, _ = build(entry.network, n_outputs=2)
    save_model(tmp_path / "m", entry, network)
    (tmp_path / "m" / "LICENSE.txt").write_text("MIT")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "public.pt")
    return read_model_dir(tmp_path / "m")


def test_a_model_folder_is_imported_once_and_removed(tiny, capsys, own_home):
    assert cli.main(["models", "import", str(tiny.directory), "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["directory"])
    assert folder == own_home / "models" / "tiny"
    assert {p.name for p in folder.iterdir()} == {"model.json", "weights.safetensors", "LICENSE.txt"}
    assert (folder / "weights.safetensors").read_bytes() == tiny.weights_path.read_bytes()
    assert cli.main(["models", "import", str(tiny.directory)]) == 2
    assert "`peftseg models remove tiny`" in capsys.readouterr().err
    assert cli.main(["models", "remove", "tiny"]) == 0
    assert not folder.exists()


def test_a_model_folder_that_is_not_whole_or_has_an_id_of_another_is_not_imported(tiny, capsys, own_home):
    description = tiny.directory / "model.json"
    for old, new, named in (
        ('"tiny"', '"phantom-ct"', "has a model 'phantom-ct' already"),
        ('"tiny"', '"../tiny"', "'../tiny' cannot name a folder"),
        ('"acknowledge": false', '"acknowledge": true', f"peftseg models accept {tiny.directory}"),
        ('"init_filters": 8', '"init_filters": 16', "weights"),
    ):
        whole = description.read_text()
        description.write_text(whole.replace(old, new))
        assert description.read_text() != whole
        assert cli.main(["models", "import", str(tiny.directory)]) == 2
        assert named in capsys.readouterr().err
        description.write_text(whole)
    tiny.weights_path.unlink()
    assert cli.main(["models", "import", str(tiny.directory)]) == 2
    assert "has no weights.safetensors" in capsys.readouterr().err
    assert not (own_home / "models" / "tiny").exists()


def test_a_public_checkpoint_is_imported_and_counts_in_the_catalogue(tiny, capsys, own_home, monkeypatch):
    file = tiny.directory.parent / "public.pt"
    public = dataclasses.replace(tiny, directory=None, source=Source("public.pt", page="https://models.example"))
    monkeypatch.setattr(foundation_models, "FOUNDATION_MODELS", (public,))
    assert cli.main(["models", "import", "tiny", str(file)]) == 0
    assert f"The model tiny was imported: {own_home / 'models' / 'tiny'}" in capsys.readouterr().out
    imported = catalogue()["tiny"]
    assert imported.record["import"]["sha256"] == file_hash(file, "sha256")
    assert load_base(imported)[0].state_dict().keys() == load_base(tiny)[0].state_dict().keys()


def test_doctor_reports_this_environment_and_a_broken_torch(tmp_path, own_home):
    facts = json.loads(peftseg("doctor", "--json").stdout)
    assert facts["packages"]["numpy"]
    assert facts["torch"]["works"] is True
    assert facts["home"] == {"path": str(own_home), "writable": True, "free_gib": facts["home"]["free_gib"]}
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is missing')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "peftseg", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0
    assert "torch does not work: ImportError: libtorch is missing" in done.stdout


def test_progress_is_told_in_words():
    event = {"event": "progress", "stage": "train", "step": 3, "total": 12, "loss": 0.5, "eta_s": 300.0}
    assert describe(event) == "[######------------------]  25% train 3/12, loss 0.500, 5 min left"
    assert describe({**event, "total": 0, "loss": None, "eta_s": None}).endswith("100% train 3/0")
    assert [duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


class Terminal:
    """A stream that says that it is a terminal and keeps what is on its last line."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_bar_of_a_terminal_is_one_line_that_makes_way_for_messages():
    terminal = Terminal()
    bar = ProgressBar(terminal)
    for step in (1, 2):
        bar({"event": "progress", "stage": "train", "step": step, "total": 2})
    assert "\n" not in terminal.text
    bar({"event": "warning", "message": "thin slices"})
    assert terminal.text.endswith("\rWarning: thin slices\n")
    bar({"event": "queued", "device": "cpu"})
    assert terminal.text.endswith("Waiting: another job uses cpu.\n")


def test_the_parser_knows_its_own_options():
    parser = cli_options.Parser(prog="p")
    cli_options.add_run_options(parser)
    assert parser.option_names() == ["--device", "--help", "--json", "--precision", "--seed", "-h"]


def test_tables_are_aligned_and_values_short():
    rows = [{"name": "a", "dice": 0.123456}, {"name": "longer", "dice": float("nan"), "notes": ["x", "y"]}]
    assert table(rows).splitlines() == ["name    dice    notes", "a       0.1235  -", "longer  -       x, y"]
    assert table(rows, ("dice",)).splitlines() == ["dice", "0.1235", "-"]
    assert [cell(v) for v in (None, 2, True, {"a": Path("b")}, [])] == ["-", "2", "true", '{"a": "b"}', "-"]


def test_evaluate_prints_a_table_json_and_a_csv_file(tmp_path, capsys):
    for folder, stop in (("prediction", 4), ("truth", 6)):
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[2:stop, 2:6, 2:6] = 3  # 32 of 64 voxels agree: Dice 64 / 96
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / folder / "scan.nii.gz")
    folders = ["--prediction", str(tmp_path / "prediction"), "--truth", str(tmp_path / "truth")]
    command = ["evaluate", *folders, "--structures", "liver=3"]
    assert cli.main([*command, "--csv", str(tmp_path / "t.csv")]) == 0
    header, row, *said = capsys.readouterr().out.splitlines()
    assert said[0] == "The Dice of liver is 0.667 in one file."
    assert said[-1] == f"The table is in {tmp_path / 't.csv'}."
    assert header.split()[:3] == ["case", "structure", "dice"]
    assert row.split()[:3] == ["scan", "liver", "0.6667"]
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("scan,liver,0.666")
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["dice"] == pytest.approx(2 / 3)


def test_an_empty_library_says_so_and_an_unknown_adapter_is_bad_input(capsys):
    assert cli.main(["adapters", "list"]) == 0
    assert capsys.readouterr().out == "The library is empty.\n"
    assert cli.main(["adapters", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    for command in (["show", "x"], ["remove", "x"], ["export", "x", "y.safetensors"], ["import", "x.safetensors"]):
        assert cli.main(["adapters", *command]) == 2
        assert "x" in capsys.readouterr().err


def test_adapters_are_renamed_and_shared_folders_listed(tmp_path, capsys):
    save_adapter(tmp_path / "liver-v1.safetensors", RECIPE, {"w::full": torch.zeros(1)})
    assert cli.main(["adapters", "folders"]) == 0
    assert capsys.readouterr().out == "No shared folders.\n"
    assert cli.main(["adapters", "folders", "--add", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [str(tmp_path)]
    assert cli.main(["adapters", "list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["source", "ref"]
    assert row.split()[:2] == [str(tmp_path), "liver-v1"]
    assert cli.main(["adapters", "rename", "liver", "site A"]) == 2
    assert "shared folder" in capsys.readouterr().err
    assert cli.main(["adapters", "folders", "--remove", str(tmp_path)]) == 0
    assert cli.main(["adapters", "import", str(tmp_path / "liver-v1.safetensors")]) == 0
    assert cli.main(["adapters", "rename", "liver", "site A"]) == 0
    assert "site A-v1.safetensors" in capsys.readouterr().out


def test_with_json_an_error_of_any_command_is_one_line_on_stdout(capsys):
    assert cli.main(["adapters", "show", "x", "--json"]) == 2
    output = capsys.readouterr()
    assert output.err == ""
    assert {"event": "failed", "kind": "bad_input"}.items() <= json.loads(output.out).items()


def test_pretraining_an_unknown_network_is_refused_before_any_scan_is_read(tmp_path, capsys):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "p0.nii.gz").write_bytes(b"no scan")
    words = [
        "pretrain",
        "--data",
        str(tmp_path),
        "--structures",
        "a=1",
        "--out",
        str(tmp_path / "m"),
        "--device",
        "cpu",
    ]
    assert cli.main([*words, "--network", "segresnte"]) == 2
    assert "Unknown network 'segresnte'" in capsys.readouterr().err
    assert cli.main([*words, "--argument", "init_filtres=4"]) == 2
    assert "does not take the arguments" in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "p0.nii.gz" in capsys.readouterr().err


def test_check_tells_the_plan_in_sentences_and_rank_prints_json(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for n in range(2):
        item = make_scan_files(tmp_path, n)
        Path(item.image).rename(tmp_path / "images" / f"p{n}.nii.gz")
        Path(item.labels).rename(tmp_path / "labels" / f"p{n}.nii.gz")
    model = str(write_tiny_model(tmp_path / "tiny"))
    structures = "bright ball=1,dark ball=2"
    done = peftseg(
        *("check", "--model", model, "--support", str(tmp_path), "--structures", structures),
        *("--epochs", "2", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "The model as it is, before adapting, has a Dice of " in done.stdout
    assert "Adapting to 2 scans would take about" in done.stdout
    assert "Plan: up to 2 epochs" in done.stdout
    done = peftseg(
        *("rank", "--model", model, "--input", str(tmp_path / "images"), "--device", "cpu", "--json"),
        *("--labelled", str(tmp_path / "images" / "p0.nii.gz")),
    )
    assert done.returncode == 0, done.stderr
    ranking = json.loads(done.stdout.splitlines()[-1])["ranking"]
    assert sorted(row["input"] for row in ranking) == [0, 1]
    assert next(row for row in ranking if row["input"] == 0)["distance"] == 0
    assert not list(jobs_dir().iterdir()), "no job folder stays behind"
