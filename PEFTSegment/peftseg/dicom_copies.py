"""Files of a DICOM series that are there twice: the same voxels at the same place, whatever they are called. Torch-free.

Instance UIDs do not tell: some anonymisers remove them, give all images the same one, or new ones each time. So voxels are
compared, of those files only whose planes lie where another's do.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

import SimpleITK as sitk

COPIES = "{} files are exact copies of others (same place, same voxels) and were left out"


def copies(planes: Iterable[tuple[Path, Hashable]]) -> set[Path]:
    """Files that show the very image of an earlier one.

    Parameters
    ----------
    planes : iterable of (Path, hashable)
        The file of each plane, and where the plane lies and what else tells it apart (echo, time point, ...): only files with
        equal planes can be copies.

    Returns
    -------
    set of Path
        To be left out. A file whose voxels cannot be read is no copy, unless it is another's byte for byte.
    """
    own: dict[Path, list[Hashable]] = defaultdict(list)
    for file, what in planes:
        own[file].append(what)
    alike: dict[Hashable, list[Path]] = defaultdict(list)
    for file, those in own.items():
        alike[tuple(those)].append(file)
    found: set[Path] = set()
    for group in alike.values():
        seen: set[bytes] = set()
        for file in group if len(group) > 1 else ():
            digest = _digest(file)
            if digest in seen:
                found.add(file)
            seen.add(digest)
    return found


def _digest(file: Path) -> bytes:
    """Hash of the rescaled voxels; of the whole file where these cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        return hashlib.sha256(sitk.GetArrayFromImage(reader.Execute()).tobytes()).digest()
    except RuntimeError:
        return b"file" + hashlib.sha256(file.read_bytes()).digest()
