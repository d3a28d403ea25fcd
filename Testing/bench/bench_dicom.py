"""What DICOM costs: `python Testing/bench/bench_dicom.py [headers] [seg]` (both by default); needs `peftseg[dicom]`.

headers  2,000 slices of 20 series sorted by their headers: seconds of the processor a file
seg      105 structures, each in a sixth of the planes, on 512 x 512 x 200 voxels as DICOM SEG, plain and deflated: size, time,
         and peak memory of the process beside what it holds before (the label map among it)
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing" / "engine"), str(ROOT / "PEFTSegment")]

from dicom_cases import PROVENANCE, files_of, grid_of, write_source  # noqa: E402
from peftseg.dicom_seg import write_dicom_seg  # noqa: E402
from peftseg.dicom_sort import find_series  # noqa: E402
from peftseg.models import Structure  # noqa: E402

SIDE, PLANES, STRUCTURES = 512, 200, 105
SERIES, SLICES = 20, 100
MIB = 2**20


def headers(folder: Path) -> None:
    """Sort many small files."""
    for number in range(SERIES):
        write_source(folder / str(number), SLICES, SeriesInstanceUID=f"1.2.3.4.{number}")
    spent = time.process_time()
    found = find_series([folder])
    spent = time.process_time() - spent
    files = SERIES * SLICES
    print(f"headers: {files} files, {len(found)} series: {1000 * spent / files:.2f} ms of the processor a file")


def seg(folder: Path) -> None:
    """Write the large object, each way in a process of its own."""
    write_source(folder / "source", PLANES, Rows=SIDE, Columns=SIDE)
    for how in ("plain", "deflated"):
        subprocess.run([sys.executable, __file__, "child", "--folder", str(folder), "--how", how], check=True)


def seg_child(folder: Path, how: str) -> None:
    """Boxes that do not overlap, as one label map."""
    grid = grid_of(folder / "source")
    labels = np.zeros(grid.shape, np.uint8)
    thick = PLANES // 6
    for number in range(STRUCTURES):
        row, column, part = 44 * (number % 11), 100 * (number // 11 % 5), number // 55
        labels[row : row + 40, column : column + 90, part * thick : (part + 1) * thick] = number + 1
    structures = tuple(Structure(f"structure {n}", n) for n in range(1, STRUCTURES + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    out = folder / f"{how}.dcm"
    write_dicom_seg(out, labels, grid, files_of(folder / "source"), structures, PROVENANCE, compress=how == "deflated")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"seg, {how}: {STRUCTURES} structures on {SIDE} x {SIDE} x {PLANES} voxels: {out.stat().st_size / MIB:.2f} MiB in "
        f"{time.perf_counter() - started:.0f} s, peak memory {peak:.0f} MiB, before {before:.0f} MiB"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("headers", "seg", "child", []), default=[])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        seg_child(arguments.folder, arguments.how)
        return
    for what in arguments.what or ("headers", "seg"):
        with tempfile.TemporaryDirectory() as name:
            {"headers": headers, "seg": seg}[what](Path(name))


if __name__ == "__main__":
    main()
