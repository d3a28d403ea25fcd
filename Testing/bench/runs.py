"""Runs on real data, several at a time, kept in a CSV file: of a comparison each in a process of its own.

What the file holds is not run again. Time on the clock ("seconds") is taken at low priority beside other work and says
little; "cpu_seconds" and "memory_added_mib" are of one run alone.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
Key = tuple[str, str, int, int]  # task, candidate, shots and draw, as in the CSV file
# Task, candidate, shots, draw, epochs (None: the engine's own) and id of the base.
Job = tuple[object, object, int, int, "int | None", str]


def run(job: Job) -> list[dict]:
    """One run in a worker process with one thread."""
    import torch

    from peftseg.compare import run_candidate
    from peftseg.models import resolve

    task, candidate, shots, draw, epochs, base = job
    return run_candidate(resolve(base), task, candidate, shots, draw, torch.device("cpu"), epochs=epochs)


def run_missing(jobs: Iterable[Job], out: Path, workers: int) -> None:
    """Run what the CSV file does not hold, `workers` at a time; they give way to other work."""
    keep_rows(run, [((job[0].name, job[1].label, job[2], job[3]), (job,)) for job in jobs], out, workers)


def import_engine() -> None:
    """Import all of the engine now, so that all runs use the same code while files change."""
    import peftseg

    for found in pkgutil.walk_packages(peftseg.__path__, "peftseg."):
        if not found.name.endswith("__main__"):
            with suppress(ImportError):  # an extra that is not installed, so that no run needs it either
                import_module(found.name)


def give_way() -> None:
    """Let other work go first, in a worker process."""
    os.nice(10)


def keep_rows(
    function: Callable[..., list[dict]],
    jobs: Iterable[tuple[Key, tuple]],
    out: Path,
    workers: int,
    start: Callable[[], None] = give_way,
) -> None:
    """Call a function for every job that the CSV file does not hold, `workers` at a time, and add its rows.

    A job is its key and the function's arguments; `start` is called first in each worker process.
    """
    from peftseg.compare_rows import append_rows, is_done, read_rows

    rows = read_rows(out)
    missing = [arguments for key, arguments in jobs if not is_done(rows, *key)]
    print(f"{len(missing)} runs to do", flush=True)
    if missing:
        import_engine()
    for found in in_own_processes(function, missing, workers, start):
        append_rows(out, found)
        _tell(found)


class KeyedJob(Protocol):
    """A job of which the key says which row of the CSV file is its own."""

    def key(self) -> tuple[str, ...]:
        """As in the CSV file."""
        ...


def add_rows(
    function: Callable[[Any], dict[str, Any]],
    jobs: Iterable[KeyedJob],
    path: Path,
    workers: int,
    keys: Sequence[str],
    facts: Sequence[str],
    measures: Sequence[str],
) -> None:
    """Call a function for every job that the CSV file does not hold, `workers` at a time, and add its one row.

    Workers stay for all jobs, so that what they cache serves the next one, too. Keys and facts are printed.
    """
    from peftseg.compare_rows import append_rows, read_rows

    told = (*keys, *facts)
    done = {tuple(row[key] for key in keys) for row in read_rows(path, told)}
    missing = [job for job in jobs if job.key() not in done]
    print(f"{len(missing)} runs to do", flush=True)
    with ProcessPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(function, job) for job in missing]):
            row = future.result()
            append_rows(path, [row], (*told, *measures))
            print(*(row.get(column, "") for column in told), flush=True)


def run_or_print(
    doc: str | None,
    rows: Path,
    run_stage: Callable[[argparse.Namespace], None],
    print_stage: Callable[[Path], None],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """The command line of a script with the stages `run` and `table`.

    Parameters
    ----------
    rows : Path
        The committed rows, the default of `--rows`.
    run_stage, print_stage : callable
        Get the arguments (`data`, `rows`, `workers` and those of `add_options`), and the file of rows.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=Path, default=rows)
    parser.add_argument("--workers", type=int, default=2)
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.stage == "table":
        print_stage(arguments.rows)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    run_stage(arguments)


def in_own_processes(
    function: Callable[..., list[dict]],
    calls: Iterable[tuple],
    workers: int,
    start: Callable[[], None] = give_way,
) -> Iterator[list[dict]]:
    """Call a function with each of the arguments, each time in a fresh process; yields results as they come.

    In a process that trained before, memory that it kept would hide what the next training takes. (The pool of the
    standard library has `max_tasks_per_child` from Python 3.11 on, and not where processes are forked, which is what keeps
    the code the same while files change.) An error in a process, or its sudden end, ends the others and is raised.
    """
    waiting, running = deque(calls), {}
    context = get_context("fork" if sys.platform == "linux" else None)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(sender, start, function, waiting.popleft()))
                process.start()
                sender.close()  # ours, so that the end of the process ends the pipe
                running[receiver] = process
            for receiver in wait(list(running)):
                yield _result(receiver, running.pop(receiver))
    finally:
        for process in running.values():
            process.terminate()


def _answer(sender: Connection, start: Callable[[], None], function: Callable, arguments: tuple) -> None:
    """In the new process: send the result, or the error."""
    start()
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        if hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(traceback.format_exc())
        sender.send((None, error))


def _result(receiver: Connection, process: BaseProcess) -> list[dict]:
    try:
        found, error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"A run ended without a result (exit code {process.exitcode}).") from None
    finally:
        receiver.close()
    process.join()
    if error is not None:
        raise error
    return found


def _tell(found: list[dict]) -> None:
    """Print the mean Dice of every candidate in a run's rows."""
    from peftseg.compare_rows import mean_of

    for label in dict.fromkeys(row["candidate"] for row in found):
        own = [row for row in found if row["candidate"] == label]
        first, mean = own[0], mean_of([row["dice"] for row in own])
        chosen = f", {first['chosen']}" if first.get("chosen") else ""
        print(
            f"{first['task']} {label} {first['shots']} shots, draw {first['draw']}: {mean:.3f} in {first['seconds']} s"
            f"{chosen}",
            flush=True,
        )
