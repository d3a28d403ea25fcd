"""A batch's way from what was found to files and a line of the manifest.

Results are first written whole into a hidden folder beside their place, each study into one of its own, and then moved
(`publish`): a line "started" with their hashes, the move, the line "done". So a batch may be killed at any moment, and a
study may be computed twice (by a worker that was thought dead), and there is still one result and one line that counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from peftseg.apply_steps import Found, Loaded, require_dicom, segment_study, warnings_about, write_result
from peftseg.batch_plan import BatchStudy
from peftseg.batch_report import PICTURES, thumbnail
from peftseg.config import ApplyJob
from peftseg.device import is_out_of_memory
from peftseg.disk_space import DiskFull, disk_full, is_full
from peftseg.errors import BadInput, JobCancelled, OutOfMemory, PeftsegError
from peftseg.events import Reporter
from peftseg.manifest import Line, Manifest, Output, content_sha256, output_of
from peftseg.measure import measure
from peftseg.paths import remove_tree
from peftseg.preprocess import Prepared, prepare
from peftseg.version import __version__
from peftseg.volume import Volume

PART = ".peftseg-part"  # in the output folder: results that are not complete yet


@dataclass(frozen=True, eq=False)
class Read:
    """A study in memory, ready to be segmented."""

    study: BatchStudy
    volume: Volume
    prepared: Prepared | None
    sha256: str
    begun: float

    @property
    def bytes(self) -> int:
        """Of its arrays."""
        image = self.prepared.image if self.prepared is not None else None
        return self.volume.array.nbytes + (0 if image is None else image.nbytes)


class StudyReporter(Reporter):
    """A job's reporter for one study: its sentences name nobody, and are kept for the manifest."""

    def __init__(self, inner: Reporter, study: BatchStudy) -> None:
        super().__init__(self._pass_on, smaller_plan=inner.smaller_plan)
        self._inner = inner
        self._study = study
        self.said: list[str] = []

    def check(self) -> None:
        """As the job's."""
        self._inner.check()

    def stop_keep(self) -> bool:
        """As the job's."""
        return self._inner.stop_keep()

    def _pass_on(self, kind: str, fields: dict) -> None:
        if kind == "warning":
            text = self._study.nameless(fields["message"])
            self.said.append(text)
            self._inner.warning(text if self._study.name in text else f"{self._study.name}: {text}")
        elif kind == "log":
            self._inner.log(self._study.nameless(fields["message"]))
        else:
            self._inner.progress(**fields)


def read_study(study: BatchStudy, loaded: Loaded, job: ApplyJob) -> Read:
    """Read a study and prepare it, where there is one network to prepare it for."""
    begun = time.monotonic()
    require_dicom(study.source, study.dicom, job.format)
    volume = study.read(job.replace_nonfinite)
    prepared = prepare(volume, loaded.single.preprocessing) if loaded.single is not None else None
    return Read(study, volume, prepared, content_sha256(study.files()), begun)


def segment_read(read: Read, loaded: Loaded, job: ApplyJob, device: torch.device, reporter: Reporter) -> Found:
    """Segment a study that was read."""
    for note in read.volume.notes:
        reporter.warning(note)
    found = segment_study(loaded, job, read.volume, device, reporter, read.study.name, read.prepared)
    told = read.study.series.series.modality if read.study.series else ""
    for text in (*found.notes, *warnings_about(read.study.name, found.result, loaded, read.volume, told)):
        reporter.warning(text)
    return found


def write_study(read: Read, found: Found, loaded: Loaded, job: ApplyJob, said: list[str]) -> tuple[Line, Path]:
    """Write a result and its picture into a folder of its own; returns the line for the manifest, and that folder.

    Raises
    ------
    DiskFull
        No room; nothing stays behind.
    PeftsegError
        As `apply_steps.write_result`.
    """
    study = read.study
    folder = Path(job.out) / PART / f"{study.key}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        write_result(folder / study.target(job.format), found, read.volume, loaded, job, study.planes())
        outputs = [output_of(folder / name) for name in study.targets(job.format)]
        if job.report:
            picture = folder / PICTURES / f"{study.name}.png"
            picture.parent.mkdir()
            picture.write_bytes(thumbnail(read.volume, found.result, loaded.structures))
    except (OSError, BadInput) as error:
        with contextlib.suppress(PeftsegError):
            remove_tree(folder)
        if is_full(error, Path(job.out), found.result.nbytes):
            raise disk_full(Path(job.out)) from error
        if isinstance(error, OSError):
            raise _unwritable(job.out, error) from error
        raise
    return _done_line(read, found, loaded, job, outputs, said), folder


def publish(line: Line, folder: Path, study: BatchStudy, job: ApplyJob, manifest: Manifest) -> None:
    """Move a study's files to their place and write its lines; a result that is not the batch's own is never replaced.

    Raises
    ------
    BadInput
        A file of that name is there which no batch wrote, or which was changed since; the folder cannot be written.
    DiskFull
        No room, for the manifest for one; the study counts as not done.
    """
    out = Path(job.out)
    try:
        names = [output["file"] for output in line["outputs"]]
        refuse_strangers(study, names, out, manifest)
        replaced = manifest.known.get(study.key)
        started = {key: line[key] for key in ("study", "name", "position", "signature", "input_sha256", "adapter")}
        mine = [*line["outputs"], *(dataclasses.asdict(o) for o in (replaced.outputs if replaced else ()))]
        manifest.append({**started, "adapter_hash": line["adapter_hash"], "state": "started", "outputs": mine})
        for name in names:
            os.replace(folder / name, out / name)
        picture = folder / PICTURES / f"{study.name}.png"
        if picture.is_file():
            (out / PICTURES).mkdir(exist_ok=True)
            os.replace(picture, out / PICTURES / picture.name)
        manifest.append(line)
    except OSError as error:
        if is_full(error, out, 0):
            raise disk_full(out) from error
        raise _unwritable(job.out, error) from error
    finally:
        with contextlib.suppress(PeftsegError):
            remove_tree(folder)


def _unwritable(out: str, error: OSError) -> BadInput:
    return BadInput(f"{out} cannot be written ({error.strerror or error}).", "Check the folder.")


def refuse_strangers(study: BatchStudy, names: Sequence[str], out: Path, manifest: Manifest) -> None:
    """Refuse to replace files that no batch wrote for this study, or that were changed since."""
    for name in names:
        if (out / name).exists() and not manifest.is_ours(study.key, name):
            raise BadInput(
                f"{name} is in the output folder already and is not what this batch wrote there; results are not "
                "overwritten.",
                "Move or rename that file, or choose another output folder.",
            )


def failed_line(study: BatchStudy, error: Exception, manifest_line: Line) -> Line:
    """The line of a study that was not segmented; a full disk makes it one "to be retried".

    Parameters
    ----------
    manifest_line : dict
        What every line of this batch holds.
    """
    known = error if isinstance(error, PeftsegError) else translated(error)
    return {
        **_about(study),
        **manifest_line,
        "state": "retry" if isinstance(known, DiskFull) else "failed",
        "kind": "disk_full" if isinstance(known, DiskFull) else known.kind,
        "message": study.nameless(known.message),
        "remedy": study.nameless(known.remedy),
        "time": now(),
    }


def translated(error: Exception) -> PeftsegError:
    """What the user is told of an error that the engine did not raise on purpose."""
    if is_out_of_memory(error):
        return OutOfMemory(
            f"Memory ran out ({type(error).__name__}).", "Use a machine with more memory, or crop the scan."
        )
    if isinstance(error, OSError):
        return BadInput(f"The scan could not be read ({error.strerror or error}).", "Check that it is still there.")
    where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip().splitlines()[:1]
    return PeftsegError(
        f"An error inside PEFTSegment: {type(error).__name__}: {error} ({' '.join(where)}).",
        "Report it with the output of `peftseg doctor`.",
    )


def process(
    study: BatchStudy, loaded: Loaded, job: ApplyJob, device: torch.device, reporter: Reporter
) -> tuple[Line, Path | None]:
    """All steps of one study, one after the other, up to files in a folder of its own.

    Returns
    -------
    line, folder
        As `write_study`; of a study that failed, the line that says so and None.
    """
    speaker = StudyReporter(reporter, study)
    try:
        read = read_study(study, loaded, job)
        found = segment_read(read, loaded, job, device, speaker)
        return write_study(read, found, loaded, job, speaker.said)
    except JobCancelled:
        raise
    except Exception as error:  # one bad study never stops the others
        return failed_line(study, error, identity_of(loaded)), None


def identity_of(loaded: Loaded) -> Line:
    """What every line of a batch holds."""
    name, digest = loaded.identity
    return {"adapter": name, "adapter_hash": digest, "software": f"peftseg {__version__}"}


def now() -> str:
    """The time, as it stands in the manifest."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _about(study: BatchStudy) -> Line:
    return {
        "study": study.key,
        "name": study.name,
        "position": study.position,
        "input": None if study.opaque else str(study.source.absolute()),
        "signature": study.signature,
    }


def _done_line(read: Read, found: Found, loaded: Loaded, job: ApplyJob, outputs: list[Output], said: list[str]) -> Line:
    volume = read.volume
    measured = measure(volume.array, found.result, loaded.structures, volume.grid)
    return {
        **_about(read.study),
        **identity_of(loaded),
        "state": "done",
        "input_sha256": read.sha256,
        "outputs": [dataclasses.asdict(output) for output in outputs],
        "picture": f"{PICTURES}/{read.study.name}.png" if job.report else None,
        "volumes_ml": {name: entry.volume_ml for name, entry in measured.items()},
        "measurements": {name: dataclasses.asdict(entry) for name, entry in measured.items()},
        "flags": {name: sentences for name, sentences in found.flags.items() if sentences},
        "doubt": {name: round(value, 4) for name, value in found.doubt.items()},
        "study_doubt": round(found.study_doubt, 4),
        "quality": job.quality,
        "distance": found.distance,
        "warnings": said,
        "seconds": round(time.monotonic() - read.begun, 2),
        "time": now(),
    }
