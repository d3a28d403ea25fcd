"""Affine tuning: scale and shift of normalisation layers (Basu et al. 2024; FSEFT's peft/Affine.py)."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import NORMS, freeze, outright, statistics_of
from peftseg.adapters.layers import choose_layers, outside
from peftseg.errors import BadInput
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network but for the normalisation of the chosen layers and the head, in place.

    Parameters
    ----------
    options : dict
        From `check_options("affine", ...)`. bn_mode "batch": chosen batch normalisations use each batch's statistics
        in training, and their running statistics, which move, are part of the state.
    train_decoder : bool
        Train the whole decoder too; its normalisation statistics stay frozen.
    """
    every = outside(network, anatomy, anatomy.decoder if train_decoder else ())
    adaptable = {n: m for n, m in every.items() if isinstance(m, NORMS) and m._parameters.get("weight") is not None}
    chosen = choose_layers(network, anatomy, options["layers"], adaptable, auto="all")
    live = moving_norms(chosen, options["bn_mode"])
    also = {f"{n}.{leaf}": "norm" for n, m in chosen.items() for leaf, p in m._parameters.items() if p is not None}
    trained = freeze(network, anatomy, outright(train_decoder), also, live)
    return Attached(network, trained, statistics=statistics_of(network, live))


def moving_norms(layers: dict[str, nn.Module], bn_mode: str) -> tuple[str, ...]:
    """Names of the layers whose running statistics move in training: none in "source", batch normalisations in "batch".

    A batch normalisation that never uses its running statistics (SuPreM's UNet) has none to move.

    Raises
    ------
    BadInput
        "batch" without any such layer.
    """
    if bn_mode == "source":
        return ()
    live = tuple(
        name
        for name, m in layers.items()
        if isinstance(m, _BatchNorm) and m.track_running_stats and type(m).forward is _BatchNorm.forward
    )
    if not live:
        raise BadInput(
            "bn_mode is 'batch', but the chosen layers have no batch normalisation with running statistics.",
            "Leave bn_mode at 'source'.",
        )
    return live
