"""Whole-volume segmentation on the study's own grid.

Logits of overlapping windows are blended, interpolated linearly to the study's voxels, and only then made labels.
Memory is bounded: logits live slab by slab (see `windows.py`), and a structure is interpolated only in the box where it
can win.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from peftseg.axis_map import axis_map
from peftseg.device import autocast, choose_precision
from peftseg.errors import unknown_name
from peftseg.events import Reporter
from peftseg.models import ACTIVATIONS
from peftseg.networks import is_slicewise
from peftseg.preprocess import Prepared
from peftseg.resample import Taps, interpolate, taps_back
from peftseg.windows import Forward, Slab, logit_slabs, tile

ACCUMULATOR_BYTES = 2**30
Observer = Callable[[Prepared, Slab], None]
HEAD_VOXELS = 2**15  # features of so many voxels at a time, so that they stay in the processor's cache


def segment(
    network: nn.Module,
    prepared: Prepared,
    n_outputs: int,
    window: Sequence[int],
    overlap: float,
    activation: str,
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter | None = None,
    batch: int = 1,
    accumulator_bytes: int = ACCUMULATOR_BYTES,
    observer: Observer | None = None,
) -> np.ndarray:
    """Segment a prepared study.

    Parameters
    ----------
    network : nn.Module
        (B, 1, *window) -> (B, n_outputs, *window) logits; put on the device and into evaluation mode meanwhile.
    n_outputs : int
        Channels of the network's output, background included for "softmax".
    window : sequence of int
        In voxels of the model grid. Smaller images are padded on both sides with their smallest value. Of a network that
        works on slices it holds at most `windows.SLICES_AT_ONCE` slices.
    overlap : float
        Of neighbouring windows, 0 to below 1.
    activation : str
        "softmax" or "sigmoid".
    precision : str
        See `device.choose_precision`. Logits are always accumulated in float32.
    reporter : Reporter, optional
        Asked between windows whether the user cancelled.
    batch : int
        Windows a forward pass.
    accumulator_bytes : int
        Limit for blended logits; large volumes with many structures are done in strips that keep to it (but no strip
        is narrower than the step between two windows).
    observer : callable, optional
        Gets the study and every slab of blended logits, which it must not change or keep.

    Returns
    -------
    array
        "softmax": (I, J, K) uint8 (uint16 from 257 outputs) of the channel with the largest logit, 0 for background;
        "sigmoid": (n_outputs, I, J, K) bool, probability above 0.5. Both on the study's own grid; voxels that were
        cropped away are background.

    Raises
    ------
    BadInput
        Unknown activation, or the network does not fit `n_outputs` or the window.
    JobCancelled
        The user cancelled.
    """
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    mapping = axis_map(prepared.grid, prepared.source)
    taps = taps_back(mapping, prepared.grid.shape, prepared.source.shape, prepared.nearest, prepared.reach)
    if activation == "softmax":
        labels = np.zeros(prepared.source.shape, dtype=np.uint8 if n_outputs <= 256 else np.uint16)
        write = _write_labels
    else:
        labels = np.zeros((n_outputs, *prepared.source.shape), dtype=bool)
        write = _write_masks
    view = mapping.orient(labels)
    image = prepared.image.to(device)
    tiling = tile(image.shape[1:], window, overlap, prepared.scheme, is_slicewise(network))
    with ready(network, device, precision) as forward:
        slabs = logit_slabs(
            forward,
            image,
            n_outputs,
            tiling,
            limit_bytes=accumulator_bytes,
            batch=batch,
            reporter=reporter,
            padding=prepared.background,
        )
        for slab in slabs:
            write(view, slab, owned_taps(taps, slab, prepared.grid.shape))
            if observer is not None:
                observer(prepared, slab)
    return labels


def predict_logits(
    network: nn.Module,
    image: torch.Tensor,
    n_outputs: int,
    window: Sequence[int],
    overlap: float,
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter | None = None,
    batch: int = 1,
) -> torch.Tensor:
    """Blended logits on the model grid, all at once.

    Parameters are those of `segment`; `image` is (1, I', J', K').

    Returns
    -------
    tensor (n_outputs, I', J', K') float32
        On the processor. In float32 the same as MONAI's `sliding_window_inference` with mode "gaussian".
    """
    image = image.to(device)
    shape = tuple(image.shape[1:])
    result = torch.empty((n_outputs, *shape))
    with ready(network, device, precision) as forward:
        tiling = tile(shape, window, overlap, slicewise=is_slicewise(network))
        slabs = logit_slabs(
            forward, image, n_outputs, tiling, limit_bytes=ACCUMULATOR_BYTES, batch=batch, reporter=reporter
        )
        for slab in slabs:
            (p0, p1), (r0, r1) = slab.planes, slab.rows
            result[:, p0 : p1 + 1, r0 : r1 + 1] = slab.logits.cpu()
    return result


@contextlib.contextmanager
def ready(network: nn.Module, device: torch.device, precision: str = "auto") -> Iterator[Forward]:
    """The network as a function for inference: on the device, in evaluation mode, in the precision that gains there.

    Each module's training mode is restored at the end; composed weights are composed once. In 16 bits, weights are laid
    out channels-last meanwhile, in which convolutions and upsampling are several times faster, and the head runs in
    float32: rounding logits to 16 bits would double the voxels that get another label than in float32.
    """
    precision = choose_precision(device, precision)
    flat = any(p.ndim == 4 for p in network.parameters())  # a network of slices: the layout is for volumes
    channels_last = precision != "fp32" and device.type in ("cpu", "cuda") and not flat
    modes = {module: module.training for module in network.modules()}
    # Outside of inference mode, in which tensors are made that cannot be trained any more.
    network.to(device).eval()
    try:
        if channels_last:
            network.to(memory_format=torch.channels_last_3d)
        head = contextlib.nullcontext() if precision == "fp32" else _float32_head(network)
        with torch.inference_mode(), parametrize.cached(), head, autocast(device, precision):
            yield network
    finally:
        if channels_last:
            network.to(memory_format=torch.contiguous_format)
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _float32_head(network: nn.Module) -> Iterator[None]:
    """Run the last convolution, in the order of the modules, without autocast."""
    convolutions = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    if not convolutions:
        yield
        return
    head = convolutions[-1]
    run = _pointwise if _is_pointwise(head) else _convolve

    def in_float32(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return run(head, features)

    head.forward = in_float32
    try:
        yield
    finally:
        del head.forward


def _is_pointwise(conv: nn.Conv2d | nn.Conv3d) -> bool:
    return {*conv.kernel_size, *conv.stride, conv.groups} == {1} and conv.padding in ((0, 0, 0), "valid", "same")


def _convolve(conv: nn.Conv2d | nn.Conv3d, features: torch.Tensor) -> torch.Tensor:
    return type(conv).forward(conv, features.float())


def _pointwise(conv: nn.Conv3d, features: torch.Tensor) -> torch.Tensor:
    """A convolution with a kernel of one voxel, some planes at a time: a copy of all features in float32 costs more."""
    size, _, depth, *plane = features.shape
    logits = features.new_empty((size, conv.out_channels, depth, *plane), dtype=torch.float32)
    weight = conv.weight.flatten(1)
    bias = 0 if conv.bias is None else conv.bias[:, None]
    step = max(1, HEAD_VOXELS // math.prod(plane))
    for first in range(0, depth, step):
        some = features[:, :, first : first + step].movedim(1, -1)
        columns = some.flatten(1, -2).float()  # (B, voxels, C)
        product = (weight @ columns.transpose(1, 2)).add_(bias)
        logits[:, :, first : first + step] = product.unflatten(2, some.shape[1:-1])
    return logits


def owned_taps(taps: tuple[Taps, Taps, Taps], slab: Slab, shape: tuple[int, int, int]) -> tuple[Taps, Taps, Taps]:
    """The study's planes and rows in this slab, and all its columns; a shared border belongs to the next slab."""
    planes, rows = (
        _within(tap, first, last if last == size - 1 else last - 1).shifted(first)
        for tap, (first, last), size in zip(taps, (slab.planes, slab.rows), shape, strict=False)
    )
    return planes, rows, taps[2]


def _within(taps: Taps, first: int, last: int) -> Taps:
    """Taps whose lower neighbour lies from `first` to `last`."""
    return taps.part(*np.searchsorted(taps.low, [first, last + 1]))


def _reached(taps: Taps, first: int, last: int) -> Taps:
    """Taps that take anything from the inputs `first` to `last`; the lower neighbour may be the one before."""
    return _within(taps, first - 1, last)


def _box(wanted: torch.Tensor) -> list[tuple[int, int]] | None:
    """First and last index of the true voxels of (P, Q, R) along each axis; None without any."""
    front, top = wanted.any(dim=2), wanted.any(dim=0)
    flat = [hits.nonzero().flatten() for hits in (front.any(dim=1), front.any(dim=0), top.any(dim=0))]
    return [(int(hit[0]), int(hit[-1])) for hit in flat] if len(flat[0]) else None


def _interpolate_box(logits: torch.Tensor, taps: Sequence[Taps]) -> torch.Tensor:
    """Interpolate only what the taps touch."""
    cut, local = [], []
    for tap in taps:
        first, last = int(tap.low[0]), int(tap.low[-1]) + int(tap.weight[-1] > 0)
        cut.append(slice(first, last + 1))
        local.append(tap.shifted(first))
    return interpolate(logits[tuple(cut)], local)


def _slices(taps: Sequence[Taps], base: Sequence[Taps] | None = None) -> tuple[slice, ...]:
    """Output range of the taps, relative to that of `base`."""
    offsets = [b.first for b in base] if base is not None else (0, 0, 0)
    return tuple(slice(t.first - o, t.first - o + len(t.low)) for t, o in zip(taps, offsets, strict=True))


def _candidates(
    logits: torch.Tensor, floor: torch.Tensor | float, taps: Sequence[Taps]
) -> list[tuple[int, list[Taps]]]:
    """Channels that exceed the floor somewhere, and the taps that reach those voxels.

    An interpolated logit lies between its neighbours', so it cannot exceed the floor's where none of them does.
    """
    found = []
    for channel, values in enumerate(logits):
        box = _box(values > floor)
        reached = box and [_reached(tap, *span) for tap, span in zip(taps, box, strict=True)]
        if reached and all(len(tap.low) for tap in reached):
            found.append((channel, reached))
    return found


def _write_masks(view: np.ndarray, slab: Slab, taps: Sequence[Taps]) -> None:
    for channel, reached in _candidates(slab.logits, 0.0, taps):
        inside = _interpolate_box(slab.logits[channel], reached) > 0
        view[(channel, *_slices(reached))] = inside.cpu().numpy()


def _write_labels(view: np.ndarray, slab: Slab, taps: Sequence[Taps]) -> None:
    """Largest logit; the lower channel wins a tie, as with argmax."""
    found = [(c + 1, reached) for c, reached in _candidates(slab.logits[1:], slab.logits[0], taps)]
    if not found:
        return
    whole = [_hull([reached[axis] for _, reached in found], taps[axis]) for axis in range(3)]
    best = _interpolate_box(slab.logits[0], whole).clone()
    labels = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for channel, reached in found:
        values = _interpolate_box(slab.logits[channel], reached)
        part = _slices(reached, whole)
        wins = values > best[part]
        labels[part].masked_fill_(wins, channel)
        torch.maximum(best[part], values, out=best[part])
    view[_slices(whole)] = labels.cpu().numpy()


def _hull(parts: list[Taps], taps: Taps) -> Taps:
    first = min(p.first for p in parts) - taps.first
    last = max(p.first + len(p.low) for p in parts) - taps.first
    return taps.part(first, last)
