"""Losses against values worked out by hand, and the promises about partial labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from peftseg.losses import _sums_in_order, sigmoid_loss, soft_dice, softmax_loss

LABELLED = {  # of 3 patches with 5 structures and 7 x 8 x 9 voxels
    "everything": lambda draw: torch.ones(3, 5, 1, 1, 1),
    "other structures in every patch": lambda draw: draw(3, 5, 1, 1, 1),
    "some slices": lambda draw: draw(3, 5, 1, 1, 9),
    "any voxels": lambda draw: draw(3, 5, 7, 8, 9),
    "one structure nowhere": lambda draw: torch.tensor([1, 1, 0, 1, 1]).view(1, 5, 1, 1, 1).expand(3, 5, 1, 1, 1),
    "nothing": lambda draw: torch.zeros(3, 5, 1, 1, 1),
}


def one_voxel(*p: float) -> torch.Tensor:
    """Logits of one voxel with these probabilities."""
    return torch.tensor(p).log().view(1, -1, 1, 1, 1)


def all_known(n: int) -> torch.Tensor:
    return torch.ones(1, n, 1, 1, 1, dtype=torch.bool)


def loss_by_autograd(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The same loss from PyTorch's own functions, in float64."""
    log_p, index = F.log_softmax(logits.double(), dim=1), target.long()
    background = torch.cat([log_p[:, :1], log_p[:, 1:].masked_fill(known, -torch.inf)], dim=1).logsumexp(1)
    log_q = torch.where(index == 0, background, log_p.gather(1, index.unsqueeze(1))[:, 0])
    by_row = [-log_q[index == row].mean() for row in index.unique()]
    nll = 0.5 * -log_q.mean() + 0.5 * 0.2 * torch.stack(by_row).mean()
    one_hot = F.one_hot(index, logits.shape[1]).movedim(-1, 1)
    dice = soft_dice(log_p[:, 1:].exp(), one_hot[:, 1:], known.double().expand_as(one_hot[:, 1:]))
    labelled = known.flatten(2).any(2).any(0)
    return nll + (dice[labelled].mean() if labelled.any() else 0)


def drawn(labelled: str, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, truth that does not occur where it is not labelled, and what is labelled."""
    generator = torch.Generator().manual_seed(0)
    known = LABELLED[labelled](lambda *shape: torch.rand(shape, generator=generator) > 0.4).bool()
    target = torch.randint(0, 6, (3, 1, 7, 8, 9), generator=generator)
    there = torch.cat([torch.ones(3, 1, 7, 8, 9, dtype=torch.bool), known.expand(3, 5, 7, 8, 9)], dim=1)
    target = torch.where(there.gather(1, target), target, 0)[:, 0].to(torch.uint8)
    return torch.randn(3, 6, 7, 8, 9, generator=generator) * spread, target, known


@pytest.mark.parametrize("labelled", LABELLED)
def test_loss_and_gradient_are_those_of_autograd(labelled):
    logits, target, known = drawn(labelled)
    found = []
    for loss in (softmax_loss, loss_by_autograd):
        x = logits.clone().requires_grad_()
        value = loss(x, target, known)
        (1.7 * value).backward()
        found.append((value.item(), x.grad))
    (value, gradient), (expected, right) = found
    assert value == pytest.approx(expected, abs=1e-6)
    assert (gradient - right).abs().max() < 1e-8
    assert labelled == "nothing" or right.abs().max() > 1e-4


@pytest.mark.parametrize("labelled", ["everything", "any voxels"])
def test_logits_in_half_precision_get_their_gradient_in_it(labelled):
    logits, target, known = drawn(labelled)
    half = logits.bfloat16().requires_grad_()
    softmax_loss(half, target, known).backward()
    assert half.grad.dtype == torch.bfloat16
    exact = logits.bfloat16().float().requires_grad_()
    loss_by_autograd(exact, target, known).backward()
    assert torch.allclose(half.grad.float(), exact.grad, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("labelled", ["everything", "other structures in every patch", "any voxels"])
def test_logits_hundreds_apart_give_finite_numbers(labelled):
    logits, target, known = drawn(labelled, spread=300.0)
    logits.requires_grad_()
    loss = softmax_loss(logits, target, known)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_sums_are_the_same_in_the_order_that_a_gpu_needs():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    rows = torch.randint(0, 5, (1000,), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(_sums_in_order(rows, values, 6), torch.bincount(rows, values, 6).float())


def test_soft_dice_by_hand():
    p = torch.tensor([0.5, 1.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    t = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    expected = 1 - (2 * 1.5 + 1) / (1.5 + 2 + 1)
    assert soft_dice(p, t, torch.ones_like(p)).item() == pytest.approx(expected)


def test_cross_entropy_part_by_hand():
    logits, target = one_voxel(0.5, 0.5), torch.ones(1, 1, 1, 1, dtype=torch.long)
    dice = 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1)
    expected = dice + 0.5 * math.log(2) + 0.1 * math.log(2)
    assert softmax_loss(logits, target, all_known(1)).item() == pytest.approx(expected, abs=1e-6)


def test_unlabelled_structure_gets_no_push_in_either_direction():
    """Where the second structure is not labelled, moving probability between it and background changes nothing."""
    known = torch.tensor([True, False]).view(1, 2, 1, 1, 1)
    target = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    losses = [softmax_loss(one_voxel(0.8 - q, 0.2, q), target, known).item() for q in (0.1, 0.4, 0.7)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


def test_labelled_negative_does_push():
    target = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    low, high = (softmax_loss(one_voxel(0.8 - q, 0.2, q), target, all_known(2)).item() for q in (0.1, 0.7))
    assert high > low + 0.5


def test_slices_without_labels_do_not_count():
    """Only the first of two slices is labelled: what the network says on the second leaves the loss unchanged."""
    known = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    known[:, :, 0] = True
    target = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    target[:, 0, 0] = 1
    logits = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[:, :, 1] += torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)
    assert softmax_loss(logits, target, known).item() == pytest.approx(
        softmax_loss(other, target, known).item(), abs=1e-5
    )


def test_sigmoid_loss_ignores_unlabelled_structures():
    logits = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(1, 2, 2, 2, 2)
    target[:, 0, 0] = 1
    known = torch.tensor([True, False]).view(1, 2, 1, 1, 1)
    other = logits.clone()
    other[:, 1] += 5
    assert sigmoid_loss(logits, target, known).item() == pytest.approx(sigmoid_loss(other, target, known).item())


def test_nothing_labelled_gives_a_loss_without_gradient():
    logits = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    known = torch.zeros(1, 2, 1, 1, 1, dtype=torch.bool)
    loss = softmax_loss(logits, torch.zeros(1, 2, 2, 2, dtype=torch.long), known)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad.abs().max().item() < 1e-6


def test_small_structure_is_heard_beside_a_large_one():
    """Missing one voxel of a structure of 1 costs more than missing one voxel of a structure of 20."""
    target = torch.zeros(1, 1, 5, 5, dtype=torch.long)
    target[0, 0, :4] = 1
    target[0, 0, 4, 0] = 2
    right = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float() * 6
    miss_large, miss_small = right.clone(), right.clone()
    miss_large[0, :, 0, 0, 0] = torch.tensor([6.0, 0.0, 0.0])
    miss_small[0, :, 0, 4, 0] = torch.tensor([6.0, 0.0, 0.0])
    known = torch.ones(1, 2, 1, 1, 1, dtype=torch.bool)
    assert softmax_loss(miss_small, target, known) > softmax_loss(miss_large, target, known) * 1.5
