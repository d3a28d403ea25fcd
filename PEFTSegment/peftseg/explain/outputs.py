"""How the jobs of this package write what they found."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.explain.abilities import Ability
from peftseg.explain.layers import Layer
from peftseg.explain.subject import Subject
from peftseg.paths import atomic_write
from peftseg.report import require_matplotlib
from peftseg.version import __version__
from peftseg.writing import require_writable_dir


def layer_facts(layer: Layer) -> dict[str, Any]:
    """A layer as fields of a result."""
    return {"layer": layer.name, "kind": layer.kind, "note": layer.note, "adapted": layer.adapted}


def ability_row(ability: Ability) -> dict[str, Any]:
    """An ability as fields of a result; what is not defined is None."""
    scores = {
        key: None if math.isnan(value) else round(value, 4)
        for key, value in (("sa", ability.sa), ("agreement", ability.agreement))
    }
    return {**layer_facts(ability.layer), "structure": ability.structure, "built_by": ability.built_by, **scores}


def write_picture(path: Path, data: bytes) -> str:
    """Write a PNG as a whole; returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return str(path)


def can_draw(wanted: bool, reporter: Reporter) -> bool:
    """Whether pictures are wanted and can be drawn; a warning where matplotlib is missing."""
    if not wanted:
        return False
    try:
        require_matplotlib()
    except BadInput as error:
        reporter.warning(f"No pictures were drawn. {error}")
        return False
    return True


def new_report(out: Path, name: str) -> Path:
    """The report's path in a folder that can be written to; results are not overwritten."""
    require_writable_dir(out)
    if (out / name).exists():
        raise BadInput(f"{out / name} exists; results are not overwritten.", "Choose another folder, or remove them.")
    return out / name


def provenance_of(subject: Subject) -> dict[str, str]:
    """What every result carries."""
    return {**subject.provenance, "software": f"peftseg {__version__}", "use": "research only, not a medical device"}


def safe(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "layer"


def flat_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a table: without paths of maps, and nested fields under joined names."""
    return [_flat({key: value for key, value in row.items() if key != "map"}) for row in rows]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        inner = value if isinstance(value, dict) else None
        flat |= {f"{key}_{k}": v for k, v in inner.items()} if inner is not None else {key: value}
    return flat
