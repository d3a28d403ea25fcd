"""What a person should know of the support scans before training: fast checks, without the engine.

The slow ones (time, memory, what the base model makes of the scans) are the engine's check job. Nothing here needs Qt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import slicer
from slicer.i18n import tr as _

from peftseg import patients
from peftseg.errors import BadInput
from peftseg.grid import Grid
from peftseg.laterality import paired_names
from peftseg.model_choice import guess_modality, made_for
from peftseg.models import ModelEntry, Structure

from . import painted, scans, structures, support
from .support import Row

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
FINER = 1.5  # ratio of voxel sizes from which labels count as drawn on another grid
FEW = 5
_guesses: dict[tuple, str] = {}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes
    ----------
    row : str
        Key of the support scan, "" for all of them.
    kind : str
        "problem" (the scan, or the whole set, cannot be used so), "warning" (look at it), "note" (good to know).
    text : str
        A sentence; it does not name the scan.
    """

    row: str
    kind: str
    text: str


def support_checks(state, model: ModelEntry | None = None) -> list[Finding]:
    """All findings: those of the whole set first, then scan by scan.

    Parameters
    ----------
    state : ModuleState
        The user's choices.
    model : ModelEntry or None
        The chosen foundation model.
    """
    wanted = structures.read(state)
    rows = support.SupportSet(state).rows()
    found = _of_all(rows, wanted)
    for row in rows:
        found += row_checks(row, wanted, model)
    return found


def row_checks(row: Row, wanted: Sequence[Structure], model: ModelEntry | None = None) -> list[Finding]:
    """What there is to say of one support scan."""
    problems = support.problems(row, wanted)
    found = [Finding(row.key, PROBLEM, text) for text in problems]
    if problems or row.labels is None:
        return found
    warnings = [*_not_looked_at(row), *_swapped(row, wanted), *_empty(row, wanted), *_cut_off(row)]
    if model is not None:
        warnings += of_another_kind(row.scan, model)
    notes = [*_other_names(row, wanted), *_other_grid(row, wanted)]
    return [Finding(row.key, WARNING, t) for t in warnings] + [Finding(row.key, NOTE, t) for t in notes]


def _of_all(rows: Sequence[Row], wanted: Sequence[Structure]) -> list[Finding]:
    if not wanted:
        return [Finding("", PROBLEM, _("no structure to learn is named"))]
    ready = [row for row in rows if not support.problems(row, wanted)]
    if not ready:
        return [Finding("", PROBLEM, _("no scan is ready"))]
    never = [s for s in wanted if all(support.cell(row, s).state != "labelled" for row in ready)]
    found = [Finding("", PROBLEM, _("{name} is labelled in no scan").format(name=s.name)) for s in never]
    if len(ready) < FEW:
        text = _("{count} labelled scans: it works, but results are better and steadier with about five")
        one = _("one labelled scan: it works, but results are better and steadier with about five")
        found.append(Finding("", NOTE, one if len(ready) == 1 else text.format(count=len(ready))))
    if of_one_patient(ready):
        text = _("all scans are of one patient: how it does on other patients is not known")
        found.append(Finding("", WARNING, text))
    return found


def of_one_patient(rows: Sequence[Row]) -> bool:
    """Whether there are several scans, all of one patient."""
    return patients.of_one_patient(scans.patient_numbers([row.scan for row in rows]))


def _empty(row: Row, wanted: Sequence[Structure]) -> list[str]:
    cells = {s.name: support.cell(row, s) for s in wanted}
    return [_("{name} is empty").format(name=n) for n, c in cells.items() if c.segment and c.state == "not labelled"]


def _not_looked_at(row: Row) -> list[str]:
    return [_("pre-segmented, not yet corrected")] if row.labels.GetAttribute(support.TO_CORRECT) else []


def _swapped(row: Row, wanted: Sequence[Structure]) -> list[str]:
    """Left and right structures that lie on the wrong sides of each other."""
    pairs = paired_names([s.name for s in wanted])
    if not pairs or _is_nominal(row.scan):
        return []
    by_name = {s.name: s for s in wanted}
    found = []
    for left, right in pairs:
        places = []
        for name in (left, right):
            segment_id = support.segment_of(row, by_name[name])
            places.append(painted.centre(row.labels, segment_id) if segment_id else None)
        if all(place is not None for place in places) and places[0][0] >= places[1][0]:  # RAS: x grows to the right
            found.append(_("{left} and {right} lie on swapped sides").format(left=left, right=right))
    return found


def _is_nominal(scan: slicer.vtkMRMLScalarVolumeNode) -> bool:
    try:
        return Grid(scan.GetImageData().GetDimensions(), scans.ijk_to_world(scan)).is_nominal
    except BadInput:
        return True


def _cut_off(row: Row) -> list[str]:
    """Labels that reach beyond the scan by more than a tenth of its size."""
    labels, scan = np.zeros(6), np.zeros(6)
    row.labels.GetRASBounds(labels)
    row.scan.GetRASBounds(scan)
    if labels[0] > labels[1]:
        return []
    room = (scan[1::2] - scan[0::2]) / 10
    beyond = (labels[0::2] < scan[0::2] - room).any() or (labels[1::2] > scan[1::2] + room).any()
    return [_("the labels reach beyond the scan; what lies outside is left out")] if beyond else []


def _other_names(row: Row, wanted: Sequence[Structure]) -> list[str]:
    found = []
    for structure in wanted:
        segment_id = support.segment_of(row, structure)
        name = row.labels.GetSegmentation().GetSegment(segment_id).GetName() if segment_id else structure.name
        if name != structure.name:
            found.append(_("its segment '{other}' is used as {name}").format(other=name, name=structure.name))
    return found


def _other_grid(row: Row, wanted: Sequence[Structure]) -> list[str]:
    """Labels drawn on a grid of another voxel size."""
    segment_id = next((c for c in (support.segment_of(row, s) for s in wanted) if c), "")
    image = row.labels.GetBinaryLabelmapInternalRepresentation(segment_id) if segment_id else None
    if image is None or image.IsEmpty():
        return []
    ratios = np.sort(image.GetSpacing()) / np.sort(row.scan.GetSpacing())
    if ratios.max() < FINER and ratios.min() > 1 / FINER:
        return []
    return [
        _("the labels have voxels of {labels} mm, the scan of {scan} mm: they are resampled").format(
            labels=_sizes(image.GetSpacing()), scan=_sizes(row.scan.GetSpacing())
        )
    ]


def _sizes(spacing: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing)


def of_another_kind(scan: slicer.vtkMRMLScalarVolumeNode, model: ModelEntry) -> list[str]:
    """A scan that is, or looks, of another modality than the model's."""
    kinds = made_for(model.modality)
    told = scans.modality(scan)
    found = (told or _guess(scan)) if kinds else ""
    if not found or found in kinds:
        return []
    expected = _(" and ").join(sorted(kinds))
    if told:
        return [
            _("is {found}; {model} was made for {expected}").format(found=told, model=model.title, expected=expected)
        ]
    return [
        _("its grey values look like {found}; {model} was made for {expected}").format(
            found=found, model=model.title, expected=expected
        )
    ]


def _guess(scan: slicer.vtkMRMLScalarVolumeNode) -> str:
    image = scan.GetImageData()
    key = (image.GetAddressAsString(""), image.GetMTime())
    if key not in _guesses:
        if len(_guesses) >= painted.CACHE_SIZE:
            _guesses.clear()
        _guesses[key] = guess_modality(slicer.util.arrayFromVolume(scan))
    return _guesses[key]
