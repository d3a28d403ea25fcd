"""Scores of a comparison: the CSV file that holds them, and their statistics. Torch-free."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.compare_bootstrap import REPEATS, bounds, p_value, resampled_means
from peftseg.errors import BadInput
from peftseg.paths import write_text

KEYS = ("task", "candidate", "shots", "draw", "scan", "structure")
SHARE = ("trained_adapter", "trained_norm", "trained_head", "trained_decoder", "trained_body", "buffers")
FIELDS = (
    *KEYS, "dice", "surface_dice", "trained", "epochs", "seconds", "rank",
    "method", "initial_rank", *SHARE, "base_total", "memory_mib", "memory_of", "device",
    "chosen",
)  # fmt: skip
AT_START = tuple(f"{key}_at_start" for key in SHARE if key != "buffers")  # before anything was pruned
# Columns that came later. Files without them are as good: a column or a cell that is missing reads as empty.
OPTIONAL = ("cpu_seconds", "memory_added_mib", "effective_rank", "trained_at_start", *AT_START)
Rows = Sequence[dict[str, Any]]


def read_rows(path: Path, needed: Sequence[str] = (*KEYS, "dice", "surface_dice")) -> list[dict[str, str]]:
    """Rows of a CSV file that `append_rows` wrote; none where it does not exist. BadInput where it is damaged.

    `needed` are columns that it must have. All rows have the `OPTIONAL` columns, empty where the file has no such cell.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    missing = [key for key in needed if key not in (reader.fieldnames or ())]
    if missing:
        raise BadInput(f"{path} lacks the columns {', '.join(missing)}.", "Restore the file, or give another folder.")
    rows = [row | {key: row.get(key) or "" for key in OPTIONAL} for row in rows]
    cut = next((n for n, row in enumerate(rows, start=2) if None in row or None in row.values()), None)
    if cut is not None:
        raise BadInput(f"Line {cut} of {path} is damaged.", "Delete that line; its run is then done again.")
    return rows


def append_rows(path: Path, rows: Rows, columns: Sequence[str] = (*FIELDS, *OPTIONAL)) -> None:
    """Add the rows of one finished run: all or none, whenever the process is killed.

    A file that is there keeps its own columns, a new one gets `columns`. Where the rows know something of the `OPTIONAL`
    columns that the file lacks, it gets them, empty in the rows that it has, in the same write.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    fields = next(csv.reader(old.splitlines()[:1])) if old else list(columns)
    later = [key for key in OPTIONAL if key not in fields and any(row.get(key, "") != "" for row in rows)]
    if later:
        old, fields = _widened(path, old, later), [*fields, *later]
    added = io.StringIO()
    writer = csv.DictWriter(added, fields, restval="", extrasaction="ignore", lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerows(rows)
    write_text(path, old + added.getvalue())


def _widened(path: Path, old: str, later: Sequence[str]) -> str:
    """The text of a file with more columns, empty in all of its rows; BadInput where it is damaged."""
    read_rows(path, needed=())
    head, *body = csv.reader(io.StringIO(old))
    new = io.StringIO()
    writer = csv.writer(new, lineterminator="\n")
    writer.writerow([*head, *later])
    writer.writerows([*row, *[""] * (len(head) - len(row) + len(later))] for row in body)
    return new.getvalue()


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
    return _averaged([row | {"structure": "all"} for row in rows])


def over_patients(rows: Rows, patients: Mapping[tuple[str, str], str]) -> list[dict[str, Any]]:
    """One row a run, structure and patient in place of one a scan: the mean scores of the patient's scans.

    Two scans of one patient are no two independent observations.

    Parameters
    ----------
    rows : sequence of dict
        From `read_rows`.
    patients : mapping
        (task, scan) -> what the patient's row has as its scan. A scan that is not there is its patient's only one.
    """
    return _averaged([row | {"scan": patients.get((row["task"], row["scan"]), row["scan"])} for row in rows])


def _averaged(rows: Rows) -> list[dict[str, Any]]:
    """Rows that have all `KEYS` in common as one, the first, with the mean scores; NaN is left out."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    return [
        group[0] | {metric: str(mean_of([float(row[metric]) for row in group])) for metric in ("dice", "surface_dice")}
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


def in_common_draws(rows: Rows, of: Iterable[str] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the draws that candidates have in common, task by task, so that none has other support sets than another.

    Parameters
    ----------
    rows : sequence of dict
        Of one size of support set.
    of : iterable of str, optional
        Labels of the candidates whose common draws count; all by default.

    Returns
    -------
    list of dict, list of str
        The rows, and the labels of the candidates that lack one of these draws and are left out; none by default.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        found.setdefault(row["task"], {}).setdefault(row["candidate"], set()).add(row["draw"])
    wanted = None if of is None else set(of)
    common, lacking = {}, {}
    for task, draws_of in found.items():
        counted = [draws for label, draws in draws_of.items() if wanted is None or label in wanted]
        common[task] = set.intersection(*counted) if counted else set()
        lacking |= {label: True for label, draws in draws_of.items() if not draws >= common[task]}
    kept = [r for r in rows if r["draw"] in common[r["task"]] and r["candidate"] not in lacking]
    return kept, list(lacking)


def mean_over_tasks(tables: Sequence[np.ndarray]) -> float:
    """Mean of tables' means: each task counts once, however many scans it has."""
    return mean_of([mean_of(table) for table in tables])


def interval_over_tasks(tables: Sequence[np.ndarray], repeats: int = REPEATS, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of `mean_over_tasks`; draws and patients are resampled in each task by itself."""
    return bounds(resampled_means(tables, repeats, seed))


def interval(values: np.ndarray, repeats: int = REPEATS, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of a (draws, scans) table, resampling draws and patients.

    Resampling D draws underestimates the variance over draws by (D - 1) / D; deviations between draws are therefore
    enlarged by sqrt(D / (D - 1)). With one draw the interval is over patients only: it says nothing of other support sets.

    Parameters
    ----------
    values : array (D, N)
        One score a draw and test scan; NaN is left out. NaN twice where nothing is known.
    """
    return bounds(resampled_means([values], repeats, seed))


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
    means = np.array(draws_over_tasks(rows, metric))
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if means.size > 1 else float("nan")


def draws_over_tasks(rows: Rows, metric: str = "dice") -> list[float]:
    """Mean over tasks in each of the draws that all tasks have; rows are those of `spread_over_tasks`."""
    tasks = {row["task"] for row in rows}
    by_draw: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        by_draw.setdefault(row["draw"], {}).setdefault(row["task"], []).append(float(row[metric]))
    whole = [found for found in by_draw.values() if set(found) == tasks]
    return [float(np.mean([mean_of(scores) for scores in found.values()])) for found in whole]


@dataclass(frozen=True)
class Difference:
    """Score of a candidate minus that of a reference, on the same draws and scans.

    Attributes
    ----------
    runs, draws : int
        Runs in common, and draws in common in the task that has fewest.
    mean, low, high : float
        Mean, and its 95 % interval over draws and patients, which is not adjusted for the number of comparisons. With one
        draw there is no verdict: it is over patients only.
    p : float
        Two-sided p-value of a mean of 0, from the resamples of the interval (paired bootstrap over patients and draws): twice
        the share of the means beyond 0. NaN with one draw. To be adjusted (`holm`) before it gives a verdict.
    """

    runs: int
    draws: int
    mean: float
    low: float
    high: float
    p: float


def paired_differences(
    rows: Rows, reference: str, task: str | None = None, repeats: int = REPEATS, metric: str = "dice"
) -> dict[str, Difference]:
    """Score of each candidate minus that of a reference, on the same draws and scans.

    Parameters
    ----------
    rows : sequence of dict
        From `read_rows`.
    reference : str
        Label of the candidate that is subtracted.
    task : str or None
        One task, or None for the mean over tasks; structures count equally. Structures are resampled each by itself;
        give rows of `over_structures` where they lie in the same scans and are to be resampled together.
    metric : str
        "dice" or "surface_dice".
    """
    chosen = [row for row in rows if task is None or row["task"] == task]
    found = {}
    for label in dict.fromkeys(row["candidate"] for row in chosen):
        runs, both = _common(chosen, label, reference, metric)
        if label == reference or not both:
            continue
        draws = min(len(table) for table in both)
        means = resampled_means(both, repeats, 0)
        p = p_value(means) if draws > 1 else float("nan")
        found[label] = Difference(runs, draws, mean_of([mean_of(table) for table in both]), *bounds(means), p)
    return found


def _common(rows: Rows, label: str, reference: str, metric: str) -> tuple[int, list[np.ndarray]]:
    """Runs that both candidates have, and differences there as (draws, scans) tables, one a task and structure."""
    first, second = ({(r["task"], r["draw"]) for r in rows if r["candidate"] == name} for name in (label, reference))
    both = first & second
    shared = [r for r in rows if (r["task"], r["draw"]) in both and r["candidate"] in (label, reference)]
    tables = score_table(shared, metric)
    keys = [(task, structure) for task, candidate, structure in tables if candidate == label]
    found = [tables[t, label, s] - tables[t, reference, s] for t, s in keys if (t, reference, s) in tables]
    return len(both), found
