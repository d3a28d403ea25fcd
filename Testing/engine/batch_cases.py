"""A tiny model and very small scans for tests of batches. No test itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from peftseg.config import ApplyJob
from peftseg.events import Reporter
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.networks import build, head_of
from peftseg.volume import Grid, write_volume
from peftseg.weights import save_model

SIZE = 12
STRUCTURES = (Structure("bright ball", 1, (230, 159, 0)), Structure("dark ball", 2, (86, 180, 233)))
PLACED = np.diag([2.0, 2.0, 2.0, 1.0]) + np.eye(4, k=3) * 50


def write_model(folder: Path, name: str = "tiny", seed: int = 0) -> Path:
    """A MODELDIR with random weights that finds both structures in noise."""
    arguments = {"spatial_dims": 3, "init_filters": 4, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]}
    entry = ModelEntry(
        id=name,
        title=name,
        modality="CT",
        structures=STRUCTURES,
        network=NetworkSpec("segresnet", {**arguments, "norm": ["GROUP", {"num_groups": 2}]}),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (2.0, 2.0, 2.0), Intensity("zscore")),
        window=(SIZE,) * 3,
        overlap=0.0,
        licence="Apache-2.0",
    )
    torch.manual_seed(seed)
    network, anatomy = build(entry.network, 3)
    with torch.no_grad():
        head_of(network, anatomy).bias -= network(torch.randn(1, 1, *[SIZE] * 3)).mean(dim=(0, 2, 3, 4))
    save_model(folder, entry, network)
    return folder


def write_scan(path: Path, seed: int = 0) -> Path:
    """A scan of noise, of 12 x 12 x 12 voxels."""
    array = np.random.default_rng(seed).normal(100, 20, (SIZE,) * 3).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, array, Grid((SIZE,) * 3, PLACED))
    return path


def write_scans(folder: Path, count: int) -> Path:
    """Scans scan000.nii.gz, scan001.nii.gz ..."""
    for number in range(count):
        write_scan(folder / f"scan{number:03d}.nii.gz", number)
    return folder


def batch_job(model: Path | None, out: Path, *inputs: Path, **changes) -> ApplyJob:
    """A batch on the processor."""
    settings = {"adapter": None, "model": model and str(model), "inputs": tuple(map(str, inputs)), "out": str(out)}
    settings |= {"device": "cpu", "precision": "fp32", "batch": True, **changes}
    return ApplyJob(**settings)


def lines_of(out: Path) -> list[dict]:
    """All lines of a manifest."""
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def states_of(out: Path) -> dict[str, str]:
    """Name of each study -> its last state."""
    return {line["name"]: line["state"] for line in lines_of(out)}


def said(reporter: Reporter) -> str:
    """All that was told."""
    return json.dumps(reporter.events, ensure_ascii=False)
