"""JSON data to dataclasses by their type hints, with nothing guessed. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any

from peftseg.errors import BadInput, unknown_name


def record_from(record: type, data: Any, where: str) -> Any:
    """Build a dataclass from JSON data: unknown, missing and mistyped fields are BadInput.

    Parameters
    ----------
    record : type
        The dataclass; its hints may be str, int, float, bool, Any, dict, tuple, dataclasses, and any of these or None.
    data : object
        What `json.loads` gave.
    where : str
        What is read, for messages.
    """
    if not isinstance(data, dict):
        raise BadInput(f"{where} is {in_words(data)}; expected an object.", "Create the job again.")
    fields = {f.name: f for f in dataclasses.fields(record)}
    for name in data:
        if name not in fields:
            raise unknown_name(f"field of the {where}", name, fields)
    missing = [n for n, f in fields.items() if n not in data and _is_required(f)]
    if missing:
        raise BadInput(f"The {where} lacks {', '.join(missing)}.", "Create the job again.")
    hints = typing.get_type_hints(record)
    return record(**{name: value_from(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _is_required(field_: dataclasses.Field) -> bool:
    return field_.default is dataclasses.MISSING and field_.default_factory is dataclasses.MISSING


def value_from(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against a type hint and build it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in arguments):
        return value
    if origin in (typing.Union, types.UnionType):
        return value_from(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return record_from(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return _tuple_from(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: value_from(arguments[1], entry, f"{where}: {key}") for key, entry in value.items()}
    is_number = hint is float and type(value) in (int, float) and math.isfinite(value)
    if is_number or (hint in (str, int, bool) and type(value) is hint):
        return hint(value)
    raise BadInput(f"{where} is {in_words(value)}; expected {hint if origin else hint.__name__}.", "Correct the job.")


def _tuple_from(arguments: tuple, value: list, where: str) -> tuple:
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise BadInput(f"{where} has {len(value)} values; expected {len(arguments)}.", "Correct the job.")
    return tuple(value_from(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))


def in_words(value: Any) -> str:
    """A value and its type, for messages."""
    return f"{json.dumps(value)[:60]} ({type(value).__name__})"
