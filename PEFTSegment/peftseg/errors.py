"""Errors that tell the user what happened, what was expected and what to do next. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeftsegError(Exception):
    """Base of every error that the engine raises on purpose.

    Parameters
    ----------
    message : str
        What happened, with the offending value, and what was expected instead.
    remedy : str
        The next step, in words that a clinician can follow.
    """

    kind = "internal"
    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class BadInput(PeftsegError):
    """The user's files, options or names cannot be used as they are (exit code 2)."""

    kind = "bad_input"
    exit_code = 2


class JobCancelled(PeftsegError):
    """The user cancelled the job (exit code 3)."""

    kind = "cancelled"
    exit_code = 3


class OutOfMemory(PeftsegError):
    """The device's memory did not suffice, also after the announced retries (exit code 4)."""

    kind = "out_of_memory"
    exit_code = 4


class TrainingFailed(PeftsegError):
    """Training broke down, for example by a loss that is not finite after the one retry (exit code 1)."""

    kind = "training_failed"


def unknown_name(what: str, name: str, valid: Iterable[str]) -> BadInput:
    """Error for a name that does not exist: shows the valid ones and the closest match.

    Parameters
    ----------
    what : str
        Kind of thing, e.g. "method".
    name : str
        The name that was given.
    valid : iterable of str
        All names that exist.
    """
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return BadInput(f"Unknown {what} '{name}'; valid: {', '.join(options) or 'none'}.{hint}", "Choose one of these.")
