"""Dialogs that record themselves instead of waiting for a person.

A test says beforehand how the next dialog is answered (`expect`); a dialog that nobody expects is answered as if it had
been closed, recorded in `shown`, and raised as an error, because in Slicer it would have stopped the user.
"""

from __future__ import annotations

from dataclasses import dataclass

from PySide6 import QtCore, QtWidgets

from .pythonqt import EnumInt, call, unwrap, wrap

STATIC = ("QMessageBox", "QFileDialog", "QInputDialog")
AUTO_CLOSE_MS = 3000


@dataclass(frozen=True)
class Shown:
    """One dialog that came up."""

    kind: str
    title: str
    text: str
    informative: str = ""
    details: str = ""


shown: list[Shown] = []
opened_urls: list[str] = []
_answers: list = []


def expect(*answers) -> None:
    """Queue the answers for the next dialogs: a button, a path, a text, or a callable that gets the dialog."""
    _answers.extend(answers)


def reset() -> None:
    """Forget what was shown and expected."""
    shown.clear()
    opened_urls.clear()
    _answers.clear()


def unused_answers() -> list:
    """Return the answers that no dialog asked for."""
    return list(_answers)


def answer(record: Shown, dialog=None):
    """Record a dialog and return its answer."""
    shown.append(record)
    if not _answers:
        raise AssertionError(f"a dialog that no test expected came up: {record}")
    given = _answers.pop(0)
    return given(dialog) if callable(given) else given


def answer_message_box(self):
    """Stand in for `exec` of QMessageBox and ctkMessageBox."""
    raw = self._alive()
    record = Shown(
        type(self).__name__, raw.windowTitle().strip(), raw.text(), raw.informativeText(), raw.detailedText()
    )
    given = answer(record, self)
    button = raw.button(QtWidgets.QMessageBox.StandardButton(int(given))) if isinstance(given, int) else None
    if isinstance(given, str):
        button = next((b for b in raw.buttons() if b.text().replace("&", "") == given), None)
    if button is None and raw.buttons():
        offered = [b.text() for b in raw.buttons()]
        raise AssertionError(f"the test answered {given!r}, but the dialog {record.text!r} offers {offered}")
    raw._host_clicked = button
    if button is not None:
        button.click()
    return EnumInt.of(raw.standardButton(button)) if button is not None else int(given)


def clicked_button(self):
    """Return the button that the answer named."""
    return wrap(getattr(self._alive(), "_host_clicked", None))


def answer_dialog(self):
    """Stand in for `exec` of any other dialog: the answer handles it, or it closes itself by a timer."""
    raw = self._alive()
    if _answers:
        given = answer(Shown(type(self).__name__, raw.windowTitle(), ""), self)
        return raw.result() if given is None else int(given)
    late: list[bool] = []
    guard = QtCore.QTimer(raw, singleShot=True, interval=AUTO_CLOSE_MS)
    guard.timeout.connect(lambda: (late.append(True), raw.reject()))
    guard.start()
    result = raw.exec()
    if late:
        raise AssertionError(f"the dialog '{raw.windowTitle()}' waited for a person, and no test expected it")
    return result


def exec_methods() -> dict:
    """Methods that replace those of QDialog."""
    return {"exec": answer_dialog, "exec_": answer_dialog}


def message_box_methods() -> dict:
    """Methods that replace those of a message box."""
    return {"exec": answer_message_box, "exec_": answer_message_box, "clickedButton": clicked_button}


def menu_methods() -> dict:
    """A context menu is answered with the text of one of its actions, which is then triggered."""

    def choose(self, *_position):
        raw = self._alive()
        texts = [a.text() for a in raw.actions()]
        wanted = answer(Shown("QMenu", raw.title(), "\n".join(texts)), self)
        action = next((a for a in raw.actions() if a.text().replace("&", "") == wanted), None)
        if action is None or not action.isEnabled():
            raise AssertionError(f"the menu has no enabled action {wanted!r}; it offers {texts}")
        action.trigger()
        return wrap(action)

    return {"exec": choose, "exec_": choose}


def static_methods(name: str) -> dict:
    """Replace the static convenience functions that would block."""
    if name == "QMessageBox":
        asked = ("about", "critical", "information", "question", "warning")
        return {**message_box_methods(), **{n: staticmethod(static_message(n)) for n in asked}}
    functions = {
        "QFileDialog": ("getExistingDirectory", "getOpenFileName", "getOpenFileNames", "getSaveFileName"),
        "QInputDialog": ("getText", "getItem", "getInt", "getDouble", "getMultiLineText"),
    }[name]
    return {**exec_methods(), **{n: staticmethod(static_question(f"{name}.{n}")) for n in functions}}


def static_message(kind: str):
    def ask(_parent=None, title: str = "", text: str = "", *_buttons):
        return answer(Shown(f"QMessageBox.{kind}", title, text))

    return ask


def static_question(kind: str):
    wanted = (list, tuple) if kind.endswith("Names") else str if kind.startswith("QFileDialog") else object

    def ask(_parent=None, title: str = "", text: str = "", *_more):
        given = answer(Shown(kind, title, str(text)))
        if not isinstance(given, wanted):
            raise TypeError(f"{kind} gives {wanted} in PythonQt, but the test answered {given!r}")
        return given

    return ask


def open_url(url) -> bool:
    """Record an address instead of starting a browser."""
    opened_urls.append(call(unwrap(url).toString, "QUrl.toString"))
    return True
