"""The adapter library: the folder `adapters` in PEFTSegment's home, one file an adapter. Torch-free.

The files themselves are the only truth: there is no index that could disagree with them. Each look reads and checks
all of them, so a damaged file is listed with its problem instead of being used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peftseg.adapter_file import Recipe, read_adapter_info, recipe_to_dict
from peftseg.errors import BadInput, unknown_name
from peftseg.paths import adapters_dir, atomic_write

SUFFIX = ".safetensors"
SHORTEST_HASH = 6
Row = dict[str, Any]


def list_adapters() -> list[Row]:
    """All adapters of the library, by name and version.

    Returns
    -------
    list of dict
        "ref" (name-vN), "name", "version", "hash", "path", "method", "base_id", "structures" (names), "shots" and
        "problem" (None, or why the file cannot be used; then only ref, name and path are filled, by the file's name).
    """
    files = sorted(p for p in adapters_dir().glob(f"*{SUFFIX}") if not p.name.startswith("."))
    return sorted((_row(path) for path in files), key=lambda row: (row["name"], row["version"] or 0))


def show_adapter(ref: str | Path) -> Row:
    """The whole recipe of one adapter as plain data, with "ref", "hash", "path" and "size_bytes"."""
    path = find_adapter(ref)
    recipe, digest = read_adapter_info(path)
    facts = {"ref": _ref(recipe), "hash": digest, "path": str(path), "size_bytes": path.stat().st_size}
    return {**facts, **recipe_to_dict(recipe)}


def find_adapter(ref: str | Path) -> Path:
    """The file that a reference means.

    Parameters
    ----------
    ref : str or Path
        A file; or, of an adapter in the library, its name (the newest version), name-vN, or the first 6 or more digits
        of its hash.

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
    recipe, digest = read_adapter_info(path)
    target = adapters_dir() / _file_name(recipe)
    rows = list_adapters()
    same = [row for row in rows if row["hash"] == digest]
    if same:
        return Path(same[0]["path"])
    taken = [row for row in rows if row["ref"] == _ref(recipe) or Path(row["path"]) == target]
    if taken:
        raise BadInput(
            f"The library has another adapter '{taken[0]['ref']}'; {Path(path).name} is not the same (hash "
            f"{digest[:12]} against {(taken[0]['hash'] or 'damaged')[:12]}).",
            f'Export that one if you need it and remove it (peftseg adapters remove "{taken[0]["ref"]}"), then import '
            "again; or adapt again under another name.",
        )
    _copy(Path(path), target, digest)
    return target


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
    target = target / _file_name(recipe) if target.is_dir() else target
    if target.suffix != SUFFIX:
        raise BadInput(f"The file name '{target.name}' does not end in {SUFFIX}.", "Give such a name, or a folder.")
    if target.exists():
        raise BadInput(f"The file {target} exists.", "Give another name, or remove it first.")
    _copy(source, target, digest)
    return target


def remove_adapter(ref: str) -> Path:
    """Delete one adapter of the library, also a damaged one (by its file's name without suffix).

    Raises
    ------
    BadInput
        Unknown reference, or a name with several versions: say which.
    """
    matches = _matching(ref)
    if len(matches) > 1:
        raise _ambiguous(ref, matches)
    path = Path(matches[0]["path"])
    try:
        path.unlink()
    except OSError as error:
        raise BadInput(f"{path} cannot be removed: {error.strerror}.", "Close the programs that use it.") from error
    return path


def next_version(name: str) -> int:
    """The version that the next adapter of this name gets: one more than the library's newest, or 1.

    A damaged file keeps its number, so that nothing new is stored under the name of something lost.
    """
    versions = [0]
    for row in list_adapters():
        if row["name"] == name:
            versions.append(row["version"] or 0)
        elif row["problem"] is not None and (number := re.fullmatch(re.escape(_safe(name)) + r"-v(\d+)", row["ref"])):
            versions.append(int(number[1]))
    return max(versions) + 1


def _row(path: Path) -> Row:
    try:
        recipe, digest = read_adapter_info(path)
    except BadInput as error:
        empty = dict.fromkeys(("version", "hash", "method", "base_id", "structures", "shots"))
        return {"ref": path.stem, "name": path.stem, "path": str(path), **empty, "problem": str(error)}
    return {
        "ref": _ref(recipe),
        "name": recipe.name,
        "path": str(path),
        "version": recipe.version,
        "hash": digest,
        "method": recipe.method,
        "base_id": recipe.base_id,
        "structures": [s.name for s in recipe.structures],
        "shots": recipe.record.get("shots"),
        "problem": None,
    }


def _matching(ref: str) -> list[Row]:
    """Rows that a reference means, by name-vN before name before hash, each by version."""
    rows = list_adapters()
    by_hash = len(ref) >= SHORTEST_HASH and re.fullmatch(r"[0-9a-f]+", ref) is not None
    tests = (
        lambda row: row["ref"] == ref,
        lambda row: row["name"] == ref,
        lambda row: by_hash and row["hash"] is not None and row["hash"].startswith(ref),
    )
    for test in tests:
        found = [row for row in rows if test(row)]
        if found:
            return found
    raise unknown_name("adapter", str(ref), [row["ref"] for row in rows])


def _ambiguous(ref: str | Path, matches: list[Row]) -> BadInput:
    options = ", ".join(row["ref"] for row in matches)
    return BadInput(f"'{ref}' means {len(matches)} adapters: {options}.", "Give one of these.")


def _ref(recipe: Recipe) -> str:
    return f"{recipe.name}-v{recipe.version}"


def _file_name(recipe: Recipe) -> str:
    """`<name>-v<version>.safetensors`."""
    return f"{_safe(recipe.name)}-v{recipe.version}{SUFFIX}"


def _safe(name: str) -> str:
    """The name with `_` for what some system does not take in file names, and for leading dots (hidden files)."""
    return re.sub(r"^\.+|[^\w .+()-]", "_", name)


def _copy(source: Path, target: Path, digest: str) -> None:
    with atomic_write(target) as temporary:
        temporary.write_bytes(source.read_bytes())
        if read_adapter_info(temporary)[1] != digest:
            raise BadInput(f"{source} changed while it was copied.", "Try again.")
