"""The names that a running Slicer 5.13 offers its Python modules, read from the list beside this file."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("slicer-5.13-api.json")


@functools.cache
def listed() -> dict:
    """Return the whole list, as it was printed by the application."""
    return json.loads(LIST.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Entry:
    """What one class offers, the members of its base included.

    `loose` holds the names of classes whose members the list does not tell apart.
    """

    name: str
    properties: frozenset[str]
    signals: frozenset[str]
    methods: frozenset[str]
    values: frozenset[str]
    loose: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        return self.properties | self.signals | self.methods | self.values | self.loose


@functools.cache
def entry(group: str, name: str) -> Entry:
    """Look one class up; `group` is `qt`, `ctk` or `slicer`. A class that is not listed raises AttributeError."""
    record = listed()[group].get(name)
    if record is None:
        raise AttributeError(
            f"module '{group}' has no class '{name}' in the list of Slicer 5.13's Python ({LIST.name})"
        )
    kinds = {kind: set(record.get(kind, ())) for kind in ("properties", "signals", "methods", "values", "attributes")}
    if "inherits" in record:
        base = entry(*record["inherits"].split("."))
        for kind in ("properties", "signals", "methods", "values"):
            kinds[kind] |= getattr(base, kind)
        kinds["attributes"] |= base.loose
    kinds["attributes"].discard("thisown")
    return Entry(name, *(frozenset(kinds[k]) for k in ("properties", "signals", "methods", "values", "attributes")))
