"""The maps of step 5 as volumes of the scene: loaded beside their scan, shown over it, found again, taken away.

What makes a volume a map are its attributes "PEFTSegment.Map*", which are saved with the scene. Nothing here needs Qt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput

from .. import exchange, scans
from .adapt_progress import short

GRAD_CAM, PROTO_SEG = METHODS = ("grad_cam", "proto_seg")
MOST = 8  # maps that are kept; each is as large as its scan
HEAT, HEAT_BUILT_IN = "vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeIron"
MARKED = "vtkMRMLColorTableNodeGreen"
FAINT = {GRAD_CAM: 0.2, PROTO_SEG: 1.0}  # values below are not drawn; in bytes, 0.5 would be cut to 0
TITLE_LENGTH = 22
FIELDS = ("method", "layer", "label", "structure", "source", "title", "token")


@dataclass(frozen=True)
class MapFacts:
    """What a map is of.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    layer, label : str
        Name of the layer in the network, and its readable one.
    structure : str
    source, title : str
        Which network was looked into (opaque), and its readable name.
    token : str
        Of the scan.
    """

    method: str
    layer: str
    label: str
    structure: str
    source: str
    title: str
    token: str

    def same_place(self, other: MapFacts) -> bool:
        """Whether one takes the place of the other: the same layer, asked the same."""
        names = ("method", "layer", "structure", "source", "token")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def method_name(method: str) -> str:
    """What a method is called."""
    return "Grad-CAM" if method == GRAD_CAM else "ProtoSeg"


# in the scene


def all_maps() -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The maps of the scene, the oldest first."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if node.GetAttribute(scans.MAP)]


def facts_of(node: slicer.vtkMRMLScalarVolumeNode) -> MapFacts:
    """What a map is of."""
    return MapFacts(*(node.GetAttribute(_attribute(field)) or "" for field in FIELDS))


def find(facts: MapFacts) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The map of the same layer in the scene, or None."""
    return next((node for node in all_maps() if facts_of(node).same_place(facts)), None)


def in_view() -> slicer.vtkMRMLScalarVolumeNode | None:
    """The map that is shown in the slice views, or None."""
    found = (scans.map_in_front(composite) for composite in scans.shown_composites())
    return next((node for node in found if node is not None), None)


def _attribute(field: str) -> str:
    return scans.MAP if field == "method" else f"{scans.MAP}{field.capitalize()}"


def _composites() -> list[slicer.vtkMRMLSliceCompositeNode]:
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


# loading


def load(path: Path, facts: MapFacts, scan: slicer.vtkMRMLScalarVolumeNode, provenance: dict[str, str]):
    """Load a map as a volume beside its scan, in place of an older one of the same layer.

    Parameters
    ----------
    path : Path
        A file on the scan's own grid: values 0 to 1, of ProtoSeg 0 or 1.
    provenance : dict
        Kept as node attributes "PEFTSegment.<key>".

    Returns
    -------
    vtkMRMLScalarVolumeNode

    Raises
    ------
    BadInput
        The file cannot be read, or the scan has another size now.
    """
    name = _("{scan} - {method} {structure}, {layer} ({title})").format(
        scan=scan.GetName(),
        method=method_name(facts.method),
        structure=facts.structure,
        layer=facts.label,
        title=facts.title,
    )
    try:
        with exchange.unlisted():
            node = slicer.util.loadVolume(
                str(path), {"name": name, "show": False, "singleFile": True, "autoWindowLevel": False}
            )
    except RuntimeError as error:
        raise BadInput(
            _("The map {name} cannot be loaded ({error}).").format(name=path.name, error=error), _("Press Show again.")
        ) from error
    if node.GetImageData().GetDimensions() != scan.GetImageData().GetDimensions():
        slicer.mrmlScene.RemoveNode(node)
        raise BadInput(
            _("The scan {name} has been changed while it was looked into.").format(name=scan.GetName()),
            _("Press Show again."),
        )
    old = find(facts)  # before the new one is known as a map
    for key, value in provenance.items():
        node.SetAttribute(exchange.ATTRIBUTE + key, str(value))
    for field in FIELDS:
        node.SetAttribute(_attribute(field), getattr(facts, field))
    exchange.forget_file(node)
    node.CopyOrientation(scan)  # its file is in world coordinates, and the scan may have been moved since
    node.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
    _colour(node, facts)
    scans.place_beside(node, scan)
    if old is not None:
        _remove(old)
    node.SetName(name)  # the loader gives another one while the old map is there
    _make_room()
    return node


def _colour(node: slicer.vtkMRMLScalarVolumeNode, facts: MapFacts) -> None:
    """Window, colour table and legend."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    table = MARKED if facts.method == PROTO_SEG else HEAT
    if slicer.mrmlScene.GetNodeByID(table) is None:
        table = HEAT_BUILT_IN
    display.SetAndObserveColorNodeID(table)
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetAutoThreshold(False)
    display.SetThreshold(FAINT[facts.method], 1.0)
    display.SetApplyThreshold(True)
    display.SetInterpolate(facts.method == GRAD_CAM)
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(f"{method_name(facts.method)}\n{short(facts.structure, TITLE_LENGTH)}\n{facts.label}")
    legend.SetNumberOfLabels(2 if facts.method == PROTO_SEG else 3)
    legend.SetVisibility(True)


def middle(node: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray | None:
    """RAS mm of the middle of a map's upper half, by the median along each axis; None where it has none."""
    strong = slicer.util.arrayFromVolume(node) >= 0.5  # (K, J, I)
    if not strong.any():
        return None
    index = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        share = np.cumsum(np.count_nonzero(strong, axis=others))
        index.append(int(np.searchsorted(share, share[-1] / 2)))
    return (scans.ijk_to_world(node) @ np.array([*index, 1.0]))[:3]


# taking away


def remove_like(facts: MapFacts) -> None:
    """Take away the maps of all layers that were asked the same."""
    for node in all_maps():
        own = facts_of(node)
        if replace(own, layer=facts.layer).same_place(facts):
            _remove(node)


def _make_room() -> None:
    """Take away the oldest maps beyond `MOST`."""
    nodes = all_maps()
    for node in nodes[: max(0, len(nodes) - MOST)]:
        _remove(node)


def _remove(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """A map with its display nodes: legends first, they would look for the others; then the map, which would get new ones."""
    found = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    displays = [display for display in found if display is not None]
    legends = [display for display in displays if _is_legend(display)]
    for gone in (*legends, node, *(display for display in displays if display not in legends)):
        slicer.mrmlScene.RemoveNode(gone)


def _is_legend(display: slicer.vtkMRMLDisplayNode) -> bool:
    return display.IsA("vtkMRMLColorLegendDisplayNode")


class MapViews:
    """Shows maps in the foreground of the slice views, and puts back what was there before."""

    def __init__(self) -> None:
        self._former: dict[str, tuple[str, float]] = {}  # slice view -> volume and opacity

    def show(self, node, scan: slicer.vtkMRMLScalarVolumeNode, opacity: float) -> None:
        """Show a map over its scan.

        Parameters
        ----------
        opacity : float
            0 to 1.
        """
        for composite in _composites():
            before = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
            if before is None and composite.GetID() in self._former:
                continue  # a map was there that has just been replaced
            if before is None or not before.GetAttribute(scans.MAP):
                name = before.GetID() if before is not None else ""
                self._former[composite.GetID()] = (name, composite.GetForegroundOpacity())
        if scans.scan_in_view() is not scan:
            scans.show_scan(scan)
        slicer.util.setSliceViewerLayers(foreground=node, foregroundOpacity=opacity)
        scans.renew_legend(node)

    def remove_all(self) -> None:
        """Take all maps out of the scene; the views show what they showed before."""
        shown = [composite for composite in _composites() if scans.map_in_front(composite) is not None]
        for node in all_maps():
            _remove(node)
        for composite in shown:
            name, opacity = self._former.get(composite.GetID(), ("", 0.0))
            composite.SetForegroundVolumeID(name if slicer.mrmlScene.GetNodeByID(name) is not None else None)
            composite.SetForegroundOpacity(opacity)
        self.forget()

    def forget(self) -> None:
        """The scene closes."""
        self._former.clear()


def set_opacity(opacity: float) -> None:
    """Change the opacity of the map in view, 0 to 1; other volumes in the foreground stay as they are."""
    if in_view() is not None:
        slicer.util.setSliceViewerLayers(foregroundOpacity=opacity)
