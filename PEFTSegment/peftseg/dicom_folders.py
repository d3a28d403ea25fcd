"""Lay chosen DICOM series into folders of their own, with opaque names. Torch-free."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftseg.dicom_rules import LeftOut
from peftseg.dicom_sort import Series
from peftseg.errors import BadInput
from peftseg.events import Reporter, plain
from peftseg.paths import remove_tree
from peftseg.writing import require_writable_dir

LIST = "series.json"
SAY_EVERY = 100  # files


@dataclass(frozen=True)
class Sorted:
    """A series and the folder it went to."""

    series: Series
    folder: Path


def lay_out(
    chosen: Sequence[Series],
    left_out: Sequence[LeftOut],
    out: Path,
    link: bool = False,
    reporter: Reporter | None = None,
) -> list[Sorted]:
    """Copy (or hard-link) series to `<out>/<study>/<series>/0001.dcm` ..., and list them in `series.json`.

    The files themselves are not changed: names in their headers stay. Volumes of one multi-frame file share the folder of
    the first of them.

    Parameters
    ----------
    chosen, left_out : sequence
        As `dicom_rules.choose` gives them.
    out : Path
        A folder that is new or empty.
    link : bool
        Hard links, which take no space; where the disk cannot (another disk, some network drives), copies.

    Raises
    ------
    BadInput
        The folder is not empty or cannot be written; the disk is full. Nothing is left behind then.
    """
    reporter = reporter or Reporter.silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists and is not empty.", "Give a new folder.")
    require_writable_dir(out)
    out.mkdir(parents=True, exist_ok=True)
    building = out / f".{uuid.uuid4().hex[:8]}"
    try:
        building.mkdir()
        found = _fill(chosen, building, out, link, reporter)
        text = json.dumps(plain(_listing(found, left_out, out)), indent=1, ensure_ascii=False)
        (building / LIST).write_text(text, encoding="utf-8")
        for entry in building.iterdir():
            entry.rename(out / entry.name)
        building.rmdir()
    except OSError as error:
        reason = error.strerror or type(error).__name__  # not the error itself: it holds file names
        raise BadInput(
            f"The series cannot be written to {out}: {reason}.", "Free space or choose another folder."
        ) from error
    finally:
        if building.exists():
            with contextlib.suppress(BadInput):
                remove_tree(building)
    return found


def _fill(chosen: Sequence[Series], building: Path, out: Path, link: bool, reporter: Reporter) -> list[Sorted]:
    total = sum(len(series.files) for series in chosen)
    places: dict[Path, Path] = {}  # source file -> folder in the end
    found = []
    done = 0
    for series in chosen:
        files = [file for file in series.files if file not in places]
        relative = Path(series.study, series.key)
        for number, file in enumerate(files, start=1):
            if done % SAY_EVERY == 0:
                reporter.progress("write", done, total)
            reporter.check()
            _place(file, building / relative / f"{number:05d}.dcm", link)
            places[file] = out / relative
            done += 1
        found.append(Sorted(series, places[series.files[0]]))
    reporter.progress("write", total, total)
    return found


def _place(file: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        with contextlib.suppress(OSError):
            os.link(file.resolve(), target)  # of the file itself where a symbolic link leads to it
            return
    shutil.copyfile(file, target)


def _listing(found: Sequence[Sorted], left_out: Sequence[LeftOut], out: Path) -> dict:
    return {
        "series": [item.series.facts() | {"folder": item.folder.relative_to(out).as_posix()} for item in found],
        "left_out": [item.series.facts() | {"reason": item.reason} for item in left_out],
    }
