"""Networks by name, with the anatomy that adaptation needs: where encoder, decoder and head are.

MONAI's networks are used where they are right. A new architecture is one file here with a `make` function, and a line in
`NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn

from peftseg.errors import BadInput, unknown_name
from peftseg.models import NetworkSpec


@dataclass(frozen=True)
class Anatomy:
    """Names of a network's parts, as in `named_modules()`.

    Attributes
    ----------
    head : str
        The last convolution; replaced when structures change, part of neither encoder nor decoder.
    encoder, decoder : tuple of str
        Prefixes of module names.
    divisor : int or tuple of int
        Every axis of the input must be a multiple of it, or of its own one.
    head_norm : str
        A normalisation right after the head, or "". It is folded into the rows that a new head takes over.
    """

    head: str
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    divisor: int | tuple[int, int, int]
    head_norm: str = ""


# Name -> module of this package whose `make(arguments, n_outputs)` returns the network with random weights, and its anatomy.
NETWORKS = {
    "segresnet": "segresnet",
    "segresnet_ds": "segresnet",
    "swinunetr": "swin_unetr",
    "unet3d": "unet3d",
    "unet2d": "unet2d",
    "unet3d_bn": "unet3d_bn",
    "nnunet": "nnunet",
}


def build(spec: NetworkSpec, n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """Build a network with random weights.

    Parameters
    ----------
    spec : NetworkSpec
        Name of the builder and its arguments.
    n_outputs : int
        Rows of the head.

    Returns
    -------
    network : nn.Module
        (B, in_channels, *spatial) -> (B, n_outputs, *spatial) logits.
    anatomy : Anatomy
        Where its parts are.
    """
    if spec.name not in NETWORKS:
        raise unknown_name("network", spec.name, NETWORKS)
    module = import_module(f"{__name__}.{NETWORKS[spec.name]}")
    try:
        return getattr(module, f"make_{spec.name}")(dict(spec.arguments), n_outputs)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"Network '{spec.name}' does not take the arguments {spec.arguments}: {error}.", "Correct them."
        ) from error


def per_axis(size: int | Sequence[int]) -> tuple[int, int, int]:
    """One number for all three axes, or one each, as three."""
    return (size,) * 3 if isinstance(size, int) else tuple(size)


def is_part(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module or parameter name lies under one of the prefixes (whole name components, not substrings)."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def is_slicewise(network: nn.Module) -> bool:
    """Whether a network takes a volume apart along its last axis and sees each slice by itself."""
    return bool(getattr(network, "slicewise", False))


def head_of(network: nn.Module, anatomy: Anatomy) -> nn.Module:
    """The head's module."""
    return network.get_submodule(anatomy.head)


def head_rows(network: nn.Module, anatomy: Anatomy) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights (n, C, *kernel) and biases (n,) of the head's rows, a normalisation after it folded in by its running statistics.

    None for a head that is no convolution: its rows cannot be taken over.
    """
    head = head_of(network, anatomy)
    weight = getattr(head, "weight", None)
    if weight is None:
        return None
    weight, bias = weight.detach(), torch.zeros(len(weight)) if head.bias is None else head.bias.detach()
    norm = network.get_submodule(anatomy.head_norm) if anatomy.head_norm else None
    if isinstance(norm, nn.modules.batchnorm._NormBase):
        gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        bias = (bias - norm.running_mean) * gain + norm.bias.detach()
        weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    return weight.clone(), bias.clone()


def replace_head(network: nn.Module, anatomy: Anatomy, n_outputs: int) -> nn.Module:
    """Give the network a fresh head with `n_outputs` rows, in place, and return the new head.

    The new head has the old one's class and geometry and the default initialisation of that class; a head that is no
    convolution says itself what takes its place (`fresh`). A normalisation after the head goes.
    """
    old = head_of(network, anatomy)
    if hasattr(old, "fresh"):
        new = old.fresh(n_outputs)
    else:
        new = type(old)(
            old.in_channels,
            n_outputs,
            kernel_size=old.kernel_size,
            stride=old.stride,
            padding=old.padding,
            bias=True,
        ).to(old.weight.device, old.weight.dtype)
    _set(network, anatomy.head, new)
    if anatomy.head_norm:
        _set(network, anatomy.head_norm, nn.Identity())
    return new


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
