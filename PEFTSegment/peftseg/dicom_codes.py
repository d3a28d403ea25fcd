"""What a structure is in DICOM's codes: category, type, side and region, and its colour. Torch-free.

`Structure.code` holds a whole terminology entry of Slicer (seven parts joined by "~"), or the code of a type. A structure
without one takes that of the table in `structures.py` by its name, else the general code for tissue, as Slicer does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from peftseg.laterality import side
from peftseg.models import Structure
from peftseg.seg_nrrd import terminology
from peftseg.structures import canonical_name, structure_named

LONGEST_MEANING = 64


class Code(NamedTuple):
    """A code as DICOM writes it."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class StructureCodes:
    """The codes of one structure; a modifier is mostly its side, a region is where e.g. a lesion lies."""

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None


TISSUE = Code("SCT", "85756007", "Tissue")
SIDES = {"left": Code("SCT", "7771000", "Left"), "right": Code("SCT", "24028007", "Right")}


def structure_codes(structure: Structure) -> StructureCodes:
    """The codes of a structure: its own, else the table's, else tissue; with the side that its name says.

    Raises
    ------
    BadInput
        A malformed terminology code.
    """
    known = structure if structure.code else structure_named(canonical_name(structure.name) or "")
    if known is None or not known.code:
        found = StructureCodes(TISSUE, TISSUE)
    else:
        parts = terminology(known).split("~")
        category, kind, modifier, region, region_modifier = (_code(parts[n]) for n in (1, 2, 3, 5, 6))
        kind = kind or category or TISSUE
        found = StructureCodes(category or kind, kind, modifier, region, region_modifier if region else None)
    said = (found.type, found.modifier, found.region, found.region_modifier)
    where = side(structure.name)
    if where is None or any(side(code.meaning) for code in said if code):
        return found
    if found.region and not found.region_modifier:
        return replace(found, region_modifier=SIDES[where])
    return found if found.modifier else replace(found, modifier=SIDES[where])


def _code(text: str) -> Code | None:
    scheme, value, meaning = (part.strip() for part in text.split("^"))
    return Code(scheme, value, (meaning or value)[:LONGEST_MEANING]) if scheme and value else None
