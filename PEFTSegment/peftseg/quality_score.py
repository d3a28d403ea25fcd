"""From what was measured of a result to one number of doubt and plain words. Torch-free.

    doubt = 1 - exp(-(w1 b1 + w2 b2 + ...))

The b are how bad each part is, 0 where nothing stands out and on the scale of -log(Dice): an agreement a counts -log(a), a
volume twice too large log(2) less what is usual. So the doubt is about how much Dice is lost by what stands out. The
weights w were fitted on left-out support scans, see `WEIGHTS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AGREEMENTS = ("transform_agreement", "snapshot_agreement")
PARTS = (*AGREEMENTS, "confidence", "volume_z", "shape_z", "extra_pieces", "specks", "borders")
# Least squares of -log(Dice), none negative, on support scans that the adapters had not seen (Testing/bench/quality.py fit).
WEIGHTS = {
    "transform_agreement": 0.39,
    "snapshot_agreement": 0.04,
    "confidence": 0.53,
    "volume_z": 0.52,
    "shape_z": 0.13,
    "extra_pieces": 0.22,
    "specks": 3.59,
    "borders": 0.45,
}
LOWEST = 0.05  # an agreement under it says no more
FARTHEST = math.log(10)  # likewise a volume ten times too large
USUAL = 2.0  # spreads around the mean are as in people
STANDS_OUT = 3.0  # spreads from which on a word is said
SMALLEST_SPREAD, FEW_SCANS = (
    0.1,
    0.3,
)  # of a mean; the second is divided by the number of scans: few say little
LOW_AGREEMENT, LOW_CONFIDENCE, MANY_SPECKS = 0.8, 0.75, 0.05

Facts = Mapping[str, Any]
Parts = dict[str, "float | None"]


@dataclass(frozen=True)
class Usual:
    """What a measure usually is.

    Attributes
    ----------
    mean, spread : float
        The spread is relative to the mean, and of new scans: the fewer scans it is from, the wider.
    low, high : float
        In the scans themselves.
    """

    mean: float
    spread: float
    low: float
    high: float


def usual(facts: Facts, name: str) -> Usual | None:
    """What a measure of `structure_facts` is in one structure; None where that is not known."""
    found, scans = facts.get(name), facts.get("scans", 0)
    if not found or not found["mean"] > 0 or scans < 1:
        return None
    relative = found["sd"] / found["mean"] * math.sqrt(1 + 1 / scans)
    return Usual(found["mean"], max(relative, SMALLEST_SPREAD + FEW_SCANS / scans), found["min"], found["max"])


def z_score(value: float | None, facts: Facts, name: str) -> float | None:
    """Logarithm of how many times too large (below 0: too small), in spreads; None where nothing can be said."""
    known = usual(facts, name)
    if known is None or not value:
        return None
    return math.log(value / known.mean) / known.spread


def badness(parts: Parts, facts: Facts) -> dict[str, float]:
    """How bad each part is, by the name of its weight; a part that is not known is left out.

    Parameters
    ----------
    parts : dict
        By `PARTS`: agreements and confidence 0 to 1, z scores, pieces too many or too few, share in specks beyond the
        usual, 1 for an unusual border.
    facts : mapping
        Of this structure, from `structure_facts`; {} where there are none.
    """
    found: dict[str, float] = {}
    for name in (*AGREEMENTS, "confidence"):
        if parts.get(name) is not None:
            found[name] = -math.log(max(parts[name], LOWEST))
    for name, measure in (("volume_z", "volume_ml"), ("shape_z", "elongation")):
        known = usual(facts, measure)
        if parts.get(name) is not None and known is not None:
            found[name] = min(FARTHEST, max(0.0, abs(parts[name]) - USUAL) * known.spread)
    for name in ("extra_pieces", "specks", "borders"):
        if parts.get(name) is not None:
            found[name] = min(1.0, parts[name])
    return found


def doubt(parts: Parts, facts: Facts) -> float:
    """Doubt in one structure that was found, 0 to 1; see the module's text. Parameters as of `badness`."""
    return doubt_of(badness(parts, facts))


def doubt_of(bad: Mapping[str, float], weights: Mapping[str, float] = WEIGHTS) -> float:
    """The number of doubt from what `badness` gives."""
    return 1 - math.exp(-sum(weights[name] * value for name, value in filled(bad).items()))


def filled(bad: Mapping[str, float]) -> dict[str, float]:
    """Where only one of the two agreements is known, it counts for both."""
    agreements = [bad[name] for name in AGREEMENTS if name in bad]
    other = {name: sum(agreements) / len(agreements) for name in AGREEMENTS} if agreements else {}
    return {**other, **bad}


def doubt_of_missing(facts: Facts, expected: bool) -> float:
    """Doubt in a structure that is not found: the share of the labelled scans that show it.

    Without facts 1 where somebody labelled it (`expected`), and 0.5 for one of the many of a model as it is.
    """
    scans = facts.get("scans", 0) + facts.get("absent", 0)
    return facts["scans"] / scans if scans else 1.0 if expected else 0.5


def study_doubt(doubts: Sequence[float]) -> float:
    """Doubt in a study: the mean of the worst quarter of its structures, so of the worst one up to four; 0 without any."""
    worst = sorted(doubts, reverse=True)[: math.ceil(len(doubts) / 4)]
    return sum(worst) / len(worst) if worst else 0.0


def words(parts: Parts, measured: Mapping[str, float | None], facts: Facts) -> list[str]:
    """What stands out, one sentence each; pieces and borders are `flags.check_result`'s.

    Parameters
    ----------
    measured : mapping
        Of `structure_facts.measure`.
    """
    said = [text.format(parts[name]) for name, text in _LOW.items() if _under(parts.get(name), LOW_AGREEMENT)]
    if _under(parts.get("confidence"), LOW_CONFIDENCE):
        said.append(f"the model is unsure of many of its voxels (mean certainty {parts['confidence']:.2f} of 1)")
    for name, measure, text in _UNUSUAL:
        known = usual(facts, measure)
        if known is not None and parts.get(name) is not None and abs(parts[name]) > STANDS_OUT:
            said.append(text.format(measured[measure], known.low, known.high))
    if (parts.get("specks") or 0.0) > MANY_SPECKS:
        said.append(f"{100 * measured['scattered']:.0f} % of it are scattered small specks")
    return said


_LOW = {
    "transform_agreement": "the result changes when the scan is turned, shifted and darkened slightly (agreement {:.2f} of 1)",
    "snapshot_agreement": "slightly different versions of the adapter do not agree on it (agreement {:.2f} of 1)",
}
_UNUSUAL = (
    (
        "volume_z",
        "volume_ml",
        "its volume of {:.3g} ml is unusual: it has {:.3g} to {:.3g} ml in the scans that it was learnt from",
    ),
    (
        "shape_z",
        "elongation",
        "its shape is unusual: {:.1f} times as long as thick, {:.1f} to {:.1f} times in the scans that it was learnt from",
    ),
)


def _under(value: float | None, limit: float) -> bool:
    return value is not None and value < limit
