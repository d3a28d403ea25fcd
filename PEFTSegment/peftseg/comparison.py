"""A comparison of methods on a user's own scans (`peftseg compare`): what runs, what is missing, and going on later."""

from __future__ import annotations

import contextlib
import copy
import filecmp
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from peftseg.adapter_training import Setting, starting_network
from peftseg.adapters import AUTO, attach, check_options
from peftseg.compare import TOLERANCE_MM, Candidate, Task, run_candidate
from peftseg.compare_report import write_report
from peftseg.compare_rows import append_rows, is_done, mean_of, read_rows
from peftseg.device import choose_precision, release_memory
from peftseg.download import file_hash
from peftseg.errors import BadInput, JobCancelled, OutOfMemory, TrainingFailed
from peftseg.events import Reporter
from peftseg.locks import FileLock
from peftseg.models import ModelEntry
from peftseg.paths import write_text
from peftseg.study import SupportItem, require_writable_dir
from peftseg.volume import file_stem

FORMAT = 1
RUNS, SETTINGS, LOCK = "runs.csv", "compare.json", ".lock"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes
    ----------
    entry : ModelEntry
        The base.
    task : Task
        Structures, scans to draw support sets from, and test scans.
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
    task: Task
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

    Returns
    -------
    dict
        "runs" (path of the CSV file), "report" (path), "done" and "missing" (runs), "failed" and "skipped" (texts).

    Raises
    ------
    BadInput
        When the scans do not suffice, `out` holds a comparison with other settings, or another process works there.
    JobCancelled
        On Ctrl-C; finished runs are kept and reported.
    """
    comparison, skipped, base_fingerprint = _fitting(comparison)
    _check(comparison)
    wanted = settings_of(comparison, base_fingerprint)
    for warning in (*_warnings(comparison), *skipped):
        reporter.warning(warning)
    require_writable_dir(out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        settings = _merged_settings(out / SETTINGS, wanted)
        write_text(out / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        failed: list[str] = []
        try:
            _run_missing(comparison, out, reporter, failed)
        except KeyboardInterrupt as interrupt:
            result = _finish(comparison, out, settings, failed, skipped, reporter)
            raise JobCancelled(
                f"Interrupted. {result['done']} of {result['done'] + result['missing']} runs are kept in {out}.",
                "Start the same command again to do the others.",
            ) from interrupt
        return _finish(comparison, out, settings, failed, skipped, reporter)


def missing_runs(comparison: Comparison, out: Path) -> list[tuple[Candidate, int, int]]:
    """Candidate, shots and draw of what is still to be done; draws come last, so that an early end is a fair comparison."""
    rows = read_rows(out / RUNS)
    wanted = [(c, k, d) for d in comparison.draws for k in comparison.shots for c in comparison.candidates]
    return [(c, k, d) for c, k, d in wanted if not is_done(rows, comparison.task.name, c.label, k, d)]


def settings_of(comparison: Comparison, base_fingerprint: str) -> dict[str, Any]:
    """What must stay the same for runs to be comparable, as JSON knows it; candidates, shots and draws may be added."""
    task = comparison.task
    return {
        "format": FORMAT,
        "model": comparison.entry.id,
        "weights": base_fingerprint,
        "structures": {s.name: s.value for s in task.structures},
        "support": {file_stem(item.image): _identity(item) for item in task.support},
        "test": {file_stem(item.image): _identity(item) for item in task.test},
        "epochs": comparison.epochs,
        "budget_minutes": comparison.budget_minutes,
        "tolerance_mm": comparison.tolerance_mm,
        "replace_nonfinite": comparison.replace_nonfinite,
        "device": comparison.device.type,
        "precision": choose_precision(comparison.device, comparison.precision),
        "candidates": {
            c.label: {"method": c.method, "scratch": c.scratch, "options": check_options(c.method, c.options)}
            for c in comparison.candidates
        },
    }


def _run_missing(comparison: Comparison, out: Path, reporter: Reporter, failed: list[str]) -> None:
    missing = missing_runs(comparison, out)
    started = time.monotonic()
    for number, (candidate, shots, draw) in enumerate(missing):
        eta = (time.monotonic() - started) / number * (len(missing) - number) if number else None
        reporter.progress("compare", number, len(missing), eta)
        reporter.check()
        what = f"{candidate.label}, {shots} shots, draw {draw}"
        release_memory()
        try:
            rows = run_candidate(
                comparison.entry,
                comparison.task,
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
        except (OutOfMemory, TrainingFailed) as error:  # it says something about the method; the others go on
            failed.append(f"{what}: {error.message}")
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
    done = len(comparison.candidates) * len(comparison.shots) * len(comparison.draws) - missing
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
    known = {s.name for s in comparison.entry.known_structures}
    novel = any(s.name not in known for s in comparison.task.structures)
    base = Setting(
        comparison.entry,
        comparison.task.structures,
        "softmax",
        "full",
        {},
        train_decoder=novel,
        device=comparison.device,
    )
    network, anatomy, base_fingerprint = starting_network(base)
    fitting, skipped = [], []
    for candidate in comparison.candidates:
        if candidate.method == AUTO:  # it looks itself for what fits
            fitting.append(candidate)
            continue
        try:
            attach(copy.deepcopy(network), anatomy, candidate.method, candidate.options, novel)
        except BadInput as error:
            if not comparison.skipping:
                raise
            skipped.append(f"{candidate.label} does not fit {comparison.entry.id} and is left out: {error.message}")
            continue
        fitting.append(candidate)
    return replace(comparison, candidates=tuple(fitting)), skipped, base_fingerprint


def _check(comparison: Comparison) -> None:
    """Refuse what cannot be run, or would not be a test."""
    task = comparison.task
    if not comparison.candidates:
        raise BadInput("No method is left to compare.", "Choose methods that fit the model with --methods.")
    for shots in comparison.shots:
        if not 1 <= shots <= len(task.support):
            raise BadInput(
                f"{shots} shots cannot be drawn from {len(task.support)} support scans.",
                f"Give --shots from 1 to {len(task.support)}.",
            )
    for item in task.test:
        sliced = [name for name, state in item.states.items() if state.slices is not None]
        if sliced:
            raise BadInput(
                f"The test scan {file_stem(item.image)} labels {sliced[0]} on some slices only.",
                "A test scan must be labelled as a whole: complete it, or move it to the support scans.",
            )
    for item in task.test:
        same = next((s for s in task.support if _same_file(s.image, item.image)), None)
        if same is not None:
            raise BadInput(
                f"The test scan {file_stem(item.image)} is also the support scan {file_stem(same.image)}.",
                "Scores on scans that were learnt from say nothing: move it out of one of the folders.",
            )


def _warnings(comparison: Comparison) -> list[str]:
    scans, draws = len(comparison.task.support), len(comparison.draws)
    found = []
    if draws == 1:
        found.append("One draw: intervals are over patients only, not over support sets; three or more are advised.")
    elif scans in comparison.shots:
        found.append(f"{scans} shots of {scans} scans are the same scans in every draw; only the seed differs.")
    if len(comparison.task.test) < 2:
        found.append("One test scan: intervals say nothing about other patients.")
    return found


def _same_file(first: str, second: str) -> bool:
    one, other = Path(first), Path(second)
    if not (one.is_file() and other.is_file()):
        return one.resolve() == other.resolve()
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)


def _identity(item: SupportItem) -> str:
    """What tells that a scan or its labels were changed: size of the image, hash of the labels, states."""
    image = Path(item.image)
    size = image.stat().st_size if image.is_file() else sum(p.stat().st_size for p in image.iterdir() if p.is_file())
    states = [f"{name} {state.state} {state.slices} {state.axis}" for name, state in sorted(item.states.items())]
    return "; ".join([str(size), file_hash(Path(item.labels), "sha256")[:16], *states])


def _merged_settings(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The settings with the candidates that are there already; BadInput says what differs."""
    if not path.is_file():
        if (path.parent / RUNS).is_file():
            raise BadInput(f"{path} is missing beside {RUNS}.", "Restore it, or choose another folder.")
        return new
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}).", "Restore it, or choose another folder.") from error
    differing = [
        _difference(key, old.get(key), new[key]) for key in new if key != "candidates" and old.get(key) != new[key]
    ]
    before, now = old.get("candidates", {}), new["candidates"]
    differing += [
        _difference(label, before[label], now[label]) for label in now if before.get(label, now[label]) != now[label]
    ]
    if differing:
        raise BadInput(
            f"{path.parent} holds a comparison with other settings: {'; '.join(differing)}.",
            "Give the same settings to go on with it, or another folder with --out.",
        )
    return new | {"candidates": before | now}


def _difference(name: str, old: Any, new: Any) -> str:
    """What differs, down to the entry of a table."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(_difference(f"{name}.{key}", old.get(key), new.get(key)) for key in keys)
    return f"{name} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


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
