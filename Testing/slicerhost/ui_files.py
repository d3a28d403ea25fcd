"""Qt Designer files, loaded by Qt's own loader after a check of every name in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import api, signals
from .pythonqt import PROXIES, wrap

SPECIAL = {"Line": QtWidgets.QFrame, "Spacer": None}
IMITATED: dict[str, type] = {}
"""Class name to PySide class of the imitated ctk and qMRML widgets."""


class UiError(RuntimeError):
    """A `.ui` file names something that Slicer does not have."""


class Loader(QtUiTools.QUiLoader):
    """Qt's loader, making the imitated widgets and keeping PySide's hold on the others."""

    def createWidget(self, class_name: str, parent=None, name: str = ""):
        raw_type = IMITATED.get(class_name) or getattr(QtWidgets, class_name, None)
        if class_name in SPECIAL or raw_type is None:
            return super().createWidget(class_name, parent, name)
        widget = raw_type(parent)
        widget.setObjectName(name)
        return widget


def load(loader: Loader, path: str, parent):
    """Check and load one file."""
    tree = ElementTree.parse(path)
    root = tree.getroot()
    delayed = check(root, Path(path).name)
    connections = root.findall("./connections/connection")
    for section in root.findall("connections"):
        root.remove(section)
    buffer = QtCore.QBuffer()
    buffer.setData(ElementTree.tostring(root, encoding="utf-8"))
    buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
    raw = loader.load(buffer, parent)
    if raw is None:
        raise UiError(f"{path}: {loader.errorString()}")
    top = wrap(raw)
    for name, prop, value in delayed:
        setattr(named(raw, name), prop, value)
    for connection in connections:
        connect(raw, connection)
    return top


def named(raw, name: str):
    """Find an object of the form by its name."""
    found = raw if raw.objectName() == name else raw.findChild(QtCore.QObject, name)
    if found is None:
        raise UiError(f"the form has no object '{name}'")
    return wrap(found)


def check(root, file_name: str) -> list[tuple]:
    """Check classes and properties; return the imitated widgets' properties, which are set after loading."""
    custom = {c.findtext("class") for c in root.findall("./customwidgets/customwidget")}
    delayed = []
    for widget in root.iter("widget"):
        class_name, name = widget.get("class"), widget.get("name")
        entry = listed_class(class_name, file_name)
        if class_name in IMITATED and class_name not in custom:
            raise UiError(f"{file_name}: {class_name} is missing in <customwidgets>")
        for prop in list(widget.findall("property")):
            prop_name = prop.get("name")
            dynamic = prop.get("stdset") == "0"
            if entry is not None and prop_name not in entry.properties | entry.loose and not dynamic:
                raise UiError(f"{file_name}: {class_name} '{name}' has no property '{prop_name}'")
            own = class_name in IMITATED and prop_name in entry.properties - api.entry("qt", "QWidget").properties
            if own:
                widget.remove(prop)
                delayed.append((name, prop_name, value_of(prop, file_name)))
    return delayed


def listed_class(class_name: str, file_name: str) -> api.Entry | None:
    """Return the list's entry of a class in a form."""
    if class_name in SPECIAL:
        return None
    for group in ("qt", "ctk", "slicer"):
        if class_name in api.listed()[group]:
            if group != "qt" and class_name not in IMITATED:
                raise NotImplementedError(
                    f"{file_name}: {class_name} exists in Slicer, but the test host does not imitate it"
                )
            return api.entry(group, class_name)
    raise UiError(f"{file_name}: the class {class_name} is not in the list of Slicer 5.13's Python")


def value_of(prop, file_name: str):
    """Read the value of one property element."""
    value = prop[0]
    text = value.text or ""
    if value.tag == "bool":
        return text == "true"
    if value.tag == "number":
        return int(text)
    if value.tag == "double":
        return float(text)
    if value.tag in ("string", "cstring"):
        return text
    if value.tag == "stringlist":
        return tuple(item.text or "" for item in value.findall("string"))
    if value.tag in ("set", "enum"):
        return combine(text, file_name)
    raise UiError(f"{file_name}: the host cannot read a property of kind <{value.tag}> ({prop.get('name')})")


def combine(text: str, file_name: str):
    """Read `ctkPathLineEdit::Dirs|ctkPathLineEdit::Files` and the like."""
    by_name = {proxy.__name__: proxy for proxy in PROXIES.values()}
    total = None
    for part in text.split("|"):
        owner, _, value = part.partition("::")
        source = by_name.get(owner)
        number = getattr(QtCore.Qt, value) if owner == "Qt" else getattr(source, value.split("::")[-1])
        total = number if total is None else total | number
    if total is None:
        raise UiError(f"{file_name}: empty enumeration")
    return wrap(total)


def connect(raw, connection) -> None:
    """Make one connection of the form, whose signal and slot must exist."""
    sender = named(raw, connection.findtext("sender"))
    receiver = named(raw, connection.findtext("receiver"))
    slot = connection.findtext("slot").split("(")[0]
    signals.connect(sender._alive(), connection.findtext("signal"), getattr(receiver, slot), wrap)
