"""The manifest of a batch: `manifest.jsonl` in the output folder, one line a study. Torch-free.

Lines are only added, each written out to the disk before the batch goes on; the last line of a study counts. A batch that
was killed at any moment goes on from it: a half-written last line is cut off, and a result whose line lacks is known by
the hash in its line "started".
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftseg.disk_space import FULL, disk_full
from peftseg.errors import BadInput
from peftseg.events import plain

FILE = "manifest.jsonl"
FORMAT = 1
STATES = ("started", "done", "failed", "retry")  # "retry": the disk was full, the next run tries again
BLOCK = 1 << 20

Line = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """A file of a result: name in the output folder, size in bytes, and SHA-256."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Known:
    """What is kept in memory of a study's last line."""

    state: str
    name: str
    signature: str
    input_sha256: str
    outputs: tuple[Output, ...]
    quality: str


class Manifest:
    """The manifest of one output folder, open for reading and adding; safe to use from several threads.

    Parameters
    ----------
    out : Path
        The output folder. Nothing is written before the first `append`.

    Attributes
    ----------
    known : dict
        Study -> `Known`.
    identity : tuple of str or None
        Name and hash of the adapter (or model) whose results are here; None for a new folder.
    files : set of str
        Names of all files that the batch wrote.
    damaged : int
        Lines that cannot be read; they are left as they are and count for nothing.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.path = self.out / FILE
        self.known: dict[str, Known] = {}
        self.identity: tuple[str, str] | None = None
        self.damaged = 0
        self.files: set[str] = set()
        self._lock = threading.Lock()
        self._end = 0  # of the last whole line
        self._starts: dict[str, int] = {}  # study -> where its last line begins
        for start, line in _lines(self.path):
            self._end = start + len(line)
            self._note(parsed(line), start)

    def append(self, line: Line) -> None:
        """Add a study's line, and have the system write it out.

        Raises
        ------
        DiskFull
            No room; the manifest is as it was.
        BadInput
            The folder cannot be written.
        """
        line = plain({"format": FORMAT, **line})
        data = (json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        with self._lock:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                self._write(data)
            except OSError as error:
                if error.errno in FULL:
                    raise disk_full(self.out) from error
                raise BadInput(
                    f"{self.path} cannot be written ({error.strerror or error}).",
                    "Close the programs that use it, and check that the folder may be written.",
                ) from error
            self._note(line, self._end)
            self._end += len(data)

    def require(self, name: str, digest: str) -> None:
        """Refuse a folder with results of another adapter or model.

        Parameters
        ----------
        name, digest : str
            Of the adapter that is to be used now.
        """
        if self.identity is not None and self.identity[1] != digest:
            raise BadInput(
                f"{self.out} holds results of '{self.identity[0]}' ({self.identity[1][:12]}); now '{name}' ({digest[:12]}) "
                "is to be used. Results of both in one folder could not be told apart.",
                "Choose another output folder.",
            )

    def is_done(self, study: str, signature: str, files: Sequence[Path], targets: Sequence[str]) -> bool:
        """Whether a study has its results already, of the same input; files are read only where sizes or times changed.

        Parameters
        ----------
        study, signature : str
            Key and `signature_of` its files now.
        files : sequence of Path
            The input's files.
        targets : sequence of str
            Names of the files that are wanted.
        """
        known = self.known.get(study)
        if known is None or known.state != "done" or not set(targets) <= {o.file for o in known.outputs}:
            return False
        if not all(_has_size(self.out / output.file, output.size) for output in known.outputs):
            return False
        return known.signature == signature or known.input_sha256 == content_sha256(files)

    def is_ours(self, study: str, file: str) -> bool:
        """Whether a file in the output folder is what a batch wrote for this study, and was not changed since."""
        known = self.known.get(study)
        hashes = {o.sha256 for o in known.outputs if o.file == file} if known else set()
        return bool(hashes) and content_sha256([self.out / file]) in hashes

    def last_lines(self) -> Iterator[Line]:
        """The last line of every study, in the order of the file; memory holds one at a time."""
        with self._lock:
            wanted = set(self._starts.values())
        for start, line in _lines(self.path):
            if start in wanted:
                yield json.loads(line)

    def _write(self, data: bytes) -> None:
        with open(self.path, "ab", buffering=0) as stream:
            os.ftruncate(stream.fileno(), self._end)  # a half-written line of a batch that was killed
            try:
                if stream.write(data) < len(data):
                    raise OSError(next(iter(FULL)), "no space left on the disk")
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), self._end)
                raise

    def _note(self, line: Line | None, start: int) -> None:
        if line is None:
            self.damaged += 1
            return
        outputs = tuple(Output(o["file"], int(o["size"]), o["sha256"]) for o in line.get("outputs", ()))
        self.known[line["study"]] = Known(
            line["state"],
            line.get("name", ""),
            line.get("signature", ""),
            line.get("input_sha256", ""),
            outputs,
            line.get("quality", "none"),
        )
        self._starts[line["study"]] = start
        self.files.update(output.file for output in outputs)
        if outputs:
            self.identity = (str(line.get("adapter", "")), str(line.get("adapter_hash", "")))


def read(out: Path | str) -> dict[str, Line]:
    """The last line of every study of a batch: key -> line; empty where the folder has no manifest."""
    return {line["study"]: line for line in Manifest(Path(out)).last_lines()}


def signature_of(files: Sequence[Path]) -> str:
    """Hash of names, sizes and times of an input's files: it changes when one of them does; no file is read."""
    facts = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def content_sha256(files: Sequence[Path]) -> str:
    """SHA-256 over the bytes of files, one after the other in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.name):
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def output_of(path: Path) -> Output:
    """Name, size and hash of a file that was written."""
    return Output(path.name, path.stat().st_size, content_sha256([path]))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every whole line."""
    if not path.is_file():
        return
    with open(path, "rb") as stream:
        start = 0
        for line in stream:
            if line.endswith(b"\n"):
                yield start, line
            start += len(line)


def parsed(line: bytes) -> Line | None:
    """A line as a record; None for one that is damaged."""
    try:
        record = json.loads(line)
    except ValueError:  # covers bytes that are not UTF-8
        return None
    fits = isinstance(record, dict) and isinstance(record.get("study"), str) and record.get("state") in STATES
    return record if fits and record.get("format") == FORMAT else None
