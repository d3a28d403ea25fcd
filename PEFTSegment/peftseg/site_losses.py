"""Pseudo-labels, and the loss that compares early logits with them (Aleem et al. 2024, sec. 3.3; the loss as in deep_pipe)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from peftseg.losses import Match, soft_dice


def probabilities(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Of logits (B, n, *spatial), in float32."""
    return logits.float().softmax(1) if activation == "softmax" else logits.float().sigmoid()


def pseudo_labels(logits: torch.Tensor, options: dict[str, Any], activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and weights from logits (B, n, *spatial); a gradient reaches the logits with "soft_attached" targets only.

    Returns
    -------
    target (B, n, *spatial)
        Probabilities, or 0 and 1.
    weight
        1 where the probability is at least `confidence`, else 0; (B, 1, *spatial) for softmax, (B, n, *spatial) for sigmoid.
    """
    logits = logits if options["targets"] == "soft_attached" else logits.detach()
    p = probabilities(logits, activation)
    with torch.no_grad():
        sure = p.amax(1, keepdim=True) if activation == "softmax" else torch.maximum(p, 1 - p)
        weight = (sure >= options["confidence"]).float()
    if options["targets"] != "hard":
        return p, weight
    if activation == "softmax":
        return F.one_hot(p.argmax(1), p.shape[1]).movedim(-1, 1).float(), weight
    return (p > 0.5).float(), weight


def site_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, activation: str, with_dice: bool = False
) -> torch.Tensor:
    """Mean over voxels of the cross-entropy of logits (B, n, *spatial) with soft targets; unsure voxels count as 0.

    For "sigmoid" the published `BCEWithLogits(e, sigmoid(z))`. With Dice: plus the mean over structures of 1 - soft Dice.
    """
    z = logits.float()
    if activation == "softmax":
        log_p = z.log_softmax(1)
        loss = (-(target * log_p).sum(1, keepdim=True) * weight).mean()
        p, truth, weight = log_p[:, 1:].exp(), target[:, 1:], weight.expand_as(target[:, 1:])
    else:
        loss = (F.binary_cross_entropy_with_logits(z, target, reduction="none") * weight).mean()
        p, truth = z.sigmoid(), target
    return loss + soft_dice(p, truth, weight).mean() if with_dice else loss


def as_labels(
    logits: torch.Tensor, target: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `losses.Match.add` takes, from logits and probabilities of the same shape."""
    if activation == "softmax":
        label = target.argmax(1, keepdim=True)
        return logits, label, torch.ones_like(target[:, 1:], dtype=torch.bool)
    return logits, (target > 0.5).to(torch.uint8), torch.ones_like(target, dtype=torch.bool)


def mean_dice(match: Match) -> float | None:
    """Mean over the structures that occurred, None without any."""
    found = [value for value in match.dice() if value is not None]
    return sum(found) / len(found) if found else None
