"""Pre-training: a base model from labelled volumes (`peftseg pretrain`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.adabn import running_norms
from peftseg.config import PretrainJob
from peftseg.dataset import load_scans, prepare_scans
from peftseg.device import choose_device, choose_precision
from peftseg.early_head import EarlyBranch, epochs_for, fit_early_head, save_early_head
from peftseg.errors import BadInput, unknown_name
from peftseg.events import Reporter
from peftseg.grid import Grid
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.networks import Anatomy, build, is_slicewise
from peftseg.optimise import fit
from peftseg.patches import Augmentation, Scan, sample_batch
from peftseg.plan import patch_for, safe_precision
from peftseg.planes import in_orientation, orientation_for, spacing_along
from peftseg.schedule import History, Schedule, epoch_steps
from peftseg.site_layers import statistics_of
from peftseg.site_options import EARLY_LEVEL
from peftseg.site_statistics import site_record
from peftseg.structure_facts import structure_facts
from peftseg.study import LoadedScan
from peftseg.version import __version__
from peftseg.weights import n_outputs, save_model
from peftseg.windows import SLICES_AT_ONCE

LEARNING_RATE = 3e-3
VOLUME_PATCH = (96, 96, 96)
SLICES_PATCH = (256, 256, 8)
VOLUMES_A_STEP = 2  # of networks with running statistics
SLICE_PATCHES_A_STEP = 4  # 32 slices, as in the CC359 experiments
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
    """Intensity mapping from text: "zscore", or to 0..1 "percentile" (1st to 99th), "range" (all) and "window:LOW,HIGH"."""
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
    if kind == "range":
        return Intensity("percentile", 0.0, 100.0)
    if kind == "zscore":
        return Intensity("zscore")
    raise unknown_name("intensity", text, ("zscore", "percentile", "range", "window:LOW,HIGH"))


def run_pretrain(job: PretrainJob, reporter: Reporter) -> dict[str, Any]:
    """Train a base model and write its MODELDIR; where the job asks for it, its early segmentation head too.

    Returns
    -------
    dict
        "model" (folder), "epochs", "seconds", "loss", "early_level" (None: no early head, as after stop and keep).
    """
    out = Path(job.out)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"The model folder {out} exists and is not empty.", "Give a new folder name or remove it.")
    device = choose_device(job.device)
    torch.manual_seed(job.seed)
    spec = NetworkSpec(job.network, DEFAULT_ARGUMENTS.get(job.network, {}) | job.network_arguments)
    network, anatomy = build(spec, n_outputs(job.structures, job.activation))  # before scans are read: it may not exist
    network.to(device)
    early = _early_branch(job, network, anatomy)
    loaded = load_scans(job.data, job.structures, None, reporter)
    recipe = recipe_for(job, [scan.volume.grid for scan in loaded])
    prepared = prepare_scans(loaded, recipe, job.structures, job.activation == "sigmoid", device)
    schedule = _schedule(job, recipe, network, anatomy, prepared, device)
    reporter.log(
        f"Pre-training {job.network} on {len(prepared)} scans, patches of {schedule.patch} voxels, {job.epochs} epochs."
    )
    groups = [{"params": list(network.parameters()), "lr": LEARNING_RATE}]
    deadline = job.budget_minutes * 60 if job.budget_minutes else None
    names = [s.name for s in job.structures]
    history = fit(WholeNetwork(network), groups, prepared, schedule, job.activation, reporter, deadline, names)
    entry = _entry(job, spec, recipe, _window(network, schedule.patch), history)
    facts = scan_facts(loaded, entry, network, anatomy, device, reporter)
    if early is not None and not _fit_early(early, prepared, schedule, job.activation, reporter):
        early = None
    if early is not None:
        facts["early_level"] = early.level
    entry = dataclasses.replace(entry, record=entry.record | facts)
    reporter.check()
    if early is not None:
        save_early_head(out, early)
    save_model(out, entry, network)
    return {
        "model": str(out),
        "epochs": len(history.losses),
        "seconds": history.seconds,
        "loss": history.losses[-1],
        "early_level": early.level if early is not None else None,
    }


def scan_facts(
    loaded: Sequence[LoadedScan],
    entry: ModelEntry,
    network: nn.Module,
    anatomy: Anatomy,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    """What a model's record keeps of its training scans: its structures in them, and what the scans are like."""
    looks = [
        statistics_of(scan.volume, entry.preprocessing, network, anatomy, entry.window, device, reporter)
        for scan in loaded
    ]
    return {"structure_facts": structure_facts(loaded, entry.structures), "site": site_record(looks)}


def recipe_for(job: PretrainJob, grids: Sequence[Grid]) -> Preprocessing:
    """The model's preprocessing: slices of the asked plane, and voxel sizes along the axes that this makes.

    Parameters
    ----------
    grids : sequence of Grid
        Of the scans, whatever the order of their axes.
    """
    orientation = orientation_for(job.network, job.plane)
    if job.spacing:
        spacing = in_orientation(job.spacing, orientation)
    else:
        sizes = np.median([spacing_along(grid, orientation) for grid in grids], axis=0)
        spacing = tuple(round(float(size), 3) for size in sizes)
    return Preprocessing(orientation, spacing, parse_intensity(job.intensity), square=job.square)


def _early_branch(job: PretrainJob, network: nn.Module, anatomy: Anatomy) -> EarlyBranch | None:
    """The network with an early head still to be fitted, or None for none; BadInput for a level that it has not got."""
    level = job.early_level
    if level is None:
        level = EARLY_LEVEL if running_norms(network) else -1
    return EarlyBranch(network, anatomy, level, n_outputs(job.structures, job.activation)) if level >= 0 else None


def _schedule(
    job: PretrainJob,
    recipe: Preprocessing,
    network: nn.Module,
    anatomy: Anatomy,
    scans: list[Scan],
    device: torch.device,
) -> Schedule:
    """One patch a scan and step, as large as the scans where they are small.

    Running statistics need batches that stand for all scans: patches of several scans a step. Of a network of slices a
    patch is some neighbouring slices, and an epoch sees about every slice once.
    """
    slices = is_slicewise(network)
    shapes = [tuple(scan.image.shape[1:]) for scan in scans]
    asked = in_orientation(job.patch, recipe.orientation) if job.patch else SLICES_PATCH if slices else VOLUME_PATCH
    patch = patch_for(shapes, asked, anatomy.divisor)
    several = SLICE_PATCHES_A_STEP if slices else VOLUMES_A_STEP
    at_once = several if running_norms(network) else 1
    return Schedule(
        epochs=job.epochs,
        patch=patch,
        patches_per_scan=max(1, round(float(np.median([s[2] for s in shapes])) / patch[2])) if slices else 1,
        patches_per_step=at_once,
        micro_batch=at_once,
        precision=safe_precision(choose_precision(device, job.precision), device, patch, anatomy.divisor),
        early_stop=False,
        seed=job.seed,
        augmentation=PRETRAIN_AUGMENTATION,
    )


def _window(network: nn.Module, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sliding window of the model: the patch; of a network of slices, as many slices as are done at once."""
    return (*patch[:2], SLICES_AT_ONCE) if is_slicewise(network) else patch


def _fit_early(branch: EarlyBranch, scans: list[Scan], schedule: Schedule, activation: str, reporter: Reporter) -> bool:
    """Fit the early segmentation head to the labels; the trained network before it stays as it is.

    False, and a warning, where the user stopped before it was fitted: a model without a head is better than one with a
    head that has learnt next to nothing, because adaptation fits one where there is none.
    """

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for keys in epoch_steps(len(scans), epoch, schedule):
            reporter.check()
            yield sample_batch(scans, keys, schedule.patch, schedule.augmentation, schedule.seed)

    epochs, done = epochs_for(len(epoch_steps(len(scans), 0, schedule))), 0
    if not reporter.stop_keep():
        reporter.log(f"Fitting the early segmentation head at level {branch.level}.")
        done = len(fit_early_head(branch, batches, activation, epochs, reporter))
    if done < epochs:
        reporter.warning(
            "Stopped early: the model is kept without an early segmentation head, the small extra part that helps to "
            "adapt it to scans without labels. `peftseg site-adapt` makes one itself where it needs one."
        )
    return done == epochs


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
