"""Decoder tuning: decoder and head are trained outright (as in the thesis, Tables 5.1 and 5.2)."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network but for decoder and head, in place; `train_decoder` has no effect."""
    return Attached(network, freeze(network, anatomy, ("decoder", "head")))
