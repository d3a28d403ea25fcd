"""Selective fine-tuning: chosen layers are trained outright, such as the decoder's last block or the encoder."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import NORMS, freeze, kind_of
from peftseg.adapters.layers import choose_layers, outside
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network but for the chosen layers and the head, in place; `train_decoder` has no effect.

    Parameters
    ----------
    options : dict
        From `check_options("selective", ...)`.
    """
    every = outside(network, anatomy, ())
    adaptable = {n: m for n, m in every.items() if any(p is not None for p in m._parameters.values())}
    chosen = choose_layers(network, anatomy, options["layers"], adaptable, auto="last_block")
    norms = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
    names = [f"{name}.{leaf}" for name, m in chosen.items() for leaf, p in m._parameters.items() if p is not None]
    also = {name: kind_of(name, anatomy, norms) for name in names}
    return Attached(network, freeze(network, anatomy, ("head",), also))
