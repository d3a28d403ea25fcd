"""What looking into a network costs, in forward passes: `python Testing/bench/bench_inspect.py [--rounds 2] [--threads 2]`.

A made-up volume of 160^3 voxels and the SegResNet of `brain-t1` with its own window and overlap. Each task runs in a process
of its own, in turn: plain segmentation (one forward pass of the volume); Grad-CAM of one layer as `peftseg inspect grad-cam`
does it (prediction, then the gradients) for the last layer before the head, the deepest one and the first one, each as if the
structure reached into every window, which costs most; the first layer again with all voxels as the target, which needs no
prediction; and ProtoSeg of all layers for one structure with both prototypes. Printed are medians over the rounds of the
ratios to the plain segmentation of the same round: the processor's time, the clock, and peak memory of the process. On a
processor that other programs use too, the processor's time says more than the clock; set OMP_WAIT_POLICY=PASSIVE there.

Goals: Grad-CAM of one layer and ProtoSeg of all layers at most 4 forward passes, at most 1.5 times the memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from peftseg.device import choose_precision
from peftseg.explain.abilities import Mask
from peftseg.explain.grad_cam import grad_cam, predicted_mask
from peftseg.explain.layers import choose, default_layer, list_layers
from peftseg.explain.proto_seg import proto_seg
from peftseg.explain.subject import Subject, model_subject
from peftseg.grid import Grid
from peftseg.infer import segment
from peftseg.peak_memory import MIB, PeakMemory
from peftseg.preprocess import Prepared

CPU = torch.device("cpu")
MODEL, STRUCTURE = "brain-t1", "thalamus"
PLAIN = "plain"
ALL_VOXELS = "grad-cam, first layer, all voxels"
LAYERS = {
    "grad-cam, last layer": "",
    "grad-cam, deepest layer": "down_layers.2.4",
    "grad-cam, first layer": "convInit.conv",
    ALL_VOXELS: "convInit.conv",
}
PROTO_SEG = "proto-seg, all layers"
TASKS = (PLAIN, *LAYERS, PROTO_SEG)
MOST_PASSES, MOST_MEMORY = 4.0, 1.5


@dataclass(frozen=True)
class Cost:
    """Of one task: seconds by the clock and of the processor, MiB at the peak and of the loaded network."""

    clock: float
    processor: float
    peak: float
    loaded: float


def volume(side: int) -> Prepared:
    """Smooth noise, so that something of everything is predicted."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, 1, *[side // 8] * 3), generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(side,) * 3, mode="trilinear")[0]
    grid = Grid((side,) * 3, np.eye(4))
    return Prepared(image + 0.1 * torch.randn(image.shape, generator=generator), grid, grid)


def ball(side: int) -> torch.Tensor:
    """Labels of a structure in the middle, (side, side, side) bool."""
    axes = torch.meshgrid(*(torch.arange(side) - side / 2,) * 3, indexing="ij")
    return sum(a.square() for a in axes) < (side / 8) ** 2


def run_task(task: str, subject: Subject, prepared: Prepared) -> None:
    """One of `TASKS`."""
    if task == PLAIN:
        window = subject.window_on(prepared.image.shape[1:])
        segment(subject.network, prepared, subject.rows, window, subject.overlap, subject.activation, CPU)
        return
    layers = list_layers(subject.network, subject.anatomy)
    if task == PROTO_SEG:
        masks = {STRUCTURE: Mask(ball(prepared.image.shape[1]))}
        proto_seg(subject, prepared, [layer for layer in layers if layer.listed], masks, CPU)
        return
    chosen = choose(layers, [LAYERS[task]]) if LAYERS[task] else [default_layer(layers)]
    if task != ALL_VOXELS:
        predicted_mask(subject, prepared, STRUCTURE, CPU)
    everywhere = torch.ones(prepared.image.shape[1:], dtype=torch.bool)  # no window is left out
    grad_cam(subject, prepared, chosen, subject.row(STRUCTURE), everywhere, CPU)


def measure(task: str, side: int, threads: int, overlap: float | None) -> Cost:
    """Run a task in this process."""
    import psutil

    torch.set_num_threads(threads)
    subject = model_subject(MODEL)
    subject = subject if overlap is None else replace(subject, overlap=overlap)
    prepared = volume(side)
    loaded = psutil.Process().memory_info().rss / MIB
    started, spent = time.perf_counter(), time.process_time()
    with PeakMemory(CPU) as memory:
        run_task(task, subject, prepared)
    return Cost(time.perf_counter() - started, time.process_time() - spent, memory.mib, loaded)


def measure_apart(task: str, arguments: argparse.Namespace) -> Cost:
    """Run a task in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--task",
        task,
        "--side",
        str(arguments.side),
        "--threads",
        str(arguments.threads),
    ]
    command += [] if arguments.overlap is None else ["--overlap", str(arguments.overlap)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cost = Cost(**json.loads(done.stdout.splitlines()[-1]))
    print(f"  {task}: {cost.processor:.1f} s of the processor, {cost.peak:.0f} MiB", file=sys.stderr, flush=True)
    return cost


def tell(task: str, costs: list[Cost], plain: list[Cost]) -> bool:
    """Print what a task costs beside the plain segmentation of the same round; returns whether the goals are met."""
    pairs = list(zip(costs, plain, strict=True))
    clock = statistics.median(c.clock / p.clock for c, p in pairs)
    processor = statistics.median(c.processor / p.processor for c, p in pairs)
    memory = statistics.median(c.peak / p.peak for c, p in pairs)
    above = statistics.median((c.peak - c.loaded) / max(1.0, p.peak - p.loaded) for c, p in pairs)
    met = min(clock, processor) <= MOST_PASSES and memory <= MOST_MEMORY
    print(
        f"{task}: {processor:.2f} forward passes of processor's time ({clock:.2f} by the clock), memory {memory:.2f} times "
        f"({statistics.median(c.peak for c in costs):.0f} MiB; above the loaded network {above:.2f} times)"
        f"{'' if met else '  ABOVE THE GOAL'}",
        flush=True,
    )
    return met


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--overlap", type=float, help="of windows (default: the model's own)")
    parser.add_argument("--only", nargs="+", default=[], choices=TASKS[1:], help="these tasks")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(vars(measure(arguments.task, arguments.side, arguments.threads, arguments.overlap))))
        return
    tasks = [task for task in TASKS if task == PLAIN or not arguments.only or task in arguments.only]
    costs: dict[str, list[Cost]] = {task: [] for task in tasks}
    for _ in range(arguments.rounds):
        for task in tasks:
            costs[task].append(measure_apart(task, arguments))
    entry = model_subject(MODEL)
    plain = costs[PLAIN]
    print(
        f"{MODEL} on {arguments.side}^3 voxels, window {entry.window}, overlap "
        f"{entry.overlap if arguments.overlap is None else arguments.overlap}, {arguments.threads} threads, "
        f"{choose_precision(CPU)}: a forward pass takes {statistics.median(c.processor for c in plain):.1f} s of the "
        f"processor ({statistics.median(c.clock for c in plain):.1f} s) and {statistics.median(c.peak for c in plain):.0f} MiB"
    )
    met = [tell(task, costs[task], plain) for task in tasks if task != PLAIN]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
