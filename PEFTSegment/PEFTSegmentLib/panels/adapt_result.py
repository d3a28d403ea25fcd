"""What an adaptation gave: the saved adapter, the estimate of its accuracy, the left-out scans."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from peftseg import library

from .. import dialogs
from ..context import Context
from ..panel import enable
from ..runner import Task
from . import adapt_progress as progress
from .adapt_jobs import AdaptJobs
from .adapt_review import Review, cases_of, legend


def say(label, text: str) -> None:
    """Show a text, or hide its label where there is none."""
    label.visible = bool(text)
    shown = progress.breakable(text)
    if label.text != shown:
        label.text = shown


class ResultView:
    """The part of the form that shows the newest finished adaptation.

    Parameters
    ----------
    context : Context
    panel : Panel
        Whose form holds the widgets.
    jobs : AdaptJobs
    """

    def __init__(self, context: Context, panel, jobs: AdaptJobs) -> None:
        self._context, self._panel, self._jobs = context, panel, jobs
        self.ui = panel.ui
        self.review = Review(context)
        self.ui.legendLabel.text = legend()
        for button, function in (
            (self.ui.applyButton, self.apply),
            (self.ui.saveButton, self.save_again),
            (self.ui.closeButton, self.close),
            (self.ui.lookButton, self.look_at_left_out),
            (self.ui.previousButton, self.previous),
            (self.ui.nextButton, self.next),
            (self.ui.endReviewButton, self.end_review),
        ):
            button.clicked.connect(function)

    def look(self, done: Task | None) -> None:
        """Show a finished adaptation, or nothing."""
        ui = self.ui
        ui.doneFrame.visible = done is not None
        if done is None:
            return
        ending, tokens = done.ending, done.note["scans"]
        stored = ending.get("ref") is not None
        say(ui.doneLabel, progress.saved(ending))
        ui.doneLabel.toolTip = progress.chosen(ending, tokens)
        say(ui.estimateResult, progress.estimated(ending, tokens))
        say(ui.doneWarnings, progress.listed(done.warnings, tokens))
        ui.applyButton.visible = stored
        ui.saveButton.visible = not stored
        ui.lookButton.visible = bool(cases_of(ending, tokens)) and not self.review.active
        ui.reviewFrame.visible = self.review.active
        if self.review.active:
            say(ui.reviewLabel, self.review.text())
            last = len(self.review.cases) - 1
            enable(ui.previousButton, "" if self.review.position else _("This is the worst one"))
            enable(ui.nextButton, "" if self.review.position < last else _("This is the best one"))

    def apply(self) -> None:
        """Go to step 4 with the new adapter."""
        done = self._jobs.finished()
        if done is not None:
            self._context.state.adapter = done.ending["ref"]
            self._context.unfold(4)

    def save_again(self) -> None:
        """Put an adapter into the library that did not take it when it was made."""
        done = self._jobs.finished()
        if done is not None:
            with self._panel.telling(_("The adapter could not be put into the library.")):
                path = library.store(done.ending["adapter"])
                done.ending.update(ref=library.show_adapter(path)["ref"], path=str(path))
                self._context.refresh()

    def close(self) -> None:
        """Dismiss the result; the left-out scans' files are deleted with it."""
        done = self._jobs.finished()
        if done is None:
            return
        if done.ending.get("ref") is None and Path(done.ending["adapter"]).is_file():
            text = _("The adapter '{name}' is not in the library. Delete it?").format(name=done.ending["name"])
            if dialogs.ask(text, (_("Keep it"), _("Delete it"), _("Cancel"))) != 1:
                return
        self.review.end()
        with self._panel.telling(_("The result could not be closed.")):
            self._jobs.dismiss(done)

    # the left-out scans

    def look_at_left_out(self) -> None:
        """Show the left-out scans with three outlines, worst first."""
        done = self._jobs.finished()
        if done is not None:
            self._reviewing(lambda: self.review.start(cases_of(done.ending, done.note["scans"])))

    def previous(self) -> None:
        """Show a worse scan."""
        self._reviewing(lambda: self.review.step(-1))

    def next(self) -> None:
        """Show a better scan."""
        self._reviewing(lambda: self.review.step(1))

    def end_review(self) -> None:
        """Take the outlines out of the scene."""
        self._reviewing(self.review.end)

    def _reviewing(self, function) -> None:
        with self._panel.telling(_("The left-out scans cannot be shown.")):
            function()
        self._context.refresh()
