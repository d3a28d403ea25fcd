"""The adapter library in a window: find, rename, export, import, remove, show the record, shared folders."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from peftseg import library
from peftseg.adapter_import import import_checked, licence_to_accept
from peftseg.errors import BadInput, PeftsegError
from peftseg.library_rows import SUFFIX
from peftseg.models import ModelEntry
from peftseg.paths import adapters_dir

from . import dialogs
from .context import Context
from .library_record import as_text, patient_data
from .panel import enable
from .panels.apply_adapters import AdapterList, Row, added_on, source
from .panels.model_text import licence

REF = int(qt.Qt.UserRole)
COLUMNS = 7


class LibraryDialog:
    """The window; it works on files only and may stay open beside everything else.

    Parameters
    ----------
    adapters : AdapterList
        Shared with step 4.
    use : callable
        Called with the reference of the adapter that the user chose to apply.
    """

    def __init__(self, context: Context, adapters: AdapterList, use: Callable[[str], None]) -> None:
        self.context, self.adapters, self._use = context, adapters, use
        self.form = slicer.util.loadUI(str(context.resources / "UI" / "LibraryDialog.ui"))
        self.form.setParent(slicer.util.mainWindow(), qt.Qt.Dialog)
        self.ui = slicer.util.childWidgetVariables(self.form)
        ui = self.ui
        ui.table.setHeaderLabels(
            [_("Name"), _("Version"), _("Structures"), _("Model"), _("Scans"), _("Added"), _("Where")]
        )
        for column, width in enumerate((220, 60, 190, 170, 50, 90, 90)):
            ui.table.setColumnWidth(column, width)
        ui.table.itemSelectionChanged.connect(self._selected)
        ui.search.textChanged.connect(self._filter)
        ui.useButton.clicked.connect(self.use)
        ui.renameButton.clicked.connect(self.rename)
        ui.exportButton.clicked.connect(self.export)
        ui.importButton.clicked.connect(self.import_file)
        ui.removeButton.clicked.connect(self.remove)
        ui.addFolderButton.clicked.connect(self.add_folder)
        ui.removeFolderButton.clicked.connect(self.remove_folder)
        ui.folders.itemSelectionChanged.connect(self._enable)
        ui.closeButton.connect("clicked()", self.form.hide)  # a slot of Qt would get the checked state, too

    def show(self) -> None:
        """Read the folders again and show the window."""
        self.reload()
        self.form.show()
        self.form.raise_()

    def close(self) -> None:
        """Take the window away for good."""
        self.form.hide()
        self.form.deleteLater()

    # what is shown

    def reload(self, ref: str = "") -> None:
        """Show the library as it is now, with this adapter selected (else the one that was)."""
        wanted = ref or self._ref()
        self.adapters.look_again()
        ui = self.ui
        ui.table.clear()
        groups: dict[str, object] = {}
        for row in self.adapters.rows():
            item = self._item(row)
            if row["name"] in groups:
                groups[row["name"]].addChild(item)
            else:
                groups[row["name"]] = item
                ui.table.addTopLevelItem(item)
            if row["ref"] == wanted:
                ui.table.setCurrentItem(item)
        ui.folders.clear()
        for folder in library.shared_folders():
            ui.folders.addItem(str(folder))
        problems = library.shared_problems()
        ui.problemLabel.text = "\n".join(problems)
        ui.problemLabel.visible = bool(problems)
        self._filter()
        self._selected()
        self.context.refresh()

    def _item(self, row: Row):
        shots = "" if row["shots"] is None else str(row["shots"])
        version = "" if row["version"] is None else str(row["version"])
        texts = [row["name"], version, ", ".join(row["structures"] or ()), self.adapters.base_title(row)]
        texts += [shots, added_on(row), source(row)]
        item = qt.QTreeWidgetItem()
        reason = self.adapters.reason_against(row)
        for column, text in enumerate(texts):
            item.setText(column, text)
            item.setToolTip(column, reason or text)
            if reason:
                item.setForeground(column, qt.QBrush(qt.QColor("gray")))
        if row["problem"]:
            item.setText(2, _("damaged"))
        item.setData(0, REF, row["ref"])
        return item

    def _items(self) -> list[tuple]:
        """All pairs of a group's first item and one of the group's items."""
        table = self.ui.table
        tops = [table.topLevelItem(number) for number in range(table.topLevelItemCount)]
        return [(top, item) for top in tops for item in (top, *(top.child(n) for n in range(top.childCount())))]

    def _filter(self, *_text) -> None:
        """Show the adapters that have all words of the search field, and the newest version of their names."""
        words = self.ui.search.text.casefold().split()
        pairs = self._items()
        fitting = 0
        groups: dict[str, bool] = {}
        for top, item in pairs:
            text = " ".join(item.text(column) for column in range(COLUMNS)).casefold()
            fits = all(word in text for word in words)
            fitting += fits
            groups[top.text(0)] = groups.get(top.text(0), False) or fits
            if item is not top:
                item.setHidden(not fits)
        for top, item in pairs:
            if item is top:
                top.setHidden(not groups[top.text(0)])
        self.ui.countLabel.text = _("{shown} of {count} adapters").format(shown=fitting, count=len(pairs))

    def _ref(self) -> str:
        items = self.ui.table.selectedItems()
        return items[0].data(0, REF) if items else ""

    def _row(self) -> Row | None:
        return self.adapters.row(self._ref())

    def _selected(self) -> None:
        row = self._row()
        self.ui.record.setPlainText(as_text(row, self.adapters) if row is not None else "")
        self._enable()

    def _enable(self) -> None:
        row, ui = self._row(), self.ui
        none = "" if row is not None else _("Select an adapter first")
        shared = ""
        if row is not None and not row["writable"]:
            shared = _("It lies in a shared folder, which is only read; import it into your own library first")
        damaged = _("It is damaged") if row is not None and row["problem"] else ""
        reason = self.adapters.reason_against(row) if row is not None else ""
        enable(ui.useButton, none or reason, _("Choose this adapter in step 4"))
        enable(
            ui.renameButton,
            none or damaged or shared,
            _("Give it another name; results that name the old hash find it"),
        )
        enable(ui.exportButton, none or damaged, _("Copy it to a file, to give it to somebody"))
        enable(ui.removeButton, none or shared, _("Delete its file"))
        folder = "" if ui.folders.selectedItems() else _("Select a folder in the list first")
        enable(ui.removeFolderButton, folder, _("List its adapters no longer; the folder itself is not touched"))

    # what the user does

    def use(self) -> None:
        """Choose the selected adapter in step 4."""
        row = self._row()
        if row is not None:
            self._use(row["ref"])
            self.form.hide()

    def rename(self) -> None:
        """Give the selected adapter another name."""
        row = self._row()
        name = dialogs.ask_text(_("Rename the adapter"), _("New name:"), row["name"])
        if not name or name == row["name"]:
            return
        with self._telling(_("The adapter was not renamed.")):
            path = library.rename_adapter(row["ref"], name)
            self._changed(row["ref"], library.show_adapter(path)["ref"])

    def _changed(self, ref: str, new_ref: str) -> None:
        """Show the library again; where step 4 has the adapter chosen, it follows."""
        if self.context.state.adapter == ref:
            self._use(new_ref)
        self.reload(new_ref)

    def export(self) -> None:
        """Copy the selected adapter to a file, after a word on patient data."""
        row = self._row()
        question = _("Export the adapter {name}?").format(name=row["name"])
        if dialogs.ask(question, (_("Export"), _("Cancel")), patient_data()) != 0:
            return
        proposed = Path.home() / Path(row["path"]).name
        path = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), _("Export adapter"), str(proposed), _("Adapters (*.safetensors)")
        )
        if path:
            with self._telling(_("The adapter was not exported.")), slicer.util.WaitCursor():
                export_over(row["ref"], Path(path))

    def import_file(self) -> None:
        """Take a file that somebody shared into the own library; the engine checks its bytes."""
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Import adapter"), str(Path.home()), _("Adapters (*.safetensors)")
        )
        if path:
            with self._telling(_("The adapter was not imported.")):
                entry = licence_to_accept(path)
                if entry is not None and not self._accepts(entry):
                    return
                with slicer.util.WaitCursor():
                    imported = import_checked(path, accept_licence=entry is not None, renumber=True)
                self.reload(imported.ref)
                if imported.notes:
                    text = _("The adapter is in your library as {name}.").format(name=imported.ref)
                    dialogs.ask(text, (_("OK"),), "\n".join(imported.notes))

    def _accepts(self, entry: ModelEntry) -> bool:
        """Whether the user accepts the licence of the adapter's model."""
        question = _("The adapter belongs to {model}, whose licence has to be accepted first.").format(
            model=entry.title
        )
        return dialogs.ask(question, (_("I accept"), _("Cancel")), licence(entry)) == 0

    def remove(self) -> None:
        """Delete the selected adapter, after a question: it cannot be undone."""
        row = self._row()
        question = _("Remove the adapter {name} from your library?").format(name=row["ref"])
        warning = _("Its file is deleted. This cannot be undone; export it first if you may need it again.")
        if dialogs.ask(question, (_("Remove"), _("Cancel")), warning, careful=True) != 0:
            return
        with self._telling(_("The adapter was not removed.")):
            library.remove_adapter(row["ref"])
            self._changed(row["ref"], "")

    def add_folder(self) -> None:
        """Show a shared folder's adapters beside the own ones."""
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Shared folder with adapters"))
        if path:
            with self._telling(_("The shared folder was not added.")):
                library.add_shared_folder(path)
                self.reload()

    def remove_folder(self) -> None:
        """Take a shared folder off the list."""
        with self._telling(_("The shared folder was not taken off the list.")):
            library.remove_shared_folder(self.ui.folders.selectedItems()[0].text())
            self.reload()

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except (PeftsegError, OSError) as error:
            dialogs.show(dialogs.problem_of(error, what))


def export_over(ref: str, target: Path) -> None:
    """Export to a file that may exist: the file dialog has asked; it is replaced at the end, in one step."""
    if target.parent.absolute() == adapters_dir():
        raise BadInput(_("{folder} is the library itself.").format(folder=target.parent), _("Choose another folder."))
    if target.suffix != SUFFIX:
        library.export_adapter(ref, target.with_name(target.name + SUFFIX))  # not the name that the dialog asked about
        return
    temporary = target.with_name(f".{uuid.uuid4().hex}{SUFFIX}")
    try:
        library.export_adapter(ref, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
