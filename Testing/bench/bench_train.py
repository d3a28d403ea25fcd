"""A training epoch of the engine against a plain MONAI loop, interleaved: `python Testing/bench/bench_train.py`.

Same network, volumes, patch size and patches an epoch. The plain loop is fp32, default memory format, a MONAI
`CacheDataset` with `RandCropByPosNegLabeld` and a `DataLoader`, `DiceCELoss`, AdamW, and no augmentation; the engine
runs as it does for users, augmentation included.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.transforms import RandCropByPosNegLabeld

from peftseg import phantom
from peftseg.device import choose_device, choose_precision
from peftseg.events import Reporter
from peftseg.models import Intensity, Preprocessing
from peftseg.optimise import _Loop
from peftseg.patches import make_scan
from peftseg.preprocess import prepare, prepare_mask
from peftseg.pretrain import WholeNetwork
from peftseg.schedule import Schedule

PATCH = (64, 64, 64)
PATCHES_PER_SCAN = 2
SCANS = 5


def prepared_phantoms():
    """Five made-up abdomens on the model grid: images (1, I, J, K) and masks a structure."""
    recipe = Preprocessing("RAS", (3.0, 3.0, 3.0), Intensity("window", -160, 320))
    found = []
    for seed in range(SCANS):
        case = phantom.make_case(seed)
        prepared = prepare(case.volume, recipe)
        masks = [prepare_mask(case.labels == s.value, prepared) for s in case.structures]
        found.append((prepared.image, masks))
    return found


def make_network(n_outputs: int, device: torch.device) -> SegResNet:
    """The 4.7 M SegResNet of the public models."""
    torch.manual_seed(0)
    return SegResNet(init_filters=16, in_channels=1, out_channels=n_outputs).to(device)


class PlainLoop:
    """The loop that a MONAI tutorial would write."""

    def __init__(self, cases, device: torch.device) -> None:
        data = []
        for image, masks in cases:
            label = torch.zeros_like(image)
            for value, mask in enumerate(masks, start=1):
                label[0][mask] = value
            data.append({"image": image, "label": label})
        crop = RandCropByPosNegLabeld(
            ["image", "label"], "label", PATCH, pos=2, neg=1, num_samples=PATCHES_PER_SCAN, allow_smaller=False
        )
        dataset = CacheDataset(data, crop, progress=False)
        self.loader = DataLoader(dataset, batch_size=1, shuffle=True, collate_fn=list_data_collate)
        self.device = device
        self.network = make_network(len(cases[0][1]) + 1, device)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), 1e-3)

    def run_epoch(self) -> None:
        """One epoch."""
        self.network.train()
        for batch in self.loader:
            self.optimiser.zero_grad()
            logits = self.network(batch["image"].to(self.device))
            loss = self.loss(logits, batch["label"].to(self.device))
            loss.backward()
            self.optimiser.step()


def our_loop(cases, device: torch.device) -> _Loop:
    """The engine's loop on the same volumes."""
    scans = [make_scan(image.to(device), masks, [True] * len(masks), overlapping=False) for image, masks in cases]
    network = make_network(len(cases[0][1]) + 1, device)
    schedule = Schedule(
        epochs=100,
        patch=PATCH,
        patches_per_scan=PATCHES_PER_SCAN,
        patches_per_step=PATCHES_PER_SCAN,
        micro_batch=PATCHES_PER_SCAN,
        precision=choose_precision(device),
        early_stop=False,
    )
    groups = [{"params": list(network.parameters()), "lr": 1e-3}]
    return _Loop(WholeNetwork(network), groups, scans, schedule, "softmax", Reporter.silent())


def timed(run, device: torch.device) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    """Run both loops in turn and print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    cases = prepared_phantoms()
    plain, ours = PlainLoop(cases, device), our_loop(cases, device)
    plain.run_epoch()
    ours.run_epoch()
    pairs = [(timed(plain.run_epoch, device), timed(ours.run_epoch, device)) for _ in range(arguments.repeats)]
    base, engine = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"training epoch on {device} ({choose_precision(device)}): plain {base:.2f} s, engine {engine:.2f} s, "
        f"ratio {base / engine:.2f} (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
