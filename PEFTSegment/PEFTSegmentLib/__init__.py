"""The Slicer side of PEFTSegment: the user's choices, scans to files and back, jobs, and one panel a step.

Imports point one way: PEFTSegment.py -> widget -> panels -> the rest here -> `peftseg` (its torch-free part only).
"""

from __future__ import annotations

import sys


def forget_modules() -> None:
    """Drop this package from Python's memory, so that reloading the module reads its files again."""
    for name in [n for n in sys.modules if n == __name__ or n.startswith(f"{__name__}.")]:
        del sys.modules[name]
