"""Who teaches whom in self-training: the pass that gives pseudo-labels, and the one that learns (Aleem et al. 2024, 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from peftseg.adapters.base import Attached
from peftseg.device import autocast
from peftseg.early_head import EarlyBranch


class Teaching:
    """The student, its early head, and its teacher.

    Parameters
    ----------
    attached, branch
        Of one network; no branch where training goes through the final result.
    options : dict
        From `site_options.resolve_levels`.
    precision : str
        "fp32" or "bf16".

    Attributes
    ----------
    teacher : Attached or None
        A copy of the student, frozen or a moving average; None: the student teaches itself.
    """

    def __init__(self, attached: Attached, branch: EarlyBranch | None, options: dict[str, Any], precision: str) -> None:
        self.network, self.branch, self.options, self.precision = attached.network, branch, options, precision
        self.device = next(self.network.parameters()).device
        self.teacher = None if options["teacher"] == "student" else copy.deepcopy(attached)
        self.averages: list[tuple[torch.Tensor, torch.Tensor]] = []
        if options["teacher"] == "ema":
            own = attached.tensors()
            self.averages = [(tensor, own[key]) for key, tensor in self.teacher.tensors().items()]

    def pair(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's logits of (B, 1, *spatial), and those that learn."""
        attached = self.options["targets"] == "soft_attached"
        taught = None if self.teacher is None else self._taught(image)
        if self.options["through"] == "final":
            final = self.run(self.network, image)
            return (final if taught is None else taught), final
        if taught is not None:
            return taught, self.run(self.branch.encoder_only, image)
        if self.options["bn_mode"] == "batch":  # as published: two passes, each of which moves the encoder's statistics
            with nullcontext() if attached else torch.no_grad():
                final = self.run(self.network, image)
            return final, self.run(self.branch.encoder_only, image)
        return self.run(self.branch if attached else self.branch.final_as_given, image)

    def run(self, function: Callable[[torch.Tensor], Any], image: torch.Tensor) -> Any:
        """One pass, with an autocast of its own: what it keeps of weights without gradient would reach the next pass."""
        with autocast(self.device, self.precision):
            return function(image)

    @torch.no_grad()
    def _taught(self, image: torch.Tensor) -> torch.Tensor:
        self.teacher.network.train()  # as the student: what is frozen stays in eval mode
        return self.run(self.teacher.network, image)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average, where the teacher is one."""
        for average, tensor in self.averages:
            average.lerp_(tensor, 1 - self.options["ema"])
