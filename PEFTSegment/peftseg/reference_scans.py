"""Pinned labelled reference scans: segmented again after every update, so that a loss is seen before patients show it.

`references/` of the home folder, readable by its owner only, holds `references.json`, `runs.jsonl` (every run) and the copies
of scans that were pinned with a copy. Scans pinned by path stay where they are: only their path and a hash are kept, and
a scan that changed since is not used. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from peftseg.adapter_file import read_header
from peftseg.errors import BadInput, unknown_name
from peftseg.library import find_adapter
from peftseg.models import Structure
from peftseg.paths import owner_only, references_dir, remove_tree, write_text
from peftseg.study import SupportItem, load_support_item

FILE, RUNS = "references.json", "runs.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """One pinned scan.

    Attributes
    ----------
    id, name : str
        Eight digits, and what the user calls it.
    adapter : str
        A name in the library (its newest version is run), name-vN, or a file.
    image, labels : str
        Paths.
    structures : dict
        Name -> value in the labels.
    copied : bool
        Whether the files are copies of ours.
    sha256 : str
        Of both files' bytes.
    added : str
        UTC time.
    """

    id: str
    name: str
    adapter: str
    image: str
    labels: str
    structures: dict[str, int]
    copied: bool
    sha256: str
    added: str


def read_references() -> list[Reference]:
    """All pinned scans, in the order in which they were pinned."""
    path = references_dir() / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, expected {FORMAT}")
        return [Reference(**entry) for entry in data["references"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} cannot be read ({error}).", "Remove it, then pin the scans again.") from error


def add_reference(
    adapter: str,
    image: str | Path,
    labels: str | Path,
    structures: Sequence[Structure],
    name: str = "",
    copy: bool = False,
) -> Reference:
    """Pin a labelled scan for an adapter.

    Parameters
    ----------
    structures : sequence of Structure
        What the labels hold of the adapter's structures.
    copy : bool
        Copy the files into the references folder, so that they stay as they are; else only their paths are kept.

    Raises
    ------
    BadInput
        Unknown adapter, a structure that it does not segment, files that cannot be read or do not belong together, or a
        name that is taken.
    """
    image, labels = Path(image).expanduser().absolute(), Path(labels).expanduser().absolute()
    recipe, _ = read_header(find_adapter(adapter))
    known = [s.name for s in recipe.structures]
    for structure in structures:
        if structure.name not in known:
            raise unknown_name(f"structure of the adapter '{recipe.name}'", structure.name, known)
    load_support_item(SupportItem(str(image), str(labels)), structures)  # readable, of one grid, and labelled
    references = read_references()
    identity = uuid.uuid4().hex[:8]
    name = name or f"reference {len(references) + 1}"
    if name in {entry.name for entry in references}:
        raise BadInput(f"A reference scan is called '{name}' already.", "Give another --name.")
    found = Reference(
        identity,
        name,
        str(Path(adapter).absolute()) if Path(adapter).is_file() else str(adapter),
        str(image),
        str(labels),
        {s.name: s.value for s in structures},
        copy,
        _sha256((image, labels)),
        _now(),
    )
    if copy:
        folder = owner_only(references_dir() / identity)
        copies = _copy(image, folder / "image"), _copy(labels, folder / "labels")
        found = replace(found, image=str(copies[0]), labels=str(copies[1]))
    _write([*references, found])
    return found


def remove_reference(ref: str) -> Reference:
    """Unpin a scan by id or name: copies are deleted, files pinned by path are not touched. BadInput where it is unknown."""
    references = read_references()
    found = next((entry for entry in references if ref in (entry.id, entry.name)), None)
    if found is None:
        raise unknown_name("reference scan", ref, [entry.name for entry in references])
    _write([entry for entry in references if entry is not found])
    folder = references_dir() / found.id
    if found.copied and folder.is_dir():
        remove_tree(folder)
    return found


def check_unchanged(reference: Reference) -> None:
    """BadInput where the files are gone or are not what was pinned."""
    files = (Path(reference.image), Path(reference.labels))
    missing = [path for path in files if not path.exists()]
    if missing:
        raise BadInput(
            f"The reference scan '{reference.name}' is not there any more ({missing[0]}).",
            "Bring the file back, or remove the reference scan and pin another.",
        )
    if _sha256(files) != reference.sha256:
        raise BadInput(
            f"The reference scan '{reference.name}' or its labels have changed since they were pinned.",
            "Remove it and pin it anew: its earlier results say nothing of the files as they are now.",
        )


def read_runs() -> list[dict[str, Any]]:
    """All runs, oldest first."""
    path = references_dir() / RUNS
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def append_run(run: dict[str, Any]) -> None:
    """Keep one run."""
    path = references_dir() / RUNS
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, before + json.dumps(run, ensure_ascii=False, allow_nan=False) + "\n")


def baselines(runs: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """(Reference's id, structure) -> the row that new results are held against: the last accepted one, with its run's facts."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["accepted"]:
                found[row["reference"], row["structure"]] = {**row, **{key: run[key] for key in ("time", "software")}}
    return found


def _write(references: Sequence[Reference]) -> None:
    data = {"format": FORMAT, "references": [asdict(entry) for entry in references]}
    write_text(references_dir() / FILE, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _copy(source: Path, target: Path) -> Path:
    """Copy a file (with its suffixes) or a DICOM folder."""
    try:
        if source.is_dir():
            return Path(shutil.copytree(source, target))
        suffix = "".join(source.suffixes[-2:]) if source.name.endswith((".nii.gz", ".seg.nrrd")) else source.suffix
        return Path(shutil.copyfile(source, target.with_name(target.name + suffix)))
    except OSError as error:
        raise BadInput(
            f"{source} cannot be copied: {error.strerror or error}.", "Free space, or pin by path."
        ) from error


def _sha256(paths: Iterable[Path]) -> str:
    """Of the bytes of files, and of those in folders by name."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            digest.update(b"|")
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
