"""Scans and labels go to files and results come back, voxel for voxel, wherever they lie."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple

import numpy as np
import pytest
import scene_makers

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.volume import read_labels, read_volume, write_segmentation

SHAPE = (6, 8, 10)  # k, j, i
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
PLACES = {
    "plain": np.eye(4),
    "anisotropic": np.diag([0.7, 0.9, 5.0, 1.0]),
    "flipped": np.diag([-1.0, -1.0, 2.0, 1.0]),
    "oblique": np.block(
        [[TURN @ np.diag([1.0, 1.5, 3.0]), np.array([[10.0], [-20.0], [30.5]])], [np.zeros((1, 3)), 1.0]]
    ),
    "sagittal": np.array([[0, 0, 3.0, 5], [1.0, 0, 0, 6], [0, 1.0, 0, 7], [0, 0, 0, 1]]),
}


@pytest.fixture(params=PLACES)
def scan(request, host):
    import slicer

    array = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16)
    return slicer.util.addVolumeFromArray(array, ijkToRAS=PLACES[request.param], name="Müller, Ärzte 心")


def transform_of(matrix: np.ndarray):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


def labels_of(scan, masks: dict[str, np.ndarray]):
    import slicer

    from PEFTSegmentLib import support

    wanted = [Structure(name, n) for n, name in enumerate(masks, start=1)]
    node = support.new_segmentation(scan, wanted)
    for name, mask in masks.items():
        segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, segment_id, scan)
    return node, wanted


def box(*ranges) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


MASKS = {"Leber, rechts": box((1, 3), (2, 5), (3, 9)), "心臓": box((3, 6), (0, 4), (0, 5))}
OVERLAPPING = {"Leber, rechts": box((1, 4), (2, 5), (3, 9)), "心臓": box((3, 6), (0, 4), (0, 5))}


def write(tmp_path, scan, masks):
    from PEFTSegmentLib import exchange, structures

    node, wanted = labels_of(scan, masks)
    image = exchange.image_of(scan)
    exchange.write_image(tmp_path / "scan.nrrd", image)
    parts = [exchange.part_of(node, structures.find_segment(node, s.name), scan) for s in wanted]
    return exchange.write_parts(tmp_path / "labels", parts, wanted, image), wanted


def test_a_scan_is_written_voxel_for_voxel(scan, tmp_path):
    import slicer

    from PEFTSegmentLib import exchange, scans

    exchange.write_image(tmp_path / "scan.nrrd", exchange.image_of(scan))
    read = read_volume(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(read.array, slicer.util.arrayFromVolume(scan).T)
    np.testing.assert_allclose(read.grid.affine, scans.ijk_to_world(scan), atol=1e-9)


def test_a_linear_transform_moves_the_written_scan(scan, tmp_path):
    from PEFTSegmentLib import exchange

    move = np.block([[TURN, np.array([[1.0], [2.0], [3.0]])], [np.zeros((1, 3)), 1.0]])
    before = exchange.image_of(scan).affine
    scan.SetAndObserveTransformNodeID(transform_of(move).GetID())
    np.testing.assert_allclose(exchange.image_of(scan).affine, move @ before, atol=1e-9)


@pytest.mark.parametrize("masks", [MASKS, OVERLAPPING], ids=["apart", "overlapping"])
def test_labels_are_written_on_the_grid_of_their_scan(scan, tmp_path, masks):
    path, wanted = write(tmp_path, scan, masks)
    labels = read_labels(path)
    assert labels.grid.same_as(read_volume(tmp_path / "scan.nrrd").grid)
    for structure in wanted:
        np.testing.assert_array_equal(labels.mask(structure), masks[structure.name].T)


def test_labels_painted_under_a_transform_stay_with_their_scan(scan, tmp_path):
    scan.SetAndObserveTransformNodeID(transform_of(np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3)).GetID())
    path, wanted = write(tmp_path, scan, MASKS)
    np.testing.assert_array_equal(read_labels(path).mask(wanted[0]), MASKS["Leber, rechts"].T)


def test_labels_with_another_geometry_are_resampled(host, tmp_path):
    import slicer

    from PEFTSegmentLib import exchange

    scan = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), name="coarse")
    fine = slicer.util.addVolumeFromArray(
        np.zeros([2 * n for n in SHAPE], np.int16), ijkToRAS=np.diag([0.5, 0.5, 0.5, 1]) - 0.25 * np.eye(4, k=3)
    )
    doubled = {"x": np.kron(box((1, 3), (2, 5), (3, 9)), np.ones((2, 2, 2))).astype(bool)}
    node, _wanted = labels_of(fine, doubled)
    part = exchange.part_of(node, node.GetSegmentation().GetNthSegmentID(0), scan)
    assert part.array.shape == SHAPE
    volume = np.count_nonzero(part.array == part.value)
    assert abs(volume - MASKS["Leber, rechts"].sum()) <= 0.5 * MASKS["Leber, rechts"].sum()


def test_a_scan_whose_structures_are_all_absent_gets_empty_labels(host, tmp_path):
    from PEFTSegmentLib import exchange

    image = exchange.image_of(scene_makers.add_scan(1))
    path = exchange.write_parts(tmp_path / "labels", [], [], image)
    assert not read_labels(path).layers.any()


def test_a_result_comes_back_beside_its_scan(scan, tmp_path):
    import slicer

    from PEFTSegmentLib import exchange

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(scan), study)
    exchange.write_image(tmp_path / "scan.nrrd", exchange.image_of(scan))
    grid = read_volume(tmp_path / "scan.nrrd").grid
    structures = [Structure("Leber, rechts", 1, (10, 20, 30), "SCT^10200004^Liver"), Structure("心臓", 2)]
    masks = np.stack([OVERLAPPING[s.name].T for s in structures])
    write_segmentation(tmp_path / "r.seg.nrrd", masks, grid, structures, {"adapter": "x"})
    node = exchange.load_segmentation(tmp_path / "r.seg.nrrd", "scan - x", scan, {"adapter": "x"})
    assert node.GetName() == "scan - x"
    assert node.GetAttribute("PEFTSegment.adapter") == "x"
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert node.GetStorageNode() is None
    for structure in structures:
        segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(structure.name)
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, scan)
        np.testing.assert_array_equal(found.astype(bool), OVERLAPPING[structure.name])
    liver = node.GetSegmentation().GetSegment(node.GetSegmentation().GetSegmentIdBySegmentName("Leber, rechts"))
    np.testing.assert_allclose(liver.GetColor(), np.array([10, 20, 30]) / 255, atol=1e-4)
    assert "SCT^10200004^Liver" in liver.GetTerminology()


def test_a_result_follows_the_transform_of_its_scan(scan, tmp_path):
    import slicer

    from PEFTSegmentLib import exchange

    moved = transform_of(np.block([[TURN, np.array([[1.0], [2.0], [3.0]])], [np.zeros((1, 3)), 1.0]]))
    scan.SetAndObserveTransformNodeID(moved.GetID())
    exchange.write_image(tmp_path / "scan.nrrd", exchange.image_of(scan))
    grid = read_volume(tmp_path / "scan.nrrd").grid
    mask = MASKS["心臓"]
    write_segmentation(tmp_path / "r.seg.nrrd", mask.T.astype(np.uint8), grid, [Structure("x", 1)], {})
    node = exchange.load_segmentation(tmp_path / "r.seg.nrrd", "r", scan, {})
    assert node.GetParentTransformNode() is moved
    part = exchange.part_of(node, node.GetSegmentation().GetNthSegmentID(0), scan)
    assert part.start is not None
    found = slicer.util.arrayFromSegmentBinaryLabelmap(node, node.GetSegmentation().GetNthSegmentID(0), scan)
    np.testing.assert_array_equal(found.astype(bool), mask)


def test_what_is_no_scan_is_refused_with_the_reason(host):
    import slicer

    from PEFTSegmentLib import scans

    made = {
        "label map": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels"),
        "empty": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing"),
        "several values": slicer.util.addVolumeFromArray(
            np.zeros((4, 5, 6, 3), np.uint8), nodeClassName="vtkMRMLVectorVolumeNode"
        ),
        "single slice": slicer.util.addVolumeFromArray(np.zeros((1, 5, 6), np.uint8)),
        "slanted": slicer.util.addVolumeFromArray(
            np.zeros((4, 5, 6), np.uint8), ijkToRAS=np.eye(4) + 0.3 * np.eye(4, k=1)
        ),
    }
    for word, volume in made.items():
        assert word in scans.reason_against(volume)
    assert scans.usable_scans() == []
    assert len(scans.refused_volumes()) == len(made)
    with pytest.raises(BadInput, match="label map"):
        scans.require_usable(made["label map"])


def test_a_scan_under_a_warping_transform_is_refused(host):
    import slicer

    from PEFTSegmentLib import scans

    scan = scene_makers.add_scan(1)
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    scan.SetAndObserveTransformNodeID(warp.GetID())
    assert "warping" in scans.reason_against(scan)


def test_a_clone_of_a_scan_is_another_scan(host):
    from PEFTSegmentLib import scans

    first, second = scene_makers.add_scan(1), scene_makers.add_scan(2)
    name = scans.token(first)
    second.SetAttribute(scans.TOKEN, name)
    assert scans.token(second) != name
    assert scans.scan_of(scans.token(first)) is first
    assert scans.scan_of("unknown") is None


def test_a_full_disk_is_told_before_anything_is_written(host, monkeypatch, tmp_path):
    from PEFTSegmentLib import exchange

    image = exchange.image_of(scene_makers.add_scan(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 9, 1000))
    with pytest.raises(BadInput, match="free"):
        exchange.require_space(tmp_path, [image])


def test_an_error_in_the_writing_thread_is_kept_for_the_one_who_polls(host, tmp_path):
    from PEFTSegmentLib import exchange
    from PEFTSegmentLib.background import Background

    image = exchange.image_of(scene_makers.add_scan(1))
    writing = Background([(exchange.write_image, tmp_path / "not there" / "scan.nrrd", image)])
    end = time.monotonic() + 10
    while not writing.done and time.monotonic() < end:
        time.sleep(0.01)
    assert isinstance(writing.error, FileNotFoundError)


def test_a_thread_gets_on_although_slicer_keeps_pythons_lock_while_it_waits(host):
    from PEFTSegmentLib.background import Background

    working = Background([(time.sleep, 0.001)] * 60)
    rounds = 0
    while not working.done:
        host.idle(20)
        rounds += 1
        assert rounds < 50, "the thread gets the lock only where a slot happens to run"
    assert len(working.results) == 60


def test_voxels_are_counted_again_only_after_a_change(host):
    import slicer

    from PEFTSegmentLib import support

    scan, labels = scene_makers.add_labelled_scan(1)
    segment_id = labels.GetSegmentation().GetNthSegmentID(0)
    first = support.voxel_count(labels, segment_id)
    assert first == scene_makers.balls(1)[1][scene_makers.BRIGHT].sum()
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros((24, 24, 24), np.uint8), labels, segment_id, scan)
    assert support.voxel_count(labels, segment_id) == 0
