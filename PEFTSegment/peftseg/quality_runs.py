"""Segmenting a study again for `quality`: as it is, slightly changed, and with earlier states of the adapter."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from peftseg.adapter_file import load_snapshots, read_header
from peftseg.events import Reporter
from peftseg.infer import ready
from peftseg.library import find_adapter
from peftseg.metrics import dice
from peftseg.networks import is_slicewise
from peftseg.preprocess import Prepared
from peftseg.segmenter import Segmenter, attach_to, base_for, find_base, room_for_logits
from peftseg.site_transforms import Transform, move, with_power
from peftseg.weights import n_outputs
from peftseg.windows import Slab, logit_slabs, tile

MOST_SMOOTH = 16  # structures that are moved one by one


class Seen:
    """An observer of `infer.segment`: the result on the model grid, and how certain the network is of each structure.

    It may see a study again from the start, when memory did not suffice the first time.
    """

    def __init__(self, activation: str, count: int) -> None:
        self.softmax, self.count = activation == "softmax", count
        self.prepared: Prepared | None = None
        self.labels = np.zeros(0, np.uint8)
        self.certainty, self.voxels = np.zeros(count), np.zeros(count)

    def __call__(self, prepared: Prepared, slab: Slab) -> None:
        """Take a slab of logits; neighbours share a plane or row, which counts once."""
        shape = tuple(prepared.image.shape[1:])
        if self.prepared is not prepared or (slab.planes[0], slab.rows[0]) == (0, 0):
            self._begin(prepared, shape)
        planes, rows = (
            slice(first, last + (last == size - 1))
            for (first, last), size in zip((slab.planes, slab.rows), shape, strict=False)
        )
        logits = slab.logits[:, : planes.stop - planes.start, : rows.stop - rows.start]
        self.labels[..., planes, rows, :] = self._add(logits).cpu().numpy()

    def confidence(self, row: int) -> float | None:
        """Mean probability of a structure over its voxels; None without any."""
        return float(self.certainty[row] / self.voxels[row]) if self.voxels[row] else None

    def _begin(self, prepared: Prepared, shape: tuple[int, ...]) -> None:
        kind = np.min_scalar_type(self.count) if self.softmax else bool
        self.labels = np.zeros(shape if self.softmax else (self.count, *shape), kind)
        self.prepared = prepared
        self.certainty[:] = self.voxels[:] = 0

    def _add(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.softmax:
            inside = logits > 0
            for row, (mask, values) in enumerate(zip(inside, logits, strict=True)):
                self.certainty[row] += float(values[mask].float().sigmoid().sum())
                self.voxels[row] += int(mask.sum())
            return inside
        labels = logits.argmax(dim=0)
        found = labels > 0
        probability = logits[:, found].float().softmax(dim=0).amax(dim=0).cpu().numpy()
        rows = labels[found].cpu().numpy() - 1
        self.certainty += np.bincount(rows, probability, self.count)
        self.voxels += np.bincount(rows, minlength=self.count)
        return labels


@dataclass(frozen=True, eq=False)
class Run:
    """How the study is segmented again."""

    segmenter: Segmenter
    device: torch.device
    overlap: float | None
    precision: str
    reporter: Reporter | None

    def predict(self, network: nn.Module, prepared: Prepared, image: torch.Tensor) -> Seen:
        """Segment an image (1, I', J', K') on the study's model grid."""
        segmenter = self.segmenter
        seen = Seen(segmenter.activation, len(segmenter.structures))
        shape = tuple(image.shape[1:])
        overlap = segmenter.overlap if self.overlap is None else self.overlap
        tiling = tile(shape, segmenter.window_on(shape), overlap, prepared.scheme, is_slicewise(network))
        with ready(network, self.device, self.precision) as forward:
            slabs = logit_slabs(
                forward,
                image.to(self.device),
                n_outputs(segmenter.structures, segmenter.activation),
                tiling,
                limit_bytes=room_for_logits(self.reporter),
                reporter=self.reporter,
                padding=prepared.background,
            )
            for slab in slabs:
                seen(prepared, slab)
        return seen

    def agreement(self, prepared: Prepared, before: Seen, change: Transform) -> list[float]:
        """Dice by structure of the changed scan's result and the moved result, where both know the scan."""
        spacing = prepared.grid.spacing
        image, inside = move(prepared.image, spacing, change, "bilinear")
        after = self.predict(self.segmenter.network, prepared, with_power(image, change.power))
        expected, seen = _moved(before, spacing, change), inside.numpy()
        return dices(expected * seen, after.labels * seen, before.count)


def _moved(seen: Seen, spacing: Sequence[float], change: Transform) -> np.ndarray:
    """A result turned and moved as the scan is; of many structures to the nearest voxel, which is coarser but one step."""
    if seen.softmax and seen.count > MOST_SMOOTH:
        whole = torch.from_numpy(seen.labels[None].astype(np.float32))
        return move(whole, spacing, change, "nearest")[0][0].numpy().astype(seen.labels.dtype)
    moved = np.zeros_like(seen.labels)
    for row in range(seen.count):
        mask = seen.labels == row + 1 if seen.softmax else seen.labels[row]
        inside = move(torch.from_numpy(mask[None].astype(np.float32)), spacing, change, "bilinear")[0][0].numpy() > 0.5
        if seen.softmax:
            moved[inside] = row + 1
        else:
            moved[row] = inside
    return moved


def dices(first: np.ndarray, second: np.ndarray, count: int) -> list[float]:
    """Dice by structure of two results on the model grid; of label maps all at once. NaN where neither has it."""
    if first.ndim == 4:
        return [dice(one, other) for one, other in zip(first, second, strict=True)]
    found = (first > 0) | (second > 0)
    pairs = first[found].astype(np.int64) * (count + 1) + second[found]
    joint = np.bincount(pairs, minlength=(count + 1) ** 2).reshape(count + 1, count + 1)
    totals = joint.sum(axis=0) + joint.sum(axis=1)
    return [2 * joint[n, n] / totals[n] if totals[n] else math.nan for n in range(1, count + 1)]


def snapshot_networks(adapter: str | Path, network: nn.Module) -> tuple[nn.Module, ...]:
    """A merged network of each snapshot; what it has in common with the adapter's own network is held once."""
    path = find_adapter(adapter)
    states = load_snapshots(path)
    if not states:
        return ()
    recipe, _ = read_header(path)  # its bytes were checked with the snapshots'
    plain, anatomy = base_for(recipe, find_base(recipe))
    networks = [attach_to(recipe, state, copy.deepcopy(plain), anatomy).merge() for state in states]
    for other in networks:
        _share(other, network)
    return tuple(networks)


def _share(other: nn.Module, network: nn.Module) -> None:
    own = dict(network.named_parameters())
    for name, parameter in list(other.named_parameters()):
        twin = own.get(name)
        same = twin is not None and twin.shape == parameter.shape and twin.device == parameter.device
        if same and torch.equal(twin, parameter):
            layer, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(layer), leaf, twin)
