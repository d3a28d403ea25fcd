"""A person's labels of the scan that step 5 looks at: with them Segmentation Ability can be measured. Nothing here needs Qt."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from peftseg.models import Structure

from .. import painted, structures, support


def labels_to_offer(
    rows: support.SupportSet, scan: slicer.vtkMRMLScalarVolumeNode | None, structure: str
) -> slicer.vtkMRMLSegmentationNode | None:
    """The segmentation of a support scan in which the structure is labelled in all slices, else None."""
    row = rows.row_of(scan)
    return row.labels if row is not None and _is_whole(row, structure) else None


def labels_of(
    node: slicer.vtkMRMLSegmentationNode | None, structure: str
) -> tuple[slicer.vtkMRMLSegmentationNode, str] | None:
    """The segmentation and the id of its segment of a structure."""
    return None if node is None else (node, structures.find_segment(node, structure))


def reason_against_labels(
    rows: support.SupportSet,
    node: slicer.vtkMRMLSegmentationNode | None,
    scan: slicer.vtkMRMLScalarVolumeNode,
    structure: str,
) -> str:
    """Why a segmentation cannot be compared with, in words; "" when it can, or where there is none."""
    if node is None:
        return ""
    segment_id = structures.find_segment(node, structure)
    if not segment_id or not painted.is_painted(node, segment_id):
        return _("{labels} has nothing painted that is called '{structure}'; choose other labels, or none").format(
            labels=node.GetName(), structure=structure
        )
    row = rows.row_of(scan)
    if row is not None and row.labels is node and not _is_whole(row, structure):
        return _("In {labels} only some slices of '{structure}' are labelled; choose other labels, or none").format(
            labels=node.GetName(), structure=structure
        )
    return ""


def _is_whole(row: support.Row, structure: str) -> bool:
    found = support.cell(row, Structure(structure, 1)) if row.labels is not None and structure else None
    return found is not None and found.state == "labelled" and found.slices is None
