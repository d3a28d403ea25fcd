"""Scene to files for a job, and files to segmentation nodes.

A scan may have hundreds of megabytes. What must happen in Slicer's own thread (MRML) takes no copy; writing runs in a
thread. The files are NRRD without compression, written here because SimpleITK holds Python's lock while it writes, which
would freeze Slicer's windows.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.models import Structure

from . import painted, scans, structures

NRRD_TYPES = {
    "i1": "signed char", "u1": "unsigned char", "i2": "short", "u2": "unsigned short", "i4": "int", "u4": "unsigned int",
    "i8": "long long", "u8": "unsigned long long", "f4": "float", "f8": "double",
}  # fmt: skip
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SLAB = 8 << 20  # bytes written at once
SAME_PLACE = 0.05  # part of a voxel by which two grids may differ and still count as the same
FACT = "peftseg "  # prefix of the keys in a result's file
ATTRIBUTE = "PEFTSegment."  # prefix of a result's node attributes


@dataclass(frozen=True)
class Image:
    """An array of the scene, not copied: (K, J, I) as VTK orders it, and the matrix from (i, j, k) to RAS mm."""

    array: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Part:
    """One structure's voxels: where `array == value`, at `start` (k, j, i) of the scan's grid."""

    array: np.ndarray
    value: int
    start: tuple[int, int, int]


NOTHING = Part(np.zeros((1, 1, 1), np.uint8), 1, (0, 0, 0))


# scene to files


def image_of(volume: slicer.vtkMRMLScalarVolumeNode) -> Image:
    """A scan's voxels and place, a linear transform included; BadInput where it cannot be used."""
    scans.require_usable(volume)
    return Image(slicer.util.arrayFromVolume(volume), scans.ijk_to_world(volume))


def part_of(
    segmentation: slicer.vtkMRMLSegmentationNode, segment_id: str, volume: slicer.vtkMRMLScalarVolumeNode
) -> Part:
    """A segment's voxels on the scan's grid; `NOTHING` of an empty segment, which Slicer cannot resample.

    The segment's own labelmap is used as it is where it lies on the scan's grid; otherwise it is resampled.
    """
    if not painted.is_painted(segmentation, segment_id):
        return NOTHING
    image = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    start = _start_on_grid(segmentation, image, volume)
    if start is None:
        return Part(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume), 1, (0, 0, 0))
    array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(segmentation, segment_id)
    return Part(array, segmentation.GetSegmentation().GetSegment(segment_id).GetLabelValue(), start)


def _start_on_grid(segmentation, image: vtk.vtkImageData, volume) -> tuple[int, int, int] | None:
    """Index (k, j, i) on the scan's grid of a labelmap's first voxel; None where the grids differ."""
    if segmentation.GetParentTransformNode() is not volume.GetParentTransformNode():
        return None
    own, scan = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(own)
    volume.GetIJKToRASMatrix(scan)
    own, scan = slicer.util.arrayFromVTKMatrix(own), slicer.util.arrayFromVTKMatrix(scan)
    extent = image.GetExtent()
    corners = np.array([[extent[0], extent[2], extent[4], 1.0], [extent[1], extent[3], extent[5], 1.0]]).T
    on_scan = np.linalg.solve(scan, own @ corners)
    whole = np.rint(on_scan)
    sizes = np.array(extent[1::2]) - np.array(extent[0::2])
    if np.abs(on_scan - whole).max() > SAME_PLACE or not np.array_equal((whole[:, 1] - whole[:, 0])[:3], sizes):
        return None
    return tuple(int(n) for n in whole[2::-1, 0])


def write_image(path: Path, image: Image) -> None:
    """Write an image as one NRRD file without compression; may run in a thread."""
    _write_nrrd(path, [image.array], image.affine, {})


def write_parts(path: Path, parts: Sequence[Part], wanted: Sequence[Structure], image: Image) -> Path:
    """Write the structures of one scan on its grid; may run in a thread.

    A plain label map with the structures' values where nothing overlaps, otherwise a layered .seg.nrrd.

    Parameters
    ----------
    path : Path
        Without suffix.
    parts, wanted : sequences
        One part a structure.
    image : Image
        The scan.

    Returns
    -------
    Path
        The file that was written.
    """
    shape = image.array.shape
    layers: list[np.ndarray] = []
    layer_of = []
    for part, structure in zip(parts, wanted, strict=True):
        inside, mask = _on_scan(part, shape)
        number = next((n for n, layer in enumerate(layers) if not layer[inside][mask].any()), len(layers))
        if number == len(layers):
            layers.append(np.zeros(shape, np.uint16))
        layers[number][inside][mask] = structure.value
        layer_of.append(number)
    if len(layers) < 2:
        layers = layers or [np.zeros(shape, np.uint16)]  # all are absent
        target = path.with_name(path.name + ".nrrd")
        _write_nrrd(target, layers, image.affine, {})
        return target
    target = path.with_name(path.name + ".seg.nrrd")
    _write_nrrd(target, layers, image.affine, _segment_keys(wanted, layer_of, shape))
    return target


def _on_scan(part: Part, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box of the scan that a part covers, and the part's mask within it."""
    first = [max(0, s) for s in part.start]
    last = [min(n, s + m) for n, s, m in zip(shape, part.start, part.array.shape, strict=True)]
    inside = tuple(slice(f, max(f, e)) for f, e in zip(first, last, strict=True))
    own = tuple(slice(box.start - s, box.stop - s) for box, s in zip(inside, part.start, strict=True))
    return inside, part.array[own] == part.value


def _segment_keys(wanted: Sequence[Structure], layer_of: Sequence[int], shape: tuple[int, ...]) -> dict[str, str]:
    keys = {"Segmentation_ContainedRepresentationNames": "Binary labelmap|"}
    extent = " ".join(f"0 {n - 1}" for n in reversed(shape))
    for number, (structure, layer) in enumerate(zip(wanted, layer_of, strict=True)):
        facts = {"ID": f"Segment_{structure.value}", "Name": structure.name, "LabelValue": structure.value}
        facts |= {"Layer": layer, "Extent": extent, "Color": " ".join(f"{c / 255:.6f}" for c in structure.colour)}
        keys |= {f"Segment{number}_{name}": str(value) for name, value in facts.items()}
    return keys


def _write_nrrd(path: Path, layers: Sequence[np.ndarray], affine: np.ndarray, keys: dict[str, str]) -> None:
    """Write (K, J, I) layers of one kind; several become the first axis, as Slicer's segmentation files have it."""
    array = layers[0]
    kind = array.dtype.str[1:]
    if kind not in NRRD_TYPES:
        raise BadInput(
            _("The scan has voxels of the type {kind}.").format(kind=array.dtype),
            _("Convert it to whole numbers or float (Cast Scalar Volume module)."),
        )
    lps = RAS_TO_LPS @ affine
    vectors = [f"({','.join(repr(float(v)) for v in lps[:3, axis])})" for axis in range(3)]
    several = len(layers) > 1
    sizes = [str(n) for n in reversed(array.shape)]
    lines = [
        "NRRD0004",
        f"type: {NRRD_TYPES[kind]}",
        f"dimension: {3 + several}",
        "space: left-posterior-superior",
        f"sizes: {' '.join([str(len(layers)), *sizes] if several else sizes)}",
        f"space directions: {' '.join(['none', *vectors] if several else vectors)}",
        f"kinds: {'list ' if several else ''}domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: ({','.join(repr(float(v)) for v in lps[:3, 3])})",
        *(f"{name}:={_one_line(text)}" for name, text in keys.items()),
    ]
    with open(path, "wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode("utf-8"))
        slab = max(1, SLAB // max(1, array[0].nbytes * len(layers)))
        for first in range(0, len(array), slab):
            planes = [layer[first : first + slab] for layer in layers]
            block = np.stack(planes, axis=-1) if several else np.ascontiguousarray(planes[0])
            file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).data)


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def require_space(folder: Path, images: Sequence[Image]) -> None:
    """Refuse an export that the disk cannot take: the scans, and labels of half their size at least."""
    needed = int(1.5 * sum(image.array.nbytes for image in images)) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            _("The disk of {folder} has {free:.1f} GB free; the exported scans need {needed:.1f} GB.").format(
                folder=folder, free=free / 1e9, needed=needed / 1e9
            ),
            _("Free some space, or set PEFTSEGMENT_HOME to a folder on another disk."),
        )


# files to scene


def load_segmentation(
    path: Path, name: str, scan: slicer.vtkMRMLScalarVolumeNode | None, facts: dict[str, str]
) -> slicer.vtkMRMLSegmentationNode:
    """Load a result as a new segmentation: geometry of its scan, beside it, shown as outline, facts as attributes.

    It is hidden where its scan is not in view: it would seem to be of the scan that is.

    Parameters
    ----------
    path : Path
        A .seg.nrrd file.
    name : str
        Name of the node.
    scan : vtkMRMLScalarVolumeNode or None
        The scan that it belongs to; None where that is not loaded any more.
    facts : dict
        Kept as node attributes "PEFTSegment.<key>", saved with the scene.

    Raises
    ------
    BadInput
        The file cannot be read.
    """
    try:
        with unlisted():
            node = slicer.util.loadSegmentation(str(path), {"name": name})
    except RuntimeError as error:
        raise BadInput(
            _("The result {name} cannot be loaded ({error}).").format(name=path.name, error=error),
            _("Apply the adapter again."),
        ) from error
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name) if _named(name, node) else name)
    forget_file(node)
    for key, value in facts.items():
        node.SetAttribute(ATTRIBUTE + key, str(value))
    if scan is not None:
        _follow_transform(node, scan)
        node.SetReferenceImageGeometryParameterFromVolumeNode(scan)
        scans.place_beside(node, scan)
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    node.SetDisplayVisibility(scan is scans.scan_in_view())
    return node


@contextlib.contextmanager
def unlisted() -> Iterator[None]:
    """Load files within this that shall not come into Slicer's list of recent files: they go with their job."""
    manager = slicer.app.coreIOManager()
    before = manager.blockSignals(True)  # the main window lists what the manager says that it has loaded
    try:
        yield
    finally:
        manager.blockSignals(before)


def facts_of(path: Path) -> dict[str, str]:
    """What the engine noted in the header of a .seg.nrrd file: adapter, base, software, time."""
    facts = {}
    with open(path, "rb") as file:
        for line in iter(file.readline, b""):
            text = line.decode("utf-8", errors="replace").strip()
            if not text:
                break
            key, found, value = text.partition(":=")
            if found and key.startswith(FACT):
                facts[key[len(FACT) :].replace(" ", "_")] = value
    return facts


def _follow_transform(node: slicer.vtkMRMLSegmentationNode, scan: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Put a result, which lies in world coordinates, under its scan's transform without moving it."""
    transform = scan.GetParentTransformNode()
    if transform is None:
        return
    from_world = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformFromWorld(from_world)
    node.ApplyTransformMatrix(from_world)
    node.SetAndObserveTransformNodeID(transform.GetID())


def _named(name: str, other: slicer.vtkMRMLNode) -> bool:
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return any(node is not other and node.GetName() == name for node in nodes)


def forget_file(node: slicer.vtkMRMLStorableNode) -> None:
    """The file that a node was loaded from is deleted with its job: the node counts as never saved."""
    for index in range(node.GetNumberOfStorageNodes() - 1, -1, -1):
        storage = node.GetNthStorageNode(index)
        if storage is not None:
            slicer.mrmlScene.RemoveNode(storage)
    node.StorableModified()


def copy_segments(
    source: slicer.vtkMRMLSegmentationNode, wanted: Sequence[Structure], target: slicer.vtkMRMLSegmentationNode
) -> None:
    """Put the segments of these structures into another segmentation, in place of empty ones of the same name."""
    for structure in wanted:
        segment_id = structures.find_segment(source, structure.name)
        if not segment_id:
            continue
        empty = structures.find_segment(target, structure.name)
        if empty:
            target.GetSegmentation().RemoveSegment(empty)
        target.GetSegmentation().CopySegmentFromSegmentation(source.GetSegmentation(), segment_id)
        copied = target.GetSegmentation().GetSegment(structures.find_segment(target, structure.name))
        structures.dress(copied, structure)
