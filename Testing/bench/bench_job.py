"""Time from starting a job to its first training step, beyond importing torch: `python Testing/bench/bench_job.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peftseg import jobs, phantom
from peftseg.config import AdaptJob
from peftseg.study import read_support_folder

REPEATS = 3
NAMES = ["gallbladder"]


def import_seconds() -> float:
    """A new interpreter that imports torch and does nothing else."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def job_seconds(folder: Path, support: tuple, structures: tuple, number: int) -> float:
    """Start a detached job and wait for the event that stands right before its first training step."""
    job = AdaptJob("phantom-ct", support, structures, str(folder / f"{number}.safetensors"), epochs=200)
    jobdir = jobs.create_job(job)
    started = time.perf_counter()
    handle = jobs.start(jobdir)
    while time.perf_counter() - started < 120:
        for event in handle.poll():
            if event["event"] == "progress" and event["stage"] == "train":
                seconds = time.perf_counter() - started
                handle.cancel()
                handle.wait(60)
                jobs.clean_up(jobdir)
                return seconds
            if event["event"] == "failed":
                raise SystemExit(f"The job failed: {event['message']}")
        time.sleep(0.02)
    raise SystemExit("The job did not start training within 120 s.")


def main() -> None:
    """Interleave both and print the medians and their difference."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        structures = phantom.structures_named(NAMES)
        phantom.write_dataset(folder / "support", range(10_000, 10_005), phantom.SITE_B, NAMES)
        support = read_support_folder(folder / "support", structures)
        import_seconds()
        pairs = [(import_seconds(), job_seconds(folder, support, structures, n)) for n in range(REPEATS)]
    torch_alone, job = (statistics.median(times) for times in zip(*pairs, strict=True))
    beyond = statistics.median(b - a for a, b in pairs)
    print(f"job to first training step: {job:.1f} s, importing torch {torch_alone:.1f} s, beyond it {beyond:.1f} s")


if __name__ == "__main__":
    main()
