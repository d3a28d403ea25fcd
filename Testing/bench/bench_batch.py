"""What batches save: `python Testing/bench/bench_batch.py [speed] [memory] [workers] [large]` (the first three by default).

speed    100 small studies by one batch against single runs of the command (some are timed, the rest is their median)
memory   1,000 studies in one process: memory after 200 and after 1,000
workers  two Dask workers on two cores against one worker pinned to one core, from the first result to the last
large    a CT of 512 x 512 x 600 voxels with 105 structures: peak memory and the result's grid (many minutes)

All studies are made up, and the networks have random weights: this measures everything but a network of real size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing" / "engine"), str(ROOT / "PEFTSegment")]
os.environ["PEFTSEGMENT_HOME"] = tempfile.mkdtemp(prefix="peftsegment-bench-")

import numpy as np  # noqa: E402

from batch_cases import batch_job, write_model, write_scans  # noqa: E402

LARGE = (512, 512, 600)
STRUCTURES = 105
GIB = 2**30
PARTS = ("speed", "memory", "workers", "large")
CHILD = "large-child"  # what `large` starts itself as


def command(model: Path, source: Path, out: Path) -> float:
    """Wall seconds of one run of the command."""
    started = time.perf_counter()
    line = [sys.executable, "-m", "peftseg", "apply", "--model", str(model), "--device", "cpu"]
    subprocess.run([*line, "--input", str(source), "--out", str(out)], check=True, capture_output=True)
    return time.perf_counter() - started


def speed(folder: Path, studies: int, singles: int) -> None:
    """A batch against single runs."""
    model, scans = write_model(folder / "model"), write_scans(folder / "in", studies)
    single = [command(model, scans / f"scan{n:03d}.nii.gz", folder / f"one{n}") for n in range(singles)]
    batch = command(model, scans, folder / "all")
    each = statistics.median(single)
    print(
        f"speed: {studies} studies by batch {batch:.1f} s; a single run {each:.1f} s (median of {singles}), so "
        f"{studies} take {studies * each:.0f} s: {studies * each / batch:.1f} times as long"
    )


def memory(folder: Path, studies: int) -> None:
    """Resident memory as a batch goes on."""
    import psutil

    from peftseg.apply import run_apply
    from peftseg.events import Reporter

    model, scans = write_model(folder / "model"), write_scans(folder / "in", studies)
    process, seen = psutil.Process(), {}

    def tell(kind: str, fields: dict) -> None:
        if kind == "progress" and fields.get("state"):
            seen[fields["step"]] = process.memory_info().rss / 2**20

    run_apply(batch_job(model, folder / "out", scans), Reporter(tell))
    early = statistics.median(seen[n] for n in range(studies // 5 - 20, studies // 5))
    late = statistics.median(seen[n] for n in range(studies - 20, studies))
    print(
        f"memory: {early:.0f} MB after {studies // 5} studies, {late:.0f} MB after {studies} ({late - early:+.0f} MB)"
    )


def seconds_on_workers(folder: Path, scans: Path, workers: int, cores: set[int]) -> tuple[float, float]:
    """Seconds from the first result to the last, and of all, on so many workers bound to these cores."""
    from peftseg.apply import run_apply
    from peftseg.events import Reporter

    before, times = os.sched_getaffinity(0), []

    def tell(kind: str, fields: dict) -> None:
        if kind == "progress" and fields.get("state") == "done":
            times.append(time.perf_counter())

    os.sched_setaffinity(0, cores)
    started = time.perf_counter()
    try:
        job = batch_job(folder / "model", folder / f"out{workers}", scans, workers=workers, report=False)
        run_apply(job, Reporter(tell))
    finally:
        os.sched_setaffinity(0, before)
    return times[-1] - times[0], time.perf_counter() - started


def workers(folder: Path, studies: int, size: int) -> None:
    """Two workers against one; each is warm when the clock starts, as the first results come from both."""
    from peftseg.volume import Grid, write_volume

    write_model(folder / "model")
    scans = folder / "in"
    scans.mkdir()
    for number in range(studies):
        array = np.random.default_rng(number).normal(100, 20, (size,) * 3).astype(np.float32)
        write_volume(scans / f"scan{number:03d}.nrrd", array, Grid((size,) * 3, np.diag([2.0, 2.0, 2.0, 1.0])))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("workers: needs two cores")
    one, one_all = seconds_on_workers(folder, scans, 1, {cores[0]})
    two, two_all = seconds_on_workers(folder, scans, 2, set(cores[:2]))
    print(
        f"workers: {studies} studies of {size} x {size} x {size}: one worker on one core {one:.1f} s, two on two "
        f"{two:.1f} s: {one / two:.2f} times as fast (with starting and ending: {one_all:.1f} and {two_all:.1f} s)"
    )


def large(folder: Path) -> None:
    """Peak memory of a large CT with many structures, in a process of its own."""
    child = [sys.executable, __file__, CHILD, "--folder", str(folder)]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"large: {' x '.join(map(str, LARGE))} voxels, {STRUCTURES} structures: peak memory {found['peak_gib']:.1f} GiB, "
        f"{found['seconds']:.0f} s, on the input's grid: {found['same_grid']}"
    )


def large_child(folder: Path) -> None:
    """Write the scan and the model, segment, and print what was needed."""
    import torch

    from peftseg.apply import run_apply
    from peftseg.events import Reporter
    from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
    from peftseg.networks import build
    from peftseg.volume import Grid, read_labels, write_volume
    from peftseg.weights import save_model

    grid = Grid(LARGE, np.diag([-0.8, -0.8, 1.0, 1.0]) + np.eye(4, k=3) * 100)
    rng = np.random.default_rng(0)
    array = np.full(LARGE, -1000, np.int16)
    array[40:-40, 80:-80] = rng.integers(-100, 200, (432, 352, 600), np.int16)
    scan = folder / "in" / "ct.nii"
    scan.parent.mkdir()
    write_volume(scan, array, grid)
    del array
    arguments = {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
    structures = tuple(Structure(f"structure {n}", n) for n in range(1, STRUCTURES + 1))
    entry = ModelEntry(
        id="large",
        title="large",
        modality="CT",
        structures=structures,
        network=NetworkSpec("segresnet", arguments),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.5, 1.5, 1.5), Intensity("window", -1000, 1000)),
        window=(128, 128, 128),
        overlap=0.5,
        licence="Apache-2.0",
    )
    torch.manual_seed(0)
    save_model(folder / "model", entry, build(entry.network, STRUCTURES + 1)[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    started = time.perf_counter()
    run_apply(batch_job(folder / "model", folder / "out", scan, precision="auto"), Reporter.silent())
    found = {
        "seconds": time.perf_counter() - started,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "before_gib": before,
        "same_grid": bool(read_labels(folder / "out" / "ct_seg.nii.gz").grid.same_as(grid)),
    }
    print(json.dumps(found))


def _part(name: str) -> str:
    """As argparse's `choices`, which refuse an empty list in Python before 3.12."""
    if name not in (*PARTS, CHILD):
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(PARTS)}")
    return name


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", type=_part, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--studies", type=int, help="fewer or more studies than 100, 1,000 and 40")
    parser.add_argument("--singles", type=int, default=5, help="single runs that are timed")
    parser.add_argument("--size", type=int, default=64, help="voxels along each side of the studies of `workers`")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == [CHILD]:
        large_child(arguments.folder)
        return
    for what in arguments.what or PARTS[:3]:
        with tempfile.TemporaryDirectory() as name:
            if what == "speed":
                speed(Path(name), arguments.studies or 100, arguments.singles)
            elif what == "memory":
                memory(Path(name), arguments.studies or 1000)
            elif what == "workers":
                workers(Path(name), arguments.studies or 40, arguments.size)
            else:
                large(Path(name))


if __name__ == "__main__":
    main()
