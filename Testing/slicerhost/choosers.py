"""Imitations of the widgets that choose a colour and a terminology entry."""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from . import dialogs
from .mrml_widgets import _SceneWidget
from .pythonqt import unwrap


class ctkColorPickerButton(QtWidgets.QPushButton):
    """A button that shows a colour; a click asks for another one (the next answer of the test: a QColor)."""

    colorChanged = QtCore.Signal(QtGui.QColor)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._color = QtGui.QColor("black")
        self.clicked.connect(self.changeColor)

    def _set(self, color) -> None:
        if color != self._color:
            self._color = QtGui.QColor(color)
            self.colorChanged.emit(self._color)

    color = QtCore.Property(QtGui.QColor, lambda self: self._color, _set)

    def setColor(self, color) -> None:
        self._set(color)

    def changeColor(self) -> None:
        self._set(unwrap(dialogs.answer(dialogs.Shown("ctkColorPickerButton", "", self._color.name()))))

    def paintEvent(self, event) -> None:
        super().paintEvent(event)
        QtGui.QPainter(self).fillRect(6, 6, 14, self.height() - 12, self._color)


class qSlicerTerminologyNavigatorWidget(_SceneWidget):
    """Slicer's terminology selector: it keeps an entry; a test selects another with `select`, which Slicer has not."""

    selectionValidityChanged = QtCore.Signal(bool)
    typeDoubleClicked = QtCore.Signal()
    colorDoubleClicked = QtCore.Signal()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._options = {"override": True, "region": True}
        self._text = ""
        self._label = QtWidgets.QLabel(self)
        QtWidgets.QVBoxLayout(self).addWidget(self._label)
        self.setMinimumSize(300, 200)

    def _option(key: str):
        return QtCore.Property(
            bool, lambda self: self._options[key], lambda self, value: self._options.__setitem__(key, value)
        )

    overrideSectionVisible = _option("override")
    regionSectionVisible = _option("region")

    def setOverrideSectionVisible(self, visible: bool) -> None:
        self._options["override"] = visible

    def setRegionSectionVisible(self, visible: bool) -> None:
        self._options["region"] = visible

    def setTerminologyEntry(self, entry) -> bool:
        return self.select(slicer.vtkSlicerTerminologiesModuleLogic.SerializeTerminologyEntry(entry))

    def select(self, text: str) -> bool:
        """Choose an entry as a person would."""
        entry = slicer.vtkSlicerTerminologyEntry()
        slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(text, entry)
        found = bool(entry.GetTypeObject() and entry.GetTypeObject().GetCodeValue())
        self._text = text if found else ""
        self._label.setText(entry.GetTypeObject().GetCodeMeaning() if found else "")
        self.selectionValidityChanged.emit(found)
        return found

    def terminologyEntry(self, entry) -> bool:
        if not self._text:
            return False
        return slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(self._text, entry)


def build() -> dict[str, type]:
    """Make the proxy classes of the widgets in `slicer`."""
    from .ctk_widgets import imitation

    return {kind.__name__: imitation("slicer", kind) for kind in (qSlicerTerminologyNavigatorWidget,)}
