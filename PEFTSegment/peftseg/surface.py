"""Distances between the surfaces of two masks, weighted by surface area.

Surface elements and their areas come from MONAI's copy of the published marching-cubes table
(`get_mask_edges(..., spacing=...)`). Distances are computed here, by an exact distance transform: MONAI's
nearest-neighbour search in scaled coordinates turns a distance of exactly the tolerance into one just above it, because
3 x 0.7 - 2 x 0.7 > 0.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from peftseg.errors import BadInput

Distances = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> Distances:
    """Distances from each mask's surface elements to the other mask's surface.

    A surface element ("surfel") sits at the corner between 2x2x2 voxels that are not all equal, and has the area of its
    marching-cubes triangles. The outside of the array counts as background.

    Parameters
    ----------
    prediction, truth : np.ndarray
        (I, J, K) bool, neither of them empty.
    spacing : sequence of float
        Voxel size in mm along the arrays' axes.

    Returns
    -------
    tuple
        Of the prediction, then of the truth: distances (N,) in mm, and areas (N,) in mm2.

    Raises
    ------
    BadInput
        Masks that are not 3D, or a spacing that is not three numbers above 0.
    """
    from monai.metrics.utils import get_mask_edges

    spacing = tuple(float(s) for s in spacing)
    if prediction.ndim != 3 or len(spacing) != 3 or not all(s > 0 and math.isfinite(s) for s in spacing):
        raise BadInput(
            f"Masks of {prediction.shape} voxels with spacing {spacing} mm have no surface distance.",
            "Give 3D masks and three voxel sizes above 0.",
        )
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    edges_p, edges_t, areas_p, areas_t = get_mask_edges(prediction[box], truth[box], spacing=spacing)
    edges_p, edges_t = edges_p.astype(bool), edges_t.astype(bool)
    return (
        (_to_nearest(edges_p, edges_t, spacing), areas_p[edges_p].astype(np.float64)),
        (_to_nearest(edges_t, edges_p, spacing), areas_t[edges_t].astype(np.float64)),
    )


def area_within(distances: Distances, tolerance_mm: float) -> float:
    """Share of both surfaces' area whose distance is at most the tolerance."""
    close = sum(area[distance <= tolerance_mm].sum() for distance, area in distances)
    return float(close / sum(area.sum() for _, area in distances))


def robust_maximum(distances: Distances, share: float) -> float:
    """The larger of both directions' smallest distance in mm that `share` of the surface's area does not exceed."""
    return max(_percentile(distance, area, share) for distance, area in distances)


def _to_nearest(source: np.ndarray, target: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """(N,) mm from each source surfel to the nearest target surfel, in the order of `source`'s voxels."""
    nearest = ndimage.distance_transform_edt(~target, sampling=spacing, return_distances=False, return_indices=True)
    squared = np.zeros(np.count_nonzero(source))
    for axis, (here, step) in enumerate(zip(np.nonzero(source), spacing, strict=True)):
        squared += ((nearest[axis][source] - here) * step) ** 2  # whole voxels times mm: exact at the tolerance
    return np.sqrt(squared)


def _percentile(distance: np.ndarray, area: np.ndarray, share: float) -> float:
    order = np.argsort(distance, kind="stable")
    covered = np.cumsum(area[order])
    index = int(np.searchsorted(covered, share * covered[-1]))
    return float(distance[order][min(index, len(distance) - 1)])
