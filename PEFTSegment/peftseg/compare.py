"""Compare methods on tasks: redrawn support sets, scores a scan, one CSV row a score, resumable."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.adapters import check_options
from peftseg.dataset import load_scans
from peftseg.events import Reporter
from peftseg.metrics import dice, surface_dice
from peftseg.models import ModelEntry, Structure
from peftseg.study import LoadedScan, SupportItem
from peftseg.train import Adapted, make_setting, predict_masks, train_adapter

TOLERANCE_MM = 1.0
FIELDS = (
    "task", "candidate", "shots", "draw", "scan", "structure", "dice", "surface_dice",
    "trained", "epochs", "seconds", "rank",
)  # fmt: skip


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


@dataclass(frozen=True)
class Task:
    """Structures to learn, labelled scans to draw support sets from, and scans to score on (empty: the drawn-out rest)."""

    name: str
    structures: tuple[Structure, ...]
    support: tuple[SupportItem, ...]
    test: tuple[SupportItem, ...] = ()


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
) -> list[dict[str, Any]]:
    """Train one candidate on one drawn support set and score it, one row a scan and structure.

    The draw is also the seed of the initialisation and of the patches. Without test scans the rest of the support
    scans is scored (a cross-validation fold).
    """
    reporter = Reporter.silent()
    chosen = draw_support(len(task.support), shots, draw)
    support = load_scans([task.support[i] for i in chosen], task.structures, None, reporter)
    rest = [item for i, item in enumerate(task.support) if i not in chosen]
    scored_items = task.test or tuple(rest)
    scored = load_scans(scored_items, task.structures, None, reporter)
    options = check_options(candidate.method, candidate.options)
    setting = replace(
        make_setting(entry, task.structures, support, candidate.method, options, device, reporter),
        seed=draw,
        epochs=epochs,
        budget_minutes=budget_minutes,
        scratch=candidate.scratch,
    )
    started = time.monotonic()
    adapted = train_adapter(setting, support, reporter)
    seconds = time.monotonic() - started
    common = {
        "task": task.name,
        "candidate": candidate.label,
        "shots": shots,
        "draw": draw,
        "seconds": round(seconds, 1),
        **_facts(adapted),
    }
    rows = []
    for item, scan in zip(scored_items, scored, strict=True):
        masks = predict_masks(adapted, setting, scan, reporter)
        rows += _score(common | {"scan": Path(item.image).name.split(".")[0]}, scan, masks, task.structures)
    return rows


def _facts(adapted: Adapted) -> dict[str, Any]:
    share = adapted.attached.trained_share()
    ranks = adapted.attached.facts().get("ranks", {})
    return {
        "trained": sum(n for kind, n in share.items() if kind not in ("base_total", "buffers")),
        "epochs": len(adapted.history.losses),
        "rank": round(float(np.mean(list(ranks.values()))), 2) if ranks else "",
    }


def _score(
    common: dict[str, Any], scan: LoadedScan, masks: dict[str, np.ndarray], structures: Iterable[Structure]
) -> list[dict[str, Any]]:
    spacing = scan.volume.grid.spacing
    return [
        common
        | {
            "structure": s.name,
            "dice": round(float(dice(masks[s.name], scan.masks[s.name])), 4),
            "surface_dice": round(float(surface_dice(masks[s.name], scan.masks[s.name], spacing, TOLERANCE_MM)), 4),
        }
        for s in structures
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file that `append_rows` wrote; none where it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append the rows of one finished run in one write."""
    new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def is_done(rows: Iterable[dict[str, str]], task: str, candidate: str, shots: int, draw: int) -> bool:
    """Whether a run's rows are there."""
    key = (task, candidate, str(shots), str(draw))
    return any((r["task"], r["candidate"], r["shots"], r["draw"]) == key for r in rows)


def interval(values: np.ndarray, repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of a (draws, scans) table, resampling draws and patients.

    Parameters
    ----------
    values : array (D, N)
        One score a draw and test scan; NaN is left out.
    """
    rng = np.random.default_rng(seed)
    draws, scans = values.shape
    means = [
        np.nanmean(values[rng.integers(draws, size=draws)][:, rng.integers(scans, size=scans)]) for _ in range(repeats)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def score_table(rows: Iterable[dict[str, str]], metric: str = "dice") -> dict[tuple[str, str, str], np.ndarray]:
    """Scores by (task, candidate, structure) as (draws, scans) tables, both sorted by name; NaN where a run is missing."""
    cells: dict[tuple[str, str, str], dict[tuple[int, str], float]] = {}
    for row in rows:
        key = (row["task"], row["candidate"], row["structure"])
        cells.setdefault(key, {})[int(row["draw"]), row["scan"]] = float(row[metric])
    tables = {}
    for key, found in cells.items():
        draws, scans = sorted({d for d, _ in found}), sorted({s for _, s in found})
        tables[key] = np.array([[found.get((d, s), np.nan) for s in scans] for d in draws])
    return tables


def differences(
    rows: Sequence[dict[str, str]], reference: str, task: str | None = None, repeats: int = 2000
) -> dict[str, tuple[int, float, float, float]]:
    """Dice of each candidate minus that of a reference, on the same draws and scans.

    Parameters
    ----------
    rows : sequence of dict
        From `read_rows`.
    reference : str
        Label of the candidate that is subtracted.
    task : str or None
        One task, or None for the mean over tasks; structures count equally.

    Returns
    -------
    dict
        Candidate -> runs in common, mean difference, and its 95 % interval over draws and patients; an interval that
        holds 0 is a tie.
    """
    chosen = [row for row in rows if task is None or row["task"] == task]
    found = {}
    for label in dict.fromkeys(row["candidate"] for row in chosen):
        runs, both = _common(chosen, label, reference)
        if label == reference or not both:
            continue
        rng = np.random.default_rng(0)
        means = [
            np.mean(
                [
                    np.nanmean(t[rng.integers(len(t), size=len(t))][:, rng.integers(t.shape[1], size=t.shape[1])])
                    for t in both
                ]
            )
            for _ in range(repeats)
        ]
        low, high = np.nanpercentile(means, [2.5, 97.5])
        found[label] = runs, float(np.mean([np.nanmean(t) for t in both])), float(low), float(high)
    return found


def _common(rows: Sequence[dict[str, str]], label: str, reference: str) -> tuple[int, list[np.ndarray]]:
    """Runs that both candidates have, and differences there as (draws, scans) tables, one a task and structure."""
    first, second = ({(r["task"], r["draw"]) for r in rows if r["candidate"] == name} for name in (label, reference))
    both = first & second
    shared = [r for r in rows if (r["task"], r["draw"]) in both]
    tables = score_table(shared)
    keys = [(task, structure) for task, candidate, structure in tables if candidate == label]
    found = [tables[t, label, s] - tables[t, reference, s] for t, s in keys if (t, reference, s) in tables]
    return len(both), found
