"""A full disk, told from other failures of writing. Torch-free."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from peftseg.errors import BadInput

FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
SPARE_BYTES = 1 << 20  # file systems keep some space for themselves


class DiskFull(BadInput):
    """A result found no room; what is complete stays valid, and this one can be tried again."""


def free_bytes(folder: Path) -> int | None:
    """Bytes that are free on a folder's disk; None where the system does not say."""
    try:
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    except OSError:
        return None


def is_full(error: BaseException | None, folder: Path, needed: int) -> bool:
    """Whether a failure to write means that the disk is full.

    Writers in C report a full disk by errors of their own, and remove the file before one can look: so a write that
    failed counts, too, where less is free than the file may need.

    Parameters
    ----------
    needed : int
        Bytes of the file at most (uncompressed).
    """
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return True
        if isinstance(cause, OSError) and cause.errno is not None:
            return False  # the system named another reason
        cause = cause.__cause__
    free = free_bytes(folder)
    return free is not None and free < needed + SPARE_BYTES


def disk_full(folder: Path) -> DiskFull:
    """The error that names the free space."""
    free = free_bytes(folder)
    room = "an unknown amount of space" if free is None else f"{free / 1e6:.1f} MB"
    return DiskFull(
        f"The disk of {folder} is full: it has {room} free, which does not suffice for the next result.",
        "What is complete stays valid. Free some space, then run the same again: it goes on where it stopped.",
    )
