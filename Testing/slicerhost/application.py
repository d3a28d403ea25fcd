"""`slicer.app`, the main window and the module manager."""

from __future__ import annotations

import os
import types
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import slicer
from PySide6 import QtCore, QtWidgets

from . import api
from .ctk_widgets import Prop, imitation
from .mrml_widgets import qSlicerWidget
from .pythonqt import ObjectManners, proxy_class, wrap

REVISION = "34370"
PANEL_WIDTH = 420


class SlicerQApplication(QtWidgets.QApplication):
    """Qt's application with the signals of Slicer's."""

    startupCompleted = QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)
    cpp_signals: ClassVar[dict] = {"mrmlSceneChanged(vtkMRMLScene*)": ("mrmlSceneChanged", None)}


class qSlicerModuleManager(QtCore.QObject):
    """The loaded modules, by name."""

    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)

    def __init__(self):
        super().__init__()
        self.modules: dict[str, object] = {}

    def module(self, name: str):
        return self.modules.get(name)

    def modulesNames(self) -> list[str]:
        return list(self.modules)

    def factoryManager(self):
        return types.SimpleNamespace(
            loadedModuleNames=lambda: tuple(self.modules), isLoaded=lambda n: n in self.modules
        )


class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):
    """The tool bar that switches modules: `exit` of the old one, `enter` of the new one."""

    moduleSelected = QtCore.Signal(str)

    def __init__(self, manager: qSlicerModuleManager, show):
        super().__init__()
        self._manager, self._show, self._selected = manager, show, ""

    def selectModule(self, name: str) -> None:
        module = self._manager.modules.get(name)
        if name and module is None:
            raise ValueError(f"no module named {name!r}; loaded: {sorted(self._manager.modules)}")
        if name == self._selected:
            return
        previous = self._manager.modules.get(self._selected)
        if previous is not None and hasattr(previous, "leave"):
            previous.leave()
        self._selected = name
        if module is not None and hasattr(module, "come_in"):
            self._show(module.widgetRepresentation())
            module.come_in()
        self.moduleSelected.emit(name)

    selectedModule = Prop(str, lambda self: self._selected)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The main window: the module panel on the left, as wide as on a small screen."""

    def __init__(self, manager: qSlicerModuleManager):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self._selector = qSlicerModuleSelectorToolBar(manager, self._show)
        self.addToolBar(self._selector)
        self._scroll = QtWidgets.QScrollArea(widgetResizable=True)
        self._scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAsNeeded)
        dock = QtWidgets.QDockWidget("Modules", self, objectName="PanelDockWidget")
        dock.setWidget(self._scroll)
        dock.setFixedWidth(PANEL_WIDTH)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        self.setCentralWidget(QtWidgets.QWidget())
        self.resize(1366, 768)
        self.statusBar()

    def _show(self, widget: QtWidgets.QWidget) -> None:
        shown = self._scroll.takeWidget()
        if shown is not None:
            shown.setParent(None)
        self._scroll.setWidget(widget)
        widget.show()

    def moduleSelector(self) -> qSlicerModuleSelectorToolBar:
        return self._selector


class CommandOptions:
    """`slicer.app.commandOptions()`."""

    testingEnabled = noMainWindow = ignoreSlicerRC = False


def constants(home: Path) -> dict:
    """Properties of the application that never change."""
    folders = {name: str(home / name) for name in ("slicerHome", "temporaryPath", "cachePath", "extensionsInstallPath")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    return {
        **folders,
        "defaultScenePath": str(home),
        "startupWorkingPath": str(home),
        "applicationName": "Slicer",
        "mainApplicationName": "Slicer",
        "mainApplicationDisplayName": "3D Slicer",
        "mainApplicationRevision": REVISION,
        "repositoryRevision": REVISION,
        "revision": REVISION,
        "releaseType": "Experimental",
        "os": "linux",
        "arch": "amd64",
        "platform": "linux-amd64",
        "isInstalled": True,
        "isCustomMainApplication": False,
        "documentationBaseUrl": "https://slicer.readthedocs.io/en/latest/",
        "documentationVersion": "latest",
        "documentationLanguage": "en",
        "applicationLocaleName": "en-US",
        "intDir": "",
    }


def settings_of(home: Path, name: str):
    """Return settings kept in the host's own folder."""
    import qt

    return qt.QSettings(str(home / f"{name}.ini"), qt.QSettings.IniFormat)


def methods(host) -> dict:
    """Methods of the application that Qt's own does not have."""

    def startup_environment(_self):
        environment = QtCore.QProcessEnvironment()
        for key, value in os.environ.items():
            environment.insert(key, value)
        return wrap(environment)

    plain = {
        "applicationLogic": lambda self: host.app_logic,
        "mrmlScene": lambda self: host.scene,
        "layoutManager": lambda self: wrap(host.layout_manager),
        "moduleManager": lambda self: wrap(host.module_manager),
        "moduleLogic": lambda self, name: host.logics[name.lower()],
        "coreIOManager": lambda self: host.io_manager,
        "ioManager": lambda self: host.io_manager,
        "commandOptions": lambda self: CommandOptions(),
        "testingEnabled": lambda self: False,
        "settings": lambda self: settings_of(host.home, "revision"),
        "userSettings": lambda self: settings_of(host.home, "user"),
        "revisionUserSettings": lambda self: settings_of(host.home, "revision"),
        "startupEnvironment": startup_environment,
        "environment": startup_environment,
        "restart": lambda self: host.restarts.append("restart"),
        "confirmRestart": lambda self, _reason="": host.restarts.append("confirm") or False,
        "quit": lambda self: host.restarts.append("quit"),
        "exit": lambda self, _code=0: host.restarts.append("quit"),
        "moduleDocumentationUrl": lambda self, name: (
            f"https://slicer.readthedocs.io/en/latest/user_guide/modules/{name}.html"
        ),
        "translate": lambda self, _context, text, *_more: text,
        "pauseRender": lambda self: None,
        "resumeRender": lambda self: None,
        "setRenderPaused": lambda self, _pause: None,
    }
    numbers = {
        "majorVersion": 0,
        "minorVersion": 1,
        "mainApplicationMajorVersion": 0,
        "mainApplicationMinorVersion": 1,
        "mainApplicationPatchVersion": 2,
    }
    version = {name: property(lambda self, i=index: host.version[i]) for name, index in numbers.items()}
    version["applicationVersion"] = property(lambda self: "{}.{}.{}-2026-08-21".format(*host.version))
    fixed = {name: property(lambda self, v=value: v) for name, value in constants(host.home).items()}
    return {**plain, **fixed, **version}


def build(host) -> dict:
    """Make the classes and return what `slicer` gets: `app` among it."""
    own = api.entry("slicer", "app")
    proxy_class("qSlicerApplication", SlicerQApplication, own, methods(host), (ObjectManners,))
    proxy_class(
        "qSlicerModuleManager", qSlicerModuleManager, api.entry("slicer", "app.moduleManager()"), {}, (ObjectManners,)
    )
    window = api.entry("qt", "QMainWindow")
    window = replace(window, name="qSlicerMainWindow", methods=window.methods | {"moduleSelector"})
    proxy_class("qSlicerMainWindow", qSlicerMainWindow, window)
    bar = api.entry("qt", "QWidget")  # QStatusBar itself is not among the listed classes
    messages = {"showMessage", "clearMessage", "currentMessage"}
    proxy_class("QStatusBar", QtWidgets.QStatusBar, replace(bar, name="QStatusBar", methods=bar.methods | messages))
    return {"qSlicerModuleSelectorToolBar": imitation("slicer", qSlicerModuleSelectorToolBar)}


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The panel of a scripted module; `self()` gives the Python object."""

    def __init__(self, module):
        super().__init__()
        self._module, self._python = module, None
        self.setLayout(QtWidgets.QVBoxLayout())
        self.setMRMLScene(slicer.mrmlScene)

    def self(self):
        return self._python

    def reload(self) -> None:
        self._module.make_widget(self)
