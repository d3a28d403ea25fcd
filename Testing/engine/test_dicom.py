"""DICOM series: what is stacked, and what is refused with which numbers."""

from __future__ import annotations

import builtins
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from peftseg import dicom
from peftseg.errors import BadInput
from peftseg.volume import read_labels, read_volume

AXIAL = (1, 0, 0, 0, 1, 0)


def write_slice(folder: Path, position, **changes) -> Path:
    """One CT slice of 5 columns x 4 rows with its instance number, plus 1 a column, plus 10 a row."""
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir()))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.pop("sop_class", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"slice{number:03d}.dcm"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientName, data.InstanceNumber = "CT", "Doe^Jane", number + 1
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = "1.2.3", "1.2.3.4", 5
    data.SeriesDescription = "Abdomen"
    data.ImagePositionPatient, data.ImageOrientationPatient = [float(v) for v in position], list(AXIAL)
    data.PixelSpacing, data.SliceThickness = [0.9, 0.7], 2
    data.Rows, data.Columns = 4, 5
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    for name, value in changes.items():
        setattr(data, name, value)
    rows, columns = np.mgrid[: data.Rows, : data.Columns]
    pixels = number * 100 + rows * 10 + columns
    if data.SamplesPerPixel == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    data.PixelData = pixels.astype(f"int{data.BitsAllocated}").tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, depths, **changes) -> Path:
    for depth in depths:
        write_slice(folder, (-20, 30, depth), **changes)
    return folder


def write_structure_set(path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    data.save_as(path, enforce_file_format=True)


def test_slices_are_sorted_along_their_normal_and_placed(tmp_path):
    volume = read_volume(write_series(tmp_path / "series", [14, 10, 12, 16]))
    assert volume.name == "series"
    assert volume.array.dtype == np.float32
    assert volume.grid.shape == (5, 4, 4)
    assert np.allclose(volume.grid.affine, [[-0.7, 0, 0, 20], [0, -0.9, 0, -30], [0, 0, 2, 10], [0, 0, 0, 1]])
    assert [int(v) for v in volume.array[0, 0]] == [100, 200, 0, 300]
    assert volume.array[3, 2, 0] == 100 + 3 + 20


def test_oblique_slices_are_placed(tmp_path):
    row, column = np.array([0.6, 0.8, 0]), np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    for n in range(3):
        write_slice(tmp_path / "s", normal * 3 * n, ImageOrientationPatient=[*row, *column])
    lps = np.diag([-1, -1, 1]) @ read_volume(tmp_path / "s").grid.affine[:3, :3]
    assert np.allclose(lps, np.column_stack([row * 0.7, column * 0.9, normal * 3]))


def test_each_slice_has_its_own_rescale_slope(tmp_path):
    write_slice(tmp_path / "s", (0, 0, 0))
    write_slice(tmp_path / "s", (0, 0, 2), RescaleSlope=0.25, RescaleIntercept=-7)
    array = read_volume(tmp_path / "s").array
    assert array[1, 2, 0] == 21
    assert array[1, 2, 1] == 0.25 * 121 - 7


def test_positions_rounded_by_the_scanner_are_accepted(tmp_path):
    volume = read_volume(write_series(tmp_path / "s", np.round(np.arange(20) * 1.25, 1)))
    assert np.isclose(volume.grid.spacing[2], 1.25, atol=0.003)


def test_files_that_hold_no_image_are_left_out(tmp_path):
    write_series(tmp_path / "s", [0, 2, 4])
    (tmp_path / "s" / "LICENSE").write_text("text")
    (tmp_path / "s" / ".DS_Store").write_text("")
    write_structure_set(tmp_path / "s" / "rs.dcm")
    write_slice(tmp_path / "s", (0, 0, 0), Modality="SEG", SeriesInstanceUID="1.9")
    assert read_volume(tmp_path / "s").grid.shape == (5, 4, 3)


REFUSED = {
    "a missing slice": ([0, 2, 6, 8], {}, r"missing slices: 1 \(step 2 mm; first gap 4 mm after slice 2 of 4\)"),
    "three missing slices": ([0, 2, 6, 8, 14, 16], {}, "missing slices: 3 "),
    "an uneven step": ([0, 2, 4.3, 6.3, 8.3], {}, "uneven, from 2 to 2.3 mm"),
    "a slice twice": ([0, 2, 2, 4], {}, "up to 2 of its 4 slices lie at the same place"),
    "two time points": ([0, 2, 4, 0, 2, 4], {}, "several volumes"),
    "one slice": ([0], {}, "one DICOM slice"),
    "colour": (
        [0, 2],
        {
            "SamplesPerPixel": 3,
            "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0,
            "BitsAllocated": 8,
            "BitsStored": 8,
            "HighBit": 7,
            "PixelRepresentation": 0,
        },
        "colour",
    ),
}


@pytest.mark.parametrize("with_uid", [True, False])
def test_exact_copies_of_files_are_left_out_and_counted_without_a_name(tmp_path, with_uid):
    folder = write_series(tmp_path / "Doe Jane", [0, 2, 4])
    for number, path in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(path)
        if not with_uid:
            del data.SOPInstanceUID
        data.save_as(folder / f"Doe{number}.dcm")
    volume = read_volume(folder)
    assert volume.grid.shape == (5, 4, 3)
    assert [int(v) for v in volume.array[0, 0]] == [0, 100, 200]
    assert volume.notes == ("3 files are exact copies of others (same place, same voxels) and were left out.",)
    write_multiframe(folder / "one.dcm", [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    enhanced = tmp_path / "enhanced"
    enhanced.mkdir()
    for name in ("a", "b"):
        (enhanced / f"{name}.dcm").write_bytes((folder / "one.dcm").read_bytes())
    again = read_volume(enhanced)
    assert (again.grid.shape, len(again.notes)) == ((5, 4, 3), 1)


@pytest.mark.parametrize("case", REFUSED)
def test_a_series_that_is_no_regular_volume_is_refused_with_numbers(tmp_path, case):
    depths, changes, message = REFUSED[case]
    with pytest.raises(BadInput, match=message) as caught:
        read_volume(write_series(tmp_path / "s", depths, **changes))
    assert caught.value.remedy
    assert "Doe" not in str(caught.value)


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    for n in range(6):
        write_slice(tmp_path / "s", (0, n * 2 * np.tan(np.radians(10)), n * 2))
    with pytest.raises(BadInput, match=r"tilted by 10\.0 degrees") as caught:
        read_volume(tmp_path / "s")
    assert "Slicer" in caught.value.remedy


def test_several_series_are_listed(tmp_path):
    write_series(tmp_path / "s", [0, 2, 4])
    write_series(tmp_path / "s", [0, 2], SeriesInstanceUID="1.2.9", SeriesNumber=8, SeriesDescription="Lung")
    with pytest.raises(
        BadInput, match=r"2 DICOM series: number 5 'Abdomen' \(3 slices\); number 8 'Lung' \(2 slices\)"
    ):
        read_volume(tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Rows": 6}, "sizes: 3 slices of 5 x 4 pixels; 1 slices of 5 x 6 pixels"),
        ({"PixelSpacing": [0.9, 0.8]}, "pixel sizes"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "2 different orientations"),
    ],
)
def test_mixed_slices_are_refused(tmp_path, changes, message):
    write_series(tmp_path / "s", [0, 2, 4])
    write_slice(tmp_path / "s", (-20, 30, 6), **changes)
    with pytest.raises(BadInput, match=message):
        read_volume(tmp_path / "s")


@pytest.mark.parametrize("part", [0, 0.4, 0.95])
def test_a_slice_that_is_empty_or_cut_off_is_named(tmp_path, part):
    write_series(tmp_path / "s", [0, 2, 4])
    path = tmp_path / "s" / "slice002.dcm"  # the last slice: no gap would tell
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(BadInput, match=r"slice002\.dcm \(file 3 of 3\) cannot be read"):
        read_volume(tmp_path / "s")


def test_slices_without_position_and_folders_without_dicom_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no DICOM image"):
        read_volume(tmp_path / "empty")
    path = write_slice(tmp_path / "s", (0, 0, 0))
    with pytest.raises(BadInput, match="one DICOM slice"):
        read_volume(path)
    data = pydicom.dcmread(path)
    del data.ImagePositionPatient
    data.save_as(path)
    with pytest.raises(BadInput, match="no position"):
        read_volume(tmp_path / "s")
    with pytest.raises(BadInput, match="is a folder"):
        read_labels(tmp_path / "s")


def write_multiframe(path: Path, positions, slopes=None) -> Path:
    """An enhanced CT whose frames have the given positions."""
    single = write_slice(path.parent, (0, 0, 0))
    data = pydicom.dcmread(single)
    single.unlink()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    data.NumberOfFrames = len(positions)
    data.PixelData = b"".join(np.full((4, 5), n, np.int16).tobytes() for n in range(len(positions)))
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.9, 0.7], 2
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for n, position in enumerate(positions):
        frame, plane, scale = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [float(v) for v in position]
        scale.RescaleSlope, scale.RescaleIntercept = (slopes or [1] * len(positions))[n], 0
        scale.RescaleType = "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [plane], [scale]
        data.PerFrameFunctionalGroupsSequence.append(frame)
    data.save_as(path, enforce_file_format=True)
    return path


def test_frames_of_an_enhanced_file_are_sorted_by_their_positions(tmp_path):
    path = write_multiframe(tmp_path / "m.dcm", [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    for given in (path, tmp_path):
        volume = read_volume(given)
        assert np.allclose(volume.grid.affine, np.diag([-0.7, -0.9, 2, 1]))
        assert [int(v) for v in volume.array[0, 0]] == [1, 2, 0]


def test_an_enhanced_file_with_two_volumes_is_refused(tmp_path):
    with pytest.raises(BadInput, match="up to 2 of its 4 slices"):
        read_volume(write_multiframe(tmp_path / "m.dcm", [(0, 0, 0), (0, 0, 2)] * 2))


def test_without_pydicom_single_frames_are_read_and_multi_frames_named(tmp_path, monkeypatch):
    write_series(tmp_path / "s", [0, 2, 4])
    path = write_multiframe(tmp_path / "m.dcm", [(0, 0, 0), (0, 0, 2)])
    real = builtins.__import__

    def blocked(name, *args):
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", blocked)
    assert read_volume(tmp_path / "s").grid.shape == (5, 4, 3)
    with pytest.raises(BadInput, match="pydicom"):
        read_volume(path)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "sign_z"), [("dicom_orientation_phantom", -1), ("nifti_orientation_phantom/image/orientation.nii.gz", 1)]
)
def test_the_orientation_phantom_has_each_voxel_at_its_place(shared_data, name, sign_z):
    """Its intensity is the sum of |x|, |y|, |z| over 2 mm; the DICOM slices are stored at z from -126 to 0 mm, the
    NIfTI slices from 0 to 126 mm (pydicom and nibabel say so too), so both agree voxel by voxel but for that mirror."""
    volume = read_volume(shared_data / "readers" / name)
    index = np.stack([*np.indices(volume.grid.shape), np.ones(volume.grid.shape)], axis=-1)
    x, y, z = np.moveaxis(index @ volume.grid.affine.T, -1, 0)[:3]
    assert volume.grid.axcodes == "LPS"
    assert np.allclose(volume.array, (-x - y + sign_z * z) / 2)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["dicom_pet_rtstruct/image", "dicom_mr_rtstruct/image", "ct_totalsegmentator/dicom"])
def test_real_series_have_the_values_that_pydicom_reads(shared_data, name):
    folder = shared_data / "readers" / name
    volume = read_volume(folder)
    files = [pydicom.dcmread(p, stop_before_pixels="ct_" in name) for p in folder.iterdir()]
    files.sort(key=lambda f: float(f.ImagePositionPatient[2]))
    assert volume.grid.shape == (files[0].Columns, files[0].Rows, len(files))
    assert np.allclose(volume.grid.affine[:3, 3], np.array(files[0].ImagePositionPatient, float) * [-1, -1, 1])
    if "ct_" in name:  # JPEG2000: pydicom needs a plug-in for its pixels
        assert volume.array.min() == -1024
        assert 500 < volume.array.max() < 4000
        return
    for k in (0, len(files) // 2, len(files) - 1):
        data = files[k]
        expected = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        assert np.allclose(volume.array[:, :, k].T, expected, rtol=1e-5)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ct_gantry_tilt_ge", r"tilted by 18\.5 degrees.*from 1\.081 to 6\.999 mm"),
        ("dicom_mr_rtstruct/mask", "no DICOM image"),
        ("mr_enhanced/Siemens/XA10", "up to 4 of its 24 slices"),
        ("mr_enhanced/Philips/IM_0027_fMAP.dcm", "up to 2 of its 64 slices"),
    ],
)
def test_real_series_that_are_no_regular_volume_are_refused(shared_data, name, message):
    with pytest.raises(BadInput, match=message):
        read_volume(shared_data / "readers" / name)


@pytest.mark.realdata
def test_a_real_enhanced_file_is_read(shared_data):
    path = shared_data / "readers" / "mr_enhanced" / "Siemens" / "XA10" / "6_1.dcm"
    volume = read_volume(path)
    assert np.array_equal(volume.array.transpose(2, 1, 0), pydicom.dcmread(path).pixel_array)
    assert np.allclose(volume.grid.spacing, (3.375, 3.375, 2.4), atol=1e-4)
    assert dicom.is_dicom(path)
    assert nib.aff2axcodes(volume.grid.affine) == ("L", "P", "S")
