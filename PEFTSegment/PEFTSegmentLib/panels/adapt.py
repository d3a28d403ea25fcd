"""Step 3: adapt the model to the labelled scans; watch, stop, take the result."""

from __future__ import annotations

import datetime

import qt
from slicer.i18n import tr as _

from .. import dialogs
from ..panel import Panel, enable
from ..plots import LOSS, MATCH, RANK, CurvePlot, Curves
from ..runner import Task
from . import adapt_choices as choices
from . import adapt_progress as progress
from . import adapt_resume
from .adapt_jobs import AdaptJobs
from .adapt_options import AdvancedOptions
from .adapt_result import ResultView, say


class AdaptPanel(Panel):
    """Step 3."""

    STEP = 3
    FORM = "AdaptPanel.ui"

    def __init__(self, context, section) -> None:
        super().__init__(context, section)
        self._support, self._library = choices.SupportCache(), choices.LibraryCache()
        self.jobs = AdaptJobs(context, self._support_now, self._go_on_later)
        self.resuming = adapt_resume.Resuming(context, self._not_resumed)
        self.result = ResultView(context, self, self.jobs)
        self.plot = CurvePlot(self.ui.plotLayout, lambda: self.state.parameterNode)
        self.options = AdvancedOptions(context, self)
        self._closed = False
        self._ready = ""
        self._kinds: tuple[str, ...] = ()
        self._connect()

    def _connect(self) -> None:
        ui = self.ui
        ui.nameEdit.textChanged.connect(self._rename)
        ui.nameEdit.editingFinished.connect(self.context.refresh)
        ui.estimateBox.toggled.connect(self._set_estimate)
        ui.curveBox.connect("currentIndexChanged(int)", self._choose_curve)
        for button, function in (
            (ui.checkButton, self.check),
            (ui.adaptButton, self.adapt),
            (ui.anywayButton, self.adapt_anyway),
            (ui.asItIsButton, self.use_as_it_is),
            (ui.stopButton, self.stop_and_keep),
            (ui.cancelButton, self.cancel),
            (ui.goOnButton, self.go_on),
            (ui.discardButton, self.discard),
        ):
            button.clicked.connect(function)

    def _support_now(self) -> choices.Support:
        return self._support.look(self.context)

    @property
    def name(self) -> str:
        """Name of the adapter to make: the user's, or one of structures and date."""
        return self.state.adapterName.strip() or self._proposed()

    def _proposed(self) -> str:
        wanted = self._support_now().wanted
        return choices.proposed_name(wanted, datetime.date.today()) if wanted else ""

    # what is shown

    def title(self) -> str:
        """The section's header."""
        running, done, unfinished = self.jobs.running(), self.jobs.finished(), self.jobs.unfinished()
        if running:
            return _("3 Adapt - {state}").format(state=progress.title_state(running[0]))
        if self.jobs.check_now() is not None:
            return _("3 Adapt - checking")
        if done is not None:
            return _("3 Adapt - '{name}' saved").format(name=progress.on_header(done.note["adapter"]))
        if unfinished is not None:
            return _("3 Adapt - '{name}' did not finish").format(name=progress.on_header(unfinished.note["adapter"]))
        return _("3 Adapt") if self._ready else _("3 Adapt - ready")

    def look(self) -> None:
        """Show choices, cost, the running job and what ended."""
        found = self._support_now()
        self._look_at_choices(found)
        self._look_at_check(found)
        self._look_at_running()
        self._look_at_ended(found)

    def _look_at_choices(self, found: choices.Support) -> None:
        ui = self.ui
        enable(ui.unlabelledButton, _("Comes with a later version: adapting to a new scanner without labels"))
        text = self.state.adapterName or self._proposed()
        emptied = ui.nameEdit.hasFocus() and not ui.nameEdit.text  # the user is about to type another one
        if ui.nameEdit.text != text and not emptied:
            ui.nameEdit.text = text
            ui.nameEdit.setCursorPosition(0)  # the beginning of a long one is seen
        no_name, hint = "", ""
        if found.wanted:
            no_name, hint = choices.name_state(self.name, self._library.rows(), self.state.model, found.wanted)
        say(ui.nameHint, no_name or hint)
        say(ui.summaryLabel, choices.summary(found))
        few = len(found.rows) < choices.FEWEST_TO_ESTIMATE
        ui.estimateBox.checked = self.state.estimate
        enable(ui.estimateBox, choices.estimate_hint(found) if few else "", choices.estimate_hint(found))
        say(ui.estimateHint, choices.estimate_hint(found))
        self.options.look()
        self._ready = choices.reason_against(self.context, found, no_name)
        busy = _("The check is running") if self.jobs.check_now() is not None else ""
        enable(ui.adaptButton, self._ready or busy, _("Learn from the labelled scans"))
        tip = _("Says how long it takes and what is wrong with the scans; nothing is adapted")
        enable(ui.checkButton, self._ready or busy, tip)

    def _look_at_check(self, found: choices.Support) -> None:
        ui, checked = self.ui, self.jobs.checked
        current = self.jobs.is_current(found)
        lines = [self.jobs.message]
        cost = ""
        if checked is not None and found.rows:
            cost = choices.cost(checked.facts, checked.device)
            if cost and not current:
                cost = _("Before the last changes: {cost} Check again.").format(cost=cost)
            if current and checked.ended:
                match = choices.base_match(checked.facts["base_match"], checked.facts["already_matches"])
                lines += [match, progress.listed(checked.facts["warnings"], checked.tokens)]
        say(ui.costLabel, cost)
        asks = self.jobs.asks and current
        ui.asItIsFrame.visible = asks
        if asks:
            say(ui.asItIsLabel, lines.pop(1))
        say(ui.warningsLabel, "\n".join(line for line in lines if line))

    def _look_at_running(self) -> None:
        ui, running, check = self.ui, self.jobs.running(), self.jobs.check_now()
        task = running[0] if running else check
        ui.runFrame.visible = task is not None
        if task is None:
            return
        say(ui.runTitle, task.note["title"])
        text, value, maximum = progress.stage(task)
        say(ui.progressLabel, text)
        ui.progressBar.maximum = maximum
        ui.progressBar.value = value
        waiting = len(running) - 1 + (1 if running and check is not None else 0)
        say(ui.waitingLabel, _("{n} more waiting.").format(n=waiting) if waiting > 0 else "")
        curves = self.jobs.curves.get(task.folder.name)
        learning = task.state == "running" and curves is not None and bool(curves.rows)
        ui.stopButton.visible = bool(running)
        stopping = _("It is stopping") if task.stopping else ""
        too_early = "" if learning else _("Nothing has been learnt yet")
        enable(ui.stopButton, stopping or too_early, _("Saves what it has learnt up to now as the adapter"))
        enable(ui.cancelButton, "", _("Stops it; nothing is saved in the library"))
        say(ui.runWarnings, progress.listed(task.warnings, task.note["scans"]))

    def _look_at_ended(self, found: choices.Support) -> None:
        ui, done, left = self.ui, self.jobs.finished(), self.jobs.unfinished()
        self.result.look(done)
        ui.resumeFrame.visible = left is not None
        if left is not None:
            say(ui.resumeLabel, progress.unfinished(left))
            ui.goOnButton.visible = adapt_resume.can_go_on(left)
            writing = _("Its scans are being written") if self.resuming.task is not None else ""
            reason = writing or adapt_resume.reason_against(self.context, left, found)
            enable(ui.goOnButton, reason, _("Learns on from where it was"))
            enable(ui.discardButton, writing, _("Deletes what it has learnt so far"))
        running = self.jobs.running()
        self._look_at_curves(running[0] if running else done)

    def _look_at_curves(self, task: Task | None) -> None:
        curves = self.jobs.curves.get(task.folder.name) if task is not None else None
        shown = curves is not None and bool(curves.rows)
        self.ui.curvesBox.visible = shown
        if not shown:
            return
        say(self.ui.matchNow, progress.match_now(curves.match))
        self._offer_curves(curves)
        if not self.ui.curvesBox.collapsed and not self.section.collapsed:
            self.plot.show(curves, self.ui.curveBox.currentData or MATCH)

    def _offer_curves(self, curves: Curves) -> None:
        titles = {
            MATCH: _("Match to your own labels"),
            LOSS: _("Details: loss"),
            RANK: _("Details: directions still in use (mean rank)"),
        }
        kinds = (MATCH, LOSS, RANK) if curves.has_ranks else (MATCH, LOSS)
        if kinds != self._kinds:
            self._kinds = kinds
            self.ui.curveBox.clear()
            for kind in kinds:
                self.ui.curveBox.addItem(titles[kind], kind)

    # what the user does

    def _rename(self, text: str) -> None:
        if not self.showing:
            self.state.adapterName = text if text.strip() else ""

    def _set_estimate(self, on: bool) -> None:
        if not self.showing:
            self.state.estimate = on

    def _choose_curve(self, index: int) -> None:
        if not self.showing:
            self.context.refresh()

    def check(self) -> None:
        """Say what an adaptation would cost, and what is wrong."""
        with self.telling(_("The check could not be started.")):
            self.jobs.check(self._support_now(), then_adapt=False)
            self.context.work_changed()

    def adapt(self) -> None:
        """Check first where nothing valid is known, then adapt."""
        with self.telling(_("The adaptation could not be started.")):
            found = self._support_now()
            checked = self.jobs.checked
            known = self.jobs.is_current(found) and checked.ended and not checked.facts["problems"]
            if not known:
                self.jobs.check(found, then_adapt=True)
            elif checked.facts["already_matches"]:
                self.jobs.asks = True
            else:
                self.jobs.adapt(found, self.name)
            self.context.work_changed()

    def adapt_anyway(self) -> None:
        """Adapt although the model matches already."""
        with self.telling(_("The adaptation could not be started.")):
            self.jobs.adapt(self._support_now(), self.name)
            self.context.work_changed()

    def _go_on_later(self, mark: str) -> None:
        """A check has ended well: adapt, but not inside of its handler."""

        def start() -> None:
            if not self._closed and choices.fingerprint(self.context, self._support_now()) == mark:
                self.adapt_anyway()

        qt.QTimer.singleShot(0, start)

    def use_as_it_is(self) -> None:
        """Go to step 4 with the model alone."""
        self.jobs.asks = False
        self.state.adapter = ""
        self.context.unfold(4)
        self.context.refresh()

    def _task_on_show(self) -> Task | None:
        running = self.jobs.running()
        return running[0] if running else self.jobs.check_now()

    def stop_and_keep(self) -> None:
        """Save what it has learnt up to now."""
        task = self._task_on_show()
        if task is not None:
            with self.telling(_("It could not be stopped.")):
                self.context.runner.stop_and_keep(task)

    def cancel(self) -> None:
        """Stop the task that is shown."""
        task = self._task_on_show()
        if task is not None:
            with self.telling(_("It could not be cancelled.")):
                self.context.runner.cancel(task)

    def go_on(self) -> None:
        """Go on with an adaptation that has not finished."""
        task = self.jobs.unfinished()
        if task is not None:
            with self.telling(_("The adaptation cannot go on.")):
                self.resuming.start(task, self._support_now())
                self.context.refresh()

    def _not_resumed(self, error: Exception) -> None:
        dialogs.show_later(dialogs.problem_of(error, _("The adaptation cannot go on.")))

    def discard(self) -> None:
        """Delete an adaptation that has not finished."""
        task = self.jobs.unfinished()
        if task is not None:
            with self.telling(_("It could not be deleted.")):
                self.jobs.dismiss(task)

    # the life of a module

    def scene_closing(self) -> None:
        """The scene takes the outlines with it; its end empties the plot's nodes."""
        self.result.review.closing()
        self.plot.forget()

    def cleanup(self) -> None:
        """The module is unloaded: jobs go on, nothing of the panel stays in the scene."""
        self._closed = True
        self.resuming.stop()
        self.result.review.end()
        self.plot.remove()
