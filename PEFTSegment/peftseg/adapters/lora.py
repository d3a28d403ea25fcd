"""LoRA on linear layers and convolutions: W0 + alpha / rank * B A (METHODS 5.1; microsoft/LoRA)."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached, freeze
from peftseg.adapters.low_rank import Design, compose, select_layers
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and add LoRA, in place.

    Parameters
    ----------
    options : dict
        From `check_options("lora", ...)`. A given alpha is divided by the rank asked for, also where a layer's rank is
        clipped, so that all layers have one scale.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    outright = anatomy.decoder if train_decoder else ()
    layers = select_layers(network, anatomy, options["layers"], outright)
    trained = freeze(network, anatomy, ("head", "decoder") if train_decoder else ("head",))
    alpha = options["rank"] if options["alpha"] is None else options["alpha"]
    design = Design(rank=options["rank"], scale=alpha / options["rank"], form=options["form"])
    return Attached(network, trained, compose(layers, design), rank=options["rank"])
