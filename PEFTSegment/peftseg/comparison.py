"""A comparison of methods on a user's own scans (`peftseg compare`): what runs, what is missing, and going on later."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftseg.adapter_training import Setting, starting_network
from peftseg.adapters import AUTO, attach, check_options
from peftseg.auto import usual_setting
from peftseg.auto_race import fitting_choices
from peftseg.compare import (
    TOLERANCE_MM,
    ZERO_SHOT,
    Candidate,
    check_zero_shot,
    checked_options,
    run_candidate,
)
from peftseg.compare_report import write_report
from peftseg.compare_rows import append_rows, is_done, mean_of, read_rows
from peftseg.compare_settings import FORMAT, RUNS, SETTINGS, merged_settings, task_settings
from peftseg.compare_tasks import Task, check_scans, check_tasks, of_task, task_warnings
from peftseg.device import choose_precision, release_memory
from peftseg.errors import BadInput, JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.locks import FileLock
from peftseg.models import ModelEntry
from peftseg.networks import Anatomy
from peftseg.paths import write_text
from peftseg.study import require_writable_dir

LOCK = ".lock"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes
    ----------
    entry : ModelEntry
        The base.
    tasks : tuple of Task
        Each with its structures, scans to draw support sets from, and test scans.
    candidates : tuple of Candidate
        From `compare_candidates.make_candidates`.
    shots : tuple of int
        Sizes of the support sets.
    draws : tuple of int
        Numbers of the support sets; each is also the seed.
    skipping : bool
        Leave out candidates that do not fit the model, instead of refusing them.
    """

    entry: ModelEntry
    tasks: tuple[Task, ...]
    candidates: tuple[Candidate, ...]
    shots: tuple[int, ...]
    draws: tuple[int, ...]
    device: torch.device
    epochs: int | None = None
    budget_minutes: float | None = None
    precision: str = "auto"
    tolerance_mm: float = TOLERANCE_MM
    replace_nonfinite: float | None = None
    skipping: bool = False


def run_comparison(comparison: Comparison, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Run what `out` does not hold yet, and write the report of all that it holds.

    Every scan is read and checked before the first run. A run that fails is told and left out; the others go on.

    Returns
    -------
    dict
        "runs" (path of the CSV file), "report" (path), "done" and "missing" (runs), "failed" and "skipped" (texts).

    Raises
    ------
    BadInput
        When the scans do not suffice or some cannot be used, `out` holds a comparison with other settings, or another
        process works there.
    JobCancelled
        On Ctrl-C; finished runs are kept and reported.
    """
    check_tasks(comparison.tasks, comparison.shots)
    comparison, skipped, base_fingerprint = _fitting(comparison)
    if not comparison.candidates:
        raise BadInput("No method is left to compare.", "Choose methods that fit the model with --methods.")
    wanted = settings_of(comparison, base_fingerprint)
    merged_settings(out / SETTINGS, wanted)  # refuses other settings, before all scans are read
    if missing_runs(comparison, out):
        check_scans(comparison.tasks, comparison.replace_nonfinite, reporter)
    for warning in (*_warnings(comparison), *skipped):
        reporter.warning(warning)
    require_writable_dir(out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        settings = merged_settings(out / SETTINGS, wanted)
        write_text(out / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        failed: list[str] = []
        try:
            _run_missing(comparison, out, reporter, failed)
        except (KeyboardInterrupt, JobCancelled) as interrupt:
            result = _finish(comparison, out, settings, failed, skipped, reporter)
            raise JobCancelled(
                f"Interrupted. {result['done']} of {result['done'] + result['missing']} runs are kept in {out}.",
                "Start the same command again to do the others.",
            ) from interrupt
        return _finish(comparison, out, settings, failed, skipped, reporter)


def missing_runs(comparison: Comparison, out: Path) -> list[tuple[Task, Candidate, int, int]]:
    """Task, candidate, shots and draw of what is still to be done.

    Draws come last, so that an early end is a fair comparison.
    """
    rows = read_rows(out / RUNS)
    wanted = product(comparison.draws, comparison.tasks, comparison.shots, comparison.candidates)
    return [(t, c, k, d) for d, t, k, c in wanted if not is_done(rows, t.name, c.label, k, d)]


def settings_of(comparison: Comparison, base_fingerprint: str) -> dict[str, Any]:
    """What must stay the same for runs to be comparable, as JSON knows it.

    Tasks, candidates, shots and draws may be added.
    """
    return {
        "format": FORMAT,
        "model": comparison.entry.id,
        "weights": base_fingerprint,
        "tasks": task_settings(comparison.tasks),
        "epochs": comparison.epochs,
        "budget_minutes": comparison.budget_minutes,
        "tolerance_mm": comparison.tolerance_mm,
        "replace_nonfinite": comparison.replace_nonfinite,
        "device": comparison.device.type,
        "precision": choose_precision(comparison.device, comparison.precision),
        "candidates": {
            c.label: {"method": c.method, "scratch": c.scratch, "options": checked_options(c)}
            for c in comparison.candidates
        },
    }


def _run_missing(comparison: Comparison, out: Path, reporter: Reporter, failed: list[str]) -> None:
    missing = missing_runs(comparison, out)
    started = time.monotonic()
    for number, (task, candidate, shots, draw) in enumerate(missing):
        eta = (time.monotonic() - started) / number * (len(missing) - number) if number else None
        reporter.progress("compare", number, len(missing), eta)
        reporter.check()
        where = of_task(task, comparison.tasks)
        what = f"{candidate.label}, {shots} shots{where}, draw {draw}"
        release_memory()
        try:
            rows = run_candidate(
                comparison.entry,
                task,
                candidate,
                shots,
                draw,
                comparison.device,
                epochs=comparison.epochs,
                budget_minutes=comparison.budget_minutes,
                precision=comparison.precision,
                tolerance_mm=comparison.tolerance_mm,
                replace_nonfinite=comparison.replace_nonfinite,
            )
        except JobCancelled:
            raise
        except PeftsegError as error:  # the others go on; it is told at the end, too
            failed.append(f"{what}: {error}")
            reporter.warning(f"Failed: {failed[-1]}")
            continue
        append_rows(out / RUNS, rows)
        reporter.log(f"{what}: Dice {mean_of([row['dice'] for row in rows]):.3f} in {rows[0]['seconds']} s")
    if missing:
        reporter.progress("compare", len(missing), len(missing), 0.0)
    else:
        reporter.log("No run is missing.")


def _finish(
    comparison: Comparison,
    out: Path,
    settings: dict[str, Any],
    failed: list[str],
    skipped: list[str],
    reporter: Reporter,
) -> dict[str, Any]:
    missing = len(missing_runs(comparison, out))
    wanted = (comparison.tasks, comparison.candidates, comparison.shots, comparison.draws)
    done = math.prod(len(of_kind) for of_kind in wanted) - missing
    report = write_report(out, read_rows(out / RUNS), settings, missing, failed, skipped, reporter)
    return {
        "runs": str(out / RUNS),
        "report": str(report),
        "done": done,
        "missing": missing,
        "failed": failed,
        "skipped": skipped,
    }


def _fitting(comparison: Comparison) -> tuple[Comparison, list[str], str]:
    """The comparison with the candidates that fit the model, what was left out and why, and the base's fingerprint."""
    bases = [_base(comparison, task) for task in comparison.tasks]
    # What fits depends on a task only by whether the decoder trains too.
    networks = {base.train_decoder: (base, *starting_network(base)) for base in bases}
    fitting, skipped = [], []
    for candidate in comparison.candidates:
        try:
            _check_zero_shot(candidate, comparison)
            for base, network, anatomy, _ in networks.values() if candidate.method != ZERO_SHOT else ():
                _check_fit(candidate, base, network, anatomy)
        except BadInput as error:
            if not comparison.skipping:
                raise
            skipped.append(f"{candidate.label} does not fit {comparison.entry.id} and is left out: {error.message}")
            continue
        fitting.append(candidate)
    fingerprint = next(iter(networks.values()))[-1]
    return replace(comparison, candidates=tuple(fitting)), skipped, fingerprint


def _check_zero_shot(candidate: Candidate, comparison: Comparison) -> None:
    """BadInput where the candidate is the model as it is, and that does not segment what some task asks for."""
    for task in comparison.tasks if candidate.method == ZERO_SHOT else ():
        check_zero_shot(comparison.entry, task.structures, task.name)


def _base(comparison: Comparison, task: Task) -> Setting:
    known = {s.name for s in comparison.entry.known_structures}
    novel = any(s.name not in known for s in task.structures)
    return Setting(
        comparison.entry, task.structures, "softmax", "full", {}, train_decoder=novel, device=comparison.device
    )


def _check_fit(candidate: Candidate, base: Setting, network: nn.Module, anatomy: Anatomy) -> None:
    """BadInput where a candidate cannot be attached to the network; for `auto`, where nothing that it may try can."""
    if candidate.method != AUTO:
        attach(copy.deepcopy(network), anatomy, candidate.method, candidate.options, base.train_decoder)
        return
    options = check_options(AUTO, candidate.options)
    asked = replace(base, method=AUTO, options=options, budget_minutes=1.0)
    fitting, misfits = fitting_choices(asked, network, anatomy)
    if not fitting:
        raise BadInput(
            f"Nothing that '{candidate.label}' may try fits this model: {' '.join(misfits)}",
            f"Name other methods with --option {AUTO}.methods=A,B.",
        )
    usual_setting(asked, fitting[0])  # refuses a wrong share of the time


def _warnings(comparison: Comparison) -> Iterator[str]:
    if len(comparison.draws) == 1:
        yield "One draw: intervals are over patients only, not over support sets; three or more are advised."
    yield from task_warnings(comparison.tasks, comparison.shots, len(comparison.draws))


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    if not lock.acquire():
        lock.release()
        raise BadInput(f"Another process compares in {folder}.", "Wait for it, or choose another folder with --out.")
    try:
        yield
    finally:
        lock.release()
