"""`slicer.parameterNodeWrapper`: a class whose typed fields live in a parameter node and follow widgets.

Written anew after Slicer's behaviour. Simple values, paths, nodes and enumerations are stored under Slicer's own keys;
lists, tuples and dictionaries as JSON, whereas Slicer spreads them over several keys. Packs, ranges, unions other than
`X | None` and generated GUIs are not imitated: such a field raises NotImplementedError.
"""

from __future__ import annotations

import pathlib
import types
import typing

import vtk

from . import api
from .parameter_fields import (
    Choice,
    Decimals,
    Default,
    Exclude,
    Field,
    Label,
    Maximum,
    Minimum,
    NotNone,
    SingleStep,
    Validator,
    WithinRange,
)
from .pythonqt import Proxy


class Connector:
    """Keeps one widget and one field alike. The pairs are those of Slicer; another pair raises RuntimeError."""

    def __init__(self, widget, field: Field):
        self.widget, self.field = widget, field
        kind, name = type(widget).__name__, field.origin
        if kind in ("QCheckBox", "ctkCheckBox") and name is bool:
            self.signal, self.attribute = "stateChanged", "checked"
        elif kind == "QPushButton" and name is bool:
            widget.checkable = True
            self.signal, self.attribute = "toggled", "checked"
        elif kind in ("QSpinBox", "QSlider") and name is int:
            self._limit(integer=True)
            self.signal, self.attribute = "valueChanged", "value"
        elif kind in ("QDoubleSpinBox", "ctkSliderWidget", "ctkDoubleSpinBox", "qMRMLSliderWidget") and name in (
            int,
            float,
        ):
            self._limit(integer=name is int)
            self.signal, self.attribute = "valueChanged", "value"
        elif kind in ("QLineEdit", "QLabel") and name is str:
            self.signal, self.attribute = ("textChanged" if kind == "QLineEdit" else None), "text"
        elif kind == "ctkPathLineEdit" and name in (str, pathlib.Path):
            self.signal, self.attribute = "currentPathChanged", "currentPath"
        elif kind == "ctkDirectoryButton" and name in (str, pathlib.Path):
            self.signal, self.attribute = "directoryChanged", "directory"
        elif kind in ("QComboBox", "ctkComboBox") and (field.is_enum or field.hint(Choice)):
            self._fill()
            self.signal, self.attribute = "currentIndexChanged", "currentIndex"
        elif kind == "qMRMLNodeComboBox" and field.is_node:
            self.signal, self.attribute = "currentNodeChanged", None
        else:
            raise RuntimeError(
                f"Unable to create GUI connector from datatype '{field.annotated}' to widget type '{kind}'."
            )

    def _limit(self, integer: bool) -> None:
        span, low, high = (self.field.hint(kind) for kind in (WithinRange, Minimum, Maximum))
        kind = type(self.widget).__name__
        if kind in ("QSlider", "ctkSliderWidget", "qMRMLSliderWidget") and not span and not (low and high):
            raise RuntimeError(f"Cannot have a connection to {kind} where the type is unbounded.")
        least = span.minimum if span else low.minimum if low else (-(2**31) if integer else -1e300)
        most = span.maximum if span else high.maximum if high else (2**31 - 1 if integer else 1e300)
        self.widget.minimum, self.widget.maximum = least, most
        for hint, attribute in ((Decimals, "decimals"), (SingleStep, "singleStep")):
            if self.field.hint(hint):
                setattr(self.widget, attribute, self.field.hint(hint).value)

    def _fill(self) -> None:
        choices = list(self.field.origin) if self.field.is_enum else list(self.field.hint(Choice).choices)
        self.choices = choices
        self.widget.clear()
        for choice in choices:
            label = choice.label() if hasattr(choice, "label") else getattr(choice, "name", str(choice))
            self.widget.addItem(label)

    def read(self):
        """Return what the widget shows."""
        if self.attribute is None:
            return self.widget.currentNode()
        value = getattr(self.widget, self.attribute)
        if self.attribute == "currentIndex":
            return self.choices[value]
        return self.field.origin(value)

    def write(self, value) -> None:
        """Show a value."""
        if self.attribute is None:
            self.widget.setCurrentNode(value)
            return
        shown = self.choices.index(value) if self.attribute == "currentIndex" else value
        shown = str(shown) if isinstance(shown, pathlib.PurePath) else shown
        if getattr(self.widget, self.attribute) != shown:
            setattr(self.widget, self.attribute, shown)


class WrapperBase:
    """Methods of every wrapper class."""

    def _setup(self, node) -> None:
        self.parameterNode = node
        self._connectors: dict[int, dict] = {}
        self._updating = False
        for field in self.allParameters.values():
            if not node.HasParameter(field.name):
                field.write(node, field.default.value)

    def _field(self, name: str) -> Field:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}; found {list(self.allParameters)}")
        return self.allParameters[name]

    def default(self, name: str) -> Default:
        return self._field(name).default

    def dataType(self, name: str):
        return self._field(name).annotated

    def getValue(self, name: str):
        return self._field(name).read(self.parameterNode)

    def setValue(self, name: str, value) -> None:
        self._field(name).write(self.parameterNode, value)

    def connectGui(self, gui) -> int:
        """Connect the widgets whose property SlicerParameterName names a field."""
        widgets = gui.findChildren() if isinstance(gui, Proxy) else list(vars(gui).values())
        named = {w.property("SlicerParameterName"): w for w in widgets if w.property("SlicerParameterName")}
        return self.connectParametersToGui(named)

    def connectParametersToGui(self, mapping: dict) -> int:
        """Connect widgets by field name; return the tag for `disconnectGui`."""
        connectors = {name: Connector(widget, self._field(name)) for name, widget in mapping.items()}
        links = {}
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            links[name] = (connector, self._receiver(name, connector))
            if connector.signal:
                getattr(connector.widget, connector.signal).connect(links[name][1])
        tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._show(connectors))
        self._connectors[tag] = links
        return tag

    def _receiver(self, name: str, connector: Connector):
        def changed():  # without parameters, not even with defaults: PythonQt would fill them
            if not self._updating:
                self.setValue(name, connector.read())

        return changed

    def _show(self, connectors: dict) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            for name, connector in connectors.items():
                connector.write(self.getValue(name))
        finally:
            self._updating = False

    def disconnectGui(self, tag: int) -> None:
        """Undo `connectGui`."""
        for connector, receiver in self._connectors.pop(tag, {}).values():
            if connector.signal:
                getattr(connector.widget, connector.signal).disconnect(receiver)
        self.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, was):
        return self.parameterNode.EndModify(was)

    def AddObserver(self, event, callback, priority: float = 0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(classtype=None):
    """Turn a class with annotated fields into a wrapper of a parameter node."""
    if classtype is None:
        return parameterNodeWrapper
    fields = {}
    for name, annotated in typing.get_type_hints(classtype, include_extras=True).items():
        if hasattr(WrapperBase, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        default = Default(getattr(classtype, name)) if hasattr(classtype, name) else None
        fields[name] = Field(name, annotated, default)
        reader = lambda self, f=fields[name]: f.read(self.parameterNode)  # noqa: E731 - two of a kind
        writer = lambda self, value, f=fields[name]: f.write(self.parameterNode, value)  # noqa: E731
        setattr(classtype, name, property(reader, writer))
    for name, member in vars(WrapperBase).items():
        if not name.startswith("__"):
            setattr(classtype, name, member)
    classtype.__init__ = WrapperBase._setup
    classtype.allParameters = fields
    classtype._is_parameter_node_wrapper = True
    return classtype


def build() -> types.ModuleType:
    """Build the module; names that Slicer has and the host has not raise NotImplementedError."""
    module = types.ModuleType("slicer.parameterNodeWrapper")
    own = (
        Validator, WithinRange, Minimum, Maximum, Choice, Exclude, NotNone, Default, Decimals, SingleStep, Label,
        parameterNodeWrapper,
    )  # fmt: skip
    for thing in own:
        setattr(module, thing.__name__, thing)
    module.isParameterNodeWrapper = lambda thing: getattr(thing, "_is_parameter_node_wrapper", False)
    module.__all__ = [*(thing.__name__ for thing in own), "isParameterNodeWrapper"]

    def missing(name: str):
        if name in api.listed()["slicer.parameterNodeWrapper"]:
            raise NotImplementedError(f"parameterNodeWrapper.{name} exists in Slicer, but the test host has it not")
        raise AttributeError(f"module 'slicer.parameterNodeWrapper' has no attribute '{name}'")

    module.__getattr__ = missing
    return module
