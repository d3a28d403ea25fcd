"""What a result file says about itself beside its voxels: structures with colour and code, and provenance. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.seg_nrrd import SEGMENT_KEY, header_segments, is_seg_nrrd
from peftseg.volume import sidecar_content

_PROVENANCE = "peftseg "
_TERMINOLOGY = re.compile(r"(?:^|\|)TerminologyEntry:([^|]*)")


def read_facts(path: Path | str) -> tuple[tuple[Structure, ...], dict[str, str]]:
    """Structures and provenance of a .seg.nrrd file, or of a plain label map with the .json that PEFTSegment leaves.

    Returns
    -------
    structures : tuple of Structure
        In the file's order, with values that are its own in .seg.nrrd files of several layers; none for a label map alone.
    provenance : dict
        Adapter, base, hashes, software, ...; none for files of other programs.

    Raises
    ------
    BadInput
        A .seg.nrrd header or a .json that cannot be read.
    """
    path = Path(path)
    if path.name.lower().endswith(".nrrd"):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise BadInput(f"{path.name} cannot be read; expected a .seg.nrrd file.", "Save it again.") from error
        if is_seg_nrrd(reader):
            return _of_header(reader, path.name)
    return _of_sidecar(sidecar_content(path))


def _of_header(reader: sitk.ImageFileReader, name: str) -> tuple[tuple[Structure, ...], dict[str, str]]:
    keys = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    layers = reader.GetNumberOfComponents() if reader.GetDimension() == 3 else reader.GetSize()[3]
    found = []
    places = sorted({int(match[1]) for match in map(SEGMENT_KEY.match, keys) if match})  # as `header_segments` goes
    for number, (place, segment) in enumerate(zip(places, header_segments(reader, name, layers), strict=True), 1):
        colour = keys.get(f"Segment{place}_Color") or "0.5 0.68 0.5"
        red, green, blue = (round(255 * float(v)) for v in colour.split()[:3])
        code = _TERMINOLOGY.search(keys.get(f"Segment{place}_Tags", ""))
        found.append(Structure(segment, number, (red, green, blue), code[1] if code else ""))
    facts = {key.removeprefix(_PROVENANCE): value for key, value in keys.items() if key.startswith(_PROVENANCE)}
    return tuple(found), facts


def _of_sidecar(content: dict[str, Any]) -> tuple[tuple[Structure, ...], dict[str, str]]:
    if not content:
        return (), {}
    rows = content["structures"]
    structures = tuple(Structure(row["name"], int(row["value"]), tuple(row["colour"]), row["code"]) for row in rows)
    return structures, {str(key): str(value) for key, value in content["provenance"].items()}
