"""Low-rank changes of weights: `W = W0 + scale * B diag(v) A`, composed by `torch.nn.utils.parametrize`.

The *weight* is composed and the layer runs once, so stride, dilation, groups and padding need no attention (a second
low-rank convolution beside the first one loses dilation and padding mode, huggingface/peft issue 3697).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from peftseg.adapters.composed import Composed, compose, in_full_precision
from peftseg.adapters.layers import CONVOLUTIONS, TRANSPOSED, choose_layers, outside
from peftseg.errors import BadInput
from peftseg.networks import Anatomy, is_part

WHOLE = "whole"
GATES = {"ones": 1.0, "zeros": 0.0}
NORMAL = 0.02  # of A and B in AdaLoRA
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Design:
    """How the layers of one attachment are adapted.

    Attributes
    ----------
    rank : int or None
        Components a block of rows, clipped to the smaller side of the block's unfolding, beyond which they add values
        but no freedom (published counts are of the rank that was asked for: Docs/decisions/published-settings.md); None:
        half of its rows.
    alpha : float or None
        The change is multiplied by alpha / rank asked for (also where a layer's is clipped, so that all have one scale);
        None: by 1.
    form : str
        "window" (our choice: B @ A is C_out x C_in k^d) or "loralib" (microsoft/LoRA, issue 115 and pull request 157 for
        volumes: C_out k^(d-1) x C_in k); linear and transposed layers have the window form in both.
    first : str
        First value of A and B: "kaiming" and 0, "pca" (directions of the weight) and 0, or "normal" for both.
    gates : str or None
        First value of the gates v, "ones", "zeros" or "uniform" in [-1, 1]; None: no gates.
    fused : tuple of str
        Which of "q", "k", "v" are adapted in a fused attention projection, each with its own factors; none: one pair of
        factors, three times as wide, for all three.
    magnitude : bool
        Train the length of each row of the changed weight apart from its direction (DoRA).
    """

    rank: int | None
    alpha: float | None = None
    form: str = "window"
    first: str = "kaiming"
    gates: str | None = None
    fused: tuple[str, ...] = ("q", "k", "v")
    magnitude: bool = False


class Factors(nn.Module):
    """Factors of one block of rows.

    Parameters
    ----------
    rows, columns : int
        Size of the change as a matrix.
    inner : int
        Inner size: the rank in the window form, rank * kernel size in the loralib form.
    scale : float
        Factor of the change.
    design : Design
        First values and gates.
    weight : torch.Tensor
        The block of the weight as a matrix, (rows, columns); in the loralib form of another shape and not looked at.
    """

    def __init__(self, rows: int, columns: int, inner: int, scale: float, design: Design, weight: torch.Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(weight.new_empty(inner, columns))
        self.B = nn.Parameter(weight.new_zeros(rows, inner))
        # Kaiming-uniform with a = sqrt(5), bound 1 / sqrt(columns), as in microsoft/LoRA; B = 0 makes the change 0.
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if design.first == "pca":
            _set_to_directions(self.A, weight)
        elif design.first == "normal":
            nn.init.normal_(self.A, std=NORMAL)
            nn.init.normal_(self.B, std=NORMAL)
        self.v = None
        if design.gates is not None:
            uniform = design.gates == "uniform"
            first = (
                weight.new_empty(inner).uniform_(-1, 1) if uniform else weight.new_full((inner,), GATES[design.gates])
            )
            self.v = nn.Parameter(first)

    def added_to(self, matrix: torch.Tensor) -> torch.Tensor:
        """The block with its change, both (rows, columns); in place, since the change may be as large as the network."""
        right = self.A if self.v is None else self.v[:, None] * self.A
        change = self.B @ right
        if self.scale != 1.0:
            change.mul_(self.scale)
        return change.add_(matrix)

    def importance(self) -> torch.Tensor:
        """|v_i| ||A_i|| ||B_i|| of each component, (inner,), without gradient (our choice, see `arena.py`)."""
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


class LowRank(Composed):
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
        fused = is_fused(name, layer)
        third, blocks = rows, {WHOLE: 0}
        if fused and design.fused:
            third = rows // 3
            blocks = {block: i * third for i, block in enumerate(("q", "k", "v")) if block in design.fused}
        self.starts = blocks
        self.asked = max(1, third // 2) if design.rank is None else design.rank
        if fused and not design.fused and design.rank is not None:
            self.asked *= 3
        self.rank = min(self.asked, third, columns)
        kernel = _loralib_kernel(name, layer, design) if design.form == "loralib" else None
        height, width, inner = third, columns, self.rank
        if kernel is not None:
            # A (r k, C_in/g k), B (C_out k^(d-1), r k); the product is read as the weight in memory order.
            height, width, inner = shape[0] * kernel ** (len(shape) - 3), shape[1] * kernel, self.rank * kernel
        weight = layer.weight.detach()
        matrix = (weight.transpose(0, 1) if self.transposed else weight).reshape(rows, columns)
        self.height = rows if kernel is None else height
        scale = 1.0 if design.alpha is None else design.alpha / (design.rank or self.asked)
        self.blocks = nn.ModuleDict(
            {
                block: Factors(height, width, inner, scale, design, matrix[start : start + third])
                for block, start in blocks.items()
            }
        )
        self.m = nn.Parameter(self._lengths(weight)) if design.magnitude else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """W0 -> W0 + change, its rows set to the length m where that is trained."""
        with in_full_precision(weight):
            changed = self._changed(weight)
            if self.m is None:
                return changed
            # The length is a constant in the gradient, as published (DoRA, section 4.3).
            factor = self.m / self._lengths(changed.detach()).clamp(min=_SMALLEST)
            return changed * factor.reshape([-1 if d == self.transposed else 1 for d in range(len(self.shape))])

    def _lengths(self, weight: torch.Tensor) -> torch.Tensor:
        """Length of the weights of each output channel."""
        return torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != self.transposed])

    def _changed(self, weight: torch.Tensor) -> torch.Tensor:
        """W0 + change, in the weight's shape."""
        matrix = (weight.transpose(0, 1) if self.transposed else weight).reshape(self.height, -1)
        if WHOLE in self.blocks:
            matrix = self.blocks[WHOLE].added_to(matrix)
        else:
            thirds = zip("qkv", matrix.chunk(3), strict=True)
            matrix = torch.cat([self.blocks[b].added_to(rows) if b in self.blocks else rows for b, rows in thirds])
        if self.transposed:
            return matrix.reshape(self.shape[1], self.shape[0], *self.shape[2:]).transpose(0, 1).contiguous()
        return matrix.reshape(self.shape)

    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors by key suffix: "A", "B", "v", or "A.k" and so on for a block of a fused projection, and "m"."""
        found = {
            suffix if block == WHOLE else f"{suffix}.{block}": tensor
            for block, factors in self.blocks.items()
            for suffix, tensor in factors.tensors().items()
        }
        return found if self.m is None else {**found, "m": self.m}


@torch.no_grad()
def _set_to_directions(rows: torch.Tensor, weight: torch.Tensor) -> None:
    """Set rows of A to the principal directions of a weight; rows beyond their number stay.

    The thesis (Table 5.1, "PCA") gives no formula; to centre over the output channels is our choice.
    """
    count = min(len(rows), len(weight) - 1, weight.shape[1])
    if count > 0:
        directions = torch.linalg.svd(weight - weight.mean(dim=0), full_matrices=False).Vh
        rows[:count] = directions[:count]


def _loralib_kernel(name: str, layer: nn.Module, design: Design) -> int | None:
    """Kernel size for the loralib form; None where the layer has the window form in both."""
    if not isinstance(layer, CONVOLUTIONS):
        return None
    if design.first == "pca":
        raise BadInput(
            "The first value 'pca' needs the form 'window': the form 'loralib' has no directions of the weight.",
            "Choose the form 'window', or the first value 'kaiming'.",
        )
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
    return {name: module for name, module in outside(network, anatomy, trained).items() if isinstance(module, kinds)}


def select_layers(
    network: nn.Module, anatomy: Anatomy, layers: str, trained: tuple[str, ...] = ()
) -> dict[str, nn.Module]:
    """The layers that the option `layers` names, as in `layers.choose_layers`.

    "auto" means the fused q-k-v projections of the encoder where there are any ("qkv"), else the encoder's convolutions.
    Transposed convolutions are adapted only where an expression matches them.

    Parameters
    ----------
    trained : tuple of str
        Prefixes of what is trained outright and needs no adapter.
    """
    adaptable = adaptable_layers(network, anatomy, trained)
    named = {n: m for n, m in adaptable.items() if not isinstance(m, TRANSPOSED)}
    fused = any(is_fused(n, m) and is_part(n, anatomy.encoder) for n, m in named.items())
    if layers == "auto" and not fused:
        named = {n: m for n, m in named.items() if isinstance(m, CONVOLUTIONS)}
    auto = "qkv" if fused else "encoder"
    return choose_layers(network, anatomy, layers, named, by_pattern=adaptable, auto=auto)


def add_low_rank(network: nn.Module, layers: dict[str, nn.Module], design: Design) -> dict[str, Composed]:
    """Add a low-rank change to each layer's weight, in place; returns the changes by plain parameter name."""
    changes: dict[str, Composed] = {f"{name}.weight": LowRank(name, layer, design) for name, layer in layers.items()}
    compose(network, changes)
    return changes
