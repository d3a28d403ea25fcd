"""Methods that adapt a network. Importing this package does not import torch; attaching does.

`table` lists the methods; each is one file with one function `attach`. What they cite is in Docs/references.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peftseg.adapters.table import (
    AUTO,
    METHODS,
    MethodInfo,
    Option,
    check_options,
    learning_rates,
    method_info,
    saved_options,
)
from peftseg.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftseg.adapters.base import Attached
    from peftseg.networks import Anatomy

__all__ = [
    "AUTO",
    "METHODS",
    "MethodInfo",
    "Option",
    "attach",
    "attach_saved",
    "check_options",
    "learning_rates",
    "method_info",
]


def attach(
    network: nn.Module, anatomy: Anatomy, method: str, options: dict[str, Any], train_decoder: bool = False
) -> Attached:
    """Freeze a network and add a method's trainable part, in place.

    Parameters
    ----------
    network : nn.Module
        Plain network with the head that the structures need.
    anatomy : Anatomy
        Where its parts are.
    method : str
        Name in `METHODS`.
    options : dict
        The method's options; what is left out gets its default.
    train_decoder : bool
        Train the decoder's weights too, where the method leaves the choice. linear_probe and spatial_adapter never
        train it, decoder and full always do, and selective trains what its option `layers` says.

    Raises
    ------
    BadInput
        For unknown methods and options, layers that do not exist, and a network that already has an adapter.
    """
    checked = check_options(method, options)
    if method == AUTO:
        raise BadInput(
            "The method 'auto' cannot be attached: it chooses another one by the labelled scans.",
            "Use `peftseg adapt`, or name a method.",
        )
    attached = import_module(method_info(method).module).attach(network, anatomy, checked, train_decoder)
    attached.share_at_start = attached.trained_share()
    return attached


def attach_saved(
    network: nn.Module,
    anatomy: Anatomy,
    method: str,
    options: dict[str, Any],
    train_decoder: bool,
    state: dict[str, torch.Tensor],
) -> Attached:
    """Attach a trained adapter; ranks of pruned layers are taken from the shapes of the saved tensors.

    Parameters
    ----------
    state : dict
        What `Attached.state` returned. The other parameters are those of `attach`.

    Raises
    ------
    BadInput
        As `attach` does, and for foreign, missing or misshapen tensors; the network is then of no further use.
    """
    attached = attach(network, anatomy, method, saved_options(method, options), train_decoder)
    attached.fit_to(state)
    attached.load_state(state)
    return attached
