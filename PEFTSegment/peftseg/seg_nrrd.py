"""Slicer's segmentation files (.seg.nrrd): what their header says, and a writer. Torch-free.

The header is a text of "field: value" and "key:=value" lines, in UTF-8 as Slicer writes it, then an empty line and the
voxels. SimpleITK reads it whole. Neither it nor slicerio can write it: SimpleITK calls layers a vector instead of a list
and loses their geometry when told otherwise; slicerio's pynrrd knows ASCII only and does not escape line breaks and
backslashes. So the header is written here, with the keys that Slicer's own storage node writes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from peftseg.errors import BadInput
from peftseg.grid import LPS_RAS, Grid
from peftseg.models import Structure

GENERAL_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
UNSTORABLE = re.compile(r"[\r\v\f\0\ud800-\udfff]")  # Slicer's NRRD library makes the first three a space
_COMPRESSION = 3  # of 9, which takes more than ten times as long
_SLICES = 16  # compressed at once, so that no second copy of a large label map is made
_TYPES = {np.dtype(np.uint8): "unsigned char", np.dtype(np.uint16): "unsigned short"}
SEGMENT_KEY = re.compile(r"Segment(\d+)_")


def write_seg_nrrd(
    path: Path, layers: np.ndarray, grid: Grid, placed: Sequence[tuple[Structure, int]], provenance: dict[str, str]
) -> None:
    """Write label maps in Slicer's format, compressed.

    Parameters
    ----------
    path : Path
        Output file.
    layers : np.ndarray
        (L, I, J, K) uint8 or uint16.
    grid : Grid
        Where the voxels lie.
    placed : sequence of (Structure, int)
        Each structure with its layer.
    provenance : dict
        Facts for the header, as keys "peftseg ..."; white space becomes single spaces.

    Raises
    ------
    BadInput
        A malformed terminology code.
    OSError
        The file cannot be written.
    """
    keys = _segmentation_keys(grid, placed)
    for key, value in provenance.items():
        keys[_one_line(f"peftseg {key}").replace(":=", "=")] = _one_line(value)
    lines = [*_fields(layers, grid), *(f"{key}:={_escaped(value)}" for key, value in keys.items())]
    compressor = zlib.compressobj(_COMPRESSION, zlib.DEFLATED, zlib.MAX_WBITS | 16)  # 16: gzip's frame
    with path.open("wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        for k in range(0, grid.shape[2], _SLICES):
            file.write(compressor.compress(layers[..., k : k + _SLICES].tobytes(order="F")))
        file.write(compressor.flush())


def is_seg_nrrd(reader: sitk.ImageFileReader) -> bool:
    """True when the header that was read names segments."""
    return any(SEGMENT_KEY.match(key) for key in reader.GetMetaDataKeys())


def header_segments(reader: sitk.ImageFileReader, file_name: str, layers: int) -> dict[str, tuple[int, int]]:
    """Name -> (layer, value) of the segments in a header, in their order.

    Raises
    ------
    BadInput
        A name that occurs twice, a layer that the file has not, a layer or value that is no whole number.
    """
    header = {key: _decoded(reader.GetMetaData(key)) for key in reader.GetMetaDataKeys() if SEGMENT_KEY.match(key)}
    segments: dict[str, tuple[int, int]] = {}
    for index in sorted({int(SEGMENT_KEY.match(key)[1]) for key in header}):
        prefix = f"Segment{index}_"
        name = header.get(prefix + "Name") or header.get(prefix + "ID") or f"Segment_{index}"
        if name in segments:
            raise BadInput(
                f"{file_name}: the segment name '{name}' occurs twice; expected each name once.",
                "Rename or merge these segments in Slicer's Segment Editor.",
            )
        # Slicer before 4.11 wrote one layer a segment, without saying layer and value
        default = {"Layer": index if layers > 1 else 0, "LabelValue": 1}
        layer, value = (_whole_number(header, prefix + key, default[key], file_name) for key in default)
        if not 0 <= layer < layers:
            raise BadInput(
                f"{file_name}: segment '{name}' is in layer {layer}, but the file has {layers}.",
                "Save the segmentation again from Slicer.",
            )
        segments[name] = (layer, value)
    return segments


def _whole_number(header: dict[str, str], key: str, default: int, file_name: str) -> int:
    try:
        return int(header.get(key, default))
    except ValueError as error:
        raise BadInput(
            f"{file_name}: {key} is '{header[key]}'; expected a whole number.",
            "Save the segmentation again from Slicer.",
        ) from error


def _decoded(value: str) -> str:
    """SimpleITK decodes UTF-8 and marks other bytes; these come from programs that used the system's code page."""
    content = value.encode("utf-8", "surrogateescape")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _fields(layers: np.ndarray, grid: Grid) -> Iterator[str]:
    listed = len(layers) > 1
    lps = LPS_RAS @ grid.affine
    yield "NRRD0004"
    yield "# Complete NRRD file format specification at:"
    yield "# http://teem.sourceforge.net/nrrd/format.html"
    yield f"type: {_TYPES[layers.dtype]}"
    yield f"dimension: {3 + listed}"
    yield "space: left-posterior-superior"
    yield "sizes: " + " ".join(str(n) for n in (layers.shape if listed else grid.shape))
    yield "space directions: " + "none " * listed + " ".join(_vector(lps[:3, axis]) for axis in range(3))
    yield "kinds: " + "list " * listed + "domain domain domain"
    if layers.itemsize > 1:
        yield "endian: " + ("little" if np.little_endian else "big")
    yield "encoding: gzip"
    yield f"space origin: {_vector(lps[:3, 3])}"


def _segmentation_keys(grid: Grid, placed: Sequence[tuple[Structure, int]]) -> dict[str, str]:
    keys = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    extent = " ".join(f"0 {n - 1}" for n in grid.shape)
    for index, (structure, layer) in enumerate(placed):
        tags = "Segmentation.Status:notstarted|"
        if structure.code:
            tags += f"TerminologyEntry:{terminology(structure)}|"
        segment = {
            "ID": f"Segment_{structure.value}",
            "Name": structure.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(repr(c / 255) for c in structure.colour),
            "ColorAutoGenerated": "0",
            "LabelValue": str(structure.value),
            "Layer": str(layer),
            "Extent": extent,
            "Tags": tags,
        }
        keys.update({f"Segment{index}_{key}": value for key, value in segment.items()})
    return keys


def terminology(structure: Structure) -> str:
    """The full entry that Slicer writes; a bare "scheme^value^meaning" becomes the type of an anatomical structure."""
    code = structure.code if "~" in structure.code else f"{GENERAL_ANATOMY}~{structure.code}~^^~~^^~^^"
    parts = code.split("~")
    if "|" in code or len(parts) != 7 or any(len(triple.split("^")) != 3 for triple in parts[1:4] + parts[5:]):
        raise BadInput(
            f"Structure '{structure.name}' has the terminology code '{structure.code}'; expected "
            "'scheme^value^meaning', e.g. 'SCT^78961009^Spleen', or a whole terminology entry of Slicer.",
            "Correct the code or leave it empty.",
        )
    return code


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(repr(float(v) + 0.0) for v in values) + ")"  # + 0.0: no "-0.0"


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _escaped(value: str) -> str:
    return UNSTORABLE.sub(" ", value).replace("\\", "\\\\").replace("\n", "\\n")
