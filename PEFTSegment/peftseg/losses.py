"""Dice + cross-entropy that understand partial labels.

What is not labelled is no negative: where a structure is not labelled, its probability is merged with the background's
(marginal loss; Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", 2021).
MONAI's DiceCELoss has no such merging, hence this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SMOOTH = 1.0  # of the Dice term


def soft_dice(p: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of each structure, pooled over the batch so that patches without the structure do not dominate.

    Parameters
    ----------
    p, target, weight : tensor (B, C, *spatial)
        Probability, truth (0 or 1), and 1 where the structure is labelled.

    Returns
    -------
    tensor (C,)
        `1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)`, sums over B and space; s is `SMOOTH`.
    """
    axes = (0, *range(2, p.ndim))
    weighted = target * weight
    overlap = (p * weighted).sum(axes)
    total = (p * weight).sum(axes) + weighted.sum(axes)
    return 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)


def softmax_loss(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Dice + cross-entropy of a softmax head, with unlabelled structures merged into the background.

    Parameters
    ----------
    logits : tensor (B, 1 + C, *spatial)
        Row 0 is background.
    target : integer tensor (B, *spatial)
        0 background, c for the c-th structure. Where a structure is not labelled it must not occur.
    known : bool tensor (B, C, *spatial or ones)
        Where each structure is labelled (or known to be absent). Elsewhere its probability counts as background's.

    Returns
    -------
    tensor ()
        Scalar loss. The cross-entropy averages the mean over all voxels and the mean over structures of the mean over
        their voxels, so that a structure of a hundred voxels is heard beside one of ten thousand.
    """
    return _SoftmaxLoss.apply(logits, target, known)


class _SoftmaxLoss(torch.autograd.Function):
    """The loss with its gradient worked out by hand.

    Autograd keeps several tensors of the size of the logits in float32, this keeps one. With a hundred structures they
    would be most of a step's memory, and beside kept features they were most of its time.

    With p the probabilities, P that of the merged background, q that of the target t, w the weights of the
    cross-entropy, a and b the derivatives of the Dice term by sum(p) and by sum(p [t = c]) of each labelled structure,
    and S = sum_c a_c p_c + b_t q, the derivative by logit c is p_c (a_c + [t = c] b_c - S + w_t) - [t = c] w_c, and that
    by a logit of the merged background p_c (w_t - S) - [t = 0] w_0 p_c / P.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        index = target.long().unsqueeze(1)
        everywhere = bool(known.all())
        log_p = F.log_softmax(logits.float(), dim=1)
        log_q = log_p.gather(1, index)
        if not everywhere:
            log_q = torch.where(index == 0, _log_background(log_p, known), log_q)
        p, q = log_p.exp_(), log_q.exp()
        present, overlap = _by_target(index, q, p.shape[1])
        # The mean over structures of the mean over their voxels is a sum over voxels, weighted by structure.
        balanced = (present > 0) / (present.clamp_min(1) * (present > 0).sum())
        weights = 0.5 / target.numel() + 0.5 * 0.2 * balanced
        nll = -(weights[index] * log_q).sum()
        labelled = F.pad(known.flatten(2).any(2).any(0), (1, 0))  # never the background
        share = labelled / labelled.sum().clamp_min(1)
        twice = 2 * overlap + SMOOTH
        total = (p.flatten(2).sum((0, 2)) if everywhere else _known_sums(p, known)) + present + SMOOTH
        ctx.save_for_backward(p, q, target, known, weights, share * twice / total**2, -2 * share / total)
        ctx.everywhere, ctx.dtype = everywhere, logits.dtype
        return (share * (1 - twice / total)).sum() + nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        p, q, target, known, weights, by_sum, by_overlap = ctx.saved_tensors
        index = target.long().unsqueeze(1)
        w, towards = weights[index], by_overlap[index] * q
        slope = by_sum.view(1, -1, *[1] * (p.ndim - 2))
        if not ctx.everywhere:
            slope = torch.cat([slope[:, :1].expand_as(known[:, :1]), slope[:, 1:] * known], dim=1)
        found = slope + (w - towards - _dot(slope, p))
        found *= p
        at_target = found.gather(1, index) + towards
        if ctx.everywhere:
            at_target -= w
        else:
            at_target -= torch.where(index == 0, 0, w)
        found.scatter_(1, index, at_target)
        if not ctx.everywhere:
            pull = torch.where(index == 0, w / q.clamp_min(torch.finfo(q.dtype).tiny), 0)[:, 0]
            found[:, 0] -= p[:, 0] * pull
            for row in range(known.shape[1]):
                found[:, row + 1] -= p[:, row + 1] * (pull * ~known[:, row])
        found *= gradient
        return found.to(ctx.dtype), None, None


def _log_background(log_p: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(B, 1, *spatial) log-probability of the background and all that is not labelled."""
    merged = log_p[:, 0]
    for row in range(known.shape[1]):
        merged = torch.logaddexp(merged, log_p[:, row + 1].masked_fill(known[:, row], -torch.inf))
    return merged.unsqueeze(1)


def _by_target(index: torch.Tensor, q: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row the number of voxels whose target it is, and the sum of its probability there."""
    flat, values = index.flatten(), q.flatten()
    counts = torch.bincount(flat, minlength=rows)
    if q.device.type == "cpu":
        return counts, torch.bincount(flat, values, rows).to(q.dtype)
    return counts, _sums_in_order(flat, values, rows)


def _sums_in_order(flat: torch.Tensor, values: torch.Tensor, rows: int) -> torch.Tensor:
    """The sums of `bincount` with weights, which a GPU would add up in another order each time."""
    return torch.stack([(values * (flat == row)).sum() for row in range(rows)])


def _known_sums(p: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(1 + C,) sum of each row where it is labelled; 0 of the background."""
    sums = [(p[:, row + 1] * known[:, row]).sum() for row in range(known.shape[1])]
    return torch.stack([torch.zeros_like(sums[0]), *sums])


def _dot(slope: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """(B, 1, *spatial) sum over rows of slope times p."""
    if slope[0, 0].numel() > 1:
        return (slope * p).sum(1, keepdim=True)
    return (slope.flatten(2).mT @ p.flatten(2)).view(p.shape[0], 1, *p.shape[2:])


def sigmoid_loss(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Dice + binary cross-entropy of a sigmoid head, for structures that overlap or nest.

    Parameters
    ----------
    logits, target : tensor (B, C, *spatial)
    known : bool tensor (B, C, *spatial or ones)
        Voxels at which a structure is not labelled do not count for it.
    """
    z = logits.float()
    t = target.to(z.dtype)
    weight = known.to(z.dtype).expand_as(z)
    bce = (F.binary_cross_entropy_with_logits(z, t, reduction="none") * weight).sum() / weight.sum().clamp_min(1)
    labelled = (weight.flatten(2).sum((0, 2)) > 0).nonzero().flatten()
    dice = soft_dice(torch.sigmoid(z), t, weight)
    dice = dice[labelled].mean() if len(labelled) else bce * 0
    return dice + bce


class Match:
    """Match to the user's own labels in the patches of an epoch: hard Dice of each structure. It is no accuracy.

    Everything stays on the device until `dice` is asked for, so that no training step waits for it.
    """

    def __init__(self) -> None:
        self.counts: torch.Tensor | None = None

    def add(self, logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> None:
        """Count one batch, where each structure is labelled.

        Parameters
        ----------
        logits : tensor (B, R, *spatial)
            Without gradient.
        target : uint8 tensor (B, 1, *spatial) of class indices for a softmax head, (B, C, *spatial) of 0 and 1 else
        known : bool tensor (B, C, *spatial or ones)
        """
        softmax = logits.shape[1] == known.shape[1] + 1
        predicted = _winners(logits) if softmax else None
        everywhere = bool(known.all())
        if softmax and everywhere:
            found = _pairs(predicted, target[:, 0], logits.shape[1])
        else:
            found = []
            for row in range(known.shape[1]):  # one structure at a time, in bytes: a small part of what the loss moves
                inside = known[:, row]
                p = (predicted == row + 1) if softmax else logits[:, row] > 0
                t = (target[:, 0] == row + 1) if softmax else target[:, row] > 0
                p, t = (p, t) if everywhere else (p & inside, t & inside)
                found.append(torch.stack([_count(p & t), _count(p) + _count(t)]))
        counts = torch.stack(found)
        self.counts = counts if self.counts is None else self.counts + counts

    def dice(self) -> list[float | None]:
        """Dice of each structure, None for one that did not occur."""
        if self.counts is None:
            return []
        return [2 * both / total if total else None for both, total in self.counts.tolist()]


def _winners(logits: torch.Tensor) -> torch.Tensor:
    """(B, *spatial) index of the largest of (B, R, *spatial)."""
    best, winner = (
        logits[:, 0],
        torch.zeros_like(logits[:, 0], dtype=torch.uint8 if logits.shape[1] < 257 else torch.int16),
    )
    for row in range(1, logits.shape[1]):  # torch's argmax over a strided axis takes ten times as long on a processor
        wins = logits[:, row] > best
        winner.masked_fill_(wins, row)
        best = torch.maximum(best, logits[:, row])
    return winner


def _count(mask: torch.Tensor) -> torch.Tensor:
    return torch.count_nonzero(mask)


def _pairs(predicted: torch.Tensor, target: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """For each row but the first, [voxels that both give it, voxels of the one + voxels of the other]."""
    joint = torch.bincount((predicted.int() * rows + target).flatten(), minlength=rows * rows).view(rows, rows)
    return list(torch.stack([joint.diagonal(), joint.sum(0) + joint.sum(1)], 1)[1:])
