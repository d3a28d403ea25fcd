"""How far a result can be trusted, without labels: one number of doubt for each structure and study, and plain words.

What is measured, by `mode`:

- "none": size, shape, pieces, specks and borders against the scans that the network learnt from. No network runs.
- "fast": also how certain the network is, which costs nothing when `Checker.watch` saw the segmentation, and the Dice between
  the result and that of the scan turned, shifted and darkened a little: one more segmentation.
- "full": also that of the scan turned the other way and brightened: two more in all. Where the adapter keeps earlier states
  (`snapshots`, off by default), also the pairwise Dice of its three states: four more in all.

No change swaps left and right. `quality_score` makes one number of it all; where only one of the two agreements is known, it
has the weight of both. What an adapter lacks (earlier states, facts of its scans) is said in `StudyQuality.left_out`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.compare_rows import mean_of
from peftseg.config import QUALITIES
from peftseg.device import within_memory
from peftseg.errors import unknown_name
from peftseg.events import Reporter, plain
from peftseg.flags import Box, boxes_of, check_result, unusual_borders
from peftseg.preprocess import prepare
from peftseg.quality_runs import Run, Seen, dices, snapshot_networks
from peftseg.quality_score import PARTS, Parts, doubt, doubt_of_missing, study_doubt, words, z_score
from peftseg.segmenter import Segmenter
from peftseg.site_transforms import Transform
from peftseg.structure_facts import measure
from peftseg.volume import Volume

NONE, FAST, FULL = QUALITIES
CHANGES = (
    Transform(degrees=6.0, shift=(1.0, 1.0, 0.0), power=0.8),
    Transform(degrees=-6.0, shift=(-1.0, 0.0, 1.0), power=1.25),
)
N_CHANGES = {NONE: 0, FAST: 1, FULL: len(CHANGES)}
NO_FACTS = "Nothing is kept of the labelled scans of {}: size and shape are not compared."
NO_SNAPSHOTS = (
    "No earlier states are kept with it, so results are judged without them: by how sure the network is, by the scan "
    "segmented twice more with small changes, and by size, shape, pieces and borders (`peftseg adapt --snapshots` keeps them)."
)


@dataclass(frozen=True)
class Quality:
    """One structure in one study.

    Attributes
    ----------
    doubt : float
        0 (nothing stands out) to 1.
    parts : dict
        What was measured, by `quality_score.PARTS`; None where it could not be.
    flags : list of str
        What is worth a look, in plain words; those of `flags.check_result` first.
    """

    doubt: float
    parts: Parts
    flags: list[str]


@dataclass(frozen=True)
class StudyQuality:
    """All structures of one study.

    Attributes
    ----------
    doubt : float
        Of the study, see `quality_score.study_doubt`.
    left_out : list of str
        What could not be measured, and why.
    """

    mode: str
    doubt: float
    structures: dict[str, Quality]
    left_out: list[str]

    @property
    def checks(self) -> dict[str, list[str]]:
        """Structure name -> flags, as `flags.check_result` gives them."""
        return {name: found.flags for name, found in self.structures.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, with rounded numbers."""
        structures = {
            name: {
                "doubt": round(found.doubt, 4),
                "parts": {key: None if value is None else round(value, 4) for key, value in found.parts.items()},
                "flags": found.flags,
            }
            for name, found in self.structures.items()
        }
        record = {"mode": self.mode, "doubt": round(self.doubt, 4), "structures": structures, "left_out": self.left_out}
        return plain(record)


@dataclass(frozen=True, eq=False)
class Checker:
    """What `score` needs, once for all studies.

    Attributes
    ----------
    snapshots : tuple of nn.Module
        The network of each earlier state of the adapter.
    """

    segmenter: Segmenter
    mode: str = FAST
    snapshots: tuple[nn.Module, ...] = field(default=())

    def watch(self) -> Seen | None:
        """An observer for `segment_volume`, one a study, so that `score` need not segment it again; None for "none"."""
        segmenter = self.segmenter
        return None if self.mode == NONE else Seen(segmenter.activation, len(segmenter.structures))

    @property
    def lacks(self) -> list[str]:
        """What cannot be measured, in sentences: the same for every study."""
        facts, structures = self.segmenter.structure_facts, self.segmenter.structures
        unknown = [s.name for s in structures if "volume_ml" not in facts.get(s.name, {})]
        said = [NO_FACTS.format(_listed(unknown))] if unknown else []
        return [*said, NO_SNAPSHOTS] if self.mode == FULL and not self.snapshots else said


def make_checker(segmenter: Segmenter, mode: str = FAST, adapter: str | Path | None = None) -> Checker:
    """Get ready to score results of a segmenter.

    Parameters
    ----------
    mode : str
        One of `config.QUALITIES`, see the module's text.
    adapter : str or Path, optional
        File or library reference that the segmenter is of; its snapshots are loaded for "full".

    Raises
    ------
    BadInput
        Unknown mode, or the adapter cannot be loaded.
    """
    if mode not in QUALITIES:
        raise unknown_name("quality", mode, QUALITIES)
    snapshots = snapshot_networks(adapter, segmenter.network) if mode == FULL and adapter is not None else ()
    return Checker(segmenter, mode, snapshots)


def score(
    checker: Checker,
    volume: Volume,
    result: np.ndarray,
    device: torch.device,
    *,
    seen: Seen | None = None,
    overlap: float | None = None,
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> StudyQuality:
    """Look at a study's result.

    Parameters
    ----------
    volume : Volume
        The study.
    result : array
        What `segment_volume` made of it: (I, J, K) label map, or (C, I, J, K) masks.
    seen : Seen, optional
        What saw that; without it the study is segmented once more.
    overlap, precision
        As for the result.

    Raises
    ------
    JobCancelled, OutOfMemory
        The user cancelled; the memory of the device and of the computer do not suffice.
    """
    segmenter = checker.segmenter

    def agree(place: torch.device) -> dict[str, list[float | None]]:
        return _agreements(checker, volume, place, seen, overlap, precision, reporter)

    what = f"The second look at a scan of {volume.grid.describe()}"
    agreements = within_memory(agree, device, what, reporter or Reporter.silent())
    facts = segmenter.structure_facts
    flags = check_result(result, segmenter.structures, volume.grid, segmenter.usual_borders, facts)
    boxes = boxes_of(result, segmenter.structures)
    found: dict[str, Quality] = {}
    for row, structure in enumerate(segmenter.structures):
        name, box, known = structure.name, boxes[structure.name], facts.get(structure.name, {})
        parts: Parts = dict.fromkeys(PARTS) | {key: values[row] for key, values in agreements.items()}
        if box is None:
            missing = doubt_of_missing(known, "adapter" in segmenter.provenance)
            found[name] = Quality(missing, parts, flags[name])
            continue
        mask = result[(row, *box)] if result.ndim == 4 else result[box] == structure.value
        measured = measure(mask, volume.grid.spacing)
        parts |= _shape_parts(measured, known)
        parts["borders"] = float(bool(unusual_borders(box, volume.grid, segmenter.usual_borders.get(name, ()))))
        found[name] = Quality(doubt(parts, known), parts, [*flags[name], *words(parts, measured, known)])
    study = study_doubt([found[name].doubt for name in _counted(checker, boxes)])
    return StudyQuality(checker.mode, study, found, checker.lacks)


def _counted(checker: Checker, boxes: dict[str, Box | None]) -> list[str]:
    """Structures that count for the study: of the many of a model as it is, those that are found; all, if none is."""
    facts = checker.segmenter.structure_facts
    expected = "adapter" in checker.segmenter.provenance
    return [name for name, box in boxes.items() if box is not None or expected or name in facts] or list(boxes)


def _shape_parts(measured: dict[str, float | None], facts: dict[str, Any]) -> Parts:
    """Size and shape beside the facts; what they do not hold is left out: a pair under one label is no fault."""
    found: Parts = {
        "volume_z": z_score(measured["volume_ml"], facts, "volume_ml"),
        "shape_z": z_score(measured["elongation"], facts, "elongation"),
    }
    if "components" in facts:
        pieces, usual = measured["components"], facts["components"]
        found["extra_pieces"] = max(0.0, pieces - usual["max"], usual["min"] - pieces)
    if "scattered" in facts:
        found["specks"] = max(0.0, measured["scattered"] - facts["scattered"]["max"])
    return found


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _agreements(
    checker: Checker,
    volume: Volume,
    device: torch.device,
    seen: Seen | None,
    overlap: float | None,
    precision: str,
    reporter: Reporter | None,
) -> dict[str, list[float | None]]:
    """Agreements and confidence by structure row; nothing where no network may run."""
    if checker.mode == NONE:
        return {}
    run = Run(checker.segmenter, device, overlap, precision, reporter)
    prepared = seen.prepared if seen is not None else None
    if prepared is None:
        prepared = prepare(volume, checker.segmenter.preprocessing)
        seen = run.predict(checker.segmenter.network, prepared, prepared.image)
    count = len(checker.segmenter.structures)
    changed = [run.agreement(prepared, seen, change) for change in CHANGES[: N_CHANGES[checker.mode]]]
    found = {
        "transform_agreement": [_known(mean_of(values)) for values in zip(*changed, strict=True)],
        "confidence": [seen.confidence(row) for row in range(count)],
        "snapshot_agreement": [None] * count,
    }
    if checker.snapshots:
        states = [seen, *(run.predict(network, prepared, prepared.image) for network in checker.snapshots)]
        pairs = [dices(one.labels, other.labels, count) for one, other in itertools.combinations(states, 2)]
        found["snapshot_agreement"] = [_known(mean_of(values)) for values in zip(*pairs, strict=True)]
    return found


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
