"""Curves of an adaptation as Slicer plots: one set of hidden nodes, and an embedded plot view.

The view is a `qMRMLPlotView` and not a `qMRMLPlotWidget`: the latter's bar holds a list of charts, in which hidden ones
are missing, so that it would choose another chart by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

TAG = "PEFTSegment"
VIEW, CHART, SERIES, TABLE = KINDS = (
    "vtkMRMLPlotViewNode",
    "vtkMRMLPlotChartNode",
    "vtkMRMLPlotSeriesNode",
    "vtkMRMLTableNode",
)
CHARTS = MATCH, AGREEMENT, LOSS, RANK = "Match", "Agreement", "Loss", "Rank"
FIXED = ("Pass", AGREEMENT, LOSS, RANK)  # columns before those of the structures
MOST_LINES = 12  # structures that are drawn; more could not be told apart
HEIGHT = 190
LEGEND_LENGTH = 22
GREY = (0.25, 0.25, 0.25)
Colour = tuple[int, int, int]


@dataclass
class Curves:
    """What an adaptation has told so far; kept outside of the scene, which may be closed meanwhile.

    Attributes
    ----------
    structures : tuple of (name, colour)
        Colours are 0 to 255.
    rows : list of tuple
        One a pass: pass, agreement, loss, mean rank, then the match of each structure; NaN where there is none.
    total : int
        Planned passes.
    match : dict
        The newest match by structure.
    agreement : float or None
        The newest agreement of the model with itself, of an adaptation without labels.
    taken_back : int
        How many rows were dropped because a resumed run told them again.
    """

    structures: tuple[tuple[str, Colour], ...]
    rows: list[tuple[float, ...]] = field(default_factory=list)
    total: int = 0
    match: dict[str, float | None] = field(default_factory=dict)
    agreement: float | None = None
    taken_back: int = 0

    def add(self, event: dict[str, Any]) -> bool:
        """Take a progress event; whether it belongs to the curves. A pass that is told again replaces what followed."""
        if event.get("stage") != "train" or event.get("loss") is None or event.get("left_out"):
            return False
        self.match, self.agreement = event.get("match") or {}, event.get("agreement")
        values = [self.match.get(name) for name, _colour in self.structures[:MOST_LINES]]
        row = (event["step"], self.agreement, event["loss"], event.get("mean_rank"), *values)
        while self.rows and self.rows[-1][0] >= event["step"]:
            self.rows.pop()
            self.taken_back += 1
        self.rows.append(tuple(float("nan") if value is None else float(value) for value in row))
        self.total = max(int(event["total"]), int(event["step"]))
        return True

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is to draw, of `CHARTS`."""
        told = [kind for n, kind in enumerate(FIXED[1:], start=1) if any(row[n] == row[n] for row in self.rows)]
        return tuple(kind for kind in CHARTS if kind in told or (kind == MATCH and self.structures))


class CurvePlot:
    """Shows `Curves` in a layout; makes its widget and nodes when there is something to show.

    Parameters
    ----------
    layout : QLayout
        Takes the plot view.
    owner : callable
        Gives a node of the scene; it owns the view node, so that Slicer's layout manager makes no second view for it
        when it is added. At the end of a batch or of a scene it makes one all the same, hidden, for each view node that
        is there then; so none is left in a scene that closes, and `show` sets the chart of ours each time.
    """

    def __init__(self, layout, owner: Callable[[], slicer.vtkMRMLNode]) -> None:
        self._layout, self._owner = layout, owner
        self._widget = None
        self._shown: tuple[Curves, int] | None = None  # what the table holds, and its `taken_back`

    def show(self, curves: Curves, kind: str) -> None:
        """Show one kind of curve, of `CHARTS`; only rows that are new are written."""
        if not self._holds(curves):
            self._build(curves)
        self._append(curves)
        self._scale(curves)
        view = self._find(VIEW, "View")
        chart = self._find(CHART, kind)
        if view.GetPlotChartNodeID() != chart.GetID():
            view.SetPlotChartNodeID(chart.GetID())
        if self._widget is None:
            self._widget = slicer.qMRMLPlotView()
            self._widget.minimumHeight = HEIGHT
            self._widget.setMRMLScene(slicer.mrmlScene)
            self._layout.addWidget(self._widget)
        self._widget.setMRMLPlotViewNode(view)

    def forget(self) -> None:
        """The scene closes: its end would reset the nodes, so they go with it, and are made anew when they are shown."""
        self.remove()

    def remove(self) -> None:
        """Take all nodes out of the scene; the widget goes with its parent."""
        if self._widget is not None:
            self._widget.setMRMLPlotViewNode(None)
        for kind in KINDS:
            for node in slicer.util.getNodesByClass(kind):
                if (node.GetSingletonTag() or "").startswith(TAG):
                    slicer.mrmlScene.RemoveNode(node)
        self._shown = None

    # nodes

    def _holds(self, curves: Curves) -> bool:
        """Whether the nodes are there, and hold rows of these curves only."""
        if self._shown is None or self._shown[0] is not curves or self._shown[1] != curves.taken_back:
            return False
        lines = [f"Line{n}" for n in range(len(curves.structures[:MOST_LINES]))]
        wanted = [(VIEW, "View"), (TABLE, "Table"), *((CHART, kind) for kind in CHARTS)]
        wanted += [(SERIES, name) for name in (*lines, *FIXED[1:])]
        return all(self._find(*pair) is not None for pair in wanted)

    @staticmethod
    def _find(kind: str, name: str) -> slicer.vtkMRMLNode | None:
        return slicer.mrmlScene.GetSingletonNode(TAG + name, kind)

    def _ensure(self, kind: str, name: str) -> slicer.vtkMRMLNode:
        found = self._find(kind, name)
        if found is None:
            made = getattr(slicer, kind)()
            made.SetSingletonTag(TAG + name)
            made.HideFromEditorsOn()
            made.SetSaveWithScene(False)
            if kind == VIEW:
                made.SetAndObserveParentLayoutNodeID(self._owner().GetID())
            found = slicer.mrmlScene.AddNode(made)
        return found

    def _build(self, curves: Curves) -> None:
        table = self._ensure(TABLE, "Table")
        table.SetName(_("Adaptation"))
        table.RemoveAllColumns()
        names = [*FIXED, *(f"{MATCH}{n}" for n in range(len(curves.structures[:MOST_LINES])))]
        for name in names:
            column = vtk.vtkFloatArray()
            column.SetName(name)
            table.AddColumn(column)
        lines = [
            self._series(f"Line{n}", f"{MATCH}{n}", _short(name), [c / 255 for c in colour])
            for n, (name, colour) in enumerate(curves.structures[:MOST_LINES])
        ]
        titles = {
            MATCH: (_("Match to your own labels"), lines),
            AGREEMENT: (_("Agreement with itself"), [self._series(AGREEMENT, AGREEMENT, _("Agreement"), GREY)]),
            LOSS: (_("Loss"), [self._series(LOSS, LOSS, _("Loss"), GREY)]),
            RANK: (_("Directions in use"), [self._series(RANK, RANK, _("Directions in use, mean"), GREY)]),
        }
        for kind, (title, series) in titles.items():
            self._chart(kind, title, series)
        view = self._ensure(VIEW, "View")
        view.SetAndObserveParentLayoutNodeID(self._owner().GetID())
        view.SetDoPropagatePlotChartSelection(False)  # set anew, as the owner is: a scene's end resets its nodes
        self._shown = (curves, curves.taken_back)

    def _series(self, name: str, column: str, label: str, colour: Sequence[float]) -> slicer.vtkMRMLNode:
        series = self._ensure(SERIES, name)
        series.SetName(label)
        series.SetAndObserveTableNodeID(self._find(TABLE, "Table").GetID())
        series.SetXColumnName(FIXED[0])
        series.SetYColumnName(column)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        series.SetColor(*colour)
        return series

    def _chart(self, kind: str, title: str, lines: Sequence[slicer.vtkMRMLNode]) -> None:
        chart = self._ensure(CHART, kind)
        modifying = chart.StartModify()
        chart.SetName(title)
        chart.RemoveAllPlotSeriesNodeIDs()
        for line in lines:
            chart.AddAndObservePlotSeriesNodeID(line.GetID())
        chart.SetTitleVisibility(False)
        chart.SetLegendVisibility(kind == MATCH)
        chart.SetLegendFontSize(11)
        chart.SetAxisTitleFontSize(11)
        chart.SetAxisLabelFontSize(10)
        chart.SetXAxisTitle(_("pass"))
        chart.SetYAxisTitleVisibility(False)  # the choice above the plot says what is drawn
        chart.SetXAxisRangeAuto(False)
        chart.SetYAxisRangeAuto(False)
        chart.SetEnablePointMoveAlongX(False)
        chart.SetEnablePointMoveAlongY(False)
        chart.EndModify(modifying)

    # values

    def _append(self, curves: Curves) -> None:
        node = self._find(TABLE, "Table")
        table = node.GetTable()
        new = curves.rows[table.GetNumberOfRows() :]
        if not new:
            return
        modifying = node.StartModify()
        for row in new:
            for number, value in enumerate(row):
                table.GetColumn(number).InsertNextValue(value)
        table.Modified()
        node.EndModify(modifying)

    def _scale(self, curves: Curves) -> None:
        """Axes that hold still: all planned passes, and from zero on."""
        highest = {MATCH: 1.0, AGREEMENT: 1.0}
        for kind in (LOSS, RANK):
            column = FIXED.index(kind)
            values = [row[column] for row in curves.rows if row[column] == row[column]]
            highest[kind] = 1.05 * max(values, default=1.0)
        for kind, top in highest.items():
            chart = self._find(CHART, kind)
            modifying = chart.StartModify()
            chart.SetXAxisRange(0, max(curves.total, 1))
            chart.SetYAxisRange(0, top)
            chart.EndModify(modifying)


def _short(name: str) -> str:
    """A name that the legend has room for."""
    return name if len(name) <= LEGEND_LENGTH else name[: LEGEND_LENGTH - 1] + "…"
