"""Qt objects with PythonQt's manners: a proxy over a PySide6 object, limited to the names that Slicer lists.

Properties are attributes, methods are called, signals are connected; what the list of `api.py` does not hold raises
AttributeError, and what it holds but this host does not imitate raises NotImplementedError.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import re
from types import MappingProxyType

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from . import signals
from .api import Entry

PROXIES: dict[type, type] = {}
"""PySide class to proxy class."""
KEYWORDS = ("exec", "raise", "del", "print")
GETTER_PREFIXES = ("", "is", "has")


class EnumInt(int):
    """A value of a C++ enumeration: an int for Python (whose `|` gives a plain int), the PySide value for Qt."""

    raw: object

    @classmethod
    def of(cls, raw) -> EnumInt:
        value = enum_type(type(raw).__name__)(getattr(raw, "value", raw))
        value.raw = raw
        return value


@functools.cache
def enum_type(name: str) -> type[EnumInt]:
    """Make the int type of one enumeration."""
    return type(name, (EnumInt,), {})


def wrap(value):
    """Turn what PySide returns into what PythonQt returns."""
    if isinstance(value, enum.Enum):
        return EnumInt.of(value)
    if isinstance(value, (list, tuple)):
        return tuple(wrap(v) for v in value)
    if isinstance(value, dict):
        return {k: wrap(v) for k, v in value.items()}
    if not isinstance(value, shiboken6.Object):
        return value
    held = getattr(value, "__dict__", {}).get("_host_proxy")
    if held is not None:
        return held
    for kind in type(value).__mro__:
        if kind in PROXIES:
            proxy = object.__new__(PROXIES[kind])
            object.__setattr__(proxy, "_raw", value)
            return proxy
    raise NotImplementedError(f"the test host has no class for {type(value).__name__}: it is not in Slicer's list")


def unwrap(value):
    """Turn an argument from Slicer code into what PySide takes."""
    if isinstance(value, Proxy):
        return value._alive()
    if isinstance(value, EnumInt):
        return value.raw
    if isinstance(value, type) and issubclass(value, Proxy):
        return value._raw_type
    if isinstance(value, (list, tuple)):
        return [unwrap(v) for v in value]
    if isinstance(value, dict):
        return {k: unwrap(v) for k, v in value.items()}
    return value


def call(function, label: str, *arguments):
    """Call a PySide function; wrong arguments raise ValueError, as PythonQt does."""
    plain = [unwrap(a) for a in arguments]
    try:
        return wrap(function(*plain))
    except TypeError as error:
        for attempt in enum_attempts(plain, str(error)):
            with contextlib.suppress(TypeError):
                return wrap(function(*attempt))
        if "called with wrong argument" not in str(error):
            raise
        raise ValueError(f"Called {label} with wrong arguments: {arguments!r}\n{error}") from None


def enum_attempts(arguments: list, message: str):
    """Offer the arguments once more with ints turned into the enumerations that the signature names."""
    for path in re.findall(r"PySide6\.(Qt\w+)\.([\w.]+)", message):
        kind = {"QtCore": QtCore, "QtGui": QtGui, "QtWidgets": QtWidgets}.get(path[0])
        for part in path[1].split("."):
            kind = getattr(kind, part, None)
        if isinstance(kind, enum.EnumMeta):
            with contextlib.suppress(ValueError):
                yield [kind(a) if type(a) is int else a for a in arguments]


def is_signal(found) -> bool:
    """Tell whether a class attribute is a signal.

    PySide 6.12's `isinstance(x, Signal)` forgets to count a reference to its result, which ends Python 3.11 and older.
    """
    return type(found).__name__ == "Signal"


def meta_property(raw, name: str) -> QtCore.QMetaProperty | None:
    """Find a Qt property, or None."""
    if not isinstance(raw, QtCore.QObject):
        return None
    index = raw.metaObject().indexOfProperty(name)
    return raw.metaObject().property(index) if index >= 0 else None


def read_property(raw, name: str):
    """Read by the getter, which knows types that `QObject.property` cannot convert."""
    for prefix in GETTER_PREFIXES:
        getter = getattr(type(raw), prefix + name[0].upper() + name[1:] if prefix else name, None)
        if isinstance(getter, (property, QtCore.Property)):
            return getattr(raw, name)
        if callable(getter) and not is_signal(getter):
            return getter(raw)
    return raw.property(name)


def fitting(value, type_name: str, label: str):
    """Convert a value for a property as PythonQt does, or raise AttributeError."""
    refuse = AttributeError(
        f"Property '{label}' of type '{type_name}' does not accept an object of type {type(value).__name__} ({value})"
    )
    plain = unwrap(value)
    if type_name == "bool":
        if not isinstance(value, (bool, int, float)):
            raise refuse
        return bool(value)
    if type_name in ("int", "double") and not isinstance(value, EnumInt):
        if not isinstance(value, (int, float)):
            raise refuse
        return int(value) if type_name == "int" else float(value)
    if type_name in ("QVariantList", "QStringList") and not isinstance(value, (list, tuple)):
        raise refuse
    if type_name == "QString":
        if value is None:  # Slicer would show the word None
            raise refuse
        return str(value)
    return plain


def write_property(raw, name: str, value, label: str) -> None:
    """Set a property; one that is read-only, or a value that does not fit, raises AttributeError."""
    meta = meta_property(raw, name)
    if meta is not None and not meta.isWritable():
        raise AttributeError(f"Property '{name}' of {label} is not writable")
    plain = fitting(value, meta.typeName() if meta else "", name)
    if isinstance(getattr(type(raw), name, None), QtCore.Property):
        setattr(raw, name, plain)
        return
    setter = getattr(raw, "set" + name[0].upper() + name[1:], None)
    try:
        if setter is not None:
            call(setter, f"{label}.{name}", plain)
        elif not raw.setProperty(name, plain):
            raise ValueError("refused")
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise AttributeError(
            f"Property '{name}' of {label} does not accept an object of type {kind}: {error}"
        ) from None


def is_stray(raw) -> bool:
    """Tell whether a widget that is no window would be shown as one: it is not yet in a layout."""
    windows = (QtWidgets.QDialog, QtWidgets.QMainWindow, QtWidgets.QMenu)
    return isinstance(raw, QtWidgets.QWidget) and raw.parent() is None and not isinstance(raw, windows)


class PropertyName:
    """A property: read and set as an attribute."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, proxy, owner):
        return self if proxy is None else wrap(read_property(proxy._alive(), self.name))

    def __set__(self, proxy, value):
        raw = proxy._alive()
        if self.name == "visible" and value and is_stray(raw):
            raise RuntimeError(f"{type(proxy).__name__} has no parent yet: it would be shown as a window of its own")
        if self.name == "toolTip" and isinstance(value, str) and value and not QtGui.Qt.mightBeRichText(value):
            value = f"<p>{value}</p>"  # Slicer's application wraps every tool tip
        write_property(raw, self.name, value, type(proxy).__name__)


class SignalName:
    """A signal: an object with `connect`, `disconnect` and `emit`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, proxy, owner):
        if proxy is None:
            return self
        raw = proxy._alive()
        signals.resolve(raw, self.name)
        return signals.BoundSignal(proxy, raw, self.name, wrap, unwrap)


class MethodName:
    """A slot or method. Called on a class it is static, or takes the object first."""

    def __init__(self, name: str, raw_type: type, raw_name: str):
        self.name, self.raw_type, self.raw_name = name, raw_type, raw_name
        function = getattr(raw_type, raw_name)
        self.static = type(function).__name__ == "builtin_function_or_method"

    def __get__(self, proxy, owner):
        label = f"{owner.__name__}.{self.name}"
        if self.static:  # some are both: QFile.exists() and QFile.exists(path)
            function = getattr(self.raw_type if proxy is None else proxy._alive(), self.raw_name)
            return QtSlot(label, lambda *a: call(function, label, *a))
        if proxy is None:
            return QtSlot(label, lambda first, *a: self.invoke(first, label, *a))
        return QtSlot(label, lambda *a: self.invoke(proxy, label, *a), (proxy._alive(), self.raw_name))

    def invoke(self, proxy, label: str, *arguments):
        raw = proxy._alive()
        # A method of an override class must not come back to itself, so the class's own function is called.
        own = raw if isinstance(raw, self.raw_type) else None
        function = getattr(self.raw_type if own is not None else type(raw), self.raw_name)
        return call(function, label, raw, *arguments)


def parameter_counts(raw, name: str) -> set[int]:
    """How many arguments the slots of a name take; empty where it is no slot."""
    if not isinstance(raw, QtCore.QObject):
        return set()
    meta = raw.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return {method.parameterCount() for method in methods if bytes(method.name()).decode() == name}


class QtSlot:
    """What PythonQt calls builtin_qt_slot: callable with positional arguments only."""

    def __init__(self, label: str, function, origin: tuple[object, str] | None = None):
        self._label, self._function, self._origin = label, function, origin

    @property
    def takes(self) -> set[int]:
        """With how many arguments; empty where that is not known."""
        return parameter_counts(*self._origin) if self._origin else set()

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __repr__(self) -> str:
        return f"<qt slot {self._label}>"


class Missing:
    """A listed name that this host does not imitate."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, proxy, owner):
        raise NotImplementedError(
            f"{owner.__name__}.{self.name} exists in Slicer, but the test host does not imitate it"
        )

    def __set__(self, proxy, value):
        self.__get__(proxy, type(proxy))


class Proxy:
    """Base of all proxies."""

    _raw_type: type = object
    _entry: Entry | None = None
    _listed = MappingProxyType({})

    def __init__(self, *arguments):
        kind = type(self)
        if kind._raw_type is object:
            raise TypeError(f"No constructors available for {kind.__name__}")
        raw_type = kind._raw_type if kind in PROXIES.values() else override_class(kind)
        plain = [unwrap(a) for a in arguments]
        while plain and plain[-1] is None:
            plain.pop()  # a missing parent
        try:
            raw = raw_type(*plain)
        except TypeError as error:
            raise ValueError(f"Could not find matching overload for {kind.__name__}{arguments!r}: {error}") from None
        object.__setattr__(self, "_raw", raw)
        if kind not in PROXIES.values():
            raw.__dict__["_host_proxy"] = self  # a Python class keeps its state as long as its Qt object lives

    def _alive(self):
        raw = self.__dict__.get("_raw")
        if raw is None:
            raise RuntimeError(f"{type(self).__name__}: super().__init__ was not called")
        if not shiboken6.isValid(raw):
            raise ValueError(f"Trying to use a destroyed {type(self).__name__} object")
        return raw

    def className(self) -> str:
        raw_type = type(self._alive())
        return next(
            kind.__name__ for kind in raw_type.__mro__ if kind in PROXIES or kind.__module__.startswith("PySide6")
        )

    def help(self) -> None:
        print(*sorted(self._listed), sep="\n")

    def __bool__(self) -> bool:
        return "_raw" in self.__dict__ and shiboken6.isValid(self._raw)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Proxy):
            return NotImplemented
        same = self._raw is other._raw
        return same or (not isinstance(self._raw, QtCore.QObject) and bool(self._raw == other._raw))

    def __hash__(self) -> int:
        return id(self._raw) if isinstance(self._raw, QtCore.QObject) else hash(type(self))

    def __getattr__(self, name: str):
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self, name: str, value) -> None:
        cls = type(self)
        known = cls._listed.get(name)
        if isinstance(known, (PropertyName, Missing)) or isinstance(getattr(cls, name, None), property):
            object.__setattr__(self, name, value)
        elif known is not None:
            kind = {SignalName: "Signal", MethodName: "Slot"}.get(type(known), "Name")
            raise AttributeError(f"{kind} '{name}' can not be overwritten on {cls.__name__}")
        elif cls in PROXIES.values():
            raise AttributeError(
                f"'{name}' does not exist on {cls.__name__} and creating new attributes on C++ objects is not allowed"
            )
        else:
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        raw = self.__dict__.get("_raw")
        shown = "{}(0x{:x}) " if isinstance(raw, QtWidgets.QWidget) else "{} (QObject 0x{:x})"
        return shown.format(type(self).__name__, id(raw))


class ObjectManners(Proxy):
    """What PythonQt adds to every QObject."""

    @property
    def name(self) -> str:
        return self.objectName

    @name.setter
    def name(self, value: str) -> None:
        self.objectName = value

    def connect(self, signal: str, function) -> bool:
        if not isinstance(signal, str) or "(" not in signal:
            raise ValueError(f"connect() takes the signal's signature, 'clicked(bool)' for instance, not {signal!r}")
        return signals.connect(self._alive(), signal, function, wrap)

    def disconnect(self, signal: str, function) -> bool:
        return signals.disconnect(self._alive(), signal, function)

    def property(self, name: str):
        raw = self._alive()
        if meta_property(raw, name) is not None:
            return wrap(read_property(raw, name))
        return wrap(raw.property(name))

    def setProperty(self, name: str, value) -> bool:
        raw = self._alive()
        if meta_property(raw, name) is not None:
            write_property(raw, name, value, type(self).__name__)
            return True
        return raw.setProperty(name, unwrap(value))

    def delete(self) -> None:
        shiboken6.delete(self._alive())


def override_class(kind: type) -> type:
    """Make the PySide class that sends Qt's virtual calls and signals to a Python class derived from a proxy."""
    made = kind.__dict__.get("_override")
    if made is not None:
        return made
    body = {}
    python_classes = [c for c in kind.__mro__ if issubclass(c, Proxy) and c is not Proxy and c not in PROXIES.values()]
    for python_class in python_classes:
        for name, member in vars(python_class).items():
            if isinstance(member, signals.Signal):
                body.setdefault(
                    name, QtCore.Signal(*[t if t in (str, int, float, bool) else object for t in member.types])
                )
            elif callable(member) and not name.startswith("_") and isinstance(kind._listed.get(name), MethodName):
                body.setdefault(name, forwarder(name))
    made = type(kind.__name__, (kind._raw_type,), body)
    for python_class in python_classes:
        for name, member in list(vars(python_class).items()):
            if isinstance(member, signals.Signal):
                setattr(python_class, name, SignalName(name))
    kind._override = made
    return made


def forwarder(name: str):
    """Forward one virtual call from Qt to the proxy."""

    def forward(raw, *arguments):
        proxy = raw.__dict__.get("_host_proxy")
        if proxy is None:  # during construction
            return getattr(super(type(raw), raw), name)(*arguments)
        try:
            return unwrap(getattr(proxy, name)(*(wrap(a) for a in arguments)))
        except Exception:
            signals.record_error()
            return None

    forward.__name__ = name
    return forward


def proxy_class(name: str, raw_type: type, entry: Entry, extra: dict | None = None, bases: tuple = ()) -> type:
    """Build the proxy class of one listed class and register it."""
    extra = extra or {}
    if not bases:
        near = next((PROXIES[kind] for kind in raw_type.__mro__[1:] if kind in PROXIES), None)
        is_object = issubclass(raw_type, QtCore.QObject)
        bases = (near,) if near else (ObjectManners if is_object else Proxy,)
    given = set(dir(bases[0])) & {"connect", "disconnect", "className", "help", "property", "setProperty", "delete"}
    body = {}
    for listed in entry.names:
        raw_name = listed + "_" if listed in KEYWORDS and hasattr(raw_type, listed + "_") else listed
        body[listed] = member(listed, raw_name, raw_type, entry)
    for word in KEYWORDS:
        if word in body:
            body[word + "_"] = body[word]
    for kept in given - set(extra):
        body.pop(kept, None)
    names = MappingProxyType({**body, **extra, **dict.fromkeys(given, True)})
    made = type(name, bases, {**body, **extra, "_raw_type": raw_type, "_entry": entry, "_listed": names})
    PROXIES[raw_type] = made
    return made


def member(name: str, raw_name: str, raw_type: type, entry: Entry):
    """Make the descriptor of one listed name."""
    found = getattr(raw_type, raw_name, None)
    meta = getattr(raw_type, "staticMetaObject", None)
    has_property = meta is not None and meta.indexOfProperty(name) >= 0
    if name in entry.signals or is_signal(found):
        return SignalName(name) if found is not None else Missing(name)
    if name in entry.properties or (name in entry.loose and has_property):
        return PropertyName(name) if found is not None or has_property else Missing(name)
    if isinstance(found, enum.Enum):
        return EnumInt.of(found)
    if isinstance(found, int):
        return found
    if isinstance(found, enum.EnumMeta):
        return staticmethod(lambda value=0, kind=found: EnumInt.of(kind(int(value))))
    return MethodName(name, raw_type, raw_name) if callable(found) else Missing(name)
