"""The gate's verdicts: their names, and what is said of a stored adapter that has one. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ACCEPTED, WARNING, REFUSED = "accepted", "warning", "refused"
# Said of a stored adapter whenever it is named; nothing of one that was accepted.
REMARKS: Mapping[str, str] = MappingProxyType(
    {WARNING: "Its check had accepted it with a warning.", REFUSED: "Its check had refused it: use it with care."}
)


def stored_status(record: Mapping[str, Any]) -> str | None:
    """The verdict in an adapter's record; None where no gate has judged it (few labelled scans) or it is unreadable."""
    verdict = record.get("gate")
    status = verdict.get("status") if isinstance(verdict, Mapping) else None
    return status if status in (ACCEPTED, WARNING, REFUSED) else None
