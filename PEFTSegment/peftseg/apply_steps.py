"""The steps of one study, for `apply` and for batches: load what segments, segment, look at the result, write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from peftseg.config import ApplyJob
from peftseg.device import choose_device, within_memory
from peftseg.dicom_source import FORMATS as OF_DICOM  # they refer to the files of the scan
from peftseg.dicom_source import SourceFile, check_available
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.flags import check_result
from peftseg.model_choice import other_kind
from peftseg.models import Structure
from peftseg.preprocess import Prepared
from peftseg.segmenter import Segmenter, adapter_segmenter, model_segmenter, segment_volume
from peftseg.study import check_laterality, paired_names
from peftseg.version import __version__
from peftseg.volume import Volume, write_segmentation

if TYPE_CHECKING:
    from peftseg.quality import Checker
    from peftseg.several import Several
    from peftseg.site_distance import SiteDistance

OVERLAPPING = ("nrrd", *OF_DICOM)  # formats that hold structures which overlap
USE = "research only, not a medical device"


@dataclass(frozen=True, eq=False)
class Loaded:
    """What segments the studies of a job: one network, or several adapters with a merge rule.

    Attributes
    ----------
    single : Segmenter or None
    several : Several or None
        One of the two is given.
    checker : Checker or None
        Judges the results, see `quality`; None: only `flags.check_result` looks at them.
    distance : SiteDistance or None
        Tells how far scans are from those of the adapter, for the drift chart.
    """

    single: Segmenter | None
    several: Several | None
    checker: Checker | None = None
    distance: SiteDistance | None = None

    @property
    def structures(self) -> tuple[Structure, ...]:
        """What is segmented."""
        return (self.single or self.several).structures

    @property
    def modalities(self) -> dict[str, str]:
        """Of the scans that the networks are made for: modality ("" where nobody says) -> names of the adapters, quoted."""
        members = self.several.members if self.several is not None else (self.single,)
        found: dict[str, list[str]] = {}
        for member in members:
            found.setdefault(member.modality, []).append(f"'{member.provenance.get('adapter', '')}'")
        return {modality: ", ".join(names) for modality, names in found.items()}

    @property
    def provenance(self) -> dict[str, str]:
        """Flat facts that every result carries."""
        return (self.single or self.several).provenance

    @property
    def lacks(self) -> list[str]:
        """What the checks of results cannot measure, in sentences for the whole job."""
        return self.checker.lacks if self.checker is not None else []

    @property
    def identity(self) -> tuple[str, str]:
        """Name and hash of what made the results."""
        facts = self.provenance
        if "adapter" in facts:
            names = [part.strip() for part in facts["adapter"].split(";")]
            versions = [part.strip() for part in facts["adapter_version"].split(";")]
            refs = [f"{name}-v{version}" for name, version in zip(names, versions, strict=True)]
            rule = [facts["merge_rule"]] if "merge_rule" in facts else []
            return " + ".join(refs), "; ".join([facts["adapter_hash"], *rule])
        return facts["base"], facts["base_fingerprint"]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a study.

    Attributes
    ----------
    result : array
        As `segmenter.segment_volume` gives it.
    flags : dict
        Structure -> sentences; none: nothing stands out.
    doubt : dict
        Structure -> 0 (as expected) to 1; empty where no checker judged.
    study_doubt : float
        0 to 1: what to look at first.
    notes : tuple of str
        Sentences for the user.
    distance : float or None
        Of the scan to those of the adapter, see `site_distance`; None where it was not measured.
    """

    result: np.ndarray
    flags: dict[str, list[str]]
    doubt: dict[str, float]
    study_doubt: float
    notes: tuple[str, ...] = ()
    distance: float | None = None


def load(job: ApplyJob) -> Loaded:
    """Load the network or the adapters of a job, and what judges the results.

    Raises
    ------
    BadInput
        Adapter or model cannot be used, or a package for the format is missing.
    """
    if job.format in OF_DICOM:
        check_available(job.format)
    if job.adapters:
        from peftseg.several import load_several

        return Loaded(None, load_several(job.adapters, job.merge))
    single = adapter_segmenter(job.adapter) if job.adapter is not None else model_segmenter(str(job.model))
    if not job.batch and job.quality == "none":
        return Loaded(single, None)
    from peftseg.quality import make_checker

    checker = make_checker(single, job.quality, adapter=job.adapter)
    if job.adapter is None or job.quality == "none" or not job.batch:
        return Loaded(single, None, checker)
    from peftseg.site_distance import SiteDistance

    return Loaded(single, None, checker, SiteDistance(job.adapter, choose_device(job.device)))


def segment_study(
    loaded: Loaded,
    job: ApplyJob,
    volume: Volume,
    device: torch.device,
    reporter: Reporter,
    what: str,
    prepared: Prepared | None = None,
) -> Found:
    """Segment a study in memory and judge the result.

    Parameters
    ----------
    what : str
        The study, for messages.
    prepared : Prepared, optional
        Of the single network, where it was prepared before.
    """
    if loaded.several is not None:
        return _segment_by_several(loaded.several, job, volume, device, reporter, what)
    segmenter, checker = loaded.single, loaded.checker
    seen = checker.watch() if checker is not None else None
    settings = {"overlap": job.overlap, "precision": job.precision, "reporter": reporter}
    run = partial(segment_volume, segmenter, volume, **settings, observer=seen, prepared=prepared)
    result = within_memory(run, device, f"{what} ({volume.grid.describe()})", reporter)
    if checker is None:
        flags = check_result(
            result, segmenter.structures, volume.grid, segmenter.usual_borders, segmenter.structure_facts
        )
        return Found(result, flags, {}, doubt_by_flags(flags))
    from peftseg.quality import score

    judged = score(checker, volume, result, device, seen=seen, **settings)
    doubt = {name: float(entry.doubt) for name, entry in judged.structures.items()}
    distance = loaded.distance.of(volume, reporter, prepared) if loaded.distance is not None else None
    return Found(result, judged.checks, doubt, float(judged.doubt), distance=distance)


def _segment_by_several(
    several: Several, job: ApplyJob, volume: Volume, device: torch.device, reporter: Reporter, what: str
) -> Found:
    from peftseg.several import segment_with

    notes: list[str] = []

    def run(place: torch.device) -> np.ndarray:
        settings = {"overlap": job.overlap, "precision": job.precision, "reporter": reporter}
        merged = segment_with(several, volume, place, **settings, layers=job.format in OVERLAPPING)
        notes[:] = merged.notes
        return merged.result

    result = within_memory(run, device, f"{what} ({volume.grid.describe()})", reporter)
    flags = check_result(result, several.structures, volume.grid, several.usual_borders, several.structure_facts)
    return Found(result, flags, {}, doubt_by_flags(flags), tuple(notes))


def doubt_by_flags(flags: dict[str, list[str]]) -> float:
    """Doubt about a study where only flags are known: 0 without any, and the nearer to 1 the more there are."""
    count = sum(len(sentences) for sentences in flags.values())
    return round(1 - 0.7**count, 4)


def write_result(
    target: Path,
    found: Found,
    volume: Volume,
    loaded: Loaded,
    job: ApplyJob,
    source_files: Sequence[SourceFile],
) -> None:
    """Write a result in the job's format, with its provenance; whole files or none.

    Parameters
    ----------
    source_files : sequence of Path or (Path, int)
        The scan's own files or planes, to which DICOM results refer.

    Raises
    ------
    BadInput
        As `writing.write_segmentation`.
    """
    facts = {
        **loaded.provenance,
        "software": f"peftseg {__version__}",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "use": USE,
    }
    if job.format in OF_DICOM:
        from peftseg.dicom_seg import write_result as write_dicom

        write_dicom(
            target, found.result, volume.grid, tuple(source_files), loaded.structures, facts, file_format=job.format
        )
        return
    write_segmentation(target, found.result, volume.grid, loaded.structures, facts)


def require_dicom(path: Path, dicom: bool, file_format: str) -> None:
    """Refuse a study that is no DICOM series where the result is to refer to one."""
    if file_format in OF_DICOM and not dicom:
        raise BadInput(
            f"{path.name} is no DICOM series; a result in the format {file_format} refers to the series it belongs to.",
            "Give the DICOM series, or choose the format nifti or nrrd.",
        )


def mask_of(result: np.ndarray, row: int, structure: Structure) -> np.ndarray:
    """The mask (I, J, K) of one structure in a label map or in masks."""
    return result[row] if result.ndim == 4 else result == structure.value


def warnings_about(what: str, result: np.ndarray, loaded: Loaded, volume: Volume, told: str = "") -> list[str]:
    """What the user should know of a result: a scan of another kind, nothing found, or sides that may be swapped.

    Parameters
    ----------
    told : str
        The modality by the scan's header, where there is one.
    """
    structures, found = loaded.structures, []
    for modality, adapters in loaded.modalities.items():
        kind = other_kind(modality, volume.array, told)
        if kind:
            whose = "" if len(loaded.modalities) == 1 else f" of {adapters}"
            found.append(
                f"{what}: the scan {'is' if told else 'looks like'} {kind}, but the model{whose} is made for {modality}: do "
                "not trust the result."
            )
    if not result.any():
        names = ", ".join(s.name for s in structures)
        found.append(f"{what}: nothing was found of {names}.")
    paired = {name for pair in paired_names(s.name for s in structures) for name in pair}
    masks = {s.name: mask_of(result, i, s) for i, s in enumerate(structures) if s.name in paired}
    return found + [f"{what}: {problem}" for problem in check_laterality(masks, volume.grid)]
