"""The rows of the support table, made anew only where something has changed. Nothing here needs Qt."""

from __future__ import annotations

import time
from collections.abc import Sequence

from peftseg.models import ModelEntry, Structure

from .. import checks, scans
from ..support import Row
from .support_words import RowView, late_view, row_view

AT_ONCE = 0.012  # seconds that one look may spend on rows that have changed; the rest comes with the next look


class RowViews:
    """Keeps the view of each row until its nodes, marks, structures, the model or the advice change."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[tuple | None, RowView]] = {}  # by key: what it was made from, and the view
        self._changes: dict[str, int] = {}  # by node id: how often it has changed

    def changed(self, node_id: str) -> None:
        """A node has changed."""
        self._changes[node_id] = self._changes.get(node_id, 0) + 1

    def of(
        self, rows: Sequence[Row], wanted: Sequence[Structure], model: ModelEntry | None, advice: dict[str, str]
    ) -> tuple[list[RowView], bool]:
        """The views of all rows, and whether another look is needed for some.

        Parameters
        ----------
        advice : dict
            Scan token -> why to label it next.
        """
        begin, late, held = time.perf_counter(), False, {}
        for row in rows:
            token = row.scan.GetAttribute(scans.TOKEN) if row.scan is not None else None
            said = advice.get(token or "", "")
            basis = (self._basis(row), tuple(wanted), model.id if model is not None else "", said)
            known = self._held.get(row.key)
            if known is None or known[0] != basis:
                if time.perf_counter() - begin < AT_ONCE:
                    known = (basis, row_view(row, wanted, checks.row_checks(row, wanted, model), said))
                else:
                    known, late = (None, late_view(row, wanted)), True
            held[row.key] = known
        self._held = held
        return [view for _basis, view in held.values()], late

    def _basis(self, row: Row) -> tuple:
        nodes = [node.GetID() if node is not None else "" for node in (row.scan, row.labels)]
        return (*nodes, *(self._changes.get(node_id, 0) for node_id in nodes), str(sorted(row.marks.items())))
