"""What is worth a second look in a result, in plain words. Torch-free.

Rules about shape and place only: they know nothing of the scan's grey values, so an empty list is no proof of quality.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from peftseg.grid import Grid
from peftseg.laterality import check_laterality, paired_names
from peftseg.models import Structure

PIECE_SHARE = 0.05  # of a structure's volume: smaller specks are usual and seldom matter
TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a corner belong to one piece
SIDES = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "upper", "I": "lower"}
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
Box = tuple[slice, slice, slice]
Facts = Mapping[str, Mapping[str, Any]]


def check_result(
    result: np.ndarray,
    structures: Sequence[Structure],
    grid: Grid,
    usual_borders: Mapping[str, Collection[str]] | None = None,
    facts: Facts | None = None,
) -> dict[str, list[str]]:
    """Look at every structure of a segmentation.

    Parameters
    ----------
    result : array
        (I, J, K) label map with the structures' values, or (C, I, J, K) bool masks in their order.
    structures : sequence of Structure
    grid : Grid
        Of the result.
    usual_borders : dict, optional
        Structure name -> borders that it touched in the scans it was learnt from (`borders`), which are not worth a word.
    facts : mapping, optional
        Structure name -> what it looks like in those scans (`structure_facts`): as many pieces as there (both sides under one
        label, say) are not worth a word, but fewer are. Without them a structure is expected in one piece.

    Returns
    -------
    dict
        Structure name -> sentences; an empty list where nothing stands out.
    """
    boxes = boxes_of(result, structures)
    found: dict[str, list[str]] = {}
    cropped: dict[str, np.ndarray] = {}
    for row, structure in enumerate(structures):
        box = boxes[structure.name]
        if box is None:
            found[structure.name] = ["not found"]
            continue
        mask = result[(row, *box)] if result.ndim == 4 else result[box] == structure.value
        cropped[structure.name] = mask
        usual = (usual_borders or {}).get(structure.name, ())
        pieces = (facts or {}).get(structure.name, {}).get("components")
        touched = unusual_borders(box, grid, usual)
        found[structure.name] = [*_border_words(touched), *_piece_words(_pieces(mask), pieces)]
    for name in _on_wrong_side(cropped, boxes, grid):
        found[name].append("lies on the wrong side: left and right may be swapped")
    return found


def boxes_of(result: np.ndarray, structures: Sequence[Structure]) -> dict[str, Box | None]:
    """The box around each structure, None for one without voxels."""
    if result.ndim == 4:
        return {s.name: _box(result[row]) for row, s in enumerate(structures)}
    every = ndimage.find_objects(result)  # one pass for all structures
    return {s.name: every[s.value - 1] if s.value <= len(every) else None for s in structures}


def _box(mask: np.ndarray) -> Box | None:
    front, top = mask.any(axis=2), mask.any(axis=0)
    hits = [np.flatnonzero(line) for line in (front.any(axis=1), front.any(axis=0), top.any(axis=0))]
    return tuple(slice(int(h[0]), int(h[-1]) + 1) for h in hits) if len(hits[0]) else None


def borders(mask: np.ndarray, grid: Grid) -> list[str]:
    """The borders of the scan that a structure's mask (I, J, K) touches: "upper", "left" ..., or "some" where the grid
    does not know its sides."""
    box = _box(mask)
    return _touched(box, grid) if box is not None else []


def _touched(box: Box, grid: Grid) -> list[str]:
    """Whether the box reaches the first or last slice of an axis; sides are named where the grid knows them."""
    codes = []
    for part, size, code in zip(box, grid.shape, grid.axcodes, strict=True):
        if size > 1:
            codes += [OPPOSITE[code]] * (part.start == 0) + [code] * (part.stop == size)
    if grid.is_nominal:
        return ["some"] if codes else []
    return [SIDES[code] for code in sorted(codes, key="SIAPLR".index)]


def _border_words(sides: Sequence[str]) -> list[str]:
    if not sides:
        return []
    if sides == ["some"]:
        return ["touches the border of the scan"]
    text = sides[0] if len(sides) == 1 else f"{', '.join(sides[:-1])} and {sides[-1]}"
    return [f"touches the {text} border of the scan"]


def unusual_borders(box: Box, grid: Grid, usual: Collection[str]) -> list[str]:
    """The borders of the scan that a box reaches and that are not among the usual ones."""
    return [side for side in _touched(box, grid) if side not in usual]


def _pieces(mask: np.ndarray) -> int:
    """How many pieces are large enough to count."""
    labels, count = ndimage.label(mask, TOUCHING)
    if count < 2:
        return count
    sizes = np.bincount(labels.ravel())[1:]
    return int(np.count_nonzero(sizes > PIECE_SHARE * sizes.sum()))


def _piece_words(pieces: int, usual: Mapping[str, float] | None) -> list[str]:
    fewest, most = (1, 1) if usual is None else (round(usual["min"]), round(usual["max"]))
    if fewest <= pieces <= most or pieces == 0:
        return []
    found = "is in one piece" if pieces == 1 else f"is in {pieces} separate pieces"
    if (fewest, most) == (1, 1):
        return [found]
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return [f"{found}; in the scans that it was learnt from there are {count}"]


def _on_wrong_side(cropped: dict[str, np.ndarray], boxes: dict[str, Box | None], grid: Grid) -> list[str]:
    """Names of both of each pair that lies the wrong way round."""
    if grid.is_nominal:
        return []
    wrong = []
    for pair in paired_names(cropped):
        both = [boxes[name] for name in pair]
        hull = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*both, strict=True))
        masks = {name: _placed(cropped[name], boxes[name], hull) for name in pair}
        if check_laterality(masks, _part(grid, hull)):
            wrong += pair
    return wrong


def _placed(mask: np.ndarray, box: Box, hull: Box) -> np.ndarray:
    """A cropped mask in a larger box."""
    whole = np.zeros([h.stop - h.start for h in hull], dtype=bool)
    whole[tuple(slice(b.start - h.start, b.stop - h.start) for b, h in zip(box, hull, strict=True))] = mask
    return whole


def _part(grid: Grid, box: Box) -> Grid:
    """The grid of a box, moved off the world's zero, which would make it nominal; differences of positions stay."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box] + 1e4
    return Grid(tuple(part.stop - part.start for part in box), affine)
