"""MONAI's SegResNet and SegResNetDS."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import SegResNet, SegResNetDS
from torch import nn

from peftseg.networks import Anatomy


def make_segresnet(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """SegResNet (MONAI; SuPreM's and the whole-body CT bundle's)."""
    network = SegResNet(out_channels=n_outputs, **arguments)
    levels = len(arguments.get("blocks_down", (1, 2, 2, 4)))
    return network, Anatomy(
        head="conv_final.2.conv",
        encoder=("convInit", "down_layers"),
        decoder=("up_layers", "up_samples", "conv_final.0"),
        divisor=2 ** (levels - 1),
    )


def make_segresnet_ds(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """SegResNetDS with its last head only: heads for deep supervision serve training from scratch."""
    network = SegResNetDS(out_channels=n_outputs, dsdepth=1, **arguments)
    levels = len(arguments.get("blocks_down", (1, 2, 2, 4)))
    last = levels - 2
    decoder = tuple(f"up_layers.{i}" for i in range(last))
    return network, Anatomy(
        head=f"up_layers.{last}.head",
        encoder=("encoder",),
        decoder=(*decoder, f"up_layers.{last}.upsample", f"up_layers.{last}.blocks"),
        divisor=2 ** (levels - 1),
    )
