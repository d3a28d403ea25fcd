"""ARENA: low-rank changes with gates, W0 + B diag(v) A, whose gates are shrunk in training (Baklouti et al. 2025).

Three rules for the gates, after each optimiser step with learning rate eta:

- "paper": v <- soft(v - rho dL/dv, eta lam) (eqs 5 and 6). At rho = 0, as published, v never sees the data: every gate loses
  lam * (sum of all eta), so the ranks follow from the first draw and the learning rates alone.
- "sora": v is trained by the optimiser, then v <- soft(v, eta lam) (Ding et al. 2023).
- "importance" (default, our choice): v is trained by the optimiser; after a warm-up of 10 % of the planned steps
  v_i <- v_i max(0, 1 - eta lam / s_i) with s_i = |v_i| ||A_i|| ||B_i||, which does not change when v is scaled against
  A and B. A gate at 0 may open again as long as its B_i is not 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.low_rank import Design, Factors, add_low_rank, select_layers
from peftseg.errors import BadInput
from peftseg.networks import Anatomy

WARM_UP = 0.1
KEPT_SHARE = 1e-3
LAM = {"paper": 0.5, "sora": 0.05, "importance": 0.05}  # where the option is left out


class Arena(Attached):
    """A network with gated low-rank changes; `mode`, `lam` and `rho` are the options.

    In the paper mode at rho = 0 the gates get no gradient; they are state, but `trained_share` does not count them.
    """

    prunes = True

    def __init__(self, network: nn.Module, trained: dict, changes: dict, options: dict) -> None:
        super().__init__(network, trained, changes)
        self.mode, self.rho = options["mode"], options["rho"]
        self.lam = LAM[self.mode] if options["lam"] is None else options["lam"]
        for factors in self.labelled_factors().values():
            factors.v.requires_grad_(self.mode != "paper" or self.rho > 0)
        self._start_prediction()

    def _start_prediction(self) -> None:
        self._shrink = 0.0
        self._first = {label: f.v.detach().clone() for label, f in self.labelled_factors().items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """As `Attached.load_state`; predictions of the paper mode start from the loaded gates."""
        super().load_state(state)
        self._start_prediction()

    def parameter_groups(self, rates: dict[str, float]) -> list[dict]:
        """As `Attached.parameter_groups`, with the gates in their own group "gate" (rate "gate", else "adapter").

        In the paper mode the gates are in no group: `after_step` moves them by their gradient, which must then be that
        of the loss, not of a scaled one.
        """
        gates = [f.v for f in self.labelled_factors().values()]
        ids = {id(v) for v in gates}
        groups = super().parameter_groups(rates)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        if gates and self.mode != "paper":
            rate = rates.get("gate", rates["adapter"])
            groups.append({"params": gates, "lr": rate, "weight_decay": 0.0, "kind": "gate"})
        return groups

    @torch.no_grad()
    def after_step(self, lr: float, progress: float) -> None:
        """Shrink the gates; `lr` is eta, the learning rate of this step."""
        super().after_step(lr, progress)
        self._shrink += lr * self.lam
        if self.mode == "importance" and progress < WARM_UP:
            return
        for factors in self.labelled_factors().values():
            _shrink_gates(factors, self.mode, self.rho, lr * self.lam)

    def kept(self) -> dict[str, torch.Tensor]:
        """Which components live, (rank,) bool, by layer (and block)."""
        return {label: _living(f, self.mode) for label, f in self.labelled_factors().items()}

    def ranks(self) -> dict[str, int]:
        """Number of living components by layer (and block)."""
        return {label: int(living.sum()) for label, living in self.kept().items()}

    def facts(self) -> dict:
        """As `Attached.facts`; in the paper mode at rho = 0 also the ranks that were certain without any data."""
        facts = {**super().facts(), "mode": self.mode, "lam": self.lam}
        if self.mode == "paper" and self.rho == 0:
            facts["predicted_shrink"] = self._shrink
            facts["predicted_ranks"] = {
                label: int((self._first[label].abs() > self._shrink).sum()) for label in self.labelled_factors()
            }
        return facts

    def prune(self) -> None:
        """Drop closed gates (paper), or components under 0.1 % of the importance of their layer's largest (else)."""
        for name, change in self.low_rank().items():
            self._keep(name, {block: _living(f, self.mode) for block, f in change.blocks.items()})
        self._start_prediction()


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Arena:
    """Freeze the network and add gated changes, in place; a fused q-k-v projection gets one pair for k and one for v.

    Parameters
    ----------
    options : dict
        From `check_options("arena", ...)`.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    if options["rho"] > 0 and options["mode"] != "paper":
        raise BadInput(
            f"rho is {options['rho']} with mode '{options['mode']}'; only mode 'paper' uses rho.",
            "Leave rho out, or choose mode 'paper'.",
        )
    layers = select_layers(network, anatomy, options["layers"], anatomy.decoder if train_decoder else ())
    trained = freeze(network, anatomy, outright(train_decoder))
    first = options["v_init"]
    if first == "auto":
        first = "uniform" if options["mode"] == "paper" else "ones"
    changes = add_low_rank(network, layers, Design(rank=options["rank"], gates=first, fused=("k", "v")))
    return Arena(network, trained, changes, options)


def predicted_shrink(rates: Iterable[float], lam: float) -> float:
    """What every gate loses in the paper mode at rho = 0 over steps with these learning rates: lam * sum of rates."""
    return lam * sum(rates)


def _shrink_gates(factors: Factors, mode: str, rho: float, threshold: float) -> None:
    v = factors.v
    if mode == "importance":
        # At s_i = 0 the quotient is infinite and the gate closes; a threshold of 0 must leave such a gate alone.
        if threshold > 0:
            v.mul_((1 - threshold / factors.importance()).clamp(min=0))
        return
    if mode == "paper" and rho > 0:
        if v.grad is None:
            raise RuntimeError("after_step needs the gradients of this step: call it before zero_grad().")
        v.sub_(v.grad, alpha=rho)
        # The gates are in no optimiser, so nobody else clears their gradient.
        v.grad = None
    v.copy_(v.sign() * (v.abs() - threshold).clamp(min=0))


def _living(factors: Factors, mode: str) -> torch.Tensor:
    if mode == "paper":
        return factors.v.detach() != 0
    importance = factors.importance()
    return importance > KEPT_SHARE * importance.max()
