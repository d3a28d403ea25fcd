"""ConvAdapter: a small bottleneck of convolutions beside a convolution or a block (Chen H et al. 2024).

Delta(x) = alpha * Conv1(ReLU(Conv_k(x))), Conv_k in groups (published) or dense (the form that has the counts of the
thesis, Tables 5.3 and 5.4), Conv1 over one voxel, both with bias. Four schemes: beside a convolution or a block, on its
input (parallel) or on its output (sequential). Beside a convolution with a normalisation N after it, the sum comes before
or after N: N(h + Delta(x)) or N(h) + Delta(x); sequential: N(h + Delta(h)) or N(h) + Delta(N(h)).
"""

from __future__ import annotations

import torch
from torch import nn

from peftseg.adapters.base import Attached
from peftseg.adapters.beside import Beside, keep_beside
from peftseg.adapters.following import norms_after
from peftseg.adapters.freezing import NORMS, freeze, outright
from peftseg.adapters.layers import CONVOLUTIONS, choose_layers, conv_blocks, outside
from peftseg.errors import BadInput
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
        self._taken: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, *S) -> (B, C_out, *S')."""
        return self.alpha * self.conv2(torch.relu(self.conv1(x)))

    def take(self, host: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Forward hook of a host whose sum comes later: remember what goes in."""
        self._taken = inputs[0]

    def add_taken(self, norm: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of the normalisation after the host."""
        taken, self._taken = self._taken, None
        return output + self(taken)


def attach(network: nn.Module, anatomy: Anatomy, options: dict, train_decoder: bool) -> Attached:
    """Freeze the network and put bottlenecks beside its convolutions or blocks, in place.

    Parameters
    ----------
    options : dict
        From `check_options("conv_adapter", ...)`. Block schemes also take single convolutions outside of blocks where
        an expression in `layers` names them. train_norm: every normalisation of the network trains too, as in the
        released code; running statistics stay those of the base.
    train_decoder : bool
        Train the decoder outright too; its layers then get no adapter.
    """
    level, _, where = options["scheme"].partition("_")
    after_norm = options["sum"] == "after_norm"
    if after_norm and level == "block":
        raise BadInput(
            f"sum is after_norm with scheme {options['scheme']}: a block has no normalisation of its own after it.",
            "Choose the scheme conv_parallel or conv_sequential, or sum before_norm.",
        )
    blocks = conv_blocks(network) if level == "block" else {}
    left_out = anatomy.decoder if train_decoder else ()
    hosts = _hosts(network, anatomy, options["layers"], blocks if level == "block" else None, left_out)
    norms = _norms_after(network, anatomy, hosts) if after_norm else {}
    trained = freeze(
        network, anatomy, outright(train_decoder), _norms(network, anatomy) if options["train_norm"] else {}
    )
    like = next(network.parameters())
    modules: dict[str, ConvAdapter] = {}
    smaller: dict[str, str] = {}
    for name, host in hosts.items():
        sizes = _of_block(*blocks[name]) if name in blocks else _of_convolution(host)
        outputs = sizes.pop("outputs")
        if where == "sequential":
            odd = tuple(size | 1 for size in sizes["kernel_size"])  # even kernels cannot keep the size
            sizes = {"inputs": outputs, "kernel_size": odd, "padding": "same"}
        with torch.device(like.device):
            first = _first(sizes, options)
            if first.out_channels < (asked := _width(first.in_channels, options)):
                smaller[name] = f"{first.out_channels} instead of {asked}"
            modules[name] = ConvAdapter(first, outputs, options["init"] == "published").to(like.dtype)
    _join(network, modules, where, norms)
    return Attached(network, trained, beside=dict(modules), notes=_notes(options["init"] == "published", smaller))


def _notes(published: bool, smaller: dict[str, str]) -> tuple[str, ...]:
    """What the user should know: random first values, and hosts whose bottleneck is narrower than asked."""
    notes = []
    if published:
        notes.append("The published first values change what the model does before it has learnt anything.")
    if smaller:
        name, width = next(iter(smaller.items()))
        notes.append(
            f"With depthwise, the inner width must divide the input channels; it is smaller than asked at {len(smaller)} "
            f"place(s), such as {name}: {width}."
        )
    return tuple(notes)


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


def _norms(network: nn.Module, anatomy: Anatomy) -> dict[str, str]:
    """Parameters of every normalisation but one after the head, name -> kind."""
    norms = {n: m for n, m in network.named_modules() if isinstance(m, NORMS) and n != anatomy.head_norm}
    return {f"{n}.{leaf}": "norm" for n, m in norms.items() for leaf, p in m._parameters.items() if p is not None}


def _norms_after(network: nn.Module, anatomy: Anatomy, hosts: dict[str, nn.Module]) -> dict[str, str]:
    """Host -> the normalisation after it; BadInput where no host has one."""
    norms = norms_after(network, anatomy, hosts)
    if not norms:
        raise BadInput(
            "sum is after_norm, but no normalisation follows any of the chosen convolutions.",
            "Choose other layers, or sum before_norm.",
        )
    return norms


def _join(network: nn.Module, modules: dict[str, ConvAdapter], where: str, norms: dict[str, str]) -> None:
    """Join bottlenecks to their hosts, or to the normalisations after these."""
    keep_beside(network, dict(modules))
    for name, module in modules.items():
        host, norm = network.get_submodule(name), norms.get(name)
        if where == "sequential":
            network.get_submodule(norm or name).register_forward_hook(module.add_sequential)
        elif norm is None:
            host.register_forward_hook(module.add_parallel)
        else:
            host.register_forward_hook(module.take)
            network.get_submodule(norm).register_forward_hook(module.add_taken)


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


def _width(inputs: int, options: dict) -> int:
    """The inner width that is asked for."""
    return options["width"] or max(1, inputs // options["gamma"])


def _first(sizes: dict, options: dict) -> nn.Module:
    """The first convolution: `width` channels, or a `gamma`-th of the input's; in as many groups where depthwise."""
    inputs = sizes.pop("inputs")
    width = _width(inputs, options)
    if options["depthwise"]:
        # Groups must divide the channels: the next smaller number that does; `attach` says so.
        width = next(w for w in range(min(width, inputs), 0, -1) if inputs % w == 0)
    return CONVOLUTIONS[len(sizes["kernel_size"]) - 1](
        inputs, width, groups=width if options["depthwise"] else 1, **sizes
    )
