"""Scans that do not belong into one folder: of several sites, or of another kind than the model is made for. Torch-free.

**Several sites.** In each group of facts (see `site_statistics.py`) the scans are split in two where they are farthest apart
(average linkage), and the split counts when the two parts are several times farther apart than the scans within them
(`APART`), and when no scan leads over from one to the other (single linkage: the last gap is `GAP` times the one
before). A single scan has no scans within it, and patients differ; so it must be farther off (`LONE`). Of folders of 2 to
16 scans of one real scanner 3 of 1600 are called mixed (Testing/bench/site_statistics.py); weak shifts of contrast and
brightness go unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from peftseg.model_choice import made_for
from peftseg.models import ModelEntry
from peftseg.site_statistics import LAYERS, USUAL, ScanStatistics, layer_distance

APART, LONE = 3.5, 5.0
GAP = 2.0
FEW = 5  # fewer scans say little about their spread: at least the usual one is taken
LEAST_SPREAD = 0.5  # of the usual one


@dataclass(frozen=True)
class Split:
    """Scans in two parts: places of the smaller one, the group of facts, and how many times farther apart than within."""

    smaller: tuple[int, ...]
    group: str
    times: float


def mixed_sites(scans: Sequence[ScanStatistics]) -> list[str]:
    """Warnings, one at most, about scans that seem to come from more than one site; they are named by their number.

    Parameters
    ----------
    scans : sequence of ScanStatistics
        All of one base and one preprocessing, in the order in which the user knows them.
    """
    found = [split for group in _groups(scans) if (split := find_split(pairwise(scans, group), group)) is not None]
    if not found:
        return []
    clearest = max(found, key=lambda split: split.times)
    also = sorted({split.group for split in found} - {clearest.group})
    who, differ = numbered(clearest.smaller, len(scans)), "differs" if len(clearest.smaller) == 1 else "differ"
    facts = in_a_row([clearest.group, *also])
    return [
        f"{who} {differ} from the others in {facts}: {clearest.times:.0f} times as much as the scans on each side differ "
        "from each other. They seem to come from another scanner or protocol. An adapter is for one site: leave out those that "
        "do not belong to it, or make an adapter of each kind."
    ]


def modality_warnings(entry: ModelEntry, scans: Sequence[ScanStatistics]) -> list[str]:
    """Warnings about scans of another kind than the model is made for, by what their grey values look like.

    Grey values are no proof: scans that tell nothing are not warned about.
    """
    kinds = made_for(entry.modality)
    warnings, told = [], set()
    for kind in ("CT", "MR"):
        other = [n for n, scan in enumerate(scans) if scan.modality == kind and kinds and kind not in kinds]
        told |= set(other)
        if other:
            look = "looks" if len(other) == 1 else "look"
            warnings.append(
                f"{numbered(other, len(scans))} {look} like {kind} by the grey values, but the model '{entry.id}' is made "
                f"for {' and '.join(sorted(kinds))}. Without labels a model cannot learn another kind of scan: leave "
                "them out, or choose another model."
            )
    unlike = [n for n, scan in enumerate(scans) if not scan.fits and n not in told]
    if unlike:
        have = "has" if len(unlike) == 1 else "have"
        warnings.append(
            f"{numbered(unlike, len(scans))} {have} grey values that the model '{entry.id}' is not made for: its scaling of "
            "them leaves hardly any contrast, or is not that of such scans. Check that these are the right scans, with "
            "the scanner's own grey values."
        )
    return warnings


def numbered(places: Sequence[int], total: int) -> str:
    """Scans by number, from 1 on: "Scan 3 of 10", "Scans 3, 4 and 7 of 10"."""
    numbers = [str(place + 1) for place in sorted(places)]
    return f"{'Scan' if len(numbers) == 1 else 'Scans'} {in_a_row(numbers)} of {total}"


def in_a_row(words: Sequence[str]) -> str:
    """Words with commas and an "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _groups(scans: Sequence[ScanStatistics]) -> list[str]:
    if len(scans) < 2:
        return []
    return [*scans[0].features, *([LAYERS] if scans[0].layers else [])]


def pairwise(scans: Sequence[ScanStatistics], group: str) -> np.ndarray:
    """(scans, scans) differences between scans in one group of facts, in usual spreads."""
    if group != LAYERS:
        rows = np.array([scan.features[group] for scan in scans])
        return np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(axis=2)) / USUAL[group]
    count = len(scans)
    square = np.zeros((count, count))
    for a in range(count):
        for b in range(a):
            pairs = zip(scans[a].layers, scans[b].layers, strict=True)
            square[a, b] = square[b, a] = np.mean([layer_distance(one, other) ** 2 for one, other in pairs])
    return np.sqrt(square) / USUAL[group]


def find_split(distances: np.ndarray, group: str = "") -> Split | None:
    """The split of scans in two, or None where they are alike or lie spread out.

    Parameters
    ----------
    distances : (scans, scans) array
        Symmetric, in usual spreads.
    """
    count = len(distances)
    if count < 2 or not distances.any():
        return None
    condensed = squareform(distances, checks=False)
    side = cut_tree(linkage(condensed, "average"), 2).ravel().astype(bool)
    parts = sorted((np.flatnonzero(side), np.flatnonzero(~side)), key=len)
    inside = np.concatenate([distances[np.ix_(part, part)][np.triu_indices(len(part), 1)] for part in parts])
    least = 1.0 if count < FEW else LEAST_SPREAD
    within = max(_root_mean(inside), least)
    times = _root_mean(distances[np.ix_(*parts)]) / within
    steps = linkage(condensed, "single")[:, 2]
    gap = steps[-1] / max(steps[-2] if count > 2 else 0.0, least)
    clear = times >= (APART if len(parts[0]) > 1 else LONE) and gap >= GAP
    return Split(tuple(int(n) for n in parts[0]), group, float(times)) if clear else None


def _root_mean(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
