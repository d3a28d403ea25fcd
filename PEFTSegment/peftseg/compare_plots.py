"""Plots of a comparison. Drawing needs matplotlib (extra `report`); without it the report goes without plots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from peftseg.compare_cost_plots import memory_figure, rank_figure, share_figure, time_figure
from peftseg.compare_figures import (
    draw_lines,
    from_below,
    height_of,
    legend_outside,
    marker,
    name_rows,
    new_figure,
    save_figure,
    tables_at,
)
from peftseg.compare_rows import (
    Rows,
    draws_over_tasks,
    interval_over_tasks,
    mean_of,
    mean_over_tasks,
    over_structures,
    score_table,
)
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.pareto import pareto_front
from peftseg.report import require_matplotlib

DODGE = 0.12  # how far methods lie apart, in all, beside a number of labelled scans


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
        save_figure(out / f"{mark}{name}.png", figure)
        found.append((f"{mark}{name}.png", caption))

    for metric, name in (("dice", "Dice"), ("surface_dice", "Surface Dice")) if rows else ():
        dots = "single draws" if over else "single patients in each draw"
        caption = f"{name} of each method, with 95 % intervals over draws and patients{over}. Dots: {dots}"
        save(metric, caption, scores_figure(rows, shots, metric, name))
    if rows:
        front = "the line joins the Pareto front of what trains, dashes are the model as it is"
        save("pareto", f"Dice against trained values at the start; {front}{over}", size_figure(rows, shots))
    if len(shots) > 1:
        save("shots", f"Dice by number of labelled scans, with 95 % intervals{over}", shots_figure(rows, shots))
    for name, caption, draw in _COSTS if rows else ():
        figure = draw(rows, shots)
        if figure is not None:
            save(name, caption.format(over=over), figure)
    if ranks:
        what = "structure" if len({row["task"] for row in ranks}) == 1 else "task"
        save("ranks", f"Dice by initial rank, one picture a {what}", _by_rank(ranks))
    return found


_COSTS = (
    (
        "share",
        "What trains, by kind, before anything is pruned; buffers are stored with the adapter{over}",
        share_figure,
    ),
    (
        "time",
        "Time of training: mean of the draws, from the quickest to the slowest{over}. Dots: single draws",
        time_figure,
    ),
    (
        "memory",
        "Peak memory of training: mean of the draws, from least to most{over}. Dots: single draws",
        memory_figure,
    ),
    (
        "effective_rank",
        "Effective rank of the change of the weights: mean of the draws, from least to most{over}. Dots: single draws",
        rank_figure,
    ),
)


def scores_figure(rows: Rows, shots: Sequence[int], metric: str, name: str) -> Any:
    """Means of each method with their intervals, and the single patients of each draw (over tasks: draws)."""
    whole, labels = over_structures(rows), from_below(rows, shots)
    figure, (axis,) = new_figure(1, (7.5, height_of(len(labels), len(shots))))
    for number, k in enumerate(shots):
        tables = tables_at(rows, k, metric)
        here = [label for label in labels if label in tables]
        lines = [
            (labels.index(label), mean, (below, above), _single(whole, k, label, metric))
            for label, mean, below, above in zip(here, *_means(tables, here), strict=True)
        ]
        draw_lines(axis, lines, number, len(shots), f"{k} shots")
    axis.set(xlabel=name)
    name_rows(axis, labels)
    legend_outside(axis)
    return figure


def _single(whole: Rows, shots: int, label: str, metric: str) -> list[float]:
    """Scores of single patients in each draw; of several tasks means of the draws, for their patients do not compare."""
    own = [row for row in whole if row["candidate"] == label and int(row["shots"]) == shots]
    several = len({row["task"] for row in own}) > 1
    return draws_over_tasks(own, metric) if several else [float(row[metric]) for row in own]


def size_figure(rows: Rows, shots: Sequence[int]) -> Any:
    """Dice against trained values, one picture a size of support set; what trains nothing is a dashed line."""
    figure, axes = new_figure(len(shots), (6.5 * len(shots), 4.8))
    for axis, k in zip(axes, shots, strict=True):
        tables = tables_at(rows, k, "dice")
        size_of = {label: _trained(rows, k, label) for label in tables}
        labels = [label for label in tables if size_of[label] > 0]
        for label in (label for label in tables if size_of[label] == 0):
            axis.axhline(mean_over_tasks(tables[label]), color="black", linestyle="--", linewidth=1, label=label)
        trained = [size_of[label] for label in labels]
        means, below, above = _means(tables, labels)
        front = pareto_front(means, trained)
        for i, label in enumerate(labels):
            axis.errorbar(trained[i], means[i], yerr=([below[i]], [above[i]]), fmt=marker(i), capsize=2, label=label)
        joined = sorted((t, m) for t, m, on in zip(trained, means, front, strict=True) if on)
        axis.plot(*zip(*joined, strict=True), color="grey", linewidth=1, zorder=0) if joined else None
        axis.set(xscale="log", xlabel="trained values", ylabel="Dice", title=f"{k} shots")
        axis.grid(alpha=0.3)
    legend_outside(axes[-1])
    return figure


def shots_figure(rows: Rows, shots: Sequence[int]) -> Any:
    """Dice of each method by number of labelled scans; methods lie a little beside each other."""
    figure, (axis,) = new_figure(1, (7.5, 4.5))
    tables = {k: tables_at(rows, k, "dice") for k in shots}
    labels = list(dict.fromkeys(row["candidate"] for row in rows))
    nearest = min((b - a for a, b in pairwise(shots)), default=1)
    for i, label in enumerate(labels):
        at = [k for k in shots if label in tables[k]]
        found = [_means(tables[k], [label]) for k in at]
        means, below, above = ([one[part][0] for one in found] for part in range(3))
        aside = nearest * DODGE * (i - (len(labels) - 1) / 2) / len(labels)
        axis.errorbar(
            [k + aside for k in at],
            means,
            yerr=(below, above),
            marker=marker(i),
            elinewidth=0.8,
            capsize=2,
            label=label,
        )
    axis.set(xlabel="labelled scans", ylabel="Dice")
    axis.set_xticks(shots)
    axis.grid(alpha=0.3)
    legend_outside(axis)
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
    figure, axes = new_figure(len(pictures), (4.2 * len(pictures) + 1.5, 3.8))
    for axis, (task, structure) in zip(axes, pictures, strict=True):
        here = {label: [table] for (t, label, s), table in tables.items() if (t, s) == (task, structure)}
        for i, method in enumerate(dict.fromkeys(method for method, _ in first.values())):
            labels = sorted((k for k in here if first[k][0] == method), key=lambda k: first[k][1])
            means, below, above = _means(here, labels)
            at = [first[k][1] for k in labels]
            axis.errorbar(at, means, yerr=(below, above), marker=marker(i), capsize=2, label=method)
        axis.set(
            xscale="log", xlabel="initial rank", ylabel="Dice", title=f"{task if several else structure}, {shots} shots"
        )
        ticks = sorted({rank for _, rank in first.values()})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    legend_outside(axes[-1])
    return figure


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
