"""Read one DICOM series as a volume, after a check that its slices form a regular grid. Torch-free.

SimpleITK (GDCM) reads headers and voxels, file by file: its own series reader takes the number type of the first
slice for all (wrong where rescale slopes differ, as in PET), stacks tilted and uneven slices as if they were regular,
and only warns of it. pydicom is needed for enhanced multi-frame files only, whose frame positions GDCM does not show.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from peftseg.dicom_copies import COPIES, copies
from peftseg.dicom_frames import no_position, read_frames, scaled_frames
from peftseg.dicom_regular import regularise as to_regular
from peftseg.dicom_stack import Slice, make_stack, place_of
from peftseg.errors import BadInput
from peftseg.grid import Grid

Plane = tuple[Path, int]  # a file, and the frame in it
NO_IMAGE_MODALITIES = {
    "SEG": "a segmentation",
    "RTSTRUCT": "a structure set",
    "RTPLAN": "a treatment plan",
    "RTDOSE": "a dose",
    "SR": "a report",
    "PR": "a presentation state",
    "KO": "a selection of images",
    "REG": "a registration",
    "DOC": "a document",
}
# SOP classes without slices: structure sets and plans, reports, presentation states, registrations, DICOMDIR, ...
_NO_IMAGE_CLASSES = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(481\.[3-9]|88\.|11\.|66|67|104\.|9\.))")
# Enhanced and legacy converted CT, MR, PET: also with one frame, its place is in the functional groups.
ENHANCED_CLASSES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(2\.[12]|4\.[134]|130|128\.1)")
REGULARISE = (
    'Have it resampled (series rules with "regularise": true), or load it in Slicer (DICOM module; acquisition geometry '
    "regularization on), harden the transform, and save the volume as .nrrd."
)


@dataclass(frozen=True)
class _ImagePlane(Slice):
    """A slice, the UID, number and description of its series, and the rescale slopes and intercepts of its file.

    `scales` has one of each frame of the file where they differ, and none where GDCM can apply them.
    """

    series: tuple[str, str, str]
    scales: tuple[tuple[float, float], ...] = ()


def is_dicom(path: Path) -> bool:
    """True when the file carries DICOM's mark or suffix."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def is_dicom_folder(folder: Path) -> bool:
    """True when a file directly inside is DICOM."""
    return any(p.is_file() and is_dicom(p) for p in sorted(Path(folder).iterdir()))


def files_in(path: Path) -> list[Path]:
    """The files of an input: itself, or those in a folder, hidden ones left out."""
    return [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")


def patient_mark(folder: Path) -> str | None:
    """What series of one patient have in common: a hash of PatientID and its issuer, never to be written anywhere.

    None where the series does not say it, or cannot be read, which `read_series` tells.
    """
    for file in filter(is_dicom, files_in(folder)):
        reader = _reader(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # no image, or damaged
            continue
        number, issuer = _tag(reader, "0010|0020"), _tag(reader, "0010|0021")
        return hashlib.sha256(f"{number}\n{issuer}".encode()).hexdigest() if number else None
    return None


def read_series(path: Path | str, regularise: bool = False) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Read the one series of a folder, or one multi-frame file.

    Slices are sorted along their normal. A slice may lie up to 5 % of the slice step or 0.1 mm off its even place, and
    the whole stack may shift sideways by 0.2 pixels; more is refused, or resampled on request. Slices that lack at either
    end cannot be noticed. Rescale slope and intercept are applied slice by slice. Of files that are there twice one is taken.

    Parameters
    ----------
    path : Path or str
        Folder of one series, or file.
    regularise : bool
        Resample missing slices, uneven steps and gantry tilt to a regular grid; see `dicom_regular`.

    Returns
    -------
    array : np.ndarray
        (I, J, K) float32; i runs along rows, j down columns, k along the slice normal.
    grid : Grid
        Position of the series.
    notes : tuple of str
        What was done to the slices, and how many files were left out as copies. No names.

    Raises
    ------
    BadInput
        No images; several series or volumes; colour; mixed sizes or orientations; missing slices, uneven steps or
        gantry tilt; damaged files.
    """
    path = Path(path)
    files = files_in(path)
    shown = {path: path.name}
    if path not in files:  # numbered, because batches withhold names
        shown = {file: f"{file.name} (file {n} of {len(files)})" for n, file in enumerate(files, start=1)}
    slices, left_out = _without_copies(_slices(files, shown, path.name))
    array, grid, notes = _read(slices, shown, path.name, regularise)
    return array, grid, (*([f"{COPIES.format(left_out)}."] if left_out else []), *notes)


def read_planes(
    planes: Sequence[Plane], name: str, regularise: bool = False
) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """Read the planes of one volume, e.g. `dicom_sort.Series.planes`; file names appear in no message.

    Returns
    -------
    array, grid : np.ndarray, Grid
        As `read_series`.
    notes : tuple of str
        What was done to the slices; none unless they were resampled.

    Raises
    ------
    BadInput
        As `read_series`.
    """
    files = list(dict.fromkeys(file for file, _ in planes))
    shown = {file: f"{name}: file {n} of {len(files)}" for n, file in enumerate(files, start=1)}
    wanted = set(planes)
    slices = [item for item in _slices(files, shown, name) if (item.file, item.frame) in wanted]
    if len(slices) < len(wanted):
        raise BadInput(
            f"{name}: {len(wanted) - len(slices)} of its {len(wanted)} slices are gone.", "Sort the folder again."
        )
    return _read(slices, shown, name, regularise)


def _read(
    slices: list[_ImagePlane], shown: dict[Path, str], name: str, regularise: bool
) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    _check_one_series(slices, name)
    stack = make_stack(slices, name)
    if stack.problems and not regularise:
        raise BadInput(f"{name}: {'; '.join(stack.problems)}. Expected evenly spaced parallel slices.", REGULARISE)
    return to_regular(_voxels(stack.slices, shown), stack, name)


def _without_copies(slices: list[_ImagePlane]) -> tuple[list[_ImagePlane], int]:
    """Without the planes of files that show the very image of another; and the number of these files."""
    found = copies(
        (s.file, (s.series, s.size, s.spacing, s.scales, place_of(s.position, s.orientation))) for s in slices
    )
    return [s for s in slices if s.file not in found], len(found)


def _voxels(slices: Sequence[_ImagePlane], shown: dict[Path, str]) -> np.ndarray:
    """(K, rows, columns) float32, rescaled, in the order of the slices."""
    columns, rows = slices[0].size
    array = np.empty((len(slices), rows, columns), dtype=np.float32)
    for file, places in _by_file(slices).items():
        planes = _planes(file, slices[places[0][0]].scales, shown[file])
        for place, frame in places:
            array[place] = planes[frame]
    return array


def _by_file(slices: Sequence[Slice]) -> dict[Path, list[tuple[int, int]]]:
    files: dict[Path, list[tuple[int, int]]] = {}
    for place, item in enumerate(slices):
        files.setdefault(item.file, []).append((place, item.frame))
    return files


def _planes(file: Path, scales: tuple[tuple[float, float], ...], shown: str) -> np.ndarray:
    """(frames, rows, columns) float32, rescaled."""
    if scales:
        return scaled_frames(file, scales, shown)
    reader = _reader(file)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise _damaged(file, shown) from error


def _reader(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return reader


def _damaged(file: Path, shown: str) -> BadInput:
    size = file.stat().st_size if file.exists() else 0
    return BadInput(
        f"{shown} cannot be read as a DICOM image ({size} bytes): it is empty, cut off, damaged or of an unknown "
        "compression.",
        "Export the series again; for unknown compressions, load it in Slicer and save it as .nrrd.",
    )


def _slices(files: Sequence[Path], shown: dict[Path, str], name: str) -> list[_ImagePlane]:
    """All image planes of files; those that are not DICOM, or DICOM without planes, are left out."""
    found: list[_ImagePlane] = []
    for file in files:
        reader = _reader(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if is_dicom(file) and not _has_no_image(file):
                raise _damaged(file, shown[file]) from error
            continue
        if _tag(reader, "0008|0060") not in NO_IMAGE_MODALITIES:
            found.extend(_slices_of_file(file, reader, shown[file]))
    if not found:
        raise BadInput(
            f"{name} holds no DICOM image; expected the files of one image series.",
            "Give the folder of one CT, MR or PET series.",
        )
    return found


def _has_no_image(file: Path) -> bool:
    with file.open("rb") as stream:
        return bool(_NO_IMAGE_CLASSES.search(stream.read(1024)))


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""


def _is_enhanced(reader: sitk.ImageFileReader) -> bool:
    return int(_tag(reader, "0028|0008") or 1) > 1 or bool(ENHANCED_CLASSES.fullmatch(_tag(reader, "0008|0016")))


def _slices_of_file(file: Path, reader: sitk.ImageFileReader, shown: str) -> list[_ImagePlane]:
    if reader.GetNumberOfComponents() != 1:
        raise BadInput(
            f"{shown} is a colour image ({reader.GetNumberOfComponents()} values a pixel); expected grey values.",
            "Give the original series, not a colour rendering or secondary capture.",
        )
    series = tuple(_tag(reader, key) for key in ("0020|000e", "0020|0011", "0008|103e"))
    size = reader.GetSize()[:2]
    if _is_enhanced(reader):
        frames = read_frames(file, shown)
        scales = tuple(frame.scale for frame in frames)
        scales = scales if len(set(scales)) > 1 else ()
        return [
            _ImagePlane(file, n, frame.position, frame.orientation, frame.spacing, size, series, scales)
            for n, frame in enumerate(frames)
        ]
    position, orientation = _numbers(_tag(reader, "0020|0032")), _numbers(_tag(reader, "0020|0037"))
    if len(position) != 3 or len(orientation) != 6:
        raise no_position(shown)
    return [_ImagePlane(file, 0, position, orientation, reader.GetSpacing()[:2], size, series)]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(v) for v in text.split("\\")) if text else ()


def _check_one_series(slices: list[_ImagePlane], name: str) -> None:
    counts = Counter(s.series for s in slices)
    if len({uid for uid, _, _ in counts}) > 1:
        listed = "; ".join(
            f"number {number or '?'} '{description or 'no description'}' ({n} slices)"
            for (_, number, description), n in counts.items()
        )
        raise BadInput(
            f"{name} holds {len(counts)} DICOM series: {listed}. Expected one series a folder.",
            "Put each series into a folder of its own (`peftseg dicom sort` does it) and give that folder.",
        )
    if len(slices) == 1:
        raise BadInput(
            f"{name} holds one DICOM slice; expected a series of at least two.",
            "Give the folder of the whole series, not one of its files.",
        )
