"""The host itself: scene, logics, modules, windows, and what a test asks of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import time
import traceback
import types
from pathlib import Path

import slicer
import vtk
from PySide6 import QtCore

from . import (
    api,
    ctk_widgets,
    dialogs,
    helpers,
    older,
    parameter_node,
    qt_module,
    sample_data,
    scripted,
    share,
    signals,
)
from .pythonqt import wrap

CORE_LOGICS = {
    "colors": "vtkSlicerColorLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "terminologies": "vtkSlicerTerminologiesModuleLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "tables": "vtkSlicerTablesLogic",
    "plots": "vtkSlicerPlotsLogic",
    "texts": "vtkSlicerTextsLogic",
    "transforms": "vtkSlicerTransformLogic",
    "sequences": "vtkSlicerSequencesLogic",
}
DATA_NODES = ("vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLTextNode", "vtkMRMLPlotChartNode")


# When a scene is added to an open one, MRML sometimes cannot merge the two subject hierarchies here (the application's
# plug-ins, which see to it there, are imitated), says so and rebuilds them.
HIERARCHY_REBUILT = (
    "ResolveUnresolvedItems: Failed to process",
    "Failed to merge subject hierarchy nodes, re-building",
)

VERSION = (5, 13, 0)


def keep_lock(seconds: float) -> None:
    """Wait with Python's lock, as Slicer's main thread waits for events: other threads stand still meanwhile."""
    if sys.platform == "win32":
        ctypes.PyDLL("kernel32").Sleep(int(1000 * seconds))
    else:
        ctypes.PyDLL(None).usleep(int(1_000_000 * seconds))


class Host:
    """One running stand-in; tests use its methods, modules only see `slicer`, `qt` and `ctk`."""

    def __init__(self, home: Path):
        self.home = home
        self.version = VERSION
        self.restarts: list[str] = []
        self.packages = helpers.Packages()
        self.dialogs = dialogs
        self._make_scene()
        self._make_python_modules()
        self._make_application()
        self._listen_to_vtk()
        sys.excepthook = self._uncaught

    def _make_scene(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        cache, data = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
        cache.SetRemoteCacheDirectory(str(self.home / "cache"))
        cache.SetMRMLScene(self.scene)
        data.SetCacheManager(cache)
        self.scene.SetCacheManager(cache)
        self.scene.SetDataIOManager(data)  # scene bundles are unpacked into its cache
        self.app_logic = slicer.vtkSlicerApplicationLogic()
        self.app_logic.SetMRMLScene(self.scene)
        self.app_logic.SetHomeDirectory(str(self.home))
        self.app_logic.SetShareDirectory("share")
        share.write(self.home / "share")
        self.app_logic.GetColorLogic().SetMRMLScene(self.scene)
        self.app_logic.GetColorLogic().AddDefaultColorNodes()
        self.app_logic.SetSliceLogics(vtk.vtkCollection())
        self.app_logic.SetViewLogics(vtk.vtkCollection())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self.logics = {}
        for name, kind in CORE_LOGICS.items():
            logic = getattr(slicer, kind)()
            with contextlib.suppress(AttributeError):
                logic.SetModuleShareDirectory(str(self.home / "share"))
            logic.SetMRMLApplicationLogic(self.app_logic)
            logic.SetMRMLScene(self.scene)
            self.app_logic.SetModuleLogic(name.capitalize(), logic)
            self.logics[name] = logic
        slicer.mrmlScene = self.scene
        self._follow_in_subject_hierarchy()

    def _follow_in_subject_hierarchy(self) -> None:
        """Give data nodes an item while they are in the scene, as the application's plug-ins do."""

        def data_item(scene, node):
            busy = scene.IsClosing() or scene.IsImporting() or scene.IsRestoring()
            if busy or not any(node.IsA(kind) for kind in DATA_NODES):
                return None, 0
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
            return hierarchy, hierarchy.GetItemByDataNode(node)

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def added(scene, _event, node) -> None:
            hierarchy, item = data_item(scene, node)
            if hierarchy is not None and not item and not node.GetHideFromEditors():
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def removed(scene, _event, node) -> None:
            hierarchy, item = data_item(scene, node)
            if item:
                hierarchy.RemoveItem(item, False, False)

        self.scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, added)
        self.scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, removed)

    def _make_python_modules(self) -> None:
        sys.modules["qt"] = qt_module.build()
        sys.modules["ctk"] = ctk_widgets.build()
        sys.modules["SampleData"] = sample_data.build()
        slicer.selfTests = {}
        made = {
            "ScriptedLoadableModule": scripted.build(),
            "parameterNodeWrapper": parameter_node.build(),
            "i18n": helpers.i18n(),
            "packaging": helpers.packaging(self.packages),
        }
        for name, module in made.items():
            sys.modules[f"slicer.{name}"] = module
            setattr(slicer, name, module)

    def _make_application(self) -> None:
        from . import application, choosers, files, modules, mrml_widgets, plot_view, segment_widgets, views

        classes = {**mrml_widgets.build(), **segment_widgets.build(), **views.build(), **plot_view.build()}
        classes |= choosers.build()
        classes |= {**application.build(self), **modules.build()}
        qt_settings = self.home / "settings"
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, str(qt_settings))
        self.qt_app = application.SlicerQApplication.instance() or application.SlicerQApplication(["Slicer"])
        self.qt_app.setApplicationName("Slicer")
        self.qt_app.setOrganizationName("slicer.org")
        self.qt_app.setQuitOnLastWindowClosed(False)
        slicer.app = wrap(self.qt_app)
        self._load, self._unload = modules.load, modules.unload
        self.module_manager = application.qSlicerModuleManager()
        slicer.modules = modules.Modules()
        for name, logic in self.logics.items():
            core = modules.CoreModule(name.capitalize(), logic)
            setattr(slicer.modules, name, core)
            self.module_manager.modules[core.name] = core
        self.layout_manager = views.qSlicerLayoutManager(self.scene, self.app_logic)
        self.io_manager = files.CoreIOManager(self.scene, self.logics)
        self.main_window = application.qSlicerMainWindow(self.module_manager)
        self._restrict_slicer(classes)
        self._make_python_slicer()

    @staticmethod
    def _restrict_slicer(classes: dict) -> None:
        """Leave in `slicer` only what Slicer has there: slicer-core also puts all of slicer.util into it."""
        listed = set(api.listed()["slicer names"])
        submodules = {name.split(".")[1] for name in sys.modules if name.startswith("slicer.")}
        for name in list(vars(slicer)):
            if not name.startswith(("_", "vtk")) and name not in listed | submodules:
                delattr(slicer, name)
        for name, kind in classes.items():
            setattr(slicer, name, kind)

        def missing(name: str):
            if name in listed:
                raise NotImplementedError(f"slicer.{name} exists in Slicer, but the test host does not imitate it")
            raise AttributeError(f"module 'slicer' has no attribute '{name}'")

        slicer.__getattr__ = missing

    def _make_python_slicer(self) -> None:
        """Put a program `PythonSlicer` on the path: this Python."""
        if os.name == "nt":
            return
        folder = self.home / "bin"
        folder.mkdir()
        program = folder / "PythonSlicer"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        program.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

    @staticmethod
    def _uncaught(kind, value, trace) -> None:
        """Record what VTK's observers raise: VTK prints it and goes on."""
        signals.slot_errors.append("".join(traceback.format_exception(kind, value, trace)))
        sys.__excepthook__(kind, value, trace)

    def _listen_to_vtk(self) -> None:
        """Record the errors that MRML classes report; Slicer shows them in its error log."""

        @vtk.calldata_type(vtk.VTK_STRING)
        def error(_window, _event, text: str) -> None:
            if not any(known in text for known in HIERARCHY_REBUILT):
                signals.slot_errors.append(text)

        vtk.vtkOutputWindow.GetInstance().AddObserver(vtk.vtkCommand.ErrorEvent, error)

    def load_module(self, path: Path) -> types.ModuleType:
        """Load a scripted module from its file."""
        return self._load(self, path)

    def finish_startup(self) -> None:
        """Say that the application has started: modules register their sample data then."""
        self.qt_app.startupCompleted.emit()

    def unload_module(self, name: str) -> None:
        """Unload it as at the end of the application."""
        self._unload(self, name)

    def show_module(self, name: str):
        """Switch to a module as the user does, and return its Python widget."""
        slicer.util.selectModule(name)
        return getattr(slicer.modules, f"{name}Widget")

    def slicer_5_10(self):
        """Give a context in which the names that came after Slicer 5.10 are gone."""
        return older.slicer_5_10(self)

    def process_events(self, milliseconds: int = 0) -> None:
        """Let Qt work, for a time if given."""
        end = time.monotonic() + milliseconds / 1000
        while True:
            self.qt_app.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
            self.qt_app.processEvents()
            if time.monotonic() >= end:
                return
            keep_lock(0.005)

    def wait_for(self, condition, seconds: float = 10.0, what: str = "the condition"):
        """Let Qt work until `condition()` is true, and return its value; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            self.process_events()
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come within {seconds} s")
            keep_lock(0.01)

    def idle(self, milliseconds: int) -> None:
        """Let Qt work once after a time in which nothing happens: no other Python thread runs in it, as in Slicer."""
        keep_lock(milliseconds / 1000)
        self.process_events()

    def longest_slot(self) -> tuple[float, str]:
        """Return the seconds and the name of the longest call of a slot in this test."""
        return max(((seconds, name) for name, seconds in signals.slot_seconds.items()), default=(0.0, ""))

    def picture(self, widget, path: Path, width: int = 0, height: int = 0) -> Path:
        """Save a picture of a widget; the path is returned."""
        raw = widget._alive()
        if width:
            raw.resize(width, height or raw.sizeHint().height())
        raw.show()
        self.process_events(20)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not raw.grab().save(str(path)):
            raise OSError(f"{path} cannot be written")
        return Path(path)

    def slice_picture(self, path: Path, view: str = "Red", size: tuple[int, int] = (512, 512)) -> Path:
        """Save a picture of a slice view, drawn by VTK."""
        return self.layout_manager.views[view].picture(path, size)

    def reset(self) -> list[str]:
        """Make the host ready for the next test; return what went wrong unseen in this one."""
        self.process_events()
        problems = [*signals.slot_errors]
        if dialogs.unused_answers():
            problems.append(f"answers that no dialog asked for: {dialogs.unused_answers()}")
        for name in [n for n, m in self.module_manager.modules.items() if hasattr(m, "come_in")]:
            self.unload_module(name)
        self.scene.Clear(0)
        self.layout_manager.reset()
        for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
            self.scene.RemoveNode(node)  # singletons outlive the closing of a scene, and their observers with them
        self.process_events()
        problems += signals.slot_errors[len(problems) :] if not problems else []
        signals.slot_errors.clear()
        signals.slot_seconds.clear()
        dialogs.reset()
        for name, *_how, receive in self.qt_app.__dict__.pop("_host_slots", []):
            getattr(self.qt_app, name).disconnect(receive)  # those of modules that were loaded
        self.restarts.clear()
        self.packages.__init__()
        sample_data.build()
        shutil.rmtree(self.home / "settings", ignore_errors=True)
        gc.collect()
        return problems
