"""The jobs: one frozen dataclass a kind, and their strict JSON form in `job.json`. Torch-free.

Nothing is guessed when a job is read: unknown and missing fields, wrong types and another protocol are refused with the
field's name, because the program that wrote the job (Slicer's module) and the one that reads it (the engine) may be
of different versions.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput, unknown_name
from peftseg.job_checks import PRECISIONS
from peftseg.job_training import ESTIMATES, AdaptJob, CheckJob, PretrainJob, RankJob, SiteAdaptJob
from peftseg.job_using import FORMATS, NAMES, QUALITIES, ApplyJob, ExportDicomJob, GradCamJob, ProtoSegJob, SuggestJob
from peftseg.strict_json import in_words, record_from

__all__ = [
    "CPU_BUDGET_MINUTES",
    "ESTIMATES",
    "FORMATS",
    "KINDS",
    "NAMES",
    "PRECISIONS",
    "PROTOCOL",
    "QUALITIES",
    "AdaptJob",
    "ApplyJob",
    "CheckJob",
    "ExportDicomJob",
    "GradCamJob",
    "Job",
    "PretrainJob",
    "ProtoSegJob",
    "RankJob",
    "SiteAdaptJob",
    "SuggestJob",
    "from_json",
    "kind_of",
    "to_json",
    "with_absolute_paths",
]

PROTOCOL = 1
CPU_BUDGET_MINUTES = 30.0  # of an adaptation without GPU, where the user gives no time


Job = (
    AdaptJob
    | ApplyJob
    | PretrainJob
    | CheckJob
    | RankJob
    | SuggestJob
    | SiteAdaptJob
    | GradCamJob
    | ProtoSegJob
    | ExportDicomJob
)
KINDS: dict[str, type] = {
    "adapt": AdaptJob,
    "apply": ApplyJob,
    "pretrain": PretrainJob,
    "check": CheckJob,
    "rank": RankJob,
    "suggest": SuggestJob,
    "site_adapt": SiteAdaptJob,
    "grad_cam": GradCamJob,
    "proto_seg": ProtoSegJob,
    "export_dicom": ExportDicomJob,
}


def kind_of(job: Job) -> str:
    """The name of a job's kind, one of `KINDS`."""
    return next(kind for kind, record in KINDS.items() if type(job) is record)


def to_json(job: Job) -> str:
    """The text of `job.json`: protocol, kind and every field of the job."""
    record = {"protocol": PROTOCOL, "kind": kind_of(job), **dataclasses.asdict(job)}
    try:
        return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"The job holds a value that JSON has no word for ({error}).", "Correct the options.") from error


def from_json(text: str) -> Job:
    """Inverse of `to_json`.

    Raises
    ------
    BadInput
        When the text is not JSON, of another protocol or kind, or has unknown, missing or mistyped fields.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"job.json is not valid JSON ({error}).", "Create the job again.") from error
    if not isinstance(record, dict):
        raise BadInput(f"job.json holds {in_words(record)}; expected an object.", "Create the job again.")
    protocol = record.pop("protocol", None)
    if protocol != PROTOCOL or isinstance(protocol, bool):
        raise BadInput(
            f"The job has protocol {protocol!r}; this engine speaks protocol {PROTOCOL}.",
            "Update PEFTSegment and the engine's environment to the same version, then create the job again.",
        )
    kind = record.pop("kind", None)
    if kind not in KINDS:
        raise unknown_name("job kind", str(kind), KINDS)
    return record_from(KINDS[kind], record, f"{kind} job")


def with_absolute_paths(job: Job) -> Job:
    """The job with its paths made absolute from the current folder; a worker runs in its job's folder."""
    changes: dict[str, Any] = {"out": _absolute(job.out)} if getattr(job, "out", "") else {}
    for name in ("model", "adapter", "start_from"):  # may also be names in the catalogue or the library
        value = getattr(job, name, None)
        if value and Path(value).exists():
            changes[name] = _absolute(value)
    if isinstance(job, ApplyJob):
        changes["adapters"] = tuple(_absolute(p) if Path(p).exists() else p for p in job.adapters)
        rules = job.series_rules
        changes["series_rules"] = _absolute(rules) if rules and Path(rules).exists() else rules
    if isinstance(job, (ApplyJob, RankJob)):
        changes["inputs"] = tuple(_absolute(p) for p in job.inputs)
    if isinstance(job, ExportDicomJob):
        changes["source_files"] = tuple(_absolute(p) for p in job.source_files)
    if isinstance(job, SiteAdaptJob):
        changes["unlabelled"] = tuple(_absolute(p) for p in job.unlabelled)
    for name in ("input", "labels"):
        if getattr(job, name, None):
            changes[name] = _absolute(getattr(job, name))
    if isinstance(job, RankJob):
        changes["support"] = tuple(_absolute(p) for p in job.support)
    scans = {AdaptJob: "support", CheckJob: "support", PretrainJob: "data", ProtoSegJob: "support"}.get(type(job))
    if scans:
        items = getattr(job, scans)
        changes[scans] = tuple(
            dataclasses.replace(item, image=_absolute(item.image), labels=_absolute(item.labels)) for item in items
        )
    return dataclasses.replace(job, **changes)


def _absolute(path: str) -> str:
    """An absolute path, with ~ opened up."""
    return str(Path(path).expanduser().absolute())
