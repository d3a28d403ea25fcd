"""The state of a search of the method `auto`: scores of its trials, what they say in words, and its file. Torch-free."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from peftseg.auto_choices import Choice, listed
from peftseg.paths import write_text


@dataclass
class Search:
    """The state of a search.

    Attributes
    ----------
    choices : int
        How many of the list's methods are tried; under 2 nothing is.
    epochs, minutes : int or None, float or None
        Of every trial; one of the two.
    limit, spent : float
        Effort allowed and used: seconds, or scan-epochs with `epochs`.
    scores : dict
        Choice's label -> left-out scan (from 0 on) -> mean Dice of its structures.
    failed : dict
        Choice's label -> why it could not be trained.
    why : list of str
        What was decided, and by which numbers.
    unit : str
        What is left out, in its words: "scan", or "patient" where it is known which scans are of one.
    """

    choices: int = 0
    epochs: int | None = None
    minutes: float | None = None
    limit: float = 0.0
    spent: float = 0.0
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)
    unit: str = "scan"

    def affords(self, trials: int) -> bool:
        """Whether so many more trials fit, at the mean cost so far."""
        done = sum(len(found) for found in self.scores.values())
        return self.spent + (self.spent / done if done else 0.0) * trials <= self.limit

    def length(self) -> str:
        """How long a trial is, in words."""
        return f"{self.epochs} epochs" if self.minutes is None else f"{self.minutes:.1f} min"


def mean_dice(search: Search, choice: Choice, folds: list[int]) -> float:
    """Of a choice on those of the left-out scans that it was tried on; minus infinity for none."""
    found = search.scores.get(choice.label, {})
    values = [found[fold] for fold in folds if fold in found]
    return statistics.fmean(values) if values else -math.inf


def difference(search: Search, choice: Choice, other: Choice, folds: list[int]) -> tuple[float, float]:
    """Mean difference on the same scans and its standard error; infinite for one scan."""
    first, second = search.scores[choice.label], search.scores[other.label]
    values = [first[fold] - second[fold] for fold in folds]
    noise = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return statistics.fmean(values), noise


def tried_words(choices: list[Choice], search: Search, folds: int) -> str:
    """A sentence about the methods that were tried."""
    names = listed([choice.label for choice in choices])
    return f"Tried {names}, {search.length()} each, on {folds} {search.unit}(s) that were left out one at a time."


def not_tried_words(choices: list[Choice], search: Search) -> list[str]:
    """Sentences about the methods that fit the model but were not tried; none where nothing was."""
    if search.choices < 2:
        return []
    planned, beyond = choices[: search.choices], choices[search.choices :]
    unreached = [c for c in planned if c.label not in search.scores and c.label not in search.failed]
    reasons = ((beyond, "the time did not suffice"), (unreached, "the search was stopped before"))
    return [f"Not tried: {listed([c.label for c in left])}; {reason}." for left, reason in reasons if left]


def score_words(search: Search, choice: Choice, folds: list[int]) -> str:
    """A choice's score in words."""
    values = [search.scores[choice.label][fold] for fold in folds]
    return f"mean Dice {statistics.fmean(values):.3f} on {len(values)} left-out {search.unit}(s)"


def write_search(path: Path | None, search: Search) -> None:
    """Keep it for the next start of this job, where there is a place for it."""
    if path is not None:
        record = {**vars(search), "scores": {k: list(v.items()) for k, v in search.scores.items()}, "why": []}
        write_text(path, json.dumps(record))


def read_search(path: Path | None) -> Search | None:
    """The search of an earlier start of this job; its sentences are made anew."""
    if path is None or not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    scores = {label: {int(fold): value for fold, value in found} for label, found in record["scores"].items()}
    return Search(**{**record, "scores": scores})
