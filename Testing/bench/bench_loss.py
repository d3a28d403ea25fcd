"""What the loss costs: `python Testing/bench/bench_loss.py [--structures 104] [--size 96] [--rounds 3]`.

Forward and backward of the softmax loss on one patch against MONAI's DiceCELoss, which knows no partial labels, each time in
a process of its own, in turn. Memory is the peak above the logits and the labels. With `partial`, one structure is not
labelled.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from monai.losses import DiceCELoss

from peftseg.device import choose_device
from peftseg.losses import softmax_loss
from peftseg.peak_memory import PeakMemory

OURS, PARTIAL, MONAI = "ours", "ours, partial", "MONAI"


def measure(name: str, structures: int, size: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the processor (of the clock on a GPU) and MiB above the logits, of one forward and backward pass."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, size, size)
    logits = torch.randn((1, structures + 1, *shape), generator=generator).to(device).requires_grad_()
    target = torch.randint(0, structures + 1, (1, *shape), generator=generator).to(torch.uint8)
    known = torch.ones((1, structures, 1, 1, 1), dtype=torch.bool)
    if name == PARTIAL:
        known[:, -1], target = False, torch.where(target == structures, 0, target)
    target, known = target.to(device), known.to(device)
    monai = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with PeakMemory(device) as idle:
        time.sleep(0.1)
    with PeakMemory(device) as peak:
        started = clock()
        loss = monai(logits, target[:, None]) if name == MONAI else softmax_loss(logits, target, known)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - started
    return seconds, peak.mib - idle.mib


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=104)
    parser.add_argument("--size", type=int, default=96, help="voxels of an edge of the patch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", help="measure this one, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(*measure(arguments.one, arguments.structures, arguments.size, choose_device(arguments.device)))
        return
    names = (OURS, PARTIAL, MONAI)
    command = [sys.executable, __file__, *sys.argv[1:], "--one"]
    found = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            told = subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout.split()
            found[name].append((float(told[-2]), float(told[-1])))
    size = arguments.size
    logits = (arguments.structures + 1) * size**3 * 4 / 2**20
    print(
        f"{arguments.structures} structures, {size}^3 voxels, logits of {logits:.0f} MiB, medians of {arguments.rounds}"
    )
    for name in names:
        seconds, mib = (statistics.median(column) for column in zip(*found[name], strict=True))
        ratios = [[a[i] / b[i] for a, b in zip(found[name], found[MONAI], strict=True)] for i in (0, 1)]
        times, memory = (statistics.median(column) for column in ratios)
        print(f"  {name}: {seconds:.2f} s, {mib:.0f} MiB; / {MONAI}: time {times:.2f}, memory {memory:.2f}", flush=True)


if __name__ == "__main__":
    main()
