"""The real engine in a real background process: killed and resumed, cancelled, stopped and kept."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftseg import jobs
from peftseg.adapter_file import load_adapter
from peftseg.config import AdaptJob
from peftseg.events import read_events
from small_scans import BOTH, make_scan_files, write_tiny_model

COMMAND = (str(Path(__file__).with_name("eager_worker.py")),)
PATIENCE_S = 120
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are of Unix")


@pytest.fixture
def job(tmp_path):
    return AdaptJob(
        model=str(write_tiny_model(tmp_path / "tiny")),
        support=tuple(make_scan_files(tmp_path, n) for n in range(3)),
        structures=BOTH,
        out=str(tmp_path / "a.safetensors"),
        epochs=20,
        device="cpu",
        precision="fp32",
    )


def started(job):
    return jobs.start(jobs.create_job(job), command=COMMAND)


def train_steps(jobdir):
    events, _ = read_events(jobdir / "events.jsonl")
    return [e["step"] for e in events if e["event"] == "progress" and e["stage"] == "train"]


def wait_for_epoch(handle, epoch):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if max(train_steps(handle.jobdir), default=0) >= epoch:
            return
        time.sleep(0.02)
    raise AssertionError(f"epoch {epoch} did not come within {PATIENCE_S} s")


@posix
@pytest.mark.slow
def test_a_job_killed_half_way_goes_on_from_its_checkpoint_to_the_same_adapter_bit_by_bit(job, tmp_path):
    whole = started(job)
    assert whole.wait(PATIENCE_S)["event"] == "finished"
    other = replace(job, out=str(tmp_path / "b.safetensors"))
    handle = started(other)
    wait_for_epoch(handle, 8)
    os.kill(json.loads((handle.jobdir / "process.json").read_text())["pid"], signal.SIGKILL)
    assert handle.wait(PATIENCE_S)["event"] == "finished"
    steps = train_steps(handle.jobdir)
    assert steps.count(1) == 1, "the second worker went on instead of starting again"
    first, second = (load_adapter(j.out)[1] for j in (job, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_a_training_is_cancelled_within_two_seconds_and_leaves_no_adapter(job):
    handle = started(replace(job, epochs=100_000))
    wait_for_epoch(handle, 2)
    began = time.monotonic()
    handle.cancel()
    ending = handle.wait(PATIENCE_S)
    assert ending["event"] == "cancelled"
    assert time.monotonic() - began < 4  # two seconds until it listens or is killed, and the exit of the process
    assert not list(Path(job.out).parent.glob("a.safetensors*"))


@pytest.mark.slow
def test_stop_and_keep_writes_the_best_so_far(job):
    handle = started(replace(job, epochs=100_000))
    wait_for_epoch(handle, 3)
    handle.stop_and_keep()
    assert handle.wait(PATIENCE_S)["event"] == "finished"
    recipe, _, _ = load_adapter(job.out)
    assert recipe.record["stopped"] == "stopped by the user"
