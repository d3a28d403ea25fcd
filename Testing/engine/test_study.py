"""Support folders, label states, laterality and input lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import slicerio

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.study import (
    LabelState,
    SupportItem,
    check_laterality,
    check_structures,
    find_inputs,
    load_support_item,
    paired_names,
    read_support_folder,
)
from peftseg.volume import Grid, read_labels, write_segmentation, write_volume

SHAPE = (8, 9, 10)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -50], [0, 0, 2, 30], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
LIVER, SPLEEN = Structure("liver", 1), Structure("spleen", 4)
BOTH = (LIVER, SPLEEN)


class Listener:
    def __init__(self):
        self.messages = []

    def warning(self, message: str) -> None:
        self.messages.append(message)


def labels(*values: int) -> np.ndarray:
    """A label map with a box of 2 x 2 x 3 voxels a value."""
    result = np.zeros(SHAPE, np.uint8)
    for n, value in enumerate(values):
        result[2 * n : 2 * n + 2, 1:3, 2:5] = value
    return result


def add_scan(folder: Path, name: str, label_map: np.ndarray | None, suffix: str = ".nii.gz", grid: Grid = GRID) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(exist_ok=True)
    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    write_volume(folder / "images" / f"{name}.nii.gz", image, GRID)
    if label_map is not None:
        write_volume(folder / "labels" / f"{name}{suffix}", label_map, grid)


def only_item(folder: Path, structures=BOTH) -> SupportItem:
    return read_support_folder(folder, structures)[0]


def states(folder: Path, content) -> None:
    (folder / "support.json").write_text(json.dumps(content))


def test_images_and_labels_are_paired_by_name_whatever_their_suffix(tmp_path):
    add_scan(tmp_path, "b.1", labels(1), ".nrrd")
    add_scan(tmp_path, "a", labels(1))
    write_segmentation(tmp_path / "labels" / "c.seg.nrrd", labels(1, 4), GRID, BOTH, {})
    write_volume(tmp_path / "images" / "c.mha", np.zeros(SHAPE, np.float32), GRID)
    (tmp_path / "images" / ".DS_Store").write_text("")
    (tmp_path / "labels" / "c.json").write_text("{}")
    items = read_support_folder(tmp_path, BOTH)
    assert [Path(i.image).name for i in items] == ["a.nii.gz", "b.1.nii.gz", "c.mha"]
    assert [Path(i.labels).name for i in items] == ["a.nii.gz", "b.1.nrrd", "c.seg.nrrd"]
    assert all(i.states == {} for i in items)


def test_one_scan_is_allowed_with_a_warning(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    listener = Listener()
    assert len(read_support_folder(tmp_path, BOTH, listener)) == 1
    assert "one scan only" in listener.messages[0]
    add_scan(tmp_path, "b", labels(1))
    listener = Listener()
    read_support_folder(tmp_path, BOTH, listener)
    assert listener.messages == []


def test_unpaired_files_are_named(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    add_scan(tmp_path, "b", None)
    write_volume(tmp_path / "labels" / "z.nrrd", labels(1), GRID)
    with pytest.raises(BadInput, match=r"b\.nii\.gz \(no labels\), z\.nrrd \(no image\)"):
        read_support_folder(tmp_path, BOTH)


def test_a_folder_that_is_no_support_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="images is missing"):
        read_support_folder(tmp_path, BOTH)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(BadInput, match="holds no scan"):
        read_support_folder(tmp_path, BOTH)
    add_scan(tmp_path, "a", labels(1))
    write_volume(tmp_path / "images" / "a.nrrd", labels(1), GRID)
    with pytest.raises(BadInput, match=r"'a' twice: a\.nii\.gz and a\.nrrd"):
        read_support_folder(tmp_path, BOTH)
    (tmp_path / "images" / "a.nrrd").rename(tmp_path / "images" / "a.png")
    with pytest.raises(BadInput, match=r"a\.png is no scan"):
        read_support_folder(tmp_path, BOTH)


def test_states_come_from_support_json(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    add_scan(tmp_path, "b", labels(1), ".nrrd")
    states(tmp_path, {"a.nii.gz": {"spleen": "absent", "liver": {"slices": [2, 3]}}, "b": {"spleen": "not labelled"}})
    first, second = read_support_folder(tmp_path, BOTH)
    assert first.states == {"spleen": LabelState("absent"), "liver": LabelState("labelled", (2, 3), 2)}
    assert second.states == {"spleen": LabelState("not labelled")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"c.nii.gz": {}}, r"Unknown scan in support.json 'c\.nii\.gz'; valid: a\.nii\.gz"),
        ({"a.nii.gz": {"livr": "absent"}}, r"'livr'; valid: liver, spleen.*Did you mean 'liver'"),
        ({"a.nii.gz": {"liver": "gone"}}, "'gone'; valid: absent, labelled, not labelled"),
        ({"a.nii.gz": {"liver": {"slices": []}}}, "at least one"),
        ({"a.nii.gz": {"liver": {"slices": [-1]}}}, r"\[-1\]"),
        ({"a.nii.gz": {"liver": {"slices": [1.5]}}}, r"\[1\.5\]"),
        ({"a.nii.gz": {"liver": {"slices": [1], "axis": 3}}}, "axis is 3"),
        ({"a.nii.gz": {"liver": {"slice": [1]}}}, "not understood"),
        ({"a.nii.gz": {"liver": True}}, "not understood"),
        ({"a.nii.gz": "absent"}, "one object a scan"),
    ],
)
def test_what_support_json_may_not_say_is_refused(tmp_path, content, message):
    add_scan(tmp_path, "a", labels(1))
    states(tmp_path, content)
    with pytest.raises(BadInput, match=message):
        read_support_folder(tmp_path, BOTH)


def test_a_support_json_that_is_no_json_is_refused(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    (tmp_path / "support.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        read_support_folder(tmp_path, BOTH)


def test_a_labelled_scan_gives_masks_that_are_known_everywhere(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4))
    scan = load_support_item(only_item(tmp_path), BOTH)
    assert scan.volume.grid.same_as(GRID)
    assert np.array_equal(scan.masks["liver"], labels(1, 4) == 1)
    assert np.array_equal(scan.masks["spleen"], labels(1, 4) == 4)
    assert scan.known == {"liver": True, "spleen": True}
    assert (scan.extra_values, scan.extra_names, scan.notes) == ((), (), ())


def test_labels_that_nobody_asked_for_are_left_out_and_reported(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4, 9))
    scan = load_support_item(only_item(tmp_path, [LIVER]), [LIVER])
    assert scan.extra_values == (4, 9)
    assert "4, 9" in scan.notes[0]
    write_segmentation(tmp_path / "labels" / "a.seg.nrrd", labels(1, 4), GRID, BOTH, {})
    (tmp_path / "labels" / "a.nii.gz").unlink()
    scan = load_support_item(only_item(tmp_path, [LIVER]), [LIVER])
    assert scan.extra_names == ("spleen",)


def test_structures_in_a_seg_nrrd_are_found_by_name_not_by_value(tmp_path):
    add_scan(tmp_path, "a", None)
    write_segmentation(tmp_path / "labels" / "a.seg.nrrd", labels(1, 4), GRID, BOTH, {})
    swapped = [Structure("liver", 4), Structure("spleen", 1)]
    scan = load_support_item(only_item(tmp_path), swapped)
    assert np.array_equal(scan.masks["liver"], labels(1, 4) == 1)


def test_an_empty_label_is_refused_and_the_remedy_names_the_states(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    with pytest.raises(BadInput, match=r"'spleen'.*no voxels") as caught:
        load_support_item(only_item(tmp_path), BOTH)
    assert "absent" in caught.value.remedy
    assert "not labelled" in caught.value.remedy
    write_segmentation(tmp_path / "labels" / "a.seg.nrrd", labels(1), GRID, [LIVER], {})
    (tmp_path / "labels" / "a.nii.gz").unlink()
    with pytest.raises(BadInput, match="no segment 'spleen'; it has: liver"):
        load_support_item(only_item(tmp_path), BOTH)


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
@pytest.mark.parametrize(("state", "known"), [("absent", True), ("not labelled", False)])
def test_a_structure_without_labels_is_background_if_absent_and_unknown_if_not_labelled(tmp_path, suffix, state, known):
    add_scan(tmp_path, "a", None)
    write_segmentation(tmp_path / "labels" / f"a{suffix}", labels(1), GRID, [LIVER], {})
    states(tmp_path, {"a.nii.gz": {"spleen": state}})
    scan = load_support_item(only_item(tmp_path), BOTH)
    assert scan.known == {"liver": True, "spleen": known}
    assert not scan.masks["spleen"].any()


def test_an_absent_structure_with_voxels_is_refused(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4))
    states(tmp_path, {"a.nii.gz": {"spleen": "absent"}})
    with pytest.raises(BadInput, match="'spleen' is marked absent, but 12 voxels"):
        load_support_item(only_item(tmp_path), BOTH)


def test_voxels_of_a_structure_that_is_not_labelled_are_left_out_and_reported(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4))
    states(tmp_path, {"a.nii.gz": {"spleen": "not labelled"}})
    scan = load_support_item(only_item(tmp_path), BOTH)
    assert not scan.masks["spleen"].any()
    assert "12 voxels of 'spleen'" in scan.notes[0]


@pytest.mark.parametrize(("axis", "slices"), [(0, [0]), (1, [1, 5]), (2, [2, 3])])
def test_labelled_slices_restrict_what_is_known(tmp_path, axis, slices):
    add_scan(tmp_path, "a", labels(1, 4))
    states(tmp_path, {"a.nii.gz": {"liver": {"slices": slices, "axis": axis}}})
    scan = load_support_item(only_item(tmp_path), BOTH)
    index = np.indices(SHAPE)[axis]
    assert np.array_equal(scan.known["liver"], np.isin(index, slices))
    assert np.array_equal(scan.masks["liver"], (labels(1, 4) == 1) & np.isin(index, slices))
    assert scan.known["spleen"] is True
    assert "outside of its labelled slices" in scan.notes[0]


def test_slices_outside_of_the_scan_or_without_voxels_are_refused(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4))
    states(tmp_path, {"a.nii.gz": {"liver": {"slices": [2, 10]}}})
    with pytest.raises(BadInput, match=r"\[10\]; axis 2 has 10 slices, 0 to 9"):
        load_support_item(only_item(tmp_path), BOTH)
    states(tmp_path, {"a.nii.gz": {"liver": {"slices": [9]}}})
    with pytest.raises(BadInput, match=r"no voxels on the slices \[9\]"):
        load_support_item(only_item(tmp_path), BOTH)


def test_a_scan_with_nothing_labelled_is_refused(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    states(tmp_path, {"a": {"liver": "not labelled", "spleen": "not labelled"}})
    with pytest.raises(BadInput, match="nothing can be learnt"):
        load_support_item(only_item(tmp_path), BOTH)


def moved(mm: float) -> Grid:
    matrix = AFFINE.copy()
    matrix[0, 3] += mm
    return Grid(SHAPE, matrix)


def test_labels_on_another_grid_are_refused_with_both_grids(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4), grid=moved(1))
    with pytest.raises(BadInput, match=r"8 x 9 x 10 voxels.*corners lie up to 1 mm apart"):
        load_support_item(only_item(tmp_path), BOTH)
    add_scan(tmp_path, "a", labels(1, 4)[:-1], grid=Grid((7, 9, 10), AFFINE))
    with pytest.raises(BadInput, match=r"7 x 9 x 10 voxels.*8 x 9 x 10 voxels"):
        load_support_item(only_item(tmp_path), BOTH)


def test_labels_whose_header_is_rounded_are_accepted(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4), grid=moved(0.01))
    assert load_support_item(only_item(tmp_path), BOTH).masks["liver"].sum() == 12


@pytest.mark.parametrize("start", [(0, 0, 0), (0, 1, 2)])
def test_a_seg_nrrd_that_slicer_has_cropped_is_put_in_its_place(tmp_path, start):
    add_scan(tmp_path, "a", None)
    part = labels(1, 4)[:4, start[1] :, start[2] : 6]
    matrix = AFFINE.copy()
    matrix[:3, 3] = (AFFINE @ [*start, 1])[:3]
    write_segmentation(tmp_path / "labels" / "a.seg.nrrd", part, Grid(part.shape, matrix), BOTH, {})
    scan = load_support_item(only_item(tmp_path), BOTH)
    assert np.array_equal(scan.masks["liver"], labels(1, 4) == 1)
    assert np.array_equal(scan.masks["spleen"], labels(1, 4) == 4)


def test_overlapping_segments_keep_all_their_voxels(tmp_path):
    add_scan(tmp_path, "a", None)
    content = slicerio.create_segmentation(SHAPE, np.diag([-1, -1, 1, 1]) @ AFFINE)
    whole = labels(1) == 1
    slicerio.add_segment(content, whole, {"id": "liver", "name": "liver"})
    slicerio.add_segment(content, whole & (np.indices(SHAPE)[2] == 2), {"id": "spleen", "name": "spleen"})
    slicerio.write_segmentation(str(tmp_path / "labels" / "a.seg.nrrd"), content)
    scan = load_support_item(only_item(tmp_path), BOTH)
    assert np.array_equal(scan.masks["liver"], whole)
    assert scan.masks["spleen"].sum() == 4


def test_labels_with_names_of_any_language_are_found_by_name(tmp_path):
    add_scan(tmp_path, "a", None)
    structures = (Structure("Müller's ärtery", 1), Structure("心臓: 2", 4))
    write_segmentation(tmp_path / "labels" / "a.seg.nrrd", labels(4, 1), GRID, structures[::-1], {"site": "Zürich"})
    scan = load_support_item(only_item(tmp_path, structures), structures)
    assert np.array_equal(scan.masks["Müller's ärtery"], labels(4, 1) == 1)
    assert np.array_equal(scan.masks["心臓: 2"], labels(4, 1) == 4)


def test_nan_voxels_of_a_support_scan_are_replaced_on_request_only(tmp_path):
    add_scan(tmp_path, "a", labels(1, 4))
    image = np.ones(SHAPE, np.float32)
    image[0, 0, 0] = np.nan
    write_volume(tmp_path / "images" / "a.nii.gz", image, GRID)
    with pytest.raises(BadInput, match="1 NaN"):
        load_support_item(only_item(tmp_path), BOTH)
    scan = load_support_item(only_item(tmp_path), BOTH, replace_nonfinite=0)
    assert scan.volume.array[0, 0, 0] == 0
    assert "replaced" in scan.notes[0]


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ([], "No structures"),
        ([LIVER, Structure("liver", 2)], "name 'liver' occurs 2 times"),
        ([LIVER, Structure("spleen", 1)], "value 1 occurs 2 times"),
        ([Structure("liver", 0)], "label value 0"),
        ([Structure("liver", 65536)], "label value 65536"),
        ([Structure("Background", 1)], "'Background' is no structure"),
        ([Structure(" ", 1)], "no structure"),
    ],
)
def test_structures_that_cannot_be_told_apart_are_refused(structures, message):
    with pytest.raises(BadInput, match=message):
        check_structures(structures)


def test_paired_names_are_found_in_any_position():
    names = ["kidney_left", "kidney_right", "left hippocampus", "right hippocampus", "L insula", "R insula"]
    names += ["lung.upper.l", "lung.upper.r", "LeftEye", "RightEye", "lh-cuneus", "rh-cuneus"]
    names += ["left arm", "leftover", "liver", "vertebra L1", "vertebra R1", "spleen"]
    assert paired_names(names) == [
        ("kidney_left", "kidney_right"),
        ("left hippocampus", "right hippocampus"),
        ("L insula", "R insula"),
        ("lung.upper.l", "lung.upper.r"),
        ("LeftEye", "RightEye"),
        ("lh-cuneus", "rh-cuneus"),
    ]


@pytest.mark.parametrize("flip", [1, -1])
def test_a_pair_on_the_wrong_sides_is_flagged_by_the_affine(flip):
    low, high = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    low[1, 4, 5] = high[6, 4, 5] = True
    matrix = np.diag([flip * 2.0, 1, 1, 1])
    matrix[:3, 3] = [-40, 20, 30]
    grid = Grid(SHAPE, matrix)
    # index 1 lies on the left when i grows to the right
    right_way = {"kidney_left": low, "kidney_right": high}
    swapped = {"kidney_left": high, "kidney_right": low}
    if flip < 0:
        right_way, swapped = swapped, right_way
    assert check_laterality(right_way, grid) == []
    (warning,) = check_laterality(swapped, grid)
    assert "'kidney_left' lies 10.0 mm to the right of 'kidney_right'" in warning
    assert check_laterality({**swapped, "kidney_left": np.zeros(SHAPE, bool)}, grid) == []


@pytest.mark.parametrize("origin", [(0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("directions", [(1, 1, 1), (-1, -1, 1)])
def test_sides_are_not_judged_by_a_nominal_affine(origin, directions):
    matrix = np.diag([*directions, 1.0])
    matrix[:3, 3] = origin
    grid = Grid(SHAPE, matrix)
    assert grid.is_nominal
    masks = {"l x": np.zeros(SHAPE, bool), "r x": np.zeros(SHAPE, bool)}
    masks["l x"][6, 0, 0] = masks["r x"][1, 0, 0] = True
    assert check_laterality(masks, grid) == []


def test_inputs_are_files_folders_of_files_and_dicom_folders(tmp_path):
    add_scan(tmp_path, "a", labels(1))
    add_scan(tmp_path, "b", None)
    (tmp_path / "images" / "notes.txt").write_text("")
    write_segmentation(tmp_path / "images" / "a.seg.nrrd", labels(1), GRID, BOTH, {})
    series = tmp_path / "dicom" / "patient" / "series"
    series.mkdir(parents=True)
    (series / "1").write_bytes(b"\0" * 128 + b"DICM")
    images = tmp_path / "images"
    assert find_inputs([images]) == [images / "a.nii.gz", images / "b.nii.gz"]
    assert find_inputs([images / "b.nii.gz", images]) == [images / "b.nii.gz", images / "a.nii.gz"]
    assert find_inputs([series]) == [series]
    assert find_inputs([str(tmp_path / "dicom")]) == [series]


def test_inputs_that_hold_nothing_readable_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for name, message in (("", "holds no scan"), ("a.txt", "is no scan"), ("b", "does not exist")):
        with pytest.raises(BadInput, match=message):
            find_inputs([tmp_path / name])


@pytest.mark.realdata
def test_a_real_support_folder_is_read(shared_data):
    structures = [Structure("anterior", 1), Structure("posterior", 2)]
    items = read_support_folder(shared_data / "hippocampus_msd" / "support", structures)
    assert len(items) == 12
    scan = load_support_item(items[0], structures)
    assert scan.volume.grid.is_nominal
    assert all(mask.any() for mask in scan.masks.values())
    assert scan.extra_values == ()


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["example_seg.nii.gz", "example_seg_mr.nii.gz"])  # one is stored RAS, one LPS
def test_left_and_right_kidneys_of_real_scans_lie_on_their_sides(shared_data, name):
    read = read_labels(shared_data / "readers" / "ct_totalsegmentator" / name)
    right, left = read.mask(Structure("kidney_right", 2)), read.mask(Structure("kidney_left", 3))
    assert check_laterality({"kidney_right": right, "kidney_left": left}, read.grid) == []
    assert len(check_laterality({"kidney_right": left, "kidney_left": right}, read.grid)) == 1


@pytest.mark.realdata
def test_a_dicom_folder_can_be_a_support_image(shared_data, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    source = shared_data / "readers" / "dicom_orientation_phantom"
    (tmp_path / "images" / "case").mkdir()
    for file in source.iterdir():
        (tmp_path / "images" / "case" / file.name).write_bytes(file.read_bytes())
    matrix = np.diag([-2.0, -2, 2, 1])
    matrix[2, 3] = -126
    label_map = np.zeros((32, 48, 64), np.uint8)
    label_map[3:9, 4:9, 5:9] = 1
    write_volume(tmp_path / "labels" / "case.nii.gz", label_map, Grid(label_map.shape, matrix))
    scan = load_support_item(only_item(tmp_path, [LIVER]), [LIVER])
    assert np.array_equal(scan.masks["liver"], label_map == 1)
