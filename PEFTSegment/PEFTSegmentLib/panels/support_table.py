"""The table of support scans: it shows `RowView`s, changes only what has changed, and reports what the user does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt

from .support_words import RowView

STRUCTURE_WIDTH, COUNT_WIDTH, STATE_WIDTH = 52, 64, 104
ROW_HEIGHT, SHOWN_ROWS = 36, 7


class SupportTable:
    """A QTableWidget with one row a support scan.

    Parameters
    ----------
    table : QTableWidget
        From the form.
    selected, opened : callable
        Called with a row's key when the user selects, or double-clicks it.
    asked : callable
        Called with key, column and global position for a context menu.
    """

    def __init__(self, table, selected: Callable, opened: Callable, asked: Callable) -> None:
        self.table = table
        self._selected, self._opened, self._asked = selected, opened, asked
        self._headers: list[tuple[str, str]] = []
        self._views: list[RowView] = []
        self._filling = False
        table.setEditTriggers(qt.QTableWidget.NoEditTriggers)
        table.setSelectionBehavior(qt.QTableWidget.SelectRows)
        table.setSelectionMode(qt.QTableWidget.SingleSelection)
        table.setContextMenuPolicy(qt.Qt.CustomContextMenu)
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        table.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        table.itemSelectionChanged.connect(self._selection_changed)
        table.cellDoubleClicked.connect(self._double_clicked)
        table.customContextMenuRequested.connect(self._menu_requested)

    def show(self, headers: Sequence[tuple[str, str]], views: Sequence[RowView], current: str) -> None:
        """Show rows, and which of them is chosen."""
        self._filling = True
        try:
            if list(headers) != self._headers:
                self._set_headers(list(headers))
            self._set_rows(list(views))
            self._select(current)
        finally:
            self._filling = False

    def _set_headers(self, headers: list[tuple[str, str]]) -> None:
        self._headers, self._views = headers, []
        self.table.setRowCount(0)
        self.table.setColumnCount(len(headers))
        header = self.table.horizontalHeader()
        header.setMinimumSectionSize(24)
        header.setHighlightSections(False)  # bold titles would not fit
        last = len(headers) - 1
        counted = last == 3  # room for a single column between the others
        self.table.setHorizontalHeaderLabels([text for text, _tip in headers])
        for column, (_text, tip) in enumerate(headers):
            self.table.horizontalHeaderItem(column).setToolTip(tip)
            if column < 2:
                header.setSectionResizeMode(column, qt.QHeaderView.Stretch)
                continue
            header.setSectionResizeMode(column, qt.QHeaderView.Fixed)
            inner = COUNT_WIDTH if counted else STRUCTURE_WIDTH
            self.table.setColumnWidth(column, STATE_WIDTH if column == last else inner)

    def _set_rows(self, views: list[RowView]) -> None:
        if views == self._views:
            return
        if len(views) != self.table.rowCount:
            self.table.setRowCount(len(views))
        for number, view in enumerate(views):
            if number >= len(self._views) or self._views[number] != view:
                self._set_row(number, view)
        self._views = views
        rows = min(SHOWN_ROWS, max(2, len(views)))
        height = rows * ROW_HEIGHT + self.table.horizontalHeader().height + 4
        self.table.setMinimumHeight(height)
        self.table.setMaximumHeight(height)

    def _set_row(self, number: int, view: RowView) -> None:
        last = len(view.texts) - 1
        for column, (text, tip) in enumerate(zip(view.texts, view.tips, strict=True)):
            item = self.table.item(number, column)
            if item is None:
                self.table.setItem(number, column, qt.QTableWidgetItem(""))
                item = self.table.item(number, column)
            item.setText(text)
            item.setToolTip(tip)
            if 2 <= column < last:
                item.setTextAlignment(qt.Qt.AlignCenter)
        colour = qt.QColor("#2e7d32" if view.ready and not view.look else "#b26a00" if view.ready else "#707070")
        self.table.item(number, last).setForeground(qt.QBrush(colour))

    def _select(self, key: str) -> None:
        row = next((number for number, view in enumerate(self._views) if view.key == key), -1)
        if row < 0:
            self.table.clearSelection()
        elif self.table.currentRow() != row or not self.table.item(row, 0).isSelected():
            self.table.selectRow(row)

    # what the user does

    def key_at(self, row: int) -> str:
        """Key of the support scan in a row, "" where there is none."""
        return self._views[row].key if 0 <= row < len(self._views) else ""

    def _selection_changed(self) -> None:
        if not self._filling:
            self._selected(self.key_at(self.table.currentRow()))

    def _double_clicked(self, row: int, column: int) -> None:
        self._opened(self.key_at(row))

    def _menu_requested(self, position) -> None:
        item = self.table.itemAt(position)
        if item is not None:
            self._asked(self.key_at(item.row()), item.column(), self.table.viewport().mapToGlobal(position))
