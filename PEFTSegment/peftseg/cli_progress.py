"""How a running job is shown on the command line. Torch-free, standard library only."""

from __future__ import annotations

import json
import time
from typing import TextIO

from peftseg.events import Event

BAR_WIDTH = 24
REDRAW_S = 0.1
LINE_EVERY_S = 10.0  # where the output is no terminal


class JsonLines:
    """Prints every event as one line of JSON, as in `events.jsonl`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        """Print one event."""
        print(json.dumps(event, ensure_ascii=False), file=self._stream, flush=True)


class ProgressBar:
    """Draws a bar on a terminal, and prints a line now and then elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._stage = ""
        self._next = 0.0
        self._width = 0

    def __call__(self, event: Event) -> None:
        """Show one event; the ending is left to the caller."""
        kind = event["event"]
        if kind == "progress":
            self._progress(event)
        elif kind == "queued":
            self._line(f"Waiting: another job uses {event['device']}.")
        elif kind == "started":
            self._line(f"Running on {event['device']}.")
        elif kind in ("warning", "log"):
            self._line(f"Warning: {event['message']}" if kind == "warning" else event["message"])
        else:
            self._clear()

    def _progress(self, event: Event) -> None:
        now = time.monotonic()
        new_stage = event["stage"] != self._stage
        if not new_stage and now < self._next and event["step"] != event["total"]:
            return
        self._stage = event["stage"]
        self._next = now + (REDRAW_S if self._terminal else LINE_EVERY_S)
        text = describe(event)
        if not self._terminal:
            print(text, file=self._stream, flush=True)
            return
        print("\r" + text.ljust(self._width), end="", file=self._stream, flush=True)
        self._width = len(text)

    def _line(self, text: str) -> None:
        self._clear()
        print(text, file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream, flush=True)
            self._width = 0


def describe(event: Event) -> str:
    """One line of a progress event: bar, share, stage, step, loss and time left."""
    step, total = event["step"], max(event["total"], 1)
    share = min(max(step / total, 0.0), 1.0)
    bar = "#" * round(share * BAR_WIDTH)
    text = f"[{bar:-<{BAR_WIDTH}}] {share:4.0%} {event['stage']} {step}/{event['total']}"
    if event.get("loss") is not None:
        text += f", loss {event['loss']:.3f}"
    if event.get("eta_s") is not None:
        text += f", {duration(event['eta_s'])} left"
    return text


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
