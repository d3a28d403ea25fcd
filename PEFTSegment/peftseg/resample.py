"""Resampling between the study's grid and the model grid, axis by axis (see `axis_map.AxisMap`), there and back.
 Own code, because MONAI's and
SciPy's resamplers take a whole volume of every class at once, and `torch.nn.functional.interpolate` knows no shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from peftseg.axis_map import AxisMap

ANTIALIAS_FROM = 1.5  # shrinking by more than this averages neighbours instead of skipping them


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along one axis.

    Output number `first + n` is `x[low[n]] * (1 - weight[n]) + x[low[n] + 1] * weight[n]`.

    Attributes
    ----------
    first : int
        First output index; outputs before it, and from `first + len(low)` on, lie outside of the input.
    low : int64 array (N,)
        Ascending.
    weight : float32 array (N,)
        0 where `low[n]` is the last input.
    """

    first: int
    low: np.ndarray
    weight: np.ndarray

    def part(self, start: int, stop: int) -> Taps:
        """The taps number `start` to `stop` (not output indices)."""
        return Taps(self.first + start, self.low[start:stop], self.weight[start:stop])

    def shifted(self, offset: int) -> Taps:
        """The same taps for an input that lacks the first `offset` elements."""
        return Taps(self.first, self.low - offset, self.weight)


def taps_back(
    mapping: AxisMap,
    model_shape: Sequence[int],
    study_shape: Sequence[int],
    nearest: int | None = None,
    reach: float = 0.75,
) -> tuple[Taps, Taps, Taps]:
    """Taps from the model grid to the oriented study (see `AxisMap.orient`), one a model axis.

    Study voxels of which the centre lies more than `reach` model voxels outside of the model grid (it may be cropped) have
    no tap. Along the axis `nearest` each voxel has the nearest one's value.
    """
    taps = []
    for axis, size in enumerate(model_shape):
        count = study_shape[mapping.axes[axis]]
        position = (np.arange(count) - mapping.oriented_start(axis, study_shape)) / abs(mapping.step[axis])
        position = np.round(position, 6)
        inside = np.flatnonzero((position >= -reach) & (position <= size - 1 + reach))
        position = np.floor(position + 0.5) if axis == nearest else position
        taps.append(_linear_taps(position[inside], size, int(inside[0]) if len(inside) else 0))
    return tuple(taps)


def _linear_taps(position: np.ndarray, size: int, first: int) -> Taps:
    clamped = np.clip(position, 0, size - 1)
    low = np.floor(clamped).astype(np.int64)
    return Taps(first, low, (clamped - low).astype(np.float32))


def interpolate(block: torch.Tensor, taps: Sequence[Taps]) -> torch.Tensor:
    """Separable linear interpolation of a block (P, Q, R) with the taps of its three axes."""
    for axis, tap in enumerate(taps):
        block = _interpolate_axis(block, axis, tap)
    return block


def _interpolate_axis(block: torch.Tensor, axis: int, taps: Taps) -> torch.Tensor:
    size, count = block.shape[axis], len(taps.low)
    if not taps.weight.any():
        if count == size and np.array_equal(taps.low, np.arange(size)):
            return block
        return block.index_select(axis, torch.from_numpy(taps.low).to(block.device))
    low = torch.from_numpy(taps.low).to(block.device)
    shape = [1, 1, 1]
    shape[axis] = count
    weight = torch.from_numpy(taps.weight).to(block.device).view(shape)
    high = (low + 1).clamp_(max=size - 1)
    return block.index_select(axis, low).lerp_(block.index_select(axis, high), weight)


def resample_to_model(array: np.ndarray, mapping: AxisMap, shape: Sequence[int]) -> torch.Tensor:
    """Resample an array (I, J, K) of the study to the model grid; axes that shrink most go first.

    Linear; along an axis that shrinks by more than `ANTIALIAS_FROM`, each model voxel is the mean over its width.

    Returns
    -------
    tensor (I', J', K') float32
    """
    block = torch.from_numpy(np.array(mapping.orient(array), dtype=np.float32, order="C"))  # a copy, never the caller's
    for axis in sorted(range(3), key=lambda a: -abs(mapping.step[a])):
        ratio = abs(mapping.step[axis])
        position = mapping.oriented_start(axis, array.shape) + ratio * np.arange(shape[axis])
        if ratio > ANTIALIAS_FROM:
            block = _average_axis(block, axis, position, ratio)
        else:
            block = _interpolate_axis(block, axis, _linear_taps(np.round(position, 6), block.shape[axis], 0))
    return block.contiguous()


def _average_axis(block: torch.Tensor, axis: int, position: np.ndarray, ratio: float) -> torch.Tensor:
    """Mean of the linear interpolant over intervals `ratio` voxels wide around the positions; keeps ramps.

    Intervals beyond the ends take the last one that still touches the block.
    """
    position = np.clip(position, -ratio / 2, block.shape[axis] - 1 + ratio / 2)
    offset = position[:, None] - np.arange(block.shape[axis])[None, :]
    weights = _hat_integral(offset + ratio / 2) - _hat_integral(offset - ratio / 2)
    weights = torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
    if axis == 0:
        return (weights @ block.flatten(1)).unflatten(1, block.shape[1:])
    return weights @ block if axis == 1 else block @ weights.T


def _hat_integral(x: np.ndarray) -> np.ndarray:
    """Integral from minus infinity to x of the hat function max(0, 1 - |x|)."""
    x = np.clip(x, -1, 1)
    return np.where(x < 0, (1 + x) ** 2 / 2, 1 - (1 - x) ** 2 / 2)
