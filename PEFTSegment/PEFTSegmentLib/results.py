"""Results of applying an adapter, as segmentation nodes of the scene: drafts until a person has looked at them.

What makes a node a result are its attributes "PEFTSegment.*", which are saved with the scene. Nothing here needs Qt.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.models import Structure

from . import exchange, scans, structures, support, work

STATUS, CONTENT, EDITED, TOKEN = "Status", "Content", "Edited", "Result"
REVIEWED_BY, REVIEWED_AT = "ReviewedBy", "ReviewedAt"
VOLUMES, CHECKS, TITLE, DOUBT = "VolumesMl", "Checks", "Title", "Doubt"
DRAFT, REVIEWED = "draft", "reviewed"
CORRECTED = "PEFTSegment.CorrectedFrom"  # attribute of labels to correct: hash of the adapter that drew them first
EDIT_EVENTS = ("SourceRepresentationModified", "SegmentAdded", "SegmentRemoved", "SegmentModified")


@dataclass(frozen=True)
class ResultRow:
    """One structure of one result.

    Attributes
    ----------
    node : vtkMRMLSegmentationNode
    scan : str
        Name of the scan.
    structure : str
    volume_ml : float or None
    checks : tuple of str
        Why a look is needed, in words; empty: nothing stood out.
    edited : bool
        Edited by hand since: the checks no longer hold.
    doubt : float or None
        How doubtful the engine found it: 0 (as expected) to 1; None: not known.
    """

    node: slicer.vtkMRMLSegmentationNode
    scan: str
    structure: str
    volume_ml: float | None
    checks: tuple[str, ...]
    edited: bool
    doubt: float | None = None

    @property
    def needs_look(self) -> bool:
        """Whether something stood out that nobody has reviewed."""
        return bool(self.checks) and not self.edited and get(self.node, STATUS) != REVIEWED


# attributes


def get(node: slicer.vtkMRMLNode, name: str) -> str:
    """A fact of a result, "" where it is not known; e.g. "adapter", "adapter_version", "base"."""
    return node.GetAttribute(exchange.ATTRIBUTE + name) or ""


def put(node: slicer.vtkMRMLNode, name: str, value: str) -> None:
    """Keep a fact in a result; "" removes it."""
    node.SetAttribute(exchange.ATTRIBUTE + name, value or None)


def all_results() -> list[slicer.vtkMRMLSegmentationNode]:
    """The results in the scene, in its order."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return [node for node in nodes if get(node, STATUS)]


def by_token(token: str) -> slicer.vtkMRMLSegmentationNode | None:
    """The result with this token, or None where it is not in the scene."""
    return next((node for node in all_results() if get(node, TOKEN) == token), None)


def scan_of(node: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The scan that a result belongs to, None where it has left the scene."""
    return node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def name_of(node: slicer.vtkMRMLNode) -> str:
    """A result's name without the mark of a draft."""
    return node.GetName().removesuffix(_(" (draft)"))


def title_of(node: slicer.vtkMRMLNode) -> str:
    """What made a result: "hippocampus, site A, version 2"."""
    return get(node, TITLE) or node.GetName()


# making


def add(record: dict[str, Any], name: str, title: str, provenance: dict[str, Any]) -> slicer.vtkMRMLSegmentationNode:
    """Load one outcome of `work.outcomes` as a draft beside its scan.

    Parameters
    ----------
    name : str
        Name of what made it; the node is called "<scan> - <name>".
    title : str
        The same, exactly: "hippocampus, site A, version 2".
    """
    scan = scans.scan_of(record["token"])
    wanted = f"{scan.GetName()} - {name}" if scan is not None else name
    node = work.load_outcome(record, _free_name(wanted), provenance)
    node.SetName(node.GetName() + _(" (draft)"))
    put(node, STATUS, DRAFT)
    put(node, TITLE, title)
    put(node, TOKEN, uuid.uuid4().hex)
    put(node, CONTENT, content(node)[0])
    return node


def _free_name(wanted: str) -> str:
    taken = {name_of(node) for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}
    names = (wanted if n == 1 else f"{wanted} {n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


# the table


def rows(nodes: Sequence[slicer.vtkMRMLSegmentationNode]) -> list[ResultRow]:
    """A row for each structure of these results: those that need a look first, the most doubtful in front."""
    found = []
    for node in nodes:
        scan, edited = scan_of(node), bool(get(node, EDITED))
        checks = json.loads(get(node, CHECKS) or "{}")
        doubts = {} if edited else json.loads(get(node, DOUBT) or "{}")
        name = scan.GetName() if scan is not None else name_of(node)
        for structure, volume in json.loads(get(node, VOLUMES) or "{}").items():
            told = tuple(checks.get(structure, ()))
            found.append(ResultRow(node, name, structure, volume, told, edited, doubts.get(structure)))
    return sorted(found, key=lambda row: (not row.needs_look, -(row.doubt or 0.0)))


def show(node: slicer.vtkMRMLSegmentationNode, structure: str = "") -> None:
    """Show a result on its scan, alone among the results of this scan, with a structure in the middle of the views."""
    scan = scan_of(node)
    if scan is not None:
        if scans.scan_in_view() is not scan:
            scans.show_scan(scan)
        scans.hide_other_scans(scan)
        for other in all_results():
            if other is not node and scan_of(other) is scan and other.GetDisplayNode() is not None:
                other.GetDisplayNode().SetVisibility(False)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetVisibility(True)
    segment_id = structures.find_segment(node, structure) if structure else ""
    if not segment_id:
        return
    node.GetDisplayNode().SetSegmentVisibility(segment_id, True)
    for editor in slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode"):
        if editor.GetSegmentationNode() is node:
            editor.SetSelectedSegmentID(segment_id)
    jump_to(node, segment_id)


def jump_to(node: slicer.vtkMRMLSegmentationNode, segment_id: str) -> bool:
    """Move all slice views to the middle of a segment; False where it is empty."""
    if not support.voxel_count(node, segment_id):
        return False
    centre = [0.0, 0.0, 0.0]
    node.GetSegmentCenterRAS(segment_id, centre)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *centre)
    return True


def has_3d(node: slicer.vtkMRMLSegmentationNode) -> bool:
    """Whether a result is shown in 3D views."""
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    display = node.GetDisplayNode()
    return node.GetSegmentation().ContainsRepresentation(surface) and display is not None and display.GetVisibility3D()


def show_3d(node: slicer.vtkMRMLSegmentationNode, shown: bool) -> None:
    """Make a result's surfaces where there are none and show them in 3D, or hide them."""
    if shown and not node.CreateClosedSurfaceRepresentation():
        raise BadInput(_("No surface could be made of {name}.").format(name=node.GetName()), _("Is it empty?"))
    node.GetDisplayNode().SetVisibility3D(shown)


# review


def user_name() -> str:
    """Who sits here: as Slicer's settings say, else the name of the account."""
    person = slicer.app.applicationLogic().GetUserInformation()
    return person.GetName() or person.GetLogin() or getpass.getuser()


def review(node: slicer.vtkMRMLSegmentationNode, who: str) -> None:
    """Mark a result as reviewed by a person, now; an edit makes it a draft again."""
    fingerprint, volumes = content(node)
    put(node, CONTENT, fingerprint)
    put(node, VOLUMES, json.dumps(volumes))
    put(node, REVIEWED_BY, who)
    put(node, REVIEWED_AT, datetime.now().astimezone().isoformat(timespec="seconds"))
    put(node, STATUS, REVIEWED)
    node.SetName(name_of(node))


def notice_edit(node: slicer.vtkMRMLSegmentationNode) -> bool:
    """Where a result is not what it was, measure it anew and make it a draft; whether it was edited."""
    fingerprint, volumes = content(node)
    if fingerprint == get(node, CONTENT):
        return False
    put(node, CONTENT, fingerprint)
    put(node, VOLUMES, json.dumps(volumes))
    put(node, EDITED, "yes")
    for name in (REVIEWED_BY, REVIEWED_AT):
        put(node, name, "")
    put(node, STATUS, DRAFT)
    node.SetName(name_of(node) + _(" (draft)"))
    return True


def content(node: slicer.vtkMRMLSegmentationNode) -> tuple[str, dict[str, float]]:
    """What a segmentation holds.

    Returns
    -------
    fingerprint : str
        The same for the same segments, names and voxels, however they are stored in layers and extents.
    volumes : dict
        Structure -> ml.
    """
    from scipy import ndimage

    digest, volumes = hashlib.blake2b(digest_size=16), {}
    boxes: dict[str, list] = {}
    origin: np.ndarray | None = None
    core = node.GetSegmentation()
    for segment_id in sorted(core.GetSegmentIDs()):
        segment = core.GetSegment(segment_id)
        digest.update(f"{segment_id}\0{segment.GetName()}\0".encode())
        volumes[segment.GetName()] = 0.0
        image = node.GetBinaryLabelmapInternalRepresentation(segment_id)
        if image is None or image.IsEmpty():
            continue
        array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, segment_id)
        layer = image.GetAddressAsString("")
        if layer not in boxes:
            boxes[layer] = ndimage.find_objects(array)
        value = segment.GetLabelValue()
        box = boxes[layer][value - 1] if value <= len(boxes[layer]) else None
        if box is None:
            continue
        mask = array[box] == value
        start = np.array([image.GetExtent()[axis] + box[2 - axis // 2].start for axis in (4, 2, 0)])
        origin = start if origin is None else origin
        digest.update(np.array([*(start - origin), *mask.shape], np.int64).tobytes())
        digest.update(np.packbits(mask).tobytes())
        volumes[segment.GetName()] = round(int(np.count_nonzero(mask)) * _voxel_ml(node, image), 3)
    return digest.hexdigest(), volumes


def _voxel_ml(node: slicer.vtkMRMLSegmentationNode, image) -> float:
    """Volume of a voxel, a linear transform included."""
    scale = 1.0
    transform = node.GetParentTransformNode()
    if transform is not None and transform.IsTransformToWorldLinear():
        matrix = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformToWorld(matrix)
        scale = abs(np.linalg.det(slicer.util.arrayFromVTKMatrix(matrix)[:3, :3]))
    return float(np.prod(image.GetSpacing()) * scale / 1000)


# to the support scans


def wanted_of(node: slicer.vtkMRMLSegmentationNode, state) -> tuple[Structure, ...]:
    """The structures to learn that a result has; where none is named yet, all of the result's.

    Raises
    ------
    BadInput
        The result has none of those that are to be learnt.
    """
    core = node.GetSegmentation()
    own = [structures.of_segment(core.GetSegment(i), n) for n, i in enumerate(core.GetSegmentIDs(), start=1)]
    named = structures.read(state)
    wanted = tuple(s for s in named if structures.find_segment(node, s.name)) if named else tuple(own)
    if not wanted:
        raise BadInput(
            _("The structures to learn are {wanted}; this result has {own}.").format(
                wanted=", ".join(s.name for s in named), own=", ".join(s.name for s in own)
            ),
            _("Add one of the result's structures in step 2 first."),
        )
    return wanted


def as_labels(
    node: slicer.vtkMRMLSegmentationNode, scan: slicer.vtkMRMLScalarVolumeNode, wanted: Sequence[Structure]
) -> slicer.vtkMRMLSegmentationNode:
    """A copy of a result's structures to correct; the result itself stays as it is."""
    copy = support.new_segmentation(scan, wanted)
    exchange.copy_segments(node, wanted, copy)
    return copy
