"""A small 3D U-Net with batch normalisation by running statistics, the kind that AdaBN recalibrates.

The levels are named as in the 2D U-Net (`init_path`, `down1` ...), and each has twice the channels of the one above, so that
an early segmentation head finds them the same way. MONAI's `BasicUNet` goes down four times, which pads small
scans a lot, and its `UNet` names its levels by nesting (`model.1.submodule.1...`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peftseg.networks import Anatomy

WIDTH = 16


class _Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Up(nn.Module):
    """Twice the size, half the channels, the skip added, and one unit."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, inputs // 2, 2, stride=2, bias=False)
        self.bn = nn.BatchNorm3d(inputs // 2)
        self.unit = _Unit(inputs // 2, inputs // 2)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.unit(functional.relu(self.bn(self.up(x))) + skip)


def _path(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Unit(inputs, outputs, stride), _Unit(outputs, outputs))


class UNet3DBN(nn.Module):
    """(B, C, *S) -> (B, n, *S) logits; every axis a multiple of 8.

    Parameters
    ----------
    n_outputs : int
        Rows of the head.
    width : int
        Channels of the first level; 16 make 1.1 million parameters (4.5 MB).
    """

    def __init__(self, n_outputs: int, in_channels: int = 1, width: int = WIDTH) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width {width!r} is not a whole number above 0")
        self.init_path = _path(in_channels, width, 1)
        self.down1 = _path(width, 2 * width, 2)
        self.down2 = _path(2 * width, 4 * width, 2)
        self.down3 = _path(4 * width, 8 * width, 2)
        self.up3 = _Up(8 * width)
        self.up2 = _Up(4 * width)
        self.up1 = _Up(2 * width)
        self.head = nn.Conv3d(width, n_outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x0 = self.init_path(x)
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        x = self.up3(self.down3(x2), x2)
        x = self.up2(x, x1)
        return self.head(self.up1(x, x0))


def make_unet3d_bn(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """The network; arguments "width" and "in_channels"."""
    return UNet3DBN(n_outputs, **arguments), Anatomy(
        head="head",
        encoder=("init_path", "down1", "down2", "down3"),
        decoder=("up3", "up2", "up1"),
        divisor=8,
    )
