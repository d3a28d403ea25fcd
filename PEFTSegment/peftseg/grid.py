"""Where the voxels of a volume lie: shape and affine. Torch-free.

Axis order and units are stated in `volume.py`; SimpleITK's (k, j, i) arrays and LPS direction are turned here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from peftseg.errors import BadInput

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORTHOGONAL_TOLERANCE = 1e-3  # largest |cosine| between two axes, i.e. 0.06 degrees; headers round their numbers
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume.

    Attributes
    ----------
    shape : tuple of int
        Voxels along i, j, k.
    affine : np.ndarray
        (4, 4) float64, from voxel index to RAS+ millimetres; read-only.

    Raises
    ------
    BadInput
        An axis has no voxels or no length, a number is not finite, or axes are not at right angles.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1 or affine.shape != (4, 4):
            raise BadInput(
                f"A grid has shape {shape} and an affine of shape {affine.shape}; expected three axes and (4, 4).",
                "Give a 3D volume.",
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all() or lengths.min() <= 0:
            raise BadInput(
                f"The voxel sizes are {_numbers(lengths)} mm; expected three finite sizes above 0.",
                "Save the volume again from Slicer with a correct spacing (module Volumes).",
            )
        _check_right_angles(affine[:3, :3] / lengths)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def directions(self) -> np.ndarray:
        """(3, 3) unit vectors of the axes i, j, k in RAS, as columns."""
        return self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axcodes(self) -> str:
        """Nearest axis codes, e.g. "LPS": towards which side of the patient i, j and k grow."""
        directions = self.directions
        best = max(itertools.permutations(range(3)), key=lambda world: sum(abs(directions[world, range(3)])))
        return "".join(_LETTERS[w][int(directions[w, axis] > 0)] for axis, w in enumerate(best))

    @property
    def is_nominal(self) -> bool:
        """True when the position looks made up: axes along the patient's in order, first voxel at the world's zero.

        Such affines are what tools write that know no position; left and right cannot be told from them.
        """
        along = np.abs(self.directions - np.eye(3)).max() < 1e-3
        along_lps = np.abs(self.directions - np.diag([-1, -1, 1])).max() < 1e-3
        near_zero = (np.abs(self.affine[:3, 3]) <= 2 * np.array(self.spacing)).all()
        return bool((along or along_lps) and near_zero)

    def corners(self) -> np.ndarray:
        """(8, 3) RAS positions of the corner voxels' centres in mm."""
        ends = [(0, n - 1) for n in self.shape]
        index = np.array([(*c, 1) for c in itertools.product(*ends)], dtype=np.float64)
        return (index @ self.affine.T)[:, :3]

    def distance(self, other: Grid) -> float:
        """Largest distance in mm between corresponding corners; infinite when the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """True when the shapes are equal and no corner lies further than `tolerance_mm` from its counterpart."""
        return self.distance(other) <= tolerance_mm

    def describe(self) -> str:
        """Shape, spacing, orientation and first voxel, for messages."""
        shape = " x ".join(str(n) for n in self.shape)
        origin = _numbers(self.affine[:3, 3])
        return f"{shape} voxels of {_numbers(self.spacing)} mm, {self.axcodes}, first voxel at RAS {origin} mm"


def _numbers(values) -> str:
    return " x ".join(f"{v:.4g}" for v in values)


def _check_right_angles(directions: np.ndarray) -> None:
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > ORTHOGONAL_TOLERANCE:
        angle = np.degrees(np.arccos(min(1.0, cosines.max())))
        raise BadInput(
            f"Two axes of the volume stand at {angle:.2f} degrees; expected right angles (within 0.06 degrees).",
            "Resample it to a grid with right angles, e.g. with Slicer's module 'Resample Scalar/Vector/DWI Volume'.",
        )


def grid_from_itk(size, spacing, origin, direction) -> Grid:
    """Grid of an image or reader of SimpleITK; all arguments as SimpleITK gives them (LPS, x fastest)."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
    lps[:3, 3] = origin
    return Grid(tuple(size), LPS_RAS @ lps)


def array_from_itk(image: sitk.Image) -> np.ndarray:
    """Voxels as (I, J, K), or (C, I, J, K) for an image of C components; a transposed view of one copy."""
    array = sitk.GetArrayFromImage(image)
    return array.transpose(3, 2, 1, 0) if array.ndim == 4 else array.transpose(2, 1, 0)


def image_to_itk(array: np.ndarray, grid: Grid) -> sitk.Image:
    """SimpleITK image of an (I, J, K) array on `grid`."""
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    lps = LPS_RAS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection([float(v) for v in (lps[:3, :3] / np.array(grid.spacing)).ravel()])
    return image
