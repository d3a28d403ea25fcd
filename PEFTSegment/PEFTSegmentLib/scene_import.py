"""A scene is added to the open one: the open session goes on, and the support scans that the other brings join it.

A scene has one node with the module's choices, and Slicer lets an added scene write over it. Nothing here needs Qt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftseg.models import Structure

from . import structures, support

CHOICES = (
    "model", "scan", "currentRow", "labelled", "adapterName", "siteName", "siteLeftOut", "sitePreset", "siteOptions",
    "sitePasses", "method", "methodOptions", "minutes", "estimate", "seed", "device", "adapter", "allScans",
)  # fmt: skip


@dataclass(frozen=True)
class Session:
    """The user's choices before another scene is added."""

    rows: tuple[support.Row, ...]
    wanted: tuple[Structure, ...]
    choices: dict[str, Any]


def remember(state) -> Session | None:
    """The session that is open, None where it has nothing to lose: then the added scene's is taken as it is."""
    rows, wanted = tuple(support.SupportSet(state).rows()), structures.read(state)
    if not rows and not wanted:
        return None
    return Session(rows, wanted, {name: getattr(state, name) for name in CHOICES})


def join(state, before: Session) -> None:
    """Put the session back, with the added scene's structures and support scans behind its own."""
    added = support.SupportSet(state)
    new_rows = added.rows()
    new_wanted = structures.read(state)
    for row in new_rows:
        added.remove(row.key)
    names = {s.name.casefold() for s in before.wanted}
    structures.write(state, [*before.wanted, *(s for s in new_wanted if s.name.casefold() not in names)])
    for row in before.rows:
        added.put(row.key, row)
    own = {row.key for row in before.rows}
    scans = {row.scan.GetID() for row in before.rows if row.scan is not None}
    for row in new_rows:
        if row.scan is not None and row.scan.GetID() not in scans:
            added.put("" if row.key in own else row.key, row)
    for name, value in before.choices.items():
        setattr(state, name, value)
