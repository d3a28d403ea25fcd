"""Batches of unlabelled scans: parts that cover the scans, mixed over all of them, the same in every run of one seed.

Of a network of slices a part is a slice, and a step takes 32 of them (as in ConvLoRA's code); of a network of volumes it is a
window. Scans are not augmented. The parts of all scans are pooled: in the statistics of normalisation a scan counts by the
number of its parts, which of volumes are at most `MOST_VOLUMES` an epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from peftseg.networks import Anatomy, is_slicewise
from peftseg.patches import crop_padded, rng_for
from peftseg.plan import patch_for
from peftseg.preprocess import Prepared

SLICES_A_STEP = 32
VOLUMES_A_STEP = 4
MOST_VOLUMES = 16  # windows of one scan an epoch: large scans would take hours
SITE_KEY = 6  # sets these random numbers apart from those of other training
Place = tuple[int, int, int, int]  # scan, first voxel along the three axes


@dataclass(frozen=True, eq=False)
class SiteBatches:
    """Parts of prepared scans.

    Attributes
    ----------
    scans : tuple of Prepared
        On the processor.
    patch : tuple of int
        Voxels of a part; one slice thick for a network of slices.
    slicewise : bool
        Parts are put side by side as the slices of one volume.
    per_step : int
        Parts of a step, at most.
    places : tuple of tuple of Place
        The parts of each scan; constant ones (air) are left out.
    """

    scans: tuple[Prepared, ...]
    patch: tuple[int, int, int]
    slicewise: bool
    per_step: int
    places: tuple[tuple[Place, ...], ...]
    seed: int

    def steps(self, epoch: int) -> list[list[Place]]:
        """The places of each step of an epoch: as few steps as can be, of sizes that differ by at most one."""
        chosen = [place for number, own in enumerate(self.places) for place in self._some(own, number, epoch)]
        order = rng_for(self.seed, SITE_KEY, epoch).permutation(len(chosen))
        parts = np.array_split(order, max(1, math.ceil(len(chosen) / self.per_step)))
        return [[chosen[i] for i in part] for part in parts if len(part)]

    def _some(self, places: Sequence[Place], scan: int, epoch: int) -> Sequence[Place]:
        if self.slicewise or len(places) <= MOST_VOLUMES:
            return places
        rng = rng_for(self.seed, SITE_KEY, epoch, scan)
        return [places[i] for i in sorted(rng.choice(len(places), MOST_VOLUMES, replace=False))]

    def parts_within(self, voxels: int) -> int:
        """Parts of a step that have so many voxels together, at least one."""
        return max(1, min(self.per_step, voxels // math.prod(self.patch)))

    def tensor(self, places: Sequence[Place]) -> torch.Tensor:
        """(B, 1, *patch) float32 on the processor; for a network of slices (1, 1, H, W, B)."""
        parts = torch.stack([self._part(place) for place in places])
        return parts.movedim(0, -1).squeeze(-2)[None] if self.slicewise else parts

    def _part(self, place: Place) -> torch.Tensor:
        scan, *start = place
        return crop_padded(self.scans[scan].image, np.array(start), self.patch, self.scans[scan].background)

    def tensors(self, epoch: int = 0) -> Iterator[torch.Tensor]:
        """The batches of an epoch."""
        for places in self.steps(epoch):
            yield self.tensor(places)


def make_batches(
    scans: Sequence[Prepared], network: nn.Module, anatomy: Anatomy, window: Sequence[int], seed: int
) -> SiteBatches:
    """Parts that cover the scans.

    Parameters
    ----------
    window : sequence of int
        The model's; parts are not larger, and no larger than the scans need.
    """
    slicewise = is_slicewise(network)
    patch = patch_for([tuple(scan.image.shape[1:]) for scan in scans], tuple(window), anatomy.divisor)
    patch = (*patch[:2], 1) if slicewise else patch
    places = tuple(_places(scan, number, patch) for number, scan in enumerate(scans))
    return SiteBatches(tuple(scans), patch, slicewise, SLICES_A_STEP if slicewise else VOLUMES_A_STEP, places, seed)


def _places(scan: Prepared, number: int, patch: tuple[int, int, int]) -> tuple[Place, ...]:
    shape = scan.image.shape[1:]
    starts = [_starts(length, size) for length, size in zip(shape, patch, strict=True)]
    found = []
    for start in itertools.product(*starts):
        part = scan.image[(0, *(slice(max(a, 0), a + size) for a, size in zip(start, patch, strict=True)))]
        if float(part.max()) > float(part.min()):
            found.append((number, *start))
    return tuple(found)


def _starts(length: int, size: int) -> list[int]:
    """First voxels of the fewest parts that cover a length, evenly spread; a single one lies in the middle."""
    if length <= size:
        return [-((size - length) // 2)]
    return np.linspace(0, length - size, math.ceil(length / size)).round().astype(int).tolist()
