"""Maps on a study's own grid: windows added up, the way back, Otsu's threshold, and Dice with a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from torch.nn import functional

from peftseg.axis_map import axis_map
from peftseg.nnunet_preprocess import window_weights
from peftseg.preprocess import Prepared
from peftseg.resample import interpolate, taps_back
from peftseg.windows import SIGMA_SCALE, Tiling

BINS = 256  # of Otsu's histogram
FLAT = 1e-12  # a map whose values differ by no more, beside its largest, is constant

Corner = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Padded:
    """An image with the voxels around it that its windows need.

    Attributes
    ----------
    image : tensor (I'', J'', K'')
        On the device.
    tiling : Tiling
        Where the windows lie.
    """

    image: torch.Tensor
    tiling: Tiling

    def corners(self) -> Iterator[Corner]:
        """First voxels of the windows."""
        return itertools.product(*self.tiling.starts)

    def count(self) -> int:
        """Number of windows."""
        return math.prod(len(axis) for axis in self.tiling.starts)

    def cut(self, array: torch.Tensor, corner: Corner) -> torch.Tensor:
        """The view of a window in an array (..., I'', J'', K'')."""
        return array[(..., *(slice(c, c + w) for c, w in zip(corner, self.tiling.window, strict=True)))]

    def around(self, array: torch.Tensor) -> torch.Tensor:
        """An array (I', J', K') of the image with zeros around, like the image itself."""
        return functional.pad(array, _pads(self.tiling))

    def inner(self, array: torch.Tensor) -> torch.Tensor:
        """Inverse of `around`, a view."""
        return array[(..., *(slice(b, b + n) for b, n in zip(self.tiling.before, self.tiling.shape, strict=True)))]


def pad(image: torch.Tensor, tiling: Tiling, value: float) -> Padded:
    """An image (I', J', K') with its tiling's voxels of this value around it."""
    return Padded(functional.pad(image, _pads(tiling), value=value), tiling)


def _pads(tiling: Tiling) -> list[int]:
    return [p for axis in (2, 1, 0) for p in (tiling.before[axis], tiling.after[axis])]


def blending_weights(tiling: Tiling, device: torch.device) -> torch.Tensor:
    """How much each voxel of a window counts where windows overlap, (*window): those of segmentation."""
    if tiling.scheme == "nnunet":
        return window_weights(tiling.window).to(device)
    return compute_importance_map(tiling.window, mode="gaussian", sigma_scale=SIGMA_SCALE, device=device)


class WindowSum:
    """Weighted sum of windows' maps over a whole image.

    Parameters
    ----------
    padded : Padded
        The image.
    count : int
        Maps.
    """

    def __init__(self, padded: Padded, count: int) -> None:
        self._padded = padded
        self._weights = blending_weights(padded.tiling, padded.image.device)
        self._total = padded.image.new_zeros((count, *padded.image.shape))

    def add(self, corner: Corner, maps: torch.Tensor) -> None:
        """Add the maps (count, *window) of one window; a window that is never added counts as zeros."""
        self._padded.cut(self._total, corner).addcmul_(maps, self._weights)

    def mean(self) -> torch.Tensor:
        """(count, I', J', K') weighted mean of the windows at each voxel; the sum is of no further use."""
        weight = torch.zeros_like(self._padded.image)
        for corner in self._padded.corners():
            self._padded.cut(weight, corner).add_(self._weights)
        return self._padded.inner(self._total.div_(weight))


def on_study_grid(values: torch.Tensor, prepared: Prepared) -> np.ndarray:
    """Interpolate a map (I', J', K') of the model grid linearly to the study's own voxels.

    Returns
    -------
    array (I, J, K) float32
        0 where the study was cropped away.
    """
    mapping = axis_map(prepared.grid, prepared.source)
    taps = taps_back(mapping, prepared.grid.shape, prepared.source.shape, prepared.nearest, prepared.reach)
    result = np.zeros(prepared.source.shape, dtype=np.float32)
    if all(len(tap.low) for tap in taps):
        part = tuple(slice(t.first, t.first + len(t.low)) for t in taps)
        mapping.orient(result)[part] = interpolate(values.float().cpu(), taps).numpy()
    return result


def is_constant(values: np.ndarray) -> bool:
    """Whether a map has one value only, so that it shows nothing."""
    low, high = float(values.min()), float(values.max())
    return high - low <= FLAT * max(abs(low), abs(high))


def normalise(values: np.ndarray) -> np.ndarray:
    """Smallest to largest value become 0 to 1; a constant map becomes all 0."""
    if is_constant(values):
        return np.zeros_like(values, dtype=np.float32)
    low = float(values.min())
    return ((values - low) / (float(values.max()) - low)).astype(np.float32)


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold by a histogram of 256 bins: the centre of the bin after which two classes differ most.

    Values above it are the foreground. Otsu 1979; as scikit-image's `threshold_otsu`.

    Parameters
    ----------
    values : array
        Not constant.
    """
    counts, edges = np.histogram(values, bins=BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mass = counts * centres
    mean_below = np.cumsum(mass) / below
    mean_above = (np.cumsum(mass[::-1]) / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(np.argmax(between))])


def binarise(values: np.ndarray) -> np.ndarray:
    """A map above its Otsu threshold, bool; nothing of a constant map, which Otsu would split all the same."""
    return np.zeros(values.shape, dtype=bool) if is_constant(values) else values > otsu(values)


def match(found: np.ndarray, mask: np.ndarray) -> float:
    """Dice of a binary map and a mask; 1 when both are empty (the thesis's Table 5.10 counts so)."""
    total = np.count_nonzero(found) + np.count_nonzero(mask)
    return 2.0 * np.count_nonzero(found & mask) / total if total else 1.0


def box_of(low: Sequence[float], high: Sequence[float], prepared: Prepared) -> torch.Tensor:
    """(I', J', K') bool of the voxels whose centre lies in a box between two corners, in RAS mm."""
    affine = prepared.grid.affine
    inside = np.ones(prepared.grid.shape, dtype=bool)
    first, last = np.minimum(low, high), np.maximum(low, high)
    for axis in range(3):
        terms = [affine[axis, a] * np.arange(n) for a, n in enumerate(prepared.grid.shape)]
        place = affine[axis, 3] + terms[0][:, None, None] + terms[1][:, None] + terms[2]
        inside &= (place >= first[axis]) & (place <= last[axis])
    return torch.from_numpy(inside)


def voxel_at(point: Sequence[float], prepared: Prepared) -> tuple[int, int, int] | None:
    """The voxel of the model grid that holds a point in RAS mm, or None outside of it."""
    index = np.linalg.solve(prepared.grid.affine, np.array([*point, 1.0]))[:3]
    nearest = np.floor(index + 0.5).astype(int)
    inside = all(0 <= n < size for n, size in zip(nearest, prepared.grid.shape, strict=True))
    return tuple(int(n) for n in nearest) if inside else None
