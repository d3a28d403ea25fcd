"""How long and in what steps to train, what happened so far, and the plan's change by the time that epochs take.

Used by the training loop (`optimise.fit`).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from peftseg.adapters.features import POOL
from peftseg.patches import Augmentation, rng_for

SMOOTHING_EPOCHS = 10
MATCH_SHARE = 0.2  # of the newest epoch in the running match: it forgets within about ten epochs, as the loss does
FIRST_STOP_TEST = 32
STOP_PERIOD = 20
STOP_IMPROVEMENT = 0.01
TIMED_EPOCHS = 5
LATE, EARLY = 1.15, 0.7  # expected share of the budget at which the number of epochs is planned anew
OVERRUN = 1.25  # share of the budget at which training ends whatever the plan


@dataclass(frozen=True)
class Schedule:
    """How long and in what steps to train.

    Attributes
    ----------
    epochs : int
        Planned epochs; one epoch visits every scan `patches_per_scan` times.
    patch : tuple of int
        Patch size in voxels.
    patches_per_scan, patches_per_step : int
        Patches of a scan an epoch, and patches that one optimiser step averages over.
    micro_batch : int
        Patches that go through the network at once; smaller needs less memory.
    checkpointing : bool
        Recompute activations in the backward pass to save memory.
    precision : str
        "fp32", "bf16" or "fp16".
    max_epochs, budget_s : int, float or None
        With a budget in seconds, the number of epochs follows the time that epochs really take, up to the maximum.
    pool : int
        Where features before the head are kept, the patches of this many epochs come again and again.
    early_stop : bool
        Stop when the 10-epoch mean of the loss improved by at most 1 % over 20 epochs (see `has_converged`).
    """

    epochs: int
    patch: tuple[int, int, int]
    patches_per_scan: int = 1
    patches_per_step: int = 1
    micro_batch: int = 1
    checkpointing: bool = False
    precision: str = "fp32"
    max_epochs: int = 0
    budget_s: float | None = None
    pool: int = POOL
    early_stop: bool = True
    warmup_epochs: int = 2
    clip_norm: float = 1.0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass
class History:
    """What happened: losses and facts by epoch, the running match to the labels, and the retries that were needed."""

    losses: list[float] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    rate_factor: float = 1.0
    retries: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""
    planned: int = 0
    anchor: list[float] = field(default_factory=lambda: [0.0, 0.0])
    epoch_seconds: list[float] = field(default_factory=list)
    match: list[float | None] = field(default_factory=list)

    def add_match(self, dices: list[float | None]) -> None:
        """Take an epoch's Dice of each structure into the running mean; None leaves a structure's as it is."""
        before = self.match or [None] * len(dices)
        self.match = [
            old if new is None else new if old is None else old + MATCH_SHARE * (new - old)
            for old, new in zip(before, dices, strict=True)
        ]

    def share(self, epoch: float) -> float:
        """Share of the schedule that is done at an epoch: linear from the last change of plan on."""
        first, done = self.anchor
        return min(1.0, done + (1 - done) * (epoch - first) / max(self.planned - first, 1e-9))

    def plan_anew(self, epoch: int, planned: int) -> None:
        """Go on from here to another number of epochs; the learning rate has no step."""
        self.anchor = [float(epoch), self.share(epoch)]
        self.planned = planned


def cosine_factor(epoch: float, share: float, warmup_epochs: int) -> float:
    """Learning rate relative to its peak: linear warm-up by epoch, half a cosine to 1 % by share of the schedule."""
    warmup = min(1.0, (epoch + 1) / (warmup_epochs + 1))
    return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def epochs_in_time(history: History, schedule: Schedule) -> int:
    """Planned epochs, changed only where the last epochs' times say that the budget would be missed by far."""
    done, recent = len(history.losses), history.epoch_seconds[-TIMED_EPOCHS:]
    if schedule.budget_s is None or len(recent) < min(3, schedule.epochs) or done >= schedule.max_epochs:
        return history.planned
    each = statistics.median(recent)
    expected = history.seconds + each * (history.planned - done)
    if EARLY * schedule.budget_s <= expected <= LATE * schedule.budget_s:
        return history.planned
    fitting = done + int(max(schedule.budget_s - history.seconds, 0) / each)
    return max(done, min(schedule.max_epochs, fitting))


def smoothed(losses: list[float], end: int | None = None) -> float:
    """Mean of the last 10 losses before `end`."""
    part = losses[:end][-SMOOTHING_EPOCHS:]
    return sum(part) / len(part)


def has_converged(losses: list[float]) -> bool:
    """From epoch 32 on, the 10-epoch mean fell by at most 1 % over the last 20 epochs.

    1 % over 20 epochs is ARENA's rule (Baklouti et al. 2025, sec. 3.1), mean and first epoch are FSEFT's (main_fseft.py).
    """
    if len(losses) < FIRST_STOP_TEST:
        return False
    before, now = smoothed(losses, len(losses) - STOP_PERIOD), smoothed(losses)
    return before - now <= STOP_IMPROVEMENT * abs(before)


def epoch_steps(n_scans: int, epoch: int, schedule: Schedule) -> list[list[tuple[int, int, int]]]:
    """The (epoch, scan, patch) keys of every step of an epoch, in an order keyed by (seed, epoch)."""
    keys = [(epoch, scan, n) for n in range(schedule.patches_per_scan) for scan in range(n_scans)]
    order = rng_for(schedule.seed, epoch).permutation(len(keys))
    shuffled = [keys[i] for i in order]
    size = schedule.patches_per_step
    return [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
