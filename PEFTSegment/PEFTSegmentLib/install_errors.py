"""Why an installation failed, in plain words: pip's output read for its likely cause. No slicer: importable anywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftseg.errors import BadInput

_ = getattr(sys.modules.get("slicer.i18n"), "tr", str)

LAST_LINES = 6
NOISE = re.compile(r"^\s*$|^\[notice\]|^WARNING: (Retrying|You are using pip)|^\s*(note:|hint:)|^Traceback|^\s+File ")


class InstallFailed(BadInput):
    """An installation that did not work.

    Attributes
    ----------
    lines : tuple of str
        The last useful lines of pip's output.
    log_path : Path or None
        File with all of it, to be sent to someone who can help.
    """

    kind = "install_failed"

    def __init__(self, message: str, remedy: str, lines: tuple[str, ...] = (), log_path: Path | None = None) -> None:
        super().__init__(message, remedy)
        self.lines = lines
        self.log_path = log_path


@dataclass(frozen=True)
class Cause:
    """A likely cause: the pattern in pip's output, what it means, and what to do."""

    pattern: str
    why: str
    remedy: str


def causes() -> tuple[Cause, ...]:
    """The causes that are known, the more specific ones first."""
    return (
        Cause(
            r"No space left on device|\[Errno 28\]|not enough space on the disk|WinError 112|Disk quota exceeded",
            _("The disk is full."),
            _("Free some space (15 GB with GPU support, 3 GB without), then try again."),
        ),
        Cause(
            r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError|certificate verify failed|TLSV1_ALERT",
            _("The secure connection was refused: a firewall or proxy of your institution changes it."),
            _(
                "Ask your IT department for access to pypi.org and download.pytorch.org, or install from a folder of packages."
            ),
        ),
        Cause(
            r"ProxyError|407 Proxy Authentication|Tunnel connection failed",
            _("The proxy of your network refused the connection."),
            _(
                "Set the environment variable HTTPS_PROXY as your IT department says, or install from a folder of packages."
            ),
        ),
        Cause(
            r"NewConnectionError|NameResolutionError|getaddrinfo failed|Temporary failure in name resolution|"
            r"Network is unreachable|ConnectTimeout|ReadTimeout|Max retries exceeded|Connection (refused|reset|aborted)|"
            r"Could not fetch URL|IncompleteRead|timed out",
            _("The packages could not be downloaded: there is no connection to the internet, or it broke."),
            _("Check the connection and try again, or install from a folder of packages."),
        ),
        Cause(
            r"WinError 32|being used by another process",
            _("A file is in use: another extension has loaded the package."),
            _("Restart Slicer and install before you use other extensions."),
        ),
        Cause(
            r"WinError 206|filename or extension is too long|File name too long|path.{0,20}too long",
            _("A file's path is too long for Windows."),
            _("Install Slicer into a folder with a short name, e.g. C:\\Slicer, or use a separate environment."),
        ),
        Cause(
            r"Permission ?denied|PermissionError|\[Errno 13\]|WinError 5\b|Access is denied|Read-only file system",
            _("Slicer's folder must not be written to by you."),
            _("Install Slicer into a folder of your own, or use a separate environment."),
        ),
        Cause(
            r"ResolutionImpossible|conflicting dependencies|The conflict is caused by|cannot install .* because",
            _("The packages do not go together with what is installed already."),
            _("Use a separate environment, which leaves Slicer's packages as they are."),
        ),
        Cause(
            r"No matching distribution found|Could not find a version that satisfies",
            _("There is no package that fits this system and this version of Python, or it could not be looked up."),
            _("Check the internet connection, or that the folder of packages was made for this system."),
        ),
        Cause(
            r"Cannot uninstall|no RECORD file was found|uninstall-no-record-file",
            _("A package that is there cannot be replaced: it was installed incompletely or by another program."),
            _("Use a separate environment, which leaves Slicer's packages as they are."),
        ),
        Cause(
            r"No module named pip|No module named venv|ensurepip is not available",
            _("The chosen Python has no pip or venv."),
            _("Install a complete Python 3.10 to 3.13, or choose another one in the settings."),
        ),
        Cause(
            r"MemoryError|Killed",
            _("The computer's memory ran out."),
            _("Close other programs and try again."),
        ),
    )


def explain_failure(lines: Sequence[str], doing: str, log_path: Path | None = None) -> InstallFailed:
    """The error that a failed step means.

    Parameters
    ----------
    lines : sequence of str
        All that pip printed.
    doing : str
        The step's sentence.
    log_path : Path or None
        Where the lines were saved.
    """
    text = "\n".join(lines)
    found = next((c for c in causes() if re.search(c.pattern, text, re.IGNORECASE)), None)
    why = found.why if found else _("The installer gave no reason that is known.")
    remedy = found.remedy if found else _("Copy the log and send it to someone who can help.")
    useful = useful_lines(lines)
    message = _("This step failed: {doing} {why}").format(doing=doing, why=why)
    return InstallFailed(message, remedy, useful, log_path)


def useful_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """The last lines that say something: pip's errors where it names any, else the end of its output."""
    kept = [line.rstrip() for line in lines if not NOISE.search(line)]
    errors = [line for line in kept if re.search(r"\bERROR\b|\bError\b|error:", line)]
    return tuple((errors or kept)[-LAST_LINES:])
