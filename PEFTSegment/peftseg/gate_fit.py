"""Limits of the gate from trials of which the truth is known, and how often limits err. Torch-free.

Used by the bench (`Testing/bench/site_gate.py`); nobody's own scans are ever needed for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftseg.errors import BadInput
from peftseg.gate import ACCEPTED, REFUSED, WARNING, Limit, status_of

HARM = 0.01  # change of the mean Dice from which an adaptation harms or helps
ACCEPTED_HARM, REFUSED_HELP = 0.05, 0.20  # the aims: shares of harmful adapters accepted and of helpful ones refused
REFUSED_NEUTRAL = 1.0  # refusing all that changes little is as bad as missing one of these aims by its own size
ALONE = 1.5  # harmful trials that a limit must catch more than: what one trial alone asks for is chance
SAFE_SHARE, SAFE_MARGIN = 1.0, 0.1  # beyond helpful trials: the upper half of their range, and at least
GUARD_MARGIN = 1.0  # of guards: times e, or a whole piece more; what lies beyond is no matter of degree
USUAL = 0.9  # of the trials without harm get no warning from a check
Z95 = 1.959964


@dataclass(frozen=True)
class Trial:
    """One adaptation of known outcome.

    Attributes
    ----------
    values : mapping of str to float
        Value of each measure, see `gate_measures.measures`; NaN where it could not be told.
    gain : float
        Mean Dice with the adapter minus that of the base.
    """

    values: Mapping[str, float]
    gain: float

    @property
    def harmful(self) -> bool:
        """Whether the mean Dice falls by more than one point."""
        return self.gain < -HARM

    @property
    def helpful(self) -> bool:
        """Whether the mean Dice rises by more than one point."""
        return self.gain > HARM


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval (Wilson's); NaN thrice for none of none."""

    count: int
    total: int
    share: float
    low: float
    high: float


def rate(count: int, total: int) -> Rate:
    """`count` of `total`, with Wilson's interval, which holds for shares near 0 as well."""
    if total == 0:
        return Rate(0, 0, math.nan, math.nan, math.nan)
    share = count / total
    spread = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    middle, width = share + Z95**2 / (2 * total), 1 + Z95**2 / total
    return Rate(count, total, share, max(0.0, (middle - spread) / width), min(1.0, (middle + spread) / width))


def error_rates(trials: Iterable[Trial], limits: Mapping[str, Limit]) -> dict[str, Rate]:
    """How often limits err.

    Returns
    -------
    dict
        "harmful accepted" (with or without a warning), "harmful accepted without a warning", "helpful refused",
        "neutral refused".
    """
    outcomes = [(trial, status_of(trial.values, limits)) for trial in trials]
    harmful = [s for t, s in outcomes if t.harmful]
    helpful = [s for t, s in outcomes if t.helpful]
    neutral = [s for t, s in outcomes if not (t.harmful or t.helpful)]
    return {
        "harmful accepted": rate(harmful.count(ACCEPTED) + harmful.count(WARNING), len(harmful)),
        "harmful accepted without a warning": rate(harmful.count(ACCEPTED), len(harmful)),
        "helpful refused": rate(helpful.count(REFUSED), len(helpful)),
        "neutral refused": rate(neutral.count(REFUSED), len(neutral)),
    }


def fit_limits(
    trials: Sequence[Trial], checks: Sequence[str], always: Sequence[str] = (), guards: Sequence[str] = ()
) -> dict[str, Limit]:
    """Set the limits of the checks.

    The refused helpful and the accepted harmful trials are counted, both weighed by the aims: one harmful trial of a
    hundred counts as four helpful ones of a hundred. A refused trial that changes little counts a fifth of a helpful one:
    a gate that refuses all of them would tell nothing. One limit after the other is moved to where that count is smallest,
    until nothing improves; a limit that catches a single trial alone is not set. Warnings begin where the highest tenth of
    the trials without harm lies.

    Parameters
    ----------
    trials : sequence of Trial
        At least one harmful and one helpful.
    checks : sequence of str
        Measures that may get a limit, earlier ones preferred where two bring the same.
    always : sequence of str
        Those of them that get a limit far beyond all helpful trials when they are not needed: the next site's harm may show
        there.
    guards : sequence of str
        Other measures, which take no part in the search and get such a limit that is farther still.

    Returns
    -------
    dict
        Check -> Limit, in the order of `checks` and `guards`; those that bring nothing have none.

    Raises
    ------
    BadInput
        There is no harmful or no helpful trial.
    """
    harmful, helpful = [t for t in trials if t.harmful], [t for t in trials if t.helpful]
    if not (harmful and helpful):
        raise BadInput(
            f"There are {len(harmful)} harmful and {len(helpful)} helpful trials; limits need both.", "Run more trials."
        )
    neutral = [t for t in trials if not (t.harmful or t.helpful)]
    tables = _Tables(*(_table(of, checks) for of in (harmful, helpful, neutral)))
    none = np.full(len(checks), np.inf)
    spare = np.array(
        [column[np.isfinite(column)].max(initial=-np.inf) for column in tables.helpful.T]
    )  # refuses no helpful trial
    found = [_descend(tables, start) for start in (none, np.where(np.isfinite(spare), spare, np.inf))]
    refuse = min(found, key=lambda limits: _cost(tables, limits))
    refuse = np.where(np.isinf(refuse) & np.isin(checks, always), _safe(tables.helpful), refuse)
    checks, refuse = [*checks, *guards], [*refuse, *_safe(_table(helpful, guards), GUARD_MARGIN)]
    usual = _table([t for t in trials if not t.harmful], checks)
    return {
        check: Limit(warn=float(min(limit, np.nanquantile(usual[:, c], USUAL))), refuse=float(limit))
        for c, (check, limit) in enumerate(zip(checks, refuse, strict=True))
        if np.isfinite(limit)
    }


@dataclass(frozen=True, eq=False)
class _Tables:
    """(trials, checks) of the harmful, the helpful and the neutral trials."""

    harmful: np.ndarray
    helpful: np.ndarray
    neutral: np.ndarray


def _table(trials: Sequence[Trial], checks: Sequence[str]) -> np.ndarray:
    """(trials, checks); what is not known is never beyond a limit."""
    rows = [[t.values.get(check, math.nan) for check in checks] for t in trials]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(checks))
    return np.nan_to_num(values, nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def _descend(tables: _Tables, limits: np.ndarray) -> np.ndarray:
    """Move the limit that brings most, again and again."""
    cost = _cost(tables, limits)
    while True:
        moves = [_best_move(tables, limits, check) for check in range(len(limits))]
        best = min(moves, key=lambda move: move[0])  # the earliest check of equals
        if best[0] >= cost - 1e-9:
            return limits
        cost, limits = best


def _safe(good: np.ndarray, least: float = SAFE_MARGIN) -> np.ndarray:
    """Limits beyond all helpful trials by a margin of at least `least`; infinite for checks that none of them knows.

    Values below 0 are improvements, and make no margin larger.
    """
    limits = np.full(good.shape[1], np.inf)
    for check, column in enumerate(good.T):
        known = column[np.isfinite(column)]
        if len(known):
            half = known.max() - max(np.median(known), 0.0)
            limits[check] = known.max() + max(SAFE_SHARE * half, least)
    return limits


def _best_move(tables: _Tables, limits: np.ndarray, check: int) -> tuple[float, np.ndarray]:
    """Cost and limits with one limit moved, or taken away; of places that are as good, the middle one."""
    known = np.unique(np.concatenate([table[:, check] for table in (tables.harmful, tables.helpful, tables.neutral)]))
    known = known[np.isfinite(known)]
    places = []
    for limit in (*(known[:-1] + known[1:]) / 2, np.inf):
        places.append(limits.copy())
        places[-1][check] = limit
    costs = [_cost(tables, place) for place in places]
    equal = [n for n, cost in enumerate(costs) if cost <= min(costs) + 1e-9]
    return min(costs), places[equal[len(equal) // 2]]


def _caught(table: np.ndarray, limits: np.ndarray) -> int:
    return int((table > limits).any(axis=1).sum())


def _cost(tables: _Tables, limits: np.ndarray) -> float:
    harmful, helpful, neutral = tables.harmful, tables.helpful, tables.neutral
    missed = len(harmful) - _caught(harmful, limits) + ALONE * np.isfinite(limits).sum()
    cost = missed / len(harmful) / ACCEPTED_HARM + _caught(helpful, limits) / len(helpful) / REFUSED_HELP
    return float(cost + _caught(neutral, limits) / max(1, len(neutral)) / REFUSED_NEUTRAL)
