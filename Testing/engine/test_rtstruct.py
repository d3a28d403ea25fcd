"""RTSTRUCT: contours filled again give the structures back, and refer to the right images."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline

from dicom_cases import (
    FRAME_OF_REFERENCE,
    KIDNEY,
    LESION,
    NOWHERE,
    PROVENANCE,
    STRUCTURES,
    files_of,
    grid_of,
    label_map,
    overlapping_masks,
    write_source,
)
from peftseg.cli import main
from peftseg.errors import BadInput
from peftseg.grid import LPS_RAS, Grid
from peftseg.models import Structure
from peftseg.rtstruct import contours, keyhole, write_rtstruct
from peftseg.volume import read_volume, write_segmentation
from test_dicom import write_multiframe

BALL = Structure("ball", 1)


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "source", slices=12, Rows=24, Columns=20)


@pytest.fixture
def small(tmp_path) -> Path:
    return write_source(tmp_path / "small")


def written(folder: Path, source: Path, result, structures=STRUCTURES, **options) -> pydicom.Dataset:
    path = folder / "out" / "rt.dcm"
    write_rtstruct(path, result, grid_of(source), files_of(source), structures, PROVENANCE, **options)
    assert [p.name for p in path.parent.iterdir()] == ["rt.dcm"]
    return pydicom.dcmread(path)


def filled(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(I, J) bool: the voxel centres inside a polygon, by the number of its edges to their right."""
    i, j = np.indices(shape)
    inside = np.zeros(shape, dtype=bool)
    for (i1, j1), (i2, j2) in itertools.pairwise([*corners, corners[0]]):
        if j1 != j2:
            meets = (min(j1, j2) <= j) & (j < max(j1, j2))
            inside ^= meets & (i < i1 + (j - j1) * (i2 - i1) / (j2 - j1))
    return inside


def rasterised(dataset: pydicom.Dataset, number: int, grid: Grid) -> np.ndarray:
    """(I, J, K) bool of a structure, from its contours in mm; contours of a plane are exclusive or."""
    mask = np.zeros(grid.shape, dtype=bool)
    inverse = np.linalg.inv(LPS_RAS @ grid.affine)
    for contour in dataset.ROIContourSequence[number - 1].get("ContourSequence", []):
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints >= 3
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        plane = round(float(index[0, 2]))
        assert np.allclose(index[:, 2], plane, atol=1e-3)
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        mask[:, :, plane] ^= filled(np.round(index[:, :2], 3), grid.shape[:2])
    return mask


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def ball(grid: Grid, radius: float = 5, hollow: float = 0) -> np.ndarray:
    middle = (np.array(grid.shape) - 1) / 2 + 0.3
    distance = np.sqrt((((np.moveaxis(np.indices(grid.shape), 0, -1) - middle) / (1, 1, 0.6)) ** 2).sum(-1))
    return (distance < radius) & (distance >= hollow)


SHAPES = {
    "ball": ball,
    "hollow ball": lambda grid: ball(grid, 7, 3),
    "small ball": lambda grid: ball(grid, 2),
    "noise": lambda grid: np.random.default_rng(1).random(grid.shape) < 0.5,
    "everything": lambda grid: np.ones(grid.shape, dtype=bool),
    "one voxel": lambda grid: ball(grid, 0.6),
    "checkerboard": lambda grid: (np.indices(grid.shape).sum(axis=0) % 2 == 0) & (np.arange(grid.shape[2]) < 2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_contours_filled_again_give_the_structure_back(tmp_path, source, name):
    grid = grid_of(source)
    mask = SHAPES[name](grid)
    assert mask.any()
    back = rasterised(written(tmp_path, source, mask[np.newaxis], [BALL]), 1, grid)
    assert dice(back, mask) > 0.95
    assert np.allclose(np.argwhere(back).mean(axis=0), np.argwhere(mask).mean(axis=0), atol=0.5)
    if name != "checkerboard":  # where voxels touch by a corner, either answer is right
        assert np.array_equal(back, mask)


@pytest.mark.parametrize("seed", range(5))
def test_holes_are_part_of_the_outline_for_any_rule_of_filling(seed):
    rng = np.random.default_rng(seed)
    mask = np.ones((16, 18), dtype=bool)
    for _ in range(12):
        i, j = rng.integers(1, 13, 2)
        mask[i : i + rng.integers(1, 4), j : j + rng.integers(1, 4)] = False
    outlines = list(contours(mask))
    assert outlines
    by_count, by_winding = np.zeros_like(mask), np.zeros_like(mask)
    for corners in outlines:
        by_count |= filled(corners, mask.shape)
        centres = np.argwhere(np.ones_like(mask)) + np.array([0, 1e-4])  # slits run through the voxels' centres
        by_winding |= Outline([*corners, corners[0]], closed=True).contains_points(centres).reshape(mask.shape)
    assert np.array_equal(by_count, mask)
    assert np.array_equal(by_winding, mask)


def test_a_hole_behind_a_hole_is_joined_through_it():
    square = np.array([[0, 0], [9, 0], [9, 9], [0, 9]], dtype=float)
    left, right = (np.array([[i, 3.5], [i + 0.5, 4], [i, 4.5], [i - 0.5, 4]]) for i in (2, 6))
    joined = keyhole(square, [left, right])
    edges = list(itertools.pairwise([*map(tuple, joined), tuple(joined[0])]))
    for edge in (((2.5, 4.0), (5.5, 4.0)), ((6.5, 4.0), (9.0, 4.0))):
        assert edge in edges
        assert edge[::-1] in edges  # there and back


def test_structures_that_overlap_are_whole_and_one_without_voxels_has_no_contour(tmp_path, small):
    source = small
    masks = overlapping_masks(grid_of(source))
    dataset = written(tmp_path, source, masks)
    for number, mask in enumerate(masks, 1):
        assert np.array_equal(rasterised(dataset, number, grid_of(source)), mask)
    assert [r.ROIName for r in dataset.StructureSetROISequence] == [s.name for s in STRUCTURES]
    assert "ContourSequence" not in dataset.ROIContourSequence[2]


def test_it_refers_to_images_frame_of_reference_and_study(tmp_path, small):
    labels = label_map(grid_of(small))
    dataset = written(tmp_path, small, labels)
    headers = {h.SOPInstanceUID: h for h in (pydicom.dcmread(p) for p in files_of(small))}
    first = next(iter(headers.values()))
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert frame.FrameOfReferenceUID == dataset.FrameOfReferenceUID == FRAME_OF_REFERENCE
    assert frame.RTReferencedStudySequence[0].ReferencedSOPInstanceUID == dataset.StudyInstanceUID == "1.2.3"
    assert series.SeriesInstanceUID == first.SeriesInstanceUID != dataset.SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ContourImageSequence} == set(headers)
    assert (str(dataset.PatientName), dataset.PatientID, dataset.StudyDescription) == ("Müller^Jörg", "P1", "Bauch")
    normal = np.cross(*np.reshape(first.ImageOrientationPatient, (2, 3)))
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        image = headers[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        away = (np.array(contour.ContourData, float).reshape(-1, 3) - np.array(image.ImagePositionPatient)) @ normal
        assert np.allclose(away, 0, atol=1e-3)


@pytest.mark.parametrize("edited", [False, True])
def test_it_is_an_unapproved_draft_for_research_with_names_colours_and_codes(tmp_path, small, edited):
    dataset = written(tmp_path, small, label_map(grid_of(small)), edited=edited)
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert dataset.SeriesDescription == "PEFTSegment: research use only, draft until reviewed"
    assert dataset.StructureSetDescription.startswith("Research use only, draft until reviewed. adapter=kidneys")
    assert f"adapter_hash={'ab' * 32}" in dataset.StructureSetDescription
    assert dataset.SoftwareVersions == "0.1.0"
    kinds = {r.ROIGenerationAlgorithm for r in dataset.StructureSetROISequence}
    assert kinds == {"SEMIAUTOMATIC" if edited else "AUTOMATIC"}
    assert [list(r.ROIDisplayColor) for r in dataset.ROIContourSequence] == [list(s.colour) for s in STRUCTURES]
    observed = dataset.RTROIObservationsSequence
    assert [o.ReferencedROINumber for o in observed] == [1, 2, 3]
    code = observed[0].RTROIIdentificationCodeSequence[0]
    assert (code.CodeMeaning, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("Kidney", "Left")
    for name in ["StructureSetLabel", "StructureSetDate", "StructureSetTime", "OperatorsName", "InstanceNumber"]:
        assert name in dataset


def test_contours_longer_than_an_explicit_text_are_written_whole(tmp_path):
    source = write_source(tmp_path / "s", slices=2, Rows=80, Columns=90)
    comb = np.zeros(grid_of(source).shape, dtype=bool)
    comb[::2, 1:] = comb[:, 1, :] = True
    comb[1::2, 2:79:3] = True
    comb[:, :, 1] = False
    dataset = written(tmp_path, source, comb[np.newaxis], [BALL])
    assert max(c.NumberOfContourPoints for c in dataset.ROIContourSequence[0].ContourSequence) * 3 * 9 > 65534
    assert np.array_equal(rasterised(dataset, 1, grid_of(source)), comb)


def test_an_enhanced_multi_frame_source_is_referred_to_frame_by_frame(tmp_path):
    path = write_multiframe(tmp_path / "source" / "m.dcm", [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    labels = np.zeros((5, 4, 3), np.uint8)
    labels[1:4, 1:3, 1] = LESION.value
    dataset = written(tmp_path, path.parent, labels)
    (contour,) = dataset.ROIContourSequence[1].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 3
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    assert np.array_equal(rasterised(dataset, 2, grid_of(path.parent)), labels == LESION.value)


def test_another_grid_or_a_missing_package_is_refused(tmp_path, small, monkeypatch):
    grid, labels = grid_of(small), label_map(grid_of(small))
    other = Grid(grid.shape, grid.affine @ np.diag([1, 1, 2, 1]))
    with pytest.raises(BadInput, match="not on the grid of the series"):
        write_rtstruct(tmp_path / "o.dcm", labels, other, files_of(small), STRUCTURES, {})
    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(BadInput, match="needs the package contourpy"):
        write_rtstruct(tmp_path / "o.dcm", labels, grid, files_of(small), STRUCTURES, {})
    assert not (tmp_path / "o.dcm").exists()


def test_the_command_exports_a_structure_set(tmp_path, small, capsys):
    grid, labels = grid_of(small), label_map(grid_of(small))
    write_segmentation(tmp_path / "r.nii.gz", labels, grid, STRUCTURES, PROVENANCE)
    command = ["dicom", "export", "--input", str(tmp_path / "r.nii.gz"), "--source", str(small), "--json"]
    assert main([*command, "--out", str(tmp_path / "o.dcm"), "--format", "rtstruct"]) == 0
    assert '"format": "rtstruct"' in capsys.readouterr().out
    dataset = pydicom.dcmread(tmp_path / "o.dcm")
    assert np.array_equal(rasterised(dataset, 1, grid), labels == KIDNEY.value)
    assert dataset.StructureSetROISequence[2].ROIName == NOWHERE.name
    assert main([*command, "--out", str(tmp_path / "p.dcm"), "--format", "rtstruct", "--compress"]) == 2


@pytest.mark.realdata
def test_a_real_mr_series_gets_its_structures_back(tmp_path, shared_data):
    folder = shared_data / "readers" / "dicom_mr_rtstruct" / "image"
    volume = read_volume(folder)
    mask = volume.array > np.quantile(volume.array, 0.995)
    write_rtstruct(tmp_path / "o.dcm", mask[np.newaxis], volume.grid, files_of(folder), [BALL], PROVENANCE)
    assert dice(rasterised(pydicom.dcmread(tmp_path / "o.dcm"), 1, volume.grid), mask) > 0.999
