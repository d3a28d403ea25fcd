"""Support sets and input lists: which files belong together and what is labelled in them. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from peftseg.dicom import is_dicom, is_dicom_folder, patient_mark
from peftseg.errors import BadInput, unknown_name
from peftseg.grid import Grid
from peftseg.laterality import check_laterality, paired_names
from peftseg.models import Structure
from peftseg.patients import numbered
from peftseg.volume import Labels, Volume, file_stem, file_suffix, read_labels, read_volume
from peftseg.writing import check_structures, require_writable_dir

__all__ = [
    "LabelState",
    "LoadedScan",
    "SupportItem",
    "check_laterality",
    "check_structures",
    "find_inputs",
    "load_support_item",
    "paired_names",
    "read_support_folder",
    "require_writable_dir",
]

STATES = ("labelled", "absent", "not labelled")
STATE_REMEDY = 'Or, in support.json, mark it "absent" (it is not in this scan) or "not labelled" (nobody has looked).'
PATIENT = "patient"  # key of a scan in support.json, beside its structures
SAME_PLACE = 0.05  # image and labels may lie this part of a voxel apart: NIfTI and NRRD round differently
_IGNORED = (".json", ".txt", ".md", ".csv", ".tsv")  # notes and sidecars beside the scans


class Warns(Protocol):
    """What is needed of a reporter here."""

    def warning(self, message: str) -> None:
        """Tell the user."""


@dataclass(frozen=True)
class LabelState:
    """What the labels of one structure in one scan mean.

    Attributes
    ----------
    state : str
        "labelled"; "absent": the user says that it is not in the scan; "not labelled": nothing is known.
    slices : tuple of int or None
        Indices of the slices that are labelled, counted from 0; None = all. Only with "labelled".
    axis : int
        Index axis of the slices in the image file: 0 (i), 1 (j) or 2 (k).
    """

    state: str = "labelled"
    slices: tuple[int, ...] | None = None
    axis: int = 2

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise unknown_name("label state", str(self.state), STATES)
        if self.axis not in (0, 1, 2):
            raise BadInput(f"The slice axis is {self.axis!r}; expected 0, 1 or 2.", "Use 2 for a file's own slices.")
        if self.slices is None:
            return
        if self.state != "labelled":
            raise BadInput(f"Slices are given for a structure that is {self.state}.", "Leave out the slices.")
        object.__setattr__(self, "slices", tuple(self.slices))
        if not self.slices or any(type(n) is not int or n < 0 for n in self.slices):
            raise BadInput(
                f"The labelled slices are {list(self.slices)}; expected at least one whole number from 0 on.",
                "List the slices, e.g. [12, 13], or leave them out when all are labelled.",
            )


@dataclass(frozen=True)
class SupportItem:
    """One labelled scan: two files, and what the labels mean, by structure name (default: labelled).

    `patient` is a number, the same for all scans of one patient, that says nothing else of the patient: 1, 2, ... by order.
    None: not known, which counts as a patient of its own.
    """

    image: str
    labels: str
    states: dict[str, LabelState] = field(default_factory=dict)
    patient: int | None = None

    def __post_init__(self) -> None:
        if self.patient is not None and self.patient < 1:
            raise BadInput(
                f"The patient's number is {self.patient}; expected 1, 2, ...", "Number the patients by order."
            )


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A support scan in memory, checked.

    Attributes
    ----------
    volume : Volume
        The scan.
    masks : dict
        Structure name -> (I, J, K) bool; empty where absent or not labelled.
    known : dict
        Structure name -> True (known everywhere), False (nothing known) or (I, J, K) bool (known there).
    extra_values : tuple of int
        Label values in a map without names that no structure asks for; they are left out.
    extra_names : tuple of str
        Segment names that no structure asks for; they are left out.
    notes : tuple of str
        What the user should know, in words.
    patient : int or None
        As in `SupportItem`.
    """

    volume: Volume
    masks: dict[str, np.ndarray]
    known: dict[str, bool | np.ndarray]
    extra_values: tuple[int, ...] = ()
    extra_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    patient: int | None = None


def read_support_folder(
    folder: Path | str, structures: Sequence[Structure], reporter: Warns | None = None
) -> tuple[SupportItem, ...]:
    """Pair the files of `images/` and `labels/`, with the states in an optional `support.json` beside them.

    Names must be equal but for the suffix; a DICOM series may lie in a folder `images/<name>`. `support.json` holds
    `{"<file name>": {"amygdala": "absent", "hippocampus": {"slices": [12, 13], "axis": 2}}}`. Reads no voxels.

    Beside its structures, a scan may have `"patient"`: a number or a text, the same for all scans of one patient (not
    where a structure is called so). Of DICOM series without it, those with the same PatientID are of one patient.
    Items only hold a number by order.

    Raises
    ------
    BadInput
        Missing folders, files without partner, no scan at all, unknown scans, structures or states in `support.json`.
    """
    folder = Path(folder)
    check_structures(structures)
    images, labels = (_scans_by_stem(folder / part, folders) for part, folders in (("images", True), ("labels", False)))
    alone = [f"{images[s].name} (no labels)" for s in sorted(images.keys() - labels.keys())]
    alone += [f"{labels[s].name} (no image)" for s in sorted(labels.keys() - images.keys())]
    if alone:
        raise BadInput(
            f"{folder}: files without partner: {', '.join(alone)}. Expected the same names in images and labels.",
            "Add the missing files, rename them, or move the others away.",
        )
    if not images:
        raise BadInput(f"{folder} holds no scan.", "Put scans into images and their labels into labels.")
    states, patients = _read_states(folder / "support.json", images, labels, [s.name for s in structures])
    marks = [patients.get(s) or (patient_mark(images[s]) if images[s].is_dir() else None) for s in sorted(images)]
    if len(images) == 1 and reporter is not None:
        reporter.warning(f"{folder.name} holds one scan only; results are better and steadier with five or more.")
    numbers = zip(sorted(images), numbered(marks), strict=True)
    return tuple(SupportItem(str(images[s]), str(labels[s]), states.get(s, {}), patient) for s, patient in numbers)


def _scans_by_stem(folder: Path, folders_too: bool) -> dict[str, Path]:
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is missing; a support folder holds the folders images and labels with the same file names.",
            "Make the folder, or choose the right one.",
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.is_file() and path.suffix.lower() in _IGNORED):
            continue
        if not (file_suffix(path) if path.is_file() else folders_too):
            raise BadInput(
                f"{path} is no scan that can be read in {folder.name}; expected NIfTI, NRRD or MetaImage files.",
                "Convert it in Slicer, or move it away.",
            )
        stem = file_stem(path)
        if stem in found:
            raise BadInput(
                f"{folder} holds '{stem}' twice: {found[stem].name} and {path.name}.", "Keep one of the two."
            )
        found[stem] = path
    return found


def _read_states(
    path: Path, images: dict[str, Path], labels: dict[str, Path], names: list[str]
) -> tuple[dict[str, dict[str, LabelState]], dict[str, str]]:
    """Stem -> structure name -> LabelState; and stem -> what tells its patient from others, where it is given."""
    if not path.is_file():
        return {}, {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON ({error}).", "Correct it or remove it.") from error
    if not isinstance(data, dict) or not all(isinstance(row, dict) for row in data.values()):
        raise BadInput(f"{path} must hold one object a scan.", 'Write e.g. {"case1.nii.gz": {"liver": "absent"}}.')
    stems = {name: stem for stem in images for name in (stem, labels[stem].name, images[stem].name)}
    states: dict[str, dict[str, LabelState]] = {}
    patients: dict[str, str] = {}
    for scan, row in data.items():
        if scan not in stems:
            raise unknown_name(f"scan in {path.name}", scan, [image.name for image in images.values()])
        own = {name: value for name, value in row.items() if name != PATIENT or PATIENT in names}
        if len(own) < len(row):
            patients[stems[scan]] = _patient(scan, row[PATIENT])
        for name in own:
            if name not in names:
                raise unknown_name(f"structure for {scan} in {path.name}", name, names)
        states.setdefault(stems[scan], {}).update({name: _state(scan, name, value) for name, value in own.items()})
    return states, patients


def _patient(scan: str, value: Any) -> str:
    """What tells a patient from others; a label state there was meant for a structure that is not asked for."""
    if type(value) is int or (isinstance(value, str) and value.strip() and value not in STATES):
        return str(value).strip()
    raise BadInput(
        f"support.json, {scan}: the patient is {json.dumps(value)}; expected a number or a text.",
        "Number the patients: 1, 2, ..., the same for all scans of one patient.",
    )


def _state(scan: str, name: str, value: Any) -> LabelState:
    try:
        if isinstance(value, str):
            return LabelState(value)
        if isinstance(value, dict) and isinstance(value.get("slices"), list) and value.keys() <= {"slices", "axis"}:
            return LabelState("labelled", tuple(value["slices"]), value.get("axis", 2))
    except BadInput as error:
        raise BadInput(f"support.json, {scan}, {name}: {error.message}", error.remedy) from error
    raise BadInput(
        f"support.json, {scan}, {name}: {json.dumps(value)} is not understood; expected one of {', '.join(STATES)}, or "
        '{"slices": [12, 13], "axis": 2}.',
        "Correct the entry.",
    )


def load_support_item(
    item: SupportItem, structures: Sequence[Structure], replace_nonfinite: float | None = None
) -> LoadedScan:
    """Read a support scan and its labels, and check that they fit each other and the states.

    Parameters
    ----------
    item : SupportItem
        Files and states.
    structures : sequence of Structure
        What to read; the label map may hold more.
    replace_nonfinite : float, optional
        As in `read_volume`.

    Raises
    ------
    BadInput
        As `read_volume` and `read_labels`; also grids that differ, a labelled structure without voxels, an absent one
        with voxels, slices outside of the image, nothing labelled at all.
    """
    check_structures(structures)
    for name in item.states:
        if name not in [s.name for s in structures]:
            raise unknown_name("structure", name, [s.name for s in structures])
    volume = read_volume(item.image, replace_nonfinite)
    labels = _on_grid(read_labels(item.labels), volume.grid, Path(item.labels).name, Path(item.image).name)
    masks, known, notes = {}, {}, list(volume.notes)
    for structure in structures:
        state = item.states.get(structure.name, LabelState())
        mask = _structure_mask(labels, structure, state, Path(item.labels).name)
        masks[structure.name], known[structure.name], note = _apply_state(mask, state, structure, volume.name)
        notes += note
    if not any(np.any(k) for k in known.values()):
        raise BadInput(
            f"{volume.name}: none of {', '.join(masks)} is labelled, so nothing can be learnt from it.",
            "Label a structure, or take the scan out of the support set.",
        )
    asked = {s.value for s in structures}
    values = () if labels.segments else tuple(v for v in labels.values() if v not in asked)
    names = tuple(n for n in labels.segments if n not in masks)
    if values or names:
        notes.append(f"{volume.name}: labels that were not asked for are left out: {_list(names or values)}.")
    return LoadedScan(volume, masks, known, values, names, tuple(notes), item.patient)


def _list(items: Iterable) -> str:
    return ", ".join(str(i) for i in items)


def _structure_mask(labels: Labels, structure: Structure, state: LabelState, file: str) -> np.ndarray:
    if not labels.segments or structure.name in labels.segments:
        return labels.mask(structure)
    if state.state == "labelled":
        raise BadInput(
            f"{file} has no segment '{structure.name}'; it has: {_list(labels.segments) or 'none'}.",
            f"Rename or add the segment. {STATE_REMEDY}",
        )
    return np.zeros(labels.grid.shape, dtype=bool)


def _apply_state(
    mask: np.ndarray, state: LabelState, structure: Structure, scan: str
) -> tuple[np.ndarray, bool | np.ndarray, list[str]]:
    """Mask, where it is known, and notes."""
    empty = np.zeros_like(mask)
    found = int(mask.sum())
    if state.state == "not labelled":
        note = f"{scan}: {found} voxels of '{structure.name}' are left out, as it is marked not labelled."
        return empty, False, [note] if found else []
    if state.state == "absent":
        if found:
            raise BadInput(
                f"{scan}: '{structure.name}' is marked absent, but {found} voxels are labelled; expected none.",
                "Mark it labelled, or erase these voxels.",
            )
        return empty, True, []
    known = True if state.slices is None else _known_slices(state, mask.shape, structure.name, scan)
    inside = mask & known
    kept = int(inside.sum())
    if not kept:
        where = "" if state.slices is None else f" on the slices {list(state.slices)}"
        raise BadInput(
            f"{scan}: '{structure.name}' (label value {structure.value}) has no voxels{where}; expected some.",
            f"Label it. {STATE_REMEDY}",
        )
    note = f"{scan}: {found - kept} voxels of '{structure.name}' outside of its labelled slices are left out."
    return inside, known, [note] if found > kept else []


def _known_slices(state: LabelState, shape: tuple[int, ...], name: str, scan: str) -> np.ndarray:
    count = shape[state.axis]
    beyond = [n for n in state.slices if n >= count]
    if beyond:
        raise BadInput(
            f"{scan}: the labelled slices of '{name}' include {beyond}; axis {state.axis} has {count} slices, 0 to "
            f"{count - 1}.",
            "Correct the slices or their axis in support.json.",
        )
    known = np.zeros(shape, dtype=bool)
    np.moveaxis(known, state.axis, 0)[list(state.slices)] = True
    return known


def _on_grid(labels: Labels, grid: Grid, labels_name: str, image_name: str) -> Labels:
    """Labels on the image's grid; Slicer's segmentations may be cropped to a part of it."""
    tolerance = SAME_PLACE * min(grid.spacing)
    if labels.grid.same_as(grid, tolerance):
        return Labels(labels.layers, grid, labels.segments)
    start = _crop_start(labels.grid, grid, tolerance) if labels.segments else None
    if start is not None:
        layers = np.zeros((len(labels.layers), *grid.shape), dtype=labels.layers.dtype)
        place = tuple(slice(s, s + n) for s, n in zip(start, labels.grid.shape, strict=True))
        layers[(slice(None), *place)] = labels.layers
        return Labels(layers, grid, labels.segments)
    distance = labels.grid.distance(grid)
    apart = "" if np.isinf(distance) else f"; corners lie up to {distance:.3g} mm apart"
    raise BadInput(
        f"The grids of {labels_name} ({labels.grid.describe()}) and {image_name} ({grid.describe()}) differ{apart}. "
        "Expected equal grids, voxel for voxel.",
        "Export the labels with the scan as reference volume (Slicer: Segmentations, Export to files).",
    )


def _crop_start(part: Grid, whole: Grid, tolerance: float) -> np.ndarray | None:
    """Index in `whole` of the first voxel of `part`, when `part` is a box of `whole`'s voxels."""
    start = np.rint(np.linalg.solve(whole.affine, part.affine[:, 3])[:3]).astype(int)
    if (start < 0).any() or (start + part.shape > whole.shape).any():
        return None
    box = whole.affine.copy()
    box[:3, 3] += whole.affine[:3, :3] @ start
    return start if part.same_as(Grid(part.shape, box), tolerance) else None


def find_inputs(paths: Iterable[Path | str]) -> list[Path]:
    """Studies among files and folders: volume files, and folders with a DICOM series.

    A folder gives its volume files (not .seg.nrrd), itself if it holds DICOM files, and what its sub-folders give.

    Raises
    ------
    BadInput
        A path that does not exist, a file of another kind, a folder with nothing readable.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            here = _inputs_in(path)
        elif path.is_file() and (file_suffix(path) or is_dicom(path)):
            here = [path]
        else:
            here = []
        if not here:
            what = "holds no scan" if path.is_dir() else "is no scan" if path.exists() else "does not exist"
            raise BadInput(
                f"{path} {what}; expected NIfTI, NRRD or MetaImage files or a DICOM series folder.",
                "Check the path, or convert the scan in Slicer.",
            )
        found += [p for p in here if p not in found]
    return found


def _inputs_in(folder: Path) -> list[Path]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [p for p in entries if p.is_file() and file_suffix(p) not in ("", ".seg.nrrd")]
    if is_dicom_folder(folder):
        found.append(folder)
    for entry in entries:
        if entry.is_dir():
            found += _inputs_in(entry)
    return found
