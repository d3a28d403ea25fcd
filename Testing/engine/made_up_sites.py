"""Made-up scanners that differ in contrast, noise, sharpness and voxel size, and tiny bases. No test itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.networks import build
from peftseg.volume import Grid, Volume
from peftseg.weights import save_model

SIZE = 32
PREPROCESSING = Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore"))


@dataclass(frozen=True)
class Scanner:
    gamma: float = 1.0
    noise: float = 4.0
    blur: float = 0.6
    spacing: float = 1.0


PLAIN = Scanner()
NOISY = Scanner(noise=16.0)
FLAT = Scanner(gamma=0.25)
BLURRED = Scanner(blur=2.5)
COARSE = Scanner(spacing=1.3)


def made_up_scan(scanner: Scanner, patient: int) -> Volume:
    """Blobs of tissue in dark air, other ones in each patient, as that scanner shows them."""
    rng = np.random.default_rng(patient)
    tissue = ndimage.gaussian_filter(rng.normal(size=(SIZE,) * 3), 2)
    tissue = 0.5 + 0.2 * tissue / tissue.std()
    axes = np.indices((SIZE,) * 3) - (SIZE - 1) / 2 - rng.uniform(-1, 1, 3)[:, None, None, None]
    inside = (axes**2).sum(0) < (0.45 * SIZE) ** 2
    clean = np.where(inside, np.clip(tissue, 0.05, 1) ** scanner.gamma, 0.02)
    image = 200 * ndimage.gaussian_filter(clean, scanner.blur) + rng.normal(0, scanner.noise, clean.shape)
    grid = Grid(image.shape, np.diag([scanner.spacing] * 3 + [1.0]))
    return Volume(np.clip(image, 0, None).astype(np.float32), grid, f"doe_john_{patient}")


def tiny_base(batch_norm: bool) -> tuple[ModelEntry, nn.Module]:
    """An entry and its network with random weights: a 2D U-Net with batch normalisation, or a SegResNet without."""
    plain = {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]}
    spec = NetworkSpec("unet2d", {"filters": 4}) if batch_norm else NetworkSpec("segresnet", plain)
    entry = ModelEntry(
        id="tiny-bn" if batch_norm else "tiny",
        title="Tiny",
        modality="MR",
        structures=(Structure("ball", 1),),
        network=spec,
        activation="softmax",
        preprocessing=PREPROCESSING,
        window=(SIZE, SIZE, 8),
        overlap=0.5,
        licence="Apache-2.0",
    )
    torch.manual_seed(0)
    return entry, build(spec, 2)[0].eval()


def write_tiny_base(folder: Path, batch_norm: bool, **changes) -> ModelEntry:
    """The MODELDIR of `tiny_base`, with other fields where wanted."""
    entry, network = tiny_base(batch_norm)
    entry = replace(entry, directory=folder, **changes)
    save_model(folder, entry, network)
    return entry
