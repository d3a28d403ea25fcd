"""The grids of a network's layers in a whole study, and the linear maps between them and the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional

from peftseg.explain.maps import Corner, Padded, pad
from peftseg.explain.subject import Subject
from peftseg.networks import is_slicewise, per_axis
from peftseg.preprocess import Prepared
from peftseg.windows import tile

Stride = tuple[int, int, int]  # voxels of the image a voxel of a layer


def size_at(padded: Padded, stride: Stride) -> tuple[int, int, int]:
    """Voxels of the padded image at a layer's resolution."""
    return tuple(n // s for n, s in zip(padded.image.shape, stride, strict=True))


def cut_at(array: torch.Tensor, padded: Padded, stride: Stride, corner: Corner) -> torch.Tensor:
    """The view of a window in an array (..., *size) at a layer's resolution."""
    spans = zip(corner, padded.tiling.window, stride, strict=True)
    return array[(..., *(slice(c // s, (c + w) // s) for c, w, s in spans))]


def shrink(weights: torch.Tensor, stride: Stride) -> torch.Tensor:
    """Mean over each voxel of a layer of weights (*window)."""
    return functional.avg_pool3d(weights[None, None], stride, stride)[0, 0]


def enlarge(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Trilinear interpolation U of (N, *S) to (N, *shape), as the published method resizes features."""
    if tuple(values.shape[1:]) == tuple(shape):
        return values
    return functional.interpolate(values[None], size=tuple(shape), mode="trilinear", align_corners=False)[0]


def adjoint(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """U^T: of (*shape) back to (*size), the weights by which native features give sums of interpolated ones."""
    with torch.enable_grad():
        source = values.new_zeros((1, *size), requires_grad=True)
        return torch.autograd.grad(enlarge(source, values.shape), source, values[None])[0][0]


def align(subject: Subject, prepared: Prepared, device: torch.device) -> Padded:
    """The study with windows that start at multiples of the network's divisor.

    An axis that is longer than the window is padded at its end to such a multiple; windows of segmentation move by less than
    the divisor. They still cover all voxels: two starts differ by a multiple of it that is no larger than a window.
    """
    image = prepared.image[0]
    divisor = per_axis(subject.anatomy.divisor)
    window = subject.window_on(tuple(image.shape))
    extra = [-n % d if n > w else 0 for n, d, w in zip(image.shape, divisor, window, strict=True)]
    shape = tuple(n + e for n, e in zip(image.shape, extra, strict=True))
    tiling = tile(shape, window, subject.overlap, prepared.scheme, is_slicewise(subject.network))
    starts = tuple(
        tuple(dict.fromkeys(s - s % d for s in axis)) for axis, d in zip(tiling.starts, divisor, strict=True)
    )
    longer = functional.pad(image, [p for e in reversed(extra) for p in (0, e)], value=prepared.background)
    return pad(longer.to(device), dataclasses.replace(tiling, starts=starts), prepared.background)
