"""Networks by name, with the anatomy that adaptation needs: where encoder, decoder and head are.

MONAI's networks are used where they are right. A new architecture is one builder here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    divisor : int
        Every axis of the input must be a multiple of it.
    """

    head: str
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    divisor: int


Builder = Callable[[dict[str, Any], int], tuple[nn.Module, Anatomy]]


def _segresnet(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    from monai.networks.nets import SegResNet

    network = SegResNet(out_channels=n_outputs, **arguments)
    levels = len(arguments.get("blocks_down", (1, 2, 2, 4)))
    return network, Anatomy(
        head="conv_final.2.conv",
        encoder=("convInit", "down_layers"),
        decoder=("up_layers", "up_samples", "conv_final.0"),
        divisor=2 ** (levels - 1),
    )


NETWORKS: dict[str, Builder] = {"segresnet": _segresnet}


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
    try:
        return NETWORKS[spec.name](dict(spec.arguments), n_outputs)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"Network '{spec.name}' does not take the arguments {spec.arguments}: {error}.", "Correct them."
        ) from error


def is_part(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module or parameter name lies under one of the prefixes (whole name components, not substrings)."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def head_of(network: nn.Module, anatomy: Anatomy) -> nn.Module:
    """The head's module."""
    return network.get_submodule(anatomy.head)


def replace_head(network: nn.Module, anatomy: Anatomy, n_outputs: int) -> nn.Module:
    """Give the network a fresh head with `n_outputs` rows, in place, and return the new head.

    The new head has the old one's class and geometry and the default initialisation of that class.
    """
    old = head_of(network, anatomy)
    new = type(old)(
        old.in_channels,
        n_outputs,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
    ).to(old.weight.device, old.weight.dtype)
    parent, _, leaf = anatomy.head.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
    return new
