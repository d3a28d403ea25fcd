"""Size and shape of structures: against bodies of known shape, and independent of how a scan is stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from peftseg.models import Structure
from peftseg.structure_facts import MEASURES, measure, structure_facts, summarise
from peftseg.study import LoadedScan
from peftseg.volume import Grid, Volume


def ellipsoid(radii, spacing, shape=(40, 40, 40)) -> np.ndarray:
    """In the middle of the array; radii in mm."""
    points = (np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2) * spacing
    return ((points / radii) ** 2).sum(-1) <= 1


def loaded(mask, spacing, known=True) -> LoadedScan:
    grid = Grid(mask.shape, np.diag([*spacing, 1.0]))
    return LoadedScan(Volume(np.zeros(mask.shape, np.float32), grid, "a"), {"ball": mask}, {"ball": known})


def test_a_ball_has_its_volume_and_no_direction():
    found = measure(ellipsoid((12, 12, 12), (1, 1, 1)), (1, 1, 1))
    assert found["volume_ml"] == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.02)
    assert found["elongation"] == pytest.approx(1, abs=0.02)
    assert (found["components"], found["scattered"], found["border_contact"]) == (1, 0, 0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.5)])
def test_elongation_is_longest_over_shortest_axis_in_mm(spacing):
    found = measure(ellipsoid((15, 5, 10), spacing), spacing)
    assert found["elongation"] == pytest.approx(3, rel=0.05)


def test_the_order_of_axes_changes_nothing_when_the_voxel_sizes_go_with_it():
    mask, spacing = ellipsoid((15, 5, 12), (0.8, 1.0, 2.5), (40, 16, 10)), (0.8, 1.0, 2.5)
    for axes in ((1, 2, 0), (2, 1, 0), (0, 2, 1)):
        turned = measure(mask.transpose(axes)[::-1], [spacing[a] for a in axes])
        assert turned == pytest.approx(measure(mask, spacing))


def test_pieces_and_specks_are_told_apart():
    mask = np.zeros((30, 30, 30), bool)
    mask[2:10, 2:10, 2:10] = mask[20:28, 2:10, 2:10] = True
    mask[15, 25, 15] = mask[20, 25, 25] = True
    found = measure(mask, (1, 1, 1))
    assert found["components"] == 2
    assert found["scattered"] == pytest.approx(2 / (2 * 512 + 2))
    corner = np.zeros((4, 4, 4), bool)
    corner[:2, :2, :2] = corner[2:, 2:, 2:] = True
    assert measure(corner, (1, 1, 1))["components"] == 1


def test_border_contact_is_the_share_of_voxels_in_outer_slices():
    mask = np.zeros((10, 10, 10), bool)
    mask[0:2, 4:6, 4:6] = True
    assert measure(mask, (1, 1, 1))["border_contact"] == 0.5
    single = np.zeros((10, 10, 1), bool)
    single[4:6, 4:6] = True
    assert measure(single, (1, 1, 3))["border_contact"] == 0
    assert measure(single, (1, 1, 3))["elongation"] < 2.5  # a slice has a thickness


def test_an_empty_mask_has_no_shape():
    found = measure(np.zeros((5, 5, 5), bool), (1, 1, 1))
    assert found["elongation"] is None
    assert all(found[name] == 0 for name in MEASURES if name != "elongation")


def test_facts_are_mean_deviation_and_range_over_the_scans_that_show_it():
    balls = [ellipsoid((r, r, r), (1, 1, 1)) for r in (8, 10, 12)]
    partly = np.zeros((40, 40, 40), bool)
    partly[10:20] = True
    scans = [loaded(mask, (1, 1, 1)) for mask in balls]
    scans += [loaded(np.zeros((40, 40, 40), bool), (1, 1, 1)), loaded(balls[0], (1, 1, 1), False)]
    scans += [loaded(balls[0], (1, 1, 1), partly)]
    facts = structure_facts(scans, [Structure("ball", 1)])["ball"]
    volumes = [mask.sum() / 1000 for mask in balls]
    assert (facts["scans"], facts["absent"]) == (3, 1)
    assert facts["volume_ml"]["mean"] == pytest.approx(np.mean(volumes), rel=1e-4)
    assert facts["volume_ml"]["sd"] == pytest.approx(np.std(volumes, ddof=1), rel=1e-4)
    assert (facts["volume_ml"]["min"], facts["volume_ml"]["max"]) == pytest.approx(
        (min(volumes), max(volumes)), rel=1e-4
    )
    assert set(facts) == {"scans", "absent", *MEASURES}
    assert json.loads(json.dumps(facts)) == facts


def test_one_scan_has_no_deviation_and_none_has_no_facts():
    one = summarise([measure(ellipsoid((8, 8, 8), (1, 1, 1)), (1, 1, 1))])
    assert one["volume_ml"]["sd"] == 0
    assert summarise([]) == {"scans": 0, "absent": 0}
