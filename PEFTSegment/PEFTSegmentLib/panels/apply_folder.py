"""Step 4's choice of many scans on disk: a folder, or studies of Slicer's DICOM database; and the job about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.config import ApplyJob
from peftseg.dicom_rules import DEFAULT, FORMAT
from peftseg.errors import BadInput

from .. import dicom_scans
from ..context import Context
from ..panel import enable
from ..runner import Task
from .apply_adapters import Row
from .apply_adapters import title as adapter_title
from .apply_dicom import ask_series

STUDIES = "apply to studies"
FOLDER, DICOM = "folder", "DICOM"
LENGTH = 36  # characters of a folder on a button
EVERYTHING = {
    "format": FORMAT,
    "pick": "all",
    "regularise": False,
    "rules": [{"keep": "chosen by the user"}],
}


class ManyScans:
    """What to apply to beside the scans of the scene, and where the results go. Kept over scenes: it is about the disk.

    Parameters
    ----------
    context : Context
    ui :
        The form's widgets.
    """

    def __init__(self, context: Context, ui) -> None:
        self._context, self.ui = context, ui
        self.kind = ""  # "": scans of the scene
        self.folder, self.out = "", ""
        self.series: tuple[str, ...] = ()
        self.usual_rules = True
        ui.folderButton.clicked.connect(self.choose_folder)
        ui.dicomButton.clicked.connect(self.choose_series)
        ui.outButton.clicked.connect(self.choose_out)

    # what is shown

    def look(self) -> None:
        """Show the choice."""
        ui = self.ui
        enable(ui.dicomRadio, dicom_scans.reason_against() if self.kind != DICOM else "",
               _("Studies of Slicer's DICOM database; their files are read where they are"))  # fmt: skip
        ui.folderButton.enabled = self.kind == FOLDER
        ui.dicomButton.enabled = self.kind == DICOM
        _name(ui.folderButton, self.folder, _("Choose..."), _("The folder with the scans"))
        chosen = _("1 series") if len(self.series) == 1 else _("{count} series").format(count=len(self.series))
        ui.dicomButton.text = chosen if self.series else _("Choose...")
        ui.dicomButton.toolTip = _("Choose patients, studies or series")
        ui.outFrame.visible = bool(self.kind)
        _name(ui.outButton, self.out, _("Choose a folder..."), _("The folder for the results, one file a study"))
        ui.manyHint.text = self._hint()

    def _hint(self) -> str:
        if self.kind == DICOM:
            return _("The results are files; load those that you want to see.")
        return _(
            "Takes scans and DICOM series in it and its sub-folders. The results are files; load those to look at."
        )

    def reason_against(self) -> str:
        """Why it cannot start, in words."""
        if self.kind == FOLDER and not self.folder:
            return _("Choose the folder with the scans first")
        if self.kind == DICOM:
            reason = dicom_scans.reason_against()
            if reason or not self.series:
                return reason or _("Choose DICOM studies first")
        if not self.out:
            return _("Choose a folder for the results first")
        return ""

    # what the user chooses

    def choose_folder(self) -> None:
        """Ask for the folder with the scans."""
        start = self.folder or str(Path.home())
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder with scans"), start)
        if path:
            self.folder = path
            self._context.refresh()

    def choose_out(self) -> None:
        """Ask for the folder for the results."""
        start = self.out or self.folder or str(Path.home())
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder for the results"), start)
        if path:
            self.out = path
            self._context.refresh()

    def choose_series(self) -> None:
        """Ask for patients, studies or series of the DICOM database."""
        chosen = ask_series(self._context, self.series, self.usual_rules)
        if chosen is not None:
            self.series, self.usual_rules = chosen
            self._context.refresh()

    # the job

    def submit(self, row: Row) -> Task:
        """Ask for the job; PeftsegError says what is missing."""
        reason = self._context.engine_ready() or self.reason_against()
        if reason:
            raise BadInput(reason + ".", _("Then press Apply again."))
        shown, out, usual = adapter_title(row), self.out, self.usual_rules or self.kind == FOLDER
        note: dict[str, Any] = {
            "purpose": STUDIES,
            "title": _("Applying {adapter} to many scans").format(adapter=shown),
            "name": row["name"],
            "shown": shown,
            "out": out,
            "inputs": [self.folder] if self.kind == FOLDER else [],
            "series": list(self.series) if self.kind == DICOM else [],
        }
        files = (self.folder,) if self.kind == FOLDER else dicom_scans.files_of(self.series)

        def build(folder: Path, found: list) -> ApplyJob:
            rules = DEFAULT
            if not usual:
                rules = str(folder / "series_rules.json")
                Path(rules).write_text(json.dumps(EVERYTHING), encoding="utf-8")
            return ApplyJob(
                adapter=row["ref"],
                model=None,
                inputs=found[0],
                out=out,
                format="nrrd",
                replace_nonfinite=0.0,
                batch=True,
                quality="fast",
                series_rules=rules,
            )

        return self._context.runner.submit(note, [(_there, files)], build)


def _there(_scratch: Path, files: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are still on the disk; runs in a thread, because a network drive takes its time."""
    found = tuple(file for file in files if Path(file).exists())
    if not found:
        raise BadInput(
            _("None of the {count} files or folders is there any more.").format(count=len(files)),
            _("Is the drive connected?"),
        )
    return found


def _name(button, path: str, empty: str, tip: str) -> None:
    """Show a folder on its button: the end of it, the whole in the tool tip."""
    text = path if len(path) <= LENGTH else "…" + path[-LENGTH + 1 :]
    button.text = text.replace("&", "&&") if path else empty
    button.toolTip = f"{path}\n{tip}" if path else tip
