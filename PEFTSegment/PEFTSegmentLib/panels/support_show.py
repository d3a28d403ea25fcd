"""What step 2 shows around its table: the chosen row, the buttons with their reasons, what is loaded besides."""

from __future__ import annotations

from collections.abc import Sequence

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.models import Structure

from .. import checks, scans
from ..panel import enable
from ..support import Row
from .support_jobs import PRESEGMENT, RANK
from .support_words import RowView


def show_current(panel, rows: Sequence[Row], views: Sequence[RowView], wanted: Sequence[Structure]) -> None:
    """The chosen row's details, and what can be done with it."""
    ui, key = panel.ui, panel.state.currentRow
    row = next((row for row in rows if row.key == key), None)
    view = next((view for view in views if view.key == key), None)
    ui.supportTable.setVisible(bool(rows))
    ui.detailLabel.text = view.detail if view is not None else ""
    ui.detailLabel.setVisible(bool(ui.detailLabel.text))
    for button in (ui.startButton, ui.presegmentButton, ui.moreButton):
        button.setVisible(bool(rows))
    nothing = "" if row is not None else _("Choose a scan in the table first.")
    lost = _("The scan is no longer loaded.") if row is not None and row.scan is None else ""
    unnamed = "" if wanted else _("Name a structure to learn first.")
    editing = _("It is open below.") if key and panel.editor.key == key else ""
    has_labels = row is not None and row.labels is not None
    ui.startButton.text = _("Edit") if has_labels else _("Start labelling")
    tip = (
        _("Open the Segment Editor below the table") if has_labels else _("Make an empty segmentation and paint in it")
    )
    enable(ui.startButton, nothing or lost or unnamed or editing, tip)
    enable(ui.moreButton, nothing, _("Absent structures, labelled slices, another segmentation, remove from the list"))
    _show_presegment(panel, nothing or lost, row, wanted)
    ui.doneButton.toolTip = _("Put the tools away and open the next scan without labels")


def _show_presegment(panel, reason: str, row: Row | None, wanted: Sequence[Structure]) -> None:
    source = panel.jobs.source(wanted)
    if isinstance(source, str):
        enable(panel.ui.presegmentButton, reason or source)
        return
    if not reason and panel.jobs.busy(PRESEGMENT, row.scan):
        reason = _("It is being pre-segmented.")
    tip = _("{model} outlines {names} in a new segmentation, for you to correct").format(
        model=source.title, names=", ".join(source.names.values())
    )
    enable(panel.ui.presegmentButton, reason or panel.context.engine_ready(), tip)


def show_scene(panel, views: Sequence[RowView], wanted: Sequence[Structure]) -> None:
    """What is loaded: scans to add, scans to rank, volumes that cannot be used."""
    ui = panel.ui
    usable = scans.usable_scans()
    candidates = panel.actions.candidates(usable)
    several = _("Add loaded scans ({count})").format(count=len(candidates))
    ui.addScansButton.text = several if candidates else _("Add loaded scans")
    none = "" if candidates else _("All loaded scans that can be used are in the list; load more first.")
    enable(ui.addScansButton, none, _("Add them with the segmentations that belong to them"))
    one = "" if scans.sequences() else none
    enable(ui.addOneButton, one, _("Add one of the loaded scans, or the frame that a sequence shows"))
    loading = _("A folder is being loaded.") if panel.loader.busy else ""
    enable(ui.addFolderButton, loading, _("Load a folder that holds 'images' and 'labels' with the same file names"))
    ranking = _(
        "Ranks the scans that are not labelled: first those whose outlines the model is unsure of, and that differ most"
        " from the labelled ones"
    )
    enable(ui.nextScanButton, _reason_rank(panel, candidates, views), ranking)
    about = _("Scans to learn from, about five:")
    ready = {view.key for view in views if view.ready}
    if checks.of_one_patient([row for row in panel.context.support.rows() if row.key in ready]):
        about = _("Scans to learn from, about five; all are of one patient so far:")
    load = _("Load scans into Slicer, then add them here; or add a folder of scans and labels.")
    ui.tableLabel.text = "" if not wanted else about if views or candidates else load
    ui.messageLabel.setVisible(bool(ui.messageLabel.text))
    _show_refused(ui, len(usable))


def _show_refused(ui, usable: int) -> None:
    some = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") > usable
    refused = scans.refused_volumes() if some else []
    opened = bool(refused) and ui.refusedButton.checked
    ui.refusedButton.setVisible(bool(refused))
    ui.refusedButton.text = _("Loaded volumes that cannot be used: {count}").format(count=len(refused))
    ui.refusedButton.setArrowType(qt.Qt.DownArrow if opened else qt.Qt.RightArrow)
    ui.refusedLabel.setVisible(opened)
    ui.refusedLabel.text = "\n".join(f"{name} {reason}." for name, reason in refused)


def _reason_rank(panel, candidates: Sequence, views: Sequence[RowView]) -> str:
    if panel.jobs.busy(RANK):
        return _("The scans are being ranked.")
    if not candidates and all(view.ready for view in views):
        return _("There is no loaded scan without labels.")
    model = panel.context.model()
    if model is None:
        return _("No model is chosen; choose one in step 1.")
    if model.weights_path is None:
        return _("The weights of {model} are not on this computer; see step 1.").format(model=model.title)
    return panel.context.engine_ready()
