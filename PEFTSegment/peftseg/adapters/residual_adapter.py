"""Residual adapter: a convolution over one voxel beside a convolution (Rebuffi et al. 2018; FSEFT's "AdapterCNN").

Their sum is one convolution whose kernel has the small one added in its middle, so that it is composed (`W0 + middle`),
runs once, and merges. FSEFT puts it on the way down of the UNet, before the normalisation, without bias.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from peftseg.adapters.base import Attached
from peftseg.adapters.composed import Composed, compose, in_full_precision
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.layers import CONVOLUTIONS, choose_layers, outside
from peftseg.networks import Anatomy


class Middle(Composed):
    """What is added to the middle of a kernel, (C_out, C_in / groups, 1, ...)."""

    def __init__(self, weight: torch.Tensor, published: bool) -> None:
        super().__init__()
        self.middle = nn.Parameter(weight.new_zeros(*weight.shape[:2], *[1] * (weight.ndim - 2)))
        self.around = [side for size in reversed(weight.shape[2:]) for side in (size // 2, size // 2)]
        if published:  # as a convolution starts
            nn.init.kaiming_uniform_(self.middle, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """W0 -> W0 with its middle changed."""
        with in_full_precision(weight):
            return weight + functional.pad(self.middle, self.around)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Key suffix "middle"."""
        return {"middle": self.middle}


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and add to the middles of its convolutions, in place; even kernels have none.

    Parameters
    ----------
    options : dict
        From `check_options("residual_adapter", ...)`.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    every = outside(network, anatomy, anatomy.decoder if train_decoder else ())
    adaptable = {n: m for n, m in every.items() if isinstance(m, CONVOLUTIONS) and all(k % 2 for k in m.kernel_size)}
    layers = choose_layers(network, anatomy, options["layers"], adaptable)
    trained = freeze(network, anatomy, outright(train_decoder))
    published = options["init"] == "published"
    changes = {f"{name}.weight": Middle(layer.weight.detach(), published) for name, layer in layers.items()}
    compose(network, changes)
    changed = ("The published first values change what the model does before it has learnt anything.",)
    return Attached(network, trained, changes, notes=changed if published else ())
