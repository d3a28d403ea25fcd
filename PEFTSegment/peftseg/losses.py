"""Dice + cross-entropy that understand partial labels.

What is not labelled is no negative: where a structure is not labelled, its probability is merged with the background's
(marginal loss; Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", 2021).
MONAI's DiceCELoss has no such merging, hence this file.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def merge_unlabelled(logits: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in which unlabelled structures count as background.

    Parameters
    ----------
    logits : tensor (B, 1 + C, *spatial)
        Row 0 is background.
    known : bool tensor (B, C, *spatial or ones)
        Where each structure is labelled (or known to be absent).

    Returns
    -------
    tensor (B, 1 + C, *spatial)
        Log-probabilities; row 0 is log(p_background + sum of p over the unlabelled structures), rows of unlabelled
        structures are set to a large negative number.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    if bool(known.all()):
        return log_p
    floor = torch.finfo(log_p.dtype).min / 4
    foreground = log_p[:, 1:]
    background = torch.cat([log_p[:, :1], foreground.masked_fill(known, floor)], dim=1).logsumexp(1, keepdim=True)
    return torch.cat([background, foreground.masked_fill(~known, floor)], dim=1)


def soft_dice(
    p: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, smooth: float = 1.0
) -> torch.Tensor:
    """1 - soft Dice of each structure, pooled over the batch so that patches without the structure do not dominate.

    Parameters
    ----------
    p, target, weight : tensor (B, C, *spatial)
        Probability, truth (0 or 1) and 1 where the structure is labelled; without a weight all are, everywhere.

    Returns
    -------
    tensor (C,)
        `1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)`, sums over B and space.
    """
    axes = (0, *range(2, p.ndim))
    weighted = target if weight is None else target * weight
    overlap = (p * weighted).sum(axes)
    total = (p if weight is None else p * weight).sum(axes) + weighted.sum(axes)
    return 1 - (2 * overlap + smooth) / (total + smooth)


def softmax_loss(
    logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor, dice_weight: float = 1.0
) -> torch.Tensor:
    """Dice + cross-entropy of a softmax head, with unlabelled structures merged into the background.

    Parameters
    ----------
    logits : tensor (B, 1 + C, *spatial)
    target : integer tensor (B, *spatial)
        0 background, c for the c-th structure. Where a structure is not labelled it must not occur.
    known : bool tensor (B, C, *spatial or ones)

    Returns
    -------
    tensor ()
        Scalar loss. The cross-entropy averages the mean over all voxels and the mean over structures of the mean over
        their voxels, so that a structure of a hundred voxels is heard beside one of ten thousand.
    """
    log_p = merge_unlabelled(logits, known)
    rows = torch.arange(logits.shape[1], device=log_p.device, dtype=target.dtype)
    # Rows one after the other in memory, as in `log_p`: beside kept features the loss is most of a step.
    one_hot = (target.unsqueeze(1) == rows.view(-1, *[1] * (target.ndim - 1))).to(log_p.dtype)
    present = one_hot.flatten(2).sum((0, 2))
    # The mean over structures of the mean over their voxels is a sum over voxels, weighted by structure.
    balanced = (present > 0) / (present.clamp_min(1) * (present > 0).sum())
    nll = F.nll_loss(log_p, target.long(), weight=0.5 / target.numel() + 0.5 * 0.2 * balanced, reduction="sum")
    labelled = known.flatten(2).any(2).any(0).nonzero().flatten()
    weight = None if bool(known.all()) else known.to(log_p.dtype).expand_as(one_hot[:, 1:])
    dice = soft_dice(log_p[:, 1:].exp(), one_hot[:, 1:], weight)
    dice = dice[labelled].mean() if len(labelled) else nll * 0
    return dice_weight * dice + nll


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
