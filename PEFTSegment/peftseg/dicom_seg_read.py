"""Read DICOM SEG objects. Torch-free; pydicom reads the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peftseg.dicom_frames import damage_errors, quiet_pydicom
from peftseg.dicom_source import long_string, require
from peftseg.dicom_stack import affine_of
from peftseg.errors import BadInput
from peftseg.grid import LPS_RAS, Grid
from peftseg.volume import Labels


def read_dicom_seg(path: Path | str, grid: Grid | None = None) -> Labels:
    """Read a binary DICOM SEG object.

    Parameters
    ----------
    path : Path or str
        File.
    grid : Grid, optional
        The grid of the study that it belongs to; without it, the smallest one that holds all frames.

    Returns
    -------
    Labels
        On `grid`; segments by name, overlaps in layers.

    Raises
    ------
    BadInput
        pydicom is missing; no binary SEG object; frames that do not lie on the planes of the grid.
    """
    pydicom = require("pydicom", "Reading DICOM SEG")
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path} does not exist.", "Check the path.")
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path)
    except damage_errors() as error:
        raise BadInput(f"{path.name} is no DICOM file, or it is damaged.", "Give a DICOM SEG file.") from error
    if dataset.get("SegmentationType") != "BINARY" or "PixelData" not in dataset:
        raise BadInput(
            f"{path.name} is no binary DICOM segmentation ({dataset.get('Modality', 'no modality')}, "
            f"{dataset.get('SegmentationType', 'no segments')}).",
            "Load it in Slicer and save it as .seg.nrrd.",
        )
    grid = grid or _own_grid(dataset)
    rows, columns, planes = _planes_on(dataset, grid, path.name)
    numbers = np.array([_segment_of(frame, dataset) for frame in dataset.PerFrameFunctionalGroupsSequence])
    layers = [np.zeros(grid.shape[::-1], dtype=np.uint16)]  # planes of rows and columns, as in the file
    segments = {}
    for segment in dataset.SegmentSequence:
        number = int(segment.SegmentNumber)
        mask, begin = _mask(dataset, np.flatnonzero(numbers == number), planes, rows, columns)
        slab = slice(begin, begin + len(mask))
        place = next((n for n, layer in enumerate(layers) if not layer[slab][mask].any()), len(layers))
        if place == len(layers):
            layers.append(np.zeros(grid.shape[::-1], dtype=np.uint16))
        layers[place][slab][mask] = number
        segments[_name(segment)] = (place, number)
    return Labels(np.stack(layers).transpose(0, 3, 2, 1), grid, segments)


def _mask(dataset: Any, frames: np.ndarray, planes: list[int], rows: int, columns: int) -> tuple[np.ndarray, int]:
    """(n, rows, columns) bool of some frames, and the plane of the grid that it begins with."""
    if not frames.size:
        return np.zeros((0, rows, columns), dtype=bool), 0
    begin = min(planes[n] for n in frames)
    mask = np.zeros((max(planes[n] for n in frames) + 1 - begin, rows, columns), dtype=bool)
    for n in frames.tolist():
        mask[planes[n] - begin] |= _frame(dataset, n, rows, columns)
    return mask, begin


def _name(segment: Any) -> str:
    """The label; or the whole name, where `describe` had to shorten it."""
    label, text = str(segment.SegmentLabel), str(segment.get("SegmentDescription") or "")
    return text if text and long_string(text) == label else label


def _segment_of(frame: Any, dataset: Any) -> int:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    group = frame.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
    return int(group[0].ReferencedSegmentNumber)


def _frame(dataset: Any, index: int, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) bool of one frame."""
    begin = index * rows * columns
    end = begin + rows * columns
    some = np.frombuffer(dataset.PixelData, dtype=np.uint8)[begin // 8 : (end + 7) // 8]
    bits = np.unpackbits(some, bitorder="little")[begin % 8 :][: rows * columns]
    return bits.reshape(rows, columns).astype(bool)


def _own_grid(dataset: Any) -> Grid:
    """The grid from the first to the last frame."""
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    between_rows, between_columns = (float(v) for v in measures.PixelSpacing)
    row, column = _axes(dataset)
    normal = normal_of(dataset)
    positions = np.array([position(frame) for frame in dataset.PerFrameFunctionalGroupsSequence])
    depths = np.unique(np.round(positions @ normal, 3))
    step = float(measures.get("SpacingBetweenSlices") or (np.diff(depths).min() if len(depths) > 1 else 1.0))
    count = round(float(depths[-1] - depths[0]) / step) + 1
    affine = affine_of(row, column, (between_columns, between_rows), step, positions[np.argmin(positions @ normal)])
    return Grid((int(dataset.Columns), int(dataset.Rows), count), affine)


def _planes_on(dataset: Any, grid: Grid, name: str) -> tuple[int, int, list[int]]:
    """Rows, columns, and the plane of the grid that each frame is."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    inverse = np.linalg.inv(LPS_RAS @ grid.affine)
    places = [inverse @ [*position(frame), 1.0] for frame in dataset.PerFrameFunctionalGroupsSequence]
    turned = np.abs(_axes(dataset) - (np.diag([-1.0, -1.0, 1.0]) @ grid.directions)[:, :2].T).max()
    planes = [round(float(place[2])) for place in places]
    # positions are those of the scanner, and may lie a little off their even places
    off = max(float(np.abs(place[:3] - [0, 0, plane]).max()) for place, plane in zip(places, planes, strict=True))
    if (
        (columns, rows) != grid.shape[:2]
        or turned > 0.01
        or off > 0.2
        or not 0 <= min(planes) <= max(planes) < grid.shape[2]
    ):
        raise BadInput(
            f"{name} is not on the study's grid: its frames have {columns} x {rows} voxels and lie up to {off:.3g} voxels "
            f"off its planes; the study has {grid.describe()}.",
            "Give the segmentation of this study.",
        )
    return rows, columns, planes


def position(frame: Any) -> np.ndarray:
    """(3,) LPS mm of a frame's first pixel."""
    return np.array([float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient])


def _axes(dataset: Any) -> np.ndarray:
    """(2, 3): along a row, along a column."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    return np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]).reshape(2, 3)


def normal_of(dataset: Any) -> np.ndarray:
    """(3,) unit vector, normal to the frames."""
    return np.cross(*_axes(dataset))
