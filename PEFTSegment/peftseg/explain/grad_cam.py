"""Seg-Grad-CAM in 3D: which voxels of a layer's features speak for a structure.

Score y = sum of the structure's logits over a set of voxels M; alpha_k = mean over voxels of dy/dA_k for the features A
of a layer; map = ReLU(sum_k alpha_k A_k), interpolated to the input, smallest to largest value become 0 to 1. After
Vinogradova et al. 2020, doi:10.1609/aaai.v34i10.7244, and Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74. Large volumes:
the windows of segmentation, one alpha a window, maps blended with the windows' weights, one normalisation at the end. A
window without a voxel of M adds nothing and is not run.

Own code: MONAI's `GradCAM` and pytorch-grad-cam explain one class score of one window, keep every activation, and read the
wrong features where a network adds in place to a layer's output (MONAI's residual blocks do).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from peftseg.device import choose_precision, free_memory
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.explain.layers import Layer, watched
from peftseg.explain.maps import WindowSum, box_of, pad, voxel_at
from peftseg.explain.progress import Progress
from peftseg.explain.subject import Subject
from peftseg.explain.targets import TARGETS, Target
from peftseg.infer import ready
from peftseg.networks import is_slicewise
from peftseg.preprocess import Prepared
from peftseg.segmenter import room_for_logits
from peftseg.windows import Forward, Tiling, logit_slabs, tile

MEMORY_SHARE = 0.25  # of what is free, for the maps of the layers that share a pass


def tiling_of(subject: Subject, prepared: Prepared) -> Tiling:
    """The windows of segmentation on a study."""
    shape = tuple(prepared.image.shape[1:])
    window = subject.window_on(shape)
    return tile(shape, window, subject.overlap, prepared.scheme, is_slicewise(subject.network))


def predicted_mask(
    subject: Subject,
    prepared: Prepared,
    structure: str,
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> torch.Tensor:
    """(I', J', K') bool on the processor: where a structure wins on the model grid (more than 0.5, for "sigmoid")."""
    row = subject.row(structure)
    image = prepared.image.to(device)
    mask = torch.zeros(image.shape[1:], dtype=torch.bool)
    with ready(subject.network, device, precision) as forward:
        slabs = logit_slabs(
            forward,
            image,
            subject.rows,
            tiling_of(subject, prepared),
            limit_bytes=room_for_logits(reporter),
            reporter=reporter,
            padding=prepared.background,
        )
        for slab in slabs:
            (p0, p1), (r0, r1) = slab.planes, slab.rows
            found = slab.logits.argmax(0) == row if subject.activation == "softmax" else slab.logits[row] > 0
            mask[p0 : p1 + 1, r0 : r1 + 1] = found.cpu()
    return mask


def target_voxels(
    target: Target, prepared: Prepared, predicted: torch.Tensor | None, truth: torch.Tensor | None
) -> torch.Tensor:
    """The voxels M of a target, (I', J', K') bool; they may be none.

    Parameters
    ----------
    predicted, truth : tensor (I', J', K') bool or None
        Needed by the targets of that name.

    Raises
    ------
    BadInput
        Labels are missing, or the point or the box lies outside of the scan.
    """
    if target.kind == "predicted" and predicted is not None:
        return predicted
    if target.kind == "truth":
        if truth is None:
            raise BadInput("The target is the labels of the structure, but no labels were given.", "Give --labels.")
        return truth
    shape = tuple(prepared.image.shape[1:])
    if target.kind == "point" and target.point is not None:
        voxel = voxel_at(target.point, prepared)
        if voxel is None:
            raise _outside(f"The point {target.point}")
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[voxel] = True
        return mask
    if target.kind == "region" and target.region is not None:
        mask = box_of(target.region[:3], target.region[3:], prepared)
        if not mask.any():
            raise _outside(f"The box between {target.region[:3]} and {target.region[3:]}")
        return mask
    if target.kind == "all":
        return torch.ones(shape, dtype=torch.bool)
    raise BadInput(
        f"The target '{target.kind}' lacks what it needs.", f"Use one of {', '.join(TARGETS)}, with its values."
    )


def _outside(what: str) -> BadInput:
    return BadInput(
        f"{what} (RAS, mm) holds no voxel of what the network sees of the scan.", "Choose a place inside of the scan."
    )


def grad_cam(
    subject: Subject,
    prepared: Prepared,
    layers: Sequence[Layer],
    row: int,
    voxels: torch.Tensor,
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> torch.Tensor:
    """Grad-CAM of several layers of a network in one pass over a study.

    Parameters
    ----------
    layers : sequence of Layer
        From `layers.choose`.
    row : int
        Channel of the structure in the network's output.
    voxels : tensor (I', J', K') bool
        The set M.
    precision : str
        As in `segment`; fp16 is done in fp32, because gradients would vanish.

    Returns
    -------
    tensor (layers, I', J', K') float32
        On the model grid, not normalised, all 0 where M is empty. The network is as it was before.
    """
    shape = tuple(prepared.image.shape[1:])
    result = torch.zeros((len(layers), *shape))
    padded = pad(prepared.image[0].to(device), tiling_of(subject, prepared), prepared.background)
    inside = padded.around(voxels.to(device, torch.float32))
    corners = [corner for corner in padded.corners() if bool(padded.cut(inside, corner).any())]
    at_once = max(1, int(MEMORY_SHARE * free_memory(device)) // (4 * padded.image.numel()))
    parts = [range(first, min(first + at_once, len(layers))) for first in range(0, len(layers), at_once)]
    tell = Progress(reporter, len(parts) * len(corners))
    for part in parts if corners else ():
        names = [layers[n].module for n in part]
        total = WindowSum(padded, len(names))
        with differentiable(subject.network, device, precision) as forward:
            for corner in corners:
                tell()
                patch, weights = padded.cut(padded.image, corner), padded.cut(inside, corner)
                total.add(corner, window_maps(subject.network, forward, patch[None, None], names, row, weights))
        result[part.start : part.stop] = total.mean().cpu()
    return result


@contextlib.contextmanager
def differentiable(network: nn.Module, device: torch.device, precision: str = "auto") -> Iterator[Forward]:
    """As `infer.ready`, but gradients flow to the features, and to no weight; all is restored at the end."""
    precision = choose_precision(device, precision)
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with (
            ready(network, device, "fp32" if precision == "fp16" else precision) as forward,
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield forward
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def window_maps(
    network: nn.Module, forward: Forward, patch: torch.Tensor, names: Sequence[str], row: int, weights: torch.Tensor
) -> torch.Tensor:
    """Maps of one window, inside of `differentiable`.

    Parameters
    ----------
    patch : tensor (1, 1, *window)
    names : sequence of str
        Modules, by name.
    weights : tensor (*window) float32
        1 for the voxels of M.

    Returns
    -------
    tensor (len(names), *window) float32
        Not normalised.
    """
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def hook(output: torch.Tensor) -> torch.Tensor:
            # Before the first of the layers nothing is recorded: its output is where the graph begins.
            kept[name] = output if output.requires_grad else output.detach().requires_grad_()
            return kept[name].clone()  # the network may add to it in place

        return hook

    with watched(network, {name: keep(name) for name in names}):
        logits = forward(patch)
        score = (logits[0, row].float() * weights).sum()
    features = [kept[name] for name in names]
    gradients = torch.autograd.grad(score, features, allow_unused=True)
    maps = [_map(f.detach(), g, patch.shape[2:]) for f, g in zip(features, gradients, strict=True)]
    return torch.stack(maps)


def _map(features: torch.Tensor, gradient: torch.Tensor | None, window: Sequence[int]) -> torch.Tensor:
    """ReLU(sum_k alpha_k A_k) of features (1, C, *S), interpolated to the window."""
    if gradient is None:
        return torch.zeros(tuple(window), device=features.device)
    alpha = gradient[0].float().mean(dim=(1, 2, 3))
    with torch.autocast(features.device.type, enabled=False):  # the network's 16 bits are not the map's
        values = torch.einsum("c,cijk->ijk", alpha, features[0].float()).relu()
    return functional.interpolate(values[None, None], size=tuple(window), mode="trilinear", align_corners=False)[0, 0]
