"""What the table of support scans says, in words. Nothing here needs Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slicer.i18n import tr as _

from peftseg.models import Structure

from .. import checks, support
from ..checks import Finding
from ..slice_ranges import slices_text
from ..support import Cell, Row

MOST_LETTERS = 8  # in a line of a narrow column's title
MOST_COLUMNS = 3  # structures that get a column of their own; more are counted in one


@dataclass(frozen=True)
class RowView:
    """One row of the table.

    Attributes
    ----------
    texts, tips : tuple of str
        One a column.
    ready : bool
        Whether the scan can be learnt from.
    look : bool
        Whether a person should look at something.
    detail : str
        All there is to say, for the line under the table.
    """

    key: str
    texts: tuple[str, ...]
    tips: tuple[str, ...]
    ready: bool
    look: bool
    detail: str


def headers(wanted: Sequence[Structure]) -> list[tuple[str, str]]:
    """Titles of the columns and their tool tips; those of structures are between the second and the last one."""
    if len(wanted) <= MOST_COLUMNS:
        inner = [(short_name(s.name), s.name) for s in wanted]
    else:
        inner = [(_("Labelled"), _("How many of the structures are labelled, or known to be absent"))]
    return [
        (_("Scan"), ""),
        (_("Labels"), _("The segmentation that holds the labels of the scan")),
        *inner,
        (_("State"), ""),
    ]


def short_name(name: str) -> str:
    """A structure's name in two short lines, for a narrow column."""
    words = name.replace("_", " ").split()
    lines = [words[0], " ".join(words[1:])] if len(words) > 1 else words
    return "\n".join(line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "\u2026" for line in lines)


def row_view(row: Row, wanted: Sequence[Structure], findings: Sequence[Finding], advice: str = "") -> RowView:
    """The texts of one support scan.

    Parameters
    ----------
    findings : sequence of Finding
        Of `checks.row_checks`.
    advice : str
        Why to label it next, or "".
    """
    cells = {s.name: support.cell(row, s) for s in wanted} if row.scan is not None else {}
    problems = [f.text for f in findings if f.kind == checks.PROBLEM]
    warnings = [f.text for f in findings if f.kind == checks.WARNING]
    notes = [f.text for f in findings if f.kind == checks.NOTE]
    state = state_words(cells, problems, warnings)
    scan = row.scan.GetName() if row.scan is not None else "?"
    labels = row.labels.GetName() if row.labels is not None else "-"
    said = {name: cell_words(found, row.labels is not None) for name, found in cells.items()}
    lines = grouped(cells)
    everything = [*problems, *warnings, *notes] or [state]
    if advice:
        everything.append(advice)
    state_text = _("{state} - label next").format(state=state) if advice and problems else state
    if len(wanted) <= MOST_COLUMNS:
        texts = [said.get(s.name, "") for s in wanted]
        tips = [f"{s.name}: {cell_tip(cells[s.name])}" if s.name in cells else "" for s in wanted]
    else:
        known = sum(found.state != "not labelled" for found in cells.values())
        texts, tips = [_("{known} of {all}").format(known=known, all=len(wanted))], ["\n".join(lines)]
    return RowView(
        row.key,
        (scan, labels, *texts, state_text),
        (scan, labels if row.labels is not None else _("No segmentation yet"), *tips, "\n".join(everything)),
        not problems,
        bool(warnings),
        detail_words(scan, everything, lines if len(wanted) > MOST_COLUMNS else []),
    )


def late_view(row: Row, wanted: Sequence[Structure]) -> RowView:
    """A row that was not looked at yet: there are many, and the window stays alive between them."""
    names = [node.GetName() if node is not None else "-" for node in (row.scan, row.labels)]
    blank = [""] * (len(headers(wanted)) - 2)
    return RowView(row.key, (*names, *blank[1:], _("...")), (*names, *blank), False, False, "")


def state_words(cells: dict[str, Cell], problems: Sequence[str], warnings: Sequence[str]) -> str:
    """The state of a scan in a few words."""
    if problems:
        return problems[0]
    if warnings:
        return _("ready, but {warning}").format(warning=warnings[0])
    partly = any(found.slices is not None or found.state == "not labelled" for found in cells.values())
    return _("ready (partly labelled)") if partly else _("ready")


def cell_words(found: Cell, has_labels: bool) -> str:
    """The state of a structure in a scan, short enough for a narrow column."""
    if found.problem:
        return "!"
    if found.state == "absent":
        return _("absent")
    if found.state == "not labelled":
        return _("empty") if found.segment and has_labels else ""
    return _("slices\n{slices}").format(slices=slices_text(found.slices)) if found.slices else _("ok")


def cell_tip(found: Cell) -> str:
    """The state of a structure in a scan, in full."""
    if found.problem:
        return found.problem
    if found.state == "absent":
        return _("not in this scan, as you have said")
    if found.state == "not labelled":
        words = _("its segment is empty") if found.segment else _("not labelled")
        return _("{words}; that never counts as absent (right click to mark it absent)").format(words=words)
    if found.slices:
        return _("labelled in the slices {slices}; nothing is learnt from the others").format(
            slices=slices_text(found.slices)
        )
    return _("labelled")


def grouped(cells: dict[str, Cell]) -> list[str]:
    """Many structures of one scan in a few lines, by what is known of them."""
    groups = {
        _("Labelled: {names}"): [n for n, c in cells.items() if c.state == "labelled" and not c.slices],
        _("Labelled in some slices: {names}"): [n for n, c in cells.items() if c.slices],
        _("Absent: {names}"): [n for n, c in cells.items() if c.state == "absent" and not c.problem],
        _("Not labelled, which never counts as absent: {names}"): [
            n for n, c in cells.items() if c.state == "not labelled"
        ],
    }
    return [text.format(names=", ".join(names)) for text, names in groups.items() if names]


def detail_words(scan: str, sentences: Sequence[str], lines: Sequence[str]) -> str:
    """The line under the table."""
    said = "; ".join(sentences).rstrip(".")
    return "\n".join([f"{scan}: {said}.", *lines])


def section_title(views: Sequence[RowView]) -> str:
    """The section's header."""
    if not views:
        return _("2 Support scans")
    return _("2 Support scans - {ready} of {all} ready").format(ready=sum(v.ready for v in views), all=len(views))
