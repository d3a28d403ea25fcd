"""Dice, surface Dice and HD95 against values derived on paper, and the evaluation of folders."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftseg.errors import BadInput
from peftseg.metrics import dice, evaluate_case, evaluate_folders, hd95, summarise, surface_dice
from peftseg.models import Structure
from peftseg.surface import robust_maximum, surface_distances
from peftseg.volume import Grid, write_segmentation

LIVER, SPLEEN = Structure("liver", 1), Structure("spleen", 2)


def box(shape, start, stop) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def cube_area(n: int) -> float:
    """Marching-cubes area of an n x n x n cube of 1 mm voxels: faces, chamfered edges, cut corners."""
    return 6 * (n - 1) ** 2 + 12 * (n - 1) * math.sqrt(0.5) + 8 * math.sqrt(3) / 8


# Dice


def test_dice_of_half_overlapping_boxes_is_two_thirds_of_what_they_share():
    one, two = box((6, 6, 6), (0, 0, 0), (2, 6, 6)), box((6, 6, 6), (1, 0, 0), (5, 6, 6))
    assert dice(one, two) == pytest.approx(2 * 36 / (72 + 144))


def test_the_fseft_variant_adds_one_voxel_to_the_denominator():
    one = box((4, 4, 4), (0, 0, 0), (1, 1, 3))
    assert dice(one, one, variant="fseft") == pytest.approx(6 / 7)
    assert dice(one & False, one & False, variant="fseft") == 0.0


def test_an_unknown_dice_variant_lists_the_valid_ones():
    with pytest.raises(BadInput, match="fseft, standard"):
        dice(box((2, 2, 2), (0, 0, 0), (1, 1, 1)), box((2, 2, 2), (0, 0, 0), (1, 1, 1)), variant="monai")


# surface areas and distances


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_surface_of_a_cube_has_the_area_of_its_marching_cubes_triangles(n):
    cube = box((n, n, n), (0, 0, 0), (n, n, n))  # touches the array's border on all sides
    (_, area), _ = surface_distances(cube, cube, (1, 1, 1))
    assert area.sum() == pytest.approx(cube_area(n))


def test_the_area_of_a_single_voxel_follows_each_axis_of_the_spacing():
    voxel = box((3, 3, 3), (1, 1, 1), (2, 2, 2))
    a, b, c = 1.0, 2.0, 4.0  # eight triangles with legs a/2, b/2, c/2
    triangle = 0.5 * math.hypot(a * b / 4, b * c / 4, a * c / 4)
    (_, area), _ = surface_distances(voxel, voxel, (a, b, c))
    assert area.sum() == pytest.approx(8 * triangle)


def test_a_cube_shifted_by_one_voxel_keeps_its_side_faces_within_a_small_tolerance():
    n = 4
    one, two = box((8, 8, 8), (1, 1, 1), (5, 5, 5)), box((8, 8, 8), (2, 1, 1), (6, 5, 5))
    # surfels of the first at i = 1..n lie on the second as well: the sides' faces and edges, and the far end's rim
    sides = (n - 1) * (4 * (n - 1) + 4 * math.sqrt(0.5))
    rim = 4 * (n - 1) * math.sqrt(0.5) + 4 * math.sqrt(3) / 8
    assert surface_dice(one, two, (1, 1, 1), tolerance_mm=0.5) == pytest.approx((sides + rim) / cube_area(n))
    assert surface_dice(one, two, (1, 1, 1), tolerance_mm=1.0) == 1.0


def test_parallel_plates_are_as_far_apart_as_the_spacing_of_the_axis_between_them():
    one, two = box((9, 9, 9), (0, 0, 2), (9, 9, 3)), box((9, 9, 9), (0, 0, 5), (9, 9, 6))
    assert hd95(one, two, (1, 1, 2.5)) == pytest.approx(3 * 2.5)
    assert hd95(one, two, (2.5, 2.5, 1)) == pytest.approx(3 * 1)
    assert surface_dice(one, two, (1, 1, 2.5), tolerance_mm=7.4) < 1
    assert surface_dice(one, two, (1, 1, 2.5), tolerance_mm=7.5) == 1


def test_a_permuted_array_with_permuted_spacing_scores_the_same_and_without_does_not():
    rng = np.random.default_rng(3)
    one, two = rng.random((2, 7, 8, 9)) > 0.6
    spacing = (0.5, 1.0, 3.0)
    scores = surface_dice(one, two, spacing), hd95(one, two, spacing)
    turned = one.transpose(2, 0, 1), two.transpose(2, 0, 1)
    assert (surface_dice(*turned, (3.0, 0.5, 1.0)), hd95(*turned, (3.0, 0.5, 1.0))) == pytest.approx(scores)
    assert surface_dice(*turned, spacing) != pytest.approx(scores[0])


@pytest.mark.parametrize("step", [0.1, 0.3, 0.7, 1.1])
def test_a_distance_of_exactly_the_tolerance_counts_as_within_wherever_the_masks_lie(step):
    for start in range(12):
        one = box((16, 4, 4), (start, 0, 0), (start + 1, 4, 4))
        two = box((16, 4, 4), (start + 3, 0, 0), (start + 4, 4, 4))
        assert surface_dice(one, two, (step, 1, 1), tolerance_mm=3 * step) == 1.0


def test_hd95_ignores_a_far_island_of_less_than_five_percent_of_the_area():
    big = box((40, 14, 14), (0, 0, 0), (14, 14, 14))
    with_island = big | box((40, 14, 14), (39, 0, 0), (40, 1, 1))
    assert hd95(with_island, big, (1, 1, 1)) == 0.0
    assert hd95(big, with_island, (1, 1, 1)) == 0.0


def test_hd95_is_the_larger_of_both_directions():
    small, large = box((20, 5, 5), (0, 0, 0), (3, 5, 5)), box((20, 5, 5), (0, 0, 0), (20, 5, 5))
    # the small box's surface is near the large one's, the far end of the large one is 17 mm away
    assert hd95(small, large, (1, 1, 1)) > 14
    assert hd95(small, large, (1, 1, 1)) == hd95(large, small, (1, 1, 1))


def test_hd95_weights_surfels_by_their_area():
    near_and_far = np.array([0.0, 5.0])
    small_far = near_and_far, np.array([96.0, 4.0])
    large_far = near_and_far, np.array([94.0, 6.0])
    assert robust_maximum((small_far, small_far), 0.95) == 0.0
    assert robust_maximum((small_far, large_far), 0.95) == 5.0


# empty masks


def test_two_empty_masks_score_nan_and_one_empty_mask_scores_zero_and_infinity():
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    spacing = (1, 1, 1)
    for score in (dice(empty, empty), surface_dice(empty, empty, spacing), hd95(empty, empty, spacing)):
        assert math.isnan(score)
    for one, two in ((empty, full), (full, empty)):
        assert (dice(one, two), surface_dice(one, two, spacing), hd95(one, two, spacing)) == (0.0, 0.0, math.inf)


# refusals


def test_masks_of_different_shape_are_refused_instead_of_broadcast():
    with pytest.raises(BadInput, match="voxels"):
        dice(np.ones((3, 3, 3), dtype=bool), np.ones((3, 3, 1), dtype=bool))


def test_a_label_map_in_place_of_a_mask_is_refused():
    with pytest.raises(BadInput, match="bool"):
        dice(np.full((3, 3, 3), 2), np.ones((3, 3, 3), dtype=bool))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, math.nan, 1)])
def test_a_spacing_that_is_not_three_sizes_is_refused(spacing):
    full = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(BadInput, match="spacing"):
        hd95(full, full, spacing)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance):
    full = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(BadInput, match="tolerance"):
        surface_dice(full, full, (1, 1, 1), tolerance)


# a case


def test_a_case_has_one_row_a_structure_with_volumes_in_millilitres():
    cube = box((10, 10, 10), (0, 0, 0), (10, 10, 5))
    (row,) = evaluate_case({"liver": cube}, {"liver": ~cube}, (1, 2, 0.5))
    assert row["structure"] == "liver"
    assert row["dice"] == 0.0
    assert row["volume_ml_prediction"] == pytest.approx(0.5)
    assert row["volume_ml_truth"] == pytest.approx(0.5)
    assert {"surface_dice", "hd95_mm"} < set(row)


def test_a_case_whose_sides_have_different_structures_is_refused():
    cube = np.ones((2, 2, 2), dtype=bool)
    with pytest.raises(BadInput, match="liver"):
        evaluate_case({"liver": cube}, {"spleen": cube}, (1, 1, 1))


# folders


def grid(shape=(8, 8, 8), spacing=(1.0, 1.0, 1.0)) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def label_map(values: dict[int, tuple[int, int]], shape=(8, 8, 8)) -> np.ndarray:
    """Label value -> first and last-but-one plane."""
    labels = np.zeros(shape, dtype=np.uint8)
    for value, (start, stop) in values.items():
        labels[start:stop] = value
    return labels


@pytest.fixture
def folders(tmp_path):
    for name in ("prediction", "truth"):
        (tmp_path / name).mkdir()
    return tmp_path / "prediction", tmp_path / "truth"


def write(path, values, structures=(LIVER, SPLEEN), on=None, named=True):
    write_segmentation(path, label_map(values), on or grid(), structures, {})
    if not named:
        path.with_name(path.name.split(".")[0] + ".json").unlink()


def test_folders_pair_results_of_apply_with_truths_of_any_format(folders):
    predicted, true = folders
    write(predicted / "a_seg.nii.gz", {1: (0, 4)})
    write(predicted / "b.seg.nrrd", {1: (0, 2), 2: (2, 4)})
    write(true / "a.nrrd", {1: (0, 2)})
    write(true / "b.nii.gz", {1: (0, 2), 2: (4, 6)})
    rows = {(r["case"], r["structure"]): r for r in evaluate_folders(predicted, true)}
    assert list(rows) == [("a", "liver"), ("a", "spleen"), ("b", "liver"), ("b", "spleen")]
    assert rows["a", "liver"]["dice"] == pytest.approx(2 / 3)
    assert math.isnan(rows["a", "spleen"]["dice"])
    assert rows["b", "liver"]["dice"] == 1.0
    assert rows["b", "spleen"]["dice"] == 0.0


def test_structures_are_bound_by_name_although_the_label_values_differ(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {7: (0, 4), 1: (4, 6)}, (Structure("liver", 7), Structure("spleen", 1)))
    write(true / "a.seg.nrrd", {1: (0, 4), 2: (4, 6)})
    assert [(r["structure"], r["dice"]) for r in evaluate_folders(predicted, true)] == [("liver", 1.0), ("spleen", 1.0)]


def test_plain_label_maps_are_compared_by_value_and_a_file_with_names_lends_them(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {1: (0, 4)}, named=False)
    write(true / "a.nii.gz", {1: (0, 4), 2: (6, 8)}, named=False)
    assert [(r["structure"], r["dice"]) for r in evaluate_folders(predicted, true)] == [("1", 1.0), ("2", 0.0)]
    write(true / "a.nii.gz", {1: (0, 4), 2: (6, 8)})
    assert [r["structure"] for r in evaluate_folders(predicted, true)] == ["liver", "spleen"]
    assert [r["structure"] for r in evaluate_folders(predicted, true, [SPLEEN])] == ["spleen"]


def test_a_structure_that_only_some_cases_have_gets_rows_of_nan_in_the_others(folders):
    predicted, true = folders
    for folder in folders:
        write(folder / "a.nii.gz", {1: (0, 4)}, named=False)
        write(folder / "b.nii.gz", {2: (0, 4)}, named=False)
    rows = evaluate_folders(predicted, true)
    assert [(r["case"], r["structure"]) for r in rows] == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
    assert [math.isnan(r["dice"]) for r in rows] == [False, True, True, False]


def test_surface_distances_of_files_are_in_millimetres_along_the_right_axis(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {1: (0, 2)}, on=grid(spacing=(3.0, 1.0, 0.5)))
    write(true / "a.nii.gz", {1: (0, 3)}, on=grid(spacing=(3.0, 1.0, 0.5)))
    assert evaluate_folders(predicted, true)[0]["hd95_mm"] == pytest.approx(3.0)


def test_files_without_a_partner_are_named(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {1: (0, 4)})
    write(true / "b.nii.gz", {1: (0, 4)})
    with pytest.raises(BadInput, match=r"a\.nii\.gz \(prediction\), b\.nii\.gz \(truth\)"):
        evaluate_folders(predicted, true)


def test_grids_that_differ_in_spacing_alone_are_refused(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {1: (0, 4)})
    write(true / "a.nii.gz", {1: (0, 4)}, on=grid(spacing=(1.0, 1.0, 1.2)))
    with pytest.raises(BadInput, match=r"'a'.*1\.2"):
        evaluate_folders(predicted, true)


def test_grids_that_only_the_formats_rounding_tells_apart_are_compared(folders):
    predicted, true = folders
    shifted = np.diag([1.0, 1.0, 1.0, 1.0])
    shifted[0, 3] = 0.004  # mm
    write(predicted / "a.nii.gz", {1: (0, 4)})
    write(true / "a.nrrd", {1: (0, 4)}, on=Grid((8, 8, 8), shifted))
    assert evaluate_folders(predicted, true)[0]["dice"] == 1.0


def test_another_spelling_of_the_names_is_refused_instead_of_scoring_zero(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {1: (0, 4)}, [Structure("Liver", 1)])
    write(true / "a.nii.gz", {1: (0, 4)}, [LIVER])
    with pytest.raises(BadInput, match=r"\['Liver'\].*\['liver'\]"):
        evaluate_folders(predicted, true)
    with pytest.raises(BadInput, match="prediction"):
        evaluate_folders(predicted, true, [LIVER])


def test_two_files_of_one_case_in_one_folder_are_refused(folders):
    predicted, true = folders
    write(predicted / "a.nii.gz", {1: (0, 4)})
    write(predicted / "a.nrrd", {1: (0, 4)})
    write(true / "a.nii.gz", {1: (0, 4)})
    with pytest.raises(BadInput, match="both"):
        evaluate_folders(predicted, true)


def test_an_empty_folder_and_a_missing_one_are_refused(folders):
    predicted, true = folders
    with pytest.raises(BadInput, match="no label file"):
        evaluate_folders(predicted, true)
    with pytest.raises(BadInput, match="not a folder"):
        evaluate_folders(predicted / "none", true)


# summaries


def row(case, structure, dice_value, hausdorff=1.0):
    return {"case": case, "structure": structure, "dice": dice_value, "surface_dice": 1.0, "hd95_mm": hausdorff}


def test_means_leave_out_nan_and_say_how_many_cases_counted():
    summary = summarise([row("a", "liver", 0.5), row("b", "liver", math.nan), row("c", "liver", 0.9)])
    found = summary["liver"]["dice"]
    assert (found["mean"], found["median"], found["cases"]) == (pytest.approx(0.7), pytest.approx(0.7), 2)


def test_a_missed_structure_makes_the_mean_hausdorff_distance_infinite_but_not_its_median():
    rows = [row("a", "liver", 0.9, 1.0), row("b", "liver", 0.9, 2.0), row("c", "liver", 0.0, math.inf)]
    found = summarise(rows)["liver"]["hd95_mm"]
    assert (found["mean"], found["median"], found["missed"]) == (math.inf, 2.0, 1)
    assert found["low"] <= found["high"] == math.inf


def test_the_interval_is_the_same_every_time_and_covers_the_mean():
    rows = [row(str(i), "liver", value) for i, value in enumerate(np.linspace(0.5, 0.9, 12))]
    found = summarise(rows)["liver"]["dice"]
    assert found == summarise(rows)["liver"]["dice"]
    assert found["low"] < found["mean"] < found["high"]
    spread = np.linspace(0.5, 0.9, 12).std() / math.sqrt(12)  # the bootstrap's standard error
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_the_interval_resamples_cases_not_rows():
    once = [row(str(i), "liver", i / 10) for i in range(8)]
    twice = once + [row(str(i), "spleen", i / 10) for i in range(8)]
    assert summarise(twice)["all structures"]["dice"] == summarise(once)["liver"]["dice"]


def test_a_structure_that_no_case_has_is_nan_without_a_warning():
    assert math.isnan(summarise([row("a", "liver", math.nan)])["liver"]["dice"]["mean"])
