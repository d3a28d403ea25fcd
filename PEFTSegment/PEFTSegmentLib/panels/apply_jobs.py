"""What step 4 asked for in the background: progress, results that come in one by one, and those that wait for the user.

Results whose scan is in the scene are loaded at once. Those of an earlier session, and those whose scan has left the scene
meanwhile, are offered: the job's folder is kept until the user has decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from peftseg.events import Event

from .. import dialogs, results, scans, work
from ..context import Context
from ..runner import Task

PURPOSE, COMPARE = "apply", "compare"
Record = dict[str, Any]


@dataclass
class Pending:
    """A finished job whose results are not all in the scene; `accepted`: the user wants them, also without scans."""

    task: Task
    records: list[Record]
    offered: bool
    accepted: bool = False


class ResultJobs:
    """Looks after the jobs of both purposes.

    Parameters
    ----------
    loaded, arrived : callable
        Called with the task and each node that has come into the scene, for "apply" and for "compare".
    """

    def __init__(self, context: Context, loaded: Callable, arrived: Callable) -> None:
        self._context, self._loaded, self._arrived = context, loaded, arrived
        self._pending: list[Pending] = []
        self._closed = False
        for purpose in (PURPOSE, COMPARE):
            context.runner.on(purpose, self.hear)

    def tasks(self) -> list[Task]:
        """All jobs of step 4."""
        return [task for task in self._context.runner.tasks if task.purpose in (PURPOSE, COMPARE)]

    @property
    def loading(self) -> int:
        """How many results are about to be loaded."""
        return sum(len(pending.records) for pending in self._pending if not pending.offered)

    @staticmethod
    def show_progress(running: list[Task], bar, label) -> None:
        """Show how far the first job is, and how many wait."""
        task = running[0]
        step, total = int(task.progress.get("step") or 0), int(task.progress.get("total") or 0)
        inside = task.state == "running" and task.progress.get("stage") == "segment" and total > 1
        bar.maximum, bar.value = (total, step) if inside else (0, 0)
        texts = {"exporting": _("Writing the scans"), "queued": _("Waiting for other work")}
        text = texts.get(task.state, _("Segmenting"))
        if inside:
            text = _("Scan {number} of {count}").format(number=min(step + 1, total), count=total)
        elif task.state == "running" and task.progress.get("stage") == "read headers":
            text = _("Looking through the DICOM files")
        left = task.progress.get("eta_s")
        if inside and left:
            text = _("{text}, {minutes} min left").format(text=text, minutes=max(1, round(left / 60)))
        if len(running) > 1:
            text = _("{text}; {count} more to come").format(text=text, count=len(running) - 1)
        label.text = text
        label.toolTip = task.note["title"]

    # what comes

    def hear(self, task: Task, events: list[Event]) -> None:
        """Events of a job, or its end."""
        if task.active:
            self._context.refresh()
            return
        if task.state == "finished":
            self._finished(task)
            return
        if task.state == "failed":
            dialogs.show_later(dialogs.problem_of_event(task.ending, _("The scans were not segmented.")))
        self._context.runner.forget(task)

    def _finished(self, task: Task) -> None:
        records = work.outcomes(task)
        self._tell_failed([record for record in records if record["path"] is None])
        done = [record for record in records if record["path"] is not None]
        earlier = bool(task.note.get("earlier"))
        ready = [r for r in done if not earlier and scans.scan_of(r["token"]) is not None]
        rest = [r for r in done if r not in ready]
        for part, offered in ((ready, False), (rest, True)):
            if part:
                self._pending.append(Pending(task, part, offered))
        self._forget_if_done(task)
        self._load_soon()

    @staticmethod
    def _tell_failed(failed: list[Record]) -> None:
        if not failed:
            return
        lines = []
        for record in failed:
            scan = scans.scan_of(record["token"])
            name = scan.GetName() if scan is not None else _("A scan that is no longer loaded")
            lines.append(f"{name}: {record.get('message', '')} {record.get('remedy', '')}".strip())
        what = _("{count} scans were not segmented.").format(count=len(failed))
        dialogs.show_later(dialogs.Problem(what, lines[0], "", "\n".join(lines) if len(lines) > 1 else ""))

    # loading, one result at a time, so that Slicer stays usable in between

    def _load_soon(self) -> None:
        if self.loading:
            qt.QTimer.singleShot(0, self._load_next)

    def _load_next(self) -> None:
        pending = next((p for p in self._pending if not p.offered and p.records), None)
        if self._closed or pending is None:
            return
        record = pending.records.pop(0)
        if not pending.accepted and scans.scan_of(record["token"]) is None:  # it has gone since
            self._pending.append(Pending(pending.task, [record], True))
            record = None
        try:
            if record is not None:
                self._load(pending.task, record)
        except Exception as error:
            dialogs.show_later(dialogs.problem_of(error, _("A result could not be loaded.")))
        if not pending.records:
            self._pending.remove(pending)
            self._forget_if_done(pending.task)
        self._load_soon()
        self._context.refresh()

    def _load(self, task: Task, record: Record) -> None:
        note = task.note
        node = results.add(record, note.get("name", ""), note.get("shown", ""), task.ending["provenance"])
        heard = self._arrived if task.purpose == COMPARE else self._loaded
        heard(task, node)

    def _forget_if_done(self, task: Task) -> None:
        if not any(pending.task is task for pending in self._pending):
            self._context.runner.forget(task)

    # what waits for the user

    def _offered(self) -> list[Pending]:
        return [pending for pending in self._pending if pending.offered]

    def offer(self) -> str:
        """What waits, in a sentence; "" when nothing does."""
        waiting = self._offered()
        if not waiting:
            return ""
        count = sum(len(pending.records) for pending in waiting)
        lost = sum(scans.scan_of(record["token"]) is None for pending in waiting for record in pending.records)
        names = ", ".join(sorted({str(pending.task.note.get("shown", "")) for pending in waiting}))
        ready = (
            _("1 result of {name} is ready").format(name=names)
            if count == 1
            else _("{count} results of {name} are ready").format(count=count, name=names)
        )
        if lost == 0:
            return _("{ready}, from an earlier session.").format(ready=ready)
        if lost == count:
            gone = _("its scan is no longer loaded") if count == 1 else _("their scans are no longer loaded")
            return f"{ready}; {gone}."
        return _("{ready}; the scans of {lost} are no longer loaded.").format(ready=ready, lost=lost)

    def take_offer(self) -> None:
        """Load what waits; without a scan where that is gone."""
        for pending in self._offered():
            pending.offered, pending.accepted = False, True
        self._load_soon()
        self._context.refresh()

    def drop_offer(self) -> None:
        """Delete what waits."""
        for pending in self._offered():
            self._pending.remove(pending)
            self._forget_if_done(pending.task)
        self._context.refresh()

    def close(self) -> None:
        """The module is unloaded: what was not loaded is offered by the next session."""
        self._closed = True
