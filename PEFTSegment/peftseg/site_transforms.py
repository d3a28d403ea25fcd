"""Small changes of a scan after which a trustworthy network gives the same result. None of them swaps left and right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

PLANES = 16  # at a time: positions take 24 bytes a voxel


@dataclass(frozen=True)
class Transform:
    """A change of the scan after which the same result is expected, moved along. None of them swaps left and right.

    Attributes
    ----------
    degrees : float
        Turn in the plane of the first two axes of the model grid.
    shift : tuple of float
        Move in voxels.
    power : float
        Of the grey values, between the darkest and the brightest 0.5 %.
    """

    degrees: float = 0.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    power: float = 1.0


TRANSFORMS = (
    Transform(degrees=6.0, shift=(1.0, 1.0, 0.0)),
    Transform(degrees=-6.0, shift=(-1.0, 0.0, 1.0)),
    Transform(power=0.8),
    Transform(power=1.25),
)


def with_power(image: torch.Tensor, power: float) -> torch.Tensor:
    """Grey values bent between their black and white; what is darker or brighter keeps its distance."""
    values = image.flatten()
    values = values[:: max(1, values.numel() // 1_000_000)]
    low, high = (float(q) for q in torch.quantile(values, torch.tensor([0.005, 0.995], device=image.device)))
    if high <= low:
        return image
    unit = (image - low) / (high - low)
    inside = unit.clamp(0, 1)
    return low + (high - low) * (inside**power + unit - inside)


def move(
    block: torch.Tensor, spacing: Sequence[float], transform: Transform, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn (in mm, about the middle) and move a block, some planes at a time.

    Parameters
    ----------
    block : tensor (C, I, J, K) float32
    spacing : sequence of float
        mm.
    mode : str
        "bilinear" or "nearest".

    Returns
    -------
    moved : tensor (C, I, J, K)
        On the processor; what comes from outside continues the border.
    seen : tensor (I, J, K) bool
        False where it comes from outside.
    """
    block = block.cpu()
    moved, seen = torch.empty_like(block), torch.empty(block.shape[1:], dtype=torch.bool)
    for first in range(0, block.shape[1], PLANES):
        planes = slice(first, min(first + PLANES, block.shape[1]))
        positions = _positions(block.shape[1:], spacing, transform, planes)
        moved[:, planes] = F.grid_sample(block[None], positions, mode=mode, padding_mode="border", align_corners=True)[
            0
        ]
        seen[planes] = (positions[0].abs() <= 1).all(dim=-1)
    return moved, seen


def _positions(shape: Sequence[int], spacing: Sequence[float], transform: Transform, planes: slice) -> torch.Tensor:
    """(1, planes, J, K, 3) for `grid_sample`."""
    angle = math.radians(transform.degrees)
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    axes[0] = axes[0][planes]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - torch.tensor(transform.shift)
    size = torch.tensor(spacing, dtype=torch.float64)
    source = (voxels * size) @ turn.T / size
    half = torch.tensor([max(n - 1, 1) / 2 for n in shape])
    return (source / half).flip(-1)[None].float()  # grid_sample wants the last axis first
