"""Headers of DICOM files for sorting: only the attributes that are needed, never the pixels. Torch-free; needs pydicom.

Patients' names and numbers are read for one purpose: to take them out of the series description, where people type them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from peftseg.dicom import ENHANCED_CLASSES, NO_IMAGE_MODALITIES
from peftseg.dicom_frames import damage_errors, frames_of, need_pydicom, quiet_pydicom, text_of
from peftseg.dicom_stack import Slice
from peftseg.errors import BadInput

# What tells volumes apart whose slices lie at the same places; the order matters, the first that does is used.
_FACTS = (
    ("ImageType", "image type"),
    ("ComplexImageComponent", "component"),
    ("EchoTime", "echo time"),
    ("EchoNumbers", "echo"),
    ("InversionTime", "inversion time"),
    ("FlipAngle", "flip angle"),
    ("DiffusionBValue", "b-value"),
    ("DiffusionGradientOrientation", "gradient"),
    ("SequenceName", "sequence"),
    ("TemporalPositionIdentifier", "time point"),
    ("NominalPercentageOfCardiacPhase", "cardiac phase"),
    ("TriggerTime", "trigger time"),
    ("FrameReferenceTime", "frame time"),
    ("AcquisitionNumber", "acquisition"),
)
_NAMES = ("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName")
_TAGS = [
    *(name for name, _ in _FACTS),
    *_NAMES,
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber"),
    *("SeriesDescription", "ProtocolName", "ConvolutionKernel", "ContrastBolusAgent", "BitsAllocated"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence"),
]
CUT_OFF = "cut off: shorter than the image in them"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_PIXELS = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(481\.[3-9]|88\.|11\.|66|67|104\.|9\.|68\.|77\.1\.5\.3))"
)
# Pixel data of an open length, which compressed files have: their pieces follow (PS3.5 A.4).
_FRAGMENTS = re.compile(rb"\xe0\x7f\x10\x00O[BW]\0\0\xff{4}")
_FRAGMENT = b"\xfe\xff\x00\xe0"
# Uncompressed kinds of files, and the bytes between header and pixels in them.
_PLAIN_SYNTAXES = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12, "1.2.840.10008.1.2.2": 12}


@dataclass(frozen=True)
class PlaneHeader(Slice):
    """One plane of a file; `facts` tell planes at the same place apart."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FileHeader:
    """What sorting needs of a file.

    Attributes
    ----------
    planes : tuple of PlaneHeader
        Empty where the file holds no planes with a place in the patient; `unusable` then says why.
    unusable : str
        Why the file cannot be a part of a volume, in words; "": it can.
    """

    file: Path
    study: str
    series: str
    instance: str
    modality: str
    number: str
    description: str
    image_type: str
    kernel: str
    contrast: bool
    secondary_capture: bool
    planes: tuple[PlaneHeader, ...]
    unusable: str


def read_header(file: Path) -> FileHeader | None:
    """The header of a DICOM file, or None where it cannot be read.

    Raises
    ------
    BadInput
        pydicom is missing.
    """
    pydicom = need_pydicom("DICOM files are sorted by their headers")
    try:
        with quiet_pydicom(), file.open("rb") as stream:
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            if "SOPClassUID" not in data and "Modality" not in data:
                return _media_directory(data, file)
            size = file.stat().st_size
            return _header(data, file, size - stream.tell(), _fragments_cut_off(stream, size))
    except damage_errors():
        return None


def _media_directory(data: Any, file: Path) -> FileHeader | None:
    """A DICOMDIR (a disc's table of contents) has no image attributes, but its class in the file's own header."""
    if not _NO_PIXELS.match(text_of(data.file_meta.get("MediaStorageSOPClassUID"))):
        return None
    return FileHeader(
        file, "", "dicomdir", str(file), "DICOMDIR", "", "", "", "", False, False, (), "no image (DICOMDIR)"
    )


def _fragments_cut_off(stream: BinaryIO, size: int) -> bool:
    """Whether the pieces of compressed pixels reach beyond the file's end.

    The stream stands where the header ends. Each piece says its length, so this reads 8 bytes a piece (mostly one a frame).
    """
    start = stream.tell()
    if not _FRAGMENTS.fullmatch(stream.read(12)):
        return False
    at = start + 12
    while at + 8 <= size:
        stream.seek(at)
        kind, length = struct.unpack("<4sL", stream.read(8))
        if kind != _FRAGMENT:
            return False  # the end of the pixels, or something that is not known here
        at += 8 + length
    return True


def _header(data: Any, file: Path, left: int, cut_off: bool) -> FileHeader:
    """`left`: bytes of the file behind the header; `cut_off`: its compressed pixels are not whole."""
    sop_class, modality = text_of(data.get("SOPClassUID")), str(data.get("Modality") or "")
    unusable = _why_unusable(data, left, sop_class, modality) or (CUT_OFF if cut_off else "")
    planes: tuple[PlaneHeader, ...] = ()
    if not unusable:
        planes, unusable = _planes(data, file, sop_class)
    names = _name_parts(data)
    return FileHeader(
        file=file,
        study=str(data.get("StudyInstanceUID") or ""),
        series=str(data.get("SeriesInstanceUID") or ""),
        instance=str(data.get("SOPInstanceUID") or file),
        modality=modality,
        number=str(data.get("SeriesNumber") or "").strip(),  # as text_of would round it
        description=_without(names, str(data.get("SeriesDescription") or data.get("ProtocolName") or "").strip()),
        image_type=_without(names, text_of(data.get("ImageType"))),
        kernel=text_of(data.get("ConvolutionKernel")),
        contrast=str(data.get("ContrastBolusAgent") or "").strip().lower() not in ("", "no", "none"),
        secondary_capture=sop_class.startswith(_SECONDARY_CAPTURE),
        planes=planes,
        unusable=unusable,
    )


def _why_unusable(data: Any, left: int, sop_class: str, modality: str) -> str:
    """Reasons that the header tells at once: no pixels, colour, a file that is too short for its pixels."""
    if _NO_PIXELS.match(sop_class) or modality in NO_IMAGE_MODALITIES or not data.get("Rows"):
        kind = NO_IMAGE_MODALITIES.get(modality, "of a kind without slices")
        return f"{kind}, no image ({modality or 'no modality'})"
    samples = int(data.get("SamplesPerPixel") or 1)
    if samples != 1 or str(data.get("PhotometricInterpretation")) == "PALETTE COLOR":
        return "a colour image, not grey values"
    frames = int(data.get("NumberOfFrames") or 1)
    size = int(data.Rows) * int(data.Columns) * frames * int(data.get("BitsAllocated") or 16) // 8
    between = _PLAIN_SYNTAXES.get(str(data.file_meta.get("TransferSyntaxUID", "")))
    if between is not None and left < between + size:
        return CUT_OFF
    return ""


def _planes(data: Any, file: Path, sop_class: str) -> tuple[tuple[PlaneHeader, ...], str]:
    size = (int(data.Columns), int(data.Rows))
    if int(data.get("NumberOfFrames") or 1) > 1 or ENHANCED_CLASSES.fullmatch(sop_class):
        try:
            frames = frames_of(data, "")
        except BadInput:
            return (), "no position in the patient"
        headers = (
            PlaneHeader(file, n, frame.position, frame.orientation, frame.spacing, size, frame.facts)
            for n, frame in enumerate(frames)
        )
        return tuple(headers), ""
    position, axes = data.get("ImagePositionPatient"), data.get("ImageOrientationPatient")
    spacing = data.get("PixelSpacing")
    if not position or not axes or len(position) != 3 or len(axes) != 6:
        return (), "no position in the patient"
    if not spacing or len(spacing) != 2:
        return (), "no pixel size"
    facts = tuple((label, text_of(data.get(name))) for name, label in _FACTS if data.get(name) not in (None, ""))
    between_rows, between_columns = (float(v) for v in spacing)
    plane = PlaneHeader(
        file,
        0,
        tuple(float(v) for v in position),
        tuple(float(v) for v in axes),
        (between_columns, between_rows),
        size,
        facts,
    )
    return (plane,), ""


def _name_parts(data: Any) -> list[str]:
    """The words of the patient's names and numbers, three letters or longer."""
    words = " ".join(str(data.get(name) or "") for name in _NAMES)
    return [word for word in re.split(r"[\s^=,;\\'\[\]]+", words) if len(word) >= 3]


def _without(words: list[str], text: str) -> str:
    """The text with stars for the words: short ones only where they stand alone, as "Lin" is no part of "line"."""
    for word in words:
        pattern = re.escape(word) if len(word) >= 5 else rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])"
        text = re.sub(pattern, "***", text, flags=re.IGNORECASE)
    return text
