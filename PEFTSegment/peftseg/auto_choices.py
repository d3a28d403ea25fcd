"""What the method `auto` tries: methods with their usual options, and changes of one option of the best. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peftseg.adapters.table import AUTO, METHODS, check_options
from peftseg.errors import BadInput, unknown_name

RATES_BY = 3.0
DIGITS = 3  # of a changed rate


@dataclass(frozen=True)
class Choice:
    """A method with all of its options.

    Attributes
    ----------
    method : str
        Name in the method table.
    options : tuple of (str, value)
        From `check_options`, all of them.
    changes : tuple of str
        In words, what differs from the method's usual options.
    """

    method: str
    options: tuple[tuple[str, Any], ...]
    changes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name for the user."""
        return ", ".join([METHODS[self.method].title, *self.changes])


def starters(names: str) -> list[Choice]:
    """Choices of a comma-separated list of methods, in its order: the first one is preferred where they tie."""
    asked = [name.strip() for name in names.split(",")]
    known = [name for name in METHODS if name != AUTO]
    for name in asked:
        if name not in known:
            raise unknown_name(f"method in option 'methods' of method '{AUTO}'", name, known)
    return [Choice(name, tuple(check_options(name, {}).items())) for name in dict.fromkeys(asked)]


def variations(choice: Choice) -> Iterator[Choice]:
    """The choice with one thing changed, what most often helps first: its rank, its rates, its layers."""
    options = dict(choice.options)
    rates = [name for name in options if name.startswith("lr_")]
    ranks = [2 * options["rank"], options["rank"] // 2] if "rank" in options else []
    ranks = [rank for rank in ranks if _valid(choice.method, {**options, "rank": rank})]
    yield from (_changed(choice, {"rank": rank}, f"rank {rank}") for rank in ranks if rank > options["rank"])
    for factor, words in ((RATES_BY, f"rates x {RATES_BY:g}"), (1 / RATES_BY, f"rates / {RATES_BY:g}")):
        yield _changed(choice, {name: _rounded(options[name] * factor) for name in rates}, words)
    yield from (_changed(choice, {"rank": rank}, f"rank {rank}") for rank in ranks if rank < options["rank"])
    if options.get("layers") == "auto":
        yield _changed(choice, {"layers": "all"}, "all layers")


def _changed(choice: Choice, new: dict[str, Any], words: str) -> Choice:
    return Choice(choice.method, tuple({**dict(choice.options), **new}.items()), (*choice.changes, words))


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")


def _valid(method: str, options: dict[str, Any]) -> bool:
    try:
        check_options(method, options)
    except BadInput:
        return False
    return True


def listed(labels: Sequence[str]) -> str:
    """Names in a sentence: "A, B and C"."""
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
