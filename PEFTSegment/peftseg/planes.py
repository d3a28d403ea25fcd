"""Planes in which a network of slices sees a scan, as orientations of the model grid. Torch-free.

The slices' own two axes come first and the axis from slice to slice last: that is all a 2D network needs, because
everything between the scan and the model grid follows `Preprocessing.orientation`, voxel sizes included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from peftseg.axis_map import orient_to
from peftseg.errors import BadInput, unknown_name
from peftseg.grid import Grid

Number = TypeVar("Number", int, float)

PLANES = {"axial": "RAS", "coronal": "RSA", "sagittal": "PSR"}  # sagittal as in the CC359 experiments
DEFAULT_PLANE = "axial"
VOLUMES = "RAS"  # of networks that see volumes
SLICE_NETWORKS = ("unet2d",)
_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def orientation_for(network: str, plane: str | None) -> str:
    """Orientation of the model grid.

    Parameters
    ----------
    network : str
        Name of a network builder.
    plane : str or None
        One of `PLANES` for a network of slices; None: its default there, and for a network of volumes.

    Raises
    ------
    BadInput
        Unknown plane, or a plane for a network that sees volumes.
    """
    if plane is not None and plane not in PLANES:
        raise unknown_name("plane", plane, PLANES)
    if network in SLICE_NETWORKS:
        return PLANES[plane or DEFAULT_PLANE]
    if plane is not None:
        raise BadInput(
            f"The plane '{plane}' is for networks that work on slices ({', '.join(SLICE_NETWORKS)}); '{network}' sees volumes.",
            "Leave the plane out, or choose another network.",
        )
    return VOLUMES


def in_orientation(values: Sequence[Number], orientation: str) -> tuple[Number, Number, Number]:
    """Three numbers, given left-right, front-back and head-foot, along the axes of an orientation such as "PSR"."""
    return tuple(values[_AXES[code]] for code in orientation)


def spacing_along(grid: Grid, orientation: str) -> tuple[float, float, float]:
    """Voxel size in mm of a scan along the axes of an orientation, whatever the order of the scan's own axes."""
    axes, _ = orient_to(grid, orientation)
    return tuple(grid.spacing[axis] for axis in axes)
