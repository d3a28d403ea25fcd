"""The DICOM series that a result refers to: its headers and its grid. Torch-free.

Headers are read by pydicom, voxels are not read at all.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from peftseg.dicom import files_in
from peftseg.dicom_copies import copies
from peftseg.dicom_frames import damage_errors, frames_of, quiet_pydicom
from peftseg.dicom_stack import ORIENTATION_TOLERANCE, affine_of, place_of
from peftseg.errors import BadInput
from peftseg.grid import Grid

PACKAGES = {"dicom-seg": "highdicom", "rtstruct": "contourpy"}  # what each format needs beside pydicom
FORMATS = tuple(PACKAGES)
LONGEST = 64  # signs of a DICOM long string
# what a derived object repeats and anonymisation may have removed; DICOM lets it be empty
PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_SHARED = ("PlaneOrientationSequence", "PixelMeasuresSequence")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
RESEARCH = "research use only, draft until reviewed"
SourceFile = Path | str | tuple[Path, int]  # a file; or one frame in it, where it holds more than was segmented


@dataclass(frozen=True, eq=False)
class Source:
    """A series whose planes make a regular stack.

    Attributes
    ----------
    headers : tuple of pydicom.Dataset
        One of each plane, along the stack; or the one of an enhanced multi-frame file, with its frames that are planes
        here. Without voxels.
    frames : tuple of int
        Of a multi-frame file: frame (from 0, in the file) of each plane along the stack. Empty for single-frame files.
    positions : np.ndarray
        (K, 3) LPS mm: centre of the first pixel of each plane along the stack.
    grid : Grid
        As `dicom.read_series` gives it: i along rows, j down columns, k along the normal.
    patient_and_study : dict
        Keyword -> value of `PATIENT_AND_STUDY`, as the source has them; they are empty in `headers`, because highdicom
        refuses unusual ones, and quotes names in its warnings.
    """

    headers: tuple[Any, ...]
    frames: tuple[int, ...]
    positions: np.ndarray
    grid: Grid
    patient_and_study: dict[str, Any]

    def header(self, plane: int) -> Any:
        """The header that a plane of the stack is in."""
        return self.headers[0 if self.frames else plane]


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of a series: its file and header, its frame (None: the file holds one), position and orientation (LPS)."""

    file: Path
    header: Any
    frame: int | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]  # along a row, along a column


def check_available(file_format: str) -> None:
    """BadInput with the command that installs it, where a package lacks that "dicom-seg" or "rtstruct" needs."""
    require("pydicom", file_format)
    require(PACKAGES[file_format], file_format)


def require(package: str, what: str) -> ModuleType:
    """Import a package that not every installation has; BadInput with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BadInput(
            f"{what} needs the package {package.partition('.')[0]}, which is not installed.",
            "Install it: pip install 'peftseg[dicom]'.",
        ) from error


def series_files(path: Path | str) -> list[Path]:
    """Files of a series folder (or the one file that was given), hidden ones left out; BadInput when there are none."""
    path = Path(path)
    files = files_in(path)
    if not files:
        raise BadInput(f"{path} holds no file; expected a DICOM series.", "Give the folder of one DICOM series.")
    return files


def read_source(files: Sequence[SourceFile], what: str = "DICOM output") -> Source:
    """Headers and grid of the one series in these files; files that hold no image plane are left out.

    Parameters
    ----------
    files : sequence of Path, str or (Path, int)
        Files, or frames (from 0) of files: `dicom_sort.Series.planes`, where a file holds several volumes.

    Raises
    ------
    BadInput
        pydicom is missing; no planes, one plane, several series or frames of reference, planes of several sizes or
        orientations.
    """
    require("pydicom", what)
    with quiet_pydicom():
        planes = [plane for file, frames in _frames_asked_for(files).items() for plane in _planes(file, frames)]
        return _source(_without_copies(planes))


def _without_copies(planes: list[Plane]) -> list[Plane]:
    """Without files that show the very image of another, as `dicom.read_series` leaves them out."""
    found = copies(
        (p.file, (str(p.header.get("SeriesInstanceUID", "")), p.spacing, place_of(p.position, p.orientation)))
        for p in planes
    )
    return [plane for plane in planes if plane.file not in found]


def _frames_asked_for(files: Sequence[SourceFile]) -> dict[Path, set[int] | None]:
    """File -> the frames of it, None for all."""
    asked: dict[Path, set[int] | None] = {}
    for entry in files:
        if isinstance(entry, tuple):
            file, frame = entry
            known = asked.setdefault(Path(file), set())
            if known is not None:
                known.add(frame)
        else:
            asked[Path(entry)] = None
    return asked


def _source(planes: list[Plane]) -> Source:
    _check_one_series(planes)
    row, column = np.array(planes[0].orientation).reshape(2, 3)
    normal = np.cross(row, column)
    order = np.argsort([np.dot(plane.position, normal) for plane in planes], kind="stable")
    planes = [planes[n] for n in order]
    positions = np.array([plane.position for plane in planes])
    step = float((positions[-1] - positions[0]) @ normal) / (len(planes) - 1)
    header = planes[0].header
    repeated = {name: header[name].value for name in PATIENT_AND_STUDY if name in header}
    affine = affine_of(row, column, planes[0].spacing, step, positions[0])
    grid = Grid((header.Columns, header.Rows, len(planes)), affine)
    if planes[0].frame is not None:
        return Source((_prepared(header),), tuple(plane.frame for plane in planes), positions, grid, repeated)
    for plane in planes:  # the same within rounding; highdicom takes equal ones only
        plane.header.ImageOrientationPatient = header.ImageOrientationPatient
    return Source(tuple(_prepared(plane.header) for plane in planes), (), positions, grid, repeated)


def long_string(text: str) -> str:
    """Text as DICOM's long strings hold it: one line, no backslash, at most 64 signs."""
    return " ".join(str(text).replace("\\", "/").split())[:LONGEST].strip()


def _planes(file: Path, frames: set[int] | None) -> list[Plane]:
    """The planes that lie in the patient, of a multi-frame file those of `frames` (None: all); none for other files."""
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        return _planes_of(file, header, frames)
    except damage_errors():
        return []


def _planes_of(file: Path, header: Any, frames: set[int] | None) -> list[Plane]:
    if "Rows" not in header or header.get("Modality") in ("SEG", "RTDOSE"):
        return []
    if "PerFrameFunctionalGroupsSequence" in header:
        return _frames(file, header, frames)
    position, orientation, spacing = (
        header.get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if not position or not orientation or not spacing:
        return []
    between_rows, between_columns = (float(v) for v in spacing)
    place = (tuple(float(v) for v in values) for values in (position, orientation))
    return [Plane(file, header, None, *place, (between_columns, between_rows))]


def _frames(file: Path, header: Any, wanted: set[int] | None) -> list[Plane]:
    """The planes of an enhanced multi-frame file, of which the header keeps what is wanted.

    Orientation and pixel size become shared by the frames.
    """
    try:
        frames = frames_of(header, "")
    except BadInput:  # frames without a place
        return []
    kept = [n for n in range(len(frames)) if wanted is None or n in wanted]
    if not kept:
        return []
    header.PerFrameFunctionalGroupsSequence = [header.PerFrameFunctionalGroupsSequence[n] for n in kept]
    header.NumberOfFrames = len(kept)
    shared = header.SharedFunctionalGroupsSequence[0]
    for name in _SHARED:
        if name not in shared:
            setattr(shared, name, header.PerFrameFunctionalGroupsSequence[0].get(name))
    return [Plane(file, header, n, frames[n].position, frames[n].orientation, frames[n].spacing) for n in kept]


def _check_one_series(planes: list[Plane]) -> None:
    if len(planes) < 2:
        raise BadInput(
            f"The source holds {len(planes)} DICOM image planes that lie in the patient; expected a series of at least "
            "two. Other files (NIfTI, NRRD) cannot be referred to from DICOM.",
            "Give the folder of the DICOM series that was segmented.",
        )
    first = planes[0]
    for what, values in (
        ("series", {str(p.header.get("SeriesInstanceUID", "")) for p in planes}),
        ("frames of reference", {str(p.header.get("FrameOfReferenceUID", "")) for p in planes}),
        ("sizes", {(p.header.Rows, p.header.Columns) for p in planes}),
        ("pixel sizes", {tuple(np.round(p.spacing, 5)) for p in planes}),
    ):
        if len(values) > 1:
            raise BadInput(
                f"The source holds planes of {len(values)} {what}; expected one.",
                "Give the files of the one series that was segmented.",
            )
    lacking = [name for name in _UIDS if any(not p.header.get(name) for p in planes)]
    if lacking:
        raise BadInput(
            f"The source series has no {' and no '.join(lacking)}, so nothing can refer to it.",
            "Export the series again from the archive, with its own identifiers or new ones; or write NIfTI or NRRD.",
        )
    turned = max(float(np.abs(np.subtract(p.orientation, first.orientation)).max()) for p in planes)
    if turned > ORIENTATION_TOLERANCE:
        raise BadInput(
            f"The planes of the source are turned against each other (direction cosines differ by {turned:.3g}); "
            "expected parallel planes.",
            "Give the series that was segmented, without scouts.",
        )
    if first.frame is not None and any(p.header is not first.header for p in planes):
        raise BadInput(
            "The source holds several multi-frame files; expected one.",
            "Give one of them, or say which volume it is: `peftseg dicom export --part`.",
        )
    most = max(Counter(place_of(p.position, p.orientation) for p in planes).values())
    if most > 1:
        raise BadInput(
            f"The source holds several volumes: up to {most} of its {len(planes)} planes lie at the same place; expected "
            "the planes that were segmented.",
            "Say which volume it is: `peftseg dicom export --part` (`peftseg dicom list` shows the parts), or give its files "
            "alone.",
        )


def _prepared(header: Any) -> Any:
    """A header for highdicom: patient and study emptied; a frame of reference, where anonymisation removed it.

    That is made from the series' identifier, so that all that refers to the series has the same.
    """
    from pydicom.uid import generate_uid

    for name in PATIENT_AND_STUDY:
        setattr(header, name, "")
    if not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(header.SeriesInstanceUID)])
    return header
