"""From support items to training scans on the device: load, check, preprocess, stack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from peftseg.events import Reporter
from peftseg.models import Preprocessing, Structure
from peftseg.patches import Scan, make_scan
from peftseg.preprocess import prepare, prepare_mask
from peftseg.study import LoadedScan, SupportItem, load_support_item


def load_scans(
    items: Sequence[SupportItem],
    structures: tuple[Structure, ...],
    replace_nonfinite: float | None,
    reporter: Reporter,
) -> list[LoadedScan]:
    """Read and check every support item."""
    loaded = []
    for number, item in enumerate(items, start=1):
        reporter.check()
        loaded.append(load_support_item(item, structures, replace_nonfinite))
        reporter.progress("read", number, len(items))
    return loaded


def prepare_scans(
    loaded: list[LoadedScan],
    recipe: Preprocessing,
    structures: tuple[Structure, ...],
    overlapping: bool,
    device: torch.device,
) -> list[Scan]:
    """Preprocess every scan and put it on the device."""
    return [_prepare_one(scan, recipe, structures, overlapping, device) for scan in loaded]


def _prepare_one(
    scan: LoadedScan, recipe: Preprocessing, structures: tuple[Structure, ...], overlapping: bool, device: torch.device
) -> Scan:
    prepared = prepare(scan.volume, recipe)
    masks = [prepare_mask(scan.masks[s.name], prepared) for s in structures]
    known = [_known_on_model_grid(scan.known[s.name], prepared) for s in structures]
    return make_scan(prepared.image.to(device), masks, known, overlapping)


def _known_on_model_grid(known: bool | np.ndarray, prepared) -> bool | torch.Tensor:
    return known if isinstance(known, bool) else prepare_mask(known, prepared)


def structures_overlap(loaded: list[LoadedScan]) -> bool:
    """Whether any two structures share voxels in any scan."""
    for scan in loaded:
        count = np.zeros(scan.volume.grid.shape, dtype=np.uint8)
        for mask in scan.masks.values():
            count += mask
        if int(count.max()) > 1:
            return True
    return False
