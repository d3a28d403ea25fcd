"""Plots of a comparison. Drawing needs matplotlib (extra `report`); without it the report goes without plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftseg.compare_rows import (
    Rows,
    interval_over_tasks,
    mean_of,
    mean_over_tasks,
    over_structures,
    score_table,
    task_tables,
)
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.pareto import pareto_front
from peftseg.paths import atomic_write
from peftseg.report import require_matplotlib

MARKERS = "osD^vP*Xph<>dH8"


def can_draw(reporter: Reporter) -> bool:
    """Whether matplotlib is there; a warning says what it is good for."""
    try:
        require_matplotlib()
    except BadInput as error:
        reporter.warning(str(error))
        return False
    return True


def write_plots(out: Path, rows: Rows, ranks: Rows, mark: str = "") -> list[tuple[str, str]]:
    """Write the PNG files; returns their names and captions. Where rows are of several tasks, each counts once.

    Parameters
    ----------
    out : Path
        Folder.
    rows : sequence of dict
        Scores of the methods.
    ranks : sequence of dict
        Scores of methods that were run at several initial ranks.
    mark : str
        What the files' names begin with.
    """
    shots = sorted({int(row["shots"]) for row in rows})
    found: list[tuple[str, str]] = []
    over = "" if len({row["task"] for row in rows}) < 2 else "; mean over tasks"

    def save(name: str, caption: str, figure: Any) -> None:
        _save(out / f"{mark}{name}.png", figure)
        found.append((f"{mark}{name}.png", caption))

    for metric, name in (("dice", "Dice"), ("surface_dice", "Surface Dice")) if rows else ():
        caption = f"{name} of each method, with 95 % intervals over draws and patients{over}"
        save(metric, caption, _scores(rows, shots, metric, name))
    if rows:
        save("pareto", f"Dice against trained values; the line joins the Pareto front{over}", _size(rows, shots))
    if len(shots) > 1:
        save("shots", f"Dice by number of labelled scans{over}", _by_shots(rows, shots))
    if ranks:
        what = "structure" if len({row["task"] for row in ranks}) == 1 else "task"
        save("ranks", f"Dice by initial rank, one picture a {what}", _by_rank(ranks))
    return found


def _scores(rows: Rows, shots: Sequence[int], metric: str, name: str) -> Any:
    tables = {k: _tables(rows, k, metric) for k in shots}
    labels = list(dict.fromkeys(label for k in shots for label in tables[k]))
    last = tables[shots[-1]]
    labels.sort(key=lambda label: mean_over_tasks(last[label]) if label in last else -1.0)
    figure, axis = _figure(1, (7.5, 1.4 + 0.35 * len(labels)))
    for number, k in enumerate(shots):
        here = [label for label in labels if label in tables[k]]
        offset = 0.15 * (number - (len(shots) - 1) / 2)
        means, below, above = _means(tables[k], here)
        places = [labels.index(label) + offset for label in here]
        axis[0].errorbar(means, places, xerr=(below, above), fmt=MARKERS[number], capsize=2, label=f"{k} shots")
    axis[0].set_yticks(range(len(labels)), labels)
    axis[0].set(xlabel=name)
    axis[0].grid(axis="x", alpha=0.3)
    _legend_outside(axis[0])
    return figure


def _size(rows: Rows, shots: Sequence[int]) -> Any:
    figure, axes = _figure(len(shots), (6.5 * len(shots), 4.8))
    for axis, k in zip(axes, shots, strict=True):
        tables = _tables(rows, k, "dice")
        labels = list(tables)
        trained = [_trained(rows, k, label) for label in labels]
        means, below, above = _means(tables, labels)
        front = pareto_front(means, trained)
        for i, label in enumerate(labels):
            axis.errorbar(trained[i], means[i], yerr=([below[i]], [above[i]]), fmt=_marker(i), capsize=2, label=label)
        joined = sorted((t, m) for t, m, on in zip(trained, means, front, strict=True) if on)
        axis.plot(*zip(*joined, strict=True), color="grey", linewidth=1, zorder=0) if joined else None
        axis.set(xscale="log", xlabel="trained values", ylabel="Dice", title=f"{k} shots")
        axis.grid(alpha=0.3)
    _legend_outside(axes[-1])
    return figure


def _by_shots(rows: Rows, shots: Sequence[int]) -> Any:
    figure, axes = _figure(1, (7.5, 4.5))
    tables = {k: _tables(rows, k, "dice") for k in shots}
    for i, label in enumerate(dict.fromkeys(row["candidate"] for row in rows)):
        at = [k for k in shots if label in tables[k]]
        axes[0].plot(at, [mean_over_tasks(tables[k][label]) for k in at], marker=_marker(i), label=label)
    axes[0].set(xlabel="labelled scans", ylabel="Dice")
    axes[0].set_xticks(shots)
    axes[0].grid(alpha=0.3)
    _legend_outside(axes[0])
    return figure


def _by_rank(rows: Rows) -> Any:
    """As Fig. 1(a) of the ARENA paper: the best rank may be another one for each structure (or task)."""
    shots = max(int(row["shots"]) for row in rows)
    chosen = [row for row in rows if int(row["shots"]) == shots]
    several = len({row["task"] for row in chosen}) > 1
    chosen = over_structures(chosen) if several else chosen
    tables = score_table(chosen)
    pictures = list(dict.fromkeys((row["task"], row["structure"]) for row in chosen))
    first = {row["candidate"]: (row["method"], int(row["initial_rank"])) for row in chosen}
    figure, axes = _figure(len(pictures), (4.2 * len(pictures) + 1.5, 3.8))
    for axis, (task, structure) in zip(axes, pictures, strict=True):
        here = {label: [table] for (t, label, s), table in tables.items() if (t, s) == (task, structure)}
        for i, method in enumerate(dict.fromkeys(method for method, _ in first.values())):
            labels = sorted((k for k in here if first[k][0] == method), key=lambda k: first[k][1])
            means, below, above = _means(here, labels)
            at = [first[k][1] for k in labels]
            axis.errorbar(at, means, yerr=(below, above), marker=_marker(i), capsize=2, label=method)
        axis.set(
            xscale="log", xlabel="initial rank", ylabel="Dice", title=f"{task if several else structure}, {shots} shots"
        )
        ticks = sorted({rank for _, rank in first.values()})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    _legend_outside(axes[-1])
    return figure


def _tables(rows: Rows, shots: int, metric: str) -> dict[str, list[Any]]:
    """Candidate -> (draws, scans) tables of the mean over structures, one a task."""
    return task_tables(over_structures([row for row in rows if int(row["shots"]) == shots]), metric)


def _means(tables: dict[str, list[Any]], labels: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    """Means, and how far their intervals reach below and above."""
    means = [mean_over_tasks(tables[label]) for label in labels]
    spans = [interval_over_tasks(tables[label]) for label in labels]
    below = [max(mean - low, 0.0) for mean, (low, _) in zip(means, spans, strict=True)]
    above = [max(high - mean, 0.0) for mean, (_, high) in zip(means, spans, strict=True)]
    return means, below, above


def _trained(rows: Rows, shots: int, label: str) -> float:
    """Values that trained at the start (after pruning where rows are older than that), mean over tasks."""
    by_task: dict[str, list[float]] = {}
    for row in rows:
        if row["candidate"] == label and int(row["shots"]) == shots:
            by_task.setdefault(row["task"], []).append(float(row.get("trained_at_start") or row["trained"]))
    return mean_of([mean_of(found) for found in by_task.values()])


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and a row of axes that belong to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _legend_outside(axis: Any) -> None:
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _save(path: Path, figure: Any) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
