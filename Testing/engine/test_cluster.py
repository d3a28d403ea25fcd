"""A batch over processes of its own: nothing lost and nothing twice when one of them is killed."""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from batch_cases import batch_job, lines_of, states_of, write_model, write_scan, write_scans
from peftseg.apply import run_apply
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.volume import read_labels

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
pytestmark = pytest.mark.slow
MANY = 200


def worker_processes() -> list[psutil.Process]:
    """The worker processes that this one has started."""
    children = psutil.Process().children(recursive=True)
    alive = [
        child for child in children if child.status() != psutil.STATUS_ZOMBIE
    ]  # of other tests, not yet waited for
    return [child for child in alive if any("spawn_main" in part for part in child.cmdline())]


def kill_one_worker() -> int:
    victim = worker_processes()[0].pid
    os.kill(victim, signal.SIGKILL)
    return victim


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_of_200_studies_on_two_workers_nothing_is_lost_and_nothing_twice_when_one_is_killed_half_way(tmp_path):
    model, scans, out = write_model(tmp_path / "model"), write_scans(tmp_path / "in", MANY - 1), tmp_path / "out"
    (scans / "broken.nii.gz").write_bytes(b"this is no scan")
    killed: list[int] = []

    def tell(kind: str, fields: dict) -> None:
        if kind == "progress" and fields["step"] == MANY // 2 and not killed:
            killed.append(kill_one_worker())

    result = run_apply(batch_job(model, out, scans, workers=2, report=False), Reporter(tell))
    assert killed
    assert (result["studies"], result["done"], result["failed_count"]) == (MANY, MANY - 1, 1)
    ended = Counter((line["name"], line["state"]) for line in lines_of(out) if line["state"] != "started")
    assert len(ended) == MANY
    assert set(ended.values()) == {1}, "one line that counts for each"
    assert len(list(out.glob("*_seg.nii.gz"))) == MANY - 1
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]
    assert worker_processes() == [], "no process stays behind"
    alone = run_apply(batch_job(model, tmp_path / "alone", scans / "scan007.nii.gz"), Reporter.silent())
    assert alone["done"] == 1
    both = [read_labels(folder / "scan007_seg.nii.gz").layers for folder in (out, tmp_path / "alone")]
    assert (both[0] == both[1]).all(), "as in one process"
    again = run_apply(batch_job(model, out, scans), Reporter.silent())
    assert (again["done"], again["skipped"], again["failed_count"]) == (0, MANY - 1, 1)


def test_a_running_cluster_is_used_by_its_address_and_left_running(tmp_path):
    model, scans, out = write_model(tmp_path / "model"), write_scans(tmp_path / "in", 4), tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        address = cluster.scheduler_address
        result = run_apply(batch_job(model, out, scans, cluster=address), Reporter.silent())
        assert set(states_of(out).values()) == {"done"}
        assert result["done"] == 4
        with distributed.Client(address) as client:
            assert len(client.scheduler_info()["workers"]) == 1


def test_gpu_studies_wait_for_a_worker_that_has_the_resource(tmp_path):
    from peftseg.cluster import _wants_gpu

    assert _wants_gpu(batch_job(tmp_path, tmp_path, tmp_path, device="cuda:0"))
    assert not _wants_gpu(batch_job(tmp_path, tmp_path, tmp_path))


def test_only_a_few_studies_are_handed_out_at_a_time(tmp_path, monkeypatch):
    model, scans = write_model(tmp_path / "model"), write_scans(tmp_path / "in", 12)
    flying: list[int] = []
    real = distributed.Client.submit

    def submit(client, *arguments, **options):
        flying.append(len([f for f in client.futures.values() if f.status == "pending"]))
        return real(client, *arguments, **options)

    monkeypatch.setattr(distributed.Client, "submit", submit)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        run_apply(batch_job(model, tmp_path / "out", scans, cluster=cluster.scheduler_address), Reporter.silent())
    assert len(flying) == 12
    assert max(flying) <= 2


def test_cancelling_ends_the_workers_within_two_seconds(tmp_path):
    model, scans, out = write_model(tmp_path / "model"), write_scans(tmp_path / "in", 60), tmp_path / "out"
    asked: list[float] = []

    def request() -> str:
        if not asked and list(out.glob("*_seg.nii.gz")):
            asked.append(time.monotonic())
        return "cancel" if asked else ""

    with pytest.raises(JobCancelled):
        run_apply(batch_job(model, out, scans, workers=1), Reporter(lambda kind, fields: None, request))
    assert time.monotonic() - asked[0] < 3  # two for a person, one for a busy machine
    assert worker_processes() == []
    assert set(states_of(out).values()) == {"done"}


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    from peftseg import cluster

    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    model, scan = write_model(tmp_path / "model"), write_scan(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(BadInput, match=r"tcp://127\.0\.0\.1:9"):
        run_apply(batch_job(model, tmp_path / "out", scan, cluster="tcp://127.0.0.1:9"), Reporter.silent())


def test_without_dask_the_package_to_install_is_named(tmp_path, monkeypatch):
    model, scan = write_model(tmp_path / "model"), write_scan(tmp_path / "in" / "a.nii.gz")
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "distributed":
            raise ImportError("No module named 'distributed'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=r'pip install "peftseg\[cluster\]"'):
        run_apply(batch_job(model, tmp_path / "out", scan, workers=2), Reporter.silent())
    assert threading.active_count() < 50
    assert not list(Path(tmp_path / "out").glob("*.gz"))
