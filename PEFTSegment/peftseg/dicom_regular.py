"""Resample a stack with missing slices, uneven steps or gantry tilt to a regular grid, and say what was done. Torch-free.

Tilt is undone by a shear: every slice is moved within its plane to where it lies in the patient, and the picture is made
as much larger as that takes. Slices that lack, or lie off the even step, come from the two neighbouring ones by linear
interpolation along the normal. Both only move values to where they belong: nothing is sharpened or filled in from elsewhere.
"""

from __future__ import annotations

import numpy as np

from peftseg.dicom_stack import TILT_TOLERANCE, Stack, usual_step
from peftseg.errors import BadInput
from peftseg.grid import Grid

LARGEST_GAP = 4.0  # steps between two slices that are bridged: three missing ones; more would be made-up anatomy
LARGEST_GAP_MM = 20.0
ON_A_SLICE = 1e-3  # of a step: so close to a measured slice its values are taken as they are


def regularise(planes: np.ndarray, stack: Stack, name: str) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Resample to an even grid with right angles.

    Parameters
    ----------
    planes : np.ndarray
        (K, rows, columns) float32, in the order of `stack.slices`.
    stack : Stack
        Where the planes lie.
    name : str
        How to call them in notes and errors.

    Returns
    -------
    array : np.ndarray
        (I, J, K') float32. Voxels outside of all slices have the smallest value of the volume.
    grid : Grid
        The first slice's plane, enlarged in whole pixels, and the usual slice step (adjusted so that the last slice is met).
    notes : tuple of str
        What was done, with the geometry; none where the stack was regular.

    Raises
    ------
    BadInput
        A gap is too wide to be bridged.
    """
    if not stack.problems:
        columns, rows = stack.slices[0].size
        return planes.transpose(2, 1, 0), Grid((columns, rows, len(planes)), stack.affine()), ()
    _check_gaps(stack.depth, name)
    count = round((stack.depth[-1] - stack.depth[0]) / usual_step(stack.depth)) + 1
    step = float((stack.depth[-1] - stack.depth[0]) / (count - 1))
    spacing = np.array(stack.slices[0].spacing)
    pixels = stack.shift / spacing  # (K, 2) along row and column
    if np.linalg.norm(stack.shift, axis=1).max() > TILT_TOLERANCE * spacing.min():
        low, high = np.floor(pixels.min(axis=0)).astype(int), np.ceil(pixels.max(axis=0)).astype(int)
        planes = _sheared(planes, pixels - low, tuple((high - low).tolist()))
    else:
        low = np.zeros(2, int)
    start = np.array(stack.slices[0].position) + stack.row * low[0] * spacing[0] + stack.column * low[1] * spacing[1]
    array = _even(planes, stack.depth, step, count)
    grid = Grid((array.shape[2], array.shape[1], count), stack.affine(step, start))
    return array.transpose(2, 1, 0), grid, (_note(name, stack, grid, step),)


def _check_gaps(depth: np.ndarray, name: str) -> None:
    steps, usual = np.diff(depth), usual_step(depth)
    widest = float(steps.max())
    if widest > LARGEST_GAP * usual + 1e-3 or widest > max(LARGEST_GAP_MM, usual + 1e-3):
        raise BadInput(
            f"{name}: a gap of {widest:.4g} mm (usual step {usual:.4g} mm) after slice {int(steps.argmax()) + 1} of "
            f"{len(depth)} is too wide to be bridged; at most {LARGEST_GAP:g} steps and {LARGEST_GAP_MM:g} mm are.",
            "Export the series again with all its slices.",
        )


def _sheared(planes: np.ndarray, pixels: np.ndarray, larger: tuple[int, int]) -> np.ndarray:
    """Planes moved by `pixels` (K, 2; columns, rows) to larger pictures; outside the smallest value."""
    from scipy import ndimage  # late: not needed for regular series

    count, rows, columns = planes.shape
    fill = planes.min()
    moved = np.full((count, rows + larger[1], columns + larger[0]), fill, np.float32)
    for plane, target, (right, down) in zip(planes, moved, pixels, strict=True):
        j, i = int(np.floor(down)), int(np.floor(right))
        part = (down - j, right - i)  # the outermost line is lost to it: only measured values are interpolated
        target[j : j + rows, i : i + columns] = (
            ndimage.shift(plane, part, order=1, mode="constant", cval=float(fill)) if max(part) > 1e-6 else plane
        )
    return moved


def _even(planes: np.ndarray, depth: np.ndarray, step: float, count: int) -> np.ndarray:
    """(count, rows, columns): the planes at even depths, from the two neighbours each."""
    array = np.empty((count, *planes.shape[1:]), np.float32)
    for k, wanted in enumerate(depth[0] + step * np.arange(count)):
        above = int(np.clip(np.searchsorted(depth, wanted), 1, len(depth) - 1))
        share = float(np.clip((wanted - depth[above - 1]) / (depth[above] - depth[above - 1]), 0, 1))
        if min(share, 1 - share) < ON_A_SLICE:
            array[k] = planes[above - 1 + round(share)]
        else:
            array[k] = planes[above - 1] * np.float32(1 - share) + planes[above] * np.float32(share)
    return array


def _note(name: str, stack: Stack, grid: Grid, step: float) -> str:
    columns, rows = stack.slices[0].size
    steps = np.diff(stack.depth)
    return (
        f"{name} was resampled to a regular grid: {'; '.join(stack.problems)}. Before: {columns} x {rows} pixels, "
        f"{len(stack.slices)} slices at steps of {steps.min():.4g} to {steps.max():.4g} mm; now: {grid.shape[0]} x "
        f"{grid.shape[1]} pixels, {grid.shape[2]} slices at {step:.4g} mm, at right angles. Results lie on the new grid."
    )
