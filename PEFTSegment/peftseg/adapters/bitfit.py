"""BitFit: biases alone are trained (Ben Zaken et al. 2022).

Biases are found by their own name, not by a substring: FSEFT's "bias" (peft/Bias.py) also matches the tables of
relative positions, 94 % of what it trains. Option `relative_position` trains them on purpose.
"""

from __future__ import annotations

from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.layers import choose_layers, outside
from peftseg.networks import Anatomy

TABLE = "relative_position_bias_table"


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network but for the biases of the chosen layers and the head, in place.

    Parameters
    ----------
    options : dict
        From `check_options("bitfit", ...)`.
    train_decoder : bool
        Train the whole decoder too.
    """
    leaves = ("bias", TABLE) if options["relative_position"] else ("bias",)
    every = outside(network, anatomy, anatomy.decoder if train_decoder else ())
    adaptable = {n: m for n, m in every.items() if any(m._parameters.get(leaf) is not None for leaf in leaves)}
    chosen = choose_layers(network, anatomy, options["layers"], adaptable, auto="all")
    also = {
        f"{n}.{leaf}": "adapter" for n, m in chosen.items() for leaf in leaves if m._parameters.get(leaf) is not None
    }
    return Attached(network, freeze(network, anatomy, outright(train_decoder), also))
