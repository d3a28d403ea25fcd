"""Rows of adapter listings: what a file says of itself, read once as long as the file stays the same. Torch-free."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from peftseg.adapter_file import Recipe, earlier_hashes, read_adapter_info, read_header
from peftseg.errors import BadInput

SUFFIX = ".safetensors"
MOST_ROWS = 2000
SETTLED_S = 2.0  # a younger file may change again without a change of its time (FAT counts in 2 s)
Row = dict[str, Any]
Key = tuple[str, int, int]


class RowCache:
    """Rows by path, size and time of change; the oldest entry makes way when there are too many."""

    def __init__(self, most: int = MOST_ROWS) -> None:
        self._most = most
        self._rows: dict[Key, Row] = {}
        self._lock = threading.Lock()  # a program may list in a thread while it shows an earlier list

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, key: Key, checked: bool) -> Row | None:
        """The row of a file, or None; a row whose bytes were not all checked counts only where that is not wanted."""
        row = self._rows.get(key)
        return row if row is not None and (row["checked"] or not checked) else None

    def keep(self, key: Key, row: Row) -> None:
        """Remember a row."""
        with self._lock:
            self._rows.pop(key, None)
            while len(self._rows) >= self._most:
                del self._rows[next(iter(self._rows))]
            self._rows[key] = row


CACHE = RowCache()


def rows_of(folder: Path, check: bool, cache: RowCache = CACHE) -> list[Row]:
    """A row for every adapter file of a folder; OSError when the folder cannot be read.

    Parameters
    ----------
    check : bool
        Hash every byte, else read headers only: then a damaged byte goes unnoticed, and "checked" is False.
    """
    rows = (row_of(path, check, cache) for path in adapter_files(folder))
    return [row for row in rows if row is not None]


def adapter_files(folder: Path) -> list[Path]:
    """The adapter files of a folder by name, without hidden ones; OSError when the folder cannot be read."""
    return [folder / n for n in sorted(os.listdir(folder)) if n.endswith(SUFFIX) and not n.startswith(".")]


def row_of(path: Path, check: bool, cache: RowCache = CACHE) -> Row | None:
    """The row of one file, see `library.list_adapters`; None when the file is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return _problem(path, f"{path} cannot be read: {error.strerror}.", check)
    key = (str(path), status.st_size, status.st_mtime_ns)
    row = cache.find(key, check)
    if row is None:
        settled = abs(time.time() - status.st_mtime) > SETTLED_S
        row = _read(path, check)
        if settled:
            cache.keep(key, row)
    return {name: list(value) if isinstance(value, list) else value for name, value in row.items()}


def ref_of(recipe: Recipe) -> str:
    """name-vN."""
    return f"{recipe.name}-v{recipe.version}"


def _read(path: Path, check: bool) -> Row:
    try:
        recipe, digest = (read_adapter_info if check else read_header)(path)
    except BadInput as error:
        return _problem(path, str(error), check)
    return {
        "ref": ref_of(recipe),
        "name": recipe.name,
        "path": str(path),
        "version": recipe.version,
        "hash": digest,
        "method": recipe.method,
        "base_id": recipe.base_id,
        "structures": [s.name for s in recipe.structures],
        "shots": recipe.record.get("shots"),
        "earlier_hashes": earlier_hashes(recipe),
        "problem": None,
        "checked": check,
    }


def _problem(path: Path, problem: str, check: bool) -> Row:
    empty = dict.fromkeys(("version", "hash", "method", "base_id", "structures", "shots"))
    facts = {"ref": path.stem, "name": path.stem, "path": str(path), **empty, "earlier_hashes": []}
    return {**facts, "problem": problem, "checked": check}
