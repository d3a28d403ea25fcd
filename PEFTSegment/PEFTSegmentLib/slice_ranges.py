"""Numbers of slices as people write them. Nothing here needs Slicer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slicer.i18n import tr as _

from peftseg.errors import BadInput


def slices_text(slices: Sequence[int]) -> str:
    """Slices as people count them, from 1: "12-40, 44"."""
    runs: list[list[int]] = []
    for number in sorted(slices):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in runs)


def slices_from(text: str, count: int) -> tuple[int, ...]:
    """Inverse of `slices_text`; BadInput where a text is none or leaves the `count` slices of the scan."""
    found: set[int] = set()
    for part in text.replace(";", ",").split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:[-\u2013]\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= count:
            raise BadInput(
                _("'{text}' names no slices of this scan, which has the slices 1 to {count}.").format(
                    text=part.strip(), count=count
                ),
                _("Type numbers or ranges, e.g. 12-40 or 12, 16, 20-24."),
            )
        found.update(range(first - 1, last))
    return tuple(sorted(found))
