"""Whole-volume inference against MONAI's sliding window in float32: same network, window, overlap and threads.

    python Testing/bench/bench_infer.py [--model MODELDIR] [--repeats 5] [--threads 2]

Without --model, a small SegResNet is trained for a minute on made-up blobs of known grey values: trained logits, so that
the agreement of the label maps means something. Both sides get the same prepared image and end with a label map; runs
are interleaved and the median of the ratios is printed, because a single timing on a busy machine says little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from torch import nn

from peftseg.device import choose_precision
from peftseg.infer import segment
from peftseg.preprocess import Prepared
from peftseg.volume import Grid

CPU = torch.device("cpu")
LEVELS = (0.45, 0.6, 0.75, 0.9)  # grey values of the structures; 0 is air, 0.3 tissue


def made_up_case(shape: tuple[int, int, int], seed: int, air: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, I, J, K) and labels (I, J, K): ellipsoids in tissue, which fills the volume or lies in air."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    half = np.array(shape) / 2
    body = np.linalg.norm((index - half) / half, axis=-1) < (0.75 if air else 9)
    image, labels = 0.3 * body, np.zeros(shape, np.int64)
    for number in range(3 * len(LEVELS)):
        centre, radius = rng.uniform(0.25, 0.75, 3) * shape, rng.uniform(5, 11, 3)
        inside = (np.linalg.norm((index - centre) / radius, axis=-1) < 1) & body
        labels[inside] = number % len(LEVELS) + 1
    for value, level in enumerate(LEVELS, start=1):
        image[labels == value] = level
    image = image + rng.normal(0, 0.06, shape) * body
    return torch.from_numpy(image.clip(0, 1).astype(np.float32))[None], torch.from_numpy(labels)


def train(filters: int, steps: int, patch: int = 40) -> nn.Module:
    """A SegResNet that segments `made_up_case`."""
    torch.manual_seed(0)
    network = SegResNet(init_filters=filters, in_channels=1, out_channels=len(LEVELS) + 1, blocks_down=(1, 2, 2))
    network.up_layers, network.up_samples = network.up_layers[-2:], network.up_samples[-2:]
    network = SegResNet(
        init_filters=filters, in_channels=1, out_channels=len(LEVELS) + 1, blocks_down=(1, 2, 2), blocks_up=(1, 1)
    )
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    for step in range(steps):
        image, labels = made_up_case((patch,) * 3, 1000 + step, air=step % 2 == 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision(CPU) == "bf16"):
            logits = network(image[None])
        loss = loss_of(logits.float(), labels[None, None])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    print(f"trained {steps} steps, last loss {loss.item():.3f}")
    return network.eval()


def baseline(network: nn.Module, image: torch.Tensor, window: tuple[int, int, int], overlap: float) -> np.ndarray:
    """Label map by MONAI in float32."""
    with torch.inference_mode():
        logits = sliding_window_inference(image[None], window, 1, network, overlap, mode="gaussian")
        return logits[0].argmax(0).to(torch.uint8).numpy()


def seconds(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Wall time and result."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def dices(a: np.ndarray, b: np.ndarray, n_outputs: int) -> list[float]:
    """Dice of each structure that either side has."""
    pairs = [(a == c, b == c) for c in range(1, n_outputs)]
    return [2 * (x & y).sum() / (x.sum() + y.sum()) for x, y in pairs if x.any() or y.any()]


def compare(
    name: str, network: nn.Module, image: torch.Tensor, n_outputs: int, window: tuple[int, int, int], repeats: int
) -> float:
    """Print and return the median ratio of interleaved runs."""
    grid = Grid(tuple(image.shape[1:]), np.diag([1.5, 1.5, 1.5, 1.0]))
    prepared, overlap = Prepared(image, grid, grid), 0.5
    ours_run = lambda: segment(network, prepared, n_outputs, window, overlap, "softmax", CPU)  # noqa: E731
    baseline_run = lambda: baseline(network, image, window, overlap)  # noqa: E731
    ours_run()
    times = []
    for _ in range(repeats):
        (slow, reference), (fast, labels) = seconds(baseline_run), seconds(ours_run)
        times.append((slow, fast))
    ratio = statistics.median(slow / fast for slow, fast in times)
    agreement = dices(reference, labels, n_outputs)
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{name}: MONAI float32 {slow:.2f} s, ours ({choose_precision(CPU)}) {fast:.2f} s, ratio {ratio:.2f} "
        f"(each: {', '.join(f'{s / f:.2f}' for s, f in times)}); "
        f"Dice mean {np.mean(agreement):.5f}, lowest {min(agreement):.5f}",
        flush=True,
    )
    return ratio


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = train(arguments.filters, arguments.steps)
    for name, air in (("no air", False), ("body in air", True)):
        image, labels = made_up_case((128, 112, 96), 7, air)
        truth = dices(baseline(network, image, (64, 64, 64), 0.5), labels.numpy(), len(LEVELS) + 1)
        print(f"{name}: Dice against the truth {np.mean(truth):.3f}")
        compare(name, network, image, len(LEVELS) + 1, (64, 64, 64), arguments.repeats)


if __name__ == "__main__":
    main()
