"""Two segmentations of one scan side by side: linked slice views, and how much they differ. Nothing here needs Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import vtk

from . import exchange, structures

LAYOUT = 64100  # Slicer's own are below 100; scripts and extensions choose numbers at random
VIEWS = ("PEFTSegmentA", "PEFTSegmentB")
VIEW_GROUP = 64  # links these two views with each other, and with no other
DESCRIPTION = (
    '<layout type="horizontal" split="true">'
    + "".join(
        f'<item><view class="vtkMRMLSliceNode" singletontag="{name}">'
        '<property name="orientation" action="default">Axial</property>'
        f'<property name="viewlabel" action="default">{label}</property>'
        f'<property name="viewcolor" action="default">{colour}</property>'
        f'<property name="viewgroup" action="default">{VIEW_GROUP}</property>'
        "</view></item>"
        for name, label, colour in zip(VIEWS, "AB", ("#4A90D9", "#E0A030"), strict=True)
    )
    + "</layout>"
)
SLAB = 16  # slices counted at once


@dataclass(frozen=True)
class Difference:
    """How much two segmentations differ in one structure; volumes in ml.

    Attributes
    ----------
    dice : float or None
        Overlap, 0 to 1; None where both are empty.
    """

    structure: str
    first_ml: float
    second_ml: float
    dice: float | None

    @property
    def percent(self) -> float | None:
        """Change from the first to the second, None where the first is empty."""
        return 100 * (self.second_ml - self.first_ml) / self.first_ml if self.first_ml else None


@dataclass(frozen=True)
class Former:
    """What was shown before a comparison: the layout, and of each display node its visibility and views."""

    layout: int
    displays: tuple[tuple[str, bool, tuple[str, ...]], ...]


class CompareViews:
    """Shows two segmentations in a layout of its own, and puts back what was shown before."""

    def __init__(self) -> None:
        self._former: Former | None = None

    @property
    def active(self) -> bool:
        """Whether two segmentations are shown side by side."""
        return self._former is not None

    def show(
        self,
        nodes: Sequence[slicer.vtkMRMLSegmentationNode],
        names: Sequence[str],
        scan: slicer.vtkMRMLScalarVolumeNode,
    ) -> None:
        """Show two segmentations of a scan side by side, their names above."""
        self.leave()
        manager = slicer.app.layoutManager()
        self._former = Former(manager.layout, tuple(_shown()))
        layout_node = manager.layoutLogic().GetLayoutNode()
        if not layout_node.SetLayoutDescription(LAYOUT, DESCRIPTION):
            layout_node.AddLayoutDescription(LAYOUT, DESCRIPTION)
        manager.setLayout(LAYOUT)
        for display_id, _visible, _views in self._former.displays:
            slicer.mrmlScene.GetNodeByID(display_id).SetVisibility(False)
        for node, name, view in zip(nodes, names, VIEWS, strict=True):
            widget = manager.sliceWidget(view)
            composite = widget.mrmlSliceCompositeNode()
            composite.SetBackgroundVolumeID(scan.GetID())
            composite.SetForegroundVolumeID(None)
            composite.SetLabelVolumeID(None)
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)
            node.GetDisplayNode().SetDisplayableOnlyInView(widget.mrmlSliceNode().GetID())
            node.GetDisplayNode().SetVisibility(True)
            _write(widget, name)
            widget.sliceLogic().FitSliceToBackground()

    def leave(self, layout_too: bool = True) -> None:
        """Show again what was shown before; nodes that have gone meanwhile are left out."""
        former, self._former = self._former, None
        if former is None:
            return
        manager = slicer.app.layoutManager()
        for view in VIEWS:
            _write(manager.sliceWidget(view), "")
        for display_id, visible, views in former.displays:
            display = slicer.mrmlScene.GetNodeByID(display_id)
            if display is not None:
                display.RemoveAllViewNodeIDs()
                for view_id in views:
                    display.AddViewNodeID(view_id)
                display.SetVisibility(visible)
        if layout_too:
            manager.setLayout(former.layout)


def repair() -> None:
    """Free what a scene that was saved during a comparison has tied to its views, and leave its layout."""
    ours = {f"vtkMRMLSliceNode{name}" for name in VIEWS}
    for display in slicer.util.getNodesByClass("vtkMRMLSegmentationDisplayNode"):
        if display.GetViewNodeIDs() and set(display.GetViewNodeIDs()) <= ours:
            display.RemoveAllViewNodeIDs()
    manager = slicer.app.layoutManager()
    if manager is not None and manager.layout == LAYOUT:
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)


def _shown() -> list[tuple[str, bool, tuple[str, ...]]]:
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationDisplayNode")
    return [(d.GetID(), bool(d.GetVisibility()), tuple(d.GetViewNodeIDs())) for d in nodes]


def _write(widget, text: str) -> None:
    """Write into the middle of a view's upper edge; the corners are the Data Probe's."""
    view = widget.sliceView()
    view.cornerAnnotation().SetText(vtk.vtkCornerAnnotation.UpperEdge, text)
    view.scheduleRender()


def common_structures(
    first: slicer.vtkMRMLSegmentationNode, second: slicer.vtkMRMLSegmentationNode
) -> list[tuple[str, str, str]]:
    """Name and the two segment ids of each structure that both have, in the order of the first."""
    core = first.GetSegmentation()
    pairs = [(core.GetSegment(i).GetName(), i) for i in core.GetSegmentIDs()]
    found = [(name, own, structures.find_segment(second, name)) for name, own in pairs]
    return [triple for triple in found if triple[2]]


def differences(
    first: slicer.vtkMRMLSegmentationNode,
    second: slicer.vtkMRMLSegmentationNode,
    scan: slicer.vtkMRMLScalarVolumeNode,
) -> list[Difference]:
    """Volumes and overlap of the structures that two segmentations have in common, on the scan's grid.

    Each pair of layers is counted once for all its structures.
    """
    common = common_structures(first, second)
    shape = slicer.util.arrayFromVolume(scan).shape
    firsts = {name: exchange.part_of(first, own, scan) for name, own, _other in common}
    seconds = {name: exchange.part_of(second, other, scan) for name, _own, other in common}
    counts: dict[tuple, np.ndarray] = {}
    voxel_ml = abs(np.linalg.det(exchange.image_of(scan).affine[:3, :3])) / 1000
    found = []
    for name, a in firsts.items():
        b = seconds[name]
        key = (_layer(a), _layer(b))
        if key not in counts:
            counts[key] = _joint(a, b, shape)
        table = counts[key]
        n_first, n_second = int(table[a.value].sum()), int(table[:, b.value].sum())
        both = int(table[a.value, b.value])
        dice = 2 * both / (n_first + n_second) if n_first + n_second else None
        found.append(Difference(name, n_first * voxel_ml, n_second * voxel_ml, dice))
    return found


def _layer(part: exchange.Part) -> tuple:
    return part.array.__array_interface__["data"][0], part.start


def _joint(a: exchange.Part, b: exchange.Part, shape: tuple[int, ...]) -> np.ndarray:
    """How many voxels of the scan's grid have each pair of values: (values of a, values of b)."""
    sizes = [max(int(part.array.max(initial=0)), part.value) + 1 for part in (a, b)]
    counts = np.zeros(sizes[0] * sizes[1], np.int64)
    for first in range(0, shape[0], SLAB):
        last = min(first + SLAB, shape[0])
        codes = _slab(a, first, last, shape).astype(np.int64) * sizes[1] + _slab(b, first, last, shape)
        counts += np.bincount(codes.ravel(), minlength=len(counts))
    return counts.reshape(sizes)


def _slab(part: exchange.Part, first: int, last: int, shape: tuple[int, ...]) -> np.ndarray:
    """Slices `first` to `last` of a layer on the scan's grid; 0 where it has no voxels."""
    slab = np.zeros((last - first, *shape[1:]), part.array.dtype)
    lows = [max(0, s) for s in part.start]
    highs = [min(n, s + m) for n, s, m in zip(shape, part.start, part.array.shape, strict=True)]
    lows[0], highs[0] = max(lows[0], first), min(highs[0], last)
    if any(low >= high for low, high in zip(lows, highs, strict=True)):
        return slab
    inside = tuple(slice(low, high) for low, high in zip((lows[0] - first, *lows[1:]), (highs[0] - first, *highs[1:]),
                   strict=True))  # fmt: skip
    own = tuple(slice(low - s, high - s) for low, high, s in zip(lows, highs, part.start, strict=True))
    slab[inside] = part.array[own]
    return slab
