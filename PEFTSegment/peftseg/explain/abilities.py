"""Segmentation Ability: how well a layer's binary map of a structure matches what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from peftseg.explain.layers import Layer
from peftseg.explain.maps import on_study_grid
from peftseg.preprocess import Prepared

BUILDERS = ("prediction", "truth")  # of a prototype


@dataclass(frozen=True, eq=False)
class Mask:
    """What is known of a structure on the model grid.

    Attributes
    ----------
    truth : tensor (I', J', K') bool, or None
        Its labels.
    known : tensor (I', J', K') bool, or True
        Where the labels say something.
    """

    truth: torch.Tensor | None = None
    known: torch.Tensor | bool = True


@dataclass(frozen=True, eq=False)
class Ability:
    """What one layer makes of one structure with one prototype.

    Attributes
    ----------
    built_by : str
        One of `BUILDERS`.
    sa : float
        Dice of the map and the labels; NaN where it is not defined: no labels, or nothing to build the prototype from.
    agreement : float
        Dice of the map and the prediction; NaN likewise.
    """

    layer: Layer
    structure: str
    built_by: str
    sa: float
    agreement: float


class Scores:
    """Dice of each map with labels and prediction, on the model grid."""

    def __init__(
        self,
        prepared: Prepared,
        masks: dict[str, Mask],
        predicted: dict[str, torch.Tensor],
        take: Callable[[Ability, np.ndarray], None] | None,
    ) -> None:
        self._prepared, self._masks, self._predicted, self._take = prepared, masks, predicted, take
        self._found: dict[tuple[str, str, str], Ability] = {}

    def add(self, layer: Layer, structure: str, built_by: str, m: torch.Tensor) -> None:
        """Score one map m (longer I', J', K') and hand it over."""
        values = m[tuple(slice(n) for n in self._prepared.image.shape[1:])].cpu()
        mask, predicted = self._masks[structure], self._predicted.get(structure)
        sa = math.nan if mask.truth is None else _dice(values > 0, mask.truth, mask.known)
        agreement = math.nan if predicted is None else _dice(values > 0, predicted, True)
        ability = Ability(layer, structure, built_by, sa, agreement)
        self._found[(layer.name, structure, built_by)] = ability
        if self._take is not None:
            self._take(ability, on_study_grid(values, self._prepared) > 0)

    def complete(self, layers: Sequence[Layer]) -> list[Ability]:
        """All of them in order; what could not be built is not defined and has an empty map."""
        wanted = [
            (layer, structure, built_by)
            for layer in layers
            for structure, mask in self._masks.items()
            for built_by in BUILDERS[: 1 + (mask.truth is not None)]
        ]
        return [self._found.get((layer.name, *rest)) or self._empty(layer, *rest) for layer, *rest in wanted]

    def _empty(self, layer: Layer, structure: str, built_by: str) -> Ability:
        ability = Ability(layer, structure, built_by, math.nan, math.nan)
        if self._take is not None:
            self._take(ability, np.zeros(self._prepared.source.shape, dtype=bool))
        return ability


def _dice(found: torch.Tensor, mask: torch.Tensor, known: torch.Tensor | bool) -> float:
    """Dice where it is known; NaN where both are empty."""
    if known is not True:
        found, mask = found & known, mask & known
    total = int(found.sum()) + int(mask.sum())
    return 2.0 * int((found & mask).sum()) / total if total else math.nan
