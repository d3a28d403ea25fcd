"""Adapter folders of others, e.g. of the department, shown beside the own library: read, never written to. Torch-free.

They may lie on network drives that vanish. A drive that is gone often does not answer at all, and a program that asks it
hangs; so it is asked in a thread, given up after a few seconds, and not asked again for a while.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput, unknown_name
from peftseg.library_rows import Row, adapter_files, row_of
from peftseg.paths import SHARED_LIBRARIES, adapters_dir, home, write_text

PATIENCE_S = 4.0  # for the answer of a folder
FILE_PATIENCE_S = 60.0  # for one file of it, which may be hashed
QUIET_S = 30.0  # a folder that did not answer is not asked again for so long
NO_ANSWER = "its drive does not answer"
_SILENT: dict[Path, float] = {}  # folder -> when it did not answer


def shared_folders() -> list[Path]:
    """The shared folders, in the order in which they were added; also those that are not there at the moment."""
    return _read()[0]


def shared_problems() -> list[str]:
    """One sentence for the settings file or a shared folder that cannot be read; their adapters are not listed."""
    folders, problem = _read()
    return [found for found in (problem, *map(_problem_of, folders)) if found]


def add_shared_folder(path: str | Path) -> None:
    """List the adapters of a folder beside the own ones from now on; a folder that is listed already stays.

    Raises
    ------
    BadInput
        It is not there or cannot be read, is the own library, or the settings file is damaged.
    """
    folder = Path(os.path.abspath(Path(path).expanduser()))
    _SILENT.pop(folder, None)  # the user asks for it now
    ask_folder(folder)
    if os.path.samefile(folder, adapters_dir()):
        raise BadInput(f"{folder} is your own library.", "Choose the folder of somebody else.")
    folders = _folders_to_change()
    if folder not in folders:
        _write([*folders, folder])


def remove_shared_folder(path: str | Path) -> None:
    """List the adapters of a folder no longer; the folder itself is not touched. BadInput when it is not listed."""
    folder = Path(os.path.abspath(Path(path).expanduser()))
    folders = _folders_to_change()
    if folder not in folders:
        raise unknown_name("shared folder", str(folder), [str(f) for f in folders])
    _write([f for f in folders if f != folder])


def ask_folder(folder: Path) -> None:
    """BadInput where a folder cannot be read or does not answer."""
    problem = _asked(folder)
    if problem:
        raise BadInput(
            f"The folder {folder} cannot be read: {problem}.", "Check the path, and that its drive is connected."
        )


def shared_rows(folder: Path, check: bool) -> list[Row]:
    """Rows of a shared folder's adapters, as `library_rows.rows_of`; none where its drive is not there or goes meanwhile."""
    if _asked(folder):
        return []

    def read() -> Iterator[Row]:
        rows = (row_of(path, check) for path in adapter_files(folder))
        return (row for row in rows if row is not None)

    rows, problem = _in_thread(folder, read, FILE_PATIENCE_S)
    if problem:
        return []
    broken = [row for row in rows if row["problem"]]
    return [] if broken and _asked(folder) else rows  # one message for the drive, not one a file


def _asked(folder: Path) -> str:
    """Why a folder cannot be listed, or ""; a folder that does not answer is not asked again for a while."""
    if time.monotonic() - _SILENT.get(folder, -QUIET_S) < QUIET_S:
        return NO_ANSWER
    _, problem = _in_thread(folder, lambda: os.listdir(folder), PATIENCE_S)
    if problem != NO_ANSWER:
        _SILENT.pop(folder, None)
    return problem


def _in_thread(folder: Path, read: Callable[[], Iterable[Any]], patience_s: float) -> tuple[list[Any], str]:
    """All that `read` finds in a folder, and why that is not all of it, or "".

    It is given up, and the folder noted as one that does not answer, where nothing more comes for so many seconds.
    """
    answers: queue.Queue[tuple[Any, str | None]] = queue.Queue()  # something found; or None, and how it ended

    def run() -> None:
        try:
            for found in read():
                answers.put((found, None))
        except OSError as error:
            answers.put((None, error.strerror or str(error)))
        else:
            answers.put((None, ""))

    threading.Thread(target=run, daemon=True).start()
    everything: list[Any] = []
    while True:
        try:
            found, problem = answers.get(timeout=patience_s)
        except queue.Empty:
            _SILENT[folder] = time.monotonic()
            return everything, NO_ANSWER
        if problem is not None:
            return everything, problem
        everything.append(found)


def _problem_of(folder: Path) -> str:
    problem = _asked(folder)
    if not problem:
        return ""
    return (
        f"The shared folder {folder} cannot be read ({problem}): its adapters are not listed. "
        "Connect its drive, or take it off the list of shared folders."
    )


def _folders_to_change() -> list[Path]:
    folders, problem = _read()
    if problem:
        raise BadInput(problem, "Then add the folders again.")
    return folders


def _read() -> tuple[list[Path], str]:
    """The folders, and what is wrong with the settings file, or ""."""
    file = home() / SHARED_LIBRARIES
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(entry, str) and entry for entry in found):
            raise ValueError("expected a list of paths")
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError) as error:
        return [], f"{file} cannot be read ({error}): shared adapter folders are not listed. Delete this file."
    return [Path(entry) for entry in found], ""


def _write(folders: list[Path]) -> None:
    text = json.dumps([str(folder) for folder in folders], indent=1, ensure_ascii=False)
    write_text(home() / SHARED_LIBRARIES, text + "\n")
