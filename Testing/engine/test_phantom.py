"""The made-up anatomy: labels where they belong, the same by seed, readable by the engine."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from peftseg import phantom
from peftseg.errors import BadInput
from peftseg.volume import read_labels, read_volume

SEEDS = (0, 1, 2)


def centre_mm(case: phantom.PhantomCase, name: str) -> np.ndarray:
    """Centre of a structure in RAS mm, by the affine."""
    value = next(s.value for s in case.structures if s.name == name)
    index = np.argwhere(case.labels == value).mean(axis=0)
    return case.volume.grid.affine[:3, :3] @ index + case.volume.grid.affine[:3, 3]


def median_grey(case: phantom.PhantomCase, name: str) -> float:
    value = next(s.value for s in case.structures if s.name == name)
    return float(np.median(case.volume.array[case.labels == value]))


@pytest.fixture(scope="module", params=[phantom.SITE_A, phantom.SITE_B], ids=["site A", "site B"])
def cases(request) -> list[phantom.PhantomCase]:
    return [phantom.make_case(seed, request.param) for seed in SEEDS]


def test_every_structure_is_there_in_one_piece_of_useful_size(cases):
    from scipy import ndimage

    for case in cases:
        voxel_ml = np.prod(case.volume.grid.spacing) / 1000
        for structure in case.structures:
            mask = case.labels == structure.value
            assert mask.sum() * voxel_ml > 5, structure.name
            parts, count = ndimage.label(mask)
            if structure.name not in ("liver", "pancreas"):  # organs claimed first may cut these in two
                assert np.bincount(parts.ravel())[1:].max() == mask.sum() or count == 1, structure.name


def test_organs_lie_on_their_own_side_of_the_body_by_the_affine(cases):
    for case in cases:
        spine = centre_mm(case, "spine")
        for name in ("liver", "right kidney", "gallbladder", "inferior vena cava"):
            assert centre_mm(case, name)[0] > spine[0], name
        for name in ("spleen", "left kidney", "stomach"):
            assert centre_mm(case, name)[0] < spine[0], name


def test_spine_lies_behind_and_the_liver_above_the_kidneys(cases):
    for case in cases:
        assert centre_mm(case, "spine")[1] < min(
            centre_mm(case, s.name)[1] for s in case.structures if s.name != "spine"
        )
        assert centre_mm(case, "liver")[2] > centre_mm(case, "right kidney")[2]


def test_grey_values_are_finite_and_like_those_of_ct(cases):
    for case in cases:
        grey = case.volume.array
        assert grey.dtype == np.float32
        assert np.isfinite(grey).all()
        assert -1024 <= grey.min() < -700
        assert 350 < grey.max() < 3000
        assert median_grey(case, "spine") > median_grey(case, "liver") > median_grey(case, "gallbladder")


def test_novel_gallbladder_is_darker_than_the_liver_beside_it(cases):
    for case in cases:
        assert median_grey(case, "liver") - median_grey(case, "gallbladder") > 20


def test_the_same_seed_gives_the_same_case_and_another_seed_another():
    first, again, other = (phantom.make_case(seed, phantom.SITE_A) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.volume.array, again.volume.array)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.labels != other.labels).mean() > 0.02


def test_the_same_seed_at_two_sites_is_the_same_person():
    a, b = (phantom.make_case(7, site) for site in (phantom.SITE_A, phantom.SITE_B))
    for structure in a.structures:
        if structure.name in ("aorta", "inferior vena cava", "spine", "liver"):
            continue  # these may leave the field of view, which differs
        volumes = [float((c.labels == structure.value).sum() * np.prod(c.volume.grid.spacing)) for c in (a, b)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.15), structure.name


def test_the_new_site_differs_in_contrast_noise_voxels_and_axes():
    a, b = (phantom.make_case(8, site) for site in (phantom.SITE_A, phantom.SITE_B))
    assert a.volume.grid.axcodes == "RAS"
    assert b.volume.grid.axcodes == "LPS"
    assert b.volume.grid.spacing == pytest.approx(phantom.SITE_B.spacing)
    assert median_grey(b, "aorta") > median_grey(a, "aorta") + 60


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "IAL", "PIR"])
def test_axis_order_changes_the_array_but_not_the_person(codes):
    plain = phantom.make_case(3, phantom.SITE_A)
    turned = phantom.make_case(3, dataclasses.replace(phantom.SITE_A, orientation=codes))
    assert turned.volume.grid.axcodes == codes
    assert tuple(turned.volume.array.shape) == tuple(turned.volume.grid.shape) == turned.labels.shape
    np.testing.assert_allclose(centre_mm(turned, "spleen"), centre_mm(plain, "spleen"), atol=1e-6)
    assert turned.volume.array.sum(dtype=np.float64) == plain.volume.array.sum(dtype=np.float64)


def test_unknown_axis_codes_phases_structures_and_seeds_are_refused_with_the_valid_ones():
    with pytest.raises(BadInput, match="RAX"):
        dataclasses.replace(phantom.SITE_A, orientation="RAX")
    with pytest.raises(BadInput, match=r"venus.*venous"):
        dataclasses.replace(phantom.SITE_A, phases=("venus",))
    with pytest.raises(BadInput, match=r"livr.*liver"):
        phantom.structures_named(["livr"])
    with pytest.raises(BadInput, match="-1"):
        phantom.make_case(-1)


def test_terminology_and_values_are_unique_and_fit_slicer():
    assert [s.value for s in phantom.STRUCTURES] == list(range(1, len(phantom.STRUCTURES) + 1))
    for structure in phantom.STRUCTURES:
        scheme, code, meaning = structure.code.split("^")
        assert scheme == "SCT"
        assert code.isdigit()
        assert meaning
    assert len({s.code for s in phantom.STRUCTURES}) == len({s.colour for s in phantom.STRUCTURES}) == 10


def test_a_case_is_made_in_seconds():
    start = time.perf_counter()
    phantom.make_case(9, phantom.SITE_A)
    assert time.perf_counter() - start < 5  # below 1 s on an idle processor


def test_a_written_data_set_reads_back_with_only_the_asked_structures(tmp_path):
    names = phantom.write_dataset(tmp_path, [3, 1], phantom.SITE_B, ["gallbladder", "spleen"])
    assert names == ["phantom-B-0003", "phantom-B-0001"]
    case = phantom.make_case(3, phantom.SITE_B)
    image = read_volume(tmp_path / "images" / "phantom-B-0003.nii.gz")
    labels = read_labels(tmp_path / "labels" / "phantom-B-0003.nii.gz")
    assert image.grid.same_as(case.volume.grid)
    np.testing.assert_array_equal(image.array, case.volume.array)
    for structure in case.structures:
        asked = structure.name in ("gallbladder", "spleen")
        assert set(labels.segments) == {"gallbladder", "spleen"}
        expected = case.labels == structure.value
        found = labels.layers[0] == structure.value
        assert found.any() == asked
        if asked:
            np.testing.assert_array_equal(labels.mask(structure), expected)
