"""Tiny models and scans for tests of adaptation without labels. No test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.early_head import EarlyBranch, save_early_head
from peftseg.grid import Grid
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure, read_model_dir
from peftseg.networks import build
from peftseg.preprocess import Prepared, prepare
from peftseg.site_options import check_site_options, resolve_levels
from peftseg.volume import Volume, write_volume
from peftseg.weights import save_model

BALL = Structure("ball", 1)
SHAPE = (20, 18, 6)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "unet2d": {"filters": 4},
    "unet3d_bn": {"width": 4},
    "segresnet": {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]},
}


def write_site_model(
    folder: Path, network: str = "unet2d", activation: str = "softmax", early: int | None = 1
) -> ModelEntry:
    """A MODELDIR that segments a bright ball, its weights random but for statistics that fit its scans."""
    slices = network == "unet2d"
    entry = ModelEntry(
        id=f"tiny-{network}",
        title="Tiny",
        modality="MR",
        structures=(BALL,),
        network=NetworkSpec(network, ARGUMENTS[network]),
        activation=activation,
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(24, 24, 8) if slices else (24, 24, 16),
        overlap=0.5,
        licence="Apache-2.0",
    )
    torch.manual_seed(0)
    base, anatomy = build(entry.network, 2 if activation == "softmax" else 1)
    base.eval()
    save_model(folder, entry, base)
    if early is not None:
        save_early_head(folder, EarlyBranch(base, anatomy, early, 2 if activation == "softmax" else 1))
    return read_model_dir(folder)


def make_volume(number: int, gain: float = 1.0) -> Volume:
    """Grey noise with a bright ball."""
    rng = np.random.default_rng(number)
    image = rng.normal(100, 8, SHAPE)
    centre = np.array([9, 8, 3]) + rng.uniform(-2, 2, 3)
    distance = np.sqrt(((np.indices(SHAPE) - centre[:, None, None, None]) ** 2).sum(0))
    image += 80 * np.clip(4.5 - distance, 0, 1)
    return Volume((gain * image).astype(np.float32), Grid(SHAPE, np.eye(4)), f"scan {number}")


def write_scans(folder: Path, count: int = 4) -> list[str]:
    """Files of so many scans of one site."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"patient_{n}.nii.gz" for n in range(count)]
    for n, path in enumerate(paths):
        volume = make_volume(n)
        write_volume(path, volume.array, volume.grid)
    return [str(path) for path in paths]


def prepared_scans(entry: ModelEntry, count: int = 4) -> list[Prepared]:
    """The same scans, ready for the model."""
    return [prepare(make_volume(n), entry.preprocessing) for n in range(count)]


def settled(preset: str = "convlora_adabn", count: int = 4, own: int | None = 1, **options: Any) -> dict[str, Any]:
    """Options with depth and level decided."""
    return resolve_levels(check_site_options(preset, options), count, own)


def randomise(network: nn.Module, seed: int = 5) -> nn.Module:
    """Weights and statistics that are no special case: nothing 0, nothing 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.1 * noise.abs() if "var" in name else 0.1 * noise)
    return network.eval()
