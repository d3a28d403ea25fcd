"""What the gate looks at: numbers that grow with the suspicion that an adaptation does harm, and their words. Torch-free.

Every measure is one-sided. Better agreement, more decided voxels or larger structures are no proof of benefit: a network
that trains on its own results raises them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftseg.compare_rows import mean_of
from peftseg.metrics import dice

if TYPE_CHECKING:
    from peftseg.site_evidence import Evidence

SMALLEST_SPREAD = 0.1  # of a mean: few training scans understate how people differ
USUAL = 2.0  # standard deviations around the mean are as in people
FARTHEST = math.log(10)  # ten times too large or too small: beyond it numbers say no more
NOT_FOUND = 0.02  # of the usual volume: less is a few stray voxels
TRUST = 3.0  # a volume twice too large leaves an eighth of the trust in a result
SCATTER_WEIGHT = 10.0  # 10 % of a volume in specks counts as much as one piece too many

Facts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measure:
    """One number of the gate.

    Attributes
    ----------
    value : float
        The larger, the worse; NaN where it cannot be told.
    words : str
        One sentence with the numbers, for the user.
    """

    value: float
    words: str


UNKNOWN = Measure(math.nan, "")


@dataclass(frozen=True)
class Case:
    """What all measures are taken from."""

    before: Evidence
    after: Evidence
    facts: Facts

    @property
    def known(self) -> list[str]:
        """Structures of which the base's record knows the volume."""
        return [s for s in self.after.structures if self.facts.get(s, {}).get("volume_ml", {}).get("mean", 0) > 0]


def measures(before: Evidence, after: Evidence, structure_facts: Facts | None) -> dict[str, Measure]:
    """All measures by name of the check.

    Parameters
    ----------
    before, after : Evidence
        Of the same scans with the base and the adapted network.
    structure_facts : mapping or None
        Of the base model's record; without them the measures that need them are NaN.
    """
    case = Case(before, after, structure_facts or {})
    return {name: measure(case) for name, measure in MEASURES.items()}


def _not_found(case: Case) -> Measure:
    """Share of the scans in which a structure is not found that every training scan shows, or that the base finds."""
    values = {name: _missing(case, name) for name in case.after.structures}
    worst = _largest({name: after for name, (_, after) in values.items()})
    if worst is None:
        return UNKNOWN
    scans = len(case.after.results)
    before, after = (round(share * scans) for share in values[worst])
    usual = ", though every scan that the base model learnt from shows it" if worst in case.known else ""
    return Measure(
        values[worst][1],
        f"The {worst} is not found in {after} of {scans} scans{usual}; the base model does not find it in {before}.",
    )


def _missing(case: Case, name: str) -> tuple[float, float]:
    """Share of the scans without a structure, before and after; NaN where it need not be there."""
    usual = case.facts[name]["volume_ml"]["mean"] if name in case.known else _median(case.before.volumes[name])
    if usual == 0 or case.facts.get(name, {}).get("absent", 0):
        return math.nan, math.nan
    before, after = (np.mean(np.array(e.volumes[name]) <= NOT_FOUND * usual) for e in (case.before, case.after))
    return float(before), float(after)


def _volume(case: Case) -> Measure:
    """How far the volumes are from the training scans', over all structures."""
    farthest = {name: _excess(case, name, case.after) for name in case.known}
    return _volume_words(case, mean_of(list(farthest.values())), farthest)


def _volume_worse(case: Case) -> Measure:
    """How much farther they are than before, over all structures."""
    farther = _farther(case, "volume_ml")
    return _volume_words(case, mean_of(list(farther.values())), farther)


def _volume_worst(case: Case) -> Measure:
    """How much farther the volume of one structure is than before."""
    farther = _farther(case, "volume_ml")
    return _volume_words(case, max(farther.values(), default=math.nan), farther)


def _volume_words(case: Case, value: float, by_structure: Mapping[str, float]) -> Measure:
    """A measure with the numbers of the structure that stands out."""
    worst = _largest(by_structure)
    if worst is None:
        return UNKNOWN
    usual = case.facts[worst]["volume_ml"]
    before, after = (_median(e.volumes[worst]) for e in (case.before, case.after))
    return Measure(
        value,
        f"The {worst} has a median of {_ml(after)} in these scans (with the base model {_ml(before)}); in the scans that "
        f"the base model learnt from it has {_ml(usual['min'])} to {_ml(usual['max'])}.",
    )


def _elongation_worse(case: Case) -> Measure:
    """How much more unusual the shapes are than before, over all structures."""
    values = _farther(case, "elongation")
    worst = _largest(values)
    if worst is None:
        return UNKNOWN
    usual = case.facts[worst]["elongation"]
    before, after = (_median(e.shapes["elongation"][worst]) for e in (case.before, case.after))
    return Measure(
        mean_of(list(values.values())),
        f"The shape of the {worst} becomes unusual: it is {after:.1f} times as long as thick (with the base model "
        f"{before:.1f} times); in the scans that the base model learnt from it is {usual['min']:.1f} to "
        f"{usual['max']:.1f} times.",
    )


def _pieces_worse(case: Case) -> Measure:
    names = [s for s in case.known if "components" in case.facts[s]]
    values = {
        s: mean_of(_excess_pieces(case, s, case.after)) - mean_of(_excess_pieces(case, s, case.before)) for s in names
    }
    worst = _largest(values)
    if worst is None:
        return UNKNOWN
    usual = case.facts[worst]["components"]
    pieces = [mean_of(e.shapes["components"][worst]) for e in (case.before, case.after)]
    specks = [100 * mean_of(e.shapes["scattered"][worst]) for e in (case.before, case.after)]
    return Measure(
        values[worst],
        f"The {worst} falls apart or loses a part: on average {pieces[1]:.1f} pieces and {specks[1]:.0f} % of its volume "
        f"in specks (with the base model {pieces[0]:.1f} pieces and {specks[0]:.0f} %); in the scans that the base model "
        f"learnt from it has {usual['min']:.0f} to {usual['max']:.0f} pieces.",
    )


def _transform_low(case: Case) -> Measure:
    after, before = (overall(e.transform_agreement) for e in (case.after, case.before))
    return Measure(
        1 - after,
        f"When the scans are turned, moved, brightened or darkened a little, the results agree with those of the "
        f"unchanged scans by {after:.2f} only (1 is complete agreement; with the base model {before:.2f}).",
    )


def _transform_drop(case: Case) -> Measure:
    before, after = _paired(case.before.transform_agreement, case.after.transform_agreement)
    return Measure(
        before - after,
        f"When the scans are turned, moved, brightened or darkened a little, the results change more than with the base "
        f"model: agreement {after:.3f} instead of {before:.3f} (1 is complete agreement).",
    )


def _early_low(case: Case) -> Measure:
    after, before = (overall(e.early_agreement) for e in (case.after, case.before))
    return Measure(
        1 - after,
        f"What the first half of the network sees agrees with the final result by {after:.2f} only (1 is complete "
        f"agreement; with the base model {before:.2f}).",
    )


def _early_drop(case: Case) -> Measure:
    before, after = _paired(case.before.early_agreement, case.after.early_agreement)
    return Measure(
        before - after,
        f"What the first half of the network sees agrees less with the final result than with the base model: {after:.3f} "
        f"instead of {before:.3f} (1 is complete agreement).",
    )


def _confidence_drop(case: Case) -> Measure:
    before, after = _paired(case.before.confident_share, case.after.confident_share)
    return Measure(
        before - after,
        f"The model is less decided than before: {100 * after:.0f} % of the segmented voxels are beyond doubt for it "
        f"instead of {100 * before:.0f} %.",
    )


def _edge_drop(case: Case) -> Measure:
    before, after = _paired(case.before.edge_contrast, case.after.edge_contrast)
    if not before > 0:  # also NaN
        return UNKNOWN
    return Measure(
        1 - after / before,
        f"The borders of the results follow the edges in the scans less than before: grey values change {after:.2f} times "
        f"as much there as around, instead of {before:.2f} times with the base model.",
    )


def _departure(case: Case) -> Measure:
    """How far results move where the base model's could be trusted: stable and of a usual size."""
    found = {name: _departures(case, name) for name in case.after.structures}
    value = mean_of([v for values in found.values() for v, _ in values])
    agreement = mean_of([a for values in found.values() for _, a in values])
    stable = overall(case.before.transform_agreement)
    return Measure(
        value,
        f"The results agree with the base model's by {agreement:.2f} only (1 is complete agreement), though these were "
        f"stable ({stable:.2f} when the scans are changed a little) and of a usual size.",
    )


def _departures(case: Case, name: str) -> list[tuple[float, float]]:
    """For each scan: disagreement weighted by trust in the base's result, and the agreement itself."""
    excess = _excesses(case, name, case.before) if name in case.known else [0.0] * len(case.before.results)
    found = []
    for scan, stable in enumerate(case.before.transform_agreement[name]):
        agreement = dice(case.before.mask(scan, name), case.after.mask(scan, name))
        if not (math.isnan(stable) or math.isnan(agreement)):
            trust = stable * math.exp(-TRUST * excess[scan])
            found.append((trust * (1 - agreement), agreement))
    return found


MEASURES = {
    "not_found": _not_found,
    "volume": _volume,
    "volume_worse": _volume_worse,
    "volume_worst": _volume_worst,
    "elongation_worse": _elongation_worse,
    "pieces_worse": _pieces_worse,
    "transform_low": _transform_low,
    "transform_drop": _transform_drop,
    "early_low": _early_low,
    "early_drop": _early_drop,
    "confidence_drop": _confidence_drop,
    "edge_drop": _edge_drop,
    "departure": _departure,
}


def _excesses(case: Case, name: str, evidence: Evidence, measure: str = "volume_ml") -> list[float]:
    """For each scan: logarithm of how many times too large or too small, beyond what is usual in the training scans."""
    usual = case.facts[name][measure]
    spread = max(usual["sd"] / usual["mean"], SMALLEST_SPREAD)
    values = evidence.volumes[name] if measure == "volume_ml" else evidence.shapes[measure][name]
    found = [abs(math.log(v / usual["mean"])) - USUAL * spread if v > 0 else FARTHEST for v in values]
    return [min(FARTHEST, max(0.0, excess)) for excess in found]


def _excess(case: Case, name: str, evidence: Evidence) -> float:
    return _median(_excesses(case, name, evidence))


def _farther(case: Case, measure: str) -> dict[str, float]:
    """By structure: excess after minus excess before, of the middle scan."""
    return {
        name: _median(
            [
                a - b
                for b, a in zip(
                    _excesses(case, name, case.before, measure), _excesses(case, name, case.after, measure), strict=True
                )
            ]
        )
        for name in case.known
        if measure in case.facts[name]
    }


def _excess_pieces(case: Case, name: str, evidence: Evidence) -> list[float]:
    """For each scan: pieces too many or too few for any training scan, and tenths of the volume in specks too many."""
    pieces, specks = case.facts[name]["components"], case.facts[name]["scattered"]["max"]
    both = zip(evidence.shapes["components"][name], evidence.shapes["scattered"][name], strict=True)
    return [max(0.0, c - pieces["max"], pieces["min"] - c) + SCATTER_WEIGHT * max(0.0, s - specks) for c, s in both]


def _largest(values: Mapping[str, float]) -> str | None:
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    return max(known, key=known.__getitem__) if known else None


def overall(by_structure: Mapping[str, Sequence[float]]) -> float:
    """Mean over scans and structures of what is known; a structure that is not found has no say."""
    return mean_of([v for values in by_structure.values() for v in values])


def _paired(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Means over the scans and structures that are known in both: what vanishes must not make the rest look better."""
    both = [
        (b, a)
        for name, values in before.items()
        for b, a in zip(values, after[name], strict=True)
        if not (math.isnan(b) or math.isnan(a))
    ]
    return (mean_of([b for b, _ in both]), mean_of([a for _, a in both]))


def _median(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.median(known)) if known else math.nan


def _ml(volume: float) -> str:
    return f"{volume:.3g} ml"
