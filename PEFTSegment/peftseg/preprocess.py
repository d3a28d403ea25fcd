"""From a study to network input on the model grid, with an exact way back, and the choice of the recipe.

The model grid is the study's grid with its axes reordered to the recipe's orientation (nearest axis codes; an oblique
study is not rotated) and resampled along its own axes. See `resample.AxisMap` for the relation of both grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from peftseg.axis_map import axis_map, fit_axes
from peftseg.errors import BadInput
from peftseg.models import Intensity, Preprocessing
from peftseg.recipe import SupportFacts, choose_recipe, support_facts
from peftseg.resample import resample_to_model
from peftseg.volume import Grid, Volume

__all__ = ["Prepared", "SupportFacts", "choose_recipe", "follow_curve", "prepare", "prepare_mask", "support_facts"]

PERCENTILE_SAMPLES = 4_000_000  # more voxels change a percentile by less than the noise, and cost seconds


@dataclass(frozen=True)
class Prepared:
    """A study on the model grid.

    Attributes
    ----------
    image : tensor (1, I', J', K') float32
        Network input.
    grid : Grid
        Of the model, after cropping.
    source : Grid
        Of the study itself.
    scheme : str
        Of the recipe.
    nearest : int or None
        Axis of the model grid along which results go back to the nearest voxels of the study; None: linear throughout.
    """

    image: torch.Tensor
    grid: Grid
    source: Grid
    scheme: str = "linear"
    nearest: int | None = None

    @property
    def background(self) -> float:
        """Grey value of what lies outside of the image, used for padding: the darkest value that the image has, or 0."""
        return 0.0 if self.scheme == "nnunet" else float(self.image.min())

    @property
    def reach(self) -> float:
        """How far outside of the outer voxels' centres a result still counts, in model voxels; 0.5: to their borders."""
        return 0.5 if self.scheme == "nnunet" else 0.75


def prepare(volume: Volume, recipe: Preprocessing) -> Prepared:
    """Bring a study to the model grid and map its grey values.

    Parameters
    ----------
    volume : Volume
        (I, J, K) float32, any orientation and spacing.
    recipe : Preprocessing
        See its docstring. Statistics of "zscore" and "percentile" come from the study's own voxels that are not 0,
        but percentiles 0 and 100 are the smallest and the largest value of all; the mapping applies to all voxels, so air
        stays darker than tissue.

    Returns
    -------
    Prepared
        An image that is constant becomes all 0 ("zscore") or all `out_low` ("percentile").

    Raises
    ------
    BadInput
        The study has values that are not finite, or the recipe's spacing or orientation is not valid.
    """
    _check(volume, recipe)
    if recipe.scheme == "nnunet":
        from peftseg.nnunet_preprocess import prepare_nnunet  # made of this module's records

        prepared = prepare_nnunet(volume, recipe)
        follow_curve(prepared.image[0], recipe.intensity.curve)
        return prepared
    mapping, shape = fit_axes(volume.grid, recipe.orientation, recipe.spacing)
    image = resample_to_model(volume.array, mapping, shape)
    if recipe.intensity.kind == "nonzero_range":
        gain, offset, low, high = _nonzero_range(image, recipe.intensity)
    else:
        gain, offset, low, high = _mapping(volume.array, recipe.intensity)
    affine = volume.grid.affine @ mapping.matrix()
    clips = np.isfinite(low)
    if recipe.crop_foreground:
        image, affine = _crop(image, affine, above=low if clips else 0.0)
    # Clipping first: values far outside of the window would lose digits in the multiplication.
    image = image.clamp_(low, high).sub_(offset).mul_(gain).add_(recipe.intensity.out_low if clips else 0.0)
    follow_curve(image, recipe.intensity.curve)
    if recipe.square:
        image, affine = _square(image, affine)
    return Prepared(image[None], Grid(tuple(image.shape), affine), volume.grid)


def follow_curve(image: torch.Tensor, curve: Sequence[tuple[float, float]]) -> None:
    """Replace the values of an image (I, J, K) by those on `Intensity.curve`, in place."""
    if not curve:
        return
    before, after = torch.tensor(curve, dtype=image.dtype, device=image.device).T.contiguous()
    slopes = after.diff() / before.diff()
    for part in image:  # one after the other: the numbers of the pieces take as much memory as the image
        piece = torch.bucketize(part, before[1:-1], out_int32=True)
        part.sub_(before[piece]).mul_(slopes[piece]).add_(after[piece])


def _check(volume: Volume, recipe: Preprocessing) -> None:
    if len(recipe.spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in recipe.spacing):
        raise BadInput(
            f"The recipe's spacing {recipe.spacing} is not three positive numbers of mm.", "Correct the recipe."
        )
    wrong = volume.array.size - int(np.isfinite(volume.array).sum())
    if wrong:
        raise BadInput(
            f"{volume.name} has {wrong} voxels that are not finite numbers.",
            "Read it with a value to replace them, such as 0, or repair the scan.",
        )


def _mapping(array: np.ndarray, intensity: Intensity) -> tuple[float, float, float, float]:
    """Gain, offset, and clipping limits: mapped = (clip(x) - offset) * gain, plus out_low where it is clipped."""
    if intensity.kind == "window":
        return _between(intensity.low, intensity.high, intensity)
    values = array[array != 0]
    if intensity.kind == "percentile":
        if not values.size:
            return _between(0.0, 0.0, intensity)
        sample = values[:: max(1, values.size // PERCENTILE_SAMPLES)]
        low, high = np.percentile(sample, [intensity.low, intensity.high])
        # The ends of the range are those of all voxels: a sample may miss them, and clip what is brightest.
        low = array.min() if intensity.low == 0 else low
        high = array.max() if intensity.high == 100 else high
        return _between(float(low), float(high), intensity)
    mean = float(values.mean(dtype=np.float64)) if values.size else 0.0
    spread = float(values.std(dtype=np.float64)) if values.size else 0.0
    gain = 1 / spread if spread > 1e-6 * abs(mean) else 0.0
    return gain, mean, -np.inf, np.inf


def _nonzero_range(image: torch.Tensor, intensity: Intensity) -> tuple[float, float, float, float]:
    """As `_mapping`; fills the voxels that are 0 in place."""
    empty = image == 0
    if empty.any() and not empty.all():
        image[empty] = image[~empty].double().mean().float()
    return _between(float(image.min()), float(image.max()), intensity)


def _between(low: float, high: float, intensity: Intensity) -> tuple[float, float, float, float]:
    width = high - low
    gain = (intensity.out_high - intensity.out_low) / width if width > 1e-6 * max(abs(low), abs(high)) else 0.0
    return gain, low, low, max(low, high)


def _crop(image: torch.Tensor, affine: np.ndarray, above: float) -> tuple[torch.Tensor, np.ndarray]:
    """Crop (I', J', K') to the box of the voxels above a value; an image without any stays as it is.

    With the lower end of a window that maps to 0 this is MONAI's CropForegroundd on the mapped image.
    """
    foreground = image > above
    if not foreground.any():
        return image, affine
    box = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        hit = foreground.any(dim=others[1]).any(dim=others[0]).nonzero().flatten()
        box.append((int(hit[0]), int(hit[-1]) + 1))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array([start for start, _ in box], dtype=np.float64)
    (i0, i1), (j0, j1), (k0, k1) = box
    return image[i0:i1, j0:j1, k0:k1].contiguous(), moved


def _square(image: torch.Tensor, affine: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Repeat the outer voxels of (I', J', K') along its first or second axis, on both sides."""
    missing = [max(image.shape[:2]) - n for n in image.shape[:2]]
    before = [m // 2 for m in missing]
    pads = [0, 0, before[1], missing[1] - before[1], before[0], missing[0] - before[0]]
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :2] @ np.array(before, dtype=np.float64)
    return functional.pad(image[None, None], pads, mode="replicate")[0, 0], moved


def prepare_mask(mask: np.ndarray, prepared: Prepared) -> torch.Tensor:
    """Bring a mask of the study to the model grid.

    Where the model grid reaches beyond the study ("square"), the study's outer voxels are repeated, as they are in the image.
    The 0.5 level of the resampled mask; where that would lose more than half of a structure (thin or small ones), the
    voxels with the largest shares are taken instead until its volume is kept.

    Parameters
    ----------
    mask : array (I, J, K)
        bool, on the study's grid.

    Returns
    -------
    tensor (I', J', K') bool

    Raises
    ------
    BadInput
        The mask has another shape than the study.
    """
    if tuple(mask.shape) != tuple(prepared.source.shape):
        raise BadInput(
            f"The mask has {mask.shape} voxels, its study {prepared.source.shape}.",
            "Export the segmentation on the scan's own grid.",
        )
    share = resample_to_model(mask, axis_map(prepared.grid, prepared.source), prepared.grid.shape)
    hard = share >= 0.5
    expected = max(1, round(float(share.sum(dtype=torch.float64))))
    if int(hard.sum()) * 2 >= expected or not share.any():
        return hard
    kept = torch.zeros_like(hard)
    kept.view(-1)[share.view(-1).topk(expected).indices] = True
    return kept & (share > 0)
