"""SwinUNETR with the patch merging that its weights were trained with.

MONAI 1.5 (pull request 8285) changed the order in which eight neighbours are joined ("merging"): names and shapes stayed,
so that weights from before load without a word and give other outputs. The catalogue entry names the order.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2
from torch import nn
from torch.nn import functional

from peftseg.errors import unknown_name
from peftseg.networks import Anatomy
from peftseg.networks.clip_driven import ClipDrivenHead, run_head

LEGACY_ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class LegacyPatchMerging(PatchMergingV2):
    """MONAI 0.9 to 1.4: two neighbours are joined twice and two are left out. All public weights before 2025 want it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W, C) -> (B, D/2, H/2, W/2, 2C), odd sizes padded."""
        if x.ndim != 5:
            return super().forward(x)
        _, d, h, w, _ = x.shape
        if d % 2 or h % 2 or w % 2:
            # In this order MONAI 0.9 padded; it matters only for odd sizes that differ.
            x = functional.pad(x, (0, 0, 0, d % 2, 0, w % 2, 0, h % 2))
        x = torch.cat([x[:, i::2, j::2, k::2, :] for i, j, k in LEGACY_ORDER], -1)
        return self.reduction(self.norm(x))


MERGING = {"legacy": LegacyPatchMerging, "monai-1.5": PatchMerging, "v2": PatchMergingV2}


class SwinUNETRWithHead(SwinUNETR):
    """SwinUNETR whose head may be text-driven; the same names as MONAI's."""

    def forward(self, x_in: torch.Tensor) -> torch.Tensor:
        """(B, 1, *S) -> (B, n, *S) logits; every axis a multiple of 32."""
        self._check_input_size(x_in.shape[2:])
        hidden = self.swinViT(x_in, self.normalize)
        deepest = self.encoder10(hidden[4])
        x = self.decoder5(deepest, hidden[3])
        x = self.decoder4(x, self.encoder4(hidden[2]))
        x = self.decoder3(x, self.encoder3(hidden[1]))
        x = self.decoder2(x, self.encoder2(hidden[0]))
        x = self.decoder1(x, self.encoder1(x_in))
        return run_head(self.out.conv.conv, x, deepest)


def make_swinunetr(arguments: dict[str, Any], n_outputs: int) -> tuple[nn.Module, Anatomy]:
    """SwinUNETR; arguments are MONAI's and "merging" (one of `MERGING`), "clip_driven" ({"templates", "rows"}) or none."""
    merging = arguments.pop("merging", "legacy")
    clip = arguments.pop("clip_driven", None)
    if merging not in MERGING:
        raise unknown_name("patch merging", merging, MERGING)
    network = SwinUNETRWithHead(out_channels=n_outputs, downsample=MERGING[merging], **arguments)
    if clip:
        width = network.out.conv.conv.in_channels
        network.out.conv.conv = ClipDrivenHead(width, 16 * width, clip["templates"], clip["rows"])
    encoder = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
    decoder = ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1")
    return network, Anatomy(head="out.conv.conv", encoder=encoder, decoder=decoder, divisor=32)
