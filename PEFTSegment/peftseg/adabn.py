"""AdaBN: batch normalisation by the statistics of another site's scans (Li et al. 2018).

The mean over all batches, as `torch.optim.swa_utils.update_bn` takes it. That function is not used because it leaves a
network half-changed when it is interrupted, puts dropout into training mode, and cannot blend.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from peftseg.errors import BadInput

MOVING = ("running_mean", "running_var")


def running_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Batch normalisations that use running statistics, by name; none in networks with group, instance or layer norms.

    A batch normalisation that uses each batch's statistics at all times (SuPreM's U-Net) is none of them: recalibrating
    it changes nothing.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and _uses_them(module)
    }


def _uses_them(module: nn.Module) -> bool:
    return type(module).forward is _BatchNorm.forward


def statistics_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the buffers that recalibration changes: running means and variances, not the count of batches."""
    return tuple(f"{name}.{leaf}".lstrip(".") for name in running_norms(network) for leaf in MOVING)


def copy_statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the running statistics, by buffer name."""
    return {name: network.get_buffer(name).detach().clone() for name in statistics_names(network)}


def restore_statistics(network: nn.Module, statistics: dict[str, torch.Tensor]) -> None:
    """Inverse of `copy_statistics`."""
    for name, tensor in statistics.items():
        network.get_buffer(name).copy_(tensor)


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Iterable[torch.Tensor],
    source_weight: float = 0.0,
    source: dict[str, torch.Tensor] | None = None,
) -> list[str]:
    """Give running statistics the mean over batches, in place; everything else stays in eval mode meanwhile.

    Parameters
    ----------
    network : nn.Module
        With or without an adapter; modes of all modules are restored at the end.
    batches : iterable of tensor (B, 1, *spatial)
        Of equal weight; moved to the network's device.
    source_weight : float
        Share of the source's statistics, 0 to 1.
    source : dict of str to tensor, optional
        The source's statistics, from `copy_statistics`; left out, those that are there before.

    Returns
    -------
    list of str
        Names of the recalibrated layers; empty where the network has none, and the batches are then not looked at.

    Raises
    ------
    BadInput
        There is no batch, or a statistic is not finite. Then, and when it is interrupted, all statistics are as before.
    """
    norms = running_norms(network)
    if not norms:
        return []
    own_before = copy_statistics(network)
    modes = {module: module.training for module in network.modules()}
    own = {norm: (norm.momentum, norm.num_batches_tracked.clone()) for norm in norms.values()}
    device = next(network.parameters()).device
    done = False
    try:
        network.eval()
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
            norm.training = True  # not `train()`, which frozen layers ignore
        count = 0
        for batch in batches:
            network(batch.to(device))
            count += 1
        _check(network, count)
        for name, tensor in (own_before if source is None else source).items():
            network.get_buffer(name).lerp_(tensor, source_weight)
        done = True
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, (momentum, tracked) in own.items():
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(tracked)
        if not done:
            restore_statistics(network, own_before)
    return list(norms)


def _check(network: nn.Module, count: int) -> None:
    if count == 0:
        raise BadInput("There is no scan to recalibrate normalisation with.", "Give at least one scan.")
    wrong = [name for name in statistics_names(network) if not bool(torch.isfinite(network.get_buffer(name)).all())]
    if wrong:
        raise BadInput(
            f"Statistics of {wrong[0]} are not finite on these scans.", "Look for extreme grey values in the scans."
        )
