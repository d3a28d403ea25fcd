"""DoRA: LoRA whose rows are set to a trained length, m (W0 + B A) / |W0 + B A| (Liu et al. 2024)."""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.low_rank import Design, add_low_rank, select_layers
from peftseg.networks import Anatomy


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and add DoRA, in place; lengths start as those of the frozen weight.

    Parameters
    ----------
    options : dict
        From `check_options("dora", ...)`.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    layers = select_layers(network, anatomy, options["layers"], anatomy.decoder if train_decoder else ())
    trained = freeze(network, anatomy, outright(train_decoder))
    design = Design(rank=options["rank"], alpha=options["alpha"], form=options["form"], magnitude=True)
    return Attached(network, trained, add_low_rank(network, layers, design))
