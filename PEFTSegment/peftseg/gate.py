"""The gate: whether an adaptation without labels may be kept. Torch-free.

Adaptation without labels can make results worse, and there is no truth to see it by. `judge` compares what was measured
with the base and with the adapted network (`site_evidence`) and refuses what looks like harm in any of its checks. How
often it errs is measured by `Testing/bench/site_gate.py` (Docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftseg.compare_rows import mean_of
from peftseg.events import plain
from peftseg.gate_measures import Facts, Measure, measures, overall
from peftseg.verdicts import ACCEPTED, REFUSED, WARNING

if TYPE_CHECKING:
    from peftseg.site_evidence import Evidence

NOTHING = "Nothing is found in the scans with the adapted model: there is nothing to judge it by."
NO_BASIS = (
    "The model as it is found nothing in the scans, so nothing tells whether the adapted one is better: label a few of "
    "them, or choose another model."
)
DIFFERENT = (
    "The model as it is and the adapted one find different things in the scans, so nothing tells whether the adapted one is "
    "better: label a few of them, or choose another model."
)
COMPARED = ("transform_drop", "early_drop", "confidence_drop", "edge_drop", "departure")  # with the base's own results
FEWEST_SCANS = 3  # fewer say little about a site


@dataclass(frozen=True)
class Limit:
    """Values of a measure that are too large.

    Attributes
    ----------
    warn, refuse : float
        A measure above it is worth a warning, or refuses the adapter; infinite where it never does.
    """

    warn: float
    refuse: float


# As `Testing/bench/site_gate.py table` prints them, set on the families contrast, noise, field of view and made-up abdomen;
# how often they err on others is in Docs/results.md.
LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "not_found": Limit(warn=0.0, refuse=0.188),
        "volume_worse": Limit(warn=0.0, refuse=0.0485),
        "transform_drop": Limit(warn=0.00202, refuse=0.118),
        "early_drop": Limit(warn=0.00466, refuse=0.222),
        "confidence_drop": Limit(warn=0.00374, refuse=0.0118),
        "edge_drop": Limit(warn=0.00345, refuse=0.146),
        "departure": Limit(warn=0.0444, refuse=0.178),
        "elongation_worse": Limit(warn=0.0, refuse=1.05),
        "pieces_worse": Limit(warn=0.00849, refuse=1.66),
    }
)


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes
    ----------
    status : str
        "accepted", "warning" (accepted with a warning) or "refused" (keep the base model).
    reasons : tuple of str
        One plain sentence each, with the numbers, in the order of the checks.
    facts : dict
        Plain JSON: "scans", "checks" (name -> value and limits), "before" and "after" (means by structure).
    """

    status: str
    reasons: tuple[str, ...]
    facts: dict[str, Any]


def judge(
    before: Evidence,
    after: Evidence,
    structure_facts: Facts | None,
    limits: Mapping[str, Limit] = LIMITS,
) -> Verdict:
    """Accept or refuse an adaptation.

    Parameters
    ----------
    before, after : Evidence
        Of the same scans, in the same order, with the base and with the adapted network.
    structure_facts : mapping or None
        `record["structure_facts"]` of the base model; without them sizes and shapes are not checked, which is a warning.
    limits : mapping of str to Limit
        By name of the measure; a measure without one is not judged.
    """
    found = measures(before, after, structure_facts)
    judged = [name for name in limits if not math.isnan(found[name].value)]
    status = status_of({name: measure.value for name, measure in found.items()}, limits)
    facts = _facts(before, after, found, limits)
    if all(math.isnan(found[name].value) for name in COMPARED):
        return Verdict(REFUSED, (_why_not_comparable(before, after),), facts)
    if status == REFUSED:
        words = [found[name].words for name in judged if found[name].value > limits[name].refuse]
        return Verdict(REFUSED, tuple(words) or (NOTHING,), facts)
    reasons = [found[name].words for name in judged if found[name].value > limits[name].warn]
    reasons += _doubts(after, structure_facts)
    if reasons:
        return Verdict(WARNING, tuple(reasons), facts)
    return Verdict(ACCEPTED, (_praise(before, after),), facts)


def status_of(values: Mapping[str, float], limits: Mapping[str, Limit]) -> str:
    """The status by values of the measures alone: "refused" when one is above its limit, or when none is known."""
    known = [(values[name], limit) for name, limit in limits.items() if not math.isnan(values.get(name, math.nan))]
    if not known or any(value > limit.refuse for value, limit in known):
        return REFUSED
    return WARNING if any(value > limit.warn for value, limit in known) else ACCEPTED


def _why_not_comparable(before: Evidence, after: Evidence) -> str:
    if not _finds_something(after):
        return NOTHING
    return DIFFERENT if _finds_something(before) else NO_BASIS


def _finds_something(evidence: Evidence) -> bool:
    return any(volume > 0 for values in evidence.volumes.values() for volume in values)


def _doubts(after: Evidence, structure_facts: Facts | None) -> list[str]:
    """What could not be looked at, or rests on little."""
    words = []
    scans = len(after.results)
    if scans < FEWEST_SCANS:
        words.append(
            f"The check rests on {scans} scan{'s' if scans > 1 else ''} only; at least {FEWEST_SCANS} are advised."
        )
    unknown = [s for s in after.structures if "volume_ml" not in (structure_facts or {}).get(s, {})]
    if unknown:
        words.append(
            f"Sizes and shapes are not checked for {', '.join(unknown)}: the base model's record does not say what is usual."
        )
    return words


def _praise(before: Evidence, after: Evidence) -> str:
    stable = [overall(e.transform_agreement) for e in (before, after)]
    return (
        f"Nothing speaks against it: volumes and shapes are as before or more usual, and when the scans are changed a "
        f"little, the results agree with themselves by {stable[1]:.2f} (with the base model {stable[0]:.2f}; 1 is complete "
        "agreement)."
    )


def _facts(
    before: Evidence, after: Evidence, found: Mapping[str, Measure], limits: Mapping[str, Limit]
) -> dict[str, Any]:
    checks = {
        name: {"value": m.value}
        | ({"warn": limits[name].warn, "refuse": limits[name].refuse} if name in limits else {})
        for name, m in found.items()
    }
    return plain(
        {"scans": len(after.results), "checks": checks, "before": summary(before), "after": summary(after)},
    )


def summary(evidence: Evidence) -> dict[str, Any]:
    """Means over the scans, by kind and structure; for the adapter's record."""
    kinds = {
        "early_agreement": evidence.early_agreement,
        "transform_agreement": evidence.transform_agreement,
        "volume_ml": evidence.volumes,
        **evidence.shapes,
        "confident_share": evidence.confident_share,
        "edge_contrast": evidence.edge_contrast,
    }
    return {
        kind: {name: float(f"{mean_of(values):.4g}") for name, values in by_structure.items()}
        for kind, by_structure in kinds.items()
    }
