"""A look at the scans that were left out: the label, the model as it is, and the adapter that had not seen the scan.

What is loaded is temporary: hidden user segmentations come back, the three outlines go, with one click.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from .. import exchange, scans, structures, support
from ..context import Context
from .adapt_progress import short

TEMPORARY = "PEFTSegment.LeftOut"
LABEL, BASE, ADAPTER = (0.15, 0.75, 0.2), (0.2, 0.5, 1.0), (1.0, 0.55, 0.0)
THICKNESS = 2
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Case:
    """One left-out scan: its token, the two files, Dice by structure and the lowest of them."""

    token: str
    adapter: Path | None
    base: Path | None
    dice: dict[str, float | None]

    @property
    def worst(self) -> float:
        """The lowest Dice; 1 where none is known."""
        return min((value for value in self.dice.values() if value is not None), default=1.0)


def cases_of(ending: dict[str, Any], tokens: Sequence[str]) -> list[Case]:
    """The left-out scans of a finished adaptation whose files are there, worst first."""
    found = []
    for row in ending.get("left_out") or []:
        files = [Path(row[name]) if row.get(name) else None for name in ("adapter", "base")]
        files = [file if file is not None and file.is_file() else None for file in files]
        if any(files) and 1 <= row["scan"] <= len(tokens):
            found.append(Case(tokens[row["scan"] - 1], *files, row["dice"]))
    return sorted(found, key=lambda case: case.worst)


def legend() -> str:
    """The three colours in words, as rich text."""
    parts = ((LABEL, _("your label")), (BASE, _("model as it is")), (ADAPTER, _("adapter that had not seen this scan")))
    return " &nbsp; ".join(f'<span style="color:{_hex(colour)}">■</span>&nbsp;{text}' for colour, text in parts)


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)


class Review:
    """Shows one case at a time in the slice views."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._hidden: list[str] = []
        self.cases: list[Case] = []
        self.position = 0

    @property
    def active(self) -> bool:
        """Whether a case is shown."""
        return bool(self.cases)

    def start(self, cases: Sequence[Case]) -> None:
        """Show the first, worst case; BadInput where a file cannot be loaded."""
        self.cases, self.position = list(cases), 0
        self._show()

    def step(self, by: int) -> None:
        """Show another case."""
        self.position = min(max(self.position + by, 0), len(self.cases) - 1)
        self._show()

    def end(self) -> None:
        """Take the outlines out of the scene, and show again what was hidden for them."""
        self._remove()
        self.cases = []

    def closing(self) -> None:
        """The scene closes and takes the outlines with it."""
        self.cases, self._hidden = [], []

    def text(self) -> str:
        """Which scan is shown, and how well it was segmented."""
        case = self.cases[self.position]
        scan = scans.scan_of(case.token)
        name = short(scan.GetName(), 40) if scan is not None else _("its scan is not loaded")
        known = sorted((value, name) for name, value in case.dice.items() if value is not None)
        values = ", ".join(f"{name} {value:.2f}" for value, name in known) or _("no value")
        return _("Scan {n} of {total} ({name}): {values}").format(
            n=self.position + 1, total=len(self.cases), name=name, values=values
        )

    def _show(self) -> None:
        self._remove()
        case = self.cases[self.position]
        scan = scans.scan_of(case.token)
        if scan is not None:
            scans.show_scan(scan)
        self._hide_others()
        shown = [self._label(case)]
        for path, colour, name in (
            (case.base, BASE, _("Model as it is")),
            (case.adapter, ADAPTER, _("Adapter that had not seen it")),
        ):
            if path is not None:
                shown.append(_dressed(exchange.load_segmentation(path, name, scan, {}), colour))
        _jump_to(next((node for node in shown if node is not None), None))

    def _label(self, case: Case) -> slicer.vtkMRMLSegmentationNode | None:
        """A copy of the user's label in one colour."""
        rows = self._context.support.rows()
        row = next((r for r in rows if r.scan is not None and r.scan.GetAttribute(scans.TOKEN) == case.token), None)
        if row is None or row.labels is None:
            return None
        copy = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", _("Your label"))
        copy.CreateDefaultDisplayNodes()
        copy.SetReferenceImageGeometryParameterFromVolumeNode(row.scan)
        copy.SetAndObserveTransformNodeID(row.labels.GetTransformNodeID())
        source = row.labels.GetSegmentation()
        for structure in structures.read(self._context.state):
            segment_id = support.segment_of(row, structure) if structure.name in case.dice else ""
            if segment_id:
                copy.GetSegmentation().CopySegmentFromSegmentation(source, segment_id)
        return _dressed(copy, LABEL)

    def _hide_others(self) -> None:
        """Hide all segmentations meanwhile, also those of other scans, which may lie at the same place."""
        for labels in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            display = labels.GetDisplayNode()
            if display is not None and display.GetVisibility():
                display.SetVisibility(False)
                self._hidden.append(labels.GetID())

    def _remove(self) -> None:
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if node.GetAttribute(TEMPORARY):
                slicer.mrmlScene.RemoveNode(node)
        for identity in self._hidden:
            labels = slicer.mrmlScene.GetNodeByID(identity)
            if labels is not None and labels.GetDisplayNode() is not None:
                labels.GetDisplayNode().SetVisibility(True)
        self._hidden = []


def _dressed(node: slicer.vtkMRMLSegmentationNode, colour: Colour) -> slicer.vtkMRMLSegmentationNode:
    """All segments as outlines of one colour; the node is not saved with the scene."""
    node.SetAttribute(TEMPORARY, "1")
    node.SetSaveWithScene(False)
    core = node.GetSegmentation()
    for segment_id in core.GetSegmentIDs():
        core.GetSegment(segment_id).SetColor(*colour)
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetVisibility3D(False)
    display.SetSliceIntersectionThickness(THICKNESS)
    return node


def _jump_to(node: slicer.vtkMRMLSegmentationNode | None) -> None:
    """Centre the slice views on what is segmented."""
    if node is None:
        return
    bounds = np.zeros(6)
    node.GetRASBounds(bounds)
    if bounds[0] <= bounds[1]:
        centre = (bounds[0::2] + bounds[1::2]) / 2
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *centre)
