"""Effective rank of what a training changed, from the weights of the merged network."""

from __future__ import annotations

import math

import torch
from torch import nn

from peftseg.adapter_training import Setting, starting_network
from peftseg.adapters.base import Attached
from peftseg.adapters.layers import TRANSPOSED

ELSEWHERE = ("head", "decoder")  # kinds that are trained outright beside whatever the method does


def starting_weights(setting: Setting) -> dict[str, torch.Tensor]:
    """The network's weights before the training of this setting by plain name, on the CPU, random ones included.

    Of the head that is so for structures that the base knows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        network = starting_network(setting)[0]
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def mean_effective_rank(attached: Attached, start: dict[str, torch.Tensor]) -> float | None:
    """Mean effective rank of the changes of all layers that the method changed, head and decoder apart.

    Parameters
    ----------
    attached : Attached
        After training.
    start : dict
        Weights before it, by plain name, on the CPU.

    Returns
    -------
    float or None
        None where the method does not merge, or changed no matrix (such as biases only).
    """
    if not attached.merges:
        return None
    merged = attached.merge().to("cpu")
    ranks = []
    for layer_name, layer in merged.named_modules():
        for leaf, tensor in layer.named_parameters(recurse=False):
            name = f"{layer_name}.{leaf}" if layer_name else leaf
            if tensor.ndim < 2 or name not in start or attached.trained.get(name) in ELSEWHERE:
                continue
            old, new = (_unfolded(layer, t.detach().double()) for t in (start[name], tensor))
            if not torch.equal(old, new):
                ranks.append(effective_rank(new - old, _rounding(new)))
    ranks = [rank for rank in ranks if rank > 0]
    return sum(ranks) / len(ranks) if ranks else None


def effective_rank(matrix: torch.Tensor, ignored: float = 0.0) -> float:
    """exp(H) of the singular values scaled to a sum of 1, H their entropy (Roy and Vetterli 2007, EUSIPCO, eq. 4).

    Parameters
    ----------
    matrix : tensor (M, N)
    ignored : float
        Singular values up to this are taken for rounding.

    Returns
    -------
    float
        From 1 to the rank, which it is when all singular values that are not 0 are equal; 0 for a matrix of zeros.
    """
    values = torch.linalg.svdvals(matrix.double())
    values = values[values > ignored]
    if not values.numel():
        return 0.0
    shares = values / values.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


def _unfolded(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """(output channels, all else)."""
    return (weight.transpose(0, 1) if isinstance(layer, TRANSPOSED) else weight).flatten(1)


def _rounding(weight: torch.Tensor) -> float:
    """How large singular values of a difference can be that is nothing but rounding of float32 weights."""
    return float(torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(weight))
