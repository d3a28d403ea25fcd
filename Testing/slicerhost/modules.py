"""Loading, showing and unloading scripted modules as Slicer does."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import slicer
from PySide6 import QtCore

from . import api, signals
from .application import qSlicerScriptedLoadableModuleWidget
from .ctk_widgets import Prop, imitation, stored, ui_files
from .pythonqt import ObjectManners, proxy_class, wrap


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """What a module's Python class gets as `parent`."""

    title = stored(str, "", "title")
    categories = stored("QVariantList", [], "categories")
    contributors = stored("QVariantList", [], "contributors")
    dependencies = stored("QVariantList", [], "dependencies")
    associatedNodeTypes = stored("QVariantList", [], "associatedNodeTypes")
    helpText = stored(str, "", "helpText")
    acknowledgementText = stored(str, "", "acknowledgementText")
    hidden = stored(bool, False, "hidden")
    index = stored(int, -1, "index")
    icon = stored("QVariant", None, "icon")
    widgetRepresentationCreationEnabled = stored(bool, True, "widgetRepresentationCreationEnabled")
    defaultDocumentationLink = Prop(str, lambda self: "")
    isBuiltIn = Prop(bool, lambda self: False)
    isInstalled = Prop(bool, lambda self: False)

    def __init__(self, path: Path, host):
        super().__init__()
        self._path, self._host, self._widget = Path(path), host, None
        self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
        self._logic.SetMRMLScene(host.scene)

    name = Prop(str, lambda self: self._path.stem)
    path = Prop(str, lambda self: str(self._path))

    def logic(self):
        return self._logic

    def mrmlScene(self):
        return self._host.scene

    def widgetRepresentation(self):
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self)
            self.make_widget(self._widget)
        return self._widget

    def make_widget(self, panel: qSlicerScriptedLoadableModuleWidget) -> None:
        """Make the module's Python widget in its panel and call `setup`."""
        kind = getattr(sys.modules[self.name], f"{self.name}Widget")
        panel._python = kind(wrap(panel))
        setattr(slicer.modules, f"{self.name}Widget", panel._python)
        panel._python.setup()

    def come_in(self) -> None:
        self._call("enter")

    def leave(self) -> None:
        self._call("exit")

    def _call(self, method: str) -> None:
        function = getattr(self._widget._python, method, None) if self._widget is not None else None
        if function is not None:
            try:
                function()
            except Exception:
                signals.record_error()


class CoreModule:
    """One of Slicer's own modules: its name and its real logic."""

    def __init__(self, name: str, logic):
        self.name, self._logic = name, logic

    def logic(self):
        return self._logic


class Modules:
    """`slicer.modules`: what is loaded; what Slicer has and the host has not raises NotImplementedError."""

    def __getattr__(self, name: str):
        if name in api.listed()["slicer.modules"]:
            raise NotImplementedError(f"slicer.modules.{name} exists in Slicer, but the test host does not imitate it")
        raise AttributeError(f"slicer.modules has no attribute '{name}'")


def load(host, path: Path):
    """Load a scripted module from its file, and return its Python module."""
    path = Path(path)
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    python = importlib.util.module_from_spec(spec)
    sys.modules[name] = python
    spec.loader.exec_module(python)
    raw = qSlicerScriptedLoadableModule(path, host)
    host.module_manager.modules[name] = raw
    setattr(slicer.modules, name.lower(), wrap(raw))
    setattr(slicer.modules, f"{name}Instance", getattr(python, name)(wrap(raw)))
    host.module_manager.moduleLoaded.emit(name)
    return python


def unload(host, name: str) -> None:
    """Unload a module as at the end of the application: `exit` if it is shown, then `cleanup`."""
    raw = host.module_manager.modules[name]
    selector = host.main_window.moduleSelector()
    if selector.selectedModule == name:
        selector.selectModule("")
    host.module_manager.moduleAboutToBeUnloaded.emit(name)
    del host.module_manager.modules[name]
    for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
        with contextlib.suppress(AttributeError):
            delattr(slicer.modules, attribute)
    if raw._widget is not None:
        raw._widget.setParent(None)
        raw._widget.deleteLater()
    raw._host_unloaded = True
    sys.modules.pop(name, None)
    host.process_events()


def build() -> dict[str, type]:
    """Make the proxy classes."""
    panel = api.entry("slicer", "qSlicerWidget")
    panel = replace(panel, name="qSlicerScriptedLoadableModuleWidget", methods=panel.methods | {"self", "reload"})
    widget = proxy_class(panel.name, qSlicerScriptedLoadableModuleWidget, panel, {}, (ObjectManners,))
    ui_files.IMITATED.pop("qSlicerScriptedLoadableModule", None)
    module = imitation("slicer", qSlicerScriptedLoadableModule)
    return {"qSlicerScriptedLoadableModule": module, "qSlicerScriptedLoadableModuleWidget": widget}
