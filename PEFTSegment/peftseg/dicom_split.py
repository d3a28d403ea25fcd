"""Split the planes of a DICOM series into volumes: by geometry, then by what tells repeated places apart. Torch-free."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from peftseg.dicom_headers import PlaneHeader
from peftseg.dicom_stack import orientation_groups, place_of

PLACE_DIGITS = 2  # of mm: time points of one place differ by rounding only
UNITS = {
    "echo time": " ms",
    "inversion time": " ms",
    "trigger time": " ms",
    "trigger delay": " ms",
    "frame time": " ms",
}


@dataclass(frozen=True)
class Part:
    """Planes that may form one volume.

    Attributes
    ----------
    planes : tuple of PlaneHeader
        Of one size, pixel size and orientation.
    words : str
        What tells it from the other parts of its series, e.g. "echo time 4.92 ms"; "" where it is the only one.
    repeats : int
        How many planes lie at the same place at most; above 1: several volumes that nothing tells apart.
    """

    planes: tuple[PlaneHeader, ...]
    words: str
    repeats: int


def split(planes: Sequence[PlaneHeader]) -> list[Part]:
    """Parts of a series, in a stable order.

    Planes of different size, pixel size, orientation or stack are different parts. Within these, where several planes
    lie at one place, a fact (image type, echo time, b-value, time point, acquisition, ...) splits them when it differs
    between planes at one place and has no more values than planes lie there; several facts in turn where it takes that.
    """
    by_geometry: dict[tuple, list[PlaneHeader]] = defaultdict(list)
    orientations = orientation_groups([plane.orientation for plane in planes])
    for plane, orientation in zip(planes, orientations, strict=True):
        spacing = tuple(round(v, 4) for v in plane.spacing)
        by_geometry[plane.size, spacing, orientation, dict(plane.facts).get("stack", "")].append(plane)
    parts = []
    for key in sorted(by_geometry, key=str):
        words = _geometry_words(key, list(by_geometry))
        parts += _by_facts(by_geometry[key], words)
    return parts


def _geometry_words(key: tuple, keys: list[tuple]) -> list[str]:
    """How a geometry differs from the others of the series."""
    texts = (
        lambda k: f"{k[0][0]} x {k[0][1]} pixels",
        lambda k: f"{k[1][0]:.4g} x {k[1][1]:.4g} mm",
        lambda k: f"orientation {k[2]}",
        lambda k: f"stack {k[3]}",
    )
    return [text(key) for i, text in enumerate(texts) if len({k[i] for k in keys}) > 1]


def _by_facts(planes: list[PlaneHeader], words: list[str]) -> list[Part]:
    repeats = _repeats(planes)
    fact = _telling_fact(planes, repeats) if repeats > 1 else None
    if fact is None:
        return [Part(tuple(planes), ", ".join(words), repeats)]
    groups: dict[str, list[PlaneHeader]] = defaultdict(list)
    for plane in planes:
        groups[dict(plane.facts).get(fact, "")].append(plane)
    parts = []
    for value in sorted(groups, key=_by_number):
        parts += _by_facts(groups[value], [*words, f"{fact} {value or 'unknown'}{UNITS.get(fact, '')}"])
    return parts


def _repeats(planes: Sequence[PlaneHeader]) -> int:
    return max(Counter(_place(plane) for plane in planes).values())


def _place(plane: PlaneHeader) -> tuple[float, ...]:
    return place_of(plane.position, plane.orientation, PLACE_DIGITS)


def _telling_fact(planes: list[PlaneHeader], repeats: int) -> str | None:
    """The first fact that differs between planes at one place, and does not differ from slice to slice."""
    places: dict[tuple, list[dict[str, str]]] = defaultdict(list)
    for plane in planes:
        places[_place(plane)].append(dict(plane.facts))
    crowded = max(places.values(), key=len)
    for fact in dict.fromkeys(label for plane in planes for label, _ in plane.facts):
        here = {facts.get(fact, "") for facts in crowded}
        everywhere = {dict(plane.facts).get(fact, "") for plane in planes}
        if len(here) > 1 and len(everywhere) <= repeats:
            return fact
    return None


def _by_number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text
