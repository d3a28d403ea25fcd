"""What all methods share: the trainable state, its kinds and groups, and merging."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from peftseg.adapters.beside import Beside
from peftseg.adapters.composed import Composed, make_plain
from peftseg.adapters.low_rank import LowRank
from peftseg.errors import BadInput

KINDS = ("adapter", "norm", "head", "decoder", "body")
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
        Composed tensors, plain parameter name -> change; `composed.compose` has put them into the network.
    beside : dict
        Small modules beside the network's own, host's name -> module; `beside.put_beside` has put them there.
    statistics : tuple of str
        Buffers that training moves and the state therefore holds.
    created : tuple of str
        Biases that the method gave to layers without one; all 0, and frozen under their change.
    frozen_until : str
        Name of the module before which nothing trains, so that its input can be computed once and kept; "" for none.
    notes : tuple of str
        What the user should know about this combination of method and network.

    Attributes
    ----------
    share_at_start : dict
        `trained_share` as `adapters.attach` left it: what is trained, before anything is pruned.
    """

    prunes = False

    def __init__(
        self,
        network: nn.Module,
        trained: dict[str, str],
        changes: dict[str, Composed] | None = None,
        *,
        beside: dict[str, Beside] | None = None,
        statistics: tuple[str, ...] = (),
        created: tuple[str, ...] = (),
        frozen_until: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.network = network
        self.trained = trained
        self.changes = changes or {}
        self.beside = beside or {}
        self.statistics = statistics
        self.created = created
        self.frozen_until = frozen_until
        self.notes = notes
        self.share_at_start: dict[str, int] = {}
        self.clipped = {_layer(n): c.rank for n, c in self.low_rank().items() if c.rank < c.asked}
        self._gradients: dict[str, torch.Tensor] = {}
        self._watched = 0

    @property
    def merges(self) -> bool:
        """Whether `merge` gives a network with nothing added."""
        return not self.beside

    def low_rank(self) -> dict[str, LowRank]:
        """The low-rank ones of the changes."""
        return {name: change for name, change in self.changes.items() if isinstance(change, LowRank)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live tensors of the adapter state by key; the one definition behind everything below."""
        found: dict[str, torch.Tensor] = {}
        for name, change in self.changes.items():
            found |= {f"{name}::{suffix}": tensor for suffix, tensor in change.tensors().items()}
        for name, module in self.beside.items():
            found |= {f"{name}::{leaf}": tensor for leaf, tensor in module.named_parameters()}
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
        """Copies of the adapter's tensors, on the CPU, by key (`<plain name>::<what>`, see Docs/add-a-method.md)."""
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
        for name, change in self.low_rank().items():
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
        that follows subtracts it again. The check is our own.
        """
        if self._watched < 2:
            return []
        sizes = {key: float(size) for key, size in self._gradients.items()}
        largest = max(sizes.values())
        return [
            key
            for key in self.trainable()
            if sizes.get(key, 0.0) <= _INERT_BIAS * sizes.get(_weight_beside(key), largest) * _is_bias(key)
        ]

    def penalty(self) -> torch.Tensor | None:
        """What is added to the loss of a step, or None."""
        return None

    def memory(self) -> dict[str, torch.Tensor]:
        """What the method remembers from step to step beside its state, for a checkpoint."""
        return {}

    def load_memory(self, memory: dict[str, torch.Tensor]) -> None:
        """Inverse of `memory`."""

    def prune(self) -> None:
        """Drop dead components for real, after training; an optimiser of before is of no use afterwards."""

    def ranks(self) -> dict[str, int]:
        """Rank of each change by layer, or by layer and block for a fused projection."""
        return {label: factors.A.shape[0] for label, factors in self.labelled_factors().items()}

    def labelled_factors(self) -> dict:
        """Factors of all changes by layer name, with `[k]` for a block of a fused projection."""
        return {
            label_of(name, change, block): factors
            for name, change in self.low_rank().items()
            for block, factors in change.blocks.items()
        }

    def facts(self) -> dict:
        """Small facts for events: ranks, where the rank was clipped, tensors without a gradient."""
        facts: dict = {}
        if ranks := self.ranks():
            facts["ranks"] = ranks
        if self.clipped:
            facts["clipped"] = dict(self.clipped)
        if inert := self.inert():
            facts["inert"] = inert
        return facts

    def trained_share(self) -> dict[str, int]:
        """Trainable values by kind, and those of stored buffers ("buffers") and of the plain network ("base_total")."""
        share = {kind: sum(p.numel() for p in found) for kind, found in self.parameters_by_kind().items()}
        share["buffers"] = sum(self.network.get_buffer(name).numel() for name in self.statistics)
        own = [t for change in self.changes.values() for t in change.tensors().values()]
        own += [t for module in self.beside.values() for t in module.parameters()]
        # A created bias is not trained itself; its change is.
        own += [_original(self.network, name) for name in self.created]
        share["base_total"] = sum(p.numel() for p in self.network.parameters()) - sum(t.numel() for t in own)
        return share

    def merge(self) -> nn.Module:
        """A new network in eval mode that computes the same; the attached one stays as it is.

        It has the class and the keys of the base (and created biases), no trace of the adapter and nothing frozen. What
        is beside the network's modules cannot be merged and stays in the copy.
        """
        # What a composed weight is made of is not copied: the merged network gets the new tensor only.
        parts = [*self.changes.values(), *(_original(self.network, name) for name in self.changes)]
        merged = copy.deepcopy(self.network, {id(part): part for part in parts})
        for layer in dict.fromkeys(_layer(name) for name in self.changes):
            make_plain(merged.get_submodule(layer), change=True)
        for module in merged.modules():
            module.__dict__.pop("train", None)
        merged.zero_grad(set_to_none=True)
        return merged.requires_grad_(True).eval()


def label_of(name: str, change: LowRank, block: str) -> str:
    """Layer of a change, with `[k]` for a block of a fused projection."""
    return _layer(name) + ("" if len(change.starts) == 1 else f"[{block}]")


def _layer(name: str) -> str:
    """Layer of a plain parameter name."""
    return name.rpartition(".")[0]


def _is_bias(key: str) -> bool:
    """Whether a key belongs to a bias of a layer, or to that of a module beside."""
    plain, _, suffix = key.partition("::")
    return "bias" in (plain.rpartition(".")[2], suffix.rpartition(".")[2])


def _weight_beside(key: str) -> str:
    """The key of the weight that belongs to a bias."""
    return "weight".join(key.rsplit("bias", 1))


def _original(network: nn.Module, name: str) -> nn.Parameter:
    """The frozen tensor under a change, by plain name."""
    layer, _, leaf = name.rpartition(".")
    module = network.get_submodule(layer)
    return module.parametrizations[leaf].original if parametrize.is_parametrized(module) else getattr(module, leaf)


def _problem(what: str, items: Iterable[str]) -> list[str]:
    """One phrase about the first few items, or none."""
    found = list(items)
    if not found:
        return []
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return [f"{what}: {', '.join(found[:_LISTED])}{more}"]
