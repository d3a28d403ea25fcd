"""The 2D U-Net of ConvLoRA's CC359 experiments (aleemsidra/ConvLoRA, models.py; names as there).

It runs on slices: a volume (B, C, H, W, D) is taken apart along its last axis and put together again, so that the
engine treats it as any other network (`planes.py` says which axis of the scan is the last one).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peftseg.networks import Anatomy

FILTERS = 16


class _PreActivation(nn.Module):
    """Normalisation, ReLU, convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(functional.relu(self.bn(x)))


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv_path = nn.Sequential(
            _PreActivation(channels, channels, kernel, bias=False),
            _PreActivation(channels, channels, kernel, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_path(x)


def _blocks(channels: int) -> list[nn.Module]:
    return [_ResBlock(channels) for _ in range(3)]


def _down(n: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(n), nn.Conv2d(n, 2 * n, 2, stride=2, bias=False), nn.ReLU(), nn.Identity(), *_blocks(2 * n)
    )


def _up(n: int) -> nn.Sequential:
    transposed = nn.ConvTranspose2d(n, n // 2, 2, stride=2, bias=False)
    return nn.Sequential(*_blocks(n), nn.BatchNorm2d(n), transposed, nn.ReLU(), nn.Identity())


class UNet2D(nn.Module):
    """(B, C, H, W) or (B, C, H, W, D) -> logits of the same extent; H and W multiples of 8.

    Parameters
    ----------
    n_outputs : int
        Rows of the head.
    """

    slicewise = True

    def __init__(self, n_outputs: int, in_channels: int = 1, filters: int = FILTERS) -> None:
        super().__init__()
        n = filters
        self.init_path = nn.Sequential(nn.Conv2d(in_channels, n, 3, padding=1, bias=False), nn.ReLU(), *_blocks(n))
        self.shortcut0 = nn.Conv2d(n, n, 1)
        self.down1 = _down(n)
        self.shortcut1 = nn.Conv2d(2 * n, 2 * n, 1)
        self.down2 = _down(2 * n)
        self.shortcut2 = nn.Conv2d(4 * n, 4 * n, 1)
        self.down3 = _down(4 * n)
        self.up3 = _up(8 * n)
        self.up2 = _up(4 * n)
        self.up1 = _up(2 * n)
        self.out_path = nn.Sequential(
            _ResBlock(n, kernel=1), _PreActivation(n, n_outputs, 1, bias=True), nn.BatchNorm2d(n_outputs)
        )

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of the four levels of (B, C, H, W)."""
        features = [self.init_path(x)]
        for down in (self.down1, self.down2, self.down3):
            features.append(down(features[-1]))
        return features

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits (B, n, H, W) from the features of `encode`."""
        x0, x1, x2, x3 = features
        x = self.up3(x3) + self.shortcut2(x2)
        x = self.up2(x) + self.shortcut1(x1)
        return self.out_path(self.up1(x) + self.shortcut0(x0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        if x.ndim == 4:
            return self.decode(self.encode(x))
        slices = x.movedim(-1, 1).flatten(0, 1)
        logits = self.decode(self.encode(slices))
        return logits.unflatten(0, (x.shape[0], x.shape[-1])).movedim(1, -1)


def make_unet2d(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """The 2D U-Net; its normalisation after the last convolution goes when the head is replaced."""
    return UNet2D(n_outputs, **arguments), Anatomy(
        head="out_path.1.layer",
        encoder=("init_path", "down1", "down2", "down3"),
        decoder=("shortcut0", "shortcut1", "shortcut2", "up3", "up2", "up1", "out_path.0", "out_path.1.bn"),
        divisor=(8, 8, 1),
        head_norm="out_path.2",
    )
