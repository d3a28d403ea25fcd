"""Write DICOM RT structure sets (RTSTRUCT): each structure as closed planar contours in patient millimetres. Torch-free.

Contours come from contourpy (matplotlib's), at the half level between the centres of voxels inside and outside, so that
filling them by voxel centres gives the mask back. Holes are joined to the outline around them by a slit of no width (the
"keyhole" of DICOM PS3.3 C.8.8.6.3), which every reader takes. Docs/decisions/dicom-out.md says why this and not rt-utils.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from peftseg.dicom_codes import Code, StructureCodes, structure_codes
from peftseg.dicom_frames import quiet_pydicom
from peftseg.dicom_layers import numbered_layers, planes_of
from peftseg.dicom_seg import PRODUCT, series_number, software_version
from peftseg.dicom_source import PATIENT_AND_STUDY, RESEARCH, Source, SourceFile, long_string, read_source, require
from peftseg.grid import LPS_RAS, Grid
from peftseg.models import Structure
from peftseg.volume import Labels
from peftseg.writing import whole_file

WHAT = "RTSTRUCT output"
_OPTIONAL = ("StudyDescription", "PatientAge", "PatientSize", "PatientWeight", "PositionReferenceIndicator")
_DIGITS = 4  # of a coordinate in mm: a tenth of a micrometre


def write_rtstruct(
    path: Path | str,
    result: np.ndarray | Labels,
    volume_grid: Grid,
    source_files: Sequence[SourceFile],
    structures: Sequence[Structure],
    provenance: dict[str, str],
    edited: bool = False,
) -> Path:
    """Write an RT structure set, whole or not at all; arguments and errors as `dicom_seg.write_dicom_seg`.

    Structures without voxels are named, and have no contours. The approval status is UNAPPROVED.
    """
    require("contourpy", WHAT)
    path = Path(path)
    source = read_source(source_files, WHAT)
    layers = numbered_layers(result, volume_grid, source, structures)
    kind = "SEMIAUTOMATIC" if edited else "AUTOMATIC"
    found = planes_of(layers)
    with quiet_pydicom():
        dataset = _structure_set(source, provenance)
        for number, structure in enumerate(structures, 1):
            index, planes = found.get(number, (0, []))
            masks = ((k, layers[index][:, :, k] == number) for k in planes)
            _add_roi(dataset, number, structure, masks, source, kind)
        with whole_file(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return path


def contours(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The outlines of a mask in a plane; a hole is part of the outline around it.

    Parameters
    ----------
    mask : np.ndarray
        (I, J) bool.

    Yields
    ------
    np.ndarray
        (n, 2) indices i, j of the corners of a closed polygon; the first is not repeated.
    """
    from contourpy import FillType, contour_generator

    closed = np.pad(mask.T, 1).astype(float)  # rows are j; a rim, so that what touches the border is closed there
    filled = contour_generator(z=closed, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    for points, offsets in zip(*filled, strict=True):
        rings = [_corners(points[a : b - 1] - 1) for a, b in itertools.pairwise(offsets)]  # the last repeats the first
        yield keyhole(rings[0], rings[1:])


def keyhole(outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """One polygon of an outline and the holes in it, joined by slits of no width.

    The slit leaves a hole at its point of largest i and runs along i to what is met first. Holes are taken by their
    largest i, the largest first, so that what is met has been joined before.
    """
    for hole in sorted(holes, key=lambda ring: -ring[:, 0].max()):
        start = int(hole[:, 0].argmax())
        edge, point = _first_met(outline, hole[start])
        around = np.concatenate([hole[start:], hole[: start + 1]])
        outline = np.concatenate([outline[: edge + 1], [point], around, [point], outline[edge + 1 :]])
    return outline


def _first_met(ring: np.ndarray, start: np.ndarray) -> tuple[int, np.ndarray]:
    """The edge that a ray from `start` along +i meets first (number of its first corner), and where."""
    ends = np.roll(ring, -1, axis=0)
    crossing = (np.minimum(ring[:, 1], ends[:, 1]) <= start[1]) & (np.maximum(ring[:, 1], ends[:, 1]) > start[1])
    edges = np.flatnonzero(crossing)
    first, second = ring[edges], ends[edges]
    share = (start[1] - first[:, 1]) / (second[:, 1] - first[:, 1])
    met = first[:, 0] + share * (second[:, 0] - first[:, 0])
    met[met <= start[0]] = np.inf
    nearest = int(met.argmin())
    return int(edges[nearest]), np.array([met[nearest], start[1]])


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without the points in the middle of straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[np.abs(turn) > 1e-9]


def _structure_set(source: Source, provenance: dict[str, str]) -> Any:
    """The object without structures: patient, study, frame of reference, references to all images."""
    import pydicom
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    image, now = source.headers[0], datetime.now()
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit ones hold 65534 bytes a contour
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name in PATIENT_AND_STUDY:
        setattr(dataset, name, source.patient_and_study.get(name, ""))
    for name in _OPTIONAL:
        if name in image:
            setattr(dataset, name, image[name].value)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = image.StudyInstanceUID, generate_uid()
    dataset.FrameOfReferenceUID = image.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = image.get("PositionReferenceIndicator", "")
    dataset.Modality, dataset.OperatorsName = "RTSTRUCT", ""
    dataset.SeriesNumber = series_number(source)
    dataset.SeriesDescription = f"{PRODUCT}: {RESEARCH}"
    dataset.Manufacturer = dataset.ManufacturerModelName = PRODUCT
    dataset.SoftwareVersions, dataset.InstanceNumber = software_version(provenance), 1
    dataset.InstanceCreationDate = dataset.StructureSetDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.StructureSetTime = now.strftime("%H%M%S")
    dataset.StructureSetLabel = "SEGMENTATION"
    dataset.StructureSetName = long_string(f"{PRODUCT} {provenance.get('adapter') or provenance.get('base', '')}")
    said = "; ".join(f"{key}={value}" for key, value in provenance.items())
    dataset.StructureSetDescription = f"{RESEARCH[:1].upper()}{RESEARCH[1:]}. {said}"[:1024].replace("\\", "/")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    return dataset


def _frame_of_reference(source: Source) -> Any:
    from pydicom import Dataset

    image = source.headers[0]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    series.ContourImageSequence = [_image(header, None) for header in source.headers]
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # detached study management: what the standard asks for
    study.ReferencedSOPInstanceUID = image.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = image.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(header: Any, frame: int | None) -> Any:
    """A reference to an image, and to one of its frames (from 0)."""
    from pydicom import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frame is not None:
        image.ReferencedFrameNumber = frame + 1
    return image


def _add_roi(dataset: Any, number: int, structure: Structure, masks: Iterable, source: Source, kind: str) -> None:
    """Add a structure; `masks` are its planes: index k along the stack, and (I, J) bool."""
    from pydicom import Dataset

    named, drawn, observed = Dataset(), Dataset(), Dataset()
    named.ROINumber = drawn.ReferencedROINumber = observed.ReferencedROINumber = observed.ObservationNumber = number
    named.ReferencedFrameOfReferenceUID = source.headers[0].FrameOfReferenceUID
    named.ROIName, named.ROIGenerationAlgorithm = long_string(structure.name), kind
    drawn.ROIDisplayColor = list(structure.colour)
    placed = ((k, points) for k, mask in masks for points in contours(mask))
    lines = [_contour(points, k, n, source) for n, (k, points) in enumerate(placed, 1)]
    if lines:
        drawn.ContourSequence = lines
    observed.RTROIInterpretedType, observed.ROIInterpreter = "", ""
    _add_codes(observed, structure_codes(structure))
    dataset.StructureSetROISequence.append(named)
    dataset.ROIContourSequence.append(drawn)
    dataset.RTROIObservationsSequence.append(observed)


def _contour(points: np.ndarray, plane: int, number: int, source: Source) -> Any:
    from pydicom import DataElement, Dataset

    lps = LPS_RAS @ source.grid.affine
    place = source.positions[plane] + points @ lps[:3, :2].T  # from where the scanner put this plane
    contour = Dataset()
    contour.ContourNumber = number
    contour.ContourImageSequence = [_image(source.header(plane), source.frames[plane] if source.frames else None)]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    text = "\\".join(f"{v:.{_DIGITS}f}" for v in place.ravel().tolist())
    contour.add(
        DataElement("ContourData", "DS", text, already_converted=True)
    )  # as an object a number takes 20 times more
    return contour


def _add_codes(observed: Any, codes: StructureCodes) -> None:
    """What the structure is, as in DICOM SEG."""
    identified, category = _coded(codes.type), _coded(codes.category)
    observed.RTROIIdentificationCodeSequence = [identified]
    observed.SegmentedPropertyCategoryCodeSequence = [category]
    if codes.modifier:
        identified.SegmentedPropertyTypeModifierCodeSequence = [_coded(codes.modifier)]
    if codes.region:
        region = _coded(codes.region)
        if codes.region_modifier:
            region.AnatomicRegionModifierSequence = [_coded(codes.region_modifier)]
        observed.AnatomicRegionSequence = [region]


def _coded(code: Code) -> Any:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
