"""Multi-atlas segmentation with SimpleITK: labelled scans are registered to a scan, and their labels fused.

Affine registration from the middles of the crops, then a deformable one, both without any position in the world: MSD's
affines are nominal, IXI's are the scanner's, and neither says where the crop lies in the head. Fusion by majority, by
local similarity, or jointly (Wang et al. 2013, doi:10.1109/TPAMI.2012.143, without its patch search).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import uniform_filter

from peftseg.grid import Grid, array_from_itk, image_to_itk

AFFINE_STEPS = 60
FAR = -5.0  # normalised grey value of what an atlas does not cover: unlike anything, so that it gets no weight
PATCH = 5  # voxels, for the local similarity
RIDGE, POWER = 0.1, 2.0  # alpha and beta of joint label fusion


@dataclass(frozen=True)
class Settings:
    """How atlases are registered and fused.

    Attributes
    ----------
    deformation : str
        "bspline" or "demons" (diffeomorphic), after the affine registration; "none".
    scale : float
        B-spline: distance of its knots in mm. Demons: smoothing of the displacements in voxels.
    steps : int
        Iterations of the deformable registration at each of its two resolutions.
    fusion : str
        "majority", "local" or "joint".
    """

    deformation: str = "demons"
    scale: float = 1.0
    steps: int = 40
    fusion: str = "joint"


@dataclass(frozen=True, eq=False)
class Atlas:
    """A scan, normalised, on a grid of its own: only its voxel sizes are kept.

    Attributes
    ----------
    image : sitk.Image
        Grey values of mean 0 and standard deviation 1, clipped at the 1st and 99th percentile.
    labels : np.ndarray
        (I, J, K) uint8: 0 is background, structures count from 1.
    """

    image: sitk.Image
    labels: np.ndarray


def make_atlas(array: np.ndarray, spacing: Sequence[float], masks: Sequence[np.ndarray] = ()) -> Atlas:
    """Normalise an (I, J, K) scan; masks are (I, J, K) bool, one a structure, none for a scan to segment."""
    clipped = np.clip(array, *np.percentile(array, [1, 99]))
    image = ((clipped - clipped.mean()) / max(float(clipped.std()), 1e-6)).astype(np.float32)
    labels = np.zeros(array.shape, np.uint8)
    for value, mask in enumerate(masks, start=1):
        labels[mask] = value
    return Atlas(_image(image, spacing), labels)


def _image(array: np.ndarray, spacing: Sequence[float]) -> sitk.Image:
    return image_to_itk(array, Grid(array.shape, np.diag([*spacing, 1.0])))


def register(fixed: sitk.Image, moving: sitk.Image, settings: Settings) -> sitk.Transform:
    """Transform from points of `fixed` to points of `moving`; deterministic on one thread."""
    affine = _affine(fixed, moving)
    if settings.deformation == "bspline":
        return sitk.CompositeTransform([affine, _bspline(fixed, moving, affine, settings)])
    if settings.deformation == "demons":
        return sitk.CompositeTransform([affine, _demons(fixed, moving, affine, settings)])
    return affine


def _registration() -> sitk.ImageRegistrationMethod:
    """Correlation of all voxels, at half and at full resolution."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0.5])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def _affine(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    middles = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(3), middles)
    method = _registration()
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, AFFINE_STEPS, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start)
    return method.Execute(fixed, moving)


def _bspline(fixed: sitk.Image, moving: sitk.Image, affine: sitk.Transform, settings: Settings) -> sitk.Transform:
    sizes = np.array(fixed.GetSize()) * fixed.GetSpacing()
    mesh = [max(1, round(size / settings.scale)) for size in sizes]
    method = _registration()
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransform(sitk.BSplineTransformInitializer(fixed, mesh, 3))
    method.SetOptimizerAsLBFGS2(numberOfIterations=settings.steps, solutionAccuracy=1e-4)
    return method.Execute(fixed, moving)


def _demons(fixed: sitk.Image, moving: sitk.Image, affine: sitk.Transform, settings: Settings) -> sitk.Transform:
    near = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetNumberOfIterations(settings.steps)
    method.SetStandardDeviations(settings.scale)
    half = method.Execute(*(_half(image) for image in (fixed, near)))
    start = sitk.Resample(half, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, half.GetPixelID(), True)
    field = method.Execute(fixed, near, start)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def _half(image: sitk.Image) -> sitk.Image:
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, list(image.GetSpacing())), [2, 2, 2])


def warp(target: Atlas, atlas: Atlas, n_structures: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """An atlas registered to a scan: its grey values (I, J, K), and its votes (1 + structures, I, J, K) from 0 to 1."""
    transform = register(target.image, atlas.image, settings)
    moved = sitk.Resample(atlas.image, target.image, transform, sitk.sitkLinear, FAR)
    spacing = atlas.image.GetSpacing()
    votes = [
        sitk.Resample(_image((atlas.labels == n).astype(np.float32), spacing), target.image, transform)
        for n in range(1, n_structures + 1)
    ]
    found = np.stack([array_from_itk(vote) for vote in votes])
    return array_from_itk(moved), np.concatenate([1.0 - found.sum(0, keepdims=True), found])


def fuse(image: np.ndarray, moved: np.ndarray, votes: np.ndarray, fusion: str) -> np.ndarray:
    """Label map (I, J, K) from N registered atlases.

    Parameters
    ----------
    image : array (I, J, K)
        The scan, normalised.
    moved : array (N, I, J, K)
        Grey values of the atlases.
    votes : array (N, 1 + structures, I, J, K)
    fusion : str
        "majority", "local" (weights: inverse mean squared difference in a patch) or "joint".
    """
    differences = np.abs(moved - image)
    if fusion == "majority":
        weights = np.ones(differences.shape)
    elif fusion == "local":
        weights = np.stack([1.0 / (_patch_mean(d * d) + 1e-2) for d in differences])
    else:
        weights = _joint_weights(differences)
    return np.einsum("nijk,ncijk->cijk", weights, votes).argmax(0)


def _patch_mean(array: np.ndarray) -> np.ndarray:
    return uniform_filter(array.astype(np.float64), PATCH, mode="nearest")


def _joint_weights(differences: np.ndarray) -> np.ndarray:
    """Weights (N, I, J, K) that minimise the expected error when atlases err together as their grey values do."""
    count = len(differences)
    together = np.empty((*differences.shape[1:], count, count))
    for i in range(count):
        for j in range(i + 1):
            together[..., i, j] = together[..., j, i] = _patch_mean(differences[i] * differences[j]) ** POWER
    together += RIDGE * np.eye(count)
    weights = np.linalg.solve(together, np.ones((*together.shape[:-1], 1)))[..., 0]
    return np.moveaxis(weights / weights.sum(-1, keepdims=True), -1, 0)


def segment(target: Atlas, atlases: Sequence[Atlas], n_structures: int, settings: Settings) -> np.ndarray:
    """Label map (I, J, K) of a scan: 0 is background, structures count from 1."""
    moved, votes = zip(*(warp(target, atlas, n_structures, settings) for atlas in atlases), strict=True)
    return fuse(array_from_itk(target.image), np.stack(moved), np.stack(votes), settings.fusion)
