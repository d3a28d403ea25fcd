"""Going on from an earlier adapter with corrected or more scans, instead of starting over: what can be gone on from."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from peftseg.site_options import SITE

from .. import results
from ..context import Context
from ..panel import enable
from ..work import DEFAULT_METHOD
from .adapt_choices import LibraryCache, Support
from .adapt_progress import short
from .apply_adapters import title

LENGTH = 30  # characters of an adapter's name
Row = dict[str, Any]


class StartChoice:
    """The tick "Faster: go on from X".

    Offered when results of an adapter were corrected into the support scans, else for the adapter whose name is chosen. It
    is on by itself only in the first case and with the same structures.

    Parameters
    ----------
    context : Context
    ui :
        The form's widgets.
    library : LibraryCache
    """

    def __init__(self, context: Context, ui, library: LibraryCache) -> None:
        self._context, self.ui, self._library = context, ui, library
        self._chosen: dict[str, bool] = {}  # what the user said, by the adapter's hash; for this session
        self._row: Row | None = None
        self._corrected = False
        self._same = False

    # what there is

    def find(self, found: Support, name: str) -> None:
        """Look for an adapter to go on from; `name` is the one that the user gave the next adapter."""
        rows = [row for row in self._library.rows() if self._fits(row, found)]
        marks = {r.labels.GetAttribute(results.CORRECTED) for r in found.rows if r.labels is not None} - {None}
        names = {row["name"] for row in self._library.rows() if row["problem"] is None and _known(row, marks)}
        corrected = [row for row in rows if row["name"] in names]
        self._corrected = bool(corrected)
        wanted = corrected or [row for row in rows if row["name"] == name]
        self._row = max(wanted, key=lambda row: row["version"], default=None)
        asked = {s.name for s in found.wanted}
        self._same = self._row is not None and set(self._row["structures"]) == asked

    def _fits(self, row: Row, found: Support) -> bool:
        """Whether the engine can go on from it: same model, made from labels, none of its structures dropped."""
        if row["problem"] is not None or row["base_id"] != self._context.state.model or row["method"] == SITE:
            return False
        method = self._context.state.method
        known = method in ("", DEFAULT_METHOD, row["method"])
        return known and set(row["structures"]) <= {s.name for s in found.wanted}

    @property
    def on(self) -> bool:
        """Whether the next adaptation goes on from it."""
        if self._row is None:
            return False
        return self._chosen.get(self._row["hash"], self._corrected and self._same)

    @property
    def ref(self) -> str | None:
        """The adapter to go on from, or None."""
        return self._row["ref"] if self.on else None

    @property
    def name(self) -> str:
        """Its name, for the next version; "" where the next adaptation starts over."""
        return self._row["name"] if self.on and self._same else ""

    def choose(self, on: bool) -> None:
        """The user ticks it, or not."""
        if self._row is not None:
            self._chosen[self._row["hash"]] = on

    def fields(self) -> dict[str, Any]:
        """The job's fields that differ from starting over."""
        if not self.on:
            return {}
        return {"start_from": self.ref, "method": DEFAULT_METHOD, "options": {}, "estimate": "none"}

    # what is shown

    def look(self, found: Support) -> None:
        """Show the tick, and what to know of it."""
        ui, row = self.ui, self._row
        labelled = self._context.state.labelled
        ui.startBox.visible = ui.startHint.visible = labelled and row is not None
        if row is None or not labelled:
            return
        ui.startBox.text = _("Faster: go on from {name}").format(name=short(title(row), LENGTH).replace("&", "&&"))
        ui.startBox.checked = self.on
        tip = _("Learns from where {name} is, in about half of the time; otherwise it starts over")
        enable(ui.startBox, "", tip.format(name=title(row)))
        ui.startHint.text = self._hint(row, found) if self.on else ""
        ui.startHint.visible = bool(ui.startHint.text)

    def _hint(self, row: Row, found: Support) -> str:
        lines = []
        learnt, here = row["shots"], len(found.rows)
        if learnt and here < learnt:
            lines.append(
                _(
                    "It was learnt from {learnt} scans and {here} are here: it may forget what the others taught."
                ).format(learnt=learnt, here=here)
            )
        added = len(found.wanted) - len(row["structures"])
        if added > 0:
            lines.append(_("Structures that it does not know yet: {count}.").format(count=added))
        return " ".join(lines)


def _known(row: Row, marks: set[str]) -> bool:
    """Whether a result of this adapter was corrected, perhaps under an earlier name."""
    return bool(marks & {row["hash"], *row["earlier_hashes"]})
