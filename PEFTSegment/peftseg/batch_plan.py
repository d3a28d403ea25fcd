"""What a batch works on: the inputs, the names of their results, and what must not be told of them. Torch-free.

A study of DICOM files gets an opaque name, a hash of its series' UID, because folders and files of DICOM exports are
called after patients. Such a study's path, file names and patient are also taken out of every sentence about it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk

from peftseg.apply_names import files_of_result, is_result, result_name, unique_names
from peftseg.config import ApplyJob
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.manifest import Manifest, signature_of
from peftseg.study import find_inputs
from peftseg.volume import Volume, file_stem, file_suffix, is_dicom_input, read_volume

if TYPE_CHECKING:
    from peftseg.dicom_inputs import SeriesSource
    from peftseg.dicom_source import SourceFile

WITHHELD = "[withheld]"
KEY_LENGTH = 16
POLL_S = 0.5  # how often a watched folder is looked at, at most
DETACHED = (".nhdr", ".mhd")  # headers whose voxels lie in a file beside them
PATIENT_TAGS = (
    "0010|0010",
    "0010|0020",
    "0010|0030",
    "0010|1001",
    "0008|0050",
)  # name, id, birth date, other names, order
# Parts of paths that name nobody, and that occur in ordinary sentences.
PLAIN_WORDS = {"data", "dicom", "home", "image", "images", "input", "inputs", "media", "mnt", "scan", "scans", "series"}
PLAIN_WORDS |= {"studies", "study", "tmp", "user", "users", "var"}


@dataclass(frozen=True)
class BatchStudy:
    """One study of a batch; can be sent to another process.

    Attributes
    ----------
    key : str
        Opaque and the same in every run.
    name : str
        Of its results, and in messages.
    source : Path
        File or DICOM folder.
    position : int
        Its place among the inputs, from 0 on.
    dicom, opaque : bool
    signature : str
        `signature_of` the files when it was planned.
    patient : tuple of str
        What DICOM headers say of the patient, which no sentence about it may hold.
    series : SeriesSource or None
        As in `apply.Study`.
    """

    key: str
    name: str
    source: Path = field(repr=False)  # a scheduler logs what it hands out
    position: int
    dicom: bool
    opaque: bool
    signature: str
    patient: tuple[str, ...] = field(default=(), repr=False)
    series: SeriesSource | None = field(default=None, repr=False)

    def files(self) -> tuple[Path, ...]:
        """The input's files; a long list, so it is not kept."""
        return tuple(Path(f) for f in self.series.files) if self.series else files_of(self.source)

    def planes(self) -> tuple[SourceFile, ...]:
        """What results in a DICOM format refer to: the input's files, or the slices in them."""
        return self.series.planes if self.series else self.files()

    def read(self, replace_nonfinite: float | None) -> Volume:
        """The scan, under the name of its results."""
        scan = self.series.read(replace_nonfinite) if self.series else read_volume(self.source, replace_nonfinite)
        return replace(scan, name=self.name, notes=tuple(self.nameless(note) for note in scan.notes))

    def target(self, file_format: str) -> str:
        """File name of its result."""
        return result_name(self.name, file_format)

    def targets(self, file_format: str) -> tuple[str, ...]:
        """File names of its result: the file, and the sidecar of a plain label map."""
        return tuple(file.name for file in files_of_result(Path(self.target(file_format)), file_format))

    def nameless(self, text: str) -> str:
        """A sentence without what must not be told of the study: where it lies, what its files are called, the patient."""
        if not self.opaque:
            return text
        try:
            files = self.files()
        except OSError:  # moved away meanwhile
            files = ()
        for word in sorted({*_parts(self.source, files), *self.patient}, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", WITHHELD, text, flags=re.IGNORECASE)
        return text


@dataclass(frozen=True)
class Plan:
    """The studies of a batch that is not watched: what is to be done, and what was found to be done already.

    Attributes
    ----------
    left_out : tuple of str
        Sentences about DICOM series that the rules did not choose.
    """

    studies: tuple[BatchStudy, ...]
    left_out: tuple[str, ...] = ()


class Planner:
    """Names the studies of one output folder, the same in every run.

    Parameters
    ----------
    job : ApplyJob
    manifest : Manifest
        Of the output folder: names that were given stay.
    """

    def __init__(self, job: ApplyJob, manifest: Manifest) -> None:
        self.job = job
        self.manifest = manifest
        self._owner = {known.name.lower(): key for key, known in manifest.known.items()}
        self._place: dict[str, str] = {}
        self._next = 0

    def plan(self, scratch: Path, reporter: Reporter) -> Plan:
        """All studies of the inputs as they are now.

        Raises
        ------
        BadInput
            There is none.
        """
        series: Sequence[Any] = ()
        left_out: tuple[str, ...] = ()
        if self.job.series_rules:
            from peftseg.dicom_inputs import dicom_inputs
            from peftseg.dicom_rules import load_rules

            found = dicom_inputs(self.job.inputs, load_rules(self.job.series_rules), scratch, reporter)
            paths, series = list(found.files), found.series
            left_out = tuple(entry.sentence for entry in found.left_out)
        else:
            paths = find_inputs(self.job.inputs)
        kept = [path for path in paths if not self.is_own(path)]
        if not kept and not series:
            raise BadInput(
                f"The {len(paths)} input file(s) are results of an earlier run.",
                "Give the scans themselves, and another folder for the results.",
            )
        studies = [_unnamed(path, self.job.names) for path in kept]
        return Plan(tuple(self.named([*studies, *map(_of_series, series)])), left_out)

    def named(self, studies: Sequence[BatchStudy]) -> list[BatchStudy]:
        """Give names and positions."""
        studies = [self._distinct(study) for study in studies]
        fresh = [s for s in studies if s.key not in self.manifest.known and not s.name]
        wishes = dict(zip((s.key for s in fresh), _names([s.source for s in fresh]), strict=True))
        done = []
        for study in studies:
            known = self.manifest.known.get(study.key)
            name = known.name if known else self._free(study.name or wishes[study.key], study.key)
            self._owner[name.lower()] = study.key
            done.append(replace(study, name=name, position=self._next))
            self._next += 1
        return done

    def _distinct(self, study: BatchStudy) -> BatchStudy:
        """A second copy of a series gets a key of its own, by its path."""
        place = study.series.name if study.series else str(study.source.absolute())
        if self._place.setdefault(study.key, place) == place:
            return study
        key = key_of(study.key + place)
        name = f"study-{key[:10]}" if study.opaque and not study.series else study.name
        return replace(study, key=key, name=name)

    def _free(self, wish: str, key: str) -> str:
        """The wish, unless another study has that name (some systems do not tell Case from case)."""
        return wish if self._owner.get(wish.lower(), key) == key else f"{wish}-{key[:6]}"

    def is_own(self, path: Path) -> bool:
        """Whether an input is something that a batch, or `apply`, wrote."""
        out = Path(self.job.out).absolute()
        if path.absolute() == out:
            return True  # DICOM results in the output folder look like a series
        if path.absolute().parent == out and path.name in self.manifest.files:
            return True
        return is_result(path)


def watched(planner: Planner, settle_s: float, wait: Callable[[float], bool]) -> Iterator[BatchStudy | None]:
    """Studies of watched inputs as they arrive, each when its files did not change for a while; None: nothing new.

    A study whose files change later comes again. Inputs may be empty, and files may vanish while they are looked at.

    Parameters
    ----------
    settle_s : float
        Seconds without a change after which a study is taken.
    wait : callable
        Waits so many seconds; True ends the watch.
    """
    seen: dict[Path, tuple[str, float]] = {}
    taken: dict[Path, str] = {}
    while True:
        for path in _present(planner):
            with contextlib.suppress(OSError):  # moved away, or still being written
                now, signature = time.monotonic(), signature_of(files_of(path))
                if seen.get(path, ("", 0.0))[0] != signature:
                    seen[path] = (signature, now)
                if now - seen[path][1] >= settle_s and taken.get(path) != signature:
                    taken[path] = signature
                    yield planner.named([_unnamed(path, planner.job.names)])[0]
        yield None
        if wait(min(POLL_S, max(settle_s / 4, 0.05))):
            return


def _present(planner: Planner) -> list[Path]:
    found: list[Path] = []
    for entry in planner.job.inputs:
        with contextlib.suppress(BadInput, OSError):  # an empty folder, or one that changes at this moment
            found += [p for p in find_inputs([entry]) if p not in found and not planner.is_own(p)]
    return found


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of an input: of a folder all that lie in it, of a detached header its data as well."""
    if path.is_dir():
        return tuple(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")))
    if file_suffix(path) not in DETACHED:
        return (path,)
    return tuple(
        sorted(p for p in path.parent.iterdir() if p.is_file() and p.name.split(".")[0] == path.name.split(".")[0])
    )


def is_done(study: BatchStudy, manifest: Manifest, file_format: str) -> bool:
    """Whether the study's results are there, of this very input."""
    return manifest.is_done(study.key, study.signature, study.files(), study.targets(file_format))


def _unnamed(path: Path, names: str) -> BatchStudy:
    """A study without position, and without name unless it is opaque."""
    files = files_of(path)
    dicom = is_dicom_input(path)
    uid, patient = _dicom_facts(files) if dicom else ("", ())
    key = key_of(uid or str(path.absolute()))
    opaque = names == "opaque" or (dicom and names != "keep")
    return BatchStudy(key, f"study-{key[:10]}" if opaque else "", path, 0, dicom, opaque, signature_of(files), patient)


def _of_series(series: SeriesSource) -> BatchStudy:
    """A study of a series that was sorted out of the inputs; it has an opaque name already."""
    files = tuple(Path(f) for f in series.files)
    uid, patient = _dicom_facts(files)
    part = series.series.part  # a series may hold several volumes, such as echoes
    key = key_of(f"{uid}|{part}" if uid and part else uid or series.name)
    return BatchStudy(key, series.name, files[0].parent, 0, True, True, signature_of(files), patient, series)


def _names(paths: Sequence[Path]) -> list[str]:
    """File or folder names without suffix, with folders in front where they are equal; equal ones where that fails."""
    try:
        return unique_names([path.absolute() for path in paths])
    except BadInput:
        return [file_stem(path) for path in paths]


def _dicom_facts(files: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """UID of the series of the first readable file, and what identifies the patient there; "" where none is readable."""
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue
        values = {tag: reader.GetMetaData(tag).strip() for tag in reader.GetMetaDataKeys() if tag in PATIENT_TAGS}
        words = {word for value in values.values() for word in (value, *re.split(r"[\^\s,=]+", value)) if len(word) > 2}
        uid = reader.GetMetaData("0020|000e").strip("\0 ") if reader.HasMetaDataKey("0020|000e") else ""
        return uid, tuple(sorted(words))
    return "", ()


def _parts(path: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """The path, its parts, and the names of the files, as they may occur in sentences."""
    whole = path.absolute()
    names = [*whole.parts[1:], file_stem(path), *(f.name for f in files), *(file_stem(f) for f in files)]
    words = {name for name in names if len(name) > 2 and name.lower() not in PLAIN_WORDS}
    return (str(whole), *sorted(words))


def key_of(text: str) -> str:
    """The key of a study: a hash of its series' UID, or of its path."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:KEY_LENGTH]
