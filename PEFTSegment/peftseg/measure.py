"""What a segmentation measures: volume, grey values, extent and centre of each structure. Torch-free.

Volumes are voxel counts times the voxel's size; grey values are the scan's own, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftseg.flags import Box, boxes_of
from peftseg.grid import Grid
from peftseg.models import Structure
from peftseg.report import to_ras


@dataclass(frozen=True)
class Measurement:
    """One structure in one scan; all but the volume are None where the structure was not found.

    Attributes
    ----------
    voxels, volume_ml : int, float
    mean, sd, low, high : float or None
        Of the scan's grey values inside the structure.
    extent_mm : tuple of float or None
        Of the box around it: left-right, front-back, head-foot (along the scan's own axes nearest to these).
    centre_mm : tuple of float or None
        Mean position of its voxels, RAS.
    """

    voxels: int
    volume_ml: float
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    extent_mm: tuple[float, float, float] | None = None
    centre_mm: tuple[float, float, float] | None = None


def measure(
    array: np.ndarray, result: np.ndarray, structures: Sequence[Structure], grid: Grid
) -> dict[str, Measurement]:
    """Measure every structure of a segmentation.

    Parameters
    ----------
    array : array (I, J, K)
        The scan's grey values.
    result : array
        (I, J, K) label map with the structures' values, or (C, I, J, K) bool masks in their order.
    structures : sequence of Structure
    grid : Grid
        Of both.
    """
    found = {}
    boxes = boxes_of(result, structures)
    for row, structure in enumerate(structures):
        box = boxes[structure.name]
        if box is None:
            found[structure.name] = Measurement(0, 0.0)
            continue
        mask = result[(row, *box)] if result.ndim == 4 else result[box] == structure.value
        found[structure.name] = _measured(array[box][mask], mask, box, grid)
    return found


def _measured(values: np.ndarray, mask: np.ndarray, box: Box, grid: Grid) -> Measurement:
    count = len(values)
    mean = float(values.mean(dtype=np.float64))
    turned, steps = to_ras(mask, grid)
    centre = [_mean_index(mask, axis) + part.start for axis, part in enumerate(box)]
    place = grid.affine[:3, :3] @ centre + grid.affine[:3, 3]
    return Measurement(
        voxels=count,
        volume_ml=round(count * float(np.prod(grid.spacing)) / 1000, 3),
        mean=round(mean, 3),
        sd=round(float(values.std(dtype=np.float64)), 3),
        low=round(float(values.min()), 3),
        high=round(float(values.max()), 3),
        extent_mm=tuple(round(n * step, 2) for n, step in zip(turned.shape, steps, strict=True)),
        centre_mm=tuple(round(float(p), 2) for p in place),
    )


def _mean_index(mask: np.ndarray, axis: int) -> float:
    others = tuple(a for a in range(3) if a != axis)
    counts = mask.sum(axis=others, dtype=np.int64)
    return float((counts * np.arange(len(counts))).sum() / counts.sum())
