"""Gates that the optimiser does not hold, in a training whose loss is scaled for half precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peftseg.adapters import attach, check_options, learning_rates
from peftseg.events import Reporter
from peftseg.optimise import _Loop
from test_optimise import SCHEDULE, ball_scans
from tiny_networks import make

PAPER = {"mode": "paper", "rho": 0.5, "rank": 2, "lam": 0.01}


def a_loop(method: str, options: dict, scaler: torch.amp.GradScaler | None, precision: str = "fp32") -> _Loop:
    """The loop of `fit`; a scaler multiplies the losses of single precision as in half precision."""
    case = make("unet-3d-group")
    torch.manual_seed(1)
    attached = attach(case.network, case.anatomy, method, options)
    groups = attached.parameter_groups(learning_rates(check_options(method, options)))
    schedule = replace(SCHEDULE, epochs=4, precision=precision)
    loop = _Loop(attached, groups, ball_scans(structures=2), schedule, "softmax", Reporter.silent())
    if scaler is not None:
        loop.scaler = scaler
    return loop


def gates(loop: _Loop) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in loop.trainable.state().items() if "::v" in key}


@pytest.mark.parametrize("scale", [2.0**4, 2.0**16])
def test_published_gates_move_as_far_with_a_scaled_loss_as_without(scale):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=scale)):
        loop = a_loop("arena", PAPER, scaler)
        before = gates(loop)
        loop.run_epoch()
        assert not loop.skipped
        assert any(not torch.equal(tensor, before[key]) for key, tensor in gates(loop).items())
        found.append(loop.trainable.state())
    plain, scaled = found
    assert all(torch.allclose(plain[key], tensor, rtol=1e-5, atol=1e-7) for key, tensor in scaled.items())


def test_published_gates_learn_alike_in_half_and_in_single_precision():
    found = []
    for precision in ("fp32", "fp16"):
        loop = a_loop("arena", PAPER, None, precision)
        assert loop.scaler.is_enabled() is (precision == "fp16")
        for _ in range(3):
            loop.run_epoch()
        found.append(gates(loop))
    assert all(torch.allclose(found[0][key], tensor, atol=1e-3) for key, tensor in found[1].items())


def test_gates_in_no_group_do_not_count_in_the_clipped_norm():
    loop = a_loop("arena", PAPER, None)
    grouped = {id(p) for group in loop.optimiser.param_groups for p in group["params"]}
    apart = {id(p) for group in loop.apart.param_groups for p in group["params"]}
    assert apart == {id(f.v) for f in loop.trainable.labelled_factors().values()}
    assert not apart & grouped
    assert a_loop("arena", {"mode": "importance"}, None).apart is None


def test_a_step_whose_scaled_gradient_overflows_moves_no_gate_and_lowers_the_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    loop = a_loop("arena", PAPER, scaler)
    before = loop.trainable.state()
    loop._step([(0, 0, 0), (0, 1, 0)])
    assert loop.skipped
    assert all(torch.equal(tensor, before[key]) for key, tensor in loop.trainable.state().items())
    assert scaler.get_scale() < 2.0**127
    while loop.skipped:
        loop.run_epoch()
    assert all(tensor.isfinite().all() for tensor in loop.trainable.state().values())


@pytest.mark.parametrize("method", ["adalora", "lora"])
def test_what_is_remembered_from_step_to_step_stays_finite_after_an_overflow(method):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    loop = a_loop(method, {}, scaler)
    loop._try_epoch()
    assert loop.skipped
    while loop.skipped:
        loop._try_epoch()
    loop._try_epoch()
    assert all(tensor.isfinite().all() for tensor in loop.trainable.memory().values())
    assert loop.trainable.inert() == []


def test_gradients_of_a_step_that_ran_out_of_memory_are_not_added_to_the_next():
    loop, clean = a_loop("arena", PAPER, None), a_loop("arena", PAPER, None)
    keys = [(0, 0, 0), (0, 1, 0)]
    loop._forward(keys).backward()
    loop._step(keys)
    clean._step(keys)
    for mine, other in zip(*(x.trainable.labelled_factors().values() for x in (loop, clean)), strict=True):
        assert torch.allclose(mine.v.grad, other.v.grad)
