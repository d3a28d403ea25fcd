"""A lock file between processes, held by the operating system. Torch-free, standard library only.

The system gives the lock back when its holder ends in whatever way, so that a dead process never leaves a stale lock;
see Docs/decisions/device-lock.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from peftseg.errors import BadInput

_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_LOCK_AT = 1 << 30  # Windows refuses to read locked bytes, so the lock lies behind the holder's note


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCK_AT, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # A record lock is not inherited by forked children (data loaders), which may outlive a killed worker.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCK_AT)


class FileLock:
    """A lock that one process at a time can hold; it shuts out other processes, not other threads of this one.

    Parameters
    ----------
    path : Path
        The lock file; it stays behind, empty of meaning, when nobody holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, note: str = "") -> bool:
        """Try once to take the lock, and leave a note for the others; False when another process holds it."""
        # One descriptor for the whole wait: on Unix closing any of them would give the lock back.
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise self._unusable(error) from error
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise self._unusable(error) from error
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, note.encode())
        return True

    def holder(self) -> str:
        """The holder's note, for messages; "" when there is none."""
        if self._descriptor is None:
            return ""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.read(self._descriptor, 200).decode(errors="replace")

    def release(self) -> None:
        """Give the lock back, or stop waiting for it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # closing gives the lock back in any case
                os.close(self._descriptor)
            self._descriptor = None

    def _unusable(self, error: OSError) -> BadInput:
        return BadInput(
            f"The lock file {self.path} cannot be used: {error.strerror or error}.",
            "Set PEFTSEGMENT_HOME to a folder on a local disk that you may write to.",
        )
