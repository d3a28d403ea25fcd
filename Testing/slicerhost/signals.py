# ruff: noqa: PLW0108 - PySide counts the parameters of what it calls
"""Signals as PythonQt offers them: `button.clicked.connect(f)` and `button.connect('clicked(bool)', f)`."""

from __future__ import annotations

import inspect
import sys
import time
import traceback
import types

from PySide6 import QtCore

slot_errors: list[str] = []
"""Tracebacks of slots and VTK observers that raised. Slicer only prints them; here they fail the test."""

slot_seconds: dict[str, float] = {}
"""The longest call of each slot: while one runs, Slicer's window does not answer."""


class Slot:
    """A callable as PythonQt calls it: with at most the arguments it takes, and without letting an exception out."""

    def __init__(self, function, wrap, convert=None, count: int | None = None):
        if not callable(function):
            raise TypeError(f"a signal can be connected to a callable only, not to {function!r}")
        self.function, self.wrap, self.convert, self.count = function, wrap, convert, count
        self.limit = positional_limit(function)

    def __call__(self, *values):
        values = [self.convert(*values)] if self.convert else list(values)
        if self.count is not None:
            values = values[: self.count]
        if self.limit is not None:
            values = values[: self.limit]
        begin = time.perf_counter()
        try:
            self.function(*(self.wrap(value) for value in values))
        except Exception:
            record_error()
        finally:
            name = getattr(self.function, "__qualname__", repr(self.function))
            slot_seconds[name] = max(slot_seconds.get(name, 0.0), time.perf_counter() - begin)


def record_error() -> None:
    """Keep the traceback of the exception being handled, and print it as Slicer does."""
    text = traceback.format_exc()
    slot_errors.append(text)
    sys.stderr.write(text)


def positional_limit(function) -> int | None:
    """Count the arguments that PythonQt hands over; None where it does not count (`*args`, other callables)."""
    target, bound = (function.__func__, 1) if isinstance(function, types.MethodType) else (function, 0)
    if not isinstance(target, types.FunctionType) or target.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return target.__code__.co_argcount - bound


def declared_signals(raw: QtCore.QObject) -> dict[str, tuple]:
    """Map each C++ signature of an object to (attribute, number of arguments, conversion), in Qt's order."""
    own = dict(getattr(type(raw), "cpp_signals", {}))
    found = {signature: (name, None, convert) for signature, (name, convert) in own.items()}
    hidden = {name for name, _ in own.values()}
    meta = raw.metaObject()
    for index in range(meta.methodCount()):
        method = meta.method(index)
        if method.methodType() != QtCore.QMetaMethod.MethodType.Signal:
            continue
        name = bytes(method.name()).decode()
        signature = bytes(method.methodSignature()).decode()
        if name not in hidden:
            found.setdefault(signature, (name, method.parameterCount(), None))
    return found


def resolve(raw: QtCore.QObject, signal: str) -> tuple:
    """Find a signal by its signature or, without parentheses, the first of that name."""
    known = declared_signals(raw)
    if "(" not in signal:
        found = next((v for k, v in known.items() if k.startswith(signal + "(")), None)
    else:
        normal = bytes(QtCore.QMetaObject.normalizedSignature(signal)).decode()
        found = known.get(normal)
    if found is None:
        near = [k for k in known if k.split("(")[0] == signal.split("(", maxsplit=1)[0]]
        raise AttributeError(
            f"{type(raw).__name__} has no signal '{signal}' (Slicer ignores such a connect without a word); "
            f"of that name: {near or 'none'}"
        )
    return found


def connect(raw: QtCore.QObject, signal: str, function, wrap) -> bool:
    """Connect `function` to a signal that must exist."""
    name, count, convert = resolve(raw, signal)
    slot = Slot(function, wrap, convert, count)
    sent, takes = 1 if convert else count, getattr(function, "takes", None)
    if takes and sent is not None and sent not in takes:
        raise TypeError(f"'{signal}' sends {sent} values, and PythonQt hands all of them to {function}: it would fail")
    receive = receiver(slot, arity(raw, name))
    getattr(raw, name).connect(receive)
    raw.__dict__.setdefault("_host_slots", []).append((name, count, convert, function, receive))
    return True


def arity(raw: QtCore.QObject, name: str) -> int:
    """Count the arguments that the fullest signal of a name sends."""
    meta = raw.metaObject()
    methods = [meta.method(index) for index in range(meta.methodCount())]
    return max((m.parameterCount() for m in methods if bytes(m.name()).decode() == name), default=1)


def receiver(slot: Slot, count: int):
    """Make a function of exactly `count` arguments: PySide sends as many as it can see in the signature.

    It is a function, not a bound method, which PySide would hold weakly; PythonQt holds what it is given.
    """
    return (
        lambda: slot(),
        lambda a: slot(a),
        lambda a, b: slot(a, b),
        lambda a, b, c: slot(a, b, c),
        lambda a, b, c, d: slot(a, b, c, d),
    )[count]


def disconnect(raw: QtCore.QObject, signal: str, function) -> bool:
    """Undo `connect`; False where it was not connected, as in PythonQt."""
    name, count, convert = resolve(raw, signal)
    held = raw.__dict__.get("_host_slots", [])
    for item in held:
        if item[:3] == (name, count, convert) and item[3] == function:
            getattr(raw, name).disconnect(item[4])
            held.remove(item)
            return True
    return False


class BoundSignal:
    """A signal of one object, as the attribute gives it."""

    def __init__(self, proxy, raw: QtCore.QObject, name: str, wrap, unwrap):
        self._proxy, self._raw, self._name, self._wrap, self._unwrap = proxy, raw, name, wrap, unwrap

    def connect(self, function) -> bool:
        return connect(self._raw, self._name, function, self._wrap)

    def disconnect(self, function) -> bool:
        return disconnect(self._raw, self._name, function)

    def emit(self, *values) -> None:
        name, _, _ = resolve(self._raw, self._name)
        getattr(self._raw, name).emit(*(self._unwrap(value) for value in values))

    __call__ = emit

    def __repr__(self) -> str:
        return f"<qt signal {self._name} of {type(self._proxy).__name__}>"


class Signal:
    """`qt.Signal(str)` in the body of a Python class that derives from a Qt class."""

    def __init__(self, *types_):
        self.types = types_

    def __set_name__(self, owner, name):
        self.name = name
