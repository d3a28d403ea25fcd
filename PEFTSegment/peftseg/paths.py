"""Where things lie on disk, and how whole files are written. Torch-free."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput

FOLDERS = ("models", "adapters", "jobs", "locks", "references")
SHARED_LIBRARIES = "shared-libraries.json"  # the list of shared adapter folders, in the home folder
LOW_SPACE = 1 << 20  # bytes; with less than this left, a writer's own error is read as a full disk
RENAME_PATIENCE_S = 2.0  # Windows refuses to replace a file that a reader has open at that moment

_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or choose a folder on another disk.",
    errno.EROFS: "The disk is read-only: choose another folder.",
    errno.EACCES: "Choose a folder that you may write to, or ask its owner for the right to write.",
    errno.EPERM: "Choose a folder that you may write to, or ask its owner for the right to write.",
    errno.ENOTDIR: "Part of the path is a file, not a folder: choose another path.",
    errno.EISDIR: "There is a folder of this name: choose another file name.",
    errno.EEXIST: "There is a file where a folder is needed: choose another path.",
    errno.ENAMETOOLONG: "The path is too long: choose a shorter one.",
}
if hasattr(errno, "EDQUOT"):
    _REMEDIES[errno.EDQUOT] = "Your disk quota is used up: free some space, or choose a folder on another disk."


def home() -> Path:
    """The folder of models, adapters and jobs: PEFTSEGMENT_HOME, else the platform's local user data folder.

    Never a roaming (synced) folder by default: %LOCALAPPDATA% on Windows, ~/Library/Application Support on macOS,
    $XDG_DATA_HOME or ~/.local/share elsewhere.
    """
    chosen = os.environ.get("PEFTSEGMENT_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "PEFTSegment"


def models_dir() -> Path:
    """The folder of downloaded and imported models, made owner-only when it is not there."""
    return owner_only(home() / "models")


def adapters_dir() -> Path:
    """The adapter library's folder, made owner-only when it is not there."""
    return owner_only(home() / "adapters")


def jobs_dir() -> Path:
    """The folder of job folders, made owner-only when it is not there."""
    return owner_only(home() / "jobs")


def locks_dir() -> Path:
    """The folder of the device lock files, made owner-only when it is not there."""
    return owner_only(home() / "locks")


def references_dir() -> Path:
    """The folder of pinned reference scans and their results, made owner-only when it is not there."""
    return owner_only(home() / "references")


def owner_only(folder: Path) -> Path:
    """Make a folder that only its owner can read (on Windows the user data folder's own rights see to that).

    Parents are made as needed; a folder that is there already keeps its rights.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a whole file or none: yields a temporary path in the same folder, and renames it at the end.

    The temporary name ends like `path`, so that writers which go by the suffix (.nii.gz) can be used. Missing parent
    folders are made. When the block raises, the temporary file is removed and what was at `path` before stays.

    Raises
    ------
    BadInput
        When the folder cannot be written to or the disk is full; names the path and the remedy.
    """
    target = Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)  # a folder that cannot be written to is found before the work
            yield temporary
            _to_disk(temporary)
            _replace(temporary, target)
        except OSError as error:
            if _is_about(error, target, temporary):
                raise _cannot_write(target, error) from error
            raise
        except Exception as error:
            if _disk_is_full(target.parent):
                raise _cannot_write(target, OSError(errno.ENOSPC, f"no space left ({error})")) from error
            raise
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; a folder that refuses was reported above
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 text file or none."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a whole table that spreadsheets read, or none; the columns are the rows' keys in their order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def delete_everything() -> list[Path]:
    """Delete all models, adapters, jobs, locks and settings of this user; returns the folders that were deleted.

    Only the folders that PEFTSegment made are touched, whatever else lies in `home()`.

    Raises
    ------
    BadInput
        When a job still runs, or a folder cannot be deleted.
    """
    from peftseg.jobs import list_jobs  # jobs.py imports this module

    running = [job["id"] for job in list_jobs() if job["alive"]]
    if running:
        raise BadInput(
            f"{len(running)} job(s) still run: {', '.join(running)}.", "Cancel them or wait, then try again."
        )
    deleted = []
    for folder in (home() / name for name in FOLDERS):
        if folder.is_dir():
            remove_tree(folder)
            deleted.append(folder)
    with contextlib.suppress(OSError):  # the user keeps something else there, or it was never made
        (home() / SHARED_LIBRARIES).unlink(missing_ok=True)
        home().rmdir()
    return deleted


def remove_tree(folder: Path) -> None:
    """Delete a folder and all in it; BadInput names what could not be deleted."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        if folder.exists():  # something else deleted a part of it at the same time
            remove_tree(folder)
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be deleted completely: {error.strerror} ({error.filename}).",
            "Close the programs that use it, then delete the folder again.",
        ) from error


def _to_disk(file: Path) -> None:
    """Have the system write a file out, so that the rename never shows an empty one after a power cut."""
    with open(file, "r+b") as stream:
        os.fsync(stream.fileno())


def _replace(temporary: Path, target: Path) -> None:
    deadline = time.monotonic() + (RENAME_PATIENCE_S if sys.platform == "win32" else 0.0)
    while time.monotonic() < deadline:
        with contextlib.suppress(PermissionError):
            os.replace(temporary, target)
            return
        time.sleep(0.02)
    os.replace(temporary, target)


def _is_about(error: OSError, target: Path, temporary: Path) -> bool:
    """Whether an OSError is about the file being written, not about an input that the block reads."""
    names = [str(n) for n in (error.filename, error.filename2) if n is not None]
    if not names:
        return error.errno in _REMEDIES
    ours = {str(p) for p in (target, temporary, target.parent, *target.parent.parents)}
    return any(name in ours for name in names)


def _disk_is_full(folder: Path) -> bool:
    """Whether next to nothing is left; writers in C and Rust report a full disk by errors of their own."""
    try:
        return shutil.disk_usage(folder).free < LOW_SPACE
    except OSError:
        return False


def _cannot_write(path: Path, error: OSError) -> BadInput:
    remedy = _REMEDIES.get(error.errno or 0, "Choose another folder.")
    return BadInput(f"{path} cannot be written: {error.strerror or error}.", remedy)
