"""What the plots of a comparison have in common: figures, markers, legends and the spread of single values.

Drawing needs matplotlib (extra `report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftseg.compare_rows import Rows, mean_over_tasks, over_structures, task_tables
from peftseg.paths import atomic_write

MARKERS = "osD^vP*Xph<>dH8"
SINGLE = {"linestyle": "none", "marker": "o", "markersize": 3.5, "markeredgewidth": 0, "alpha": 0.4, "zorder": 1}
MEAN = {"markersize": 4, "capsize": 2, "elinewidth": 1.2, "zorder": 3}
BAND = 0.8  # of a method's row that its support sizes take


def marker(number: int) -> str:
    """A marker for any number; they come again after the last."""
    return MARKERS[number % len(MARKERS)]


def new_figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and a row of axes that belong to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def height_of(labels: int, shots: int) -> float:
    """Inches for a picture with one row a method, and in it one line a size of support set."""
    return 1.4 + labels * max(0.35, 0.17 * shots + 0.1)


def offset_of(number: int, count: int) -> float:
    """Where in a method's row the number-th of `count` sizes of support set lies, around 0."""
    return min(0.5, BAND / count) * (number - (count - 1) / 2)


def below_mean(count: int) -> float:
    """How far under its mean and interval, which would hide them, a line's single values lie."""
    return 0.4 * min(0.5, BAND / count)


def draw_lines(
    axis: Any,
    lines: Sequence[tuple[int, float, tuple[float, float], Sequence[float]]],
    number: int,
    count: int,
    name: str,
) -> None:
    """The number-th of `count` sizes of support set in each row: means with a bar each, single values as dots below.

    Parameters
    ----------
    lines : sequence of tuple
        Row, mean, how far the bar reaches to the left and to the right, and single values.
    """
    colour, down = f"C{number % 10}", below_mean(count)
    for row, _, _, values in lines:
        axis.plot(values, [row + offset_of(number, count) - down / 2] * len(values), color=colour, **SINGLE)
    places = [row + offset_of(number, count) + down / 2 for row, *_ in lines]
    reach = [[bar[side] for _, _, bar, _ in lines] for side in (0, 1)]
    means = [mean for _, mean, _, _ in lines]
    axis.errorbar(means, places, xerr=reach, fmt=marker(number), color=colour, label=name, **MEAN)


def name_rows(axis: Any, labels: Sequence[str]) -> None:
    """One row a method, from below."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(-0.6, len(labels) - 0.4)
    axis.grid(axis="x", alpha=0.3)


def legend_outside(axis: Any) -> None:
    """A legend to the right of the axes."""
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def save_figure(path: Path, figure: Any) -> None:
    """Write a PNG file, whole or not at all, with the same bytes for the same picture."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def tables_at(rows: Rows, shots: int, metric: str) -> dict[str, list[Any]]:
    """Candidate -> (draws, scans) tables of the mean over structures, one a task."""
    return task_tables(over_structures([row for row in rows if int(row["shots"]) == shots]), metric)


def from_below(rows: Rows, shots: Sequence[int]) -> list[str]:
    """Methods by Dice at the largest support set that they have, the best one last (at the top of a picture)."""
    found: dict[str, tuple[int, float]] = {}
    for number, k in enumerate(shots):
        found |= {label: (number, mean_over_tasks(tables)) for label, tables in tables_at(rows, k, "dice").items()}
    most = len(shots) - 1
    # Those without a run at the largest size are below.
    return sorted(found, key=lambda label: found[label][1] if found[label][0] == most else found[label][1] - 2.0)
