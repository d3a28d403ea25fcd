"""AdaLoRA: which components stay where training goes back to an earlier state."""

from __future__ import annotations

import torch
from torch import nn

from peftseg.adapters import attach
from peftseg.networks import Anatomy


def adalora(rank: int = 1, start: int = 3):
    """AdaLoRA on two layers of size 4, whose components all have rows and columns of length 1."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity())
    options = {"rank": rank, "start_rank": start, "layers": "[01]"}
    attached = attach(network, Anatomy("2", ("0", "1"), (), 1), "adalora", options)
    set_gates(attached, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    return attached


def set_gates(attached, *values: list[float]) -> None:
    with torch.no_grad():
        for factors, gates in zip(attached.labelled_factors().values(), values, strict=True):
            factors.A.copy_(torch.eye(4)[:3])
            factors.B.copy_(torch.eye(4)[:, :3])
            factors.v.copy_(torch.tensor(gates))


def step(attached, progress: float, *sensitivity: list[float]) -> None:
    for factors, gradient in zip(attached.labelled_factors().values(), sensitivity, strict=True):
        factors.v.grad = torch.tensor(gradient)
        factors.A.grad, factors.B.grad = torch.zeros_like(factors.A), torch.zeros_like(factors.B)
    attached.after_step(0.1, progress)


def gates(attached) -> list[list[float]]:
    return [factors.v.tolist() for factors in attached.labelled_factors().values()]


def test_an_earlier_best_state_is_pruned_by_its_own_components_not_by_those_of_the_last_step():
    attached = adalora()
    set_gates(attached, [0.5, 0.0, 0.1], [0.9, 0.2, 0.0])
    best = attached.state()
    set_gates(attached, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    step(attached, 0.8, [0.0, 5.0, 5.0], [0.1, 0.1, 0.1])  # the last steps keep what the best state had dropped
    assert gates(attached) == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    attached.load_state(best)
    attached.prune()
    assert [[round(v, 6) for v in layer] for layer in gates(attached)] == [[0.5], [0.9]]


def test_an_earlier_best_state_within_the_budget_loses_nothing():
    attached = adalora()
    set_gates(attached, [0.0, 0.0, 0.3], [0.0, 0.2, 0.0])
    best = attached.state()
    x = torch.randn(5, 4)
    expected = attached.network(x).detach()
    set_gates(attached, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    step(attached, 0.8, [5.0, 5.0, 0.0], [0.1, 0.1, 0.1])
    attached.load_state(best)
    attached.prune()
    assert torch.allclose(attached.network(x), expected, atol=1e-6)
    assert attached.ranks() == {"0": 1, "1": 1}


def test_the_last_state_is_pruned_by_the_scores_of_its_steps():
    attached = adalora()
    set_gates(attached, [0.1, 0.9, 0.9], [0.1, 0.9, 0.9])
    step(attached, 0.05, [90.0, 1.0, 1.0], [90.0, 1.0, 1.0])  # small, but the loss depends on them
    attached.load_state(attached.state())
    attached.prune()
    assert [[round(v, 6) for v in layer] for layer in gates(attached)] == [[0.1], [0.1]]


def test_a_state_that_is_restored_with_its_memory_keeps_the_scores():
    attached, again = adalora(), adalora()
    step(attached, 0.8, [3.0, 2.0, 1.0], [5.0, 1.0, 1.0])
    again.load_state(attached.state())
    again.load_memory(attached.memory())
    assert all(torch.equal(again.scores()[label], score) for label, score in attached.scores().items())
    attached.prune()
    again.prune()
    assert all(torch.equal(again.state()[key], tensor) for key, tensor in attached.state().items())
