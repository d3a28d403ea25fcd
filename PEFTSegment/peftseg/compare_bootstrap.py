"""The bootstrap over draws and patients behind intervals and p-values of a comparison. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

REPEATS = 10_000  # resamples
ALPHA = 0.05  # a difference with an adjusted p-value below it is no tie


@lru_cache(maxsize=16)
def _resamples(
    shapes: tuple[tuple[int, int], ...], repeats: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """How often each draw (R, D) and scan (R, N) is in each of R resamples with replacement, one pair a table."""
    rng = np.random.default_rng(seed)
    # As float: products of whole numbers are slow.
    return tuple(
        tuple(rng.multinomial(size, [1 / size] * size, size=repeats).astype(float) for size in shape)
        for shape in shapes
    )


def _draws_apart(table: np.ndarray) -> np.ndarray:
    """The (draws, scans) table with deviations from each scan's mean over its D draws times sqrt(D / (D - 1))."""
    known = ~np.isnan(table)
    count = known.sum(0)
    mean = np.where(known, table, 0.0).sum(0) / np.maximum(count, 1)
    factor = np.sqrt(count / np.maximum(count - 1, 1))
    return mean + (table - mean) * factor


def resampled_means(tables: Sequence[np.ndarray], repeats: int, seed: int) -> np.ndarray:
    """The mean of the tables' means in each resample of draws and scans; NaN is left out, resamples without any too."""
    counts = _resamples(tuple(table.shape for table in tables), repeats, seed)
    means = np.full((len(tables), repeats), np.nan)
    for mean, table, (draws, scans) in zip(means, map(_draws_apart, tables), counts, strict=True):
        known = ~np.isnan(table)
        weight = ((draws @ known.astype(float)) * scans).sum(1)
        total = ((draws @ np.where(known, table, 0.0)) * scans).sum(1)
        np.divide(total, weight, out=mean, where=weight > 0)
    known = ~np.isnan(means)
    weight = known.sum(0)
    return np.where(known, means, 0.0).sum(0)[weight > 0] / weight[weight > 0]


def bounds(means: np.ndarray) -> tuple[float, float]:
    """2.5th and 97.5th percentile of means over resamples; NaN twice where there are none."""
    if not means.size:
        return float("nan"), float("nan")
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def p_value(means: np.ndarray) -> float:
    """Twice the share of resamples on the other side of 0, at most 1; never 0, for resamples are finitely many."""
    if not means.size:
        return float("nan")
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return min(1.0, 2 * (int(beyond) + 1) / (means.size + 1))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values adjusted by Holm's step-down method for the number of comparisons; NaN stays NaN and does not count."""
    known = sorted((p, number, key) for number, (key, p) in enumerate(p_values.items()) if not np.isnan(p))
    adjusted, largest = dict(p_values), 0.0
    for rank, (p, _, key) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[key] = largest
    return adjusted


def verdict(mean: float, p: float) -> str:
    """ "better", "worse" or "tie" by the p-value, which is to be adjusted where there are several; "unknown" for NaN."""
    if np.isnan(p):
        return "unknown"
    return "tie" if p >= ALPHA else "better" if mean > 0 else "worse"


def repeats_for(comparisons: int) -> int:
    """How many resamples let the smallest p-value be well below `ALPHA` after Holm's method for so many comparisons."""
    return max(REPEATS, 100 * comparisons)
