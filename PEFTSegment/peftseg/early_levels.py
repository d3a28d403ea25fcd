"""The levels of a network's encoder, found by looking at what its modules give."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from peftseg.networks import Anatomy, is_part, is_slicewise, per_axis

_PROBE = 2  # divisors wide: instance norms need more than one voxel at the deepest level


@dataclass(frozen=True)
class Level:
    """A level of the encoder: the module whose output are its features, and how many channels these have."""

    module: str
    channels: int


class Enough(Exception):
    """The level was reached: the forward pass need not go on."""


def find_levels(network: nn.Module, anatomy: Anatomy) -> list[Level]:
    """The encoder's levels, finest first; of the modules that give features of one size, the last one that runs.

    Of a U-Net that names its levels these are its `anatomy.encoder`; modules that give no tensor (lists of features)
    and mere lists of modules are looked into.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    names = {module: name for name, module in network.named_modules() if is_part(name, anatomy.encoder)}

    def look(module: nn.Module, _inputs: object, output: object) -> None:
        shapes.pop(names[module], None)  # the order of the last call counts
        if isinstance(output, torch.Tensor):
            shapes[names[module]] = tuple(output.shape)

    probe = _probe(network, anatomy)
    handles = [module.register_forward_hook(look) for module in names]
    try:
        with in_eval(network), torch.no_grad():
            network(probe)
    finally:
        for handle in handles:
            handle.remove()
    dims = dims_of(network)
    outermost = [n for prefix in anatomy.encoder for n in _with_features(network, prefix, shapes, 2 + dims)]
    found: dict[tuple[int, ...], str] = {}
    for name in sorted(outermost, key=list(shapes).index):
        found[shapes[name][2:]] = name
    by_size = sorted(found, key=math.prod, reverse=True)
    return [Level(found[size], shapes[found[size]][1]) for size in by_size if math.prod(size)]


def _with_features(network: nn.Module, name: str, shapes: dict[str, tuple[int, ...]], ndim: int) -> list[str]:
    """The outermost modules under a name whose output is a tensor of so many axes."""
    if len(shapes.get(name, ())) == ndim:
        return [name]
    children = [child for child, _ in network.get_submodule(name).named_children()]
    return [n for child in children for n in _with_features(network, f"{name}.{child}", shapes, ndim)]


def reaching(network: nn.Module, anatomy: Anatomy, level: Level) -> set[str]:
    """Names of the encoder's parameters that the features of a level depend on; the network is a plain one."""
    parameters = {n: p for n, p in network.named_parameters() if is_part(n, anatomy.encoder)}
    asked = {p: p.requires_grad for p in parameters.values()}
    kept: list[torch.Tensor] = []

    def look(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        kept.append(output.float().sum())
        raise Enough

    handle = network.get_submodule(level.module).register_forward_hook(look)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with in_eval(network), torch.enable_grad(), contextlib.suppress(Enough):
            network(_probe(network, anatomy))
        found = torch.autograd.grad(kept[0], list(parameters.values()), allow_unused=True)
    finally:
        handle.remove()
        for parameter, before in asked.items():
            parameter.requires_grad_(before)
    return {name for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def dims_of(network: nn.Module) -> int:
    """2 for a network of slices, 3 for one of volumes."""
    convolution = next(m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    return 2 if isinstance(convolution, nn.Conv2d) else 3


def _probe(network: nn.Module, anatomy: Anatomy) -> torch.Tensor:
    """The smallest input that goes through the network."""
    sides = [_PROBE * d for d in per_axis(anatomy.divisor)]
    sides = sides if dims_of(network) == 3 or is_slicewise(network) else sides[:2]
    device = next(network.parameters()).device
    return torch.linspace(0, 1, math.prod(sides), device=device).reshape(1, 1, *sides)


@contextlib.contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile; each module's own mode comes back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
