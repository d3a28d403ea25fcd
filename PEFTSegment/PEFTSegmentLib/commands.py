"""Short engine commands in a process of their own (`peftseg doctor`, `peftseg models download`), polled, never waited for.

Output goes to a file, as that of jobs does: no pipe can fill up, and nothing blocks. Nothing here needs Qt or the scene.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftseg.events import KINDS
from peftseg.jobs import worker_environment
from peftseg.processes import kill_tree, start_time

LOG_TAIL = 4000
PATIENCE_S = 5
Done = Callable[["Command"], None]


@dataclass
class Command:
    """A running or ended engine command.

    Attributes
    ----------
    arguments : tuple of str
        After `python -m peftseg`; each command prints JSON.
    progress : dict
        The last progress event, for commands that print events.
    code : int or None
        Exit code; None while it runs.
    """

    arguments: tuple[str, ...]
    title: str
    folder: Path
    process: subprocess.Popen
    done: Done
    progress: dict[str, Any] = field(default_factory=dict)
    code: int | None = None
    cancelled: bool = False
    _offset: int = 0

    @property
    def output(self) -> str:
        """All that it printed."""
        return _read(self.folder / "stdout")

    @property
    def log(self) -> str:
        """The end of what it wrote to its log."""
        return _read(self.folder / "stderr")[-LOG_TAIL:]

    def result(self) -> Any:
        """Its JSON answer: the whole output, or the last line of a command that prints events."""
        text = self.output.strip()
        lines = text.splitlines()
        return json.loads(lines[-1] if len(lines) > 1 and lines[0].startswith('{"event"') else text)

    def failure(self) -> dict[str, Any]:
        """The `failed` event of a command that did not end well; made from its log where it printed none."""
        for line in reversed(self.output.strip().splitlines()):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "failed":
                return {**event, "log": self.log}
        words = self.log.strip().splitlines()
        return {"message": words[-1] if words else "", "remedy": "", "exit_code": self.code, "log": self.log}

    def take_events(self) -> list[dict[str, Any]]:
        """Events since the last call, for commands that print them."""
        with open(self.folder / "stdout", "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") in KINDS:
                events.append(event)
        return events


class Commands:
    """All commands of this session. Call `poll` from a timer.

    Parameters
    ----------
    python : callable
        Gives the interpreter that runs the engine.
    """

    def __init__(self, python: Callable[[], str]) -> None:
        self._python = python
        self.running: list[Command] = []

    def start(self, arguments: Sequence[str], done: Done, title: str = "") -> Command:
        """Start `python -m peftseg ARGUMENTS`; `done(command)` is called from `poll` when it has ended."""
        folder = Path(tempfile.mkdtemp(prefix="peftseg-"))
        python = self._python()
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            process = subprocess.Popen(
                [python, "-m", "peftseg", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=worker_environment(python),
                **options,
            )
        command = Command(tuple(arguments), title, folder, process, done)
        self.running.append(command)
        return command

    def poll(self) -> None:
        """Read progress, and tell those who wait for commands that have ended."""
        for command in list(self.running):
            for event in command.take_events():
                if event["event"] == "progress":
                    command.progress = event
            command.code = command.process.poll()
            if command.code is None or command not in self.running:
                continue
            self.running.remove(command)
            try:
                command.done(command)
            finally:
                _remove(command.folder)

    def cancel(self, command: Command) -> None:
        """End a command with all its children; what it has downloaded stays for the next try."""
        command.cancelled = True
        pid = command.process.pid
        if sys.platform == "win32":
            kill_tree(pid, start_time(pid))
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended; macOS says the latter
                os.killpg(pid, signal.SIGTERM)

    def stop_all(self) -> None:
        """End all commands, without telling anyone: Slicer closes or the module is reloaded."""
        for command in self.running:
            if command.process.poll() is None:
                self.cancel(command)
            try:
                command.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:  # Slicer shall not hang while it closes
                kill_tree(command.process.pid, start_time(command.process.pid))
            _remove(command.folder)
        self.running.clear()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # on Windows, a child that has not quite ended holds its files
