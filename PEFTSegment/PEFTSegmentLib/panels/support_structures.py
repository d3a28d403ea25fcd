"""The structures to learn: their list with a menu, and the dialogs to add and to change one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from peftseg.models import Structure
from peftseg.structures import LISTS
from peftseg.structures import structures as listed_structures

from .. import pairing, structures, terminology

SHOWN, SWATCH = 5, 12
MOST_PROPOSED = 400


def swatch(colour: Sequence[int]) -> qt.QIcon:
    """A small square of a colour."""
    picture = qt.QPixmap(SWATCH, SWATCH)
    picture.fill(qt.QColor(*colour))
    return qt.QIcon(picture)


def new_item(box, text: str):
    """Append an item to a QListWidget; the list owns it, not Python."""
    box.addItem(text)
    return box.item(box.count - 1)


class StructureList:
    """The list and its buttons.

    Parameters
    ----------
    ui :
        The form's widgets: structureList, structureHint, addStructureButton, changeStructureButton, removeStructureButton.
    add, change, remove : callable
        What the user wants: `add()`, `change(name)`, `remove(name)`.
    """

    def __init__(self, ui, add: Callable, change: Callable, remove: Callable) -> None:
        self._list, self._ui = ui.structureList, ui
        self._change, self._remove = change, remove
        self._shown: list[tuple] | None = None
        menu = qt.QMenu(ui.changeStructureButton)
        menu.addAction(_("Name, colour, terminology...")).triggered.connect(lambda: self._with_current(change))
        menu.addAction(_("Remove from the list")).triggered.connect(lambda: self._with_current(remove))
        self.menu = menu
        ui.changeStructureButton.setMenu(menu)
        ui.addStructureButton.clicked.connect(add)
        self._list.setContextMenuPolicy(qt.Qt.CustomContextMenu)
        self._list.customContextMenuRequested.connect(self._menu_requested)
        self._list.itemDoubleClicked.connect(lambda item: self._with_current(change))
        self._list.itemSelectionChanged.connect(self._enable)

    def show(self, wanted: Sequence[Structure], known: Sequence[Structure], model: str) -> None:
        """Show the structures, and which of them the model knows."""
        names = {s.name for s in known}
        rows = [(s.name, s.colour, s.code, s.name in names if model else None) for s in wanted]
        if rows == self._shown:
            return
        self._shown = rows
        current = self.current()
        self._list.clear()
        for name, colour, code, is_known in rows:
            suffix = "" if is_known is None else _("known to the model") if is_known else _("new")
            item = new_item(self._list, f"{name}  ({suffix})" if suffix else name)
            item.setIcon(swatch(colour))
            item.setData(qt.Qt.UserRole, name)
            item.setToolTip(_tip(name, code, is_known))
            if name == current:
                self._list.setCurrentItem(item)
        height = min(SHOWN, len(rows)) * max(self._list.sizeHintForRow(0), SWATCH) + 6
        self._list.setMinimumHeight(height)
        self._list.setMaximumHeight(height)
        self._list.setVisible(bool(rows))
        self._ui.structureHint.setVisible(not rows)
        self._enable()

    def current(self) -> str:
        """Name of the chosen structure, or of the only one; "" without."""
        items = self._list.selectedItems()
        if items:
            return items[0].data(qt.Qt.UserRole)
        return self._list.item(0).data(qt.Qt.UserRole) if self._list.count == 1 else ""

    def _with_current(self, do: Callable) -> None:
        if self.current():
            do(self.current())

    def _enable(self) -> None:
        self._ui.changeStructureButton.enabled = bool(self.current())
        tip = _("Name, colour, terminology; remove")
        self._ui.changeStructureButton.toolTip = tip if self.current() else _("Choose a structure in the list first")

    def _menu_requested(self, position) -> None:
        item = self._list.itemAt(position)
        if item is not None:
            self._list.setCurrentItem(item)
            self.menu.exec_(self._list.viewport().mapToGlobal(position))


def _tip(name: str, code: str, is_known: bool | None) -> str:
    lines = [name]
    if is_known is not None:
        lines.append(
            _("The model knows it already.") if is_known else _("New to the model: it learns it from your scans.")
        )
    meaning = terminology.meaning(code)
    lines.append(_("Terminology: {meaning}").format(meaning=meaning) if meaning else _("Without terminology"))
    return "\n".join(lines)


class AddDialog:
    """Choose structures by typing: the model's, those of loaded segmentations, the engine's table, or a free name.

    Parameters
    ----------
    form : Path
        StructureDialog.ui.
    known : sequence of Structure
        Of the chosen model.
    used : sequence of Structure
        They are not offered again.
    """

    def __init__(self, form: Path, known: Sequence[Structure], used: Sequence[Structure], model: str) -> None:
        self.dialog = qt.QDialog(slicer.util.mainWindow())
        self.dialog.windowTitle = _("Add structures to learn")
        self.dialog.setLayout(qt.QVBoxLayout())
        inner = slicer.util.loadUI(str(form))
        self.dialog.layout().addWidget(inner)
        self.ui = slicer.util.childWidgetVariables(inner)
        self._rows = _proposals(known, used, model)
        self._used = {s.name.casefold() for s in used}
        self.ui.filterEdit.textChanged.connect(self._fill)
        self.ui.filterEdit.returnPressed.connect(self._accept)
        self.ui.proposalList.setSelectionMode(qt.QListWidget.ExtendedSelection)
        self.ui.proposalList.itemDoubleClicked.connect(lambda item: self._accept())
        self.ui.proposalList.itemSelectionChanged.connect(self._enable)
        self._ok = self.ui.buttonBox.button(qt.QDialogButtonBox.Ok)
        self._ok.text = _("Add")
        self.ui.buttonBox.accepted.connect(self._accept)
        self.ui.buttonBox.rejected.connect(self.dialog.reject)
        self._fill("")

    def exec_(self) -> list[str]:
        """Wait for the user; the chosen names."""
        accepted = self.dialog.exec_()
        names = self._chosen() if accepted else []
        self.dialog.deleteLater()
        return names

    def _fill(self, text: str) -> None:
        wanted = " ".join(text.split())
        words = wanted.casefold().split()
        rows = [row for row in self._rows if all(word in row[0].casefold() for word in words)]
        rows.sort(key=lambda row: not row[0].casefold().startswith(wanted.casefold()))  # stable: the order stays
        exact = any(name.casefold() == wanted.casefold() for name, _note, _icon in rows)
        if wanted and not exact and wanted.casefold() not in self._used:
            rows.append((wanted, _("a name of your own"), swatch(structures.FREE_COLOURS[0])))
        box = self.ui.proposalList
        box.clear()
        for name, note, icon in rows[:MOST_PROPOSED]:
            item = new_item(box, f"{name}  ({note})" if note else name)
            item.setIcon(icon)
            item.setData(qt.Qt.UserRole, name)
        if wanted and box.count:
            box.setCurrentRow(0)
        self._enable()

    def _chosen(self) -> list[str]:
        return [item.data(qt.Qt.UserRole) for item in self.ui.proposalList.selectedItems()]

    def _enable(self) -> None:
        self._ok.enabled = bool(self._chosen())

    def _accept(self) -> None:
        if self._chosen():
            self.dialog.accept()


def _proposals(known: Sequence[Structure], used: Sequence[Structure], model: str) -> list[tuple]:
    """Name, note and swatch of what can be added, without the used ones, each once."""
    colours = structures.FREE_COLOURS
    rows = [(s.name, _("known to the model"), s.colour) for s in known]
    in_scene = [n for n in pairing.segment_names_in_scene() if n and n.lower() != "background"]
    rows += [(name, _("in your segmentations"), colours[n % len(colours)]) for n, name in enumerate(in_scene)]
    rows += [(s.name, _("new") if model else "", s.colour) for name in LISTS for s in listed_structures(name)]
    taken = {s.name.casefold() for s in used}
    found = []
    for row in rows:
        if row[0].casefold() not in taken:
            taken.add(row[0].casefold())
            found.append((row[0], row[1], swatch(row[2])))
    return found


def ask_change(structure: Structure) -> Structure | None:
    """Let the user change name, colour and terminology of a structure; None where the dialog is closed."""
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.windowTitle = _("Structure")
    form = qt.QFormLayout()
    dialog.setLayout(form)
    name = qt.QLineEdit(structure.name)
    name.objectName = "nameEdit"
    form.addRow(_("Name:"), name)
    colour = ctk.ctkColorPickerButton()
    colour.objectName = "colourButton"
    colour.color = qt.QColor(*structure.colour)
    form.addRow(_("Colour:"), colour)
    code = [structure.code]
    coding = qt.QPushButton()
    coding.objectName = "terminologyButton"
    form.addRow(_("Terminology:"), coding)

    def show_code() -> None:
        coding.text = terminology.meaning(code[0]) or _("None; choose...")

    def choose_code() -> None:
        chosen = terminology.choose(Structure(structure.name, structure.value, structure.colour, code[0]))
        if chosen is not None:
            code[0] = chosen
            show_code()

    coding.clicked.connect(choose_code)
    show_code()
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    form.addRow(buttons)
    accepted = dialog.exec_()
    picked = colour.color
    changed = Structure(name.text, structure.value, (picked.red(), picked.green(), picked.blue()), code[0])
    dialog.deleteLater()
    return changed if accepted else None
