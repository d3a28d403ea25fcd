"""Any number of studies as one job: a manifest, no study twice, none that stops the others (Docs/batch.md).

`batch_plan` says what there is to do, `batch_pipeline` does it in this process and `cluster` in many, `batch_results` writes
files and the manifest's lines, `batch_report` what is for people.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftseg.apply_steps import load
from peftseg.batch_pipeline import Pipeline
from peftseg.batch_plan import Planner, is_done, watched
from peftseg.batch_report import write_measurements, write_report
from peftseg.batch_results import PART, refuse_strangers
from peftseg.batch_state import Batch, Feed, SharedReporter, Tally
from peftseg.config import ApplyJob
from peftseg.device import choose_device
from peftseg.disk_space import DiskFull, disk_full
from peftseg.errors import BadInput, PeftsegError
from peftseg.events import Reporter
from peftseg.locks import FileLock
from peftseg.manifest import Manifest
from peftseg.paths import locks_dir, remove_tree
from peftseg.study import require_writable_dir

LISTED = 5000  # of more studies the first event does not tell the names
REPORT_EVERY_S = 60.0  # a watched folder's report is renewed at most this often


def run_batch(job: ApplyJob, reporter: Reporter) -> dict[str, Any]:
    """Segment every input that is not done yet; see Docs/batch.md for the files that this leaves.

    Returns
    -------
    dict
        "studies", "done", "skipped" (done before), "failed_count" (numbers), "failed" (the first 100: "study", "name",
        "message", "remedy"), "manifest", "measurements", "report" (paths, the last one or null), "left_out" (sentences),
        "provenance", "seconds".

    Raises
    ------
    BadInput
        Adapter, model, inputs or output folder cannot be used; results of another adapter are there; another batch works
        there; the disk is full.
    PeftsegError
        No study could be segmented: the first one's error.
    """
    started = time.monotonic()
    out = Path(job.out)
    require_writable_dir(out)
    reporter = SharedReporter(reporter)
    with (
        _only_batch_in(out),
        tempfile.TemporaryDirectory(prefix="peftseg-batch-", ignore_cleanup_errors=True) as scratch,  # for archives
    ):
        reporter.progress("load", 0, 1)
        manifest = Manifest(out)
        if manifest.damaged:
            reporter.warning(
                f"{manifest.path.name} has {manifest.damaged} damaged line(s); these studies are done again."
            )
        planner = Planner(job, manifest)
        plan = None if job.watch else planner.plan(Path(scratch), reporter)
        loaded = load(job)
        manifest.require(*loaded.identity)
        for text in loaded.lacks:
            reporter.warning(text)
        if (out / PART).is_dir():
            remove_tree(out / PART)  # of a batch that was killed
        left_out = plan.left_out if plan is not None else ()
        for text in left_out:
            reporter.log(text)
        tally = Tally(total=len(plan.studies) if plan is not None else 0)
        if plan is not None and tally.total <= LISTED:
            waiting = [{"study": study.key, "name": study.name} for study in plan.studies]
            reporter.progress("segment", 0, tally.total, studies=waiting)
        batch = Batch(job, manifest, loaded, choose_device(job.device), reporter, tally, threading.Event())
        feed = iter(plan.studies) if plan is not None else watched(planner, job.settle_s, batch.stop.wait)
        try:
            _run(batch, _wanted(batch, feed))
        finally:
            with contextlib.suppress(PeftsegError):
                if (out / PART).is_dir():
                    remove_tree(out / PART)
        files = _summaries(batch)
    _raise_unless_useful(batch)
    _tell_unchecked(batch)
    return {
        "studies": tally.done + tally.skipped + tally.failed,
        "done": tally.done,
        "skipped": tally.skipped,
        "failed_count": tally.failed,
        "failed": tally.failures,
        "manifest": str(manifest.path),
        **files,
        "left_out": list(left_out),
        "provenance": loaded.provenance,
        "seconds": round(time.monotonic() - started, 1),
    }


def _tell_unchecked(batch: Batch) -> None:
    """Say where results of an earlier run were left as they are although checks are asked for now."""
    if batch.job.quality == "none" or not batch.tally.skipped:
        return
    known = batch.manifest.known.values()
    unchecked = sum(study.state == "done" and study.quality == "none" for study in known)
    if unchecked:
        batch.reporter.warning(
            f"{unchecked} studies were done in an earlier run without checks of quality, and are not done again; to check "
            "them, choose another folder."
        )


def _run(batch: Batch, feed: Feed) -> None:
    if batch.job.workers or batch.job.cluster:
        from peftseg.cluster import run_on_workers

        run_on_workers(batch, feed)
    else:
        Pipeline(batch).run(feed)


def _wanted(batch: Batch, feed: Feed) -> Feed:
    """What is to be done of the feed; the rest is skipped or refused here."""
    renewed = time.monotonic()
    for study in feed:
        if study is None:
            if time.monotonic() - renewed > REPORT_EVERY_S:
                _summaries(batch)
                renewed = time.monotonic()
            yield None
            continue
        if batch.job.watch:
            batch.tally.total += 1
        try:
            if is_done(study, batch.manifest, batch.job.format):
                batch.skip(study)
                continue
            refuse_strangers(study, study.targets(batch.job.format), Path(batch.job.out), batch.manifest)
        except (PeftsegError, OSError) as error:  # the study vanished, or a file is in its place
            batch.fail(study, error)
            continue
        yield study


def _summaries(batch: Batch) -> dict[str, str | None]:
    """Write measurements and report anew; on a full disk the old ones stay."""
    out, tally = Path(batch.job.out), batch.tally
    name, digest = batch.loaded.identity
    facts = (
        f"Made with {name} ({digest[:12]}).",
        f"This run: {tally.done} done, {tally.skipped} done before, {tally.failed} not segmented.",
    )
    written: dict[str, str | None] = {"measurements": None, "report": None}
    if not batch.manifest.path.is_file():
        return written
    try:
        written["measurements"] = str(write_measurements(batch.manifest, out))
        if batch.job.report:
            written["report"] = str(write_report(batch.manifest, out, facts))
    except BadInput as error:
        batch.reporter.warning(f"The measurements and the report are not up to date. {error}")
    return written


def _raise_unless_useful(batch: Batch) -> None:
    tally = batch.tally
    if tally.full:
        error = disk_full(Path(batch.job.out))
        left = max(tally.total - tally.done - tally.skipped, tally.failed)
        raise DiskFull(f"{error.message} {tally.done} studies were done, {left} are left.", error.remedy)
    if tally.first_error is not None and not tally.done and not tally.skipped:
        raise tally.first_error


@contextlib.contextmanager
def _only_batch_in(out: Path) -> Iterator[None]:
    """Refuse a second batch of this machine and user in one folder."""
    digest = hashlib.sha256(str(out.absolute()).encode("utf-8", errors="replace")).hexdigest()[:16]
    lock = FileLock(locks_dir() / f"batch-{digest}.lock")
    if not lock.acquire():
        lock.release()
        raise BadInput(f"Another batch writes into {out} at this moment.", "Wait for it, or choose another folder.")
    try:
        yield
    finally:
        lock.release()
