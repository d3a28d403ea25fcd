"""Small modules beside a network's own: what cannot be written as a change of weights.

They live in one place, `network.beside`, and are joined to their hosts by forward hooks, so that no module of the network
is replaced, no `forward` is rewritten, and names stay those of the plain network. A hook is a bound method of the small
module: a deep copy of the network gets its own. `network.beside` comes first among the network's modules, because
inference takes the last convolution for the head.
"""

from __future__ import annotations

import torch
from torch import nn

CONTAINER = "beside"


class Beside(nn.Module):
    """A module beside a host. `forward` gives what is added.

    "parallel": host(x) + self(x); "sequential": h + self(h) with h = host(x); "before": host(x + self(x)).
    """

    def add_parallel(self, host: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of the host."""
        return output + self(inputs[0])

    def add_sequential(self, host: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of the host."""
        return output + self(output)

    def add_before(self, host: nn.Module, inputs: tuple) -> tuple:
        """Forward hook before the host."""
        return (inputs[0] + self(inputs[0]), *inputs[1:])


class _Container(nn.ModuleDict):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass on: a network that is a plain sequence runs all its modules."""
        return x


def put_beside(network: nn.Module, modules: dict[str, Beside], where: str) -> None:
    """Join modules to their hosts, in place.

    Parameters
    ----------
    modules : dict
        Host's name -> module.
    where : str
        "parallel", "sequential" or "before".
    """
    keep_beside(network, modules)
    for name, module in modules.items():
        host = network.get_submodule(name)
        if where == "before":
            host.register_forward_pre_hook(module.add_before)
        else:
            host.register_forward_hook(module.add_parallel if where == "parallel" else module.add_sequential)


def keep_beside(network: nn.Module, modules: dict[str, Beside]) -> None:
    """Make modules part of the network (device, parameters, copies) without joining them to a host."""
    own = dict(network._modules)
    network._modules.clear()
    # Names of modules in a container must have no dots.
    network.add_module(CONTAINER, _Container({name.replace(".", "/"): m for name, m in modules.items()}))
    network._modules.update(own)


def has_beside(network: nn.Module) -> bool:
    """Whether small modules were joined to this network."""
    return isinstance(network._modules.get(CONTAINER), _Container)
