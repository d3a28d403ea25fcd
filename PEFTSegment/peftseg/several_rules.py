"""What becomes of the structures of several adapters that run on one study: names, label values, rules. Torch-free."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftseg.errors import BadInput
from peftseg.models import Structure

RULES = {
    "first": "of adapters that segment the same structure, the one that is named first counts",
    "union": "what any of them finds",
    "most_confident": "in each voxel the adapter that is surest, of there or of not there",
    "average": "where the mean of their probabilities is above one half",
}
DEFAULT_RULE = "first"
BY_PROBABILITY = ("most_confident", "average")
MOST_VALUE = 65535
GOLDEN = 0.618034  # of the circle of hues: colours in a row stay far apart


@dataclass(frozen=True)
class Combined:
    """The structures of the merged result.

    Attributes
    ----------
    structures : tuple of Structure
        In the order of the adapters; names, values and colours differ.
    sources : dict
        Structure name -> numbers of the adapters (from 0 on) that segment it, ascending.
    """

    structures: tuple[Structure, ...]
    sources: dict[str, tuple[int, ...]]

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of what more than one adapter segments."""
        return tuple(name for name, found in self.sources.items() if len(found) > 1)


def combine(lists: Sequence[Sequence[Structure]]) -> Combined:
    """Put the structures of several adapters side by side.

    Structures of one name are one structure, as the first adapter that has it says (value, colour, code). A label value that
    an earlier structure has taken is replaced by the smallest one that no adapter uses; so is a colour.

    Raises
    ------
    BadInput
        There are more structures than label values.
    """
    used = {structure.value for found in lists for structure in found}
    kept: dict[str, Structure] = {}
    sources: dict[str, list[int]] = {}
    for number, found in enumerate(lists):
        for structure in found:
            sources.setdefault(structure.name, []).append(number)
            if structure.name not in kept:
                kept[structure.name] = _distinct(structure, tuple(kept.values()), used)
                used.add(kept[structure.name].value)
    return Combined(tuple(kept.values()), {name: tuple(numbers) for name, numbers in sources.items()})


def check_rule(rule: str) -> str:
    """The rule itself; BadInput with the list of rules where there is none of this name."""
    if rule not in RULES:
        listed = "; ".join(f"{name} ({words})" for name, words in RULES.items())
        raise BadInput(f"Unknown merge rule '{rule}'; valid: {listed}.", "Choose one of these.")
    return rule


def _distinct(structure: Structure, others: Sequence[Structure], used: set[int]) -> Structure:
    """The structure with a value and a colour that none of the others has."""
    value, colour = structure.value, structure.colour
    if value in {other.value for other in others}:
        value = next((free for free in range(1, MOST_VALUE + 1) if free not in used), 0)
        if not value:
            raise BadInput("The adapters segment more structures than there are label values.", "Give fewer adapters.")
    taken = {tuple(other.colour) for other in others}
    hue = 0.0
    while tuple(colour) in taken:
        hue = (hue + GOLDEN) % 1.0
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, 0.9))
    return replace(structure, value=value, colour=colour)
