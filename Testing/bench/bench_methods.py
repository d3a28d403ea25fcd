"""What adapting costs: `python Testing/bench/bench_methods.py [steps] [memory] [pages] [probe] [files]`, all if none is named.

- steps: a training step of LoRA and ARENA against one of full fine-tuning of the same network, run in turn;
- memory: the peaks of these steps, each in a process of its own, without the engine's copies of the best state;
- pages: time and peak of a step with memory in large pages, as jobs have it, against small ones (Linux, on a processor);
- probe: an epoch of the linear probe on kept features against one without, and against one of decoder tuning;
- files: to attach each method to SwinUNETR (62 M), merge it, and write its adapter file.

Networks: the SegResNet of `brain-t1` at its window, and SwinUNETR with 48 features. Steps and epochs are those of the
engine's own loop, augmentation included, one patch a step. Ratios are medians over pairs that ran one after the other,
with their middle half in brackets, and stand beside their aim; on a processor that other programs use too, the ratio of
the processor's time says more than that of the clock. Set OMP_WAIT_POLICY=PASSIVE there, so that threads which wait are
not measured. On Linux it starts itself again with the memory pages of a job.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from peftseg.adapter_file import FORMAT, Recipe, save_adapter
from peftseg.adapters import METHODS, attach, check_options, learning_rates
from peftseg.device import choose_device, choose_precision
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.jobs import large_pages
from peftseg.models import NetworkSpec, resolve
from peftseg.networks import Anatomy, build
from peftseg.optimise import _Loop
from peftseg.patches import Scan, make_scan
from peftseg.peak_memory import PeakMemory
from peftseg.plan import safe_precision
from peftseg.schedule import Schedule
from peftseg.weights import load_base

ENTRY = resolve("brain-t1")
SWIN = NetworkSpec("swinunetr", {"in_channels": 1, "feature_size": 48})
WINDOWS = {"segresnet": ENTRY.window, "swinunetr": (64, 64, 64)}
SCANS = 5
MARGIN = 8  # voxels by which a scan is larger than the window, so that patches differ
FULL = "full"
# Label -> method, options, whether the decoder trains too.
RIVALS = {
    "lora": ("lora", {}, False),
    "arena": ("arena", {}, False),
    "lora, all layers": ("lora", {"layers": "all"}, False),
    "arena, all layers": ("arena", {"layers": "all"}, False),
    "lora and decoder": ("lora", {}, True),
    "arena and decoder": ("arena", {}, True),
}
CANDIDATES = {FULL: (FULL, {}, False), **RIVALS}
LABELS = {"segresnet": list(CANDIDATES), "swinunetr": [FULL, "lora", "arena", "lora, all layers", "arena, all layers"]}
STEP_ROUNDS = {"segresnet": 15, "swinunetr": 3}
MEMORY_RUNS = 3
PAGE_STEPS = {"segresnet": 15, "swinunetr": 1}
EPOCH_ROUNDS = {"segresnet": 7, "swinunetr": 1}
FILE_ROUNDS = 3
PARTS = ("steps", "memory", "pages", "probe", "files")
# Aims: a step and its memory over those of full fine-tuning, an epoch without kept features over one with, seconds.
MOST_STEP, MOST_MEMORY, LEAST_PROBE, MOST_FILE_S = 1.05, 1.0, 10.0, 2.0


def make_network(name: str) -> tuple[nn.Module, Anatomy]:
    """The network with its base weights, or random ones."""
    if name == "segresnet":
        return load_base(ENTRY)
    torch.manual_seed(0)
    return build(SWIN, len(ENTRY.structures) + 1)


def make_scans(window: tuple[int, int, int], device: torch.device) -> list[Scan]:
    """Made-up scans with a box for each structure."""
    generator = torch.Generator().manual_seed(0)
    shape = tuple(size + MARGIN for size in window)
    scans = []
    for number in range(SCANS):
        image = torch.randn((1, *shape), generator=generator).to(device)
        masks = [torch.zeros(shape, dtype=torch.bool) for _ in ENTRY.structures]
        for i, mask in enumerate(masks):
            mask[4 * i + number : 4 * i + number + 6, 10:20, 10:20] = True
        scans.append(make_scan(image, masks, [True] * len(masks), overlapping=False))
    return scans


def make_loop(name: str, method: str, options: dict, train_decoder: bool, device: torch.device) -> _Loop:
    """The engine's training loop for a method on a network."""
    network, anatomy = make_network(name)
    attached = attach(network.to(device), anatomy, method, options, train_decoder)
    window = WINDOWS[name]
    precision = safe_precision(choose_precision(device), device, window, anatomy.divisor)
    schedule = Schedule(epochs=200, patch=window, precision=precision, early_stop=False)
    groups = attached.parameter_groups(learning_rates(check_options(method, options)))
    loop = _Loop(attached, groups, make_scans(window, device), schedule, "softmax", Reporter.silent())
    network.train()
    return loop


def step(loop: _Loop, number: int) -> None:
    """One optimiser step on one patch, with what the method does after it."""
    loop._step([(number, number % SCANS, 0)])
    loop.trainable.after_step(1e-3, 0.5)


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of one call: by the clock, and of the processor, all threads together."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock, time.process_time() - processor


def spread(values: list[float]) -> str:
    """Median, and the middle half of the values."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return f"{statistics.median(ordered):.3f} ({ordered[quarter]:.3f} to {ordered[-1 - quarter]:.3f})"


def verdict(value: float, most: float | None = None, least: float | None = None) -> str:
    """The aim, and whether a value meets it."""
    if most is not None:
        return f"aim at most {most:g}: {'met' if value <= most else 'MISSED'}"
    return f"aim at least {least:g}: {'met' if value >= least else 'MISSED'}"


def tell_times(
    title: str, rounds: list[dict[str, tuple[float, float]]], base: str, aims: dict[str, dict[str, float]]
) -> None:
    """Print each candidate's median time and its ratio to the base's in the same round; aims are of that ratio."""
    print(f"{title}, {len(rounds)} rounds", flush=True)
    for label in rounds[0]:
        clock, processor = ([row[label][i] / row[base][i] for row in rounds] for i in (0, 1))
        seconds = statistics.median(row[label][0] for row in rounds)
        aim = f"; {verdict(statistics.median(processor), **aims[label])}" if label in aims else ""
        print(f"  {label}: {seconds:.3f} s, / {base}: clock {spread(clock)}, processor {spread(processor)}{aim}")


def bench_steps(device: torch.device) -> None:
    """Steps of all candidates, run in turn."""
    for name, count in STEP_ROUNDS.items():
        labels = LABELS[name]
        loops = {label: make_loop(name, *CANDIDATES[label], device) for label in labels}
        for loop in loops.values():
            step(loop, 0)
        rounds = []
        for number in range(1, count + 1):
            order = labels if number % 2 else labels[::-1]
            times = {x: timed(partial(step, loops[x], number), device) for x in order}
            rounds.append({x: times[x] for x in labels})
        precision = loops[FULL].schedule.precision
        aims = {label: {"most": MOST_STEP} for label in labels if label != FULL}
        tell_times(f"training step, {name} {WINDOWS[name]} on {device} in {precision}", rounds, FULL, aims)


def peak_of(name: str, label: str, device: torch.device, more: int = 0) -> tuple[float, float, float]:
    """Peak of two steps in MiB, how much of it came with the method and the steps, and the processor time of `more` steps."""
    loop = make_loop(name, *CANDIDATES[label], device)
    loop.best, loop.good = {}, None
    with PeakMemory(device) as idle:
        time.sleep(0.1)
    with PeakMemory(device) as peak:
        step(loop, 0)
        step(loop, 1)
    times = [timed(partial(step, loop, number), device)[1] for number in range(2, 2 + more)]
    return peak.mib, peak.mib - idle.mib, sum(times)


def bench_memory(device: torch.device) -> None:
    """Peaks of all candidates, each in its own process."""
    for name, window in WINDOWS.items():
        labels = LABELS[name]
        rounds = [{label: _peak_elsewhere(name, label, device) for label in labels} for _ in range(MEMORY_RUNS)]
        print(f"peak memory of a step, {name} {window} on {device}, {len(rounds)} processes each", flush=True)
        for label in labels:
            peaks, risen = ([row[label][i] for row in rounds] for i in (0, 1))
            ratios = [row[label][0] / row[FULL][0] for row in rounds]
            print(
                f"  {label}: {statistics.median(peaks):.0f} MiB, / {FULL}: {spread(ratios)}; "
                f"above the network at rest {statistics.median(risen):.0f} MiB"
                + ("" if label == FULL else f"; {verdict(statistics.median(ratios), most=MOST_MEMORY)}"),
                flush=True,
            )


def bench_pages(device: torch.device) -> None:
    """Time and peak of a step in large pages against small ones, each in its own process."""
    if not sys.platform.startswith("linux") or device.type != "cpu":
        print("large pages: on Linux, and of a processor's memory only")
        return
    for name, window in WINDOWS.items():
        for label in (FULL, "lora"):
            rounds = [
                {pages: _peak_elsewhere(name, label, device, PAGE_STEPS[name], pages) for pages in (1, 0)}
                for _ in range(MEMORY_RUNS)
            ]
            peaks, times = ([row[1][i] / row[0][i] for row in rounds] for i in (0, 2))
            print(
                f"step of {label} in large pages, {name} {window}, {len(rounds)} processes each: "
                f"/ small pages: processor {spread(times)}, peak {spread(peaks)}",
                flush=True,
            )


def _peak_elsewhere(name: str, label: str, device: torch.device, more: int = 0, pages: int = 1) -> tuple[float, ...]:
    command = [sys.executable, __file__, "--peak", name, label, "--more", str(more), "--device", str(device)]
    environment = os.environ | {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb={pages}"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return tuple(map(float, done.stdout.split()))


def bench_probe(device: torch.device) -> None:
    """Epochs of the linear probe with and without kept features, and of decoder tuning."""
    for name, count in EPOCH_ROUNDS.items():
        loops = {
            "kept features": make_loop(name, "linear_probe", {}, False, device),
            "no kept features": make_loop(name, "linear_probe", {}, False, device),
            "decoder": make_loop(name, "decoder", {}, False, device),
        }
        loops["no kept features"].features = None
        for loop in loops.values():
            loop.run_epoch()
        rounds = [{x: timed(partial(_first_epoch, loop), device) for x, loop in loops.items()} for _ in range(count)]
        title = f"epoch of {SCANS} steps, {name} {WINDOWS[name]} on {device} in {loops['decoder'].schedule.precision}"
        tell_times(title, rounds, "kept features", {"no kept features": {"least": LEAST_PROBE}})


def _first_epoch(loop: _Loop) -> None:
    """The first epoch once more: its features are kept, as those of all epochs are from the ninth on."""
    loop.epoch = 0
    loop.run_epoch()


def file_seconds(method: str) -> tuple[float, float, float]:
    """Seconds to attach a method to SwinUNETR, to merge it, and to take its state and write it."""
    network, anatomy = make_network("swinunetr")
    recipe = Recipe(
        FORMAT, "bench", 1, method, {}, False, "swinunetr", "", "", SWIN, ENTRY.structures, ENTRY.activation,
        ENTRY.preprocessing, (96, 96, 96), 0.5, {},
    )  # fmt: skip
    started = time.perf_counter()
    attached = attach(network, anatomy, method, {})
    there = time.perf_counter()
    attached.merge()
    merged = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder) / "adapter.safetensors", recipe, attached.state())
        written = time.perf_counter()
    return there - started, merged - there, written - merged


def bench_files() -> None:
    """Attach, merge and save for every method that fits."""
    print(f"attach + merge + save, swinunetr (62 M), medians of {FILE_ROUNDS}", flush=True)
    for method in METHODS:
        try:
            rounds = [file_seconds(method) for _ in range(FILE_ROUNDS)]
        except BadInput as error:
            print(f"  {method}: does not fit ({error.message})")
            continue
        parts = " + ".join(f"{statistics.median(column):.2f}" for column in zip(*rounds, strict=True))
        sums = sorted(map(sum, rounds))
        total = statistics.median(sums)
        aim = verdict(total, most=MOST_FILE_S)
        print(f"  {method}: {parts}, sum {total:.2f} s (to {sums[-1]:.2f}); {aim}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "CANDIDATE"), help="print the peak of one candidate")
    parser.add_argument("--more", type=int, default=0, help="with --peak: steps after it, of which the time is printed")
    arguments = parser.parse_args()
    pages = large_pages(os.environ)
    if pages:  # read when a process starts
        os.execve(sys.executable, sys.orig_argv, os.environ | pages)
    device = choose_device(arguments.device)
    if arguments.peak:
        print(*peak_of(*arguments.peak, device, arguments.more))
        return
    parts = arguments.parts or PARTS
    if "steps" in parts:
        bench_steps(device)
    if "memory" in parts:
        bench_memory(device)
    if "pages" in parts:
        bench_pages(device)
    if "probe" in parts:
        bench_probe(device)
    if "files" in parts:
        bench_files()


if __name__ == "__main__":
    main()
