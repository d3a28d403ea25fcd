"""The segmented structures that public models share: names, colours, terminology codes, channels. Torch-free.

One table, `resources/structures.csv`; Docs/structures.md says where its codes and colours come from.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from peftseg.errors import unknown_name
from peftseg.models import Structure

TABLE = Path(__file__).parent / "resources" / "structures.csv"
LISTS = (
    "monai-wholebody-104",
    "totalsegmentator-v2-117",
    "atlas-1.0-9",
    "atlas-1.1-25",
    "suprem-template-32",
    "fseft-29",
    "btcv-13",
)
CODES = ("category", "type", "modifier", "region", "region modifier")
TYPES = "Segmentation category and type - DICOM master list"
REGIONS = "Anatomic codes - DICOM master list"


def structures(list_name: str) -> tuple[Structure, ...]:
    """The structures of a public model in the order of its output channels; background is not among them.

    Parameters
    ----------
    list_name : str
        One of `LISTS`.

    Returns
    -------
    tuple of Structure
        With the values 1 to n: the channel of a softmax model (0 is background), the channel plus 1 of a sigmoid model.

    Raises
    ------
    BadInput
        No such list.
    """
    if list_name not in LISTS:
        raise unknown_name("list of structures", list_name, LISTS)
    rows = sorted((row for row in _rows() if row[list_name]), key=lambda row: int(row[list_name]))
    return tuple(Structure(row["name"], int(row[list_name]), _colour(row), _code(row)) for row in rows)


def canonical_name(name: str) -> str | None:
    """This table's name of a structure, e.g. "inferior vena cava" for "postcava"; None where it is not in the table.

    Case, and whether words are parted by spaces, "_" or "-", do not matter.
    """
    return _names().get(_key(name))


def structure_named(name: str) -> Structure | None:
    """The table's structure of this canonical name, with the value 1; None where it is not in the table."""
    row = next((row for row in _rows() if row["name"] == name), None)
    return Structure(name, 1, _colour(row), _code(row)) if row else None


@cache
def _rows() -> tuple[dict[str, str], ...]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@cache
def _names() -> dict[str, str]:
    return {_key(name): row["name"] for row in _rows() for name in (row["name"], *row["aliases"].split("|")) if name}


def _key(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _colour(row: dict[str, str]) -> tuple[int, int, int]:
    return int(row["red"]), int(row["green"]), int(row["blue"])


def _code(row: dict[str, str]) -> str:
    """Slicer's terminology entry, or "" for a structure without a code."""
    if not row["type"]:
        return ""
    category, kind, modifier, region, region_modifier = (row[part] or "^^" for part in CODES)
    return "~".join((TYPES, category, kind, modifier, REGIONS, region, region_modifier))
