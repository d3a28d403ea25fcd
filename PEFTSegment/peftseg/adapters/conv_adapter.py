"""ConvAdapter: a small bottleneck of convolutions beside a convolution or a block (Chen et al. 2024; METHODS 4).

Delta(x) = alpha * Conv1(ReLU(Conv_k(x))), Conv_k in groups (published) or dense (the form that has the thesis's counts),
Conv1 over one voxel, both with bias. Four schemes: beside a convolution or a block, on its input (parallel) or on its
output (sequential).
"""

from __future__ import annotations

import torch
from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.beside import Beside, put_beside
from peftseg.adapters.freezing import freeze, outright
from peftseg.adapters.layers import CONVOLUTIONS, choose_layers, conv_blocks, outside
from peftseg.networks import Anatomy, is_part


class ConvAdapter(Beside):
    """The bottleneck.

    Parameters
    ----------
    first : nn.Module
        The convolution from the input's channels to the bottleneck's.
    outputs : int
        Channels of the host's output.
    published : bool
        Random first values for all weights; else the last convolution starts at 0 and the output is unchanged.
    """

    def __init__(self, first: nn.Module, outputs: int, published: bool) -> None:
        super().__init__()
        kind = type(first)
        self.conv1 = first
        self.conv2 = kind(first.out_channels, outputs, 1)
        self.alpha = nn.Parameter(torch.ones(outputs, *[1] * (first.weight.ndim - 2)))
        for convolution in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
        if not published:
            nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, *S) -> (B, C_out, *S')."""
        return self.alpha * self.conv2(torch.relu(self.conv1(x)))


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and put bottlenecks beside its convolutions or blocks, in place.

    Parameters
    ----------
    options : dict
        From `check_options("conv_adapter", ...)`. Block schemes also take single convolutions outside of blocks where
        an expression in `layers` names them.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    level, _, where = options["scheme"].partition("_")
    blocks = conv_blocks(network) if level == "block" else {}
    left_out = anatomy.decoder if train_decoder else ()
    hosts = _hosts(network, anatomy, options["layers"], blocks if level == "block" else None, left_out)
    trained = freeze(network, anatomy, outright(train_decoder))
    like = next(network.parameters())
    modules: dict[str, Beside] = {}
    for name, host in hosts.items():
        sizes = _of_block(*blocks[name]) if name in blocks else _of_convolution(host)
        outputs = sizes.pop("outputs")
        if where == "sequential":
            odd = tuple(size | 1 for size in sizes["kernel_size"])  # even kernels cannot keep the size
            sizes = {"inputs": outputs, "kernel_size": odd, "padding": "same"}
        with torch.device(like.device):
            first = _first(sizes, options)
            modules[name] = ConvAdapter(first, outputs, options["init"] == "published").to(like.dtype)
    put_beside(network, modules, where)
    changed = ("The published first values change what the model does before it has learnt anything.",)
    return Attached(network, trained, beside=modules, notes=changed if options["init"] == "published" else ())


def _hosts(
    network: nn.Module, anatomy: Anatomy, layers: str, blocks: dict[str, tuple] | None, trained: tuple[str, ...]
) -> dict[str, nn.Module]:
    """The convolutions that `layers` names, or the blocks; single convolutions outside of blocks then by pattern only."""
    every = outside(network, anatomy, trained)
    convolutions = {n: m for n, m in every.items() if isinstance(m, CONVOLUTIONS)}
    if blocks is None:
        return choose_layers(network, anatomy, layers, convolutions)
    adaptable = {n: m for n, m in every.items() if n in blocks}
    alone = {n for n in convolutions if not is_part(n, tuple(blocks))}
    by_pattern = {n: m for n, m in every.items() if n in adaptable or n in alone}
    return choose_layers(network, anatomy, layers, adaptable, by_pattern=by_pattern)


def _of_block(inputs: int, outputs: int, stride: tuple[int, ...]) -> dict:
    return {"inputs": inputs, "outputs": outputs, "kernel_size": (3,) * len(stride), "stride": stride, "padding": 1}


def _of_convolution(host: nn.Module) -> dict:
    return {
        "inputs": host.in_channels,
        "outputs": host.out_channels,
        "kernel_size": host.kernel_size,
        "stride": host.stride,
        "padding": host.padding,
        "dilation": host.dilation,
        "padding_mode": host.padding_mode,
    }


def _first(sizes: dict, options: dict) -> nn.Module:
    """The first convolution: `width` channels, or a `gamma`-th of the input's; in as many groups where depthwise."""
    inputs = sizes.pop("inputs")
    width = options["width"] or max(1, inputs // options["gamma"])
    if options["depthwise"]:
        # Groups must divide the channels: the next smaller number that does.
        width = next(w for w in range(min(width, inputs), 0, -1) if inputs % w == 0)
    return CONVOLUTIONS[len(sizes["kernel_size"]) - 1](
        inputs, width, groups=width if options["depthwise"] else 1, **sizes
    )
