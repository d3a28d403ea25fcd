"""AdaptFormer: a bottleneck of linear layers beside the MLP of transformer blocks (Chen S et al. 2022)."""

from __future__ import annotations

import math

import torch
from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.beside import Beside, keep_beside
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.layers import choose_layers, outside, transformer_blocks
from peftseg.networks import Anatomy


class MlpAdapter(Beside):
    """scale * up(ReLU(down(x))), with x the block's tokens before the normalisation of the MLP."""

    def __init__(self, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        self._tokens: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        return self.scale * self.up(torch.relu(self.down(x)))

    def take(self, norm: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Forward hook of the normalisation before the MLP: remember what goes in."""
        self._tokens = inputs[0]

    def add_parallel(self, host: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of the MLP."""
        tokens, self._tokens = self._tokens, None
        return output + self(inputs[0] if tokens is None else tokens)


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and put bottlenecks beside the MLPs of its transformer blocks, in place.

    Parameters
    ----------
    options : dict
        From `check_options("adaptformer", ...)`.
    train_decoder : bool
        Train the decoder outright too.
    """
    every = outside(network, anatomy, anatomy.decoder if train_decoder else ())
    adaptable = {f"{b}.mlp": every[f"{b}.mlp"] for b in transformer_blocks(network) if f"{b}.mlp" in every}
    layers = choose_layers(network, anatomy, options["layers"], adaptable)
    trained = freeze(network, anatomy, outright(train_decoder))
    modules: dict[str, Beside] = {}
    for name, mlp in layers.items():
        first = next(m for m in mlp.modules() if isinstance(m, nn.Linear))
        with torch.device(first.weight.device):
            adapter = MlpAdapter(first.in_features, options["bottleneck"], options["scale"]).to(first.weight.dtype)
        modules[name] = adapter
        norm = network.get_submodule(name.rpartition(".")[0])._modules.get("norm2")
        if norm is not None:
            norm.register_forward_hook(adapter.take)
        mlp.register_forward_hook(adapter.add_parallel)
    keep_beside(network, modules)
    return Attached(network, trained, beside=modules)
