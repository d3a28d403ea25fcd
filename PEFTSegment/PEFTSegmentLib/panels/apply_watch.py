"""Notices that results were edited, as long as the module lives; after a break, by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt
import slicer
from slicer.util import VTKObservationMixin

from .. import results

QUIET_MS = 700  # after the last change: a brush stroke makes many
PAUSE_MS = 20


class EditWatch(VTKObservationMixin):
    """Observes results; each that was changed is compared with what it held, once the changes have stopped.

    Parameters
    ----------
    edited : callable
        Called after a result has become a draft again.
    """

    def __init__(self, edited: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self._edited = edited
        self._watched: dict[str, slicer.vtkMRMLSegmentationNode] = {}
        self._changed: set[str] = set()
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(QUIET_MS)
        self._timer.timeout.connect(self.check)

    def follow(self, nodes: Sequence[slicer.vtkMRMLSegmentationNode]) -> None:
        """Observe these results and no others; new ones are checked once: they may come from a saved scene."""
        now = {node.GetID(): node for node in nodes}
        if now.keys() == self._watched.keys() and all(now[i] is self._watched[i] for i in now):
            return
        for node_id, node in self._watched.items():
            if now.get(node_id) is not node:
                self._observe(node, False)
        for node_id, node in now.items():
            if self._watched.get(node_id) is not node:
                self._observe(node, True)
                self._note(node)
        self._watched = now

    def _observe(self, node, on: bool) -> None:
        for name in results.EDIT_EVENTS:
            event = getattr(slicer.vtkSegmentation, name)
            if on:
                self.addObserver(node, event, self._modified)
            elif self.hasObserver(node, event, self._modified):
                self.removeObserver(node, event, self._modified)

    def _modified(self, node, _event) -> None:
        self._note(node)

    def _note(self, node) -> None:
        self._changed.add(node.GetID())
        self._timer.start()

    def check(self) -> None:
        """Compare one changed result with what it held; the next one in a moment, so that Slicer stays usable."""
        node = slicer.mrmlScene.GetNodeByID(self._changed.pop()) if self._changed else None
        if self._changed:
            qt.QTimer.singleShot(PAUSE_MS, self.check)
        if node is not None and results.get(node, results.STATUS) and results.notice_edit(node):
            self._edited()

    def forget(self) -> None:
        """The scene closes."""
        self._timer.stop()
        self._changed.clear()
        self._watched.clear()
        self.removeObservers()

    def close(self) -> None:
        """The module is unloaded."""
        self.forget()
