"""Imitations of the qMRML widgets that a module needs, on the real MRML scene."""

from __future__ import annotations

import weakref
from typing import ClassVar

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .ctk_widgets import Prop, ctkSliderWidget, imitation, stored

EVENTS = (
    "NodeAddedEvent",
    "NodeRemovedEvent",
    "EndCloseEvent",
    "EndImportEvent",
    "EndBatchProcessEvent",
    "EndRestoreEvent",
)


def observe(raw: QtCore.QObject, target, event, method: str) -> None:
    """Observe a VTK object as long as the widget lives; the observer holds the widget weakly."""
    held = weakref.ref(raw)

    def called(*_arguments):
        widget = held()
        if widget is not None:
            getattr(widget, method)()

    tag = target.AddObserver(event, called)
    raw.destroyed.connect(lambda: target.RemoveObserver(tag))


class _SceneWidget(QtWidgets.QWidget):
    """What all qMRML widgets share."""

    mrmlSceneChanged = QtCore.Signal(object)
    cpp_signals: ClassVar[dict] = {"mrmlSceneChanged(vtkMRMLScene*)": ("mrmlSceneChanged", None)}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            if scene is not None:
                for event in EVENTS:
                    observe(self, scene, getattr(slicer.vtkMRMLScene, event), "_scene_event")
            self._scene_event()
            self.mrmlSceneChanged.emit(scene)

    def _scene_event(self) -> None:
        """React to a change of the scene."""


class qMRMLWidget(_SceneWidget):
    """A widget that knows the scene."""


class qSlicerWidget(_SceneWidget):
    """A widget that knows the scene."""


class qMRMLNodeComboBox(_SceneWidget):
    """A node selector: kinds, attributes, hidden nodes, none, create, rename, remove."""

    currentNodeChanged = QtCore.Signal(object)
    currentNodeIDChanged = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    nodeAddedByUserAction = QtCore.Signal(object)
    nodeAboutToBeRemoved = QtCore.Signal(object)
    nodeAboutToBeEdited = QtCore.Signal(object)
    currentNodeRenamed = QtCore.Signal(str)
    cpp_signals: ClassVar[dict] = {
        "currentNodeChanged(vtkMRMLNode*)": ("currentNodeChanged", None),
        "currentNodeChanged(bool)": ("currentNodeChanged", bool),
        "currentNodeIDChanged(QString)": ("currentNodeIDChanged", None),
        "currentNodeRenamed(QString)": ("currentNodeRenamed", None),
        **{
            f"{name}(vtkMRMLNode*)": (name, None)
            for name in (
                "nodeActivated", "nodeAdded", "nodeAddedByUser", "nodeAddedByUserAction", "nodeAboutToBeRemoved",
                "nodeAboutToBeEdited",
            )
        },
    }  # fmt: skip
    addEnabled = stored(bool, True, "addEnabled")
    removeEnabled = stored(bool, True, "removeEnabled")
    editEnabled = stored(bool, False, "editEnabled")
    renameEnabled = stored(bool, False, "renameEnabled")
    selectNodeUponCreation = stored(bool, True, "selectNodeUponCreation")
    baseName = stored(str, "", "baseName")
    interactionNodeSingletonTag = stored(str, "", "interactionNodeSingletonTag")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._types: list[str] = []
        self._filters: list[tuple] = []
        self._options = {"none": False, "hidden": False, "children": True, "hide": [], "noneDisplay": "None"}
        self._nodes: list = []
        self._current = None
        self._updating = False
        self._combo = QtWidgets.QComboBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.currentIndexChanged.connect(self._picked)
        self._combo.activated.connect(lambda _: self.nodeActivated.emit(self._current))

    def _option(key: str, kind):
        def put(self, value):
            self._options[key] = value
            self._scene_event()

        return Prop(kind, lambda self: self._options[key], put)

    noneEnabled = _option("none", bool)
    showHidden = _option("hidden", bool)
    showChildNodeTypes = _option("children", bool)
    hideChildNodeTypes = _option("hide", "QVariantList")
    noneDisplay = _option("noneDisplay", str)

    def _set_types(self, types_) -> None:
        self._types = list(types_)
        self._scene_event()

    nodeTypes = Prop("QVariantList", lambda self: list(self._types), _set_types)

    def addAttribute(self, node_type: str, name: str, value=None) -> None:
        self._filters.append((node_type, name, value))
        self._scene_event()

    def removeAttribute(self, node_type: str, name: str) -> None:
        self._filters = [f for f in self._filters if f[:2] != (node_type, name)]
        self._scene_event()

    def _offered(self, node) -> bool:
        options = self._options
        kind = next((t for t in self._types if node.IsA(t)), None)
        if kind is None or (node.GetHideFromEditors() and not options["hidden"]):
            return False
        hidden = not options["children"] or any(node.IsA(t) for t in options["hide"])
        if hidden and node.GetClassName() not in self._types:
            return False
        needed = [(name, value) for node_type, name, value in self._filters if node.IsA(node_type)]
        return all(
            node.GetAttribute(name) is not None and (value is None or node.GetAttribute(name) == str(value))
            for name, value in needed
        )

    def _scene_event(self) -> None:
        scene = self._scene
        if scene is not None and scene.IsBatchProcessing():
            return
        every = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())] if scene is not None else []
        nodes = [node for node in every if self._offered(node)]
        for node in nodes:
            if node not in self._nodes:
                observe(self, node, vtk.vtkCommand.ModifiedEvent, "_rename")
                self.nodeAdded.emit(node)
        before, self._nodes = self._nodes, nodes
        self._fill()
        self._become(self._current if self._current in nodes else self._instead(before))

    def _instead(self, before: list):
        """The current node has gone: Qt's combo box goes to the next row, and says so as if it had been chosen."""
        nodes, removed = self._nodes, self._current in before and self._current.GetScene() is None
        if removed and nodes and not (self._scene.IsClosing() or self._scene.IsImporting()):
            return nodes[min(before.index(self._current), len(nodes) - 1)]
        return nodes[0] if nodes and not self._options["none"] else None

    def _fill(self) -> None:
        self._updating = True
        self._combo.clear()
        if self._options["none"]:
            self._combo.addItem(self._options["noneDisplay"])
        for node in self._nodes:
            self._combo.addItem(node.GetName())
        self._combo.setCurrentIndex(self._row(self._current))
        self._updating = False

    def _row(self, node) -> int:
        shift = 1 if self._options["none"] else 0
        return self._nodes.index(node) + shift if node in self._nodes else shift - 1

    def _rename(self) -> None:
        names = [node.GetName() for node in self._nodes]
        shift = 1 if self._options["none"] else 0
        if names != [self._combo.itemText(i + shift) for i in range(len(names))]:
            self._fill()
            if self._current is not None:
                self.currentNodeRenamed.emit(self._current.GetName())

    def _picked(self, row: int) -> None:
        if not self._updating:
            index = row - (1 if self._options["none"] else 0)
            self.setCurrentNode(self._nodes[index] if 0 <= index < len(self._nodes) else None)

    def currentNode(self):
        return self._current

    def setCurrentNode(self, node) -> None:
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node) if self._scene is not None and node else None
        if node is not None and node not in self._nodes:
            node = None
        if self._become(node) and node is not None:
            self.nodeActivated.emit(node)  # Slicer sends the list a key event, as if the user had chosen

    def _become(self, node) -> bool:
        """Whether the current node is another one now."""
        if node is self._current:
            return False
        self._current = node
        self._updating = True
        self._combo.setCurrentIndex(self._row(node))
        self._updating = False
        self.currentNodeChanged.emit(node)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")
        return True

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(node_id)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self._nodes[index] if 0 <= index < len(self._nodes) else None)

    currentNodeID = Prop(
        str,
        lambda self: self._current.GetID() if self._current is not None else "",
        lambda self, v: self.setCurrentNode(v),
    )
    currentNodeId = currentNodeID

    def nodeCount(self) -> int:
        return len(self._nodes)

    def nodeFromIndex(self, index: int):
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def addNode(self, node_type: str = ""):
        kind = node_type or self._types[0]
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(self.baseName or kind[8:-4]))
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        if self._current is not None:
            self.nodeAboutToBeRemoved.emit(self._current)
            self._scene.RemoveNode(self._current)


class qMRMLSliderWidget(ctkSliderWidget):
    """A slider that follows the scene's units."""

    quantity = stored(str, "", "quantity")

    def setMRMLScene(self, scene) -> None:
        self._scene = scene

    def mrmlScene(self):
        return self.__dict__.get("_scene")


class qMRMLPlotWidget(_SceneWidget):
    """A plot view; it keeps its view node and draws nothing."""

    def setMRMLPlotViewNode(self, node) -> None:
        self._view_node = node

    def mrmlPlotViewNode(self):
        return self.__dict__.get("_view_node")


PROXIED = (qMRMLWidget, qSlicerWidget, qMRMLNodeComboBox, qMRMLSliderWidget, qMRMLPlotWidget)


def build() -> dict[str, type]:
    """Make the proxy classes of all imitated qMRML widgets."""
    return {raw_type.__name__: imitation("slicer", raw_type) for raw_type in PROXIED}
