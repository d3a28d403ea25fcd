"""Spatial adapter: x + conv(ReLU(conv(x))) on the features before the head (FSEFT's "bb3DAdapter", blackbox/Adapter.py)."""

from __future__ import annotations

import torch
from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.beside import Beside, put_beside
from peftseg.adapters.freezing import freeze
from peftseg.adapters.layers import CONVOLUTIONS
from peftseg.errors import BadInput
from peftseg.networks import Anatomy


class SpatialAdapter(Beside):
    """Two convolutions without bias; the second starts at 0."""

    def __init__(self, channels: int, kernel: int, dims: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims - 1]
        self.conv1 = conv(channels, channels, kernel, padding="same", bias=False)
        self.conv2 = conv(channels, channels, kernel, padding="same", bias=False)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return self.conv2(torch.relu(self.conv1(x)))


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network but for its head and put the adapter before it, in place; `train_decoder` has no effect.

    The features never change, so that training computes them once.

    Parameters
    ----------
    options : dict
        From `check_options("spatial_adapter", ...)`.
    """
    head = network.get_submodule(anatomy.head)
    if not isinstance(head, CONVOLUTIONS):
        raise BadInput(
            f"The head {anatomy.head} is a {type(head).__name__}; a spatial adapter needs a convolution.",
            "Choose another method.",
        )
    if options["kernel"] % 2 == 0:
        raise BadInput(f"kernel is {options['kernel']}; expected an odd number.", "Give 1, 3 or 5.")
    trained = freeze(network, anatomy, ("head",))
    with torch.device(head.weight.device):
        adapter = SpatialAdapter(head.in_channels, options["kernel"], head.weight.ndim - 2).to(head.weight.dtype)
    modules: dict[str, Beside] = {anatomy.head: adapter}
    put_beside(network, modules, "before")
    return Attached(network, trained, beside=modules, frozen_until=anatomy.head)
