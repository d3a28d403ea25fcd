"""Plots of what methods cost: what trains by kind, time, peak memory, effective rank. Drawing needs matplotlib.

Each function gives a figure, or None where no row knows its numbers (rows of older programs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from peftseg.compare_figures import (
    draw_lines,
    from_below,
    height_of,
    legend_outside,
    name_rows,
    new_figure,
)
from peftseg.compare_rows import Rows, mean_of
from peftseg.compare_tables import COUNTS, SHARE_HEADS, knows_start, mean_over_runs, share_at_start

COLOURS = ("#4c78a8", "#72b7b2", "#f58518", "#e45756", "#b279a2", "#bab0ac")  # one a kind of SHARE
LARGE_RANGE = 20.0  # largest by smallest value from which on an axis is logarithmic
ROOM = 1.45  # of the longest bar, for the numbers beside the bars


def share_figure(rows: Rows, shots: Sequence[int]) -> Any:
    """What trains by kind before anything is pruned: in per cent of the base, and in per cent of what trains.

    In the left picture small methods are hardly seen, hence their numbers beside the bars and the right picture.
    """
    facts = {}
    for label in from_below(rows, shots):
        own = [row for row in rows if row["candidate"] == label]
        facts[label] = {key: mean_over_runs(own, key) for key in COUNTS}
    shares = {label: share_at_start(fact) for label, fact in facts.items()}
    bases = {label: fact["base_total"] for label, fact in facts.items()}
    labels = [k for k in facts if bases[k] > 0 and not any(math.isnan(n) for n in shares[k].values())]
    if not labels:
        return None
    figure, (left, right) = new_figure(2, (11.0, height_of(len(labels), 1)))
    of_base = {k: [_per_cent(n, bases[k]) for n in shares[k].values()] for k in labels}
    of_own = {k: [_per_cent(n, sum(shares[k].values())) for n in shares[k].values()] for k in labels}
    _stack(left, of_base, labels)
    _stack(right, of_own, labels)
    longest = max(sum(parts) for parts in of_base.values())
    for place, label in enumerate(labels):
        trained = sum(n for kind, n in shares[label].items() if kind != "buffers")
        text = f"{trained:,.0f} ({_per_cent(trained, bases[label]):.3g} %)"
        text += "" if knows_start(facts[label]) else "\nafter training"
        left.text(sum(of_base[label]) + 0.01 * longest, place, text, va="center", fontsize=7)
    left.set(xlabel="% of the base's values; beside the bars: trained values", xlim=(0, ROOM * max(longest, 1e-9)))
    right.set(xlabel="% of what trains or is stored", xlim=(0, 100))
    right.tick_params(labelleft=False)
    legend_outside(right)
    return figure


def _per_cent(part: float, whole: float) -> float:
    return 100 * part / whole if whole > 0 else 0.0


def _stack(axis: Any, parts: dict[str, list[float]], labels: Sequence[str]) -> None:
    """Horizontal bars of the kinds, one after the other."""
    begun = [0.0] * len(labels)
    for number, (head, colour) in enumerate(zip(SHARE_HEADS, COLOURS, strict=True)):
        widths = [parts[label][number] for label in labels]
        hatch = "///" if head == "buffers" else None
        axis.barh(
            range(len(labels)), widths, left=begun, color=colour, hatch=hatch, height=0.7, linewidth=0, label=head
        )
        begun = [start + width for start, width in zip(begun, widths, strict=True)]
    name_rows(axis, labels)


def time_figure(rows: Rows, shots: Sequence[int]) -> Any:
    """Seconds of each training on the clock and of the processor; of several tasks the mean of a draw."""
    wanted = (("seconds", "time of training on the clock, s"), ("cpu_seconds", "processor time, s"))
    return _spreads(rows, shots, wanted, mean_of)


def memory_figure(rows: Rows, shots: Sequence[int]) -> Any:
    """Peak memory of each training, in MiB: what it added, and in all; of several tasks the largest of a draw."""
    wanted = (("memory_added_mib", "peak memory added, MiB"), ("memory_mib", "peak memory in all, MiB"))
    return _spreads(rows, shots, wanted, max)


def rank_figure(rows: Rows, shots: Sequence[int]) -> Any:
    """Effective rank of each method that has one, and beside it the components that are left."""
    wanted = (("effective_rank", "effective rank, mean over layers"), ("rank", "components left, mean over layers"))
    labels = dict.fromkeys(row["candidate"] for row in rows)
    ranked = [label for label in labels if any(draw_values(rows, k, label, "effective_rank") for k in shots)]
    return _spreads([row for row in rows if row["candidate"] in ranked], shots, wanted, mean_of)


def _spreads(
    rows: Rows,
    shots: Sequence[int],
    wanted: Sequence[tuple[str, str]],
    over_tasks: Callable[[Sequence[float]], float],
) -> Any:
    """One picture a column of the rows that some of them know: single draws, their mean and their range."""
    order = from_below(rows, shots)
    values = {
        (key, k, label): draw_values(rows, k, label, key, over_tasks)
        for key, _ in wanted
        for k in shots
        for label in order
    }
    known = [place for place, found in values.items() if found]
    keys, named = {key for key, _, _ in known}, {label for _, _, label in known}
    columns, labels = [c for c in wanted if c[0] in keys], [label for label in order if label in named]
    if not columns:
        return None
    figure, axes = new_figure(len(columns), (4.5 * len(columns) + 2.5, height_of(len(labels), len(shots))))
    for axis, (key, head) in zip(axes, columns, strict=True):
        for number, k in enumerate(shots):
            lines = _lines({label: values[key, k, label] for label in labels})
            draw_lines(axis, lines, number, len(shots), f"{k} shots")
        some = [value for place, found in values.items() if place[0] == key for value in found]
        apart = max(some) > LARGE_RANGE * min(some) > 0
        axis.set(xlabel=head, xscale="log") if apart else axis.set(xlabel=head, xlim=(0, 1.05 * max(*some, 1.0)))
        name_rows(axis, labels)
        axis.tick_params(labelleft=axis is axes[0])
    legend_outside(axes[-1])
    return figure


def _lines(values: dict[str, list[float]]) -> list[tuple[int, float, tuple[float, float], list[float]]]:
    """For `draw_lines`: of each method, row by row, the mean of the draws, their range around it, and the draws."""
    lines = []
    for row, found in enumerate(values.values()):
        if found:
            mean = mean_of(found)
            lines.append((row, mean, (max(mean - min(found), 0.0), max(max(found) - mean, 0.0)), found))
    return lines


def draw_values(
    rows: Rows, shots: int, label: str, key: str, over_tasks: Callable[[Sequence[float]], float] = mean_of
) -> list[float]:
    """A fact of a method's runs in each draw, over the tasks; of the draws that know it in all of the method's tasks.

    What trains nothing is left out.
    """
    own = [row for row in rows if row["candidate"] == label and int(row["shots"]) == shots and _trains(row)]
    tasks = {row["task"] for row in own}
    by_draw: dict[int, dict[str, float]] = {}
    for row in own:
        if row.get(key):
            by_draw.setdefault(int(row["draw"]), {})[row["task"]] = float(row[key])
    return [over_tasks(list(found.values())) for _, found in sorted(by_draw.items()) if set(found) == tasks]


def _trains(row: dict[str, Any]) -> bool:
    count = row.get("trained_at_start") or row.get("trained")
    return not count or float(count) > 0
