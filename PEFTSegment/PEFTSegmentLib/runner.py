"""Jobs as the module sees them: exported, started, polled by one timer, and found again in a later session.

Nothing here needs widgets or the scene: what a job's events mean is decided by handlers, which are registered by purpose.
Files: `<job folder>/client.json` says what a job is for, so that another session of Slicer can take its result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftseg import config, jobs
from peftseg.errors import PeftsegError
from peftseg.events import Event
from peftseg.job_folder import is_alive
from peftseg.paths import remove_tree
from peftseg.processes import start_time

from .background import Background

Note = dict[str, Any]
ACTIVE = ("exporting", "created", "queued", "running")


@dataclass
class Task:
    """One job of this module.

    Attributes
    ----------
    folder : Path
        The job's folder; scans are exported to `folder / "scratch"`, results come to `folder / "result"`.
    note : dict
        Plain facts: "purpose" (who handles it), "title" (what the status strip shows), and the handler's own.
    state : str
        "exporting", "created", "queued", "running", "finished", "failed" or "cancelled".
    progress : dict
        The last progress event.
    warnings : list of str
        What the engine warned of.
    ending : dict or None
        The ending event.
    """

    folder: Path
    note: Note
    state: str = "exporting"
    progress: Event = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ending: Event | None = None
    writing: Background | None = None
    build: Callable[[list], config.Job] | None = None
    handle: jobs.JobHandle | None = None
    stopping: bool = False

    @property
    def purpose(self) -> str:
        """Who handles it."""
        return str(self.note["purpose"])

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ACTIVE


Handler = Callable[[Task, list[Event]], None]


class Runner:
    """All jobs of this Slicer session. Call `poll` from a timer; it never blocks.

    Parameters
    ----------
    python : callable
        Gives the interpreter that runs the engine.
    start, resume : callable
        As `jobs.start` and `jobs.resume`; tests give others.
    """

    def __init__(self, python: Callable[[], str], start=jobs.start, resume=jobs.resume) -> None:
        self._python = python
        self._start, self._resume = start, resume
        self._handlers: dict[str, Handler] = {}
        self._changed: list[Callable[[], None]] = []
        self._polling = False
        self._leaving: list[Task] = []  # forgotten, but the process has not quite ended
        self.tasks: list[Task] = []

    def on(self, purpose: str, handler: Handler) -> None:
        """Register who hears the events of jobs with this purpose: `handler(task, events)`, also without events
        when `task.state` has changed."""
        self._handlers[purpose] = handler

    def on_change(self, function: Callable[[], None]) -> None:
        """Call a function after tasks were added, have changed their state or have ended."""
        self._changed.append(function)

    def submit(self, note: Note, exports: Sequence[tuple], build: Callable[[Path, list], config.Job]) -> Task:
        """Make a job: write its files in a thread, then start it.

        Parameters
        ----------
        note : dict
            "purpose", "title" and what the handler needs to know later; JSON data, no names of patients.
        exports : sequence of callable
            Each gets the scratch folder and is run in a thread; it must not touch the scene.
        build : callable
            Gets the job's folder and the exports' results, and gives the job; called in Slicer's thread.
        """
        folder = jobs.new_folder()
        task = Task(folder, note)
        try:
            jobs.write_client_note(folder, {**note, "client": _client()})
            scratch = folder / "scratch"
            task.writing = Background([(function, scratch, *arguments) for function, *arguments in exports])
        except BaseException:
            remove_tree(folder)
            raise
        task.build = lambda results: build(folder, results)
        self.tasks.append(task)
        self._tell()
        return task

    def poll(self) -> None:
        """Look at all tasks once: go on with exports, read events, tell the handlers."""
        if self._polling:
            return  # a handler shows a dialog
        self._polling = True
        try:
            states = [(task, task.state) for task in self.tasks]
            for task in list(self.tasks):
                if task.active:
                    self._advance(task)
            self._clean()
            if states != [(task, task.state) for task in self.tasks]:
                self._tell()
        finally:
            self._polling = False

    def _advance(self, task: Task) -> None:
        before = task.state
        events: list[Event] = []
        try:
            if task.state == "exporting":
                self._export(task)
            elif task.handle is not None:
                events = task.handle.poll()
                task.state, task.ending = task.handle.state, task.handle.ending
        except (PeftsegError, OSError) as error:
            self._fail(task, error)
        for event in events:
            if event["event"] == "progress":
                task.progress = event
            elif event["event"] == "warning":
                task.warnings.append(event["message"])
        if events or task.state != before:
            self._handle(task, events)

    def _export(self, task: Task) -> None:
        if not task.writing.done:
            return
        if task.writing.error is not None:
            raise task.writing.error
        jobs.write_job(task.folder, task.build(task.writing.results))
        task.writing = task.build = None  # they hold nodes and voxels of a scene that may be closed meanwhile
        task.handle = self._start(task.folder, self._python())
        task.state = task.handle.state

    def _fail(self, task: Task, error: Exception) -> None:
        task.state = "failed"
        message, remedy = getattr(error, "message", str(error)), getattr(error, "remedy", "")
        task.ending = {"event": "failed", "kind": "bad_input", "message": message, "remedy": remedy}
        if not (task.folder / "job.json").is_file():
            remove_tree(task.folder)

    def _handle(self, task: Task, events: list[Event]) -> None:
        handler = self._handlers.get(task.purpose)
        if handler is not None:
            handler(task, events)

    def cancel(self, task: Task) -> None:
        """Ask a task to stop; an export is given up at once."""
        task.stopping = True
        if task.state == "exporting":
            task.writing.stop()
            task.state, task.ending = "cancelled", {"event": "cancelled", "message": "Cancelled before it started."}
            remove_tree(task.folder)
            self._handle(task, [task.ending])
        elif task.active:
            task.handle.cancel()
        self._tell()

    def stop_and_keep(self, task: Task) -> None:
        """Ask a running task to finish now with the best so far."""
        if task.state == "running":
            task.stopping = True
            task.handle.stop_and_keep()
            self._tell()

    def retry(self, task: Task) -> None:
        """Start a failed or cancelled task again; it goes on from its checkpoint where there is one."""
        task.handle = self._resume(task.folder, self._python())
        task.state, task.ending, task.stopping, task.warnings = task.handle.state, None, False, []
        self._tell()

    def forget(self, task: Task) -> None:
        """Take an ended task off the list and delete its folder, when its result was taken."""
        if task in self.tasks:
            self.tasks.remove(task)
        self._leaving.append(task)
        self._clean()
        self._tell()

    def _clean(self) -> None:
        """Delete the folders of forgotten tasks whose process has ended: a worker lives on for a moment after its last
        word."""
        for task in list(self._leaving):
            alive = task.folder.is_dir() and is_alive(task.folder)
            if task.handle is not None:
                task.handle.poll()  # after the look: the end of a process that died meanwhile is taken note of
            if alive:
                continue
            self._leaving.remove(task)
            if task.folder.is_dir():
                remove_tree(task.folder)

    @property
    def busy(self) -> bool:
        """Whether `poll` has something to do."""
        return bool(self.active or self._leaving)

    @property
    def active(self) -> list[Task]:
        """Tasks that have not ended, in the order in which they were asked for."""
        return [task for task in self.tasks if task.active]

    def of(self, purpose: str) -> list[Task]:
        """All tasks with this purpose."""
        return [task for task in self.tasks if task.purpose == purpose]

    def find_earlier(self) -> list[Task]:
        """Take over the jobs of earlier sessions that no other Slicer looks after; they are told to their handlers.

        Also deletes what ended jobs have left of exported scans.
        """
        jobs.delete_scratch()
        known = {task.folder.name for task in self.tasks}
        found = []
        for row in jobs.list_jobs():
            note = row.get("note") or {}
            if row["id"] in known or "purpose" not in note or _looked_after(note):
                continue
            task = Task(Path(row["folder"]), note, state="created", handle=jobs.attach(Path(row["folder"])))
            task.note = {**note, "earlier": True}
            with contextlib.suppress(PeftsegError):  # a read-only folder: the result can be taken all the same
                jobs.write_client_note(task.folder, {**note, "client": _client()})
            found.append(task)
        self.tasks += found
        if found:
            self._tell()
        return found

    def close(self) -> None:
        """Slicer closes, or the module is unloaded: exports are given up, jobs go on without this client."""
        for task in [*self.tasks, *self._leaving]:
            if task.state == "exporting":
                self.cancel(task)
            elif task.handle is not None:
                task.handle.release()
        self.tasks.clear()
        self._leaving.clear()

    def _tell(self) -> None:
        for function in list(self._changed):
            function()


def _client() -> dict[str, Any]:
    return {"pid": os.getpid(), "start_time": start_time(os.getpid())}


def _looked_after(note: Note) -> bool:
    """Whether the Slicer that made a job still runs, and is not this one."""
    client = note.get("client") or {}
    pid = client.get("pid")
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    begun = client.get("start_time")
    return begun is not None and start_time(pid) == begun
