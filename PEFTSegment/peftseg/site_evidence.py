"""What can be measured of a network's results on scans without labels, before and after an adaptation.

Two kinds of evidence: what the network says about itself (its early head, its own result on the same scan turned and moved a
little, its probabilities), and what it has no say in (size and shape, and whether the borders lie where the scan's
grey values change). Adaptation without labels can raise the first kind while it does harm; see `gate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from peftseg.compare_rows import mean_of
from peftseg.device import within_memory
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.infer import ready
from peftseg.metrics import dice
from peftseg.models import Structure
from peftseg.networks import is_slicewise
from peftseg.preprocess import Prepared
from peftseg.segmenter import room_for_logits
from peftseg.site_transforms import TRANSFORMS, Transform, move, with_power
from peftseg.structure_facts import MEASURES, measure
from peftseg.weights import n_outputs
from peftseg.windows import Forward, Tiling, logit_slabs, tile, window_for

CONFIDENT = 0.9  # probability from which a voxel counts as decided
EDGE_SIGMA = 1.0  # voxels, of the Gaussian whose derivative finds borders: noise of single voxels is none
EDGE_BAND = 3  # voxels on both sides of a border, with which it is compared
MOST_SCANS = 8  # more scans take long and change the verdict little

Early = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
ByStructure = dict[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured, by structure name; every tuple has one number a scan, NaN where nothing can be said.

    Attributes
    ----------
    early_agreement : dict
        Dice of the final result and the early head's; empty without an early head.
    transform_agreement : dict
        Mean Dice of the result and that of the changed scan (`TRANSFORMS`).
    volumes : dict
        ml on the model grid, 0 where the structure is not found.
    shapes : dict
        Measure ("elongation", "components", "scattered", "border_contact") -> structure -> numbers; see
        `structure_facts.measure`.
    confident_share : dict
        Share of the structure's voxels with a probability of at least 0.9.
    edge_contrast : dict
        Mean change of grey values at the structure's border over that in a band around it; about 1 for a border that
        has nothing to do with the scan.
    results : tuple of array
        One a scan, on the model grid: label map by rows ("softmax") or (C, ...) masks ("sigmoid"). Not for the record.
    """

    structures: tuple[str, ...]
    early_agreement: ByStructure
    transform_agreement: ByStructure
    volumes: ByStructure
    shapes: dict[str, ByStructure]
    confident_share: ByStructure
    edge_contrast: ByStructure
    results: tuple[np.ndarray, ...]

    def mask(self, scan: int, structure: str) -> np.ndarray:
        """(I', J', K') bool of a structure in a scan, by its place among `results`."""
        return _mask(self.results[scan], self.structures.index(structure))


@dataclass(frozen=True, eq=False)
class _Prediction:
    """Label map or masks of the final head, of the early one (None without), and where the final one is decided."""

    final: np.ndarray
    early: np.ndarray | None
    sure: np.ndarray


def chosen_scans(count: int, most: int = MOST_SCANS) -> list[int]:
    """Which of so many scans are looked at: all, or `most` of them, evenly spread."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})


def collect_evidence(
    network: nn.Module,
    early: Early | None,
    prepared_scans: Sequence[Prepared],
    structures: Sequence[Structure],
    activation: str,
    window: Sequence[int],
    overlap: float,
    device: torch.device,
    *,
    smallest_window: Sequence[int] | None = None,
    window_step: int | Sequence[int] = 1,
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> Evidence:
    """Segment scans as they are and slightly changed, and measure the results.

    A scan for which the device's memory does not suffice is done on the processor, with a warning; the network may lie
    there afterwards.

    Parameters
    ----------
    network : nn.Module
        (B, 1, *window) -> (B, n, *window) logits.
    early : callable or None
        (B, 1, *window) -> final and early logits of the same network, both (B, n, *window); an `nn.Module` is put into
        evaluation mode meanwhile.
    prepared_scans : sequence of Prepared
        The same ones, in the same order, before and after adaptation; `chosen_scans` says which suffice.
    structures : sequence of Structure
        In the order of the network's rows (after the background row of "softmax").
    window, overlap, smallest_window, window_step
        As for inference with the adapter, see `segmenter.Segmenter`.
    reporter : Reporter, optional
        Asked between windows whether the user cancelled.

    Raises
    ------
    BadInput
        There is no scan.
    JobCancelled
        The user cancelled.
    OutOfMemory
        A scan does not fit into memory.
    """
    if not prepared_scans:
        raise BadInput("There is no scan to check the adaptation with.", "Give at least one scan without labels.")
    names = tuple(s.name for s in structures)
    outputs = n_outputs(tuple(structures), activation)
    stacked, per_scan = _Stacked(network, early), []
    for number, prepared in enumerate(prepared_scans, start=1):
        size = window_for(prepared.image.shape[1:], smallest_window, window, window_step)
        tiling = tile(prepared.image.shape[1:], size, overlap, prepared.scheme, is_slicewise(network))

        def look(place: torch.device, prepared: Prepared = prepared, tiling: Tiling = tiling) -> dict[str, object]:
            with ready(stacked, place, precision) as forward:
                run = _Run(forward, outputs, early is not None, activation, tiling, place, reporter)
                return _evidence_of_scan(run, prepared, names)

        what = f"Checking the adaptation with scan {number} of {len(prepared_scans)}"
        per_scan.append(within_memory(look, device, what, reporter or Reporter.silent()))
    return _by_structure(names, per_scan, early is not None)


class _Stacked(nn.Module):
    """Final and early logits in the channels of one output."""

    def __init__(self, network: nn.Module, early: Early | None) -> None:
        super().__init__()
        self.network = network
        self.early = early

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) if self.early is None else torch.cat(self.early(x), dim=1)


@dataclass(frozen=True, eq=False)
class _Run:
    """How a scan is segmented."""

    forward: Forward
    outputs: int
    has_early: bool
    activation: str
    tiling: Tiling
    device: torch.device
    reporter: Reporter | None

    def predict(self, image: torch.Tensor, prepared: Prepared) -> _Prediction:
        """Segment an image (1, I', J', K') on the model grid, slab by slab: all logits at once may not fit into memory."""
        shape = tuple(image.shape[1:])
        whole = shape if self.activation == "softmax" else (self.outputs, *shape)
        final = np.zeros(whole, np.uint16 if self.activation == "softmax" else bool)
        early, sure = np.zeros_like(final), np.zeros(whole, bool)
        channels = self.outputs * (1 + self.has_early)
        slabs = logit_slabs(
            self.forward,
            image.to(self.device),
            channels,
            self.tiling,
            limit_bytes=room_for_logits(self.reporter),
            reporter=self.reporter,
            padding=prepared.background,
        )
        for slab in slabs:
            (p0, p1), (r0, r1) = slab.planes, slab.rows
            part = (..., slice(p0, p1 + 1), slice(r0, r1 + 1), slice(None))
            final[part], sure[part] = self._decide(slab.logits[: self.outputs])
            if self.has_early:
                early[part], _ = self._decide(slab.logits[self.outputs :])
        return _Prediction(final, early if self.has_early else None, sure)

    def _decide(self, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        if self.activation == "sigmoid":
            limit = math.log(CONFIDENT / (1 - CONFIDENT))
            return (logits > 0).cpu().numpy(), (logits >= limit).cpu().numpy()
        probability, label = logits.float().softmax(dim=0).max(dim=0)
        return label.cpu().numpy(), (probability >= CONFIDENT).cpu().numpy()


def _evidence_of_scan(run: _Run, prepared: Prepared, names: Sequence[str]) -> dict[str, object]:
    """The fields of `Evidence` for one scan, with lists by structure."""
    spacing = prepared.grid.spacing
    plain = run.predict(prepared.image, prepared)
    changed = [_agreements(run, prepared, plain.final, t, len(names)) for t in TRANSFORMS]
    masks = [_mask(plain.final, row) for row in range(len(names))]
    shapes = [measure(mask, spacing) for mask in masks]
    gradient = ndimage.gaussian_gradient_magnitude(prepared.image[0].cpu().numpy(), EDGE_SIGMA, mode="nearest")
    return {
        "early_agreement": _dices(plain.final, plain.early, len(names)) if run.has_early else [],
        "transform_agreement": [mean_of(values) for values in zip(*changed, strict=True)],
        "confident_share": [_share(_sure(plain.sure, row), mask) for row, mask in enumerate(masks)],
        "edge_contrast": [_edge_contrast(mask, gradient) for mask in masks],
        "shapes": [{key: math.nan if s[key] is None else float(s[key]) for key in MEASURES} for s in shapes],
        "result": plain.final,
    }


def _agreements(run: _Run, prepared: Prepared, plain: np.ndarray, transform: Transform, count: int) -> list[float]:
    """Dice, by structure, of the changed scan's result and the changed result, where both know the scan."""
    if transform.power != 1:
        changed = run.predict(with_power(prepared.image, transform.power), prepared).final
        return _dices(plain, changed, count)
    spacing = prepared.grid.spacing
    image, seen = move(prepared.image, spacing, transform, "bilinear")
    moved, _ = move(
        torch.from_numpy(plain.astype(np.float32).reshape(-1, *plain.shape[-3:])), spacing, transform, "nearest"
    )
    changed, seen = run.predict(image, prepared).final, seen.numpy()
    expected = moved.numpy().reshape(plain.shape).astype(plain.dtype)
    return _dices(expected * seen, changed * seen, count)


def _mask(result: np.ndarray, row: int) -> np.ndarray:
    """One structure of a label map (with background 0) or of masks."""
    return result[row] if result.ndim == 4 else result == row + 1


def _sure(sure: np.ndarray, row: int) -> np.ndarray:
    """Where a structure is decided, if it is there: softmax has one answer for all structures."""
    return sure[row] if sure.ndim == 4 else sure


def _dices(first: np.ndarray, second: np.ndarray, count: int) -> list[float]:
    return [dice(_mask(first, row), _mask(second, row)) for row in range(count)]


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    total = np.count_nonzero(whole)
    return np.count_nonzero(part & whole) / total if total else math.nan


def _edge_contrast(mask: np.ndarray, gradient: np.ndarray) -> float:
    """See `Evidence.edge_contrast`; NaN for an empty mask and where the scan is constant."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return math.nan
    margin = EDGE_BAND + 1
    box = tuple(slice(max(0, part.start - margin), part.stop + margin) for part in found[0])
    part, change = mask[box], gradient[box]
    border = _grown(part, 1) & ~_shrunk(part, 1)
    band = _grown(part, EDGE_BAND) & ~_shrunk(part, EDGE_BAND)
    around = float(change[band].mean()) if band.any() else 0.0
    return float(change[border].mean()) / around if around > 0 else math.nan


def _grown(mask: np.ndarray, voxels: int) -> np.ndarray:
    return ndimage.binary_dilation(mask, iterations=voxels)


def _shrunk(mask: np.ndarray, voxels: int) -> np.ndarray:
    return ndimage.binary_erosion(mask, iterations=voxels, border_value=1)  # the scan's end is no border


def _by_structure(names: tuple[str, ...], per_scan: list[dict], has_early: bool) -> Evidence:
    def turned(field: str) -> ByStructure:
        return {name: tuple(float(scan[field][row]) for scan in per_scan) for row, name in enumerate(names)}

    def shape(key: str) -> ByStructure:
        return {name: tuple(scan["shapes"][row][key] for scan in per_scan) for row, name in enumerate(names)}

    return Evidence(
        structures=names,
        early_agreement=turned("early_agreement") if has_early else {},
        transform_agreement=turned("transform_agreement"),
        volumes=shape("volume_ml"),
        shapes={key: shape(key) for key in MEASURES if key != "volume_ml"},
        confident_share=turned("confident_share"),
        edge_contrast=turned("edge_contrast"),
        results=tuple(scan["result"] for scan in per_scan),
    )
