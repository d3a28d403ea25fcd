"""What ITK's NIfTI reader leaves unsaid. Torch-free.

It fills what a cut-off file lacks with zeros, turns voxels that are not finite into zeros, and takes one of two
positions that contradict each other; all without a word. So the bytes are looked through here as well.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from peftseg.errors import BadInput
from peftseg.grid import Grid

_CHUNK = 1 << 22  # bytes; a multiple of every voxel's size
_FLOATS = {"16": "f4", "64": "f8"}  # NIfTI-1 datatype codes


def is_nifti(reader: sitk.ImageFileReader) -> bool:
    """True when the header that `reader` has read is a NIfTI header."""
    return "vox_offset" in reader.GetMetaDataKeys()


def scan_voxels(path: Path, reader: sitk.ImageFileReader) -> dict[float, np.ndarray]:
    """Look through the whole file.

    Returns
    -------
    dict
        NaN, inf and -inf -> flat indices (first axis fastest) of the voxels that have this value.

    Raises
    ------
    BadInput
        The file is cut off, or its compressed data are damaged.
    """
    fields = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    sizes = [int(fields[f"dim[{n}]"]) for n in range(1, int(fields["dim[0]"]) + 1)]
    offset = int(float(fields["vox_offset"]))
    expected = int(np.prod(sizes, dtype=np.int64)) * int(fields["bitpix"]) // 8
    found, reason = 0, ""
    places: dict[float, list[np.ndarray]] = {np.nan: [], np.inf: [], -np.inf: []}
    try:
        with _plain(path) as file:
            dtype = _float_type(file.read(4), fields["datatype"])
            file.read(offset - 4)
            while chunk := file.read(_CHUNK):
                if dtype is not None:
                    _note_nonfinite(chunk[: max(0, expected - found)], dtype, found // dtype.itemsize, places)
                found += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f" ({error})"
    if reason or found < expected:
        size = reason or f": it holds {found} bytes of voxels, {expected} were expected"
        raise BadInput(f"{path.name} is cut off or damaged{size}.", "Export or copy the file again.")
    return {value: np.concatenate(where) for value, where in places.items() if where}


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if they are packed."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        yield file


def _float_type(header_size: bytes, code: str) -> np.dtype | None:
    if code not in _FLOATS:
        return None
    big = int.from_bytes(header_size, "big") == 348  # ITK reads no NIfTI-2
    return np.dtype((">" if big else "<") + _FLOATS[code])


def _note_nonfinite(chunk: bytes, dtype: np.dtype, first: int, places: dict[float, list[np.ndarray]]) -> None:
    values = np.frombuffer(chunk, dtype, count=len(chunk) // dtype.itemsize)
    odd = np.flatnonzero(~np.isfinite(values))
    if not odd.size:
        return
    for value, where in places.items():
        match = np.isnan(values[odd]) if np.isnan(value) else values[odd] == value
        if match.any():
            where.append(odd[match] + first)


def position_notes(reader: sitk.ImageFileReader, grid: Grid, path: Path) -> tuple[str, ...]:
    """A note where the file's sform says another position than the one that ITK and Slicer take."""
    if int(reader.GetMetaData("sform_code")) < 1:
        return ()
    rows = [[float(v) for v in reader.GetMetaData(f"srow_{axis}").split()] for axis in "xyz"]
    difference = np.array([*rows, [0.0, 0.0, 0.0, 1.0]]) - grid.affine
    ends = np.array([[0, 0, 0, 1], *[[*row, 1] for row in np.diag(np.array(grid.shape) - 1)]])
    distance = float(np.linalg.norm((ends @ difference.T)[:, :3], axis=1).max())
    if distance <= 0.1 * min(grid.spacing):
        return ()
    return (
        f"{path.name} stores two positions (qform and sform) that lie up to {distance:.1f} mm apart; "
        "the qform is used, as in Slicer. Other programs may show scan and result shifted.",
    )
