"""The jobs' strict JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from peftseg.config import (
    PROTOCOL,
    AdaptJob,
    ApplyJob,
    CheckJob,
    PretrainJob,
    RankJob,
    from_json,
    kind_of,
    to_json,
    with_absolute_paths,
)
from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.study import LabelState, SupportItem

LIVER = Structure("liver", 1)
SPLEEN = Structure("spleen", 2, (1, 2, 3), "SCT^78961009^Spleen")
ITEM = SupportItem(
    "a.nii.gz", "b.seg.nrrd", {"liver": LabelState("labelled", (1, 4), 0), "spleen": LabelState("absent")}
)
ADAPT = AdaptJob(
    "phantom-ct", (ITEM,), (LIVER, SPLEEN), "out.safetensors", options={"rank": 4, "lam": 0.5}, budget_minutes=10
)
APPLY = ApplyJob(None, "phantom-ct", ("a.nii.gz", "Höhle/b"), "out", overlap=0.25)
PRETRAIN = PretrainJob(
    (ITEM,), (LIVER,), "model", "my-model", "My model", spacing=(1.0, 1.0, 2.5), patch=(64, 64, 32), epochs=3
)
CHECK = CheckJob("phantom-ct", (ITEM,), (LIVER, SPLEEN), options={"rank": 4}, match=False)
RANK = RankJob(None, "phantom-ct", ("a.nii.gz",), ("b.nii.gz",))
JOBS = {"adapt": ADAPT, "apply": APPLY, "pretrain": PRETRAIN, "check": CHECK, "rank": RANK}


@pytest.mark.parametrize("kind", JOBS)
def test_a_job_comes_back_from_json_as_it_was(kind):
    job = JOBS[kind]
    record = json.loads(to_json(job))
    assert (record["protocol"], record["kind"]) == (PROTOCOL, kind)
    assert set(record) - {"protocol", "kind"} == {f.name for f in dataclasses.fields(job)}
    assert from_json(to_json(job)) == job
    assert kind_of(job) == kind


def changed(job, **changes) -> str:
    return json.dumps({**json.loads(to_json(job)), **changes})


def test_defaults_are_filled_in():
    record = json.loads(to_json(APPLY))
    minimal = {key: record[key] for key in ("protocol", "kind", "adapter", "model", "inputs", "out")}
    assert from_json(json.dumps(minimal)) == dataclasses.replace(APPLY, overlap=None)


@pytest.mark.parametrize("protocol", [0, 2, "1", None, True, 1.5])
def test_another_protocol_is_refused(protocol):
    with pytest.raises(BadInput, match="protocol") as caught:
        from_json(changed(APPLY, protocol=protocol))
    assert "same version" in caught.value.remedy


def test_unknown_fields_are_refused_at_every_depth_with_the_valid_ones():
    with pytest.raises(BadInput, match=r"'methods'.*valid:.*method.*Did you mean 'method'"):
        from_json(changed(ADAPT, methods="lora"))
    record = json.loads(to_json(ADAPT))
    record["support"][0]["states"]["liver"]["slice"] = 3
    with pytest.raises(BadInput, match=r"support\[0\]: states: liver '?'slice'"):
        from_json(json.dumps(record))


def test_missing_fields_are_named():
    record = json.loads(to_json(ADAPT))
    del record["out"], record["model"]
    with pytest.raises(BadInput, match="model, out"):
        from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"protocol": 1, "kind": "train"}', '{"protocol": 1}'])
def test_what_is_no_job_is_refused(text):
    with pytest.raises(BadInput):
        from_json(text)


@pytest.mark.parametrize(
    ("job", "field", "value"),
    [
        (ADAPT, "seed", 1.0),
        (ADAPT, "seed", True),
        (ADAPT, "seed", -1),
        (ADAPT, "model", 3),
        (ADAPT, "model", None),
        (ADAPT, "options", []),
        (ADAPT, "support", {}),
        (ADAPT, "support", ["a.nii.gz"]),
        (ADAPT, "structures", []),
        (ADAPT, "structures", [{"name": "a", "value": 1}, {"name": "a", "value": 2}]),
        (ADAPT, "structures", [{"name": "a", "value": 1}, {"name": "b", "value": 1}]),
        (ADAPT, "structures", [{"name": "a", "value": 0}]),
        (ADAPT, "structures", [{"name": "", "value": 1}]),
        (ADAPT, "structures", [{"name": "a", "value": 1, "colour": [1, 2]}]),
        (ADAPT, "budget_minutes", 0),
        (ADAPT, "budget_minutes", "10"),
        (ADAPT, "budget_minutes", float("nan")),
        (ADAPT, "epochs", 0),
        (ADAPT, "estimate", "cv"),
        (ADAPT, "precision", "fp8"),
        (ADAPT, "device", "gpu"),
        (ADAPT, "device", "cuda:x"),
        (ADAPT, "out", ""),
        (APPLY, "adapter", "both.safetensors"),
        (APPLY, "model", None),
        (APPLY, "inputs", []),
        (APPLY, "inputs", "a.nii.gz"),
        (APPLY, "format", "dicom"),
        (APPLY, "overlap", 1.0),
        (CHECK, "support", []),
        (CHECK, "structures", []),
        (CHECK, "epochs", 0),
        (CHECK, "match", 1),
        (CHECK, "out", "a.safetensors"),
        (RANK, "inputs", []),
        (RANK, "model", None),
        (RANK, "adapter", "both.safetensors"),
        (PRETRAIN, "intensity", "window"),
        (PRETRAIN, "intensity", "window:1"),
        (PRETRAIN, "activation", "relu"),
        (PRETRAIN, "spacing", [1, 1]),
        (PRETRAIN, "spacing", [1, 1, 0]),
        (PRETRAIN, "patch", [64, 64, 32.5]),
    ],
)
def test_values_that_make_no_sense_are_refused_with_a_remedy(job, field, value):
    with pytest.raises(BadInput) as caught:
        from_json(changed(job, **{field: value}))
    assert caught.value.remedy


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_devices_are_taken_as_torch_writes_them(device):
    assert from_json(changed(APPLY, device=device)).device == device


def test_whole_numbers_are_taken_where_a_fraction_is_expected():
    assert from_json(changed(ADAPT, budget_minutes=10)).budget_minutes == 10.0
    assert from_json(changed(PRETRAIN, spacing=[1, 1, 2])).spacing == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("intensity", ["zscore", "percentile", "window:-175,250", "window:0.5,1.5"])
def test_intensities_are_written_in_three_ways(intensity):
    assert from_json(changed(PRETRAIN, intensity=intensity)).intensity == intensity


def test_an_option_that_json_does_not_know_is_refused_when_the_job_is_written():
    for value in (float("inf"), object()):
        with pytest.raises(BadInput, match="JSON"):
            to_json(dataclasses.replace(ADAPT, options={"rank": value}))


def test_paths_become_absolute_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = with_absolute_paths(ADAPT)
    assert (job.out, job.model) == (str(tmp_path / "out.safetensors"), "phantom-ct")
    assert (job.support[0].image, job.support[0].states) == (str(tmp_path / "a.nii.gz"), ITEM.states)
    Path("phantom-ct").mkdir()
    job = with_absolute_paths(APPLY)
    assert job.model == str(tmp_path / "phantom-ct")
    assert job.inputs == (str(tmp_path / "a.nii.gz"), str(tmp_path / "Höhle" / "b"))
    assert with_absolute_paths(CHECK).support[0].image == str(tmp_path / "a.nii.gz")
    ranked = with_absolute_paths(RANK)
    assert (ranked.inputs, ranked.support) == ((str(tmp_path / "a.nii.gz"),), (str(tmp_path / "b.nii.gz"),))
    assert with_absolute_paths(PRETRAIN).data[0].labels == str(tmp_path / "b.seg.nrrd")


@pytest.mark.skipif(sys.platform == "win32", reason="~ by HOME")
def test_the_users_home_is_opened_up(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_absolute_paths(dataclasses.replace(APPLY, out="~/out")).out == str(tmp_path / "out")
