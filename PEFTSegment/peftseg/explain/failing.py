"""Which layers of a model fail on a site's labelled scans: the option `layers` = "proto-seg" of all methods.

The base is looked into before it is adapted, with prototypes built by the labels: novel structures have no prediction. A
layer fails where its mean Segmentation Ability lies clearly below that of the layer before it: it loses what that one could
tell. Where none does, those below the median fail. Layers that are trained outright are left out.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peftseg.adapters.options import PROTO_SEG, failing_option
from peftseg.device import within_memory
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.explain.abilities import Ability
from peftseg.explain.inputs import masks_of
from peftseg.explain.layers import CONVOLUTIONS, Layer, list_layers
from peftseg.explain.proto_seg import proto_seg
from peftseg.explain.subject import Subject
from peftseg.explain.support import NOISE
from peftseg.models import Structure
from peftseg.networks import is_part
from peftseg.paths import write_text
from peftseg.preprocess import prepare
from peftseg.study import LoadedScan

FILE = "layers.json"  # beside the checkpoint: a job that goes on takes the layers that it began with


def with_failing_layers(
    options: Mapping[str, Any],
    subject: Subject,
    structures: Sequence[Structure],
    loaded: Sequence[LoadedScan],
    trained: tuple[str, ...],
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> dict[str, Any]:
    """The options of a method with the layers that fail on labelled scans in place of "proto-seg", by name.

    Parameters
    ----------
    subject : Subject
        The plain network, with the preprocessing of the training; it is on the processor afterwards.
    trained : tuple of str
        Prefixes of what is trained outright.

    Raises
    ------
    BadInput
        No layer gives a map, or no scan has labels by which an ability is defined.
    """
    path = None if reporter.checkpoint is None else reporter.checkpoint.with_name(FILE)
    chosen = _read(path)
    if chosen is None:
        abilities = layer_abilities(subject, structures, loaded, trained, device, precision, reporter)
        chosen, why = failing(abilities)
        reporter.log(_words(chosen, abilities, why, len(loaded)))
        _write(path, chosen)
    else:
        reporter.log(f"Goes on with the layers that were chosen before: {', '.join(chosen)}.")
    return {**options, "layers": failing_option(chosen)}


def layer_abilities(
    subject: Subject,
    structures: Sequence[Structure],
    loaded: Sequence[LoadedScan],
    trained: tuple[str, ...],
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> dict[str, float]:
    """Mean Segmentation Ability of each layer in network order, over structures of the means over scans.

    Layers whose ability is not defined in any scan are left out. Parameters are those of `with_failing_layers`.
    """
    layers = judged_layers(subject, trained)
    quiet = reporter.without("progress")  # of windows
    found: dict[str, dict[str, list[float]]] = {layer.name: {} for layer in layers}
    for number, scan in enumerate(loaded):
        reporter.progress("inspect", number, len(loaded))
        prepared = prepare(scan.volume, subject.preprocessing)
        masks = masks_of(scan, structures, prepared)

        def run(place: torch.device, prepared=prepared, masks=masks) -> list[Ability]:
            return proto_seg(subject, prepared, layers, masks, place, precision, quiet)

        for ability in within_memory(run, device, f"ProtoSeg of scan {number + 1}", reporter):
            if ability.built_by == "truth" and not math.isnan(ability.sa):
                found[ability.layer.name].setdefault(ability.structure, []).append(ability.sa)
    subject.network.cpu()
    reporter.progress("inspect", len(loaded), len(loaded))
    return {
        name: round(statistics.fmean(statistics.fmean(values) for values in own.values()), 4)
        for name, own in found.items()
        if own
    }


def failing(abilities: Mapping[str, float]) -> tuple[list[str], str]:
    """The layers that fail, of abilities in network order, and by which rule, in words.

    Raises
    ------
    BadInput
        There is no ability.
    """
    if not abilities:
        raise BadInput(
            f"The layers '{PROTO_SEG}' cannot be chosen: no layer of this model has a Segmentation Ability on these scans.",
            "Label a structure in at least one scan, or use --layers auto.",
        )
    fallen = [name for (_, before), (name, own) in itertools.pairwise(abilities.items()) if before - own > NOISE]
    if fallen:
        return fallen, "lose what the layer before could tell"
    middle = statistics.median(abilities.values())
    low = [name for name, own in abilities.items() if own < middle]
    return low or list(abilities), "are below the median (none falls against the layer before)"


def judged_layers(subject: Subject, trained: tuple[str, ...]) -> list[Layer]:
    """The layers that can fail, in network order: an adapter could be attached to them."""
    return [layer for layer in list_layers(subject.network, subject.anatomy) if _counts(layer, subject, trained)]


def _counts(layer: Layer, subject: Subject, trained: tuple[str, ...]) -> bool:
    """Whether an adapter could be attached to a layer: a convolution, or a stage of a transformer; blocks are their parts."""
    module = subject.network.get_submodule(layer.module)
    whole = isinstance(module, CONVOLUTIONS) or not any(isinstance(m, CONVOLUTIONS) for m in module.modules())
    return layer.listed and not layer.trivial and whole and not is_part(layer.module, trained)


def _words(chosen: Sequence[str], abilities: Mapping[str, float], why: str, scans: int) -> str:
    named = ", ".join(f"{name} ({abilities[name]:.3f})" for name in chosen)
    return (
        f"ProtoSeg of the model on {scans} labelled scan(s): of {len(abilities)} layers {len(chosen)} {why}, and are "
        f"adapted (mean Segmentation Ability): {named}."
    )


def _read(path: Path | None) -> list[str] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _write(path: Path | None, chosen: Sequence[str]) -> None:
    if path is not None:
        write_text(path, json.dumps(list(chosen)))
