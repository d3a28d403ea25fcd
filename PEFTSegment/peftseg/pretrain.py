"""Pre-training: a base model from labelled volumes (`peftseg pretrain`)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.config import PretrainJob
from peftseg.dataset import load_scans, prepare_scans
from peftseg.device import choose_device, choose_precision
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.models import INTENSITY_KINDS, Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.networks import build
from peftseg.optimise import History, Schedule, fit
from peftseg.patches import Augmentation
from peftseg.plan import patch_for, safe_precision
from peftseg.version import __version__
from peftseg.weights import n_outputs, save_model

LEARNING_RATE = 3e-3
DEFAULT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "segresnet": {
        "spatial_dims": 3,
        "init_filters": 16,
        "in_channels": 1,
        "blocks_down": [1, 2, 4],
        "blocks_up": [1, 1],
        "dropout_prob": 0.0,
    }
}
PRETRAIN_AUGMENTATION = Augmentation(gain=0.3, offset=0.3, gamma=0.4, noise=0.2, scale=0.15, rotation_deg=15.0)


@dataclasses.dataclass
class WholeNetwork:
    """A network of which everything trains, for `optimise.fit`."""

    network: nn.Module
    frozen_until: str = ""

    def state(self) -> dict[str, torch.Tensor]:
        """The network's `state_dict()`."""
        return self.network.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load a `state_dict()`."""
        self.network.load_state_dict(state)

    def after_step(self, lr: float, progress: float) -> None:
        """Nothing happens after a step."""

    def penalty(self) -> torch.Tensor | None:
        """The loss is all."""
        return None

    def memory(self) -> dict[str, torch.Tensor]:
        """Nothing is remembered beside the state."""
        return {}

    def load_memory(self, memory: dict[str, torch.Tensor]) -> None:
        """Inverse of `memory`."""

    def facts(self) -> dict[str, Any]:
        """No facts beside the loss."""
        return {}


def parse_intensity(text: str) -> Intensity:
    """Intensity mapping from text: "zscore", "percentile" (1st to 99th) or "window:LOW,HIGH" (to 0..1)."""
    kind, _, numbers = text.partition(":")
    if kind == "window":
        try:
            low, high = (float(n) for n in numbers.split(","))
        except ValueError:
            low = high = math.nan
        if not low < high:
            raise BadInput(
                f"Intensity '{text}' is not window:LOW,HIGH with LOW < HIGH.", "For example window:-175,250."
            )
        return Intensity("window", low, high)
    if kind == "percentile":
        return Intensity("percentile", 1.0, 99.0)
    if kind == "zscore":
        return Intensity("zscore")
    raise BadInput(f"Unknown intensity '{text}'; valid: {', '.join(INTENSITY_KINDS)}.", "Choose one of these.")


def run_pretrain(job: PretrainJob, reporter: Reporter) -> dict[str, Any]:
    """Train a base model and write its MODELDIR.

    Returns
    -------
    dict
        "model" (folder), "epochs", "seconds", "loss".
    """
    out = Path(job.out)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"The model folder {out} exists and is not empty.", "Give a new folder name or remove it.")
    device = choose_device(job.device)
    torch.manual_seed(job.seed)
    loaded = load_scans(job.data, job.structures, None, reporter)
    recipe = Preprocessing(
        orientation="RAS",
        spacing=job.spacing or _median_spacing([scan.volume.grid.spacing for scan in loaded]),
        intensity=parse_intensity(job.intensity),
    )
    prepared = prepare_scans(loaded, recipe, job.structures, job.activation == "sigmoid", device)
    spec = NetworkSpec(job.network, DEFAULT_ARGUMENTS.get(job.network, {}) | job.network_arguments)
    network, anatomy = build(spec, n_outputs(job.structures, job.activation))
    shapes = [tuple(scan.image.shape[1:]) for scan in prepared]
    patch = patch_for(shapes, job.patch or (96, 96, 96), anatomy.divisor)
    schedule = Schedule(
        epochs=job.epochs,
        patch=patch,
        precision=safe_precision(choose_precision(device, job.precision), device, patch, anatomy.divisor),
        early_stop=False,
        seed=job.seed,
        augmentation=PRETRAIN_AUGMENTATION,
    )
    reporter.log(
        f"Pre-training {job.network} on {len(prepared)} scans, patches of {patch} voxels, {job.epochs} epochs."
    )
    network.to(device)
    groups = [{"params": list(network.parameters()), "lr": LEARNING_RATE}]
    deadline = job.budget_minutes * 60 if job.budget_minutes else None
    names = [s.name for s in job.structures]
    history = fit(WholeNetwork(network), groups, prepared, schedule, job.activation, reporter, deadline, names)
    entry = _entry(job, spec, recipe, patch, history)
    save_model(out, entry, network)
    return {"model": str(out), "epochs": len(history.losses), "seconds": history.seconds, "loss": history.losses[-1]}


def _median_spacing(spacings: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    return tuple(round(float(s), 3) for s in np.median(np.array(spacings), axis=0))


def _entry(
    job: PretrainJob, spec: NetworkSpec, recipe: Preprocessing, patch: tuple[int, int, int], history: History
) -> ModelEntry:
    structures: tuple[Structure, ...] = job.structures
    return ModelEntry(
        id=job.id,
        title=job.title,
        modality=job.modality,
        body_part=job.body_part,
        structures=structures,
        network=spec,
        activation=job.activation,
        preprocessing=recipe,
        window=patch,
        overlap=0.5,
        licence=job.licence,
        licence_notice=job.licence_notice,
        description=job.description,
        record={
            "scans": len(job.data),
            "epochs": len(history.losses),
            "seconds": round(history.seconds, 1),
            "final_loss": round(history.losses[-1], 4),
            "seed": job.seed,
            "software": f"peftseg {__version__}, torch {torch.__version__.split('+')[0]}",
        },
    )
