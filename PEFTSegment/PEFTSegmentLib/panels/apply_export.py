"""Step 4's buttons "Export DICOM SEG..." and "Export RTSTRUCT...": a result as a DICOM object, written by the engine.

It lies in the study of its scan and refers to the scan's series.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from peftseg.config import ExportDicomJob
from peftseg.errors import BadInput
from peftseg.events import Event
from peftseg.models import Structure

from .. import dicom_scans, exchange, results, scans, structures, work
from ..endings import settle
from ..panel import enable
from ..runner import Task
from .apply_study_load import LOADED, SourceFiles

EXPORT = "export DICOM"
SUFFIX = ".dcm"
OWN = (  # facts of a result that do not say what made it
    results.STATUS,
    results.CONTENT,
    results.EDITED,
    results.TOKEN,
    results.REVIEWED_BY,
    results.REVIEWED_AT,
    results.VOLUMES,
    results.CHECKS,
    results.DOUBT,
    results.TITLE,
    LOADED,
)


@dataclass(frozen=True)
class Kind:
    """What can be written.

    Attributes
    ----------
    format : str
        As `ExportDicomJob.format`.
    name : str
        As DICOM calls it.
    file : str
        Name that is proposed.
    """

    format: str
    name: str
    file: str


SEGMENTATION = Kind("dicom-seg", "DICOM SEG", "segmentation.dcm")
CONTOURS = Kind("rtstruct", "RTSTRUCT", "contours.dcm")


class Exporting:
    """The buttons, and the line that says how it went.

    Parameters
    ----------
    panel : ApplyPanel
        Whose form holds the widgets.
    """

    def __init__(self, panel) -> None:
        self._panel, self._context, self.ui = panel, panel.context, panel.ui
        self._message = ""
        self._known: dict[tuple, str] = {}  # what the database said, by what it was asked about
        self._context.runner.on(EXPORT, self.hear)
        self.ui.exportButton.clicked.connect(self.export)
        self.ui.exportContoursButton.clicked.connect(self.export_contours)

    def running(self) -> bool:
        """Whether an export goes on."""
        return any(task.active for task in self._context.runner.of(EXPORT))

    def look(self, node) -> None:
        """Show whether the current result can be exported, and how the last export went."""
        reason = _("Select a result in the table first") if node is None else self._reason(node)
        busy = _("It is being written") if self.running() else ""
        voxels = _("Write it as a DICOM SEG file that refers to the scan's series")
        enable(self.ui.exportButton, busy or reason, voxels)
        outlines = _(
            "Write its outlines as a DICOM RT structure set that refers to the scan's series, for planning of "
            "radiotherapy; it is marked as not approved"
        )
        enable(self.ui.exportContoursButton, busy or reason, outlines)
        self.ui.exportLabel.visible = bool(self._message)
        self.ui.exportLabel.text = self._message

    def _reason(self, node) -> str:
        scan = results.scan_of(node)
        if scan is None:
            return _("Its scan is no longer loaded")
        if scan.GetAttribute(scans.TOKEN) in self._panel.many_studies.loader.sources:
            return self._context.engine_ready()
        key = (scan.GetID(), scan.GetAttribute(dicom_scans.INSTANCES), dicom_scans.reason_against())
        if key not in self._known:
            self._known[key] = dicom_scans.reason_against_files(scan)
        return self._known[key] or self._context.engine_ready()

    # exporting

    def export(self) -> None:
        """Ask for a file, and have the engine write the voxels."""
        self._export(SEGMENTATION)

    def export_contours(self) -> None:
        """Ask for a file, and have the engine write the outlines."""
        self._export(CONTOURS)

    def _export(self, kind: Kind) -> None:
        node = self._panel.table.current()
        if node is None:
            return
        with self._panel.telling(_("The result could not be exported.")):
            scan = scans.require_usable(results.scan_of(node))
            source = self._panel.many_studies.loader.sources.get(scan.GetAttribute(scans.TOKEN) or "")
            source = source or SourceFiles(dicom_scans.source_files(scan))
            path = qt.QFileDialog.getSaveFileName(
                slicer.util.mainWindow(),
                _("Export {kind}").format(kind=kind.name),
                str(Path.home() / kind.file),
                _("DICOM (*.dcm)"),
            )
            if path:
                results.notice_edit(node)  # a change of this moment
                self._submit(kind, node, scan, source, path)

    def _submit(self, kind: Kind, node, scan, source: SourceFiles, path: str) -> None:
        out = path if path.lower().endswith(SUFFIX) else path + SUFFIX
        image, parts, wanted = segments_of(node, scan)
        facts = provenance_of(node)
        edited = bool(results.get(node, results.EDITED))
        note = {"purpose": EXPORT, "title": _("Exporting {kind}").format(kind=kind.name), "out": out}

        def build(_folder: Path, written: list) -> ExportDicomJob:
            return ExportDicomJob(
                input=str(written[0]),
                source_files=source.files,
                source_frames=source.frames,
                structures=wanted,
                provenance=facts,
                out=out,
                format=kind.format,
                edited=edited,
                overwrite=out == path,  # the file dialog has asked about the path that it gave, and about no other
            )

        self._message = ""
        self._context.runner.submit(note, [(work.write_labels, "result", parts, wanted, image)], build)
        self._context.work_changed()

    def hear(self, task: Task, events: list[Event]) -> None:
        """An export has got further, or ended."""
        if task.active:
            self._context.refresh()
            return
        settle(self._context, task, self._written, _("The result was not exported."))

    def _written(self, task: Task) -> None:
        self._message = _("Written: {path}").format(path=task.ending["output"])
        self._context.refresh()

    def look_again(self) -> None:
        """The module is shown: the database may have changed meanwhile."""
        self._known.clear()

    def forget(self) -> None:
        """The scene closes: what was asked about its scans is not known any more."""
        self._known.clear()
        self._message = ""


def segments_of(node, scan) -> tuple[exchange.Image, list[exchange.Part], tuple[Structure, ...]]:
    """A result's voxels on the grid of its scan as that was scanned: transforms of the scene do not count."""
    core = node.GetSegmentation()
    ids = list(core.GetSegmentIDs())
    if not ids:
        raise BadInput(_("{name} has no segments.").format(name=node.GetName()), _("Choose another result."))
    wanted = tuple(structures.of_segment(core.GetSegment(i), number) for number, i in enumerate(ids, start=1))
    parts = [exchange.part_of(node, i, scan) for i in ids]
    matrix = vtk.vtkMatrix4x4()
    scan.GetIJKToRASMatrix(matrix)
    image = exchange.Image(slicer.util.arrayFromVolume(scan), slicer.util.arrayFromVTKMatrix(matrix))
    return image, parts, wanted


def provenance_of(node) -> dict[str, str]:
    """What a result carries of what made it: adapter, base, hashes, software, time; and whether it was reviewed."""
    names = [
        name.removeprefix(exchange.ATTRIBUTE)
        for name in node.GetAttributeNames()
        if name.startswith(exchange.ATTRIBUTE)
    ]
    facts = {name: results.get(node, name) for name in sorted(names) if name not in OWN}
    facts["status"] = results.get(node, results.STATUS)
    return {key: value for key, value in facts.items() if value}
