"""Several adapters on one study: one base in memory, one preprocessing where they agree, one merged result.

Structures of different names stand side by side. A structure that two adapters segment, and a voxel that two adapters
claim for different structures, are settled by the rule (`several_rules.RULES`). Rules that weigh probabilities compare
log-odds: they are interpolated from the model grid to the study's voxels as logits are in `infer`, so that of a single
adapter with one structure its own result comes back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.adapter_file import load_adapter
from peftseg.axis_map import axis_map
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.infer import owned_taps
from peftseg.library import find_adapter
from peftseg.models import ModelEntry, Preprocessing, Structure
from peftseg.networks import Anatomy
from peftseg.preprocess import Prepared, prepare
from peftseg.resample import interpolate, taps_back
from peftseg.segmenter import Segmenter, attach_to, base_for, find_base, segment_rows, segmenter_of
from peftseg.several_rules import BY_PROBABILITY, DEFAULT_RULE, RULES, Combined, check_rule, combine
from peftseg.volume import Volume
from peftseg.windows import Slab

__all__ = ["DEFAULT_RULE", "RULES", "Merged", "Several", "load_several", "segment_with"]

SURE = 12.0  # log-odds beyond which nothing is surer


@dataclass(frozen=True, eq=False)
class Several:
    """Adapters that run together.

    Attributes
    ----------
    members : tuple of Segmenter
        In the order in which they were named.
    combined : Combined
        The structures of the result, and who segments them.
    rule : str
        One of `several_rules.RULES`.
    provenance : dict
        Flat facts that every result carries: of all adapters together, and of each by its number from 1 on.
    """

    members: tuple[Segmenter, ...]
    combined: Combined
    rule: str
    provenance: dict[str, str]

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Of the merged result."""
        return self.combined.structures

    @property
    def activation(self) -> str:
        """ "softmax" where every adapter gives a voxel one structure at most, else "sigmoid"."""
        return "sigmoid" if any(m.activation == "sigmoid" for m in self.members) else "softmax"

    @property
    def usual_borders(self) -> dict[str, list[str]]:
        """Structure name -> borders of the scan that it touched in the support sets of its adapters."""
        found: dict[str, list[str]] = {}
        for member in self.members:
            for name, sides in member.usual_borders.items():
                found[name] = sorted({*found.get(name, []), *sides})
        return found

    @property
    def structure_facts(self) -> dict[str, dict[str, Any]]:
        """Size and shape by structure, of the support set of the first adapter that has it."""
        found: dict[str, dict[str, Any]] = {}
        for member in reversed(self.members):
            found |= member.structure_facts
        return found


@dataclass(frozen=True, eq=False)
class Merged:
    """One study segmented by several adapters.

    Attributes
    ----------
    result : array
        (I, J, K) label map with the values of `Several.structures`, or (C, I, J, K) bool, one mask a structure.
    notes : tuple of str
        What was settled by the rule, in sentences.
    """

    result: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Opinion:
    """What one adapter says: `result` as `infer.segment` gives it; log-odds (I, J, K) float16 of the structures that others
    segment too, and of the surest structure in each voxel; both empty where the rule does not ask."""

    result: np.ndarray
    shared: dict[str, np.ndarray]
    surest: np.ndarray | None


def load_several(refs: Sequence[str | Path], rule: str = DEFAULT_RULE) -> Several:
    """Load adapters to run together; a base that several of them share is read once.

    Parameters
    ----------
    refs : sequence of str or Path
        Files, or references in the library, of two or more adapters.
    rule : str
        One of `several_rules.RULES`.

    Raises
    ------
    BadInput
        As `segmenter.adapter_segmenter`; fewer than two adapters, one of them twice, or an unknown rule.
    """
    check_rule(rule)
    if len(refs) < 2:
        raise BadInput(f"{len(refs)} adapter was given; several are two or more.", "Name another adapter.")
    bases: dict[tuple[str, str], tuple[nn.Module, Anatomy, ModelEntry]] = {}
    members: list[Segmenter] = []
    for ref in refs:
        recipe, state, digest = load_adapter(find_adapter(ref))
        if digest in {member.provenance["adapter_hash"] for member in members}:
            raise BadInput(f"The adapter {recipe.name} (version {recipe.version}) is named twice.", "Name it once.")
        key = (recipe.base_id, recipe.base_fingerprint)
        if key not in bases:
            entry = find_base(recipe)
            bases[key] = (*base_for(recipe, entry), entry)
        plain, anatomy, entry = bases[key]
        network = attach_to(recipe, state, copy.deepcopy(plain), anatomy).merge()
        members.append(segmenter_of(recipe, network, digest, entry))
    combined = combine([member.structures for member in members])
    return Several(tuple(members), combined, rule, _provenance(members, combined, rule))


def segment_with(
    several: Several,
    volume: Volume,
    device: torch.device,
    *,
    overlap: float | None = None,
    precision: str = "auto",
    reporter: Reporter | None = None,
    layers: bool = False,
) -> Merged:
    """Segment a study with all adapters and merge what they find.

    Parameters
    ----------
    overlap : float or None
        Of neighbouring windows; None for each adapter's own.
    layers : bool
        Keep structures of different adapters that share voxels (for a layered .seg.nrrd); else each voxel gets one label,
        by the rule. Adapters with overlapping structures of their own always give layers.

    Raises
    ------
    PeftsegError
        As `segmenter.segment_volume`.
    """
    layered = layers or several.activation == "sigmoid"
    opinions: list[_Opinion | None] = [None] * len(several.members)
    for prepared, numbers in _prepared(several.members, volume):
        for number in numbers:
            opinions[number] = _ask(several, number, prepared, layered, device, overlap, precision, reporter)
    found = [opinion for opinion in opinions if opinion is not None]
    if layered:
        return Merged(_masks(several, found))
    if several.rule in BY_PROBABILITY:
        labels, disputed = _weighed(several, found)
    else:
        labels, disputed = _in_order(several, found)
    return Merged(labels, _notes(several, disputed, volume))


def _prepared(members: Sequence[Segmenter], volume: Volume) -> Iterator[tuple[Prepared, list[int]]]:
    """The study in each of the preprocessings that occur, one after the other, and who wants it so."""
    waiting: list[tuple[Preprocessing, list[int]]] = []
    for number, member in enumerate(members):
        same = next((numbers for recipe, numbers in waiting if recipe == member.preprocessing), None)
        if same is None:
            waiting.append((member.preprocessing, [number]))
        else:
            same.append(number)
    for recipe, numbers in waiting:
        yield prepare(volume, recipe), numbers


def _ask(
    several: Several,
    number: int,
    prepared: Prepared,
    layered: bool,
    device: torch.device,
    overlap: float | None,
    precision: str,
    reporter: Reporter | None,
) -> _Opinion:
    member = several.members[number]
    odds = None
    if several.rule in BY_PROBABILITY:
        shared = [s.name for s in member.structures if s.name in several.combined.shared]
        odds = _Odds(member, shared, not layered, prepared)
    try:
        result = segment_rows(
            member,
            prepared,
            device,
            overlap=overlap,
            precision=precision,
            reporter=reporter,
            observer=None if odds is None else odds.take,
        )
    finally:
        if device.type != "cpu":
            member.network.to("cpu")  # one adapter at a time on the device, however many there are
    return _Opinion(result, {}, None) if odds is None else _Opinion(result, odds.shared, odds.surest)


class _Odds:
    """Gathers log-odds on the study's grid, slab by slab, while a study is segmented."""

    def __init__(self, member: Segmenter, shared: Sequence[str], surest: bool, prepared: Prepared) -> None:
        names = [s.name for s in member.structures]
        self._first = int(member.activation == "softmax")
        self._rows = {name: names.index(name) + self._first for name in shared}
        shape = prepared.source.shape
        self._mapping = axis_map(prepared.grid, prepared.source)
        self._taps = taps_back(self._mapping, prepared.grid.shape, shape, prepared.nearest, prepared.reach)
        self.shared = {name: np.full(shape, -SURE, dtype=np.float16) for name in shared}
        self.surest = np.full(shape, -SURE, dtype=np.float16) if surest else None

    def take(self, prepared: Prepared, slab: Slab) -> None:
        """Keep what is asked for of a slab of logits."""
        mapping, taps = self._mapping, owned_taps(self._taps, slab, prepared.grid.shape)
        if not all(len(tap.low) for tap in taps):
            return
        where = tuple(slice(tap.first, tap.first + len(tap.low)) for tap in taps)
        odds = _log_odds(slab.logits, self._first)
        for name, row in self._rows.items():
            mapping.orient(self.shared[name])[where] = interpolate(odds[row - self._first], taps).half().cpu().numpy()
        if self.surest is not None:
            best = odds.amax(dim=0)
            mapping.orient(self.surest)[where] = interpolate(best, taps).half().cpu().numpy()


def _log_odds(logits: torch.Tensor, first: int) -> torch.Tensor:
    """Log-odds (C, P, Q, R) of each structure against everything else, from logits with or without background row."""
    if not first:
        return logits.clamp(-SURE, SURE)
    share = torch.log_softmax(logits, dim=0)[1:]
    return (share - torch.log1p(-share.exp().clamp(max=1 - 1e-6))).clamp_(-SURE, SURE)


def _values(several: Several, number: int, names: Sequence[str]) -> np.ndarray:
    """Row of an adapter's label map -> value in the result; 0 for background and what is not in `names`."""
    value_of = {s.name: s.value for s in several.structures}
    own = [value_of[s.name] if s.name in names else 0 for s in several.members[number].structures]
    return np.array([0, *own], dtype=np.min_scalar_type(max(value_of.values())))


def _in_order(several: Several, opinions: Sequence[_Opinion]) -> tuple[np.ndarray, int]:
    """Rules `first` and `union`: a voxel belongs to the adapter that is named first; and how many were disputed."""
    result: np.ndarray | None = None
    disputed = 0
    for number, opinion in enumerate(opinions):
        found = several.combined.sources.items()
        names = [name for name, numbers in found if several.rule == "union" or numbers[0] == number]
        labels = _values(several, number, names)[opinion.result]
        if result is None:
            result = labels
            continue
        disputed += int(np.count_nonzero((labels != 0) & (result != 0) & (labels != result)))
        np.copyto(result, labels, where=result == 0)
    assert result is not None  # there are two adapters or more
    return result, disputed


def _weighed(several: Several, opinions: Sequence[_Opinion]) -> tuple[np.ndarray, int]:
    """Rules by probability: a voxel belongs to the most probable of the structures that claim it."""
    shape = opinions[0].result.shape
    result = np.zeros(shape, dtype=np.min_scalar_type(max(s.value for s in several.structures)))
    best = np.full(shape, -np.inf, dtype=np.float32)
    claims = np.zeros(shape, dtype=np.uint8)
    for labels, odds in _claims(several, opinions):
        claims += labels != 0
        better = (labels != 0) & (odds > best)
        np.copyto(result, labels, where=better)
        np.copyto(best, odds, where=better)
    return result, int(np.count_nonzero(claims > 1))


def _claims(several: Several, opinions: Sequence[_Opinion]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and log-odds: of each adapter's own structures, then of each shared one."""
    shared = several.combined.shared
    for number, opinion in enumerate(opinions):
        names = [s.name for s in several.members[number].structures if s.name not in shared]
        yield _values(several, number, names)[opinion.result], opinion.surest.astype(np.float32)
    for structure in several.structures:
        if structure.name in shared:
            odds = _joint_odds(several, structure.name, opinions)
            yield (odds > 0) * np.min_scalar_type(structure.value).type(structure.value), odds


def _joint_odds(several: Several, name: str, opinions: Sequence[_Opinion]) -> np.ndarray:
    """Log-odds (I, J, K) float32 of a shared structure by the rule."""
    each = [opinions[n].shared[name].astype(np.float32) for n in several.combined.sources[name]]
    if several.rule == "most_confident":
        joint = each[0]
        for odds in each[1:]:
            np.copyto(joint, odds, where=np.abs(odds) > np.abs(joint))
        return joint
    mean = sum(1 / (1 + np.exp(-odds)) for odds in each) / len(each)
    return np.log(mean) - np.log1p(-mean)


def _masks(several: Several, opinions: Sequence[_Opinion]) -> np.ndarray:
    """Masks (C, I, J, K) bool of all structures; structures of different adapters may share voxels."""
    shape = opinions[0].result.shape[-3:]
    result = np.zeros((len(several.structures), *shape), dtype=bool)
    for row, structure in enumerate(several.structures):
        numbers = several.combined.sources[structure.name]
        if len(numbers) > 1 and several.rule in BY_PROBABILITY:
            result[row] = _joint_odds(several, structure.name, opinions) > 0
            continue
        for number in numbers if several.rule == "union" else numbers[:1]:
            result[row] |= _mask(several.members[number], opinions[number], structure.name)
    return result


def _mask(member: Segmenter, opinion: _Opinion, name: str) -> np.ndarray:
    row = [s.name for s in member.structures].index(name)
    return opinion.result[row] if member.activation == "sigmoid" else opinion.result == row + 1


def _notes(several: Several, disputed: int, volume: Volume) -> tuple[str, ...]:
    if not disputed:
        return ()
    volume_ml = disputed * float(np.prod(volume.grid.spacing)) / 1000
    kept = "the more probable one" if several.rule in BY_PROBABILITY else "that of the adapter that is named first"
    return (
        f"{volume_ml:.3g} ml are one structure to one adapter and another to the other; {kept} was kept. "
        "A layered result (nrrd) keeps both.",
    )


def _provenance(members: Sequence[Segmenter], combined: Combined, rule: str) -> dict[str, str]:
    """All adapters together under the names that results of one adapter have, then each under its number."""
    each = [member.provenance for member in members]
    joined = {key: "; ".join(facts[key] for facts in each) for key in ("adapter", "adapter_version", "adapter_hash")}
    for key in ("base", "base_fingerprint"):
        joined[key] = "; ".join(dict.fromkeys(facts[key] for facts in each))
    numbered = {
        key.replace("adapter", f"adapter_{n}", 1): value
        for n, facts in enumerate(each, start=1)
        for key, value in facts.items()
        if key.startswith("adapter")
    }
    who = "; ".join(f"{name}: {', '.join(str(n + 1) for n in found)}" for name, found in combined.sources.items())
    return {**joined, **numbered, "merge_rule": rule, "structures_of_adapters": who}
