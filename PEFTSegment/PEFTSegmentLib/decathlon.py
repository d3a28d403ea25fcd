"""Two public sets of the Medical Segmentation Decathlon: where they are, and a few of their scans out of the archive.

Nothing here needs Slicer.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.structures import REGIONS, TYPES, structure_named

LABELLED, NEW = 5, 2
PAGE = "http://medicaldecathlon.com"
ADDRESS = "https://msd-for-monai.s3-us-west-2.amazonaws.com/"


@dataclass(frozen=True)
class Scan:
    """One scan before it is a node.

    Attributes
    ----------
    name : str
        Name of the node.
    array : ndarray
        (I, J, K) grey values.
    affine : ndarray
        (4, 4), voxel index to RAS millimetres.
    masks : tuple
        Pairs of Structure and (I, J, K) bool; empty for a scan without labels.
    """

    name: str
    array: np.ndarray
    affine: np.ndarray
    masks: tuple[tuple[Structure, np.ndarray], ...] = ()


def _hippocampus(part: str, value: int, colour: tuple[int, int, int]) -> Structure:
    """Slicer's terminology has no codes for the parts of the hippocampus: both carry that of the whole."""
    kind = "SCT^5366008^Hippocampus"
    code = "~".join((TYPES, "SCT^123037004^Anatomical Structure", kind, "^^", REGIONS, "^^", "^^"))
    return Structure(f"{part} hippocampus", value, colour, code)


@dataclass(frozen=True)
class Task:
    """A task of the Medical Segmentation Decathlon (Antonelli et al. 2022, CC BY-SA 4.0).

    The MD5 hashes are those that MONAI publishes (monai.apps.DecathlonDataset.md5); no SHA-256 is published.
    """

    name: str
    prefix: str
    modality: str
    structures: tuple[Structure, ...]
    md5: str
    megabytes: int
    window: tuple[float, float] | None = None

    @property
    def file(self) -> str:
        """Name of the archive."""
        return f"{self.name}.tar"


HIPPOCAMPUS = Task(
    "Task04_Hippocampus",
    "hippocampus",
    "MR",
    (_hippocampus("anterior", 1, (230, 159, 0)), _hippocampus("posterior", 2, (86, 180, 233))),
    "9d24dba78a72977dbd1d2e110310f31b",
    28,
)
SPLEEN = Task(
    "Task09_Spleen",
    "spleen",
    "CT",
    (structure_named("spleen"),),
    "410d4a301da4e5b2f6f86ec3ddba524e",
    1500,
    (-160.0, 240.0),
)
TASKS = {task.file: task for task in (HIPPOCAMPUS, SPLEEN)}


def unpack_scans(archive: Path, task: Task, folder: Path) -> None:
    """Unpack five labelled and two new scans into `folder`, which appears only when it is whole.

    Only regular files of the expected names are read, and they are written under these names: nothing in the archive
    chooses a place on the disk.

    Raises
    ------
    BadInput
        The archive cannot be read or holds too few scans.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            for part, members in _members(tar, task).items():
                (unfinished / part).mkdir(parents=True)
                for name, member in members.items():
                    with tar.extractfile(member) as inside, (unfinished / part / name).open("wb") as outside:
                        shutil.copyfileobj(inside, outside)
        unfinished.rename(folder)
    except tarfile.TarError as error:
        raise BadInput(f"{archive} is not a whole archive: {error}.", "Click the sample again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _members(tar: tarfile.TarFile, task: Task) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members to unpack, by part ("images", "labels", "new") and file name, lowest numbers first."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {"imagesTr": {}, "labelsTr": {}, "imagesTs": {}}
    for member in tar:
        path = PurePosixPath(member.name)
        if member.isreg() and path.parent.name in found and re.fullmatch(rf"{task.prefix}_\d+\.nii\.gz", path.name):
            found[path.parent.name][path.name] = member
    labelled = sorted(found["imagesTr"].keys() & found["labelsTr"].keys(), key=_number)[:LABELLED]
    new = sorted(found["imagesTs"], key=_number)[:NEW]
    if len(labelled) < LABELLED or len(new) < NEW:
        raise BadInput(
            f"The archive holds {len(labelled)} labelled and {len(new)} new scans of {task.name}; "
            f"expected {LABELLED} and {NEW} at least.",
            f"See {PAGE} for the data set.",
        )
    return {
        "images": {name: found["imagesTr"][name] for name in labelled},
        "labels": {name: found["labelsTr"][name] for name in labelled},
        "new": {name: found["imagesTs"][name] for name in new},
    }


def _number(name: str) -> int:
    return int(re.search(r"_(\d+)\.", name)[1])


def read_scans(folder: Path, task: Task, check: Callable[[], None]) -> list[Scan]:
    """The scans that `unpack_scans` left, labelled ones first."""
    from peftseg.volume import read_labels, read_volume

    read = []
    for part in ("images", "new"):
        for path in sorted((folder / part).glob("*.nii.gz"), key=lambda p: _number(p.name)):
            check()
            volume = read_volume(path)
            masks: tuple = ()
            if part == "images":
                labels = read_labels(folder / "labels" / path.name)
                masks = tuple((structure, labels.mask(structure)) for structure in task.structures)
            read.append(Scan(volume.name, volume.array, volume.grid.affine, masks))
    return read
