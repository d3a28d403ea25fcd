"""The dialog that shows all of a foundation model: facts, licence, structures to search, files to delete."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from peftseg import licences
from peftseg.models import ModelEntry

from . import model_text


class ModelDetails:
    """Shows one model; `answer` says what the user asked for: "", "accept" or "delete".

    Parameters
    ----------
    waiting : str
        Why no files can be deleted now, or "".
    """

    def __init__(self, entry: ModelEntry, parent, waiting: str = "") -> None:
        self.entry, self._waiting = entry, waiting
        self.answer = ""
        self.dialog = qt.QDialog(parent)
        self.dialog.windowTitle = entry.title
        self.dialog.resize(560, 620)
        layout = qt.QVBoxLayout(self.dialog)
        self.text = qt.QTextBrowser()
        self.text.openExternalLinks = True
        self.text.html = model_text.details(entry)
        layout.addWidget(self.text)
        self._add_structures(layout)
        self._add_buttons(layout)

    def _add_structures(self, layout) -> None:
        count = len(self.entry.structures)
        layout.addWidget(
            qt.QLabel(
                _("{count} structures").format(count=count) if count else _("It segments nothing before it is adapted.")
            )
        )
        self.search = qt.QLineEdit()
        self.search.placeholderText = _("Search a structure")
        self.search.textChanged.connect(self._filter)
        self.list = qt.QListWidget()
        for structure in self.entry.structures:
            item = qt.QListWidgetItem(structure.name)
            colour = qt.QPixmap(12, 12)
            colour.fill(qt.QColor(*structure.colour))
            item.setIcon(qt.QIcon(colour))
            self.list.addItem(item)
        layout.addWidget(self.search)
        layout.addWidget(self.list)
        self.search.visible = self.list.visible = count > 0

    def _filter(self, text: str) -> None:
        wanted = text.strip().lower()
        for row in range(self.list.count):
            item = self.list.item(row)
            item.setHidden(wanted not in item.text().lower())

    def _add_buttons(self, layout) -> None:
        row = qt.QHBoxLayout()
        self.accept_button = qt.QPushButton(_("Accept the licence"))
        self.accept_button.clicked.connect(lambda: self._end("accept"))
        self.delete_button = qt.QPushButton(_("Delete files"))
        reason = model_text.reason_against_removal(self.entry) or self._waiting
        self.delete_button.enabled = not reason
        self.delete_button.toolTip = reason or _("Free the disk space; the model can be got again")
        self.delete_button.clicked.connect(lambda: self._end("delete"))
        self.close_button = qt.QPushButton(_("Close"))
        self.close_button.clicked.connect(lambda: self._end(""))
        for button in (self.accept_button, self.delete_button, self.close_button):
            button.autoDefault = False  # the key Enter in the search would press one
        row.addWidget(self.accept_button)
        row.addWidget(self.delete_button)
        row.addStretch(1)
        row.addWidget(self.close_button)
        layout.addLayout(row)
        self.accept_button.visible = licences.acknowledgement(self.entry) == "needed"  # before, it would be a window

    def _end(self, answer: str) -> None:
        self.answer = answer
        self.dialog.accept()

    def show(self) -> str:
        """Show it until it is closed; what the user asked for."""
        self.dialog.exec_()
        self.dialog.deleteLater()
        return self.answer
