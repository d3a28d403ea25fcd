"""Reading, inference and writing of a batch at the same time, in three threads of one process."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftseg.apply_steps import Found
from peftseg.batch_plan import BatchStudy
from peftseg.batch_results import Read, StudyReporter, read_study, segment_read, write_study
from peftseg.batch_state import Batch, Feed
from peftseg.disk_space import disk_full
from peftseg.errors import JobCancelled

AHEAD_BYTES = 1 << 30  # scans that are in memory beside the one that is segmented, at most; one is always allowed
AHEAD = 3  # and so many of them
TICK_S = 0.1  # how often a waiting thread looks whether it is to end
LAST_WRITE_S = 1.2  # a cancelled batch waits so long for the file that is being written


class Pipeline:
    """Reading, inference and writing in three threads of this process."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.read: queue.Queue[Read | Exception | None] = queue.Queue(AHEAD)
        self.written: queue.Queue[tuple[Read, Found, list[str]] | None] = queue.Queue(1)
        self.room = Room(AHEAD_BYTES)
        self.leaving = threading.Event()  # the writer ends after what it is writing
        self.abandoned = threading.Event()  # nothing that it does counts any more

    def run(self, feed: Feed) -> None:
        """Work off the feed; returns when all is written, or the user asked to stop."""
        batch = self.batch
        reader = threading.Thread(target=self._read_all, args=(feed,), name="batch reader", daemon=True)
        writer = threading.Thread(target=self._write_all, name="batch writer", daemon=True)
        reader.start()
        writer.start()
        try:
            for read in self._next_ones():
                self._segment(read)
            self._put(self.written, None)
            while writer.is_alive():
                batch.reporter.check()
                writer.join(TICK_S)
        finally:  # a cancelled batch leaves the reader behind, and a file that is being written a moment
            batch.stop.set()
            self.leaving.set()
            writer.join(LAST_WRITE_S)
            self.abandoned.set()

    def _next_ones(self) -> Iterator[Read]:
        batch = self.batch
        while not (batch.tally.full and self.read.empty()):
            batch.reporter.check()
            if batch.reporter.stop_keep():
                batch.stop.set()
                batch.reporter.log("Stopped on request; what is done is kept.")
                return
            try:
                item = self.read.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            if not batch.tally.full:
                yield item

    def _segment(self, read: Read) -> None:
        batch = self.batch
        speaker = StudyReporter(batch.reporter, read.study)
        try:
            found = segment_read(read, batch.loaded, batch.job, batch.device, speaker)
        except JobCancelled:
            raise
        except Exception as error:  # one bad study never stops the others
            self.room.leave(read.bytes)
            batch.fail(read.study, error)
            return
        self._put(self.written, (read, found, speaker.said))

    def _put(self, where: queue.Queue, item: Any) -> None:
        """Put into a bounded queue, and look whether the user cancels while it is full."""
        while True:
            self.batch.reporter.check()
            with contextlib.suppress(queue.Full):
                where.put(item, timeout=TICK_S)
                return

    def _read_all(self, feed: Feed) -> None:
        ending: Exception | None = None
        try:
            for study in feed:
                if self.batch.stop.is_set():
                    break
                if study is not None and self.room.wait(self.batch.stop):
                    self._read_one(study)
        except Exception as error:  # to be raised where the batch runs
            ending = error
        self._offer(ending)

    def _read_one(self, study: BatchStudy) -> None:
        batch = self.batch
        try:
            read = read_study(study, batch.loaded, batch.job)
        except Exception as error:  # one bad study never stops the others
            batch.fail(study, error)
            return
        self.room.enter(read.bytes)
        self._offer(read)

    def _offer(self, item: Read | Exception | None) -> None:
        while True:
            with contextlib.suppress(queue.Full):
                self.read.put(item, timeout=TICK_S)
                return
            if self.batch.stop.is_set():
                return

    def _write_all(self) -> None:
        while not self.leaving.is_set():
            try:
                item = self.written.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if item is None:
                return
            self._write(*item)

    def _write(self, read: Read, found: Found, said: list[str]) -> None:
        batch = self.batch
        try:
            if batch.tally.full:
                raise disk_full(Path(batch.job.out))
            line, folder = write_study(read, found, batch.loaded, batch.job, said)
            if not self.abandoned.is_set():
                batch.settle(read.study, line, folder)
        except Exception as error:  # one bad study never stops the others
            if not self.abandoned.is_set():
                batch.fail(read.study, error)
        finally:
            self.room.leave(read.bytes)


class Room:
    """How many bytes of scans are in memory; one is always let in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    def wait(self, stop: threading.Event) -> bool:
        """Wait until there is room; False when the batch is to end."""
        with self._changed:
            while self._used >= self._limit and not stop.is_set():
                self._changed.wait(TICK_S)
        return not stop.is_set()

    def enter(self, size: int) -> None:
        """A scan is in memory."""
        with self._changed:
            self._used += size

    def leave(self, size: int) -> None:
        """A scan is not needed any more."""
        with self._changed:
            self._used -= size
            self._changed.notify_all()
