"""A plot view: the chart of a plot view node, drawn by VTK as Slicer's `qMRMLPlotView` draws it.

The application's list has the name of the class only; what it offers beyond a widget is from its header (public slots and
signals; `mrmlPlotViewNode` is no slot there, so Python does not have it).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from vtk.util import numpy_support

from . import api
from .mrml_widgets import observe
from .pythonqt import ObjectManners, proxy_class
from .views import can_render, offscreen_window

SLOTS = ("setMRMLScene", "setMRMLPlotViewNode", "fitToContent", "RemovePlotSelections", "saveAsSVG")
MARKERS = {"MarkerStyleNone": vtk.vtkPlotPoints.NONE, "MarkerStyleCircle": vtk.vtkPlotPoints.CIRCLE}
LINES = {
    "LineStyleNone": vtk.vtkPen.NO_PEN,
    "LineStyleSolid": vtk.vtkPen.SOLID_LINE,
    "LineStyleDash": vtk.vtkPen.DASH_LINE,
}


class qMRMLPlotView(QtWidgets.QWidget):
    """The canvas of a plot; lines and points only, drawn when it is painted."""

    mrmlSceneChanged = QtCore.Signal(object)
    cpp_signals: ClassVar[dict] = {"mrmlSceneChanged(vtkMRMLScene*)": ("mrmlSceneChanged", None)}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._scene = self._node = self._chart = None
        self._observed: set[int] = set()

    def setMRMLScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            if self._node is not None and self._node.GetScene() is not scene:
                self.setMRMLPlotViewNode(None)
            self.mrmlSceneChanged.emit(scene)

    def setMRMLPlotViewNode(self, node) -> None:
        if node is not None and not node.IsA("vtkMRMLPlotViewNode"):
            raise ValueError(f"Could not find matching overload: {node.GetClassName()} is no vtkMRMLPlotViewNode")
        self._node = node
        for event in (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLPlotViewNode.PlotChartNodeChangedEvent):
            if node is not None and (id(node), event) not in self._observed:
                self._observed.add((id(node), event))
                observe(self, node, event, "update")
        self.update()

    def fitToContent(self) -> None:
        self.update()

    def RemovePlotSelections(self) -> None:
        """Nothing can be selected here."""

    def shown_chart(self):
        """The chart node that is drawn, or None; for tests."""
        if self._scene is None or self._node is None or self._node.GetScene() is not self._scene:
            return None
        return self._node.GetPlotChartNode()

    def paintEvent(self, _event) -> None:
        painter = QtGui.QPainter(self)
        chart = self.shown_chart()
        if chart is None or not can_render():
            painter.fillRect(self.rect(), QtGui.QColor(255, 253, 246))
            return
        painter.drawImage(0, 0, drawn(chart, (max(self.width(), 40), max(self.height(), 40))))


def drawn(node, size: tuple[int, int]) -> QtGui.QImage:
    """Draw a chart node."""
    window = offscreen_window(size)
    view = vtk.vtkContextView()
    view.SetRenderWindow(window)
    chart = vtk.vtkChartXY()
    chart.GetBackgroundBrush().SetColor(255, 253, 246, 255)
    view.GetScene().AddItem(chart)
    for number in range(node.GetNumberOfPlotSeriesNodes()):
        add_line(chart, node.GetNthPlotSeriesNode(number))
    chart.SetTitle((node.GetTitle() or "") if node.GetTitleVisibility() else "")
    chart.SetShowLegend(node.GetLegendVisibility())
    chart.GetLegend().GetLabelProperties().SetFontSize(node.GetLegendFontSize())
    for which, letter in ((vtk.vtkAxis.BOTTOM, "X"), (vtk.vtkAxis.LEFT, "Y")):
        set_axis(chart.GetAxis(which), node, letter)
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    pixels = numpy_support.vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
    pixels = pixels.reshape(size[1], size[0], -1)[::-1, :, :3].copy()
    return QtGui.QImage(pixels.data, *size, 3 * size[0], QtGui.QImage.Format.Format_RGB888).copy()


def add_line(chart, series) -> None:
    """Add one series, unless its table or a column is missing, as in Slicer."""
    table = series.GetTableNode().GetTable() if series is not None and series.GetTableNode() is not None else None
    names = (series.GetXColumnName(), series.GetYColumnName()) if table is not None else ()
    if table is None or any(table.GetColumnByName(name) is None for name in names) or table.GetNumberOfRows() < 1:
        return
    plot = chart.AddPlot(vtk.vtkChart.LINE)
    plot.SetInputData(table, *names)
    plot.SetColorF(*series.GetColor())
    plot.SetWidth(series.GetLineWidth())
    kinds = type(series)
    plot.GetPen().SetLineType(next((v for k, v in LINES.items() if getattr(kinds, k) == series.GetLineStyle()), 1))
    plot.SetMarkerStyle(next((v for k, v in MARKERS.items() if getattr(kinds, k) == series.GetMarkerStyle()), 0))
    plot.SetLabel(series.GetName())


def set_axis(axis, node, letter: str) -> None:
    """Title and range of one axis."""
    visible = getattr(node, f"Get{letter}AxisTitleVisibility")()
    axis.SetTitle((getattr(node, f"Get{letter}AxisTitle")() or "") if visible else "")
    axis.GetTitleProperties().SetFontSize(node.GetAxisTitleFontSize())
    axis.GetLabelProperties().SetFontSize(node.GetAxisLabelFontSize())
    axis.SetGridVisible(node.GetGridVisibility())
    if not getattr(node, f"Get{letter}AxisRangeAuto")():
        axis.SetBehavior(vtk.vtkAxis.FIXED)
        axis.SetUnscaledRange(*getattr(node, f"Get{letter}AxisRange")())


def entry() -> api.Entry:
    """What the class offers."""
    base = api.entry("qt", "QWidget")
    signals = base.signals | {"mrmlSceneChanged", "dataSelected"}
    return replace(base, name="qMRMLPlotView", methods=base.methods | set(SLOTS), signals=signals)


def build() -> dict[str, type]:
    """Make the proxy class."""
    return {"qMRMLPlotView": proxy_class("qMRMLPlotView", qMRMLPlotView, entry(), {}, (ObjectManners,))}
