"""Self-training without labels: the network's own result teaches its encoder, through the early head.

After Aleem et al. 2024 (sec. 3.3) and their code (adaptation.py), who follow UDAS (Sheikh and Schultz 2022). The loss
compares early logits with pseudo-labels. Published, these are not detached, so that they move, too; here they
are taken as given unless asked otherwise. Own loop beside `optimise.fit`, which needs labels and has another schedule; its
promises are the same: cancel, stop and keep, checkpoints that continue bit by bit, a retry after a loss that is not finite.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from peftseg.adabn import copy_statistics, restore_statistics
from peftseg.adapters import learning_rates
from peftseg.adapters.base import Attached
from peftseg.checkpoint import Checkpoint, copy_slots, copy_state, load_slots, read_checkpoint, write_checkpoint
from peftseg.device import is_out_of_memory, release_memory
from peftseg.early_head import EarlyBranch
from peftseg.errors import OutOfMemory
from peftseg.events import Reporter
from peftseg.losses import Match
from peftseg.optimise import slow_down
from peftseg.segmenter import SMALLER
from peftseg.site_batches import Place, SiteBatches
from peftseg.site_losses import as_labels, mean_dice, probabilities, pseudo_labels, site_loss
from peftseg.site_teaching import Teaching

CHECKPOINT_EVERY_S = 20.0
VOXELS_AT_ONCE = 2**19  # through the network, where the batch may be taken apart
STATISTICS, TEACHER = "statistics/", "teacher/"


@dataclass
class SiteHistory:
    """What happened: loss and agreement of early head and result (`None`: not measured) by epoch, and the retries."""

    losses: list[float] = field(default_factory=list)
    agreement: list[float | None] = field(default_factory=list)
    before: float | None = None
    best_epoch: int = -1
    rate_factor: float = 1.0
    retries: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""
    inert: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class SiteTraining:
    """Everything that self-training needs.

    Attributes
    ----------
    attached : Attached
        From `site_attach.attach_site`, on its device, its statistics as training should start with.
    branch : EarlyBranch or None
        Of the same network; None for training through the final result that needs no agreement.
    batches : SiteBatches
    options : dict
        From `site_options.resolve_levels`.
    activation : str
        "softmax" or "sigmoid".
    """

    attached: Attached
    branch: EarlyBranch | None
    batches: SiteBatches
    options: dict[str, Any]
    activation: str
    epochs: int
    precision: str = "fp32"
    deadline_s: float | None = None


def self_train(training: SiteTraining, reporter: Reporter) -> SiteHistory:
    """Train in place. Running statistics stay those of the start, but with `adabn` "moving".

    Raises
    ------
    JobCancelled, OutOfMemory, TrainingFailed
    """
    loop = _Loop(training, reporter)
    loop.resume()
    history = loop.history
    reporter.progress("train", loop.epoch, training.epochs)
    started = time.monotonic() - history.seconds
    while loop.epoch < training.epochs and not history.stopped:
        loop.run_epoch(started)
        history.seconds = time.monotonic() - started
        loop.report()
        loop.save(force=bool(history.stopped) or loop.epoch == training.epochs)
    loop.finish()
    history.inert = training.attached.inert()
    return history


class _Loop:
    """State of one run of `self_train`: everything here is in the checkpoint."""

    def __init__(self, training: SiteTraining, reporter: Reporter) -> None:
        self.training, self.reporter, self.options = training, reporter, training.options
        self.attached, self.branch = training.attached, training.branch
        self.network = training.attached.network
        rates = learning_rates(self.options)
        rates |= {"decoder": rates["body"], "head": rates["body"]}
        self.peaks = self.attached.parameter_groups(rates)
        self.optimiser = torch.optim.Adam(self.peaks)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.device = next(self.network.parameters()).device
        self.fixed = copy_statistics(self.network)
        self.moves = self.options["bn_mode"] == "batch"
        self.micro = self._parts_at_once()
        self.teaching = Teaching(self.attached, self.branch, self.options, training.precision)
        self.teacher = self.teaching.teacher
        self.trained = list(self.attached.trainable().values())  # looked up once: there may be hundreds
        self.epoch = 0
        self.history = SiteHistory()
        self.selects = self.options["keep"] == "agreement"
        if self.selects or self.options["stop_change"] > 0:
            self.history.before = self._agreement()
        self.best = copy_state(self.attached.state()) if self.selects else {}
        self.last_saved = time.monotonic()
        self.good = self._snapshot()

    def _parts_at_once(self) -> int:
        """Parts of a step that go through the network at once; batch statistics need all of them together."""
        batches = self.training.batches
        return batches.per_step if self.moves else batches.parts_within(self._voxels_at_once())

    def _voxels_at_once(self) -> int:
        return VOXELS_AT_ONCE // (SMALLER if self.reporter.smaller_plan else 1)

    # epochs

    def run_epoch(self, started: float) -> None:
        """One epoch; a loss that is not finite goes back to the last good epoch with a tenth of the rate, once."""
        while not math.isfinite(total := self._try_epoch(started)):
            slow_down(self.history, self.reporter, "use smaller learning rates")
            self._restore(self.good)
        self.history.losses.append(total)
        self.epoch += 1
        self._select()
        self.good = self._snapshot()

    def _try_epoch(self, started: float) -> float:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.history.rate_factor
        self.network.train()  # what is frozen stays in eval mode
        total, count = 0.0, 0
        self.match = Match()
        for places in self.training.batches.steps(self.epoch):
            self.reporter.check()
            value = self._step_within_memory(places)
            if not math.isfinite(value):
                return value
            total, count = total + value * len(places), count + len(places)
            self.history.stopped = self._reason_to_stop(started)
            if self.history.stopped:
                break
        return total / max(count, 1)

    def _reason_to_stop(self, started: float) -> str:
        if self.reporter.stop_keep():
            return "stopped by the user"
        limit = self.training.deadline_s
        return "time budget used" if limit is not None and time.monotonic() - started > limit else ""

    def _step_within_memory(self, places: list[Place]) -> float:
        while True:
            try:
                return self._step(places)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.optimiser.zero_grad(set_to_none=True)
            release_memory()
            if self.moves or self.micro == 1:
                at_once, patch = min(self.micro, len(places)), self.training.batches.patch
                raise OutOfMemory(
                    f"The memory does not suffice for {at_once} parts of {patch} voxels.",
                    "Close other programs, choose bn_mode=source or adabn_pre, or a machine with more memory.",
                )
            self.micro = max(1, min(self.micro, len(places)) // 2)
            self.reporter.warning(f"Out of memory: going on with {self.micro} parts at once.")

    def _step(self, places: list[Place]) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        value = 0.0
        for start in range(0, len(places), self.micro):
            part = places[start : start + self.micro]
            loss = self._loss(self.training.batches.tensor(part).to(self.device)) * (len(part) / len(places))
            if not bool(torch.isfinite(loss)):
                return math.nan
            if loss.requires_grad:
                loss.backward()
            value += float(loss.detach())
        gradients = [tensor.grad for tensor in self.trained if tensor.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return math.nan
        self.optimiser.step()
        self.attached.after_step(self.optimiser.param_groups[0]["lr"], 0.0)
        self.teaching.after_step()
        return value

    def _loss(self, image: torch.Tensor) -> torch.Tensor:
        final, learner = self.teaching.pair(image)
        target, weight = pseudo_labels(final, self.options, self.training.activation)
        self._count(learner, target)
        return site_loss(learner, target, weight, self.training.activation, self.options["loss"] == "with_dice")

    # agreement

    def _count(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Running agreement of an epoch, of what was seen in training: for the progress event only."""
        self.match.add(*as_labels(logits.detach(), target.detach(), self.training.activation))

    @torch.no_grad()
    def _agreement(self) -> float | None:
        """Mean Dice of early head and final result over the site's scans, of the network as it would be kept."""
        moved = copy_statistics(self.network)
        if self.options["adabn"] != "moving":
            restore_statistics(self.network, self.fixed)
        try:
            return self._match()
        finally:
            restore_statistics(self.network, moved)

    def _match(self) -> float | None:
        self.network.eval()
        match, activation = Match(), self.training.activation
        for places in self.training.batches.steps(0):
            self.reporter.check()
            for start in range(0, len(places), self._eval_parts()):
                image = self.training.batches.tensor(places[start : start + self._eval_parts()]).to(self.device)
                final, early = self.teaching.run(self.branch, image)
                match.add(*as_labels(early, probabilities(final, activation), activation))
        return mean_dice(match)

    def _eval_parts(self) -> int:
        return self.training.batches.parts_within(self._voxels_at_once()) if self.moves else self.micro

    def _select(self) -> None:
        history = self.history
        if history.before is None and not self.selects and self.options["stop_change"] == 0:
            history.agreement.append(mean_dice(self.match))
            history.best_epoch = self.epoch - 1
            return
        history.agreement.append(self._agreement())
        now = history.agreement[-1] or 0.0
        earlier = [history.before, *history.agreement[:-1]]
        if abs(now - (earlier[-1] or 0.0)) < self.options["stop_change"] and not history.stopped:
            history.stopped = "agreement stands still"
        if not self.selects:
            history.best_epoch = self.epoch - 1
        elif now > max(value or 0.0 for value in earlier):
            history.best_epoch, self.best = self.epoch - 1, copy_state(self.attached.state())

    # the end, events, checkpoints

    def finish(self) -> None:
        """The state that is kept, in eval mode; statistics that moved only for training go back."""
        self.network.eval()
        if self.selects:
            self.attached.load_state(self.best)
        if self.options["adabn"] != "moving":
            restore_statistics(self.network, self.fixed)

    def report(self) -> None:
        """The progress event of an epoch."""
        done, history = len(self.history.losses), self.history
        left = history.seconds / done * (self.training.epochs - done)
        self.reporter.progress(
            "train",
            done,
            self.training.epochs,
            None if history.stopped else left,
            loss=history.losses[-1],
            agreement=history.agreement[-1],
            best_epoch=history.best_epoch + 1,
        )

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        path = self.reporter.checkpoint
        if path is None or not path.is_file():
            return
        saved = read_checkpoint(path)
        self._restore(saved)
        self.history = SiteHistory(**saved.facts["history"])
        self.best = saved.best
        self.good = self._snapshot()
        self.reporter.log(f"Continued from epoch {self.epoch}.")

    def save(self, force: bool) -> None:
        """Write the checkpoint, at most every 20 s."""
        if self.reporter.checkpoint is None or not (force or time.monotonic() - self.last_saved > CHECKPOINT_EVERY_S):
            return
        write_checkpoint(self.reporter.checkpoint, self.good)
        self.last_saved = time.monotonic()

    def _snapshot(self) -> Checkpoint:
        memory = {STATISTICS + name: t for name, t in copy_statistics(self.network).items()}
        if self.teacher is not None:
            memory |= {TEACHER + key: tensor for key, tensor in self.teacher.state().items()}
            memory |= {f"{TEACHER}{STATISTICS}{n}": t for n, t in copy_statistics(self.teacher.network).items()}
        return Checkpoint(
            state=self.attached.state(),
            optimiser=copy_slots(self.optimiser),
            best=dict(self.best),
            random=torch.get_rng_state(),
            facts={"epoch": self.epoch, "micro": self.micro, "history": copy.deepcopy(vars(self.history))},
            memory=copy_state(memory),
        )

    def _restore(self, saved: Checkpoint) -> None:
        self.attached.load_state(saved.state)
        restore_statistics(self.network, _under(saved.memory, STATISTICS))
        if self.teacher is not None:
            own = _under(saved.memory, TEACHER)
            restore_statistics(self.teacher.network, _under(own, STATISTICS))
            self.teacher.load_state({k: t for k, t in own.items() if not k.startswith(STATISTICS)})
        load_slots(self.optimiser, saved.optimiser)
        torch.set_rng_state(saved.random)
        self.epoch = saved.facts["epoch"]
        self.micro = min(self.micro, saved.facts["micro"])  # memory may have become scarce since


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
