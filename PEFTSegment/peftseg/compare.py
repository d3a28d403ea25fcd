"""One run of a comparison: a method trained on a redrawn support set and scored, one row a scan and structure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from peftseg.adapter_training import Adapted, make_setting, predict_masks
from peftseg.adapters import check_options
from peftseg.adapters.base import KINDS
from peftseg.auto import adapt_scans
from peftseg.compare_tasks import Task
from peftseg.dataset import load_scans
from peftseg.events import Reporter
from peftseg.metrics import dice, surface_dice
from peftseg.models import ModelEntry, Structure
from peftseg.peak_memory import PeakMemory
from peftseg.study import LoadedScan
from peftseg.volume import file_stem

__all__ = ["TOLERANCE_MM", "Candidate", "Task", "draw_support", "run_candidate"]

TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison: a method with its options.

    Attributes
    ----------
    label : str
        Name in tables.
    method : str
        Name in the method table.
    options : dict
        What differs from the method's defaults.
    scratch : bool
        Random weights instead of the base's.
    """

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False


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

    The draw is also the seed of the initialisation and of the patches. Without test scans the rest of the support
    scans is scored (a cross-validation fold). A structure that a scan does not label as a whole is not scored there.
    Time and peak memory are those of training. With the method `auto` what was trained, its rank and its epochs are those
    of the method that it chose, which is in "chosen"; time and memory are those of the search, too.
    """
    reporter = Reporter.silent()
    chosen = draw_support(len(task.support), shots, draw)
    support = load_scans([task.support[i] for i in chosen], task.structures, replace_nonfinite, reporter)
    rest = [item for i, item in enumerate(task.support) if i not in chosen]
    scored_items = task.test or tuple(rest)
    scored = load_scans(scored_items, task.structures, replace_nonfinite, reporter)
    options = check_options(candidate.method, candidate.options)
    setting = replace(
        make_setting(entry, task.structures, support, candidate.method, options, device, reporter),
        seed=draw,
        epochs=epochs,
        budget_minutes=budget_minutes,
        precision=precision,
        scratch=candidate.scratch,
    )
    started = time.monotonic()
    with PeakMemory(device) as memory:
        adapted = adapt_scans(setting, support, reporter)
    seconds = time.monotonic() - started
    common = {
        "task": task.name,
        "candidate": candidate.label,
        "shots": shots,
        "draw": draw,
        "seconds": round(seconds, 1),
        "method": candidate.method,
        "initial_rank": options.get("start_rank", options.get("rank", "")),
        "memory_mib": round(memory.mib),
        "memory_of": memory.measures,
        "device": device.type,
        **_facts(adapted),
    }
    rows = []
    for item, scan in zip(scored_items, scored, strict=True):
        masks = predict_masks(adapted, scan, reporter)
        whole = [s for s in task.structures if scan.known[s.name] is True]
        rows += _score(common | {"scan": file_stem(item.image)}, scan, masks, whole, tolerance_mm)
    return rows


def _facts(adapted: Adapted) -> dict[str, Any]:
    share = adapted.attached.trained_share()
    ranks = adapted.attached.facts().get("ranks", {})
    kinds = dict.fromkeys(KINDS, 0) | {kind: n for kind, n in share.items() if kind not in ("base_total", "buffers")}
    return {
        "trained": sum(kinds.values()),
        **{f"trained_{kind}": n for kind, n in kinds.items()},
        "buffers": share["buffers"],
        "base_total": share["base_total"],
        "epochs": len(adapted.history.losses),
        "chosen": adapted.choice.get("label", ""),
        "rank": round(float(np.mean(list(ranks.values()))), 2) if ranks else "",
    }


def _score(
    common: dict[str, Any],
    scan: LoadedScan,
    masks: dict[str, np.ndarray],
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
