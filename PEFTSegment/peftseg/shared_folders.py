"""Adapter folders of others, e.g. of the department, shown beside the own library: read, never written to. Torch-free."""

from __future__ import annotations

import json
import os
from pathlib import Path

from peftseg.errors import BadInput, unknown_name
from peftseg.paths import SHARED_LIBRARIES, adapters_dir, home, write_text


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
    try:
        os.listdir(folder)
    except OSError as error:
        raise BadInput(
            f"The folder {folder} cannot be read: {error.strerror}.", "Check the path, and that its drive is connected."
        ) from error
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


def _problem_of(folder: Path) -> str:
    try:
        os.listdir(folder)
    except OSError as error:
        return (
            f"The shared folder {folder} cannot be read ({error.strerror}): its adapters are not listed. "
            "Connect its drive, or take it off the list of shared folders."
        )
    return ""


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
