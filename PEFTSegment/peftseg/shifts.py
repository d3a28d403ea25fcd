"""Made-up scanners: a real volume as another site might have scanned it, to measure what adaptation does. Torch-free.

A family is a kind of change, a seed is one site. What belongs to the site (grey-value curve, coil, thick axis, cut sides)
depends on family and seed only; noise depends on the scan, too. The geometry stays, so labels of the scan stay valid.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
from scipy import ndimage

from peftseg.errors import BadInput, unknown_name
from peftseg.volume import Volume

FAMILIES = ("contrast", "bias_field", "noise", "resolution", "inverted", "field_of_view")

# What strength 1 means.
CURVE_SPREAD = 1.5  # standard deviation of the logarithm of the curve's slopes
CURVE_PIECES = 5
BIAS = 1.2  # largest logarithm of the brightness error
NOISE = 0.3  # standard deviation, as a share of the scan's range of grey values
THICKNESS = 5.0  # voxels that one slice averages
CUT = 0.45  # share of an axis that is not scanned

RANGE = (0.5, 99.5)  # percentiles that stand for black and white
PADDING_SHARE = 0.01  # of the voxels: so many of exactly the smallest value are air or padding


def shift(volume: Volume, family: str, strength: float, seed: int = 0) -> Volume:
    """Scan a volume at a made-up site.

    Parameters
    ----------
    volume : Volume
        Is not changed.
    family : str
        "contrast": a curve that keeps the order of grey values; "bias_field": smooth brightness error of a coil; "noise";
        "resolution": thick slices along one axis; "inverted": dark becomes bright, beginning with the brightest;
        "field_of_view": outer parts are not scanned.
    strength : float
        0 (the volume itself) to 1 (hardly usable).
    seed : int
        The site.

    Returns
    -------
    Volume
        float32 on the same grid, with the same name. What is not scanned has the volume's smallest value.

    Raises
    ------
    BadInput
        Unknown family, or strength or seed out of range.
    """
    if family not in _SHIFTS:
        raise unknown_name("shift family", family, FAMILIES)
    if not 0 <= strength <= 1:
        raise BadInput(f"The strength of a shift is {strength}; expected 0 to 1.", "Choose a strength from 0 to 1.")
    if seed < 0:
        raise BadInput(f"Seed {seed} is negative; expected 0 or more.", "Choose another seed.")
    low, high = (float(p) for p in np.percentile(volume.array, RANGE))
    if strength == 0 or high <= low:
        return volume
    site = np.random.default_rng([seed, FAMILIES.index(family)])
    shifted = _SHIFTS[family](volume.array.astype(np.float32), low, high, strength, site)
    return replace(volume, array=shifted.astype(np.float32))


def _contrast(array: np.ndarray, low: float, high: float, strength: float, site: np.random.Generator) -> np.ndarray:
    """A rising curve of straight pieces; outside of the usual range it goes on with slope 1."""
    slopes = np.exp(site.normal(0, CURVE_SPREAD * strength, CURVE_PIECES))
    knots = np.concatenate([[0.0], np.cumsum(slopes) / slopes.sum()])
    unit = (array - low) / (high - low)
    inside = np.clip(unit, 0, 1)
    curved = np.interp(inside, np.linspace(0, 1, CURVE_PIECES + 1), knots)
    return low + (high - low) * (curved + unit - inside)


def _bias_field(array: np.ndarray, low: float, high: float, strength: float, site: np.random.Generator) -> np.ndarray:
    """Brightness above the scan's black times a smooth field, a polynomial of second degree in the position."""
    axes = np.meshgrid(
        *(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in array.shape), indexing="ij", sparse=True
    )
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    field = sum(weight * term for weight, term in zip(site.normal(0, 1, len(terms)), terms, strict=True))
    field = field - field.mean()
    largest = float(np.abs(field).max())
    if largest == 0:
        return array
    return low + (array - low) * np.exp(BIAS * strength * field / largest)


def _noise(array: np.ndarray, low: float, high: float, strength: float, site: np.random.Generator) -> np.ndarray:
    """Noise of its own for every scan of the site."""
    scan = np.random.default_rng([int(site.integers(2**31)), zlib.crc32(array.tobytes())])
    spread = NOISE * strength * (high - low)
    return array + scan.standard_normal(array.shape, dtype=np.float32) * np.float32(spread)


def _resolution(array: np.ndarray, low: float, high: float, strength: float, site: np.random.Generator) -> np.ndarray:
    """Slices that are thicker than the voxels, along one axis of the array, interpolated linearly back to the voxels."""
    axis = int(site.integers(3))
    factor, size = 1 + (THICKNESS - 1) * strength, array.shape[axis]
    blurred = ndimage.gaussian_filter1d(array, factor / 2.355, axis=axis, mode="nearest")
    slices = np.arange((size - 1) % factor / 2, size, factor)  # positions in voxels, around the middle
    if len(slices) < 2:
        return blurred
    where = np.interp(np.arange(size), slices, np.arange(len(slices)))
    below = np.minimum(where.astype(int), len(slices) - 2)
    thick = _take(blurred, slices, axis)
    part = (where - below).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.take(thick, below, axis) * (1 - part) + np.take(thick, below + 1, axis) * part


def _take(array: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Values at positions between the voxels of one axis."""
    below = np.minimum(positions.astype(int), array.shape[axis] - 1)
    above = np.minimum(below + 1, array.shape[axis] - 1)
    part = (positions - below).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.take(array, below, axis) * (1 - part) + np.take(array, above, axis) * part


def _inverted(array: np.ndarray, low: float, high: float, strength: float, site: np.random.Generator) -> np.ndarray:
    """Grey values rise to white and fall from there on; white is reached the earlier the stronger (at 1: only falls).

    Blending with the inverse would lose all contrast half-way.
    """
    unit = np.clip((array - low) / (high - low), 0, 1)
    top = 1 - strength
    falls = (1 - unit) / (1 - top)
    turned = low + (high - low) * (np.where(unit < top, unit / top, falls) if top > 0 else falls)
    darkest = array == array.min()
    keeps_air = np.count_nonzero(darkest) >= PADDING_SHARE * array.size
    return np.where(darkest, array, turned) if keeps_air else turned


def _field_of_view(
    array: np.ndarray, low: float, high: float, strength: float, site: np.random.Generator
) -> np.ndarray:
    """Nothing was scanned at one end of an axis, and less of it at the other two axes."""
    seen = np.full_like(array, array.min())
    inside = []
    for axis, part in zip(site.permutation(3), (1.0, site.uniform(0, 0.5), site.uniform(0, 0.5)), strict=True):
        cut = math.ceil(CUT * strength * part * array.shape[axis])
        inside.append((int(axis), slice(cut, None) if site.random() < 0.5 else slice(0, array.shape[axis] - cut)))
    box = tuple(part for _, part in sorted(inside, key=lambda item: item[0]))
    seen[box] = array[box]
    return seen


_SHIFTS = {
    "contrast": _contrast,
    "bias_field": _bias_field,
    "noise": _noise,
    "resolution": _resolution,
    "inverted": _inverted,
    "field_of_view": _field_of_view,
}
