"""The module `qt`: the listed Qt classes as proxies over PySide6."""

from __future__ import annotations

import types
from dataclasses import replace

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import api, dialogs, signals, ui_files
from .pythonqt import Proxy, QtSlot, member, proxy_class, unwrap, wrap

SOURCES = (QtCore, QtGui, QtWidgets, QtUiTools)


def build() -> types.ModuleType:
    """Build the module with every listed class, bases first."""
    module = types.ModuleType("qt", "Qt as PythonQt shows it, limited to the names that Slicer lists.")
    raw_types = {name: raw_class(name) for name in api.listed()["qt"] if name != "Qt"}
    for name, raw_type in sorted(raw_types.items(), key=lambda item: (len(item[1].__mro__), item[0])):
        setattr(module, name, proxy_class(name, raw_type, api.entry("qt", name), additions(name)))
    items = api.entry("qt", "QSpacerItem")  # the only listed layout item; the others offer the same without changeSize
    proxy_class("QLayoutItem", QtWidgets.QLayoutItem, replace(items, loose=items.loose - {"changeSize"}))
    module.Qt = namespace()
    module.Signal = signals.Signal
    module.Slot = lambda *_types, **_options: lambda function: function

    def missing(name: str):
        raise AttributeError(f"module 'qt' has no attribute '{name}' in the list of Slicer 5.13's Python")

    module.__getattr__ = missing
    return module


def raw_class(name: str) -> type:
    """Find the PySide class of a Qt class."""
    if name == "QUiLoader":
        return ui_files.Loader
    for source in SOURCES:
        if hasattr(source, name):
            return getattr(source, name)
    raise LookupError(f"PySide6 has no class {name}")


def namespace() -> type:
    """Build `qt.Qt`."""
    entry = api.entry("qt", "Qt")
    return type("Qt", (Proxy,), {name: member(name, name, QtCore.Qt, entry) for name in entry.loose})


def additions(name: str) -> dict:
    """What differs between PythonQt's class and PySide's."""
    if name in dialogs.STATIC:
        return dialogs.static_methods(name)
    return {
        "QTimer": {"singleShot": staticmethod(single_shot)},
        "QUiLoader": {"load": load_ui},
        "QWidget": {"findChildren": find_children, "findChild": find_child},
        "QObject": {"findChildren": find_children, "findChild": find_child},
        "QDesktopServices": {"openUrl": staticmethod(dialogs.open_url)},
        "QDialog": dialogs.exec_methods(),
        "QMenu": dialogs.menu_methods(),
        "QApplication": {"setOverrideCursor": staticmethod(set_override_cursor)},
    }.get(name, margin(name))


def set_override_cursor(cursor) -> None:
    """Set the cursor; PySide gives a guard for `with`, Qt 5 nothing."""
    QtWidgets.QApplication.setOverrideCursor(unwrap(cursor))


def margin(name: str) -> dict:
    """Qt 5's margin of layouts, which Qt 6 no longer has."""
    if not name.endswith("Layout"):
        return {}

    def get(self) -> int:
        return self._alive().contentsMargins().left()

    def put(self, value: int) -> None:
        self._alive().setContentsMargins(value, value, value, value)

    return {"margin": property(get, put), "setMargin": put}


def single_shot(milliseconds: int, function) -> None:
    """Call a function once, later; its exception is recorded like that of a slot."""
    target = function._function if isinstance(function, QtSlot) else function
    slot = signals.Slot(target, wrap, count=0)
    QtCore.QTimer.singleShot(int(milliseconds), lambda: slot())  # noqa: PLW0108 - PySide holds the slot itself weakly


def find_children(self, kind=None, name: str = "") -> tuple:
    """Find descendants by class and name."""
    raw_type = unwrap(kind) if kind is not None else QtCore.QObject
    found = self._alive().findChildren(QtCore.QObject, name or None)
    return wrap([child for child in found if isinstance(child, raw_type)])


def find_child(self, kind=None, name: str = ""):
    """Find the first descendant by class and name, or None."""
    found = find_children(self, kind, name)
    return found[0] if found else None


def load_ui(self, file, parent=None):
    """Load a `.ui` file, and refuse names that Slicer would ignore in silence."""
    return ui_files.load(self._alive(), file._alive().fileName(), unwrap(parent))
