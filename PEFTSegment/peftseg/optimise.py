"""The training loop shared by adaptation and pre-training.

One loop: keyed patches, AdamW, warm-up and cosine, early stop on the smoothed training loss, checkpoints that continue
bit by bit, a retry after a loss that is not finite, and smaller steps when memory runs out.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from peftseg.adapters.features import MEMORY_SHARE, FeatureCache
from peftseg.checkpoint import Checkpoint, copy_slots, copy_state, load_slots, read_checkpoint, write_checkpoint
from peftseg.device import activation_checkpointing, autocast, free_memory, is_out_of_memory, release_memory
from peftseg.errors import OutOfMemory, TrainingFailed
from peftseg.events import Reporter
from peftseg.losses import Match, sigmoid_loss, softmax_loss
from peftseg.patches import Scan, sample_batch
from peftseg.schedule import History, Schedule, cosine_factor, epoch_steps, epochs_in_time, has_converged, smoothed

CHECKPOINT_EVERY_S = 20.0
HALF_TOO_SMALL = "single instead of half precision"  # among the retries


class Trainable(Protocol):
    """What the loop needs of a thing that is trained: `adapters.base.Attached`, or a whole network in pre-training."""

    network: nn.Module
    frozen_until: str  # name of the module before which nothing trains, or ""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that training changes."""
        ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state`."""
        ...

    def after_step(self, lr: float, progress: float) -> None:
        """Called after each optimiser step with the adapter's learning rate and the share of planned steps done."""
        ...

    def penalty(self) -> torch.Tensor | None:
        """Added to the loss of each step, or None."""
        ...

    def memory(self) -> dict[str, torch.Tensor]:
        """What is remembered from step to step beside the state."""
        ...

    def load_memory(self, memory: dict[str, torch.Tensor]) -> None:
        """Inverse of `memory`; an empty one starts anew."""
        ...

    def facts(self) -> dict[str, Any]:
        """Small facts for the progress event."""
        ...


class Retried(Protocol):
    """A history that counts what had to be tried again."""

    losses: list[float]
    rate_factor: float
    retries: list[str]


def slow_down(history: Retried, reporter: Reporter, instead: str) -> None:
    """A tenth of the learning rate from now on, because a loss is not finite; TrainingFailed where it was that already.

    The caller goes back to its last good state. `instead` is what else the user can do.
    """
    if history.rate_factor < 1.0:
        raise TrainingFailed(
            f"The training loss is not finite in epoch {len(history.losses) + 1}, also at a tenth of the learning rate.",
            f"Look for extreme grey values in the scans, or {instead}.",
        )
    history.rate_factor = 0.1
    history.retries.append("loss not finite")
    reporter.warning("The loss was not finite: back to the last good state, a tenth of the learning rate.")


def fit(
    trainable: Trainable,
    groups: list[dict[str, Any]],
    scans: list[Scan],
    schedule: Schedule,
    activation: str,
    reporter: Reporter,
    deadline_s: float | None = None,
    structures: Sequence[str] = (),
) -> History:
    """Train in place; at the end the trainable holds its best state by smoothed training loss.

    Parameters
    ----------
    groups : list of AdamW parameter groups, each with its peak "lr"
    scans : list of Scan
        On the network's device, or in main memory where they do not fit there; patches are cut where the scans are.
    activation : str
        "softmax" or "sigmoid".
    deadline_s : float, optional
        Stop after this many seconds of training, at the end of an epoch; the schedule is not changed by it.
    structures : sequence of str
        Names in the order of the head's rows, for the "match" of the progress events; without them there is none.

    Raises
    ------
    JobCancelled, OutOfMemory, TrainingFailed
    """
    loop = _Loop(trainable, groups, scans, schedule, activation, reporter, structures)
    loop.resume()
    reporter.progress("train", loop.epoch, loop.history.planned)
    started = time.monotonic() - loop.history.seconds
    history = loop.history
    while loop.epoch < history.planned and not history.stopped:
        loop.run_epoch()
        seconds = time.monotonic() - started
        history.epoch_seconds.append(seconds - history.seconds)
        history.seconds = seconds
        history.stopped = _reason_to_stop(history, schedule, reporter, deadline_s)
        loop.keep_to_budget()
        loop.report()
        loop.save(force=bool(history.stopped) or loop.epoch == history.planned)
    trainable.load_state(loop.best)
    return history


def _reason_to_stop(history: History, schedule: Schedule, reporter: Reporter, deadline_s: float | None) -> str:
    if reporter.stop_keep():
        return "stopped by the user"
    if deadline_s is not None and history.seconds > deadline_s:
        return "time budget used"
    if schedule.early_stop and has_converged(history.losses):
        return "converged"
    return ""


class _Loop:
    """State of one run of `fit`: everything here is in the checkpoint."""

    def __init__(
        self,
        trainable: Trainable,
        groups: list[dict[str, Any]],
        scans: list[Scan],
        schedule: Schedule,
        activation: str,
        reporter: Reporter,
        structures: Sequence[str] = (),
    ) -> None:
        self.trainable, self.scans, self.schedule, self.reporter = trainable, scans, schedule, reporter
        self.structures = tuple(structures)
        self.loss = softmax_loss if activation == "softmax" else sigmoid_loss
        self.peaks = [group["lr"] for group in groups]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
        self.apart = _stepped_elsewhere(trainable.network, groups)
        self.device = next(trainable.network.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=schedule.precision == "fp16")
        self.skipped = False  # whether the last step's gradients were beyond half precision
        self.epoch = 0
        self.history = History(planned=schedule.epochs)
        self.micro_batch = schedule.micro_batch
        self.checkpointing = schedule.checkpointing
        self.best = copy_state(trainable.state())
        self.best_loss = math.inf
        self.match = Match()
        self.features = _feature_cache(trainable, self.device, reporter)
        self.last_saved = time.monotonic()
        self.good = self._snapshot()

    def resume(self) -> None:
        path = self.reporter.checkpoint
        if path is None or not path.is_file():
            return
        saved = read_checkpoint(path)
        self._restore(saved)
        self.history = History(**saved.facts["history"])
        self.best, self.best_loss = saved.best, saved.facts["best_loss"]
        self.micro_batch, self.checkpointing = saved.facts["micro_batch"], saved.facts["checkpointing"]
        if HALF_TOO_SMALL in self.history.retries:
            self._leave_half_precision()
        self.good = self._snapshot()
        self.reporter.log(f"Continued from epoch {self.epoch}.")

    def run_epoch(self) -> None:
        """One epoch; a loss that is not finite goes back to the last good epoch with a tenth of the rate, once.

        In half precision, numbers beyond 65504 may be the reason: then it goes on in single precision first.
        """
        while not math.isfinite(total := self._try_epoch()):
            if self.schedule.precision == "fp16":
                self.history.retries.append(HALF_TOO_SMALL)
                self.reporter.warning("Half precision does not hold this network's numbers: going on without (slower).")
                self._leave_half_precision()
            else:
                slow_down(self.history, self.reporter, "choose another method or smaller learning rates")
            self._restore(self.good)
        self.history.losses.append(total)
        self.history.add_match(self.match.dice())
        self.history.facts.append(self.trainable.facts())
        mean = smoothed(self.history.losses)
        if mean <= self.best_loss:
            self.best_loss, self.best = mean, copy_state(self.trainable.state())
            self.history.best_epoch = self.epoch
        self.epoch += 1
        self.good = self._snapshot()

    def _leave_half_precision(self) -> None:
        self.schedule = replace(self.schedule, precision="fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.features = _feature_cache(self.trainable, self.device, self.reporter)  # those that are kept are in 16 bits

    def _try_epoch(self) -> float:
        sampled = self.epoch if self.features is None else self.epoch % self.schedule.pool
        steps = epoch_steps(len(self.scans), sampled, self.schedule)
        share = self.history.share(self.epoch)
        factor = cosine_factor(self.epoch, share, self.schedule.warmup_epochs) * self.history.rate_factor
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.trainable.network.train()
        self.match = Match()
        total = 0.0
        for number, keys in enumerate(steps):
            self.reporter.check()
            value = self._step_within_memory(keys)
            if not math.isfinite(value):
                return value
            if not self.skipped:
                done = self.history.share(self.epoch + (number + 1) / len(steps))
                self.trainable.after_step(self.optimiser.param_groups[0]["lr"], done)
            total += value * len(keys)
        return total / sum(len(keys) for keys in steps)

    def _step_within_memory(self, keys: list[tuple[int, int, int]]) -> float:
        """One optimiser step; out of memory: half the patches at once, then activation checkpointing, then give up."""
        while True:
            try:
                return self._step(keys)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._zero_grad()
            self.scaler = _renewed(self.scaler, self.device)
            self._shrink()

    def _shrink(self) -> None:
        if self.features is not None:
            self.features.stop()
        release_memory()
        if self.micro_batch > 1 and "smaller patch batch" not in self.history.retries:
            self.micro_batch = max(1, self.micro_batch // 2)
            self.history.retries.append("smaller patch batch")
            self.reporter.warning(f"Out of memory: going on with {self.micro_batch} patches at once.")
        elif not self.checkpointing:
            self.micro_batch, self.checkpointing = 1, True
            self.history.retries.append("activation checkpointing")
            self.reporter.warning("Out of memory: going on with activation checkpointing (slower).")
        else:
            raise OutOfMemory(
                f"The memory does not suffice for a patch of {self.schedule.patch} voxels, also one at a time.",
                "Close other programs, choose a smaller model, or run on a machine with more memory.",
            )

    def _zero_grad(self) -> None:
        for optimiser in (self.optimiser, self.apart):
            if optimiser is not None:
                optimiser.zero_grad(set_to_none=True)

    def _step(self, keys: list[tuple[int, int, int]]) -> float:
        self._zero_grad()
        value = 0.0
        for start in range(0, len(keys), self.micro_batch):
            part = keys[start : start + self.micro_batch]
            loss = self._forward(part) * (len(part) / len(keys))
            if not bool(torch.isfinite(loss)):
                return math.nan
            self.scaler.scale(loss).backward()
            value += float(loss.detach())
        penalty = self.trainable.penalty()
        if penalty is not None:
            self.scaler.scale(penalty).backward()
        self.scaler.unscale_(self.optimiser)
        if self.apart is not None:
            self.scaler.unscale_(self.apart)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.schedule.clip_norm)
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            return math.nan
        before = self.scaler.get_scale()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        # The scale falls where a gradient was not finite: nothing may move or be remembered by it.
        self.skipped = self.scaler.get_scale() < before
        return value

    def _forward(self, keys: list[tuple[int, int, int]]) -> torch.Tensor:
        logits, target, known = self._logits(keys)
        self.match.add(logits.detach(), target, known)
        if self.loss is softmax_loss:
            return softmax_loss(logits, target[:, 0], known)
        return sigmoid_loss(logits, target, known)

    def _logits(self, keys: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The network's output for patches, and their truth."""
        schedule, features = self.schedule, self.features
        kept = None if features is None else features.get(tuple(keys))
        if kept is not None:
            with autocast(self.device, schedule.precision):
                return features.logits(kept), kept.target, kept.known
        batch = sample_batch(self.scans, keys, schedule.patch, schedule.augmentation, schedule.seed)
        image, target, known = (part.to(self.device, non_blocking=True) for part in batch)
        with autocast(self.device, schedule.precision), _recomputing(self.trainable.network, self.checkpointing):
            if features is None:
                return self.trainable.network(image), target, known
            return features.run(tuple(keys), image, target, known), target, known

    def keep_to_budget(self) -> None:
        """Plan the number of epochs anew where epochs take much longer or shorter than expected."""
        if self.features is not None and self.epoch <= self.schedule.pool:
            return  # while features are computed, epochs say nothing about the later ones
        planned = epochs_in_time(self.history, self.schedule)
        if planned != self.history.planned and not self.history.stopped:
            self.reporter.log(f"Plan changed from {self.history.planned} to {planned} epochs to use the time budget.")
            self.history.plan_anew(self.epoch, planned)

    def report(self) -> None:
        done = len(self.history.losses)
        left = self.history.seconds / done * (self.history.planned - done) if done else None
        self.reporter.progress(
            "train",
            done,
            self.history.planned,
            None if self.history.stopped else left,
            loss=self.history.losses[-1],
            smoothed_loss=smoothed(self.history.losses),
            match=self._match(),
            best_epoch=self.history.best_epoch + 1,
            **_mean_rank(self.history.facts[-1]),
            **self.history.facts[-1],
        )

    def _match(self) -> dict[str, float | None]:
        rounded = [None if value is None else round(value, 4) for value in self.history.match]
        return dict(zip(self.structures, rounded, strict=False))  # no names: no match

    def save(self, force: bool) -> None:
        """Write the checkpoint, at most every 20 s."""
        if self.reporter.checkpoint is None or not (force or time.monotonic() - self.last_saved > CHECKPOINT_EVERY_S):
            return
        write_checkpoint(self.reporter.checkpoint, self._snapshot(self.best))
        self.last_saved = time.monotonic()

    def _snapshot(self, best: dict[str, torch.Tensor] | None = None) -> Checkpoint:
        facts = {
            "epoch": self.epoch,
            "best_loss": self.best_loss,
            "micro_batch": self.micro_batch,
            "checkpointing": self.checkpointing,
            "scaler": self.scaler.state_dict(),
            "history": copy.deepcopy(vars(self.history)),
        }
        return Checkpoint(
            state=copy_state(self.trainable.state()),
            optimiser=copy_slots(self.optimiser),
            best=best or {},
            random=torch.get_rng_state(),
            facts=facts,
            memory=copy_state(self.trainable.memory()),
        )

    def _restore(self, saved: Checkpoint) -> None:
        self.trainable.load_state(saved.state)
        self.trainable.load_memory(saved.memory)
        load_slots(self.optimiser, saved.optimiser)
        torch.set_rng_state(saved.random)
        if self.scaler.is_enabled() and saved.facts["scaler"]:  # none was kept where the job began in another precision
            self.scaler.load_state_dict(saved.facts["scaler"])
        self.epoch = saved.facts["epoch"]


def _renewed(scaler: torch.amp.GradScaler, device: torch.device) -> torch.amp.GradScaler:
    """The same scaler, for which no step has begun: where one ended halfway, it refuses the next."""
    new = torch.amp.GradScaler(device.type, enabled=scaler.is_enabled())
    if scaler.is_enabled():
        new.load_state_dict(scaler.state_dict())
    return new


def _stepped_elsewhere(network: nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
    """What is trained but in no group, such as ARENA's published gates, which `after_step` moves by their gradient.

    An optimiser that never steps: the scaler takes its factor out of gradients by optimiser. These stay out of the groups,
    where they would count in the norm that gradients are clipped to.
    """
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    apart = [p for p in network.parameters() if p.requires_grad and id(p) not in grouped]
    return torch.optim.SGD(apart, lr=0.0) if apart else None


def _feature_cache(trainable: Trainable, device: torch.device, reporter: Reporter) -> FeatureCache | None:
    """For a network that is frozen up to its head, a cache of features; empty where the system ran out of memory."""
    if not trainable.frozen_until:
        return None
    limit = 0 if reporter.smaller_plan else int(MEMORY_SHARE * free_memory(device))
    return FeatureCache(trainable.network, trainable.frozen_until, limit)


def _mean_rank(facts: dict[str, Any]) -> dict[str, float]:
    """Directions that a change of a weight still uses, on average; nothing for methods without ranks."""
    ranks = facts.get("ranks")
    return {"mean_rank": round(statistics.fmean(ranks.values()), 2)} if ranks else {}


def _recomputing(network: nn.Module, active: bool) -> AbstractContextManager:
    return activation_checkpointing(network) if active else nullcontext()
