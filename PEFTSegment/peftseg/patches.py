"""Training patches: cut and augmented on the device from preprocessed volumes that stay in memory.

Every patch is keyed by (seed, epoch, scan, patch), so a resumed run repeats the uninterrupted one. Rotation, scaling and
cropping are one resampling from the whole volume: no patch is cut first and rotated with empty corners afterwards.
Left and right are never mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

FOREGROUND_SHARE = 2 / 3


@dataclass(frozen=True)
class Scan:
    """One preprocessed labelled volume on the device.

    Attributes
    ----------
    image : tensor (1, I, J, K) float32
    target : uint8 tensor (1, I, J, K) of class indices for a softmax head, (C, I, J, K) of 0 and 1 for a sigmoid head.
    known : bool tensor (C, 1, 1, 1) or (C, I, J, K)
        Where each structure is labelled.
    points : tuple of int tensors (N, 3), one a structure present
        Voxels to centre patches on.
    background : float
        Value of the image outside of the volume.
    """

    image: torch.Tensor
    target: torch.Tensor
    known: torch.Tensor
    points: tuple[torch.Tensor, ...]
    background: float


@dataclass(frozen=True)
class Augmentation:
    """Random changes; all ranges are symmetric and uniform.

    Attributes
    ----------
    rotation_deg : float
        Largest rotation about each axis, degrees.
    scale : float
        Largest relative change of size along each axis.
    shift : float
        Largest shift of the patch centre, as a share of the patch.
    gain, offset : float
        Largest relative change and largest shift of grey values, in units of the normalised image.
    gamma : float
        Largest exponent change of grey values scaled to 0..1.
    noise : float
        Largest standard deviation of added Gaussian noise.
    probability : float
        Of each of the three groups (space, grey values, noise).
    """

    rotation_deg: float = 10.0
    scale: float = 0.1
    shift: float = 0.1
    gain: float = 0.15
    offset: float = 0.15
    gamma: float = 0.2
    noise: float = 0.1
    probability: float = 0.7


NO_AUGMENTATION = Augmentation(probability=0.0, shift=0.0)


def make_scan(
    image: torch.Tensor,
    masks: list[torch.Tensor],
    known: list[bool | torch.Tensor],
    overlapping: bool,
    background: float | None = None,
) -> Scan:
    """Assemble a `Scan` on the image's device.

    Parameters
    ----------
    image : tensor (1, I, J, K)
    masks : list of bool tensors (I, J, K), one a structure
    known : list of bool or bool tensor (I, J, K), one a structure
    overlapping : bool
        True for a sigmoid head.
    background : float or None
        Value of what lies outside of the image; None: its smallest.
    """
    device = image.device
    stack = torch.stack([m.to(device) for m in masks])
    if any(isinstance(k, torch.Tensor) for k in known):
        whole = [
            k.to(device) if isinstance(k, torch.Tensor) else torch.full(image.shape[1:], k, device=device)
            for k in known
        ]
        known_map = torch.stack(whole)
        stack = stack & known_map
    else:
        known_map = torch.tensor(known, device=device).view(-1, 1, 1, 1)
    if overlapping:
        target = stack.to(torch.uint8)
    else:
        target = torch.zeros(image.shape, dtype=torch.uint8, device=device)
        for index, mask in enumerate(stack, start=1):
            target[0][mask] = index
    points = tuple(p for p in (m.nonzero() for m in stack) if len(p))
    background = float(image.min()) if background is None else background
    return Scan(image.float(), target, known_map, points, background)


def rng_for(seed: int, *key: int) -> np.random.Generator:
    """The random numbers of one (seed, epoch, scan, patch)."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def sample_patch(
    scan: Scan, patch: tuple[int, int, int], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut one patch.

    Returns
    -------
    image (1, *patch) float32, target (1 or C, *patch) uint8, known (C, *patch or ones) bool
    """
    size = np.array(scan.image.shape[1:])
    centre = _centre(scan, patch, rng)
    centre = centre + rng.uniform(-1, 1, 3) * augmentation.shift * np.array(patch)
    matrix = np.eye(3)
    spatial = rng.random() < augmentation.probability
    if spatial:
        matrix = _random_matrix(augmentation, rng)
    else:
        centre = np.round(centre - 0.5) + 0.5 if any(p % 2 for p in patch) else np.round(centre)
    covers = np.array(patch) >= size
    centre = np.where(covers & (not spatial), _aligned_middle(size, patch), centre)
    if spatial:
        image, target, known = _resample(scan, patch, centre, matrix)
    else:
        image, target, known = _crop(scan, patch, centre)
    return _change_grey_values(image, augmentation, rng), target, known


def _centre(scan: Scan, patch: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Patch centre in voxel-edge coordinates: on a structure chosen evenly, or anywhere inside."""
    size = np.array(scan.image.shape[1:], dtype=float)
    half = np.array(patch) / 2
    if scan.points and rng.random() < FOREGROUND_SHARE:
        points = scan.points[rng.integers(len(scan.points))]
        voxel = points[int(rng.integers(len(points)))].cpu().numpy() + 0.5
        centre = voxel + rng.uniform(-0.25, 0.25, 3) * np.array(patch)
    else:
        centre = rng.uniform(0, 1, 3) * size
    low, high = np.minimum(half, size / 2), np.maximum(size - half, size / 2)
    return np.clip(centre, low, high)


def _aligned_middle(size: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """The middle of the volume, moved so that voxels of patch and volume coincide."""
    return np.floor((size - np.array(patch)) / 2) + np.array(patch) / 2


def _random_matrix(augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * augmentation.rotation_deg)
    c, s = np.cos(angles), np.sin(angles)
    rx = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    ry = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    rz = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    return rx @ ry @ rz @ np.diag(1 + rng.uniform(-1, 1, 3) * augmentation.scale)


def _resample(
    scan: Scan, patch: tuple[int, int, int], centre: np.ndarray, matrix: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image linearly, target and known by the nearest voxel, from the whole volume."""
    size = np.array(scan.image.shape[1:], dtype=float)
    # grid_sample's normalised coordinates run -1..1 over voxel edges, last axis first (align_corners=False)
    scale = matrix * (np.array(patch, dtype=float)[None, :] / size[:, None])
    shift = 2 * centre / size - 1
    theta = np.concatenate([scale[::-1, ::-1], shift[::-1, None]], axis=1)
    grid = F.affine_grid(
        torch.as_tensor(theta.copy(), dtype=torch.float32, device=scan.image.device)[None],
        [1, 1, *patch],
        align_corners=False,
    )
    image = F.grid_sample((scan.image - scan.background)[None], grid, align_corners=False)[0] + scan.background
    target = F.grid_sample(scan.target[None].float(), grid, mode="nearest", align_corners=False)[0].to(torch.uint8)
    known = scan.known
    if known.shape[1:] != (1, 1, 1):
        known = F.grid_sample(known[None].float(), grid, mode="nearest", align_corners=False)[0] > 0.5
    return image, target, known


def _crop(
    scan: Scan, patch: tuple[int, int, int], centre: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    start = np.round(centre - np.array(patch) / 2).astype(int)
    image = crop_padded(scan.image, start, patch, scan.background)
    target = crop_padded(scan.target, start, patch, 0)
    known = scan.known if scan.known.shape[1:] == (1, 1, 1) else crop_padded(scan.known, start, patch, False)
    return image, target, known


def crop_padded(volume: torch.Tensor, start: np.ndarray, size: tuple[int, ...], fill: float) -> torch.Tensor:
    """A box of `size` voxels from voxel `start` of (C, I, J, K), filled with `fill` where it leaves the volume."""
    out = volume.new_full((volume.shape[0], *size), fill)
    source, place = [slice(None)], [slice(None)]
    for first, length, extent in zip(start, size, volume.shape[1:], strict=True):
        low, high = max(int(first), 0), min(int(first) + length, extent)
        if high <= low:
            return out
        source.append(slice(low, high))
        place.append(slice(low - int(first), high - int(first)))
    out[tuple(place)] = volume[tuple(source)]
    return out


def _change_grey_values(image: torch.Tensor, augmentation: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    if rng.random() < augmentation.probability:
        low, high = image.min(), image.max()
        span = (high - low).clamp_min(1e-6)
        exponent = float(np.exp(rng.uniform(-1, 1) * augmentation.gamma))
        image = ((image - low) / span).pow(exponent) * span + low
        image = image * float(1 + rng.uniform(-1, 1) * augmentation.gain)
        image = image + float(rng.uniform(-1, 1) * augmentation.offset)
    if rng.random() < augmentation.probability * 0.5:
        generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**62)))
        deviation = float(rng.uniform(0, augmentation.noise))
        image = image + deviation * torch.randn(image.shape, generator=generator, device=image.device)
    return image


def sample_batch(
    scans: list[Scan],
    keys: list[tuple[int, int, int]],
    patch: tuple[int, int, int],
    augmentation: Augmentation,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches for one step.

    Parameters
    ----------
    keys : list of (epoch, scan, patch)

    Returns
    -------
    image (B, 1, *patch), target (B, 1 or C, *patch), known (B, C, *patch or ones)
    """
    parts = [sample_patch(scans[scan], patch, augmentation, rng_for(seed, epoch, scan, n)) for epoch, scan, n in keys]
    images, targets, known = zip(*parts, strict=True)
    if len({k.shape for k in known}) > 1:
        known = tuple(k.expand(k.shape[0], *patch) for k in known)
    return torch.stack(images), torch.stack(targets), torch.stack(known)
