"""What a job folder says about its process and its ending. Torch-free, standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput
from peftseg.events import ENDINGS, Event, EventLog, read_events
from peftseg.paths import remove_tree, write_text
from peftseg.processes import kill_tree, start_time


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
    write_text(jobdir / "process.json", json.dumps({"pid": pid, "start_time": start_time(pid)}))


def is_alive(jobdir: Path) -> bool:
    """Whether the process that was noted for a job still lives (and is not another one with its id)."""
    record = process_record(Path(jobdir))
    return bool(record and record["start_time"]) and start_time(record["pid"]) == record["start_time"]


def ending_of(jobdir: Path) -> Event | None:
    """The ending event of a job, or None."""
    events, _ = read_events(Path(jobdir) / "events.jsonl")
    return next((e for e in events if e["event"] in ENDINGS), None)


def process_record(jobdir: Path) -> dict[str, Any] | None:
    """Process id and start time of the process that was noted for a job."""
    try:
        return json.loads((jobdir / "process.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


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
