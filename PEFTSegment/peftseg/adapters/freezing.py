"""Freezing: gradients *and* behaviour.

Frozen modules stay in eval mode when `train()` is called, so neither normalisation statistics nor dropout move under a
frozen network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from peftseg.adapters.beside import has_beside
from peftseg.errors import BadInput
from peftseg.networks import Anatomy, is_part

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def freeze(
    network: nn.Module,
    anatomy: Anatomy,
    kinds: Iterable[str],
    also: Mapping[str, str] | None = None,
    live: tuple[str, ...] = (),
) -> dict[str, str]:
    """Freeze a network but for the parameters of some kinds, in place.

    Kinds: "head", "decoder" (everything inside, normalisation too), "norm" (normalisation elsewhere), "body" (the
    rest). Where anything is frozen, normalisation statistics stay frozen everywhere and frozen parts stay in eval mode.

    Parameters
    ----------
    also : mapping, optional
        Further parameters to train, plain name -> kind they count as.
    live : tuple of str
        Normalisation layers whose statistics move in train mode all the same.

    Returns
    -------
    dict
        Plain names of the trainable parameters -> kind.
    """
    composed = any(parametrize.is_parametrized(module) or "train" in vars(module) for module in network.modules())
    if composed or has_beside(network):
        raise BadInput(
            "This network already has an adapter or another parametrisation.",
            "Load the foundation model again, or merge it first.",
        )
    chosen, also = set(kinds), also or {}
    norms = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
    trained = {}
    for name, parameter in network.named_parameters():
        kind = kind_of(name, anatomy, norms)
        kind = kind if kind in chosen else also.get(name)
        parameter.requires_grad_(kind is not None)
        if kind is not None:
            trained[name] = kind
    if not chosen >= {"norm", "body", "decoder", "head"}:
        parts = ((anatomy.head,) if "head" in chosen else ()) + (anatomy.decoder if "decoder" in chosen else ())
        _keep_in_eval(network, parts, live)
    return trained


def outright(train_decoder: bool) -> tuple[str, ...]:
    """Kinds that train outright beside a method that leaves the decoder open."""
    return ("head", "decoder") if train_decoder else ("head",)


def statistics_of(network: nn.Module, layers: Iterable[str] | None = None) -> tuple[str, ...]:
    """Names of the buffers (running statistics and counts) of normalisation layers, all or those named."""
    wanted = None if layers is None else set(layers)
    return tuple(
        f"{name}.{leaf}" if name else leaf
        for name, module in network.named_modules()
        if isinstance(module, NORMS) and (wanted is None or name in wanted)
        for leaf, _ in module.named_buffers(recurse=False)
    )


def kind_of(name: str, anatomy: Anatomy, norms: set[str]) -> str:
    """Kind of a parameter by its name; `norms` are the names of the normalisation layers."""
    if is_part(name, (anatomy.head,)):
        return "head"
    if is_part(name, anatomy.decoder):
        return "decoder"
    return "norm" if name.rpartition(".")[0] in norms else "body"


def _keep_in_eval(network: nn.Module, parts: tuple[str, ...], live: tuple[str, ...]) -> None:
    """Make `train()` leave everything outside `parts` and every running statistic but the live ones in eval mode.

    Bound methods on the modules themselves: they hold for calls on any sub-module and follow a deep copy.
    """
    for name, module in network.named_modules():
        if name in live:
            continue
        holds_trained = not name or any(is_part(part, (name,)) for part in (*parts, *live))
        if isinstance(module, _NormBase) or not (holds_trained or is_part(name, parts)):
            module.train = MethodType(_stay_in_eval, module)
            module.eval()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)
