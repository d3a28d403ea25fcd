"""Features before the head, computed once: for methods that train nothing before it (linear probe, spatial adapter).

What is kept is the input of the module at which training begins, for the very patches that were put through the network
together, so that a later pass gives the same numbers as a whole one. The first batch shows whether it does; where not
(something runs after the head), and for what does not fit into memory, the whole network runs as ever. Results do not
depend on what is kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import nn

POOL = 8  # epochs with different patches, at most; the next ones use the same again, or nothing could be kept
MEMORY_SHARE = 0.25  # of the free memory


@dataclass(frozen=True, eq=False)
class Kept:
    """One batch: the features before the head, how many patches they are of, and the truth that belongs to them."""

    features: torch.Tensor
    patches: int
    target: torch.Tensor
    known: torch.Tensor


class FeatureCache:
    """Features of a frozen network by batch.

    Parameters
    ----------
    network : nn.Module
        Its frozen part must not change while this lives.
    start : str
        Name of the module at which training begins.
    limit : int
        Bytes.
    """

    def __init__(self, network: nn.Module, start: str, limit: int) -> None:
        self.network, self.head, self.limit = network, network.get_submodule(start), limit
        self.used = 0
        self._kept: dict[Hashable, Kept] = {}
        self._sliced: bool | None = None  # unknown before the first batch

    def get(self, key: Hashable) -> Kept | None:
        """What is kept of a batch."""
        return self._kept.get(key)

    def logits(self, kept: Kept) -> torch.Tensor:
        """The network's output for what is kept, with gradients for what trains."""
        out = self.head(kept.features)
        return _stacked(out, kept.patches) if self._sliced else out

    def run(self, key: Hashable, image: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The network's output for a batch, by the whole network; keeps its features where they fit."""
        if self.used >= self.limit:
            return self.network(image)
        seen: list[torch.Tensor] = []
        # Before all other hooks of the head: a spatial adapter is one.
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()), prepend=True)
        try:
            logits = self.network(image)
        finally:
            hook.remove()
        kept = Kept(seen[0], len(image), target, known)
        size = sum(t.untyped_storage().nbytes() for t in (kept.features, target, known))
        if self._gives(kept, logits.detach()) and self.used + size <= self.limit:
            self._kept[key] = kept
            self.used += size
        return logits

    def stop(self) -> None:
        """Give the memory back and keep nothing from now on."""
        self._kept.clear()
        self.used, self.limit = 0, 0

    @torch.no_grad()
    def _gives(self, kept: Kept, logits: torch.Tensor) -> bool:
        """Whether the rest of the network alone gives the same; tried once."""
        if self._sliced is None:
            out = self.head(kept.features)
            # A network of slices takes volumes apart along their last axis, and puts its output together again.
            self._sliced = out.ndim == logits.ndim - 1
            out = _stacked(out, kept.patches) if self._sliced else out
            if out.shape != logits.shape or not _same(out, logits):
                self.stop()
        return self.limit > 0


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """On a processor bit for bit; a GPU may choose another algorithm for the same convolution."""
    if found.device.type == "cpu":
        return torch.equal(found, expected)
    tolerance = float(4 * torch.finfo(found.dtype).eps * expected.abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=tolerance)


def _stacked(slices: torch.Tensor, volumes: int) -> torch.Tensor:
    """(B D, C, H, W) -> (B, C, H, W, D)."""
    return slices.unflatten(0, (volumes, -1)).movedim(1, -1)
