"""Functions that run in a thread, so that Slicer's windows stay alive; who started them polls.

Slicer keeps Python's lock while it waits for events (CTK never calls PyEval_SaveThread, nor PythonQt's
setEnableThreadSupport): other threads run only while Slicer's own runs Python code. So it lets them run, again and again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import qt

GIVE_WAY_S = 0.005  # for the thread; Slicer's windows do not notice it
PAUSE_MS = 10  # for Slicer's windows, between two of these


class Background:
    """Calls functions one after the other in a thread; `done`, `results` and `error` say how it stands.

    Parameters
    ----------
    tasks : sequence of (function, *arguments)
        They must not touch the scene or widgets. An exception ends the rest and is kept in `error`.
    """

    def __init__(self, tasks: Sequence[tuple]) -> None:
        self._tasks = list(tasks)
        self.results: list[Any] = []
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="PEFTSegment", daemon=True)
        self._thread.start()
        qt.QTimer.singleShot(0, self._give_way)

    @property
    def done(self) -> bool:
        """Whether all has been called, or an error or `stop` ended it."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End after the function that is running, and wait for it."""
        self._stop.set()
        self._thread.join()

    def _give_way(self) -> None:
        """Let the thread have Python's lock for a moment, and again until it has ended."""
        self._thread.join(GIVE_WAY_S)
        if not self.done:
            qt.QTimer.singleShot(PAUSE_MS, self._give_way)

    def _run(self) -> None:
        try:
            for function, *arguments in self._tasks:
                if self._stop.is_set():
                    return
                self.results.append(function(*arguments))
        except Exception as error:
            self.error = error  # raised by the one that polls
