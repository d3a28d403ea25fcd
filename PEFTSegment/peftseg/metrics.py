"""How well a segmentation matches the truth: Dice, surface Dice and 95 % Hausdorff distance, with honest summaries.

Conventions, everywhere: a structure that is in neither mask scores NaN and is left out of means; one that is in only
one of them scores Dice 0, surface Dice 0 and HD95 infinity. Spacing follows the axis order of the arrays. Surface Dice
is the published one, by surface area in mm2; MONAI's default `SurfaceDiceMetric` counts boundary voxels instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.errors import BadInput, unknown_name
from peftseg.label_pairs import check_names, pair_files, read_pairs
from peftseg.models import Structure
from peftseg.surface import area_within, robust_maximum, surface_distances

DICE_VARIANTS = ("standard", "fseft")
METRICS = ("dice", "surface_dice", "hd95_mm")
RESAMPLES = 2000
Row = dict[str, Any]


def dice(prediction: np.ndarray, truth: np.ndarray, variant: str = "standard") -> float:
    """Dice coefficient of two masks.

    Parameters
    ----------
    prediction, truth : np.ndarray
        bool masks of one shape.
    variant : str
        "standard": 2|A n B| / (|A| + |B|), NaN when both are empty. "fseft": 2|A n B| / (|A| + |B| + 1), as the FSEFT
        code computes it, for comparison with its published numbers only.
    """
    if variant not in DICE_VARIANTS:
        raise unknown_name("Dice variant", variant, DICE_VARIANTS)
    prediction, truth = _checked(prediction, truth)
    both = np.count_nonzero(prediction & truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    if variant == "fseft":
        return 2.0 * both / (total + 1)
    return 2.0 * both / total if total else math.nan


def surface_dice(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float = 1.0
) -> float:
    """Share of both surfaces' area that lies within a tolerance of the other surface.

    (area of truth surfels within the tolerance + area of prediction surfels within it) / (both areas), after Nikolov et
    al. 2018, doi:10.48550/arXiv.1809.04430. Surfels sit at the corners between 2x2x2 voxels and have the area of their
    marching-cubes triangles; the outside of the array counts as background.

    Parameters
    ----------
    prediction, truth : np.ndarray
        (I, J, K) bool.
    spacing : sequence of float
        Voxel size in mm along the arrays' axes.
    tolerance_mm : float
        A distance of exactly the tolerance counts as within.
    """
    _check_tolerance(tolerance_mm)
    prediction, truth = _checked(prediction, truth)
    trivial = _trivial(prediction, truth, one_empty=0.0)
    return trivial if trivial is not None else area_within(surface_distances(prediction, truth, spacing), tolerance_mm)


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directions' 95th percentiles.

    A direction's percentile is the smallest distance that at least 95 % of that surface's area does not exceed;
    weighting by area makes it independent of how finely a surface is sampled. Parameters as in `surface_dice`.
    """
    prediction, truth = _checked(prediction, truth)
    trivial = _trivial(prediction, truth, one_empty=math.inf)
    return trivial if trivial is not None else robust_maximum(surface_distances(prediction, truth, spacing), 0.95)


def evaluate_case(
    prediction: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    tolerance_mm: float = 1.0,
) -> list[Row]:
    """All measures of one case.

    Parameters
    ----------
    prediction, truth : mapping of str to np.ndarray
        Structure name to (I, J, K) bool mask; both have the same names.
    spacing : sequence of float
        Voxel size in mm along the arrays' axes.
    tolerance_mm : float
        Of the surface Dice.

    Returns
    -------
    list of dict
        One row a structure: structure, dice, surface_dice, hd95_mm, volume_ml_prediction, volume_ml_truth.
    """
    if set(prediction) != set(truth):
        raise BadInput(
            f"The prediction has the structures {sorted(prediction)}, the truth {sorted(truth)}.",
            "Give a mask of every structure on both sides; an empty one where it is not there.",
        )
    _check_tolerance(tolerance_mm)
    return [
        {"structure": name, **_measures(*_checked(prediction[name], truth[name]), spacing, tolerance_mm)}
        for name in truth
    ]


def evaluate_folders(
    prediction: str | Path,
    truth: str | Path,
    structures: Sequence[Structure] | None = None,
    tolerance_mm: float = 1.0,
) -> list[Row]:
    """All measures of two folders of label files, paired by file name.

    Names are compared without suffix; a prediction called like the result of `peftseg apply` (`scan_seg.nii.gz`) also
    pairs with `scan.nii.gz`. One file against one file works too.

    Parameters
    ----------
    prediction, truth : str or Path
        Folders, or two files.
    structures : sequence of Structure or None
        What to compare; None takes every structure: by name where a file has names (.seg.nrrd, or the .json beside
        it), otherwise by label value.
    tolerance_mm : float
        Of the surface Dice.

    Returns
    -------
    list of dict
        Rows of `evaluate_case` with "case" in front. A structure that is in some cases only has a row of NaN in those
        where neither side has it.

    Raises
    ------
    BadInput
        A file has no partner, the grids of a pair differ, or the names on both sides do not meet.
    """
    _check_tolerance(tolerance_mm)
    scored: dict[str, list[Row]] = {}
    names = []
    for pair in read_pairs(pair_files(Path(prediction), Path(truth)), structures):
        scored[pair.case] = evaluate_case(pair.prediction, pair.truth, pair.spacing, tolerance_mm)
        names.append((pair.prediction_names, pair.truth_names))
    check_names(names, structures)
    found = list(dict.fromkeys(row["structure"] for rows in scored.values() for row in rows))
    return [{"case": case, **row} for case, rows in scored.items() for row in _completed(rows, found)]


def summarise(rows: Iterable[Row], seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, median and a 95 % interval of every measure, per structure and over all of them.

    The interval is the percentile bootstrap of the mean over cases (2000 resamples). "all structures" first averages
    each case's structures, because structures of one case are not independent.

    Returns
    -------
    dict
        structure -> measure -> {"mean", "median", "low", "high", "cases", "missed"}. NaN values are left out; "cases"
        is the number that counted, "missed" how many of those are infinite (HD95 of a structure that one side lacks;
        the mean is then infinite too, the median says more). With one case the interval is that case.
    """
    rows = list(rows)
    table = {name: [r for r in rows if r["structure"] == name] for name in dict.fromkeys(r["structure"] for r in rows)}
    summary = {
        name: {metric: _statistics([r[metric] for r in mine], seed) for metric in METRICS}
        for name, mine in table.items()
    }
    if len(table) > 1:
        summary["all structures"] = {metric: _statistics(_case_means(rows, metric), seed) for metric in METRICS}
    return summary


def _checked(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise BadInput(
            f"The prediction has {prediction.shape} voxels, the truth {truth.shape}.", "Compare masks on one grid."
        )
    if prediction.dtype != bool or truth.dtype != bool:
        raise BadInput(
            f"Masks must be bool, got {prediction.dtype} and {truth.dtype}.", "Compare a label map with a value first."
        )
    return prediction, truth


def _check_tolerance(tolerance_mm: float) -> None:
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise BadInput(f"The tolerance is {tolerance_mm} mm; expected 0 or more.", "1 mm is the usual choice.")


def _trivial(prediction: np.ndarray, truth: np.ndarray, one_empty: float) -> float | None:
    """The score where a mask is empty, None where neither is."""
    filled = bool(prediction.any()) + bool(truth.any())
    return (math.nan, one_empty, None)[filled]


def _measures(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> Row:
    millilitres = math.prod(spacing) / 1000
    surface, hausdorff = _trivial(prediction, truth, 0.0), _trivial(prediction, truth, math.inf)
    if surface is None:
        distances = surface_distances(prediction, truth, spacing)
        surface, hausdorff = area_within(distances, tolerance_mm), robust_maximum(distances, 0.95)
    return {
        "dice": dice(prediction, truth),
        "surface_dice": surface,
        "hd95_mm": hausdorff,
        "volume_ml_prediction": np.count_nonzero(prediction) * millilitres,
        "volume_ml_truth": np.count_nonzero(truth) * millilitres,
    }


def _completed(rows: list[Row], names: list[str]) -> list[Row]:
    """A case's rows in the order of `names`, with rows of NaN for what neither side has."""
    mine = {row["structure"]: row for row in rows}
    absent = dict.fromkeys(METRICS, math.nan) | {"volume_ml_prediction": 0.0, "volume_ml_truth": 0.0}
    return [mine.get(name, {"structure": name, **absent}) for name in names]


def _case_means(rows: list[Row], metric: str) -> list[float]:
    cases: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(row[metric]):
            cases.setdefault(row["case"], []).append(row[metric])
    return [sum(values) / len(values) for values in cases.values()]


def _statistics(values: list[float], seed: int) -> dict[str, float]:
    data = np.array([v for v in values if not math.isnan(v)])
    if not len(data):
        return dict.fromkeys(("mean", "median", "low", "high"), math.nan) | {"cases": 0, "missed": 0}
    draws = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    means = np.sort(data[draws].mean(axis=1))  # sorted by hand: interpolated quantiles of infinity are NaN
    return {
        "mean": float(data.mean()),
        "median": _median(data),
        "low": float(means[round(0.025 * (RESAMPLES - 1))]),
        "high": float(means[round(0.975 * (RESAMPLES - 1))]),
        "cases": len(data),
        "missed": int(np.isinf(data).sum()),
    }


def _median(data: np.ndarray) -> float:
    ordered = np.sort(data)
    lower, upper = ordered[(len(data) - 1) // 2], ordered[len(data) // 2]
    return float(upper if lower == upper else (lower + upper) / 2)
