"""Low-rank changes of weights: `W = W0 + scale * B diag(v) A`, composed by `torch.nn.utils.parametrize`.

The *weight* is composed and the layer runs once, so stride, dilation, groups and padding need no attention (METHODS
5.1; a second low-rank convolution beside the first one loses dilation and padding mode, huggingface/peft issue 3697).
"""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.amp import is_autocast_available
from torch.nn import functional
from torch.nn.utils import parametrize

from peftseg.errors import BadInput
from peftseg.networks import Anatomy, is_part

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WHOLE = "whole"
_LISTED = 20


@dataclass(frozen=True)
class Design:
    """How the layers of one attachment are adapted.

    Attributes
    ----------
    rank : int
        Components a block of rows; clipped to the smaller side of the block's unfolding.
    scale : float
        Factor of the change.
    form : str
        "window" or "loralib" (METHODS 5.1); linear and transposed layers have the window form in both.
    gates : str or None
        First value of the gates v, "ones" or "uniform" in [-1, 1]; None: no gates.
    fused : tuple of str
        Which of "q", "k", "v" are adapted in a fused attention projection, each with its own factors.
    """

    rank: int
    scale: float = 1.0
    form: str = "window"
    gates: str | None = None
    fused: tuple[str, ...] = ("q", "k", "v")


class Factors(nn.Module):
    """Factors of one block of rows.

    Parameters
    ----------
    rows, columns : int
        Size of the change as a matrix.
    inner : int
        Inner size: the rank in the window form, rank * kernel size in the loralib form.
    design : Design
        Scale and gates.
    like : torch.Tensor
        The weight, for device and type.
    """

    def __init__(self, rows: int, columns: int, inner: int, design: Design, like: torch.Tensor) -> None:
        super().__init__()
        self.scale = design.scale
        self.A = nn.Parameter(like.new_empty(inner, columns))
        self.B = nn.Parameter(like.new_zeros(rows, inner))
        # Kaiming-uniform with a = sqrt(5), bound 1 / sqrt(columns), as in microsoft/LoRA; B = 0 makes the change 0.
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.v = None
        if design.gates is not None:
            first = like.new_ones(inner) if design.gates == "ones" else like.new_empty(inner).uniform_(-1, 1)
            self.v = nn.Parameter(first)

    def change(self) -> torch.Tensor:
        """The change as a matrix, (rows, columns)."""
        right = self.A if self.v is None else self.v[:, None] * self.A
        return self.scale * (self.B @ right)

    def importance(self) -> torch.Tensor:
        """|v_i| ||A_i|| ||B_i|| of each component, (inner,), without gradient (METHODS 2.4)."""
        with torch.no_grad():
            size = self.A.norm(dim=1) * self.B.norm(dim=0)
            return size if self.v is None else size * self.v.abs()

    def keep(self, chosen: torch.Tensor) -> None:
        """Drop all components but the chosen ones; `chosen` is (inner,) bool or an index."""
        with torch.no_grad():
            for name, tensor in (("A", self.A[chosen]), ("B", self.B[:, chosen])):
                setattr(self, name, nn.Parameter(tensor.clone(), requires_grad=getattr(self, name).requires_grad))
            if self.v is not None:
                self.v = nn.Parameter(self.v[chosen].clone(), requires_grad=self.v.requires_grad)

    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors by name."""
        return {name: tensor for name in ("A", "B", "v") if (tensor := getattr(self, name)) is not None}


class LowRank(nn.Module):
    """The change of one weight, as a parametrisation.

    Parameters
    ----------
    name : str
        The layer's name, for messages.
    layer : nn.Module
        Linear, convolution or transposed convolution.
    design : Design
        How it is adapted.
    """

    def __init__(self, name: str, layer: nn.Module, design: Design) -> None:
        super().__init__()
        shape = tuple(layer.weight.shape)
        self.shape = shape
        self.transposed = isinstance(layer, TRANSPOSED)
        rows = shape[1] if self.transposed else shape[0]
        columns = math.prod(shape) // rows
        if is_fused(name, layer):
            third = rows // 3
            blocks = {block: i * third for i, block in enumerate(("q", "k", "v")) if block in design.fused}
        else:
            third, blocks = rows, {WHOLE: 0}
        self.starts = blocks
        self.rank = min(design.rank, third, columns)
        kernel = _loralib_kernel(name, layer) if design.form == "loralib" else None
        height, width, inner = third, columns, self.rank
        if kernel is not None:
            # A (r k, C_in/g k), B (C_out k^(d-1), r k); the product is read as the weight in memory order.
            height, width, inner = shape[0] * kernel ** (len(shape) - 3), shape[1] * kernel, self.rank * kernel
        like = layer.weight.detach()
        self.height = rows if kernel is None else height
        self.blocks = nn.ModuleDict({block: Factors(height, width, inner, design, like) for block in blocks})

    def delta(self) -> torch.Tensor:
        """The change, in the weight's shape."""
        matrix = sum(self._in_place(block, factors.change()) for block, factors in self.blocks.items())
        if self.transposed:
            return matrix.reshape(self.shape[1], self.shape[0], *self.shape[2:]).transpose(0, 1)
        return matrix.reshape(self.shape)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """W0 -> W0 + change, in the precision of the weights also under autocast, so that merging changes nothing."""
        device = weight.device.type
        # The meta device, on which sizes are counted, has no autocast.
        with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
            return weight + self.delta()

    def _in_place(self, block: str, matrix: torch.Tensor) -> torch.Tensor:
        """A block's rows among zeros: (rows of the block, columns) -> (rows, columns)."""
        start = self.starts[block]
        below = self.height - start - matrix.shape[0]
        return functional.pad(matrix, (0, 0, start, below)) if start or below else matrix

    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors by key suffix: "A", "B", "v", or "A.k" and so on for a block of a fused projection."""
        return {
            suffix if block == WHOLE else f"{suffix}.{block}": tensor
            for block, factors in self.blocks.items()
            for suffix, tensor in factors.tensors().items()
        }


def _loralib_kernel(name: str, layer: nn.Module) -> int | None:
    """Kernel size for the loralib form; None where the layer has the window form in both."""
    if not isinstance(layer, CONVOLUTIONS):
        return None
    if len(set(layer.kernel_size)) > 1:
        raise BadInput(
            f"Layer {name} has kernel size {tuple(layer.kernel_size)}; the form 'loralib' needs equal sides.",
            "Use the form 'window', or leave this layer out with the option 'layers'.",
        )
    return layer.kernel_size[0]


def is_fused(name: str, layer: nn.Module) -> bool:
    """Whether a layer is a fused attention projection: a Linear `attn.qkv` whose rows are q, then k, then v."""
    fused = isinstance(layer, nn.Linear) and name.split(".")[-2:] == ["attn", "qkv"]
    return fused and layer.out_features % 3 == 0


def adaptable_layers(network: nn.Module, anatomy: Anatomy, trained: tuple[str, ...]) -> dict[str, nn.Module]:
    """Layers that a low-rank change can be added to, by name; those that are trained outright are left out."""
    kinds = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, kinds) and not is_part(name, (anatomy.head, *trained))
    }


def select_layers(
    network: nn.Module, anatomy: Anatomy, layers: str, trained: tuple[str, ...] = ()
) -> dict[str, nn.Module]:
    """The layers that the option `layers` names.

    Parameters
    ----------
    layers : str
        "attention": fused q-k-v projections of the encoder; "encoder": its linear layers and convolutions; "all": those
        of the whole network but the head; "auto": attention where the encoder has it, else the encoder's convolutions;
        anything else: a regular expression that matches whole layer names. Transposed convolutions are adapted only
        where an expression matches them.
    trained : tuple of str
        Prefixes of what is trained outright and needs no adapter.

    Raises
    ------
    BadInput
        When nothing matches; lists layers that can be adapted.
    """
    adaptable = adaptable_layers(network, anatomy, trained)
    plain = {n: m for n, m in adaptable.items() if not isinstance(m, TRANSPOSED)}
    encoder = {n: m for n, m in plain.items() if is_part(n, anatomy.encoder)}
    attention = {n: m for n, m in encoder.items() if is_fused(n, m)}
    convolutions = {n: m for n, m in encoder.items() if isinstance(m, CONVOLUTIONS)}
    named = {"attention": attention, "encoder": encoder, "all": plain, "auto": attention or convolutions}
    chosen = named[layers] if layers in named else _matching(adaptable, layers)
    if not chosen:
        names = list(adaptable)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise BadInput(
            f"No layer of this network fits layers '{layers}'; layers that can be adapted: "
            f"{', '.join(names[:_LISTED]) or 'none'}{more}.",
            "Use auto, attention, encoder, all, or a regular expression that matches whole layer names.",
        )
    return chosen


def _matching(adaptable: dict[str, nn.Module], pattern: str) -> dict[str, nn.Module]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise BadInput(
            f"layers '{pattern}' is not a regular expression ({error}).",
            "Use auto, attention, encoder, all, or a regular expression that matches whole layer names.",
        ) from error
    return {name: module for name, module in adaptable.items() if expression.fullmatch(name)}


def compose(layers: dict[str, nn.Module], design: Design) -> dict[str, LowRank]:
    """Add a change to each layer's weight, in place; returns the changes by plain parameter name."""
    changes = {f"{name}.weight": LowRank(name, layer, design) for name, layer in layers.items()}
    for change, layer in zip(changes.values(), layers.values(), strict=True):
        parametrize.register_parametrization(layer, "weight", change)
    return changes


def make_plain(layer: nn.Module, change: bool) -> None:
    """Turn a composed layer into a plain one of its class, in place, with or without the change in its weight.

    `parametrize.remove_parametrizations` is of no use here: it deletes the weight from the layer's class, which deep
    copies share, so removing it from a copy breaks the original.
    """
    original = layer.parametrizations["weight"].original
    weight = nn.Parameter(layer.weight.detach().clone()) if change else original
    plain_class = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = plain_class
    rest = dict(layer._parameters)
    layer._parameters.clear()
    layer.register_parameter("weight", weight)
    layer._parameters.update(rest)
