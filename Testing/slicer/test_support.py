"""The support scans without widgets: rows, cells, marks, problems, pairing, checks, folders, saved scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scene_makers import BRIGHT, DARK, SIZE, add_ct, add_labelled_scan, add_scan

from peftseg.errors import BadInput
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.study import LabelState

WANTED = (Structure(BRIGHT, 1), Structure(DARK, 2))


@pytest.fixture
def lib(host):
    """The library's modules by name, a `Context` without widgets, and its state as `lib.state`."""
    import sys
    import types

    python = host.load_module(Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py")
    from PEFTSegmentLib import checks, exchange, painted, pairing, structures, support, support_folder, work
    from PEFTSegmentLib.context import Context

    modules = (checks, exchange, painted, pairing, structures, support, support_folder, work)
    context = Context(python.RESOURCES, lambda: sys.executable, python.PEFTSegmentLogic().getParameterNode)
    structures.write(context.state, WANTED)
    yield types.SimpleNamespace(context=context, state=context.state, **{m.__name__.split(".")[-1]: m for m in modules})
    context.close()
    host.unload_module("PEFTSegment")


def set_box(labels, name: str, scan, box: tuple[slice, slice, slice]) -> str:
    """Paint a box (k, j, i) into a segment, which is made where it is missing; its id."""
    import slicer

    core = labels.GetSegmentation()
    segment_id = core.GetSegmentIdBySegmentName(name) or core.AddEmptySegment("", name)
    mask = np.zeros(slicer.util.arrayFromVolume(scan).shape, np.uint8)
    mask[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, labels, segment_id, scan)
    return segment_id


def model_for(modality: str) -> ModelEntry:
    """A model without weights."""
    return ModelEntry(
        id="m",
        title="The model",
        modality=modality,
        structures=(Structure(BRIGHT, 1),),
        network=NetworkSpec("segresnet", {}),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(24, 24, 24),
        overlap=0.5,
        licence="Apache-2.0",
    )


# rows, cells, marks


def test_a_painted_segment_is_labelled_and_a_blank_one_is_never_taken_as_absent(lib):
    scan, labels = add_labelled_scan(1, (BRIGHT,))
    labels.GetSegmentation().AddEmptySegment("", DARK)
    row = lib.support.SupportSet(lib.state).add(scan, labels)
    assert [lib.support.cell(row, s).state for s in WANTED] == ["labelled", "not labelled"]
    states = lib.support.label_states(row, WANTED, SIZE)
    assert states == {BRIGHT: LabelState("labelled"), DARK: LabelState("not labelled")}


def test_marks_say_what_is_absent_and_which_slices_count(lib):
    scan, labels = add_labelled_scan(1, (BRIGHT,))
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(scan, labels).key
    support_set.set_mark(key, BRIGHT, lib.support.Mark(slices=(10, 11, 14)))
    support_set.set_mark(key, DARK, lib.support.Mark(absent=True))
    row = support_set.row(key)
    assert row.marks[BRIGHT].slices == (10, 11, 14)
    states = lib.support.label_states(row, WANTED, SIZE)
    assert states == {BRIGHT: LabelState("labelled", (10, 11, 14), 2), DARK: LabelState("absent")}
    assert not lib.support.problems(row, WANTED)


def test_absent_but_painted_is_a_problem_with_the_structure_s_name(lib):
    scan, labels = add_labelled_scan(1)
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(scan, labels).key
    support_set.set_mark(key, DARK, lib.support.Mark(absent=True))
    assert lib.support.problems(support_set.row(key), WANTED) == [f"{DARK} is marked absent, but painted"]


def test_a_scan_without_segmentation_can_say_that_a_structure_is_absent(lib):
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(add_scan(1)).key
    assert lib.support.problems(support_set.row(key), WANTED) == ["not labelled"]
    support_set.set_mark(key, DARK, lib.support.Mark(absent=True))
    assert lib.support.ready_rows(lib.state)[0].key == key
    exports, states, _wanted = lib.work.support_exports(lib.context)
    assert len(exports) == 2
    assert states[0][DARK] == LabelState("absent")


def test_slices_that_the_scan_does_not_have_are_a_problem_and_are_never_sent_to_the_engine(lib):
    scan, labels = add_labelled_scan(1)
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(scan, labels).key
    support_set.set_mark(key, BRIGHT, lib.support.Mark(slices=(20, 40)))
    assert "slice 41" in lib.support.problems(support_set.row(key), WANTED)[0]
    with pytest.raises(BadInput, match="21, 41"):
        lib.support.label_states(support_set.row(key), WANTED, SIZE)


@pytest.mark.parametrize(
    ("text", "slices"), [("12-14", (11, 12, 13)), ("1, 3; 5 - 6", (0, 2, 4, 5)), ("24", (23,)), ("2\u20133", (1, 2))]
)
def test_slices_are_written_as_people_count_them(lib, text, slices):
    from PEFTSegmentLib.slice_ranges import slices_from, slices_text

    assert slices_from(text, SIZE) == slices
    assert slices_from(slices_text(slices), SIZE) == slices


@pytest.mark.parametrize("text", ["", "0-3", "5-2", "3-25", "a", "1-2-3", "-4"])
def test_what_names_no_slices_is_refused_with_the_number_of_slices(lib, text):
    from PEFTSegmentLib.slice_ranges import slices_from

    with pytest.raises(BadInput, match="1 to 24"):
        slices_from(text, SIZE)


# names


@pytest.mark.parametrize(
    ("segment", "structure"),
    [("Left Hippocampus", "left hippocampus"), ("left_kidney", "left kidney"), ("postcava", "inferior vena cava")],
)
def test_another_spelling_of_the_name_is_found(lib, segment, structure):
    _scan, labels = add_labelled_scan(1, ())
    segment_id = labels.GetSegmentation().AddEmptySegment("", segment)
    assert lib.structures.find_segment(labels, structure) == segment_id
    assert lib.structures.find_segment(labels, "spleen") == ""


def test_the_same_name_is_preferred_to_another_spelling(lib):
    _scan, labels = add_labelled_scan(1, ())
    labels.GetSegmentation().AddEmptySegment("", "LIVER")
    exact = labels.GetSegmentation().AddEmptySegment("", "liver")
    assert lib.structures.find_segment(labels, "liver") == exact


def test_a_segment_with_a_name_of_its_own_can_be_chosen_and_is_what_is_exported(lib, tmp_path):
    import SimpleITK as sitk

    scan, labels = add_labelled_scan(1, ())
    set_box(labels, "Segment_1", scan, np.s_[2:4, 5:9, 6:10])
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(scan, labels).key
    assert "no segment is called" in lib.support.problems(support_set.row(key), WANTED)[0]
    support_set.set_mark(key, BRIGHT, lib.support.Mark(segment="Segment_1"))
    assert not lib.support.problems(support_set.row(key), WANTED)
    exports, _states, _wanted = lib.work.support_exports(lib.context)
    function, *arguments = exports[1]
    written = function(tmp_path, *arguments)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(written))).sum() == 2 * 4 * 4


def test_another_name_of_a_known_structure_becomes_the_model_s_name(lib):
    known = (Structure("inferior vena cava", 4, (1, 2, 3), "a^b^c"),)
    made = lib.structures.proposed("postcava", known)
    assert (made.name, made.colour, made.code) == ("inferior vena cava", (1, 2, 3), "a^b^c")
    with pytest.raises(BadInput, match="another name of"):
        lib.structures.proposed("IVC" if lib.structures.known_as("IVC", known) else "postcava", known, (made,))


# the user's data


def test_looking_checking_and_exporting_leave_the_user_s_segmentation_as_it_is(lib):
    scan, labels = add_labelled_scan(1, (BRIGHT, DARK))
    lib.support.SupportSet(lib.state).add(scan, labels)
    before = (labels.GetSegmentation().GetMTime(), list(labels.GetSegmentation().GetSegmentIDs()), labels.GetMTime())
    lib.checks.support_checks(lib.state, model_for("MR"))
    lib.work.support_exports(lib.context)
    assert (labels.GetSegmentation().GetMTime(), list(labels.GetSegmentation().GetSegmentIDs()), labels.GetMTime()) == (
        before
    )


def test_a_new_segmentation_lies_on_its_scan_also_under_a_transform(lib):
    import slicer
    import vtk

    scan = add_scan(1)
    matrix = vtk.vtkMatrix4x4()
    for axis, shift in enumerate((30.0, -20.0, 50.0)):
        matrix.SetElement(axis, 3, shift)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transform.SetMatrixTransformToParent(matrix)
    scan.SetAndObserveTransformNodeID(transform.GetID())
    made = lib.support.new_segmentation(scan, WANTED)
    segment_id = set_box(made, BRIGHT, scan, np.s_[4:8, 4:8, 4:8])
    part = lib.exchange.part_of(made, segment_id, scan)
    held = np.argwhere(part.array == part.value) + part.start
    assert (held.min(axis=0) == 4).all()
    assert (held.max(axis=0) == 7).all()
    row = lib.support.SupportSet(lib.state).add(scan, made)
    assert not lib.support.problems(row, WANTED)
    names = [made.GetSegmentation().GetSegment(i).GetName() for i in made.GetSegmentation().GetSegmentIDs()]
    assert names == [BRIGHT, DARK]


def test_what_is_painted_is_counted_again_after_a_change(lib):
    scan, labels = add_labelled_scan(1, ())
    segment_id = set_box(labels, BRIGHT, scan, np.s_[5:6, 5:6, 5:6])  # a single voxel, beside the coarse look
    assert lib.painted.is_painted(labels, segment_id)
    assert lib.painted.voxel_count(labels, segment_id) == 1
    set_box(labels, BRIGHT, scan, np.s_[0:0, 0:0, 0:0])
    assert not lib.painted.is_painted(labels, segment_id)
    assert lib.painted.centre(labels, segment_id) is None
    set_box(labels, BRIGHT, scan, np.s_[4:8, 6:10, 8:12])
    assert lib.painted.centre(labels, segment_id) == pytest.approx([9.5, 7.5, 5.5])


# pairing


def test_a_scan_is_paired_by_reference_volume_then_by_name_and_never_with_a_prediction(lib):
    import slicer

    scan, labels = add_labelled_scan(1, (BRIGHT,))
    other = add_scan(2, "CT_2")
    assert lib.pairing.labels_for(scan, WANTED) is labels
    assert lib.pairing.labels_for(other, WANTED) is None
    named = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "CT_2")
    assert lib.pairing.labels_for(other, WANTED) is named
    named.SetAttribute("PEFTSegment.VolumesMl", "{}")
    assert lib.pairing.labels_for(other, WANTED) is None
    named.SetAttribute("PEFTSegment.ReviewedAt", "2026-01-01")
    assert lib.pairing.labels_for(other, WANTED) is named
    made = lib.support.new_segmentation(other, WANTED)
    assert lib.pairing.labels_for(other, WANTED) is made


def test_of_several_segmentations_the_newest_with_a_wanted_structure_counts(lib):
    import slicer

    scan, first = add_labelled_scan(1, (BRIGHT,))
    second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "second")
    second.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    second.GetSegmentation().AddEmptySegment("", "something else")
    assert lib.pairing.labels_for(scan, WANTED) is first
    second.GetSegmentation().AddEmptySegment("", DARK.upper())
    assert lib.pairing.labels_for(scan, WANTED) is second


# checks


def texts(found, kind: str) -> list[str]:
    return [f.text for f in found if f.kind == kind]


def test_empty_segments_few_scans_and_structures_without_labels_are_told(lib):
    scan, labels = add_labelled_scan(1, (BRIGHT,))
    labels.GetSegmentation().AddEmptySegment("", DARK)
    lib.support.SupportSet(lib.state).add(scan, labels)
    found = lib.checks.support_checks(lib.state)
    assert texts(found, "problem") == [f"{DARK} is labelled in no scan"]
    assert texts(found, "warning") == [f"{DARK} is empty"]
    assert any("about five" in text for text in texts(found, "note"))


def test_left_and_right_on_swapped_sides_are_told_unless_the_position_is_made_up(lib):
    wanted = (Structure("left ball", 1), Structure("right ball", 2))
    lib.structures.write(lib.state, wanted)
    scan, labels = add_labelled_scan(1, ())
    set_box(labels, "left ball", scan, np.s_[4:8, 4:8, 14:20])  # i grows to the right
    set_box(labels, "right ball", scan, np.s_[4:8, 4:8, 2:8])
    row = lib.support.SupportSet(lib.state).add(scan, labels)
    assert not texts(lib.checks.row_checks(row, wanted), "warning")  # first voxel at the world's zero
    scan, labels = add_labelled_scan(2, ())
    scan.SetOrigin(-100, -80, 200)
    set_box(labels, "left ball", scan, np.s_[4:8, 4:8, 14:20])
    set_box(labels, "right ball", scan, np.s_[4:8, 4:8, 2:8])
    row = lib.support.SupportSet(lib.state).add(scan, labels)
    assert texts(lib.checks.row_checks(row, wanted), "warning") == ["left ball and right ball lie on swapped sides"]


def test_labels_beside_the_scan_are_a_problem_and_those_that_reach_beyond_it_a_warning(lib):
    _scan, labels = add_labelled_scan(1, (BRIGHT, DARK))
    far, beyond = add_scan(2), add_scan(3)
    far.SetOrigin(500, 0, 0)
    beyond.SetOrigin(12, 0, 0)
    support_set = lib.support.SupportSet(lib.state)
    assert "outside of the scan" in lib.support.problems(support_set.add(far, labels), WANTED)[0]
    found = lib.checks.row_checks(support_set.add(beyond, labels), WANTED)
    assert "reach beyond" in texts(found, "warning")[0]


def test_labels_on_another_grid_and_under_another_name_are_noted(lib):
    scan, labels = add_labelled_scan(1, (DARK,))
    fine = add_scan(2)
    fine.SetSpacing(0.4, 0.4, 0.4)
    set_box(labels, BRIGHT.upper(), fine, np.s_[4:8, 4:8, 4:8])
    row = lib.support.SupportSet(lib.state).add(scan, labels)
    notes = texts(lib.checks.row_checks(row, WANTED[:1]), "note")
    assert f"its segment '{BRIGHT.upper()}' is used as {BRIGHT}" in notes
    assert any("0.4 x 0.4 x 0.4 mm" in text for text in notes)


def test_a_scan_of_another_modality_than_the_model_s_is_told(lib):
    scan = add_ct()
    labels = lib.support.new_segmentation(scan, WANTED)
    set_box(labels, BRIGHT, scan, np.s_[4:8, 10:20, 10:20])
    row = lib.support.SupportSet(lib.state).add(scan, labels)
    assert any("look like CT" in t for t in texts(lib.checks.row_checks(row, WANTED, model_for("MR")), "warning"))
    assert not any("CT" in t for t in texts(lib.checks.row_checks(row, WANTED, model_for("CT")), "warning"))


# scenes and folders


@pytest.mark.parametrize("name", ["scene.mrml", "Aufnahme mit Umlaut \u00e4.mrb"])
def test_a_saved_scene_keeps_the_table(lib, host, tmp_path, name):
    import slicer

    scan, labels = add_labelled_scan(1, (BRIGHT,), "M\u00fcller, links")
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(scan, labels).key
    support_set.add(add_scan(2))
    support_set.set_mark(key, BRIGHT, lib.support.Mark(slices=(3, 4), segment="x"))
    support_set.set_mark(key, DARK, lib.support.Mark(absent=True))
    saved = json.loads(lib.state.support)
    assert slicer.util.saveScene(str(tmp_path / name))
    slicer.mrmlScene.Clear(False)
    context = lib.context
    context.drop_state()
    assert context.support.rows() == []
    context.drop_state()
    slicer.util.loadScene(str(tmp_path / name))
    assert json.loads(context.state.support) == saved
    rows = context.support.rows()
    assert [row.scan.GetName() for row in rows] == ["M\u00fcller, links", "Scan 2"]
    assert rows[0].labels.GetName() == "M\u00fcller, links labels"
    assert rows[1].labels is None
    assert rows[0].marks[BRIGHT] == lib.support.Mark(slices=(3, 4), segment="x")


def test_a_deleted_scan_leaves_the_list_and_a_deleted_segmentation_the_row(lib):
    import slicer

    scan, labels = add_labelled_scan(1)
    support_set = lib.support.SupportSet(lib.state)
    key = support_set.add(scan, labels).key
    slicer.mrmlScene.RemoveNode(labels)
    assert support_set.row(key).labels is None
    slicer.mrmlScene.RemoveNode(scan)
    assert lib.support.problems(support_set.row(key), WANTED) == ["the scan is no longer loaded"]
    assert support_set.drop_lost() == 1
    assert support_set.rows() == []


def write_folder(folder, numbers=(1, 2), states: dict | None = None):
    """Scans and label maps without names: value 1 is the bright ball, 2 the dark one."""
    import SimpleITK as sitk
    from scene_makers import balls

    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in numbers:
        image, masks = balls(number)
        label_map = masks[BRIGHT].astype(np.uint8) + 2 * masks[DARK].astype(np.uint8)
        for part, array in (("images", image), ("labels", label_map)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / part / f"case {number}.nii.gz"))
    if states:
        (folder / "support.json").write_text(json.dumps(states), encoding="utf-8")
    return folder


def test_a_folder_of_scans_and_label_maps_becomes_rows_with_named_segments_and_marks(lib, host, tmp_path):
    import slicer

    states = {"case 1.nii.gz": {BRIGHT: {"slices": [10, 12], "axis": 2}}, "case 2": {"extra": "absent"}}
    folder = write_folder(tmp_path / "Mappe \u00e4", states=states)
    items = lib.support_folder.read_pairs(folder, WANTED)
    reading = lib.support_folder.start_reading(items)
    host.wait_for(lambda: reading.done, 20)
    assert lib.support_folder.unnamed_values(reading.results) == (1, 2)
    named = {1: BRIGHT, 2: ""}
    for item, facts in zip(items, reading.results, strict=True):
        lib.support_folder.load_pair(item, facts, named, lib.state)
    rows = lib.support.SupportSet(lib.state).rows()
    assert [row.scan.GetName() for row in rows] == ["case 1", "case 2"]
    assert [lib.support.segment_names(row.labels) for row in rows] == [[BRIGHT], [BRIGHT]]
    assert rows[0].marks == {BRIGHT: lib.support.Mark(slices=(10, 12))}
    assert rows[1].marks == {"extra": lib.support.Mark(absent=True)}
    assert not slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode")
    from scene_makers import balls

    part = lib.exchange.part_of(rows[1].labels, lib.structures.find_segment(rows[1].labels, BRIGHT), rows[1].scan)
    held = np.zeros((SIZE,) * 3, bool)
    inside = tuple(slice(s, s + n) for s, n in zip(part.start, part.array.shape, strict=True))
    held[inside] = part.array == part.value
    assert np.array_equal(held, balls(2)[1][BRIGHT])


def test_a_label_file_that_cannot_be_read_leaves_nothing_behind(lib, host, tmp_path):
    import slicer

    folder = write_folder(tmp_path / "folder", (1,))
    (folder / "labels" / "case 1.nii.gz").write_bytes(b"nothing")
    items = lib.support_folder.read_pairs(folder, WANTED)
    facts = lib.support_folder.label_facts(items[0].labels)
    with pytest.raises(BadInput, match="case 1"):
        lib.support_folder.load_pair(items[0], facts, {}, lib.state)
    assert not slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    assert lib.support.SupportSet(lib.state).rows() == []
