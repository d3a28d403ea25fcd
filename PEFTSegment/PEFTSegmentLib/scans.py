"""Which volumes of the scene are scans that can be used, where they lie, and how they are known again.

Nothing here needs Qt.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.patients import numbered

TOKEN = "PEFTSegment.Token"  # node attribute: a scan is known again by it, in files and in a saved scene
FRAME, SEQUENCE_ROLE = "PEFTSegment.Frame", "PEFTSegmentSequence"  # of a copy of one frame: its number, whose it is
MAP = "PEFTSegment.Map"  # of a map of step 5: which kind; it is never taken for a scan
MAP_OF = "PEFTSegment.MapToken"  # of a map: the token of its scan
PATIENT = "PEFTSegment.Patient"  # node attribute: the same for the scans of one patient of a support folder; no name
PATIENT_LEVEL = "Patient"  # of the subject hierarchy
SHEAR = 1e-3  # cosine of the angle between two axes from which a grid counts as sheared


def reason_against(volume: slicer.vtkMRMLVolumeNode) -> str:
    """Why a volume cannot be used as a scan, in words; "" when it can."""
    against = _reason_against_kind(volume)
    if against:
        return against
    image = volume.GetImageData()
    if image is None or image.GetPointData() is None or image.GetPointData().GetScalars() is None:
        return _("is empty")
    if volume.IsA("vtkMRMLTensorVolumeNode") or image.GetNumberOfScalarComponents() != 1:
        return _("has several values a voxel (colour, vector or time series); choose one frame or component first")
    if min(image.GetDimensions()) < 2:
        return _("has a single slice")
    return _reason_against_transform(volume)


def _reason_against_kind(volume: slicer.vtkMRMLVolumeNode) -> str:
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("is a label map, not a scan")
    if volume.GetAttribute(MAP):
        return _("is a map of step 5, not a scan")
    return "" if volume.IsA("vtkMRMLScalarVolumeNode") else _("is not a plain volume")


def _reason_against_transform(volume: slicer.vtkMRMLVolumeNode) -> str:
    transform = volume.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        return _("is under a warping transform; harden it first (Transforms module)")
    axes = ijk_to_world(volume)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.all():
        return _("has voxels without size")
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    if np.abs(cosines).max() > SHEAR:
        return _("has slanted axes (a gantry tilt or a shearing transform); resample it first (Resample Scalar Volume)")
    return ""


def require_usable(volume: slicer.vtkMRMLVolumeNode | None) -> slicer.vtkMRMLScalarVolumeNode:
    """The volume, or BadInput with the reason against it."""
    if volume is None or volume.GetScene() is None:
        raise BadInput(_("The scan is no longer in the scene."), _("Load it again."))
    reason = reason_against(volume)
    if reason:
        raise BadInput(f"{volume.GetName()} {reason}.", _("Choose another scan."))
    return volume


def usable_scans() -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The scans of the scene that can be used, in the order of the scene."""
    return sort_out()[0]


def refused_volumes() -> list[tuple[str, str]]:
    """Names of the volumes that cannot be used as scans, and why."""
    return sort_out()[1]


def sort_out() -> tuple[list[slicer.vtkMRMLScalarVolumeNode], list[tuple[str, str]]]:
    """`usable_scans` and `refused_volumes`, each volume examined once.

    A sequence is not among the usable ones: which of its frames is meant has to be chosen, one at a time.
    """
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    moving = _("is a sequence; show the frame that you want, then choose it alone (a copy of this frame is used)")
    pairs = [
        (volume, reason_against(volume) or (moving if _browser_of(volume, browsers) else ""))
        for volume in _visible_volumes()
    ]
    usable = [volume for volume, reason in pairs if not reason]
    return usable, [(volume.GetName(), reason) for volume, reason in pairs if reason]


def _visible_volumes() -> list[slicer.vtkMRMLVolumeNode]:
    nodes = slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    return [node for node in nodes if not node.GetHideFromEditors() and not node.GetAttribute(MAP)]


# sequences: one node shows the frames in turn, and forgets its attributes at each


def sequences() -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The volumes that show a sequence, and whose present frame can be used."""
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    return [volume for volume in _visible_volumes() if _browser_of(volume, browsers) and not reason_against(volume)]


def held_still(volume: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLScalarVolumeNode:
    """The scan itself; of a sequence a copy of the frame that it shows now, made once a frame, shown in its place."""
    browser = _browser_of(volume, slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"))
    if browser is None:
        return volume
    number, sequence = browser.GetSelectedItemNumber(), browser.GetSequenceNode(volume)
    made = next((node for node in _visible_volumes() if _is_frame(node, sequence, number)), None)
    in_view = scan_in_view() is volume
    if made is None:
        name = _("{sequence}, frame {number}").format(sequence=volume.GetName(), number=number + 1)
        made = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, volume, name)
        for attribute in made.GetAttributeNames():
            made.RemoveAttribute(attribute)
        made.SetAttribute(FRAME, str(number))
        made.SetNodeReferenceID(SEQUENCE_ROLE, sequence.GetID())
        place_beside(made, volume)
    if in_view:
        show_scan(made, fit=False)
    return made


def _is_frame(node: slicer.vtkMRMLVolumeNode, sequence: slicer.vtkMRMLNode, number: int) -> bool:
    return node.GetAttribute(FRAME) == str(number) and node.GetNodeReference(SEQUENCE_ROLE) is sequence


def _browser_of(volume: slicer.vtkMRMLVolumeNode, browsers: Sequence) -> slicer.vtkMRMLNode | None:
    return next((browser for browser in browsers if browser.GetSequenceNode(volume) is not None), None)


def ijk_to_world(volume: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """The 4x4 matrix from voxel index (i, j, k) to RAS millimetres, a linear parent transform included."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    affine = slicer.util.arrayFromVTKMatrix(matrix)
    transform = volume.GetParentTransformNode()
    if transform is None:
        return affine
    to_world = vtk.vtkMatrix4x4()
    if not transform.GetMatrixTransformToWorld(to_world):
        raise BadInput(
            _("{name} is under a transform that is not linear.").format(name=volume.GetName()),
            _("Harden the transform first (Transforms module)."),
        )
    return slicer.util.arrayFromVTKMatrix(to_world) @ affine


def token(volume: slicer.vtkMRMLNode) -> str:
    """An opaque name by which a scan is known again, also in another session: made on the first call."""
    found = volume.GetAttribute(TOKEN)
    if not found or any(other is not volume for other in _with_token(found)):  # a clone copies its attributes
        found = uuid.uuid4().hex
        volume.SetAttribute(TOKEN, found)
    return found


def scan_of(wanted: str) -> slicer.vtkMRMLVolumeNode | None:
    """The scan with this token, or None where it is not in the scene."""
    found = _with_token(wanted) if wanted else []
    return found[0] if found else None


def _with_token(wanted: str) -> list[slicer.vtkMRMLVolumeNode]:
    nodes = slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    return [node for node in nodes if node.GetAttribute(TOKEN) == wanted]


def modality(volume: slicer.vtkMRMLVolumeNode) -> str:
    """ "CT", "MR" or another DICOM modality where the subject hierarchy knows it, else ""."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return ""
    item = hierarchy.GetItemByDataNode(volume)
    return hierarchy.GetItemAttribute(item, "DICOM.Modality") if item else ""


def patient_numbers(volumes: Sequence[slicer.vtkMRMLVolumeNode | None]) -> list[int | None]:
    """Which scans are of one patient: a number by order for each, None where nothing says it.

    It is told by the patient above a scan in the subject hierarchy (the module Data), else by what a support folder said
    of it, else by the sequence whose frame it is. Neither names nor numbers of patients leave this function.
    """
    return numbered(_patient_mark(volume) if volume is not None else None for volume in volumes)


def _patient_mark(volume: slicer.vtkMRMLVolumeNode) -> tuple | None:
    """What scans of one patient have in common, or None."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volume) if hierarchy is not None else 0
    patient = hierarchy.GetItemAncestorAtLevel(item, PATIENT_LEVEL) if item else 0
    if patient:
        known_as = hierarchy.GetItemUID(patient, "DICOM")  # scenes that were added may bring a patient twice
        return ("uid", known_as) if known_as else ("item", patient)
    if volume.GetAttribute(PATIENT):
        return ("folder", volume.GetAttribute(PATIENT))
    sequence = volume.GetNodeReference(SEQUENCE_ROLE)
    return ("sequence", sequence.GetID()) if sequence is not None else None


def place_beside(node: slicer.vtkMRMLNode, volume: slicer.vtkMRMLVolumeNode) -> None:
    """Put a node under the same parent (study, patient or folder) of the subject hierarchy as a scan."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    scan_item, node_item = hierarchy.GetItemByDataNode(volume), hierarchy.GetItemByDataNode(node)
    if scan_item and node_item:
        hierarchy.SetItemParent(node_item, hierarchy.GetItemParent(scan_item))


def scan_in_view() -> slicer.vtkMRMLScalarVolumeNode | None:
    """The scan in the background of the slice views, None where there is none that can be used."""
    for composite in shown_composites():
        volume = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
        if volume is not None and not reason_against(volume):
            return volume
    return None


def shown_composites() -> list[slicer.vtkMRMLSliceCompositeNode]:
    """What the slice views of the present layout hold; of all slice views where the layout has none.

    Views of other layouts keep their volumes, unseen.
    """
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    names = {view.GetLayoutName() for view in views if view.IsMappedInLayout()}
    return [composite for composite in composites if composite.GetLayoutName() in names] or composites


def painting() -> bool:
    """Whether a tool of a Segment Editor is in use, this module's or another one."""
    editors = slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode")
    return any(editor.GetActiveEffectName() for editor in editors)


def may_show(volume: slicer.vtkMRMLVolumeNode | None) -> bool:
    """Whether what has come for a scan can be shown now: the scan is in view, or nothing is, and nobody is painting."""
    if painting():
        return False
    empty = not any(composite.GetBackgroundVolumeID() for composite in shown_composites())
    return empty or (volume is not None and scan_in_view() is volume)


def show_scan(volume: slicer.vtkMRMLVolumeNode, fit: bool = True) -> None:
    """Show a scan in the background of the slice views."""
    slicer.util.setSliceViewerLayers(background=volume, fit=fit)


def turn_to(volume: slicer.vtkMRMLVolumeNode) -> None:
    """The user asks about a scan: show it now, so that what comes later finds it in view; not while somebody paints."""
    if scan_in_view() is not volume and not painting():
        show_scan(volume)
        hide_other_scans(volume)


def hide_other_scans(volume: slicer.vtkMRMLVolumeNode) -> None:
    """Hide the segmentations and maps of other scans: they often lie at the same place and would seem to be of this one."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        theirs = node.GetNodeReference(role)
        if theirs is not None and theirs is not volume and node.GetDisplayNode() is not None:
            node.SetDisplayVisibility(False)
    _hide_other_maps(volume)


def _hide_other_maps(volume: slicer.vtkMRMLVolumeNode) -> None:
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        node = map_in_front(composite)
        if node is not None and node.GetAttribute(MAP_OF) != volume.GetAttribute(TOKEN):
            composite.SetForegroundVolumeID(None)
            renew_legend(node)


def map_in_front(composite: slicer.vtkMRMLSliceCompositeNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The map of step 5 in the foreground of a slice view, or None."""
    node = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
    return node if node is not None and node.GetAttribute(MAP) else None


def renew_legend(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """A legend looks whether its volume is in view only when it changes itself."""
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.Modified()
