"""Menus of a support scan: what is known of a structure in it, and which segmentation holds its labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import slicer
from slicer.i18n import tr as _

from peftseg.models import Structure

from .. import dialogs, exchange, pairing, scans, support
from ..slice_ranges import slices_from, slices_text
from ..support import Mark, Row

MOST_SEGMENTS = 40
SLICE_AXIS = 2


def fill_structure_menu(menu, row: Row, structure: Structure, put: Callable[[Mark], None], telling: Callable) -> None:
    """Offer what can be said of a structure in a scan; `put` gets the new mark."""
    mark = row.marks.get(structure.name, Mark())
    found = support.cell(row, structure)
    menu.toolTipsVisible = True  # the reasons; Qt hides a menu's tool tips

    def action(text: str, do: Callable, on: bool | None = None, reason: str = "") -> None:
        made = menu.addAction(text)
        if on is not None:
            made.setCheckable(True)
            made.setChecked(on)
        made.setEnabled(not reason)
        made.setToolTip(reason)
        made.triggered.connect(do)

    painted = _("It is painted in this scan.") if found.painted and not mark.absent else ""
    action(
        _("{name} is not in this scan (absent)").format(name=structure.name),
        lambda: put(Mark(absent=not mark.absent, segment=mark.segment)),
        mark.absent,
        painted,
    )
    menu.addSeparator()
    nothing = "" if found.state == "labelled" else _("Nothing is painted yet.")
    at = slice_in_view(row.scan)

    def limit() -> None:
        with telling(_("The slices were not noted.")):
            text = ask_slices(row, structure, found)
            if text:
                count = row.scan.GetImageData().GetDimensions()[SLICE_AXIS]
                put(Mark(slices=slices_from(text, count), segment=mark.segment))

    def bound(first: bool) -> None:
        known = mark.slices or painted_slices(row, found)
        start, end = (at, max(at, known[-1])) if first else (min(at, known[0]), at)
        put(Mark(slices=tuple(range(start, end + 1)), segment=mark.segment))

    action(_("Only some slices are labelled..."), limit, None, nothing)
    unseen = nothing or ("" if at is not None else _("The scan is in no slice view."))
    shown = "" if at is None else str(at + 1)
    action(_("Labelled from the slice in view on ({slice})").format(slice=shown), lambda: bound(True), None, unseen)
    action(_("Labelled up to the slice in view ({slice})").format(slice=shown), lambda: bound(False), None, unseen)
    whole = "" if mark.slices else _("All slices count already.")
    action(_("All slices are labelled"), lambda: put(Mark(segment=mark.segment)), None, whole)
    _fill_segments(menu, row, structure, mark, put)
    menu.addSeparator()
    action(
        _("Forget what was said of {name}").format(name=structure.name),
        lambda: put(Mark()),
        None,
        "" if mark != Mark() else _("Nothing was said of it."),
    )


def _fill_segments(menu, row: Row, structure: Structure, mark: Mark, put: Callable[[Mark], None]) -> None:
    """Which segment holds the structure, where names differ between scans."""
    names = support.segment_names(row.labels)[:MOST_SEGMENTS] if row.labels is not None else []
    if not names:
        return
    inner = menu.addMenu(_("Segment that holds {name}").format(name=structure.name))
    current = support.segment_of(row, structure)
    core = row.labels.GetSegmentation()
    used = core.GetSegment(current).GetName() if current else ""
    for name in names:
        made = inner.addAction(name)
        made.setCheckable(True)
        made.setChecked(name == used)
        made.triggered.connect(lambda checked, name=name: put(Mark(mark.absent, mark.slices, mark.axis, name)))


def fill_labels_menu(menu, row: Row, put: Callable[[object], None]) -> None:
    """Offer the segmentations of the scene for a scan: its own first."""
    own = pairing.of_scan(row.scan) if row.scan is not None else []
    others = [node for node in pairing.segmentations() if node not in own]
    for node in (*own, *others):
        made = menu.addAction(node.GetName())
        made.setCheckable(True)
        made.setChecked(node is row.labels)
        made.triggered.connect(_later(put, node.GetID()))
    if own and others:
        menu.insertSeparator(menu.actions()[len(own)])
    if not own and not others:
        menu.addAction(_("There is no segmentation in the scene")).setEnabled(False)
    menu.addSeparator()
    none = menu.addAction(_("None"))
    none.setEnabled(row.labels is not None)
    none.triggered.connect(lambda checked: put(None))


def _later(put: Callable[[object], None], node_id: str) -> Callable[[], None]:
    return lambda: put(slicer.mrmlScene.GetNodeByID(node_id))


def ask_slices(row: Row, structure: Structure, found: support.Cell) -> str:
    """Ask for the labelled slices; those that hold paint are proposed."""
    known = found.slices or painted_slices(row, found)
    count = row.scan.GetImageData().GetDimensions()[SLICE_AXIS]
    label = _(
        "In which slices of {scan} is {name} completely labelled?\nThe scan has the slices 1 to {count}; e.g. 12-40, or"
        " 12, 16, 20-24.\nNothing is learnt of {name} from the other slices."
    ).format(scan=row.scan.GetName(), name=structure.name, count=count)
    return dialogs.ask_text(_("Labelled slices"), label, slices_text(known))


def painted_slices(row: Row, found: support.Cell) -> tuple[int, ...]:
    """Slices (K index of the scan) in which a segment has voxels."""
    part = exchange.part_of(row.labels, found.segment, row.scan)
    held = np.nonzero((part.array == part.value).any(axis=(1, 2)))[0] + part.start[0]
    depth = row.scan.GetImageData().GetDimensions()[SLICE_AXIS]
    return tuple(int(k) for k in held if 0 <= k < depth)


def slice_in_view(scan: slicer.vtkMRMLScalarVolumeNode | None) -> int | None:
    """K index of the scan's slice in the view that looks along its slices most directly; None where it is in no view."""
    if scan is None:
        return None
    affine = scans.ijk_to_world(scan)
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    best, place = 0.0, None
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        composite = slicer.app.applicationLogic().GetSliceLogic(node)
        if composite is None or composite.GetSliceCompositeNode().GetBackgroundVolumeID() != scan.GetID():
            continue
        matrix = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
        along = abs(float(matrix[:3, 2] @ normal))
        if along > best:
            best, place = along, np.linalg.solve(affine, [*matrix[:3, 3], 1.0])[2]
    if place is None:
        return None
    index = round(float(place))
    return index if 0 <= index < scan.GetImageData().GetDimensions()[SLICE_AXIS] else None
