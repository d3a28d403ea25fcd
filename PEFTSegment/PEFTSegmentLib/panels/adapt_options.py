"""What is folded away under "Advanced": the method and its options, limits, device, seed."""

from __future__ import annotations

import json
import sys
from typing import Any

import qt
from slicer.i18n import tr as _

from peftseg.adapters.table import METHODS, MethodInfo, Option, method_info

from ..context import Context
from ..work import DEFAULT_METHOD

DECIMALS, LARGEST = 6, 1_000_000


class AdvancedOptions:
    """Fills and reads the widgets of the group "Advanced".

    Parameters
    ----------
    context : Context
    panel : Panel
        Whose form holds the widgets, and which says whether it is showing.
    """

    def __init__(self, context: Context, panel) -> None:
        self.context, self.panel, self.ui = context, panel, panel.ui
        self._method = ""
        self._box = None
        self.editors: dict[str, Any] = {}
        for name in [DEFAULT_METHOD, *(m for m in METHODS if m != DEFAULT_METHOD)]:
            title = METHODS[name].title
            shown = _("{title} (usual)").format(title=title) if name == DEFAULT_METHOD else title
            self.ui.methodBox.addItem(shown, name)
        devices = [(_("best available"), "auto"), (_("graphics card (CUDA)"), "cuda"), (_("processor only"), "cpu")]
        if sys.platform == "darwin":
            devices[1] = (_("graphics processor (Metal)"), "mps")
        for shown, name in devices:
            self.ui.deviceBox.addItem(shown, name)
        self.ui.methodBox.connect("currentIndexChanged(int)", self._choose_method)
        self.ui.deviceBox.connect("currentIndexChanged(int)", self._choose_device)
        self.ui.minutesBox.connect("valueChanged(int)", self._set_minutes)
        self.ui.seedBox.connect("valueChanged(int)", self._set_seed)
        self.ui.defaultsButton.clicked.connect(self.defaults)

    def look(self) -> None:
        """Show the user's choices; the methods are those for labelled scans."""
        state, ui = self.context.state, self.ui
        # They lie in a frame of their own: what is shown within the group itself would be seen although it is folded.
        for widget in (ui.methodCaption, ui.methodBox, ui.methodSummary, ui.optionsFrame):
            widget.visible = state.labelled
        info = method_info(state.method if state.method in METHODS else DEFAULT_METHOD)
        _select(ui.methodBox, info.name)
        _select(ui.deviceBox, state.device)
        _set(ui.methodSummary, "text", info.summary)
        _set(ui.minutesBox, "value", round(state.minutes))
        _set(ui.seedBox, "value", state.seed)
        if info.name != self._method:
            self._build(info)
        given = json.loads(state.methodOptions)
        for option in info.options:
            _show(self.editors[option.name], option, given.get(option.name, option.default))

    def _build(self, info: MethodInfo) -> None:
        """Make one editor an option; those of the method before go."""
        if self._box is not None:
            self._box.hide()
            self._box.deleteLater()
        self._box = qt.QWidget()
        form = qt.QFormLayout(self._box)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        self.editors = {}
        for option in info.options:
            editor, signal = _editor(option)
            editor.toolTip = option.help
            caption = qt.QLabel(option.name.replace("_", " ") + ":")
            caption.toolTip = option.help
            form.addRow(caption, editor)
            self.editors[option.name] = editor
            self._connect(editor, signal, option)
        self.ui.optionsLayout.addWidget(self._box)
        self._method = info.name

    def _connect(self, editor, signal: str, option: Option) -> None:
        def changed(_value) -> None:
            if not self.panel.showing:
                self._keep(option, _read(editor, option))

        editor.connect(signal, changed)

    def _keep(self, option: Option, value: Any) -> None:
        given = json.loads(self.context.state.methodOptions)
        given.pop(option.name, None)
        if value != option.default:
            given[option.name] = value
        self.context.state.methodOptions = json.dumps(given)

    # what the user does

    def _choose_method(self, index: int) -> None:
        if not self.panel.showing:
            name = self.ui.methodBox.itemData(index)
            self.context.state.methodOptions = "{}"  # they are the other method's
            self.context.state.method = "" if name == DEFAULT_METHOD else name

    def _choose_device(self, index: int) -> None:
        if not self.panel.showing:
            self.context.state.device = self.ui.deviceBox.itemData(index)

    def _set_minutes(self, value: int) -> None:
        if not self.panel.showing:
            self.context.state.minutes = float(value)

    def _set_seed(self, value: int) -> None:
        if not self.panel.showing:
            self.context.state.seed = value

    def defaults(self) -> None:
        """Set everything under "Advanced" back."""
        state = self.context.state
        state.methodOptions, state.method, state.minutes, state.seed, state.device = "{}", "", 0.0, 0, "auto"


def _editor(option: Option) -> tuple[Any, str]:
    """The widget for an option's type, and the signal by which it tells a change."""
    if option.choices is not None:
        editor = qt.QComboBox()
        for choice in option.choices:
            editor.addItem(choice, choice)
        return editor, "currentIndexChanged(int)"
    if isinstance(option.default, bool):
        return qt.QCheckBox(), "toggled(bool)"
    lowest = option.minimum if option.minimum is not None else -LARGEST
    if isinstance(option.default, int):
        editor = qt.QSpinBox()
        editor.setRange(int(lowest), LARGEST)
        return editor, "valueChanged(int)"
    if isinstance(option.default, float):
        editor = qt.QDoubleSpinBox()
        editor.decimals = DECIMALS
        editor.singleStep = 0.001
        editor.setRange(lowest, LARGEST)
        return editor, "valueChanged(double)"
    editor = qt.QLineEdit()
    if option.default is None:
        editor.placeholderText = _("left to the method")
    return editor, "textChanged(QString)"


def _show(editor, option: Option, value: Any) -> None:
    """Show an option's value; a text that is being typed is left alone where it means the same."""
    if option.choices is not None:
        _select(editor, value)
    elif isinstance(option.default, bool):
        _set(editor, "checked", value)
    elif isinstance(option.default, int | float):
        _set(editor, "value", value)
    elif _read(editor, option) != value:
        editor.text = "" if value is None else str(value)


def _read(editor, option: Option) -> Any:
    """The value that a widget holds."""
    if option.choices is not None:
        return editor.currentText
    if isinstance(option.default, bool):
        return editor.checked
    if isinstance(option.default, int | float):
        return editor.value
    return editor.text.strip() if option.default is not None else _number(editor.text.strip())


def _number(text: str) -> float | str | None:
    """A number that may be left out; a text that is none stays one, and the method's check refuses it."""
    try:
        return float(text.replace(",", ".")) if text else None
    except ValueError:
        return text


def _select(box, data: str) -> None:
    index = box.findData(data)
    if box.currentIndex != index:
        box.setCurrentIndex(index)


def _set(widget, name: str, value: Any) -> None:
    """Set a property that differs; setting it again would move the cursor and send signals."""
    if getattr(widget, name) != value:
        setattr(widget, name, value)
