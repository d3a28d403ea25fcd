"""What may go wrong on this computer: little space, long paths, an old Mac. No slicer: importable anywhere."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_ = getattr(sys.modules.get("slicer.i18n"), "tr", str)

LONG_PREFIX = 60  # characters; torch's longest paths then pass the 260 of Windows
GIB = 1 << 30
SPACE_CUDA, SPACE_CPU = 15 * GIB, 3 * GIB


def warnings_of(facts: dict, target: Path, needed: int, free_bytes: int | None = None) -> tuple[str, ...]:
    """What may go wrong when packages are installed into a folder.

    Parameters
    ----------
    facts : dict
        Of the interpreter: system and machine.
    target : Path
    needed : int
        Bytes that should be free, 0 where little is installed.
    free_bytes : int or None
        Bytes that are; None: look.
    """
    found = [path_warning(str(target), facts["system"] == "win32")]
    free = free_space(target) if free_bytes is None else free_bytes
    found.append(space_warning(free, needed, target))
    if facts["system"] == "darwin" and facts["machine"] == "x86_64":
        found.append(_("PyTorch is no longer made for Macs with an Intel processor; the installation will not work."))
    return tuple(text for text in found if text)


def path_warning(prefix: str, windows: bool) -> str:
    """Warning about an installation path that is too long for Windows; "" when it is not."""
    if not windows or len(prefix) <= LONG_PREFIX:
        return ""
    text = _(
        "The folder {prefix} has a long name ({length} characters). Windows may refuse some files of PyTorch; install "
        "Slicer into a folder with a short name, e.g. C:\\Slicer."
    )
    return text.format(prefix=prefix, length=len(prefix))


def space_warning(free: int, needed: int, target: Path) -> str:
    """Warning about little space on the disk; "" when there is enough."""
    if free >= needed:
        return ""
    text = _("Only {free:.1f} GB are free on the disk of {target}; {needed:.0f} GB should be.")
    return text.format(free=free / GIB, target=target, needed=needed / GIB)


def free_space(folder: Path) -> int:
    """Free bytes of the disk on which a folder is, or would be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
