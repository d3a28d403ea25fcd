"""The planner: fits patch size, patches a step and epochs to device, memory and a time budget.

It measures instead of guessing: one training step on a small patch (on a GPU, on a whole one where it fits) gives seconds and
saved bytes per voxel of this network, with this method, on this machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from peftseg.adapters.features import MEMORY_SHARE as FEATURES_SHARE
from peftseg.adapters.features import POOL
from peftseg.config import CPU_BUDGET_MINUTES
from peftseg.device import autocast, choose_precision, fits, free_memory
from peftseg.errors import BadInput, OutOfMemory
from peftseg.networks import per_axis
from peftseg.patches import Augmentation
from peftseg.schedule import OVERRUN, Schedule

MAX_EPOCHS = 200
FEWEST_EPOCHS = 24
SMALLEST_TIMED_PATCH = 48**3  # smaller ones learnt nothing in the demo (28x28x28: Dice 0 for the gallbladder)
PAPER_PATCHES = 6
MEMORY_SHARE = 0.8
KEPT_STEP = 0.1  # time of a step on kept features, as a share of one that computes them
STEP_OVERHEAD = 1.15  # patch cutting, optimiser and reporting, beside forward and backward


@dataclass(frozen=True)
class StepCost:
    """Measured cost of a training step.

    Attributes
    ----------
    seconds_per_voxel, bytes_per_voxel : float
        Time, and activations kept for the backward pass, per voxel of a patch.
    fixed_bytes : int
        Weights, gradients and AdamW's two moments.
    feature_bytes_per_voxel : float
        Features before the head, where they are computed once and kept; else 0.
    """

    seconds_per_voxel: float
    bytes_per_voxel: float
    fixed_bytes: int
    feature_bytes_per_voxel: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What will be done, and what it is expected to cost.

    Attributes
    ----------
    schedule : Schedule
    seconds, memory, free : float
        Expected training time in s, expected and free memory in bytes.
    deadline : float or None
        Training ends with the epoch in which it has taken this many seconds, whatever the plan; None for no limit.
    """

    schedule: Schedule
    seconds: float
    memory: float
    free: float
    deadline: float | None = None

    def sentence(self) -> str:
        """The plan in words, for the user."""
        s = self.schedule
        text = (
            f"Plan: up to {s.epochs} epochs of {s.patches_per_scan} patch(es) a scan, {'x'.join(map(str, s.patch))} voxels, "
            f"{s.micro_batch} at once, {s.precision}; about {self.seconds / 60:.1f} min, "
            f"{self.memory / 2**30:.1f} GB of {self.free / 2**30:.1f} GB free memory."
        )
        return text + (" Activations are recomputed to save memory." if s.checkpointing else "")


def round_up(size: int, divisor: int) -> int:
    """Smallest multiple of `divisor` that is at least `size`."""
    return -(-size // divisor) * divisor


Divisor = int | tuple[int, int, int]  # of all axes, or of each


def patch_for(
    shapes: list[tuple[int, int, int]], window: tuple[int, int, int], divisor: Divisor
) -> tuple[int, int, int]:
    """The model's window, cut down along axes on which all scans are smaller; at least two divisors wide."""
    largest = [max(shape[axis] for shape in shapes) for axis in range(3)]
    axes = zip(window, largest, per_axis(divisor), strict=True)
    return tuple(max(min(round_up(w, d), round_up(n, d)), 2 * d) for w, n, d in axes)


def safe_precision(precision: str, device: torch.device, patch: tuple[int, int, int], divisor: Divisor) -> str:
    """Float32 instead of bfloat16 on a processor where the deepest level is under 3 voxels wide.

    There torch 2.13's bfloat16 weight gradient of a 3x3x3 convolution is wrong, often not finite.
    """
    if (
        precision == "bf16"
        and device.type == "cpu"
        and any(size // d < 3 for size, d in zip(patch, per_axis(divisor), strict=True))
    ):
        return "fp32"
    return precision


def measure_step(
    network: nn.Module,
    device: torch.device,
    probe: tuple[int, int, int],
    precision: str,
    in_channels: int = 1,
    frozen_until: str = "",
) -> StepCost:
    """Time one forward and backward pass on a small patch and count the bytes kept between them.

    Gradients are discarded; weights and statistics are left as they are.

    Parameters
    ----------
    probe : tuple of int
        Patch to measure on, in voxels; costs grow in proportion to voxels.
    frozen_until : str
        Name of the module before which nothing trains, if there is one: its input can be kept.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    fixed = weights + 3 * sum(p.numel() * 4 for p in trained)
    image = torch.zeros((1, in_channels, *probe), device=device)
    statistics = {n: b.clone() for n, b in network.named_buffers()}
    kept: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    features = []
    hook = None
    if frozen_until:
        hook = network.get_submodule(frozen_until).register_forward_pre_hook(
            lambda _, inputs: features.append(inputs[0].numel() * inputs[0].element_size())
        )
    network.train()
    times = []
    try:
        while len(times) < 3 and sum(times) <= 6:
            kept.clear()
            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast(device, precision):
                output = network(image)
            output.float().square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
            _forget_gradients(trained)
    finally:  # memory may have run out
        if hook is not None:
            hook.remove()
        _forget_gradients(trained)
        for name, buffer in network.named_buffers():
            buffer.copy_(statistics[name])
    voxels = math.prod(probe)
    outputs = 16 * output.shape[1]  # loss: probabilities, gradient and what partial labels take, in fp32
    kept_features = features[0] / voxels if features else 0.0
    return StepCost(min(times) / voxels, sum(kept.values()) / voxels + outputs, fixed, kept_features)


def _forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def make_plan(
    network: nn.Module,
    shapes: list[tuple[int, int, int]],
    window: tuple[int, int, int],
    divisor: Divisor,
    device: torch.device,
    *,
    budget_minutes: float | None = None,
    epochs: int | None = None,
    precision: str = "auto",
    seed: int = 0,
    smaller: bool = False,
    max_epochs: int = MAX_EPOCHS,
    frozen_until: str = "",
) -> Plan:
    """Plan the training of an attached network on scans of these shapes (voxels of the model grid).

    Parameters
    ----------
    budget_minutes : float, optional
        Time for training; without one 30 minutes on a processor, no limit on a GPU.
    epochs : int, optional
        Fixed number of epochs; a budget then only stops the training.
    smaller : bool
        Plan for half the free memory: the system killed the first try.
    frozen_until : str
        Name of the module before which nothing trains, if there is one: features are computed once, of as many epochs'
        patches as a quarter of the free memory holds.

    Raises
    ------
    BadInput
        A budget or number of epochs that is not positive.
    OutOfMemory
        Not even the smallest patch fits.
    """
    for name, value in (("budget", budget_minutes), ("number of epochs", epochs)):
        if value is not None and value <= 0:
            raise BadInput(f"The {name} is {value}; it must be positive.", "Give a larger one or leave it out.")
    patch = patch_for(shapes, window, divisor)
    precision = safe_precision(choose_precision(device, precision), device, patch, divisor)
    axes = zip(patch, per_axis(divisor), strict=True)
    probe = tuple(min(size, max(2 * d, round_up(32, d))) for size, d in axes)
    measured = fits(partial(measure_step, network, device, probe, precision, frozen_until=frozen_until))
    if measured is None:
        raise OutOfMemory(
            f"Not even one patch of {probe} voxels fits into the memory.",
            "Close other programs or use a smaller model.",
        )
    if device.type != "cpu" and math.prod(probe) < math.prod(patch):
        # A GPU takes about as long for a small patch as for a large one, and its copies of weights grow with none.
        larger = fits(partial(measure_step, network, device, patch, precision, frozen_until=frozen_until))
        measured = larger or measured
    cost = measured[0]
    free = free_memory(device) * (0.5 if smaller else 1.0)
    whole = all(all(p >= n for p, n in zip(patch, shape, strict=True)) for shape in shapes)
    per_scan = 1 if whole else PAPER_PATCHES
    draft = Schedule(
        epochs=epochs or max_epochs,
        patch=patch,
        patches_per_scan=per_scan,
        patches_per_step=per_scan,
        micro_batch=per_scan,
        precision=precision,
        seed=seed,
        augmentation=Augmentation(),
    )
    budget = budget_minutes
    if budget is None and epochs is None and device.type == "cpu":
        budget = CPU_BUDGET_MINUTES
    timed = _fit_time(draft, cost, len(shapes), budget, divisor, fixed_epochs=epochs is not None)
    fitted = _fit_memory(timed, cost, free, divisor)
    fitted = replace(fitted, pool=_pool(fitted, cost, len(shapes), free))
    fitted = replace(fitted, precision=safe_precision(fitted.precision, device, fitted.patch, divisor))
    seconds = None if budget is None else budget * 60
    if seconds is not None and epochs is None:
        fitted = replace(fitted, max_epochs=max_epochs, budget_s=seconds)
        seconds *= OVERRUN
    memory = expected_memory(fitted, cost)
    if cost.feature_bytes_per_voxel:
        memory += min(FEATURES_SHARE * free, fitted.pool * _feature_bytes(fitted, cost, len(shapes)))
    return Plan(fitted, expected_seconds(fitted, cost, len(shapes)), memory, free, seconds)


def expected_seconds(schedule: Schedule, cost: StepCost, n_scans: int) -> float:
    """Expected training time in s."""
    slower = 1.35 if schedule.checkpointing else 1.0
    seconds = _epoch_voxels(schedule, n_scans) * cost.seconds_per_voxel * STEP_OVERHEAD * slower
    if not cost.feature_bytes_per_voxel:
        return schedule.epochs * seconds
    computed = min(schedule.epochs, schedule.pool)
    return (computed + KEPT_STEP * (schedule.epochs - computed)) * seconds


def expected_memory(schedule: Schedule, cost: StepCost) -> float:
    """Expected peak memory in bytes."""
    kept = 0.35 if schedule.checkpointing else 1.0
    return cost.fixed_bytes + math.prod(schedule.patch) * schedule.micro_batch * cost.bytes_per_voxel * kept


def _epoch_voxels(schedule: Schedule, n_scans: int) -> int:
    return math.prod(schedule.patch) * schedule.patches_per_scan * n_scans


def _pool(schedule: Schedule, cost: StepCost, n_scans: int, free: float) -> int:
    """How many epochs' patches to use again and again, so that their features can be kept: at least one's."""
    if not cost.feature_bytes_per_voxel:
        return schedule.pool
    share = 0.9 * FEATURES_SHARE  # when training begins, a little less may be free
    return max(1, min(POOL, int(share * free / _feature_bytes(schedule, cost, n_scans))))


def _feature_bytes(schedule: Schedule, cost: StepCost, n_scans: int) -> float:
    """Bytes to keep of an epoch: features, and a byte of truth a voxel."""
    return _epoch_voxels(schedule, n_scans) * (cost.feature_bytes_per_voxel + 1)


def _fit_time(
    schedule: Schedule, cost: StepCost, n_scans: int, budget_minutes: float | None, divisor: Divisor, fixed_epochs: bool
) -> Schedule:
    """Fewer epochs first, then fewer patches a scan, then smaller patches, until the budget holds."""
    if budget_minutes is None or fixed_epochs:
        return schedule
    budget = budget_minutes * 60
    while True:
        one = expected_seconds(replace(schedule, epochs=1), cost, n_scans)
        affordable = int(budget / one)
        if cost.feature_bytes_per_voxel and affordable > schedule.pool:
            affordable = schedule.pool + int((budget / one - schedule.pool) / KEPT_STEP)
        if affordable >= FEWEST_EPOCHS:
            return replace(schedule, epochs=min(schedule.epochs, affordable))
        smaller = _smaller_patch(schedule.patch, divisor)
        if schedule.patches_per_scan > 2:
            fewer = schedule.patches_per_scan // 2
            schedule = replace(schedule, patches_per_scan=fewer, patches_per_step=fewer, micro_batch=fewer)
        elif math.prod(smaller) < math.prod(schedule.patch) and math.prod(smaller) >= SMALLEST_TIMED_PATCH:
            schedule = replace(schedule, patch=smaller)
        else:
            return replace(schedule, epochs=max(1, affordable))


def _smaller_patch(patch: tuple[int, int, int], divisor: Divisor) -> tuple[int, int, int]:
    axes = zip(patch, per_axis(divisor), strict=True)
    return tuple(max(2 * d, round_up(int(size * 0.75), d) if size > 32 else size) for size, d in axes)


def _fit_memory(schedule: Schedule, cost: StepCost, free: float, divisor: Divisor) -> Schedule:
    """Fewer patches at once first, then activation checkpointing, then smaller patches."""
    limit = MEMORY_SHARE * free
    while expected_memory(schedule, cost) > limit:
        smaller = _smaller_patch(schedule.patch, divisor)
        if schedule.micro_batch > 1:
            schedule = replace(schedule, micro_batch=schedule.micro_batch - 1)
        elif not schedule.checkpointing:
            schedule = replace(schedule, checkpointing=True)
        elif math.prod(smaller) < math.prod(schedule.patch):
            schedule = replace(schedule, patch=smaller)
        else:
            raise OutOfMemory(
                f"The smallest plan needs {expected_memory(schedule, cost) / 2**30:.1f} GB, "
                f"{free / 2**30:.1f} GB of memory are free.",
                "Close other programs, choose a smaller model, or use a machine with more memory.",
            )
    return schedule
