"""The text-driven head of the CLIP-Driven Universal Model (Liu et al. 2023), as SuPreM's UNet and SwinUNETR carry it.

Each structure has a text embedding. With the scan's deepest features it makes the weights of three small 1x1x1
convolutions for that structure, which run on the last features (checked against MrGiovanni/SuPreM,
direct_inference/model/Universal_model.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

WIDTH = 8  # channels of the small convolutions
EMBEDDING = 512
CONTEXT = 256
GROUPS = 16
N_WEIGHTS = WIDTH * WIDTH + WIDTH * WIDTH + WIDTH
N_BIASES = WIDTH + WIDTH + 1


class ClipDrivenHead(nn.Module):
    """Logits of the structures that the rows name.

    Parameters
    ----------
    features, deepest : int
        Channels of the last and of the deepest features.
    templates : int
        Structures that the checkpoint has embeddings for.
    rows : sequence of int
        Which of them are computed, in this order.
    """

    def __init__(self, features: int, deepest: int, templates: int, rows: Sequence[int]) -> None:
        super().__init__()
        self.in_channels = features
        self.rows = tuple(int(row) for row in rows)
        if not self.rows or not all(0 <= row < templates for row in self.rows):
            raise ValueError(f"rows {self.rows} are not numbers from 0 to {templates - 1}")
        self.register_buffer("organ_embedding", torch.randn(templates, EMBEDDING))
        self.precls_conv = nn.Sequential(
            nn.GroupNorm(GROUPS, features), nn.ReLU(), nn.Conv3d(features, WIDTH, kernel_size=1)
        )
        self.GAP = nn.Sequential(
            nn.GroupNorm(GROUPS, deepest),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(deepest, CONTEXT, kernel_size=1),
        )
        self.controller = nn.Conv3d(2 * CONTEXT, N_WEIGHTS + N_BIASES, kernel_size=1)
        self.text_to_vision = nn.Linear(EMBEDDING, CONTEXT)

    def forward(self, features: torch.Tensor, deepest: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) and (B, C', *S') -> (B, rows, *S) logits."""
        text = functional.relu(self.text_to_vision(self.organ_embedding[list(self.rows)]))
        inputs, context = self.precls_conv(features), self.GAP(deepest)
        return torch.cat([self._one(x[None], c, text) for x, c in zip(inputs, context, strict=True)])

    def _one(self, inputs: torch.Tensor, context: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        n = len(self.rows)
        both = torch.cat([context.flatten()[None].expand(n, -1), text.to(context.dtype)], dim=1)
        made = self.controller(both[..., None, None, None]).flatten(1)
        sizes = (WIDTH * WIDTH, WIDTH * WIDTH, WIDTH, WIDTH, WIDTH, 1)
        *weights, bias1, bias2, bias3 = made.split(sizes, dim=1)
        x = inputs.repeat(1, n, 1, 1, 1)
        for weight, bias in zip(weights[:2], (bias1, bias2), strict=True):
            kernel = weight.reshape(n * WIDTH, WIDTH, 1, 1, 1)
            x = functional.relu(functional.conv3d(x, kernel, bias.reshape(-1), groups=n))
        # The last step in float32 also in 16 bits, as plain heads in `infer.ready`: rounded logits give other labels.
        with torch.autocast(x.device.type, enabled=False):
            kernel = weights[2].float().reshape(n, WIDTH, 1, 1, 1)
            return functional.conv3d(x.float(), kernel, bias3.float().reshape(-1), groups=n)

    def fresh(self, n_outputs: int) -> nn.Module:
        """The plain head that takes this one's place when structures are learnt."""
        return nn.Conv3d(self.in_channels, n_outputs, kernel_size=1).to(self.controller.weight)


def run_head(head: nn.Module, features: torch.Tensor, deepest: torch.Tensor) -> torch.Tensor:
    """A plain head needs the last features only."""
    return head(features, deepest) if isinstance(head, ClipDrivenHead) else head(features)
