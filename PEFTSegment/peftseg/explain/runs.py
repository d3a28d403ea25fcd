"""The jobs `grad_cam` and `proto_seg`: read, compute, write maps, pictures and a report in JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.config import GradCamJob, ProtoSegJob
from peftseg.device import choose_device, within_memory
from peftseg.errors import BadInput
from peftseg.events import Reporter, plain
from peftseg.explain.abilities import Ability
from peftseg.explain.grad_cam import grad_cam, predicted_mask, target_voxels
from peftseg.explain.inputs import load_subject, masks_of, read_scan
from peftseg.explain.layers import Layer, choose, default_layer, list_layers
from peftseg.explain.maps import binarise, is_constant, match, normalise, on_study_grid
from peftseg.explain.outputs import (
    ability_row,
    can_draw,
    flat_rows,
    layer_facts,
    new_report,
    provenance_of,
    safe,
    write_picture,
)
from peftseg.explain.pictures import CAUTION, ability_chart, montage
from peftseg.explain.proto_seg import proto_seg
from peftseg.explain.subject import Subject
from peftseg.explain.support import run_support
from peftseg.models import Structure
from peftseg.paths import write_csv, write_text
from peftseg.preprocess import Prepared, prepare, prepare_mask
from peftseg.study import LoadedScan
from peftseg.writing import write_volume

GRAD_CAM_READING = (
    "Bright: features of this layer there raise the score of '{structure}' ({target}); dark: they do not."
)
PROTO_SEG_READING = "Marked: there the features of this layer are nearer to those of '{structure}' than to the rest."
EMPTY = "The map is empty: {why}."
TARGET_WORDS = {
    "predicted": "where it is predicted",
    "truth": "where it is labelled",
    "point": "at the chosen point",
    "region": "in the chosen box",
    "all": "in the whole scan",
}


def run_grad_cam(job: GradCamJob, reporter: Reporter) -> dict[str, Any]:
    """Write a Grad-CAM of each chosen layer on the scan's own grid.

    Returns
    -------
    dict
        "structure", "target", "target_voxels" (of the model grid), "empty" (whether nothing was explained, with "why"),
        "layers" (list, in network order, of "layer", "kind", "note", "adapted", "map" (path), "picture" (path or None),
        "empty", "match_labels" and "match_prediction" (Dice of the map above Otsu's threshold, or None)), "reading",
        "report" (path), "provenance", "seconds".

    Raises
    ------
    PeftsegError
        Network, structure, layer, target, scan or folder cannot be used, or the scan's structure has nothing to explain.
    """
    started = time.monotonic()
    device = choose_device(job.device)
    report = new_report(Path(job.out), "grad-cam.json")
    reporter.progress("load", 0, 1)
    subject = load_subject(job.adapter, job.model)
    row = subject.row(job.structure.name)
    layers = list_layers(subject.network, subject.anatomy)
    chosen = choose(layers, job.layers) if job.layers else [default_layer(layers)]
    scan = read_scan(job.input, job.labels, (job.structure,), job.replace_nonfinite, reporter)
    prepared = prepare(scan.volume, subject.preprocessing)
    labels = scan.masks.get(job.structure.name) if job.labels else None
    truth = None if labels is None else prepare_mask(labels, prepared)

    def run(place: torch.device) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        needed = job.target.kind == "predicted"
        predicted = (
            predicted_mask(subject, prepared, job.structure.name, place, job.precision, reporter) if needed else None
        )
        voxels = target_voxels(job.target, prepared, predicted, truth)
        maps = grad_cam(subject, prepared, chosen, row, voxels, place, job.precision, reporter)
        return maps, predicted, int(voxels.sum())

    maps, predicted, count = within_memory(run, device, "Grad-CAM of this scan", reporter)
    outlines = {} if labels is None else {"labels": labels}
    if predicted is not None:
        outlines["prediction"] = on_study_grid(predicted.float(), prepared) > 0.5
    why = "" if count else f"there is no voxel of '{job.structure.name}' {TARGET_WORDS[job.target.kind]}"
    if why:
        reporter.warning(EMPTY.format(why=why))
    reading = GRAD_CAM_READING.format(structure=job.structure.name, target=TARGET_WORDS[job.target.kind])
    draw = partial(_picture, scan, outlines) if can_draw(job.pictures, reporter) else None
    rows = []
    for layer, values in zip(chosen, maps, strict=True):
        reporter.check()
        stem = f"grad-cam_{safe(job.structure.name)}_{layers.index(layer):03d}_{safe(layer.name)}"
        rows.append(_write_grad_cam(Path(job.out) / stem, layer, values, prepared, outlines, draw, reading, why))
    result = {
        "structure": job.structure.name,
        "target": job.target.kind,
        "target_voxels": count,
        "empty": not count,
        "why": why,
        "layers": rows,
        "reading": f"{reading} {CAUTION}",
        "report": str(report),
        "provenance": provenance_of(subject),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_text(report, json.dumps(plain(result), indent=1, ensure_ascii=False) + "\n")
    return result


def _write_grad_cam(
    stem: Path,
    layer: Layer,
    values: torch.Tensor,
    prepared: Prepared,
    outlines: dict[str, np.ndarray],
    draw: Any,
    reading: str,
    why: str,
) -> dict[str, Any]:
    """Map and picture of one layer; returns its row of the result."""
    raw = on_study_grid(values, prepared)
    empty = is_constant(raw)
    shown = normalise(raw)
    path = stem.with_name(f"{stem.name}.nii.gz")
    write_volume(path, shown, prepared.source)
    title = f"Grad-CAM, layer {layer.name} ({layer.kind}{', ' + layer.note if layer.note else ''})"
    if empty:
        reading = EMPTY.format(why=why or "no feature of this layer raises the score")
    binary = binarise(shown)
    scores = {key: match(binary, mask) for key, mask in outlines.items()}
    return {
        **layer_facts(layer),
        "map": str(path),
        "picture": draw(stem, shown, title, reading) if draw else None,
        "empty": empty,
        "match_labels": scores.get("labels"),
        "match_prediction": scores.get("prediction"),
    }


def run_proto_seg(job: ProtoSegJob, reporter: Reporter) -> dict[str, Any]:
    """Measure the Segmentation Ability of every layer, in one scan or over a support set.

    Returns
    -------
    dict
        Of one scan: "layers" (list, in network order, by structure and prototype, of "layer", "kind", "note", "adapted",
        "structure", "built_by", "sa" and "agreement" (or None: not defined), "map" (path or None)), "not_defined" (sentences),
        "charts" (structure -> path), "reading". Of a support set: see `support.run_support`. Of both: "report" and "table"
        (paths), "provenance", "seconds".

    Raises
    ------
    PeftsegError
        Network, structure, layer, scan or folder cannot be used.
    """
    started = time.monotonic()
    device = choose_device(job.device)
    out = Path(job.out)
    report = new_report(out, "proto-seg.json")
    reporter.progress("load", 0, 1)
    subject = load_subject(job.adapter, job.model)
    layers = list_layers(subject.network, subject.anatomy)
    chosen = choose(layers, job.layers) if job.layers else [layer for layer in layers if layer.listed]
    structures = job.structures or subject.structures
    if not structures:
        raise BadInput(
            "This model has no structures of its own, and none was named.", "Name structures, and give labelled scans."
        )
    drawing = can_draw(job.pictures, reporter)
    if job.support:
        result, rows = run_support(job, subject, chosen, structures, device, reporter, drawing)
    else:
        result, rows = _one_scan(job, subject, layers, chosen, structures, device, reporter, drawing)
    table = out / "proto-seg.csv"
    write_csv(table, flat_rows(rows))
    result |= {
        "report": str(report),
        "table": str(table),
        "provenance": provenance_of(subject),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_text(report, json.dumps(plain(result), indent=1, ensure_ascii=False) + "\n")
    return result


def _one_scan(
    job: ProtoSegJob,
    subject: Subject,
    layers: Sequence[Layer],
    chosen: Sequence[Layer],
    structures: Sequence[Structure],
    device: torch.device,
    reporter: Reporter,
    drawing: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """ProtoSeg of one scan: its result, and the rows of its table."""
    if not job.labels:
        for structure in structures:
            subject.row(structure.name)
    scan = read_scan(str(job.input), job.labels, structures, job.replace_nonfinite, reporter)
    prepared = prepare(scan.volume, subject.preprocessing)
    masks = masks_of(scan, structures, prepared)
    paths: dict[tuple[str, str], str] = {}

    def keep(ability: Ability, found: np.ndarray) -> None:
        reporter.check()
        if ability.built_by == "prediction":
            number = layers.index(ability.layer)
            path = Path(job.out) / f"proto-seg_{safe(ability.structure)}_{number:03d}_{safe(ability.layer.name)}.nii.gz"
            write_volume(path, found.astype(np.uint8), scan.volume.grid)
            paths[(ability.layer.name, ability.structure)] = str(path)

    def run(place: torch.device) -> list[Ability]:
        take = keep if job.maps else None
        return proto_seg(subject, prepared, chosen, masks, place, job.precision, reporter, take)

    abilities = within_memory(run, device, "ProtoSeg of this scan", reporter)
    rows = [{**ability_row(a), "map": _map_path(paths, a)} for a in abilities]
    missing = [
        f"Nothing of '{name}' is predicted: its Segmentation Ability is not defined, and its maps are empty."
        for name in masks
        if all(math.isnan(a.agreement) for a in abilities if (a.structure, a.built_by) == (name, "prediction"))
    ]
    for sentence in missing:
        reporter.warning(sentence)
    charts = {}
    for name in masks if drawing else ():
        charts[name] = write_picture(Path(job.out) / f"proto-seg_{safe(name)}.png", ability_chart(abilities, name))
    reading = PROTO_SEG_READING.format(structure="' or '".join(masks))
    result = {"layers": rows, "not_defined": missing, "charts": charts, "reading": f"{reading} {CAUTION}"}
    return result, rows


def _map_path(paths: dict[tuple[str, str], str], ability: Ability) -> str | None:
    return paths.get((ability.layer.name, ability.structure)) if ability.built_by == "prediction" else None


def _picture(
    scan: LoadedScan,
    outlines: dict[str, np.ndarray],
    stem: Path,
    values: np.ndarray,
    title: str,
    reading: str,
) -> str:
    path = stem.with_name(f"{stem.name}.png")
    data = montage(scan.volume.array, scan.volume.grid, values, title, reading, outlines)
    return write_picture(path, data)
