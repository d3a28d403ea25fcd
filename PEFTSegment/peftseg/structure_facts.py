"""Size and shape of structures, measured the same way on labels and on predictions. Torch-free.

`pretrain` keeps the facts of its training scans in the model's record, so that it can be said later, without labels,
whether a prediction has the size and shape that the structure has in people. Everything is in millimetres and measured on
the scan's own grid: neither the order of its axes nor its voxel size changes what is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from peftseg.flags import PIECE_SHARE, TOUCHING
from peftseg.models import Structure
from peftseg.study import LoadedScan

MEASURES = ("volume_ml", "elongation", "components", "scattered", "border_contact")
DIGITS = 5  # significant ones, in the record


def measure(mask: np.ndarray, spacing: Sequence[float]) -> dict[str, float | None]:
    """Size and shape of one structure.

    Parameters
    ----------
    mask : array (I, J, K)
        bool.
    spacing : sequence of float
        Voxel size along i, j, k in mm.

    Returns
    -------
    dict
        "volume_ml" : volume in millilitres;
        "elongation" : longest over shortest principal axis, 1 for a ball or a cube;
        "components" : pieces (voxels that share a corner are one) of at least 5 % of the volume;
        "scattered" : share of the volume in smaller pieces, 0 to 1;
        "border_contact" : share of the voxels that lie in the first or last slice of an axis of the scan, 0 to 1.
        Of an empty mask all are 0, and "elongation" is None.
    """
    mask = np.asarray(mask, dtype=bool)
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return dict.fromkeys(MEASURES, 0.0) | {"elongation": None}
    part = mask[found[0]]
    voxels = int(np.count_nonzero(part))
    pieces, scattered = _pieces(part, voxels)
    return {
        "volume_ml": voxels * float(np.prod(spacing)) / 1000,
        "elongation": _elongation(part, spacing),
        "components": float(pieces),
        "scattered": scattered,
        "border_contact": _border_voxels(mask) / voxels,
    }


def _pieces(mask: np.ndarray, voxels: int) -> tuple[int, float]:
    labels, count = ndimage.label(mask, TOUCHING)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    large = sizes >= PIECE_SHARE * voxels
    return int(np.count_nonzero(large)), float(sizes[~large].sum() / voxels)


def _elongation(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Root of the ratio of the largest to the smallest second moment.

    A voxel counts with its own extent, so that a structure of one slice has a thickness.
    """
    sizes = np.asarray(spacing, dtype=np.float64)
    points = np.argwhere(mask) * sizes
    centred = points - points.mean(axis=0)
    moments = centred.T @ centred / len(points) + np.diag(sizes**2 / 12)
    values = np.linalg.eigvalsh(moments)
    return float(np.sqrt(values[-1] / values[0]))


def _border_voxels(mask: np.ndarray) -> int:
    """Voxels in an outer slice of the scan; an axis of one slice has no inside and does not count."""
    inside = tuple(slice(1, -1) if size > 1 else slice(None) for size in mask.shape)
    return int(np.count_nonzero(mask)) - int(np.count_nonzero(mask[inside]))


def structure_facts(loaded: Iterable[LoadedScan], structures: Sequence[Structure]) -> dict[str, dict[str, Any]]:
    """What structures look like in labelled scans; for `ModelEntry.record["structure_facts"]`.

    Parameters
    ----------
    loaded : iterable of LoadedScan
        Scans that label only a part of a structure (some slices) are left out for it.

    Returns
    -------
    dict
        Structure name -> "scans" (number of scans that show it), "absent" (that do not have it), and for each of
        `MEASURES` a dict of "mean", "sd" (with n - 1; 0 for one scan), "min" and "max", as long as a scan shows it.
    """
    measured: dict[str, list[dict[str, float | None]]] = {s.name: [] for s in structures}
    for scan in loaded:
        for name, found in measured.items():
            if scan.known[name] is True:
                found.append(measure(scan.masks[name], scan.volume.grid.spacing))
    return {name: summarise(found) for name, found in measured.items()}


def summarise(measured: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """The facts of one structure from what `measure` gave for each scan; see `structure_facts`."""
    present = [m for m in measured if m["volume_ml"]]
    facts: dict[str, Any] = {"scans": len(present), "absent": len(measured) - len(present)}
    for name in MEASURES if present else ():
        values = np.array([m[name] for m in present], dtype=np.float64)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        numbers = {"mean": values.mean(), "sd": spread, "min": values.min(), "max": values.max()}
        facts[name] = {key: float(f"{value:.{DIGITS}g}") for key, value in numbers.items()}
    return facts
