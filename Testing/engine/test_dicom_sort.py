"""Mixed DICOM folders and archives: what is found, split, chosen, resampled, and never told."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from peftseg import archives, dicom_sort
from peftseg.archives import Limits, unpack
from peftseg.cli import main
from peftseg.dicom import read_planes, read_series
from peftseg.dicom_inputs import dicom_inputs
from peftseg.dicom_rules import DEFAULT_RULES, Rule, Rules, choose, load_rules, rules_text
from peftseg.dicom_sort import find_series
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.volume import read_volume
from test_dicom import write_multiframe, write_series, write_slice, write_structure_set

PATIENT = "Doe^Jane"
SERIES = "1.2.3.4"


def new(folder: Path, depths, series: str, **changes) -> Path:
    """A series with a UID of its own."""
    return write_series(folder, depths, SeriesInstanceUID=series, **changes)


def mixed_folder(root: Path) -> Path:
    """A folder as a disc gives it: two usable series in one folder, a nested one, and what nobody wants."""
    disc = root / "Doe_Jane"
    disc.mkdir(parents=True)
    here = disc / "IMG"
    new(here, range(0, 12, 2), "1.1", SeriesDescription="Abdomen Doe Jane venous", ContrastBolusAgent="yes")
    new(here, range(0, 12, 2), "1.2", SeriesNumber=6, SeriesDescription="Lung", ConvolutionKernel="B70f")
    new(here, range(0, 12, 2), "1.3", SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    new(here, range(0, 12, 2), "1.4", SeriesNumber=9, ImageType=["DERIVED", "SECONDARY", "MPR"])
    new(here, range(0, 12, 2), "1.5", SeriesNumber=10, sop_class="1.2.840.10008.5.1.4.1.1.7")
    new(here, [0, 2], "1.6", SeriesNumber=11)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8}
    new(here, [0, 2], "1.7", SeriesNumber=12, **colour, BitsStored=8, HighBit=7, PixelRepresentation=0)
    new(disc / "nested", range(0, 10, 2), "1.8", SeriesNumber=13, Modality="MR", StudyInstanceUID="1.9.9")
    write_structure_set(disc / "rs.dcm")
    (disc / "viewer.exe").write_bytes(b"MZ" + bytes(1000))
    (disc / "empty.dcm").touch()
    return disc


def by_number(series) -> dict:
    return {item.number: item for item in series}


def test_a_mixed_nested_folder_is_sorted_and_each_series_left_out_has_its_reason(tmp_path):
    series = find_series([mixed_folder(tmp_path)])
    chosen, left_out = choose(series)
    assert [(s.number, s.modality, s.slices, s.orientation) for s in sorted(chosen, key=lambda s: int(s.number))] == [
        ("5", "CT", 6, "axial"),
        ("6", "CT", 6, "axial"),
        ("13", "MR", 5, "axial"),
    ]
    reasons = {item.series.number or item.series.modality or "unreadable": item.reason for item in left_out}
    assert reasons == {
        "1": "a localiser or scout",
        "9": "made from other images (projection, reformat, subtraction, rendering)",
        "10": "a screenshot (secondary capture)",
        "11": "fewer than 5 slices",
        "12": "a colour image, not grey values",
        "RTSTRUCT": "a structure set, no image (RTSTRUCT)",
        "unreadable": "1 DICOM files cannot be read: empty, damaged or something else",
    }
    abdomen = by_number(chosen)["5"]
    assert (abdomen.contrast, abdomen.step, abdomen.spacing, abdomen.columns, abdomen.rows) == (
        True,
        2,
        (0.7, 0.9),
        5,
        4,
    )
    assert by_number(chosen)["6"].kernel == "B70f"
    assert len({s.key for s in series}) == len(series)
    assert by_number(chosen)["13"].study != abdomen.study == by_number(chosen)["6"].study
    array, grid, notes = read_planes(abdomen.planes, "x")
    assert grid.shape == (5, 4, 6)
    assert [int(v) for v in array[0, 0]] == [0, 100, 200, 300, 400, 500]
    assert not notes


def test_keys_do_not_depend_on_where_or_in_which_order_the_files_lie(tmp_path):
    first = find_series([mixed_folder(tmp_path / "a")])
    again = find_series([mixed_folder(tmp_path / "b")])
    assert [s.key for s in first] == [s.key for s in again]
    assert all(len(s.key) == 12 and set(s.key) <= set("0123456789abcdef") for s in first)


def test_two_series_of_the_same_name_and_number_are_two(tmp_path):
    new(tmp_path / "s", range(0, 10, 2), "1.1")
    new(tmp_path / "s", range(0, 10, 2), "1.2")
    chosen, _ = choose(find_series([tmp_path]))
    assert [(s.number, s.description, s.slices) for s in chosen] == [("5", "Abdomen", 5)] * 2
    assert chosen[0].key != chosen[1].key


def test_a_file_that_is_there_twice_is_taken_once_and_told(tmp_path):
    new(tmp_path / "s", range(0, 10, 2), "1.1")
    for path in sorted((tmp_path / "s").iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (series,) = find_series([tmp_path])
    assert series.slices == 5
    assert series.notes == ("5 files are exact copies of others (same place, same voxels) and were left out",)


@pytest.mark.parametrize("uid", ["removed", "the same in all", "new ones"])
def test_copies_are_told_by_their_voxels_where_instance_uids_do_not_tell(tmp_path, uid):
    folder = new(tmp_path / "s", range(0, 10, 2), "1.1")
    for number, path in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(path)
        data.SOPInstanceUID = {"removed": "", "the same in all": "1.9", "new ones": f"1.9.{number}"}[uid]
        data.save_as(path)
        data.SOPInstanceUID = f"1.8.{number}" if uid == "new ones" else data.SOPInstanceUID
        data.PatientComments = "saved again"
        data.save_as(folder / f"again{number}.dcm")
    (series,) = find_series([folder])
    assert (series.slices, series.unusable) == (5, "")
    assert series.notes == ("5 files are exact copies of others (same place, same voxels) and were left out",)
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(folder / "other.dcm")  # other voxels at the same place
    assert "up to 2 of its 6 slices lie at the same place" in find_series([folder])[0].unusable


def test_equal_slices_of_two_echoes_are_no_copies(tmp_path):
    """Empty slices at the end of a scan are the same in each."""
    for echo in (2, 4):
        folder = write_series(tmp_path / "s", range(0, 10, 2), EchoTime=echo)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = bytes(len(data.PixelData))
        data.save_as(path)
    assert [(s.slices, s.notes) for s in find_series([folder])] == [(5, ()), (5, ())]


@pytest.mark.parametrize(
    ("fact", "values", "parts"),
    [
        ("EchoTime", (4.92, 2.46), ["echo time 2.46 ms", "echo time 4.92 ms"]),
        ("DiffusionBValue", (0, 1000.0), ["b-value 0", "b-value 1000"]),
        ("TemporalPositionIdentifier", (1, 2), ["time point 1", "time point 2"]),
        ("AcquisitionNumber", (1, 2), ["acquisition 1", "acquisition 2"]),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), None),
    ],
)
def test_volumes_at_the_same_places_are_split_by_what_tells_them_apart(tmp_path, fact, values, parts):
    for value in values:
        write_series(tmp_path / "s", range(0, 10, 2), **{fact: value})
    series = find_series([tmp_path])
    parts = parts or ["image type ORIGINAL\\PRIMARY\\M", "image type ORIGINAL\\PRIMARY\\P"]
    assert sorted(s.part for s in series) == parts
    assert len({s.key for s in series}) == 2
    assert not any(s.unusable or s.problems for s in series)
    firsts = {int(read_planes(s.planes, "x")[0][0, 0, 0]) for s in series}
    assert firsts == {0, 500}


def test_echoes_and_time_points_are_split_together(tmp_path):
    for echo in (2, 4):
        for time in (1, 2, 3):
            write_series(tmp_path / "s", [0, 2, 4, 6, 8], EchoTime=echo, TemporalPositionIdentifier=time)
    series = find_series([tmp_path])
    assert [s.slices for s in series] == [5] * 6
    assert "echo time 4 ms, time point 3" in {s.part for s in series}


def test_volumes_that_nothing_tells_apart_are_refused_by_name(tmp_path):
    for _ in range(2):
        write_series(tmp_path / "s", range(0, 10, 2))
    (series,) = find_series([tmp_path])
    chosen, left_out = choose([series])
    assert not chosen
    assert "nothing in the headers tells apart: up to 2 of its 10 slices" in left_out[0].reason


def test_a_number_that_changes_from_slice_to_slice_splits_nothing(tmp_path):
    for n, depth in enumerate([0, 2, 4, 6, 8] * 2):
        write_slice(tmp_path / "s", (0, 0, depth), TriggerTime=n * 7)
    (series,) = find_series([tmp_path])
    assert series.unusable


def test_a_scout_inside_of_a_series_is_told_apart_and_the_series_is_kept(tmp_path):
    sagittal = [0, 1, 0, 0, 0, -1]
    write_slice(
        tmp_path / "s",
        (0, 0, 0),
        ImageOrientationPatient=sagittal,
        Rows=8,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    for depth in range(0, 24, 2):
        write_slice(tmp_path / "s", (0, 0, depth), ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    chosen, left_out = choose(find_series([tmp_path]))
    assert [(s.slices, s.orientation) for s in chosen] == [(12, "axial")]
    assert [(item.series.slices, item.series.orientation) for item in left_out] == [(1, "sagittal")]


@pytest.mark.parametrize(
    ("changes", "orientations"),
    [
        ({"SeriesDescription": "Localizer"}, [(1, 0, 0, 0, 1, 0)]),
        ({"ProtocolName": "3-plane_loc", "SeriesDescription": ""}, [(1, 0, 0, 0, 1, 0)]),
        ({}, [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]),
    ],
)
def test_localisers_are_known_by_name_or_by_three_planes(tmp_path, changes, orientations):
    for axes in orientations:
        normal = np.cross(axes[:3], axes[3:])
        for n in range(6):
            write_slice(tmp_path / "s", normal * n * 5, ImageOrientationPatient=list(axes), **changes)
    chosen, left_out = choose(find_series([tmp_path]))
    assert not chosen
    assert {item.reason for item in left_out} == {"a localiser or scout"}


def test_a_word_that_contains_loc_makes_no_localiser(tmp_path):
    write_series(tmp_path / "s", range(0, 10, 2), SeriesDescription="glocke BLOCK")
    assert not find_series([tmp_path])[0].localiser


def test_a_slice_that_is_cut_off_makes_its_series_unusable_not_shorter(tmp_path):
    write_series(tmp_path / "s", range(0, 12, 2))
    path = tmp_path / "s" / "slice005.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    (series,) = find_series([tmp_path])
    assert series.unusable == "1 of its 6 files are cut off: shorter than the image in them"


@pytest.mark.parametrize("share", [0.98, 0.6])
@pytest.mark.parametrize("compressor", ["RLE", "JPEG2000"])
def test_a_compressed_slice_that_is_cut_off_is_found_without_reading_voxels(tmp_path, compressor, share):
    folder = write_compressed(tmp_path / "s", compressor)
    (whole,) = find_series([tmp_path])
    assert whole.unusable == ""
    path = folder / "slice003.dcm"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    (series,) = find_series([tmp_path])
    assert series.unusable == "1 of its 6 files are cut off: shorter than the image in them"
    with pytest.raises(BadInput, match=r"slice003.dcm \(file 4 of 6\) cannot be read as a DICOM image .* cut off"):
        read_series(folder)


def write_compressed(folder: Path, compressor: str) -> Path:
    """Six slices of noise, written by pydicom (RLE) or GDCM."""
    write_series(folder, range(0, 12, 2), Rows=32, Columns=32)
    for path in sorted(folder.iterdir()):
        data = pydicom.dcmread(path)
        data.PixelData = np.random.default_rng(0).integers(0, 1000, (32, 32)).astype(np.int16).tobytes()
        if compressor == "RLE":
            data.compress(pydicom.uid.RLELossless)
        data.save_as(path)
        if compressor != "RLE":
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.KeepOriginalImageUIDOn()
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            writer.SetFileName(str(path))
            writer.Execute(sitk.ReadImage(str(path)))
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    return folder


def test_a_header_that_cannot_be_read_is_told_of_the_series_beside_it(tmp_path):
    write_series(tmp_path / "s", range(0, 12, 2))
    path = tmp_path / "s" / "slice005.dcm"
    path.write_bytes(path.read_bytes()[:200])
    source = dicom_inputs([tmp_path], DEFAULT_RULES, tmp_path).series[0]
    assert "slices may lack at an end" in " ".join(source.read().notes)


def test_patients_names_are_in_no_text_that_comes_out(tmp_path, capsys):
    disc = mixed_folder(tmp_path)
    path = disc / "IMG" / "slice003.dcm"
    path.rename(path.with_name("DOE_JANE_7.dcm"))
    broken = disc / "IMG" / "slice002.dcm"
    broken.write_bytes(broken.read_bytes()[:-10])
    series = find_series([disc])
    chosen, left_out = choose(series)
    text = json.dumps([s.facts() for s in series], default=str) + " ".join(item.reason for item in left_out)
    assert main(["dicom", "list", str(disc)]) == 0
    assert main(["dicom", "list", "--json", str(disc)]) == 0
    assert main(["dicom", "sort", str(disc), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr()
    names = " ".join(str(p.relative_to(tmp_path)) for p in (tmp_path / "out").rglob("*"))
    text += out.out + out.err + names + (tmp_path / "out" / "series.json").read_text()
    assert "Abdomen *** *** venous" in text
    assert "doe" not in text.lower()
    assert "jane" not in text.lower()
    mri = by_number(chosen)["13"]
    mri.planes[1][0].write_bytes(b"")
    with pytest.raises(BadInput, match=r"x: file 2 of 5 cannot be read") as caught:
        read_planes(mri.planes, "x")
    assert "slice" not in caught.value.message


# Resampling


def test_a_missing_slice_is_refused_by_default_and_interpolated_on_request(tmp_path):
    write_series(tmp_path / "s", [0, 2, 6, 8, 10])
    (series,) = find_series([tmp_path])
    assert "missing slices: 1 " in series.problems[0]
    chosen, left_out = choose([series])
    assert not chosen
    assert "missing slices: 1" in left_out[0].reason
    rules = Rules(DEFAULT_RULES.rules, regularise=True)
    volume = dicom_inputs([tmp_path], rules, tmp_path).series[0].read()
    assert volume.grid.shape == (5, 4, 6)
    assert np.allclose(volume.grid.affine, [[-0.7, 0, 0, 20], [0, -0.9, 0, -30], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert np.allclose(volume.array[0, 0], [0, 100, 150, 200, 300, 400])
    assert "resampled to a regular grid: missing slices: 1" in volume.notes[0]
    assert "now: 5 x 4 pixels, 6 slices at 2 mm" in volume.notes[0]


def test_uneven_steps_are_resampled_where_a_linear_picture_stays_itself(tmp_path):
    depths = [0, 1, 3, 5, 7, 7.5, 9]
    for depth in depths:
        path = write_slice(tmp_path / "s", (0, 0, depth), RescaleIntercept=depth * 10)
        data = pydicom.dcmread(path)
        data.PixelData = bytes(len(data.PixelData))
        data.save_as(path)
    array, grid, _ = read_series(tmp_path / "s", regularise=True)
    k = np.arange(grid.shape[2])
    z = grid.affine[2, 3] + grid.affine[2, 2] * k
    assert z[0] == 0
    assert np.isclose(z[-1], 9)
    assert np.allclose(array, np.broadcast_to(z * 10, array.shape), atol=1e-4)


@pytest.mark.parametrize("degrees", [10, -18])
def test_gantry_tilt_is_sheared_away_and_everything_lies_where_it_was(tmp_path, degrees):
    """The grey value of each voxel is its place in the patient, so that a wrong sign or offset shows."""
    slope = np.tan(np.radians(degrees))
    rows, columns, counts = 12, 5, 8
    for n in range(counts):
        y = -30 + n * 2 * slope
        path = write_slice(tmp_path / "s", (-20, y, n * 2), Rows=rows, Columns=columns)
        data = pydicom.dcmread(path)
        j = np.mgrid[:rows, :columns][0]
        data.PixelData = (100 * (y + 0.9 * j) + 1000 * n).round().astype(np.int16).tobytes()
        data.save_as(path)
    with pytest.raises(BadInput, match="tilted"):
        read_series(tmp_path / "s")
    array, grid, _ = read_series(tmp_path / "s", regularise=True)
    assert grid.shape[0] == columns
    assert grid.shape[2] == counts
    assert rows < grid.shape[1] <= rows + 2 + abs(slope) * 14 / 0.9
    _, j, k = np.indices(grid.shape)
    y = -(grid.affine[1, 3] + grid.affine[1, 1] * j)
    assert np.allclose(grid.affine[:3, 2], [0, 0, 2])
    inside = (y >= -30 + k * 2 * slope + 1e-6) & (y <= -30 + k * 2 * slope + 0.9 * (rows - 1) - 1e-6)
    assert inside.sum() >= columns * (rows - 2) * counts
    assert np.allclose(array[inside], (100 * y + 1000 * k)[inside], atol=1.5)
    assert (
        array[~inside & ((y < -30 + k * 2 * slope - 0.9) | (y > -30 + k * 2 * slope + 0.9 * rows))] == array.min()
    ).all()


def test_a_gap_too_wide_is_refused_also_on_request(tmp_path):
    write_series(tmp_path / "s", [0, 2, 4, 6, 16, 18, 20])
    with pytest.raises(BadInput, match=r"a gap of 10 mm .* too wide"):
        read_series(tmp_path / "s", regularise=True)


def test_a_regular_series_stays_bit_for_bit_when_resampling_is_allowed(tmp_path):
    write_series(tmp_path / "s", [0, 2, 4, 6])
    plain, grid, _ = read_series(tmp_path / "s")
    again, same, _ = read_series(tmp_path / "s", regularise=True)
    assert np.array_equal(plain, again)
    assert np.array_equal(grid.affine, same.affine)


# Enhanced multi-frame


def add_frame_facts(path: Path, facts) -> Path:
    """Give each frame stack and time point: (stack, time) a frame."""
    data = pydicom.dcmread(path)
    for frame, (stack, time) in zip(data.PerFrameFunctionalGroupsSequence, facts, strict=True):
        content = Dataset()
        content.StackID, content.TemporalPositionIndex = stack, time
        frame.FrameContentSequence = [content]
    data.save_as(path)
    return path


def test_an_enhanced_file_with_stacks_and_time_points_gives_its_volumes(tmp_path):
    places = [(0, 0, z) for z in (0, 2, 4, 6, 8)]
    far = [(0, 0, z) for z in (100, 102, 104, 106, 108)]
    path = write_multiframe(tmp_path / "m.dcm", places + places + far)
    add_frame_facts(path, [("1", 1)] * 5 + [("1", 2)] * 5 + [("2", 1)] * 5)
    chosen, _ = choose(find_series([tmp_path]))
    assert [s.part for s in sorted(chosen, key=lambda s: s.part)] == [
        "stack 1, time point 1",
        "stack 1, time point 2",
        "stack 2",
    ]
    first = {s.part: read_planes(s.planes, "x") for s in chosen}
    assert int(first["stack 1, time point 2"][0][0, 0, 0]) == 5
    assert first["stack 2"][1].affine[2, 3] == 100
    assert all(len(s.files) == 1 for s in chosen)


def test_frames_with_different_scales_are_read_with_their_own(tmp_path):
    path = write_multiframe(tmp_path / "m.dcm", [(0, 0, 0), (0, 0, 2), (0, 0, 4)], [1, 2, 0.5])
    assert [float(v) for v in read_volume(path).array[0, 0]] == [0, 2, 1]


def test_an_enhanced_file_a_slice_is_a_series(tmp_path):
    folder = tmp_path / "s"
    for z in (0, 2, 4, 6, 8):
        write_multiframe(folder / f"{z}.dcm", [(0, 0, z)])
    (series,) = find_series([tmp_path])
    assert (series.slices, series.unusable, series.step) == (5, "", 2)
    assert read_series(tmp_path / "s")[1].shape == (5, 4, 5)


@pytest.mark.realdata
def test_real_enhanced_and_tilted_series_are_split_and_resampled(shared_data):
    readers = shared_data / "readers"
    siemens = find_series([readers / "mr_enhanced" / "Siemens"])
    assert [(s.slices, s.part) for s in siemens] == [(6, f"time point {n}") for n in (1, 2, 3, 4)]
    philips = find_series([readers / "mr_enhanced" / "Philips"])
    assert [s.slices for s in philips] == [32, 32]
    chosen, left_out = choose(philips)
    assert [s.part.rpartition("\\")[2] for s in chosen] == ["M"]
    assert [item.reason for item in left_out] == ["a phase image or a map, not anatomy"]
    for series in (*siemens, *philips):
        assert not series.unusable
        array, grid, _ = read_planes(series.planes, "x")
        assert np.isfinite(array).all()
        assert grid.shape[2] == series.slices
    (tilted,) = [s for s in find_series([readers / "ct_gantry_tilt_ge"]) if s.slices > 5]
    assert "tilted by 18.5 degrees" in " ".join(tilted.problems)
    array, grid, notes = read_planes(tilted.planes, "x", regularise=True)
    assert grid.shape[1] > tilted.rows
    assert np.isclose(abs(np.linalg.det(grid.directions)), 1)
    assert "18.5 degrees" in notes[0]


# Archives


def as_zip(files, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in files:
            archive.write(file, name)
    return path


def as_tar(files, path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, file in files:
            archive.add(file, name)
    return path


def numbered(folder: Path) -> list[tuple[str, Path]]:
    return [(f"Doe_Jane/{n}.bin", file) for n, file in enumerate(sorted(folder.iterdir()))]


def test_a_zip_in_a_tar_in_a_folder_is_sorted_as_the_files_themselves(tmp_path):
    files = numbered(write_series(tmp_path / "s", range(0, 12, 2)))
    inner = as_zip(files[:3], tmp_path / "inner.zip")
    (tmp_path / "in").mkdir()
    as_tar([("a.zip", inner), *files[3:], ("readme.txt", Path(__file__))], tmp_path / "in" / "outer.tar.gz")
    (tmp_path / "scratch").mkdir()
    (series,) = find_series([tmp_path / "in"], scratch=tmp_path / "scratch")
    (loose,) = find_series([tmp_path / "s"])
    assert (series.key, series.slices, series.problems) == (loose.key, 6, ())
    assert np.array_equal(read_planes(series.planes, "x")[0], read_planes(loose.planes, "x")[0])
    assert len([p for p in (tmp_path / "scratch").rglob("*") if p.is_file()]) == 6
    (unusable,) = find_series([tmp_path / "in"])
    assert "no folder to unpack" in unusable.unusable


@pytest.mark.parametrize("name", ["a.tar", "a.tar.bz2", "a.tar.xz", "a.tgz"])
def test_tar_files_of_all_kinds_are_unpacked(tmp_path, name):
    files = numbered(write_series(tmp_path / "s", range(0, 10, 2)))
    modes = {"a.tar": "w", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz", "a.tgz": "w:gz"}
    path = as_tar(files, tmp_path / name, modes[name])
    (tmp_path / "out").mkdir()
    assert [p.name for p in unpack(path, tmp_path / "out")] == [f"{n:07d}.dcm" for n in range(5)]


def test_names_that_lead_out_and_links_write_nothing_outside(tmp_path):
    files = [file for _, file in numbered(write_series(tmp_path / "s", [0, 2]))]
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    zipped = as_zip([("../../evil.dcm", files[0]), ("/abs/evil.dcm", files[1])], tmp_path / "a.zip")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(files[0], "../evil.dcm")
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, str(files[0]))):
            link = tarfile.TarInfo("link.dcm")
            link.type, link.linkname = kind, target
            archive.addfile(link)
    before = {p for p in tmp_path.rglob("*") if out not in p.parents}
    assert len(unpack(zipped, out)) == 2
    (out / "2").mkdir()
    assert len(unpack(tmp_path / "a.tar", out / "2")) == 1
    assert {p for p in tmp_path.rglob("*") if out not in p.parents} == before
    assert not any(p.is_symlink() for p in out.rglob("*"))


def bomb(path: Path, size: int) -> Path:
    """A zip with a DICOM file of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(128) + b"DICM" + bytes(size))
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, nested):
    path = bomb(tmp_path / "bomb.zip", 50_000_000)
    if nested:
        path = as_tar([("b.zip", path)], tmp_path / "b.tar.gz")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="too much for its size"):
        unpack(path, tmp_path / "out", Limits(free_bytes=1 << 20, ratio=20))
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()) < 4_000_000


def test_a_compressed_stream_of_other_files_counts_too(tmp_path):
    junk = tmp_path / "junk"
    junk.write_bytes(bytes(50_000_000))
    path = as_tar([("junk", junk)], tmp_path / "a.tar.gz")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="too much for its size"):
        unpack(path, tmp_path / "out", Limits(free_bytes=1 << 20, ratio=20))


def test_archives_too_deep_damaged_encrypted_or_too_many_files_are_refused(tmp_path):
    files = numbered(write_series(tmp_path / "s", [0, 2, 4]))
    path = as_zip(files, tmp_path / "0.zip")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BadInput, match="more than 2 DICOM files"):
        unpack(path, out, Limits(files=2))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(path.read_bytes()[:-30])
    cut = as_tar(files, tmp_path / "cut.tar.gz")
    cut.write_bytes(cut.read_bytes()[:-200])
    for broken in (damaged, cut):
        with pytest.raises(BadInput, match="damaged or cut off"):
            unpack(broken, out)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(mark) + offset] |= 1
    locked = tmp_path / "locked.zip"
    locked.write_bytes(data)
    with pytest.raises(BadInput, match="encrypted"):
        unpack(locked, out)
    for n in range(8):
        path = as_zip([("x.zip", path)], tmp_path / f"{n + 1}.zip")
    with pytest.raises(BadInput, match="more than 6 deep"):
        unpack(path, out)


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    path = as_zip(numbered(write_series(tmp_path / "s", [0, 2, 4])), tmp_path / "a.zip")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": (1 << 30) + 100}))
    with pytest.raises(BadInput, match="does not fit on the disk"):
        unpack(path, tmp_path / "s")


def test_one_broken_archive_does_not_stop_the_others_and_is_not_named(tmp_path):
    write_series(tmp_path / "s", range(0, 10, 2))
    (tmp_path / "Doe_Jane.zip").write_bytes(b"PK\3\4" + bytes(600))
    (tmp_path / "not-an-archive.zip").write_bytes(b"text")
    (tmp_path / "scratch").mkdir()
    inputs = dicom_inputs([tmp_path / "s", tmp_path / "Doe_Jane.zip"], DEFAULT_RULES, tmp_path / "scratch")
    assert len(inputs.series) == 1
    assert "damaged" in inputs.left_out[0].reason
    assert "Doe" not in inputs.left_out[0].reason
    assert not archives.is_archive(tmp_path / "not-an-archive.zip")


def test_cancelling_stops_the_reading_of_headers(tmp_path):
    write_series(tmp_path / "s", range(0, 10, 2))
    with pytest.raises(JobCancelled):
        find_series([tmp_path], Reporter(lambda kind, fields: None, lambda: "cancel"))


# Rules


def test_rules_print_read_and_choose_the_same(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text(rules_text())
    assert load_rules(path) == DEFAULT_RULES == load_rules("default")


def test_the_first_rule_that_fits_decides_and_one_a_study_can_be_picked(tmp_path):
    new(tmp_path / "a", range(0, 20, 2), "1.1", SeriesDescription="Abdomen venous")
    new(tmp_path / "b", range(0, 20, 1), "1.2", SeriesNumber=6, SeriesDescription="Abdomen arterial")
    new(tmp_path / "c", range(0, 20, 4), "1.3", SeriesNumber=7, SeriesDescription="Thorax")
    series = find_series([tmp_path])

    def numbers(*rules, pick="all"):
        return sorted(s.number for s in choose(series, Rules(rules, pick=pick))[0])

    everything = Rule(keep="all")
    assert numbers(Rule(drop="no thorax", description="^THORAX"), everything) == ["5", "6"]
    assert numbers(everything, Rule(drop="no thorax", description="thorax")) == ["5", "6", "7"]
    assert numbers(Rule(keep="thick", min_step=1.5, max_slices=10)) == ["5", "7"]
    assert numbers(Rule(keep="not venous", not_description="venous")) == ["6", "7"]
    assert numbers(Rule(keep="coronal", orientation=("coronal",))) == []
    assert numbers(everything, pick="thinnest") == numbers(everything, pick="most-slices") == ["6"]
    assert numbers(everything, pick="lowest-number") == ["5"]
    _, left_out = choose(series, Rules((Rule(keep="MR", modality=("MR",)),)))
    assert left_out[0].reason == "no rule keeps it (CT, 10 slices, axial)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"rules": [{"keep": "a", "modalty": ["CT"]}]}', "modalty.*modality"),
        ('{"rules": [{"modality": ["CT"]}]}', "keep.*drop"),
        ('{"rules": [{"keep": "a", "description": "("}]}', "no regular expression"),
        ('{"rules": [{"keep": "a", "orientation": ["axia"]}]}', "'axia'; expected axial"),
        ('{"rules": [{"drop": "a"}]}', "No rule keeps"),
        ('{"rules": [{"keep": "a"}], "pick": "best"}', "expected all, most-slices"),
        ('{"rules": [{"keep": "a"}], "format": "2"}', "peftseg-series-rules-1"),
        ('{"rules": [{"keep": "a", "min_slices": "5"}]}', "min_slices"),
    ],
)
def test_rules_with_a_mistake_are_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        load_rules(path)
    assert "peftseg dicom rules" in caught.value.remedy


# Inputs of a job, and the command line


def test_inputs_hold_series_and_volume_files_and_an_empty_choice_says_why(tmp_path):
    disc = mixed_folder(tmp_path)
    (disc / "scan.nii.gz").touch()
    (disc / "scan.seg.nrrd").touch()
    inputs = dicom_inputs([disc], DEFAULT_RULES, tmp_path)
    assert inputs.files == (disc / "scan.nii.gz",)
    assert len({source.name for source in inputs.series}) == 3
    assert inputs.series[0].read().name == inputs.series[0].name
    (disc / "scan.nii.gz").unlink()
    with pytest.raises(BadInput, match=r"No series was chosen of 10 .*no rule keeps it") as caught:
        dicom_inputs([disc], Rules((Rule(keep="US", modality=("US",)),)), tmp_path)
    assert "peftseg dicom list" in caught.value.remedy
    with pytest.raises(BadInput, match="does not exist"):
        dicom_inputs([tmp_path / "missing"], DEFAULT_RULES, tmp_path)


@pytest.mark.parametrize("link", [False, True])
def test_sorting_lays_series_into_folders_that_are_read_as_volumes(tmp_path, capsys, link):
    disc = mixed_folder(tmp_path)
    archive = as_zip(numbered(disc / "nested"), tmp_path / "a.zip")
    out = tmp_path / "out"
    arguments = ["dicom", "sort", str(disc / "IMG"), str(archive), "--out", str(out), "--json"]
    assert main([*arguments, *(["--link"] if link else [])]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["sorted"]) == 3
    for entry in printed["sorted"]:
        assert read_volume(entry["folder"]).grid.shape[2] == entry["slices"]
    listing = json.loads((out / "series.json").read_text())
    assert {entry["key"] for entry in listing["series"]} == {entry["key"] for entry in printed["sorted"]}
    assert not list(out.rglob(".*"))
    one = next(iter(out.rglob("00001.dcm")))
    originals = {os.stat(p).st_ino for p in (disc / "IMG").iterdir()}
    linked = {os.stat(p).st_ino for p in out.rglob("*.dcm")} & originals
    assert bool(linked) == link
    assert one.is_file()
    assert main([*arguments]) == 2
    assert "not empty" in json.loads(capsys.readouterr().out)["message"]


def test_a_sorting_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    disc = mixed_folder(tmp_path)
    from peftseg import dicom_folders

    chosen, left_out = choose(find_series([disc]))
    monkeypatch.setattr(
        dicom_folders.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "Doe"))
    )
    with pytest.raises(BadInput, match="No space left") as caught:
        dicom_folders.lay_out(chosen, left_out, tmp_path / "out")
    assert "Doe" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_the_command_line_lists_prints_rules_and_shows_paths_when_asked(tmp_path, capsys):
    disc = mixed_folder(tmp_path)
    assert main(["dicom", "list", str(disc), "--paths"]) == 0
    text = capsys.readouterr().out
    assert "3 chosen, 7 left out." in text
    assert "Left out:" in text
    assert "slice001.dcm" in text
    assert main(["dicom", "rules"]) == 0
    (tmp_path / "rules.json").write_text(capsys.readouterr().out)
    assert main(["dicom", "list", str(disc), "--rules", str(tmp_path / "rules.json"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["chosen"]) == 3
    assert main(["dicom", "list", str(tmp_path / "missing")]) == 2


def test_many_files_are_told_as_they_are_read(tmp_path, monkeypatch):
    write_series(tmp_path / "s", range(0, 20, 2))
    monkeypatch.setattr(dicom_sort, "SAY_EVERY", 4)
    reporter = Reporter.silent()
    find_series([tmp_path], reporter)
    assert [e["step"] for e in reporter.events if e["event"] == "progress"] == [0, 4, 8, 10]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_damaged_bytes_in_an_archive_are_told_or_make_no_difference(tmp_path, name):
    files = numbered(write_series(tmp_path / "s", [0, 2, 4]))
    path = tmp_path / name
    as_zip(files, path) if name == "a.zip" else as_tar(files, path, "w:" + name[6:])
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for n in range(30):
        data = bytearray(whole)
        for place in rng.integers(4, len(data), 5):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        (tmp_path / str(n)).mkdir()
        with contextlib.suppress(BadInput):  # anything else would be an error inside
            assert len(unpack(path, tmp_path / str(n))) <= 3


def test_what_pydicom_says_of_a_damaged_file_is_not_logged(tmp_path, caplog):
    write_slice(tmp_path / "s", (0, 0, 0))
    path = tmp_path / "s" / "slice000.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.2.3.4", b"1.2.Doe"))
    find_series([tmp_path])
    assert not caplog.records


def test_bytes_that_only_look_like_dicom_are_unreadable_not_an_error(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(20):
        (tmp_path / f"{n}.dcm").write_bytes(bytes(128) + b"DICM" + rng.bytes(300))
    good = write_slice(tmp_path / "s", (0, 0, 0)).read_bytes()
    for n in range(40):
        damaged = bytearray(good)
        for place in rng.integers(132, len(good), 6):
            damaged[place] = rng.integers(256)
        (tmp_path / "s" / f"d{n}.dcm").write_bytes(damaged)
    assert all(isinstance(s.unusable, str) for s in find_series([tmp_path]))
