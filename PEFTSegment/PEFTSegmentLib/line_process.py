"""A process whose lines come to the GUI thread while Qt runs, and which can be killed; Slicer 5.10 has none of that."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable

import qt
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.processes import kill_tree, start_time

INTERVAL_MS = 100


class LineProcess:
    """A running process.

    Parameters
    ----------
    command : list of str
    environment : dict
        All environment variables of the process.
    on_line : callable
        Gets each line that the process prints.
    on_end : callable
        Gets the exit code, after the last line.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        on_line: Callable[[str], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._on_line, self._on_end = on_line, on_end
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        own_group = {} if sys.platform == "win32" else {"start_new_session": True}
        try:
            self._process = subprocess.Popen(
                command,
                env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                creationflags=subprocess.CREATE_NO_WINDOW if os.name == "nt" else 0,
                **own_group,
            )
        except OSError as error:
            raise BadInput(
                _("{python} cannot be started: {reason}.").format(python=command[0], reason=error.strerror or error),
                _("Choose another interpreter."),
            ) from error
        self._started = start_time(self._process.pid) or ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.timeout.connect(self._pass_on)
        self._timer.start()

    def kill(self) -> None:
        """End the process and its children; `on_end` is still called."""
        kill_tree(self._process.pid, self._started)

    def _read(self) -> None:
        with self._process.stdout as stream:
            for line in stream:
                self._lines.put(line.rstrip())
        self._process.wait()
        self._lines.put(None)

    def _pass_on(self) -> None:
        while not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self._timer.stop()
                self._reader.join()
                self._on_end(self._process.returncode)
                return
            self._on_line(line)
