"""ConvLoRA: LoRA on the encoder's convolutions as in "ConvLoRA and AdaBN" (Aleem et al. 2024, sec. 3.1).

Shapes and first values are those of its code (LoRA/loralib/layers.py), which the paper describes otherwise.
"""

from __future__ import annotations

from torch import nn

from peftseg.adapters.affine import moving_norms
from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import NORMS, freeze, outright, statistics_of
from peftseg.adapters.layers import CONVOLUTIONS, choose_layers, conv_blocks, outside
from peftseg.adapters.low_rank import Design, add_low_rank
from peftseg.networks import Anatomy, is_part


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and add ConvLoRA, in place.

    Parameters
    ----------
    options : dict
        From `check_options("convlora", ...)`. train_norm: normalisation inside the blocks that have an adapted
        convolution trains too, as in the released code. bn_mode "batch": all batch normalisations use each batch's
        statistics in training; their running statistics are part of the state.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    every = outside(network, anatomy, anatomy.decoder if train_decoder else ())
    adaptable = {name: module for name, module in every.items() if isinstance(module, CONVOLUTIONS)}
    layers = choose_layers(network, anatomy, options["layers"], adaptable)
    norms = {n: m for n, m in network.named_modules() if isinstance(m, NORMS) and n != anatomy.head_norm}
    live = moving_norms(norms, options["bn_mode"])
    also = norms_beside(network, layers, norms) if options["train_norm"] else {}
    trained = freeze(network, anatomy, outright(train_decoder), also, live)
    design = Design(rank=options["rank"], alpha=options["alpha"], form=options["form"])
    changes = add_low_rank(network, layers, design)
    return Attached(network, trained, changes, statistics=statistics_of(network, live))


def norms_beside(network: nn.Module, layers: dict[str, nn.Module], norms: dict[str, nn.Module]) -> dict[str, str]:
    """Parameters of the normalisation in the blocks of the chosen layers, name -> kind."""
    blocks = tuple(block for block in conv_blocks(network) if any(is_part(layer, (block,)) for layer in layers))
    inside = {n: m for n, m in norms.items() if is_part(n, blocks)}
    return {f"{n}.{leaf}": "norm" for n, m in inside.items() for leaf, p in m._parameters.items() if p is not None}
