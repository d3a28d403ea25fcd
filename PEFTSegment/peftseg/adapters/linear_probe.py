"""Linear probe: the head alone is trained (FSEFT's "LP")."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network but for its head, in place; `train_decoder` has no effect.

    The features before the head never change, so that training computes them once.
    """
    return Attached(network, freeze(network, anatomy, ("head",)), frozen_until=anatomy.head)
