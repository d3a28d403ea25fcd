"""Unpack the DICOM files of archives (zip, tar, gz, bz2, xz, in each other) into a folder. Torch-free, standard library.

The names inside an archive are never used: files get numbers, because names may hold patients' names or lead out of the
folder. Links, devices and files of other kinds are left where they are. What comes out is counted while it comes out, so
that a small archive cannot fill the disk.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from peftseg.errors import BadInput

HEAD = 512  # bytes that tell what a file is; a tar file's mark lies in them
CHUNK = 1 << 20
ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error)


@dataclass(frozen=True)
class Limits:
    """What an archive may become.

    Attributes
    ----------
    files : int
        Files that are unpacked.
    ratio : int
        Bytes that come out for one byte of the archive, counted from `free_bytes` on; DICOM rarely reaches 20.
    free_bytes : int
        Bytes that may come out whatever the ratio is.
    depth : int
        Archives in each other; a .tar.gz counts two.
    disk_reserve : int
        Bytes of the disk that are left free.
    """

    files: int = 1_000_000
    ratio: int = 200
    free_bytes: int = 1 << 30
    depth: int = 6
    disk_reserve: int = 1 << 30


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive (compressed or not), by suffix and mark; volumes such as .nii.gz are none."""
    name = path.name.lower()
    if not name.endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES)):
        return False
    with path.open("rb") as stream:
        return _kind(stream.read(HEAD)) not in ("dicom", "other")


def unpack(
    path: Path, folder: Path, limits: Limits | None = None, check: Callable[[], None] = lambda: None
) -> list[Path]:
    """Unpack the DICOM files of an archive, also of archives in it.

    Parameters
    ----------
    path : Path
        The archive.
    folder : Path
        An existing folder, of this archive alone; the caller deletes it.
    limits : Limits, optional
        What the archive may become.
    check : callable
        Called now and then; may raise, to cancel.

    Returns
    -------
    list of Path
        The files, numbered in the archive's order; their folders hold a thousand each.

    Raises
    ------
    BadInput
        The archive is damaged or encrypted, exceeds a limit, or does not fit on the disk. No name of a file is told.
    """
    facts = path.stat()
    unpacking = _Unpacking(folder, facts.st_size, limits or Limits(), check)
    try:
        with path.open("rb") as stream:
            unpacking.take(stream, 0)
    except _DAMAGE as error:
        raise _damaged() from error
    except OSError as error:
        if error.errno is None:  # what gzip and bz2 raise on damaged bytes
            raise _damaged() from error
        raise BadInput(
            f"The archive cannot be unpacked: {error.strerror}.", "Free some space, or unpack it and give the folder."
        ) from error
    except NotImplementedError as error:
        raise BadInput(
            "The archive uses a compression that cannot be undone here.", "Unpack it and give the folder."
        ) from error
    for file in unpacking.files:  # the archive's time, so that a later run sees that nothing has changed
        os.utime(file, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    return unpacking.files


def _damaged() -> BadInput:
    return BadInput(
        "The archive is damaged or cut off.", "Download or export it again, or unpack it and give the folder."
    )


class _Unpacking:
    """One archive being unpacked: the files so far, and the bytes that came out."""

    def __init__(self, folder: Path, size: int, limits: Limits, check: Callable[[], None]) -> None:
        self.files: list[Path] = []
        self._folder = folder
        self._limits = limits
        self._check = check
        self._most = max(limits.free_bytes, limits.ratio * size)
        self._room = shutil.disk_usage(folder).free - limits.disk_reserve
        self._out = 0
        self._written = 0

    def count(self, n: int) -> None:
        """Count bytes that came out of a compressed layer or were written; BadInput above the limit."""
        self._check()
        self._out += n
        if self._out > self._most:
            raise BadInput(
                f"The archive becomes more than {self._most / 1e9:.3g} GB, too much for its size: it may be made to "
                "fill the disk.",
                "If you trust it, unpack it and give the folder.",
            )

    def take(self, stream: BinaryIO, depth: int) -> None:
        """Take the DICOM files out of a stream: itself, or what the archive that it is holds."""
        head = _read_up_to(stream, HEAD)
        kind = _kind(head)
        source = _Rejoined(head, stream, self.count)
        if kind == "other":
            return
        if kind == "dicom":
            self._write(source, self._next_file())
            return
        if depth >= self._limits.depth:
            raise BadInput(
                f"The archive holds archives in each other, more than {self._limits.depth} deep.",
                "Unpack it and give the folder.",
            )
        if kind == "zip":
            self._take_zip(source, depth)
        elif kind == "tar":
            self._take_tar(source, depth)
        else:
            with _DECOMPRESSORS[kind](source) as inner:
                self.take(inner, depth + 1)

    def _take_zip(self, source: _Rejoined, depth: int) -> None:
        """A zip file's table is at its end: one inside of another archive is written out first."""
        temporary = self._folder / f"archive{depth}"
        try:
            if depth:
                self._write(source, temporary)
            with zipfile.ZipFile(temporary if depth else source.plain()) as archive:
                for member in archive.infolist():
                    if member.is_dir() or (member.external_attr >> 16) & 0o170000 == 0o120000:  # a link
                        continue
                    if member.flag_bits & 1:
                        raise BadInput("The archive is encrypted.", "Unpack it with its password and give the folder.")
                    with archive.open(member) as stream:
                        self.take(stream, depth + 1)
        finally:
            temporary.unlink(missing_ok=True)

    def _take_tar(self, source: _Rejoined, depth: int) -> None:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                self._check()
                if member.isfile() and not member.issparse():
                    stream = archive.extractfile(member)
                    self.take(stream, depth + 1)

    def _next_file(self) -> Path:
        if len(self.files) >= self._limits.files:
            raise BadInput(
                f"The archive holds more than {self._limits.files} DICOM files.", "Unpack it and give folders of it."
            )
        number = len(self.files)
        path = self._folder / f"{number // 1000:04d}" / f"{number:07d}.dcm"
        path.parent.mkdir(exist_ok=True)
        self.files.append(path)
        return path

    def _write(self, source: _Rejoined, path: Path) -> None:
        with path.open("wb") as target:
            while block := source.read(CHUNK):
                self._written += len(block)
                if self._written > self._room:
                    raise BadInput(
                        f"The archive does not fit on the disk: {self._room / 1e9:.3g} GB may be used for it.",
                        "Free some space, or unpack it on another disk and give the folder.",
                    )
                target.write(block)


class _Rejoined:
    """A stream whose beginning was read already; counts what is read."""

    def __init__(self, head: bytes, stream: BinaryIO, count: Callable[[int], None]) -> None:
        self._head = head
        self._stream = stream
        self._count = count
        count(len(head))

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        if self._head:
            block, self._head = self._head[:size], self._head[size:]
            return block
        block = self._stream.read(size)
        self._count(len(block))
        return block

    def plain(self) -> BinaryIO:
        """The stream itself, from its beginning, where it can be sought."""
        self._stream.seek(0)
        return self._stream


_DECOMPRESSORS = {
    "gz": lambda source: gzip.GzipFile(fileobj=source, mode="rb"),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def _read_up_to(stream: BinaryIO, size: int) -> bytes:
    """The next `size` bytes, fewer at the end only."""
    blocks = []
    while size and (block := stream.read(size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _kind(head: bytes) -> str:
    """What a file is by its first bytes: "dicom", "zip", "tar", "gz", "bz2", "xz" or "other"."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head[257:262] == b"ustar":
        return "tar"
    marks = {b"PK\3\4": "zip", b"PK\5\6": "zip", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    return next((kind for mark, kind in marks.items() if head.startswith(mark)), "other")
