"""Made-up sites: what each family changes, and what it must not."""

import numpy as np
import pytest

from peftseg.errors import BadInput
from peftseg.shifts import FAMILIES, shift
from peftseg.volume import Grid, Volume


def a_volume(seed=0, shape=(14, 12, 10)):
    rng = np.random.default_rng(seed)
    array = rng.normal(100, 20, shape).astype(np.float32)
    array[3:10, 4:9, 2:8] += 300
    return Volume(array, Grid(shape, np.diag([-1.0, 2.0, 3.0, 1.0])), "a scan")


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_changes_nothing_at_all(family):
    volume = a_volume()
    assert np.array_equal(shift(volume, family, 0.0, 3).array, volume.array)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shift_keeps_geometry_and_name_and_leaves_the_given_volume_alone(family):
    volume = a_volume()
    before = volume.array.copy()
    shifted = shift(volume, family, 0.7, 3)
    assert np.array_equal(volume.array, before)
    assert shifted.grid.same_as(volume.grid, 0.0)
    assert shifted.name == volume.name
    assert shifted.array.dtype == np.float32
    assert shifted.array.shape == volume.array.shape
    assert np.isfinite(shifted.array).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_a_site_that_can_be_visited_again(family):
    volume = a_volume()
    assert np.array_equal(shift(volume, family, 0.7, 3).array, shift(volume, family, 0.7, 3).array)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "inverted"])  # there is one way to turn grey values
def test_two_seeds_are_two_sites(family):
    arrays = [shift(a_volume(), family, 0.7, seed).array for seed in range(6)]
    assert any(not np.array_equal(arrays[0], other) for other in arrays[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stronger_shift_changes_more(family):
    volume = a_volume()
    changes = [np.abs(shift(volume, family, s, 1).array - volume.array).mean() for s in (0.05, 0.4, 1.0)]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_contrast_keeps_the_order_of_grey_values():
    volume = a_volume()
    shifted = shift(volume, "contrast", 1.0, 5).array.ravel()[np.argsort(volume.array.ravel())]
    assert (np.diff(shifted) >= 0).all()


def test_the_contrast_of_a_site_is_the_same_for_all_of_its_scans():
    one, other = a_volume(0), a_volume(1)
    other = Volume(np.where(np.indices(one.array.shape)[0] < 13, one.array, other.array), one.grid, "another")
    same = np.abs(shift(one, "contrast", 0.6, 2).array - shift(other, "contrast", 0.6, 2).array)[:13]
    assert same.max() < 10  # black and white are the scan's own, so nearly


def test_inverted_at_full_strength_turns_the_order_round_and_loses_no_contrast_half_way():
    volume = a_volume()
    turned = shift(volume, "inverted", 1.0).array
    assert np.corrcoef(turned.ravel(), volume.array.ravel())[0, 1] < -0.99
    ramp = Volume(np.linspace(0, 1, 1680, dtype=np.float32).reshape(14, 12, 10), volume.grid, "ramp")
    assert shift(ramp, "inverted", 0.5).array.std() > 0.9 * ramp.array.std()


def test_inverted_leaves_air_dark():
    volume = a_volume()
    volume.array[:2] = 0
    assert (shift(volume, "inverted", 1.0).array[:2] == 0).all()


def test_noise_differs_from_scan_to_scan_but_not_in_strength():
    first, second = a_volume(0), a_volume(1)
    noises = [shift(v, "noise", 0.5, 4).array - v.array for v in (first, second)]
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.2
    assert noises[0].std() == pytest.approx(noises[1].std(), rel=0.1)


def test_the_bias_field_is_smooth_and_keeps_black():
    ones = Volume(a_volume().array * 0 + 100, a_volume().grid, "flat")
    ones.array[0, 0, 0] = 0
    ones.array[1:3] = 50  # a range of grey values
    field = shift(ones, "bias_field", 1.0, 1).array[4:]
    steps = max(float(np.abs(np.diff(field, axis=axis)).max()) for axis in range(3))
    assert field.max() - field.min() > 3 * steps
    assert (field >= 50).all()


def test_thick_slices_blur_along_one_axis_only():
    volume = a_volume()
    shifted = shift(volume, "resolution", 1.0, 0).array
    roughness = [
        np.abs(np.diff(shifted, axis=a)).mean() / np.abs(np.diff(volume.array, axis=a)).mean() for a in range(3)
    ]
    assert min(roughness) < 0.5 * sorted(roughness)[1]
    ramp = Volume(np.broadcast_to(np.arange(14.0)[:, None, None], (14, 12, 10)).astype(np.float32), volume.grid, "ramp")
    inner = shift(ramp, "resolution", 0.5, 0).array[5:9]
    assert np.allclose(inner, ramp.array[5:9], atol=0.1)  # nothing moves


def test_what_is_out_of_the_field_of_view_is_dark_and_the_rest_is_untouched():
    volume = a_volume()
    shifted = shift(volume, "field_of_view", 1.0, 2).array
    kept = shifted == volume.array
    assert 0.2 < kept.mean() < 0.75
    assert (shifted[~kept] == volume.array.min()).all()


@pytest.mark.parametrize(("family", "strength", "seed"), [("fog", 0.5, 0), ("noise", 1.5, 0), ("noise", 0.5, -1)])
def test_unknown_families_and_values_out_of_range_are_refused(family, strength, seed):
    with pytest.raises(BadInput):
        shift(a_volume(), family, strength, seed)


def test_a_constant_volume_stays_as_it_is():
    volume = Volume(np.full((4, 4, 4), 7, np.float32), Grid((4, 4, 4), np.eye(4)), "flat")
    assert all(shift(volume, family, 1.0).array is volume.array for family in FAMILIES)
