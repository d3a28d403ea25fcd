"""DICOM SEG: what three readers find in it, what it refers to, and what cannot be written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_cases import (
    FRAME_OF_REFERENCE,
    KIDNEY,
    LESION,
    PROVENANCE,
    STRUCTURES,
    files_of,
    grid_of,
    label_map,
    overlapping_masks,
    write_source,
)
from peftseg.cli import main
from peftseg.config import ExportDicomJob, from_json, to_json
from peftseg.dicom import read_planes
from peftseg.dicom_codes import SIDES, TISSUE, structure_codes
from peftseg.dicom_frames import quiet_pydicom
from peftseg.dicom_seg import put_together, read_dicom_seg, write_dicom_seg, write_result
from peftseg.dicom_sort import find_series
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.export_dicom import run_export
from peftseg.grid import LPS_RAS, Grid
from peftseg.models import Structure
from peftseg.result_facts import read_facts
from peftseg.structures import structure_named
from peftseg.volume import read_labels, read_volume, write_segmentation, write_volume
from small_scans import write_tiny_model
from test_dicom import write_multiframe

# PS3.3 A.51 and C.8.20: what dcmqi and dciodvfy demand of a segmentation, and of each segment and frame
REQUIRED = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "InstanceNumber",
    "ContentDate",
    "ContentTime",
    "ImageType",
    "SegmentationType",
    "ContentLabel",
    "ContentDescription",
    "ContentCreatorName",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "LossyImageCompression",
    "SegmentSequence",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "ReferencedSeriesSequence",
    "SOPClassUID",
    "SOPInstanceUID",
    "SpecificCharacterSet",
    "SegmentsOverlap",
]
OF_SEGMENT = [
    "SegmentNumber",
    "SegmentLabel",
    "SegmentAlgorithmType",
    "SegmentAlgorithmName",
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentationAlgorithmIdentificationSequence",
    "RecommendedDisplayCIELabValue",
]
OF_FRAME = ["DerivationImageSequence", "FrameContentSequence", "PlanePositionSequence", "SegmentIdentificationSequence"]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "source")


def written(folder: Path, source: Path, result, grid=None, structures=STRUCTURES, **options) -> pydicom.Dataset:
    path = folder / "out" / "seg.dcm"
    write_dicom_seg(path, result, grid or grid_of(source), files_of(source), structures, PROVENANCE, **options)
    assert [p.name for p in path.parent.iterdir()] == ["seg.dcm"]
    return pydicom.dcmread(path)


def as_masks(dataset: pydicom.Dataset, frames: np.ndarray, source: Path) -> dict[int, np.ndarray]:
    """Number of the segment -> (I, J, K) bool on the source's grid, from the frames of any reader, by their positions."""
    return masks_on(grid_of(source), dataset, frames)


def masks_on(grid: Grid, dataset: pydicom.Dataset, frames: np.ndarray) -> dict[int, np.ndarray]:
    """As `as_masks`."""
    inverse = np.linalg.inv(LPS_RAS @ grid.affine)
    masks = {int(s.SegmentNumber): np.zeros(grid.shape, bool) for s in dataset.SegmentSequence}
    for frame, voxels in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        place = inverse @ [*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1]
        assert np.allclose(place[:2], 0, atol=1e-3)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        masks[number][:, :, round(float(place[2]))] |= voxels.astype(bool).T
    return masks


def of_highdicom(path: Path, source: Path, number: int) -> np.ndarray:
    """(I, J, K) bool of a segment, by the source's instances, as highdicom pairs them."""
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in files_of(source)]
    normal = np.cross(*np.reshape(headers[0].ImageOrientationPatient, (2, 3)))
    headers.sort(key=lambda h: np.dot(h.ImagePositionPatient, normal))
    uids = [h.SOPInstanceUID for h in headers]
    pixels = highdicom.seg.segread(path).get_pixels_by_source_instance(
        uids, segment_numbers=[number], assert_missing_frames_are_empty=True
    )
    return pixels[..., 0].astype(bool).transpose(2, 1, 0)


@pytest.mark.parametrize("compress", [False, True])
def test_three_readers_find_the_same_voxels(tmp_path, source, compress):
    labels = label_map(grid_of(source))
    dataset = written(tmp_path, source, labels, compress=compress)
    path = tmp_path / "out" / "seg.dcm"
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    by_pydicom = as_masks(dataset, dataset.pixel_array, source)
    for number, structure in enumerate(STRUCTURES, 1):
        right = labels == structure.value
        assert np.array_equal(by_pydicom[number], right)
        assert np.array_equal(as_masks(dataset, by_itk, source)[number], right)
        assert np.array_equal(of_highdicom(path, source, number), right)
        assert np.array_equal(read_dicom_seg(path, grid_of(source)).mask(structure), right)
    assert (dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian) == compress
    assert dataset.SegmentsOverlap == "NO"


def test_structures_that_overlap_keep_all_their_voxels(tmp_path, source):
    grid = grid_of(source)
    masks = overlapping_masks(grid)
    dataset = written(tmp_path, source, masks)
    found = as_masks(dataset, dataset.pixel_array, source)
    assert all(np.array_equal(found[n], mask) for n, mask in enumerate(masks, 1))
    assert all(np.array_equal(of_highdicom(tmp_path / "out/seg.dcm", source, n), m) for n, m in enumerate(masks, 1))
    assert dataset.SegmentsOverlap == "YES"
    read = read_dicom_seg(tmp_path / "out" / "seg.dcm", grid)
    assert len(read.layers) == 2
    assert all(np.array_equal(read.mask(s), m) for s, m in zip(STRUCTURES, masks, strict=True))
    index = [tuple(f.FrameContentSequence[0].DimensionIndexValues) for f in dataset.PerFrameFunctionalGroupsSequence]
    assert index == [(1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3)]  # segment, rank of the plane from the stack's end
    alone = written(tmp_path / "alone", source, masks[:1], structures=STRUCTURES[:1])  # highdicom's own ranks
    places = [f.PlanePositionSequence[0].ImagePositionPatient for f in dataset.PerFrameFunctionalGroupsSequence]
    own = [f.PlanePositionSequence[0].ImagePositionPatient for f in alone.PerFrameFunctionalGroupsSequence]
    assert places[:3] == own


def test_frames_of_whole_bytes_are_put_together_too(tmp_path):
    source = write_source(tmp_path / "s", Rows=8, Columns=6)
    masks = overlapping_masks(grid_of(source))
    dataset = written(tmp_path, source, masks)
    found = as_masks(dataset, dataset.pixel_array, source)
    assert all(np.array_equal(found[n], mask) for n, mask in enumerate(masks, 1))


def test_only_planes_with_voxels_have_frames(tmp_path, source):
    labels = np.zeros(grid_of(source).shape, np.uint8)
    labels[1, 2, 3] = labels[2, 2, 3] = KIDNEY.value
    labels[1, 1, 5] = LESION.value
    dataset = written(tmp_path, source, labels)
    assert dataset.NumberOfFrames == 2
    assert [s.SegmentLabel for s in dataset.SegmentSequence] == [s.name for s in STRUCTURES]


def test_a_result_without_any_voxel_has_one_empty_frame_a_structure_and_refers_to_all_images(tmp_path, source):
    dataset = written(tmp_path, source, np.zeros(grid_of(source).shape, np.uint8))
    assert dataset.NumberOfFrames == len(STRUCTURES)
    assert not dataset.pixel_array.any()
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    assert not read_dicom_seg(tmp_path / "out" / "seg.dcm", grid_of(source)).layers.any()


def test_it_refers_to_the_images_patient_and_study_of_its_source(tmp_path, source):
    dataset = written(tmp_path, source, label_map(grid_of(source)))
    headers = {h.SOPInstanceUID: h for h in (pydicom.dcmread(p) for p in files_of(source))}
    first = next(iter(headers.values()))
    for name in ("PatientID", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyDescription", "FrameOfReferenceUID"):
        assert dataset[name].value == first[name].value, name
    assert str(dataset.PatientName) == "Müller^Jörg"
    assert dataset.SeriesInstanceUID != first.SeriesInstanceUID
    series = dataset.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == set(headers)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        image = headers[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == first.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == first.PixelSpacing


def test_all_that_the_standard_demands_is_there(tmp_path, source):
    dataset = written(tmp_path, source, label_map(grid_of(source)))
    assert [name for name in REQUIRED if name not in dataset] == []
    assert [n for s in dataset.SegmentSequence for n in OF_SEGMENT if n not in s] == []
    assert [n for f in dataset.PerFrameFunctionalGroupsSequence for n in OF_FRAME if n not in f] == []
    assert (dataset.SegmentationType, dataset.BitsAllocated, dataset.Modality) == ("BINARY", 1, "SEG")
    assert [s.SegmentNumber for s in dataset.SegmentSequence] == [1, 2, 3]
    assert list(dataset.ImageType[:2]) == ["DERIVED", "PRIMARY"]


def test_it_says_what_made_it_and_that_it_is_a_draft_for_research(tmp_path, source):
    dataset = written(tmp_path, source, label_map(grid_of(source)))
    assert dataset.ContentDescription == "Research use only, draft until reviewed"
    assert dataset.SeriesDescription == "PEFTSegment: research use only, draft until reviewed"
    assert (dataset.Manufacturer, dataset.SoftwareVersions) == ("PEFTSegment", "0.1.0")
    assert dataset.DeviceSerialNumber == PROVENANCE["adapter_hash"]
    segment = dataset.SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("PEFTSegment", "0.1.0")
    for fact in ("adapter=kidneys of site A", "adapter_version=2", f"adapter_hash={'ab' * 32}", "base=wholebody"):
        assert fact in algorithm.AlgorithmParameters.split(","), fact
    assert f"base_fingerprint={'cd' * 32}" in algorithm.AlgorithmParameters
    assert {s.SegmentAlgorithmType for s in dataset.SegmentSequence} == {"AUTOMATIC"}


def test_an_edited_result_is_semiautomatic(tmp_path, source):
    dataset = written(tmp_path, source, label_map(grid_of(source)), edited=True)
    assert {s.SegmentAlgorithmType for s in dataset.SegmentSequence} == {"SEMIAUTOMATIC"}


def test_each_writing_is_a_new_instance_of_the_same_study(tmp_path, source):
    labels = label_map(grid_of(source))
    first = written(tmp_path / "a", source, labels)
    second = written(tmp_path / "b", source, labels)
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[name].value != second[name].value
    assert first.StudyInstanceUID == second.StudyInstanceUID


def test_names_colours_and_codes_are_those_of_the_structures(tmp_path, source):
    dataset = written(tmp_path, source, label_map(grid_of(source)))
    kidney, lesion, spleen = dataset.SegmentSequence
    assert [s.SegmentLabel for s in dataset.SegmentSequence] == ["left kidney", "Läsion α", "spleen"]
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert spleen.SegmentedPropertyTypeCodeSequence[0].CodeValue == "78961009"
    colour = highdicom.color.CIELabColor.from_dicom_value(lesion.RecommendedDisplayCIELabValue)
    assert np.allclose(colour.to_rgb(), LESION.colour, atol=1)


def test_a_name_longer_than_dicom_allows_is_kept_whole_in_the_description(tmp_path, source):
    name = "a \\ very long name " * 6
    long = Structure(name, 1)
    dataset = written(tmp_path, source, np.ones(grid_of(source).shape, np.uint8), structures=[long])
    assert len(dataset.SegmentSequence[0].SegmentLabel) <= 64
    assert "\\" not in dataset.SegmentSequence[0].SegmentLabel
    assert list(read_dicom_seg(tmp_path / "out" / "seg.dcm").segments) == [name.strip()]


def test_a_result_whose_axes_were_flipped_and_permuted_lands_on_the_same_voxels(tmp_path, source):
    grid, labels = grid_of(source), label_map(grid_of(source))
    turned = labels[::-1, :, ::-1].transpose(2, 0, 1)
    flip = np.diag([-1.0, 1, -1, 1])
    flip[[0, 2], 3] = grid.shape[0] - 1, grid.shape[2] - 1
    permute = np.eye(4)[:, [2, 0, 1, 3]]
    turned_grid = Grid(turned.shape, (grid.affine @ flip @ permute).astype(np.float32))  # as NIfTI stores it
    dataset = written(tmp_path, source, turned, turned_grid)
    assert np.array_equal(as_masks(dataset, dataset.pixel_array, source)[1], labels == KIDNEY.value)


def moved(grid: Grid, mm: float) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += mm
    return Grid(grid.shape, affine)


OTHER_GRIDS = {
    "moved": (lambda g: moved(g, 0.5), "corners up to 0.866 mm apart"),
    "finer": (lambda g: Grid(g.shape, g.affine @ np.diag([0.5, 0.5, 0.5, 1])), r"0\.35 x 0\.45 x 1\.5 mm"),
    "turned": (lambda g: Grid(g.shape, np.diag([1.0, 1, 1, 1])), "not on the grid of the series"),
    "cropped": (lambda g: Grid((5, 4, 5), g.affine), "5 x 4 x 5 voxels"),
}


@pytest.mark.parametrize("case", OTHER_GRIDS)
def test_another_grid_is_refused_with_both_in_numbers(tmp_path, source, case):
    change, message = OTHER_GRIDS[case]
    grid = change(grid_of(source))
    with pytest.raises(BadInput, match=message) as error:
        written(tmp_path, source, np.ones(grid.shape, np.uint8), grid, [Structure("a", 1)])
    assert "the series has 5 x 4 x 6 voxels of 0.7 x 0.9 x 3 mm" in error.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("groups", ["shared", "in each frame"])
def test_an_enhanced_multi_frame_source_is_referred_to_frame_by_frame(tmp_path, groups):
    source = write_multiframe(tmp_path / "source" / "m.dcm", [(0, 0, 4), (0, 0, 0), (0, 0, 6), (0, 0, 2)])
    header = pydicom.dcmread(source)
    header.FrameOfReferenceUID = FRAME_OF_REFERENCE
    if groups == "in each frame":  # as Siemens and Philips write them
        shared = header.SharedFunctionalGroupsSequence[0]
        for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            for frame in header.PerFrameFunctionalGroupsSequence:
                setattr(frame, name, shared[name].value)
            delattr(shared, name)
    header.save_as(source)
    labels = np.zeros((5, 4, 4), np.uint8)
    for k in range(4):
        labels[: k + 1, 1, k] = LESION.value
    dataset = written(tmp_path, source.parent, labels)
    assert np.array_equal(as_masks(dataset, dataset.pixel_array, source.parent)[2], labels == LESION.value)
    referred = [
        f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for f in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(referred) == [1, 2, 3, 4]
    for frame, number in zip(dataset.PerFrameFunctionalGroupsSequence, referred, strict=True):
        origin = header.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == origin
    empty = written(tmp_path / "empty", source.parent, np.zeros_like(labels))
    assert empty.NumberOfFrames == 3


def test_a_source_with_copies_of_its_files_is_referred_to_once(tmp_path, source):
    labels = label_map(grid_of(source))
    for file in files_of(source):
        (source / f"again_{file.name}").write_bytes(file.read_bytes())
    dataset = written(tmp_path, source, labels)
    assert np.array_equal(as_masks(dataset, dataset.pixel_array, source)[1], labels == KIDNEY.value)
    referred = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len({item.ReferencedSOPInstanceUID for item in referred}) == len(referred) <= 6


PLACES = [(0, 0, 4), (0, 0, 0), (0, 0, 6), (0, 0, 2)]


def write_echoes(folder: Path, model_sized: bool = False) -> Path:
    """An enhanced file of two echoes whose frames alternate, the second echo's in another order of places."""
    positions = [place for both in zip(PLACES, reversed(PLACES), strict=True) for place in both]
    path = write_multiframe(folder / "m.dcm", positions)
    header = pydicom.dcmread(path)
    header.FrameOfReferenceUID = FRAME_OF_REFERENCE
    if model_sized:
        header.Rows = header.Columns = 16
        header.PixelData = np.repeat(np.arange(8, dtype=np.int16), 256).tobytes()
    for n, frame in enumerate(header.PerFrameFunctionalGroupsSequence):
        echo = pydicom.Dataset()
        echo.EffectiveEchoTime = 4.92 if n % 2 else 2.46
        frame.MREchoSequence = [echo]
    header.save_as(path)
    return path


def frames_referred_to(dataset: pydicom.Dataset) -> list[int]:
    """Of each frame of a segmentation, that of its source (from 1)."""
    frames = dataset.PerFrameFunctionalGroupsSequence
    return [f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for f in frames]


def test_one_volume_of_an_enhanced_file_with_several_is_referred_to_by_its_own_frames(tmp_path):
    path = write_echoes(tmp_path / "source")
    header = pydicom.dcmread(path)
    series = {s.part: s for s in find_series([path])}["echo time 4.92 ms"]
    _, grid, _ = read_planes(series.planes, "x")
    labels = np.zeros(grid.shape, np.uint8)
    for k in range(4):
        labels[: k + 1, 1, k] = LESION.value
    seg = write_dicom_seg(tmp_path / "seg.dcm", labels, grid, series.planes, STRUCTURES, PROVENANCE)
    dataset, right = pydicom.dcmread(seg), labels == LESION.value
    assert sorted(frames_referred_to(dataset)) == [2, 4, 6, 8]
    for frame, number in zip(dataset.PerFrameFunctionalGroupsSequence, frames_referred_to(dataset), strict=True):
        origin = header.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == origin
    for frames in (dataset.pixel_array, sitk.GetArrayFromImage(sitk.ReadImage(str(seg)))):
        assert np.array_equal(masks_on(grid, dataset, frames)[2], right)
    assert np.array_equal(read_dicom_seg(seg, grid).mask(LESION), right)
    in_stack = [frame + 1 for _, frame in series.planes]  # numbers in the file, along the stack
    by_highdicom = highdicom.seg.segread(seg).get_pixels_by_source_frame(
        header.SOPInstanceUID, in_stack, segment_numbers=[2], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(by_highdicom[..., 0].astype(bool).transpose(2, 1, 0), right)
    (referred,) = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert referred.ReferencedSOPInstanceUID == header.SOPInstanceUID
    contours = write_result(tmp_path / "rt.dcm", labels, grid, series.planes, STRUCTURES, PROVENANCE, "rtstruct")
    lines = pydicom.dcmread(contours).ROIContourSequence[1].ContourSequence
    assert {line.ContourImageSequence[0].ReferencedFrameNumber for line in lines} == {2, 4, 6, 8}
    with pytest.raises(BadInput, match="holds several volumes: up to 2 of its 8 planes"):
        write_dicom_seg(tmp_path / "o.dcm", labels, grid, [path], STRUCTURES, PROVENANCE)


def test_an_empty_or_overlapping_result_of_one_of_several_volumes_refers_to_its_frames_too(tmp_path):
    path = write_echoes(tmp_path / "source")
    series = {s.part: s for s in find_series([path])}["echo time 2.46 ms"]
    _, grid, _ = read_planes(series.planes, "x")
    masks = np.zeros((3, *grid.shape), bool)
    masks[0, :3, :2], masks[1, 2:, 1:] = True, True
    found = pydicom.dcmread(write_dicom_seg(tmp_path / "a.dcm", masks, grid, series.planes, STRUCTURES, {}))
    assert set(frames_referred_to(found)) == {1, 3, 5, 7}
    assert all(np.array_equal(masks_on(grid, found, found.pixel_array)[n], masks[n - 1]) for n in (1, 2, 3))
    empty = pydicom.dcmread(
        write_dicom_seg(tmp_path / "b.dcm", np.zeros(grid.shape, np.uint8), grid, series.planes, STRUCTURES, {})
    )
    assert (empty.NumberOfFrames, empty.pixel_array.any()) == (3, False)


@pytest.mark.parametrize("batch", ["--batch", "--no-batch"])
def test_apply_and_export_write_the_volumes_of_an_enhanced_file_as_dicom(tmp_path, batch, capsys):
    model, path = write_tiny_model(tmp_path / "model"), write_echoes(tmp_path / "series", model_sized=True)
    rules = tmp_path / "rules.json"
    kept = [{"keep": "all", "min_slices": 2}]
    rules.write_text(json.dumps({"format": "peftseg-series-rules-1", "pick": "all", "rules": kept}))
    command = [
        "apply",
        "--model",
        str(model),
        "--device",
        "cpu",
        batch,
        "--series-rules",
        str(rules),
        "--input",
        str(path),
    ]
    assert main([*command, "--format", "dicom-seg", "--out", str(tmp_path / "seg")]) == 0
    found = [set(frames_referred_to(pydicom.dcmread(file))) for file in (tmp_path / "seg").glob("*.dcm")]
    assert sorted(map(sorted, found)) == [[1, 3, 5, 7], [2, 4, 6, 8]]
    assert main([*command, "--out", str(tmp_path / "nifti")]) == 0
    capsys.readouterr()
    (result, *_) = sorted((tmp_path / "nifti").glob("*_seg.nii.gz"))
    export = ["dicom", "export", "--input", str(result), "--source", str(path), "--out", str(tmp_path / "o.dcm")]
    assert main(export) == 2
    assert "--part" in capsys.readouterr().err
    assert main([*export, "--part", "echo time 4.9 ms"]) == 2
    assert "Did you mean 'echo time 4.92 ms'" in capsys.readouterr().err
    assert main([*export, "--part", "echo time 4.92 ms"]) == 0
    assert set(frames_referred_to(pydicom.dcmread(tmp_path / "o.dcm"))) == {2, 4, 6, 8}
    structures, facts = read_facts(result)
    job = ExportDicomJob(str(result), (str(path),), tuple(structures), facts, str(tmp_path / "job.dcm"))
    run_export(from_json(to_json(replace(job, source_frames=(7, 1, 5, 3)))), Reporter.silent())
    assert set(frames_referred_to(pydicom.dcmread(tmp_path / "job.dcm"))) == {2, 4, 6, 8}
    with pytest.raises(BadInput, match="Frames are of one multi-frame file; got 2"):
        replace(job, source_files=("a", "b"), source_frames=(1,))


def test_headers_that_an_anonymiser_emptied_are_enough(tmp_path):
    source = write_source(tmp_path / "s")
    for file in files_of(source):
        header = pydicom.dcmread(file)
        for name in (
            "FrameOfReferenceUID",
            "PatientName",
            "PatientID",
            "PatientSex",
            "StudyDate",
            "StudyDescription",
            "SeriesNumber",
        ):
            delattr(header, name)
        header.save_as(file)
    dataset = written(tmp_path / "a", source, label_map(grid_of(source)))
    assert [name for name in REQUIRED if name not in dataset] == []
    again = written(tmp_path / "b", source, label_map(grid_of(source)))
    assert dataset.FrameOfReferenceUID == again.FrameOfReferenceUID != ""


def test_unusual_headers_are_repeated_as_they_are_and_no_name_is_shown(tmp_path, caplog, capfd):
    unusual = {"PatientName": "JaneDoeWithoutCaret", "PatientSex": "U", "PatientID": "P" * 70}
    source = write_source(tmp_path / "s")
    with quiet_pydicom():
        for file in files_of(source):
            header = pydicom.dcmread(file)
            for name, value in unusual.items():
                setattr(header, name, value)
            header.save_as(file)
    dataset = written(tmp_path, source, label_map(grid_of(source)))
    with quiet_pydicom():
        assert all(dataset[name].value == value for name, value in unusual.items())
    assert "JaneDoe" not in caplog.text + "".join(capfd.readouterr())


def test_what_cannot_be_referred_to_is_refused(tmp_path, source):
    grid, labels = grid_of(source), label_map(grid_of(source))
    (tmp_path / "scan.nii.gz").write_bytes(b"not DICOM")
    with pytest.raises(BadInput, match="0 DICOM image planes"):
        write_dicom_seg(tmp_path / "o.dcm", labels, grid, [tmp_path / "scan.nii.gz"], STRUCTURES, {})
    other = write_source(tmp_path / "other", SeriesInstanceUID="1.2.3.5")
    with pytest.raises(BadInput, match="planes of 2 series"):
        write_dicom_seg(tmp_path / "o.dcm", labels, grid, files_of(source) + files_of(other), STRUCTURES, {})
    lost = write_source(tmp_path / "lost", StudyInstanceUID="")
    with pytest.raises(BadInput, match="has no StudyInstanceUID"):
        write_dicom_seg(tmp_path / "o.dcm", labels, grid, files_of(lost), STRUCTURES, {})
    with pytest.raises(BadInput, match=r"holds \[3\], which belong to no structure"):
        write_dicom_seg(tmp_path / "o.dcm", labels, grid, files_of(source), [KIDNEY], {})
    masks = overlapping_masks(grid)
    with pytest.raises(BadInput, match="one mask for each of 2 structures"):
        write_dicom_seg(tmp_path / "o.dcm", masks, grid, files_of(source), [KIDNEY, LESION], {})
    with pytest.raises(BadInput, match="Did you mean 'dicom-seg'"):
        write_result(tmp_path / "o.dcm", labels, grid, files_of(source), STRUCTURES, {}, "dicom_seg")
    assert not (tmp_path / "o.dcm").exists()


def test_a_missing_package_is_named_with_the_command(tmp_path, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(BadInput, match="needs the package highdicom") as error:
        written(tmp_path, source, label_map(grid_of(source)))
    assert "pip install 'peftseg[dicom]'" in error.value.remedy


def test_a_segmentation_of_another_study_is_refused_when_reading(tmp_path, source):
    written(tmp_path, source, label_map(grid_of(source)))
    path = tmp_path / "out" / "seg.dcm"
    with pytest.raises(BadInput, match="not on the study's grid"):
        read_dicom_seg(path, moved(grid_of(source), 3))
    with pytest.raises(BadInput, match="no binary DICOM segmentation"):
        read_dicom_seg(files_of(source)[0])
    (tmp_path / "t.txt").write_text("x" * 300)
    with pytest.raises(BadInput, match="no DICOM file"):
        read_dicom_seg(tmp_path / "t.txt")


def test_without_a_study_the_grid_is_the_smallest_that_holds_all_frames(tmp_path, source):
    grid, labels = grid_of(source), label_map(grid_of(source))
    written(tmp_path, source, labels)
    read = read_dicom_seg(tmp_path / "out" / "seg.dcm")
    start = grid.affine @ [0, 0, 1, 1]
    assert read.grid.shape == (5, 4, 4)
    assert np.allclose(read.grid.affine[:3], np.column_stack([grid.affine[:3, :3], start[:3]]), atol=1e-3)
    assert np.array_equal(read.mask(KIDNEY), labels[:, :, 1:5] == KIDNEY.value)


def test_codes_come_from_the_structure_then_the_table_then_tissue():
    own = structure_codes(Structure("thing left", 1, code="99X^12^Thing"))
    assert (own.type, own.modifier) == (("99X", "12", "Thing"), SIDES["left"])
    assert structure_codes(Structure("right kidney", 1)) == structure_codes(structure_named("right kidney"))
    assert structure_codes(Structure("right kidney", 1)).modifier == SIDES["right"]
    cyst = structure_codes(structure_named("left kidney cyst"))
    assert (cyst.region.meaning, cyst.region_modifier, cyst.modifier) == ("Kidney", SIDES["left"], None)
    lobe = structure_codes(structure_named("middle lobe of right lung"))
    assert lobe.modifier is None  # its code says right
    unknown = structure_codes(Structure("my L blob", 1))
    assert (unknown.category, unknown.type, unknown.modifier) == (TISSUE, TISSUE, SIDES["left"])
    with pytest.raises(BadInput, match="terminology code"):
        structure_codes(Structure("a", 1, code="not a code"))


def test_one_part_stays_as_it_is():
    part = object()
    assert put_together([part]) is part


@pytest.mark.parametrize("name", ["result.nii.gz", "result.seg.nrrd"])
def test_the_command_exports_a_result_file_with_its_names_and_provenance(tmp_path, source, name, capsys):
    grid = grid_of(source)
    overlap = name.endswith(".seg.nrrd")
    result = overlapping_masks(grid) if overlap else label_map(grid)
    write_segmentation(tmp_path / name, result, grid, STRUCTURES, PROVENANCE)
    command = ["dicom", "export", "--input", str(tmp_path / name), "--source", str(source)]
    assert main([*command, "--out", str(tmp_path / "o.dcm"), "--edited", "--compress"]) == 0
    assert "3 structures" in capsys.readouterr().out
    dataset = pydicom.dcmread(tmp_path / "o.dcm")
    found = as_masks(dataset, dataset.pixel_array, source)
    for number, structure in enumerate(STRUCTURES, 1):
        assert np.array_equal(found[number], result[number - 1] if overlap else result == structure.value)
    segment = dataset.SegmentSequence[0]
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert f"adapter_hash={'ab' * 32}" in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    colour = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
    assert np.allclose(colour.to_rgb(), KIDNEY.colour, atol=1)
    assert main([*command, "--out", str(tmp_path / "o.dcm")]) == 2
    assert "results are not overwritten" in capsys.readouterr().err


def test_a_segment_named_in_another_code_page_keeps_its_colour(tmp_path, source):
    path, grid = tmp_path / "a.seg.nrrd", grid_of(source)
    write_segmentation(path, label_map(grid), grid, STRUCTURES, {})
    path.write_bytes(path.read_bytes().replace("Läsion α".encode(), "Läsion a".encode("latin-1")))
    found = [(s.name, s.colour) for s in read_facts(path)[0]]
    assert found == [("left kidney", KIDNEY.colour), ("Läsion a", LESION.colour), ("spleen", STRUCTURES[2].colour)]


def test_a_label_map_of_another_program_needs_names(tmp_path, source, capsys):
    grid = grid_of(source)
    write_segmentation(tmp_path / "a.nii.gz", label_map(grid), grid, STRUCTURES, {})
    (tmp_path / "a.json").unlink()
    command = ["dicom", "export", "--input", str(tmp_path / "a.nii.gz"), "--source", str(source)]
    assert main([*command, "--out", str(tmp_path / "o.dcm")]) == 2
    assert "no names for its label values" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "o.dcm"), "--structures", "left kidney=7,x=3"]) == 0
    read = read_dicom_seg(tmp_path / "o.dcm", grid)
    assert np.array_equal(read.mask(KIDNEY), label_map(grid) == KIDNEY.value)


@pytest.mark.parametrize("file_format", ["dicom-seg", "rtstruct"])
def test_apply_writes_results_of_dicom_series_and_refuses_other_scans(tmp_path, file_format, capsys):
    model = write_tiny_model(tmp_path / "model")
    source = write_source(tmp_path / "series", slices=8, Rows=16, Columns=16, SeriesInstanceUID="1.2.3.77")
    command = ["apply", "--model", str(model), "--device", "cpu", "--format", file_format, "--no-batch"]
    assert main([*command, "--input", str(source), "--out", str(tmp_path / "out")]) == 0
    (written_file,) = (tmp_path / "out").glob("*.dcm")
    dataset = pydicom.dcmread(written_file)
    assert "base_fingerprint=" in dataset.to_json()
    assert "1.2.3.77" in dataset.to_json()
    write_volume(tmp_path / "scan.nii.gz", np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))
    assert main([*command, "--input", str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "out")]) == 2
    assert "no DICOM series" in capsys.readouterr().err


@pytest.mark.realdata
def test_a_real_mr_series_gets_its_segmentation_back(tmp_path, shared_data):
    folder = shared_data / "readers" / "dicom_mr_rtstruct" / "image"
    volume = read_volume(folder)
    labels = np.digitize(volume.array, np.quantile(volume.array, [0.9, 0.97])).astype(np.uint8)
    structures = [Structure("grey", 1), Structure("bright", 2)]
    path = write_dicom_seg(tmp_path / "o.dcm", labels, volume.grid, files_of(folder), structures, PROVENANCE)
    read = read_dicom_seg(path, volume.grid)
    assert all(np.array_equal(read.mask(s), labels == s.value) for s in structures)
    assert np.array_equal(of_highdicom(path, folder, 2), labels == 2)


@pytest.mark.realdata
def test_both_volumes_of_a_real_enhanced_file_get_their_segmentations_back(tmp_path, shared_data):
    """Philips: magnitude and field map in one file."""
    (path,) = (p for p in (shared_data / "readers" / "mr_enhanced" / "Philips").iterdir() if p.suffix == ".dcm")
    found = find_series([path])
    assert len(found) == 2
    for number, series in enumerate(found):
        array, grid, _ = read_planes(series.planes, "x")
        labels = (array > np.quantile(array, 0.9)).astype(np.uint8)
        seg = write_dicom_seg(tmp_path / f"{number}.dcm", labels, grid, series.planes, [Structure("bright", 1)], {})
        assert np.array_equal(read_dicom_seg(seg, grid).mask(Structure("bright", 1)), labels == 1)
        assert set(frames_referred_to(pydicom.dcmread(seg))) <= {frame + 1 for _, frame in series.planes}


@pytest.mark.realdata
def test_a_real_series_whose_identifiers_were_emptied_is_refused(tmp_path, shared_data):
    folder = shared_data / "readers" / "ct_totalsegmentator"
    labels = read_labels(folder / "example_seg_dicom.nii.gz")
    with pytest.raises(BadInput, match="has no StudyInstanceUID and no SeriesInstanceUID"):
        write_dicom_seg(tmp_path / "o.dcm", labels, labels.grid, files_of(folder / "dicom"), [Structure("a", 1)], {})
