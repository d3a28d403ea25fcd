"""A stand-in for Slicer's application: the real MRML scene and `slicer.util`, Qt with PythonQt's manners.

`start()` puts the modules `qt`, `ctk` and `slicer` in place and returns the host; see Docs/decisions/test-host.md.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

NEEDED = ("slicer_core", "PySide6.QtWidgets", "PySide6.QtUiTools")


def missing_reason() -> str | None:
    """Say why the host cannot run here, or None."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    try:
        for name in NEEDED:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"the test host needs {error.name} (pip install -e '.[slicer]')"
    except ImportError as error:
        return f"the test host cannot start, a system library is missing ({error}); README names the packages"
    return None


@functools.cache
def start():
    """Start the host, once a process; its folder is removed at the end."""
    reason = missing_reason()
    if reason:
        raise RuntimeError(reason)
    keep_constants()
    import_slicer_core()
    home = tempfile.mkdtemp(prefix="slicerhost")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return importlib.import_module("slicerhost.host").Host(Path(home))


def keep_constants() -> None:
    """Give None, True and False more references than can be lost.

    PySide 6.12 takes one too many away with each call that returns one of them, and Python before 3.12 ends where none is
    left.
    """
    if sys.version_info < (3, 12):
        for constant in (None, True, False):
            ctypes.c_ssize_t.from_address(id(constant)).value += 1 << 40


def import_slicer_core() -> None:
    """Import `slicer` while no folder named so lies on the path.

    slicer-core takes each such folder for a part of itself and imports every file in it: the tests, for instance.
    """
    path = list(sys.path)
    sys.path[:] = [
        p
        for p in path
        if (Path(p or ".") / "slicer" / "__init__.py").exists() or not (Path(p or ".") / "slicer").exists()
    ]
    try:
        importlib.import_module("slicer")
    finally:
        sys.path[:] = path
