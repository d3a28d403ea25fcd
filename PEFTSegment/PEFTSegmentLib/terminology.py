"""Slicer's own selector for the terminology of a structure."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.models import Structure

from . import structures

PLACE_OF_TYPE, PLACE_OF_MODIFIER = 2, 3  # in an entry's text, parted by "~"


def meaning(code: str) -> str:
    """What a code says, e.g. "Kidney, Left"; "" without one."""
    parts = code.split("~")
    if len(parts) == 1:
        return code.rsplit("^", maxsplit=1)[-1]
    words = [part.split("^")[-1] for part in parts[PLACE_OF_TYPE : PLACE_OF_MODIFIER + 1]]
    return ", ".join(word for word in words if word)


def entry_of(structure: Structure) -> slicer.vtkSlicerTerminologyEntry:
    """The terminology entry of a structure, an empty one for a structure without a code."""
    entry = slicer.vtkSlicerTerminologyEntry()
    text = structures.full_code(structure)
    if text:
        slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(text, entry)
    return entry


def code_of(entry: slicer.vtkSlicerTerminologyEntry) -> str:
    """The text of a terminology entry, "" of one without a type."""
    kind = entry.GetTypeObject()
    if kind is None or not kind.GetCodeValue():
        return ""
    return slicer.vtkSlicerTerminologiesModuleLogic.SerializeTerminologyEntry(entry)


def choose(structure: Structure) -> str | None:
    """Let the user choose in Slicer's selector; the code, "" for none, None where the dialog is closed."""
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.windowTitle = _("Terminology of {name}").format(name=structure.name)
    dialog.setLayout(qt.QVBoxLayout())
    selector = slicer.qSlicerTerminologyNavigatorWidget()
    selector.overrideSectionVisible = False  # name and colour are chosen in the module
    selector.setMRMLScene(slicer.mrmlScene)
    selector.setTerminologyEntry(entry_of(structure))
    dialog.layout().addWidget(selector)
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    none = buttons.addButton(_("No terminology"), qt.QDialogButtonBox.ResetRole)
    dialog.layout().addWidget(buttons)
    cleared = []
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    none.clicked.connect(lambda: (cleared.append(True), dialog.accept()))
    selector.typeDoubleClicked.connect(dialog.accept)
    accepted = dialog.exec_()
    entry = slicer.vtkSlicerTerminologyEntry()
    code = code_of(entry) if selector.terminologyEntry(entry) else ""
    dialog.deleteLater()
    if not accepted:
        return None
    return "" if cleared else code
