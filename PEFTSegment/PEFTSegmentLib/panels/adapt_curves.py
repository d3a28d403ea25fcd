"""The curves of an adaptation, under "How it learns"."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..plots import AGREEMENT, LOSS, MATCH, RANK, CurvePlot, Curves
from ..runner import Task
from . import adapt_progress as progress
from . import site_words
from .adapt_result import say


class CurvesView:
    """The part of the form with the plot.

    Parameters
    ----------
    panel : Panel
        Whose form holds the widgets.
    known : dict
        The curves, by the name of a task's folder.
    """

    def __init__(self, panel, known: dict[str, Curves]) -> None:
        self._panel, self._known = panel, known
        self.ui = panel.ui
        self.plot = CurvePlot(self.ui.plotLayout, lambda: panel.state.parameterNode)
        self._kinds: tuple[str, ...] = ()
        self.ui.curveBox.connect("currentIndexChanged(int)", self._choose)
        self.ui.curvesBox.toggled.connect(self._unfolded)
        panel.section.contentsCollapsed.connect(self._unfolded)

    def look(self, task: Task | None) -> None:
        """Show the curves of a task, or nothing."""
        curves = self._known.get(task.folder.name) if task is not None else None
        shown = curves is not None and bool(curves.rows)
        self.ui.curvesBox.visible = shown
        if not shown:
            return
        say(self.ui.matchNow, progress.match_now(curves.match) or site_words.agreement_now(curves.agreement))
        self._offer(curves)
        is_line = len(curves.rows) > 1  # VTK reports an error for a line of one point
        self.ui.plotFrame.visible = is_line
        if is_line and not self.ui.curvesBox.collapsed and not self._panel.section.collapsed:
            self.plot.show(curves, self.ui.curveBox.currentData or curves.kinds[0])

    def _offer(self, curves: Curves) -> None:
        titles = {
            MATCH: _("Match to your own labels"),
            AGREEMENT: _("Agreement with itself"),
            LOSS: _("Details: error while learning (falls)"),
            RANK: _("Details: how much of the adapter is in use"),
        }
        kinds = curves.kinds
        if kinds != self._kinds:
            self._kinds = kinds
            self.ui.curveBox.clear()
            for kind in kinds:
                self.ui.curveBox.addItem(titles[kind], kind)

    def _unfolded(self, _changed: bool) -> None:
        """The plot is made only where it is seen."""
        self._panel.context.refresh()

    def _choose(self, index: int) -> None:
        if not self._panel.showing:
            self._panel.context.refresh()
