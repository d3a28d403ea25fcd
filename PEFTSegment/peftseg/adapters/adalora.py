"""AdaLoRA: W0 + B diag(v) A whose components are dropped by their sensitivity until a budget is met (Zhang et al. 2023).

A and B start at random and v at 0; a penalty keeps the rows of A and the columns of B orthonormal, so that v are like
singular values. The sensitivity |p dL/dp| of each value and its uncertainty are smoothed; a component's score is that of
its v and the mean over its row of A and its column of B. The number of components that stay falls along a cubic from
the first to the last rank; all layers share the budget (as in loralib/adalora.py of QingruZhang/AdaLoRA).
"""

from __future__ import annotations

import torch
from torch import nn

from peftseg.adapters.base import Attached, label_of
from peftseg.adapters.composed import Composed
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.low_rank import Design, add_low_rank, select_layers
from peftseg.errors import BadInput
from peftseg.networks import Anatomy

SMOOTHING = 0.85  # beta 1 and beta 2
WARM_UP, SETTLED = 0.1, 0.7  # shares of the planned steps between which components are dropped
INTERVAL = 10  # steps


class AdaLora(Attached):
    """A network with components that compete for a budget; options are those of the method."""

    prunes = True

    def __init__(self, network: nn.Module, trained: dict, changes: dict[str, Composed], options: dict) -> None:
        super().__init__(network, trained, changes)
        self.orthogonality = options["orthogonality"]
        factors = self.labelled_factors().values()
        self.first_budget = sum(len(f.v) for f in factors)
        self.last_budget = min(self.first_budget, options["rank"] * len(factors))
        self._steps = 0
        self._kept: dict[str, torch.Tensor] | None = None
        self._smoothed: dict[str, torch.Tensor] = {}

    def penalty(self) -> torch.Tensor | None:
        """Mean distance of A A^T and B^T B from the identity, times the option `orthogonality`."""
        if self.orthogonality == 0 or not self.labelled_factors():
            return None
        terms = []
        for factors in self.labelled_factors().values():
            one = torch.eye(len(factors.A), device=factors.A.device)
            terms += [
                torch.linalg.norm(factors.A @ factors.A.T - one),
                torch.linalg.norm(factors.B.T @ factors.B - one),
            ]
        return self.orthogonality * torch.stack(terms).mean()

    @torch.no_grad()
    def after_step(self, lr: float, progress: float) -> None:
        """As `Attached.after_step`; smooths the sensitivity and drops what is beyond the budget."""
        super().after_step(lr, progress)
        self._steps += 1
        self._smooth()
        if self._kept is not None:
            self._drop_but(self._kept)
        elif progress >= SETTLED:
            self._kept = self._best(self.last_budget)
            self._drop_but(self._kept)
        elif progress > WARM_UP and self._steps % INTERVAL == 0:
            self._drop_but(self._best(self.budget(progress)))

    def budget(self, progress: float) -> int:
        """Components of all layers together that stay at this share of the planned steps."""
        if progress <= WARM_UP:
            return self.first_budget
        left = max(0.0, 1 - (progress - WARM_UP) / (SETTLED - WARM_UP))
        return self.last_budget + round((self.first_budget - self.last_budget) * left**3)

    def scores(self) -> dict[str, torch.Tensor]:
        """Score of each component, (rank,), by layer (and block); where no step led to this state |v| |A_i| |B_i|."""
        if not self._smoothed:
            return {label: factors.importance() for label, factors in self.labelled_factors().items()}
        found = {}
        for label in self.labelled_factors():
            value = {name: self._score(f"{label}/{name}") for name in ("A", "B", "v")}
            found[label] = value["v"] + value["A"].mean(dim=1) + value["B"].mean(dim=0)
        return found

    def ranks(self) -> dict[str, int]:
        """Number of components that are not dropped, by layer (and block)."""
        return {label: int((factors.v != 0).sum()) for label, factors in self.labelled_factors().items()}

    def prune(self) -> None:
        """Drop components for real; where training ended early, down to the budget that was asked for."""
        kept = self._best(self.last_budget) if self._kept is None else self._kept
        for name, change in self.low_rank().items():
            blocks = change.blocks.items()
            self._keep(name, {block: kept[label_of(name, change, block)] & (f.v != 0) for block, f in blocks})
        self._smoothed, self._kept = {}, None

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """As `Attached.load_state`; scores and masks of the steps go where the state is not the one that they led to.

        A state is its own mask: what was dropped has v = 0. `prune` then drops beyond the budget by the state's own sizes.
        """
        now = self.tensors()
        same = all(key in now and torch.equal(now[key], tensor.to(now[key].device)) for key, tensor in state.items())
        super().load_state(state)
        if not same:
            self._smoothed, self._kept = {}, None

    def memory(self) -> dict[str, torch.Tensor]:
        """Steps, smoothed sensitivities and, once the budget is met, what was kept."""
        kept = {f"kept/{label}": mask for label, mask in (self._kept or {}).items()}
        return {"steps": torch.tensor(self._steps), **self._smoothed, **kept}

    def load_memory(self, memory: dict[str, torch.Tensor]) -> None:
        """Inverse of `memory`; an empty one starts anew."""
        device = next(iter(self.labelled_factors().values())).v.device
        self._steps = int(memory.get("steps", 0))
        kept = {k.removeprefix("kept/"): t.to(device) for k, t in memory.items() if k.startswith("kept/")}
        self._kept = kept or None
        self._smoothed = {k: t.to(device) for k, t in memory.items() if k.startswith(("sensitivity/", "uncertainty/"))}

    def _smooth(self) -> None:
        for label, factors in self.labelled_factors().items():
            for name, tensor in factors.tensors().items():
                if tensor.grad is None:
                    raise RuntimeError("after_step needs the gradients of this step: call it before zero_grad().")
                now = (tensor * tensor.grad).abs()
                sensitivity = self._smoothed.get(f"sensitivity/{label}/{name}", torch.zeros_like(now))
                uncertainty = self._smoothed.get(f"uncertainty/{label}/{name}", torch.zeros_like(now))
                sensitivity = SMOOTHING * sensitivity + (1 - SMOOTHING) * now
                uncertainty = SMOOTHING * uncertainty + (1 - SMOOTHING) * (now - sensitivity).abs()
                self._smoothed[f"sensitivity/{label}/{name}"] = sensitivity
                self._smoothed[f"uncertainty/{label}/{name}"] = uncertainty

    def _score(self, which: str) -> torch.Tensor:
        return self._smoothed[f"sensitivity/{which}"] * self._smoothed[f"uncertainty/{which}"]

    def _best(self, budget: int) -> dict[str, torch.Tensor]:
        """Masks of the components with the highest scores, (rank,) bool, by layer (and block)."""
        scores = self.scores()
        every = torch.cat(list(scores.values()))
        chosen = torch.zeros_like(every, dtype=torch.bool)
        chosen[every.topk(min(budget, len(every))).indices] = True
        return dict(zip(scores, chosen.split([len(s) for s in scores.values()]), strict=True))

    def _drop_but(self, kept: dict[str, torch.Tensor]) -> None:
        for label, factors in self.labelled_factors().items():
            factors.v.mul_(kept[label])


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> AdaLora:
    """Freeze the network and add AdaLoRA, in place.

    Parameters
    ----------
    options : dict
        From `check_options("adalora", ...)`.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    if options["start_rank"] < options["rank"]:
        raise BadInput(
            f"start_rank is {options['start_rank']} and rank is {options['rank']}; components are only ever dropped.",
            "Give a start_rank that is at least the rank.",
        )
    layers = select_layers(network, anatomy, options["layers"], anatomy.decoder if train_decoder else ())
    trained = freeze(network, anatomy, outright(train_decoder))
    design = Design(rank=options["start_rank"], alpha=options["alpha"], first="normal", gates="zeros")
    return AdaLora(network, trained, add_low_rank(network, layers, design), options)
