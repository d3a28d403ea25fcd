"""Slice views: the real slice logics and displayable managers, rendered offscreen by VTK."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from . import api
from .ctk_widgets import imitation
from .mrml_widgets import Prop, _SceneWidget, observe
from .pythonqt import ObjectManners, proxy_class

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
        made = next((n for n in slicer.util.getNodesByClass("vtkMRMLSliceNode") if n.GetLayoutName() == name), None)
        if made is not None:  # by the layout
            self.logic.SetSliceNode(made)
        self.node = made or self.logic.AddSliceNode(name)
        if made is None:
            self.node.SetOrientation(NAMES[name])
        self.annotation = vtk.vtkCornerAnnotation()
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
        renderer.AddViewProp(self.annotation)
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
        self._window.SetSize(*size)
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


class qMRMLSliceView(QtWidgets.QWidget):
    """The view within a slice view's widget: its corner texts; drawing is done when a picture is taken."""

    def __init__(self, *arguments, view: SliceView | None = None):
        super().__init__(*arguments)
        self._view = view

    def cornerAnnotation(self):
        return self._view.annotation

    def mrmlSliceNode(self):
        return self._view.node

    def scheduleRender(self) -> None:
        """Pictures are drawn anew each time."""

    forceRender = scheduleRender


class qMRMLSliceWidget(_SceneWidget):
    """A slice view's widget; pictures are taken through the host, not by `grab`."""

    nodeAboutToBeEdited = QtCore.Signal(object)

    def __init__(self, *arguments, view: SliceView | None = None):
        super().__init__(*arguments)
        self._view = view
        self._slice_view = qMRMLSliceView(view=view)

    def sliceView(self):
        return self._slice_view

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
    """The layout manager on the real layout logic: slice views come as layouts ask for them; no 3D, plot or table views."""

    layoutChanged = QtCore.Signal(int)

    def __init__(self, scene, app_logic):
        super().__init__()
        self._scene, self._app_logic = scene, app_logic
        self.views: dict[str, SliceView] = {}
        self._widgets: dict[str, qMRMLSliceWidget] = {}
        for name in NAMES:
            self._add_view(name)
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(scene)
        self._layout_node = self._logic.GetLayoutNode()
        self._first = self._shown = self.layout
        observe(self, self._layout_node, vtk.vtkCommand.ModifiedEvent, "_follow")

    def _add_view(self, name: str) -> None:
        self.views[name] = SliceView(name, self._app_logic, self._scene)
        self._widgets[name] = qMRMLSliceWidget(view=self.views[name])
        self._widgets[name].setMRMLScene(self._scene)

    def _follow(self) -> None:
        """Make the views that the layout has called for, and say that it has changed."""
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            if node.GetLayoutName() not in self.views:
                self._add_view(node.GetLayoutName())
        shown = self._logic.GetViewNodes()
        for node in slicer.util.getNodesByClass("vtkMRMLAbstractViewNode"):
            node.SetMappedInLayout(shown.IsItemPresent(node) > 0)
        if self.layout != self._shown:
            self._shown = self.layout
            self.layoutChanged.emit(self._shown)

    def reset(self) -> None:
        """Go back to the first layout and its views, as at the start."""
        self._layout_node.SetViewArrangement(self._first)
        for name in [n for n in self.views if n not in NAMES]:
            view = self.views.pop(name)
            self._widgets.pop(name)
            self._app_logic.GetSliceLogics().RemoveItem(view.logic)
            composite = view.logic.GetSliceCompositeNode()
            for node in (composite, view.node):
                self._scene.RemoveNode(node)
            view.logic.SetMRMLScene(None)
        for node in slicer.util.getNodesByClass("vtkMRMLViewNode"):
            self._scene.RemoveNode(node)

    def setLayout(self, number: int) -> None:
        self._layout_node.SetViewArrangement(number)

    def layoutLogic(self):
        return self._logic

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


def slice_view_entry() -> api.Entry:
    """What a slice view offers beyond a widget, as far as it is imitated; from the sources of ctkVTKAbstractView and
    qMRMLSliceView, because the application's list lacks the class."""
    base = api.entry("qt", "QWidget")
    methods = base.methods | {"cornerAnnotation", "mrmlSliceNode", "scheduleRender", "forceRender"}
    return replace(base, name="qMRMLSliceView", methods=methods)


def build() -> dict[str, type]:
    """Make the proxy classes."""
    proxy_class("qMRMLSliceView", qMRMLSliceView, slice_view_entry(), {}, (ObjectManners,))
    return {raw_type.__name__: imitation("slicer", raw_type) for raw_type in (qMRMLSliceWidget, qSlicerLayoutManager)}
