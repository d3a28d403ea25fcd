"""What stands out in a result: missing, cut off at the border, in pieces, on the wrong side."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from peftseg.flags import borders, check_result
from peftseg.grid import Grid
from peftseg.models import Structure

SHAPE = (30, 24, 20)
PLACED = np.array([[1.0, 0, 0, -300], [0, 1, 0, 50], [0, 0, 2, 700], [0, 0, 0, 1]])  # RAS, a known position
LIVER, LEFT, RIGHT = Structure("liver", 3), Structure("left kidney", 40), Structure("right kidney", 300)


def labelled(*boxes, shape=SHAPE):
    """A label map with (value, i, j, k) boxes of six voxels from a corner on."""
    result = np.zeros(shape, np.uint16)
    for value, i, j, k in boxes:
        result[i : i + 6, j : j + 6, k : k + 6] = value
    return result


def look(result, structures=(LIVER,), affine=PLACED):
    return check_result(result, structures, Grid(result.shape[-3:], affine))


def test_a_structure_in_one_piece_inside_of_the_scan_is_ok():
    assert look(labelled((3, 8, 8, 8))) == {"liver": []}


def test_what_is_not_found_is_said():
    assert look(labelled((40, 8, 8, 8)), (LIVER, LEFT)) == {"liver": ["not found"], "left kidney": []}
    assert look(np.zeros(SHAPE, np.uint16)) == {"liver": ["not found"]}


@pytest.mark.parametrize(
    ("corner", "side"),
    [
        ((0, 8, 8), "left"),
        ((24, 8, 8), "right"),
        ((8, 0, 8), "back"),
        ((8, 18, 8), "front"),
        ((8, 8, 0), "lower"),
        ((8, 8, 14), "upper"),
        ((0, 8, 14), "upper and left"),
        ((0, 0, 0), "lower, back and left"),
    ],
)
def test_the_border_that_is_touched_is_named(corner, side):
    assert look(labelled((3, *corner))) == {"liver": [f"touches the {side} border of the scan"]}


def test_a_border_that_the_labels_touched_too_is_not_worth_a_word():
    result, grid = labelled((3, 0, 8, 14)), Grid(SHAPE, PLACED)
    assert borders(result == 3, grid) == ["upper", "left"]
    assert borders(np.zeros(SHAPE, bool), grid) == []
    assert check_result(result, (LIVER,), grid, {"liver": ["upper", "lower"]}) == {
        "liver": ["touches the left border of the scan"]
    }
    assert check_result(result, (LIVER,), grid, {"liver": ["left", "upper"]}) == {"liver": []}
    nowhere = Grid(SHAPE, np.eye(4))
    assert check_result(result, (LIVER,), nowhere, {"liver": borders(result == 3, nowhere)}) == {"liver": []}


def test_one_voxel_from_the_border_is_not_touching_it():
    assert look(labelled((3, 1, 1, 1))) == {"liver": []}


def test_sides_follow_the_scans_orientation():
    lps = np.diag([-1.0, -1, 1, 1])
    lps[:3, 3] = 200
    assert look(labelled((3, 0, 8, 8)), affine=lps)["liver"] == ["touches the right border of the scan"]
    sagittal = np.array([[0, 0, 1.0, 90], [1, 0, 0, -80], [0, -1, 0, 300], [0, 0, 0, 1]])  # axes A, I, R
    assert look(labelled((3, 8, 0, 8)), affine=sagittal)["liver"] == ["touches the upper border of the scan"]


def test_a_made_up_position_names_no_side():
    assert look(labelled((3, 0, 8, 8)), affine=np.eye(4))["liver"] == ["touches the border of the scan"]


def test_a_scan_of_one_slice_has_no_border_along_it():
    result = np.zeros((30, 24, 1), np.uint16)
    result[8:14, 8:14] = 3
    assert look(result) == {"liver": []}


def test_large_pieces_are_counted_and_specks_are_not():
    result = labelled((3, 2, 8, 8), (3, 12, 8, 8), (3, 22, 8, 8))
    assert look(result)["liver"] == ["is in 3 separate pieces"]
    result = labelled((3, 2, 8, 8))
    result[20, 8, 8:10] = 3  # 2 of 218 voxels
    assert look(result)["liver"] == []


def test_voxels_that_share_a_corner_are_one_piece():
    assert look(labelled((3, 2, 2, 2), (3, 8, 8, 8)))["liver"] == []


def test_swapped_sides_are_told_of_both():
    right_way = labelled((40, 4, 8, 8), (300, 20, 8, 8))  # x grows towards the right
    assert look(right_way, (LEFT, RIGHT)) == {"left kidney": [], "right kidney": []}
    found = look(labelled((300, 4, 8, 8), (40, 20, 8, 8)), (LEFT, RIGHT))
    assert all("wrong side" in sentences[0] for sentences in found.values())
    assert look(labelled((300, 4, 8, 8), (40, 20, 8, 8)), (LEFT, RIGHT), np.eye(4)) == {
        "left kidney": [],
        "right kidney": [],
    }


def test_the_box_of_a_pair_may_begin_at_the_worlds_zero():
    """Cropped there, the grid would look made up and the check would be silent."""
    affine = np.eye(4)
    affine[:3, 3] = -4, -8, -8
    found = look(labelled((300, 4, 8, 8), (40, 20, 8, 8)), (LEFT, RIGHT), affine)
    assert all(found.values())


def test_overlapping_masks_are_looked_at_one_by_one():
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 8:14, 8:14, 8:14] = True
    masks[1, 0:14, 8:14, 8:14] = True
    found = look(masks, (LIVER, Structure("tumour", 4)))
    assert found == {"liver": [], "tumour": ["touches the left border of the scan"]}


def test_ten_structures_in_a_usual_scan_take_well_under_a_second():
    rng = np.random.default_rng(0)
    result = np.zeros((160, 160, 160), np.uint8)
    for value in range(1, 11):
        i, j, k = rng.integers(0, 110, 3)
        result[i : i + 50, j : j + 50, k : k + 50] = value
    structures = [Structure(f"s{value}", value) for value in range(1, 11)]
    began = time.process_time()
    look(result, structures)
    assert time.process_time() - began < 1.0


def test_the_checks_need_no_torch():
    script = "import sys; sys.modules['torch'] = None; import peftseg.flags"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
