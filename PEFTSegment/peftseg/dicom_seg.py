"""Write DICOM SEG objects that refer to the series that was segmented. Torch-free.

highdicom makes the object. It takes one label map, or a mask a structure all at once: 16 GB for 105 structures of a long
CT. So structures that overlap are given to it in layers (label maps), one object each, which are put together here.
Binary segments, as Slicer, dcmqi and archives read them; the label map segmentation of Supplement 243 is too new to be
read everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.dicom_codes import Code, structure_codes
from peftseg.dicom_frames import quiet_pydicom
from peftseg.dicom_layers import numbered_layers, planes_of
from peftseg.dicom_seg_read import normal_of, position, read_dicom_seg
from peftseg.dicom_source import FORMATS, RESEARCH, Source, SourceFile, long_string, read_source, require
from peftseg.errors import BadInput, unknown_name
from peftseg.grid import Grid
from peftseg.models import Structure
from peftseg.version import __version__
from peftseg.volume import Labels
from peftseg.writing import whole_file

__all__ = ["read_dicom_seg", "write_dicom_seg", "write_result"]

PRODUCT = "PEFTSegment"
LARGEST = 2**32 - 2  # bytes of voxels in one DICOM file
SERIES_OFFSET = 1000  # to the series number of the source, so that results are listed behind it
WHAT = "DICOM SEG output"


def write_dicom_seg(
    path: Path | str,
    result: np.ndarray | Labels,
    volume_grid: Grid,
    source_files: Sequence[SourceFile],
    structures: Sequence[Structure],
    provenance: dict[str, str],
    edited: bool = False,
    compress: bool = False,
) -> Path:
    """Write a DICOM SEG object, whole or not at all.

    Parameters
    ----------
    path : Path or str
        Output file, e.g. "case.dcm"; missing folders are made.
    result : np.ndarray or Labels
        (I, J, K) label map, (C, I, J, K) bool masks in the structures' order (may overlap), or what `read_labels` gave.
    volume_grid : Grid
        Where its voxels lie: the series' grid, its axes permuted or flipped at most.
    source_files : sequence of Path, str or (Path, int)
        Files of the series that was segmented (single slices, or one enhanced multi-frame file), or its planes: file and
        frame (from 0), where a file holds several volumes.
    structures : sequence of Structure
        What is in the result; those without voxels are described, and have no frames.
    provenance : dict
        Facts of `Segmenter.provenance`: adapter name, version and hash, base and its fingerprint, software, time.
    edited : bool
        A person has changed the result: SEMIAUTOMATIC instead of AUTOMATIC.
    compress : bool
        Deflate the file, mostly more than a hundred times smaller. Not every archive takes that.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    BadInput
        highdicom is missing; no series that can be referred to; another grid; voxels that belong to no structure; more than
        4 GB of voxels; a folder that cannot be written.
    """
    require("highdicom", WHAT)
    path = Path(path)
    source = read_source(source_files, WHAT)
    layers = numbered_layers(result, volume_grid, source, structures)
    _check_size(layers, len(structures))
    with quiet_pydicom():
        segmentation = _object(layers, source, structures, provenance, edited)
        if compress:
            segmentation.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"  # deflated explicit little endian
        with whole_file(path) as temporary:
            segmentation.save_as(temporary)
    return path


def _object(
    layers: list[np.ndarray], source: Source, structures: Sequence[Structure], provenance: dict[str, str], edited: bool
) -> Any:
    """highdicom's object of all layers."""
    import highdicom

    described = describe(structures, provenance, edited)
    number, series, settings = series_number(source), highdicom.UID(), _settings(provenance)
    try:
        parts = [_segmentation(layer, source, described, series, number, settings) for layer in layers]
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # its text may quote the header
        raise BadInput(
            f"highdicom cannot refer to this series ({type(error).__name__} from its headers).",
            "Its headers lack something or hold what DICOM does not allow. Export it again, or write NIfTI or NRRD.",
        ) from error
    whole = put_together(parts)
    for name, value in source.patient_and_study.items():
        setattr(whole, name, value)
    return whole


def write_result(
    path: Path | str,
    result: np.ndarray | Labels,
    volume_grid: Grid,
    source_files: Sequence[SourceFile],
    structures: Sequence[Structure],
    provenance: dict[str, str],
    file_format: str,
    edited: bool = False,
    compress: bool = False,
) -> Path:
    """Write in one of `FORMATS`; arguments and errors as `write_dicom_seg`."""
    if file_format not in FORMATS:
        raise unknown_name("DICOM format", file_format, FORMATS)
    given = (path, result, volume_grid, source_files, structures, provenance, edited)
    if file_format == "dicom-seg":
        return write_dicom_seg(*given, compress)
    from peftseg.rtstruct import write_rtstruct

    return write_rtstruct(*given)


def describe(structures: Sequence[Structure], provenance: dict[str, str], edited: bool) -> list[Any]:
    """highdicom's segment descriptions, numbered from 1 in the structures' order."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=PRODUCT,
        family=codes.cid7162.ArtificialIntelligence,
        version=software_version(provenance),
        source=PRODUCT,
        parameters={key: _parameter(value) for key, value in provenance.items()} or None,
    )
    kind = "SEMIAUTOMATIC" if edited else "AUTOMATIC"
    described = []
    for number, structure in enumerate(structures, 1):
        found = structure_codes(structure)
        segment = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=long_string(structure.name),
            segmented_property_category=coded(found.category),
            segmented_property_type=coded(found.type),
            algorithm_type=kind,
            algorithm_identification=algorithm,
            anatomic_regions=[coded(found.region)] if found.region else None,
            tracking_uid=hd.UID(),
            tracking_id=long_string(f"{PRODUCT} {number} {structure.name}"),
            display_color=hd.color.CIELabColor.from_rgb(*structure.colour),
        )
        if found.modifier:
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                coded(found.modifier)
            ]
        if found.region_modifier:
            segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [coded(found.region_modifier)]
        if segment.SegmentLabel != structure.name:
            segment.SegmentDescription = structure.name
        described.append(segment)
    return described


def coded(code: Code) -> Any:
    """highdicom's concept of a code."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def software_version(provenance: dict[str, str]) -> str:
    """The version of the software that made a result, e.g. "0.1.0"."""
    return long_string(provenance.get("software", __version__).removeprefix("peftseg "))


def series_number(source: Source) -> int:
    """The number of a result's series."""
    return max(SERIES_OFFSET + int(source.headers[0].get("SeriesNumber") or 0), 1)


def _parameter(value: str) -> str:
    """highdicom parts parameters by commas."""
    return " ".join(str(value).replace("\\", "/").replace(",", ";").split())


def _settings(provenance: dict[str, str]) -> dict[str, Any]:
    """What every part of a SEG object says about itself."""
    made_with = provenance.get("adapter_hash") or provenance.get("base_fingerprint") or "none"
    return {
        "manufacturer": PRODUCT,
        "manufacturer_model_name": PRODUCT,
        "software_versions": software_version(provenance),
        "device_serial_number": long_string(made_with),  # there is no device; the network tells results apart
        "content_label": "SEGMENTATION",
        "content_description": RESEARCH[:1].upper() + RESEARCH[1:],
        "content_creator_name": f"{PRODUCT}^",
        "series_description": f"{PRODUCT}: {RESEARCH}",
        "specific_character_set": "ISO_IR 192",
    }


def _segmentation(
    layer: np.ndarray, source: Source, described: list[Any], series: str, number: int, settings: dict[str, Any]
) -> Any:
    """highdicom's object of one label map (I, J, K) on the source's grid; of the first plane only if it is empty."""
    import highdicom as hd
    from highdicom.content import PlanePositionSequence

    planes = np.ascontiguousarray(layer.transpose(2, 1, 0))  # planes of rows and columns; each is looked at often
    images, positions = list(source.headers), None
    in_file = np.argsort(source.frames)
    if source.frames:
        planes = planes[in_file]  # highdicom wants the file's order
    further = None
    if not layer.any():  # highdicom would write every plane of every segment
        planes, further = planes[:1], None if source.frames else images[1:]
        images = images[:1]
        if source.frames:
            first = source.positions[in_file[0]]
            positions = [PlanePositionSequence("PATIENT", [float(v) for v in first])]
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=planes,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=series,
        series_number=number,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        plane_positions=positions,
        further_source_images=further or None,
        **settings,
    )
    if source.frames:
        _refer_to_frames(segmentation, np.sort(source.frames))
    return segmentation


def _refer_to_frames(segmentation: Any, frames: np.ndarray) -> None:
    """The file's own frame numbers in place of those among the frames that the header keeps; `frames` in the file's order."""
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence", []):
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = int(frames[image.ReferencedFrameNumber - 1]) + 1


def put_together(parts: list[Any]) -> Any:
    """One SEG object of several that describe the same segments and differ in their frames."""
    first = parts[0]
    if len(parts) == 1:
        return first
    size = first.Rows * first.Columns
    if size % 8:  # frames do not begin at whole bytes
        bits = [_bits(part)[: part.NumberOfFrames * size] for part in parts]
        voxels = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    else:
        voxels = b"".join(part.PixelData[: part.NumberOfFrames * size // 8] for part in parts)
    first.PixelData = voxels + b"\0" * (len(voxels) % 2)
    frames = [frame for part in parts for frame in part.PerFrameFunctionalGroupsSequence]
    depths = [-position(frame) @ normal_of(first) for frame in frames]  # highdicom's direction
    ranks = np.unique(np.round(depths, 4), return_inverse=True)[1] + 1
    for frame, rank in zip(frames, ranks.tolist(), strict=True):
        content = frame.FrameContentSequence[0]
        content.DimensionIndexValues = [content.DimensionIndexValues[0], rank]
    first.PerFrameFunctionalGroupsSequence = frames
    first.NumberOfFrames = len(frames)
    first.SegmentsOverlap = "YES"
    return first


def _check_size(layers: list[np.ndarray], structures: int) -> None:
    planes = sum(len(places) for _, places in planes_of(layers).values())
    size = max(planes, structures) * layers[0][:, :, 0].size // 8
    if size > LARGEST:
        raise BadInput(
            f"The {planes} planes of {structures} structures take {size / 1e9:.1f} GB; one DICOM file holds 4.3 GB of "
            "voxels.",
            "Export fewer structures at once, or write NRRD.",
        )


def _bits(dataset: Any) -> np.ndarray:
    return np.unpackbits(np.frombuffer(dataset.PixelData, dtype=np.uint8), bitorder="little")
