"""Runs one job in this process: `python -m peftseg worker JOBDIR`. Torch-free until the job starts."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from peftseg import config
from peftseg.adapters.table import AUTO, check_options
from peftseg.auto_choices import starters
from peftseg.errors import BadInput, JobCancelled, OutOfMemory, PeftsegError, unknown_name
from peftseg.events import Echo, EventLog, Reporter, plain
from peftseg.job_folder import is_alive, record_process
from peftseg.licences import usable
from peftseg.locks import FileLock
from peftseg.paths import locks_dir, remove_tree
from peftseg.site_options import check_site_options
from peftseg.version import __version__

QUEUE_POLL_S = 0.2
Runner = Callable[[Any, Reporter], dict[str, Any]]


def _runner(module: str, function: str, check: Callable[[Any], Any] | None = None) -> Runner:
    """Runs a job by an engine function that is imported then, because that takes seconds.

    What can be checked without it is checked first: a wrong name of a model, and what `check` looks at.
    """

    def run_job(job: Any, reporter: Reporter) -> dict[str, Any]:
        if getattr(job, "model", None) is not None:
            usable(job.model)
        if check is not None:
            check(job)
        return getattr(import_module(module), function)(job, reporter)

    return run_job


def _check_method(job: config.AdaptJob | config.CheckJob) -> None:
    options = check_options(job.method, job.options)
    if job.method == AUTO:
        starters(options["methods"])


def _check_preset(job: config.SiteAdaptJob) -> None:
    check_site_options(job.preset, job.options)


RUNNERS: dict[str, Runner] = {
    "adapt": _runner("peftseg.train", "run_adapt", _check_method),
    "apply": _runner("peftseg.apply", "run_apply"),
    "pretrain": _runner("peftseg.pretrain", "run_pretrain"),
    "check": _runner("peftseg.check", "run_check", _check_method),
    "rank": _runner("peftseg.rank", "run_rank"),
    "suggest": _runner("peftseg.suggest", "run_suggest"),
    "site_adapt": _runner("peftseg.site_adapt", "run_site_adapt", _check_preset),
    "grad_cam": _runner("peftseg.explain.runs", "run_grad_cam"),
    "proto_seg": _runner("peftseg.explain.runs", "run_proto_seg"),
    "export_dicom": _runner("peftseg.export_dicom", "run_export"),
}


def main(jobdir: str | Path, runners: Mapping[str, Runner] = RUNNERS) -> int:
    """Run a job as this process's only task, with all other output in its `worker.log`; returns the exit code."""
    jobdir = existing_job(jobdir)
    with output_in(jobdir / "worker.log"):
        return run(jobdir, runners)


def run(jobdir: Path, runners: Mapping[str, Runner] = RUNNERS, echo: Echo | None = None) -> int:
    """Run a job in this process and write its events, ending with exactly one ending event.

    Parameters
    ----------
    jobdir : Path
        The job folder.
    runners : mapping of str to callable
        Engine function a job kind; takes (job, reporter), returns the payload of `finished`.
    echo : callable or None
        Called with each event.

    Returns
    -------
    int
        Exit code: 0 finished, 1 internal error, 2 bad input, 3 cancelled, 4 out of memory.
    """
    jobdir = existing_job(jobdir)
    lock = FileLock(jobdir / "worker.lock")
    if not lock.acquire():
        raise BadInput(f"Job {jobdir.name} runs already in another process.", "Wait for it, or cancel it.")
    try:
        return _run(jobdir, runners, echo)
    finally:
        lock.release()


def _run(jobdir: Path, runners: Mapping[str, Runner], echo: Echo | None) -> int:
    log = EventLog(jobdir / "events.jsonl", echo)
    if log.ended:
        raise BadInput(f"Job {jobdir.name} has ended.", "Run `peftseg jobs resume`, or create a new job.")
    by_hand = not is_alive(jobdir)  # else the client has noted this process, or the launcher that started it
    if by_hand:
        record_process(jobdir, os.getpid())
    kind, fields, code = _outcome(jobdir, log, runners)
    if (jobdir / "scratch").is_dir():
        remove_tree(jobdir / "scratch")
    log.append(kind, fields)
    if by_hand:  # this process goes on with something else
        (jobdir / "process.json").unlink()
    return code


def existing_job(jobdir: str | Path) -> Path:
    """The absolute path of a job folder; BadInput when it is none."""
    folder = Path(jobdir).absolute()
    if not (folder / "job.json").is_file():
        raise BadInput(f"{folder} is not a job folder: it has no job.json.", "Create one with peftseg.jobs.create_job.")
    return folder


@contextlib.contextmanager
def output_in(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Send everything that is printed in the block, by Python and by C libraries, to a file.

    Yields the real standard output and standard error as text streams.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        with open(log, "ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        with _text_stream(kept[0]) as out, _text_stream(kept[1]) as err:
            yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _text_stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", errors="replace", closefd=False)


def _outcome(jobdir: Path, log: EventLog, runners: Mapping[str, Runner]) -> tuple[str, dict[str, Any], int]:
    """Run the job; returns kind, fields and exit code of its ending."""
    try:
        job = config.from_json((jobdir / "job.json").read_text(encoding="utf-8"))
        kind = config.kind_of(job)
        if kind not in runners:
            raise unknown_name("job kind", kind, runners)
        reporter = Reporter.for_job(jobdir, log)
        with device_lock(getattr(job, "device", ""), jobdir.name, log, reporter) as device:
            about = {"kind": kind, "device": device, "version": __version__, "python": platform.python_version()}
            log.append("started", {**about, "pid": os.getpid(), "resumed": _resumes(reporter)})
            return "finished", _payload(runners[kind](job, reporter)), 0
    except (JobCancelled, KeyboardInterrupt) as error:
        return "cancelled", {"message": str(error) or "The job was interrupted."}, JobCancelled.exit_code
    except Exception as error:
        traceback.print_exc()
        failure = error if isinstance(error, PeftsegError) else _translated(error)
        return "failed", {"kind": failure.kind, "message": failure.message, "remedy": failure.remedy}, failure.exit_code


def _payload(result: dict[str, Any]) -> dict[str, Any]:
    """A runner's result as fields of the `finished` event."""
    reserved = {"event", "time"} & set(result)
    if reserved:
        raise ValueError(f"a result must not be called {', '.join(reserved)}")
    return plain(result)


def _resumes(reporter: Reporter) -> bool:
    return reporter.checkpoint is not None and reporter.checkpoint.is_file()


def _translated(error: Exception) -> PeftsegError:
    """What the user is told of an error that the engine did not raise on purpose."""
    out_of_memory = isinstance(error, MemoryError)
    if not out_of_memory and "torch" in sys.modules:
        from peftseg.device import is_out_of_memory

        out_of_memory = is_out_of_memory(error)
    if out_of_memory:
        return OutOfMemory(f"Memory ran out ({error}).", "Close other programs, or choose a smaller study or patch.")
    return PeftsegError(
        f"An error inside PEFTSegment: {type(error).__name__}: {error}.",
        "Report it with the end of worker.log and the output of `peftseg doctor`.",
    )


@contextlib.contextmanager
def device_lock(wanted: str, job_id: str, log: EventLog, reporter: Reporter) -> Iterator[str]:
    """Hold a device for this job, after waiting for the job that holds it; yields the device's name.

    A job that uses none ("") waits for nobody.
    """
    if not wanted:
        yield "none"
        return
    device = _device_name(wanted)
    host = "".join(c if c.isalnum() else "-" for c in platform.node())  # a home folder may be shared by machines
    lock = FileLock(locks_dir() / f"{host}-{device.replace(':', '')}.lock")
    try:
        if not lock.acquire(job_id):
            log.append("queued", {"device": device, "behind": lock.holder()})
            while not lock.acquire(job_id):
                reporter.check()
                time.sleep(QUEUE_POLL_S)
        reporter.check()
        yield device
    finally:
        lock.release()


def _device_name(wanted: str) -> str:
    """The device behind a job's wish; only "cpu" is known without torch."""
    if wanted == "cpu":
        return "cpu"
    from peftseg.device import choose_device

    return str(choose_device(wanted))
