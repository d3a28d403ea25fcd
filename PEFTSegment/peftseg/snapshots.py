"""States of an adapter on the way to its last one, kept while it trains: where they disagree, a result is doubtful.

Pairwise Dice between the members of a small ensemble ranks failures best among simple scores (Zenk et al. 2025,
doi:10.1016/j.media.2024.103392). Late states of one training are such an ensemble at no cost in time (snapshot ensembles,
Huang et al. 2017, arXiv:1704.00109). Their learning rates follow cycles; ours keeps its one cosine, so that the adapter is bit
by bit the one that it is without snapshots, and takes states from before the cosine has run out, which still differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peftseg.adapters.base import Attached

SHARES = (0.6, 0.8)  # of the steps up to the state that is kept; the rate is then 35 % and 10 % of its peak
MOST_KEPT = 6  # while training: nobody knows beforehand where it stops
MOST_VALUES = 2_000_000  # in an adapter with snapshots: two halves double its file
_KEY = "snapshot."
_COUNT = "snapshot.steps"
State = dict[str, torch.Tensor]


def small_enough(attached: Attached) -> bool:
    """Whether the state is small enough to be kept three times; those of full tuning are not."""
    return sum(tensor.numel() for tensor in attached.tensors().values()) <= MOST_VALUES


class Recorder:
    """An `Attached` for `optimise.fit` that also keeps copies of its state, evenly spread over the steps so far.

    They are part of its memory and with it of the checkpoint. Training itself is as without: nothing is drawn at random,
    and states are only read.
    """

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self.network, self.frozen_until = attached.network, attached.frozen_until
        self.steps, self.stride = 0, 1
        self.kept: dict[int, State] = {}

    def state(self) -> State:
        """Of the adapter."""
        return self.attached.state()

    def load_state(self, state: State) -> None:
        """Of the adapter."""
        self.attached.load_state(state)

    def after_step(self, lr: float, progress: float) -> None:
        """The adapter's own, then perhaps a copy."""
        self.attached.after_step(lr, progress)
        self.steps += 1
        if self.steps % self.stride:
            return
        self.kept[self.steps] = {key: _halved(tensor) for key, tensor in self.attached.tensors().items()}
        if len(self.kept) > MOST_KEPT:
            self.stride *= 2
            self.kept = {step: state for step, state in self.kept.items() if step % self.stride == 0}

    def penalty(self) -> torch.Tensor | None:
        """Of the adapter."""
        return self.attached.penalty()

    def memory(self) -> State:
        """The adapter's, and the copies."""
        copies = {f"{_KEY}{step}/{key}": tensor for step, state in self.kept.items() for key, tensor in state.items()}
        return {**self.attached.memory(), **copies, _COUNT: torch.tensor([self.steps, self.stride])}

    def load_memory(self, memory: State) -> None:
        """Inverse of `memory`; of one without copies, steps are counted from here on."""
        self.attached.load_memory({key: tensor for key, tensor in memory.items() if not key.startswith(_KEY)})
        count = memory.get(_COUNT)
        self.steps, self.stride = (0, 1) if count is None else (int(n) for n in count)
        self.kept = {}
        for key, tensor in memory.items():
            step, _, name = key.removeprefix(_KEY).partition("/")
            if key.startswith(_KEY) and name:
                self.kept.setdefault(int(step), {})[name] = tensor

    def facts(self) -> dict[str, Any]:
        """Of the adapter."""
        return self.attached.facts()

    def chosen(self, share: float) -> tuple[State, ...]:
        """The copies that are nearest to `SHARES` of the way to the state that is kept, oldest first.

        Parameters
        ----------
        share : float
            Of all steps, at which that state was reached.
        """
        end = self.steps * share
        return tuple(self.kept[step] for step in nearest([s for s in self.kept if s < end], end))


def nearest(steps: Sequence[int], end: float) -> list[int]:
    """Different steps that are nearest to `SHARES` of the end, ascending; fewer where there are fewer."""
    found: set[int] = set()
    for share in reversed(SHARES):
        left = [step for step in steps if step not in found]
        if left:
            found.add(min(left, key=lambda step, wanted=share * end: abs(step - wanted)))
    return sorted(found)


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the processor in 16 bits; in its own type where that would not do."""
    own = tensor.detach()
    if own.is_floating_point():
        half = own.to(torch.float16)
        if bool(torch.isfinite(half).all()):
            own = half
    return own.to("cpu", copy=True).contiguous()
