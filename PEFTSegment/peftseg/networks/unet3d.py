"""SuPreM's 3D U-Net, after Models Genesis (MrGiovanni/SuPreM, model/unet3d.py; names as in its checkpoint)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peftseg.networks import Anatomy
from peftseg.networks.clip_driven import ClipDrivenHead, run_head


class BatchStatisticsNorm3d(nn.BatchNorm3d):
    """Batch normalisation by the statistics of the batch at hand, at all times.

    The public weights were trained and are used so (`ContBatchNorm3d`); running statistics would give other outputs.
    The buffers are kept as they were loaded. A window's result depends on its neighbours in a batch: infer one at a time.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W), more than one voxel a channel."""
        return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
        self.bn1 = BatchStatisticsNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn1(self.conv1(x)))


class _Level(nn.Module):
    """Two units; on the way up after an upsampling by two and the skip."""

    def __init__(self, inputs: int, middle: int, outputs: int, up: int | None = None) -> None:
        super().__init__()
        if up is not None:
            self.up_conv = nn.ConvTranspose3d(up, up, kernel_size=2, stride=2)
        self.ops = nn.Sequential(_Unit(inputs, middle), _Unit(middle, outputs))

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        return self.ops(x if skip is None else torch.cat((self.up_conv(x), skip), dim=1))


class _Output(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(inputs, outputs, kernel_size=1)


class UNet3D(nn.Module):
    """(B, 1, *S) -> (B, n, *S) logits; every axis a multiple of 8."""

    def __init__(self, n_outputs: int, in_channels: int = 1) -> None:
        super().__init__()
        self.down_tr64 = _Level(in_channels, 32, 64)
        self.down_tr128 = _Level(64, 64, 128)
        self.down_tr256 = _Level(128, 128, 256)
        self.down_tr512 = _Level(256, 256, 512)
        self.up_tr256 = _Level(768, 256, 256, up=512)
        self.up_tr128 = _Level(384, 128, 128, up=256)
        self.up_tr64 = _Level(192, 64, 64, up=128)
        self.out_tr = _Output(64, n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        skip64 = self.down_tr64(x)
        skip128 = self.down_tr128(functional.max_pool3d(skip64, 2))
        skip256 = self.down_tr256(functional.max_pool3d(skip128, 2))
        deepest = self.down_tr512(functional.max_pool3d(skip256, 2))
        x = self.up_tr256(deepest, skip256)
        x = self.up_tr128(x, skip128)
        return run_head(self.out_tr.final_conv, self.up_tr64(x, skip64), deepest)


def make_unet3d(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """The U-Net; argument "clip_driven" ({"templates", "rows"}) gives it the text-driven head."""
    clip = arguments.pop("clip_driven", None)
    network = UNet3D(n_outputs, **arguments)
    if clip:
        network.out_tr.final_conv = ClipDrivenHead(64, 512, clip["templates"], clip["rows"])
    encoder = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
    return network, Anatomy(
        head="out_tr.final_conv", encoder=encoder, decoder=("up_tr256", "up_tr128", "up_tr64"), divisor=8
    )
