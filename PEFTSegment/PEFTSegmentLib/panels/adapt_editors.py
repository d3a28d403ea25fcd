"""Editors for the options of a table of the engine: one widget an option, by its type."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from peftseg.adapters.options import Option

DECIMALS, LARGEST = 6, 1_000_000


class OptionForm:
    """Shows options in a layout, and tells which value the user has given.

    Parameters
    ----------
    layout : QLayout
    panel : Panel
        Which says whether it is showing.
    keep : callable
        Gets an option and the user's value for it.
    """

    def __init__(self, layout, panel, keep: Callable[[Option, Any], None]) -> None:
        self._layout, self._panel, self._keep = layout, panel, keep
        self._box = None
        self._shown: tuple[Option, ...] | None = None
        self.editors: dict[str, Any] = {}

    def show(self, options: Sequence[Option], values: dict[str, Any], captions: dict[str, str] | None = None) -> None:
        """Show these options with their values; an option without a caption goes by its name."""
        if tuple(options) != self._shown:
            self._build(tuple(options), captions or {})
        for option in options:
            _show(self.editors[option.name], option, values[option.name])

    def _build(self, options: tuple[Option, ...], captions: dict[str, str]) -> None:
        """Make one editor an option; those shown before go."""
        if self._box is not None:
            self._box.hide()
            self._box.deleteLater()
        self._box = qt.QWidget()
        form = qt.QFormLayout(self._box)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        self.editors = {}
        for option in options:
            editor, signal = _editor(option)
            editor.toolTip = option.help
            caption = qt.QLabel(captions.get(option.name) or option.name.replace("_", " ") + ":")
            caption.toolTip = option.help
            form.addRow(caption, editor)
            self.editors[option.name] = editor
            self._connect(editor, signal, option)
        self._layout.addWidget(self._box)
        self._shown = options

    def _connect(self, editor, signal: str, option: Option) -> None:
        def changed(_value) -> None:
            if not self._panel.showing:
                self._keep(option, _read(editor, option))

        editor.connect(signal, changed)


def kept(given: Mapping[str, Any], option: Option, value: Any, usual: Any) -> str:
    """The JSON object of the user's options with one more of them; what is as usual is left out."""
    options = {name: own for name, own in given.items() if name != option.name}
    if value != usual:
        options[option.name] = value
    return json.dumps(options)


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
        select(editor, value)
    elif isinstance(option.default, bool):
        set_property(editor, "checked", value)
    elif isinstance(option.default, int | float):
        set_property(editor, "value", value)
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


def select(box, data: str) -> None:
    """Choose the entry with this data."""
    index = box.findData(data)
    if box.currentIndex != index:
        box.setCurrentIndex(index)


def set_property(widget, name: str, value: Any) -> None:
    """Set a property that differs; setting it again would move the cursor and send signals."""
    if getattr(widget, name) != value:
        setattr(widget, name, value)
