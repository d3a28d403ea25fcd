"""From support items to training scans on the device: load, check, preprocess, stack."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from peftseg.device import free_memory
from peftseg.events import Reporter
from peftseg.models import Preprocessing, Structure
from peftseg.patches import Scan, make_scan
from peftseg.preprocess import Prepared, prepare, prepare_mask
from peftseg.study import LoadedScan, SupportItem, check_laterality, load_support_item

ONE_SCAN = "Only one labelled scan: the adapter will know one patient; about five are advised."
DEVICE_SHARE = 0.25  # of the device's free memory that the scans may take


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


def scan_warnings(number: int, scan: LoadedScan) -> list[str]:
    """What the user should know about a support scan, by its number (from 1 on), never by its file's name."""
    texts = (*scan.notes, *check_laterality(scan.masks, scan.volume.grid))
    return [about_scan(number, text, scan.volume.name) for text in texts]


def about_scan(number: int, text: str, name: str) -> str:
    """A sentence with "Scan <number>" in front, in place of the file name (with or without suffix) that it starts with."""
    found = re.match(rf"{re.escape(name)}(\.\w+)*(?=[: ])", text)
    return f"Scan {number}{text[found.end() :]}" if found else f"Scan {number}: {text}"


def prepare_scans(
    loaded: list[LoadedScan],
    recipe: Preprocessing,
    structures: tuple[Structure, ...],
    overlapping: bool,
    device: torch.device,
) -> list[Scan]:
    """Preprocess every scan and keep all of them on the device, or in main memory where they would crowd it."""
    scans = [_prepare_one(scan, recipe, structures, overlapping) for scan in loaded]
    if device.type == "cpu" or sum(_bytes(scan) for scan in scans) > DEVICE_SHARE * free_memory(device):
        return scans
    return [_moved(scan, device) for scan in scans]


def _bytes(scan: Scan) -> int:
    return sum(t.numel() * t.element_size() for t in (scan.image, scan.target, scan.known, *scan.points))


def _moved(scan: Scan, device: torch.device) -> Scan:
    return Scan(
        scan.image.to(device),
        scan.target.to(device),
        scan.known.to(device),
        tuple(points.to(device) for points in scan.points),
        scan.background,
    )


def _prepare_one(scan: LoadedScan, recipe: Preprocessing, structures: tuple[Structure, ...], overlapping: bool) -> Scan:
    prepared = prepare(scan.volume, recipe)
    masks = [prepare_mask(scan.masks[s.name], prepared) for s in structures]
    known = [_known_on_model_grid(scan.known[s.name], prepared) for s in structures]
    return make_scan(prepared.image, masks, known, overlapping, prepared.background)


def _known_on_model_grid(known: bool | np.ndarray, prepared: Prepared) -> bool | torch.Tensor:
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
