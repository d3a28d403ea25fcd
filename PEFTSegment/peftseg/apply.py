"""Segment studies with an adapter, or with a model as it is (`peftseg apply`). Batches are in `batch`."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftseg.apply_names import files_of_result, is_result, result_name, unique_names
from peftseg.apply_steps import (
    OF_DICOM,
    Loaded,
    load,
    require_dicom,
    segment_study,
    warnings_about,
    write_result,
)
from peftseg.config import ApplyJob
from peftseg.device import choose_device
from peftseg.dicom import files_in
from peftseg.errors import BadInput, JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.measure import measure
from peftseg.segmenter import load_adapted_network
from peftseg.study import find_inputs, require_writable_dir
from peftseg.volume import Volume, is_dicom_input, read_volume

if TYPE_CHECKING:
    from peftseg.dicom_inputs import SeriesSource

__all__ = ["Study", "load_adapted_network", "plan_studies", "run_apply"]


@dataclass(frozen=True)
class Study:
    """An input, the name it goes by in messages, and the file to write.

    Attributes
    ----------
    series : SeriesSource or None
        A DICOM series that was sorted out of the inputs; None: `source` is read as it is.
    """

    source: Path
    name: str
    target: Path
    series: SeriesSource | None = None

    def read(self, replace_nonfinite: float | None) -> Volume:
        """The scan."""
        if self.series is not None:
            return self.series.read(replace_nonfinite)
        return read_volume(self.source, replace_nonfinite)


def run_apply(job: ApplyJob, reporter: Reporter) -> dict[str, Any]:
    """Segment every input and write one file a study.

    A study that cannot be segmented is reported as a warning and in "failed", and the others go on. A batch
    (`job.batch`) returns what `batch.run_batch` does.

    Returns
    -------
    dict
        "outputs" (paths), "inputs" (paths, one an output, in the same order), "volumes_ml" (file name of the output ->
        structure -> volume), "checks" (likewise -> sentences of `flags.check_result`, none: nothing stands out), "failed"
        (list of "input", "message", "remedy"), "provenance", "seconds"; where asked for "doubt" (file name -> structure
        -> 0 to 1) and "left_out" (sentences about series that the rules did not choose).

    Raises
    ------
    PeftsegError
        Adapter, model, inputs or output folder cannot be used; or no study could be segmented: the first one's error.
    """
    if job.batch:
        from peftseg.batch import run_batch

        return run_batch(job, reporter)
    scratch = Path(tempfile.mkdtemp(prefix="peftseg-")) if job.series_rules else None
    try:
        return _run(job, reporter, scratch)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _run(job: ApplyJob, reporter: Reporter, scratch: Path | None) -> dict[str, Any]:
    started = time.monotonic()
    device = choose_device(job.device)
    studies, left_out = _plan(job, reporter, scratch)
    require_writable_dir(Path(job.out))
    reporter.progress("load", 0, 1)
    loaded = load(job)
    for text in loaded.lacks:
        reporter.warning(text)
    volumes: dict[str, dict[str, float]] = {}
    checks: dict[str, dict[str, list[str]]] = {}
    doubt: dict[str, dict[str, float]] = {}
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
            volumes[name], checks[name], doubt[name] = _segment_study(study, loaded, job, device, reporter)
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
        "provenance": loaded.provenance,
        "seconds": round(time.monotonic() - started, 1),
        **({"doubt": doubt} if job.quality != "none" else {}),
        **({"left_out": left_out} if job.series_rules else {}),
    }


def _plan(job: ApplyJob, reporter: Reporter, scratch: Path | None) -> tuple[list[Study], list[str]]:
    """The studies, and sentences about series that are none."""
    out = Path(job.out)
    if scratch is None:
        return plan_studies(find_inputs(job.inputs), out, job.format), []
    from peftseg.dicom_inputs import dicom_inputs
    from peftseg.dicom_rules import load_rules

    found = dicom_inputs(job.inputs, load_rules(job.series_rules), scratch, reporter)
    studies = [Study(s.files[0].parent, s.name, out / result_name(s.name, job.format), s) for s in found.series]
    studies += plan_studies(found.files, out, job.format) if found.files else []
    left_out = [entry.sentence for entry in found.left_out]
    for sentence in left_out:
        reporter.log(sentence)
    return studies, left_out


def plan_studies(inputs: Sequence[Path], out: Path, file_format: str) -> list[Study]:
    """Name the output of every input: `<name>_seg.nii.gz` ("nifti") or `<name>_seg.seg.nrrd` ("nrrd").

    Inputs with equal names in different folders get their folders' names in front (`patient1_ct`, `patient2_ct`).
    Label maps that an earlier run wrote (with their .json) are no studies and are left out.

    Raises
    ------
    BadInput
        Nothing is left, or two inputs cannot be told apart by name.
    """
    scans = [path for path in inputs if not is_result(path)]
    if not scans:
        raise BadInput(
            f"The {len(inputs)} input file(s) are results of an earlier run, e.g. {inputs[0].name}.",
            "Give the scans themselves, and another folder for the results.",
        )
    names = unique_names([path.absolute() for path in scans])
    return [Study(path, name, out / result_name(name, file_format)) for path, name in zip(scans, names, strict=True)]


def _segment_study(
    study: Study, loaded: Loaded, job: ApplyJob, device: torch.device, reporter: Reporter
) -> tuple[dict[str, float], dict[str, list[str]], dict[str, float]]:
    """Segment one study and write the file; returns each structure's volume in ml, what stands out, and doubt."""
    for path in files_of_result(study.target, job.format):
        if path.exists():
            raise BadInput(f"{path} exists; results are not overwritten.", "Choose another folder, or remove the file.")
    if job.format in OF_DICOM:
        require_dicom(study.source, study.series is not None or is_dicom_input(study.source), job.format)
    volume = study.read(job.replace_nonfinite)
    for note in volume.notes:
        reporter.warning(note)
    found = segment_study(loaded, job, volume, device, reporter, study.name)
    source = study.series.planes if study.series is not None else files_in(study.source)
    write_result(study.target, found, volume, loaded, job, source)
    told = study.series.series.modality if study.series is not None else ""
    for text in (*found.notes, *warnings_about(study.name, found.result, loaded, volume, told)):
        reporter.warning(text)
    measured = measure(volume.array, found.result, loaded.structures, volume.grid)
    return {name: entry.volume_ml for name, entry in measured.items()}, found.flags, found.doubt
