"""What adaptation without labels may change of a network: low-rank changes or weights of its encoder, and running statistics.

The base's head stays, and the normalisation behind it, too (ConvLoRA's published U-Net ends with one); the other methods
replace the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftseg.adabn import running_norms, statistics_names
from peftseg.adapters.base import Attached
from peftseg.adapters.composed import Composed
from peftseg.adapters.convlora import norms_beside
from peftseg.adapters.freezing import NORMS, freeze, kind_of
from peftseg.adapters.layers import CONVOLUTIONS
from peftseg.adapters.low_rank import Design, add_low_rank
from peftseg.early_levels import find_levels, reaching
from peftseg.errors import BadInput
from peftseg.networks import Anatomy

EARLY = "early_head."
EARLY_SUFFIX = "::early"


def attach_site(network: nn.Module, anatomy: Anatomy, options: dict[str, Any]) -> Attached:
    """Freeze a base and add what the options say, in place.

    Parameters
    ----------
    network : nn.Module
        The base as it is.
    options : dict
        From `site_options.resolve_levels`.

    Returns
    -------
    Attached
        Its state holds running means and variances where they are adapted (any `adabn` but "none").

    Raises
    ------
    BadInput
        The encoder has nothing to adapt down to the depth, or the network has an adapter already.
    """
    norms = running_norms(network)
    live = tuple(norms) if options["bn_mode"] == "batch" and options["train"] != "none" else ()
    statistics = statistics_names(network) if options["adabn"] != "none" else ()
    every = {name: module for name, module in network.named_modules() if isinstance(module, NORMS)}
    names = _reached(network, anatomy, options)
    layers = _convolutions(network, names) if options["train"] == "convlora" else {}
    also = _trained(network, anatomy, options, names, layers, every)
    trained = freeze(network, anatomy, (), also, live)
    return Attached(network, trained, _add(network, layers, options), statistics=statistics)


def _reached(network: nn.Module, anatomy: Anatomy, options: dict[str, Any]) -> set[str]:
    """Parameters of the encoder down to the depth."""
    if options["depth"] is None:
        return set()
    return reaching(network, anatomy, find_levels(network, anatomy)[options["depth"]])


def _convolutions(network: nn.Module, names: set[str]) -> dict[str, nn.Module]:
    found = {n: m for n, m in network.named_modules() if isinstance(m, CONVOLUTIONS) and f"{n}.weight" in names}
    if not found:
        raise BadInput(
            "The encoder of this network has no convolution down to this depth: ConvLoRA finds nothing to adapt.",
            "Set train=encoder, or a larger depth.",
        )
    return found


def _trained(
    network: nn.Module,
    anatomy: Anatomy,
    options: dict[str, Any],
    names: set[str],
    layers: dict[str, nn.Module],
    norms: dict[str, nn.Module],
) -> dict[str, str]:
    """Parameters that train outright, name -> kind."""
    if options["train"] == "convlora":
        return norms_beside(network, layers, norms) if options["train_norm"] else {}
    if options["train"] == "network":
        names = {name for name, _ in network.named_parameters()}
    return {name: kind_of(name, anatomy, set(norms)) for name in sorted(names)}


def _add(network: nn.Module, layers: dict[str, nn.Module], options: dict[str, Any]) -> dict[str, Composed]:
    """Add the low-rank changes; the form `auto` is loralib where it can be."""
    changes: dict[str, Composed] = {}
    for form in ("loralib", "window"):
        own = {name: layer for name, layer in layers.items() if _form(layer, options["form"]) == form}
        changes |= add_low_rank(network, own, Design(rank=options["rank"], alpha=options["alpha"], form=form))
    return {f"{name}.weight": changes[f"{name}.weight"] for name in layers}


def _form(layer: nn.Module, form: str) -> str:
    if form != "auto":
        return form
    return "loralib" if len(set(layer.kernel_size)) == 1 else "window"


def attach_site_saved(
    network: nn.Module, anatomy: Anatomy, options: dict[str, Any], state: dict[str, torch.Tensor]
) -> Attached:
    """Attach a trained site adapter; the early head in its state is left aside.

    Raises
    ------
    BadInput
        As `attach_site`, and for foreign, missing or misshapen tensors.
    """
    attached = attach_site(network, anatomy, options)
    attached.load_state({key: tensor for key, tensor in state.items() if not key.endswith(EARLY_SUFFIX)})
    return attached


def early_to_state(head: nn.Module) -> dict[str, torch.Tensor]:
    """An early head's tensors under the keys that they have in an adapter file."""
    return {f"{EARLY}{name}{EARLY_SUFFIX}": t.detach().cpu().contiguous() for name, t in head.state_dict().items()}


def early_from_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inverse of `early_to_state` on a whole adapter's state; empty where the adapter has no early head."""
    return {
        key.removeprefix(EARLY).removesuffix(EARLY_SUFFIX): t for key, t in state.items() if key.endswith(EARLY_SUFFIX)
    }
