"""nnU-Net's networks, through `dynamic-network-architectures` (the optional extra `nnunet`).

Names of tensors are nnU-Net's, with two differences. Each layer has one name only: the package gives most of them two
or four, which safetensors refuses. And the lower outputs of deep supervision are left out: they are used in training
only, and would be trainable tensors that never get a gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from peftseg.errors import BadInput, unknown_name
from peftseg.networks import Anatomy

CLASSES = ("PlainConvUNet", "ResidualEncoderUNet")
LAYER_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin")
LAYERS = ("Conv3d", "InstanceNorm3d", "BatchNorm3d", "Dropout3d", "LeakyReLU", "ReLU", "GELU", "ELU")


def make_nnunet(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """One of nnU-Net's 3D networks with one input channel.

    Parameters
    ----------
    arguments : dict
        "class": one of `CLASSES`; "arch_kwargs": as in nnU-Net's plans, layer classes by name.

    Returns
    -------
    network : nn.Module
        (B, 1, *spatial) -> (B, n_outputs, *spatial) logits.
    anatomy : Anatomy

    Raises
    ------
    BadInput
        The package is not installed, the class or a layer is unknown, or the arguments do not fit each other.
    """
    network = untrimmed(arguments, n_outputs)
    _trim(network)
    return network, Anatomy(
        head=f"decoder.seg_layers.{len(network.decoder.seg_layers) - 1}",
        encoder=("encoder",),
        decoder=("decoder.stages", "decoder.transpconvs"),
        divisor=_divisor(network.encoder.strides),
    )


def trimmed_state(
    arguments: dict[str, Any], weights: dict[str, torch.Tensor], n_outputs: int
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under the names of `make_nnunet`'s network; all of them must fit.

    Parameters
    ----------
    weights : dict of str to tensor
        "network_weights" of a checkpoint.

    Raises
    ------
    BadInput
        As `make_nnunet`, or tensors are missing, unexpected, or of another shape.
    """
    network = untrimmed(arguments, n_outputs)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise BadInput(
            f"The checkpoint does not fit the network that its plans describe: {' '.join(lines)[:400]}",
            "It was trained with a trainer that changes the network, or plans.json belongs to another training; get "
            "the model folder as nnU-Net wrote it.",
        ) from error
    _trim(network)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def untrimmed(arguments: dict[str, Any], n_outputs: int) -> nn.Module:
    """The network as the package builds it, under nnU-Net's names; arguments and errors are `make_nnunet`'s."""
    try:
        from dynamic_network_architectures.architectures import unet
    except ModuleNotFoundError as error:
        raise BadInput(
            f"nnU-Net models need the package dynamic-network-architectures, which cannot be loaded ({error}).",
            "Install it with `pip install peftseg[nnunet]`.",
        ) from error
    if set(arguments) != {"class", "arch_kwargs"}:
        raise BadInput(
            f"An nnU-Net network has the arguments {sorted(arguments)}; expected class and arch_kwargs.",
            "Correct them.",
        )
    name = arguments["class"]
    if name not in CLASSES:
        raise unknown_name("nnU-Net network", name, CLASSES)
    options = {
        key: _layer(value) if key in LAYER_ARGUMENTS else value for key, value in arguments["arch_kwargs"].items()
    }
    try:
        return getattr(unet, name)(input_channels=1, num_classes=n_outputs, **{**options, "deep_supervision": False})
    except (AssertionError, TypeError, ValueError) as error:
        raise BadInput(f"The arguments of {name} do not fit each other: {error}.", "Restore plans.json.") from error


def _layer(name: str | None) -> type[nn.Module] | None:
    """A layer class of torch by the name in the plans, such as "torch.nn.modules.conv.Conv3d"."""
    if name is None:
        return None
    leaf = name.rpartition(".")[2]
    if leaf not in LAYERS or not name.startswith("torch.nn."):
        raise unknown_name("layer of an nnU-Net network", name, [f"torch.nn.{layer}" for layer in LAYERS])
    return getattr(nn, leaf)


def _trim(network: nn.Module) -> None:
    """Leave each layer under one name, the one that is run, and drop the lower outputs."""
    del network.decoder.encoder
    for module in list(network.modules()):
        run = getattr(module, "all_modules", None)
        if isinstance(run, nn.Sequential):
            for name in [n for n, child in module.named_children() if any(child is layer for layer in run)]:
                delattr(module, name)
    outputs = network.decoder.seg_layers
    for level in range(len(outputs) - 1):
        outputs[level] = nn.Identity()


def _divisor(strides: list[list[int]]) -> tuple[int, int, int]:
    """Product of the strides along each axis."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))
