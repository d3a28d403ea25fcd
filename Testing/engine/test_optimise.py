"""The training loop on a tiny network: resume bit by bit, early stop, retries, memory, best state."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from peftseg.errors import JobCancelled, OutOfMemory, TrainingFailed
from peftseg.events import Reporter
from peftseg.losses import Match
from peftseg.optimise import fit
from peftseg.patches import make_scan
from peftseg.pretrain import WholeNetwork
from peftseg.schedule import History, Schedule, cosine_factor, epoch_steps, has_converged

SCHEDULE = Schedule(epochs=6, patch=(8, 8, 8), patches_per_scan=2, patches_per_step=2, micro_batch=2, early_stop=False)


def tiny_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv3d(4, 2, 1))


def ball_scans(n: int = 2, structures: int = 1):
    """Scans with a block in their middle, and further structures that occur nowhere."""
    scans = []
    for i in range(n):
        image = torch.randn(1, 10, 10, 10, generator=torch.Generator().manual_seed(i)) * 0.1
        mask = torch.zeros(10, 10, 10, dtype=torch.bool)
        mask[3:7, 3:7, 3:7] = True
        image[0][mask] += 1
        masks = [mask, *[torch.zeros_like(mask)] * (structures - 1)]
        scans.append(make_scan(image, masks, [True] * structures, overlapping=False))
    return scans


def train(network, reporter, schedule=SCHEDULE, lr=1e-2):
    groups = [{"params": list(network.parameters()), "lr": lr}]
    return fit(WholeNetwork(network), groups, ball_scans(), schedule, "softmax", reporter)


def reporter_with(checkpoint, request=str):
    reporter = Reporter.silent()
    reporter.checkpoint = checkpoint
    reporter._request = request
    return reporter


class StopAfter:
    """Asks to cancel (or to stop and keep) after a number of looks."""

    def __init__(self, looks: int, word: str = "cancel") -> None:
        self.left, self.word = looks, word

    def __call__(self) -> str:
        self.left -= 1
        return self.word if self.left < 0 else ""


def test_training_learns_a_ball():
    network = tiny_network()
    history = train(network, Reporter.silent(), replace(SCHEDULE, epochs=60), lr=3e-2)
    assert history.losses[-1] < history.losses[0] * 0.5, history.losses


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("peftseg.optimise.CHECKPOINT_EVERY_S", 0.0)
    whole = tiny_network()
    expected = train(whole, reporter_with(tmp_path / "a.safetensors"))

    network = tiny_network()
    with pytest.raises(JobCancelled):
        train(network, reporter_with(tmp_path / "b.safetensors", StopAfter(9)))
    continued = tiny_network(seed=99)  # weights come from the checkpoint, not from here
    torch.manual_seed(1234)
    found = train(continued, reporter_with(tmp_path / "b.safetensors"))
    assert found.losses == expected.losses
    assert found.best_epoch == expected.best_epoch
    for a, b in zip(whole.parameters(), continued.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_checkpoint_is_not_trained_further(tmp_path):
    first = train(tiny_network(), reporter_with(tmp_path / "c.safetensors"))
    again = train(tiny_network(), reporter_with(tmp_path / "c.safetensors"))
    assert again.losses == first.losses


def test_stop_and_keep_ends_properly_with_the_best_so_far():
    history = train(tiny_network(), reporter_with(None, StopAfter(4, "stop_keep")))
    assert 0 < len(history.losses) < SCHEDULE.epochs
    assert history.stopped == "stopped by the user"


class Explodes(nn.Module):
    """A network whose output is not finite for a number of training passes."""

    def __init__(self, first: int, times: int) -> None:
        super().__init__()
        self.body, self.calls, self.first, self.times = tiny_network(), 0, first, times

    def forward(self, x):
        self.calls += 1
        bad = self.first <= self.calls < self.first + self.times
        return self.body(x) * (math.nan if bad else 1.0)


def test_a_loss_that_is_not_finite_goes_back_once_with_a_tenth_of_the_rate():
    reporter = Reporter.silent()
    history = train(Explodes(5, 1), reporter)
    assert history.rate_factor == 0.1
    assert history.retries == ["loss not finite"]
    assert all(math.isfinite(loss) for loss in history.losses)
    assert len(history.losses) == SCHEDULE.epochs
    assert any(e["event"] == "warning" and "tenth" in e["message"] for e in reporter.events)


def test_a_loss_that_stays_not_finite_fails_with_a_remedy():
    with pytest.raises(TrainingFailed, match="not finite") as failure:
        train(Explodes(5, 10_000), Reporter.silent())
    assert failure.value.remedy


class Hungry(nn.Module):
    """A network that runs out of memory on batches above a size, until activations are recomputed."""

    def __init__(self, largest: int, needs_recomputing: bool = False, hopeless: bool = False) -> None:
        super().__init__()
        self.block = ResBlock(largest, needs_recomputing, hopeless)

    def forward(self, x):
        return self.block(x)


class ResBlock(nn.Module):
    def __init__(self, largest, needs_recomputing, hopeless) -> None:
        super().__init__()
        self.body, self.largest = tiny_network(), largest
        self.needs_recomputing, self.hopeless, self.to_recompute = needs_recomputing, hopeless, 0

    def forward(self, x):
        wrapped = "forward" in self.__dict__
        again = not wrapped and self.to_recompute > 0  # the second pass happens in backward, unwrapped
        self.to_recompute += int(wrapped) - int(again)
        if self.hopeless or len(x) > self.largest or (self.needs_recomputing and not (wrapped or again)):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return self.body(x)


def test_out_of_memory_goes_on_with_fewer_patches_at_once():
    reporter = Reporter.silent()
    history = train(Hungry(1), reporter)
    assert history.retries == ["smaller patch batch"]
    assert sum(e["event"] == "warning" for e in reporter.events) == 1


def test_out_of_memory_twice_recomputes_activations():
    history = train(Hungry(1, needs_recomputing=True), Reporter.silent())
    assert history.retries == ["smaller patch batch", "activation checkpointing"]
    assert len(history.losses) == SCHEDULE.epochs


def test_out_of_memory_after_the_retries_ends_with_exit_code_4():
    with pytest.raises(OutOfMemory) as failure:
        train(Hungry(1, hopeless=True), Reporter.silent())
    assert failure.value.exit_code == 4


def test_micro_batches_give_the_gradient_of_the_whole_step():
    """Without batch-pooled Dice the split would be exact; here the losses of both must stay close."""
    whole = train(tiny_network(), Reporter.silent(), replace(SCHEDULE, epochs=3))
    split = train(tiny_network(), Reporter.silent(), replace(SCHEDULE, epochs=3, micro_batch=1))
    assert whole.losses == pytest.approx(split.losses, rel=0.1)


def test_the_early_stop_needs_32_epochs_and_a_flat_loss():
    falling = [1 / (i + 1) for i in range(60)]
    assert not has_converged([1.0] * 31)
    assert has_converged([1.0] * 32)
    assert not has_converged(falling[:40])


def test_the_rate_warms_up_and_falls_to_one_percent():
    assert cosine_factor(0, 0.0, 2) == pytest.approx(1 / 3)
    assert cosine_factor(2, 0.0, 2) == pytest.approx(1.0)
    assert cosine_factor(100, 0.5, 2) == pytest.approx(0.505)
    assert cosine_factor(100, 1.0, 2) == pytest.approx(0.01)


class Clock:
    """A clock on which every epoch takes the seconds that it is told."""

    def __init__(self) -> None:
        self.now, self.each = 0.0, 1.0

    def monotonic(self) -> float:
        return self.now


class Ticks(Reporter):
    """Moves the clock at every progress event: once before the first epoch and once an epoch."""

    def __init__(self, clock: Clock, slower_from: int = 10**9, slower: float = 1.0) -> None:
        super().__init__(lambda kind, fields: self.events.append({"event": kind, **fields}))
        self.clock, self.epochs, self.slower_from, self.slower = clock, 0, slower_from, slower

    def progress(self, stage, step, total, eta_s=None, **facts):
        super().progress(stage, step, total, eta_s, **facts)
        self.epochs += 1
        self.clock.now += self.slower if self.epochs > self.slower_from else self.clock.each


BUDGETED = replace(SCHEDULE, epochs=6, max_epochs=40, budget_s=30.0)


def test_epochs_that_turn_out_fast_are_made_use_of(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("peftseg.optimise.time", clock)
    history = train(tiny_network(), Ticks(clock), BUDGETED)
    assert 29 <= len(history.losses) <= 31
    assert history.share(len(history.losses)) == pytest.approx(1.0)


def test_epochs_that_become_slow_end_the_training_in_time_and_at_the_lowest_rate(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("peftseg.optimise.time", clock)
    reporter = Ticks(clock, slower_from=10, slower=3.0)
    history = train(tiny_network(), reporter, replace(BUDGETED, epochs=30))
    assert 10 < len(history.losses) < 20
    assert history.seconds <= 1.15 * 30
    assert history.share(len(history.losses)) == pytest.approx(1.0)
    assert any("Plan changed" in e.get("message", "") for e in reporter.events)


def test_a_plan_that_holds_is_never_changed(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("peftseg.optimise.time", clock)
    reporter = Ticks(clock)
    history = train(tiny_network(), reporter, replace(BUDGETED, epochs=28))
    assert len(history.losses) == 28
    assert not any("Plan changed" in e.get("message", "") for e in reporter.events)


def test_an_epoch_visits_every_patch_once_in_a_keyed_order():
    schedule = replace(SCHEDULE, patches_per_scan=3, patches_per_step=2)
    steps = epoch_steps(4, 5, schedule)
    keys = [key for step in steps for key in step]
    assert sorted(keys) == sorted((5, s, n) for s in range(4) for n in range(3))
    assert steps == epoch_steps(4, 5, schedule)
    assert steps != epoch_steps(4, 6, schedule)


def test_the_match_to_own_labels_by_hand():
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 2.0]]).view(1, 2, 3, 1, 1)  # predicts 0, 1, 1
    match = Match()
    match.add(logits, torch.tensor([0, 1, 0]).view(1, 1, 3, 1, 1), torch.ones(1, 1, 1, 1, 1, dtype=torch.bool))
    assert match.dice() == [pytest.approx(2 / 3, abs=1e-4)]


def test_the_match_counts_only_what_is_labelled():
    logits = torch.tensor([[2.0, 0, 0, 2.0], [0, 2.0, 2.0, 0], [0, 0, 0, 0]]).view(1, 3, 4, 1, 1)  # predicts 0, 1, 1, 0
    target = torch.tensor([0, 1, 0, 0], dtype=torch.uint8).view(1, 1, 4, 1, 1)
    known = torch.tensor([[True, True, False, True], [False] * 4]).view(1, 2, 4, 1, 1)
    match = Match()
    match.add(logits, target, known)
    assert match.dice() == [1.0, None]


def test_yes_or_no_outputs_match_by_their_sign():
    logits = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]]).view(1, 2, 3, 1, 1)
    target = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.uint8).view(1, 2, 3, 1, 1)
    match = Match()
    match.add(logits, target, torch.ones(1, 2, 1, 1, 1, dtype=torch.bool))
    match.add(logits, target, torch.ones(1, 2, 1, 1, 1, dtype=torch.bool))
    assert match.dice() == [pytest.approx(2 / 3), 1.0]


def test_the_winner_is_the_one_that_argmax_names():
    logits = torch.randn(2, 5, 6, 7, 8, generator=torch.Generator().manual_seed(0)).round()  # with ties
    target = logits.argmax(1, keepdim=True).to(torch.uint8)
    match = Match()
    match.add(logits, target, torch.ones(2, 4, 1, 1, 1, dtype=torch.bool))
    assert match.dice() == [1.0] * 4


def test_the_running_match_is_a_mean_that_forgets_and_waits_for_the_first_value():
    history = History()
    for dices in ([None, 0.5], [0.4, None], [0.9, 1.0]):
        history.add_match(dices)
    assert history.match == [pytest.approx(0.5), pytest.approx(0.6)]


def test_progress_has_the_match_by_name_and_none_without_names():
    reporters = Reporter.silent(), Reporter.silent()
    for reporter, names in zip(reporters, ([], ["ball"]), strict=True):
        network = tiny_network()
        groups = [{"params": list(network.parameters()), "lr": 1e-2}]
        fit(WholeNetwork(network), groups, ball_scans(), SCHEDULE, "softmax", reporter, structures=names)
    assert [list(r.events[-1]["match"]) for r in reporters] == [[], ["ball"]]
    assert 0 <= reporters[1].events[-1]["match"]["ball"] <= 1
