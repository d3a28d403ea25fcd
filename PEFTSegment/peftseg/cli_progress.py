"""How a running job is shown on the command line. Torch-free, standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from peftseg.events import Event, plain

BAR_WIDTH = 24
REDRAW_S = 0.1
LINE_EVERY_S = 10.0  # where the output is no terminal
LONG = 160  # characters of a fact that people still read


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


def cell(value: Any) -> str:
    """A value in a table or a list of facts: four digits of a number, lists of words with commas, else JSON."""
    value = plain(value)
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ", ".join(value) or "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def print_facts(facts: Mapping[str, Any]) -> None:
    """What a job has to say, a line a fact; empty ones are left out, long ones only counted (`--json` gives all)."""
    for key, value in facts.items():
        if value is None or (isinstance(value, (str, list, tuple, dict)) and not value):
            continue
        text = cell(value)
        if isinstance(value, dict) and len(text) > LONG:
            text = f"{len(value)} values (--json prints them)"
        print(f"{key}: {text}")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned text, one line a row; the columns are the rows' keys in their order unless given."""
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    lines = [list(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def print_json(value: Any) -> None:
    """Print a result for another program to read."""
    print(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def print_done(sentence: str, as_json: bool, **result: Any) -> int:
    """Print what was done, as a sentence or as JSON, e.g. `exported=path`; returns exit code 0."""
    if as_json:
        print_json(result)
    else:
        print(sentence)
    return 0
