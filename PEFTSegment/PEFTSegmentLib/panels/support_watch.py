"""Observers on the nodes of the support scans: renamed, painted, another transform, voxels replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import slicer
import vtk
from slicer.util import VTKObservationMixin


class NodeWatch(VTKObservationMixin):
    """Calls a function with the id of a watched node that has changed.

    Parameters
    ----------
    changed : callable
        Gets the node's id.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        VTKObservationMixin.__init__(self)
        self._changed = changed
        self._watched: dict[str, object] = {}

    def watch(self, nodes: Iterable) -> None:
        """Watch these nodes, and no others any more."""
        wanted = {node.GetID(): node for node in nodes if node is not None}
        for node_id in [i for i, node in self._watched.items() if wanted.get(i) is not node]:
            node = self._watched.pop(node_id)
            for event in _events(node):
                self.removeObserver(node, event, self._node_changed)
        for node_id, node in wanted.items():
            if node_id not in self._watched:
                self._watched[node_id] = node
                for event in _events(node):
                    self.addObserver(node, event, self._node_changed)

    def stop(self) -> None:
        """Watch nothing."""
        self.removeObservers()
        self._watched.clear()

    def _node_changed(self, caller, event) -> None:
        self._changed(caller.GetID())


def _events(node) -> tuple[int, ...]:
    common = (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
    if node.IsA("vtkMRMLSegmentationNode"):
        kind = slicer.vtkSegmentation
        return (
            *common,
            kind.SegmentAdded,
            kind.SegmentRemoved,
            kind.SegmentModified,
            kind.SourceRepresentationModified,
            kind.ContainedRepresentationNamesModified,
        )
    return (*common, slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent)
