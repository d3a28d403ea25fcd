"""What goes into a base's first batch normalisations when it looks at a scan: the torch half of `site_statistics.py`.

Low-level appearance - contrast, noise, sharpness - shows in the first layers; so the first `MOST_CHANNELS` channels of the
encoder are enough, the numbers stay few, and the rest of the network need not run.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from peftseg.adabn import running_norms
from peftseg.device import within_memory
from peftseg.events import Reporter
from peftseg.infer import ready
from peftseg.models import ModelEntry, Preprocessing
from peftseg.networks import Anatomy, is_part, per_axis
from peftseg.preprocess import Prepared, prepare
from peftseg.scan_statistics import GREY, grey_quantiles
from peftseg.site_statistics import MOST_CHANNELS, Moments, ScanStatistics, measure_scan, site_record
from peftseg.volume import Volume
from peftseg.weights import load_base

MOST_WINDOWS = 8


class _Enough(Exception):
    """All watched layers have been seen: the forward pass need not go on."""


def watched_layers(network: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """The encoder's first normalisations by running statistics, with at most `MOST_CHANNELS` channels together.

    None in networks that normalise by groups, instances or layers, or by the batch's statistics at all times.
    """
    found: list[nn.Module] = []
    channels = 0
    for name, module in running_norms(network).items():
        if not is_part(name, anatomy.encoder):
            continue
        channels += module.num_features
        if channels > MOST_CHANNELS:
            break
        found.append(module)
    return found


def running_moments(network: nn.Module, anatomy: Anatomy) -> tuple[Moments, ...]:
    """The running statistics of the watched layers: what a base knows of its own training scans."""
    return tuple(
        (layer.running_mean.cpu().double().numpy(), layer.running_var.cpu().double().numpy())
        for layer in watched_layers(network, anatomy)
    )


def describe_site(
    entry: ModelEntry, volumes: Sequence[Volume], recipe: Preprocessing, device: torch.device, reporter: Reporter
) -> dict[str, Any]:
    """What an adapter's or a model's record keeps of its scans under "site", measured with the base as it is.

    Parameters
    ----------
    volumes : sequence of Volume
        One or more, as they were read.
    recipe : Preprocessing
        The adapter's own.
    """
    network, anatomy = load_base(entry)
    return site_record(
        [statistics_of(volume, recipe, network, anatomy, entry.window, device, reporter) for volume in volumes]
    )


def statistics_of(
    volume: Volume,
    recipe: Preprocessing,
    network: nn.Module,
    anatomy: Anatomy,
    window: Sequence[int],
    device: torch.device,
    reporter: Reporter,
    prepared: Prepared | None = None,
) -> ScanStatistics:
    """Prepare and measure one scan.

    Parameters
    ----------
    network : nn.Module
        The base as it is; with an adapter attached only before anything of it was trained.
    window : sequence of int
        The base's window in voxels of the model grid.
    prepared : Prepared, optional
        What `prepare` makes of the volume, where it was done before.
    """
    prepared = prepare(volume, recipe) if prepared is None else prepared
    layers = _moments(network, anatomy, prepared, window, device, reporter)
    return measure_scan(volume, prepared, recipe, layers)


def with_other_grey_values(
    statistics: ScanStatistics,
    prepared: Prepared,
    network: nn.Module,
    anatomy: Anatomy,
    window: Sequence[int],
    device: torch.device,
    reporter: Reporter,
) -> ScanStatistics:
    """A measured scan's statistics where `prepared` differs in its grey values only; parameters as of `statistics_of`."""
    layers = _moments(network, anatomy, prepared, window, device, reporter)
    return replace(statistics, features={**statistics.features, GREY: grey_quantiles(prepared)}, layers=layers)


def _moments(
    network: nn.Module,
    anatomy: Anatomy,
    prepared: Prepared,
    window: Sequence[int],
    device: torch.device,
    reporter: Reporter,
) -> tuple[Moments, ...]:
    """As `layer_moments`; on the processor where the device's memory does not suffice."""
    reporter.check()

    def run(place: torch.device) -> tuple[Moments, ...]:
        return layer_moments(network, anatomy, prepared, window, place, reporter)

    return within_memory(run, device, f"A scan of {prepared.source.describe()}", reporter)


def layer_moments(
    network: nn.Module,
    anatomy: Anatomy,
    prepared: Prepared,
    window: Sequence[int],
    device: torch.device,
    reporter: Reporter,
) -> tuple[Moments, ...]:
    """Mean and variance over voxels of each channel that goes into the watched layers, over windows spread over the scan.

    Returns
    -------
    tuple of (means, variances)
        float64 vectors, one pair a layer, in the order of `watched_layers`.
    """
    layers = watched_layers(network, anatomy)
    if not layers:
        return ()
    sums = {layer: [0.0, 0.0, 0] for layer in layers}
    with ready(network, device, "fp32") as forward, _watching(sums):
        for part in _windows(prepared, window, per_axis(anatomy.divisor)):
            reporter.check()
            with contextlib.suppress(_Enough):
                forward(part[None].to(device))
    found = []
    for total, squares, count in sums.values():
        mean = total / count
        found.append((mean.numpy(), (squares / count - mean**2).clamp(min=0).numpy()))
    return tuple(found)


@contextlib.contextmanager
def _watching(sums: dict[nn.Module, list]) -> Iterator[None]:
    """Add up what goes into layers; the forward pass ends once all were reached."""
    seen: set[nn.Module] = set()

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].detach()
        x = x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64
        x = x.double().transpose(0, 1).flatten(1)  # (C, voxels)
        entry = sums[layer]
        entry[0] = entry[0] + x.sum(1).cpu()
        entry[1] = entry[1] + (x**2).sum(1).cpu()
        entry[2] += x.shape[1]
        seen.add(layer)
        if len(seen) == len(sums):
            seen.clear()
            raise _Enough

    handles = [layer.register_forward_pre_hook(look) for layer in sums]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _windows(prepared: Prepared, window: Sequence[int], step: tuple[int, int, int]) -> Iterator[torch.Tensor]:
    """Up to `MOST_WINDOWS` parts (1, *size) spread evenly; sides are multiples of `step`, cropped rather than padded."""
    image = prepared.image
    sizes = [max(s, min(w, n) // s * s) for n, w, s in zip(image.shape[1:], window, step, strict=True)]
    short = [max(0, size - n) for n, size in zip(image.shape[1:], sizes, strict=True)]
    if any(short):
        image = functional.pad(image, [0, short[2], 0, short[1], 0, short[0]], value=prepared.background)
    starts = [_spread(n, size) for n, size in zip(image.shape[1:], sizes, strict=True)]
    places = list(itertools.product(*starts))
    count = min(MOST_WINDOWS, len(places))
    for place in (places[int((n + 0.5) * len(places) / count)] for n in range(count)):
        yield image[(slice(None), *(slice(a, a + size) for a, size in zip(place, sizes, strict=True)))]


def _spread(length: int, size: int) -> list[int]:
    """First voxels of the fewest windows of a size that cover a length; a single one lies in the middle."""
    count = -(-length // size)
    if count == 1 or length - size < size // 2:  # the border that a second window would add is narrow
        return [(length - size) // 2]
    return np.linspace(0, length - size, count).round().astype(int).tolist()
