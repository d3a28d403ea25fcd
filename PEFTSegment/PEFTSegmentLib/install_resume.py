"""An installation that goes on after Slicer was restarted: a note in the settings."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.processes import start_time

from . import dialogs

RESUME_KEY = "PEFTSegment/resumeInstall"
RESUME_DAYS = 7


@dataclass(frozen=True)
class Pending:
    """An installation that goes on after a restart: the arguments of `make_plan`."""

    isolated: bool = False
    wheels_folder: str | None = None
    torch_by: str | None = None


def remember_pending(pending: Pending) -> None:
    """Note that an installation is to go on after Slicer was restarted."""
    note = {**asdict(pending), "session": _session(), "time": time.time()}
    qt.QSettings().setValue(RESUME_KEY, json.dumps(note))


def pending_after_restart() -> Pending | None:
    """The installation that an earlier session of Slicer left to be gone on with; None in that session itself."""
    text = qt.QSettings().value(RESUME_KEY)
    if not text:
        return None
    try:
        note = json.loads(str(text))
        pending = Pending(bool(note["isolated"]), note["wheels_folder"], note["torch_by"])
        session, days = note["session"], (time.time() - float(note["time"])) / 86400
    except (ValueError, KeyError, TypeError):
        session, days, pending = "", RESUME_DAYS, None
    if days >= RESUME_DAYS:
        forget_pending()
        return None
    return pending if session != _session() else None


def forget_pending() -> None:
    """Forget the note of an installation to go on with."""
    qt.QSettings().remove(RESUME_KEY)


def restart_and_go_on(pending: Pending | None = None) -> None:
    """Restart Slicer once the user agrees; where an installation is given, it is offered again afterwards.

    Slicer's own restart asks nothing: what was not saved would be gone.
    """
    warning = _("Labels and scenes that are not saved are lost.")
    if dialogs.ask(_("Restart Slicer now?"), (_("Restart"), _("Cancel")), warning, careful=True) != 0:
        return
    if pending is not None:
        remember_pending(pending)
    slicer.util.restart()


def _session() -> str:
    return f"{os.getpid()} {start_time(os.getpid())}"
