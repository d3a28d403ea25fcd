"""Scans of one patient are left out together, wherever it was said whose they are; nothing tells who the patient is."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peftseg import auto, check, train
from peftseg.adapter_file import read_recipe
from peftseg.adapter_training import make_setting
from peftseg.adapters import check_options
from peftseg.auto_search import Search
from peftseg.cli_endings import adapted
from peftseg.compare import Task
from peftseg.compare_settings import task_settings
from peftseg.config import AdaptJob, CheckJob, from_json, to_json
from peftseg.dataset import load_scans
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.models import Structure, resolve
from peftseg.patients import by_patient, numbered, patients_of, without_patient_of
from peftseg.study import LabelState, SupportItem, read_support_folder
from peftseg.volume import Grid, write_volume
from small_scans import BOTH, DARK, make_scan_files, write_tiny_model
from test_dicom import write_series

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four scans of nobody in particular."""
    folder = tmp_path_factory.mktemp("scans")
    return tuple(make_scan_files(folder, n) for n in range(4))


def of_patients(items, *patients) -> tuple[SupportItem, ...]:
    return tuple(replace(item, patient=patient) for item, patient in zip(items, patients, strict=False))


def job_for(model, items, tmp_path, **changes) -> AdaptJob:
    given = {
        "epochs": 1,
        "estimate": "loo",
        "device": "cpu",
        "precision": "fp32",
        "out": str(tmp_path / "a.safetensors"),
    }
    return AdaptJob(**{"model": str(model), "support": items, "structures": BOTH, **given, **changes})


def events_of(reporter, stage: str) -> list[dict]:
    return [e for e in reporter.events if e["event"] == "progress" and e["stage"] == stage]


@pytest.fixture
def learnt_from(monkeypatch):
    """Names of the scans of each training, in turn; they are really trained."""
    found = []

    def noted(setting, loaded, reporter, really=train.adapt_scans):
        found.append([scan.volume.name[-1] for scan in loaded])
        return really(setting, loaded, reporter)

    monkeypatch.setattr(train, "adapt_scans", noted)
    return found


# who is left out with whom


def test_scans_without_a_patient_are_patients_of_their_own():
    items = [SupportItem("a", "a"), SupportItem("b", "b", {}, 1), SupportItem("c", "c"), SupportItem("d", "d", {}, 1)]
    assert by_patient(patients_of(items)) == [[0], [1, 3], [2]]
    assert [item.image for item in without_patient_of(items, 3)] == ["a", "c"]
    assert [item.image for item in without_patient_of(items, 0)] == ["b", "c", "d"]
    assert numbered(["x", None, "y", "x"]) == [1, None, 2, 1]


def test_the_estimate_leaves_a_patients_scans_out_together_and_scores_each(model, scans, tmp_path, learnt_from):
    reporter = Reporter.silent()
    job = job_for(model, of_patients(scans, 1, 2, 1, None), tmp_path)
    result = train.run_adapt(job, reporter)
    assert learnt_from == [list("0123"), list("13"), list("023"), list("012")]
    assert [row["scan"] for row in result["left_out"]] == [1, 2, 3, 4]
    for name, values in result["estimate"].items():
        assert values == [row["dice"][name] for row in result["left_out"]]
        assert None not in values
    assert [(e["step"], e["total"]) for e in events_of(reporter, "estimate")] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    trained = dict.fromkeys((e.get("left_out"), e.get("patient")) for e in events_of(reporter, "train"))
    assert list(trained) == [(None, None), (1, 1), (2, 2), (4, 3)]
    assert (result["patients"], read_recipe(result["adapter"]).record["patients"]) == (3, 3)
    assert "left out of training, with all scans of the same patient" in "\n".join(adapted(job, result))


def test_each_of_a_patients_scans_gets_the_value_of_an_adapter_of_the_others(model, scans, tmp_path):
    """What the two scans get is what each gets alone, beside the same others."""
    job = job_for(model, of_patients(scans[:3], 1, 2, 1), tmp_path, epochs=2)
    job = replace(job, support=(*job.support, replace(scans[3], patient=3)))
    together = train.run_adapt(job, Reporter.silent())["estimate"]
    without_first = replace(job, support=job.support[1:], out=str(tmp_path / "b.safetensors"))
    alone = train.run_adapt(without_first, Reporter.silent())["estimate"]
    for name in together:
        assert together[name][2] == alone[name][1]


def test_without_patients_every_other_scan_is_learnt_from_and_nothing_speaks_of_them(
    model, scans, tmp_path, learnt_from
):
    reporter = Reporter.silent()
    job = job_for(model, scans[:3], tmp_path)
    result = train.run_adapt(job, reporter)
    assert learnt_from == [list("012"), list("12"), list("02"), list("01")]
    assert result["patients"] is None
    assert "patients" not in read_recipe(result["adapter"]).record
    assert not any("patient" in e for e in reporter.events)
    assert "left out of training, one at a time" in "\n".join(adapted(job, result))


def test_scans_of_one_patient_are_left_out_one_at_a_time_and_it_is_said_what_that_tells(
    model, scans, tmp_path, learnt_from
):
    reporter = Reporter.silent()
    job = job_for(model, of_patients(scans[:3], 1, 1, 1), tmp_path)
    result = train.run_adapt(job, reporter)
    assert learnt_from == [list("012"), list("12"), list("02"), list("01")]
    assert (result["patients"], read_recipe(result["adapter"]).record["patients"]) == (1, 1)
    (warning,) = [e["message"] for e in reporter.events if e["event"] == "warning" and "of one patient" in e["message"]]
    assert "says nothing about others" in warning
    assert "support.json" in warning
    assert not any("patient" in e for e in events_of(reporter, "train"))
    assert "left out of training, one at a time" in "\n".join(adapted(job, result))


def test_one_patients_scans_are_learnt_from_with_a_warning_where_no_estimate_is_asked(model, scans, tmp_path):
    reporter = Reporter.silent()
    result = train.run_adapt(job_for(model, of_patients(scans[:2], 1, 1), tmp_path, estimate="none"), reporter)
    assert Path(result["adapter"]).is_file()
    assert [e for e in reporter.events if e["event"] == "warning" and "of one patient" in e["message"]]


def test_a_structure_of_one_patients_scans_only_is_scored_as_one_of_a_single_scan(model, scans, tmp_path):
    other = make_scan_files(tmp_path, 9, states={DARK.name: LabelState("not labelled")})
    items = of_patients((*scans[:2], other), 1, 1, 2)
    result = train.run_adapt(job_for(model, items, tmp_path, epochs=2), Reporter.silent())
    assert [value is None for value in result["estimate"][DARK.name]] == [False, False, True]


def test_a_check_warns_of_one_patient_and_counts_an_estimates_trainings_by_patients(model, scans, monkeypatch):
    learnt = []

    def planned(setting, scans, attached, divisor):
        learnt.append(len(scans))
        return types.SimpleNamespace(seconds=1e6)

    monkeypatch.setattr(check, "plan_for", planned)

    def told(*patients):
        items = of_patients(scans, *patients)
        job = CheckJob(str(model), items, BOTH, estimate="loo", match=False, device="cpu", epochs=1, precision="fp32")
        found = check.run_check(job, Reporter.silent())
        one = any("All 4 labelled scans are of one patient" in text for text in found["warnings"])
        return one, round(found["seconds"] / 1e6)

    assert told(1, 1, 1, 1) == (True, 4)
    assert told(1, 1, 1, 2) == (False, 2)
    assert told(None, None, None, None) == (False, 4)
    assert learnt == [3, 1, 3]


# the method auto


def auto_setting(model, loaded, epochs=2):
    options = check_options("auto", {"methods": "linear_probe,full"})
    made = make_setting(resolve(str(model)), BOTH, loaded, "auto", options, CPU, Reporter.silent())
    return replace(made, epochs=epochs, precision="fp32")


def test_a_trial_of_auto_learns_from_other_patients_and_scores_all_of_ones_scans(model, scans, monkeypatch):
    loaded = load_scans(of_patients(scans, 7, 8, 7, 9), BOTH, None, Reporter.silent())
    setting = auto_setting(model, loaded)
    search = Search(choices=2, epochs=2, limit=1e9)
    trial = auto.Trial(setting, loaded, search, None, 0.0, Reporter.silent())
    trained = []

    def noted(setting, loaded, reporter, really=auto.train_adapter):
        trained.append([scan.volume.name[-1] for scan in loaded])
        return really(setting, loaded, reporter)

    monkeypatch.setattr(auto, "train_adapter", noted)
    choice = auto._fitting(setting)[0][0]
    value = trial.score(choice, 0)
    assert trained == [["1", "3"]]
    names = [s.name for s in BOTH]
    each = [trial._dice(trial.kept[choice.label], n, names) for n in (0, 2)]
    assert value == pytest.approx(np.mean(each), abs=1e-4)
    assert search.spent == 2 * 2  # epochs times scans that were learnt from


def test_a_patient_is_one_fold_of_auto_and_its_words_say_patient(model, scans, monkeypatch):
    monkeypatch.setattr(auto, "SEARCH_TRAININGS", 30.0)
    loaded = load_scans(of_patients(scans, 1, 1, 2, None), BOTH, None, Reporter.silent())
    setting = auto_setting(model, loaded)
    assert auto.usable_folds(loaded, setting) == [0, 2, 3]
    facts = auto.choose(setting, loaded, Reporter.silent()).facts
    assert all(values[1] is None for values in facts["scores"].values())
    assert "patient(s) that were left out one at a time" in facts["why"][0]
    assert not any("scan" in sentence for sentence in facts["why"])


def test_auto_leaves_out_scans_where_all_are_of_one_patient(model, scans):
    loaded = load_scans(of_patients(scans[:3], 1, 1, 1), BOTH, None, Reporter.silent())
    setting = auto_setting(model, loaded)
    assert auto.usable_folds(loaded, setting) == [0, 1, 2]
    why = auto.choose(setting, loaded, Reporter.silent()).facts["why"]
    assert not any("patient" in sentence for sentence in why)


def test_an_estimate_of_auto_inside_which_one_patient_is_left_chooses_by_that_ones_scans(model, scans, tmp_path):
    options = {"methods": "linear_probe,full"}
    job = job_for(model, of_patients(scans[:3], 1, 1, 2), tmp_path, method="auto", options=options, epochs=2)
    reporter = Reporter.silent()
    result = train.run_adapt(job, reporter)
    assert all(len(values) == 3 for values in result["estimate"].values())
    assert any("without" in e and e.get("left_out") == 3 for e in events_of(reporter, "choose"))


# whose scan it is, in files


def folder_of(folder: Path, names: str, said: dict | None = None) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for name in names:
            write_volume(folder / part / f"{name}.nii.gz", np.ones((4, 4, 4), np.uint8), Grid((4, 4, 4), np.eye(4)))
    if said is not None:
        (folder / "support.json").write_text(json.dumps(said))
    return folder


def test_a_support_folder_says_whose_scans_are_and_items_hold_a_number_by_order(tmp_path):
    said = {"b.nii.gz": {"patient": "Doe, Jane"}, "a": {"patient": 77, DARK.name: "absent"}, "d": {"patient": "77"}}
    items = read_support_folder(folder_of(tmp_path, "abcd", said), BOTH)
    assert [item.patient for item in items] == [1, 2, None, 1]
    assert items[0].states == {DARK.name: LabelState("absent")}
    loaded = load_scans(
        [replace(item, states={DARK.name: LabelState("absent")}) for item in items], BOTH, None, Reporter.silent()
    )
    assert [scan.patient for scan in loaded] == [1, 2, None, 1]


def test_a_structure_that_is_called_patient_stays_one(tmp_path):
    folder = folder_of(tmp_path, "ab", {"a": {"patient": "absent"}, "b": {"patient": "not labelled"}})
    items = read_support_folder(folder, [Structure("patient", 1), DARK])
    assert [item.patient for item in items] == [None, None]
    assert [item.states["patient"].state for item in items] == ["absent", "not labelled"]


@pytest.mark.parametrize("patient", ["", " ", None, True, 1.5, ["a"], "absent"])
def test_what_is_no_patient_is_refused(tmp_path, patient):
    folder = folder_of(tmp_path, "a", {"a": {"patient": patient}})
    with pytest.raises(BadInput, match=r"the patient is .*expected a number or a text"):
        read_support_folder(folder, BOTH)


def dicom_folder(folder: Path, **patients: str) -> Path:
    """A support folder of DICOM series; each scan's PatientID."""
    folder_of(folder, "")
    for name, patient in patients.items():
        write_series(folder / "images" / name, [10, 12, 14], PatientID=patient)
        write_volume(folder / "labels" / f"{name}.nii.gz", np.ones((4, 4, 4), np.uint8), Grid((4, 4, 4), np.eye(4)))
    return folder


def test_dicom_series_of_one_patient_id_are_of_one_patient_and_the_id_is_nowhere(tmp_path):
    items = read_support_folder(dicom_folder(tmp_path, a="ID-123", b="ID-9", c="ID-123", d=""), BOTH)
    assert [item.patient for item in items] == [1, 2, 1, None]
    assert "ID-" not in to_json(AdaptJob("m", items, BOTH, "a.safetensors"))


def test_what_support_json_says_of_dicom_series_counts_more_than_their_headers(tmp_path):
    folder = dicom_folder(tmp_path, a="ANONYMOUS", b="ANONYMOUS", c="ANONYMOUS")
    (folder / "support.json").write_text(json.dumps({"a": {"patient": 1}, "b": {"patient": 2}}))
    assert [item.patient for item in read_support_folder(folder, BOTH)] == [1, 2, 3]


def test_a_job_of_before_patients_is_read_and_a_name_is_refused():
    job = AdaptJob("m", (SupportItem("a", "b", {}, 3),), BOTH, "a.safetensors")
    assert from_json(to_json(job)) == job
    record = json.loads(to_json(job))
    del record["support"][0]["patient"]
    assert from_json(json.dumps(record)).support[0].patient is None
    for patient, message in (("Doe", "patient"), (0, "number is 0")):
        record["support"][0]["patient"] = patient
        with pytest.raises(BadInput, match=message):
            from_json(json.dumps(record))


def test_a_comparison_notices_that_a_scan_is_now_another_patients(tmp_path):
    folder = folder_of(tmp_path, "ab")
    items = read_support_folder(folder, BOTH)
    before = task_settings([Task("t", BOTH, items, ())])
    assert task_settings([Task("t", BOTH, of_patients(items, None, None), ())]) == before
    assert task_settings([Task("t", BOTH, of_patients(items, 1, 1), ())]) != before
