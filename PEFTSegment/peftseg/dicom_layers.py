"""A result on the grid of the DICOM series that it refers to. Torch-free.

Results go back as DICOM only on the very grid of their series: the axes may be permuted or flipped (files of other
programs come back in their own order), nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftseg.axis_map import AxisMap
from peftseg.dicom_source import Source
from peftseg.dicom_stack import TILT_TOLERANCE, step_tolerance
from peftseg.errors import BadInput
from peftseg.grid import LPS_RAS, Grid
from peftseg.models import Structure
from peftseg.volume import Labels
from peftseg.writing import check_structures, layers_of

GRID_TOLERANCE = 0.01  # of the smallest voxel edge, at the corners; NIfTI holds single precision


def numbered_layers(
    result: np.ndarray | Labels, grid: Grid, source: Source, structures: Sequence[Structure]
) -> list[np.ndarray]:
    """The result on the grid of its series as label maps (I, J, K) in which structures have the numbers 1 to n.

    Parameters
    ----------
    result : np.ndarray or Labels
        (I, J, K) label map with the structures' values, (C, I, J, K) bool masks in their order, or what `read_labels`
        gave.
    grid : Grid
        Where its voxels lie.
    source : Source
        The series.
    structures : sequence of Structure
        Number n in the layers is structures[n - 1].

    Returns
    -------
    list of np.ndarray
        uint8 or uint16; one where no structures overlap, more where they do. A structure is in one of them.

    Raises
    ------
    BadInput
        Another grid or shape, or voxels that belong to no structure.
    """
    check_structures(structures)
    dtype = np.uint8 if len(structures) <= np.iinfo(np.uint8).max else np.uint16
    array = result.layers if isinstance(result, Labels) else np.asarray(result)
    expected = (array.shape[0], *grid.shape) if array.ndim == 4 else grid.shape
    if array.shape != expected or (array.ndim == 4 and array.dtype == bool and len(array) != len(structures)):
        raise BadInput(
            f"The segmentation has shape {array.shape}; expected {grid.shape}, or one mask for each of "
            f"{len(structures)} structures.",
            "Give a label map or one mask a structure, on the study's grid.",
        )
    if isinstance(result, Labels) and result.segments:
        layers = _renumbered_segments(result, structures, dtype)
    elif array.ndim == 4 and array.dtype == bool:
        layers, _ = layers_of(array, range(1, len(array) + 1), dtype)
    else:
        array = array[0] if array.ndim == 4 else array
        layers = [_renumbered(array, {s.value: number for number, s in enumerate(structures, 1)}, dtype)]
    filled = [layer for layer in layers if layer.any()] or layers[:1]
    return [orient_to_source(layer, grid, source) for layer in filled]


def planes_of(layers: Sequence[np.ndarray]) -> dict[int, tuple[int, list[int]]]:
    """Number of each structure that has voxels -> its layer, and the planes (last axis) that it is in."""
    found: dict[int, tuple[int, list[int]]] = {}
    for index, layer in enumerate(layers):
        for k in range(layer.shape[2]):
            for number in np.flatnonzero(np.bincount(layer[:, :, k].ravel())).tolist():
                if number:
                    found.setdefault(number, (index, []))[1].append(k)
    return found


def orient_to_source(array: np.ndarray, grid: Grid, source: Source) -> np.ndarray:
    """View of an array (..., I, J, K) with its axes in the order and direction of the series.

    Raises
    ------
    BadInput
        The array's grid is not the series' own one after permuting and flipping axes; with both grids in numbers.
    """
    into = np.linalg.inv(grid.affine) @ source.grid.affine  # from an index of the series to one of the array
    axes = tuple(int(a) for a in np.abs(into[:3, :3]).argmax(axis=0))
    if sorted(axes) == [0, 1, 2]:
        steps = tuple(float(np.sign(into[axis, a])) for a, axis in enumerate(axes))
        ends = tuple(0.0 if step > 0 else grid.shape[axis] - 1.0 for axis, step in zip(axes, steps, strict=True))
        turn = AxisMap(axes, ends, steps)
        turned = Grid(tuple(grid.shape[axis] for axis in axes), grid.affine @ turn.matrix())
        away = turned.distance(source.grid)
        if away <= GRID_TOLERANCE * min(grid.spacing) and _planes_fit(source):
            return turn.orient(array)
        apart = f" (corners up to {away:.4g} mm apart)" if np.isfinite(away) else ""
    else:
        apart = " (turned against it)"
    raise BadInput(
        f"The result is not on the grid of the series{apart}: the result has {grid.describe()}; the series has "
        f"{source.grid.describe()}.",
        "Give the series that was segmented. A result that was resampled, cropped or regularised cannot refer to it: "
        "segment the series itself.",
    )


def _planes_fit(source: Source) -> bool:
    """Whether each plane lies where the regular grid has it, as near as `dicom.read_series` asks for."""
    step = source.grid.spacing[2]
    near = step_tolerance(step) + TILT_TOLERANCE * min(source.grid.spacing[:2]) + 1e-6
    lps = LPS_RAS @ source.grid.affine
    even = lps[:3, 3] + np.outer(np.arange(len(source.positions)), lps[:3, 2])
    return bool(np.linalg.norm(even - source.positions, axis=1).max() <= near)


def _renumbered(labels: np.ndarray, numbers: dict[int, int], dtype: type) -> np.ndarray:
    low, high = int(labels.min()), int(labels.max())
    known = {0: 0, **numbers}
    table = np.zeros(max(high, 0) + 1, dtype=dtype)
    belongs = np.zeros(len(table), dtype=bool)
    for value, number in known.items():
        if value <= high:
            table[value], belongs[value] = number, True
    result = np.empty(labels.shape, dtype=dtype)
    unknown = {low} if low < 0 else set()
    for plane, out in zip(labels, result, strict=True) if low >= 0 else ():  # numpy widens indices to 8 bytes each
        unknown.update(int(v) for v in np.unique(plane[~belongs[plane]]))
        out[...] = table[plane]
    if unknown:
        raise BadInput(
            f"The label map holds {sorted(unknown)}, which belong to no structure; expected 0 and {sorted(numbers)}.",
            "Give all structures of the label map.",
        )
    return result


def _renumbered_segments(labels: Labels, structures: Sequence[Structure], dtype: type) -> list[np.ndarray]:
    layers = []
    for index, layer in enumerate(labels.layers):
        places = [labels.segments.get(s.name) for s in structures]
        numbers = {place[1]: n for n, place in enumerate(places, 1) if place and place[0] == index}
        layers.append(_renumbered(layer, numbers, dtype))
    return layers
