"""ProtoSeg over a support set: mean Segmentation Ability by layer, before and after adaptation."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peftseg.config import ProtoSegJob
from peftseg.device import within_memory
from peftseg.errors import JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.explain.abilities import BUILDERS, Ability
from peftseg.explain.inputs import masks_of
from peftseg.explain.layers import Layer, list_layers
from peftseg.explain.outputs import layer_facts, write_picture
from peftseg.explain.pictures import change_chart
from peftseg.explain.proto_seg import proto_seg
from peftseg.explain.subject import Subject, adapter_subject, model_subject
from peftseg.models import Structure
from peftseg.preprocess import prepare
from peftseg.study import LoadedScan, load_support_item

NAMED = 5  # layers whose ability drops most
NOISE = 0.005  # a smaller drop is none

# Layer -> prototype -> structure -> SA of each scan.
Scores = dict[str, dict[str, dict[str, list[float]]]]


def run_support(
    job: ProtoSegJob,
    subject: Subject,
    layers: Sequence[Layer],
    structures: Sequence[Structure],
    device: torch.device,
    reporter: Reporter,
    drawing: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Mean Segmentation Ability by layer over labelled scans.

    A scan that cannot be used is reported as a warning and in "failed", and the others go on.

    Parameters
    ----------
    subject, layers
        The job's network, and those of its layers that are measured. Of an adapter, the base is measured as well.

    Returns
    -------
    dict
        "layers" (list, in network order, of "layer", "kind", "note", "adapted", "before" and "after" ("prediction" and
        "truth": mean SA over structures of the means over scans, or None; "before" or "after" is None where there is no
        such layer or no adapter), "drop" (of "truth", or None) and "structures" (name -> "before" and "after" of "truth")),
        "drops" (names of the layers whose SA drops most, worst first), "basis" ("truth"), "scans" (how many were used),
        "failed" (list of "scan", from 1 on, "message", "remedy"), "charts" (structure "" -> path).
    list of dict
        The rows of "layers".

    Raises
    ------
    PeftsegError
        No scan can be used: the first one's error.
    """
    base = model_subject(adapter_subject(job.adapter)[1]) if job.adapter is not None else None
    first: Scores = _empty()
    second: Scores = _empty()
    stages = [(base, first), (subject, second)] if base is not None else [(subject, first)]
    errors: list[tuple[int, PeftsegError]] = []
    begun = time.monotonic()
    for number, item in enumerate(job.support):
        eta = (time.monotonic() - begun) / number * (len(job.support) - number) if number else None
        reporter.progress("inspect", number, len(job.support), eta_s=eta)
        try:
            scan = load_support_item(item, structures, job.replace_nonfinite)
            found = [_measure(job, network, layers, scan, structures, device, reporter) for network, _ in stages]
        except JobCancelled:
            raise
        except PeftsegError as error:
            errors.append((number + 1, error))
            reporter.warning(f"Scan {number + 1} is left out. {error}")
            continue
        for (_, scores), abilities in zip(stages, found, strict=True):
            _collect(scores, abilities)
    if len(errors) == len(job.support):
        raise errors[0][1]
    reporter.progress("inspect", len(job.support), len(job.support), eta_s=0.0)
    rows = [_row(layer, first, second if base is not None else None, structures) for layer in layers]
    used = len(job.support) - len(errors)
    charts = {}
    if drawing:
        charts[""] = write_picture(Path(job.out) / "proto-seg.png", change_chart(rows, layers, used))
    result = {
        "layers": rows,
        "drops": largest_drops(rows),
        "basis": "truth",
        "scans": used,
        "failed": [{"scan": n, "message": e.message, "remedy": e.remedy} for n, e in errors],
        "charts": charts,
    }
    return result, rows


def largest_drops(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Layers whose mean SA drops most by adaptation, worst first; trivial ones and drops within noise do not count."""
    falling = [row for row in rows if not row["note"] and row["drop"] is not None and row["drop"] > NOISE]
    return [row["layer"] for row in sorted(falling, key=lambda row: -row["drop"])[:NAMED]]


def _empty() -> Scores:
    return defaultdict(lambda: {built_by: defaultdict(list) for built_by in BUILDERS})


def _measure(
    job: ProtoSegJob,
    subject: Subject,
    layers: Sequence[Layer],
    scan: LoadedScan,
    structures: Sequence[Structure],
    device: torch.device,
    reporter: Reporter,
) -> list[Ability]:
    """One network on one scan; of the base only the layers that it has."""
    wanted = {layer.name for layer in layers}
    own = [layer for layer in list_layers(subject.network, subject.anatomy) if layer.name in wanted]
    prepared = prepare(scan.volume, subject.preprocessing)
    masks = masks_of(scan, structures, prepared)

    def run(place: torch.device) -> list[Ability]:
        return proto_seg(subject, prepared, own, masks, place, job.precision, reporter)

    return within_memory(run, device, "ProtoSeg of a scan", reporter)


def _collect(scores: Scores, abilities: Sequence[Ability]) -> None:
    for ability in abilities:
        if not math.isnan(ability.sa):
            scores[ability.layer.name][ability.built_by][ability.structure].append(ability.sa)


def _row(layer: Layer, first: Scores, second: Scores | None, structures: Sequence[Structure]) -> dict[str, Any]:
    before = _means(first, layer)
    after = None if second is None else _means(second, layer)
    both = before is not None and after is not None and None not in (before["truth"], after["truth"])
    each = {
        s.name: {
            "before": _mean(first[layer.name]["truth"][s.name]) if layer.name in first else None,
            "after": _mean(second[layer.name]["truth"][s.name]) if second and layer.name in second else None,
        }
        for s in structures
    }
    drop = round(before["truth"] - after["truth"], 4) if both else None
    return {**layer_facts(layer), "before": before, "after": after, "drop": drop, "structures": each}


def _means(scores: Scores, layer: Layer) -> dict[str, float | None] | None:
    """Mean over structures of the means over scans, by prototype; None for a layer that was not measured."""
    if layer.name not in scores:
        return None
    own = scores[layer.name]
    return {b: _mean([m for values in own[b].values() if (m := _mean(values)) is not None]) for b in BUILDERS}


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
