"""Weights that are composed when they are used, `W = change(W0)`, by `torch.nn.utils.parametrize`.

The layer runs once, with its own stride, dilation, groups and padding, and merging is exact.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.amp import is_autocast_available
from torch.nn.utils import parametrize

TENSORS = ("weight", "bias")  # that may be composed, in the order in which layers register them


class Composed(nn.Module):
    """A change of one tensor; `forward` takes the frozen tensor and gives the one that the layer uses, of the same shape.

    The latter must not share the former's memory: a merged network keeps it.
    """

    def tensors(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by key suffix; one that two changes share belongs to the first."""
        raise NotImplementedError


def in_full_precision(tensor: torch.Tensor) -> AbstractContextManager:
    """Compose in the precision of the weights also under autocast, so that merging changes nothing."""
    device = tensor.device.type
    # The meta device, on which sizes are counted, has no autocast.
    return torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()


def compose(network: nn.Module, changes: dict[str, Composed]) -> None:
    """Let layers use changed tensors, in place; `changes` has plain parameter names as keys."""
    for name, change in changes.items():
        layer, _, leaf = name.rpartition(".")
        # Unsafe means unchecked: the check composes every weight once. Changes keep shape and dtype.
        parametrize.register_parametrization(network.get_submodule(layer), leaf, change, unsafe=True)


def make_plain(layer: nn.Module, change: bool) -> None:
    """Turn a composed layer into a plain one of its class, in place, with or without the changes in its tensors.

    `parametrize.remove_parametrizations` is of no use here: it deletes the tensor from the layer's class, which deep
    copies share, so removing it from a copy breaks the original.
    """
    plain = {}
    for leaf, composed in layer.parametrizations.items():
        plain[leaf] = nn.Parameter(getattr(layer, leaf).detach()) if change else composed.original
    plain_class = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = plain_class
    every = {**dict(layer._parameters), **plain}
    layer._parameters.clear()
    for leaf in sorted(every, key=lambda leaf: TENSORS.index(leaf) if leaf in TENSORS else len(TENSORS)):
        layer.register_parameter(leaf, every[leaf])
