"""One run of a comparison: a method trained on a redrawn support set and scored, one row a scan and structure."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from peftseg.adapter_training import Adapted, Setting, make_setting, predict_masks
from peftseg.adapters import check_options
from peftseg.adapters.base import KINDS
from peftseg.auto import adapt_scans
from peftseg.base_match import base_masks, load_asked_base
from peftseg.compare_rank import mean_effective_rank, starting_weights
from peftseg.compare_rows import AT_START, SHARE
from peftseg.compare_tasks import Task
from peftseg.dataset import load_scans
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.metrics import dice, surface_dice
from peftseg.models import ModelEntry, Structure
from peftseg.patients import by_patient, patients_of
from peftseg.peak_memory import PeakMemory
from peftseg.study import LoadedScan, SupportItem
from peftseg.volume import file_stem

__all__ = [
    "TOLERANCE_MM",
    "ZERO_SHOT",
    "Candidate",
    "Task",
    "check_zero_shot",
    "checked_options",
    "draw_support",
    "items_to_score",
    "run_candidate",
]

TOLERANCE_MM = 1.0
Masks = dict[str, np.ndarray]  # (I, J, K) by structure name
ZERO_SHOT = "zero-shot"  # in place of a method: the base as it is


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison: a method with its options.

    Attributes
    ----------
    label : str
        Name in tables.
    method : str
        Name in the method table, or `ZERO_SHOT`: the base as it is, of which no option is asked.
    options : dict
        What differs from the method's defaults.
    scratch : bool
        Random weights instead of the base's.
    """

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False


def checked_options(candidate: Candidate) -> dict[str, Any]:
    """All options of the candidate's method, defaults too; BadInput for wrong ones, and for any of `ZERO_SHOT`."""
    if candidate.method != ZERO_SHOT:
        return check_options(candidate.method, candidate.options)
    if candidate.options:
        raise BadInput(
            f"'{ZERO_SHOT}' has no option {', '.join(candidate.options)}: it is the model as it is.",
            "Leave out its options.",
        )
    return {}


def check_zero_shot(entry: ModelEntry, structures: Iterable[Structure], task: str) -> None:
    """BadInput where the model does not segment all of a task's structures by itself."""
    own = {s.name for s in entry.structures}
    novel = [s.name for s in structures if s.name not in own]
    if novel:
        raise BadInput(
            f"{entry.id} does not segment {', '.join(novel)} by itself.",
            f"Leave out '{ZERO_SHOT}' in task '{task}'.",
        )


def draw_support(n_scans: int, shots: int, draw: int) -> list[int]:
    """Numbers of the scans in the `draw`-th support set of `shots` scans."""
    return sorted(int(i) for i in np.random.default_rng([draw, shots]).permutation(n_scans)[:shots])


def run_candidate(
    entry: ModelEntry,
    task: Task,
    candidate: Candidate,
    shots: int,
    draw: int,
    device: torch.device,
    *,
    epochs: int | None = None,
    budget_minutes: float | None = None,
    precision: str = "auto",
    tolerance_mm: float = TOLERANCE_MM,
    replace_nonfinite: float | None = None,
) -> list[dict[str, Any]]:
    """Train one candidate on one drawn support set and score it, one row a scan and structure.

    The draw is also the seed of the initialisation and of the patches. Without test scans the support scans of the other
    patients are scored (a cross-validation fold). A structure that a scan does not label as a whole is not scored there.
    With the method `auto` what was trained, its rank and its epochs are those of the method that it chose, which is in
    "chosen"; time and memory are those of the search, too.

    "seconds" is the time of training on the clock, "cpu_seconds" the processor time of this process and of those that it
    started and that have ended, which other work on the machine changes little. "memory_mib" is the peak of what
    "memory_of" names, and "memory_added_mib" that peak minus what was taken when training began. In a process that
    trained before, memory that it has kept is missing from the latter: run each training in a process of its own.

    "trained" are the values that the finished adapter holds, after pruning; "trained_at_start" those that trained. Both
    are there by kind, too.
    "rank" is the mean number of components that are left, "effective_rank" is that of the merged change of the weights
    (`compare_rank`), empty for methods that do not merge.

    Raises
    ------
    BadInput
        For `ZERO_SHOT`, when the base does not segment all of the structures by itself; when there is no scan to score.
    """
    reporter = Reporter.silent()
    chosen = draw_support(len(task.support), shots, draw)
    scored_items = items_to_score(task, chosen)
    scored = load_scans(scored_items, task.structures, replace_nonfinite, reporter)
    common = {"task": task.name, "candidate": candidate.label, "shots": shots, "draw": draw, "device": device.type}
    if candidate.method == ZERO_SHOT:
        facts, found = _as_it_is(entry, task, scored, device, precision, reporter)
    else:
        support = load_scans([task.support[i] for i in chosen], task.structures, replace_nonfinite, reporter)
        options = checked_options(candidate)
        setting = replace(
            make_setting(entry, task.structures, support, candidate.method, options, device, reporter),
            seed=draw,
            epochs=epochs,
            budget_minutes=budget_minutes,
            precision=precision,
            scratch=candidate.scratch,
        )
        facts, found = _trained(setting, support, scored, reporter)
    rows = []
    for item, scan, masks in zip(scored_items, scored, found, strict=True):
        whole = [s for s in task.structures if scan.known[s.name] is True]
        rows += _score(common | facts | {"scan": file_stem(item.image)}, scan, masks, whole, tolerance_mm)
    return rows


def items_to_score(task: Task, chosen: list[int]) -> tuple[SupportItem, ...]:
    """The test scans; where there are none, the support scans of patients of whom none was drawn.

    Raises
    ------
    BadInput
        When the drawn scans (their numbers are `chosen`) are of all patients.
    """
    groups = by_patient(patients_of(task.support))
    others = sorted(n for group in groups if not set(group) & set(chosen) for n in group)
    items = task.test or tuple(task.support[n] for n in others)
    if not items:
        raise BadInput(
            f"The drawn scans of the task '{task.name}' are of all patients, so that none is left to score.",
            "Ask for fewer shots, or give test scans.",
        )
    return items


def _trained(
    setting: Setting, support: list[LoadedScan], scored: list[LoadedScan], reporter: Reporter
) -> tuple[dict[str, Any], list[Masks]]:
    """Train; what it took and what came of it, and the masks of the scored scans."""
    with PeakMemory(setting.device) as before:
        pass
    started, worked = time.monotonic(), _processor_time()
    with PeakMemory(setting.device) as memory:
        adapted = adapt_scans(setting, support, reporter)
    facts = {
        "seconds": round(time.monotonic() - started, 3),
        "cpu_seconds": round(_processor_time() - worked, 3),
        "method": setting.method,
        "initial_rank": setting.options.get("start_rank", setting.options.get("rank", "")),
        "memory_mib": round(memory.mib),
        "memory_of": memory.measures,
        "memory_added_mib": round(max(0.0, memory.mib - before.mib)),
        **_facts(adapted),
    }
    return facts, [predict_masks(adapted, scan, reporter) for scan in scored]


def _as_it_is(
    entry: ModelEntry,
    task: Task,
    scored: list[LoadedScan],
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> tuple[dict[str, Any], list[Masks]]:
    """The base's own masks; nothing trains."""
    check_zero_shot(entry, task.structures, task.name)
    base = load_asked_base(entry, task.structures)
    size = sum(p.numel() for p in base.segmenter.network.parameters())
    counts = dict.fromkeys((*SHARE, *AT_START, "trained", "trained_at_start"), 0)
    facts = {"method": ZERO_SHOT, "base_total": size, "epochs": 0, "seconds": 0.0, "cpu_seconds": 0.0, **counts}
    return facts, [base_masks(base, scan.volume, device, precision, reporter) for scan in scored]


def _processor_time() -> float:
    """Seconds of this process and of its children that have ended (which Windows does not tell)."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _facts(adapted: Adapted) -> dict[str, Any]:
    attached = adapted.attached
    share = attached.trained_share()
    ranks = attached.facts().get("ranks", {})
    kinds = dict.fromkeys(KINDS, 0) | {kind: n for kind, n in share.items() if kind not in ("base_total", "buffers")}
    at_start = attached.share_at_start
    effective = mean_effective_rank(attached, starting_weights(adapted.setting)) if attached.merges else None
    return {
        "trained": sum(kinds.values()),
        "trained_at_start": sum(at_start[kind] for kind in KINDS),
        **{f"trained_{kind}": n for kind, n in kinds.items()},
        **{f"trained_{kind}_at_start": at_start[kind] for kind in KINDS},
        "buffers": share["buffers"],
        "base_total": share["base_total"],
        "epochs": len(adapted.history.losses),
        "chosen": adapted.choice.get("label", ""),
        "rank": round(float(np.mean(list(ranks.values()))), 2) if ranks else "",
        "effective_rank": "" if effective is None else round(effective, 2),
    }


def _score(
    common: dict[str, Any],
    scan: LoadedScan,
    masks: Masks,
    structures: Iterable[Structure],
    tolerance_mm: float,
) -> list[dict[str, Any]]:
    spacing = scan.volume.grid.spacing
    return [
        common
        | {
            "structure": s.name,
            "dice": round(float(dice(masks[s.name], scan.masks[s.name])), 4),
            "surface_dice": round(float(surface_dice(masks[s.name], scan.masks[s.name], spacing, tolerance_mm)), 4),
        }
        for s in structures
    ]
