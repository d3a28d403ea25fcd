"""Read one DICOM series as a volume, after a check that its slices form a regular grid. Torch-free.

SimpleITK (GDCM) reads headers and voxels, file by file: its own series reader takes the number type of the first
slice for all (wrong where rescale slopes differ, as in PET), stacks tilted and uneven slices as if they were regular,
and only warns of it. pydicom is needed for enhanced multi-frame files only, whose frame positions GDCM does not show.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from peftseg.errors import BadInput
from peftseg.grid import LPS_RAS, Grid

STEP_TOLERANCE = 0.05  # a slice may lie this part of the slice step off its even place ...
ROUNDING_MM = 0.1  # ... or this far, as scanners write positions in tenths of mm, but at most ...
ROUNDING_SHARE = 0.2  # ... this part of the step
TILT_TOLERANCE = 0.2  # the stack may shift sideways by this part of a pixel, over all slices
ORIENTATION_TOLERANCE = 1e-3
_NO_IMAGE_MODALITIES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "PR", "SR", "KO", "REG", "DOC"}
# SOP classes without slices: structure sets and plans, reports, presentation states, registrations, DICOMDIR, ...
_NO_IMAGE_CLASSES = re.compile(rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(481\.[3-9]|88\.|11\.|66|67|104\.|9\.))")
REGULARISE = (
    "Load the series in Slicer (DICOM module; acquisition geometry regularization on), harden the transform, and save "
    "the volume as .nrrd."
)


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
    series : tuple of str
        Series UID, number and description.
    """

    file: Path
    frame: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    size: tuple[int, int]
    series: tuple[str, str, str]


def is_dicom(path: Path) -> bool:
    """True when the file carries DICOM's mark or suffix."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def is_dicom_folder(folder: Path) -> bool:
    """True when a file directly inside is DICOM."""
    return any(p.is_file() and is_dicom(p) for p in sorted(Path(folder).iterdir()))


def read_series(path: Path | str) -> tuple[np.ndarray, Grid]:
    """Read the one series of a folder, or one multi-frame file.

    Slices are sorted along their normal. A slice may lie up to 5 % of the slice step or 0.1 mm off its even place, and
    the whole stack may shift sideways by 0.2 pixels; more is refused. Slices that lack at either end cannot be noticed.
    Rescale slope and intercept are applied slice by slice.

    Returns
    -------
    array : np.ndarray
        (I, J, K) float32; i runs along rows, j down columns, k along the slice normal.
    grid : Grid
        Position of the series.

    Raises
    ------
    BadInput
        No images; several series or volumes; colour; mixed sizes or orientations; missing slices, uneven steps or
        gantry tilt; damaged files.
    """
    path = Path(path)
    slices = _one_series(_slices(path), path)
    slices, affine = _stack(slices, path.name)
    columns, rows = slices[0].size
    array = np.empty((len(slices), rows, columns), dtype=np.float32)
    for file, places in _by_file(slices).items():
        planes = _planes(file)
        for place, frame in places:
            array[place] = planes[frame]
    return array.transpose(2, 1, 0), Grid((columns, rows, len(slices)), affine)


def _by_file(slices: list[Slice]) -> dict[Path, list[tuple[int, int]]]:
    files: dict[Path, list[tuple[int, int]]] = {}
    for place, item in enumerate(slices):
        files.setdefault(item.file, []).append((place, item.frame))
    return files


def _planes(file: Path) -> np.ndarray:
    """(frames, rows, columns) float32, rescaled."""
    reader = _reader(file)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise _damaged(file) from error


def _reader(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return reader


def _damaged(file: Path) -> BadInput:
    size = file.stat().st_size
    return BadInput(
        f"{file.name} cannot be read as a DICOM image ({size} bytes): it is empty, cut off, damaged or of an unknown "
        "compression.",
        "Export the series again; for unknown compressions, load it in Slicer and save it as .nrrd.",
    )


def _slices(path: Path) -> list[Slice]:
    """All image planes of a folder or file; files that are not DICOM, or DICOM without planes, are left out."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    found: list[Slice] = []
    for file in files:
        reader = _reader(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if is_dicom(file) and not _has_no_image(file):
                raise _damaged(file) from error
            continue
        if _tag(reader, "0008|0060") not in _NO_IMAGE_MODALITIES:
            found.extend(_slices_of_file(file, reader))
    if not found:
        raise BadInput(
            f"{path.name} holds no DICOM image; expected the files of one image series.",
            "Give the folder of one CT, MR or PET series.",
        )
    return found


def _has_no_image(file: Path) -> bool:
    with file.open("rb") as stream:
        return bool(_NO_IMAGE_CLASSES.search(stream.read(1024)))


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""


def _slices_of_file(file: Path, reader: sitk.ImageFileReader) -> list[Slice]:
    if reader.GetNumberOfComponents() != 1:
        raise BadInput(
            f"{file.name} is a colour image ({reader.GetNumberOfComponents()} values a pixel); expected grey values.",
            "Give the original series, not a colour rendering or secondary capture.",
        )
    series = tuple(_tag(reader, key) for key in ("0020|000e", "0020|0011", "0008|103e"))
    columns, rows = reader.GetSize()[:2]
    if int(_tag(reader, "0028|0008") or 1) > 1:
        return [
            Slice(file, n, position, orientation, spacing, (columns, rows), series)
            for n, (position, orientation, spacing) in enumerate(_frames(file))
        ]
    position, orientation = _numbers(_tag(reader, "0020|0032")), _numbers(_tag(reader, "0020|0037"))
    if len(position) != 3 or len(orientation) != 6:
        raise _no_position(file)
    return [Slice(file, 0, position, orientation, reader.GetSpacing()[:2], (columns, rows), series)]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(v) for v in text.split("\\")) if text else ()


def _no_position(file: Path) -> BadInput:
    return BadInput(
        f"{file.name} has no position in the patient (Image Position and Orientation); expected CT, MR or PET slices.",
        "Give the original series; screenshots, X-ray images and ultrasound clips have no such position.",
    )


def _frames(file: Path) -> list[tuple[tuple, tuple, tuple]]:
    """Position, orientation and pixel size of each frame of an enhanced multi-frame file."""
    try:
        import pydicom
    except ImportError as error:
        raise BadInput(
            f"{file.name} is a multi-frame DICOM file; the package pydicom is needed to check its frames.",
            "Install it (pip install 'peftseg[dicom]'), or load the series in Slicer and save it as .nrrd.",
        ) from error
    header = pydicom.dcmread(file, stop_before_pixels=True)
    shared = header.get("SharedFunctionalGroupsSequence", [{}])[0]
    frames, scales = [], set()
    for frame in header.get("PerFrameFunctionalGroupsSequence", []):
        plane, orientation, measures, scale = (
            (frame.get(name) or shared.get(name) or [{}])[0]
            for name in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
        )
        scales.add((scale.get("RescaleSlope"), scale.get("RescaleIntercept")))
        spacing = measures.get("PixelSpacing")
        row = [plane.get("ImagePositionPatient"), orientation.get("ImageOrientationPatient"), spacing]
        if None in row:
            raise _no_position(file)
        position, axes, (between_rows, between_columns) = ([float(v) for v in values] for values in row)
        frames.append((tuple(position), tuple(axes), (between_columns, between_rows)))
    if not frames:
        raise _no_position(file)
    _check_one_volume([f[0] for f in frames], [f[1] for f in frames], file.name)
    if len(scales) > 1:
        raise BadInput(
            f"{file.name}: its {len(frames)} frames have {len(scales)} different rescale slopes or intercepts, which "
            "cannot be told apart when reading; expected one.",
            "Convert the file with dcm2niix and give the NIfTI file.",
        )
    return frames


def _one_series(slices: list[Slice], path: Path) -> list[Slice]:
    counts = Counter(s.series for s in slices)
    if len({uid for uid, _, _ in counts}) > 1:
        listed = "; ".join(
            f"number {number or '?'} '{description or 'no description'}' ({n} slices)"
            for (_, number, description), n in counts.items()
        )
        raise BadInput(
            f"{path.name} holds {len(counts)} DICOM series: {listed}. Expected one series a folder.",
            "Put each series into a folder of its own and give that folder.",
        )
    if len(slices) == 1:
        raise BadInput(
            f"{path.name} holds one DICOM slice; expected a series of at least two.",
            "Give the folder of the whole series, not one of its files.",
        )
    return slices


def _stack(slices: list[Slice], name: str) -> tuple[list[Slice], np.ndarray]:
    """Slices in order along their normal, and the affine from index to RAS; refuses what is no regular grid."""
    for what, values in (
        ("sizes", [f"{s.size[0]} x {s.size[1]} pixels" for s in slices]),
        ("pixel sizes", [f"{s.spacing[0]:.4g} x {s.spacing[1]:.4g} mm" for s in slices]),
        ("orientations", _orientation_groups(slices)),
    ):
        kinds = Counter(values)
        if len(kinds) > 1:
            listed = "; ".join(f"{n} slices of {value}" for value, n in kinds.most_common())
            raise BadInput(
                f"{name}: the slices have {len(kinds)} different {what}: {listed}. Expected one.",
                "Remove the slices that do not belong to the volume, e.g. scout images.",
            )
    _check_one_volume([s.position for s in slices], [s.orientation for s in slices], name)
    row, column = np.array(slices[0].orientation).reshape(2, 3)
    normal = np.cross(row, column)
    depth = np.array([s.position for s in slices]) @ normal
    slices = [slices[n] for n in np.argsort(depth)]
    positions = np.array([s.position for s in slices])
    step = _check_regular(positions, normal, min(slices[0].spacing), name)
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([row * slices[0].spacing[0], column * slices[0].spacing[1], normal * step])
    lps[:3, 3] = positions[0]
    return slices, LPS_RAS @ lps


def _orientation_groups(slices: list[Slice]) -> list[str]:
    """The orientation of each slice as text, equal within the tolerance to the first of its kind."""
    kinds: list[np.ndarray] = []
    names = []
    for item in slices:
        values = np.array(item.orientation)
        match = next((k for k in kinds if np.abs(k - values).max() <= ORIENTATION_TOLERANCE), None)
        if match is None:
            kinds.append(values)
            match = values
        names.append(" ".join(f"{v:.3g}" for v in match))
    return names


def _check_one_volume(positions: list, orientations: list, name: str) -> None:
    places = Counter(
        tuple(np.round([*p, *o], 3) + 0.0) for p, o in zip(positions, orientations, strict=True)
    )  # + 0.0 turns -0 into 0
    most = max(places.values())
    if most > 1:
        raise BadInput(
            f"{name}: up to {most} of its {len(positions)} slices lie at the same place, so it holds several volumes "
            "(time points, echoes, b-values, or kinds such as magnitude and phase); expected one.",
            "Split it, e.g. with dcm2niix or in Slicer, and give one volume.",
        )


def _check_regular(positions: np.ndarray, normal: np.ndarray, pixel: float, name: str) -> float:
    """Slice step in mm; refuses tilt, missing slices and uneven steps, all in one message with numbers."""
    depth = positions @ normal
    steps = np.diff(depth)
    usual, mean = float(np.median(steps)), float((depth[-1] - depth[0]) / len(steps))
    if usual <= 0:
        raise BadInput(f"{name}: its slices lie at one depth; expected a stack.", "Give one volume.")
    problems = []
    sideways = positions - np.outer(depth, normal)
    shift = float(np.linalg.norm(sideways - sideways[0], axis=1).max())
    if shift > TILT_TOLERANCE * pixel:
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1] - sideways[0]), depth[-1] - depth[0]))
        problems.append(f"the stack is tilted by {angle:.1f} degrees against its slices (gantry tilt; expected 0)")
    even = depth[0] + mean * np.arange(len(depth))
    tolerance = max(STEP_TOLERANCE * usual, min(ROUNDING_MM, ROUNDING_SHARE * usual))
    if np.abs(depth - even).max() > tolerance + 1e-6:
        problems.append(_uneven(steps, usual, tolerance))
    if problems:
        raise BadInput(f"{name}: {'; '.join(problems)}. Expected evenly spaced parallel slices.", REGULARISE)
    return mean


def _uneven(steps: np.ndarray, usual: float, tolerance: float) -> str:
    whole = np.rint(steps / usual)
    if (np.abs(steps - whole * usual) <= tolerance).all():
        first = int(np.argmax(whole > 1))
        return (
            f"missing slices: {int((whole - 1).sum())} (step {usual:.4g} mm; first gap {steps[first]:.4g} mm after "
            f"slice {first + 1} of {len(steps) + 1})"
        )
    return (
        f"the slice steps are uneven, from {steps.min():.4g} to {steps.max():.4g} mm (usual {usual:.4g} mm; "
        f"a slice may lie {tolerance:.2g} mm off)"
    )
