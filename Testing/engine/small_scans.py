"""A tiny model and small made-up scans for tests of the whole path. No test itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from peftseg.config import AdaptJob
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.networks import build
from peftseg.study import LabelState, SupportItem
from peftseg.volume import Grid, write_segmentation, write_volume
from peftseg.weights import save_model

BRIGHT, DARK = Structure("bright ball", 1), Structure("dark ball", 2)
BOTH = (BRIGHT, DARK)
SIZE = 24
RATES = {"lr_adapter": 1e-2, "lr_decoder": 1e-2, "lr_head": 1e-2}  # high ones: a few epochs suffice


def write_tiny_model(folder: Path) -> Path:
    """A MODELDIR with random weights whose base structure is the bright ball."""
    entry = ModelEntry(
        id="tiny",
        title="Tiny",
        modality="CT",
        structures=(BRIGHT,),
        network=NetworkSpec(
            "segresnet",
            {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]},
        ),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(24, 24, 24),
        overlap=0.5,
        licence="Apache-2.0",
    )
    torch.manual_seed(0)
    save_model(folder, entry, build(entry.network, 2)[0])
    return folder


def make_scan_files(
    folder: Path, number: int, structures=BOTH, states: dict[str, LabelState] | None = None
) -> SupportItem:
    """Write one scan with a bright and a dark ball in grey noise, of which some are labelled."""
    rng = np.random.default_rng(number)
    image = rng.normal(100, 5, (SIZE,) * 3).astype(np.float32)
    labels = np.zeros((SIZE,) * 3, np.uint8)
    axes = np.indices((SIZE,) * 3)
    for structure, centre_x, value in ((BRIGHT, 7, 200.0), (DARK, 17, 20.0)):
        centre = np.array([centre_x, 12, 12]) + rng.uniform(-2, 2, 3)
        ball = ((axes - centre[:, None, None, None]) ** 2).sum(0) < 4.0**2
        image[ball] = value
        if structure in structures:
            labels[ball] = structure.value
    grid = Grid(labels.shape, np.eye(4))
    paths = folder / f"patient_{number}.nii.gz", folder / f"patient_{number}_labels.nii.gz"
    write_volume(paths[0], image, grid)
    write_segmentation(paths[1], labels, grid, list(structures), {})
    return SupportItem(str(paths[0]), str(paths[1]), states or {})


def balls_job(model: Path, folder: Path, scans: int = 3, epochs: int = 12, out: str = "a.safetensors") -> AdaptJob:
    """A short adaptation to both balls; scans and adapter lie in the folder."""
    return AdaptJob(
        model=str(model),
        support=tuple(make_scan_files(folder, n) for n in range(scans)),
        structures=BOTH,
        out=str(folder / out),
        options=RATES,
        epochs=epochs,
        device="cpu",
        precision="fp32",
    )
