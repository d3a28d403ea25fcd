"""ProtoSeg: how well the features of a layer alone tell a structure from the rest, for all layers at once.

With a soft mask p of the structure and features f of a layer: prototypes mu+ = sum f p / sum p and mu- = sum f (1-p) / sum
(1-p); a voxel belongs to the structure where its features are nearer to mu+. Segmentation Ability (SA) = Dice of that map and
the labels. After He et al. 2022 (arXiv:2212.09206; shengfly/ProtoSeg), with two prototypes: one built by the network's own
prediction (SA near the output is then bounded by that prediction), and, ours, as a control one built by the labels.

The published form keeps all channels of all layers at full resolution. Here instead, with the same result:

- ||f-mu-||^2 - ||f-mu+||^2 = 2m with m = (mu+ - mu-).f - (||mu+||^2 - ||mu-||^2)/2, affine in f, so that one channel at
  the layer's own resolution is interpolated instead of all of them;
- the sums over interpolated features are sums over the layer's own voxels with weights U^T p, the adjoint of the interpolation;
- features are summed up while the network runs, window by window, and never kept.

Three passes over a study: prediction, prototypes, maps. Windows start at multiples of the network's divisor, so that a
layer's voxels lie on one grid in all windows; where windows overlap, features are blended with their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from peftseg.events import Reporter
from peftseg.explain.abilities import Ability, Mask, Scores
from peftseg.explain.grids import Stride, adjoint, align, cut_at, enlarge, shrink, size_at
from peftseg.explain.layers import Layer, watched
from peftseg.explain.maps import Corner, Padded, blending_weights
from peftseg.explain.progress import Progress
from peftseg.explain.subject import Subject
from peftseg.infer import ready
from peftseg.preprocess import Prepared
from peftseg.segmenter import room_for_logits
from peftseg.windows import logit_slabs

MAP_BYTES = 2**29  # for the maps of one pass; more structures than fit take another pass
CHANNELS_AT_ONCE = 8
LARGEST = 2.0**14  # |m| that is kept in 16 bits
VOXELS_AT_ONCE = 2**14  # of features in the layout channels-last, so that they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class _Builder:
    """A soft mask that a prototype is built from, (I'', J'', K'') on the padded image: inside and outside of the structure."""

    structure: str
    built_by: str
    inside: torch.Tensor
    outside: torch.Tensor


@dataclass(frozen=True, eq=False)
class Prototypes:
    """mu+ and mu-, (builders, C) float32 each."""

    inside: torch.Tensor
    outside: torch.Tensor

    def direction(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a (builders, C) and b (builders,) of m = a.f - b, scaled so that m is 1/2 at mu+ and -1/2 at mu-."""
        along = self.inside - self.outside
        half = (self.inside.square().sum(1) - self.outside.square().sum(1)) / 2
        size = along.square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        return along / size[:, None], half / size


@dataclass
class _Passes:
    """One study, padded, with what the passes share."""

    subject: Subject
    padded: Padded
    device: torch.device
    precision: str
    tell: Progress
    # By resolution: weights of a window's voxels, and their sum over all windows.
    shares: dict[Stride, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def run(self, layers: Sequence[Layer], use: Callable[[Layer, Corner, torch.Tensor], None]) -> None:
        """Run the network on every window and hand over each layer's features (C, *S)."""
        at: list[Corner] = []

        def watch(layer: Layer) -> Callable[[torch.Tensor], None]:
            def look(output: torch.Tensor) -> None:
                with torch.autocast(self.device.type, enabled=False):  # sums of features are float32 also in 16 bits
                    use(layer, at[-1], output[0])

            return look

        network = self.subject.network
        with (
            ready(network, self.device, self.precision) as forward,
            watched(network, {layer.module: watch(layer) for layer in layers}),
        ):
            for corner in self.padded.corners():
                self.tell()
                at.append(corner)
                forward(self.padded.cut(self.padded.image, corner)[None, None])

    def share(self, stride: Stride, corner: Corner) -> torch.Tensor:
        """(*S) share that a window has in the blended features at its voxels; 1 where no other reaches."""
        if stride not in self.shares:
            own = shrink(blending_weights(self.padded.tiling, self.device), stride)
            total = torch.zeros(size_at(self.padded, stride), device=self.device)
            for other in self.padded.corners():
                cut_at(total, self.padded, stride, other).add_(own)
            self.shares[stride] = own, total
        own, total = self.shares[stride]
        return own / cut_at(total, self.padded, stride, corner)


def predict(
    subject: Subject, padded: Padded, prepared: Prepared, structures: Sequence[str], run: _Passes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability (float16) and hard prediction (bool) of structures, (n, I', J', K') on the device, in the first pass."""
    rows = [subject.row(name) for name in structures]
    shape = tuple(prepared.image.shape[1:])
    longer = padded.tiling.shape
    soft = torch.zeros((len(rows), *longer), dtype=torch.float16, device=run.device)
    hard = torch.zeros((len(rows), *longer), dtype=torch.bool, device=run.device)
    with ready(subject.network, run.device, run.precision) as forward:
        slabs = logit_slabs(
            run.tell.counted(forward),
            padded.inner(padded.image)[None],
            subject.rows,
            padded.tiling,
            limit_bytes=room_for_logits(run.tell.reporter),
            padding=prepared.background,
        )
        for slab in slabs:
            (p0, p1), (r0, r1) = slab.planes, slab.rows
            part = (slice(None), slice(p0, p1 + 1), slice(r0, r1 + 1))
            soft[part], hard[part] = _probabilities(slab.logits, rows, subject.activation)
    inner = (slice(None), *(slice(n) for n in shape))
    return soft[inner], hard[inner]


def _probabilities(logits: torch.Tensor, rows: list[int], activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    if activation == "sigmoid":
        return torch.sigmoid(logits[rows]), logits[rows] > 0
    winner = logits.argmax(0)
    total = torch.logsumexp(logits, dim=0)
    return (logits[rows] - total).exp_(), torch.stack([winner == row for row in rows])


def proto_seg(
    subject: Subject,
    prepared: Prepared,
    layers: Sequence[Layer],
    masks: dict[str, Mask],
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter | None = None,
    take: Callable[[Ability, np.ndarray], None] | None = None,
) -> list[Ability]:
    """Segmentation Ability of layers for structures.

    Parameters
    ----------
    layers : sequence of Layer
        From `layers.list_layers`.
    masks : dict
        Structure name -> what is known of it. A structure that the network does not know has the control only.
    take : callable, optional
        Gets each binary map, (I, J, K) bool on the study's own grid, as soon as it is there; maps are not kept.

    Returns
    -------
    list of Ability
        By layer, structure and builder; "truth" only where there are labels. A structure of which nothing is predicted has
        no prototype of its own: SA is NaN, and its map is empty.
    """
    padded = align(subject, prepared, device)
    known = {s.name for s in subject.structures}
    predicted = [name for name in masks if name in known]
    passes = _Passes(subject, padded, device, precision, Progress(reporter, 3 * padded.count()))
    soft, hard = predict(subject, padded, prepared, predicted, passes) if predicted else (None, None)
    builders = _builders(masks, predicted, soft, hard, padded, prepared)
    del soft
    prototypes = build_prototypes(passes, layers, builders) if builders else {}
    by_name = {name: hard[n].cpu() for n, name in enumerate(predicted)}
    scores = Scores(prepared, masks, by_name, take)
    labels = [(b.structure, b.built_by) for b in builders]
    del builders
    for group in _groups(len(labels), padded, layers):
        _map_pass(passes, layers, prototypes, group, labels, scores)
    return scores.complete(layers)


def _builders(
    masks: dict[str, Mask],
    predicted: list[str],
    soft: torch.Tensor | None,
    hard: torch.Tensor | None,
    padded: Padded,
    prepared: Prepared,
) -> list[_Builder]:
    """What can be built: structures of which something is predicted, and those with labels of both sides."""
    found = []
    for name, mask in masks.items():
        number = predicted.index(name) if name in predicted else None
        if number is not None and bool(hard[number].any()):
            p = soft[number].float()
            found.append(_Builder(name, "prediction", _around(p, padded, prepared), _around(1 - p, padded, prepared)))
        if mask.truth is None:
            continue
        inside = mask.truth & mask.known
        outside = ~mask.truth & mask.known
        if bool(inside.any()) and bool(outside.any()):
            sides = [_around(side.to(padded.image), padded, prepared) for side in (inside, outside)]
            found.append(_Builder(name, "truth", *sides))
    return found


def _around(values: torch.Tensor, padded: Padded, prepared: Prepared) -> torch.Tensor:
    """A mask (I', J', K') of the study on the padded image, 0 around it."""
    extra = [n - m for n, m in zip(padded.tiling.shape, prepared.image.shape[1:], strict=True)]
    return padded.around(functional.pad(values, [p for e in reversed(extra) for p in (0, e)]))


def build_prototypes(passes: _Passes, layers: Sequence[Layer], builders: Sequence[_Builder]) -> dict[str, Prototypes]:
    """Prototypes of all builders in every layer, by the layer's name, in one pass."""
    weights: dict[Stride, torch.Tensor] = {}
    for stride in {layer.stride for layer in layers}:
        size = size_at(passes.padded, stride)
        sides = [side for b in builders for side in (b.inside, b.outside)]
        weights[stride] = torch.stack([adjoint(side, size) for side in sides])  # (2 * builders, *size)
    sums = {layer.name: torch.zeros((2 * len(builders), layer.channels), device=passes.device) for layer in layers}

    def add(layer: Layer, corner: Corner, features: torch.Tensor) -> None:
        share = passes.share(layer.stride, corner)
        own = cut_at(weights[layer.stride], passes.padded, layer.stride, corner) * share
        sums[layer.name] += _weighted_sums(own, features)

    passes.run(layers, add)
    found = {}
    for layer in layers:
        totals = weights[layer.stride].flatten(1).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        means = sums[layer.name] / totals[:, None]
        found[layer.name] = Prototypes(means[0::2], means[1::2])
    return found


def _weighted_sums(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(N, C) sums of features (C, *S) with weights (N, *S); in float32, some of the features at a time."""
    flat, columns = weights.flatten(1), _columns(features)
    if columns is None:
        return torch.cat([flat @ part.flatten(1).float().T for part in features.split(CHANNELS_AT_ONCE)], dim=1)
    result = torch.zeros((len(flat), len(features)), device=features.device)
    for own, some in zip(flat.split(VOXELS_AT_ONCE, dim=1), columns.split(VOXELS_AT_ONCE), strict=True):
        result.addmm_(own, some.float())
    return result


def _combined(directions: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(N, *S) of directions (N, C) with features (C, *S)."""
    columns = _columns(features)
    result = torch.zeros((len(directions), *features.shape[1:]), device=features.device)
    flat = result.flatten(1)
    if columns is None:
        for own, some in zip(directions.split(CHANNELS_AT_ONCE, dim=1), features.split(CHANNELS_AT_ONCE), strict=True):
            flat.addmm_(own, some.flatten(1).float())
        return result
    for part, some in zip(flat.split(VOXELS_AT_ONCE, dim=1), columns.split(VOXELS_AT_ONCE), strict=True):
        part.copy_(directions @ some.float().T)
    return result


def _columns(features: torch.Tensor) -> torch.Tensor | None:
    """Features (C, *S) as (voxels, C) where they lie so in memory: a voxel's channels are then read together; else None."""
    last = features.movedim(0, -1)
    return last.flatten(0, -2) if last.is_contiguous() else None


def _groups(count: int, padded: Padded, layers: Sequence[Layer]) -> list[range]:
    """Builders whose maps share a pass."""
    bytes_each = 4 * sum(math.prod(size_at(padded, layer.stride)) for layer in layers)
    at_once = max(1, MAP_BYTES // max(1, bytes_each))
    return [range(first, min(first + at_once, count)) for first in range(0, count, at_once)]


def _map_pass(
    passes: _Passes,
    layers: Sequence[Layer],
    prototypes: dict[str, Prototypes],
    group: range,
    labels: list[tuple[str, str]],
    scores: Scores,
) -> None:
    """One pass: m of the group's builders in every layer at its own resolution, then maps and scores one by one."""
    part = slice(group.start, group.stop)
    totals = {
        layer.name: torch.zeros(
            (len(group), *size_at(passes.padded, layer.stride)), dtype=_map_type(layer), device=passes.device
        )
        for layer in layers
    }
    directions = {name: tuple(t[part] for t in p.direction()) for name, p in prototypes.items()}

    def add(layer: Layer, corner: Corner, features: torch.Tensor) -> None:
        along, half = directions[layer.name]
        m = _combined(along, features) - half[:, None, None, None]
        share = passes.share(layer.stride, corner)
        total = totals[layer.name]
        if total.dtype == torch.float16:
            m.clamp_(-LARGEST, LARGEST)  # where mu+ and mu- are nearly the same, m would leave the range of 16 bits
        cut_at(total, passes.padded, layer.stride, corner).add_(m.mul_(share))

    passes.run(layers, add)
    for layer in layers:
        for number, values in zip(group, totals.pop(layer.name), strict=True):
            whole = passes.padded.inner(enlarge(values[None].float(), passes.padded.image.shape)[0])
            scores.add(layer, *labels[number], whole)


def _map_type(layer: Layer) -> torch.dtype:
    """Of m's sum over windows: at full resolution 16 bits, for only its sign counts there and it takes most of the memory."""
    return torch.float16 if max(layer.stride) == 1 else torch.float32
