"""The early head that an adaptation without labels goes by: the base's own, or one fitted to the base's own results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftseg.checkpoint import copy_state
from peftseg.device import fits
from peftseg.early_head import (
    Batch,
    EarlyBranch,
    epochs_for,
    fit_early_head,
    load_head_state,
    read_head,
    write_head,
)
from peftseg.errors import OutOfMemory
from peftseg.events import Reporter
from peftseg.models import EARLY_FILE, ModelEntry
from peftseg.networks import Anatomy
from peftseg.segmenter import SMALLER
from peftseg.site_batches import Place, SiteBatches
from peftseg.site_options import needs_early_head
from peftseg.weights import n_outputs

EARLY_SHARE = 0.5  # of the time limit: that much may go into fitting an early head


@dataclass(frozen=True, eq=False)
class SiteHead:
    """The early head of an adaptation.

    Attributes
    ----------
    branch : EarlyBranch or None
        None where nothing needs one.
    fitted : bool
        It was fitted here, to the base's own predictions, and is not the base's.
    seconds : float
        That fitting took, also where an earlier run of the job did it.
    """

    branch: EarlyBranch | None
    fitted: bool = False
    seconds: float = 0.0


def find_early_head(
    entry: ModelEntry,
    network: nn.Module,
    anatomy: Anatomy,
    options: dict[str, Any],
    batches: SiteBatches,
    own: tuple[int, dict[str, torch.Tensor]] | None,
    limit_s: float | None,
    reporter: Reporter,
) -> SiteHead:
    """The base's early head where it is at the right level, else one that is fitted to the base's own predictions.

    A fitted head is kept beside the job's checkpoint, and a job that goes on takes it from there: fitted anew within
    another rest of the time it would be another head.

    Parameters
    ----------
    network : nn.Module
        The base as it is, on its device.
    options : dict
        From `site_options.resolve_levels`.
    own : tuple or None
        From `early_head.load_early_head`.
    limit_s : float or None
        Seconds of the whole adaptation, of which fitting takes at most `EARLY_SHARE`.

    Raises
    ------
    JobCancelled, BadInput, OutOfMemory, TrainingFailed
    """
    usable = own is not None and own[0] == options["level"]
    if not usable and not needs_early_head(options):
        return SiteHead(None)
    branch = EarlyBranch(network, anatomy, options["level"], n_outputs(entry.structures, entry.activation))
    if usable:
        load_head_state(branch, own[1])
        return SiteHead(branch)
    kept = None if reporter.checkpoint is None else reporter.checkpoint.with_name(EARLY_FILE)
    seconds = _take_up(branch, kept)
    if seconds is None:
        seconds = _fit(branch, batches, entry.activation, limit_s, reporter)
        if kept is not None:
            write_head(kept, branch, seconds)
    else:
        reporter.log("Continued with the early segmentation head that was fitted before.")
    return SiteHead(branch, True, seconds)


def _take_up(branch: EarlyBranch, kept: Path | None) -> float | None:
    """Give the branch the head of an earlier run, and say how long it took; None where there is none of its level."""
    if kept is None or not kept.is_file():
        return None
    level, state, seconds = read_head(kept)
    if level != branch.level:
        return None
    load_head_state(branch, state)
    return seconds


def _fit(
    branch: EarlyBranch, batches: SiteBatches, activation: str, limit_s: float | None, reporter: Reporter
) -> float:
    """Fit the head; where the memory does not suffice, once more from the start with fewer parts a step. Seconds."""
    reporter.log(f"The model has no early segmentation head at level {branch.level}: fitting one to its own results.")
    start, started = copy_state(branch.head.state_dict()), time.monotonic()
    deadline = None if limit_s is None else started + EARLY_SHARE * limit_s
    parts = max(1, batches.per_step // SMALLER) if reporter.smaller_plan else batches.per_step
    while True:
        steps = replace(batches, per_step=parts)
        if fits(partial(_fit_with, branch, steps, activation, deadline, reporter)) is not None:
            return time.monotonic() - started
        parts = max(map(len, _head_steps(steps, 0))) // 2
        if parts == 0:
            raise OutOfMemory(
                f"The memory does not suffice to fit an early segmentation head to parts of {batches.patch} voxels.",
                "Close other programs, or choose a machine with more memory.",
            )
        branch.head.load_state_dict(start)
        reporter.warning(f"Out of memory: fitting the early segmentation head with {parts} parts at once.")


def _fit_with(
    branch: EarlyBranch, batches: SiteBatches, activation: str, deadline: float | None, reporter: Reporter
) -> None:
    def labelled_by_itself(epoch: int) -> Iterator[Batch]:
        for places in _head_steps(batches, epoch):
            yield batches.tensor(places), None, None

    epochs = epochs_for(len(_head_steps(batches, 0)))
    done = len(fit_early_head(branch, labelled_by_itself, activation, epochs, reporter, deadline))
    if done < epochs and not reporter.stop_keep():
        reporter.warning(
            f"The early segmentation head was fitted in {done} instead of {epochs} epochs: the time is short."
        )


def _head_steps(batches: SiteBatches, epoch: int) -> list[list[Place]]:
    """The steps that fit an early head: a window each, so that few scans make many; slices go together as always."""
    steps = batches.steps(epoch)
    return steps if batches.slicewise else [[place] for places in steps for place in places]
