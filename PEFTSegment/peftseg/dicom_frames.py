"""The frames of an enhanced multi-frame DICOM file: where each lies, what tells it from others, its values. Torch-free.

Needs pydicom, because GDCM does not show the frames' positions; it is imported on use.
"""

from __future__ import annotations

import contextlib
import logging
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from peftseg.errors import BadInput

# Groups of a frame, the attribute in them, and what it is called where it tells volumes apart. The order matters: the first
# that tells frames at the same place apart is used.
_FRAME_FACTS = (
    ("FrameContentSequence", "StackID", "stack"),
    ("MRImageFrameTypeSequence", "FrameType", "image type"),
    ("CTImageFrameTypeSequence", "FrameType", "image type"),
    ("PETFrameTypeSequence", "FrameType", "image type"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent", "component"),
    ("MREchoSequence", "EffectiveEchoTime", "echo time"),
    ("MRDiffusionSequence", "DiffusionBValue", "b-value"),
    ("MRDiffusionSequence", "DiffusionDirectionality", "diffusion direction"),
    ("FrameContentSequence", "TemporalPositionIndex", "time point"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "trigger delay"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", "cardiac phase"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "acquisition"),
)
_PLACE_POINTERS = {"ImagePositionPatient", "InStackPositionNumber", "ImageOrientationPatient", "StackID"}


@dataclass(frozen=True)
class Frame:
    """One frame: position, axes and pixel size as in `dicom_stack.Slice`, rescale slope and intercept, and facts.

    `facts` are (what, value) that tell frames at the same place apart, e.g. ("echo time", "4.92").
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    scale: tuple[float, float]
    facts: tuple[tuple[str, str], ...]


def need_pydicom(what: str) -> ModuleType:
    """pydicom, or BadInput that says what it is needed for."""
    try:
        import pydicom
    except ImportError as error:
        raise BadInput(
            f"{what}; the package pydicom is needed for that.",
            "Install it (pip install 'peftseg[dicom]'), or load the series in Slicer and save it as .nrrd.",
        ) from error
    return pydicom


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Nothing that pydicom has to say of a file is shown or logged: it quotes values, a patient's name among them."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("pydicom")
    logger.addFilter(nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(nothing)


def damage_errors() -> tuple[type[Exception], ...]:
    """What pydicom raises on bytes that are damaged or no DICOM."""
    from pydicom import errors

    plain = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, struct.error)
    return (*plain, errors.InvalidDicomError, errors.BytesLengthException)


def no_position(shown: str) -> BadInput:
    """The error for an image without a place in the patient."""
    return BadInput(
        f"{shown} has no position in the patient (Image Position and Orientation); expected CT, MR or PET slices.",
        "Give the original series; screenshots, X-ray images and ultrasound clips have no such position.",
    )


def read_frames(file: Path, shown: str) -> list[Frame]:
    """The frames of a file, in its order; `shown` is what errors call it.

    Raises
    ------
    BadInput
        pydicom is missing, the header is damaged, or a frame has no place in the patient.
    """
    pydicom = need_pydicom(f"{shown} is a multi-frame DICOM file, whose frames must be checked")
    try:
        with quiet_pydicom():
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            return frames_of(header, shown)
    except damage_errors() as error:
        raise BadInput(
            f"The header of {shown} is damaged ({type(error).__name__}).", "Export the series again."
        ) from error


def frames_of(header: Any, shown: str) -> list[Frame]:
    """The frames of a pydicom dataset; see `read_frames`."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    labels = _dimension_labels(header)
    frames = [_frame(frame, shared, labels, shown) for frame in header.get("PerFrameFunctionalGroupsSequence") or []]
    if not frames:
        raise no_position(shown)
    return frames


def _frame(frame: Any, shared: Any, labels: list[str], shown: str) -> Frame:
    def group(name: str) -> Any:
        return (frame.get(name) or shared.get(name) or [{}])[0]

    measures, scale = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    row = [
        group("PlanePositionSequence").get("ImagePositionPatient"),
        group("PlaneOrientationSequence").get("ImageOrientationPatient"),
        measures.get("PixelSpacing"),
    ]
    if not all(row):
        raise no_position(shown)
    position, axes, (between_rows, between_columns) = ([float(v) for v in values] for values in row)
    facts = [(label, text_of(group(place).get(name))) for place, name, label in _FRAME_FACTS]
    direction = (group("MRDiffusionSequence").get("DiffusionGradientDirectionSequence") or [{}])[0]
    facts.append(("gradient", text_of(direction.get("DiffusionGradientOrientation"))))
    values = group("FrameContentSequence").get("DimensionIndexValues")
    values = [] if values is None else np.atleast_1d(values)
    facts += [(label, text_of(value)) for label, value in zip(labels, values, strict=False) if label]
    return Frame(
        tuple(position),
        tuple(axes),
        (between_columns, between_rows),
        (float(scale.get("RescaleSlope", 1)), float(scale.get("RescaleIntercept", 0))),
        tuple((label, value) for label, value in facts if value),
    )


def _dimension_labels(header: Any) -> list[str]:
    """What the columns of the frames' dimension indices count; "" where that is the place."""
    from pydicom.datadict import keyword_for_tag

    labels = []
    for number, item in enumerate(header.get("DimensionIndexSequence") or [], start=1):
        keyword = keyword_for_tag(item.get("DimensionIndexPointer", 0))
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword).lower()
        labels.append("" if keyword in _PLACE_POINTERS else f"index of {words}" if words else f"dimension {number}")
    return labels


def text_of(value: Any) -> str:
    """A header value as text, numbers without noise, several with backslashes; "" for none."""
    if value is None or value == "":
        return ""
    if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        return "\\".join(text_of(part) for part in value)
    try:
        return f"{float(value):.6g}"
    except (TypeError, ValueError):
        return str(value).strip(" \0")


def scaled_frames(file: Path, scales: Sequence[tuple[float, float]], shown: str) -> np.ndarray:
    """(frames, rows, columns) float32 with each frame's own rescale slope and intercept, which GDCM has one of only."""
    pydicom = need_pydicom(f"{shown} is a multi-frame DICOM file with several rescale slopes")
    try:
        with quiet_pydicom():
            stored = pydicom.dcmread(file).pixel_array
    except (RuntimeError, *damage_errors()) as error:
        raise BadInput(
            f"{shown}: its {len(scales)} frames have {len(set(scales))} different rescale slopes or intercepts, and its "
            "compression cannot be undone here.",
            "Convert the file with dcm2niix and give the NIfTI file.",
        ) from error
    slopes, intercepts = np.array(scales, np.float32).T
    stored = stored.reshape(len(scales), *stored.shape[-2:])
    return stored.astype(np.float32) * slopes[:, None, None] + intercepts[:, None, None]
