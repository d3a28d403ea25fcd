"""What one scan is like, in a few numbers (see `site_statistics.py`). Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peftseg.axis_map import orient_to
from peftseg.model_choice import guess_modality
from peftseg.models import Preprocessing
from peftseg.recipe import choose_recipe, support_facts
from peftseg.volume import Volume

if TYPE_CHECKING:
    from peftseg.preprocess import Prepared

GREY, TEXTURE, VOXELS, LAYERS = "grey values", "noise and sharpness", "voxel size", "effect on the model"
QUANTILES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
QUANTILE_SAMPLES = 1_000_000
BLOCK = 160  # voxels along each axis, in the middle of the scan, that noise and sharpness are measured in
TISSUE = 0.2  # of the way from the 2nd to the 98th percentile: darker voxels are air
SMOOTHEST = 1e-4  # of the contrast: differences below are none
WIDTHS = {GREY: len(QUANTILES), TEXTURE: 6, VOXELS: 3}
Moments = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class ScanStatistics:
    """What one scan is like.

    Attributes
    ----------
    features : dict
        Group (`GREY`, `TEXTURE`, `VOXELS`) -> vector.
    layers : tuple of (means, variances)
        One pair of vectors over channels a layer; empty for bases without batch normalisation.
    modality : str
        What its grey values look like: "CT", "MR" or "" (they do not tell).
    fits : bool
        The model's grey-value mapping suits it, as `recipe.choose_recipe` judges.
    """

    features: dict[str, np.ndarray]
    layers: tuple[Moments, ...] = ()
    modality: str = ""
    fits: bool = True


def measure_scan(
    volume: Volume, prepared: Prepared, recipe: Preprocessing, layers: tuple[Moments, ...] = ()
) -> ScanStatistics:
    """Measure one scan.

    Parameters
    ----------
    volume : Volume
        The scan as it was read.
    prepared : Prepared
        `prepare(volume, recipe)`.
    layers : tuple
        Of `site_layers.layer_moments`.
    """
    axes, _ = orient_to(volume.grid, recipe.orientation)
    features = {
        GREY: grey_quantiles(prepared),
        TEXTURE: _texture(volume.array.transpose(axes)),
        VOXELS: np.log([volume.grid.spacing[axis] for axis in axes]),
    }
    chosen, _ = choose_recipe(recipe, [support_facts(volume, {}, recipe.orientation)])
    return ScanStatistics(features, layers, guess_modality(volume.array), chosen.intensity == recipe.intensity)


def grey_quantiles(prepared: Prepared) -> np.ndarray:
    """`QUANTILES` of what the network sees."""
    values = prepared.image.reshape(-1)
    return np.quantile(values[:: max(1, len(values) // QUANTILE_SAMPLES)].cpu().numpy(), QUANTILES)


def _texture(array: np.ndarray) -> np.ndarray:
    """(6,) roughness along the three axes of (I, J, K), then steepness along them."""
    block = array[tuple(slice(max(0, (n - BLOCK) // 2), (n + BLOCK) // 2) for n in array.shape)].astype(np.float64)
    low, high = np.percentile(block, (2, 98))
    contrast, tissue = high - low, block > low + TISSUE * (high - low)
    rough, steep = [], []
    for axis in range(3):
        middle = tissue.take(range(1, max(1, tissue.shape[axis] - 1)), axis)
        second = np.abs(np.diff(block, 2, axis))[middle] if block.shape[axis] > 2 else np.zeros(0)
        both = tissue.take(range(1, tissue.shape[axis]), axis) & tissue.take(range(tissue.shape[axis] - 1), axis)
        first = np.abs(np.diff(block, 1, axis))[both]
        rough.append(_relative(np.median(second) if second.size else 0.0, contrast))
        steep.append(_relative(np.percentile(first, 95) if first.size else 0.0, contrast))
    return np.array([*rough, *steep])


def _relative(difference: float, contrast: float) -> float:
    return math.log(max(difference / contrast if contrast > 0 else 0.0, SMOOTHEST))
