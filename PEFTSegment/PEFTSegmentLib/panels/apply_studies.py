"""Step 4's run over many studies: one job, a table of what became of each, and the results that the user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import qt
from slicer.i18n import tr as _

from peftseg.batch_plan import key_of
from peftseg.events import Event

from .. import dialogs, dicom_scans, studies
from ..panel import enable
from ..runner import Task
from ..studies import Study
from .apply_folder import STUDIES
from .apply_results import ATTENTION, fit_height, prepare
from .apply_study_load import StudyLoader

WIDTHS = (156, 50)
MOST_ROWS = 300
FAILED_COLOUR = "#B00020"
SHOWN_LEFT_OUT = 20


class StudyList:
    """The newest run over many studies: its table, its buttons, its events.

    Parameters
    ----------
    panel : ApplyPanel
        Whose form holds the widgets.
    """

    def __init__(self, panel) -> None:
        self._panel, self._context, self.ui = panel, panel.context, panel.ui
        self._readers: dict[str, studies.Reader] = {}
        self._key: tuple = ()
        self._version = 0  # of what the table is made from
        self._studies: list[Study] = []
        self._names: dict[str, str] = {}  # titles of the DICOM database, asked for once
        self.loader = StudyLoader(panel)
        self._context.runner.on(STUDIES, self.hear)
        ui = self.ui
        table = ui.studiesTable
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels([_("Study"), _("Doubt"), _("State")])
        prepare(table, WIDTHS)
        table.itemSelectionChanged.connect(self._look_at_buttons)
        table.cellDoubleClicked.connect(self._double_clicked)
        ui.studyLoadButton.clicked.connect(self.load)
        ui.studyReportButton.clicked.connect(self.open_report)
        ui.studyFolderButton.clicked.connect(self.open_folder)
        ui.studyCloseButton.clicked.connect(self.close_list)

    # what there is

    def tasks(self) -> list[Task]:
        """All runs that are not closed."""
        return self._context.runner.of(STUDIES)

    def task(self) -> Task | None:
        """The run that the table shows: the one that works, else the newest."""
        tasks = self.tasks()
        return next((task for task in tasks if task.active), tasks[-1] if tasks else None)

    def _reader(self, task: Task) -> studies.Reader:
        name = task.folder.name
        if name not in self._readers:
            self._readers[name] = studies.Reader(Path(task.note["out"]))
        return self._readers[name]

    def _learn_names(self, task: Task) -> None:
        """Ask the DICOM database for titles, each once; one that is closed is asked later. It takes its time for many."""
        if dicom_scans.database() is not None:
            for uid in task.note.get("series") or ():
                if uid not in self._names:
                    self._names[uid] = dicom_scans.title_of(uid)

    # what comes

    def begin(self, task: Task) -> None:
        """The user has asked for a run."""
        self._learn_names(task)
        self._context.work_changed()

    def hear(self, task: Task, events: list[Event]) -> None:
        """Events of a run, or its end."""
        self._learn_names(task)
        for event in events:
            self._note(task, event)
        task.progress = task.note.get("part", {})  # of the studies; what is done within one is not of interest
        if self._reader(task).update() or events:
            self._version += 1
        if not task.active:
            self._ended(task)
        self._context.refresh()

    @staticmethod
    def _note(task: Task, event: Event) -> None:
        if event["event"] == "progress" and event["stage"] != "windows":
            task.note["part"] = event
            if event["stage"] == "segment":
                task.note["accepted"] = True  # the engine works in this folder: what is in it is of this adapter
            if event.get("studies"):
                task.note["planned"] = [(row["study"], row["name"]) for row in event["studies"]]

    def _ended(self, task: Task) -> None:
        """Tell of a failure; a run that has done nothing is of no further use."""
        if task.state == "failed" and not task.note.get("earlier"):
            dialogs.show_later(dialogs.problem_of_event(task.ending, _("The studies were not all segmented.")))
        if task.state != "finished" and not self._listed(task):
            self.forget(task)

    def forget(self, task: Task) -> None:
        """Take a run off the list; the results stay in their folder."""
        self._readers.pop(task.folder.name, None)
        self._version += 1
        self._context.runner.forget(task)

    def forget_ended(self) -> None:
        """Another run begins: those that have ended are not shown any more."""
        for task in [task for task in self.tasks() if not task.active]:
            self.forget(task)

    # what is shown

    def _listed(self, task: Task) -> list[Study]:
        names = {key_of(uid): self._names.get(uid, "") for uid in task.note.get("series") or ()}
        planned = task.note.get("planned") or list(names.items())
        lines = self._reader(task).lines if task.note.get("accepted") else {}
        return studies.listed(lines, planned, task.active, names)

    def look(self) -> None:
        """Show the run; nothing is done where it has not changed."""
        ui, task = self.ui, self.task()
        ui.studiesFrame.visible = task is not None
        if task is None:
            self._key, self._studies = (), []
            return
        key = (task.folder.name, task.state, self._version)
        if key != self._key:
            self._key = key
            self._studies = self._listed(task)
            self._fill(self._studies[:MOST_ROWS])
            self._say(task)
        self._look_at_buttons()

    def _say(self, task: Task) -> None:
        total = int(task.note.get("part", {}).get("total") or 0) if task.active else 0
        lines = [
            _("{adapter}: {counts}.").format(adapter=task.note["shown"], counts=studies.counts(self._studies, total))
        ]
        if task.state in ("failed", "cancelled"):
            lines.append(_("It has stopped; Apply with the same folders goes on where it was."))
        left_out = list((task.ending or {}).get("left_out") or ())
        if len(left_out) == 1:
            lines.append(_("1 series was left out (see the tooltip)."))
        elif left_out:
            lines.append(_("{count} series were left out (see the tooltip).").format(count=len(left_out)))
        hidden = len(self._studies) - MOST_ROWS
        if hidden > 0:
            lines.append(_("{count} more are not shown; the report has all.").format(count=hidden))
        self.ui.studiesLabel.text = " ".join(lines)
        more = len(left_out) - SHOWN_LEFT_OUT
        tail = [_("and {count} more").format(count=more)] if more > 0 else []
        self.ui.studiesLabel.toolTip = "\n".join([task.note["out"], *left_out[:SHOWN_LEFT_OUT], *tail])

    def _fill(self, shown: Sequence[Study]) -> None:
        table = self.ui.studiesTable
        selected = {study.key for study in self.selected()}
        table.blockSignals(True)
        table.setUpdatesEnabled(False)
        table.setRowCount(len(shown))
        for number, study in enumerate(shown):
            self._fill_row(number, study, study.key in selected)
        table.setUpdatesEnabled(True)
        table.blockSignals(False)
        fit_height(table)

    def _fill_row(self, number: int, study: Study, selected: bool) -> None:
        texts = (study.name, studies.doubt_text(study), studies.state_text(study))
        colour = {studies.LOOK: ATTENTION, studies.FAILED: FAILED_COLOUR}.get(study.state)
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(
                "\n".join((study.name, text) if column == 0 else (*study.reasons, _tip(column)) if column else ())
            )
            if column == 0:
                item.setData(qt.Qt.UserRole, study.key)
            if column == 1:
                item.setData(qt.Qt.TextAlignmentRole, int(qt.Qt.AlignRight | qt.Qt.AlignVCenter))
            if colour:
                item.setForeground(qt.QBrush(qt.QColor(colour)))
            self.ui.studiesTable.setItem(number, column, item)
            item.setSelected(selected)

    def selected(self) -> list[Study]:
        """The studies of the selected rows, in the table's order."""
        table = self.ui.studiesTable
        rows = sorted(index.row() for index in table.selectionModel().selectedRows())
        keys = [table.item(row, 0).data(qt.Qt.UserRole) for row in rows if table.item(row, 0) is not None]
        by_key = {study.key: study for study in self._studies}
        return [by_key[key] for key in keys if key in by_key]

    def _look_at_buttons(self) -> None:
        ui, task = self.ui, self.task()
        if task is None:
            return
        chosen = self.selected()
        usable = [study for study in chosen if study.has_result]
        none = "" if usable else _("There is no result of it yet") if chosen else _("Select studies in the table first")
        busy = _("Results are being loaded") if self.loader.busy else ""
        enable(
            ui.studyLoadButton,
            busy or none,
            _("Load the selected results with their scans; a double click does so, too"),
        )
        report = (task.ending or {}).get("report")
        enable(ui.studyReportButton, "" if report else _("The report comes when the run has ended"),
               _("One page with a picture of each study, those to look at first"))  # fmt: skip
        enable(
            ui.studyFolderButton, "", _("Show the folder with the results: {folder}").format(folder=task.note["out"])
        )
        running = _("It is running; cancel it first") if task.active else ""
        enable(ui.studyCloseButton, running or busy, _("Take this list away; the results stay in their folder"))

    # what the user does

    def _double_clicked(self, row: int, _column: int) -> None:
        item = self.ui.studiesTable.item(row, 0)
        key = item.data(qt.Qt.UserRole) if item is not None else ""
        self._load([study for study in self._studies if study.key == key])

    def load(self) -> None:
        """Load the results of the selected studies."""
        self._load(self.selected())

    def _load(self, chosen: Sequence[Study]) -> None:
        task = self.task()
        usable = [study for study in chosen if study.has_result]
        if task is not None and usable and not self.loader.busy:
            with self._panel.telling(_("The results could not be loaded.")):
                self.loader.start(task.note, usable)
                self._context.refresh()

    def open_report(self) -> None:
        """Show the report in the web browser."""
        task = self.task()
        if task is not None:
            self._open(task.ending["report"])

    def open_folder(self) -> None:
        """Show the folder with the results."""
        task = self.task()
        if task is not None:
            self._open(task.note["out"])

    @staticmethod
    def _open(path: str) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(path))

    def close_list(self) -> None:
        """Take the list away."""
        self.forget_ended()
        self._context.refresh()

    def close(self) -> None:
        """The module is unloaded; the run goes on, and is found again."""
        self.loader.forget()


def _tip(column: int) -> str:
    if column == 1:
        return _("How doubtful the result is: 0 % as expected, 100 % look at it first")
    return _("A double click loads the result")
