"""Imitations of the ctk widgets that a module needs, as PySide classes with the properties and signals of the originals."""

from __future__ import annotations

import re
import types

from PySide6 import QtCore, QtGui, QtWidgets

from . import api, dialogs, ui_files
from .pythonqt import proxy_class

Prop = QtCore.Property
HEADER = 24


def stored(kind, default, name: str, changed: str = ""):
    """Make a property that only keeps its value (and says so by a signal)."""

    def get(self):
        return self.__dict__.get("_" + name, default)

    def put(self, value):
        if get(self) != value:
            self.__dict__["_" + name] = value
            if changed:
                getattr(self, changed).emit(value)

    return Prop(kind, get, put)


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A titled section that folds: a click on its header hides its children."""

    contentsCollapsed = QtCore.Signal(bool)
    collapsedHeight = stored(int, 14, "collapsedHeight")
    flat = stored(bool, False, "flat")

    def __init__(self, *arguments):
        super().__init__(*(a for a in arguments if not isinstance(a, str)))
        self._collapsed = False
        self._shown: list[QtWidgets.QWidget] = []
        self.setText(next((a for a in arguments if isinstance(a, str)), ""))
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, HEADER, 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred)
        self.toggled.connect(lambda open_: self._set_collapsed(not open_))

    def _set_collapsed(self, value: bool) -> None:
        if value == self._collapsed:
            return
        self._collapsed = value
        self.setChecked(not value)
        children = [c for c in self.children() if isinstance(c, QtWidgets.QWidget) and not c.isWindow()]
        if value:
            self._shown = [c for c in children if not c.isHidden()]
            for child in self._shown:
                child.hide()
        else:
            for child in self._shown:
                child.show()
        self.updateGeometry()
        self.contentsCollapsed.emit(value)

    collapsed = Prop(bool, lambda self: self._collapsed, _set_collapsed)

    def childEvent(self, event) -> None:
        """Hide what is added while the section is folded; it shows when the section unfolds."""
        child = event.child()
        if event.added() and self.__dict__.get("_collapsed") and isinstance(child, QtWidgets.QWidget):
            self._shown.append(child)
            child.hide()
        super().childEvent(event)

    def sizeHint(self) -> QtCore.QSize:
        width = self.fontMetrics().horizontalAdvance(self.text()) + 40
        inner = self.layout().totalSizeHint() if self.layout() and not self._collapsed else QtCore.QSize(0, HEADER)
        return QtCore.QSize(max(width, inner.width()), max(HEADER, inner.height()))

    def minimumSizeHint(self) -> QtCore.QSize:
        inner = self.layout().totalMinimumSize() if self.layout() and not self._collapsed else QtCore.QSize(0, HEADER)
        return QtCore.QSize(inner.width(), max(HEADER, inner.height()))

    def hitButton(self, position) -> bool:
        return position.y() < HEADER

    def paintEvent(self, _event) -> None:
        painter = QtGui.QPainter(self)
        painter.fillRect(0, 0, self.width(), HEADER, self.palette().button().color().darker(110))
        arrow = "▸" if self._collapsed else "▾"
        painter.drawText(
            8, 0, self.width() - 16, HEADER, QtCore.Qt.AlignmentFlag.AlignVCenter, f"{arrow}  {self.text()}"
        )


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box that folds."""

    collapsedHeight = stored(int, 14, "collapsedHeight")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._show_children)

    def _show_children(self, on: bool) -> None:
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(on)

    collapsed = Prop(bool, lambda self: not self.isChecked(), lambda self, value: self.setChecked(not value))


class ctkCheckBox(QtWidgets.QCheckBox):
    """A check box."""


class ctkPushButton(QtWidgets.QPushButton):
    """A push button."""


class ctkMenuButton(QtWidgets.QPushButton):
    """A push button with a menu beside it."""


class ctkExpandableWidget(QtWidgets.QFrame):
    """A frame that the user can make larger."""


class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """A text browser as high as its text."""


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box with "don't show again"."""

    dontShowAgainVisible = stored(bool, False, "dontShowAgainVisible")
    dontShowAgain = stored(bool, False, "dontShowAgain")
    dontShowAgainSettingsKey = stored(str, "", "dontShowAgainSettingsKey")


class ctkComboBox(QtWidgets.QComboBox):
    """A combo box with a default text."""

    defaultText = stored(str, "", "defaultText")
    forceDefault = stored(bool, False, "forceDefault")

    def _user_data(self) -> str:
        return str(self.currentData() or "")

    def _select(self, text: str) -> None:
        self.setCurrentIndex(self.findData(text))

    currentUserDataAsString = Prop(str, _user_data, _select)

    def setCurrentUserDataAsString(self, text: str) -> None:
        self._select(text)


class ctkCheckableComboBox(QtWidgets.QComboBox):
    """A combo box whose items have check boxes."""

    checkedIndexesChanged = QtCore.Signal()

    def checkedIndexes(self) -> list:
        model = self.model()
        every = (model.index(row, self.modelColumn()) for row in range(self.count()))
        return [i for i in every if self.checkState(i) == QtCore.Qt.CheckState.Checked]

    def checkState(self, index) -> QtCore.Qt.CheckState:
        return QtCore.Qt.CheckState(int(index.data(QtCore.Qt.ItemDataRole.CheckStateRole) or 0))

    def setCheckState(self, index, state) -> None:
        number = getattr(state, "value", state)
        self.model().setData(index, number, QtCore.Qt.ItemDataRole.CheckStateRole)
        self.checkedIndexesChanged.emit()

    def allChecked(self) -> bool:
        return len(self.checkedIndexes()) == self.count() > 0

    def noneChecked(self) -> bool:
        return not self.checkedIndexes()


class ctkSearchBox(QtWidgets.QLineEdit):
    """A line edit for searching."""

    showSearchIcon = stored(bool, False, "showSearchIcon")


class ctkDirectoryButton(QtWidgets.QWidget):
    """A button that shows a folder and lets the user choose another."""

    directoryChanged = QtCore.Signal(str)
    directorySelected = QtCore.Signal(str)
    directory = stored(str, "", "directory", "directoryChanged")
    text = stored(str, "", "text")
    caption = stored(str, "", "caption")

    def browse(self) -> None:
        chosen = dialogs.answer(dialogs.Shown("ctkDirectoryButton.browse", self.caption, ""))
        if chosen:
            self.directory = chosen
            self.directorySelected.emit(chosen)


class ctkPathLineEdit(QtWidgets.QWidget):
    """A line edit for a path, with a browse button and a history."""

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)
    Dirs, Files, Drives, NoSymLinks = 0x001, 0x002, 0x004, 0x008
    Readable, Writable, Executable = 0x010, 0x020, 0x040
    Hidden, NoDot, NoDotDot, NoDotAndDotDot = 0x100, 0x2000, 0x4000, 0x6000
    filters = stored(int, 24663, "filters")
    label = stored(str, "", "label")
    settingKey = stored(str, "", "settingKey")
    nameFilters = stored("QVariantList", [], "nameFilters")
    showHistoryButton = stored(bool, True, "showHistoryButton")
    minimumContentsLength = stored(int, 0, "minimumContentsLength")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._combo = QtWidgets.QComboBox(self, editable=True)
        self._combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._button = QtWidgets.QToolButton(self, text="...")
        layout.addWidget(self._combo)
        layout.addWidget(self._button)
        self._valid = False
        self._combo.editTextChanged.connect(self._changed)
        self._button.clicked.connect(self.browse)

    def _changed(self, text: str) -> None:
        """CTK asks for a text that suits the filters of names, not for a path that is there; for none, any text does."""
        endings = re.findall(r"\*\.(\w+)", " ".join(self.nameFilters))
        before, self._valid = self._valid, bool(text) and (not endings or text.endswith(tuple(endings)))
        if self._valid:
            self.currentPathChanged.emit(text)
        if self._valid != before:
            self.validInputChanged.emit(self._valid)

    def _set_path(self, path: str) -> None:
        if path != self._combo.currentText():
            self._combo.setEditText(path)

    currentPath = Prop(str, lambda self: self._combo.currentText(), _set_path)
    showBrowseButton = Prop(
        bool, lambda self: not self._button.isHidden(), lambda self, value: self._button.setVisible(value)
    )

    def setCurrentPath(self, path: str) -> None:
        self._set_path(path)

    def comboBox(self) -> QtWidgets.QComboBox:
        return self._combo

    def addCurrentPathToHistory(self) -> None:
        path = self.currentPath
        if path and self._combo.findText(path) < 0:
            self._combo.insertItem(0, path)

    def retrieveHistory(self) -> None:
        """Histories are not kept between tests."""

    def browse(self, *_checked) -> None:
        chosen = dialogs.answer(dialogs.Shown("ctkPathLineEdit.browse", "", self.currentPath))
        if chosen:
            self._set_path(chosen)


class ctkDoubleSpinBox(QtWidgets.QWidget):
    """A spin box for real numbers."""

    valueChanged = QtCore.Signal(float)
    decimalsChanged = QtCore.Signal(int)
    editingFinished = QtCore.Signal()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._spin = QtWidgets.QDoubleSpinBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._spin)
        self._spin.valueChanged.connect(self.valueChanged)
        self._spin.editingFinished.connect(self.editingFinished)

    value = Prop(float, lambda self: self._spin.value(), lambda self, v: self._spin.setValue(v))
    minimum = Prop(float, lambda self: self._spin.minimum(), lambda self, v: self._spin.setMinimum(v))
    maximum = Prop(float, lambda self: self._spin.maximum(), lambda self, v: self._spin.setMaximum(v))
    singleStep = Prop(float, lambda self: self._spin.singleStep(), lambda self, v: self._spin.setSingleStep(v))
    decimals = Prop(int, lambda self: self._spin.decimals(), lambda self, v: self._spin.setDecimals(v))
    prefix = Prop(str, lambda self: self._spin.prefix(), lambda self, v: self._spin.setPrefix(v))
    suffix = Prop(str, lambda self: self._spin.suffix(), lambda self, v: self._spin.setSuffix(v))

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)


class ctkSliderWidget(ctkDoubleSpinBox):
    """A slider with a spin box."""

    valueIsChanging = QtCore.Signal(float)
    tracking = stored(bool, True, "tracking")
    pageStep = stored(float, 10.0, "pageStep")
    STEPS = 1000

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._slider.setRange(0, self.STEPS)
        self.layout().insertWidget(0, self._slider)
        self._slider.sliderMoved.connect(self._moved)
        self.valueChanged.connect(self._place)

    def _moved(self, position: int) -> None:
        self.value = self.minimum + (self.maximum - self.minimum) * position / self.STEPS
        self.valueIsChanging.emit(self.value)

    def _place(self, value: float) -> None:
        span = (self.maximum - self.minimum) or 1.0
        self._slider.setValue(round((value - self.minimum) / span * self.STEPS))

    spinBoxVisible = Prop(bool, lambda self: not self._spin.isHidden(), lambda self, v: self._spin.setVisible(v))


CLASSES = (
    ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkCheckBox, ctkPushButton, ctkMenuButton, ctkExpandableWidget,
    ctkFittedTextBrowser, ctkMessageBox, ctkComboBox, ctkCheckableComboBox, ctkSearchBox, ctkDirectoryButton,
    ctkPathLineEdit, ctkDoubleSpinBox, ctkSliderWidget,
)  # fmt: skip


def imitation(group: str, raw_type: type, extra: dict | None = None) -> type:
    """Make the proxy class of an imitated widget. Like in PythonQt, it is no subclass of `qt.QWidget`."""
    from .pythonqt import ObjectManners
    from .qt_module import find_child, find_children

    found = {"findChildren": find_children, "findChild": find_child, **(extra or {})}
    ui_files.IMITATED[raw_type.__name__] = raw_type
    return proxy_class(raw_type.__name__, raw_type, api.entry(group, raw_type.__name__), found, (ObjectManners,))


def build() -> types.ModuleType:
    """Build the module `ctk`."""
    module = types.ModuleType("ctk", "The ctk widgets that the test host imitates.")
    from .choosers import ctkColorPickerButton

    for raw_type in (*CLASSES, ctkColorPickerButton):
        extra = dialogs.message_box_methods() if raw_type is ctkMessageBox else None
        setattr(module, raw_type.__name__, imitation("ctk", raw_type, extra))

    def missing(name: str):
        api.entry("ctk", name)
        raise NotImplementedError(f"ctk.{name} exists in Slicer, but the test host does not imitate it")

    module.__getattr__ = missing
    return module
