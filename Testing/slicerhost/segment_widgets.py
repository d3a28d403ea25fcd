"""Imitations of the widgets around segmentations: the Segment Editor and the segment selector."""

from __future__ import annotations

from typing import ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .ctk_widgets import imitation, stored
from .mrml_widgets import _SceneWidget, observe, qMRMLNodeComboBox


class qMRMLSegmentSelectorWidget(qMRMLNodeComboBox):
    """A selector of a segmentation and one of its segments."""

    currentSegmentChanged = QtCore.Signal(str)
    segmentSelectionChanged = QtCore.Signal(list)
    cpp_signals: ClassVar[dict] = {
        **qMRMLNodeComboBox.cpp_signals,
        **_SceneWidget.cpp_signals,
        "currentSegmentChanged(QString)": ("currentSegmentChanged", None),
        "segmentSelectionChanged(QStringList)": ("segmentSelectionChanged", None),
    }
    horizontalLayout = stored(bool, False, "horizontalLayout")
    multiSelection = stored(bool, False, "multiSelection")
    segmentationNodeSelectorVisible = stored(bool, True, "segmentationNodeSelectorVisible")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._types = ["vtkMRMLSegmentationNode"]
        self._segment = ""
        self._segments = QtWidgets.QComboBox(self)
        self.layout().addWidget(self._segments)
        self.currentNodeChanged.connect(lambda _: self._list_segments())
        self._segments.currentIndexChanged.connect(
            lambda row: self.setCurrentSegmentID(self._segments.itemData(row) or "")
        )

    def _list_segments(self) -> None:
        self._segments.clear()
        for segment_id in self.segmentIDs():
            self._segments.addItem(self.currentNode().GetSegmentation().GetSegment(segment_id).GetName(), segment_id)

    def segmentIDs(self) -> list[str]:
        return list(self.currentNode().GetSegmentation().GetSegmentIDs()) if self.currentNode() is not None else []

    def currentSegmentID(self) -> str:
        return self._segment

    def setCurrentSegmentID(self, segment_id: str) -> None:
        if segment_id != self._segment:
            self._segment = segment_id
            self._segments.setCurrentIndex(self._segments.findData(segment_id))
            self.currentSegmentChanged.emit(segment_id)


class qMRMLSegmentEditorWidget(_SceneWidget):
    """The Segment Editor's choices on its real logic and parameter node; without painting."""

    currentSegmentIDChanged = QtCore.Signal(str)
    sourceVolumeNodeChanged = QtCore.Signal(object)
    masterVolumeNodeChanged = QtCore.Signal(object)
    segmentationNodeChanged = QtCore.Signal(object)
    cpp_signals: ClassVar[dict] = {
        **_SceneWidget.cpp_signals,
        "currentSegmentIDChanged(QString)": ("currentSegmentIDChanged", None),
        "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)": ("sourceVolumeNodeChanged", None),
        "masterVolumeNodeChanged(vtkMRMLVolumeNode*)": ("masterVolumeNodeChanged", None),
        "segmentationNodeChanged(vtkMRMLSegmentationNode*)": ("segmentationNodeChanged", None),
    }
    EFFECTS = (
        "Paint", "Erase", "Scissors", "Draw", "Fill between slices", "Grow from seeds", "Hollow", "Islands",
        "Level tracing", "Logical operators", "Margin", "Mask volume", "Smoothing", "Threshold",
    )  # fmt: skip
    segmentationNodeSelectorVisible = stored(bool, True, "segmentationNodeSelectorVisible")
    sourceVolumeNodeSelectorVisible = stored(bool, True, "sourceVolumeNodeSelectorVisible")
    masterVolumeNodeSelectorVisible = sourceVolumeNodeSelectorVisible
    maskingSectionVisible = stored(bool, True, "maskingSectionVisible")
    specifyGeometryButtonVisible = stored(bool, True, "specifyGeometryButtonVisible")
    show3DButtonVisible = stored(bool, True, "show3DButtonVisible")
    addRemoveSegmentButtonsVisible = stored(bool, True, "addRemoveSegmentButtonsVisible")
    switchToSegmentationsButtonVisible = stored(bool, True, "switchToSegmentationsButtonVisible")
    autoShowSourceVolumeNode = stored(bool, True, "autoShowSourceVolumeNode")
    undoEnabled = stored(bool, True, "undoEnabled")
    readOnly = stored(bool, False, "readOnly")
    maximumNumberOfUndoStates = stored(int, 10, "maximumNumberOfUndoStates")
    effectColumnCount = stored(int, 2, "effectColumnCount")
    unorderedEffectsVisible = stored(bool, True, "unorderedEffectsVisible")
    jumpToSelectedSegmentEnabled = stored(bool, False, "jumpToSelectedSegmentEnabled")
    defaultTerminologyEntry = stored(str, "", "defaultTerminologyEntry")
    defaultTerminologyEntrySettingsKey = stored(str, "", "defaultTerminologyEntrySettingsKey")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._node = None
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._order: list[str] = list(self.EFFECTS)
        self._last = (None, None, None)
        self.shortcuts = self.view_observations = False
        self.setMinimumHeight(120)

    def setMRMLScene(self, scene) -> None:
        self._logic.SetMRMLScene(scene)
        super().setMRMLScene(scene)

    def mrmlSegmentEditorNode(self):
        return self._node

    def setMRMLSegmentEditorNode(self, node) -> None:
        self._node = node
        self._logic.SetSegmentEditorNode(node)
        if node is not None:
            observe(self, node, vtk.vtkCommand.ModifiedEvent, "updateWidgetFromMRML")
        self.updateWidgetFromMRML()

    def _scene_event(self) -> None:
        if self._node is not None and self._node.GetScene() is None:
            self.setMRMLSegmentEditorNode(None)

    def updateWidgetFromMRML(self) -> None:
        now = (self.segmentationNode(), self.sourceVolumeNode(), self.currentSegmentID())
        before, self._last = self._last, now
        if now[0] is not before[0]:
            self.segmentationNodeChanged.emit(now[0])
        if now[1] is not before[1]:
            self.sourceVolumeNodeChanged.emit(now[1])
            self.masterVolumeNodeChanged.emit(now[1])
        if now[2] != before[2]:
            self.currentSegmentIDChanged.emit(now[2])

    def _editor_node(self):
        if self._node is None:
            raise RuntimeError("the Segment Editor widget has no vtkMRMLSegmentEditorNode (setMRMLSegmentEditorNode)")
        return self._node

    def segmentationNode(self):
        return self._node.GetSegmentationNode() if self._node is not None else None

    def sourceVolumeNode(self):
        return self._node.GetSourceVolumeNode() if self._node is not None else None

    def segmentationNodeID(self) -> str:
        return self.segmentationNode().GetID() if self.segmentationNode() is not None else ""

    def sourceVolumeNodeID(self) -> str:
        return self.sourceVolumeNode().GetID() if self.sourceVolumeNode() is not None else ""

    def setSegmentationNode(self, node) -> None:
        self._editor_node()
        self._logic.SetSegmentationNode(node)
        self._node.SetActiveEffectName("")
        self.updateWidgetFromMRML()

    def setSourceVolumeNode(self, node) -> None:
        self._editor_node()
        self._logic.SetSourceVolumeNode(node)
        self.updateWidgetFromMRML()

    setMasterVolumeNode, masterVolumeNode = setSourceVolumeNode, sourceVolumeNode

    def currentSegmentID(self) -> str:
        return (self._node.GetSelectedSegmentID() or "") if self._node is not None else ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._editor_node().SetSelectedSegmentID(segment_id)
        self.updateWidgetFromMRML()

    def availableEffectNames(self) -> list[str]:
        return list(self.EFFECTS)

    def effectCount(self) -> int:
        return len(self._order)

    def effectNameOrder(self) -> list[str]:
        return list(self._order)

    def setEffectNameOrder(self, names) -> None:
        unknown = set(names) - set(self.EFFECTS)
        if unknown:
            raise ValueError(f"no such Segment Editor effects: {sorted(unknown)}")
        self._order = list(names)

    def setActiveEffectByName(self, name: str) -> None:
        if name and name not in self.EFFECTS:
            raise ValueError(f"no such Segment Editor effect: {name!r} (Slicer would switch the active one off)")
        self._editor_node().SetActiveEffectName(name)

    def setActiveEffect(self, effect) -> None:
        if effect is not None:
            raise NotImplementedError("the test host has no effects to activate; setActiveEffectByName keeps the name")
        if self._node is not None:
            self._node.SetActiveEffectName("")

    def setMaximumNumberOfUndoStates(self, count: int) -> None:
        self.maximumNumberOfUndoStates = count

    def installKeyboardShortcuts(self, _parent=None) -> None:
        self.shortcuts = True

    def uninstallKeyboardShortcuts(self) -> None:
        self.shortcuts = False

    def setupViewObservations(self) -> None:
        self.view_observations = True

    def removeViewObservations(self) -> None:
        self.view_observations = False

    def saveStateForUndo(self) -> None:
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        self._logic.Undo()

    def redo(self) -> None:
        self._logic.Redo()

    def rotateSliceViewsToSegmentation(self) -> None:
        """Turn the slice views; nothing to do without views."""


def build() -> dict[str, type]:
    """Make the proxy classes."""
    kinds = (qMRMLSegmentSelectorWidget, qMRMLSegmentEditorWidget)
    return {raw_type.__name__: imitation("slicer", raw_type) for raw_type in kinds}
