"""PNG pictures: a map over three planes of the scan with a colour bar, and what each layer makes of a structure.

Drawing needs matplotlib (extra `report`); importing this module does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftseg.explain.abilities import BUILDERS, Ability
from peftseg.explain.layers import Layer
from peftseg.grid import Grid
from peftseg.report import PLANES, figure_png, new_figure, slices_through, to_ras

CAUTION = "A map does not show that the result is right. Research use only."
MAP_COLOURS = "inferno"
OUTLINE = "#00e5ff"  # stands out from all colours of the map
OPACITY = 0.65  # of the map where it is 1
KIND_COLOURS = {
    "encoder": "#0072b2",
    "adapter": "#d55e00",
    "decoder": "#009e73",
    "head": "#999999",
    "other": "#cc79a7",
}
BUILDER_WORDS = {"prediction": "prototype built by the prediction", "truth": "prototype built by the labels (control)"}


def montage(
    scan: np.ndarray,
    grid: Grid,
    values: np.ndarray,
    title: str,
    reading: str,
    outlines: dict[str, np.ndarray] | None = None,
) -> bytes:
    """A map over three planes of a scan, as radiologists look at them, with a colour bar.

    Parameters
    ----------
    scan : array (I, J, K)
        Grey values.
    values : array (I, J, K)
        The map, 0 to 1, or bool.
    reading : str
        How to read the map, in a sentence.
    outlines : dict, optional
        "labels" (solid) and "prediction" (dashed): (I, J, K) bool.

    Returns
    -------
    bytes
        PNG.

    Raises
    ------
    BadInput
        matplotlib is missing.
    """
    shown, spacing = to_ras(scan, grid)
    over = to_ras(values.astype(np.float32), grid)[0]
    lines = {name: to_ras(mask, grid)[0] for name, mask in (outlines or {}).items() if mask.any()}
    focus = next((lines[name] for name in ("labels", "prediction") if name in lines), over > 0.5)
    where = slices_through(focus if focus.any() else None, shown.shape)
    low, high = (float(p) for p in np.percentile(scan, (1, 99.5)))
    figure, axes = new_figure(1, 3, (12.5, 4.6))
    for axis, (name, (across, up, through)) in zip(axes, PLANES.items(), strict=True):
        planes = {key: np.take(m, where[through], axis=through).T for key, m in lines.items()}
        grey, colour = (np.take(m, where[through], axis=through).T for m in (shown, over))
        look = {"origin": "lower", "aspect": spacing[up] / spacing[across], "interpolation": "nearest"}
        axis.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **look)
        image = axis.imshow(colour, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=OPACITY * np.sqrt(colour), **look)
        for key, mask in planes.items():
            _outline(axis, mask, "solid" if key == "labels" else "dashed")
        axis.invert_xaxis()
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    bar = figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.01)
    bar.solids.set_alpha(1)
    bar.ax.tick_params(labelsize=8)
    drawn = [f"{key} ({'solid' if key == 'labels' else 'dashed'})" for key in lines]
    told = f" Outline: {' and '.join(drawn)}." if drawn else ""
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(f"{reading}{told}\n{CAUTION}", fontsize=8.5)
    return figure_png(figure)


def ability_chart(abilities: Sequence[Ability], structure: str) -> bytes:
    """Segmentation Ability of the layers for one structure, in network order, by kind of layer and by prototype; PNG."""
    own = [a for a in abilities if a.structure == structure]
    layers = list(dict.fromkeys(a.layer for a in own))
    has_sa = any(not math.isnan(a.sa) for a in own)
    builders = [b for b in BUILDERS if any(a.built_by == b for a in own)]
    figure, axes = new_figure(1, 1, (max(7.0, 0.32 * len(layers) + 2), 4.8))
    score = {(a.layer.name, a.built_by): (a.sa if has_sa else a.agreement) for a in own}
    width = 0.8 / max(1, len(builders))
    for number, built_by in enumerate(builders):
        places = np.arange(len(layers)) + (number - (len(builders) - 1) / 2) * width
        heights = [score[(layer.name, built_by)] for layer in layers]
        colours = [KIND_COLOURS[layer.kind] for layer in layers]
        axes.bar(
            places, np.nan_to_num(heights), width, color=colours, alpha=1 if number == 0 else 0.45, edgecolor="white"
        )
        for place, height in zip(places, heights, strict=True):
            if math.isnan(height):
                axes.annotate("n/d", (place, 0.01), ha="center", fontsize=6, rotation=90)
    _finish_chart(figure, axes, layers, builders)
    words = (
        "Segmentation Ability\n(Dice with the labels)" if has_sa else "agreement\n(Dice with the prediction; no labels)"
    )
    axes.set_ylabel(words)
    axes.set_title(f"ProtoSeg: {structure}", fontsize=11)
    return figure_png(figure)


def change_chart(rows: Sequence[dict[str, Any]], layers: Sequence[Layer], scans: int) -> bytes:
    """Mean Segmentation Ability by layer before and after adaptation, prototypes built by the labels; PNG."""
    figure, axes = new_figure(1, 1, (max(7.0, 0.32 * len(layers) + 2), 4.8))
    before, after = ([row[when]["truth"] if row[when] else None for row in rows] for when in ("before", "after"))
    adapted = any(a is not None for a in after)
    places = np.arange(len(layers))
    colours = [KIND_COLOURS[layer.kind] for layer in layers]
    axes.bar(places, [h or 0 for h in (after if adapted else before)], 0.8, color=colours, edgecolor="white")
    known = [(p, b) for p, b in zip(places, before, strict=True) if b is not None]
    if adapted and known:
        axes.plot(*zip(*known, strict=True), "k_", markersize=10, markeredgewidth=2, label="before adaptation")
    _finish_chart(figure, axes, layers, [])
    axes.set_ylabel("mean Segmentation Ability")
    axes.set_title(f"ProtoSeg over {scans} labelled scans, prototypes built by the labels", fontsize=11)
    return figure_png(figure)


def _finish_chart(figure: Any, axes: Any, layers: Sequence[Layer], builders: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    axes.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90, fontsize=6)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    kinds = [kind for kind in KIND_COLOURS if any(layer.kind == kind for layer in layers)]
    words = {kind: f"{kind} (trivial: the logits)" if kind == "head" else kind for kind in kinds}
    entries = [Patch(color=KIND_COLOURS[kind], label=words[kind]) for kind in kinds]
    if len(builders) > 1:
        entries += [
            Patch(color="#555555", alpha=1 if n == 0 else 0.45, label=BUILDER_WORDS[b]) for n, b in enumerate(builders)
        ]
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=[*entries, *handles], loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def _outline(axis: Any, mask: np.ndarray, style: str) -> None:
    if mask.any() and not mask.all():
        axis.contour(mask.astype(np.float32), levels=[0.5], colors=[OUTLINE], linewidths=1.4, linestyles=style)
