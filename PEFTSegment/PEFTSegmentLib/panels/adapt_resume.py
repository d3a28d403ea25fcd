"""Going on with an adaptation that was cancelled or failed: its scans, deleted when it ended, are written once more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
from slicer.i18n import tr as _

from peftseg import config
from peftseg.errors import BadInput
from peftseg.job_folder import can_resume, is_alive
from peftseg.paths import owner_only

from .. import scans, work
from ..background import Background
from ..context import Context
from ..runner import Task
from .adapt_choices import Support

POLL_MS = 100


def can_go_on(task: Task) -> bool:
    """Whether an ended task has left anything to go on from."""
    return task.state in ("failed", "cancelled") and can_resume(task.folder)


def reason_against(context: Context, task: Task, found: Support) -> str:
    """Why a task cannot go on now, in words; "" when it can."""
    tokens = task.note["scans"]
    if not is_labelled(task):
        lost = any(scans.scan_of(token) is None for token in tokens)
        return _("Its scans are not all loaded; load their scene first") if lost else context.engine_ready()
    ready = {row.scan.GetAttribute(scans.TOKEN) for row in found.rows}
    if any(token not in ready for token in tokens):
        return _("Its labelled scans are not all loaded; load their scene first")
    if [s.name for s in found.wanted] != list(task.note["structures"]):
        return _("The structures in step 2 are not those that it learnt")
    return context.engine_ready()


def is_labelled(task: Task) -> bool:
    """Whether an adaptation learns from labelled scans."""
    return "structures" in task.note


def exports_of(context: Context, task: Task, found: Support) -> list[tuple]:
    """What has to be written once more; PeftsegError where a scan cannot be."""
    tokens = task.note["scans"]
    if not is_labelled(task):
        return work.scan_exports([scans.require_usable(scans.scan_of(token)) for token in tokens])
    rows = {row.scan.GetAttribute(scans.TOKEN): row for row in found.rows}
    return work.support_exports(context, [rows[token] for token in tokens])[0]


class Resuming:
    """Writes the scans of one task again in a thread, then starts it.

    Parameters
    ----------
    context : Context
    failed : callable
        Gets the error where it does not work.
    """

    def __init__(self, context: Context, failed: Callable[[Exception], None]) -> None:
        self._context, self._failed = context, failed
        self._writing: Background | None = None
        self.task: Task | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._poll)

    def start(self, task: Task, found: Support) -> None:
        """Begin; PeftsegError where a scan cannot be written."""
        if self.task is not None:
            return
        exports = exports_of(self._context, task, found)
        scratch = owner_only(task.folder / "scratch")
        self._writing = Background([(function, scratch, *arguments) for function, *arguments in exports])
        self.task = task
        self._timer.start()

    def stop(self) -> None:
        """The module is unloaded."""
        self._timer.stop()
        if self._writing is not None:
            self._writing.stop()
        self._writing = self.task = None

    def _poll(self) -> None:
        self.task.handle.poll()  # takes note of a worker that has ended; it lives on for a moment after its last word
        if not self._writing.done or is_alive(self.task.folder):
            return
        self._timer.stop()
        task, writing = self.task, self._writing
        self.task = self._writing = None
        try:
            if writing.error is not None:
                raise writing.error
            _require_same_files(task)
            for gone in ("earlier", "waits", "part", "keeps"):
                task.note.pop(gone, None)
            self._context.runner.retry(task)
        except Exception as error:  # told to the user by the panel
            self._failed(error)
        self._context.work_changed()


def _require_same_files(task: Task) -> None:
    """The job names its files; others are written where structures overlap now that did not before."""
    job = config.from_json((task.folder / "job.json").read_text(encoding="utf-8"))
    if isinstance(job, config.SiteAdaptJob):
        return
    files = [Path(path) for item in job.support for path in (item.image, item.labels)]
    if not all(path.is_file() for path in files):
        raise BadInput(
            _("The labels have changed since this adaptation was started."), _("Discard it, and adapt anew.")
        )
