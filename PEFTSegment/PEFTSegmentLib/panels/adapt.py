"""Step 3: adapt the model to labelled scans, or to unlabelled ones of a new scanner; watch, stop, take the result."""

from __future__ import annotations

import datetime

import qt
from slicer.i18n import tr as _

from ..panel import Panel, enable
from ..runner import Task
from . import adapt_choices as choices
from . import adapt_progress as progress
from .adapt_curves import CurvesView
from .adapt_jobs import AdaptJobs
from .adapt_options import AdvancedOptions
from .adapt_result import ResultView, say
from .adapt_running import RunningView
from .adapt_start import StartChoice
from .site import SiteChoice, VerdictView
from .site_jobs import SiteJobs
from .site_words import kind_reason, title_state


class AdaptPanel(Panel):
    """Step 3."""

    STEP = 3
    FORM = "AdaptPanel.ui"

    def __init__(self, context, section) -> None:
        super().__init__(context, section)
        self._support, self._library = choices.SupportCache(), choices.LibraryCache()
        self.jobs = AdaptJobs(context, self._support_now, self._go_on_later)
        self.site_jobs = SiteJobs(context, self.jobs.curves)
        self.site = SiteChoice(context, self, self._library, self.site_jobs)
        self.running = RunningView(context, self, self.jobs, self._support_now)
        self.result = ResultView(context, self, self.jobs)
        self.verdict = VerdictView(context, self, self.site_jobs)
        self.curves = CurvesView(self, self.jobs.curves)
        self.options = AdvancedOptions(context, self)
        self.start = StartChoice(context, self.ui, self._library)
        self._closed = False
        self._ready = ""
        self._connect()

    def _connect(self) -> None:
        ui = self.ui
        ui.nameEdit.textChanged.connect(self._rename)
        ui.nameEdit.editingFinished.connect(self.context.refresh)
        ui.estimateBox.toggled.connect(self._set_estimate)
        ui.startBox.toggled.connect(self._set_start)
        ui.unlabelledButton.toggled.connect(self._choose_kind)
        for button, function in (
            (ui.checkButton, self.check),
            (ui.adaptButton, self.adapt),
            (ui.anywayButton, self.adapt_anyway),
            (ui.asItIsButton, self.use_as_it_is),
        ):
            button.clicked.connect(function)

    def _support_now(self) -> choices.Support:
        return self._support.look(self.context)

    @property
    def name(self) -> str:
        """Name of the adapter to make from labelled scans: the user's, or one of structures and date."""
        return self.state.adapterName.strip() or self._proposed()

    def _proposed(self) -> str:
        wanted = self._support_now().wanted
        return self.start.name or (choices.proposed_name(wanted, datetime.date.today()) if wanted else "")

    # what is shown

    def title(self) -> str:
        """The section's header."""
        running, unfinished = self.running.running(), self.running.unfinished()
        done, judged = self.jobs.finished(), self.site_jobs.finished()
        if running:
            return _("3 Adapt - {state}").format(state=progress.title_state(running[0]))
        if self.jobs.check_now() is not None:
            return _("3 Adapt - checking")
        if judged is not None:
            state = title_state(judged.ending, progress.on_header(judged.note["adapter"]))
            return _("3 Adapt - {state}").format(state=state)
        if done is not None:
            return _("3 Adapt - '{name}' saved").format(name=progress.on_header(done.note["adapter"]))
        if unfinished is not None:
            return _("3 Adapt - '{name}' did not finish").format(name=progress.on_header(unfinished.note["adapter"]))
        return _("3 Adapt") if self._ready else _("3 Adapt - ready")

    def look(self) -> None:
        """Show choices, cost, the running job and what ended."""
        found = self._support_now()
        self.start.find(found, self.state.adapterName.strip())
        self.start.look(found)
        self._look_at_kind()
        self._look_at_name()
        self.options.look()
        self.site.ways.look()
        if self.state.labelled:
            self._look_at_choices(found)
            self._look_at_check(found)
        else:
            self._ready = self.site.look()
            enable(
                self.ui.adaptButton, self._ready, _("Get used to these scans; nothing is saved before you have decided")
            )
        self.running.look(found)
        done, judged, running = self.jobs.finished(), self.site_jobs.finished(), self.running.running()
        self.result.look(done)
        self.verdict.look(judged)
        self.curves.look(running[0] if running else self._newest(done, judged))

    def _newest(self, *ended: Task | None) -> Task | None:
        """The one that was asked for last."""
        return max((task for task in ended if task is not None), key=self.context.runner.tasks.index, default=None)

    def _look_at_kind(self) -> None:
        """Labelled or unlabelled scans: each has its own part of the form."""
        ui, labelled = self.ui, self.state.labelled
        ui.labelledButton.checked, ui.unlabelledButton.checked = labelled, not labelled
        tip = _("Gets the model used to scans that look different from those that it was made with; needs no labels")
        enable(ui.unlabelledButton, kind_reason(self.context.model()), tip)
        ui.siteFrame.visible = not labelled
        for widget in (ui.estimateBox, ui.checkButton):
            widget.visible = labelled
        if not labelled:
            ui.asItIsFrame.visible = False
            for label in (ui.summaryLabel, ui.costLabel, ui.estimateHint, ui.warningsLabel):
                say(label, "")

    def _look_at_name(self) -> None:
        ui, state = self.ui, self.state
        own, proposed = (state.adapterName, self._proposed) if state.labelled else (state.siteName, self.site.proposed)
        text = own or proposed()
        emptied = ui.nameEdit.hasFocus() and not ui.nameEdit.text  # the user is about to type another one
        if ui.nameEdit.text != text and not emptied:
            ui.nameEdit.text = text
            ui.nameEdit.setCursorPosition(0)  # the beginning of a long one is seen

    def _look_at_choices(self, found: choices.Support) -> None:
        ui = self.ui
        no_name, hint = "", ""
        if found.wanted:
            no_name, hint = choices.name_state(self.name, self._library.rows(), self.state.model, found.wanted)
        say(ui.nameHint, no_name or hint)
        say(ui.summaryLabel, choices.summary(found))
        hint = choices.estimate_hint(found)
        few = choices.no_estimate(found)
        if self.start.on:
            few = hint = _("Not possible when it goes on from an adapter, which has seen all of the scans.")
        ui.estimateBox.checked = self.state.estimate and not self.start.on
        enable(ui.estimateBox, few, hint)
        say(ui.estimateHint, hint)
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
            if cost and self.start.on:
                cost = _("{cost} Going on from the adapter takes about half of this.").format(cost=cost)
            if current and checked.ended:
                match = choices.base_match(checked.facts["base_match"], checked.facts["already_matches"])
                lines += [match, progress.listed(checked.facts["warnings"], checked.tokens)]
        say(ui.costLabel, cost)
        asks = self.jobs.asks and current
        ui.asItIsFrame.visible = asks
        if asks:
            say(ui.asItIsLabel, lines.pop(1))
        say(ui.warningsLabel, "\n".join(line for line in lines if line))

    # what the user does

    def _choose_kind(self, unlabelled: bool) -> None:
        if not self.showing:
            self.state.labelled = not unlabelled

    def _rename(self, text: str) -> None:
        if self.showing:
            return
        name = text if text.strip() else ""
        if self.state.labelled:
            self.state.adapterName = name
        else:
            self.state.siteName = name

    def _set_estimate(self, on: bool) -> None:
        if not self.showing:
            self.state.estimate = on

    def _set_start(self, on: bool) -> None:
        if not self.showing:
            self.start.choose(on)
            self.context.refresh()

    def check(self) -> None:
        """Say what an adaptation would cost, and what is wrong."""
        with self.telling(_("The check could not be started.")):
            self.jobs.check(self._support_now(), then_adapt=False, goes_on=self.start.on)
            self.context.work_changed()

    def adapt(self) -> None:
        """Check first where nothing valid is known, then adapt; without labels there is nothing to check before."""
        with self.telling(_("The adaptation could not be started.")):
            if not self.state.labelled:
                self.site.adapt()
                self.context.work_changed()
                return
            found = self._support_now()
            checked = self.jobs.checked
            known = self.jobs.is_current(found) and checked.ended and not checked.facts["problems"]
            if not known:
                self.jobs.check(found, then_adapt=True, goes_on=self.start.on)
            elif checked.facts["already_matches"]:
                self.jobs.asks = True
            else:
                self._start_adapting(found)
            self.context.work_changed()

    def adapt_anyway(self) -> None:
        """Adapt although the model matches already."""
        with self.telling(_("The adaptation could not be started.")):
            self._start_adapting(self._support_now())
            self.context.work_changed()

    def _start_adapting(self, found: choices.Support) -> None:
        self.start.find(found, self.state.adapterName.strip())
        self.jobs.adapt(found, self.name, self.start.fields())

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

    # the life of a module

    def scene_closing(self) -> None:
        """The scene takes the outlines with it; its end empties the plot's nodes."""
        self.result.review.closing()
        self.curves.plot.forget()

    def cleanup(self) -> None:
        """The module is unloaded: jobs go on, nothing of the panel stays in the scene."""
        self._closed = True
        self.running.resuming.stop()
        self.result.review.end()
        self.curves.plot.remove()
