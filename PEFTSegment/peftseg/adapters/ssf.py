"""SSF: each channel is scaled and shifted, y = gamma x + beta (Lian et al. 2022).

It is composed into the layer that makes x, so that it costs nothing and merges exactly. By default (our choice) that is a
normalisation: one that follows a convolution subtracts the shift and divides by the scale again. Option after
"norm_else_conv" takes the convolutions, too, that no normalisation follows, so that no path through the network is left
out.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from peftseg.adapters.base import Attached
from peftseg.adapters.composed import Composed, compose, in_full_precision
from peftseg.adapters.following import norms_after
from peftseg.adapters.freezing import NORMS, freeze, outright
from peftseg.adapters.layers import CONVOLUTIONS, TRANSPOSED, choose_layers, outside
from peftseg.networks import Anatomy

SPREAD = 0.02  # of the published first values


class Scale(Composed):
    """The scale, on a layer's weight; `layer` has its output channels first, or second (transposed convolution)."""

    def __init__(self, layer: nn.Module, published: bool) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.groups = layer.groups if isinstance(layer, TRANSPOSED) else 0
        channels = weight.shape[1] * self.groups if self.groups else weight.shape[0]
        self.gamma = nn.Parameter(weight.new_ones(channels))
        if published:
            nn.init.normal_(self.gamma, 1.0, SPREAD)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """W0 -> gamma W0."""
        with in_full_precision(weight):
            if not self.groups:
                return weight * self.gamma.reshape(-1, *[1] * (weight.ndim - 1))
            # (C_in, C_out / groups, *kernel): each group of inputs makes its own outputs.
            parted = weight.unflatten(0, (self.groups, -1))
            gamma = self.gamma.reshape(self.groups, 1, -1, *[1] * (weight.ndim - 2))
            return (parted * gamma).flatten(0, 1)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Key suffix "gamma"."""
        return {"gamma": self.gamma}


class Shift(Composed):
    """The shift, on a layer's bias, with the scale of its weight."""

    def __init__(self, scale: Scale, published: bool) -> None:
        super().__init__()
        self.gamma = scale.gamma
        self.beta = nn.Parameter(torch.zeros_like(scale.gamma))
        if published:
            nn.init.normal_(self.beta, 0.0, SPREAD)

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """b0 -> gamma b0 + beta."""
        with in_full_precision(bias):
            return self.gamma * bias + self.beta

    def tensors(self) -> dict[str, nn.Parameter]:
        """Key suffix "beta"; gamma is the weight's."""
        return {"beta": self.beta}


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and add scales and shifts, in place; layers without a bias get one of 0.

    Parameters
    ----------
    options : dict
        From `check_options("ssf", ...)`.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    published = options["init"] == "published"
    every = outside(network, anatomy, anatomy.decoder if train_decoder else ())
    by_pattern = _adaptable(network, anatomy, every, options["after"])
    adaptable = {name: m for name, m in by_pattern.items() if not isinstance(m, TRANSPOSED)}
    layers = choose_layers(network, anatomy, options["layers"], adaptable, by_pattern=by_pattern, auto="all")
    trained = freeze(network, anatomy, outright(train_decoder))
    created, changes = [], {}
    for name, layer in layers.items():
        scale = Scale(layer, published)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(scale.gamma.detach()), requires_grad=False)
            created.append(f"{name}.bias")
        changes |= {f"{name}.weight": scale, f"{name}.bias": Shift(scale, published)}
    compose(network, changes)
    return Attached(network, trained, changes, created=tuple(created), notes=_notes(network, layers, options))


def _adaptable(network: nn.Module, anatomy: Anatomy, every: dict[str, nn.Module], after: str) -> dict[str, nn.Module]:
    """The layers whose outputs are scaled and shifted, by name."""
    convolutions = (*CONVOLUTIONS, *TRANSPOSED)
    kinds = {"norm": NORMS, "norm_else_conv": (*NORMS, *convolutions), "conv": (nn.Linear, *convolutions)}
    wanted = (*NORMS, nn.Linear, *convolutions) if after == "all" else kinds[after]
    found = {n: m for n, m in every.items() if isinstance(m, wanted) and m._parameters.get("weight") is not None}
    if after != "norm_else_conv":
        return found
    followed = norms_after(network, anatomy, [n for n, m in found.items() if isinstance(m, convolutions)])
    return {n: m for n, m in found.items() if n not in followed}


def _notes(network: nn.Module, layers: dict[str, nn.Module], options: dict) -> tuple[str, ...]:
    notes = []
    if options["init"] == "published":
        notes.append("The published first values change what the model does before it has learnt anything.")
    after_some = any(isinstance(m, (*CONVOLUTIONS, *TRANSPOSED)) for m in layers.values())
    if options["after"] in ("conv", "all") and after_some and any(map(_looks_at_input, network.modules())):
        notes.append(
            "This model normalises by each scan's own values: after a convolution that undoes scale and shift, wholly "
            "or in part. After normalisation layers (option after) they have their full effect."
        )
    return tuple(notes)


def _looks_at_input(module: nn.Module) -> bool:
    """Whether a module normalises by statistics of its input also in eval mode."""
    if not isinstance(module, NORMS) or isinstance(module, nn.LayerNorm):
        return False
    stored = isinstance(module, _BatchNorm) and module.track_running_stats
    return not (stored and type(module).forward is _BatchNorm.forward)
