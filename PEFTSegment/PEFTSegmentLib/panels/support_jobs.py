"""Background work of step 2: outlines to correct, made by the current model, and which scan to label next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.config import RankJob
from peftseg.errors import BadInput
from peftseg.models import Structure

from .. import dialogs, exchange, scans, structures, support, work
from ..context import Context
from ..endings import settle
from ..runner import Task
from ..support import Row
from .adapt_choices import LibraryCache

PRESEGMENT, RANK = "presegment", "rank"


@dataclass(frozen=True)
class Source:
    """Who pre-segments: an adapter or a model, and which of the wanted structures it knows (its name -> ours)."""

    adapter: str | None
    model: str | None
    title: str
    names: dict[str, str]


def source_of(context: Context, wanted: Sequence[Structure], adapters: Sequence[dict[str, Any]]) -> Source | str:
    """The adapter of step 4 where it knows a structure, else the chosen model; or why neither can, in words.

    `adapters` are the rows of the library.
    """
    if not wanted:
        return _("Name a structure to learn first.")
    state = context.state
    if state.adapter:
        row = next((row for row in adapters if row["ref"] == state.adapter), None)
        names = _shared_names(row["structures"] if row is not None and not row["problem"] else (), wanted)
        if names:
            return Source(state.adapter, None, state.adapter, names)
    try:
        model = context.require_model()
    except BadInput as error:
        return error.message
    names = _shared_names([s.name for s in model.structures], wanted)
    if not names:
        return _("{model} knows none of the structures to learn; label the first scans by hand.").format(
            model=model.title
        )
    return Source(None, model.id, model.title, names)


def _shared_names(known: Sequence[str], wanted: Sequence[Structure]) -> dict[str, str]:
    found = {}
    for name in known:
        ours = structures.known_as(name, wanted)
        if ours is not None and ours.name not in found.values():
            found[name] = ours.name
    return found


class SupportJobs:
    """Submits these jobs and takes their results.

    Parameters
    ----------
    context : Context
    say : callable
        Shows a sentence in the panel.
    put_labels : callable
        Gets a row's key and the segmentation that becomes its labels.
    ranked : callable
        Gets the ranking: list of (scan token, reason), the one to label first in front.
    """

    def __init__(
        self,
        context: Context,
        say: Callable[[str], None],
        put_labels: Callable[[str, object], None],
        ranked: Callable[[list], None],
    ) -> None:
        self.context, self._say, self._put_labels, self._ranked = context, say, put_labels, ranked
        self._library = LibraryCache()  # asked at each look; folders on a network answer slowly
        context.runner.on(PRESEGMENT, self._presegmented)
        context.runner.on(RANK, self._rank_done)

    # outlines to correct

    def source(self, wanted: Sequence[Structure]) -> Source | str:
        """Who would pre-segment now; or why nobody can, in words."""
        return source_of(self.context, wanted, self._library.rows())

    def presegment(self, row: Row, wanted: Sequence[Structure]) -> Task:
        """Ask for outlines of what the current model knows; BadInput says why it cannot be done."""
        source = self.source(wanted)
        if isinstance(source, str):
            raise BadInput(source, _("Choose another model in step 1, or label by hand."))
        scans.require_usable(row.scan)
        facts = {"names": source.names, "by": source.title}
        title = _("Pre-segmenting {scan}").format(scan=row.scan.GetName())
        task = work.segment(self.context, [row.scan], PRESEGMENT, title, source.adapter, source.model, facts)
        self._say(_("{scan} is being pre-segmented; you can go on meanwhile.").format(scan=row.scan.GetName()))
        return task

    def busy(self, purpose: str, scan: slicer.vtkMRMLNode | None = None) -> bool:
        """Whether such a job has not ended; of one scan, where given."""
        token = scan.GetAttribute(scans.TOKEN) if scan is not None else None
        return any(t.active and (scan is None or token in t.note["scans"]) for t in self.context.runner.of(purpose))

    def _presegmented(self, task: Task, events: list) -> None:
        if not task.active:
            settle(self.context, task, self._outlined, _("The scan was not pre-segmented."))

    def _outlined(self, task: Task) -> None:
        record = work.outcomes(task)[0]
        if record["path"] is None:
            why = dialogs.Problem(
                _("The scan was not pre-segmented."), record.get("message", ""), record.get("remedy", "")
            )
            dialogs.show_later(why)
        elif scans.scan_of(record["token"]) is None:
            self._say(_("A scan was pre-segmented, but it is no longer loaded: its outlines were dropped."))
        else:
            self._take(task, record)

    def _take(self, task: Task, record: dict) -> None:
        """Put the outlines into a new segmentation, and that into the table."""
        scan = scans.scan_of(record["token"])
        wanted = structures.read(self.context.state)
        names = task.note["names"]
        loaded = work.load_outcome(record, f"{scan.GetName()} outlines", {})
        core = loaded.GetSegmentation()
        for segment_id in core.GetSegmentIDs():
            segment = core.GetSegment(segment_id)
            segment.SetName(names.get(segment.GetName(), segment.GetName()))
        name = slicer.mrmlScene.GenerateUniqueName(_("{scan} labels").format(scan=scan.GetName()))
        made = support.new_segmentation(scan, wanted, name)
        ours = [s for s in wanted if s.name in names.values()]
        exchange.copy_segments(loaded, ours, made)
        slicer.mrmlScene.RemoveNode(loaded)
        made.SetAttribute(support.TO_CORRECT, task.note["by"])
        made.GetDisplayNode().SetVisibility2DFill(False)
        made.SetDisplayVisibility(scans.may_show(scan))
        self._attach(scan, made, task.note["by"])

    def _attach(self, scan: slicer.vtkMRMLScalarVolumeNode, made: slicer.vtkMRMLSegmentationNode, by: str) -> None:
        """The outlines become the row's labels, unless it has painted ones: then the user is asked."""
        row = self.context.support.add(scan)
        wanted = structures.read(self.context.state)
        said = _("{scan} was pre-segmented by {model}: correct the outlines before you use them.")
        self._say(said.format(scan=scan.GetName(), model=by))
        painted = row.labels is not None and any(support.cell(row, s).painted for s in wanted)
        if not painted:
            self._put_labels(row.key, made)
            return
        made_id = made.GetID()
        qt.QTimer.singleShot(0, lambda: self._ask_which(row.key, made_id))

    def _ask_which(self, key: str, made_id: str) -> None:
        row, made = self.context.support.row(key), slicer.mrmlScene.GetNodeByID(made_id)
        if row is None or made is None or row.labels is None:
            return
        question = _("{scan} has labels already ('{labels}'). Which shall be learnt from?")
        chosen = dialogs.ask(
            question.format(scan=row.scan.GetName(), labels=row.labels.GetName()),
            (_("Keep my labels"), _("Use the new outlines"), _("Decide later")),
            _("Both stay in the scene; nothing is overwritten."),
        )
        if chosen == 1:
            self._put_labels(key, made)

    # which scan next

    def rank(self, candidates: Sequence[slicer.vtkMRMLScalarVolumeNode], labelled: Sequence[Row]) -> Task:
        """Rank the scans that are not labelled by the chosen model."""
        model = self.context.require_model().id
        count = len(candidates)
        note = {"purpose": RANK, "title": _("Ranking {count} scans").format(count=count)}

        def build(folder: Path, files: tuple[str, ...]) -> RankJob:
            return RankJob(None, model, files[:count], files[count:], replace_nonfinite=0.0)

        nodes = [*candidates, *(row.scan for row in labelled)]
        task = work.submit_scans(self.context, note, nodes, build)
        self._say(_("The scans without labels are being ranked; you can go on meanwhile."))
        return task

    def _rank_done(self, task: Task, events: list) -> None:
        if not task.active:
            settle(self.context, task, self._take_ranking, _("The scans were not ranked."))

    def _take_ranking(self, task: Task) -> None:
        tokens = task.note["scans"]
        found = [(tokens[row["input"]], row["reason"]) for row in task.ending["ranking"]]
        present = [(token, reason) for token, reason in found if scans.scan_of(token) is not None]
        if present:
            self._ranked(present)
        else:
            self._say(_("The scans were ranked, but none of them is loaded any more."))
