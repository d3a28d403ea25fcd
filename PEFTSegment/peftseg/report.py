"""Figures and a one-page HTML report that opens anywhere: pictures inside, nothing from the network.

Planes are shown as radiologists do: axial seen from the feet, coronal from the front (the patient's right is on the
left of the picture), sagittal with the front on the left. Drawing needs matplotlib (extra `report`); importing this
module does not.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.errors import BadInput
from peftseg.grid import Grid
from peftseg.models import Structure
from peftseg.paths import write_text

NOTICE = "For research use only. Not a medical device; not for diagnosis or treatment."
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # RAS axes: across, up, through
LAYERS_SHOWN = 12


@dataclass(frozen=True)
class Section:
    """One part of a report: heading, paragraphs, a table (first row is its head), and captions with PNG pictures."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()


def require_matplotlib() -> None:
    """Raise BadInput, naming the extra to install, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"The report needs matplotlib, which cannot be imported ({error}).",
            'Install it: pip install "peftseg[report]".',
        ) from error


def overlay(
    image: np.ndarray,
    grid: Grid,
    structures: Sequence[Structure],
    *,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    focus: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
) -> bytes:
    """Three planes of a scan with outlines of the labels (solid) and of the prediction (dashed).

    Parameters
    ----------
    image : ndarray
        (I, J, K) grey values.
    grid : Grid
        Where the voxels lie; the planes are those nearest to the body's axes.
    structures : sequence of Structure
        What is outlined, in its colour.
    truth, prediction : ndarray, optional
        (I, J, K) label maps with the structures' values.
    focus : ndarray, optional
        (I, J, K) bool; the planes go through the fullest slices of this mask, else through the middle.
    window : tuple of float, optional
        Grey values shown black and white; else the 1st and 99.5th percentile.

    Returns
    -------
    bytes
        PNG.

    Raises
    ------
    BadInput
        When shapes differ, or matplotlib is missing.
    """
    for name, array in (("truth", truth), ("prediction", prediction), ("focus", focus), ("grid", np.empty(grid.shape))):
        if array is not None and array.shape != image.shape:
            raise BadInput(
                f"{name} has shape {array.shape}, the image {image.shape}; expected the same.",
                "Give arrays on one grid.",
            )
    low, high = window or tuple(float(p) for p in np.percentile(image, (1, 99.5)))
    scan, spacing = to_ras(image, grid)
    maps = [(m if m is None else to_ras(m, grid)[0]) for m in (truth, prediction)]
    where = slices_through(None if focus is None else to_ras(focus, grid)[0], scan.shape)
    figure, axes = new_figure(1, 3, (12, 4.2))
    for axis, (name, (across, up, through)) in zip(axes, PLANES.items(), strict=True):
        shown = [
            m if m is None else np.take(m, where[through], axis=through).T for m in (scan, *maps)
        ]  # rows up, columns across
        aspect = spacing[up] / spacing[across]
        axis.imshow(shown[0], cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="nearest")
        _outline(axis, shown[1], structures, "solid")
        _outline(axis, shown[2], structures, "dashed")
        axis.invert_xaxis()
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    _legend(figure, structures, truth is not None, prediction is not None)
    return figure_png(figure)


def slices_through(focus: np.ndarray | None, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Index along each axis of the slice with most of `focus`; the middle where there is none of it."""
    if focus is None or not focus.any():
        return tuple(n // 2 for n in shape)
    others = ((1, 2), (0, 2), (0, 1))
    return tuple(int(focus.sum(axis=other).argmax()) for other in others)


def curves(losses: Sequence[float], ranks: Sequence[Mapping[str, int]] = ()) -> bytes:
    """Loss, and where the method adapts ranks the rank of each layer, by epoch.

    Parameters
    ----------
    losses : sequence of float
        One value an epoch.
    ranks : sequence of mapping
        Layer -> rank, one mapping an epoch (empty: no rank curve). The layers whose rank changes most are named.

    Returns
    -------
    bytes
        PNG.
    """
    ranked = any(ranks)
    figure, axes = new_figure(1, 2 if ranked else 1, (11 if ranked else 6, 3.6))
    axes = np.atleast_1d(axes)
    axes[0].plot(range(1, len(losses) + 1), losses, color="tab:blue")
    axes[0].set(xlabel="epoch", ylabel="training loss", title="Loss")
    if ranked:
        _rank_curves(axes[1], ranks)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure_png(figure)


def training_history(events: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[dict[str, int]]]:
    """Losses and ranks by epoch, from the `progress` events of the stage "train"; a repeated epoch counts once."""
    steps = {
        e["step"]: e for e in events if e["event"] == "progress" and e["stage"] == "train" and e.get("loss") is not None
    }
    ordered = [steps[step] for step in sorted(steps)]
    return [float(e["loss"]) for e in ordered], [dict(e.get("ranks") or {}) for e in ordered]


def write_html(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a report as one file; text is escaped, pictures are inside, an existing file is replaced as a whole."""
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=html.escape(title), notice=html.escape(NOTICE), body=body)
    write_text(path, page)


def to_ras(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, tuple[float, ...]]:
    """The array with axes to the right, front and head (nearest), and its spacing in that order."""
    codes = grid.axcodes
    order = [next(i for i, c in enumerate(codes) if c in pair) for pair in ("RL", "AP", "SI")]
    turned = np.transpose(array, order)
    backwards = [axis for axis, i in enumerate(order) if codes[i] in "LPI"]
    return np.flip(turned, backwards), tuple(grid.spacing[i] for i in order)


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and axes that belong to no window and no global state."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def figure_png(figure: Any) -> bytes:
    """The bytes of a PNG of a figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def _outline(axis: Any, labels: np.ndarray | None, structures: Sequence[Structure], style: str) -> None:
    if labels is None:
        return
    for structure in structures:
        mask = labels == structure.value
        if mask.any() and not mask.all():
            colour = tuple(c / 255 for c in structure.colour)
            axis.contour(mask.astype(np.float32), levels=[0.5], colors=[colour], linewidths=1.4, linestyles=style)


def _legend(figure: Any, structures: Sequence[Structure], truth: bool, prediction: bool) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], color=tuple(c / 255 for c in s.colour), label=s.name) for s in structures]
    entries += [Line2D([], [], color="black", label="labels")] if truth else []
    entries += [Line2D([], [], color="black", linestyle="dashed", label="prediction")] if prediction else []
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _rank_curves(axis: Any, ranks: Sequence[Mapping[str, int]]) -> None:
    layers = sorted({layer for epoch in ranks for layer in epoch})
    lines = {layer: [epoch.get(layer, np.nan) for epoch in ranks] for layer in layers}
    change = {layer: np.nanmax(line) - np.nanmin(line) for layer, line in lines.items()}
    named = sorted(layers, key=lambda layer: -change[layer])[:LAYERS_SHOWN]
    epochs = range(1, len(ranks) + 1)
    for layer in layers:
        if layer not in named:
            axis.plot(epochs, lines[layer], color="lightgrey", linewidth=0.8)
    for layer in named:
        axis.plot(epochs, lines[layer], linewidth=1.2, label=layer)
    axis.set(xlabel="epoch", ylabel="rank", title="Rank of each layer", ylim=(0, None))
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    if section.table:
        head, *rows = section.table
        parts.append("<table><tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>")
        parts += ["<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows]
        parts.append("</table>")
    for caption, png in section.pictures:
        data, text = base64.b64encode(png).decode("ascii"), html.escape(caption, quote=True)
        parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )
    return "\n".join(parts)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.notice {{ background: #fff3cd; border: 1px solid #e0c36a; padding: .5rem .8rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 1rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; font-size: .9rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="notice">{notice}</p>
{body}
</body>
</html>
"""
