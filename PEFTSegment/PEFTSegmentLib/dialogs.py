"""Dialogs: a problem in three lines with details to copy, and questions with named buttons."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.errors import PeftsegError


@dataclass(frozen=True)
class Problem:
    """What a person needs to know of something that went wrong.

    Attributes
    ----------
    what : str
        What happened, e.g. "The adaptation did not finish."
    why : str
        The cause, with the offending value.
    remedy : str
        What to do next.
    details : str
        Log or traceback, shown on request.
    """

    what: str
    why: str
    remedy: str = ""
    details: str = ""


def problem_of(error: BaseException, what: str) -> Problem:
    """The problem that an exception means; an unforeseen one asks for a report."""
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, PeftsegError):
        return Problem(what, error.message, error.remedy, details)
    remedy = _("Please report this with the details below.")
    return Problem(what, str(error) or type(error).__name__, remedy, details)


def problem_of_event(event: dict[str, Any], what: str) -> Problem:
    """The problem that a job's `failed` event means."""
    code = event.get("exit_code")
    details = [str(event.get("log", "")), "" if code is None else f"exit code {code}"]
    return Problem(
        what, str(event.get("message", "")), str(event.get("remedy", "")), "\n".join(d for d in details if d)
    )


def show(problem: Problem) -> None:
    """Show a problem and wait until it was read; in Slicer's testing mode it is only logged."""
    logging.error("%s %s %s\n%s", problem.what, problem.why, problem.remedy, problem.details)
    if slicer.app.testingEnabled():
        return
    box = qt.QMessageBox(slicer.util.mainWindow())
    box.windowTitle = "PEFTSegment"
    box.icon = qt.QMessageBox.Warning
    box.text = problem.what
    box.informativeText = "\n\n".join(line for line in (problem.why, problem.remedy) if line)
    if problem.details:
        box.detailedText = problem.details
    copying = box.addButton(_("Copy"), qt.QMessageBox.ActionRole)
    copying.toolTip = _("Copy all of this, to send it to someone who can help")
    box.setDefaultButton(box.addButton(qt.QMessageBox.Ok))
    box.exec_()
    copied = box.clickedButton() == copying
    box.deleteLater()
    if copied:
        slicer.app.clipboard().setText(as_text(problem))


def as_text(problem: Problem) -> str:
    """All of a problem as lines of text."""
    return "\n".join(line for line in (problem.what, problem.why, problem.remedy, problem.details) if line)


def show_later(problem: Problem) -> None:
    """Show a problem once the current slot or observer has returned, so that nothing waits inside of it."""
    qt.QTimer.singleShot(0, lambda: show(problem))


def ask(text: str, choices: tuple[str, ...], informative: str = "", careful: bool = False) -> int:
    """Ask a question with named buttons; the index of the chosen one, the last one where the dialog is closed.

    The key Enter takes the first choice; with `careful`, for what cannot be undone, the last one.
    In Slicer's testing mode nothing is asked and the last choice counts, which is the one that changes nothing.
    """
    if slicer.app.testingEnabled():
        logging.info("Not asked in testing mode: %s -> %s", text, choices[-1])
        return len(choices) - 1
    box = qt.QMessageBox(slicer.util.mainWindow())
    box.windowTitle = "PEFTSegment"
    box.icon = qt.QMessageBox.Question
    box.text = text
    box.informativeText = informative
    last = len(choices) - 1
    buttons = [
        box.addButton(choice, qt.QMessageBox.RejectRole if number == last else qt.QMessageBox.AcceptRole)
        for number, choice in enumerate(choices)
    ]
    box.setDefaultButton(buttons[-1] if careful else buttons[0])
    box.setEscapeButton(buttons[-1])
    box.exec_()
    clicked = box.clickedButton()
    chosen = next((number for number, button in enumerate(buttons) if button == clicked), last)
    box.deleteLater()
    return chosen


def ask_text(title: str, label: str, text: str = "") -> str:
    """Ask for a line of text; "" where the dialog is closed."""
    return (qt.QInputDialog.getText(slicer.util.mainWindow(), title, label, qt.QLineEdit.Normal, text) or "").strip()
