"""The adapter library: the folder `adapters` in PEFTSegment's home, one file an adapter, and shared folders beside it.

The files themselves are the only truth: there is no index that could disagree with them, so a damaged file is listed with
its problem instead of being used. Shared folders are read only. Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from peftseg.adapter_file import check_name, read_adapter_info, recipe_to_dict, renamed
from peftseg.errors import BadInput, unknown_name
from peftseg.library_rows import SUFFIX, Row, ref_of, row_of, rows_of
from peftseg.locks import FileLock
from peftseg.paths import adapters_dir, atomic_write, locks_dir
from peftseg.shared_folders import (
    add_shared_folder,
    remove_shared_folder,
    shared_folders,
    shared_problems,
    shared_rows,
)

__all__ = [
    "add_shared_folder",
    "export_adapter",
    "file_name",
    "find_adapter",
    "import_adapter",
    "list_adapters",
    "next_version",
    "remove_adapter",
    "remove_shared_folder",
    "rename_adapter",
    "shared_folders",
    "shared_problems",
    "show_adapter",
    "store",
    "store_next",
    "version_in",
]

OWN = "own"
SHORTEST_HASH = 6
LOCK_PATIENCE_S = 60.0


def list_adapters(check: bool = True) -> list[Row]:
    """All adapters of the own library and the shared folders, by name and version.

    Parameters
    ----------
    check : bool
        Check every byte of every file that is new or changed since this process checked it; about 1 s for 1 GB. False
        reads headers only, for lists that must come at once: the check then is left to the use.

    Returns
    -------
    list of dict
        "ref" (name-vN), "name", "version", "hash", "path", "method", "base_id", "structures" (names), "shots",
        "earlier_hashes" (those under earlier names), "source" ("own", or the shared folder), "writable" (can be renamed and
        removed), "checked" (every byte was) and "problem": None, or why the file cannot be used; then the reference and
        the name are the file's, and nothing else of the adapter is known. Of equal references the own adapter is listed,
        or else the first shared folder's; what cannot be listed at all, `shared_problems` tells.
    """
    rows = _own_rows(check)
    for folder in shared_folders():
        taken = {row["ref"] for row in rows}
        found = shared_rows(folder, check)  # none of a drive that is not there, as `shared_problems` tells
        rows += [{**row, "source": str(folder), "writable": False} for row in found if row["ref"] not in taken]
    return sorted(rows, key=lambda row: (row["name"], row["version"] or 0))


def show_adapter(ref: str | Path) -> Row:
    """The whole recipe of one adapter as plain data, with "ref", "hash", "path", "source", "writable", "size_bytes".

    "source" is "" for a file that is in no library.
    """
    path = find_adapter(ref)
    recipe, digest = read_adapter_info(path)
    folder = path.absolute().parent
    source = OWN if folder == adapters_dir() else str(folder) if folder in shared_folders() else ""
    facts = {"ref": ref_of(recipe), "hash": digest, "path": str(path), "size_bytes": path.stat().st_size}
    return {**facts, "source": source, "writable": source == OWN, **recipe_to_dict(recipe)}


def find_adapter(ref: str | Path) -> Path:
    """The file that a reference means; its bytes are not checked here, but whenever it is loaded.

    Parameters
    ----------
    ref : str or Path
        A file; or, of an adapter in the library, its name (the newest version), name-vN, or the first 6 or more digits
        of its hash, also of one that it had under an earlier name.

    Raises
    ------
    BadInput
        Nothing or more than one adapter matches; the valid references are listed.
    """
    if Path(ref).is_file():
        return Path(ref)
    if isinstance(ref, Path) or str(ref).endswith(SUFFIX):
        raise BadInput(f"The adapter file {ref} does not exist.", "Check the path, or see `peftseg adapters list`.")
    matches = _matching(ref)
    if len(matches) > 1 and any(row["name"] != ref for row in matches):
        raise _ambiguous(ref, matches)
    return Path(matches[-1]["path"])


def store(path: str | Path) -> Path:
    """Copy an adapter file into the library, after a check of all its bytes.

    Returns
    -------
    Path
        The library's file. Where the same adapter (by hash) is there already, nothing is written.

    Raises
    ------
    BadInput
        The file is damaged or no adapter, or the library has another adapter of this name and version.
    """
    with _locked():
        return _store(Path(path))


def store_next(name: str, write: Callable[[int], Path]) -> Path:
    """Write an adapter as the next version of its name and copy it into the library.

    No other process can take that version meanwhile, so that two jobs of one name both come in.

    Parameters
    ----------
    write : callable
        Gets the version; writes the adapter's file and returns its path.

    Returns
    -------
    Path
        The library's file.
    """
    with _locked():
        return _store(write(next_version(name)))


def import_adapter(path: str | Path) -> Path:
    """Take a file that someone shared into the library; as `store`."""
    return store(path)


def export_adapter(ref: str | Path, path: str | Path) -> Path:
    """Copy an adapter of the library to a file, or into a folder under its own name.

    Raises
    ------
    BadInput
        Unknown reference, a damaged adapter, or another file at that place.
    """
    source = find_adapter(ref)
    recipe, digest = read_adapter_info(source)
    target = Path(path)
    target = target / file_name(recipe.name, recipe.version) if target.is_dir() else target
    if target.suffix != SUFFIX:
        raise BadInput(f"The file name '{target.name}' does not end in {SUFFIX}.", "Give such a name, or a folder.")
    if target.exists():
        raise BadInput(f"The file {target} exists.", "Give another name, or remove it first.")
    _copy(source, target, digest)
    return target


def rename_adapter(ref: str, new_name: str) -> Path:
    """Give an adapter of the own library another name, as that name's next version.

    The name is part of what the hash seals, so the adapter gets a new file with a new hash, and the old file goes; the new
    one's record lists the earlier hashes, by which it is still found (Docs/decisions/adapter-rename.md).

    Returns
    -------
    Path
        The new file.

    Raises
    ------
    BadInput
        Unknown reference, a name with several versions, a shared or damaged adapter, or a name that is not valid.
    """
    row = _own_one(ref, "renamed")
    check_name(new_name)
    if new_name == row["name"]:
        raise BadInput(f"The adapter {row['ref']} has the name '{new_name}' already.", "Choose another name.")
    path = Path(row["path"])
    with _locked():
        version = next_version(new_name)
        content, _ = renamed(path, new_name, version)
        target = adapters_dir() / file_name(new_name, version)
        with atomic_write(target) as temporary:
            temporary.write_bytes(content)
        try:
            _delete(path)
        except BadInput:
            target.unlink()  # else the adapter would be there twice
            raise
    return target


def remove_adapter(ref: str) -> Path:
    """Delete one adapter of the own library, also a damaged one (by its file's name without suffix).

    Raises
    ------
    BadInput
        Unknown reference, a name with several versions (say which), or an adapter in a shared folder.
    """
    path = Path(_own_one(ref, "removed")["path"])
    _delete(path)
    return path


def next_version(name: str) -> int:
    """The version that the next adapter of this name gets: one more than the newest, shared ones counted in, or 1.

    A damaged file keeps its number, so that nothing new is stored under the name of something lost; so does the file of
    another name that differs only in letters that file names do not keep apart.
    """
    versions = [0]
    for row in list_adapters(check=False):
        if row["name"] == name:
            versions.append(row["version"] or 0)
        versions.append(version_in(Path(row["path"]), name))
    return max(versions) + 1


def version_in(path: Path, name: str) -> int:
    """The version that a file's name gives to an adapter of this name, see `file_name`; 0 where it is of another one."""
    found = re.fullmatch(re.escape(_safe(name)) + r"-v(\d+)", path.stem, re.IGNORECASE)
    return int(found[1]) if found else 0


def _own_rows(check: bool) -> list[Row]:
    return [{**row, "source": OWN, "writable": True} for row in rows_of(adapters_dir(), check)]


def _store(path: Path) -> Path:
    recipe, digest = read_adapter_info(path)
    target = adapters_dir() / file_name(recipe.name, recipe.version)
    found = [row_of(Path(row["path"]), check=row["hash"] == digest) or row for row in _own_rows(check=False)]
    same = [row for row in found if row["hash"] == digest]
    if same:
        return Path(same[0]["path"])
    taken = [row for row in found if row["ref"] == ref_of(recipe) or Path(row["path"]) == target]
    if taken or target.exists():  # the latter alone where file names do not tell "Liver" from "liver"
        ref, other = (taken[0]["ref"], taken[0]["hash"]) if taken else (target.stem, None)
        raise BadInput(
            f"The library has another adapter '{ref}'; {path.name} is not the same (hash {digest[:12]} against "
            f"{(other or 'damaged')[:12]}).",
            f'Export that one if you need it and remove it (peftseg adapters remove "{ref}"), then import again; or adapt '
            "again under another name.",
        )
    _copy(path, target, digest)
    return target


def _own_one(ref: str, done: str) -> Row:
    """The row of one adapter that may be changed."""
    matches = _matching(ref)
    if len(matches) > 1:
        raise _ambiguous(ref, matches)
    if not matches[0]["writable"]:
        raise BadInput(
            f"The adapter {matches[0]['ref']} lies in the shared folder {matches[0]['source']}; it cannot be {done} here.",
            "Ask the owner of the folder; or import the adapter into your own library first.",
        )
    return matches[0]


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise BadInput(f"{path} cannot be removed: {error.strerror}.", "Close the programs that use it.") from error


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the library against other processes that choose versions; its readers need no lock."""
    lock = FileLock(locks_dir() / "library.lock")
    deadline = time.monotonic() + LOCK_PATIENCE_S
    try:
        while not lock.acquire(f"process {os.getpid()}"):
            if time.monotonic() > deadline:
                raise BadInput(f"The adapter library is in use by {lock.holder()}.", "Try again in a minute.")
            time.sleep(0.05)
        yield
    finally:
        lock.release()


def _matching(ref: str) -> list[Row]:
    """Rows that a reference means, by name-vN before name before hash, each by version."""
    rows = list_adapters(check=False)
    by_hash = len(ref) >= SHORTEST_HASH and re.fullmatch(r"[0-9a-f]+", ref) is not None
    tests = (
        lambda row: row["ref"] == ref,
        lambda row: row["name"] == ref,
        lambda row: by_hash and any((h or "").startswith(ref) for h in (row["hash"], *row["earlier_hashes"])),
    )
    for test in tests:
        found = [row for row in rows if test(row)]
        if found:
            return found
    if not rows:
        raise BadInput(
            f"The adapter library is empty, so that '{ref}' is not in it.",
            "Give an adapter file, or take one into the library: peftseg adapters import FILE.",
        )
    raise unknown_name("adapter", str(ref), [row["ref"] for row in rows])


def _ambiguous(ref: str | Path, matches: list[Row]) -> BadInput:
    options = ", ".join(row["ref"] for row in matches)
    return BadInput(f"'{ref}' means {len(matches)} adapters: {options}.", "Give one of these.")


def file_name(name: str, version: int) -> str:
    """`<name>-v<version>.safetensors`."""
    return f"{_safe(name)}-v{version}{SUFFIX}"


def _safe(name: str) -> str:
    """The name with `_` for what some system does not take in file names, and for leading dots (hidden files)."""
    return re.sub(r"^\.+|[^\w .+()-]", "_", name)


def _copy(source: Path, target: Path, digest: str) -> None:
    with atomic_write(target) as temporary:
        temporary.write_bytes(source.read_bytes())
        if read_adapter_info(temporary)[1] != digest:
            raise BadInput(f"{source} changed while it was copied.", "Try again.")
