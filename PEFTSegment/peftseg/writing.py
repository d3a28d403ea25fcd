"""Write label maps, segmentations and volumes: whole files or none. Torch-free.

NIfTI, NRRD and MetaImage go through SimpleITK, Slicer's .seg.nrrd through `seg_nrrd`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from peftseg.errors import BadInput
from peftseg.grid import Grid, grid_from_itk, image_to_itk
from peftseg.models import Structure
from peftseg.nifti import is_nifti, scan_voxels
from peftseg.seg_nrrd import UNSTORABLE, write_seg_nrrd

WRITABLE = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
SIDECAR_FORMAT = "peftseg-segmentation-1"


def write_segmentation(
    path: Path | str,
    segmentation: np.ndarray,
    grid: Grid,
    structures: Sequence[Structure],
    provenance: dict[str, str],
) -> None:
    """Write a segmentation on its own grid, with names, colours, codes and provenance.

    `.seg.nrrd` holds all of it; `.nii.gz`, `.nii`, `.nrrd` and `.mha` are plain label maps with a sidecar
    `<name>.json`. Missing folders are made. uint8 if the values fit, else uint16.

    Parameters
    ----------
    path : Path or str
        Output file.
    segmentation : np.ndarray
        (I, J, K) integer label map whose values are the structures', or (C, I, J, K) bool masks in their order.
    grid : Grid
        The study's grid.
    structures : sequence of Structure
        What is in the file; a structure may be absent from the voxels.
    provenance : dict
        Flat facts, e.g. adapter name and hash; no patient data.

    Raises
    ------
    BadInput
        Overlapping masks in a plain label map, voxels without a structure, an unknown suffix, a folder that cannot
        be written, a full disk.
    """
    path = Path(path)
    suffix = _writable_suffix(path)
    segmentation = np.asarray(segmentation)
    check_structures(structures)
    _check_shape(segmentation, grid, structures)
    dtype = np.uint8 if max(s.value for s in structures) <= np.iinfo(np.uint8).max else np.uint16
    if segmentation.ndim == 3:
        layers, layer_of = _known_values(segmentation, structures).astype(dtype)[np.newaxis], [0] * len(structures)
    else:
        layers, layer_of = layers_of(segmentation, [s.value for s in structures], dtype)
        layers = np.stack(layers)
    if suffix == ".seg.nrrd":
        with whole_file(path) as temporary:
            write_seg_nrrd(temporary, layers, grid, list(zip(structures, layer_of, strict=True)), provenance)
            _check_geometry(temporary, grid)
        return
    if len(layers) > 1:
        raise BadInput(
            f"Structures overlap, and a plain label map ({suffix}) holds one value a voxel, so {path.name} would lose "
            "voxels.",
            "Write a .seg.nrrd file: it holds overlapping structures in layers.",
        )
    with whole_file(sidecar_path(path)) as sidecar, whole_file(path) as temporary:
        _write_image(temporary, layers[0], grid)
        sidecar.write_text(_sidecar_text(structures, provenance), encoding="utf-8", errors="replace")


def write_volume(path: Path | str, array: np.ndarray, grid: Grid) -> None:
    """Write an (I, J, K) array of numbers, e.g. a heat map; errors as `write_segmentation`."""
    path = Path(path)
    if _writable_suffix(path) == ".seg.nrrd":
        raise BadInput(f"{path.name} is a segmentation's name; a volume was given.", "Use .nrrd or .nii.gz.")
    if array.shape != grid.shape:
        raise BadInput(f"The array has shape {array.shape}, its grid {grid.shape}.", "Give arrays of equal shape.")
    with whole_file(path) as temporary:
        _write_image(temporary, array, grid)


def check_structures(structures: Sequence[Structure]) -> None:
    """Refuse an empty list, a name or value that occurs twice, values outside 1 to 65535, and names of background or with
    control signs."""
    remedy = "Give each structure its own name and its own label value of 1 or more, e.g. hippocampus=1,amygdala=2."
    if not structures:
        raise BadInput("No structures were given; expected at least one.", remedy)
    for kind in ("name", "value"):
        seen = [getattr(s, kind) for s in structures]
        twice = sorted({v for v in seen if seen.count(v) > 1})
        if twice:
            raise BadInput(f"The structure {kind} {twice[0]!r} occurs {seen.count(twice[0])} times.", remedy)
    for structure in structures:
        if structure.name.strip().lower() in ("", "background"):
            raise BadInput(f"'{structure.name}' is no structure: background is what no structure covers.", remedy)
        if UNSTORABLE.search(structure.name):
            raise BadInput(
                f"The structure name {structure.name!r} holds a sign that Slicer's files cannot store.",
                "Rename the structure, e.g. type its name anew.",
            )
        if not 1 <= structure.value <= np.iinfo(np.uint16).max:
            raise BadInput(
                f"Structure '{structure.name}' has the label value {structure.value}; expected 1 to 65535.", remedy
            )


def sidecar_path(path: Path) -> Path:
    """`case.json` for `case.nii.gz`."""
    name = next((path.name[: -len(s)] for s in WRITABLE if path.name.lower().endswith(s)), path.stem)
    return path.with_name(name + ".json")


def require_writable_dir(path: Path | str, needed_bytes: int = 0) -> None:
    """Refuse an output folder that cannot take results; creates nothing.

    A folder that does not exist yet is judged by its nearest existing parent.

    Raises
    ------
    BadInput
        Not a folder, read-only, or fewer than `needed_bytes` bytes free on its disk.
    """
    path = Path(path)
    folder = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not folder.is_dir():
        raise BadInput(f"{folder} is a file; expected a folder for results.", "Choose another output folder.")
    try:
        with tempfile.TemporaryFile(dir=folder):  # permission bits do not tell on Windows, network drives or for root
            pass
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be written ({error.strerror or error}); expected a folder that takes results.",
            "Choose another output folder, or ask for the right to write there.",
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise BadInput(
            f"The disk of {folder} has {free / 1e6:.1f} MB free; {needed_bytes / 1e6:.1f} MB are needed.",
            "Free some space or choose another output folder.",
        )


def _writable_suffix(path: Path) -> str:
    suffix = next((s for s in WRITABLE if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise BadInput(f"{path.name} cannot be written; expected one of {', '.join(WRITABLE)}.", "Change the suffix.")
    return suffix


def _check_shape(segmentation: np.ndarray, grid: Grid, structures: Sequence[Structure]) -> None:
    expected = grid.shape if segmentation.ndim == 3 else (len(structures), *grid.shape)
    kinds = "biu" if segmentation.ndim == 3 else "b"
    if segmentation.shape != expected or segmentation.dtype.kind not in kinds:
        raise BadInput(
            f"The segmentation is {segmentation.dtype} of shape {segmentation.shape}; expected whole numbers of shape "
            f"{grid.shape}, or bool of shape {(len(structures), *grid.shape)}.",
            "Give a label map or one mask a structure, on the study's grid.",
        )


def _known_values(labels: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """The label map, after a check that every value belongs to a structure."""
    low, high = int(labels.min()), int(labels.max())
    known = np.zeros(max(high, 0) + 1, dtype=bool)
    known[[0, *[s.value for s in structures if s.value <= high]]] = True
    unknown = (
        {low} if low < 0 else {int(v) for plane in labels for v in np.unique(plane[~known[plane.astype(np.intp)]])}
    )
    if unknown:
        raise BadInput(
            f"The label map holds {sorted(unknown)}, which belong to no structure; "
            f"expected 0 and {[s.value for s in structures]}.",
            "Give all structures of the label map.",
        )
    return labels


def layers_of(masks: np.ndarray, values: Sequence[int], dtype: type) -> tuple[list[np.ndarray], list[int]]:
    """Put each mask with its value into the first layer where it covers nothing: (I, J, K) layers, and that of each mask."""
    layers = [np.zeros(masks.shape[1:], dtype=dtype)]
    layer_of = []
    for mask, value in zip(masks, values, strict=True):
        index = next((n for n, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if index == len(layers):
            layers.append(np.zeros(masks.shape[1:], dtype=dtype))
        layers[index][mask] = value
        layer_of.append(index)
    return layers, layer_of


def _sidecar_text(structures: Sequence[Structure], provenance: dict[str, str]) -> str:
    rows = [{"name": s.name, "value": s.value, "colour": list(s.colour), "code": s.code} for s in structures]
    content = {"format": SIDECAR_FORMAT, "structures": rows, "provenance": provenance}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write_image(path: Path, array: np.ndarray, grid: Grid) -> None:
    sitk.WriteImage(image_to_itk(array, grid), str(path), useCompression=not path.name.lower().endswith(".nii"))
    _check_geometry(path, grid)


def _check_geometry(path: Path, grid: Grid) -> None:
    """Refuse a file that came out incomplete or on another grid: ITK does not report every failure when writing."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if is_nifti(reader):
        scan_voxels(path, reader)
    written = grid_from_itk(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    if not written.same_as(grid, tolerance_mm=0.01 * min(grid.spacing)):
        raise BadInput(
            f"This file format cannot hold the study's grid: {grid.describe()} became {written.describe()}.",
            "Write .nrrd or .seg.nrrd.",
        )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Temporary name beside `path`, renamed to it when the block ends well and removed when it does not."""
    require_writable_dir(path.parent)
    suffix = next((s for s in WRITABLE if path.name.lower().endswith(s)), path.suffix)
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise BadInput(
            f"{path} could not be written ({reason}); nothing was kept.",
            "Check that the disk has space, that the folder may be written and that no program holds the file open.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
