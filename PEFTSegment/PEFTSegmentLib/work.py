"""The jobs that the module asks for, and what comes back from them. No widgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from peftseg import jobs
from peftseg.config import AdaptJob, ApplyJob, Job
from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.study import SupportItem

from . import exchange, scans, structures, support
from .context import Context
from .runner import Task

DEFAULT_METHOD = AdaptJob.method


def _write_scan(scratch: Path, name: str, image: exchange.Image) -> Path:
    """Runs in a thread."""
    path = scratch / f"{name}.nrrd"
    exchange.write_image(path, image)
    return path


def write_labels(scratch: Path, name: str, parts, wanted, image: exchange.Image) -> Path:
    """Write the structures of one scan, for `Runner.submit`; runs in a thread."""
    return exchange.write_parts(scratch / f"{name}_labels", parts, wanted, image)


# scans without labels


def scan_exports(volumes: Sequence[slicer.vtkMRMLScalarVolumeNode]) -> list[tuple]:
    """What is written of scans alone, for `Runner.submit`; PeftsegError: one cannot be used, or the disk is full."""
    images = [exchange.image_of(volume) for volume in volumes]
    exchange.require_space(jobs.jobs_dir(), images)
    return [(_write_scan, f"scan_{n}", image) for n, image in enumerate(images, start=1)]


def submit_scans(
    context: Context,
    note: dict[str, Any],
    volumes: Sequence[slicer.vtkMRMLScalarVolumeNode],
    build: Callable[[Path, tuple[str, ...]], Job],
    more: Sequence[tuple] = (),
) -> Task:
    """Submit a job about scans as they are.

    Parameters
    ----------
    note : dict
        For the task; "scans" (their tokens) is added.
    volumes : sequence of nodes
        No sequences; see `scans.held_still`.
    build : callable
        Gets the job's folder and the scans' files, and gives the job.
    more : sequence of tuple
        What else is written, as for `Runner.submit`; its files come after those of the scans.

    Raises
    ------
    PeftsegError
        A scan cannot be used, the disk is full, the engine is not installed.
    """
    _require_engine(context)
    exports = [*scan_exports(volumes), *more]
    tokens = [scans.token(volume) for volume in volumes]

    def made(folder: Path, paths: list) -> Job:
        return build(folder, tuple(str(path) for path in paths))

    return context.runner.submit({**note, "scans": tokens}, exports, made)


# segment


def segment(
    context: Context,
    volumes: Sequence[slicer.vtkMRMLScalarVolumeNode],
    purpose: str,
    title: str,
    adapter: str | None = None,
    model: str | None = None,
    facts: dict[str, Any] | None = None,
    quality: str = "none",
) -> Task:
    """Segment scans of the scene in the background.

    Parameters
    ----------
    volumes : sequence of nodes
        The scans; of a sequence the frame that it shows now.
    purpose : str
        Whose handler takes the results (`Runner.on`); it finds them with `outcomes`.
    adapter, model : str or None
        One of the two: a reference in the adapter library, or the id of a model as it is.
    facts : dict
        More for the task's note; JSON data.
    quality : str
        How much the engine does to tell doubtful results: "none", "fast" or "full".

    Raises
    ------
    PeftsegError
        A scan cannot be used, the disk is full, the engine is not installed.
    """
    _require_engine(context)
    volumes = [scans.held_still(scans.require_usable(volume)) for volume in volumes]
    note = {"purpose": purpose, "title": title, "adapter": adapter, "model": model, **(facts or {})}

    def build(folder: Path, files: tuple[str, ...]) -> ApplyJob:
        out = str(folder / "result")
        return ApplyJob(
            adapter=adapter,
            model=model,
            inputs=files,
            out=out,
            format="nrrd",
            replace_nonfinite=0.0,
            quality=quality,
        )

    return submit_scans(context, note, volumes, build)


def outcomes(task: Task) -> list[dict[str, Any]]:
    """What a finished segmentation gave, one record a scan: "token", "path" (None where it failed), "volumes_ml",
    "checks" (structure -> sentences), "doubt" (structure -> 0 to 1), "message" and "remedy" of a failure."""
    ending = task.ending
    found = {}
    for source, output in zip(ending.get("inputs", []), ending.get("outputs", []), strict=True):
        name = Path(output).name
        found[Path(source).name] = {
            "path": Path(output),
            "volumes_ml": ending["volumes_ml"].get(name, {}),
            "checks": ending.get("checks", {}).get(name, {}),
            "doubt": ending.get("doubt", {}).get(name, {}),
        }
    failed = {Path(row["input"]).name: row for row in ending.get("failed", [])}
    records = []
    for number, token in enumerate(task.note["scans"], start=1):
        name = f"scan_{number}.nrrd"
        empty = {"path": None, "volumes_ml": {}, "checks": {}, "doubt": {}}
        records.append({"token": token, **empty, **failed.get(name, {}), **found.get(name, {})})
    return records


def load_outcome(record: dict[str, Any], name: str, provenance: dict[str, Any]) -> slicer.vtkMRMLSegmentationNode:
    """Load one result beside its scan, with the adapter's identity in the node's attributes, as the file has it."""
    facts = exchange.facts_of(record["path"])
    facts |= {key: value for key, value in provenance.items() if value is not None}
    facts["VolumesMl"] = json.dumps(record["volumes_ml"])
    facts["Checks"] = json.dumps(record["checks"], ensure_ascii=False)
    facts["Doubt"] = json.dumps(record.get("doubt", {}), ensure_ascii=False)
    return exchange.load_segmentation(record["path"], name, scans.scan_of(record["token"]), facts)


# adapt


def support_exports(
    context: Context, rows: Sequence[support.Row] | None = None
) -> tuple[list[tuple], list[dict], tuple[Structure, ...]]:
    """What is written of the support scans that are ready, or of these rows.

    Returns
    -------
    exports : list
        For `Runner.submit`: scan and labels of each row, in turn.
    states : list of dict
        The engine's label states of each row.
    wanted : tuple of Structure

    Raises
    ------
    PeftsegError
        No structure, no scan that is ready, a scan that cannot be used, a full disk.
    """
    wanted = structures.read(context.state)
    if not wanted:
        raise BadInput(_("No structure to learn is named."), _("Add one in step 2."))
    rows = support.ready_rows(context.state) if rows is None else rows
    if not rows:
        raise BadInput(_("No support scan is ready."), _("Label a scan in step 2."))
    images = [exchange.image_of(row.scan) for row in rows]
    exchange.require_space(jobs.jobs_dir(), images)
    exports, states = [], []
    for number, (row, image) in enumerate(zip(rows, images, strict=True), start=1):
        found = support.label_states(row, wanted, image.array.shape[0])
        shown = [s for s in wanted if found[s.name].state == "labelled"]
        parts = [exchange.part_of(row.labels, support.segment_of(row, s), row.scan) for s in shown]
        exports.append((_write_scan, f"scan_{number}", image))
        exports.append((write_labels, f"scan_{number}", parts, shown, image))
        states.append(found)
    return exports, states, wanted


def support_items(
    paths: Sequence[Path], states: Sequence[dict], patients: Sequence[int | None]
) -> tuple[SupportItem, ...]:
    """The engine's support items of what `support_exports` wrote; `patients` are those of `scans.patient_numbers`."""
    rows = zip(paths[0::2], paths[1::2], states, patients, strict=True)
    return tuple(SupportItem(str(image), str(labels), marks, patient) for image, labels, marks, patient in rows)


def _choices(context: Context, wanted: Sequence[Structure]) -> dict[str, Any]:
    """The fields that an adaptation and the check before it have in common, as the user has chosen them now."""
    state = context.state
    return {
        "model": context.require_model().id,
        "structures": tuple(wanted),
        "method": state.method or DEFAULT_METHOD,
        "options": json.loads(state.methodOptions),
        "seed": state.seed,
        "device": state.device,
        "budget_minutes": state.minutes or None,
        "estimate": "loo" if state.estimate else "none",
        "replace_nonfinite": 0.0,
    }


def _require_engine(context: Context) -> None:
    reason = context.engine_ready()
    if reason:
        raise BadInput(reason, _("Install it with the button at the top of the module."))


def submit_support(context: Context, note: dict[str, Any], record: type, **more: Any) -> Task:
    """Submit a job about the support set: `record` is AdaptJob or CheckJob, `more` its further fields.

    A field given as a function gets the job's folder; one that the user's choices have, too, takes its place.
    """
    _require_engine(context)
    context.require_model()
    exports, states, wanted = support_exports(context)
    choices = _choices(context, wanted)
    volumes = [row.scan for row in support.ready_rows(context.state)]
    tokens = [scans.token(volume) for volume in volumes]
    patients = scans.patient_numbers(volumes)

    def build(folder: Path, paths: list):
        own = {key: value(folder) if callable(value) else value for key, value in more.items()}
        return record(support=support_items(paths, states, patients), **{**choices, **own})

    return context.runner.submit({**note, "scans": tokens}, exports, build)
