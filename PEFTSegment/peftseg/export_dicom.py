"""Writes a result that a program holds as a DICOM object (job kind `export_dicom`). Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftseg.config import ExportDicomJob
from peftseg.dicom_seg import write_result
from peftseg.dicom_source import SourceFile, check_available
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.volume import read_labels


def run_export(job: ExportDicomJob, reporter: Reporter) -> dict[str, Any]:
    """Write the DICOM object, whole or not at all.

    Returns
    -------
    dict
        "output" (path), "format", "structures" (names), "edited".

    Raises
    ------
    BadInput
        The file exists and is not to be replaced; a package is missing; the result does not lie on the series' grid; the
        folder cannot be written.
    """
    check_available(job.format)
    out = Path(job.out)
    if out.exists() and not job.overwrite:
        raise BadInput(f"{out} exists; results are not overwritten.", "Choose another name, or remove the file.")
    reporter.progress("read", 0, 1)
    labels = read_labels(job.input)
    reporter.check()
    reporter.progress("write", 0, 1)
    facts = {key: str(value) for key, value in job.provenance.items()}
    sources: list[SourceFile] = [Path(file) for file in job.source_files]
    if job.source_frames:
        sources = [(Path(job.source_files[0]), frame) for frame in job.source_frames]
    written = write_result(out, labels, labels.grid, sources, job.structures, facts, job.format, job.edited)
    reporter.progress("write", 1, 1)
    return {
        "output": str(written),
        "format": job.format,
        "structures": [structure.name for structure in job.structures],
        "edited": job.edited,
    }
