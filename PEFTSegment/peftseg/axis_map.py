"""How the model grid lies in the study's grid: permutation, flip, scale and shift of each axis. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftseg.errors import BadInput
from peftseg.grid import Grid

SAME_SPACING = 0.01  # an axis whose spacing differs less than 1 % keeps its voxels: no blur for nothing
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True)
class AxisMap:
    """How a model grid lies in a study's grid.

    Model index `m` on model axis `a` is the study index `start[a] + step[a] * m` on the study's axis `axes[a]`.

    Attributes
    ----------
    axes : tuple of int
        Study axis of each model axis; a permutation of 0, 1, 2.
    start : tuple of float
        Study index (in voxels, of the axis `axes[a]`) of the first model voxel.
    step : tuple of float
        Study voxels a model voxel; negative where the axis is flipped.
    """

    axes: tuple[int, int, int]
    start: tuple[float, float, float]
    step: tuple[float, float, float]

    def orient(self, array: np.ndarray) -> np.ndarray:
        """View of an array (..., I, J, K) of the study with its axes in the model's order and direction."""
        lead = array.ndim - 3
        view = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return view[(..., *(slice(None, None, -1 if step < 0 else 1) for step in self.step))]

    def oriented_start(self, axis: int, study_shape: Sequence[int]) -> float:
        """Index of the first model voxel on a model axis of the oriented study (see `orient`)."""
        start = self.start[axis]
        return start if self.step[axis] > 0 else study_shape[self.axes[axis]] - 1 - start

    def matrix(self) -> np.ndarray:
        """(4, 4) float64 from model index to study index."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for axis, source in enumerate(self.axes):
            matrix[source, axis] = self.step[axis]
            matrix[source, 3] = self.start[axis]
        return matrix


def orient_to(grid: Grid, codes: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Study axis and sign (+1, or -1 for a flip) of each axis of the orientation `codes`, by nearest axis codes.

    Codes such as "kji" are the study's own axes in that order.

    Raises
    ------
    BadInput
        `codes` is not one letter of each of the pairs R/L, A/P and S/I.
    """
    if sorted(codes) == ["i", "j", "k"]:
        return tuple("ijk".index(code) for code in codes), (1, 1, 1)
    if len(codes) != 3 or any(len(set(pair) & set(codes)) != 1 for pair in ("RL", "AP", "SI")):
        raise BadInput(
            f"Orientation '{codes}' is not valid; expected three letters, one each of R/L, A/P and S/I, such as RAS.",
            "Correct the orientation in the model's preprocessing.",
        )
    own = grid.axcodes
    axes = tuple(own.index(code) if code in own else own.index(OPPOSITE[code]) for code in codes)
    return axes, tuple(1 if code in own else -1 for code in codes)


def fit_axes(grid: Grid, codes: str, spacing: Sequence[float]) -> tuple[AxisMap, tuple[int, int, int]]:
    """Map to, and shape of, the model grid that covers the study's grid.

    Both grids share their centre, so a flipped study gives the same model image.

    Parameters
    ----------
    codes : str
        Orientation of the model grid, e.g. "RAS".
    spacing : sequence of float
        Of the model grid, mm.
    """
    axes, signs = orient_to(grid, codes)
    shape, start, step = [], [], []
    for axis, sign, wanted in zip(axes, signs, spacing, strict=True):
        size, ratio = grid.shape[axis], wanted / grid.spacing[axis]
        if abs(ratio - 1) < SAME_SPACING:
            ratio = 1.0
        new = max(1, round(size / ratio))
        shape.append(new)
        step.append(sign * ratio)
        start.append((size - 1) / 2 - sign * ratio * (new - 1) / 2)
    return AxisMap(axes, tuple(start), tuple(step)), tuple(shape)


def axis_map(model: Grid, source: Grid) -> AxisMap:
    """The relation of two grids that differ by permutation, flip, scale and shift only; BadInput otherwise."""
    matrix = np.linalg.solve(source.affine, model.affine)
    axes = tuple(int(a) for a in np.abs(matrix[:3, :3]).argmax(axis=0))
    step = tuple(float(matrix[s, a]) for a, s in enumerate(axes))
    start = tuple(float(matrix[s, 3]) for s in axes)
    found = AxisMap(axes, start, step)
    rest = np.abs(matrix - found.matrix())[:3, :3] * np.asarray(model.shape)
    if sorted(axes) != [0, 1, 2] or rest.max() > 1e-2:
        raise BadInput(
            f"The model grid {model.shape} is not the study's grid {source.shape}, reordered and rescaled.",
            "Prepare the study again with `prepare`.",
        )
    return found
