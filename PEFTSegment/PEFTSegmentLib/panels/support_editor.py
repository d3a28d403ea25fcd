"""Slicer's Segment Editor, embedded under the table of support scans, with a parameter node of its own."""

from __future__ import annotations

from collections.abc import Sequence

import slicer
from slicer.i18n import tr as _

from peftseg.models import Structure

from .. import scans, structures, support

SINGLETON = "PEFTSegment"
PREPARED = "PEFTSegment.Prepared"  # attribute of the editor node: it has this module's settings
UNDO_STATES = 10
EFFECTS = (
    "Paint", "Draw", "Erase", "Fill between slices", "Threshold", "Smoothing", "Islands", "Scissors", "Grow from seeds",
    "Level tracing", "Margin", "Hollow", "Logical operators", "Mask volume",
)  # fmt: skip


class LabelEditor:
    """Opens the editor for one support scan at a time; the widget is made when it is first needed.

    Parameters
    ----------
    frame, label :
        Widgets of the form: what is shown while the editor is open, and its heading.
    layout :
        Where the editor's widget goes.
    """

    def __init__(self, frame, label, layout) -> None:
        self._frame, self._label, self._layout = frame, label, layout
        self._widget = None
        self._entered = False
        self.key = ""  # of the support scan that is being labelled
        frame.setVisible(False)

    @property
    def widget(self):
        """The editor's widget, None before the first use."""
        return self._widget

    @property
    def segmentation(self) -> slicer.vtkMRMLSegmentationNode | None:
        """What is painted into, None before the first use or where the editor is closed."""
        return self._widget.segmentationNode() if self._widget is not None else None

    def open(self, row: support.Row, wanted: tuple[Structure, ...], others: Sequence = ()) -> None:
        """Edit a row's segmentation over its scan, both shown in the slice views; those of `others` are hidden."""
        self._make()
        editor = self._widget
        editor.setMRMLSegmentEditorNode(editor_node())
        editor.setSegmentationNode(row.labels)
        editor.setSourceVolumeNode(row.scan)
        scans.show_scan(row.scan)
        row.labels.CreateDefaultDisplayNodes()
        row.labels.SetDisplayVisibility(True)
        for node in others:  # outlines of another scan in the same place confuse
            if node is not row.labels and node.GetDisplayNode() is not None:
                node.SetDisplayVisibility(False)
        segment_id = self._first_to_label(row, wanted)
        if segment_id:
            editor.setCurrentSegmentID(segment_id)
        self.key = row.key
        self._label.text = _("Labelling {scan} in '{labels}'").format(
            scan=row.scan.GetName(), labels=row.labels.GetName()
        )
        self._frame.setVisible(True)
        self._connect_views()

    @staticmethod
    def _first_to_label(row: support.Row, wanted: tuple[Structure, ...]) -> str:
        cells = [support.cell(row, structure) for structure in wanted]
        empty = [c.segment for c in cells if c.segment and not c.painted]
        return next(iter([*empty, *(c.segment for c in cells if c.segment)]), "")

    def close(self) -> None:
        """Put the tools away; what was painted stays."""
        if not self.key:
            return
        self.key = ""
        self._frame.setVisible(False)
        self._release_views()
        self._widget.setSegmentationNode(None)

    def enter(self) -> None:
        """The module is shown."""
        self._entered = True
        if self.key:
            self._widget.setMRMLSegmentEditorNode(editor_node())
            self._widget.updateWidgetFromMRML()
            self._connect_views()

    def exit(self) -> None:
        """Another module is shown: no tool, key or mouse event of this editor stays active."""
        self._entered = False
        if self._widget is not None:
            self._release_views()

    def scene_closing(self) -> None:
        """The scene is emptied: the editor lets its nodes go; `open` makes another editor node where it is gone."""
        self.close()

    def cleanup(self) -> None:
        """The module is unloaded."""
        self.close()

    def _make(self) -> None:
        if self._widget is not None:
            return
        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setMaximumNumberOfUndoStates(UNDO_STATES)
        editor.segmentationNodeSelectorVisible = False
        editor.sourceVolumeNodeSelectorVisible = False
        editor.switchToSegmentationsButtonVisible = False
        editor.addRemoveSegmentButtonsVisible = False  # the structures are chosen above the table
        editor.autoShowSourceVolumeNode = False  # the scan is shown here, once
        editor.setEffectNameOrder(list(EFFECTS))
        editor.setMRMLSegmentEditorNode(editor_node())  # before the scene, as the widget's documentation asks for
        editor.setMRMLScene(slicer.mrmlScene)
        self._layout.addWidget(editor)
        self._widget = editor

    def _connect_views(self) -> None:
        if self._entered or self._frame.visible:  # a module that was reloaded is shown without being entered
            self._widget.setupViewObservations()
            self._widget.installKeyboardShortcuts()

    def _release_views(self) -> None:
        if self._widget.mrmlSegmentEditorNode() is not None:
            self._widget.setActiveEffect(None)
        self._widget.uninstallKeyboardShortcuts()
        self._widget.removeViewObservations()


def editor_node() -> slicer.vtkMRMLSegmentEditorNode:
    """This module's editor node: hidden; painting over one segment leaves the others as they are, until the user chooses
    otherwise."""
    node = slicer.mrmlScene.GetSingletonNode(SINGLETON, "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.vtkMRMLSegmentEditorNode()
        node.SetSingletonTag(SINGLETON)
        node = slicer.mrmlScene.AddNode(node)
    if not node.GetAttribute(PREPARED):  # new, or reset because a scene was closed, which takes its attributes
        node.SetHideFromEditors(True)
        node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
        node.SetAttribute(PREPARED, "1")
    return node


def add_missing(row: support.Row, missing: list[Structure]) -> None:
    """Add empty segments to a row's segmentation, which the user has agreed to."""
    for structure in missing:
        structures.add_segment(row.labels, structure)
