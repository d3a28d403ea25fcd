"""Scores of a comparison: the CSV file that holds them, and their statistics. Torch-free."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.errors import BadInput
from peftseg.paths import write_text

KEYS = ("task", "candidate", "shots", "draw", "scan", "structure")
SHARE = ("trained_adapter", "trained_norm", "trained_head", "trained_decoder", "trained_body", "buffers")
FIELDS = (
    *KEYS, "dice", "surface_dice", "trained", "epochs", "seconds", "rank",
    "method", "initial_rank", *SHARE, "base_total", "memory_mib", "memory_of", "device",
    "chosen",
)  # fmt: skip
Rows = Sequence[dict[str, Any]]


def read_rows(path: Path, needed: Sequence[str] = (*KEYS, "dice", "surface_dice")) -> list[dict[str, str]]:
    """Rows of a CSV file that `append_rows` wrote; none where it does not exist. BadInput where it is damaged.

    `needed` are columns that it must have.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    missing = [key for key in needed if key not in (reader.fieldnames or ())]
    if missing:
        raise BadInput(f"{path} lacks the columns {', '.join(missing)}.", "Restore the file, or give another folder.")
    cut = next((n for n, row in enumerate(rows, start=2) if None in row or None in row.values()), None)
    if cut is not None:
        raise BadInput(f"Line {cut} of {path} is damaged.", "Delete that line; its run is then done again.")
    return rows


def append_rows(path: Path, rows: Rows, columns: Sequence[str] = FIELDS) -> None:
    """Add the rows of one finished run: all or none, whenever the process is killed.

    A file that is there keeps its own columns, a new one gets `columns`.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    fields = next(csv.reader(old.splitlines()[:1])) if old else list(columns)
    added = io.StringIO()
    writer = csv.DictWriter(added, fields, restval="", extrasaction="ignore", lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerows(rows)
    write_text(path, old + added.getvalue())


def is_done(rows: Iterable[dict[str, str]], task: str, candidate: str, shots: int, draw: int) -> bool:
    """Whether a run's rows are there."""
    key = (task, candidate, str(shots), str(draw))
    return any((r["task"], r["candidate"], r["shots"], r["draw"]) == key for r in rows)


def mean_of(values: np.ndarray | Sequence[float]) -> float:
    """Mean of what is not NaN; NaN where nothing is left."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(np.mean(known)) if known.size else float("nan")


def over_structures(rows: Rows) -> list[dict[str, str]]:
    """One row a run and scan in place of one a structure: the mean scores, of structure "all"."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS[:-1]), []).append(row)
    return [
        group[0]
        | {"structure": "all"}
        | {metric: str(mean_of([float(row[metric]) for row in group])) for metric in ("dice", "surface_dice")}
        for group in groups.values()
    ]


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


def task_tables(rows: Iterable[dict[str, str]], metric: str = "dice") -> dict[str, list[np.ndarray]]:
    """Scores by candidate: one (draws, scans) table a task; `rows` are of one structure a task (`over_structures`)."""
    found: dict[str, list[np.ndarray]] = {}
    for (_, candidate, _), table in score_table(rows, metric).items():
        found.setdefault(candidate, []).append(table)
    return found


def in_every_task(rows: Rows, tasks: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the candidates that have some in every task, and the labels of the others: their means are not comparable."""
    wanted, seen = set(tasks), {}
    for row in rows:
        seen.setdefault(row["candidate"], set()).add(row["task"])
    return [r for r in rows if seen[r["candidate"]] >= wanted], [k for k, found in seen.items() if not found >= wanted]


def mean_over_tasks(tables: Sequence[np.ndarray]) -> float:
    """Mean of tables' means: each task counts once, however many scans it has."""
    return mean_of([mean_of(table) for table in tables])


def interval_over_tasks(tables: Sequence[np.ndarray], repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of `mean_over_tasks`; draws and patients are resampled in each task by itself."""
    return _bounds(tables, repeats, seed)


def interval(values: np.ndarray, repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of a (draws, scans) table, resampling draws and patients.

    Parameters
    ----------
    values : array (D, N)
        One score a draw and test scan; NaN is left out. NaN twice where nothing is known.
    """
    return _bounds([values], repeats, seed)


def draw_spread(values: np.ndarray) -> float:
    """Standard deviation, over draws, of the mean over scans of a (draws, scans) table; NaN with one draw."""
    means = np.array([mean_of(draw) for draw in values])
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if means.size > 1 else float("nan")


def spread_over_tasks(rows: Rows, metric: str = "dice") -> float:
    """Standard deviation, over the draws that all tasks have, of the mean over tasks; NaN with one draw.

    Parameters
    ----------
    rows : sequence of dict
        Of one candidate, from `over_structures`.
    """
    tasks = {row["task"] for row in rows}
    by_draw: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        by_draw.setdefault(row["draw"], {}).setdefault(row["task"], []).append(float(row[metric]))
    whole = [found for found in by_draw.values() if set(found) == tasks]
    means = np.array([np.mean([mean_of(scores) for scores in found.values()]) for found in whole])
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if means.size > 1 else float("nan")


def differences(
    rows: Rows, reference: str, task: str | None = None, repeats: int = 2000
) -> dict[str, tuple[int, float, float, float]]:
    """Dice of each candidate minus that of a reference, on the same draws and scans.

    Parameters
    ----------
    rows : sequence of dict
        From `read_rows`.
    reference : str
        Label of the candidate that is subtracted.
    task : str or None
        One task, or None for the mean over tasks; structures count equally. Structures are resampled each by itself;
        give rows of `over_structures` where they lie in the same scans and are to be resampled together.

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
        found[label] = (runs, mean_of([mean_of(table) for table in both]), *_bounds(both, repeats, 0))
    return found


def _common(rows: Rows, label: str, reference: str) -> tuple[int, list[np.ndarray]]:
    """Runs that both candidates have, and differences there as (draws, scans) tables, one a task and structure."""
    first, second = ({(r["task"], r["draw"]) for r in rows if r["candidate"] == name} for name in (label, reference))
    both = first & second
    shared = [r for r in rows if (r["task"], r["draw"]) in both and r["candidate"] in (label, reference)]
    tables = score_table(shared)
    keys = [(task, structure) for task, candidate, structure in tables if candidate == label]
    found = [tables[t, label, s] - tables[t, reference, s] for t, s in keys if (t, reference, s) in tables]
    return len(both), found


@lru_cache(maxsize=64)
def _resamples(
    shapes: tuple[tuple[int, int], ...], repeats: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """How often each draw (R, D) and scan (R, N) is in each of R resamples with replacement, one pair a table."""
    rng = np.random.default_rng(seed)
    counts = [(np.zeros((repeats, d), int), np.zeros((repeats, n), int)) for d, n in shapes]
    for repeat in range(repeats):
        for of_table in counts:
            for count in of_table:
                size = count.shape[1]
                count[repeat] = np.bincount(rng.integers(size, size=size), minlength=size)
    return tuple(counts)


def _bounds(tables: Sequence[np.ndarray], repeats: int, seed: int) -> tuple[float, float]:
    """2.5th and 97.5th percentile, over resamples, of the mean of the tables' means; NaN is left out."""
    counts = _resamples(tuple(table.shape for table in tables), repeats, seed)
    means = np.full((len(tables), repeats), np.nan)
    for mean, table, (draws, scans) in zip(means, tables, counts, strict=True):
        known = ~np.isnan(table)
        weight = ((draws @ known) * scans).sum(1)
        total = ((draws @ np.where(known, table, 0.0)) * scans).sum(1)
        np.divide(total, weight, out=mean, where=weight > 0)
    known = ~np.isnan(means)
    weight = known.sum(0)
    if not weight.any():
        return float("nan"), float("nan")
    overall = np.where(known, means, 0.0).sum(0)[weight > 0] / weight[weight > 0]
    low, high = np.percentile(overall, [2.5, 97.5])
    return float(low), float(high)
