"""What step 5 asks for in the background: one job at a time, and the maps of all layers that the last ProtoSeg left.

ProtoSeg writes a map of each layer. They stay in the job's folder, from which a click loads one, until something else is
measured, or the scene or the module closes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from peftseg import paths
from peftseg.config import GradCamJob, ProtoSegJob
from peftseg.errors import BadInput
from peftseg.events import Event
from peftseg.models import Structure

from .. import dialogs, exchange, scans, work
from ..context import Context
from ..runner import Task
from ..texts import time_left
from . import inspect_words as words
from .inspect_layers import LayerRow, Source
from .inspect_maps import GRAD_CAM, MapFacts, method_name, remove_like

PURPOSE = "inspect"


@dataclass(frozen=True, eq=False)
class Question:
    """What the user wants to know.

    Attributes
    ----------
    method : str
        One of `inspect_maps.METHODS`.
    source : Source
    scan : vtkMRMLScalarVolumeNode
    structure : str
    layer : LayerRow
        Of Grad-CAM the only one that is explained; of ProtoSeg the one whose map is shown first.
    labels : (vtkMRMLSegmentationNode, str) or None
        A person's labels of the structure: segmentation and id of the segment; for ProtoSeg.
    """

    method: str
    source: Source
    scan: slicer.vtkMRMLScalarVolumeNode
    structure: str
    layer: LayerRow
    labels: tuple[slicer.vtkMRMLSegmentationNode, str] | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """A finished ProtoSeg.

    Attributes
    ----------
    task : Task
        Its folder holds the maps.
    rows : dict
        Layer -> its row of the result for the prototype that the prediction built.
    control : dict
        Layer -> Segmentation Ability with the prototype that the labels built, or None.
    labelled : bool
        Whether there were labels to compare with.
    not_defined : bool
        Whether nothing of the structure was found.
    """

    task: Task
    rows: dict[str, dict[str, Any]]
    control: dict[str, float | None]
    labelled: bool
    not_defined: bool

    def is_of(self, source: Source, structure: str, scan: slicer.vtkMRMLVolumeNode) -> bool:
        """Whether it answers the present choices."""
        note = self.task.note
        wanted = (source.key, structure, scan.GetAttribute(scans.TOKEN))
        return (note["source"], note["structure"], note["scans"][0]) == wanted


def measured_of(task: Task) -> Measured:
    """The result of a finished ProtoSeg job."""
    ending = task.ending
    by_prediction = {row["layer"]: row for row in ending["layers"] if row["built_by"] == "prediction"}
    by_labels = {row["layer"]: row["sa"] for row in ending["layers"] if row["built_by"] == "truth"}
    return Measured(task, by_prediction, by_labels, bool(task.note["labelled"]), bool(ending["not_defined"]))


def facts_of(note: dict[str, Any], layer: str, label: str) -> MapFacts:
    """What a map of a job's layer is of."""
    return MapFacts(
        note["method"], layer, label, note["structure"], note["source"], note["source_name"], note["scans"][0]
    )


def show_progress(task: Task, bar, label) -> None:
    """Show how far a job is."""
    progress = task.progress
    inside = task.state == "running" and progress.get("stage") == "windows" and not task.stopping
    step, total = (int(progress["step"]), int(progress["total"])) if inside else (0, 0)
    bar.maximum, bar.value = (total, step) if total > 1 else (0, 0)
    texts = {"exporting": _("Writing the scan"), "queued": _("Waiting for other work")}
    text = _("Stopping...") if task.stopping else texts.get(task.state, _("Looking into the model"))
    left = time_left(progress.get("eta_s")) if inside else ""
    label.text = _("{text}, {left}").format(text=text, left=left) if left else text
    label.toolTip = task.note["title"]


class InspectJobs:
    """Looks after the jobs.

    Parameters
    ----------
    arrived : callable
        `arrived(path, facts, provenance, fresh)` for a map that is to be shown; `fresh`: a job has just made it.
    """

    def __init__(self, context: Context, arrived: Callable[[Path, MapFacts, dict[str, str], bool], None]) -> None:
        self._context, self._arrived = context, arrived
        self.measured: Measured | None = None
        self.message = ""  # what there is to say instead of a map
        context.runner.on(PURPOSE, self.hear)

    def running(self) -> Task | None:
        """The job that has not ended."""
        return next((task for task in self._context.runner.of(PURPOSE) if task.active), None)

    def ask(self, question: Question) -> Task:
        """Start a job; PeftsegError: the scan cannot be used, the disk is full, the engine is not installed."""
        self.message = ""
        labels = []
        if question.labels is not None:
            node, segment_id = question.labels
            part = exchange.part_of(node, segment_id, question.scan)
            wanted, image = [Structure(question.structure, 1)], exchange.image_of(question.scan)
            labels = [(work.write_labels, "scan_1", [part], wanted, image)]
        title = _("{method} of {name}").format(method=method_name(question.method), name=question.source.name)
        note = {
            "purpose": PURPOSE,
            "title": title,
            "method": question.method,
            "source": question.source.key,
            "source_name": question.source.name,
            "structure": question.structure,
            "layer": question.layer.name,
            "label": question.layer.label,
            "labelled": question.labels is not None,
        }

        def build(folder: Path, files: tuple[str, ...]) -> GradCamJob | ProtoSegJob:
            return _job(question, folder, files)

        return work.submit_scans(self._context, note, [question.scan], build, labels)

    # what comes

    def hear(self, task: Task, events: list[Event]) -> None:
        """Events of a job, or its end. A job of an earlier session is not waited for any more: it can be asked again."""
        if task.note.get("earlier"):
            if task.active and not task.stopping:
                self._context.runner.cancel(task)
            elif not task.active:
                self._context.runner.forget(task)
            return
        if task.active:
            self._context.refresh()
            return
        kept = False
        try:
            kept = task.state == "finished" and self._finished(task)
        except Exception as error:
            dialogs.show_later(dialogs.problem_of(error, _("The map could not be shown.")))
        if task.state == "failed":
            dialogs.show_later(dialogs.problem_of_event(task.ending, _("The model could not be looked into.")))
        if not kept:
            self._context.runner.forget(task)
        self._context.refresh()

    def _finished(self, task: Task) -> bool:
        """Take a result; whether the job's folder is still needed."""
        if scans.scan_of(task.note["scans"][0]) is None:
            self.message = _("The maps are ready, but the scan is no longer loaded; load it and ask again.")
            return False
        if task.note["method"] == GRAD_CAM:
            self._take_grad_cam(task)
            return False
        self.drop()
        self.measured = measured_of(task)
        remove_like(facts_of(task.note, "", ""))  # maps of an earlier measurement
        self.show_layer(task.note["layer"], task.note["label"], fresh=True)
        return True

    def _take_grad_cam(self, task: Task) -> None:
        ending, note = task.ending, task.note
        row = ending["layers"][0]
        if ending["empty"] or row["empty"]:
            nothing = words.nothing_found if ending["empty"] else words.nothing_speaks
            self.message = nothing(note["structure"], note["label"])
            return
        self._arrived(Path(row["map"]), facts_of(note, row["layer"], note["label"]), ending["provenance"], True)

    def show_layer(self, layer: str, label: str, fresh: bool = False) -> None:
        """Show the map of one layer of the finished ProtoSeg; `fresh`: the measurement has just come."""
        found = self.measured
        if found is None or found.not_defined or layer not in found.rows:
            return
        path = found.rows[layer]["map"]
        if path is None or not Path(path).is_file():
            raise BadInput(
                _("The map of {layer} is no longer there.").format(layer=label), _("Measure all layers again.")
            )
        self._arrived(Path(path), facts_of(found.task.note, layer, label), found.task.ending["provenance"], fresh)

    # letting go

    def drop(self) -> None:
        """Forget the finished ProtoSeg with its maps."""
        found, self.measured = self.measured, None
        if found is not None:
            self._context.runner.forget(found.task)

    def scene_closing(self) -> None:
        """Its scan goes."""
        self.drop()
        self.message = ""

    def close(self) -> None:
        """The module is unloaded, and the runner has let its jobs go: the maps are deleted here."""
        found, self.measured = self.measured, None
        if found is not None and found.task.folder.is_dir():
            paths.remove_tree(found.task.folder)


def _job(question: Question, folder: Path, files: tuple[str, ...]) -> GradCamJob | ProtoSegJob:
    of_adapter = question.source.kind == "adapter"
    adapter, model = (question.source.ref, None) if of_adapter else (None, question.source.ref)
    structure, out = Structure(question.structure, 1), str(folder / "result")
    if question.method == GRAD_CAM:
        return GradCamJob(
            adapter=adapter,
            model=model,
            input=files[0],
            structure=structure,
            out=out,
            layers=(question.layer.name,),
            pictures=False,
            replace_nonfinite=0.0,
        )
    return ProtoSegJob(
        adapter=adapter,
        model=model,
        out=out,
        input=files[0],
        labels=files[1] if question.labels is not None else None,
        structures=(structure,),
        pictures=False,
        replace_nonfinite=0.0,
    )
