"""The window that chooses series of Slicer's DICOM database for step 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt
import slicer
from slicer.i18n import tr as _

from .. import dialogs, dicom_scans
from ..context import Context

UID = int(qt.Qt.UserRole)
KIND = UID + 1
PATIENT, STUDY, SERIES = "patient", "study", "series"
WIDTHS = (330, 70)


class SeriesDialog:
    """A tree of patients, studies and series with ticks; the parts of a patient are looked up when they are needed.

    Parameters
    ----------
    chosen : sequence of str
        Series that were chosen before; those of patients that are not opened stay chosen.
    usual_rules : bool
        Whether the usual rules pick among the series.
    """

    def __init__(self, context: Context, chosen: Sequence[str], usual_rules: bool) -> None:
        self.form = slicer.util.loadUI(str(context.resources / "UI" / "DicomDialog.ui"))
        self.form.setParent(slicer.util.mainWindow(), qt.Qt.Dialog)
        self.ui = ui = slicer.util.childWidgetVariables(self.form)
        self._kept = set(chosen)
        self._asked: set[str] = set()  # patients whose studies are listed
        self._soon = qt.QTimer()  # a tick of a patient changes each line below, and each of them those above
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._count)
        ui.tree.setHeaderLabels([_("Patient, study, series"), _("Kind")])
        for column, width in enumerate(WIDTHS):
            ui.tree.setColumnWidth(column, width)
        ui.rulesBox.checked = usual_rules
        for uid, name in dicom_scans.patients():
            item = _item(None, (name, ""), PATIENT, uid)
            item.setChildIndicatorPolicy(qt.QTreeWidgetItem.ShowIndicator)
            ui.tree.addTopLevelItem(item)
        self._open_chosen()
        ui.tree.itemExpanded.connect(self._open)
        ui.tree.itemChanged.connect(self._count_soon)
        ui.search.textChanged.connect(self._filter)
        ui.okButton.connect("clicked()", self.form.accept)
        ui.cancelButton.connect("clicked()", self.form.reject)
        self._count()

    def _open_chosen(self) -> None:
        """List the patients of series that were chosen before, so that their ticks are seen."""
        found = dicom_scans.require_database()
        owners = {str(found.patientForStudy(found.studyForSeries(uid))) for uid in self._kept}
        for item in self._patients():
            if str(item.data(0, UID)) in owners:
                self._open(item)

    def _patients(self) -> list:
        tree = self.ui.tree
        return [tree.topLevelItem(number) for number in range(tree.topLevelItemCount)]

    def _open(self, item) -> None:
        """List a patient's studies and series."""
        uid = item.data(0, UID)
        if item.data(0, KIND) != PATIENT or uid in self._asked:
            return
        self._asked.add(uid)
        ticked = item.checkState(0) == qt.Qt.Checked
        self.ui.tree.blockSignals(True)  # one count for all of them
        for study, title in dicom_scans.studies(uid):
            own = _item(item, (title, ""), STUDY, study)
            for row in dicom_scans.series(study):
                leaf = _item(own, (row.title, row.modality), SERIES, row.uid)
                leaf.setCheckState(0, qt.Qt.Checked if ticked or row.uid in self._kept else qt.Qt.Unchecked)
        self.ui.tree.blockSignals(False)
        self._count_soon()

    def _count_soon(self) -> None:
        self._soon.start()

    def _count(self) -> None:
        count = len(self._ticked(lambda item: None))
        more = any(i.checkState(0) == qt.Qt.Checked and i.data(0, UID) not in self._asked for i in self._patients())
        text = _("{count} series, and all of the ticked patients").format(count=count) if more else ""
        self.ui.countLabel.text = text or (_("1 series") if count == 1 else _("{count} series").format(count=count))
        self.ui.okButton.enabled = bool(count or more)

    def _ticked(self, before: Callable) -> list[str]:
        """The ticked series; `before` is called with each ticked patient."""
        found = []
        for patient in self._patients():
            if patient.checkState(0) == qt.Qt.Checked:
                before(patient)
            studies = [patient.child(number) for number in range(patient.childCount())]
            leaves = [study.child(number) for study in studies for number in range(study.childCount())]
            found += [leaf.data(0, UID) for leaf in leaves if leaf.checkState(0) == qt.Qt.Checked]
        return list(dict.fromkeys(found))

    def _filter(self, text: str) -> None:
        words = text.casefold().split()
        for item in self._patients():
            item.setHidden(not all(word in item.text(0).casefold() for word in words))

    def exec_(self) -> tuple[tuple[str, ...], bool] | None:
        """Ask; the series and whether the usual rules pick among them, None where the window was closed."""
        accepted = self.form.exec_()
        result = (tuple(self._ticked(self._open)), bool(self.ui.rulesBox.checked)) if accepted else None
        self._soon.stop()
        self.form.deleteLater()
        return result


def _item(parent, texts: tuple[str, str], kind: str, uid: str):
    """A line with a tick, which follows those below it."""
    item = qt.QTreeWidgetItem()
    for column, text in enumerate(texts):
        item.setText(column, text)
    item.setToolTip(0, texts[0])
    item.setData(0, UID, uid)
    item.setData(0, KIND, kind)
    if kind != SERIES:
        item.setFlags(item.flags() | qt.Qt.ItemIsAutoTristate)
    item.setCheckState(0, qt.Qt.Unchecked)
    if parent is not None:
        parent.addChild(item)
    return item


def ask_series(context: Context, chosen: Sequence[str], usual_rules: bool) -> tuple[tuple[str, ...], bool] | None:
    """Ask for series; see `SeriesDialog`. A database that cannot be read is told in a dialog."""
    try:
        dialog = SeriesDialog(context, chosen, usual_rules)
    except Exception as error:
        dialogs.show(dialogs.problem_of(error, _("The DICOM database could not be read.")))
        return None
    return dialog.exec_()
