"""The running Slicer with the methods that tests use of the stand-in (`slicerhost.host.Host`)."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path

import pytest


def is_running() -> bool:
    """Whether these tests run inside of Slicer: there, `slicer.app` exists before any test starts the stand-in."""
    return hasattr(sys.modules.get("slicer"), "app")


class RealSlicer:
    """Tests that need more of the stand-in (answers to dialogs, faults, Slicer 5.10) are skipped."""

    def __init__(self) -> None:
        import slicer

        self.home = Path(slicer.app.temporaryPath)
        self.scene = slicer.mrmlScene
        self._problems: list[str] = []
        self._module_shown = False
        self._hook = sys.excepthook
        sys.excepthook = self._uncaught  # where PythonQt and VTK take what slots and observers raise

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        pytest.skip(f"the test uses host.{name}, which only the stand-in has")

    def _uncaught(self, kind, value, trace) -> None:
        self._problems.append("".join(traceback.format_exception(kind, value, trace)))
        self._hook(kind, value, trace)

    def load_module(self, path: Path):
        """Load a scripted module from its file, anew where it is loaded already; its Python module is returned."""
        import qt
        import slicer

        name = Path(path).stem
        if name in slicer.util.moduleNames():
            slicer.util.reloadScriptedModule(name)
        else:
            factory = slicer.app.moduleManager().factoryManager()
            factory.registerModule(qt.QFileInfo(str(path)))
            if not factory.loadModules([name]):
                raise AssertionError(f"Slicer cannot load {path}; see its error log")
        return importlib.import_module(name)

    def show_module(self, name: str):
        """Switch to a module as the user does, and return its Python widget."""
        import slicer

        slicer.util.selectModule(name)
        self._module_shown = True
        return getattr(slicer.modules, f"{name}Widget")

    def process_events(self, milliseconds: int = 0) -> None:
        """Let Qt work, for a time if given."""
        import slicer

        end = time.monotonic() + milliseconds / 1000
        slicer.app.processEvents()
        while time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.005)

    def idle(self, milliseconds: int) -> None:
        """Let Qt work once after a time in which nothing happens: PythonQt keeps Python's lock while it calls Qt."""
        import qt

        qt.QThread.msleep(milliseconds)
        self.process_events()

    def wait_for(self, condition, seconds: float = 10.0, what: str = "the condition"):
        """Let Qt work until `condition()` is true, and return its value; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            self.process_events()
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come within {seconds} s")
            time.sleep(0.01)

    def picture(self, widget, path: Path, width: int = 0, height: int = 0) -> Path:
        """Save a picture of a widget as it is: its size is that of the window; the path is returned."""
        self.process_events(20)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not widget.grab().save(str(path)):
            raise OSError(f"{path} cannot be written")
        return Path(path)

    def slice_picture(self, path: Path, view: str = "Red", size: tuple[int, int] = (512, 512)) -> Path:
        """Save a picture of a slice view in its present size."""
        import ScreenCapture
        import slicer

        slice_view = slicer.app.layoutManager().sliceWidget(view).sliceView()
        ScreenCapture.ScreenCaptureLogic().captureImageFromView(slice_view, str(path))
        return Path(path)

    def reset(self) -> list[str]:
        """Leave the module, close the scene, and return what went wrong unseen in this test."""
        import slicer

        self.process_events()
        if self._module_shown:
            slicer.util.selectModule("Welcome")
            self._module_shown = False
        slicer.mrmlScene.Clear(0)
        self.process_events()
        problems, self._problems = self._problems, []
        return problems
