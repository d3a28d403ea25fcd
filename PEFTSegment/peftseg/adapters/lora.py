"""LoRA on linear layers and convolutions: W0 + alpha / rank * B A (Hu et al. 2022; microsoft/LoRA)."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.low_rank import Design, add_low_rank, select_layers
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and add LoRA, in place.

    Parameters
    ----------
    options : dict
        From `check_options("lora", ...)`.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    layers = select_layers(network, anatomy, options["layers"], anatomy.decoder if train_decoder else ())
    trained = freeze(network, anatomy, outright(train_decoder))
    design = Design(
        rank=None if options["dynamic_rank"] else options["rank"],
        alpha=options["alpha"],
        form=options["form"],
        first=options["init"],
        fused=() if options["qkv"] == "joint" else ("q", "k", "v"),
    )
    return Attached(network, trained, add_low_rank(network, layers, design))
