"""The methods that adapt a network, and their options. Torch-free, so that it can be shown before torch is installed.

A new method is one file with an `attach` function and one entry here; see Docs/add-a-method.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from peftseg.errors import BadInput, unknown_name


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
    """One method: what the user reads about it, where its code is, and its options."""

    name: str
    title: str
    summary: str
    module: str
    options: tuple[Option, ...]


_RANK = Option("rank", 16, "Number of components that each adapted layer gets.", minimum=1)
_LAYERS = Option(
    "layers",
    "auto",
    "Which layers are adapted: auto, attention, encoder, all, or a regular expression that matches whole layer names.",
)
_LR_ADAPTER = Option("lr_adapter", 1e-2, "Learning rate of the adapter.", minimum=0.0)
_LR_DECODER = Option("lr_decoder", 3e-3, "Learning rate of the decoder, where it is trained.", minimum=0.0)
_LR_HEAD = Option("lr_head", 3e-3, "Learning rate of the head.", minimum=0.0)
_LR_BODY = Option("lr_body", 3e-3, "Learning rate of the rest of the network.", minimum=0.0)

_LORA = MethodInfo(
    name="lora",
    title="LoRA",
    summary="Adds a small low-rank change to chosen layers and trains the head; the base weights stay as they are.",
    module="peftseg.adapters.lora",
    options=(
        _RANK,
        Option("alpha", None, "The change is multiplied by alpha / rank; left out, by 1.", minimum=1e-3),
        _LAYERS,
        Option(
            "form",
            "window",
            "How a convolution's weight is factorised: window (true rank), or loralib (as the LoRA package does).",
            choices=("window", "loralib"),
        ),
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
)

_ARENA = MethodInfo(
    name="arena",
    title="ARENA",
    summary="Low-rank changes whose components have gates: those that are not needed are dropped.",
    module="peftseg.adapters.arena",
    options=(
        _RANK,
        Option(
            "mode",
            "importance",
            "How gates close: importance (by a component's effect), sora (by the gate's size), or paper (as published; "
            "with rho 0 the ranks do not depend on the data).",
            choices=("importance", "sora", "paper"),
        ),
        Option(
            "lam",
            None,
            "Strength of the shrinking; larger drops more components. Left out: 0.5 as published in mode paper, else "
            "0.05.",
            minimum=0.0,
        ),
        Option("rho", 0.0, "Step size of the gates' gradient, mode paper only.", minimum=0.0),
        Option(
            "v_init",
            "auto",
            "First value of the gates: ones, uniform between -1 and 1, or auto (uniform in mode paper, else ones).",
            choices=("auto", "ones", "uniform"),
        ),
        _LAYERS,
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
)

_LINEAR_PROBE = MethodInfo(
    name="linear_probe",
    title="Linear probe",
    summary="Trains the last layer only; the smallest change.",
    module="peftseg.adapters.linear_probe",
    options=(replace(_LR_HEAD, default=0.1),),
)

_DECODER = MethodInfo(
    name="decoder",
    title="Decoder tuning",
    summary="Trains the whole decoder and the head; the encoder stays as it is.",
    module="peftseg.adapters.decoder_tuning",
    options=(_LR_DECODER, _LR_HEAD),
)

_FULL = MethodInfo(
    name="full",
    title="Full fine-tuning",
    summary="Trains every weight; the adapter is as large as the base model.",
    module="peftseg.adapters.full",
    options=(_LR_BODY, _LR_DECODER, _LR_HEAD),
)

METHODS: dict[str, MethodInfo] = {m.name: m for m in (_LORA, _ARENA, _LINEAR_PROBE, _DECODER, _FULL)}


def method_info(method: str) -> MethodInfo:
    """The method of this name; BadInput lists the valid names otherwise."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method]


def check_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a method: the given ones checked, the others filled in with their defaults.

    Parameters
    ----------
    method : str
        Name in `METHODS`.
    options : dict
        Given values by option name; numbers may be int or float.

    Raises
    ------
    BadInput
        For an unknown method or option, and for a value of the wrong type, choice or size.
    """
    info = method_info(method)
    known = {option.name: option for option in info.options}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of method '{method}'", name, known)
    given = {name: _checked(method, known[name], value) for name, value in options.items()}
    return {name: given.get(name, option.default) for name, option in known.items()}


def learning_rates(options: dict[str, Any]) -> dict[str, float]:
    """Learning rates by kind ("adapter", "decoder", "head", "body") from options that `check_options` gave."""
    return {name.removeprefix("lr_"): value for name, value in options.items() if name.startswith("lr_")}


def _checked(method: str, option: Option, value: Any) -> Any:
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
