"""The client of jobs: start, tail, cancel, find again. Torch-free, standard library only; used by Slicer and scripts.

A job is a folder and a detached process; see Docs/job-protocol.md. Nothing here blocks except `JobHandle.wait`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftseg import config
from peftseg.errors import BadInput, unknown_name
from peftseg.events import CANCEL, ENDINGS, STOP_KEEP, Event, EventLog, plain, read_control, read_events
from peftseg.job_folder import (
    can_resume,
    end_job,
    ending_of,
    has_started,
    is_abandoned,
    is_alive,
    kill_job,
    prepare_resume,
    process_record,
    record_maker,
    record_process,
    unwritten_folders,
    was_launched,
)
from peftseg.locks import FileLock
from peftseg.paths import jobs_dir, owner_only, remove_tree, write_text

WORKER = ("-m", "peftseg", "worker")
MODULE_FOLDER = Path(__file__).resolve().parents[1]
# What Slicer sets for its own Python, and another interpreter must not get.
FOREIGN_VARIABLES = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONNOUSERSITE",
    "PIP_REQUIRE_VIRTUALENV",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "QT_PLUGIN_PATH",
)
# Of these, what the user had set before; Slicer's launcher keeps it under names with SAVED. Not in the first tuple:
# Slicer's own certificates are better than none.
RESTORED_VARIABLES = (*FOREIGN_VARIABLES[2:], "SSL_CERT_FILE")
SAVED = "APPLAUNCHER_0_"
KILLED = (-9, 9, 137)  # signal 9, as Popen, a launcher that passes it on, and a shell say it
JOB_FILE, NOTE_FILE = "job.json", "client.json"
LOG_TAIL = 2000  # characters of worker.log in a `failed` event


def create_job(job: config.Job) -> Path:
    """Write a job folder with an opaque id under `jobs_dir()`, and return it; relative paths are made absolute."""
    text = config.to_json(config.with_absolute_paths(job))  # a job that cannot be written leaves no folder
    jobdir = new_folder()
    write_text(jobdir / JOB_FILE, text)
    return jobdir


def new_folder() -> Path:
    """An empty job folder with an opaque id under `jobs_dir()`, for its owner only, with `scratch/` in it.

    For clients that export scans into `scratch/` before they can say what the job is; `write_job` makes it a job. When
    this process ends before that, `delete_scratch` deletes the folder.
    """
    jobdir = owner_only(jobs_dir() / uuid.uuid4().hex)
    record_maker(jobdir)
    owner_only(jobdir / "scratch")
    return jobdir


def write_job(folder: Path, job: config.Job) -> None:
    """Write `job.json` into a folder of `new_folder`; relative paths are made absolute. Refused once it was started."""
    folder = Path(folder)
    if was_launched(folder):
        raise BadInput(f"Job {folder.name} was started already.", "Create a new job.")
    write_text(folder / JOB_FILE, config.to_json(config.with_absolute_paths(job)))


def write_client_note(folder: Path, note: dict[str, Any]) -> None:
    """Keep facts of the client with a job (what it is for), for later clients; the engine does not read them."""
    write_text(Path(folder) / NOTE_FILE, json.dumps(plain(note), indent=1, ensure_ascii=False))


def read_client_note(folder: Path) -> dict[str, Any]:
    """What `write_client_note` wrote; {} where there is nothing, or nothing that can be read."""
    try:
        note = json.loads((Path(folder) / NOTE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def start(jobdir: Path, python: str = sys.executable, command: tuple[str, ...] = WORKER) -> JobHandle:
    """Start a job's worker as a detached process that outlives this one.

    Parameters
    ----------
    jobdir : Path
        A job folder that no worker runs in.
    python : str
        The interpreter; one that is not this process's own gets an environment cleared of this one's Python.
    command : tuple of str
        Arguments of the interpreter before the job folder.
    """
    jobdir = Path(jobdir).absolute()
    if is_alive(jobdir):
        raise BadInput(f"Job {jobdir.name} runs already.", "Attach to it instead.")
    if ending_of(jobdir) is not None:
        raise BadInput(f"Job {jobdir.name} has ended.", "Resume it, or create a new one.")
    return JobHandle(jobdir, _launch(jobdir, python, command), python, command)


def resume(jobdir: Path, python: str = sys.executable, command: tuple[str, ...] = WORKER) -> JobHandle:
    """Start a failed, cancelled or lost job again; it goes on from its checkpoint where there is one."""
    prepare_resume(jobdir)
    return start(jobdir, python, command)


def attach(jobdir: Path) -> JobHandle:
    """A handle to a job that another process, or this one, started earlier; its events are read from the first on."""
    jobdir = Path(jobdir).absolute()
    if not (jobdir / JOB_FILE).is_file():
        raise BadInput(f"{jobdir} is not a job folder: it has no job.json.", "See `peftseg jobs list`.")
    return JobHandle(jobdir, None, sys.executable, WORKER)


_children: list[subprocess.Popen] = []  # kept, because Python warns of a child process that is forgotten while it runs


class JobHandle:
    """One job as seen by its client. Call `poll` from a timer; it returns at once.

    Attributes
    ----------
    jobdir : Path
        The job's folder; its name is the job's id.
    ending : dict or None
        The ending event, once `poll` has met it.
    """

    def __init__(self, jobdir: Path, process: subprocess.Popen | None, python: str, command: tuple[str, ...]) -> None:
        self.jobdir = jobdir
        self.ending: Event | None = None
        self._started = False
        self._process = process
        self._python, self._command = python, command
        self._offset = 0
        self._kill_at: float | None = None

    @property
    def id(self) -> str:
        """The job's opaque id."""
        return self.jobdir.name

    @property
    def state(self) -> str:
        """As of the last `poll`: "created", "queued", "running", "finished", "failed" or "cancelled"."""
        if self.ending is not None:
            return self.ending["event"]
        if self._started:
            return "running"
        return "queued" if process_record(self.jobdir) else "created"

    def poll(self) -> list[Event]:
        """New events since the last call; also ends what does not cancel in time, and finds workers that died."""
        events = self._tail()
        if self._kill_at is not None and time.monotonic() >= self._kill_at and self._lives():
            kill_job(self.jobdir)  # also a worker that said its last word but hangs on the way out
        if self.ending is None and not self._lives() and was_launched(self.jobdir):
            events += self._tail()  # what it wrote between the last look and its end
            if self.ending is None:
                self._settle()
                events += self._tail()
        if self.ending is not None:
            self._lives()  # takes note of the exit, so that no zombie stays
        return events

    def cancel(self, grace_s: float = 2.0) -> None:
        """Ask the worker to stop; a `poll` after `grace_s` seconds kills it with all its children."""
        if self.ending is not None:
            return
        write_text(self.jobdir / "control", CANCEL)
        self._kill_at = time.monotonic() + grace_s
        if not was_launched(self.jobdir):
            end_job(self.jobdir, "cancelled", {"message": "The job was cancelled before it started."})

    def stop_and_keep(self) -> None:
        """Ask the worker to finish now with the best so far."""
        if self.ending is None and self._kill_at is None:
            write_text(self.jobdir / "control", STOP_KEEP)

    def release(self) -> None:
        """Let the worker go on without this handle: its client closes. Another client may `attach`."""
        self._process = None

    def wait(self, timeout_s: float | None = None) -> Event:
        """Poll until the job and its process have ended; returns the ending event, TimeoutError after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.poll()
        while self.ending is None or self._lives():
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {self.id} has not ended within {timeout_s} s")
            time.sleep(0.05)
            self.poll()
        return self.ending

    def _tail(self) -> list[Event]:
        events, self._offset = read_events(self.jobdir / "events.jsonl", self._offset)
        for event in events:
            self._started = self._started or event["event"] == "started"
            if event["event"] in ENDINGS:
                self.ending = event
        return events

    def _lives(self) -> bool:
        if self._process is not None:  # only a process whose exit is known has ended: its last threads may be dying
            return self._process.poll() is None
        return is_alive(self.jobdir)

    def _settle(self) -> None:
        """Write the ending that a dead worker could not write, or start it once more when memory ran out."""
        lock = FileLock(self.jobdir / "client.lock")
        if not lock.acquire():
            return  # another client is at it; the next poll sees the outcome
        try:
            if is_alive(self.jobdir) or ending_of(self.jobdir) is not None:
                return
            code = self._process.returncode if self._process is not None else None
            kill_job(self.jobdir)  # children that it left behind
            if read_control(self.jobdir / "control") == CANCEL:
                end_job(self.jobdir, "cancelled", {"message": "The job did not stop in time and was ended."})
            elif code in KILLED and not (self.jobdir / "retry").exists():
                self._start_smaller()
            else:
                end_job(self.jobdir, "failed", _last_words(self.jobdir, code))
        finally:
            lock.release()

    def _start_smaller(self) -> None:
        write_text(self.jobdir / "retry", json.dumps({"smaller_plan": True}))
        message = "The system ended the job, most likely because memory ran out. It starts once more with less memory."
        EventLog(self.jobdir / "events.jsonl").append("warning", {"message": message})
        self._process = _launch(self.jobdir, self._python, self._command)


def list_jobs() -> list[dict[str, Any]]:
    """All jobs of this user, oldest first: id, kind, name, state, alive, resumable, created (seconds), folder, note.

    A job whose worker is gone without an ending event is listed as "failed"; nothing is changed. Of the event logs, only
    the last line of ended jobs is read. "note" is the client's, see `read_client_note`.
    """
    folders = [p.parent for p in jobs_dir().glob(f"*/{JOB_FILE}")]
    return sorted((_summary(folder) for folder in folders), key=lambda job: job["created"])


def find_job(job_id: str) -> Path:
    """Folder of a job by its id, or by the beginning of it that no other shares."""
    ids = [job["id"] for job in list_jobs()]
    found = [i for i in ids if i.startswith(job_id)] if job_id else []
    if len(found) != 1:
        raise unknown_name("job", job_id, found or ids)
    return jobs_dir() / found[0]


def clean_up(jobdir: Path) -> None:
    """Delete a job's folder with all in it; refused while its worker lives."""
    if not (Path(jobdir) / "job.json").is_file():
        raise BadInput(f"{jobdir} is not a job folder.", "See `peftseg jobs list`.")
    if is_alive(jobdir):
        raise BadInput(f"Job {Path(jobdir).name} still runs.", "Cancel it first.")
    remove_tree(Path(jobdir))


def delete_scratch() -> None:
    """Delete exported scans and caches of all jobs that run no more; called whenever the program starts.

    Also of those that were never written or never started, and whose maker is gone: a folder without a job is deleted, a
    job whose scans wait in vain is ended as cancelled.
    """
    for folder in unwritten_folders(jobs_dir()):
        with contextlib.suppress(FileNotFoundError):  # another program deletes at the same time
            if is_abandoned(folder):
                remove_tree(folder)
    for job in list_jobs():
        folder = Path(job["folder"])
        scratch = folder / "scratch"
        if job["alive"] or not scratch.is_dir():
            continue
        if job["state"] != "created":
            remove_tree(scratch)
        elif any(scratch.iterdir()) and is_abandoned(folder):
            end_job(folder, "cancelled", {"message": "The program that made the job ended before the job was started."})


def worker_environment(python: str) -> dict[str, str]:
    """Environment of a worker: the package on PYTHONPATH; another interpreter gets nothing else of this Python.

    Where Slicer runs this, another interpreter gets what the user had set before Slicer was started.
    """
    environment = dict(os.environ)
    environment.pop("ITK_AUTOLOAD_PATH", None)  # plug-ins of Slicer's ITK; SimpleITK brings an ITK of its own
    path = [str(MODULE_FOLDER)]
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        path += [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    else:
        for name in FOREIGN_VARIABLES:
            environment.pop(name, None)
        saved = {name: environment.get(SAVED + name) for name in RESTORED_VARIABLES}
        environment |= {name: value for name, value in saved.items() if value is not None}
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment | large_pages(environment)


def large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable with which a process on Linux gets its memory in large pages; elsewhere, or where it is set, nothing.

    Small pages, which come and go with the tensors of every step, cost 6 to 15 % of its time on a processor; results and
    peak memory are the same (Docs/results/speed.md). It is glibc's (2.35 and later; others ignore it) and is read when a
    process starts.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in tunables:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))}


def _launch(jobdir: Path, python: str, command: tuple[str, ...]) -> subprocess.Popen:
    """Start the worker in a session of its own; its output goes to worker.log, unbuffered, with crash reports."""
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        # Not DETACHED_PROCESS: Slicer's Python is a launcher, whose child would open a console window of its own.
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    arguments = [python, "-u", "-X", "faulthandler", *command, str(jobdir)]
    try:
        with open(jobdir / "worker.log", "ab") as log:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=jobdir,
                env=worker_environment(python),
                **options,
            )
    except OSError as error:
        raise BadInput(
            f"The interpreter {python} cannot be started: {error.strerror}.", "Repair or choose the environment again."
        ) from error
    _children[:] = [child for child in _children if child.poll() is None]
    _children.append(process)
    record_process(jobdir, process.pid)
    return process


def _last_words(jobdir: Path, code: int | None) -> dict[str, Any]:
    """The `failed` event of a worker that died without one."""
    log = jobdir / "worker.log"
    tail = log.read_bytes().decode("utf-8", errors="replace")[-LOG_TAIL:] if log.is_file() else ""
    facts = {"exit_code": code, "log": tail}
    if code in KILLED:
        message = "The system ended the job twice, most likely because memory ran out."
        remedy = "Close other programs, crop the scans, or use a computer with more memory; then resume the job."
        return {"kind": "out_of_memory", "message": message, "remedy": remedy, **facts}
    how = "while no program watched it" if code is None else f"with {_exit_name(code)}"
    message = f"The job's process ended without a result, {how}."
    remedy = "Resume the job; when it fails again, report the end of worker.log."
    return {"kind": "internal", "message": message, "remedy": remedy, **facts}


def _exit_name(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _summary(jobdir: Path) -> dict[str, Any]:
    created = (jobdir / JOB_FILE).stat().st_mtime
    kind, name = _kind_and_name(jobdir)
    alive = is_alive(jobdir)
    state = _state(jobdir, alive)
    return {
        "id": jobdir.name,
        "kind": kind,
        "name": name,
        "state": state,
        "alive": alive,
        "resumable": not alive and state in ("failed", "cancelled") and can_resume(jobdir),
        "created": created,
        "folder": str(jobdir),
        "note": read_client_note(jobdir),
    }


def _kind_and_name(jobdir: Path) -> tuple[str, str]:
    """Read without the checks of `config.from_json`: these take time, and jobs of other versions are listed too."""
    try:
        record = json.loads((jobdir / JOB_FILE).read_text(encoding="utf-8"))
        kind, name, out = (str(record.get(field) or "") for field in ("kind", "name", "out"))
    except (ValueError, AttributeError):
        return "unknown", ""
    return kind if kind in config.KINDS else "unknown", name or Path(out).name


def _state(jobdir: Path, alive: bool) -> str:
    ending = ending_of(jobdir)
    if ending is not None:
        return ending["event"]
    if not was_launched(jobdir):
        return "created"
    if not alive:
        return "failed"
    return "running" if has_started(jobdir) else "queued"
