"""What a job says while it runs: the closed set of events, the log that holds them, and the engine's Reporter.

Torch-free. One JSON object a line; see Docs/job-protocol.md.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput, JobCancelled

KINDS = ("queued", "started", "progress", "warning", "log", "finished", "failed", "cancelled")
ENDINGS = ("finished", "failed", "cancelled")
CANCEL, STOP_KEEP = "cancel", "stop_keep"  # what `control` may hold
CHECKPOINT_FILE, TRIALS_FILE = "checkpoint.safetensors", "auto.json"  # of a job folder
TAIL = 1 << 13  # bytes that are read first of the end of a log
POLL_S = 0.1  # the control file is read at most this often

Event = dict[str, Any]
Echo = Callable[[Event], None]


class EventLog:
    """Append events to a file, one JSON object a line, each written at once; exactly one of them is an ending.

    Parameters
    ----------
    path : Path
        `events.jsonl`. A half-written last line that a killed writer left is cut off.
    echo : callable or None
        Called with each event, for the command line.
    """

    def __init__(self, path: Path, echo: Echo | None = None) -> None:
        self.path = path
        self._echo = echo
        _cut_half_line(path)
        last = last_event(path)
        self.ended = last is not None and last["event"] in ENDINGS

    def append(self, kind: str, fields: dict[str, Any] | None = None) -> Event:
        """Write one event and return it; the kind must be one of `KINDS`, and nothing may follow an ending."""
        fields = fields or {}
        if kind not in KINDS or {"event", "time"} & set(fields):
            raise ValueError(f"'{kind}' with fields {sorted(fields)} is no event; kinds: {', '.join(KINDS)}")
        if self.ended:
            raise ValueError(f"'{kind}' after the job's ending event")
        event = {"event": kind, "time": round(time.time(), 3), **plain(fields)}
        line = json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n"
        try:
            with open(self.path, "ab", buffering=0) as stream:
                stream.write(line.encode("utf-8", errors="replace"))
        except OSError as error:
            raise BadInput(
                f"The event log {self.path} cannot be written: {error.strerror}.",
                "Free space on its disk, or set PEFTSEGMENT_HOME to a folder on another one.",
            ) from error
        self.ended = kind in ENDINGS
        if self._echo is not None:
            self._echo(event)
        return event


def plain(value: Any) -> Any:
    """Data as JSON knows it: paths become text, tuples lists, array scalars numbers, and what is not finite null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and small arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no place in an event")


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events from a byte offset on, and the offset to go on from.

    A half-written last line is left for the next call. A whole line that is no event (a damaged disk) becomes a
    `warning`, so that a tailing program goes on.
    """
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    lines = [line for line in whole.split(b"\n") if line.strip()]
    return [_parse(line) for line in lines], offset + len(whole)


def last_event(path: Path) -> Event | None:
    """The event in the last whole line of a log, or None; logs may be long, so the file is read from its end."""
    try:
        with open(path, "rb") as stream:
            size, block = stream.seek(0, os.SEEK_END), TAIL
            while True:
                start = max(size - block, 0)
                stream.seek(start)
                lines = stream.read(size - start).rpartition(b"\n")[0].rstrip().split(b"\n")
                if start == 0 or len(lines) > 1:  # the first line may lack its beginning, the last one does not
                    return _parse(lines[-1]) if lines[-1].strip() else None
                block *= 8
    except FileNotFoundError:
        return None


def first_event(path: Path, kind: str) -> Event | None:
    """The first event of a kind in a log, or None; nothing behind it is read."""
    try:
        with open(path, "rb") as stream:
            events = (_parse(line) for line in stream if line.endswith(b"\n") and line.strip())
            return next((event for event in events if event["event"] == kind), None)
    except FileNotFoundError:
        return None


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:  # covers bytes that are not UTF-8
        event = None
    if isinstance(event, dict) and event.get("event") in KINDS:
        return event
    text = line[:200].decode(errors="replace")
    return {"event": "warning", "time": 0.0, "message": f"The event log has a line that is no event: {text}"}


def _cut_half_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


class ControlFile:
    """The request in a job's `control` file, read at most every `POLL_S` seconds; a cancel is never taken back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0
        self._request = ""

    def __call__(self) -> str:
        """The request: "", "cancel" or "stop_keep"."""
        now = time.monotonic()
        if self._request != CANCEL and now >= self._next:
            self._next = now + POLL_S
            self._request = read_control(self._path)
        return self._request


def read_control(path: Path) -> str:
    """What a `control` file asks for: "cancel", "stop_keep", or "" where it asks for nothing (yet)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, PermissionError):  # on Windows, in the moment in which it is replaced
        return ""
    return text if text in (CANCEL, STOP_KEEP) else ""


class Reporter:
    """How the engine speaks with whoever started it; the engine asks no questions and prints nothing.

    Parameters
    ----------
    emit : callable
        Takes (kind, fields) of each event.
    request : callable
        Returns what the user wants: "", "cancel" or "stop_keep". Must be cheap.
    checkpoint : Path or None
        Where to write the checkpoint, and to go on from when it is there; None for no checkpoints.
    result_dir : Path or None
        Folder for reports and figures of this job.
    smaller_plan : bool
        Whether the system ended an earlier try for lack of memory, so that less must be used now.
    """

    def __init__(
        self,
        emit: Callable[[str, dict[str, Any]], Any],
        request: Callable[[], str] = str,
        checkpoint: Path | None = None,
        result_dir: Path | None = None,
        smaller_plan: bool = False,
    ) -> None:
        self._emit = emit
        self._request = request
        self.checkpoint = checkpoint
        self.result_dir = result_dir
        self.smaller_plan = smaller_plan
        self.events: list[Event] = []

    @classmethod
    def silent(cls) -> Reporter:
        """A reporter for use from Python: nothing is shown, `events` keeps what was said, nothing cancels."""
        reporter = cls(lambda kind, fields: reporter.events.append({"event": kind, **plain(fields)}))
        return reporter

    @classmethod
    def for_job(cls, jobdir: Path, log: EventLog) -> Reporter:
        """The reporter of a job folder: `events.jsonl`, `control`, `checkpoint.safetensors`, `result/`, `retry`."""
        result_dir = jobdir / "result"
        result_dir.mkdir(exist_ok=True)
        return cls(
            log.append,
            ControlFile(jobdir / "control"),
            checkpoint=jobdir / CHECKPOINT_FILE,
            result_dir=result_dir,
            smaller_plan=(jobdir / "retry").is_file(),
        )

    def without(self, *kinds: str) -> Reporter:
        """A copy that tells nothing of some kinds ("progress", "warning", "log"), for a part of a job; it cancels as this."""
        inner = copy.copy(self)
        for kind in kinds:
            setattr(inner, kind, lambda *_words, **_facts: None)
        return inner

    def progress(self, stage: str, step: int, total: int, eta_s: float | None = None, **facts: Any) -> None:
        """Say how far a stage has come: `step` of `total`, seconds left in the job, and facts such as the loss."""
        self._emit("progress", {"stage": stage, "step": step, "total": total, "eta_s": eta_s, **facts})

    def warning(self, message: str) -> None:
        """Say something that the user should know, though the job goes on."""
        self._emit("warning", {"message": message})

    def log(self, message: str) -> None:
        """Say something for the record."""
        self._emit("log", {"message": message})

    def check(self) -> None:
        """Raise JobCancelled when the user cancelled; to be called often (several times a second), it is cheap."""
        if self._request() == CANCEL:
            raise JobCancelled("The job was cancelled.")

    def stop_keep(self) -> bool:
        """Whether the user asked to stop now and keep the best so far."""
        return self._request() == STOP_KEEP
