"""Slice views: the real slice logics and displayable managers, rendered offscreen by VTK."""

from __future__ import annotations

import functools
from pathlib import Path

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .ctk_widgets import imitation
from .mrml_widgets import Prop, _SceneWidget

NAMES = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)


@functools.cache
def can_render() -> bool:
    """Tell whether VTK draws offscreen here (it needs EGL or OSMesa)."""
    return bool(offscreen_window((8, 8)).SupportsOpenGL())


def offscreen_window(size: tuple[int, int]):
    """Make a render window; VTK's remark that it finds no X server on its way to EGL is left out."""
    shown = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetSize(*size)
    window.Render()
    vtk.vtkObject.SetGlobalWarningDisplay(shown)
    return window


class SliceView:
    """One slice view: node, logic and, once a picture is asked for, a render window."""

    def __init__(self, name: str, app_logic, scene):
        self.name, self._app_logic = name, app_logic
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(app_logic)
        app_logic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(NAMES[name])
        self._window = None

    def _make_window(self, size: tuple[int, int]) -> None:
        renderer = vtk.vtkRenderer()
        renderer.GetActiveCamera().ParallelProjectionOn()
        window = offscreen_window(size)
        window.AddRenderer(renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()  # the displayable managers expect one
        self._interactor.SetRenderWindow(window)
        self._interactor.Initialize()
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(self._actor)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(self._app_logic)
        for manager in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.Initialize(factory, renderer)
        self._group.SetMRMLDisplayableNode(self.node)
        self._window = window

    def picture(self, path: Path, size: tuple[int, int] = (512, 512), fit: bool = True) -> Path:
        """Draw what the view shows into a PNG file."""
        if self._window is None:
            self._make_window(size)
        self.logic.ResizeSliceNode(*size)
        if fit:
            self.logic.FitSliceToBackground()
        connection = self.logic.GetImageDataConnection()
        self._actor.SetVisibility(connection is not None)
        if connection is not None:
            self._mapper.SetInputConnection(connection)
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        writer = vtk.vtkPNGWriter()
        writer.SetInputConnection(grab.GetOutputPort())
        writer.SetFileName(str(path))
        writer.Write()
        return Path(path)


class qMRMLSliceWidget(_SceneWidget):
    """A slice view's widget; pictures are taken through the host, not by `grab`."""

    nodeAboutToBeEdited = QtCore.Signal(object)

    def __init__(self, *arguments, view: SliceView | None = None):
        super().__init__(*arguments)
        self._view = view

    def sliceLogic(self):
        return self._view.logic

    logic = sliceLogic

    def mrmlSliceNode(self):
        return self._view.node

    def mrmlSliceCompositeNode(self):
        return self._view.logic.GetSliceCompositeNode()

    def fitSliceToBackground(self) -> None:
        self._view.logic.FitSliceToBackground()

    sliceOrientation = Prop(
        str, lambda self: self._view.node.GetOrientation(), lambda self, value: self._view.node.SetOrientation(value)
    )
    sliceViewName = Prop(str, lambda self: self._view.name)


class qSlicerLayoutManager(QtCore.QObject):
    """The layout manager: layout number, slice views; no 3D, plot or table views."""

    layoutChanged = QtCore.Signal(int)

    def __init__(self, scene, app_logic):
        super().__init__()
        self._scene = scene
        self.views = {name: SliceView(name, app_logic, scene) for name in NAMES}
        self._widgets = {name: qMRMLSliceWidget(view=view) for name, view in self.views.items()}
        self._layout_node = slicer.vtkMRMLLayoutNode()
        self._layout_node.SetSingletonTag("vtkMRMLLayout")
        self._layout_node = scene.AddNode(self._layout_node)
        for widget in self._widgets.values():
            widget.setMRMLScene(scene)

    def setLayout(self, number: int) -> None:
        if number != self.layout:
            self._layout_node.SetViewArrangement(number)
            self.layoutChanged.emit(number)

    layout = Prop(int, lambda self: self._layout_node.GetViewArrangement(), setLayout)
    threeDViewCount = Prop(int, lambda self: 0)
    plotViewCount = Prop(int, lambda self: 0)
    tableViewCount = Prop(int, lambda self: 0)

    def mrmlScene(self):
        return self._scene

    def sliceViewNames(self) -> list[str]:
        return sorted(self.views)

    def sliceWidget(self, name: str) -> QtWidgets.QWidget | None:
        return self._widgets.get(name)

    def mrmlSliceLogics(self):
        logics = vtk.vtkCollection()
        for view in self.views.values():
            logics.AddItem(view.logic)
        return logics

    def resetSliceViews(self) -> None:
        for view in self.views.values():
            view.logic.FitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There are no 3D views."""


def build() -> dict[str, type]:
    """Make the proxy classes."""
    return {raw_type.__name__: imitation("slicer", raw_type) for raw_type in (qMRMLSliceWidget, qSlicerLayoutManager)}
