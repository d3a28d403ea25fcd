"""`peftseg site-adapt`."""

from __future__ import annotations

import json

import pytest

from peftseg import site_training
from peftseg.adapter_file import read_recipe
from peftseg.cli import main
from peftseg.config import SiteAdaptJob, from_json, kind_of, to_json, with_absolute_paths
from peftseg.errors import BadInput
from peftseg.gate import ACCEPTED, REFUSED, Verdict
from site_cases import write_scans, write_site_model


@pytest.fixture
def words(tmp_path, monkeypatch):
    model = write_site_model(tmp_path / "model")
    (tmp_path / "site" / "images").mkdir(parents=True)
    (tmp_path / "site" / "labels").mkdir()
    write_scans(tmp_path / "site" / "images", 3)
    (tmp_path / "site" / "labels" / "patient_0.nii.gz").write_bytes(b"no scan, and not to be read")
    judged(monkeypatch, ACCEPTED)
    return [
        *("site-adapt", "--model", str(model.directory), "--unlabelled", str(tmp_path / "site")),
        *("--out", str(tmp_path / "a.safetensors"), "--epochs", "1", "--device", "cpu", "--precision", "fp32"),
    ]


def judged(monkeypatch, status):
    monkeypatch.setattr(site_training, "judge", lambda *_: Verdict(status, ("A reason with 3 numbers.",), {}))


def test_a_folder_of_scans_becomes_an_adapter_and_apply_uses_it(words, tmp_path, capfd):
    assert main([*words, "--option", "rank=1", "--name", "scanner B"]) == 0
    out = capfd.readouterr().out
    assert "The adaptation is accepted." in out
    assert "A reason with 3 numbers." in out
    recipe = read_recipe(tmp_path / "a.safetensors")
    assert (recipe.name, recipe.options["rank"], recipe.record["unlabelled_scans"]) == ("scanner B", 1, 3)
    scan = str(tmp_path / "site" / "images" / "patient_1.nii.gz")
    applied = ["apply", "--adapter", str(tmp_path / "a.safetensors"), "--input", scan, "--out", str(tmp_path / "seg")]
    assert main([*applied, "--device", "cpu"]) == 0
    assert (tmp_path / "seg" / "patient_1_seg.nii.gz").is_file()


def test_a_refusal_is_no_failure_has_an_exit_code_of_its_own_and_says_what_to_do(words, tmp_path, capfd, monkeypatch):
    judged(monkeypatch, REFUSED)
    assert main(words) == 5
    out = capfd.readouterr().out
    assert "refused: keep the base model" in out
    assert "--keep-refused" in out
    assert not (tmp_path / "a.safetensors").exists()
    assert main([*words, "--keep-refused"]) == 0
    assert (tmp_path / "a.safetensors").exists()


def test_json_gives_the_events_with_the_verdict(words, capfd):
    assert main([*words, "--json"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1]["event"] == "finished"
    assert events[-1]["verdict"] == {"status": ACCEPTED, "reasons": ["A reason with 3 numbers."], "facts": {}}
    assert events[-1]["scans"] == 3


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--preset", "convlor"], "convlora"),
        (["--option", "rnak=2"], "rank"),
        (["--structures", "ball,spleen"], "no head for 'spleen'"),
        (["--unlabelled", "/no/such/folder"], "does not exist"),
    ],
)
def test_bad_requests_are_told_with_what_is_valid(words, capfd, more, text):
    assert main([*words, *more]) == 2
    assert text in capfd.readouterr().err


def test_a_job_comes_back_from_json_and_its_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = SiteAdaptJob("brain", ("a.nii.gz", "b"), "c.safetensors", options={"rank": 1}, structures=("ball",), epochs=3)
    assert from_json(to_json(job)) == job
    assert kind_of(job) == "site_adapt"
    absolute = with_absolute_paths(job)
    assert absolute.unlabelled == (str(tmp_path / "a.nii.gz"), str(tmp_path / "b"))
    assert absolute.out == str(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("change", "text"),
    [({"preset": "none"}, "convlora_adabn"), ({"unlabelled": ()}, "no scan"), ({"epochs": 0}, "1 or more")],
)
def test_a_job_that_cannot_be_is_refused(change, text):
    with pytest.raises(BadInput, match=text):
        SiteAdaptJob(**{"model": "m", "unlabelled": ("a",), "out": "o.safetensors", **change})
