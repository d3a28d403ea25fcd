"""The adaptations of step 3, with and without labels: the one that runs, and the one that has not finished."""

from __future__ import annotations

from collections.abc import Callable

from slicer.i18n import tr as _

from .. import dialogs
from ..context import Context
from ..panel import enable
from ..runner import Task
from . import adapt_progress as progress
from . import adapt_resume, site_words
from .adapt_choices import Support
from .adapt_jobs import ADAPT, AdaptJobs
from .adapt_result import say
from .site_jobs import SITE


class RunningView:
    """The frames with the bar, and with the offer to go on.

    Parameters
    ----------
    context : Context
    panel : Panel
        Whose form holds the widgets.
    jobs : AdaptJobs
    support_now : callable
        Gives the support set as it is now.
    """

    def __init__(self, context: Context, panel, jobs: AdaptJobs, support_now: Callable[[], Support]) -> None:
        self._context, self._panel, self._jobs, self._support_now = context, panel, jobs, support_now
        self.ui = panel.ui
        self.resuming = adapt_resume.Resuming(context, self._not_resumed)
        for button, function in (
            (self.ui.stopButton, self.stop_and_keep),
            (self.ui.cancelButton, self.cancel),
            (self.ui.goOnButton, self.go_on),
            (self.ui.discardButton, self.discard),
        ):
            button.clicked.connect(function)

    def running(self) -> list[Task]:
        """Adaptations that have not ended, in the order in which they were asked for."""
        return [task for task in self._context.runner.active if task.purpose in (ADAPT, SITE)]

    def unfinished(self) -> Task | None:
        """The newest adaptation that failed or was cancelled and is kept."""
        tasks = [task for task in self._context.runner.tasks if task.purpose in (ADAPT, SITE)]
        return next((task for task in reversed(tasks) if task.state in ("failed", "cancelled")), None)

    # what is shown

    def look(self, found: Support) -> None:
        """Show what runs, and what has not finished."""
        self._look_at_running()
        self._look_at_unfinished(found)

    def _look_at_running(self) -> None:
        ui, running, check = self.ui, self.running(), self._jobs.check_now()
        task = running[0] if running else check
        ui.runFrame.visible = task is not None
        if task is None:
            return
        say(ui.runTitle, task.note["title"])
        words = progress.stage(task)
        text, value, maximum = site_words.stage(task, words) if task.purpose == SITE else words
        say(ui.progressLabel, text)
        ui.progressBar.maximum = maximum
        ui.progressBar.value = value
        waiting = len(running) - 1 + (1 if running and check is not None else 0)
        say(ui.waitingLabel, _("{n} more waiting.").format(n=waiting) if waiting > 0 else "")
        ui.stopButton.visible = bool(running)
        stopping = _("It is stopping") if task.stopping else ""
        too_early = "" if self._has_learnt(task) else _("Nothing has been learnt yet")
        kept = _("Saves what it has learnt up to now as the adapter")
        checked = _("Learning ends now; what it has learnt up to now is checked")
        enable(ui.stopButton, stopping or too_early, checked if task.purpose == SITE else kept)
        enable(ui.cancelButton, "", _("Stops it; nothing is saved in the library"))
        say(ui.runWarnings, progress.listed(task.warnings, task.note["scans"]))

    def _has_learnt(self, task: Task) -> bool:
        curves = self._jobs.curves.get(task.folder.name)
        return task.state == "running" and curves is not None and bool(curves.rows)

    def _look_at_unfinished(self, found: Support) -> None:
        ui, left = self.ui, self.unfinished()
        ui.resumeFrame.visible = left is not None
        if left is None:
            return
        say(ui.resumeLabel, progress.unfinished(left))
        ui.goOnButton.visible = adapt_resume.can_go_on(left)
        writing = _("Its scans are being written") if self.resuming.task is not None else ""
        reason = writing or adapt_resume.reason_against(self._context, left, found)
        enable(ui.goOnButton, reason, _("Learns on from where it was"))
        enable(ui.discardButton, writing, _("Deletes what it has learnt so far"))

    # what the user does

    def _task_on_show(self) -> Task | None:
        running = self.running()
        return running[0] if running else self._jobs.check_now()

    def stop_and_keep(self) -> None:
        """End the learning with what it has learnt up to now."""
        task = self._task_on_show()
        if task is not None:
            with self._panel.telling(_("It could not be stopped.")):
                self._context.runner.stop_and_keep(task)
                task.note["keeps"] = task.stopping

    def cancel(self) -> None:
        """Stop the task that is shown."""
        task = self._task_on_show()
        if task is not None:
            with self._panel.telling(_("It could not be cancelled.")):
                self._context.runner.cancel(task)
                task.note["keeps"] = False

    def go_on(self) -> None:
        """Go on with an adaptation that has not finished."""
        task = self.unfinished()
        if task is not None:
            with self._panel.telling(_("The adaptation cannot go on.")):
                self.resuming.start(task, self._support_now())
                self._context.refresh()

    def _not_resumed(self, error: Exception) -> None:
        dialogs.show_later(dialogs.problem_of(error, _("The adaptation cannot go on.")))

    def discard(self) -> None:
        """Delete an adaptation that has not finished."""
        task = self.unfinished()
        if task is not None:
            with self._panel.telling(_("It could not be deleted.")):
                self._jobs.dismiss(task)
