"""Which layers a method adapts: one option with the same names for all methods.

A name is a region of the network, whatever the method (`region`). Of the modules in it a method adapts the kinds that it
can: convolutions, linear layers, normalisation, biases.
"""

from __future__ import annotations

import math
import re

from torch import nn

from peftseg.adapters.options import PROTO_SEG, failing_names
from peftseg.errors import BadInput
from peftseg.networks import Anatomy, is_part

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
REGIONS = ("qkv", "attention", "transformer", "encoder", "decoder", "last_block", "all")
NAMES = ("auto", *REGIONS)
_LISTED = 20
_PATTERN = "a regular expression that matches whole layer names"
_REMEDY = f"Use {', '.join(NAMES)}, or {_PATTERN}."


def region(network: nn.Module, anatomy: Anatomy, name: str) -> tuple[str, ...] | None:
    """The part of a network that a name of the option `layers` stands for, the same for all methods.

    | name | modules, with all that is in them |
    |---|---|
    | qkv | `attn.qkv` of the encoder: the fused projections to query, key and value |
    | attention | `attn` of the encoder: these, the projection back, and the table of relative positions |
    | transformer | the encoder's modules that have an `attn`: attention, MLP and their normalisation |
    | encoder, decoder | those of the anatomy |
    | last_block | the decoder's last block, see `last_block` |
    | all | everything but the head |

    Returns
    -------
    tuple of str or None
        Names of modules, none where the network has no such part; None for all.
    """
    names = [n for n, _ in network.named_modules() if is_part(n, anatomy.encoder)]
    attention = tuple(n for n in names if n.rpartition(".")[2] == "attn")
    found = {
        "qkv": tuple(n for n in names if n.rpartition(".")[0] in attention and n.endswith(".qkv")),
        "attention": attention,
        "transformer": tuple(b for b in transformer_blocks(network) if is_part(b, anatomy.encoder)),
        "encoder": anatomy.encoder,
        "decoder": anatomy.decoder,
    }
    if name == "last_block":
        return tuple(filter(None, (last_block(network, anatomy),)))
    return None if name == "all" else found[name]


def choose_layers(
    network: nn.Module,
    anatomy: Anatomy,
    layers: str,
    adaptable: dict[str, nn.Module],
    *,
    by_pattern: dict[str, nn.Module] | None = None,
    auto: str = "encoder",
) -> dict[str, nn.Module]:
    """The layers that the option `layers` names, of those that a method can adapt.

    Parameters
    ----------
    layers : str
        A region (`region`); "auto": what suits the method; "proto-seg:" and names: see `failing_option`; anything else: a
        regular expression that matches whole names.
    adaptable : dict
        Layers that the names choose from.
    by_pattern : dict, optional
        Layers that an expression chooses from, where they are more.
    auto : str
        The region that "auto" stands for.

    Raises
    ------
    BadInput
        When nothing matches; lists layers that can be adapted. "proto-seg" without names.
    """
    by_pattern = adaptable if by_pattern is None else by_pattern
    name = auto if layers == "auto" else layers
    failing = failing_names(layers)
    if failing is not None:
        chosen = _of_failing(network, by_pattern, failing)
    elif name == PROTO_SEG:
        raise BadInput(
            f"The layers '{PROTO_SEG}' are chosen by labelled scans, and there are none here.",
            f"Use `peftseg adapt`. {_REMEDY}",
        )
    elif name in REGIONS:
        chosen = _inside(adaptable, region(network, anatomy, name))
    else:
        chosen = _matching(by_pattern, name)
    if not chosen:
        raise _nothing_fits(network, anatomy, layers, name, adaptable, by_pattern)
    return chosen


def outside(network: nn.Module, anatomy: Anatomy, trained: tuple[str, ...]) -> dict[str, nn.Module]:
    """All modules by name but the network itself, its head, and those under the prefixes that are trained outright."""
    return {n: m for n, m in network.named_modules() if n and not is_part(n, (anatomy.head, *trained))}


def conv_blocks(network: nn.Module) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """The network's blocks of convolutions: name -> input channels, output channels, stride along each axis.

    A block is the smallest module that runs two or more convolutions wider than one voxel, one after the other; a
    wrapper around nothing but a block counts as the block (a residual block around its path).
    """
    parents: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        for prefix in _prefixes_of(name) if _is_wide(module) else ():
            parents.setdefault(prefix, []).append(name)
    several = [n for n, inside in parents.items() if len(inside) > 1 and _runs_in_a_row(network.get_submodule(n))]
    smallest = [name for name in several if not any(n != name and is_part(n, (name,)) for n in several)]
    found = {}
    for name in smallest:
        convolutions = [network.get_submodule(n) for n in parents[name]]
        stride = tuple(math.prod(axis) for axis in zip(*(c.stride for c in convolutions), strict=True))
        found[_outermost(network, name)] = (convolutions[0].in_channels, convolutions[-1].out_channels, stride)
    return found


def last_block(network: nn.Module, anatomy: Anatomy) -> str:
    """Name of the decoder's last block: of convolutions, or where it has none, its last convolution.

    Modules are taken in the order in which they were registered, which is the order of running in all our networks.
    """
    blocks = [name for name in conv_blocks(network) if is_part(name, anatomy.decoder)]
    kinds = (*CONVOLUTIONS, *TRANSPOSED)
    single = [n for n, m in network.named_modules() if isinstance(m, kinds) and is_part(n, anatomy.decoder)]
    return (blocks or single or [""])[-1]


def transformer_blocks(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that have a part `attn`."""
    return tuple(name for name, module in network.named_modules() if "attn" in module._modules)


def _inside(adaptable: dict[str, nn.Module], prefixes: tuple[str, ...] | None) -> dict[str, nn.Module]:
    return {n: m for n, m in adaptable.items() if prefixes is None or is_part(n, prefixes)}


def _nothing_fits(
    network: nn.Module,
    anatomy: Anatomy,
    layers: str,
    name: str,
    adaptable: dict[str, nn.Module],
    by_pattern: dict[str, nn.Module],
) -> BadInput:
    """The error of a value of `layers` (region or expression `name`) in which there is nothing for the method."""
    where = ""
    if name in REGIONS:
        prefixes = region(network, anatomy, name)
        where = (
            " (this network has none)" if prefixes == () else f" (here {_listed(prefixes or ('the whole network',))})"
        )
    message = (
        f"No layer that this method can adapt fits layers '{layers}'{where}; layers that can be adapted: "
        f"{_listed(list(by_pattern))}."
    )
    if not by_pattern:
        return BadInput(message, "Choose another method: this one finds nothing to adapt here.")
    fitting = [n for n in REGIONS if _inside(adaptable, region(network, anatomy, n))]
    return BadInput(message, f"Use {', '.join([*fitting, ''])}{'or ' if fitting else ''}{_PATTERN}.")


def _listed(names: list[str] | tuple[str, ...]) -> str:
    """The first few names."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED]) or 'none'}{more}"


def _of_failing(network: nn.Module, adaptable: dict[str, nn.Module], failing: list[str]) -> dict[str, nn.Module]:
    """What a method adapts of failing layers: these, what is inside of them, and the block around one.

    Of a layer in which there is nothing for the method it takes what it adapts in the layer's block, such as normalisation.
    """
    known = {name for name, _ in network.named_modules() if name}
    unknown = [name for name in failing if name not in known]
    if unknown:
        raise BadInput(f"This network has no layer '{unknown[0]}', which layers '{PROTO_SEG}' names.", _REMEDY)
    own = {layer: [n for n in adaptable if is_part(n, (layer,)) or is_part(layer, (n,))] for layer in failing}
    bare = [layer for layer, found in own.items() if not found]
    blocks = tuple(b for b in (conv_blocks(network) if bare else ()) if any(is_part(layer, (b,)) for layer in bare))
    chosen = {name for found in own.values() for name in found}
    return {n: m for n, m in adaptable.items() if n in chosen or is_part(n, blocks)}


def _matching(adaptable: dict[str, nn.Module], pattern: str) -> dict[str, nn.Module]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"layers '{pattern}' is not a regular expression ({error}).", _REMEDY) from error
    return {name: module for name, module in adaptable.items() if expression.fullmatch(name)}


def _runs_in_a_row(module: nn.Module) -> bool:
    """Not a mere list, and nothing that enlarges between the convolutions."""
    listed = isinstance(module, (nn.ModuleList, nn.ModuleDict))
    return not listed and not any(isinstance(m, TRANSPOSED) for m in module.modules())


def _is_wide(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and max(module.kernel_size) > 1


def _prefixes_of(name: str) -> list[str]:
    """The names of the modules around a module, without the network itself."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _outermost(network: nn.Module, name: str) -> str:
    """The outermost module that has no other convolutions than this one and is no plain sequence around it."""
    inside = _convolutions_in(network.get_submodule(name))
    while "." in name:
        parent = name.rpartition(".")[0]
        around = network.get_submodule(parent)
        if isinstance(around, (nn.Sequential, nn.ModuleList)) or _convolutions_in(around) != inside:
            break
        name = parent
    return name


def _convolutions_in(module: nn.Module) -> int:
    return sum(isinstance(m, (*CONVOLUTIONS, *TRANSPOSED)) for m in module.modules())
