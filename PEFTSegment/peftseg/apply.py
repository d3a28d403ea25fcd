"""Segment studies with an adapter, or with a model as it is (`peftseg apply`)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.config import ApplyJob
from peftseg.device import choose_device, is_out_of_memory, release_memory
from peftseg.errors import BadInput, JobCancelled, OutOfMemory, PeftsegError
from peftseg.events import Reporter
from peftseg.flags import check_result
from peftseg.models import Structure
from peftseg.segmenter import Segmenter, adapter_segmenter, load_adapted_network, model_segmenter, segment_volume
from peftseg.study import check_laterality, find_inputs, paired_names, require_writable_dir
from peftseg.version import __version__
from peftseg.volume import Volume, file_stem, read_volume, write_segmentation
from peftseg.writing import SIDECAR_FORMAT, sidecar_path

__all__ = ["Study", "load_adapted_network", "plan_studies", "run_apply"]

SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".seg.nrrd"}


@dataclass(frozen=True)
class Study:
    """An input, the name it goes by in messages, and the file to write."""

    source: Path
    name: str
    target: Path


def run_apply(job: ApplyJob, reporter: Reporter) -> dict[str, Any]:
    """Segment every input and write one file a study.

    A study that cannot be segmented is reported as a warning and in "failed", and the others go on.

    Returns
    -------
    dict
        "outputs" (paths), "inputs" (paths, one an output, in the same order), "volumes_ml" (file name of the output ->
        structure -> volume), "checks" (likewise -> sentences of `flags.check_result`, none: nothing stands out), "failed"
        (list of "input", "message", "remedy"), "provenance", "seconds".

    Raises
    ------
    PeftsegError
        Adapter, model, inputs or output folder cannot be used; or no study could be segmented: the first one's error.
    """
    started = time.monotonic()
    device = choose_device(job.device)
    studies = plan_studies(find_inputs(job.inputs), Path(job.out), job.format)
    require_writable_dir(Path(job.out))
    reporter.progress("load", 0, 1)
    segmenter = adapter_segmenter(job.adapter) if job.adapter is not None else model_segmenter(str(job.model))
    volumes: dict[str, dict[str, float]] = {}
    checks: dict[str, dict[str, list[str]]] = {}
    done: list[Study] = []
    errors: list[tuple[Study, PeftsegError]] = []
    begun = time.monotonic()
    for number, study in enumerate(studies):
        eta = (time.monotonic() - begun) / number * (len(studies) - number) if number else None
        reporter.progress("segment", number, len(studies), eta_s=eta)
        reporter.check()
        if number and reporter.stop_keep():
            reporter.log(f"Stopped on request after {number} of {len(studies)} studies.")
            break
        try:
            name = study.target.name
            volumes[name], checks[name] = _segment_study(study, segmenter, job, device, reporter)
            done.append(study)
        except JobCancelled:
            raise
        except PeftsegError as error:
            errors.append((study, error))
            reporter.warning(f"{study.name} was not segmented. {error}")
    if errors and not done:
        raise errors[0][1]
    reporter.progress("segment", len(done) + len(errors), len(studies), eta_s=0.0)
    return {
        "outputs": [str(study.target) for study in done],
        "inputs": [str(study.source) for study in done],
        "volumes_ml": volumes,
        "checks": checks,
        "failed": [{"input": str(s.source), "message": e.message, "remedy": e.remedy} for s, e in errors],
        "provenance": segmenter.provenance,
        "seconds": round(time.monotonic() - started, 1),
    }


def plan_studies(inputs: Sequence[Path], out: Path, file_format: str) -> list[Study]:
    """Name the output of every input: `<name>_seg.nii.gz` ("nifti") or `<name>_seg.seg.nrrd` ("nrrd").

    Inputs with equal names in different folders get their folders' names in front (`patient1_ct`, `patient2_ct`).
    Label maps that an earlier run wrote (with their .json) are no studies and are left out.

    Raises
    ------
    BadInput
        Nothing is left, or two inputs cannot be told apart by name.
    """
    scans = [path for path in inputs if not _is_result(path)]
    if not scans:
        raise BadInput(
            f"The {len(inputs)} input file(s) are results of an earlier run, e.g. {inputs[0].name}.",
            "Give the scans themselves, and another folder for the results.",
        )
    names = _unique_names([path.absolute() for path in scans])
    return [
        Study(path, name, out / f"{name}_seg{SUFFIXES[file_format]}") for path, name in zip(scans, names, strict=True)
    ]


def _segment_study(
    study: Study, segmenter: Segmenter, job: ApplyJob, device: torch.device, reporter: Reporter
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Segment one study and write the file; returns each structure's volume in ml, and what stands out about it."""
    sidecar = [sidecar_path(study.target)] if job.format == "nifti" else []
    for path in (study.target, *sidecar):
        if path.exists():
            raise BadInput(f"{path} exists; results are not overwritten.", "Choose another folder, or remove the file.")
    volume = read_volume(study.source, job.replace_nonfinite)
    for note in volume.notes:
        reporter.warning(note)
    run = partial(segment_volume, segmenter, volume, overlap=job.overlap, precision=job.precision, reporter=reporter)
    result = within_memory(run, device, f"{study.name} ({volume.grid.describe()})", reporter)
    provenance = {
        **segmenter.provenance,
        "software": f"peftseg {__version__}",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "use": "research only, not a medical device",
    }
    write_segmentation(study.target, result, volume.grid, segmenter.structures, provenance)
    _warn_about(study, segmenter, result, volume, reporter)
    millilitres = float(np.prod(volume.grid.spacing)) / 1000
    volumes = {
        s.name: round(int(np.count_nonzero(_mask(result, i, s))) * millilitres, 3)
        for i, s in enumerate(segmenter.structures)
    }
    return volumes, check_result(result, segmenter.structures, volume.grid, segmenter.usual_borders)


def within_memory(
    run: Callable[[torch.device], np.ndarray], device: torch.device, what: str, reporter: Reporter
) -> np.ndarray:
    """Run on the device; where its memory does not suffice, on the processor."""
    places = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    for place in places:
        try:
            return run(place)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory()  # outside of the except block: the error's traceback holds the tensors
        if place is not places[-1]:
            reporter.warning(f"{what}: the memory of {place} does not suffice; going on with the processor.")
    raise OutOfMemory(
        f"{what} does not fit into memory.", "Close other programs, crop the scan, or use a machine with more memory."
    )


def _mask(result: np.ndarray, row: int, structure: Structure) -> np.ndarray:
    return result[row] if result.ndim == 4 else result == structure.value


def _warn_about(study: Study, segmenter: Segmenter, result: np.ndarray, volume: Volume, reporter: Reporter) -> None:
    if not result.any():
        names = ", ".join(s.name for s in segmenter.structures)
        reporter.warning(f"{study.name}: nothing was found of {names}.")
    paired = {name for pair in paired_names(s.name for s in segmenter.structures) for name in pair}
    masks = {s.name: _mask(result, i, s) for i, s in enumerate(segmenter.structures) if s.name in paired}
    for problem in check_laterality(masks, volume.grid):
        reporter.warning(f"{study.name}: {problem}")


def _is_result(path: Path) -> bool:
    """Whether a file is a label map that `write_segmentation` left, with the sidecar that tells so."""
    sidecar = sidecar_path(path)
    return path.is_file() and sidecar.is_file() and SIDECAR_FORMAT in sidecar.read_text("utf-8", errors="replace")


def _unique_names(paths: list[Path]) -> list[str]:
    """File or folder names without suffix; where they are equal, with as many folders in front as it takes."""
    depths = [0] * len(paths)
    while True:
        names = [_name(path, depth) for path, depth in zip(paths, depths, strict=True)]
        counts = Counter(name.lower() for name in names)  # some systems do not tell Case from case
        twice = [i for i, name in enumerate(names) if counts[name.lower()] > 1]
        if not twice:
            return names
        if all(depths[i] >= len(paths[i].parts) - 2 for i in twice):
            raise BadInput(
                f"{paths[twice[0]]} and {paths[twice[1]]} would have the same result name.", "Rename one of them."
            )
        for i in twice:
            depths[i] = min(depths[i] + 1, len(paths[i].parts) - 2)


def _name(path: Path, depth: int) -> str:
    folders = path.parts[len(path.parts) - 1 - depth : -1]
    return "_".join([*folders, file_stem(path)])
