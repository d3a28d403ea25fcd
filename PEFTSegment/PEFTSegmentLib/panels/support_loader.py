"""Loads a folder of scans and labels: files are examined in a thread, then one pair is loaded at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.errors import PeftsegError
from peftseg.models import Structure

from .. import dialogs, structures, support_folder
from ..context import Context
from .support_rows import unfold_next

INTERVAL_MS = 30
NAME_LENGTH = 28  # characters of a structure's name to be seen at once
LEAVE_OUT = ""


class FolderLoader:
    """Loads one folder at a time, with progress, and can be stopped.

    Parameters
    ----------
    context : Context
    ui :
        The form's loadingFrame, loadingBar, loadingCancelButton.
    say : callable
        Shows a sentence in the panel.
    """

    def __init__(self, context: Context, ui, say: Callable[[str], None]) -> None:
        self.context, self._ui, self._say = context, ui, say
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.timeout.connect(self._step)
        ui.loadingCancelButton.clicked.connect(self.stop)
        ui.loadingFrame.setVisible(False)
        self._end()

    @property
    def busy(self) -> bool:
        """Whether a folder is being loaded."""
        return bool(self._items)

    def start(self, folder: str) -> None:
        """Begin; PeftsegError where the folder is no support folder."""
        wanted = structures.read(self.context.state)
        self._items = list(support_folder.read_pairs(Path(folder), wanted))
        self._folder = Path(folder).name
        self._reading = support_folder.start_reading(self._items)
        self._ui.loadingBar.maximum = 2 * len(self._items)
        self._ui.loadingBar.value = 0
        self._ui.loadingFrame.setVisible(True)
        self._timer.start()
        self.context.refresh()

    def stop(self) -> None:
        """Load no more; what is loaded stays."""
        if self._items and self._reading is not None:
            self._reading.stop()
        if self._items:
            self._finish(stopped=True)

    def _end(self) -> None:
        self._timer.stop()
        self._items: list = []
        self._facts: list = []
        self._named: dict[int, str] = {}
        self._reading = None
        self._next, self._folder = 0, ""
        self._problems: list[str] = []

    def _step(self) -> None:
        if self._reading is not None:
            self._ui.loadingBar.value = len(self._reading.results)
            if self._reading.done:
                self._timer.stop()
                self._examined()
            return
        self._load_next()

    def _examined(self) -> None:
        """All label files were looked at: ask for the names of values that have none."""
        error, self._facts = self._reading.error, list(self._reading.results)
        self._reading = None
        if error is not None:
            dialogs.show_later(dialogs.problem_of(error, _("The folder was not loaded.")))
            self._finish(stopped=True)
            return
        values = support_folder.unnamed_values(self._facts)
        wanted = structures.read(self.context.state)
        known = self.context.model().structures if self.context.model() is not None else ()
        if values:
            named = ask_names(values, wanted, known, self._folder)
            if named is None:
                self._finish(stopped=True)
                return
            self._named = named
        try:
            structures.write(self.context.state, self._with_new_ones(wanted, known))
        except PeftsegError as error:
            dialogs.show_later(dialogs.problem_of(error, _("The folder was not loaded.")))
            self._finish(stopped=True)
            return
        self._timer.start()

    def _with_new_ones(self, wanted: tuple[Structure, ...], known: Sequence[Structure]) -> tuple[Structure, ...]:
        """The structures to learn, and those of the folder; PeftsegError where a name cannot be one.

        A file's own name is left out where another file has it in another spelling: its segment is found by that, too.
        """
        typed = set(self._named.values())
        for name in support_folder.names_to_learn(self._facts, self._named, wanted):
            there = structures.known_as(name, wanted)
            if there is not None and name not in typed and not self._in_one_file(name, there.name):
                continue
            wanted = (*wanted, structures.proposed(name, known, wanted))
        return wanted

    def _in_one_file(self, name: str, other: str) -> bool:
        return any(name in facts.names and other in facts.names for facts in self._facts)

    def _load_next(self) -> None:
        if self._next >= len(self._items):
            self._finish(stopped=False)
            return
        item, facts = self._items[self._next], self._facts[self._next]
        self._next += 1
        try:
            support_folder.load_pair(item, facts, self._named, self.context.state)
        except PeftsegError as error:
            self._problems.append(f"{Path(item.image).name}: {error.message}")
        self._ui.loadingBar.value = len(self._items) + self._next

    def _finish(self, stopped: bool) -> None:
        loaded = max(0, self._next - len(self._problems))
        rows = self.context.support.rows()
        if loaded and rows and not self.context.state.currentRow:
            self.context.state.currentRow = rows[0].key
        text = _("Scans loaded from {folder}: {count}.").format(count=loaded, folder=self._folder)
        self._say(text if not stopped else _("Loading was stopped. {text}").format(text=text))
        if not stopped:
            unfold_next(self.context)
        if self._problems:
            why = "\n".join(self._problems)
            what = _("Some scans of {folder} were not loaded.").format(folder=self._folder)
            dialogs.show_later(dialogs.Problem(what, why, _("The others can be used.")))
        self._ui.loadingFrame.setVisible(False)
        self._end()
        self.context.refresh()


def ask_names(
    values: Sequence[int], wanted: Sequence[Structure], known: Sequence[Structure], folder: str
) -> dict[int, str] | None:
    """Ask which label value is which structure; "" for a value to leave out, None where the dialog is closed."""
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.windowTitle = _("Labels of {folder}").format(folder=folder)
    dialog.setLayout(qt.QVBoxLayout())
    text = _("The label files hold numbers without names. Say which number is which structure, or leave it empty.")
    label = qt.QLabel(text)
    label.wordWrap = True
    dialog.layout().addWidget(label)
    area = qt.QScrollArea()
    area.widgetResizable = True
    inner = qt.QWidget()
    form = qt.QFormLayout()
    inner.setLayout(form)
    names = list(dict.fromkeys([s.name for s in wanted] + [s.name for s in known]))
    boxes = {}
    for value in values:
        box = qt.QComboBox()
        box.objectName = f"value{value}"
        box.editable = True
        box.minimumContentsLength = NAME_LENGTH
        box.addItem(LEAVE_OUT)
        box.addItems(names)
        same = next((n for n, s in enumerate(wanted, start=1) if s.value == value), 0)
        box.setCurrentIndex(same)
        form.addRow(_("Value {value}:").format(value=value), box)
        boxes[value] = box
    area.setWidget(inner)
    dialog.layout().addWidget(area)
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    dialog.layout().addWidget(buttons)
    accepted = dialog.exec_()
    named = {value: " ".join(box.currentText.split()) for value, box in boxes.items()}
    dialog.deleteLater()
    return named if accepted else None
