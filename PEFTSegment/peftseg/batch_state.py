"""A batch under way: what its parts share, how it counts, and how it tells."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from peftseg.apply_steps import Loaded
from peftseg.batch_plan import BatchStudy
from peftseg.batch_results import failed_line, identity_of, publish
from peftseg.config import ApplyJob
from peftseg.disk_space import DiskFull
from peftseg.errors import BadInput, PeftsegError
from peftseg.events import Reporter
from peftseg.manifest import Line, Manifest

LISTED = 100  # failures that the `finished` event names
Feed = Iterator[BatchStudy | None]  # None: nothing new at the moment


@dataclass
class Tally:
    """What became of the studies, and how the batch is going; written to by one thread at a time (`lock`)."""

    total: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    first_error: PeftsegError | None = None
    full: bool = False
    begun: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch under way: what all its parts need."""

    job: ApplyJob
    manifest: Manifest
    loaded: Loaded
    device: torch.device
    reporter: Reporter
    tally: Tally
    stop: threading.Event

    def settle(self, study: BatchStudy, line: Line, folder: Path | None, error: Exception | None = None) -> None:
        """Publish what became of a study, count it and say so."""
        if folder is not None:
            try:
                publish(line, folder, study, self.job, self.manifest)
            except PeftsegError as problem:
                line, folder, error = self._failed(study, problem), None, problem
        if folder is None:
            known = self.manifest.known.get(study.key)  # an earlier result is still there, and still the batch's own
            line = {**line, "outputs": [dataclasses.asdict(o) for o in known.outputs] if known else []}
            with contextlib.suppress(DiskFull):  # then its line lacks, and it counts as not done all the same
                self.manifest.append(line)
        self._count(study, line, error)

    def fail(self, study: BatchStudy, error: Exception) -> None:
        """Note that a study was not segmented."""
        self.settle(study, self._failed(study, error), None, error)

    def skip(self, study: BatchStudy) -> None:
        """Note that a study is done already."""
        with self.tally.lock:
            self.tally.skipped += 1
            self._tell(study, "skipped")

    def _failed(self, study: BatchStudy, error: Exception) -> Line:
        return failed_line(study, error, identity_of(self.loaded))

    def _count(self, study: BatchStudy, line: Line, error: Exception | None) -> None:
        with self.tally.lock:
            if line["state"] == "done":
                self.tally.done += 1
            else:
                self._count_failure(study, line, error)
            self._tell(study, line["state"])

    def _count_failure(self, study: BatchStudy, line: Line, error: Exception | None) -> None:
        said = {"study": study.key, "name": study.name, "message": line["message"], "remedy": line["remedy"]}
        if line["state"] == "retry":
            self.tally.full = True
            self.stop.set()
        self.tally.failed += 1
        if len(self.tally.failures) < LISTED:
            self.tally.failures.append(said)
        if self.tally.first_error is None:
            kind = type(error) if isinstance(error, PeftsegError) else BadInput
            self.tally.first_error = kind(line["message"], line["remedy"])
        self.reporter.warning(f"{study.name} was not segmented. {line['message']} {line['remedy']}".rstrip())

    def _tell(self, study: BatchStudy, state: str) -> None:
        tally = self.tally
        ended = tally.done + tally.failed + tally.skipped
        worked, left = tally.done + tally.failed, max(tally.total - ended, 0)
        eta = (time.monotonic() - tally.begun) / worked * left if worked else None
        self.reporter.progress(
            "segment", ended, max(tally.total, ended), eta, study=study.key, name=study.name, state=state
        )


class SharedReporter(Reporter):
    """A job's reporter that several threads may use."""

    def __init__(self, inner: Reporter) -> None:
        super().__init__(self._locked, smaller_plan=inner.smaller_plan)
        self._inner = inner
        self._lock = threading.Lock()

    def check(self) -> None:
        """As the job's."""
        self._inner.check()

    def stop_keep(self) -> bool:
        """As the job's."""
        return self._inner.stop_keep()

    def _locked(self, kind: str, fields: dict) -> None:
        with self._lock:
            {"progress": self._inner.progress, "warning": self._inner.warning, "log": self._inner.log}[kind](**fields)
