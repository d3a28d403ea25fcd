"""The adapters to choose from, as step 4 and the library dialog show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from peftseg import library
from peftseg.errors import PeftsegError
from peftseg.paths import adapters_dir

from ..context import Context

Row = dict[str, Any]
MOST_NAMES = 8


class AdapterList:
    """The library's rows; the files are looked at again only after a change of the own folder, or when asked to."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.shown: tuple | None = None  # what step 4's list holds
        self.problem = ""  # why the own library cannot be read
        self._rows: list[Row] = []
        self._seen: int | None = None

    def rows(self) -> list[Row]:
        """All adapters by name, the newest version first."""
        try:
            changed = os.stat(adapters_dir()).st_mtime_ns
            if changed != self._seen:
                self._seen = changed
                found = sorted(library.list_adapters(check=False), key=lambda row: -(row["version"] or 0))
                self._rows = sorted(found, key=lambda row: row["name"].casefold())
            self.problem = ""
        except (PeftsegError, OSError) as error:  # the disk is gone, say
            self._rows, self.problem = [], str(error)
        return self._rows

    def look_again(self) -> None:
        """Read the folders at the next call, the shared ones too."""
        self._seen = None

    def row(self, ref: str) -> Row | None:
        """The adapter with this reference, or None."""
        return next((row for row in self.rows() if row["ref"] == ref), None)

    def reason_against(self, row: Row) -> str:
        """Why an adapter cannot be applied, in words; "" when it can."""
        if row["problem"]:
            return _("It is damaged: {problem}").format(problem=row["problem"])
        entry = self._context.models().get(row["base_id"])
        if entry is None:
            return _("Its model {model} is not known on this computer; add it in step 1.").format(model=row["base_id"])
        if entry.weights_path is None:
            return _("The weights of its model, {model}, are not on this computer; get them in step 1.").format(
                model=entry.title
            )
        return ""

    def missing_bases(self) -> tuple[str, ...]:
        """Ids of the adapters' models that cannot be used now: what is shown depends on them."""
        known = self._context.models()
        needed = sorted({row["base_id"] for row in self.rows() if row["base_id"]})
        return tuple(base for base in needed if base not in known or known[base].weights_path is None)

    def base_title(self, row: Row) -> str:
        """Its model's name."""
        entry = self._context.models().get(row["base_id"] or "")
        return entry.title if entry is not None else row["base_id"] or ""

    def describe(self, row: Row) -> str:
        """Structures, model, scans and date in a few lines."""
        if row["problem"]:
            return self.reason_against(row)
        lines = [
            _("Structures: {names}").format(names=", ".join(row["structures"])),
            _("Model: {model}").format(model=self.base_title(row)),
        ]
        if row["shots"]:
            lines.append(_("Learnt from {count} scans").format(count=row["shots"]))
        added = added_on(row)
        if added:
            lines.append(_("In this library since {date}").format(date=added))
        return "\n".join(lines)


def title(row: Row) -> str:
    """Name and version."""
    if row["version"] is None:
        return row["name"]
    return _("{name}, version {version}").format(name=row["name"], version=row["version"])


def added_on(row: Row) -> str:
    """The day on which an adapter's file came into its folder, "" where the file is gone."""
    try:
        return datetime.fromtimestamp(Path(row["path"]).stat().st_mtime).strftime("%Y-%m-%d")
    except OSError:
        return ""


def source(row: Row) -> str:
    """Where an adapter is from: the own library, or which shared folder."""
    return _("own") if row["source"] == library.OWN else Path(row["source"]).name or row["source"]


def show_adapters(adapters: AdapterList, ui, chosen: str) -> None:
    """Show the library in step 4's list, and what the chosen adapter finds; those that cannot be used say why."""
    rows, combo = adapters.rows(), ui.adapterCombo
    shown = ([(row["ref"], row["hash"], row["path"]) for row in rows], adapters.missing_bases())
    if shown != adapters.shown:
        adapters.shown = shown
        combo.clear()
        combo.addItem(_("Choose an adapter...") if rows else _("None yet: make one in step 3, or import one"), "")
        for number, row in enumerate(rows, start=1):
            reason = adapters.reason_against(row)
            combo.addItem(title(row), row["ref"])
            combo.model().item(number).setToolTip(reason or adapters.describe(row))
            combo.model().item(number).setEnabled(not reason)
    index = max(0, combo.findData(chosen))
    if combo.currentIndex != index:
        combo.setCurrentIndex(index)
    row = adapters.row(chosen)
    combo.toolTip = adapters.describe(row) if row is not None else ""
    ui.adapterLabel.visible = row is not None or bool(adapters.problem)
    ui.adapterLabel.text = adapters.problem
    if row is not None:
        finds = _("Structures: {names}").format(names=_some(row["structures"] or ()))
        ui.adapterLabel.text = adapters.reason_against(row) or finds


def _some(names: Sequence[str]) -> str:
    """The first names of a long list."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return _("{names} and {count} more").format(names=", ".join(names[:MOST_NAMES]), count=len(names) - MOST_NAMES)
