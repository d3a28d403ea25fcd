"""Volumes and label maps: what is read, what is refused, and that results lie on the input's own grid."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.volume import (
    Grid,
    Labels,
    file_stem,
    file_suffix,
    read_labels,
    read_volume,
    write_segmentation,
    write_volume,
)
from peftseg.writing import check_structures, require_writable_dir

IDENTITY = np.eye(4)
LIVER = Structure("liver", 1, (221, 130, 101), "SCT^10200004^Liver")
TUMOUR = Structure("tumour", 7, (144, 238, 144))


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def affine(directions, spacing, origin=(-31.0, 17.5, 44.25)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = np.asarray(directions) * np.asarray(spacing)
    result[:3, 3] = origin
    return result


GEOMETRIES = {
    "identity": np.eye(4),
    "anisotropic": affine(np.eye(3), (0.7, 0.8, 5.0)),
    "flipped": affine(np.diag([-1, -1, 1]), (1, 1, 2)),
    "left handed": affine(np.diag([-1, 1, 1]), (1, 1, 2)),
    "permuted": affine([[0, 0, -1], [1, 0, 0], [0, 1, 0]], (0.9, 1.1, 3)),
    "oblique": affine(rotation(25), (0.5, 0.6, 4.4)),
    "oblique left handed": affine(rotation(-40) @ np.diag([1, 1, -1]), (1.2, 0.6, 2.2)),
}
WRITTEN = [".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd"]


def noise(shape=(6, 7, 9), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def save_nifti(path: Path, array: np.ndarray, matrix: np.ndarray = IDENTITY) -> Path:
    nib.save(nib.Nifti1Image(array, matrix), path)
    return path


def save_itk(path: Path, array: np.ndarray, matrix: np.ndarray = IDENTITY) -> Path:
    write_volume(path, array, Grid(array.shape, matrix))
    return path


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_volume_has_the_voxels_and_the_affine_that_nibabel_reads(tmp_path, name):
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", noise(), GEOMETRIES[name]))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, noise())
    assert np.allclose(volume.grid.affine, GEOMETRIES[name], atol=1e-5)
    assert volume.grid.axcodes == "".join(nib.aff2axcodes(GEOMETRIES[name]))
    assert np.allclose(volume.grid.spacing, nib.affines.voxel_sizes(GEOMETRIES[name]))
    assert volume.notes == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_any_number_type_and_byte_order_is_read(tmp_path, dtype, order):
    array = noise(dtype=dtype) % 200
    image = nib.Nifti1Image(array, np.eye(4), dtype=dtype)
    header = image.header.as_byteswapped(order)
    nib.save(nib.Nifti1Image(array.astype(np.dtype(dtype).newbyteorder(order)), np.eye(4), header), tmp_path / "a.nii")
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, array)
    assert np.array_equal(read_labels(tmp_path / "a.nii").layers[0], array)


def test_the_scale_factor_of_a_file_is_applied(tmp_path):
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    assert np.allclose(read_volume(tmp_path / "a.nii.gz").array, stored)
    assert stored.min() < 0


@pytest.mark.parametrize("shape", [(50, 40, 9), (30, 30, 30), (5, 4, 1)])
def test_thin_tiny_and_single_slice_volumes_are_read(tmp_path, shape):
    assert read_volume(save_nifti(tmp_path / "a.nii.gz", noise(shape))).array.shape == shape


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_nrrd_and_metaimage_are_read(tmp_path, suffix):
    grid = Grid((6, 7, 9), GEOMETRIES["oblique"])
    source = sitk.ReadImage(save_nifti(tmp_path / "a.nii", noise(), grid.affine))
    sitk.WriteImage(source, tmp_path / f"b{suffix}")
    volume = read_volume(tmp_path / f"b{suffix}")
    assert np.array_equal(volume.array, noise())
    assert volume.grid.same_as(grid)
    assert volume.name == "b"


def test_names_lose_their_whole_suffix():
    assert [file_stem(n) for n in ("a.nii.gz", "b.1.seg.nrrd", "C.NRRD", "folder", "x.dcm")] == [
        "a",
        "b.1",
        "C",
        "folder",
        "x",
    ]
    assert [file_suffix(n) for n in ("a.seg.nrrd", "a.NII.GZ", "a.png", ".nrrd")] == [".seg.nrrd", ".nii.gz", "", ""]


def test_one_time_point_is_taken_from_a_4d_file(tmp_path):
    assert np.array_equal(read_volume(save_nifti(tmp_path / "a.nii.gz", noise()[..., None])).array, noise())


def test_of_two_positions_the_one_that_slicer_shows_is_taken_and_told(tmp_path):
    image = nib.Nifti1Image(noise(), None)
    image.set_sform(GEOMETRIES["permuted"], 4)
    image.set_qform(GEOMETRIES["flipped"], 1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.allclose(volume.grid.affine, GEOMETRIES["flipped"])
    assert "two positions" in volume.notes[0]


def test_a_position_in_the_qform_alone_is_read(tmp_path):
    image = nib.Nifti1Image(noise(), None)
    image.set_qform(GEOMETRIES["oblique"], 1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.allclose(volume.grid.affine, nib.load(tmp_path / "a.nii.gz").affine, atol=1e-5)
    assert volume.notes == ()


def sheared() -> np.ndarray:
    matrix = np.diag([1.0, 1, 2, 1])
    matrix[0, 1] = 0.3
    return matrix


def save_sheared_nrrd(path: Path) -> Path:
    header = {"space": "left-posterior-superior", "space directions": sheared()[:3, :3].T, "space origin": [0, 0, 0]}
    nrrd.write(str(path), noise(), header)
    return path


def save_sheared_nifti(path: Path) -> Path:
    image = nib.Nifti1Image(noise(), None)
    image.set_sform(sheared(), 1)
    nib.save(image, path)
    return path


def save_nifti2(path: Path) -> Path:
    nib.save(nib.Nifti2Image(noise(), IDENTITY), path)
    return path


def save_rgb(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), path)
    return path


REFUSED = {
    "more than one time point": (
        lambda p: save_nifti(p / "a.nii.gz", np.zeros((4, 5, 6, 3), np.int16)),
        "4 x 5 x 6 x 3",
    ),
    "colour": (lambda p: save_rgb(p / "a.nrrd"), "3 components"),
    "complex numbers": (lambda p: save_nifti(p / "a.nii.gz", noise().astype(np.complex64)), "complex"),
    "two dimensions": (lambda p: save_nifti(p / "a.nii.gz", noise()[:, :, 0]), "2D"),
    "a sheared nifti": (lambda p: save_sheared_nifti(p / "a.nii.gz"), "right angles"),
    "a sheared nrrd": (lambda p: save_sheared_nrrd(p / "a.nrrd"), "right angles"),
    "an unknown kind": (lambda p: p / "a.png", "does not exist"),
    "a text file": (lambda p: (p / "a.txt", (p / "a.txt").write_text("x"))[0], "no volume"),
    "a nifti-2 file": (lambda p: save_nifti2(p / "a.nii.gz"), "NIfTI-2"),
    "a text file called nifti": (lambda p: (p / "a.nii", (p / "a.nii").write_text("x" * 500))[0], "cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_grey_3d_volume_is_refused(tmp_path, case):
    make, expected = REFUSED[case]
    path = make(tmp_path)
    for read in (read_volume, read_labels):
        with pytest.raises(BadInput, match=expected) as caught:
            read(path)
        assert caught.value.remedy


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("part", [0, 0.5, 0.98])
def test_a_file_that_is_empty_or_cut_off_is_refused(tmp_path, suffix, part):
    path = save_itk(tmp_path / f"a{suffix}", noise((20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    for read in (read_volume, read_labels):
        with pytest.raises(BadInput, match=r"cut off|empty"):
            read(path)


def test_damaged_compressed_data_are_refused(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", noise((20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # the checksum
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted_and_replaced_only_on_request(tmp_path, suffix, dtype):
    array = noise(dtype=dtype)
    array[1, 2, 3], array[0, 0, 0], array[5, 6, 8] = np.nan, np.inf, -np.inf
    path = save_itk(tmp_path / f"a{suffix}", array)
    with pytest.raises(BadInput, match="1 NaN and 2 infinite voxels of 378") as caught:
        read_volume(path)
    assert "replace_nonfinite" in caught.value.remedy
    volume = read_volume(path, replace_nonfinite=-5)
    assert np.array_equal(volume.array, np.nan_to_num(array, nan=-5, posinf=-5, neginf=-5))
    assert "1 NaN and 2 infinite" in volume.notes[0]
    with pytest.raises(BadInput, match="finite number"):
        read_volume(path, replace_nonfinite=np.nan)


def test_voxels_that_are_not_finite_are_found_in_big_endian_files(tmp_path):
    array = noise(dtype=np.float32)
    array[1, 2, 3] = np.nan
    header = nib.Nifti1Image(array, np.eye(4)).header.as_byteswapped(">")
    nib.save(nib.Nifti1Image(array.astype(">f4"), np.eye(4), header), tmp_path / "a.nii.gz")
    with pytest.raises(BadInput, match="1 NaN and 0 infinite"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("value", "message"), [(0.5, "1 label voxels"), (np.nan, "nan"), (-3, "-3"), (7e4, "70000")])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_labels_must_be_whole_numbers_from_0_to_65535(tmp_path, suffix, value, message):
    labels = np.zeros((4, 5, 6))
    labels[1, 1, 1] = value
    with pytest.raises(BadInput, match=message):
        read_labels(save_itk(tmp_path / f"a{suffix}", labels))


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.float32])
def test_whole_labels_in_wide_number_types_are_read(tmp_path, dtype):
    labels = (noise() % 3).astype(dtype)
    read = read_labels(save_nifti(tmp_path / "a.nii.gz", labels) if dtype != np.int64 else save_int64(tmp_path, labels))
    assert read.layers.dtype == np.uint16
    assert np.array_equal(read.layers[0], labels)
    assert read.segments == {}
    assert np.array_equal(read.mask(Structure("any name", 2)), labels == 2)
    assert read.values() == [1, 2]


def save_int64(folder: Path, labels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=np.int64), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def label_map() -> np.ndarray:
    labels = np.zeros((6, 7, 9), np.uint8)
    labels[1:3, 2:5, 3:8] = 1
    labels[4, 0:2, 8] = 7
    return labels


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_result_lies_on_the_inputs_own_grid_voxel_for_voxel(tmp_path, suffix, name):
    source = read_volume(save_nifti(tmp_path / "scan.nii.gz", noise(), GEOMETRIES[name]))
    path = tmp_path / "new folder" / f"result{suffix}"
    write_segmentation(path, label_map(), source.grid, [LIVER, TUMOUR], {})
    image, scan = sitk.ReadImage(path), sitk.ReadImage(tmp_path / "scan.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), label_map())
    for method in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(image, method)(), getattr(scan, method)(), atol=1e-5), method
    if suffix.startswith(".nii"):
        assert np.allclose(nib.load(path).affine, nib.load(tmp_path / "scan.nii.gz").affine, atol=1e-5)
        assert np.array_equal(np.asarray(nib.load(path).dataobj), label_map())
    labels = read_labels(path)
    assert labels.grid.same_as(source.grid)
    assert np.array_equal(labels.mask(LIVER), label_map() == 1)
    assert np.array_equal(labels.mask(TUMOUR), label_map() == 7)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(("value", "kind"), [(255, "8-bit unsigned"), (256, "16-bit unsigned")])
@pytest.mark.parametrize("suffix", WRITTEN)
def test_the_number_type_is_as_small_as_the_values_allow(tmp_path, suffix, value, kind):
    labels = (label_map() == 1) * np.int64(value)
    write_segmentation(tmp_path / f"a{suffix}", labels, Grid(labels.shape, np.eye(4)), [Structure("x", value)], {})
    image = sitk.ReadImage(tmp_path / f"a{suffix}")
    assert kind in image.GetPixelIDTypeAsString()
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), labels)


def test_a_seg_nrrd_carries_names_colours_codes_and_provenance(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    provenance = {"adapter": "liver at site B", "hash": "ab12", "time": "two\nlines"}
    write_segmentation(path, label_map(), Grid((6, 7, 9), np.eye(4)), [LIVER, TUMOUR], provenance)
    content = slicerio.read_segmentation(str(path))
    liver, tumour = content["segments"]
    assert (liver["name"], liver["labelValue"], liver["layer"]) == ("liver", 1, 0)
    assert np.allclose(liver["color"], np.array(LIVER.colour) / 255)
    assert liver["terminology"]["type"] == ["SCT", "10200004", "Liver"]
    assert "terminology" not in tumour
    assert content["peftseg adapter"] == "liver at site B"
    assert content["peftseg time"] == "two lines"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_plain_label_map_has_a_sidecar_with_structures_and_provenance(tmp_path, suffix):
    write_segmentation(
        tmp_path / f"a{suffix}", label_map(), Grid((6, 7, 9), np.eye(4)), [LIVER, TUMOUR], {"adapter": "ä"}
    )
    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert data["structures"][0] == {
        "name": "liver",
        "value": 1,
        "colour": [221, 130, 101],
        "code": "SCT^10200004^Liver",
    }
    assert data["provenance"] == {"adapter": "ä"}
    assert read_labels(tmp_path / f"a{suffix}").segments == {"liver": (0, 1), "tumour": (0, 7)}


def test_a_sidecar_of_another_program_is_left_alone_and_a_broken_one_named(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", label_map())
    (tmp_path / "a.json").write_text('{"EchoTime": 0.03}')
    assert read_labels(path).segments == {}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(BadInput, match=r"a\.json"):
        read_labels(path)


def overlapping() -> np.ndarray:
    masks = np.zeros((2, 6, 7, 9), bool)
    masks[0, 1:4, 1:5, 2:7] = True
    masks[1, 2:3, 2:4, 3:6] = True
    return masks


def test_overlapping_structures_come_back_from_a_seg_nrrd(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    grid = Grid((6, 7, 9), GEOMETRIES["oblique"])
    write_segmentation(path, overlapping(), grid, [LIVER, TUMOUR], {})
    labels = read_labels(path)
    assert labels.layers.shape == (2, 6, 7, 9)
    assert labels.grid.same_as(grid)
    for mask, structure in zip(overlapping(), (LIVER, TUMOUR), strict=True):
        assert np.array_equal(labels.mask(structure), mask)
        assert np.array_equal(slicerio.segment_mask(slicerio.read_segmentation(str(path)), structure.name), mask)


NAMES = (
    "Müller's ärtery",
    "心臓 2",
    "a:=b: c",
    "C:\\new\\table \\\\ end\\",
    "two\nlines",
    "tab\there",
    '"left" kidney',
    "# 1",
    " spaces ",
    "left|right~^",
    "Großhirn 🧠",
)


def named_masks() -> tuple[list[Structure], np.ndarray]:
    """Structures with hard names and codes, and their masks, which do not overlap."""
    structures = [
        Structure(n, 2 * i + 3, (i, 255 - i, 7), f"99X^{i}^{n.replace('|', '').replace('~^', '')}")
        for i, n in enumerate(NAMES)
    ]
    masks = np.zeros((len(NAMES), 12, 7, 9), bool)
    for i, mask in enumerate(masks):
        mask[i, 1 : 3 + i % 3, 2:] = True
    return structures, masks


@pytest.mark.parametrize("overlap", [False, True])
def test_structures_and_provenance_of_any_language_and_any_sign_come_back_from_a_seg_nrrd(tmp_path, overlap):
    structures, masks = named_masks()
    if overlap:
        masks[1], masks[4, :3] = masks[0], True
    path, grid = tmp_path / "a.seg.nrrd", Grid((12, 7, 9), GEOMETRIES["oblique left handed"])
    write_segmentation(
        path, masks, grid, structures, {"adapter": "Zürich\tA := \\ 東京\r\n2", "the:=key": "", "file": "M\udcfcller"}
    )
    labels = read_labels(path)
    assert labels.grid.same_as(grid)
    assert tuple(labels.segments) == NAMES
    assert len(labels.layers) == (3 if overlap else 1)
    for structure, mask in zip(structures, masks, strict=True):
        assert np.array_equal(labels.mask(structure), mask), structure
    image = sitk.ReadImage(path)
    assert image.GetMetaData("peftseg adapter") == "Zürich A := \\ 東京 2"
    assert image.GetMetaData("peftseg the=key") == ""
    assert image.GetMetaData("peftseg file") == "M ller"


def test_a_sidecar_takes_any_text(tmp_path):
    structures, masks = named_masks()
    write_segmentation(tmp_path / "a.nii.gz", masks, Grid((12, 7, 9), np.eye(4)), structures, {"file": "M\udcfcller"})
    assert tuple(read_labels(tmp_path / "a.nii.gz").segments) == NAMES


@pytest.mark.parametrize("name", ["a\rb", "a\x00b", "a\x0bb", "a\x0cb", "M\udcfcller"])
def test_names_that_no_file_can_hold_are_refused_before_the_work(name):
    with pytest.raises(BadInput, match="sign"):
        check_structures([Structure(name, 1)])


RAW_HEADER = """NRRD0005
# written by hand
type: {type}
dimension: {dimension}
space: left-posterior-superior
sizes: {sizes}
space directions: {nothing}(0.5,0,0) (0,2,0) (0,0,3)
kinds: {kinds}
endian: {endian}
encoding: raw
space origin: (10,-20,30.5)
Segmentation_MasterRepresentation:=Binary labelmap
Segment0_ID:=s0
Segment0_Name:=Müller's ärtery
Segment0_LabelValue:=300
Segment0_Layer:=0
Segment1_ID:=s1
Segment1_Name:=心臓\\n C:\\\\x
Segment1_LabelValue:=7
Segment1_Layer:={layer}

"""


def raw_seg_nrrd(path: Path, layers: np.ndarray, encoding: str = "utf-8") -> Path:
    """A file as another program writes it: (L, I, J, K) whole numbers, uncompressed, one file."""
    listed = layers.ndim == 4
    fields = {
        "type": {"i2": "short", "u2": "unsigned short", "i4": "int"}[layers.dtype.str[1:]],
        "dimension": layers.ndim,
        "sizes": " ".join(map(str, layers.shape)),
        "nothing": "none " * listed,
        "kinds": "list " * listed + "domain domain domain",
        "endian": "big" if layers.dtype.str[0] == ">" else "little",
        "layer": len(layers) - 1 if listed else 0,
    }
    path.write_bytes(RAW_HEADER.format(**fields).encode(encoding, "replace") + layers.tobytes(order="F"))
    return path


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nrrd"])
@pytest.mark.parametrize("layers", [None, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<u2", ">i2", "<i4"])
def test_uncompressed_files_of_other_programs_are_read(tmp_path, suffix, layers, dtype):
    voxels = np.zeros((layers or 1, 6, 7, 9), dtype)
    voxels[0, 1:3, 2:5, 3:8] = 300
    voxels[-1, 4, 0:2, 8] = 7
    read = read_labels(raw_seg_nrrd(tmp_path / f"a{suffix}", voxels if layers else voxels[0]))
    assert np.array_equal(read.layers, voxels)
    assert np.array_equal(read.mask(Structure("Müller's ärtery", 1)), voxels[0] == 300)
    assert np.array_equal(read.mask(Structure("心臓\n C:\\x", 1)), voxels[-1] == 7)
    assert np.allclose(read.grid.affine, [[-0.5, 0, 0, -10], [0, -2, 0, 20], [0, 0, 3, 30.5], [0, 0, 0, 1]])


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_an_uncompressed_file_that_is_cut_off_is_refused(tmp_path, part):
    path = raw_seg_nrrd(tmp_path / "a.seg.nrrd", np.zeros((2, 16, 17, 19), np.int16))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(BadInput, match="cut off"):
        read_labels(path)


def test_a_header_in_windows_old_code_page_is_read(tmp_path):
    path = raw_seg_nrrd(tmp_path / "a.seg.nrrd", np.ones((6, 7, 9), np.int16), "latin-1")
    assert "Müller's ärtery" in read_labels(path).segments


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LabelValue:=7", "LabelValue:=x", "Segment1_LabelValue is 'x'"),
        ("Layer:=0", "Layer:=first", "'first'"),
        ("Layer:=0", "Layer:=1", "in layer 1, but the file has 1"),
        ("Layer:=0", "Layer:=-1", "in layer -1"),
    ],
)
def test_a_header_with_wrong_layers_or_values_is_refused(tmp_path, old, new, message):
    path = raw_seg_nrrd(tmp_path / "a.seg.nrrd", np.ones((6, 7, 9), np.int16))
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(BadInput, match=message):
        read_labels(path)


def test_files_of_old_slicers_have_one_layer_a_segment_and_the_value_1(tmp_path):
    voxels = np.zeros((2, 6, 7, 9), np.int16)
    voxels[0, 1, 2, 3] = voxels[1, 4, 5, 6] = 1
    path = raw_seg_nrrd(tmp_path / "a.seg.nrrd", voxels)
    header, data = path.read_bytes().split(b"\n\n", 1)
    kept = [line for line in header.split(b"\n") if b"_Layer" not in line and b"_LabelValue" not in line]
    path.write_bytes(b"\n".join(kept) + b"\n\n" + data)
    assert list(read_labels(path).segments.values()) == [(0, 1), (1, 1)]


def test_slicerios_own_layers_are_read(tmp_path):
    content = slicerio.create_segmentation((6, 7, 9), np.eye(4))
    for mask, name in zip(overlapping(), ("organ", "lesion"), strict=True):
        slicerio.add_segment(content, mask, {"id": name, "name": name})
    slicerio.write_segmentation(str(tmp_path / "a.seg.nrrd"), content)
    labels = read_labels(tmp_path / "a.seg.nrrd")
    assert np.array_equal(labels.mask(Structure("lesion", 99)), overlapping()[1])
    with pytest.raises(BadInput, match=r"lesoin.*valid: lesion, organ.*Did you mean 'lesion'"):
        labels.mask(Structure("lesoin", 1))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_overlaps_in_a_plain_label_map_are_refused_and_nothing_is_written(tmp_path, suffix):
    with pytest.raises(BadInput, match=r"overlap.*\.seg\.nrrd"):
        write_segmentation(tmp_path / f"a{suffix}", overlapping(), Grid((6, 7, 9), np.eye(4)), [LIVER, TUMOUR], {})
    assert list(tmp_path.iterdir()) == []


def test_masks_that_do_not_overlap_make_a_plain_label_map(tmp_path):
    masks = np.stack([label_map() == 1, label_map() == 7])
    write_segmentation(tmp_path / "a.nii.gz", masks, Grid((6, 7, 9), np.eye(4)), [LIVER, TUMOUR], {})
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").layers[0], label_map())


def test_a_segment_name_twice_is_refused(tmp_path):
    content = slicerio.create_segmentation((6, 7, 9), np.eye(4))
    for number, mask in enumerate(overlapping()):
        slicerio.add_segment(content, mask, {"id": f"s{number}", "name": "liver"})
    slicerio.write_segmentation(str(tmp_path / "a.seg.nrrd"), content)
    with pytest.raises(BadInput, match="'liver' occurs twice"):
        read_labels(tmp_path / "a.seg.nrrd")


WRONG = {
    "a value of no structure": (label_map(), [LIVER], "a.nii.gz", r"\[7\]"),
    "a negative value": (-label_map().astype(int), [LIVER, TUMOUR], "a.nii.gz", "-7"),
    "another shape": (label_map()[1:], [LIVER, TUMOUR], "a.nii.gz", r"\(5, 7, 9\)"),
    "fractions": (label_map() * 0.5, [LIVER, TUMOUR], "a.nii.gz", "float64"),
    "a mask too few": (overlapping()[:1], [LIVER, TUMOUR], "a.seg.nrrd", r"\(2, 6, 7, 9\)"),
    "a name twice": (label_map(), [LIVER, Structure("liver", 7)], "a.nii.gz", "'liver' occurs 2 times"),
    "a value twice": (label_map(), [LIVER, Structure("x", 1)], "a.nii.gz", "value 1 occurs 2 times"),
    "a malformed code": (label_map(), [LIVER, Structure("x", 7, code="SCT-1")], "a.seg.nrrd", "SCT-1"),
    "a code with a list mark": (label_map(), [LIVER, Structure("x", 7, code="S^1^a|b")], "a.seg.nrrd", r"a\|b"),
    "an unknown suffix": (label_map(), [LIVER, TUMOUR], "a.png", r"\.seg\.nrrd"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_segmentation_is_refused_and_nothing_is_written(tmp_path, case):
    array, structures, name, message = WRONG[case]
    with pytest.raises(BadInput, match=message):
        write_segmentation(tmp_path / name, array, Grid((6, 7, 9), np.eye(4)), structures, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_heat_map_is_written_as_it_is(tmp_path, suffix):
    array = noise(dtype=np.float32) / 7
    path = save_itk(tmp_path / f"a{suffix}", array, GEOMETRIES["permuted"])
    assert np.array_equal(read_volume(path).array, array)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.volume import Grid, write_segmentation
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
labels = np.random.default_rng(0).integers(0, 200, (60, 60, 60)).astype(np.uint8)
structures = [Structure(f"s{v}", v) for v in range(1, 201)]
resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
try:
    write_segmentation(sys.argv[1], labels, Grid(labels.shape, np.eye(4)), structures, {})
except BadInput as error:
    print("BadInput:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a file size limit stands in for a full disk; Windows has none")
@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_disk_that_fills_up_leaves_the_old_file_and_no_half_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("the old one")
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert "BadInput" in ran.stdout, ran
    assert path.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_output_folder_must_be_a_folder_with_space_that_can_be_written(tmp_path):
    require_writable_dir(tmp_path / "not" / "there yet", 1000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="MB free"):
        require_writable_dir(tmp_path, 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        require_writable_dir(tmp_path / "file" / "below")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write (/proc)")
def test_a_read_only_output_folder_is_refused():
    with pytest.raises(BadInput, match="cannot be written"):
        require_writable_dir("/proc/self")
    with pytest.raises(BadInput, match="cannot be written"):
        write_volume("/proc/self/a.nii.gz", noise(), Grid((6, 7, 9), np.eye(4)))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permission bits do not bind this user")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="cannot be written"):
        require_writable_dir(tmp_path)


def test_grids_are_compared_by_their_corners():
    grid = Grid((10, 10, 10), np.eye(4))
    moved, turned = np.eye(4), np.eye(4)
    moved[0, 3] = 0.002
    turned[:3, :3] = rotation(0.05)
    assert grid.same_as(Grid((10, 10, 10), np.eye(4)))
    assert not grid.same_as(Grid((10, 10, 11), np.eye(4)))
    assert not grid.same_as(Grid((10, 10, 10), moved))
    assert grid.same_as(Grid((10, 10, 10), moved), tolerance_mm=0.01)
    assert not grid.same_as(Grid((10, 10, 10), turned), tolerance_mm=0.005)


def test_a_grid_cannot_be_changed_by_accident():
    matrix = np.eye(4)
    grid = Grid((2, 2, 2), matrix)
    matrix[0, 3] = 5
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 5


def test_plain_labels_and_layers_share_one_form():
    labels = Labels(label_map()[None].astype(np.uint16), Grid((6, 7, 9), np.eye(4)), {})
    assert labels.mask(TUMOUR).sum() == 2


def test_nothing_of_a_nifti_header_is_carried_into_the_result(tmp_path):
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.header["descrip"] = b"Doe^Jane"
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    for suffix in (".nii.gz", ".seg.nrrd"):
        write_segmentation(tmp_path / f"b{suffix}", label_map(), volume.grid, [LIVER, TUMOUR], {})
        content = (tmp_path / f"b{suffix}").read_bytes()
        assert b"Doe" not in (gzip.decompress(content) if suffix == ".nii.gz" else content)


REAL = ["t1/t1w.nii.gz", "t2/t2.nii.gz", "t2s/t2s.nii.gz", "mt/t1w.nii.gz", "mt/mt0.nii.gz", "t2/t2_fake_lesion.nii.gz"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
def test_results_on_real_scans_have_their_affine(shared_data, tmp_path, name, suffix):
    path = shared_data / "readers" / "sct_testing_data" / name
    volume, scan = read_volume(path), nib.load(path)
    assert np.allclose(volume.array, np.asarray(scan.dataobj), rtol=1e-6)
    assert np.allclose(volume.grid.affine, scan.affine, atol=1e-5)
    labels = (volume.array > np.median(volume.array)).astype(np.uint8)
    write_segmentation(tmp_path / f"a{suffix}", labels, volume.grid, [LIVER], {})
    again = read_labels(tmp_path / f"a{suffix}")
    assert np.array_equal(again.layers[0], labels)
    assert again.grid.same_as(volume.grid)
    if suffix == ".nii.gz":
        assert np.allclose(nib.load(tmp_path / "a.nii.gz").affine, scan.affine, atol=1e-5)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rgb_nifti/rgb_test_file.nii.gz", "3 components"),
        ("sct_testing_data/dmri/dmri.nii.gz", "40 x 42 x 5 x 7"),
        ("sct_testing_data/mt/mtr.nii.gz", "633 infinite voxels of 8000"),
        ("sct_testing_data/fmri/fmri_tsnr.nii.gz", "408 NaN"),
    ],
)
def test_real_scans_that_cannot_be_used_are_refused(shared_data, name, message):
    with pytest.raises(BadInput, match=message):
        read_volume(shared_data / "readers" / name)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "sct_testing_data/t2s/t2s_seg-deepseg.nii.gz",  # int64
        "sct_testing_data/t2/t2_seg-manual_labeled.nii.gz",  # float64
        "nrrd_pyradiomics/brain1_label.nrrd",
        "ct_totalsegmentator/example_seg.nii.gz",
    ],
)
def test_real_label_maps_are_read(shared_data, name):
    path = shared_data / "readers" / name
    expected = nrrd.read(str(path))[0] if name.endswith("nrrd") else np.asarray(nib.load(path).dataobj)
    assert np.array_equal(read_labels(path).layers[0], expected)
