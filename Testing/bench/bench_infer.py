"""Whole-volume inference against MONAI's sliding window in float32: same network, window, overlap and threads.

    python Testing/bench/bench_infer.py [--model phantom-ct] [--scan FILE] [--repeats 5] [--threads 2]

Both sides start from the same prepared image and end with a label map on the study's grid (study and model grid are the
same here, so that MONAI needs no resampling). Runs are interleaved and the median of the ratios is printed, because a
single timing on a busy machine says little. Where other programs run, set OMP_WAIT_POLICY=PASSIVE: threads that wait
for each other by spinning would be measured instead. Without --scan, a phantom is segmented.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from peftseg.adapters import attach
from peftseg.device import choose_precision
from peftseg.infer import segment
from peftseg.models import ModelEntry, resolve
from peftseg.phantom import make_case
from peftseg.preprocess import Prepared, prepare
from peftseg.volume import read_volume
from peftseg.weights import load_base, n_outputs

CPU = torch.device("cpu")
Run = Callable[[], np.ndarray]


def monai_labels(entry: ModelEntry, network: nn.Module, prepared: Prepared) -> np.ndarray:
    """Label map by MONAI in float32."""
    with torch.inference_mode():
        logits = sliding_window_inference(
            prepared.image[None], entry.window, 1, network, entry.overlap, mode="gaussian", cval=prepared.background
        )
        return logits[0].argmax(0).to(torch.uint8).numpy()


def our_labels(entry: ModelEntry, network: nn.Module, prepared: Prepared) -> np.ndarray:
    """Label map by peftseg, as `peftseg apply` makes it."""
    outputs = n_outputs(entry.structures, entry.activation)
    return segment(network, prepared, outputs, entry.window, entry.overlap, entry.activation, CPU)


def interleaved(first: Run, second: Run, repeats: int) -> list[tuple[float, float]]:
    """Wall seconds of both, run in turn; one run of each before is not counted."""
    first(), second()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        times.append((middle - started, time.perf_counter() - middle))
    return times


def tell(what: str, times: Sequence[tuple[float, float]]) -> None:
    """Print medians, and the median and range of the ratios first / second."""
    ratios = sorted(first / second for first, second in times)
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{what}: {first:.2f} s / {second:.2f} s, ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} interleaved runs)",
        flush=True,
    )


def tell_agreement(entry: ModelEntry, reference: np.ndarray, labels: np.ndarray) -> None:
    """Print Dice of both label maps, mean and each structure that either has."""
    scores = {}
    for row, structure in enumerate(entry.structures, start=1):
        a, b = reference == row, labels == row
        if a.any() or b.any():
            scores[structure.name] = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    print(f"agreement with MONAI: Dice mean {statistics.mean(scores.values()):.5f}, lowest {min(scores.values()):.5f}")
    print("  " + ", ".join(f"{name} {score:.5f}" for name, score in scores.items()))


def merged_lora(entry: ModelEntry) -> nn.Module:
    """The base with a LoRA adapter merged in; its weights differ from the base's."""
    network, anatomy = load_base(entry)
    attached = attach(network, anatomy, "lora", {})
    generator = torch.Generator().manual_seed(0)
    attached.load_state({k: v + 1e-3 * torch.randn(v.shape, generator=generator) for k, v in attached.state().items()})
    return attached.merge().eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="phantom-ct", help="id or MODELDIR with a softmax head")
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    entry = resolve(arguments.model)
    network = load_base(entry)[0].eval()
    volume = read_volume(arguments.scan) if arguments.scan else make_case(3000).volume
    prepared = prepare(volume, entry.preprocessing)
    prepared = Prepared(prepared.image, prepared.grid, prepared.grid)
    print(
        f"{entry.id} on {'x'.join(map(str, prepared.grid.shape))} voxels, window {entry.window}, overlap "
        f"{entry.overlap}, {arguments.threads} threads, {choose_precision(CPU)}"
    )
    reference = copy.deepcopy(network)
    times = interleaved(
        lambda: monai_labels(entry, reference, prepared),
        lambda: our_labels(entry, network, prepared),
        arguments.repeats,
    )
    tell("MONAI float32 / peftseg", times)
    tell_agreement(entry, monai_labels(entry, reference, prepared), our_labels(entry, network, prepared))
    merged = merged_lora(entry)
    times = interleaved(
        lambda: our_labels(entry, merged, prepared), lambda: our_labels(entry, network, prepared), arguments.repeats
    )
    tell("merged LoRA adapter / base", times)


if __name__ == "__main__":
    main()
