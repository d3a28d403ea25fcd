"""The layers of a network that can be looked into, in the order in which they run, and how their outputs are read.

Listed are convolutions (an adapter's own among them), residual blocks (what goes on from them is not what their last
convolution gives) and the stages of Swin transformers; any other module that holds a convolution and gives a feature map can
be named too. Token sequences and pooled vectors are no maps and are left out.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from peftseg.adapters.beside import CONTAINER
from peftseg.errors import BadInput
from peftseg.infer import ready
from peftseg.networks import Anatomy, is_part, is_slicewise, per_axis

KINDS = ("encoder", "adapter", "decoder", "head", "other")
TRIVIAL = "trivial: this is the logit"
WHOLE_ADAPTER = "adapter"  # in the name of an adapter's module as a whole
SHOWN = 40  # names in an error
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
RESIDUAL = re.compile(r"(Res(idual)?(SE)?Block|^BasicBlockD|^BottleneckD)$")
Watch = Callable[[torch.Tensor], "torch.Tensor | None"]


@dataclass(frozen=True)
class Layer:
    """A layer that gives a feature map.

    Attributes
    ----------
    name : str
        As in `named_modules()`; an adapter's own layer is `<host>::<layer>`, as in the keys of the adapter file.
    module : str
        As in `named_modules()`.
    kind : str
        One of `KINDS`.
    channels : int
        Of its output.
    stride : tuple of int
        Voxels of the network's input a voxel of its output, along each axis.
    trivial : bool
        Whether its output is the logits, so that a map of it is the segmentation over again.
    adapted : bool
        Whether an adapter changes its weights.
    listed : bool
        Whether it is shown in lists and taken by "all layers".
    """

    name: str
    module: str
    kind: str
    channels: int
    stride: tuple[int, int, int]
    trivial: bool = False
    adapted: bool = False
    listed: bool = True

    @property
    def note(self) -> str:
        """What a reader must know about a map of this layer, or ""."""
        return TRIVIAL if self.trivial else ""


def list_layers(network: nn.Module, anatomy: Anatomy, device: torch.device | None = None) -> list[Layer]:
    """All layers that can be looked into, in the order in which they finish; those with `listed` are for lists.

    Runs the network once on a small empty window. Modules that do not run are not found.

    Parameters
    ----------
    network : nn.Module
        (B, 1, *window) -> (B, n, *window) logits; an adapter may be attached, not merged.
    anatomy : Anatomy
        Of the network.
    device : torch.device, optional
        The processor by default.
    """
    device = device or torch.device("cpu")
    window = tuple(2 * n for n in per_axis(anatomy.divisor))
    found: dict[str, Layer] = {}
    candidates = {name: module for name, module in network.named_modules() if _may_give_maps(name, module, anatomy)}

    def look(name: str) -> Watch:
        def note(output: torch.Tensor) -> None:
            layer = _layer(name, candidates[name], output, window, anatomy)
            if layer is not None:
                found.setdefault(name, layer)

        return note

    with ready(network, device, "fp32") as forward, watched(network, {name: look(name) for name in candidates}):
        forward(torch.zeros((1, 1, *window), device=device))
    return list(found.values())


def choose(layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """Layers by name, in network order; BadInput lists what there is, with the closest names, for an unknown one."""
    by_name = {alias: layer for layer in layers for alias in (layer.module, layer.name)}
    for name in names:
        if name not in by_name:
            raise _unknown(name, layers)
    wanted = {by_name[name].name for name in names}
    return [layer for layer in layers if layer.name in wanted]


def default_layer(layers: Sequence[Layer]) -> Layer:
    """The last listed layer that is not trivial: the features that the head reads."""
    telling = [layer for layer in layers if layer.listed and not layer.trivial]
    own = [layer for layer in telling if layer.kind != "adapter"]
    if not telling:
        raise BadInput("This network has no layer whose output is a map.", "Choose another model.")
    return (own or telling)[-1]


@contextlib.contextmanager
def watched(network: nn.Module, watches: Mapping[str, Watch]) -> Iterator[None]:
    """Call a function with the output of modules, as (B, C, I, J, K), each time they run.

    What the function returns, if anything, goes on through the network in the output's place. The hooks are removed
    whatever happens inside.

    Parameters
    ----------
    watches : mapping
        Module name -> function of the output.
    """
    slicewise = is_slicewise(network)
    with contextlib.ExitStack() as stack:
        for name, watch in watches.items():
            handle = network.get_submodule(name).register_forward_hook(_hook(watch, slicewise))
            stack.callback(handle.remove)
        yield


def _hook(watch: Watch, slicewise: bool) -> Callable:
    def call(module: nn.Module, inputs: tuple, output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            return None
        stacked = slicewise and output.ndim == 4  # (K, C, I, J): the slices of one window
        answer = watch(output.movedim(0, -1)[None] if stacked else output)
        return answer[0].movedim(-1, 0) if stacked and answer is not None else answer

    return call


def _may_give_maps(name: str, module: nn.Module, anatomy: Anatomy) -> bool:
    """Whether a module is worth tracing: a convolution, or what holds one, but for the parts inside of a head."""
    if not name or name == CONTAINER:
        return False
    if name != anatomy.head and is_part(name, (anatomy.head,)):
        return False
    return name == anatomy.head or _is_stage(module) or any(isinstance(m, CONVOLUTIONS) for m in module.modules())


def _is_stage(module: nn.Module) -> bool:
    """A stage of a Swin transformer: the one module of it that gives channels before voxels."""
    return type(module).__name__ == "BasicLayer" and type(module).__module__ == "monai.networks.nets.swin_unetr"


def _is_block(module: nn.Module) -> bool:
    """A residual block, of MONAI, nnU-Net or this package."""
    return RESIDUAL.search(type(module).__name__) is not None


def _layer(
    name: str, module: nn.Module, output: torch.Tensor, window: tuple[int, ...], anatomy: Anatomy
) -> Layer | None:
    """The record of a module by its output (1, C, *S); None where this is no map of the window."""
    sizes = tuple(output.shape[2:])
    if output.ndim != 5 or output.shape[0] != 1 or any(s < 2 or w % s for s, w in zip(sizes, window, strict=True)):
        return None
    trivial = is_part(anatomy.head, (name,)) or bool(anatomy.head_norm and is_part(anatomy.head_norm, (name,)))
    beside = name.startswith(f"{CONTAINER}.")
    return Layer(
        name=_shown_name(name) if beside else name,
        module=name,
        kind="head" if trivial else "adapter" if beside else _part(name, anatomy),
        channels=output.shape[1],
        stride=tuple(w // s for s, w in zip(sizes, window, strict=True)),
        trivial=trivial,
        adapted=parametrize.is_parametrized(module),
        listed=name == anatomy.head or isinstance(module, CONVOLUTIONS) or _is_block(module) or _is_stage(module),
    )


def _part(name: str, anatomy: Anatomy) -> str:
    if is_part(name, anatomy.encoder):
        return "encoder"
    return "decoder" if is_part(name, anatomy.decoder) else "other"


def _shown_name(name: str) -> str:
    """`beside.down/0/conv.conv2` -> `down.0.conv::conv2`; `beside.down/0/conv` -> `down.0.conv::adapter`."""
    host, _, leaf = name.removeprefix(f"{CONTAINER}.").partition(".")
    return f"{host.replace('/', '.')}::{leaf or WHOLE_ADAPTER}"


def _unknown(name: str, layers: Sequence[Layer]) -> BadInput:
    every = [layer.name for layer in layers]
    listed = [layer.name for layer in layers if layer.listed]
    close = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
    hint = f" Closest: {', '.join(close)}." if close else ""
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return BadInput(
        f"Unknown layer '{name}'.{hint} Layers in network order: {', '.join(listed[:SHOWN])}{more}.",
        "Choose one of these; `peftseg inspect layers` lists them all.",
    )
