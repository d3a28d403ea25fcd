"""What all methods share: freezing, the trainable state, and merging.

Frozen means gradients *and* behaviour: frozen modules stay in eval mode when `train()` is called, so neither
normalisation statistics nor dropout move under a frozen network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import MethodType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from peftseg.adapters.low_rank import LowRank, make_plain
from peftseg.errors import BadInput
from peftseg.networks import Anatomy, is_part

KINDS = ("adapter", "norm", "head", "decoder", "body")
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_WATCHED_STEPS = 5
_INERT_BIAS = 1e-5
_LISTED = 5


class Attached:
    """A network with its trainable part.

    Parameters
    ----------
    network : nn.Module
        The network, frozen by `freeze`.
    trained : dict
        Parameters trained outright, plain name -> kind, as `freeze` returns them.
    changes : dict
        Composed weights, plain parameter name -> change, as `compose` returns them.
    rank : int or None
        The rank that was asked for, to report where it was clipped.
    statistics : tuple of str
        Buffers that training moves and the state therefore holds.
    """

    prunes = False

    def __init__(
        self,
        network: nn.Module,
        trained: dict[str, str],
        changes: dict[str, LowRank] | None = None,
        rank: int | None = None,
        statistics: tuple[str, ...] = (),
    ) -> None:
        self.network = network
        self.trained = trained
        self.changes = changes or {}
        self.statistics = statistics
        self.clipped = {_layer(n): c.rank for n, c in self.changes.items() if rank is not None and c.rank < rank}
        self._gradients: dict[str, torch.Tensor] = {}
        self._watched = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live tensors of the adapter state by key; the one definition behind everything below."""
        found: dict[str, torch.Tensor] = {}
        for name, change in self.changes.items():
            found |= {f"{name}::{suffix}": tensor for suffix, tensor in change.tensors().items()}
        found |= {f"{name}::full": self.network.get_parameter(name) for name in self.trained}
        found |= {f"{name}::buffer": self.network.get_buffer(name) for name in self.statistics}
        return found

    def _kind(self, key: str) -> str:
        return self.trained.get(key.partition("::")[0], "adapter")

    def trainable(self) -> dict[str, nn.Parameter]:
        """The tensors that get a gradient, by key."""
        return {key: tensor for key, tensor in self.tensors().items() if tensor.requires_grad}

    def parameters_by_kind(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by kind, all of `KINDS`; a kind that is not trained has an empty list."""
        found: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
        for key, tensor in self.trainable().items():
            found[self._kind(key)].append(tensor)
        return found

    def parameter_groups(self, rates: dict[str, float]) -> list[dict]:
        """Groups for an optimiser, one a kind, without weight decay.

        Parameters
        ----------
        rates : dict
            Learning rate by kind; "norm" falls back to "body".

        Returns
        -------
        list of dict
            With "params", "lr", "weight_decay" and "kind".
        """
        rates = {"norm": rates.get("body"), **rates}
        groups = []
        for kind, parameters in self.parameters_by_kind().items():
            if parameters and rates.get(kind) is None:
                raise BadInput(f"No learning rate for '{kind}'; given: {', '.join(sorted(rates))}.", "Give one.")
            if parameters:
                groups.append({"params": parameters, "lr": rates[kind], "weight_decay": 0.0, "kind": kind})
        return groups

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the adapter's tensors, on the CPU, by key (`<plain parameter name>::A|B|v|full|buffer`)."""
        return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in self.tensors().items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a state of the same shapes; BadInput names what is foreign, missing or misshapen."""
        own = self.tensors()
        problems = [
            *_problem("does not belong here", (key for key in state if key not in own)),
            *_problem("is missing", (key for key in own if key not in state)),
            *_problem(
                "has the wrong shape",
                (
                    f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
                    for key, tensor in own.items()
                    if key in state and state[key].shape != tensor.shape
                ),
            ),
        ]
        if problems:
            raise BadInput(
                f"The adapter's tensors do not fit this network: {'; '.join(problems)}.",
                "Use the foundation model, method and options that the adapter was made with.",
            )
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])

    def fit_to(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the ranks of a pruned state; only methods that prune do something here."""
        if not self.prunes:
            return
        for name, change in list(self.changes.items()):
            kept = {}
            for block, factors in change.blocks.items():
                saved = state.get(f"{name}::A" if len(change.starts) == 1 else f"{name}::A.{block}")
                rank = 0 if saved is None else saved.shape[0]
                kept[block] = torch.arange(factors.A.shape[0], device=factors.A.device) < rank
            self._keep(name, kept)

    def _keep(self, name: str, kept: dict[str, torch.Tensor]) -> None:
        """Keep the chosen components of one weight's blocks; a weight with none left loses its change."""
        change = self.changes[name]
        for block, chosen in kept.items():
            change.blocks[block].keep(chosen)
            if not chosen.any():
                del change.blocks[block]
        if not len(change.blocks):
            make_plain(self.network.get_submodule(_layer(name)), change=False)
            del self.changes[name]

    def after_step(self, lr: float, progress: float) -> None:
        """Call after each optimiser step, before gradients are cleared.

        Parameters
        ----------
        lr : float
            Learning rate of the adapter in this step.
        progress : float
            Share of the planned steps that are done, 0 to 1.
        """
        if self._watched < _WATCHED_STEPS:
            self._watch_gradients()

    def _watch_gradients(self) -> None:
        seen = {k: t.grad.detach().abs().max() for k, t in self.trainable().items() if t.grad is not None}
        if not seen:
            return
        self._watched += 1
        for key, size in seen.items():
            self._gradients[key] = torch.maximum(size, self._gradients.get(key, size))

    def inert(self) -> list[str]:
        """Trainable tensors that the first steps left without a gradient, by key; empty before the second step.

        A bias counts as inert when its gradient is only rounding beside its layer's weight gradient: a normalisation
        that follows subtracts it again (METHODS 9.8).
        """
        if self._watched < 2:
            return []
        sizes = {key: float(size) for key, size in self._gradients.items()}
        largest = max(sizes.values())
        found = []
        for key in self.trainable():
            layer, _, leaf = key.partition("::")[0].rpartition(".")
            beside = sizes.get(f"{layer}.weight::full", largest) if leaf == "bias" else 0.0
            if sizes.get(key, 0.0) <= _INERT_BIAS * beside:
                found.append(key)
        return found

    def prune(self) -> None:
        """Drop dead components for real, after training; an optimiser of before is of no use afterwards."""

    def ranks(self) -> dict[str, int]:
        """Rank of each change by layer, or by layer and block for a fused projection."""
        return {label: factors.A.shape[0] for label, factors in self.labelled_factors().items()}

    def labelled_factors(self) -> dict:
        """Factors of all changes by layer name, with `[k]` for a block of a fused projection."""
        return {
            _layer(name) + ("" if len(change.starts) == 1 else f"[{block}]"): factors
            for name, change in self.changes.items()
            for block, factors in change.blocks.items()
        }

    def facts(self) -> dict:
        """Small facts for events: ranks, where the rank was clipped, tensors without a gradient."""
        facts: dict = {}
        if self.changes:
            facts["ranks"] = self.ranks()
        if self.clipped:
            facts["clipped"] = dict(self.clipped)
        if inert := self.inert():
            facts["inert"] = inert
        return facts

    def trained_share(self) -> dict[str, int]:
        """Trainable values by kind, and those of stored buffers ("buffers") and of the plain network ("base_total")."""
        share = {kind: sum(p.numel() for p in found) for kind, found in self.parameters_by_kind().items()}
        share["buffers"] = sum(self.network.get_buffer(name).numel() for name in self.statistics)
        factors = sum(t.numel() for change in self.changes.values() for t in change.tensors().values())
        share["base_total"] = sum(p.numel() for p in self.network.parameters()) - factors
        return share

    def merge(self) -> nn.Module:
        """A new plain network in eval mode that computes the same; the attached one stays as it is.

        It has the class and the keys of the base, no trace of the adapter and nothing frozen.
        """
        merged = copy.deepcopy(self.network)
        for module in merged.modules():
            module.__dict__.pop("train", None)
        for name in self.changes:
            make_plain(merged.get_submodule(_layer(name)), change=True)
        merged.zero_grad(set_to_none=True)
        return merged.requires_grad_(True).eval()


def freeze(network: nn.Module, anatomy: Anatomy, kinds: Iterable[str]) -> dict[str, str]:
    """Freeze a network but for the parameters of some kinds, in place.

    Kinds: "head", "decoder" (everything inside, normalisation too), "norm" (normalisation elsewhere), "body" (the
    rest). Where anything is frozen, normalisation statistics stay frozen everywhere and frozen parts stay in eval mode.

    Returns
    -------
    dict
        Plain names of the trainable parameters -> kind.
    """
    if any(parametrize.is_parametrized(module) or "train" in vars(module) for module in network.modules()):
        raise BadInput(
            "This network already has an adapter or another parametrisation.",
            "Load the foundation model again, or merge it first.",
        )
    chosen = set(kinds)
    norms = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
    trained = {}
    for name, parameter in network.named_parameters():
        kind = _kind_of(name, anatomy, norms)
        parameter.requires_grad_(kind in chosen)
        if kind in chosen:
            trained[name] = kind
    if not chosen >= {"norm", "body", "decoder", "head"}:
        parts = ((anatomy.head,) if "head" in chosen else ()) + (anatomy.decoder if "decoder" in chosen else ())
        _keep_in_eval(network, parts)
    return trained


def statistics_of(network: nn.Module) -> tuple[str, ...]:
    """Names of all buffers of normalisation layers, running statistics and counts."""
    return tuple(
        f"{name}.{leaf}" if name else leaf
        for name, module in network.named_modules()
        if isinstance(module, NORMS)
        for leaf, _ in module.named_buffers(recurse=False)
    )


def _kind_of(name: str, anatomy: Anatomy, norms: set[str]) -> str:
    if is_part(name, (anatomy.head,)):
        return "head"
    if is_part(name, anatomy.decoder):
        return "decoder"
    return "norm" if name.rpartition(".")[0] in norms else "body"


def _keep_in_eval(network: nn.Module, parts: tuple[str, ...]) -> None:
    """Make `train()` leave everything outside `parts` and every running statistic in eval mode.

    Bound methods on the modules themselves: they hold for calls on any sub-module and follow a deep copy.
    """
    for name, module in network.named_modules():
        holds_trained = not name or any(is_part(part, (name,)) for part in parts)
        if isinstance(module, _NormBase) or not (holds_trained or is_part(name, parts)):
            module.train = MethodType(_stay_in_eval, module)
            module.eval()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)


def _layer(name: str) -> str:
    """Layer of a plain parameter name."""
    return name.rpartition(".")[0]


def _problem(what: str, items: Iterable[str]) -> list[str]:
    """One phrase about the first few items, or none."""
    found = list(items)
    if not found:
        return []
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return [f"{what}: {', '.join(found[:_LISTED])}{more}"]
