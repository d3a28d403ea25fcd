"""Left and right: paired structure names, and whether they lie on the sides that they say. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from peftseg.grid import Grid

_SIDES = {"left": "right", "lh": "rh", "l": "r"}
_SIDE = re.compile(r"(?<![a-z])(left|right|lh|rh|l|r)(?![a-z0-9])", re.IGNORECASE)


def paired_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """(left, right) pairs among the names, e.g. "kidney_left" and "kidney_right", "L insula" and "R insula"."""
    names = list(names)
    sides = {_side_key(name): name for name in names}
    return [
        (name, sides[(*_side_key(name)[:-1], right)])
        for name in names
        for right in [_SIDES.get(_side_key(name)[-1])]
        if right and (*_side_key(name)[:-1], right) in sides
    ]


def side(name: str) -> str | None:
    """ "left" or "right", as the name's one side word says; None for names without one, or with several."""
    word = _side_key(name)[-1]
    return {**dict.fromkeys(_SIDES, "left"), **dict.fromkeys(_SIDES.values(), "right")}.get(word)


def _side_key(name: str) -> tuple[str, ...]:
    """Parts of a name around its one side word, and that word; names without one, or with several, have no side."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # "LeftKidney" is two words
    found = list(_SIDE.finditer(words))
    if len(found) != 1:
        return (name.lower(), "", "")
    return (words[: found[0].start()].lower(), words[found[0].end() :].lower(), found[0].group().lower())


def check_laterality(masks: dict[str, np.ndarray], grid: Grid) -> list[str]:
    """Warnings for paired names (left, right) whose centres of mass lie on the wrong sides.

    Silent where the grid's position is nominal (see `Grid.is_nominal`) and where one of a pair has no voxels.

    Parameters
    ----------
    masks : dict
        Structure name -> (I, J, K) bool.
    grid : Grid
        Their grid.
    """
    if grid.is_nominal:
        return []
    warnings = []
    for left, right in paired_names(masks):
        if not (masks[left].any() and masks[right].any()):
            continue
        x_left, x_right = (float(_centre(masks[name], grid)[0]) for name in (left, right))
        if x_left >= x_right:  # RAS: x grows towards the patient's right
            warnings.append(
                f"'{left}' lies {x_left - x_right:.1f} mm to the right of '{right}': the labels or the scan's "
                "orientation may be swapped. Check them before you go on."
            )
    return warnings


def _centre(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Centre of mass in RAS mm."""
    index = np.ones(4)
    for axis in range(3):
        counts = mask.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
        index[axis] = (counts * np.arange(len(counts))).sum() / counts.sum()
    return (grid.affine @ index)[:3]
