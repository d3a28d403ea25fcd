"""Loads results of a run over many studies, each with its scan, one at a time so that Slicer stays usable in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from peftseg.batch_plan import key_of
from peftseg.errors import BadInput

from .. import dialogs, dicom_scans, results, scans
from ..background import Background
from ..studies import Study

STUDY = "PEFTSegment.Study"  # attribute of a scan: the study that it was loaded for
LOADED = "Study"  # fact of a result: which study's it is, and the hash of its file
POLL_MS = 100
Note = dict[str, Any]


@dataclass(frozen=True)
class SourceFiles:
    """The DICOM files of a scan; of one multi-frame file that holds several volumes, the scan's frames, from 0."""

    files: tuple[str, ...]
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class FromDicom:
    """A scan that was read out of DICOM files without the database: name, (K, J, I) voxels, IJK to RAS, its files."""

    name: str
    array: np.ndarray
    affine: np.ndarray
    source: SourceFiles


class StudyLoader:
    """A queue of results to load.

    Attributes
    ----------
    sources : dict
        Token of a scan that was read out of a folder -> its DICOM files; for this session.
    """

    def __init__(self, panel) -> None:
        self._panel = panel
        self.sources: dict[str, SourceFiles] = {}
        self._queue: list[tuple[Note, Study]] = []
        self._reading: Background | None = None
        self._run: Note = {}  # whose scans were read last
        self._found: dict[tuple[str, ...], list] = {}  # its folders -> the series in them
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._poll)

    @property
    def busy(self) -> bool:
        """Whether results are on their way."""
        return bool(self._queue)

    def start(self, note: Note, chosen: Sequence[Study]) -> None:
        """Load these results of a run."""
        self._queue += [(note, study) for study in chosen]
        qt.QTimer.singleShot(0, self._next)

    def forget(self) -> None:
        """The scene closes, or the module is unloaded: what was asked for is not loaded any more."""
        self._queue.clear()
        self._timer.stop()
        self._reading = None  # not waited for: it may be looking through a large folder

    # one after the other

    def _next(self) -> None:
        if not self._queue:
            return
        note, study = self._queue[0]
        try:
            there = _result_of(note, study)
            if there is not None:
                self._done(there)
                return
            with slicer.util.WaitCursor():
                scan = self._scan_of(note, study)
            if scan is None and note["inputs"] and not study.line.get("input"):
                self._read_dicom(note, study)
                return
            self._add(note, study, scan)
        except Exception as error:
            self._failed(error)

    def _read_dicom(self, note: Note, study: Study) -> None:
        """Read the scan in a thread: the run found it by sorting a folder, and no path of it is noted."""
        if note is not self._run:  # between two runs, more may have come into a folder
            self._run, self._found = note, {}
        folders = tuple(note["inputs"])
        self._reading = Background([(_read_series, folders, study.line["name"], self._found)])
        self._timer.start()

    def _poll(self) -> None:
        if self._reading is None or not self._reading.done:
            return
        reading, self._reading = self._reading, None
        self._timer.stop()
        if not self._queue:
            return
        note, study = self._queue[0]
        try:
            if reading.error is not None:
                raise reading.error
            read = reading.results[0]
            scan = self._add_scan(study, read) if read is not None else None
            self._add(note, study, scan)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._queue.pop(0)
        dialogs.show_later(dialogs.problem_of(error, _("A result could not be loaded.")))
        self._go_on()

    def _done(self, node) -> None:
        self._queue.pop(0)
        self._panel.table.choose(node)
        if not self._panel.comparing.active:
            results.show(node)
        self._go_on()

    def _go_on(self) -> None:
        if self._queue:
            qt.QTimer.singleShot(0, self._next)
        self._panel.context.refresh()

    # the scan

    def _scan_of(self, note: Note, study: Study) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The study's scan, from the scene, its file or the DICOM database."""
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            if node.GetAttribute(STUDY) == study.key:
                return node
        uid = next((uid for uid in note.get("series") or () if key_of(uid) == study.key), "")
        if uid and dicom_scans.database() is not None:
            return _marked(dicom_scans.loaded_scan(uid) or dicom_scans.load_series(uid), study)
        path = study.line.get("input")
        return _marked(_of_file(Path(path)), study) if path and Path(path).is_file() else None

    def _add_scan(self, study: Study, read: FromDicom) -> slicer.vtkMRMLScalarVolumeNode:
        node = slicer.util.addVolumeFromArray(read.array, ijkToRAS=read.affine, name=read.name)
        self.sources[scans.token(node)] = read.source
        return _marked(node, study)

    # the result

    def _add(self, note: Note, study: Study, scan: slicer.vtkMRMLScalarVolumeNode | None) -> None:
        line, path = study.line, study.result(Path(note["out"]))
        if not path.is_file():
            raise BadInput(
                _("The result {name} is no longer in {folder}.").format(name=path.name, folder=note["out"]),
                _("Apply the adapter again with the same folders; only what is missing is done."),
            )
        record = {
            "token": scans.token(scan) if scan is not None else "",
            "path": path,
            "volumes_ml": line.get("volumes_ml", {}),
            "checks": line.get("flags", {}),
            "doubt": line.get("doubt", {}),
        }
        node = results.add(record, note["name"], note["shown"], {})
        if scan is None:
            node.SetName(f"{study.name} - {node.GetName()}")
        results.put(node, LOADED, _mark(study))
        self._done(node)


def _mark(study: Study) -> str:
    return f"{study.key}:{study.line['outputs'][0]['sha256'][:16]}"


def _result_of(note: Note, study: Study):
    """The result's node where it is in the scene already."""
    mark = _mark(study)
    return next((node for node in results.all_results() if results.get(node, LOADED) == mark), None)


def _marked(scan, study: Study):
    if scan is not None:
        scan.SetAttribute(STUDY, study.key)
    return scan


def _of_file(path: Path) -> slicer.vtkMRMLScalarVolumeNode:
    """The scan of a file, loaded once."""
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        storage = node.GetStorageNode()
        if storage is not None and storage.GetFileName() and Path(storage.GetFileName()) == path:
            return node
    try:
        return slicer.util.loadVolume(str(path))
    except RuntimeError as error:
        raise BadInput(
            _("The scan {name} cannot be loaded ({error}).").format(name=path.name, error=error),
            _("Is it still where it was?"),
        ) from error


def _read_series(folders: tuple[str, ...], name: str, found: dict[tuple[str, ...], list]) -> FromDicom | None:
    """Find the series that the engine gave this name, and read it; None where it lay in an archive. Runs in a thread."""
    from peftseg.dicom import read_planes
    from peftseg.dicom_sort import find_series

    if folders not in found:
        found[folders] = find_series(folders)
    series = next((s for s in found[folders] if name.startswith(f"{s.study}_{s.key}")), None)
    if series is None or series.unusable:
        return None
    array, grid, _notes = read_planes(series.planes, name)
    shown = ": ".join(part for part in (series.number, series.description) if part) or name
    files = tuple(map(str, series.files))
    frames = tuple(frame for _, frame in series.planes) if len(files) == 1 < len(series.planes) else ()
    source = SourceFiles(files, frames)
    return FromDicom(shown, np.ascontiguousarray(array.transpose(2, 1, 0)), grid.affine, source)
