"""The base as it is, held against the user's labels: its masks of the asked structures, and files to look at."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.device import within_memory
from peftseg.errors import JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.metrics import dice
from peftseg.models import ModelEntry, Structure
from peftseg.segmenter import Segmenter, entry_segmenter, segment_volume
from peftseg.study import LoadedScan
from peftseg.version import __version__
from peftseg.volume import Volume, write_segmentation

SPARE_BYTES = 500 * 2**20  # of free disk that files which are only for looking at leave alone


@dataclass(frozen=True, eq=False)
class Base:
    """A model as it is; or with an adapter, where a scan is scored with that.

    Attributes
    ----------
    segmenter : Segmenter
        Its own network with its own structures.
    asked : tuple of Structure
        The asked structures that it segments by itself, as they were asked for (value, colour, code).
    """

    segmenter: Segmenter
    asked: tuple[Structure, ...]


def load_asked_base(entry: ModelEntry, structures: tuple[Structure, ...]) -> Base | None:
    """The model as it is, or None where it segments none of the structures by itself."""
    own = {s.name for s in entry.structures}
    asked = tuple(s for s in structures if s.name in own)
    return Base(entry_segmenter(entry), asked) if asked else None


def base_masks(
    base: Base, volume: Volume, device: torch.device, precision: str, reporter: Reporter
) -> dict[str, np.ndarray]:
    """Masks (I, J, K) of the asked structures by name, on the scan's own grid; the device's memory is left free.

    Raises
    ------
    JobCancelled, OutOfMemory
    """

    def run(place: torch.device) -> np.ndarray:
        return segment_volume(base.segmenter, volume, place, precision=precision, reporter=reporter)

    try:
        result = within_memory(run, device, f"The model on a scan of {volume.grid.describe()}", reporter)
    finally:
        base.segmenter.network.to("cpu")
    rows = {s.name: (row, s.value) for row, s in enumerate(base.segmenter.structures)}
    found = {}
    for structure in base.asked:
        row, value = rows[structure.name]
        found[structure.name] = result[row] if result.ndim == 4 else result == value
    return found


def dice_where_labelled(mask: np.ndarray, scan: LoadedScan, name: str) -> float | None:
    """Dice within what the scan labels of a structure; None where it labels nothing, or both sides are empty there."""
    known = scan.known[name]
    if known is False:
        return None
    value = dice(mask if known is True else mask & known, scan.masks[name])
    return None if np.isnan(value) else float(value)


class LeftOutFiles:
    """Writes `left_out_<n>.seg.nrrd` and `base_<n>.seg.nrrd` into a folder, as long as its disk has room.

    They are only there to be looked at: what goes wrong with them is a warning, and the job goes on.
    """

    def __init__(self, folder: Path | None, entry: ModelEntry, reporter: Reporter) -> None:
        self._folder, self._entry, self._reporter = folder, entry, reporter

    @property
    def wanted(self) -> bool:
        """Whether files are written: there is a folder, and nothing has gone wrong yet."""
        return self._folder is not None

    def write(
        self, name: str, masks: dict[str, np.ndarray], structures: tuple[Structure, ...], scan: LoadedScan, made_by: str
    ) -> Path | None:
        """Write masks by structure name on the scan's grid as `<name>.seg.nrrd`; None when it could not be done."""
        if self._folder is None or not structures:
            return None
        path = self._folder / f"{name}.seg.nrrd"
        stack = np.stack([masks[s.name] for s in structures])
        facts = {
            "made_by": made_by,
            "base": self._entry.id,
            "software": f"peftseg {__version__}",
            "use": "research only, not a medical device",
        }
        try:
            free = shutil.disk_usage(self._folder).free
            if free >= SPARE_BYTES + 2 * stack.size:  # two bytes a voxel and layer, as if nothing could be compressed
                write_segmentation(path, stack, scan.volume.grid, structures, facts)
                return path
            reason = f"only {free / 2**20:.0f} MB are free on its disk."
        except (OSError, PeftsegError) as error:
            reason = str(error)
        self._folder = None
        self._reporter.warning(f"The results of the left-out scans are not kept to look at: {reason}")
        return None

    def write_base(self, name: str, base: Base, scan: LoadedScan, device: torch.device, precision: str) -> Path | None:
        """Segment a scan with the base as it is and write that; None when it could not be done."""
        try:
            masks = base_masks(base, scan.volume, device, precision, self._reporter)
        except JobCancelled:
            raise
        except PeftsegError as error:
            self._reporter.warning(f"The model as it is could not be run for comparison: {error}")
            return None
        return self.write(name, masks, base.asked, scan, "the model as it is")


def left_out_facts(
    number: int, adapter: Path | None, base: Path | None, dices: dict[str, float | None]
) -> dict[str, Any]:
    """One entry of the finished event's "left_out"; scans count from 1."""
    return {"scan": number, "adapter": adapter, "base": base, "dice": dices}
