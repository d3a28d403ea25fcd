"""The environment beside Slicer's: a `venv` in the user's PEFTSegment folder. No slicer: importable anywhere.

Slicer's own Python cannot make one that works: its launcher gives `python-real` its libraries and modules by environment
variables (SuperBuild/python_configure_python_launcher.cmake in Slicer), PYTHONHOME among them, with which Python ignores
a `venv`. So another Python of this computer makes it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from peftseg.errors import BadInput
from peftseg.paths import home

from .environment import run_python

PYTHONS = ("python3.12", "python3.13", "python3.11", "python3.10", "python3", "python")
PROBE_S = 10


def environment_folder() -> Path:
    """Folder of the separate environment."""
    return home() / "environment"


def environment_python() -> Path:
    """Its interpreter."""
    parts = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return environment_folder().joinpath(*parts)


def find_base_python() -> str | None:
    """A Python 3.10 to 3.13 of this computer, not Slicer's, that can make a separate environment; None without one."""
    own_folders = {Path(sys.executable).resolve().parent, *_slicer_folders()}
    for name in PYTHONS:
        found = shutil.which(name)
        if found is None or Path(found).parent.resolve() in own_folders:
            continue
        if can_make_environment(found):
            return found
    return None


def can_make_environment(python: str) -> bool:
    """Whether an interpreter is of a version that the engine runs on, and has venv and ensurepip."""
    code = "import sys, venv, ensurepip; assert (3, 10) <= sys.version_info[:2] <= (3, 13)"
    try:
        run_python(python, ["-c", code], PROBE_S)
    except BadInput:
        return False
    return True


def _slicer_folders() -> set[Path]:
    found = shutil.which("PythonSlicer")
    return {Path(found).resolve().parent, Path(found).parent} if found else set()
