"""Sliding-window logits, slab by slab along the first axis, with bounded memory.

Windows lie where MONAI's `sliding_window_inference` puts them and are blended with its Gaussian weights. Own code,
because MONAI holds the logits of every structure for the whole volume (105 structures of a torso: tens of GB), and
runs the network on windows that hold nothing but air.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch.nn import functional as F

from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.networks import per_axis
from peftseg.nnunet_preprocess import window_starts, window_weights

SIGMA_SCALE = 0.125  # of the Gaussian weights, in windows
SLICES_AT_ONCE = 16  # of a network that works on slices, whatever its window says: memory stays bounded
TELL_S = 1.0  # between two progress events
BLANK_TOLERANCE = 1e-6  # of the image's range: rounding of a constant region

Forward = Callable[[torch.Tensor], torch.Tensor]
Span = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """Where the windows lie.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the image.
    window : tuple of int
        Voxels of a window.
    before, after : tuple of int
        Voxels padded along each axis where the image is smaller than the window.
    starts : tuple of tuple of int
        First voxels of the windows along each axis of the padded image, ascending.
    scheme : str
        Of the preprocessing; it says how windows are blended.
    """

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    before: tuple[int, int, int]
    after: tuple[int, int, int]
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    scheme: str = "linear"


@dataclass(frozen=True)
class Slab:
    """Finished logits of some planes and rows of the model grid.

    Neighbouring slabs share one plane or row, so that a consumer can interpolate between voxels.

    Attributes
    ----------
    planes, rows : tuple of int
        First and last voxel (inclusive) along the first and second axis.
    logits : tensor (C, planes, rows, K') float32
        Valid until the next slab is asked for.
    """

    planes: Span
    rows: Span
    logits: torch.Tensor


def window_for(
    shape: Sequence[int], smallest: Sequence[int] | None, largest: Sequence[int], step: int | Sequence[int]
) -> tuple[int, int, int]:
    """The window for an image of this shape: just large enough to cover it, within limits.

    Not under `smallest` (the training patch), so that small images are padded as in training and no more: group and
    instance norms see the air that pads a crop, which cost up to 60 points of Dice. Not above `largest` (the base's
    window). In between one window covers the image, and no seam runs through it.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the model grid.
    smallest : sequence of int or None
        None: always `largest`.
    step : int or sequence of int
        Of all axes, or of each. Every side is a multiple of it, but for the limits themselves.
    """
    if smallest is None:
        return tuple(largest)
    cover = (-(-n // s) * s for n, s in zip(shape, per_axis(step), strict=True))
    return tuple(max(low, min(size, high)) for size, low, high in zip(cover, smallest, largest, strict=True))


def tile(
    shape: Sequence[int], window: Sequence[int], overlap: float, scheme: str = "linear", slicewise: bool = False
) -> Tiling:
    """Place windows as MONAI's `sliding_window_inference` does, or nnU-Net; BadInput for a window or overlap that cannot be.

    Parameters
    ----------
    slicewise : bool
        The network works on each slice along the last axis by itself (`networks.is_slicewise`): windows hold at most
        `SLICES_AT_ONCE` slices, and do not overlap along that axis, which would only repeat work.
    """
    if len(window) != 3 or min(window) < 1 or not 0 <= overlap < 1:
        raise BadInput(
            f"Window {tuple(window)} with overlap {overlap} is not possible; expected three sizes of at least 1 voxel "
            "and an overlap from 0 to below 1.",
            "Correct the model's window and overlap.",
        )
    overlaps = (overlap,) * 3
    if slicewise:
        window, overlaps = (*window[:2], min(window[2], shape[2], SLICES_AT_ONCE)), (overlap, overlap, 0.0)
    missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
    before = tuple(m // 2 for m in missing)
    after = tuple(m - b for m, b in zip(missing, before, strict=True))
    starts = []
    for n, m, w, shared in zip(shape, missing, window, overlaps, strict=True):
        if scheme == "nnunet":
            starts.append(window_starts(n + m, w, shared))
            continue
        interval = w if n + m == w else max(1, int(w * (1 - shared)))
        starts.append(tuple(s.start for (s,) in dense_patch_slices((n + m,), (w,), (interval,))))
    return Tiling(tuple(shape), tuple(window), before, after, tuple(starts), scheme)


def split_rows(tiling: Tiling, n_outputs: int, limit_bytes: int) -> list[Span]:
    """Divide the second axis into strips (first and last row, sharing one) whose accumulators keep to a limit.

    Windows across the border of two strips are computed for both, so strips are no narrower than a window's step.
    """
    rows = tiling.shape[1]
    planes, columns = tiling.window[0] + 1, tiling.shape[2] + tiling.before[2] + tiling.after[2]
    row_bytes = 4 * (n_outputs + 1) * planes * columns
    step = tiling.starts[1][1] - tiling.starts[1][0] if len(tiling.starts[1]) > 1 else rows
    size = max(limit_bytes // row_bytes, step, 1)
    count = max(1, math.ceil((rows - 1) / size))
    edges = [round(i * (rows - 1) / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def logit_slabs(
    forward: Forward,
    image: torch.Tensor,
    n_outputs: int,
    tiling: Tiling,
    *,
    limit_bytes: int,
    batch: int = 1,
    reporter: Reporter | None = None,
    padding: float | None = None,
) -> Iterator[Slab]:
    """Blended logits of an image, slab by slab along the first axis (within each strip of rows).

    A window in which every voxel has the image's smallest value (air, padding) is computed once, and its logits are
    used for all of them: the result is the same.

    Parameters
    ----------
    forward : callable
        (B, 1, *window) -> (B, C, *window) logits of any float type.
    image : tensor (1, I', J', K')
        float32, on the device of the computation.
    limit_bytes : int
        For the accumulators; see `split_rows`.
    batch : int
        Windows a forward pass.
    padding : float or None
        Value of the voxels around an image that is smaller than a window; None: the image's smallest.

    Raises
    ------
    BadInput
        The network has another number of outputs or another output size than expected.
    JobCancelled
        The user cancelled (asked between windows).
    """
    darkest = float(image.min())
    padding = darkest if padding is None else padding
    lowest = min(darkest, padding)
    blank_below = lowest + BLANK_TOLERANCE * (float(image.max()) - lowest)
    pads = [p for axis in (2, 1, 0) for p in (tiling.before[axis], tiling.after[axis])]
    padded = F.pad(image, pads, value=padding) if any(pads) else image
    strips = split_rows(tiling, n_outputs, limit_bytes)
    total = len(tiling.starts[0]) * len(tiling.starts[2]) * sum(len(_row_starts(tiling, rows)) for rows in strips)
    run = _Runner(forward, padded[0], n_outputs, tiling.window, blank_below, batch, reporter, total)
    for rows in strips:
        yield from _strip_slabs(run, tiling, rows, n_outputs, padded.device)


def _row_starts(tiling: Tiling, rows: Span) -> list[int]:
    """First rows, in the padded image, of the windows that reach into a strip."""
    top, bottom = rows[0] + tiling.before[1], rows[1] + 1 + tiling.before[1]
    return [j for j in tiling.starts[1] if j < bottom and j + tiling.window[1] > top]


def _strip_slabs(run: _Runner, tiling: Tiling, rows: Span, n_outputs: int, device: torch.device) -> Iterator[Slab]:
    """Sweep one strip: add all windows that start at one plane, then hand out the planes that no later one touches."""
    depth = tiling.window[0]
    top, bottom = rows[0] + tiling.before[1], rows[1] + 1 + tiling.before[1]
    width = tiling.shape[2] + tiling.before[2] + tiling.after[2]
    columns = slice(tiling.before[2], tiling.before[2] + tiling.shape[2])
    weights = _weights(tiling, device)
    # Plane 0 is the last finished plane of the slab before; planes 1.. are where the windows go.
    total = torch.zeros((n_outputs + 1, depth + 1, bottom - top, width), device=device)  # the last row sums weights
    starts = tiling.starts[0]
    ends = (*starts[1:], starts[-1] + depth)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        corners = [(start, j, k) for j in _row_starts(tiling, rows) for k in tiling.starts[2]]
        for (_, j, k), logits in run(corners):
            _add_window(total[:, 1:], logits, weights, j - top, k)
        done = end - start
        total[:-1, 1 : done + 1] /= total[-1:, 1 : done + 1]
        # In padded planes, a slab is from `start` (or one before it, shared) to `end`; only a single one is padded.
        first = tiling.before[0] if number == 0 else start - 1
        last = min(end, tiling.before[0] + tiling.shape[0]) - 1
        planes = (first - tiling.before[0], last - tiling.before[0])
        yield Slab(planes, rows, total[:-1, first - start + 1 : last - start + 2, :, columns])
        if end == starts[-1] + depth:
            return
        for channel in total:  # one at a time: the copy that an overlapping move needs stays small
            channel[: depth + 1 - done] = channel[done:].clone()
            channel[depth + 1 - done :] = 0


def _weights(tiling: Tiling, device: torch.device) -> torch.Tensor:
    """Weights of a window's voxels, (*window) float32."""
    if tiling.scheme == "nnunet":
        return window_weights(tiling.window).to(device)
    return compute_importance_map(tiling.window, mode="gaussian", sigma_scale=SIGMA_SCALE, device=device)


def _add_window(total: torch.Tensor, logits: torch.Tensor, weights: torch.Tensor, row: int, column: int) -> None:
    """Add one window's weighted logits to the accumulators (C + 1, depth, rows, columns), cut to the strip's rows."""
    lo, hi = max(row, 0), min(row + weights.shape[1], total.shape[2])
    cut = slice(lo - row, hi - row)
    columns = slice(column, column + weights.shape[2])
    weights = weights[:, cut]
    for channel, values in zip(total, logits, strict=False):
        channel[:, lo:hi, columns].addcmul_(values[:, cut].float(), weights)
    total[-1, :, lo:hi, columns] += weights


def _finite(forward: Forward, batch: torch.Tensor) -> torch.Tensor:
    """Logits; once more in single precision where half precision, which ends at 65504, does not hold what leads to them."""
    logits = forward(batch)
    kind = batch.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if not half or bool(torch.isfinite(logits).all()):
        return logits
    with torch.autocast(kind, enabled=False):
        return forward(batch)


@dataclass
class _Runner:
    """Runs the network on windows of one image, in batches, blank windows once."""

    forward: Forward
    image: torch.Tensor  # (I, J, K), padded
    n_outputs: int
    window: tuple[int, int, int]
    blank_below: float
    batch: int
    reporter: Reporter | None
    total: int  # windows of the whole image
    done: int = 0
    blank_logits: torch.Tensor | None = None
    begun: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def __call__(self, corners: list[tuple[int, int, int]]) -> Iterator[tuple[tuple[int, int, int], torch.Tensor]]:
        """Corner and logits (C, *window) of each window; blank ones last."""
        full, blank = [], []
        for corner in corners:
            (blank if float(self._cut(corner).max()) <= self.blank_below else full).append(corner)
        for first in range(0, len(full), self.batch):
            some = full[first : first + self.batch]
            yield from zip(some, self._logits(some), strict=True)
            self._tell(len(some))
        if blank and self.blank_logits is None:
            self.blank_logits = self._logits(blank[:1])[0]
        for corner in blank:
            yield corner, self.blank_logits
        self._tell(len(blank))

    def _tell(self, windows: int) -> None:
        """Report progress, at most every `TELL_S` seconds: small images are done before."""
        self.done += windows
        now = time.monotonic()
        if self.reporter is not None and now - self.told > TELL_S:
            self.told = now
            left = (now - self.begun) / self.done * (self.total - self.done)
            self.reporter.progress("windows", self.done, self.total, eta_s=left)

    def _cut(self, corner: tuple[int, int, int]) -> torch.Tensor:
        return self.image[tuple(slice(c, c + w) for c, w in zip(corner, self.window, strict=True))]

    def _logits(self, corners: list[tuple[int, int, int]]) -> torch.Tensor:
        if self.reporter is not None:
            self.reporter.check()
        logits = _finite(self.forward, torch.stack([self._cut(corner) for corner in corners])[:, None])
        expected = (len(corners), self.n_outputs, *self.window)
        if tuple(logits.shape) != expected:
            raise BadInput(
                f"The network answers {tuple(logits.shape)} to windows of {self.window} voxels; expected {expected}.",
                "Check the number of structures and that the window is a multiple of the network's divisor.",
            )
        return logits.contiguous()  # channel by channel is how they are added up
