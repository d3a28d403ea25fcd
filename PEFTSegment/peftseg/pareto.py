"""Accuracy against size: the true Pareto front, and the score of the thesis on PEFT of CNN foundation models (eq. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(dices: Sequence[float], trained: Sequence[float]) -> list[bool]:
    """Which candidates no other one beats: as accurate and as small, and better in one of the two.

    Parameters
    ----------
    dices, trained : sequence of float
        Mean Dice (more is better) and trained values (less is better), one a candidate. A Dice of NaN is not on the
        front; equal candidates are on it together.
    """
    points = list(zip(dices, trained, strict=True))
    return [
        not np.isnan(d) and not any(d2 >= d and t2 <= t and (d2 > d or t2 < t) for d2, t2 in points) for d, t in points
    ]


def thesis_scores(dices: Sequence[float], trained: Sequence[float]) -> list[float]:
    """Score 0.5 D + 0.5 (1 - P) of eq. 4.1, with D and P scaled to 0..1 over these candidates (of one base network).

    Where all candidates are equal in one of the two, it counts as best for all. The scaling makes a score depend on the
    worst candidate, so that scores of different comparisons do not compare.
    """
    accuracy, size = np.asarray(dices, float), np.asarray(trained, float)
    return [float(s) for s in 0.5 * _scaled(accuracy, 1.0) + 0.5 * (1.0 - _scaled(size, 0.0))]


def thesis_front(dices: Sequence[float], trained: Sequence[float]) -> list[bool]:
    """What the thesis calls the Pareto frontier: by size upwards, those whose score exceeds all before.

    It is none: a candidate that nothing beats (full fine-tuning, most accurate) can be left out.
    """
    scores = thesis_scores(dices, trained)
    kept, best = [False] * len(scores), -np.inf
    for index in sorted(range(len(scores)), key=lambda i: (trained[i], -dices[i])):
        if scores[index] > best:
            kept[index], best = True, scores[index]
    return kept


def _scaled(values: np.ndarray, all_equal: float) -> np.ndarray:
    """Values scaled to 0..1; NaN stays NaN."""
    known = values[~np.isnan(values)]
    if not known.size or known.max() == known.min():
        return np.where(np.isnan(values), np.nan, all_equal)
    return (values - known.min()) / (known.max() - known.min())
