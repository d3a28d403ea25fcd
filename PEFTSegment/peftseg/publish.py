"""Publish adapters into a folder that many machines read, e.g. on a network drive. Torch-free.

No locks and no databases: on network drives they fail or block. A file comes under a temporary name first and then gets its own
in one step that fails where that name is taken, so that two machines that publish at once never overwrite each other.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from peftseg.adapter_file import read_adapter_info, read_header, renamed
from peftseg.errors import BadInput
from peftseg.library import file_name, find_adapter, version_in
from peftseg.library_rows import ref_of, rows_of
from peftseg.shared_folders import ask_folder

MOST_TRIES = 100  # versions that others take at the same moment


@dataclass(frozen=True)
class Published:
    """Where an adapter is now, its name-vN and hash there, and whether it had been there already."""

    path: Path
    ref: str
    hash: str
    was_there: bool


def publish(ref: str | Path, folder: str | Path, renumber: bool = False) -> Published:
    """Put an adapter into a shared folder.

    Parameters
    ----------
    ref : str or Path
        A file, or a reference in the library.
    folder : str or Path
        A folder that is there and can be written to.
    renumber : bool
        Where the folder has another adapter of this name and version, publish this one as the next free version.

    Raises
    ------
    BadInput
        Unknown or damaged adapter, the folder does not answer or cannot be written to, or the version is taken.
    """
    source = find_adapter(ref)
    folder = Path(os.path.abspath(Path(folder).expanduser()))
    ask_folder(folder)
    recipe, digest = read_adapter_info(source)
    content, version = source.read_bytes(), recipe.version
    before = _same(folder, digest)
    if before is not None:
        return Published(before, ref_of(recipe), digest, True)
    own = digest
    for _ in range(MOST_TRIES):
        target = folder / file_name(recipe.name, version)
        if _place(content, target):
            _check(target, own)
            return Published(target, f"{recipe.name}-v{version}", own, False)
        if _hash_at(target) == own:  # another machine published the same one at this moment
            return Published(target, f"{recipe.name}-v{version}", own, True)
        if not renumber:
            raise BadInput(
                f"{folder} has another adapter {target.stem}; published versions are never overwritten.",
                "Give --renumber to publish this one as the next version, or rename it first.",
            )
        version = max(_newest(folder, recipe.name), version) + 1
        content, own = renamed(source, recipe.name, version)
    raise BadInput(f"No free version of '{recipe.name}' was found in {folder}.", "Try again.")


def _place(content: bytes, target: Path) -> bool:
    """Write a file that is not there yet, whole or not at all; False where something of this name is there."""
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return _give_name(temporary, target)
    except OSError as error:
        raise BadInput(
            f"{target} cannot be written: {error.strerror or error}.",
            "Ask the owner of the folder for the right to write, and check that its drive is connected and not full.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _give_name(temporary: Path, target: Path) -> bool:
    """Give a file its own name unless that is taken: by a second link, else by claiming the name with an empty file."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # the drive knows no links, as many that Windows shares
        pass
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return True


def _check(target: Path, digest: str) -> None:
    """Read the file back: a drive that fails may say that all was written."""
    if read_adapter_info(target)[1] != digest:
        raise BadInput(f"{target} is not what was written to it.", "Check the drive, remove the file, and try again.")


def _same(folder: Path, digest: str) -> Path | None:
    """The folder's file of this very adapter."""
    try:
        rows = rows_of(folder, check=False)
    except OSError as error:
        raise BadInput(f"The folder {folder} cannot be read: {error.strerror}.", "Check its drive.") from error
    return next((Path(row["path"]) for row in rows if row["hash"] == digest), None)


def _newest(folder: Path, name: str) -> int:
    """The highest version of a name in the folder, by its files' names too: a damaged file keeps its number."""
    return max((version_in(path, name) for path in folder.iterdir()), default=0)


def _hash_at(path: Path) -> str:
    """The hash that a file says it has; "" where it cannot be read."""
    try:
        return read_header(path)[1]
    except BadInput:
        return ""
