"""Which scan to label next (`peftseg rank`): those that the model is unsure of, and that are unlike the labelled ones.

**Uncertainty** of a scan is the mean normalised entropy of the prediction over the voxels of the model grid that are
predicted as a structure or lie within `NEAR` voxels of one: `-sum_c p_c log p_c / log n` of the n classes of a softmax
(background included); for yes-or-no outputs the largest `-(p log p + (1 - p) log(1 - p)) / log 2` of the structures.
From 0 (sure) to 1. Far from any structure a model is sure of nothing being there, which says little; so these voxels are left
out. A scan in which nothing is predicted has no such voxels and counts as the most uncertain: 1.

**Distance** from the labelled scans is that to the nearest of them, over four groups of features that count equally:
quantiles of the grey values after preprocessing, the logarithms of voxel size and of extent along the patient's axes,
and `log(1 + ml)` of each predicted structure. Each feature is divided by its standard deviation over all scans (but not
by less than `FLOORS`, so that a hundredth of a millimetre is no difference); a group's square is the mean of its
features' squares, and the distance is the root of the mean of the groups' squares. 0 where nothing is labelled yet.

**Score** is the mean of the ranks in both, scaled to 0 (label last) to 1 (label first); ranks do not depend on either's scale.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn import functional as F

from peftseg.axis_map import orient_to
from peftseg.config import RankJob
from peftseg.device import choose_device, within_memory
from peftseg.errors import JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.infer import ready
from peftseg.licences import usable
from peftseg.models import Preprocessing
from peftseg.networks import is_slicewise
from peftseg.preprocess import Prepared, prepare
from peftseg.segmenter import Segmenter, adapter_segmenter, entry_segmenter, room_for_logits
from peftseg.volume import Volume, read_volume
from peftseg.weights import n_outputs
from peftseg.windows import logit_slabs, tile

NEAR = 2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILE_SAMPLES = 1_000_000
GROUPS = ("grey values", "voxel size", "scanned region's size", "sizes of the structures found in it")
FLOORS = (0.05, 0.05, 0.05, 0.1)  # smallest standard deviation that a feature of each group is divided by
UPPER_HALF = 0.5


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of one scan.

    Attributes
    ----------
    uncertainty : float
        0 to 1.
    empty : bool
        Nothing was predicted.
    features : tuple of array
        One vector a group of `GROUPS`.
    """

    uncertainty: float
    empty: bool
    features: tuple[np.ndarray, ...]


def run_rank(job: RankJob, reporter: Reporter) -> dict[str, Any]:
    """Rank the inputs, the one to label first in front.

    A scan that cannot be read is reported as a warning and in "failed", and the others are ranked.

    Returns
    -------
    dict
        "ranking" (list of "input": index in `job.inputs`, "score", "uncertainty", "distance", "reason"), "failed" (list of
        "input", "message", "remedy").

    Raises
    ------
    PeftsegError
        Adapter, model or device cannot be used; or no scan can be read: the first one's error.
    """
    device = choose_device(job.device)
    reporter.progress("load", 0, 1)
    preprocessing, segmenter = _model(job)
    if segmenter is None:
        reporter.warning("The model has no structures of its own: scans are ranked by their differences only.")
    paths = [*job.inputs, *job.support]
    facts: dict[int, Facts] = {}
    errors: dict[int, PeftsegError] = {}
    begun = time.monotonic()
    for number, path in enumerate(paths):
        eta = (time.monotonic() - begun) / number * (len(paths) - number) if number else None
        reporter.progress("rank", number, len(paths), eta_s=eta)
        reporter.check()
        try:
            volume = read_volume(Path(path), job.replace_nonfinite)
            facts[number] = look_at(volume, preprocessing, segmenter, device, job.precision, reporter)
        except JobCancelled:
            raise
        except PeftsegError as error:
            errors[number] = error
            what = "Scan" if number < len(job.inputs) else "Labelled scan"
            place = number + 1 if number < len(job.inputs) else number - len(job.inputs) + 1
            reporter.warning(f"{what} {place} is left out of the ranking. {error}")
    inputs = [n for n in facts if n < len(job.inputs)]
    if not inputs:
        raise errors[0]
    ranking = rank_scans([facts[n] for n in inputs], [facts[n] for n in facts if n >= len(job.inputs)])
    reporter.progress("rank", len(paths), len(paths), eta_s=0.0)
    return {
        "ranking": [{**row, "input": inputs[row["input"]]} for row in ranking],
        "failed": [
            {"input": n, "message": e.message, "remedy": e.remedy} for n, e in errors.items() if n < len(job.inputs)
        ],
    }


def _model(job: RankJob) -> tuple[Preprocessing, Segmenter | None]:
    if job.adapter is not None:
        segmenter = adapter_segmenter(job.adapter)
        return segmenter.preprocessing, segmenter
    entry = usable(str(job.model))
    return entry.preprocessing, entry_segmenter(entry) if entry.structures else None


def rank_scans(scans: Sequence[Facts], labelled: Sequence[Facts]) -> list[dict[str, Any]]:
    """Order scans by score, best first; equal scores by uncertainty, then by place, so that the order is always the same.

    Returns
    -------
    list of dict
        "input" (place in `scans`), "score" and "uncertainty" (0 to 1), "distance" (0 or more), "reason" (words).
    """
    parts = _group_distances(scans, labelled)  # (scans, groups), squared
    distances = np.sqrt(parts.mean(axis=1))
    uncertainties = np.array([scan.uncertainty for scan in scans])
    unsure, different = _scaled_ranks(uncertainties), _scaled_ranks(distances)
    scores = (unsure + different) / 2
    order = sorted(range(len(scans)), key=lambda n: (-scores[n], -uncertainties[n], n))
    return [
        {
            "input": n,
            "score": round(float(scores[n]), 4),
            "uncertainty": round(float(uncertainties[n]), 4),
            "distance": round(float(distances[n]), 4),
            "reason": _reason(scans[n], unsure[n], different[n], parts[n]),
        }
        for n in order
    ]


def _scaled_ranks(values: np.ndarray) -> np.ndarray:
    """0 for the smallest to 1 for the largest, equal values share their mean; 0.5 for a single one."""
    if len(values) == 1:
        return np.array([UPPER_HALF])
    return (rankdata(np.round(values, 6)) - 1) / (len(values) - 1)


def _group_distances(scans: Sequence[Facts], labelled: Sequence[Facts]) -> np.ndarray:
    """(scans, groups) mean squared difference from the nearest labelled scan, in standard deviations."""
    if not labelled:
        return np.zeros((len(scans), len(GROUPS)))
    parts = []
    for group, floor in enumerate(FLOORS):
        rows = np.array([f.features[group] for f in (*scans, *labelled)])
        scaled = rows / np.maximum(rows.std(axis=0), floor)
        difference = scaled[: len(scans), None] - scaled[None, len(scans) :]
        parts.append((difference**2).mean(axis=2) if rows.shape[1] else np.zeros(difference.shape[:2]))
    every = np.stack(parts, axis=2)  # (scans, labelled, groups)
    nearest = every.mean(axis=2).argmin(axis=1)
    return every[np.arange(len(scans)), nearest]


def _reason(scan: Facts, unsure: float, different: float, parts: np.ndarray) -> str:
    reasons = []
    if scan.empty:
        reasons.append("The model finds none of its structures in this scan.")
    elif unsure > UPPER_HALF:
        reasons.append("The model is less sure of its outlines here than in other scans.")
    if different > UPPER_HALF:
        reasons.append(f"It differs from the labelled scans, most in its {GROUPS[int(parts.argmax())]}.")
    return " ".join(reasons) or "Nothing sets it apart from the other scans."


def look_at(
    volume: Volume,
    preprocessing: Preprocessing,
    segmenter: Segmenter | None,
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> Facts:
    """Preprocess and segment one scan, and measure it; without a segmenter it counts as one in which nothing is found."""
    prepared = prepare(volume, preprocessing)
    reporter.check()
    uncertainty, millilitres = 1.0, np.zeros(0)
    if segmenter is not None:

        def run(place: torch.device) -> np.ndarray:
            return _predict(segmenter, prepared, place, precision, reporter)

        found = within_memory(run, device, f"A scan of {volume.grid.describe()}", reporter)
        uncertainty, millilitres = float(found[0]), found[1:] * float(np.prod(prepared.grid.spacing)) / 1000
    empty = not millilitres.any()
    return Facts(uncertainty, empty and segmenter is not None, _features(prepared, preprocessing, millilitres))


def _features(prepared: Prepared, preprocessing: Preprocessing, millilitres: np.ndarray) -> tuple[np.ndarray, ...]:
    values = prepared.image.flatten()
    sample = values[:: max(1, len(values) // QUANTILE_SAMPLES)].numpy()
    axes, _ = orient_to(prepared.source, preprocessing.orientation)
    spacing = np.array([prepared.source.spacing[a] for a in axes])
    extent = spacing * [prepared.source.shape[a] for a in axes]
    return np.quantile(sample, QUANTILES), np.log(spacing), np.log(extent), np.log1p(millilitres)


def _predict(
    segmenter: Segmenter, prepared: Prepared, device: torch.device, precision: str, reporter: Reporter
) -> np.ndarray:
    """Uncertainty, then the voxels of each structure on the model grid."""
    rows = n_outputs(segmenter.structures, segmenter.activation)
    shape = tuple(prepared.image.shape[1:])
    window = segmenter.window_on(shape)
    entropy = torch.zeros(shape)
    inside = torch.zeros(shape, dtype=torch.bool)
    counts = torch.zeros(len(segmenter.structures), dtype=torch.int64)
    softmax = segmenter.activation == "softmax"
    with ready(segmenter.network, device, precision) as forward:
        slabs = logit_slabs(
            forward,
            prepared.image.to(device),
            rows,
            tile(shape, window, segmenter.overlap, prepared.scheme, is_slicewise(segmenter.network)),
            limit_bytes=room_for_logits(reporter),
            reporter=reporter,
            padding=prepared.background,
        )
        for slab in slabs:
            (p0, p1), (r0, r1) = slab.planes, slab.rows
            last_row = r1 + 1 if r1 == shape[1] - 1 else r1  # slabs share a plane and a row: the next one counts them
            for plane in range(p0, p1 + 1 if p1 == shape[0] - 1 else p1):
                logits = slab.logits[:, plane - p0, : last_row - r0].float()
                uncertain, found, hits = _softmax_plane(logits) if softmax else _sigmoid_plane(logits)
                entropy[plane, r0:last_row], inside[plane, r0:last_row] = uncertain.cpu(), found.cpu()
                counts += hits.cpu()
    near = F.max_pool3d(inside[None, None].float(), 2 * NEAR + 1, stride=1, padding=NEAR)[0, 0] > 0
    uncertainty = float(entropy[near].mean()) if bool(near.any()) else 1.0
    return np.array([uncertainty, *counts.tolist()])


def _softmax_plane(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised entropy and where a structure wins, both (rows, columns), and voxels of each structure."""
    log_p = F.log_softmax(logits, dim=0)
    winner = logits.argmax(0)
    hits = torch.stack([(winner == row).sum() for row in range(1, len(logits))])
    return -(log_p.exp() * log_p).sum(0) / math.log(len(logits)), winner > 0, hits


def _sigmoid_plane(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_softmax_plane`, for yes-or-no outputs."""
    p = torch.sigmoid(logits)
    entropy = -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)) / math.log(2)
    found = logits > 0
    return entropy.amax(0), found.any(0), found.flatten(1).sum(1)
