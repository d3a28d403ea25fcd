"""A batch over many processes and machines, by `dask.distributed` (extra `cluster`).

Workers read, segment and write results into folders of their own beside the output; this process, the client, moves them
to their place and keeps the manifest. So a study that is computed twice, because its worker was lost, has one result.
Each worker loads the model once. Only a few studies a worker are handed out at a time.

Every worker needs the same folders under the same paths, and peftseg of the same version with the same adapter and model.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftseg.batch_plan import BatchStudy
from peftseg.batch_state import Batch, Feed
from peftseg.config import ApplyJob
from peftseg.errors import BadInput, PeftsegError
from peftseg.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

AHEAD = 2  # studies a worker thread that are handed out at a time: one is worked on, one waits
POLL_S = 0.05
LOOK_S = 1.0
CONNECT_S = 20
NO_WORKERS_S = 300.0  # without any worker for so long, the batch gives up
RETRIES = 2  # of a study whose task failed by an error that nobody foresaw; a lost worker is retried by the scheduler
CLOSE_S = 1.0
ANY_PORT = "127.0.0.1:0"
Closing = Callable[[], None]


def run_on_workers(batch: Batch, feed: Feed) -> None:
    """Work off a batch's feed on the workers of a cluster.

    Raises
    ------
    BadInput
        dask.distributed is missing, the cluster cannot be reached, it has no workers or not the resource, or it was lost.
    JobCancelled
        The user cancelled; tasks that wait are taken back.
    """
    _require_distributed()
    client, close = _connect(batch)
    try:
        _hand_out(batch, feed, client)
    finally:
        batch.stop.set()
        close()


def _require_distributed() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"Workers and clusters need dask.distributed, which cannot be imported ({error}).",
            'Install it: pip install "peftseg[cluster]".',
        ) from error


def _connect(batch: Batch) -> tuple[Client, Closing]:
    """A client with the model's plugin on its workers, and what closes both again."""
    from peftseg.cluster_worker import Model

    client, close = _own_workers(batch) if batch.job.workers else _cluster_at(batch.job.cluster)
    try:
        threads = max(1, _cores() // batch.job.workers) if batch.job.workers else 0
        client.register_plugin(Model(batch.job, batch.loaded.identity, threads))
    except Exception as error:
        close()
        raise BadInput(
            f"The workers do not take the job ({type(error).__name__}: {error}).",
            f"Install peftseg {__version__} and the same Python packages on every worker.",
        ) from error
    return client, close


def _cores() -> int:
    """Cores of the processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_workers(batch: Batch) -> tuple[Client, Closing]:
    """Processes on this machine, one thread each, reachable from this machine only."""
    from distributed import Client

    scratch = tempfile.mkdtemp(prefix="peftseg-workers-")
    others = set(multiprocessing.active_children())
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        try:
            cluster = _local_cluster(batch.job, scratch)
            client = Client(cluster, timeout=CONNECT_S)
        except (OSError, RuntimeError) as error:
            raise BadInput(
                f"The {batch.job.workers} workers cannot be started ({error}).", "Try again with fewer, or without."
            ) from error
        undo.pop_all()

    def close() -> None:
        with contextlib.suppress(Exception):  # they are ended in any case
            client.close(timeout=CLOSE_S)
        with contextlib.suppress(Exception):
            cluster.close(timeout=CLOSE_S)
        for process in set(multiprocessing.active_children()) - others:  # a worker that was just being started again
            process.kill()
            process.join(CLOSE_S)
        shutil.rmtree(scratch, ignore_errors=True)

    return client, close


def _local_cluster(job: ApplyJob, scratch: str) -> LocalCluster:
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.scheduler.allowed-failures": 5, "distributed.admin.tick.limit": "1h"}):
        return LocalCluster(
            n_workers=job.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=ANY_PORT,
            worker_dashboard_address=ANY_PORT,
            local_directory=scratch,
            resources={"GPU": 1} if _wants_gpu(job) else None,
            memory_limit=0,  # a scan is no task result: dask would pause or end workers at the wrong moment
            silence_logs=logging.CRITICAL,
        )


def _cluster_at(address: str) -> tuple[Client, Closing]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise BadInput(
            f"No Dask scheduler answers at {address} ({error}).",
            "Check the address, e.g. tcp://host:8786, and start it.",
        ) from error

    def close() -> None:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.close(timeout=CLOSE_S)

    return client, close


def _wants_gpu(job: ApplyJob) -> bool:
    return job.device.startswith("cuda")


def _hand_out(batch: Batch, feed: Feed, client: Client) -> None:
    """Keep a few studies a worker in flight, and settle each as it comes back."""
    from distributed import as_completed

    flying: dict[str, tuple[Future, BatchStudy]] = {}
    ready = as_completed(loop=client.loop)
    workers = _Workers(client)
    more = True
    try:
        while more or flying:
            batch.reporter.check()
            if more and batch.reporter.stop_keep():
                batch.reporter.log("Stopped on request; what is done is kept.")
                more = False
            more = more and not batch.tally.full and _top_up(batch, feed, client, flying, ready, workers.threads())
            if not ready.has_ready():
                time.sleep(POLL_S)
                continue
            for future in ready.next_batch(block=False):
                _settle(batch, flying.pop(future.key)[1], future)
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel([future for future, _ in flying.values()])


def _top_up(batch: Batch, feed: Feed, client: Client, flying: dict, ready: Any, threads: int) -> bool:
    """Hand out studies up to the limit; False when there are no more."""
    from peftseg.cluster_worker import segment_here

    resources = {"GPU": 1} if _wants_gpu(batch.job) else None
    while len(flying) < AHEAD * max(threads, 1):
        study = next(feed, False)
        if study is False:
            return False
        if study is None:
            return True
        key = f"peftseg-{study.key}-{time.monotonic_ns()}"
        future = client.submit(segment_here, study, key=key, pure=False, retries=RETRIES, resources=resources)
        flying[key] = (future, study)
        ready.add(future)
    return True


def _settle(batch: Batch, study: BatchStudy, future: Future) -> None:
    """Publish what a worker answered, or note that it failed."""
    if future.status == "finished":
        answer = future.result()
        for kind, text in answer.said:
            (batch.reporter.warning if kind == "warning" else batch.reporter.log)(text)
        batch.settle(study, answer.line, None if answer.folder is None else Path(answer.folder))
        return
    if future.status in ("cancelled", "lost"):
        raise BadInput(
            "The connection to the Dask scheduler was lost.",
            "Start the cluster again and run the same command: it goes on where it stopped.",
        )
    error = future.exception()
    if isinstance(error, PeftsegError):  # the worker cannot load the model: no study would fare better
        raise error
    batch.fail(study, _lost(error))


def _lost(error: BaseException) -> PeftsegError:
    """What is told of a study that its workers did not survive, or that failed by an error that nobody foresaw."""
    if type(error).__name__ == "KilledWorker":
        return PeftsegError(
            "Several workers ended while they worked on this study, most likely because memory ran out.",
            "Give the workers more memory, or crop the scan; then run the same command again.",
        )
    return PeftsegError(f"{type(error).__name__}: {error}.", "See the worker's log.")


class _Workers:
    """How many studies the cluster can work on at the same time; gives up when that is none for too long."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last = self._next = time.monotonic()
        self._threads = 0

    def threads(self) -> int:
        """Threads of all workers, asked for every `LOOK_S` seconds."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK_S
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
            self._threads = sum(worker["nthreads"] for worker in workers.values())
        if self._threads:
            self._last = now
        elif now - self._last > NO_WORKERS_S:
            raise BadInput(
                f"The cluster had no worker for {NO_WORKERS_S / 60:.0f} minutes.",
                "Start workers and run the same command again: it goes on where it stopped.",
            )
        return self._threads
