"""Which interpreter runs the engine: Slicer's own, or one that the user chose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import qt
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.jobs import worker_environment
from peftseg.version import __version__

from .environment import run_python
from .line_process import LineProcess

INTERPRETER_KEY = "PEFTSegment/interpreter"
CHECK_S = 30
ASK_ENGINE = "import peftseg.version; print(peftseg.version.__version__)"  # imports nothing that could be missing


def chosen_interpreter() -> str:
    """The interpreter that runs the engine: the one of the settings, else Slicer's own."""
    return str(qt.QSettings().value(INTERPRETER_KEY) or "") or sys.executable


def set_interpreter(path: str) -> None:
    """Choose the interpreter that runs the engine; "" for Slicer's own. BadInput where it cannot run it."""
    if path:
        check_interpreter(path)
        qt.QSettings().setValue(INTERPRETER_KEY, path)
    else:
        qt.QSettings().remove(INTERPRETER_KEY)


def check_interpreter(path: str) -> str:
    """Whether an interpreter can run the engine; returns its Python version. What it lacks, `examine` tells.

    Raises
    ------
    BadInput
        When it is missing, too old or new, cannot be started, does not answer, or finds another version of the engine.
    """
    remedy = _("Choose a Python of version 3.10 to 3.13, or clear the field to use Slicer's own.")
    if not Path(path).is_file():
        raise BadInput(_("There is no interpreter {path}.").format(path=path), remedy)
    code = "import sys; print(*sys.version_info[:3], sep='.')"
    version = run_python(path, ["-c", code], CHECK_S).strip().splitlines()[-1:]
    try:
        numbers = tuple(int(part) for part in version[0].split(".")[:2])
    except (IndexError, ValueError) as error:
        raise BadInput(_("{path} is no Python interpreter.").format(path=path), remedy) from error
    if not (3, 10) <= numbers <= (3, 13):
        text = _("{path} is Python {version}; 3.10 to 3.13 is needed.").format(path=path, version=version[0])
        raise BadInput(text, remedy)
    engine = run_python(path, ["-c", ASK_ENGINE], CHECK_S).strip()
    if engine != __version__:
        text = _("{path} runs another version of the engine ({found}, expected {own}).")
        raise BadInput(text.format(path=path, found=engine, own=__version__), remedy)
    return version[0]


def start_report(on_text: Callable[[str], None]) -> LineProcess:
    """Make the report of `peftseg doctor` with the chosen interpreter; `on_text` gets it, to be copied."""
    lines: list[str] = []
    python = chosen_interpreter()
    command = [python, "-m", "peftseg", "doctor"]
    return LineProcess(command, worker_environment(python), lines.append, lambda _code: on_text("\n".join(lines)))
