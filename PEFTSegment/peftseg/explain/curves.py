"""Is a map worth anything? Deletion and insertion curves, and the cascading randomisation of weights.

Deletion: the voxels that a map ranks highest are taken from the image first; a telling map makes the score fall fast.
Insertion: they are put first into an empty image; the score should rise fast. (Petsiuk et al. 2018, RISE.)
Cascading randomisation: weights become noise from the head backwards; a map that stays the same shows the image's edges and
not what the network has learnt. (Adebayo et al. 2018, Sanity Checks for Saliency Maps.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn

from peftseg.errors import unknown_name
from peftseg.explain.layers import Layer
from peftseg.explain.maps import is_constant
from peftseg.explain.subject import Subject
from peftseg.infer import predict_logits
from peftseg.preprocess import Prepared

MODES = ("deletion", "insertion")
BLUR = 0.1  # standard deviation of the blurred image, as a share of its sides


@dataclass(frozen=True)
class Curve:
    """Scores while voxels are changed.

    Attributes
    ----------
    shares : tuple of float
        Of the voxels that were changed, 0 to 1.
    scores : tuple of float
    area : float
        Under the curve, by trapezoids: small is good for deletion, large for insertion.
    """

    shares: tuple[float, ...]
    scores: tuple[float, ...]
    area: float


def perturbation_curve(
    score: Callable[[torch.Tensor], float],
    image: torch.Tensor,
    values: torch.Tensor,
    mode: str,
    steps: int = 10,
    absent: float | None = None,
) -> Curve:
    """Deletion or insertion curve of a map.

    Parameters
    ----------
    score : callable
        Score of an image (1, I', J', K'), for example from `probability_inside`.
    image : tensor (1, I', J', K')
    values : tensor (I', J', K')
        The map, on the model grid; voxels of one value go in the order of the array.
    mode : str
        One of `MODES`.
    steps : int
        Of equal numbers of voxels; one score more is computed.
    absent : float or None
        Grey value of a voxel that is not there, such as the study's background; None: that of the strongly blurred image, in
        which no edge appears but an even organ stays what it is.
    """
    if mode not in MODES:
        raise unknown_name("mode of a curve", mode, MODES)
    sides = [BLUR * n for n in image.shape[1:]]
    blurred = torch.from_numpy(gaussian_filter(image[0].cpu().numpy(), sides)).to(image).flatten()
    full = image.flatten()
    without = blurred if absent is None else torch.full_like(full, absent)
    order = values.flatten().argsort(descending=True, stable=True).to(image.device)
    start, end = (full, without) if mode == "deletion" else (without, full)
    shares = [step / steps for step in range(steps + 1)]
    scores = []
    for share in shares:
        changed = order[: round(share * len(order))]
        now = start.clone()
        now[changed] = end[changed]
        scores.append(float(score(now.view_as(image))))
    return Curve(tuple(shares), tuple(scores), float(np.trapezoid(scores, shares)))


def probability_inside(
    subject: Subject, prepared: Prepared, row: int, voxels: torch.Tensor, device: torch.device
) -> Callable[[torch.Tensor], float]:
    """The score "mean probability of a structure over a set of voxels (I', J', K')" as a function of the image."""
    window = subject.window_on(tuple(prepared.image.shape[1:]))

    def score(image: torch.Tensor) -> float:
        logits = predict_logits(subject.network, image, subject.rows, window, subject.overlap, device, precision="fp32")
        soft = torch.softmax(logits, 0) if subject.activation == "softmax" else torch.sigmoid(logits)
        return float(soft[row][voxels].mean())

    return score


def cascading_randomisation(
    network: nn.Module,
    layers: Sequence[Layer],
    explain: Callable[[nn.Module], np.ndarray],
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Randomise layers one after the other from the head backwards, and compare the map with the first one.

    Parameters
    ----------
    network : nn.Module
        Not changed: a copy is randomised.
    layers : sequence of Layer
        In network order; the last one is randomised first, and stays so.
    explain : callable
        Map of a network.

    Yields
    ------
    tuple of str and float
        The layer that was randomised last, and the rank correlation (Spearman) of the maps; 0 where one is constant.
    """
    original = explain(network)
    noisy = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for layer in reversed(layers):
        randomise(noisy.get_submodule(layer.module), generator)
        yield layer.name, likeness(original, explain(noisy))


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two maps; 0 where one is constant and shows nothing."""
    if is_constant(first) or is_constant(second):
        return 0.0
    return float(spearmanr(first, second, axis=None).statistic)


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Replace a layer's weights, in place, by noise of the same spread (an adapter's change of them included)."""
    with torch.no_grad():
        for tensor in module.parameters():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            tensor.copy_(noise * (tensor.std() if tensor.numel() > 1 else 1.0))
