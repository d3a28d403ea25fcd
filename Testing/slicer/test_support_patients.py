"""Scans of one patient are known as such from the subject hierarchy, and a job says so by a number that names nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scene_makers import BRIGHT, DARK, add_labelled_scan, add_scan

from peftseg.config import AdaptJob, CheckJob, to_json

NAME = "Müller^Jörg"


def add_patient(name: str = NAME, uid: str = "") -> int:
    """A patient with a study in the subject hierarchy, as Slicer's DICOM reader makes it; the study's item."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), name)
    if uid:
        hierarchy.SetItemUID(patient, "DICOM", uid)
    return hierarchy.CreateStudyItem(patient, "A study")


def put_under(study: int, *volumes) -> None:
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for volume in volumes:
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)


@pytest.fixture
def panels(tiny_model, module, host):
    """Steps 2 and 3, four labelled scans in the table."""
    from peftseg.models import Structure
    from PEFTSegmentLib import structures

    context = module.main.context
    host.wait_for(lambda: module.main.strip.examined, 20)
    context.engine_ready = lambda: ""
    context.state.model = "tiny"
    structures.write(context.state, [Structure(BRIGHT, 1), Structure(DARK, 2)])
    for number in range(1, 5):
        context.support.add(*add_labelled_scan(number))
    module.main.unfold(3)
    host.process_events(120)
    return module.main.panels[1], module.main.panels[2]


def volumes_of(panel) -> list:
    return [row.scan for row in panel.context.support.rows()]


@pytest.fixture
def submitted(panels, monkeypatch):
    """The jobs, built of files that nobody writes, and the notes of what is submitted."""
    found = []

    def submit(note, exports, build):
        found.append((build(Path("/job"), [Path(f"/job/{n}.nrrd") for n in range(len(exports))]), note))

    monkeypatch.setattr(panels[1].context.runner, "submit", submit)
    return found


# whose scan it is


def test_patients_are_numbered_by_order_whatever_they_are_called(host):
    from PEFTSegmentLib import scans

    volumes = [add_scan(number) for number in range(5)]
    put_under(add_patient(uid="P77"), volumes[1], volumes[4])
    put_under(add_patient(), volumes[3])
    assert scans.patient_numbers(volumes) == [None, 1, None, 2, 1]
    assert scans.patient_numbers([volumes[3], volumes[1], None]) == [1, 2, None]


def test_one_patient_that_came_with_two_scenes_is_one_and_two_of_the_same_name_are_two(host):
    from PEFTSegmentLib import scans

    volumes = [add_scan(number) for number in range(4)]
    for volume, uid in zip(volumes, ("P1", "P1", "", ""), strict=True):
        put_under(add_patient(uid=uid), volume)
    assert scans.patient_numbers(volumes) == [1, 1, 2, 3]


def test_a_study_or_a_folder_alone_says_nothing_of_the_patient(host):
    import slicer

    from PEFTSegmentLib import scans

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volumes = [add_scan(1), add_scan(2)]
    put_under(hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "A study"), *volumes)
    assert scans.patient_numbers(volumes) == [None, None]


def test_frames_of_one_sequence_are_of_one_patient(host):
    import slicer

    from PEFTSegmentLib import scans

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode")
    frames = [add_scan(1), add_scan(2)]
    for frame in frames:
        frame.SetNodeReferenceID(scans.SEQUENCE_ROLE, sequence.GetID())
    assert scans.patient_numbers([*frames, add_scan(3)]) == [1, 1, None]


def test_what_a_support_folder_says_of_patients_is_kept_and_is_of_that_folder_only(panels, host, tmp_path):
    from test_support import write_folder

    from PEFTSegmentLib import scans, structures, support_folder

    state = panels[0].state
    for row in panels[0].context.support.rows():
        panels[0].context.support.remove(row.key)
    said = {"case 1": {"patient": "Jane Doe"}, "case 2": {"patient": "Jane Doe"}, "case 3": {DARK: "absent"}}
    for name in ("first", "second"):
        folder = write_folder(tmp_path / name, (1, 2, 3), said)
        for item in support_folder.read_pairs(folder, structures.read(state)):
            named = {1: BRIGHT, 2: "" if item.patient is None else DARK}
            support_folder.load_pair(item, support_folder.label_facts(item.labels), named, state)
    volumes = volumes_of(panels[0])
    assert scans.patient_numbers(volumes) == [1, 1, None, 2, 2, None]
    assert not any(
        "Doe" in (volume.GetAttribute(name) or "") for volume in volumes for name in volume.GetAttributeNames()
    )
    assert [s.name for s in structures.read(state)] == [BRIGHT, DARK]


# what becomes of it


def test_jobs_hold_the_patients_numbers_and_no_name(panels, submitted):
    volumes = volumes_of(panels[1])
    put_under(add_patient(uid="P77"), volumes[0], volumes[2])
    panels[1].jobs.check(panels[1]._support_now(), then_adapt=False)
    panels[1].jobs.adapt(panels[1]._support_now(), "x")
    assert [type(job) for job, _note in submitted] == [CheckJob, AdaptJob]
    for job, note in submitted:
        assert [item.patient for item in job.support] == [1, None, 1, None]
        assert "Jörg" not in to_json(job) + json.dumps(note)
        assert "P77" not in to_json(job) + json.dumps(note)


def test_without_patients_jobs_say_nothing_of_them(panels, submitted):
    panels[1].jobs.adapt(panels[1]._support_now(), "x")
    ((job, note),) = submitted
    assert [item.patient for item in job.support] == [None] * 4
    assert note["patients"] == 0


def test_a_check_is_of_another_support_set_once_a_scan_has_gone_to_another_patient(panels):
    from PEFTSegmentLib.panels.adapt_choices import fingerprint

    volumes = volumes_of(panels[1])
    before = fingerprint(panels[1].context, panels[1]._support_now())
    put_under(add_patient(), volumes[0], volumes[2])
    assert fingerprint(panels[1].context, panels[1]._support_now()) != before


def test_the_hint_counts_patients_and_says_what_an_estimate_on_one_of_them_tells(panels, host, submitted):
    ui, volumes = panels[1].ui, volumes_of(panels[1])
    assert ui.estimateHint.text == "Leaves each scan out once and segments it. Takes about 5 times as long."
    patient = add_patient()
    put_under(patient, volumes[0], volumes[2])
    panels[1].context.refresh()
    host.process_events(120)
    assert "with other scans of the same patient" in ui.estimateHint.text
    assert "Takes about 4 times as long" in ui.estimateHint.text
    assert "one patient" not in panels[0].ui.tableLabel.text
    panels[1].state.estimate = True
    panels[1].jobs.adapt(panels[1]._support_now(), "x")
    assert (submitted[-1][0].estimate, submitted[-1][1]["estimate"], submitted[-1][1]["patients"]) == ("loo", True, 3)
    put_under(patient, *volumes)
    panels[1].context.refresh()
    host.process_events(120)
    assert ui.estimateBox.enabled
    assert "All are of one patient" in ui.estimateHint.text
    assert "it says nothing about others. Takes about 5 times as long" in ui.estimateHint.text
    assert "all are of one patient so far" in panels[0].ui.tableLabel.text
    panels[1].jobs.check(panels[1]._support_now(), then_adapt=False)
    panels[1].jobs.adapt(panels[1]._support_now(), "x")
    assert submitted[-1][0].estimate == "loo"
    assert submitted[-1][1]["patients"] == 0, "words speak of scans"


def test_checks_warn_of_one_patient(panels):
    from PEFTSegmentLib import checks

    def warnings():
        found = checks.support_checks(panels[0].state)
        return [f.text for f in found if f.kind == checks.WARNING and not f.row]

    volumes = volumes_of(panels[0])
    patient = add_patient()
    put_under(patient, *volumes[1:])
    assert warnings() == []
    put_under(patient, volumes[0])
    assert ["of one patient" in text for text in warnings()] == [True]


def test_progress_and_result_of_an_estimate_speak_of_patients(panels):
    from PEFTSegmentLib.panels import adapt_progress
    from PEFTSegmentLib.runner import Task

    note = {"purpose": "adapt", "scans": ["a", "b", "c", "d"], "estimate": True, "patients": 3}
    task = Task(panels[1].context.resources, note, state="running")
    task.progress = {"stage": "train", "step": 100, "total": 200, "eta_s": 100.0, "left_out": 4, "patient": 2}
    text, value, maximum = adapt_progress.stage(task)
    assert text.startswith("Estimating the accuracy: patient 2 of 3, ")
    assert value / maximum == pytest.approx(2.5 / 4, abs=0.01)
    ending = {"estimate": {BRIGHT: [0.5, 0.6, 0.7, 0.8]}, "patients": 3}
    assert "had not seen their patients" in adapt_progress.estimated(ending, ["a", "b", "c", "d"])
    assert "had not seen them" in adapt_progress.estimated({**ending, "patients": None}, ["a", "b", "c", "d"])
