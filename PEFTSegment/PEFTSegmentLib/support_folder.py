"""A folder of scans and labels (`images/`, `labels/`, the same file names) as support scans. No widgets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput, PeftsegError
from peftseg.models import Structure
from peftseg.study import PATIENT, LabelState, SupportItem, read_support_folder
from peftseg.volume import file_stem, read_labels

from . import scans, structures, support
from .background import Background

MOST_NAMES = 10  # names that become structures to learn by themselves, where none is chosen yet


@dataclass(frozen=True)
class LabelFacts:
    """What a label file holds.

    Attributes
    ----------
    names : dict
        Structure name -> label value; empty for a label map without names.
    values : tuple of int
        Label values of a map without names.
    problem : PeftsegError or None
        Why it cannot be read.
    """

    names: dict[str, int]
    values: tuple[int, ...] = ()
    problem: PeftsegError | None = None


def read_pairs(folder: Path, wanted: Sequence[Structure]) -> tuple[SupportItem, ...]:
    """The pairs of files in a folder; structures that only its `support.json` names are accepted."""
    names = [s.name for s in wanted]
    names += [name for name in _names_in_states(folder / "support.json") if name not in names]
    asked = [Structure(name, n) for n, name in enumerate(names or ["any"], start=1)]
    return read_support_folder(folder, asked)


def _names_in_states(path: Path) -> list[str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # `read_support_folder` says what is wrong with it
    rows = record.values() if isinstance(record, dict) else []
    return list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row if name != PATIENT))


def start_reading(items: Sequence[SupportItem]) -> Background:
    """Read what the label files hold, in a thread; the results are `LabelFacts`."""
    return Background([(label_facts, item.labels) for item in items])


def label_facts(path: str) -> LabelFacts:
    """What a label file holds; runs in a thread."""
    try:
        labels = read_labels(path)
        if labels.segments:
            return LabelFacts({name: value for name, (_layer, value) in labels.segments.items()})
        return LabelFacts({}, tuple(labels.values()))
    except PeftsegError as error:
        return LabelFacts({}, (), error)


def unnamed_values(facts: Sequence[LabelFacts]) -> tuple[int, ...]:
    """Label values that no file gives a name to."""
    return tuple(sorted({value for one in facts for value in one.values}))


def names_to_learn(facts: Sequence[LabelFacts], named: dict[int, str], wanted: Sequence[Structure]) -> list[str]:
    """Names that shall become structures to learn: those the user gave, and the files' own where none is chosen yet."""
    names = [name for name in named.values() if name]
    if not wanted:
        own = list(dict.fromkeys(name for one in facts for name in one.names))
        names += own if len(own) <= MOST_NAMES else []
    return [name for name in dict.fromkeys(names) if structures.known_as(name, wanted) is None]


def load_pair(item: SupportItem, facts: LabelFacts, named: dict[int, str], state) -> None:
    """Load one pair into the scene and add it to the support scans.

    Raises
    ------
    BadInput
        One of the files cannot be read, or the scan cannot be used.
    """
    if facts.problem is not None:
        raise facts.problem
    name = file_stem(Path(item.image))
    scan = _load_scan(Path(item.image), name)
    labels = None
    try:
        labels = _load_labels(Path(item.labels), _("{scan} labels").format(scan=name), facts, named, scan)
        support_set = support.SupportSet(state)
        row = support_set.add(scan, labels)
    except BaseException:
        for node in (labels, scan):
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        raise
    if item.patient is not None:  # numbers are those of this folder: another one's patient 1 is somebody else
        folder = hashlib.sha256(str(Path(item.image).absolute().parent).encode()).hexdigest()[:12]
        scan.SetAttribute(scans.PATIENT, f"{folder} {item.patient}")
    for structure, label_state in item.states.items():
        mark = mark_of(label_state)
        if mark != support.Mark():
            support_set.set_mark(row.key, structure, mark)


def mark_of(state: LabelState) -> support.Mark:
    """The user's mark that a state in `support.json` means."""
    if state.state == "absent":
        return support.Mark(absent=True)
    return support.Mark(slices=state.slices, axis=state.axis) if state.slices else support.Mark()


def _load_scan(path: Path, name: str) -> slicer.vtkMRMLScalarVolumeNode:
    file = min(p for p in path.iterdir() if p.is_file()) if path.is_dir() else path  # a DICOM series
    return _loaded(slicer.util.loadVolume, file, {"name": name, "show": False})


def _loaded(load, file: Path, properties: dict):
    try:
        return load(str(file), properties)
    except RuntimeError as error:
        raise BadInput(
            _("{file} cannot be loaded ({error}).").format(file=file.name, error=error),
            _("Open it in another program, or export it again."),
        ) from error


def _load_labels(path: Path, name: str, facts: LabelFacts, named: dict[int, str], scan):
    if path.name.lower().endswith(".seg.nrrd"):
        node = _loaded(slicer.util.loadSegmentation, path, {"name": name})
        node.SetName(name)
    else:
        values = {value: own for own, value in facts.names.items()} if facts.names else named
        node = _segmentation_of(_loaded(slicer.util.loadLabelVolume, path, {"name": name, "show": False}), name, values)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    node.SetDisplayVisibility(False)  # shown with its scan
    return node


def _segmentation_of(labelmap, name: str, values: dict[int, str]) -> slicer.vtkMRMLSegmentationNode:
    """A label map as a segmentation with named segments; the label map leaves the scene."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.SetReferenceImageGeometryParameterFromVolumeNode(labelmap)
    array = slicer.util.arrayFromVolume(labelmap)
    used: list[Structure] = []
    try:
        for own in dict.fromkeys(own for own in values.values() if own):
            structure = structures.proposed(own, (), used)
            used.append(structure)
            segment_id = structures.add_segment(node, structure)
            mask = np.isin(array, [value for value, other in values.items() if other == own]).astype(np.uint8)
            if mask.any():
                slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, labelmap)
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)
    return node
