"""Results in the scene: where they lie, what they carry, drafts and reviews, comparing and correcting them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import result_makers
import scene_makers
from result_makers import add_result, write_result
from scene_makers import BRIGHT, DARK, balls

TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
PLAIN = np.eye(4)
PLACES = {
    "anisotropic": np.diag([0.7, 0.9, 5.0, 1.0]),
    "flipped": np.diag([-1.0, -1.0, 2.0, 1.0]),
    "oblique": np.block(
        [[TURN @ np.diag([1.0, 1.5, 3.0]), np.array([[10.0], [-20.0], [30.5]])], [np.zeros((1, 3)), 1.0]]
    ),
}


def part(*ranges, shape=(6, 8, 10)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


MASKS = {"liver": part((1, 3), (2, 7), (0, 4)), "spleen": part((2, 6), (0, 2), (5, 10))}


def small_scan(place: np.ndarray = PLAIN, name: str = "CT Ärzte 心"):
    import slicer

    array = np.random.default_rng(1).integers(-1000, 1000, (6, 8, 10)).astype(np.int16)
    return slicer.util.addVolumeFromArray(array, ijkToRAS=place, name=name)


def voxels(node, name: str, scan) -> np.ndarray:
    import slicer

    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, scan) > 0


def paint(node, name: str, mask: np.ndarray, scan) -> None:
    import slicer

    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, segment_id, scan)


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "under a transform"])
@pytest.mark.parametrize("place", PLACES)
def test_a_result_lies_on_its_scan_voxel_for_voxel(host, tmp_path, place, moved):
    import slicer

    scan = small_scan(PLACES[place])
    if moved:
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        matrix = np.block([[TURN.T * 1.25, np.array([[5.0], [6.0], [-7.0]])], [np.zeros((1, 3)), 1.0]])
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        scan.SetAndObserveTransformNodeID(transform.GetID())
    node = add_result(tmp_path, scan, MASKS)
    assert node.GetParentTransformNode() is scan.GetParentTransformNode()
    for name, mask in MASKS.items():
        assert np.array_equal(voxels(node, name, scan), mask)


def test_measured_volumes_are_those_of_the_engine_under_a_scaling_transform_too(host, tmp_path):
    import slicer

    from PEFTSegmentLib import results

    scan = small_scan(PLACES["anisotropic"])
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([2.0, 1.0, 1.0, 1.0])))
    scan.SetAndObserveTransformNodeID(transform.GetID())
    node = add_result(tmp_path, scan, MASKS)
    voxel = 2 * 0.7 * 0.9 * 5.0 / 1000
    assert results.content(node)[1] == pytest.approx({n: m.sum() * voxel for n, m in MASKS.items()}, abs=1e-3)


def test_a_result_carries_name_colour_code_study_and_the_adapters_identity(host, tmp_path):
    import slicer

    from PEFTSegmentLib import results

    scan = small_scan()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study 7")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(scan), study)
    slicer.util.setSliceViewerLayers(background=scan)
    node = add_result(tmp_path, scan, MASKS)
    assert node.GetName() == "CT Ärzte 心 - liver, site A (draft)"
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert results.scan_of(node) is scan
    expected = {**result_makers.PROVENANCE, "software": "peftseg 1.0", "time": "2026-01-02T03:04:05+00:00"}
    assert {name: results.get(node, name) for name in expected} == expected
    segment = node.GetSegmentation().GetNthSegment(1)
    assert (segment.GetName(), [round(c * 255) for c in segment.GetColor()]) == ("spleen", [20, 200, 30])
    display = node.GetDisplayNode()
    assert (display.GetVisibility(), display.GetVisibility2DOutline(), display.GetVisibility2DFill()) == (1, 1, 0)
    path = write_result(tmp_path, scan, {"liver": MASKS["liver"]}, "SCT^10200004^Liver")
    record = {"token": scan.GetAttribute("PEFTSegment.Token"), "path": path, "volumes_ml": {}, "checks": {}}
    coded = results.add(record, "coded", "coded", {})
    assert "SCT^10200004^Liver" in coded.GetSegmentation().GetNthSegment(0).GetTerminology()


def test_a_second_result_of_the_same_name_gets_a_number(host, tmp_path):
    from PEFTSegmentLib import results

    scan = small_scan(name="CT")
    first = add_result(tmp_path, scan, MASKS)
    results.review(first, "Dr. A")
    second = add_result(tmp_path, scan, MASKS)
    assert (first.GetName(), second.GetName()) == ("CT - liver, site A", "CT - liver, site A 2 (draft)")


def test_a_review_says_who_and_when_and_an_edit_makes_a_draft_of_it_again(host, tmp_path):
    from PEFTSegmentLib import results

    scan = small_scan(name="CT")
    node = add_result(tmp_path, scan, MASKS)
    results.review(node, "Dr. Åse")
    assert node.GetName() == "CT - liver, site A"
    assert (results.get(node, "Status"), results.get(node, "ReviewedBy")) == ("reviewed", "Dr. Åse")
    assert results.get(node, "ReviewedAt")[:2] == "20"
    node.GetSegmentation().GetNthSegment(0).SetColor(1, 0, 0)
    node.CreateClosedSurfaceRepresentation()
    assert not results.notice_edit(node)
    larger = part((1, 4), (2, 7), (0, 4))
    paint(node, "liver", larger, scan)
    assert results.notice_edit(node)
    assert node.GetName() == "CT - liver, site A (draft)"
    assert (results.get(node, "Status"), results.get(node, "ReviewedBy"), results.get(node, "Edited")) == (
        "draft",
        "",
        "yes",
    )
    assert json.loads(results.get(node, "VolumesMl"))["liver"] == pytest.approx(larger.sum() / 1000)
    assert not results.notice_edit(node)


def test_shifted_renamed_and_removed_segments_are_edits(host, tmp_path):
    from PEFTSegmentLib import results

    scan = small_scan()
    node = add_result(tmp_path, scan, MASKS)
    paint(node, "spleen", np.roll(MASKS["spleen"], 1, axis=1), scan)
    assert results.notice_edit(node)
    node.GetSegmentation().GetNthSegment(0).SetName("lobe")
    assert results.notice_edit(node)
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetNthSegmentID(0))
    assert results.notice_edit(node)


def test_a_saved_scene_brings_results_back_as_they_were(host, tmp_path):
    import slicer

    from PEFTSegmentLib import results

    scan = small_scan(PLACES["oblique"], name="CT")
    overlapping = {**MASKS, "vessel": part((0, 6), (3, 5), (1, 9))}
    reviewed = add_result(tmp_path / "job", scan, overlapping)
    results.review(reviewed, "Dr. A")
    add_result(tmp_path / "job", scan, MASKS, {"liver": ["not found"]}, name="other")
    before = [results.content(node) for node in results.all_results()]
    target = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(target))
    slicer.mrmlScene.Clear(0)
    assert not results.all_results()
    slicer.util.loadScene(str(target))
    found = results.all_results()
    assert [results.get(node, "Status") for node in found] == ["reviewed", "draft"]
    assert [node.GetName() for node in found] == ["CT - liver, site A", "CT - other (draft)"]
    assert results.get(found[0], "adapter_hash") == "ab" * 32
    assert results.scan_of(found[0]).GetName() == "CT"
    assert [results.content(node) for node in found] == before
    assert not any(results.notice_edit(node) for node in found)
    assert results.rows(found)[0].checks == ("not found",)


def test_rows_that_need_a_look_come_first_and_reviewed_ones_do_not(host, tmp_path):
    from PEFTSegmentLib import results

    scan = small_scan(name="CT")
    fine = add_result(tmp_path, scan, MASKS, name="fine")
    odd = add_result(tmp_path, scan, MASKS, {"spleen": ["touches the border of the scan"]}, name="odd")
    rows = results.rows([fine, odd])
    assert [(row.node is odd, row.structure) for row in rows][:2] == [(True, "spleen"), (False, "liver")]
    assert [row.needs_look for row in rows] == [True, False, False, False]
    results.review(odd, "Dr. A")
    assert not any(row.needs_look for row in results.rows([fine, odd]))


def test_showing_a_row_jumps_to_the_structures_centre_and_hides_all_other_results(host, tmp_path):
    import slicer

    from PEFTSegmentLib import results

    scan, elsewhere = small_scan(PLACES["oblique"], name="CT"), small_scan(name="CT 2")
    first, second = (add_result(tmp_path, scan, MASKS, name=n) for n in ("a", "b"))
    third = add_result(tmp_path, elsewhere, MASKS)
    editor = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(first)
    results.show(first, "spleen")
    assert [n.GetDisplayNode().GetVisibility() for n in (first, second, third)] == [1, 0, 0]
    assert editor.GetSelectedSegmentID() == first.GetSegmentation().GetSegmentIdBySegmentName("spleen")
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == scan.GetID()
    centre = PLACES["oblique"] @ [7.0, 0.5, 3.5, 1.0]
    red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    assert red.GetSliceOffset() == pytest.approx(centre[2], abs=3.0)
    yellow = slicer.app.layoutManager().sliceWidget("Yellow").mrmlSliceNode()
    assert abs(yellow.GetSliceOffset()) == pytest.approx(centre[0], abs=1.5)


def test_surfaces_are_made_on_request_only(host, tmp_path):
    from PEFTSegmentLib import results

    scan = small_scan()
    node = add_result(tmp_path, scan, MASKS)
    assert not results.has_3d(node)
    results.show_3d(node, True)
    assert results.has_3d(node)
    results.show_3d(node, False)
    assert not results.has_3d(node)


def test_differences_are_those_of_plain_counting_also_where_structures_overlap_or_grids_differ(host, tmp_path):
    import slicer

    from PEFTSegmentLib import compare_views

    scan = small_scan(PLACES["anisotropic"])
    overlapping = {**MASKS, "vessel": part((0, 6), (3, 5), (1, 9))}
    first = add_result(tmp_path, scan, overlapping)
    others = {
        "vessel": part((0, 5), (3, 6), (1, 9)),
        "liver": part((1, 3), (2, 7), (2, 6)),
        "spleen": np.zeros_like(MASKS["liver"]),
    }
    second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    second.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    for name, mask in others.items():
        second.GetSegmentation().AddEmptySegment("", name)
        paint(second, name, mask, scan)
    voxel = 0.7 * 0.9 * 5.0 / 1000
    found = {row.structure: row for row in compare_views.differences(first, second, scan)}
    assert list(found) == ["liver", "spleen", "vessel"]
    for name, row in found.items():
        a, b = overlapping[name], others[name]
        assert (row.first_ml, row.second_ml) == pytest.approx((a.sum() * voxel, b.sum() * voxel))
        assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found["spleen"].percent == -100
    shifted = small_scan(PLACES["anisotropic"] + np.array([[0, 0, 0, 0.35], *[[0] * 4] * 3]), name="other grid")
    assert 0 < compare_views.differences(first, second, shifted)[0].dice < 1


def test_an_empty_structure_in_both_has_no_overlap_and_no_percentage(host, tmp_path):
    from PEFTSegmentLib import compare_views

    scan = small_scan()
    nothing = {"liver": np.zeros_like(MASKS["liver"]), "spleen": MASKS["spleen"]}
    nodes = [add_result(tmp_path, scan, nothing) for _ in range(2)]
    liver, spleen = compare_views.differences(*nodes, scan)
    assert (liver.dice, liver.percent) == (None, None)
    assert (spleen.dice, spleen.percent) == (1, 0)


def test_two_results_side_by_side_and_back_again(host, tmp_path, pictures):
    import slicer

    from PEFTSegmentLib.compare_views import LAYOUT, CompareViews

    masks = balls(1)[1]
    scan = scene_makers.add_scan(1, "CT 1")
    slicer.util.setSliceViewerLayers(background=scan)
    first = add_result(tmp_path, scan, masks)
    moved = {BRIGHT: np.roll(masks[BRIGHT], 2, axis=2), DARK: masks[DARK]}
    second, third = add_result(tmp_path, scan, moved, name="b"), add_result(tmp_path, scan, moved, name="c")
    third.GetDisplayNode().SetDisplayableOnlyInView("vtkMRMLSliceNodeRed")
    second.GetDisplayNode().SetVisibility(False)
    manager = slicer.app.layoutManager()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    views = CompareViews()
    views.show((first, second), ("liver, site A, version 2", "Model as it is"), scan)
    assert (views.active, manager.layout) == (True, LAYOUT)
    widgets = [manager.sliceWidget(name) for name in ("PEFTSegmentA", "PEFTSegmentB")]
    assert [w.sliceView().cornerAnnotation().GetText(7) for w in widgets] == [
        "liver, site A, version 2",
        "Model as it is",
    ]
    assert [w.mrmlSliceCompositeNode().GetLinkedControl() for w in widgets] == [1, 1]
    assert [w.mrmlSliceNode().GetViewGroup() for w in widgets] == [64, 64]
    for node, widget in zip((first, second), widgets, strict=True):
        assert node.GetDisplayNode().GetViewNodeIDs() == (widget.mrmlSliceNode().GetID(),)
        assert node.GetDisplayNode().GetVisibility()
    assert not third.GetDisplayNode().GetVisibility()
    for name in ("PEFTSegmentA", "PEFTSegmentB"):
        host.slice_picture(pictures / f"compare_{name[-1]}.png", name, (300, 300))
    views.leave()
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
    assert [n.GetDisplayNode().GetVisibility() for n in (first, second, third)] == [1, 0, 1]
    assert [n.GetDisplayNode().GetViewNodeIDs() for n in (first, second, third)] == [(), (), ("vtkMRMLSliceNodeRed",)]
    assert widgets[0].sliceView().cornerAnnotation().GetText(7) == ""
    views.show((first, second), ("a", "b"), scan)
    slicer.mrmlScene.RemoveNode(second)
    views.leave()
    assert not views.active


def test_labels_to_correct_are_a_copy_with_the_wanted_structures(host, tmp_path, module):
    from peftseg.errors import BadInput
    from peftseg.models import Structure
    from PEFTSegmentLib import results, structures

    scan = small_scan(PLACES["oblique"], name="CT")
    node = add_result(tmp_path, scan, MASKS)
    state = module.main.context.state
    assert [s.name for s in results.wanted_of(node, state)] == ["liver", "spleen"]
    structures.write(state, [Structure("Spleen", 1, (1, 2, 3)), Structure("kidney", 2)])
    wanted = results.wanted_of(node, state)
    copy = results.as_labels(node, scan, wanted)
    assert copy.GetName() == "CT labels"
    assert [copy.GetSegmentation().GetNthSegment(0).GetName()] == ["Spleen"]
    assert np.array_equal(voxels(copy, "Spleen", scan), MASKS["spleen"])
    paint(copy, "Spleen", MASKS["liver"], scan)
    assert np.array_equal(voxels(node, "spleen", scan), MASKS["spleen"])
    structures.write(state, [Structure("kidney", 1)])
    with pytest.raises(BadInput, match="kidney"):
        results.wanted_of(node, state)


def test_a_large_result_is_fingerprinted_quickly(host, tmp_path):
    import slicer

    from PEFTSegmentLib import results

    shape = (60, 200, 200)
    scan = slicer.util.addVolumeFromArray(np.zeros(shape, np.int16), name="large")
    axes = np.indices(shape)
    cells = axes[0] // 10 * 64 + axes[1] // 25 * 8 + axes[2] // 25
    masks = {f"structure {n}": cells == n for n in range(100)}
    node = add_result(tmp_path, scan, masks)
    volumes = results.content(node)[1]
    assert volumes == pytest.approx({name: mask.sum() / 1000 for name, mask in masks.items()}, abs=1e-3)
