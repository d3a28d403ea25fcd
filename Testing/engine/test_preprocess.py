"""Preprocessing: the model grid lies where it should, grey values survive every scanner, the recipe fits the scans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd, Orientationd, ScaleIntensityRanged

from peftseg import preprocess
from peftseg.axis_map import AxisMap, axis_map
from peftseg.errors import BadInput
from peftseg.models import Intensity, Preprocessing
from peftseg.preprocess import SupportFacts, choose_recipe, prepare, prepare_mask, support_facts
from peftseg.volume import Grid, Volume, read_volume

CT = Preprocessing("RAS", (1.5, 1.5, 1.5), Intensity("window", -175, 250), crop_foreground=True)
MR = Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore"))
ORIENTATIONS = [
    "".join(codes) for letters in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*letters)
]


def grid_for(shape, spacing, codes="RAS", tilt_deg=0.0) -> Grid:
    """A grid with these nearest axis codes, tilted about an oblique axis."""
    rows = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    directions = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        row, sign = rows[code]
        directions[row, axis] = sign
    x, y, z = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    angle = np.deg2rad(tilt_deg)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    tilt = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = tilt @ directions @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.5, 100.0)
    return Grid(shape, affine)


def world(grid: Grid) -> np.ndarray:
    """(I, J, K, 3) RAS mm of every voxel centre."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ramp(grid: Grid) -> np.ndarray:
    """A linear function of the world position: linear resampling must reproduce it wherever it does not extrapolate."""
    return (world(grid) @ np.array([1.0, -2.0, 0.5]) + 7).astype(np.float32)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_voxel_of_the_model_grid_lies_where_its_affine_says(codes):
    grid = grid_for((20, 24, 16), (1.3, 0.9, 2.1), codes, tilt_deg=14)
    recipe = Preprocessing("LPS", (1.1, 1.2, 1.7), Intensity("window", -1000, 1000, -1000, 1000))
    prepared = prepare(Volume(ramp(grid), grid, "ramp"), recipe)
    assert prepared.grid.axcodes == "LPS"
    assert prepared.grid.spacing == pytest.approx(recipe.spacing)
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(prepared.image[0][inner].numpy(), ramp(prepared.grid)[inner], atol=2e-3)


def test_a_study_that_has_the_recipes_spacing_keeps_its_voxels_exactly():
    grid = grid_for((7, 8, 9), (1.0, 1.0, 1.0), "PSR")
    array = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    prepared = prepare(Volume(array, grid, "x"), Preprocessing("RAS", (1, 1, 1), Intensity("window", -9, 9, -9, 9)))
    expected = array.transpose(2, 0, 1)[:, ::-1, :]  # R, then P turned to A, then S
    np.testing.assert_allclose(prepared.image[0].numpy(), expected, atol=1e-6)


def test_preparing_leaves_the_studys_own_voxels_untouched():
    grid = grid_for((6, 6, 6), (1.5, 1.5, 1.5))
    array = np.linspace(-1000, 1000, 216, dtype=np.float32).reshape(grid.shape)
    before = array.copy()
    prepare(Volume(array, grid, "x"), CT)
    np.testing.assert_array_equal(array, before)


def test_a_flipped_study_gives_the_same_model_image():
    grid = grid_for((21, 18, 14), (0.8, 1.1, 2.5))
    array = np.random.default_rng(1).normal(size=grid.shape).astype(np.float32)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = grid.shape[0] - 1
    flipped = Volume(array[::-1].copy(), Grid(grid.shape, grid.affine @ flip), "flipped")
    one, other = prepare(Volume(array, grid, "x"), MR), prepare(flipped, MR)
    assert one.grid.same_as(other.grid)
    torch.testing.assert_close(one.image, other.image)


def test_orientation_window_and_crop_agree_with_monai():
    grid = grid_for((20, 18, 16), (1.5, 1.5, 1.5), "LPS")
    array = np.full(grid.shape, -1000, np.float32)
    array[4:12, 3:14, 5:11] = np.random.default_rng(2).uniform(-170, 400, (8, 11, 6))
    array[2, 3, 5] = -174  # hardly above air
    data = {"image": MetaTensor(array[None], affine=grid.affine.copy())}
    for step in (
        Orientationd(["image"], axcodes="RAS", labels=None),
        ScaleIntensityRanged(["image"], a_min=-175, a_max=250, b_min=0, b_max=1, clip=True),
        CropForegroundd(["image"], source_key="image", allow_smaller=True),
    ):
        data = step(data)
    prepared = prepare(Volume(array, grid, "x"), CT)
    torch.testing.assert_close(prepared.image, data["image"].as_tensor(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(prepared.grid.affine, np.asarray(data["image"].affine), atol=1e-9)


def test_shrinking_averages_instead_of_skipping_voxels():
    grid = grid_for((64, 64, 64), (0.25, 0.25, 0.25))
    checkerboard = (np.indices(grid.shape).sum(axis=0) % 2 * 100).astype(np.float32)
    recipe = Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("window", 0, 100, 0, 100))
    prepared = prepare(Volume(checkerboard, grid, "x"), recipe)
    assert prepared.image.shape == (1, 16, 16, 16)
    assert float((prepared.image - 50).abs().max()) < 5


@pytest.mark.parametrize("maximum", [100.0, 4095.0, 1.7e6])
def test_zscore_makes_uncalibrated_scans_alike(maximum):
    grid = grid_for((16, 16, 16), (1, 1, 1))
    shape = np.zeros(grid.shape, np.float32)
    shape[3:13, 3:13, 3:13] = np.random.default_rng(3).uniform(0.1, 1, (10, 10, 10))
    image = prepare(Volume(shape * np.float32(maximum), grid, "x"), MR).image[0].numpy()
    tissue = image[shape > 0]
    assert tissue.mean() == pytest.approx(0, abs=1e-4)
    assert tissue.std() == pytest.approx(1, abs=1e-4)
    assert image[0, 0, 0] < tissue.min()  # background stays darker than tissue


def test_percentiles_are_those_of_the_voxels_that_are_not_zero():
    grid = grid_for((10, 10, 12), (1, 1, 1))
    array = np.zeros(grid.shape, np.float32)
    array[..., 2:] = np.arange(1, 1001).reshape(10, 10, 10)
    recipe = Preprocessing("RAS", (1, 1, 1), Intensity("percentile", 10, 90, -1, 1))
    image = prepare(Volume(array, grid, "x"), recipe).image[0].numpy()
    low, high = np.percentile(np.arange(1, 1001), [10, 90])
    np.testing.assert_allclose(image, np.clip((array - low) / (high - low), 0, 1) * 2 - 1, atol=1e-5)


@pytest.mark.parametrize("empty", [0.0, 40.0])
def test_percentiles_0_and_100_are_the_smallest_and_largest_value_whatever_a_sample_would_miss(empty, monkeypatch):
    monkeypatch.setattr(preprocess, "PERCENTILE_SAMPLES", 10)
    grid = grid_for((10, 10, 12), (1, 1, 1))
    array = np.random.default_rng(0).uniform(50, 60, grid.shape).astype(np.float32)
    array[0, 0, :3] = empty
    array[4, 5, 7] = 1000
    recipe = Preprocessing("RAS", (1, 1, 1), Intensity("percentile", 0, 100))
    image = prepare(Volume(array, grid, "x"), recipe).image[0].numpy()
    np.testing.assert_allclose(image, (array - empty) / (1000 - empty), atol=1e-5)


@pytest.mark.parametrize("intensity", [Intensity("zscore"), Intensity("percentile", 1, 99), Intensity("window", 0, 1)])
@pytest.mark.parametrize("value", [0.0, 5.0, -3.25, 1.7e6])
def test_a_constant_image_becomes_finite_input(intensity, value):
    grid = grid_for((5, 4, 4), (1, 1, 2))
    volume = Volume(np.full(grid.shape, value, np.float32), grid, "constant")
    for crop in (False, True):
        prepared = prepare(volume, Preprocessing("RAS", (1, 1, 1), intensity, crop))
        assert torch.isfinite(prepared.image).all()
        assert float(prepared.image.min()) == float(prepared.image.max())


@pytest.mark.parametrize("shape", [(5, 4, 4), (30, 30, 30), (40, 40, 9), (8, 8, 1), (1, 1, 1)])
def test_small_and_thin_studies_are_prepared(shape):
    grid = grid_for(shape, (0.7, 0.7, 5.0), "LAS")
    prepared = prepare(Volume(ramp(grid), grid, "x"), CT)
    assert min(prepared.image.shape) >= 1
    assert prepared.image.shape[1:] == prepared.grid.shape


def test_values_that_are_not_finite_are_refused_with_their_number():
    grid = grid_for((3, 3, 3), (1, 1, 1))
    array = np.zeros(grid.shape, np.float32)
    array[0, 0, :2] = np.nan, np.inf
    with pytest.raises(BadInput, match="scan7 has 2 voxels"):
        prepare(Volume(array, grid, "scan7"), MR)


@pytest.mark.parametrize("codes", ["RAX", "RRS", "RA", "RLS", ""])
def test_an_orientation_that_does_not_exist_is_refused(codes):
    grid = grid_for((3, 3, 3), (1, 1, 1))
    with pytest.raises(BadInput, match="Orientation"):
        prepare(Volume(np.zeros(grid.shape, np.float32), grid, "x"), Preprocessing(codes, (1, 1, 1), MR.intensity))


def test_a_spacing_that_is_not_positive_is_refused():
    grid = grid_for((3, 3, 3), (1, 1, 1))
    with pytest.raises(BadInput, match="spacing"):
        prepare(Volume(np.zeros(grid.shape, np.float32), grid, "x"), Preprocessing("RAS", (1, 0, 1), MR.intensity))


def test_the_relation_of_two_grids_is_found_exactly():
    source = grid_for((20, 30, 10), (0.5, 0.7, 3.0), "SLA", tilt_deg=9)
    mapping = AxisMap(axes=(1, 2, 0), start=(28.0, 0.5, 3.25), step=(-2.0, 0.5, 3.0))
    found = axis_map(Grid((10, 18, 5), source.affine @ mapping.matrix()), source)
    assert found.axes == mapping.axes
    assert found.start == pytest.approx(mapping.start)
    assert found.step == pytest.approx(mapping.step)


def test_a_rotated_grid_is_not_taken_for_a_reordered_one():
    with pytest.raises(BadInput, match="reordered"):
        axis_map(grid_for((20, 20, 20), (1, 1, 1), tilt_deg=5), grid_for((20, 20, 20), (1, 1, 1)))


# --- masks ---


def ball(grid: Grid, radius_mm: float) -> np.ndarray:
    points = world(grid)
    centre = grid.affine[:3, :3] @ (np.array(grid.shape) / 2) + grid.affine[:3, 3]
    return np.linalg.norm(points - centre, axis=-1) < radius_mm


def test_a_mask_lands_on_the_image_that_it_was_drawn_on():
    grid = grid_for((40, 44, 20), (1.0, 0.9, 2.0), "PIR", tilt_deg=8)
    mask = ball(grid, 12)
    prepared = prepare(Volume(mask * np.float32(200) - 100, grid, "x"), CT)
    on_model = prepare_mask(mask, prepared)
    assert on_model.shape == prepared.image.shape[1:]
    level = prepared.image[0] - (0 + 175) / 425
    assert not ((on_model != (level > 0)) & (level.abs() > 1e-4)).any()
    assert 6000 < int(on_model.sum()) * 1.5**3 < 8000  # 4/3 pi 12^3 = 7238


def test_a_mask_keeps_its_volume_on_a_coarser_grid():
    grid = grid_for((60, 60, 60), (0.5, 0.5, 0.5))
    mask = ball(grid, 9)
    recipe = Preprocessing("RAS", (1.5, 1.5, 1.5), Intensity("zscore"))
    prepared = prepare(Volume(mask.astype(np.float32), grid, "x"), recipe)
    kept = int(prepare_mask(mask, prepared).sum()) * 1.5**3
    assert kept == pytest.approx(mask.sum() * 0.5**3, rel=0.05)


@pytest.mark.parametrize("thickness", [1, 2])
def test_a_thin_sheet_is_not_lost_on_a_coarser_grid(thickness):
    grid = grid_for((60, 60, 60), (0.5, 0.5, 0.5))
    mask = np.zeros(grid.shape, bool)
    mask[31 : 31 + thickness, 10:50, 10:50] = True
    recipe = Preprocessing("RAS", (2.0, 2.0, 2.0), Intensity("zscore"))
    on_model = prepare_mask(mask, prepare(Volume(ramp(grid), grid, "x"), recipe))
    assert int(on_model.sum()) * 8 == pytest.approx(mask.sum() / 8, rel=0.15)


def test_a_single_labelled_voxel_is_kept():
    grid = grid_for((30, 30, 30), (0.5, 0.5, 0.5))
    mask = np.zeros(grid.shape, bool)
    mask[13, 14, 15] = True
    recipe = Preprocessing("RAS", (2.0, 2.0, 2.0), Intensity("zscore"))
    assert int(prepare_mask(mask, prepare(Volume(ramp(grid), grid, "x"), recipe)).sum()) == 1


def test_an_empty_mask_stays_empty_and_a_full_one_full():
    grid = grid_for((12, 12, 12), (0.5, 0.5, 3.0))
    prepared = prepare(Volume(ramp(grid), grid, "x"), MR)
    assert not prepare_mask(np.zeros(grid.shape, bool), prepared).any()
    assert prepare_mask(np.ones(grid.shape, bool), prepared).all()


def test_a_mask_of_another_scan_is_refused():
    grid = grid_for((12, 12, 12), (1, 1, 1))
    with pytest.raises(BadInput, match=r"\(12, 12, 11\)"):
        prepare_mask(np.zeros((12, 12, 11), bool), prepare(Volume(ramp(grid), grid, "x"), MR))


# --- the choice of the recipe ---


def facts(spacing=(1.5, 1.5, 1.5), ct=True, scale=1000.0, volume=50_000.0) -> SupportFacts:
    values = (-1024.0, 1800.0, -1020.0, -80.0, 400.0, 0.4) if ct else (0, scale, 0, 0.2 * scale, 0.8 * scale, 0)
    return SupportFacts(spacing, (100, 100, 80), *values, volumes_mm3={"organ": volume})


def test_scans_like_the_bases_keep_its_recipe():
    assert choose_recipe(CT, [facts((1.1, 1.5, 2.2))] * 3) == (CT, [])  # up to 1.5 times is alike
    assert choose_recipe(MR, [facts((1, 1, 1), ct=False, scale=s) for s in (100.0, 5000.0, 1.7e6)]) == (MR, [])


def test_only_the_axis_that_differs_takes_the_support_sets_spacing():
    spacings = [(1.4, 1.4, 4.0), (1.5, 1.5, 5.0), (1.6, 1.6, 7.0)]
    recipe, said = choose_recipe(CT, [facts(s) for s in spacings])
    assert recipe == Preprocessing("RAS", (1.5, 1.5, 5.0), CT.intensity, crop_foreground=True)
    assert len(said) == 1
    assert "head-foot axis is 5 mm" in said[0]


def test_an_axis_that_is_much_finer_takes_the_support_sets_spacing_too():
    recipe, said = choose_recipe(CT, [facts((1.5, 0.8, 1.5))] * 2)
    assert recipe.spacing == (1.5, 0.8, 1.5)
    assert "front-back axis is 0.8 mm" in said[0]


def test_mr_whose_values_happen_to_lie_in_the_window_is_still_no_ct():
    recipe, said = choose_recipe(CT, [facts(ct=False, scale=250.0)] * 2)
    assert recipe.intensity == Intensity("zscore")
    assert "no negative values" in said[0]


def test_a_mouse_brain_takes_its_own_voxel_size_and_its_own_grey_values():
    recipe, said = choose_recipe(CT, [facts((0.15, 0.15, 0.15), ct=False, scale=30_000.0, volume=20.0)] * 5)
    assert recipe.spacing == (0.15, 0.15, 0.15)
    assert recipe.intensity == Intensity("zscore")
    assert len(said) == 4
    assert "no negative values" in said[-1]


def test_a_structure_that_would_keep_too_few_voxels_takes_finer_ones():
    support = [facts((1.2, 1.5, 1.6), volume=v) for v in (150.0, 200.0, 250.0)]  # 200 mm3 are 59 voxels of 1.5 mm
    recipe, said = choose_recipe(CT, support)
    assert recipe.spacing == (1.2, 1.5, 1.5)
    assert len(said) == 1
    assert "'organ' would keep only about 59 voxels" in said[0]


def test_negative_noise_around_zero_does_not_make_a_ct():
    odd = SupportFacts((1.5,) * 3, (9, 9, 9), -3.0, 12.0, -1.0, 0.1, 9.0, 0.0, {})
    recipe, said = choose_recipe(CT, [odd])
    assert recipe.intensity == Intensity("zscore")
    assert "clip nearly everything" in said[0]


def test_ct_under_a_model_for_mr_takes_a_window():
    recipe, said = choose_recipe(MR, [facts((1, 1, 1))] * 2)
    assert recipe.intensity == Intensity("window", -1000.0, 400.0, -2.0, 2.0)
    assert "CT" in said[0]


@pytest.mark.parametrize("kind", ["zscore_all", "zscore_inside", "range01", "none"])
def test_ct_under_an_nnunet_keeps_its_normalisation(kind):
    """Such as MRSegmentator, trained on MR and CT alike: a window to 0..1 is nothing that it has ever seen."""
    base = Preprocessing("SAR", (1.5, 1.5, 1.5), Intensity(kind), scheme="nnunet")
    assert choose_recipe(base, [facts()] * 3) == (base, [])


def test_a_ct_crop_without_air_keeps_the_window():
    crop = SupportFacts((1.5,) * 3, (30, 30, 30), -160.0, 310.0, -110.0, 45.0, 200.0, 0.0, {})
    assert choose_recipe(CT, [crop]) == (CT, [])


def test_no_support_scan_is_refused():
    with pytest.raises(BadInput, match="no support scan"):
        choose_recipe(CT, [])


def test_facts_are_measured_along_the_recipes_axes():
    grid = grid_for((10, 20, 30), (1.0, 2.0, 3.0), "SRA")
    mask = np.zeros(grid.shape, bool)
    mask[:2, :3, :4] = True
    array = np.zeros(grid.shape, np.float32)
    array[:5] = -500
    measured = support_facts(Volume(array, grid, "x"), {"a": mask, "empty": mask & False}, "RAS")
    assert measured.spacing == pytest.approx((2.0, 3.0, 1.0))
    assert measured.shape == (20, 30, 10)
    assert measured.volumes_mm3 == pytest.approx({"a": 24 * 6.0})
    assert measured.share_below_minus_200 == pytest.approx(0.5)
    assert (measured.minimum, measured.maximum) == (-500, 0)


# --- real scans ---


@pytest.mark.realdata
def test_real_scans_of_each_kind_fit_their_own_recipe(shared_data):
    spleen = read_volume(shared_data / "spleen_ct" / "image.nii.gz")
    hippocampi = sorted((shared_data / "hippocampus_msd" / "support" / "images").glob("*.nii.gz"))[:4]
    mr = [support_facts(read_volume(p), {}, "RAS") for p in hippocampi]
    assert choose_recipe(CT, [support_facts(spleen, {}, "RAS")])[0].intensity == CT.intensity
    assert choose_recipe(CT, mr)[0].intensity == Intensity("zscore")
    assert choose_recipe(MR, mr) == (MR, [])


@pytest.mark.realdata
def test_hippocampus_scans_look_alike_after_zscore_whatever_their_maximum(shared_data):
    volumes = [read_volume(p) for p in sorted((shared_data / "hippocampus_msd").glob("*/images/*.nii.gz"))]
    maxima = [float(v.array.max()) for v in volumes]
    assert max(maxima) / min(maxima) > 1000
    medians = [float(prepare(v, MR).image.median()) for v in volumes]
    assert max(np.abs(medians)) < 0.5
