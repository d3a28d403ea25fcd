"""Fields of a parameter node wrapper: their types, annotations, and how they are stored."""

from __future__ import annotations

import enum
import json
import pathlib
import types
import typing

import slicer

from .pythonqt import Proxy


class Validator:
    """Checks a value before it is stored."""

    def validate(self, value) -> None:
        raise NotImplementedError


class WithinRange(Validator):
    """Accepts values from `minimum` to `maximum`."""

    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


class Minimum(Validator):
    """Accepts values from `minimum` on."""

    def __init__(self, minimum):
        self.minimum = minimum

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be greater than {self.minimum}, is {value}")


class Maximum(Validator):
    """Accepts values up to `maximum`."""

    def __init__(self, maximum):
        self.maximum = maximum

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be less than {self.maximum}, is {value}")


class Choice(Validator):
    """Accepts one of a list."""

    def __init__(self, choices):
        self.choices = choices

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be in one of the following: {self.choices}")


class Exclude(Validator):
    """Refuses the values of a list."""

    def __init__(self, excludedValues):
        self.excludedValues = excludedValues

    def validate(self, value) -> None:
        if value in self.excludedValues:
            raise ValueError(f"Value is {value}, but must not be an excluded value: {self.excludedValues}")


class NotNone(Validator):
    """Refuses None."""

    def validate(self, value) -> None:
        if value is None:
            raise ValueError("Value must not be None")


class Default:
    """The default of a field."""

    def __init__(self, value=None, *, generator=None):
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value


class _Hint:
    """A hint for widgets."""

    def __init__(self, value):
        self.value = value


class Decimals(_Hint):
    """Digits after the point."""


class SingleStep(_Hint):
    """Step of a spin box."""


class Label(_Hint):
    """Label of a generated widget."""


class Field:
    """One field: its type, checks, default and keys in the parameter node."""

    def __init__(self, name: str, annotated, default):
        self.name, self.annotated = name, annotated
        self.type, self.marks = annotated, []
        if typing.get_origin(annotated) is typing.Annotated:
            self.type, *self.marks = typing.get_args(annotated)
        parts = typing.get_args(self.type) if typing.get_origin(self.type) in (typing.Union, types.UnionType) else ()
        self.optional = type(None) in parts
        if parts:
            rest = [p for p in parts if p is not type(None)]
            if len(rest) != 1 or not self.optional:
                raise NotImplementedError(f"the test host knows only unions with None ({name})")
            self.type = rest[0]
        self.origin = typing.get_origin(self.type) or self.type
        simple = (int, float, str, bool, list, dict, tuple, pathlib.Path, pathlib.PurePath)
        self.is_node = isinstance(self.origin, type) and issubclass(self.origin, slicer.vtkMRMLNode)
        self.is_enum = isinstance(self.origin, type) and issubclass(self.origin, enum.Enum)
        if self.origin not in simple and not self.is_node and not self.is_enum:
            raise NotImplementedError(
                f"the test host's parameterNodeWrapper does not know the type {annotated} ({name})"
            )
        self.default = default if default is not None else self._own_default()

    def _own_default(self) -> Default:
        given = [m for m in self.marks if isinstance(m, Default)]
        if given:
            return given[0]
        if self.optional or self.is_node:
            return Default(None)
        if self.is_enum:
            return Default(next(iter(self.origin)))
        return Default(generator=self.origin)

    def hint(self, kind):
        """Return the annotation of a kind, or None."""
        return next((m for m in self.marks if isinstance(m, kind)), None)

    def check(self, value) -> None:
        """Refuse a value of the wrong type or outside what the annotations allow."""
        if value is None:
            if self.optional or self.is_node:
                return
            raise ValueError("Value must not be None")
        wanted = (int, float) if self.origin is float else self.origin
        if self.origin in (list, dict, tuple) and not isinstance(value, Proxy):
            wanted = {list: (list, tuple), dict: dict, tuple: tuple}[self.origin]
        if not isinstance(value, wanted):
            raise TypeError(f"Value must be of type '{self.origin}', is type '{type(value)}' value '{value}'")
        for mark in self.marks:
            checker = mark() if isinstance(mark, type) and issubclass(mark, Validator) else mark
            if isinstance(checker, Validator):
                checker.validate(value)

    def write(self, node, value) -> None:
        """Store a value."""
        self.check(value)
        if self.is_node:
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
        elif value is None:
            node.SetParameter(self.name, "None")
            node.SetParameter(f"{self.name}.none", "True")
        else:
            if self.optional:
                node.UnsetParameter(f"{self.name}.none")
            node.SetParameter(self.name, self._text(value))

    def _text(self, value) -> str:
        if self.is_enum:
            return value.name
        return json.dumps(value) if self.origin in (list, dict, tuple) else str(value)

    def read(self, node):
        """Read the value back."""
        if self.is_node:
            return node.GetNodeReference(self.name)
        if not node.HasParameter(self.name):
            self.write(node, self.default.value)
        text = node.GetParameter(self.name)
        if self.optional and node.HasParameter(f"{self.name}.none"):
            return None
        if self.origin is bool:
            return text == "True"
        if self.is_enum:
            return self.origin[text]
        if self.origin in (list, dict):
            kind = {list: Stored, dict: StoredDict}[self.origin]
            return kind(json.loads(text)).watched(self, node)
        return tuple(json.loads(text)) if self.origin is tuple else self.origin(text)


def _saving(base, names: tuple[str, ...], kind_name: str):
    """Make a container that writes itself back when it is changed."""

    def watched(self, field_, node):
        self._field, self._node = field_, node
        return self

    def method(name):
        def changed(self, *arguments, **options):
            result = getattr(base, name)(self, *arguments, **options)
            self._field.write(self._node, base(self))
            return self if name == "__iadd__" else result

        return changed

    return type(kind_name, (base,), {"watched": watched, **{name: method(name) for name in names}})


Stored = _saving(
    list,
    (
        "append",
        "extend",
        "insert",
        "remove",
        "pop",
        "clear",
        "sort",
        "reverse",
        "__setitem__",
        "__delitem__",
        "__iadd__",
    ),
    "Stored",
)
StoredDict = _saving(
    dict, ("__setitem__", "__delitem__", "pop", "popitem", "clear", "update", "setdefault"), "StoredDict"
)
