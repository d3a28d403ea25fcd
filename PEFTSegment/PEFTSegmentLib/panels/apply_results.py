"""The table of results in step 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt
import slicer
from slicer.i18n import tr as _

from .. import results

MOST_ROWS = 300
WIDTHS = (92, 96, 80)
ROW_HEIGHT, MOST_VISIBLE = 22, 8
ATTENTION = "#B35900"


class ResultTable:
    """Rows of all results in the scene, those that need a look first.

    Parameters
    ----------
    chosen : callable
        Called with the row that the user clicked, or went to with the arrow keys.
    """

    def __init__(self, ui, chosen: Callable[[results.ResultRow], None]) -> None:
        self._ui, self._chosen = ui, chosen
        self._key: tuple = ()
        self._rows: list[results.ResultRow] = []
        self._current = ""
        self._filling = False
        self.results_to_look_at = 0
        table = ui.resultsTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels([_("Scan"), _("Structure"), _("Volume (ml)"), _("Check")])
        prepare(table, WIDTHS)
        table.currentCellChanged.connect(self._moved)
        table.cellClicked.connect(self._clicked)  # also on the current row, whose result may have been hidden

    def look(self, nodes: Sequence[slicer.vtkMRMLSegmentationNode]) -> None:
        """Show these results; nothing is done where they have not changed."""
        self._filling = True
        try:
            self._look(nodes)
        finally:
            self._filling = False

    def _look(self, nodes: Sequence[slicer.vtkMRMLSegmentationNode]) -> None:
        key = tuple((node.GetID(), node.GetMTime(), _scan_name(node)) for node in nodes)
        if key == self._key:
            return
        self._key = key
        rows = results.rows(nodes)
        self.results_to_look_at = len({row.node.GetID() for row in rows if row.needs_look})
        self._rows = rows[:MOST_ROWS]
        table = self._ui.resultsTable
        table.setUpdatesEnabled(False)
        table.setRowCount(len(self._rows))
        for number, row in enumerate(self._rows):
            self._fill(number, row)
        table.setUpdatesEnabled(True)
        fit_height(table)
        hidden = len(rows) - len(self._rows)
        self._ui.moreLabel.visible = hidden > 0
        self._ui.moreLabel.text = _("{count} more rows are not shown; those to look at come first.").format(
            count=hidden
        )
        self._show_current()

    def _fill(self, number: int, row: results.ResultRow) -> None:
        volume = (
            "" if row.volume_ml is None else f"{row.volume_ml:.2f}" if row.volume_ml < 10 else f"{row.volume_ml:.1f}"
        )
        check = check_text(row)
        for column, text in enumerate((row.scan, row.structure, volume, check)):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(_check_tip(row, text) if column == 3 else f"{text}\n{row.node.GetName()}")
            if column == 2:
                item.setData(qt.Qt.TextAlignmentRole, int(qt.Qt.AlignRight | qt.Qt.AlignVCenter))
            if row.needs_look:
                item.setForeground(qt.QBrush(qt.QColor(ATTENTION)))
            self._ui.resultsTable.setItem(number, column, item)

    def _moved(self, number: int, _column: int, _former: int, _former_column: int) -> None:
        self._clicked(number, _column)

    def _clicked(self, number: int, _column: int) -> None:
        if self._filling or not 0 <= number < len(self._rows):
            return
        row = self._rows[number]
        self._current = row.node.GetID()
        self._chosen(row)

    def choose(self, node: slicer.vtkMRMLSegmentationNode) -> None:
        """Make a result the current one."""
        self._current, self._key = node.GetID(), ()

    def current(self) -> slicer.vtkMRMLSegmentationNode | None:
        """The result that the buttons below the table work on."""
        node = slicer.mrmlScene.GetNodeByID(self._current) if self._current else None
        if node is not None and results.get(node, results.STATUS):
            return node
        return self._rows[0].node if self._rows and self._rows[0].node.GetScene() is not None else None

    def current_checks(self) -> tuple[str, ...]:
        """What stood out in the selected row, in whole sentences."""
        number = self._ui.resultsTable.currentRow()
        row = self._rows[number] if 0 <= number < len(self._rows) else None
        if row is None or row.node is not self.current() or row.edited or not row.checks:
            return ()
        return tuple(f"{row.structure}: {check}" for check in row.checks)

    def _show_current(self) -> None:
        table, current = self._ui.resultsTable, self.current()
        selected = table.currentRow()
        same = 0 <= selected < len(self._rows) and self._rows[selected].node is current
        if current is None or same:
            return
        first = next((number for number, row in enumerate(self._rows) if row.node is current), None)
        if first is not None:
            table.selectRow(first)

    def forget(self) -> None:
        """The scene closes: hold none of its nodes."""
        self._rows, self._key, self._current, self.results_to_look_at = [], (), "", 0  # so that no row is chosen below
        self._ui.resultsTable.setRowCount(0)


def prepare(table, widths: Sequence[int]) -> None:
    """Columns of these widths, the last one takes the rest; no row numbers."""
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
    for column, width in enumerate(widths):
        table.setColumnWidth(column, width)
    table.horizontalHeader().setStretchLastSection(True)
    table.horizontalHeader().setHighlightSections(False)
    table.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)


def fit_height(table) -> None:
    """As high as its rows, up to eight of them."""
    rows = max(2, min(MOST_VISIBLE, table.rowCount))
    table.setFixedHeight(table.horizontalHeader().sizeHint.height() + rows * ROW_HEIGHT + 6)


def status_text(node: slicer.vtkMRMLSegmentationNode) -> str:
    """What made a result, and whether a person has looked at it."""
    if results.get(node, results.STATUS) == results.REVIEWED:
        return _("{name}: reviewed by {who}, {when}").format(
            name=results.title_of(node),
            who=results.get(node, results.REVIEWED_BY),
            when=results.get(node, results.REVIEWED_AT)[:16].replace("T", " "),
        )
    if results.get(node, results.EDITED):
        return _("{name}: draft, edited by hand; not reviewed yet").format(name=results.title_of(node))
    return _("{name}: draft, not reviewed yet").format(name=results.title_of(node))


def check_text(row: results.ResultRow) -> str:
    """What the last column says of a row."""
    if row.edited:
        return _("edited")
    if results.get(row.node, results.STATUS) == results.REVIEWED:
        return _("reviewed")
    if row.checks:
        return _("please look: {reasons}").format(reasons="; ".join(row.checks))
    return _("ok")


def _check_tip(row: results.ResultRow, text: str) -> str:
    """The last column's tool tip: the whole text, and how doubtful the engine found it."""
    if row.doubt is None:
        return text
    doubt = _("Doubt: {percent} % (0 %: as expected, 100 %: look at it first)").format(percent=round(100 * row.doubt))
    return f"{text}\n{doubt}"


def _scan_name(node: slicer.vtkMRMLSegmentationNode) -> str:
    scan = results.scan_of(node)
    return scan.GetName() if scan is not None else ""
