"""What a job folder says about its maker, its process and its ending. Torch-free, standard library only."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput
from peftseg.events import CHECKPOINT_FILE, ENDINGS, TRIALS_FILE, Event, EventLog, first_event, last_event
from peftseg.models import EARLY_FILE
from peftseg.paths import remove_tree, write_text
from peftseg.processes import kill_tree, start_time

UNMARKED_S = 600.0  # a folder that does not say who makes it counts as left behind after this time
KEPT = (CHECKPOINT_FILE, EARLY_FILE, TRIALS_FILE)  # what an ended run leaves to go on from
_ID = re.compile(r"[0-9a-f]{32}")


def can_resume(jobdir: Path) -> bool:
    """Whether a run that ended too early has left anything to go on from: a checkpoint, an early head, or tried methods."""
    return any((Path(jobdir) / name).is_file() for name in KEPT)


def prepare_resume(jobdir: Path) -> None:
    """Put the earlier run's ending and request aside, so that the job can run again."""
    jobdir = Path(jobdir)
    if is_alive(jobdir):
        raise BadInput(f"Job {jobdir.name} runs already.", "Attach to it, or cancel it first.")
    ending = ending_of(jobdir)
    if ending is not None and ending["event"] == "finished":
        raise BadInput(f"Job {jobdir.name} has finished; there is nothing to resume.", "Create a new job.")
    if (jobdir / "events.jsonl").is_file():
        number = len(list(jobdir.glob("events-*.jsonl"))) + 1
        (jobdir / "events.jsonl").replace(jobdir / f"events-{number}.jsonl")
    for name in ("control", "process.json"):
        (jobdir / name).unlink(missing_ok=True)


def record_process(jobdir: Path, pid: int) -> None:
    """Note which process runs a job, for later clients."""
    _write_process(jobdir / "process.json", pid)


def record_maker(jobdir: Path) -> None:
    """Note that this process makes a job folder, so that its scans are deleted should it end before the job starts."""
    _write_process(jobdir / "maker.json", os.getpid())


def is_alive(jobdir: Path) -> bool:
    """Whether the process that was noted for a job still lives (and is not another one with its id)."""
    return _lives(process_record(Path(jobdir)))


def is_abandoned(jobdir: Path) -> bool:
    """Whether the process that was making a job folder is gone; without a note of it, its age decides."""
    maker = _read_process(jobdir / "maker.json")
    if maker is not None:
        return not _lives(maker)
    return time.time() - jobdir.stat().st_mtime > UNMARKED_S


def unwritten_folders(folder: Path) -> list[Path]:
    """The job folders in `folder` that have no job.json (yet); other folders are none of ours."""
    return [p for p in folder.iterdir() if _ID.fullmatch(p.name) and p.is_dir() and not (p / "job.json").is_file()]


def ending_of(jobdir: Path) -> Event | None:
    """The ending event of a job, or None; only the end of the log is read, for nothing follows an ending."""
    event = last_event(Path(jobdir) / "events.jsonl")
    return event if event is not None and event["event"] in ENDINGS else None


def has_started(jobdir: Path) -> bool:
    """Whether a worker has begun with the job, after a wait for its device perhaps."""
    return first_event(Path(jobdir) / "events.jsonl", "started") is not None


def process_record(jobdir: Path) -> dict[str, Any] | None:
    """Process id and start time of the process that was noted for a job."""
    return _read_process(jobdir / "process.json")


def was_launched(jobdir: Path) -> bool:
    """Whether a process was started for this job."""
    return process_record(jobdir) is not None


def kill_job(jobdir: Path) -> None:
    """Kill a job's process with all its children."""
    record = process_record(jobdir)
    if record and record["start_time"]:
        kill_tree(record["pid"], record["start_time"])


def end_job(jobdir: Path, kind: str, fields: dict[str, Any]) -> None:
    """Write the ending of a job that has no worker, and delete its scratch files."""
    if (jobdir / "scratch").is_dir():
        remove_tree(jobdir / "scratch")
    log = EventLog(jobdir / "events.jsonl")
    if not log.ended:
        log.append(kind, fields)


def _write_process(file: Path, pid: int) -> None:
    write_text(file, json.dumps({"pid": pid, "start_time": start_time(pid)}))


def _read_process(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _lives(record: dict[str, Any] | None) -> bool:
    return bool(record and record["start_time"]) and start_time(record["pid"]) == record["start_time"]
