"""Which normalisation follows a convolution: found by running the network once on tensors without storage.

Names and order of registration do not tell it: blocks that normalise first register all their normalisations before
their convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from peftseg.adapters.freezing import NORMS
from peftseg.adapters.layers import CONVOLUTIONS
from peftseg.errors import BadInput
from peftseg.networks import Anatomy, is_slicewise, per_axis


def norms_after(network: nn.Module, anatomy: Anatomy, convolutions: Iterable[str]) -> dict[str, str]:
    """Names of the convolutions whose output goes into a normalisation and nowhere else -> that normalisation's name.

    A normalisation or convolution that runs more than once is left out.

    Parameters
    ----------
    network : nn.Module
        Plain network; it stays as it is, and nothing is computed.

    Raises
    ------
    BadInput
        When the network cannot be run so.
    """
    twin = _without_storage(network)
    trace = _Trace({twin.get_submodule(name): name for name in convolutions})
    for name, module in twin.named_modules():
        if module in trace.convolutions:
            module.register_forward_hook(trace.keep)
        elif isinstance(module, NORMS):
            trace.norms[module] = name
            module.register_forward_pre_hook(trace.enter)
            module.register_forward_hook(trace.leave)
    try:
        with torch.no_grad(), trace:
            twin(torch.empty(_shape(twin, anatomy), device="meta"))
    except (RuntimeError, ValueError, TypeError) as error:
        raise BadInput(
            f"It cannot be told which normalisation follows a convolution of this network: {error}.",
            "Leave out the option sum or after.",
        ) from error
    return trace.found()


@dataclass(eq=False)
class _Output:
    """What a convolution gave, kept alive so that it can be told from others; its version changes when it is written to."""

    convolution: str
    tensor: torch.Tensor
    version: int
    norms: list[str] = field(default_factory=list)
    elsewhere: bool = False


class _Trace(TorchFunctionMode):
    """Follows the outputs of convolutions through one run."""

    def __init__(self, convolutions: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.norms: dict[nn.Module, str] = {}
        self.outputs: list[_Output] = []
        self.ran: list[str] = []
        self.inside = 0

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), keywords: Any = None) -> Any:
        """Every call on a tensor, by torch's protocol."""
        result = function(*arguments, **(keywords or {}))
        parts = result if isinstance(result, (tuple, list)) else (result,)
        if not self.inside and any(isinstance(part, torch.Tensor) for part in parts):
            for output in self.outputs:
                passed = result is output.tensor  # as dropout does in eval mode
                output.elsewhere |= not passed and _is_among(output.tensor, (arguments, keywords or {}))
        return result

    def keep(self, convolution: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Forward hook of a convolution."""
        self.outputs.append(_Output(self.convolutions[convolution], output, output._version))

    def enter(self, norm: nn.Module, inputs: tuple) -> None:
        """Forward hook before a normalisation."""
        self.inside += 1
        self.ran.append(self.norms[norm])
        for output in self.outputs:
            if output.tensor is inputs[0] and output.tensor._version == output.version:
                output.norms.append(self.norms[norm])

    def leave(self, norm: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Forward hook of a normalisation."""
        self.inside -= 1

    def found(self) -> dict[str, str]:
        """Convolution -> its normalisation."""
        times = [output.convolution for output in self.outputs]
        return {
            output.convolution: output.norms[0]
            for output in self.outputs
            if len(output.norms) == 1 and not output.elsewhere
            if times.count(output.convolution) == 1 and self.ran.count(output.norms[0]) == 1
        }


def _is_among(tensor: torch.Tensor, found: Any) -> bool:
    """Whether a tensor is in nested arguments."""
    if isinstance(found, Mapping):
        found = found.values()
    elif not isinstance(found, (tuple, list)):
        return found is tensor
    return any(_is_among(tensor, part) for part in found)


def _without_storage(network: nn.Module) -> nn.Module:
    """A copy on the meta device; the network's tensors are not copied first."""
    tensors = [*network.parameters(), *network.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    for t in network.parameters():
        empty[id(t)] = nn.Parameter(empty[id(t)], requires_grad=False)
    return copy.deepcopy(network, empty).eval()


def _shape(network: nn.Module, anatomy: Anatomy) -> tuple[int, ...]:
    """Of an input: twice the smallest size, as normalisation by channel needs more than one voxel at the deepest level."""
    first = next(m for m in network.modules() if isinstance(m, CONVOLUTIONS))
    dims = first.weight.ndim - 2 + is_slicewise(network)
    return (1, first.in_channels, *(2 * size for size in (*per_axis(anatomy.divisor),)[:dims]))
