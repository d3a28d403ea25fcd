"""What is painted in a segmentation: whether, how much, where. Answers are kept until the voxels change.

Nothing here needs Qt.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk

CACHE_SIZE = 4096
COARSE = 4  # first look at every fourth voxel of each axis: nearly all structures are larger
SLAB = 16 << 20  # voxels compared at once
SAMPLE = 2_000_000  # voxels that a centre is computed from
_known: dict[tuple, object] = {}


def is_painted(segmentation: slicer.vtkMRMLSegmentationNode, segment_id: str) -> bool:
    """Whether a segment has any voxel in its own labelmap."""
    return bool(_ask("painted", segmentation, segment_id, _holds, False))


def voxel_count(segmentation: slicer.vtkMRMLSegmentationNode, segment_id: str) -> int:
    """Voxels of a segment in its own labelmap."""
    return int(_ask("count", segmentation, segment_id, lambda array, value: np.count_nonzero(array == value), 0))


def centre(segmentation: slicer.vtkMRMLSegmentationNode, segment_id: str) -> np.ndarray | None:
    """Centre of mass of a segment in RAS mm of the world, None for an empty one; from a sample of a large one."""
    place = _ask("centre", segmentation, segment_id, _mean_index, None)
    if place is None:
        return None
    image = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    extent = image.GetExtent()
    index = np.array([place[2] + extent[0], place[1] + extent[2], place[0] + extent[4], 1.0])
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    point = slicer.util.arrayFromVTKMatrix(matrix) @ index
    transform = segmentation.GetParentTransformNode()
    if transform is not None:
        return np.array(transform.GetTransformToWorld().TransformPoint(point[:3]))
    return point[:3]


def _ask(question: str, segmentation, segment_id: str, answer, otherwise):
    """The kept answer about a segment's labelmap, or a new one after a change."""
    image = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    if image is None or image.IsEmpty():
        return otherwise
    value = segmentation.GetSegmentation().GetSegment(segment_id).GetLabelValue()
    key = (question, image.GetAddressAsString(""), image.GetMTime(), value)
    if key not in _known:
        if len(_known) >= CACHE_SIZE:
            _known.clear()
        array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(segmentation, segment_id)
        _known[key] = answer(array, value)
    return _known[key]


def _holds(array: np.ndarray, value: int) -> bool:
    """Whether a value occurs; quick where it occurs in a place of some size."""
    if (array[::COARSE, ::COARSE, ::COARSE] == value).any():
        return True
    step = max(1, SLAB // max(1, array[0].size))
    return any((array[first : first + step] == value).any() for first in range(0, len(array), step))


def _mean_index(array: np.ndarray, value: int) -> tuple[float, float, float] | None:
    """Mean index along each axis of where a value is."""
    step = max(1, round((array.size / SAMPLE) ** (1 / 3)))
    for stride in dict.fromkeys((step, 1)):  # a structure that the sample misses is looked for in all voxels
        mask = array[::stride, ::stride, ::stride] == value
        if not mask.any():
            continue
        counts = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        return tuple(stride * float((c * np.arange(len(c))).sum() / c.sum()) for c in counts)
    return None
