"""Draw drift by month: a PNG, or a page with the picture, the marks and the table. Needs matplotlib (extra `report`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from peftseg.drift import COLUMNS, UNLIKE, WATCHED, Row, marked, months_between, write_table
from peftseg.errors import BadInput
from peftseg.paths import atomic_write
from peftseg.report import Section, figure_png, new_figure, write_html

SMALL = 0.1  # of the largest volume: smaller ones would be a line at the bottom
MOST_LINES = 12  # adapter and structure; more are in the table
SUFFIXES = (".html", ".png", ".csv")
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"


def write_drift(path: str | Path, rows: Sequence[Row], notes: Sequence[str] = ()) -> Path:
    """Write the drift of `drift.by_month` as .html, .png or .csv; an existing file is replaced as a whole.

    Raises
    ------
    BadInput
        Another suffix; matplotlib is missing (not for .csv); the place cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"'{path.name}' ends in none of {', '.join(SUFFIXES)}.", "Give such a name with --out.")
    if path.suffix.lower() == ".csv":
        write_table(path, rows)
    elif path.suffix.lower() == ".png":
        with atomic_write(path) as temporary:
            temporary.write_bytes(draw(rows))
    else:
        write_html(path, "Drift by month", _sections(rows, notes))
    return path


def draw(rows: Sequence[Row]) -> bytes:
    """The bytes of a PNG with the share of flagged studies, the volumes and the distance to the support set by month."""
    figure, axes = new_figure(3, 1, (10.0, 10.0))
    months = months_between(rows)
    lines = sorted({(row["adapter"], row["structure"]) for row in rows})
    by_key = {(row["adapter"], row["structure"], row["month"]): row for row in rows}
    for number, (adapter, structure) in enumerate(lines[:MOST_LINES]):
        found = [by_key.get((adapter, structure, month), {}) for month in months]
        style = {
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _LINES[number // 8 % len(_LINES)],
            "color": f"C{number % 10}",
            "label": f"{structure} ({adapter})",
        }
        _line(axes[0], found, "flagged_share", style, months)
        _line(axes[1], found, "volume_ml_median", style, months)
        low, high = ([_value(row, f"volume_ml_{end}") for row in found] for end in ("q1", "q3"))
        axes[1].fill_between(range(len(months)), low, high, color=style["color"], alpha=0.15, linewidth=0)
    _distances(axes[2], rows, months)
    titles = ("Share of studies with a flag", "Volume in ml: median, and the middle half of the studies")
    for axis, title in zip(
        axes, (*titles, "Distance to the labelled scans (1: as they are from each other)"), strict=True
    ):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xticks(range(len(months)), months, rotation=45 if len(months) > 8 else 0, fontsize=8)
        axis.set_xlim(-0.3, len(months) - 0.7)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1.05)
    axes[2].set_ylim(bottom=0)
    medians = [row["volume_ml_median"] for row in rows if row["volume_ml_median"] is not None]
    if medians and 0 < SMALL * max(medians) > min(medians) > 0:
        axes[1].set_yscale("log")  # small structures beside large ones
        axes[1].yaxis.set_major_formatter("{x:g}")
    else:
        axes[1].set_ylim(bottom=0)
    axes[0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure_png(figure)


def _line(axis: Any, rows: Sequence[Row], key: str, style: dict[str, Any], months: Sequence[str]) -> None:
    """One line over the months, with a red ring around months that are marked."""
    values = [_value(row, key) for row in rows]
    axis.plot(range(len(months)), values, **style)
    _ring(axis, rows, values, {"flagged_share": "flag", "volume_ml_median": "volume"}[key])


def _ring(axis: Any, rows: Sequence[Row], values: Sequence[float], what: str) -> None:
    rings = [n for n, row in enumerate(rows) if any(what in mark for mark in row.get("marks", ()))]
    axis.scatter(
        rings, [values[n] for n in rings], s=140, facecolors="none", edgecolors="red", linewidths=1.6, zorder=5
    )


def _distances(axis: Any, rows: Sequence[Row], months: Sequence[str]) -> None:
    """One line an adapter: the distance is of the scan, whatever structure."""
    found = False
    for number, adapter in enumerate(sorted({row["adapter"] for row in rows})):
        mine = {row["month"]: row for row in rows if row["adapter"] == adapter}
        values = [_value(mine.get(month, {}), "distance_median") for month in months]
        if not all(isnan(value) for value in values):
            found = True
            axis.plot(range(len(months)), values, marker=_MARKERS[number % len(_MARKERS)], label=adapter)
            _ring(axis, [mine.get(month, {}) for month in months], values, UNLIKE)
    if found:
        axis.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    else:
        axis.text(0.5, 0.5, "no distances were noted", ha="center", va="center", transform=axis.transAxes, color="grey")


def _value(row: Row, key: str) -> float:
    value = row.get(key)
    return float("nan") if value is None else float(value)


def _sections(rows: Sequence[Row], notes: Sequence[str]) -> list[Section]:
    marks = marked(rows)
    studies = sum({(row["month"], row["adapter"]): row["studies"] for row in rows}.values())
    months = sorted({row["month"] for row in rows})
    what = f"{studies} studies from {months[0]} to {months[-1]}."
    head = (what, *(marks or ("No month stands out.",)), WATCHED, *notes)
    table = (COLUMNS, *(tuple(_cell(row[column]) for column in COLUMNS) for row in rows))
    caption = "By month; a red ring marks a month that stands out from those before it."
    lines = len({(row["adapter"], row["structure"]) for row in rows})
    caption += f" The first {MOST_LINES} of {lines} structures are drawn." if lines > MOST_LINES else ""
    return [
        Section("What stands out", head, (), ((caption, draw(rows)),)),
        Section("All numbers", ("The same as .csv: give --out a name that ends so.",), table),
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(value) if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else str(value)
