"""Losses against values worked out by hand, and the promises about partial labels."""

from __future__ import annotations

import math

import pytest
import torch

from peftseg.losses import merge_unlabelled, sigmoid_loss, soft_dice, softmax_loss


def one_voxel(*p: float) -> torch.Tensor:
    """Logits of one voxel with these probabilities."""
    return torch.tensor(p).log().view(1, -1, 1, 1, 1)


def all_known(n: int) -> torch.Tensor:
    return torch.ones(1, n, 1, 1, 1, dtype=torch.bool)


def test_unlabelled_structure_merges_into_background():
    known = torch.tensor([True, False]).view(1, 2, 1, 1, 1)
    merged = merge_unlabelled(one_voxel(0.5, 0.2, 0.3), known).exp().flatten()
    assert merged.tolist() == pytest.approx([0.8, 0.2, 0.0], abs=1e-6)


def test_everything_labelled_leaves_the_softmax_alone():
    merged = merge_unlabelled(one_voxel(0.5, 0.2, 0.3), all_known(2)).exp().flatten()
    assert merged.tolist() == pytest.approx([0.5, 0.2, 0.3], abs=1e-6)


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
