"""The support scans: pairs of a scan and its segmentation, with the user's marks, kept on the module's parameter node.

The user's segmentations are only read, except those that this module made for editing. Nothing here needs Qt.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.study import LabelState

from . import painted, scans, structures
from .slice_ranges import slices_text

SCAN_ROLE, LABELS_ROLE = "SupportScan", "SupportLabels"
voxel_count = painted.voxel_count
MADE = "PEFTSegment.Labels"  # attribute of a segmentation that this module made to be painted in
SHOWN_NAMES = 8
TO_CORRECT = "PEFTSegment.ToCorrect"  # attribute: who made its first outlines, until the user has looked at them


@dataclass(frozen=True)
class Mark:
    """What the user said of a structure in a scan beyond the painted voxels.

    Attributes
    ----------
    absent : bool
        It is not in this scan.
    slices : tuple of int or None
        The labelled slices (index along `axis` of the scan, from 0); None: all.
    axis : int
        0 (i), 1 (j) or 2 (k, the scan's own slices).
    segment : str
        Name of the segment that holds it where it is called otherwise, or "".
    """

    absent: bool = False
    slices: tuple[int, ...] | None = None
    axis: int = 2
    segment: str = ""


@dataclass(frozen=True)
class Row:
    """One support scan; `scan` and `labels` are None while their nodes are not in the scene."""

    key: str
    scan: slicer.vtkMRMLScalarVolumeNode | None
    labels: slicer.vtkMRMLSegmentationNode | None
    marks: dict[str, Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """What a scan says of one structure.

    Attributes
    ----------
    state : str
        "labelled", "absent" or "not labelled", as the engine knows them.
    segment : str
        Id of its segment, "" where there is none.
    painted : bool
        Whether the segment has voxels.
    slices : tuple of int or None
        The labelled slices, None: all.
    problem : str
        Why it cannot be used so, in words, or "".
    """

    state: str
    segment: str = ""
    painted: bool = False
    slices: tuple[int, ...] | None = None
    problem: str = ""


class SupportSet:
    """The support scans of one `ModuleState`."""

    def __init__(self, state) -> None:
        self._state = state

    def rows(self) -> list[Row]:
        """All support scans in the order in which they were added."""
        node = self._state.parameterNode
        rows = []
        for record in json.loads(self._state.support):
            key = record["key"]
            marks = {name: _mark_from(mark) for name, mark in record["marks"].items()}
            rows.append(
                Row(key, node.GetNodeReference(SCAN_ROLE + key), node.GetNodeReference(LABELS_ROLE + key), marks)
            )
        return rows

    def row(self, key: str) -> Row | None:
        """The support scan with this key, or None."""
        return next((row for row in self.rows() if row.key == key), None)

    def row_of(self, scan: slicer.vtkMRMLScalarVolumeNode | None) -> Row | None:
        """The row of a scan, or None."""
        return next((row for row in self.rows() if row.scan is not None and row.scan is scan), None)

    def add(self, scan: slicer.vtkMRMLScalarVolumeNode, labels: slicer.vtkMRMLSegmentationNode | None = None) -> Row:
        """Add a scan, or give the row that has it already; BadInput where it cannot be used.

        Of a sequence, a copy of the frame that it shows now is added.
        """
        scan = scans.held_still(scans.require_usable(scan))
        found = self.row_of(scan)
        if found is not None:
            if labels is not None and found.labels is None:
                self.set_labels(found.key, labels)
            return self.row(found.key)
        return self.put("", Row("", scan, labels))

    def put(self, key: str, row: Row) -> Row:
        """Add a row with its marks under this key, "" for a new one."""
        key = key or uuid.uuid4().hex[:12]
        node = self._state.parameterNode
        for role, own in ((SCAN_ROLE, row.scan), (LABELS_ROLE, row.labels)):
            node.SetNodeReferenceID(role + key, own.GetID() if own is not None else None)
        self._write([*self.rows(), Row(key, row.scan, row.labels, row.marks)])
        return self.row(key)

    def remove(self, key: str) -> None:
        """Take a scan out of the support set; its nodes stay in the scene."""
        self._write([row for row in self.rows() if row.key != key])
        for role in (SCAN_ROLE, LABELS_ROLE):
            self._state.parameterNode.SetNodeReferenceID(role + key, None)

    def set_labels(self, key: str, labels: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Choose the segmentation of a support scan."""
        self._state.parameterNode.SetNodeReferenceID(LABELS_ROLE + key, labels.GetID() if labels is not None else None)
        self._state.parameterNode.Modified()

    def set_mark(self, key: str, structure: str, mark: Mark) -> None:
        """Note that a structure is absent from a scan, or which of its slices are labelled."""
        changed = [
            Row(row.key, row.scan, row.labels, {**row.marks, structure: mark} if row.key == key else row.marks)
            for row in self.rows()
        ]
        self._write(changed)

    def forget_structure(self, name: str, new_name: str = "") -> None:
        """Drop the marks of a structure that is no longer learnt, or keep them under its new name."""
        kept = []
        for row in self.rows():
            marks = {(new_name if n == name else n): m for n, m in row.marks.items() if n != name or new_name}
            kept.append(Row(row.key, row.scan, row.labels, marks))
        self._write(kept)

    def drop_lost(self) -> int:
        """Take out the rows whose scan has left the scene; how many there were."""
        lost = [row for row in self.rows() if row.scan is None]
        for row in lost:
            self.remove(row.key)
        return len(lost)

    def _write(self, rows: Sequence[Row]) -> None:
        records = [
            {
                "key": row.key,
                "marks": {name: asdict(mark) for name, mark in row.marks.items() if mark != Mark()},
            }
            for row in rows
        ]
        self._state.support = json.dumps(records)


def _mark_from(record: dict) -> Mark:
    return Mark(**{**record, "slices": tuple(record["slices"]) if record["slices"] else None})


def segment_of(row: Row, structure: Structure) -> str:
    """Id of the segment that holds a structure in a support scan, "" where there is none."""
    if row.labels is None:
        return ""
    name = row.marks.get(structure.name, Mark()).segment
    return structures.find_segment(row.labels, name or structure.name)


def cell(row: Row, structure: Structure) -> Cell:
    """What a support scan says of a structure: from its segment's voxels and the user's mark."""
    mark = row.marks.get(structure.name, Mark())
    segment_id = segment_of(row, structure)
    filled = bool(segment_id) and painted.is_painted(row.labels, segment_id)
    if mark.absent:
        problem = _("is marked absent, but painted") if filled else ""
        return Cell("absent", segment_id, filled, None, problem)
    if not filled:
        return Cell("not labelled", segment_id)
    return Cell("labelled", segment_id, True, mark.slices)


def is_labelled(row: Row, wanted: Sequence[Structure]) -> bool:
    """Whether a scan teaches anything: at least one structure is labelled or absent."""
    return any(cell(row, structure).state != "not labelled" for structure in wanted)


def problems(row: Row, wanted: Sequence[Structure]) -> list[str]:
    """What keeps a row from being used, in words; empty when it is ready."""
    if row.scan is None:
        return [_("the scan is no longer loaded")]
    reason = scans.reason_against(row.scan)
    if reason:
        return [_("the scan {reason}").format(reason=reason)]
    if row.labels is not None and not _has_voxels(row.labels):
        return [_("the segmentation holds surfaces only; make voxels of them first (Segmentations module)")]
    cells = {s.name: cell(row, s) for s in wanted}
    found = [f"{name} {c.problem}" for name, c in cells.items() if c.problem]
    if all(c.state == "not labelled" for c in cells.values()):
        found.append(_nothing_found(row, cells) if wanted and row.labels is not None else _("not labelled"))
    return found + _outside(row) + _beyond(row, wanted)


def _nothing_found(row: Row, cells: dict[str, Cell]) -> str:
    names = segment_names(row.labels)
    if not names or any(c.segment for c in cells.values()):
        return _("nothing is painted yet")
    return _("no segment is called {wanted}; there are: {names} (a right click chooses one)").format(
        wanted=", ".join(cells), names=", ".join(names[:SHOWN_NAMES] + ["..."] * (len(names) > SHOWN_NAMES))
    )


def _beyond(row: Row, wanted: Sequence[Structure]) -> list[str]:
    """Labelled slices that the scan does not have."""
    size = row.scan.GetImageData().GetDimensions()
    found = []
    for structure in wanted:
        mark = row.marks.get(structure.name, Mark())
        if mark.slices and max(mark.slices) >= size[mark.axis]:
            found.append(
                _("{name}: slice {last} is marked as labelled, but the scan has {count}").format(
                    name=structure.name, last=max(mark.slices) + 1, count=size[mark.axis]
                )
            )
    return found


def _outside(row: Row) -> list[str]:
    """Labels that lie beside the scan: their boxes in world coordinates do not meet."""
    if row.labels is None:
        return []
    bounds = np.zeros(6)
    row.labels.GetRASBounds(bounds)
    if bounds[0] > bounds[1]:  # nothing painted
        return []
    scan_bounds = np.zeros(6)
    row.scan.GetRASBounds(scan_bounds)
    apart = (bounds[0::2] > scan_bounds[1::2]).any() or (bounds[1::2] < scan_bounds[0::2]).any()
    return [_("the labels lie outside of the scan; is it the right segmentation?")] if apart else []


def ready_rows(state) -> list[Row]:
    """The support scans that can be learnt from."""
    wanted = structures.read(state)
    return [row for row in SupportSet(state).rows() if wanted and not problems(row, wanted)]


def label_states(row: Row, wanted: Sequence[Structure], depth: int) -> dict[str, LabelState]:
    """The engine's states of a row. `depth` is the number of slices (K) of the scan.

    Raises
    ------
    BadInput
        Labelled slices outside of the scan.
    """
    states = {}
    for structure in wanted:
        found = cell(row, structure)
        if found.slices is None:
            states[structure.name] = LabelState(found.state)
            continue
        axis = row.marks[structure.name].axis
        count = depth if axis == 2 else row.scan.GetImageData().GetDimensions()[axis]
        if found.slices[-1] >= count:
            raise BadInput(
                _("The labelled slices of {name} are {slices}; the scan has the slices 1 to {depth}.").format(
                    name=structure.name, slices=slices_text(found.slices), depth=count
                ),
                _("Correct the slices (right click in the table of support scans)."),
            )
        states[structure.name] = LabelState("labelled", found.slices, axis)
    return states


def _has_voxels(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    core = segmentation.GetSegmentation()
    labelmap = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return core.ContainsRepresentation(labelmap) or not core.ContainsRepresentation(surface)


def segment_names(segmentation: slicer.vtkMRMLSegmentationNode) -> list[str]:
    """Names of all segments."""
    core = segmentation.GetSegmentation()
    return [core.GetSegment(segment_id).GetName() for segment_id in core.GetSegmentIDs()]


def new_segmentation(
    scan: slicer.vtkMRMLScalarVolumeNode, wanted: Sequence[Structure], name: str = ""
) -> slicer.vtkMRMLSegmentationNode:
    """An empty segmentation with the scan's geometry and one segment a structure, beside the scan."""
    made = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLSegmentationNode", name or _("{scan} labels").format(scan=scan.GetName())
    )
    made.SetAttribute(MADE, "1")
    made.CreateDefaultDisplayNodes()
    if scan.GetParentTransformNode() is not None:  # before the geometry, which is relative to it
        made.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
    made.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    for structure in wanted:
        structures.add_segment(made, structure)
    scans.place_beside(made, scan)
    return made
