"""Full fine-tuning: every parameter is trained, and running statistics move in train mode (FSEFT's "FT")."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze, statistics_of
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Make everything trainable; running statistics are part of the state. `train_decoder` has no effect."""
    trained = freeze(network, anatomy, ("head", "decoder", "norm", "body"))
    return Attached(network, trained, statistics=statistics_of(network))
