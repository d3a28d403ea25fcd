"""Options of methods: what they may be, and checking what is given. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftseg.errors import BadInput, unknown_name

PROTO_SEG = "proto-seg"  # of the option `layers`: the layers that fail on the labelled scans, see `explain.failing`


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes
    ----------
    name : str
        Key in the options of a job.
    default : int, float, str, bool or None
        Value when left out; its type is the option's type. None: a number that may be left to the method.
    help : str
        One sentence for the user.
    choices : tuple of str, optional
        The only valid values.
    minimum : float, optional
        Smallest valid number.
    """

    name: str
    default: int | float | str | bool | None
    help: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None


@dataclass(frozen=True)
class MethodInfo:
    """One method: what the user reads about it, where its code is, and its options.

    Attributes
    ----------
    name : str
        Key in a job.
    title, summary : str
        Name, and one sentence in plain words.
    module : str
        Module with the function `attach`; "" for what chooses a method and attaches nothing itself.
    options : tuple of Option
    presets : mapping
        Name of a preset -> options that it sets; given options count more. The method then has an option "preset".
    """

    name: str
    title: str
    summary: str
    module: str
    options: tuple[Option, ...]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def failing_option(names: Iterable[str]) -> str:
    """The value of the option `layers` that names failing layers, so that a saved adapter needs no scans."""
    return f"{PROTO_SEG}:{','.join(names)}"


def failing_names(layers: str) -> list[str] | None:
    """Inverse of `failing_option`; None for any other value."""
    kind, colon, names = layers.partition(":")
    return names.split(",") if colon and kind == PROTO_SEG else None


def migrated_from_format_1(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an adapter of format 1, in today's names.

    There `layers` "attention" meant the q-k-v projections for low-rank methods and the whole transformer blocks for the
    others; today it means the attention modules for all.
    """
    if options.get("layers") != "attention":
        return dict(options)
    low_rank = method in ("lora", "arena", "adalora", "dora")
    return {**options, "layers": "qkv" if low_rank else "transformer"}


def checked(method: str, option: Option, value: Any) -> Any:
    """A given value in the option's type; BadInput where it is of the wrong type, choice or size."""
    result = _converted(option, value)
    valid = result is not _INVALID
    if valid and option.choices is not None:
        valid = result in option.choices
    if valid and option.minimum is not None and result is not None:
        valid = result >= option.minimum
    if not valid:
        raise BadInput(
            f"Option '{option.name}' of method '{method}' is {value!r}; expected {_expected(option)}.",
            f"Correct it, or leave it out to use {option.default!r}.",
        )
    return result


def all_checked(method: str, known: Iterable[Option], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The given values in their options' types; BadInput for an unknown name ("Unknown <what> ...") and as `checked`."""
    by_name = {option.name: option for option in known}
    for name in given:
        if name not in by_name:
            raise unknown_name(what, name, by_name)
    return {name: checked(method, by_name[name], value) for name, value in given.items()}


def filled(known: Iterable[Option], given: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """All options: given values, else the preset's, else defaults."""
    return {option.name: given.get(option.name, preset.get(option.name, option.default)) for option in known}


_INVALID = object()


def _converted(option: Option, value: Any) -> Any:
    """The value in the option's type, or `_INVALID`."""
    if isinstance(option.default, bool) or isinstance(value, bool):
        return value if isinstance(option.default, bool) and isinstance(value, bool) else _INVALID
    if isinstance(option.default, str):
        return value if isinstance(value, str) else _INVALID
    if value is None:
        return None if option.default is None else _INVALID
    if not isinstance(value, int | float) or not math.isfinite(value):
        return _INVALID
    if isinstance(option.default, int):
        return int(value) if value == int(value) else _INVALID
    return float(value)


def _expected(option: Option) -> str:
    if option.choices is not None:
        return "one of " + ", ".join(option.choices)
    kinds = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    kind = kinds.get(type(option.default), "a number or nothing")
    return kind if option.minimum is None else f"{kind}, at least {option.minimum:g}"
