"""Which segmentation of the scene belongs to which scan. Nothing here needs Qt."""

from __future__ import annotations

from collections.abc import Sequence

import slicer

from peftseg.models import Structure

from . import structures, support

OURS = "PEFTSegment."  # prefix of this module's node attributes
REVIEWED = "PEFTSegment.ReviewedAt"


def segmentations() -> list[slicer.vtkMRMLSegmentationNode]:
    """The segmentations of the scene, the oldest first, hidden ones left out."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return [node for node in nodes if not node.GetHideFromEditors()]


def of_scan(scan: slicer.vtkMRMLVolumeNode) -> list[slicer.vtkMRMLSegmentationNode]:
    """Segmentations that were made on a scan (their reference volume), or that have its name."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    return [n for n in segmentations() if n.GetNodeReference(role) is scan or n.GetName() == scan.GetName()]


def is_prediction(node: slicer.vtkMRMLSegmentationNode) -> bool:
    """Whether a segmentation was made by a model, and no person has corrected or reviewed it."""
    names = [name for name in node.GetAttributeNames() if name.startswith(OURS)]
    return any(name != support.MADE for name in names) and not node.GetAttribute(REVIEWED)


def labels_for(scan: slicer.vtkMRMLVolumeNode, wanted: Sequence[Structure]) -> slicer.vtkMRMLSegmentationNode | None:
    """The segmentation that most likely holds a scan's labels, or None.

    Among those of the scan the newest with a structure of the wanted ones, else the newest. Predictions do not count:
    a model would learn its own faults.
    """
    found = [node for node in of_scan(scan) if not is_prediction(node)]
    fitting = [node for node in found if any(structures.find_segment(node, s.name) for s in wanted)]
    return (fitting or found or [None])[-1]


def segment_names_in_scene() -> list[str]:
    """Names of the segments of all segmentations, each once, in the order in which they are met."""
    names = (name for node in segmentations() for name in support.segment_names(node))
    return list(dict.fromkeys(names))


def missing_structures(row: support.Row, wanted: Sequence[Structure]) -> list[Structure]:
    """Structures that a row's segmentation has no segment for, and that are not marked absent."""
    marks = {s.name: row.marks.get(s.name, support.Mark()) for s in wanted}
    return [s for s in wanted if not marks[s.name].absent and not support.segment_of(row, s)]
