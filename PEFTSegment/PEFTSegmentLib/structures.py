"""The structures to learn: their record in the module's state, and segments that carry them.

Nothing here needs Qt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.models import Structure, structure_from_dict, to_dict
from peftseg.structures import canonical_name, structure_named

GENERAL = "Segmentation category and type - 3D Slicer General Anatomy list"
REGIONS = "Anatomic codes - DICOM master list"
FREE_COLOURS = ((230, 120, 40), (60, 160, 220), (120, 190, 80), (210, 90, 170), (240, 200, 60), (140, 110, 210))


def read(state) -> tuple[Structure, ...]:
    """The structures of a `ModuleState`."""
    return tuple(structure_from_dict(record) for record in json.loads(state.structures))


def write(state, structures: Sequence[Structure]) -> None:
    """Keep structures in a `ModuleState`; label values follow their order."""
    numbered = [Structure(s.name, n, s.colour, s.code) for n, s in enumerate(structures, start=1)]
    state.structures = json.dumps([to_dict(s) for s in numbered])


def proposed(name: str, known: Sequence[Structure], used: Sequence[Structure] = ()) -> Structure:
    """A structure of this name with colour and code: the model's own, else the table's, else a free colour.

    Another name of a structure that the model knows gives the model's name, by which the engine recognises it.

    Raises
    ------
    BadInput
        The name is empty, or used already (case does not matter).
    """
    name = " ".join(name.split())
    if not name or name.lower() == "background":
        raise BadInput(
            _("'{name}' cannot name a structure.").format(name=name), _("Type a name, e.g. 'left hippocampus'.")
        )
    if any(s.name.casefold() == name.casefold() for s in used):
        raise BadInput(_("There is a structure '{name}' already.").format(name=name), _("Choose another name."))
    value = len(used) + 1
    own = known_as(name, known)
    if own is not None:
        if any(s.name == own.name for s in used):
            raise BadInput(
                _("'{name}' is another name of '{own}', which is there already.").format(name=name, own=own.name),
                _("Choose another name."),
            )
        return Structure(own.name, value, own.colour, own.code)
    table = structure_named(canonical_name(name) or "")
    if table is not None:
        return Structure(name, value, table.colour, table.code)
    return Structure(name, value, FREE_COLOURS[len(used) % len(FREE_COLOURS)], "")


def known_as(name: str, known: Sequence[Structure]) -> Structure | None:
    """The one of these structures that a name stands for, or None."""
    alike = next((s for s in known if _plain(s.name) == _plain(name)), None)
    table = _canonical(name)
    return alike or next((s for s in known if table is not None and _canonical(s.name) == table), None)


def full_code(structure: Structure) -> str:
    """Slicer's whole terminology entry of a structure, "" for one without a code."""
    if not structure.code or "~" in structure.code:
        return structure.code
    category = "SCT^123037004^Anatomical Structure"
    return "~".join((GENERAL, category, structure.code, "^^", REGIONS, "^^", "^^"))


def find_segment(segmentation: slicer.vtkMRMLSegmentationNode, name: str) -> str:
    """Id of the segment that a structure's name stands for, "" where there is none.

    The same name is preferred; then case, "_" and "-" do not matter; then another name of the same structure in the
    engine's table counts ("postcava" for "inferior vena cava").
    """
    core = segmentation.GetSegmentation()
    found = core.GetSegmentIdBySegmentName(name)  # regardless of case
    if found and core.GetSegment(found).GetName() == name:
        return found
    names = {segment_id: core.GetSegment(segment_id).GetName() or "" for segment_id in core.GetSegmentIDs()}
    for alike in (lambda other: other == name, lambda other: _plain(other) == _plain(name)):
        same = next((segment_id for segment_id, other in names.items() if alike(other)), "")
        if same:
            return same
    table = _canonical(name)
    return next((i for i, other in names.items() if table is not None and _canonical(other) == table), "")


@cache
def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


@cache
def _canonical(name: str) -> str | None:
    return canonical_name(name)


def add_segment(segmentation: slicer.vtkMRMLSegmentationNode, structure: Structure) -> str:
    """Add an empty segment with the structure's name, colour and code; its id."""
    colour = [c / 255 for c in structure.colour]
    segment_id = segmentation.GetSegmentation().AddEmptySegment("", structure.name, colour)
    dress(segmentation.GetSegmentation().GetSegment(segment_id), structure)
    return segment_id


def dress(segment: slicer.vtkSegment, structure: Structure) -> None:
    """Give a segment a structure's name, colour and terminology."""
    segment.SetName(structure.name)
    segment.SetColor([c / 255 for c in structure.colour])
    if structure.code:
        segment.SetTerminology(full_code(structure))


def of_segment(segment: slicer.vtkSegment, value: int) -> Structure:
    """The structure that a segment stands for."""
    colour = tuple(round(c * 255) for c in segment.GetColor())
    return Structure(segment.GetName(), value, colour, segment.GetTerminology() or "")
