"""What the subcommands share: the parser, and how names on the command line become records. Torch-free."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput, unknown_name
from peftseg.models import ModelEntry, Structure

# Twelve colours that stay apart for most colour-blind people, in the order in which structures take them.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (153, 153, 51),
    (136, 34, 85),
    (68, 170, 153),
    (170, 68, 153),
    (221, 204, 119),
)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises BadInput, and lists the valid options when one is unknown."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.set_defaults(parser=self)

    def error(self, message: str) -> Any:
        """Raise BadInput instead of leaving the program."""
        raise BadInput(f"{self.prog}: {message}.", f"See `{self.prog} --help`.")

    def option_names(self) -> list[str]:
        """All options of this parser, as they are typed."""
        return sorted(name for action in self._actions for name in action.option_strings)


def parse(parser: Parser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command line; BadInput for what is unknown, missing or malformed."""
    found, rest = parser.parse_known_args(arguments)
    options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if options:
        raise unknown_name(f"option of {found.parser.prog}", options[0], found.parser.option_names())
    if rest:
        found.parser.error(f"does not take '{rest[0]}'")
    return found


def add_json(parser: Parser) -> None:
    """The option for programs that read the output."""
    parser.add_argument("--json", action="store_true", help="print JSON for another program to read")


def add_run_options(parser: Parser) -> None:
    """The options of everything that computes."""
    add_json(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:n or mps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="start of the random numbers (default: %(default)s)")
    parser.add_argument(
        "--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s, what gains on the device)"
    )


def parse_structures(text: str, entry: ModelEntry | None = None) -> tuple[Structure, ...]:
    """Structures of a text such as "hippocampus=1,amygdala=6": names with their values in the label maps.

    Parameters
    ----------
    text : str
        name=value, separated by commas.
    entry : ModelEntry or None
        A structure that this model knows by name takes the model's colour and terminology code.
    """
    known = {s.name: s for s in entry.structures} if entry else {}
    structures = []
    for number, part in enumerate(text.split(",")):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not name or not sign or not value.isdecimal() or not 1 <= int(value) <= 65535:
            raise BadInput(
                f"'{part.strip()}' in --structures is not name=value with a whole number from 1 to 65535.",
                "Write for example --structures hippocampus=1,amygdala=6.",
            )
        colour, code = (known[name].colour, known[name].code) if name in known else (PALETTE[number % len(PALETTE)], "")
        structures.append(Structure(name, int(value), colour, code))
    for what in ("name", "value"):
        values = [getattr(s, what) for s in structures]
        twice = next((v for v in values if values.count(v) > 1), None)
        if twice is not None:
            raise BadInput(f"--structures gives the {what} {twice} twice.", f"Give each structure its own {what}.")
    return tuple(structures)


def parse_options(pairs: list[str], flag: str = "--option") -> dict[str, Any]:
    """Options of repeated "key=value" texts; a value is read as JSON (3, 0.5, true) where it is JSON, else as text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = (piece.strip() for piece in pair.partition("="))
        if not key or not sign:
            raise BadInput(f"{flag} '{pair}' is not key=value.", f"Write for example {flag} rank=8.")
        if key in options:
            raise BadInput(f"{flag} {key} is given twice.", "Give it once.")
        options[key] = _json_or_text(value)
    return options


def parse_numbers(text: str | None, kind: type, flag: str) -> tuple | None:
    """Three numbers of a text such as "1.5,1.5,2"; None stays None."""
    if text is None:
        return None
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise BadInput(f"{flag} '{text}' is not three numbers with commas.", f"Write for example {flag} 2,2,2.")
    return numbers


def existing(path: str, what: str) -> Path:
    """A path that must be there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise BadInput(f"The {what} {path} does not exist.", "Check the path.")
    return found


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
