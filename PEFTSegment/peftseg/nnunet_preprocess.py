"""nnU-Net's preprocessing: crop, normalise, then resample, in that order, with its interpolation.

Own code, because nnU-Net's needs its own package, holds volumes in 64 bits, and interpolates slice by slice in Python.
Interpolation is linear in the values, so each axis is one matrix product with what SciPy makes of unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from peftseg.axis_map import AxisMap, orient_to
from peftseg.grid import Grid
from peftseg.models import Intensity, Preprocessing
from peftseg.preprocess import Prepared, _mapping
from peftseg.volume import Volume

ANISOTROPIC = 3.0  # largest over smallest spacing, above which the coarsest axis is resampled by nearest voxels
ORDER = 3  # of the splines for grey values
INTENSITY_KINDS = ("zscore_all", "zscore_inside", "range01", "none")


def prepare_nnunet(volume: Volume, recipe: Preprocessing) -> Prepared:
    """Bring a study to the model grid as nnU-Net does.

    The study is cropped to the voxels that are not 0, its grey values are mapped, and then it is resampled so that the
    borders of both grids' outer voxels coincide: by cubic splines, along a coarse axis by nearest voxels.

    Parameters
    ----------
    volume : Volume
        (I, J, K) float32, finite.
    recipe : Preprocessing
        `orientation` is three axis codes such as "SAR", or the study's own axes in some order, such as "kji".
        `intensity` may also be of the kinds "zscore_all" (mean 0 and standard deviation 1 over all voxels),
        "zscore_inside" (over the voxels that are not 0 and the holes in them; the others stay 0), "range01" (all voxels
        to 0 to 1) and "none". `crop_foreground` is not used.

    Returns
    -------
    Prepared
        A study that is 0 everywhere is not cropped.
    """
    axes, signs = axes_of(volume.grid, recipe.orientation)
    turn = AxisMap(axes, (0.0, 0.0, 0.0), tuple(float(sign) for sign in signs))
    oriented = turn.orient(volume.array)
    box = _nonzero_box(oriented)
    cut = oriented[tuple(slice(*span) for span in box)]
    study = np.round([volume.grid.spacing[axis] for axis in axes], 6)  # headers' rounding must not change a shape
    shape = tuple(max(1, round(s / m * n)) for s, m, n in zip(study.tolist(), recipe.spacing, cut.shape, strict=True))
    image = _resize(_normalise(cut, recipe.intensity), shape, coarse_axis(study, recipe.spacing))
    mapping = _mapping_of(axes, signs, box, oriented.shape, shape)
    grid = Grid(shape, volume.grid.affine @ mapping.matrix())
    return Prepared(image[None], grid, volume.grid, "nnunet", coarse_axis(recipe.spacing, study))


def axes_of(grid: Grid, orientation: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Study axis and sign of each model axis; errors are those of `axis_map.orient_to`."""
    if sorted(orientation) == ["i", "j", "k"]:
        return tuple("ijk".index(axis) for axis in orientation), (1, 1, 1)
    return orient_to(grid, orientation)


def coarse_axis(first: Sequence[float], second: Sequence[float]) -> int | None:
    """The axis that nnU-Net resamples by nearest voxels, between two grids: None where neither is anisotropic.

    Parameters
    ----------
    first, second : sequence of float
        Spacing in mm along the same axes; the first one decides where both are anisotropic. For grey values it is the
        study's, for the network's results the model's.
    """
    for spacing in (np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)):
        if spacing.max() / spacing.min() > ANISOTROPIC:
            coarse = np.flatnonzero(np.isclose(spacing, spacing.max(), rtol=1e-6))
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def _mapping_of(
    axes: Sequence[int],
    signs: Sequence[int],
    box: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    shape: Sequence[int],
) -> AxisMap:
    """Where the model grid lies in the study's: the box of the oriented study, divided into `shape` voxels."""
    start, step = [], []
    for sign, (low, high), size, new in zip(signs, box, sizes, shape, strict=True):
        ratio = (high - low) / new
        first = low + (ratio - 1) / 2
        start.append(first if sign > 0 else size - 1 - first)
        step.append(sign * ratio)
    return AxisMap(tuple(axes), tuple(start), tuple(step))


def _nonzero_box(array: np.ndarray) -> list[tuple[int, int]]:
    """First voxel and end of the voxels that are not 0, along each axis; the whole array without any."""
    inside = array != 0
    if not inside.any():
        return [(0, n) for n in array.shape]
    box = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append((int(hit[0]), int(hit[-1]) + 1))
    return box


def _normalise(array: np.ndarray, intensity: Intensity) -> np.ndarray:
    """Grey values mapped, (A, B, C) float32; the caller's array stays as it is."""
    array = np.array(array, dtype=np.float32, order="C")
    if intensity.kind == "none":
        return array
    if intensity.kind == "zscore_inside":
        inside = ndimage.binary_fill_holes(array != 0)
        array[inside] = _standardise(array[inside])
        return array
    if intensity.kind == "zscore_all":
        return _standardise(array)
    if intensity.kind == "range01":
        array -= array.min()
        return array / max(float(array.max()), 1e-8)
    gain, offset, low, high = _mapping(array, intensity)
    mapped = (np.clip(array, low, high) - np.float32(offset)) * np.float32(gain)
    return mapped + np.float32(intensity.out_low if np.isfinite(low) else 0.0)


def _standardise(values: np.ndarray) -> np.ndarray:
    if not values.size:
        return values
    mean, spread = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return (values - np.float32(mean)) / np.float32(max(spread, 1e-8))


def _resize(array: np.ndarray, shape: Sequence[int], coarse: int | None) -> torch.Tensor:
    """Resample (A, B, C) to `shape`, float32: nearest along `coarse`, cubic along the others, within the input's range.

    The range is each slice's own where slices are resampled one by one, as nnU-Net does.
    """
    block = torch.from_numpy(array)
    if block.shape == tuple(shape):
        return block
    fine = [axis for axis in range(3) if axis != coarse]
    low, high = block.amin(dim=fine, keepdim=True), block.amax(dim=fine, keepdim=True)
    # Axes that shrink most go first: less to do for the others.
    for axis in sorted(fine, key=lambda a: shape[a] / block.shape[a]):
        if block.shape[axis] != shape[axis]:
            block = _along(block, axis, _spline_matrix(block.shape[axis], shape[axis]))
    block = torch.minimum(torch.maximum(block, low), high)
    if coarse is not None and block.shape[coarse] != shape[coarse]:
        block = block.index_select(coarse, torch.from_numpy(_nearest(block.shape[coarse], shape[coarse])))
    return block.contiguous()


def _spline_matrix(size: int, new: int) -> torch.Tensor:
    """(new, size) float32 of cubic spline interpolation between grids with the same borders."""
    matrix = ndimage.zoom(np.eye(size), (new / size, 1), order=ORDER, mode="nearest", grid_mode=True)
    return torch.from_numpy(matrix.astype(np.float32))


def _nearest(size: int, new: int) -> np.ndarray:
    """Index of the nearest voxel, (new,) int64; the upper one of two that are equally near."""
    position = size / new * (np.arange(new) + 0.5) - 0.5
    return np.clip(np.floor(position + 0.5), 0, size - 1).astype(np.int64)


def _along(block: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    if axis == 0:
        return (matrix @ block.flatten(1)).unflatten(1, block.shape[1:])
    return matrix @ block if axis == 1 else block @ matrix.T


def window_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxels of nnU-Net's windows along an axis of at least `window` voxels: as few as need be, evenly spread."""
    last = size - window
    count = math.ceil(last / (window * (1 - overlap)))
    return (0,) if count < 1 else tuple(round(last / count * n) for n in range(count + 1))


def window_weights(window: Sequence[int]) -> torch.Tensor:
    """Weights with which nnU-Net blends windows: a Gaussian of 1/8 of a side, up to 10, around the upper middle voxel.

    Returns
    -------
    tensor (*window) float32
        Above 0 everywhere.
    """
    weights = np.ones(())
    for size in window:
        line = np.zeros(size)
        line[size // 2] = 1
        weights = weights[..., None] * ndimage.gaussian_filter1d(line, size / 8, mode="constant")
    weights = (10 * weights / weights.max()).astype(np.float32)
    return torch.from_numpy(np.where(weights == 0, weights[weights > 0].min(), weights))
