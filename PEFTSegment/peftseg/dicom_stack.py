"""Whether image planes form a regular grid: order, step, missing slices, uneven steps, tilt. Torch-free, numbers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftseg.errors import BadInput
from peftseg.grid import LPS_RAS

STEP_TOLERANCE = 0.05  # a slice may lie this part of the slice step off its even place ...
ROUNDING_MM = 0.1  # ... or this far, as scanners write positions in tenths of mm, but at most ...
ROUNDING_SHARE = 0.2  # ... this part of the step
TILT_TOLERANCE = 0.2  # the stack may shift sideways by this part of a pixel, over all slices
ORIENTATION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Slice:
    """One image plane: where it lies (LPS mm) and where its voxels are.

    Attributes
    ----------
    file : Path
        DICOM file.
    frame : int
        Frame in that file.
    position : tuple of float
        Centre of the first pixel.
    orientation : tuple of float
        Unit vectors along a row and along a column.
    spacing : tuple of float
        Pixel size along a row and along a column.
    size : tuple of int
        Columns, rows.
    """

    file: Path
    frame: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel planes of one size, in order along their normal.

    Attributes
    ----------
    slices : tuple of Slice
        In order of depth.
    row, column : np.ndarray
        (3,) unit vectors, LPS.
    depth : np.ndarray
        (K,) mm along the normal.
    shift : np.ndarray
        (K, 2) mm that a slice lies off the first one, along row and column.
    problems : tuple of str
        Why the planes are no regular grid; none: they are one.
    """

    slices: tuple[Slice, ...]
    row: np.ndarray
    column: np.ndarray
    depth: np.ndarray
    shift: np.ndarray
    problems: tuple[str, ...]

    def affine(self, step: float | None = None, start: np.ndarray | None = None) -> np.ndarray:
        """(4, 4) from index to RAS mm; the mean slice step in mm and the first voxel's place (LPS mm) may be replaced."""
        first = self.slices[0]
        step = float((self.depth[-1] - self.depth[0]) / (len(self.depth) - 1)) if step is None else step
        return affine_of(self.row, self.column, first.spacing, step, first.position if start is None else start)


def make_stack(slices: Sequence[Slice], name: str) -> Stack:
    """Order planes along their normal and say what keeps them from being a regular grid.

    Parameters
    ----------
    slices : sequence of Slice
        At least two.
    name : str
        How to call them in errors.

    Raises
    ------
    BadInput
        Mixed sizes, pixel sizes or orientations; several planes at one place. (Missing slices, uneven steps and tilt are
        in `Stack.problems`, because they can be resampled.)
    """
    for what, values in (
        ("sizes", [f"{s.size[0]} x {s.size[1]} pixels" for s in slices]),
        ("pixel sizes", [f"{s.spacing[0]:.4g} x {s.spacing[1]:.4g} mm" for s in slices]),
        ("orientations", orientation_groups([s.orientation for s in slices])),
    ):
        kinds = Counter(values)
        if len(kinds) > 1:
            listed = "; ".join(f"{n} slices of {value}" for value, n in kinds.most_common())
            raise BadInput(
                f"{name}: the slices have {len(kinds)} different {what}: {listed}. Expected one.",
                "Remove the slices that do not belong to the volume, e.g. scout images.",
            )
    check_one_volume(slices, name)
    row, column = np.array(slices[0].orientation).reshape(2, 3)
    depth = np.array([s.position for s in slices]) @ np.cross(row, column)
    order = np.argsort(depth)
    slices, depth = tuple(slices[n] for n in order), depth[order]
    if np.median(np.diff(depth)) <= 0:
        raise BadInput(f"{name}: its slices lie at one depth; expected a stack.", "Give one volume.")
    positions = np.array([s.position for s in slices])
    shift = (positions - positions[0]) @ np.column_stack([row, column])
    problems = [*_tilt(depth, shift, min(slices[0].spacing)), *_unevenness(depth)]
    return Stack(slices, row, column, depth, shift, tuple(problems))


def affine_of(
    row: np.ndarray, column: np.ndarray, spacing: Sequence[float], step: float, start: Sequence[float] | np.ndarray
) -> np.ndarray:
    """(4, 4) from index to RAS mm of parallel planes: axes and first voxel in LPS, pixel size along row and column."""
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([row * spacing[0], column * spacing[1], np.cross(row, column) * step])
    lps[:3, 3] = start
    return LPS_RAS @ lps


def orientation_groups(orientations: Sequence[tuple[float, ...]]) -> list[str]:
    """The orientation of each plane as text, equal within the tolerance to the first of its kind."""
    kinds: list[np.ndarray] = []
    names = []
    for orientation in orientations:
        values = np.array(orientation)
        match = next((k for k in kinds if np.abs(k - values).max() <= ORIENTATION_TOLERANCE), None)
        if match is None:
            kinds.append(values)
            match = values
        names.append(" ".join(f"{v:.3g}" for v in match))
    return names


def place_of(position: tuple[float, ...], orientation: tuple[float, ...], digits: int = 3) -> tuple[float, ...]:
    """Position and orientation, rounded: planes with equal places lie on each other."""
    return tuple(float(v) for v in np.round([*position, *orientation], digits) + 0.0)  # + 0.0 turns -0 into 0


def check_one_volume(slices: Sequence[Slice], name: str) -> None:
    """Refuse several planes at the same place."""
    most = max(Counter(place_of(s.position, s.orientation) for s in slices).values())
    if most > 1:
        raise BadInput(
            f"{name}: up to {most} of its {len(slices)} slices lie at the same place, so it holds several volumes "
            "(time points, echoes, b-values, or kinds such as magnitude and phase); expected one.",
            "Split it with `peftseg dicom sort`, dcm2niix or in Slicer, and give one volume.",
        )


def usual_step(depth: np.ndarray) -> float:
    """The median distance of neighbouring slices in mm."""
    return float(np.median(np.diff(depth)))


def step_tolerance(step: float) -> float:
    """How far in mm a slice may lie off its even place."""
    return max(STEP_TOLERANCE * step, min(ROUNDING_MM, ROUNDING_SHARE * step))


def _tilt(depth: np.ndarray, shift: np.ndarray, pixel: float) -> list[str]:
    if np.linalg.norm(shift, axis=1).max() <= TILT_TOLERANCE * pixel:
        return []
    angle = np.degrees(np.arctan2(np.linalg.norm(shift[-1]), depth[-1] - depth[0]))
    return [f"the stack is tilted by {angle:.1f} degrees against its slices (gantry tilt; expected 0)"]


def _unevenness(depth: np.ndarray) -> list[str]:
    """Missing slices or uneven steps, with numbers; none where the slices lie evenly within the tolerance."""
    steps, usual = np.diff(depth), usual_step(depth)
    even = np.linspace(depth[0], depth[-1], len(depth))
    tolerance = step_tolerance(usual)
    if np.abs(depth - even).max() <= tolerance + 1e-6:
        return []
    whole = np.rint(steps / usual)
    if (np.abs(steps - whole * usual) <= tolerance).all():
        first = int(np.argmax(whole > 1))
        return [
            f"missing slices: {int((whole - 1).sum())} (step {usual:.4g} mm; first gap {steps[first]:.4g} mm after "
            f"slice {first + 1} of {len(steps) + 1})"
        ]
    return [
        f"the slice steps are uneven, from {steps.min():.4g} to {steps.max():.4g} mm (usual {usual:.4g} mm; "
        f"a slice may lie {tolerance:.2g} mm off)"
    ]
