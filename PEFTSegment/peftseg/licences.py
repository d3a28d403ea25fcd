"""Licences that the user must accept before a model's first use. Torch-free, standard library only."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from peftseg.errors import BadInput
from peftseg.models import ModelEntry, catalogue, resolve
from peftseg.paths import home, models_dir, write_text

ACCEPTED_FILE = "accepted.json"


def licence_text(entry: ModelEntry) -> str:
    """What is accepted: licence, notice and patents, one a line."""
    return "\n".join(part for part in (entry.licence, entry.licence_notice, entry.patents) if part)


def acknowledgement(entry: ModelEntry) -> str:
    """How it stands: "not needed", "needed" or "accepted"; a licence text that changed since is needed again.

    Raises
    ------
    BadInput
        The record of what was accepted cannot be read.
    """
    if not entry.acknowledge:
        return "not needed"
    accepted = _read_accepted().get(entry.id)
    return "accepted" if accepted is not None and accepted["licence"] == licence_text(entry) else "needed"


def accept(entry: ModelEntry) -> None:
    """Record, with the time, that the user accepted the licence text of this model as it is now."""
    accepted = _read_accepted()
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    accepted[entry.id] = {"licence": licence_text(entry), "time": time}
    write_text(models_dir() / ACCEPTED_FILE, json.dumps(accepted, indent=1, ensure_ascii=False) + "\n")


def require_accepted(entry: ModelEntry) -> None:
    """Raise BadInput where the licence of this model must be accepted and was not."""
    if acknowledgement(entry) != "needed":
        return
    name = entry.id if entry.id in catalogue() else str(entry.directory)
    raise BadInput(
        f"The licence of model '{entry.id}' ({entry.licence}) has not been accepted on this account.",
        f"Read the licence, then run `peftseg models accept {name}`.",
    )


def usable(name: str | Path) -> ModelEntry:
    """The model with this id, or in this folder, for use: BadInput where its licence must be accepted and was not."""
    entry = resolve(name)
    require_accepted(entry)
    return entry


def _read_accepted() -> dict[str, dict[str, str]]:
    """Accepted texts and times by model id."""
    file = home() / "models" / ACCEPTED_FILE
    if not file.is_file():
        return {}
    try:
        accepted = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # covers bytes that are not UTF-8
        raise _damaged(file, str(error)) from error
    whole = isinstance(accepted, dict) and all(isinstance(a, dict) and "licence" in a for a in accepted.values())
    if not whole:
        raise _damaged(file, "expected {id: {licence, time}}")
    return accepted


def _damaged(file: Path, why: str) -> BadInput:
    return BadInput(f"The record of accepted licences {file} is damaged ({why}).", "Delete it, then accept again.")
