"""Sort folders and archives of DICOM files into series, by their headers. Torch-free; needs pydicom.

No patient's name, number or file name is in what this module returns as text: series and studies go by opaque keys, made
from their UIDs, so that the same series has the same key wherever it lies.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.archives import is_archive, unpack
from peftseg.dicom import Plane, is_dicom
from peftseg.dicom_copies import COPIES, copies
from peftseg.dicom_headers import CUT_OFF, FileHeader, PlaneHeader, read_header
from peftseg.dicom_split import Part, split
from peftseg.dicom_stack import make_stack, place_of, usual_step
from peftseg.errors import BadInput
from peftseg.events import Reporter

KEY_LENGTH = 12  # hexadecimal digits: 2^48 keys
SAY_EVERY = 100  # files
_PLANE_COSINE = np.cos(np.radians(30))  # a gantry tilts so far at most
_LETTERS = r"(?<![a-z])(scout|locali[sz]er|localizador|loc|surview|topogram|scanogram|survey|smartbrain)(?![a-z])"
_LOCALISER = re.compile(_LETTERS, re.IGNORECASE)
_FEW = 9  # slices of a three-plane localiser, at most, in each plane


@dataclass(frozen=True)
class Series:
    """One volume of a DICOM series: the whole series, or a part of it where it holds several volumes.

    Attributes
    ----------
    key, study : str
        Opaque ids.
    modality, number, description, image_type, kernel : str
        From the header; the description without the patient's name.
    part : str
        What tells it from the other volumes of its series, e.g. "echo time 4.92 ms"; "" where it is the only one.
    slices, rows, columns : int
        0 where there is no image.
    orientation : str
        "axial", "coronal", "sagittal", "oblique" or "".
    spacing : tuple of float or None
        Pixel size along a row and along a column in mm.
    step : float or None
        Usual distance of the slices in mm.
    contrast, localiser, secondary_capture : bool
        A contrast agent is named; a scout; a screenshot.
    planes : tuple of (Path, int)
        File and frame of each slice; for `dicom.read_planes`.
    problems : tuple of str
        Missing slices, uneven steps, tilt: what `regularise` resamples.
    unusable : str
        Why it can be no volume at all, in words; "" where it can.
    notes : tuple of str
        What the user should know, though it can be read.
    """

    key: str
    study: str
    modality: str
    number: str = ""
    description: str = ""
    part: str = ""
    image_type: str = ""
    kernel: str = ""
    slices: int = 0
    rows: int = 0
    columns: int = 0
    orientation: str = ""
    spacing: tuple[float, float] | None = None
    step: float | None = None
    contrast: bool = False
    localiser: bool = False
    secondary_capture: bool = False
    planes: tuple[Plane, ...] = ()
    problems: tuple[str, ...] = ()
    unusable: str = ""
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold it."""
        return tuple(dict.fromkeys(file for file, _ in self.planes))

    def facts(self) -> dict[str, Any]:
        """All but the planes, for a table or JSON; "files" is their number."""
        names = [name for name in self.__dataclass_fields__ if name != "planes"]
        return {name: getattr(self, name) for name in names} | {"files": len(self.files)}


def find_series(
    paths: Iterable[Path | str], reporter: Reporter | None = None, scratch: Path | None = None
) -> list[Series]:
    """The series in files, folders (with their sub-folders) and archives (also in each other).

    Parameters
    ----------
    paths : iterable of Path or str
        Where to look. Files that are not DICOM are passed over; hidden files and linked folders, too.
    reporter : Reporter, optional
        Told how many headers are read; asked whether to go on.
    scratch : Path, optional
        Folder into which archives are unpacked; the caller deletes it when the series are read. Without it, archives are
        listed as unusable.

    Returns
    -------
    list of Series
        By study, number and part; unusable ones (reports, segmentations, colour images, unreadable files) among them.

    Raises
    ------
    BadInput
        A path does not exist; pydicom is missing.
    JobCancelled
        The user cancelled.
    """
    reporter = reporter or Reporter.silent()
    files, broken = _dicom_files(paths, reporter, scratch)
    groups: dict[tuple[str, ...], list[FileHeader]] = defaultdict(list)
    unreadable: list[Path] = []
    for number, file in enumerate(files):
        if number % SAY_EVERY == 0:
            reporter.progress("read headers", number, len(files))
        reporter.check()
        header = read_header(file)
        if header is None:
            unreadable.append(file)
        else:
            groups[header.study, header.series, header.modality].append(header)
    if files:
        reporter.progress("read headers", len(files), len(files))
    found = [series for _, headers in sorted(groups.items()) for series in _series(headers)]
    found = _with_losses(found, unreadable)
    return sorted(found, key=lambda s: (s.study, as_number(s.number))) + _unreadable(unreadable) + broken


def opaque(text: str) -> str:
    """A key that tells nothing: the beginning of a hash."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:KEY_LENGTH]


def _dicom_files(
    paths: Iterable[Path | str], reporter: Reporter, scratch: Path | None
) -> tuple[list[Path], list[Series]]:
    """DICOM files, each once, archives unpacked; and an unusable series for each archive that could not be."""
    files: dict[Path, None] = {}
    broken: list[Series] = []
    for number, path in enumerate(all_files(paths)):
        if number % SAY_EVERY == 0:
            reporter.check()
        kind = _kind(path)
        if kind == "dicom":
            files[path] = None
        if kind != "archive":
            continue
        key = opaque(str(path.absolute()))
        try:
            if scratch is None:
                raise BadInput("There is no folder to unpack it into.", "Unpack it and give the folder.")
            folder = scratch / f"archive-{key}"
            folder.mkdir(exist_ok=True)
            files |= dict.fromkeys(unpack(path, folder, check=reporter.check))
        except BadInput as error:
            size = path.stat().st_size / 1e6
            broken.append(Series(key, "", "", unusable=f"an archive of {size:.3g} MB: {error}", planes=((path, 0),)))
    return list(files), broken


def _kind(path: Path) -> str:
    """What a file is: "archive", "dicom" or "other"; one that may not be read is "dicom", so that it is told later."""
    if not path.is_file():  # a pipe, a link to nothing
        return "other"
    try:
        if is_archive(path):
            return "archive"
        return "dicom" if is_dicom(path) else "other"
    except OSError:
        return "dicom"


def all_files(paths: Iterable[Path | str]) -> Iterator[Path]:
    """Files as they were given, and those in folders and their sub-folders, hidden ones left out."""
    for path in map(Path, paths):
        if path.is_file():
            yield path
        elif not path.is_dir():
            raise BadInput(f"{path} does not exist.", "Check the path.")
        for folder, names, files in os.walk(path):
            names[:] = sorted(name for name in names if not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _series(headers: list[FileHeader]) -> list[Series]:
    """The volumes of files that share study, series and modality, and one unusable entry for each reason."""
    headers, left_out = _without_copies(headers)
    usable = [header for header in headers if not header.unusable]
    reasons = Counter(header.unusable for header in headers if header.unusable)
    cut = sum(number for reason, number in reasons.items() if reason.startswith(CUT_OFF))
    found = []
    for reason, number in reasons.items():
        if not (usable and reason.startswith(CUT_OFF)):
            files = tuple((header.file, 0) for header in headers if header.unusable == reason)
            first = next(header for header in headers if header.unusable == reason)
            found.append(replace(_facts(first, reason), planes=files, notes=(f"{number} files",)))
    if usable:
        base = _facts(usable[0], f"{cut} of its {len(headers)} files are {CUT_OFF}" if cut else "")
        notes = (COPIES.format(left_out),) if left_out else ()
        base = replace(base, contrast=any(header.contrast for header in usable), notes=notes)
        by_plane = {plane: header for header in usable for plane in header.planes}
        parts = split(list(by_plane))
        localiser = _is_localiser(usable[0], parts)
        found += [_volume(base, part, by_plane[part.planes[0]], localiser) for part in parts]
    return found


def _facts(header: FileHeader, unusable: str) -> Series:
    """What a file tells of its series."""
    identity = f"{header.study}|{header.series}|{header.modality}"
    return Series(
        key=opaque(f"{identity}|{header.unusable}" if header.unusable else identity),
        study=opaque(header.study),
        modality=header.modality,
        number=header.number,
        description=header.description,
        image_type=header.image_type,
        kernel=header.kernel,
        contrast=header.contrast,
        secondary_capture=header.secondary_capture,
        unusable=unusable,
    )


def _without_copies(headers: list[FileHeader]) -> tuple[list[FileHeader], int]:
    """Each image once (a folder and an archive of it may both be there); the number of files left out.

    Files without planes go by their UID.
    """
    planes = (plane for header in headers for plane in header.planes)
    found = copies((p.file, (p.size, p.spacing, place_of(p.position, p.orientation), p.facts)) for p in planes)
    once = {header.instance: header for header in reversed(headers) if not header.planes}
    kept = [h for h in headers if h.file not in found and (h.planes or once[h.instance] is h)]
    return kept, len(headers) - len(kept)


def _is_localiser(header: FileHeader, parts: Sequence[Part]) -> bool:
    orientations = {_orientation(part.planes[0]) for part in parts}
    three_planes = len(orientations) > 1 and all(len(part.planes) <= _FEW for part in parts)
    return bool(_LOCALISER.search(header.description)) or three_planes


def _volume(base: Series, part: Part, header: FileHeader, localiser: bool) -> Series:
    """One part of a series with its geometry."""
    first = part.planes[0]
    frame_type = dict(first.facts).get("image type", "")
    series = replace(
        base,
        key=opaque(f"{base.key}|{part.words}") if part.words else base.key,
        part=part.words,
        image_type=frame_type or header.image_type,
        slices=len(part.planes),
        columns=first.size[0],
        rows=first.size[1],
        orientation=_orientation(first),
        spacing=first.spacing,
        localiser=localiser or "LOCALIZER" in f"{header.image_type}{frame_type}".upper(),
        planes=tuple((plane.file, plane.frame) for plane in part.planes),
    )
    if series.unusable:
        return series
    if part.repeats > 1:
        return replace(
            series,
            unusable=f"several volumes that nothing in the headers tells apart: up to {part.repeats} of its "
            f"{series.slices} slices lie at the same place",
        )
    if series.slices < 2:
        return replace(series, unusable="one slice only")
    try:
        stack = make_stack(part.planes, "the series")
    except BadInput as error:
        return replace(series, unusable=error.message)
    ordered = tuple((item.file, item.frame) for item in stack.slices)
    return replace(series, planes=ordered, step=usual_step(stack.depth), problems=stack.problems)


def _orientation(plane: PlaneHeader) -> str:
    row, column = np.array(plane.orientation).reshape(2, 3)
    normal = np.abs(np.cross(row, column))
    names = ("sagittal", "coronal", "axial")
    return names[int(normal.argmax())] if normal.max() >= _PLANE_COSINE - 1e-6 else "oblique"


def _with_losses(found: list[Series], unreadable: list[Path]) -> list[Series]:
    """Say of each volume what may lack of it, because files beside it cannot be read."""
    folders = Counter(file.parent for file in unreadable)
    result = []
    for series in found:
        lost = sum(folders[folder] for folder in {file.parent for file in series.files})
        note = (f"{lost} DICOM files beside it cannot be read: slices may lack at an end",) if lost else ()
        result.append(replace(series, notes=series.notes + note))
    return result


def _unreadable(files: list[Path]) -> list[Series]:
    if not files:
        return []
    reason = f"{len(files)} DICOM files cannot be read: empty, damaged or something else"
    return [Series(opaque("unreadable"), "", "", unusable=reason, planes=tuple((file, 0) for file in files))]


def as_number(text: str) -> tuple[float, str]:
    """What series numbers are sorted by: numbers first, then other texts."""
    return (float(text), "") if re.fullmatch(r"\d+(\.\d+)?", text) else (float("inf"), text)
