"""What is worth a second look in a result, in plain words. Torch-free.

Rules about shape and place only: they know nothing of the scan's grey values, so an empty list is no proof of quality.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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


def check_result(
    result: np.ndarray,
    structures: Sequence[Structure],
    grid: Grid,
    usual_borders: Mapping[str, Collection[str]] | None = None,
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

    Returns
    -------
    dict
        Structure name -> sentences; an empty list where nothing stands out.
    """
    boxes = _boxes(result, structures)
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
        found[structure.name] = [*_border_words(_touched(box, grid), usual), *_pieces(mask)]
    for name in _on_wrong_side(cropped, boxes, grid):
        found[name].append("lies on the wrong side: left and right may be swapped")
    return found


def _boxes(result: np.ndarray, structures: Sequence[Structure]) -> dict[str, Box | None]:
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


def _border_words(touched: Sequence[str], usual: Collection[str]) -> list[str]:
    sides = [side for side in touched if side not in usual]
    if not sides:
        return []
    if sides == ["some"]:
        return ["touches the border of the scan"]
    text = sides[0] if len(sides) == 1 else f"{', '.join(sides[:-1])} and {sides[-1]}"
    return [f"touches the {text} border of the scan"]


def _pieces(mask: np.ndarray) -> list[str]:
    labels, count = ndimage.label(mask, TOUCHING)
    if count < 2:
        return []
    sizes = np.bincount(labels.ravel())[1:]
    large = int(np.count_nonzero(sizes > PIECE_SHARE * sizes.sum()))
    return [f"is in {large} separate pieces"] if large > 1 else []


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
