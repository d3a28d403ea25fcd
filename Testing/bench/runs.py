"""Runs of a comparison on real data, several at a time, kept in a CSV file: what it holds is not run again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path

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
    from peftseg.adapters import METHODS

    for info in METHODS.values():  # now, so that all runs use the same code while files change
        if info.module:
            import_module(info.module)
    keep_rows(run, [((job[0].name, job[1].label, job[2], job[3]), (job,)) for job in jobs], out, workers)


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

    A job is its key and the function's arguments; `start` is called once in each worker process.
    """
    from peftseg.compare_rows import append_rows, is_done, read_rows

    rows = read_rows(out)
    missing = [arguments for key, arguments in jobs if not is_done(rows, *key)]
    print(f"{len(missing)} runs to do", flush=True)
    with ProcessPoolExecutor(workers, initializer=start) as pool:
        for future in as_completed([pool.submit(function, *arguments) for arguments in missing]):
            found = future.result()
            append_rows(out, found)
            _tell(found)


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
