"""Runs of a comparison on real data, several at a time, kept in a CSV file: what it holds is not run again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path

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
    from peftseg.compare_rows import append_rows, is_done, mean_of, read_rows

    for info in METHODS.values():  # now, so that all runs use the same code while files change
        if info.module:
            import_module(info.module)
    rows = read_rows(out)
    missing = [job for job in jobs if not is_done(rows, job[0].name, job[1].label, job[2], job[3])]
    print(f"{len(missing)} runs to do", flush=True)
    with ProcessPoolExecutor(workers, initializer=os.nice, initargs=(10,)) as pool:
        for future in as_completed([pool.submit(run, job) for job in missing]):
            found = future.result()
            append_rows(out, found)
            first, mean = found[0], mean_of([row["dice"] for row in found])
            print(
                f"{first['task']} {first['candidate']} {first['shots']} shots, draw {first['draw']}: {mean:.3f} "
                f"in {first['seconds']} s",
                flush=True,
            )
