"""Read volumes and label maps of the kinds that clinics have. Torch-free.

Axis order and units, for the whole engine: arrays are indexed (i, j, k) as in NIfTI and MONAI (first axis fastest in
the file), affines are 4x4 float64 from voxel index to RAS+ millimetres. SimpleITK reads everything, because it reads
what Slicer reads and places it where Slicer does; the segment names of Slicer's segmentation files among it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from peftseg.errors import BadInput, unknown_name
from peftseg.grid import Grid, array_from_itk, grid_from_itk
from peftseg.models import Structure
from peftseg.nifti import is_nifti, position_notes, scan_voxels
from peftseg.seg_nrrd import header_segments, is_seg_nrrd
from peftseg.writing import SIDECAR_FORMAT, sidecar_path, write_segmentation, write_volume

__all__ = [
    "SUFFIXES",
    "Grid",
    "Labels",
    "Volume",
    "file_stem",
    "file_suffix",
    "finite_voxels",
    "is_dicom_input",
    "read_labels",
    "read_volume",
    "sidecar_content",
    "write_segmentation",
    "write_volume",
]

SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LARGEST_LABEL = np.iinfo(np.uint16).max
ROUNDING = 1e-3  # labels may have gone through a float file with a scale factor


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan.

    Attributes
    ----------
    array : np.ndarray
        (I, J, K) float32, finite.
    grid : Grid
        Where the voxels lie.
    name : str
        File or folder name without suffix, for messages and outputs; never a patient's name from a header.
    notes : tuple of str
        What the user should know about how the file was read.
    """

    array: np.ndarray
    grid: Grid
    name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Labels:
    """A segmentation.

    Attributes
    ----------
    layers : np.ndarray
        (L, I, J, K) uint16; L is 1 for a plain label map, more where segments overlap.
    grid : Grid
        Where the voxels lie.
    segments : dict
        Name -> (layer, value); empty for a plain label map without names.
    """

    layers: np.ndarray
    grid: Grid
    segments: dict[str, tuple[int, int]]

    def mask(self, structure: Structure) -> np.ndarray:
        """(I, J, K) bool of one structure: by name where names exist, else by label value.

        Raises
        ------
        BadInput
            Names exist, and this one is not among them.
        """
        if not self.segments:
            return self.layers[0] == structure.value
        if structure.name not in self.segments:
            raise unknown_name("segment", structure.name, self.segments)
        layer, value = self.segments[structure.name]
        return self.layers[layer] == value

    def values(self, layer: int = 0) -> list[int]:
        """Label values above 0 that occur in a layer."""
        seen = np.zeros(LARGEST_LABEL + 1, dtype=bool)
        for plane in self.layers[layer]:  # plane by plane: numpy widens indices to 8 bytes each
            seen[plane] = True
        return [int(v) for v in np.flatnonzero(seen) if v > 0]


def file_suffix(path: Path | str) -> str:
    """The readable suffix of a file name, e.g. ".nii.gz" (lower case), or "" for another kind of file."""
    name = Path(path).name.lower()
    return next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def file_stem(path: Path | str) -> str:
    """File name without its readable suffix (or DICOM's); the whole name for folders and other files."""
    name = Path(path).name
    suffix = file_suffix(name) or next((s for s in (".dcm", ".ima") if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def read_volume(path: Path | str, replace_nonfinite: float | None = None) -> Volume:
    """Read a scan: NIfTI, NRRD, MetaImage, or a folder with one DICOM series.

    4D files are taken when they hold one time point. Of NIfTI files that store two different positions (qform and
    sform), the one that ITK and Slicer choose is taken, and `Volume.notes` says so.

    Parameters
    ----------
    path : Path or str
        File, or folder of a DICOM series.
    replace_nonfinite : float, optional
        Value to put where voxels are NaN or infinite; without it such scans are refused.

    Raises
    ------
    BadInput
        Missing, empty, truncated or unknown files; colour, complex, 2D or 4D images; axes that are not at right
        angles; voxels that are not finite.
    """
    from peftseg import dicom

    path = Path(path)
    if is_dicom_input(path):
        array, grid, notes = dicom.read_series(path)
    else:
        reader = _open(path)
        _check_grey(reader, path)
        grid = _grid(reader, path)
        array = _voxels(reader, path, sitk.sitkFloat32)
        notes = position_notes(reader, grid, path) if is_nifti(reader) else ()
    array, more = finite_voxels(array, replace_nonfinite, path.name)
    return Volume(array, grid, file_stem(path), notes + more)


def is_dicom_input(path: Path) -> bool:
    """Whether `read_volume` takes an input for DICOM: a folder, or a file that says so and has no other suffix."""
    from peftseg import dicom

    return path.is_dir() or (path.is_file() and not file_suffix(path) and dicom.is_dicom(path))


def read_labels(path: Path | str) -> Labels:
    """Read a label map (NIfTI, NRRD, MetaImage) or a segmentation of Slicer (.seg.nrrd, overlaps included).

    Segment names come from the .seg.nrrd header, or from the sidecar .json that `write_segmentation` leaves beside
    plain label maps.

    Raises
    ------
    BadInput
        As `read_volume`; also labels with fractions, below 0 or above 65535, and a segment name that occurs twice.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(
            f"{path} is a folder; expected a label map file ({', '.join(SUFFIXES)}).",
            "Export the segmentation from Slicer as .seg.nrrd or .nii.gz (DICOM SEG: load and export it there).",
        )
    reader = _open(path)
    named = is_seg_nrrd(reader)
    if not named:
        _check_grey(reader, path)
    grid = _grid(reader, path)
    layers = _label_values(_voxels(reader, path, sitk.sitkUnknown), path.name)
    layers = layers if layers.ndim == 4 else layers[np.newaxis]
    segments = header_segments(reader, path.name, len(layers)) if named else _sidecar_segments(path)
    return Labels(layers, grid, segments)


def _open(path: Path) -> sitk.ImageFileReader:
    """Reader with the header read."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist.", "Check the path.")
    if not file_suffix(path):
        raise BadInput(
            f"{path.name} is no volume that can be read; expected {', '.join(SUFFIXES)} or a DICOM series folder.",
            "Load it in Slicer and save it as .nrrd or .nii.gz.",
        )
    if path.stat().st_size == 0:
        raise BadInput(f"{path.name} is empty (0 bytes).", "Export or copy the file again.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return reader


def _unreadable(path: Path, error: RuntimeError) -> BadInput:
    if "orthonormal" in str(error):
        return BadInput(
            f"{path.name}: the axes of its stored position (sform) are not at right angles (sheared); expected an "
            "orthogonal grid.",
            "Resample it to a grid with right angles, e.g. with FSL `flirt -applyisoxfm`, or save it again without "
            "the affine registration in its header.",
        )
    last = str(error).strip().splitlines()[-1]
    reason = f" ({last})" if last.startswith("[nrrd]") else ""  # other readers' last lines mislead
    return BadInput(
        f"{path.name} cannot be read: it is damaged, cut off, not what its suffix says, or of a kind that Slicer does "
        f"not read either, such as NIfTI-2{reason}.",
        "Export or copy the file again; convert NIfTI-2 to NIfTI-1.",
    )


def _check_grey(reader: sitk.ImageFileReader, path: Path) -> None:
    size, kind = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        raise BadInput(
            f"{path.name} is a colour or multi-component image ({reader.GetNumberOfComponents()} components, {kind}); "
            "expected one grey value a voxel.",
            "Convert it to grey values, e.g. in Slicer with the module 'Vector to Scalar Volume'.",
        )
    if len(size) < 3:
        raise BadInput(f"{path.name} is a 2D image of {size}; expected a 3D volume.", "Give the whole volume.")
    if any(n > 1 for n in size[3:]):
        shape = " x ".join(str(n) for n in size)
        raise BadInput(
            f"{path.name} is a {len(size)}D image ({shape}); expected a 3D volume.",
            "Split it into its time points or channels, and give one of them.",
        )


def _grid(reader: sitk.ImageFileReader, path: Path) -> Grid:
    dimension = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    try:
        return grid_from_itk(reader.GetSize()[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3], direction)
    except BadInput as error:
        raise BadInput(f"{path.name}: {error.message}", error.remedy) from error


def _voxels(reader: sitk.ImageFileReader, path: Path, pixel_type: int) -> np.ndarray:
    nonfinite = scan_voxels(path, reader) if is_nifti(reader) else {}
    reader.SetOutputPixelType(pixel_type)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if image.GetDimension() > 3:  # one time point
        image = sitk.Extract(image, [*image.GetSize()[:3], *[0] * (image.GetDimension() - 3)])
    array = array_from_itk(image)
    for value, where in nonfinite.items():
        array.T.reshape(-1)[where] = value  # a view; ITK has put zeros there
    return array


def finite_voxels(array: np.ndarray, replacement: float | None, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The array with `replacement` for NaN and infinite voxels, and notes; BadInput where there are some and it is None."""
    if np.isfinite(array.sum(dtype=np.float64)):  # one number that is not finite makes the sum not finite
        return array, ()
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    found = f"{name}: {nan} NaN and {infinite} infinite voxels of {array.size}"
    if replacement is None:
        raise BadInput(
            f"{found}; expected finite grey values.",
            "Repair the scan, or ask for their replacement with replace_nonfinite, e.g. 0 (CT: -1024).",
        )
    if not np.isfinite(replacement):
        raise BadInput(f"replace_nonfinite is {replacement}; expected a finite number.", "Give e.g. 0.")
    array = np.where(np.isfinite(array), array, np.float32(replacement))
    return array, (f"{found} were replaced by {replacement:g}.",)


def _label_values(array: np.ndarray, name: str) -> np.ndarray:
    remedy = "Give a label map with one whole number a structure (not probabilities or a scan)."
    if np.issubdtype(array.dtype, np.floating):
        rounded = np.rint(array)
        wrong = ~(np.abs(array - rounded) <= ROUNDING)  # also true for NaN
        if wrong.any():
            raise BadInput(
                f"{name}: {int(wrong.sum())} label voxels of {array.size} are not whole numbers "
                f"(e.g. {array[wrong][0]:.6g}).",
                remedy,
            )
        array = rounded
    low, high = array.min(), array.max()
    if low < 0 or high > LARGEST_LABEL:
        raise BadInput(f"{name}: label values run from {low} to {high}; expected 0 to {LARGEST_LABEL}.", remedy)
    return array.astype(np.uint16, copy=False)


def _sidecar_segments(path: Path) -> dict[str, tuple[int, int]]:
    content = sidecar_content(path)
    return {s["name"]: (0, int(s["value"])) for s in content["structures"]} if content else {}


def sidecar_content(path: Path) -> dict[str, Any]:
    """What `write_segmentation` left beside a plain label map; nothing where that is not there, or another program's file.

    Raises
    ------
    BadInput
        It is not valid JSON.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return {}
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(
            f"{sidecar.name} beside {path.name} is not valid JSON ({error}).", "Repair or remove it."
        ) from error
    ours = isinstance(data, dict) and data.get("format") == SIDECAR_FORMAT
    return data if ours else {}  # another program's file, e.g. acquisition facts
