"""The list of layers in step 5, with the bars of ProtoSeg in the colours of encoder, adapter and decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt
from slicer.i18n import tr as _

from .apply_results import ROW_HEIGHT, prepare
from .inspect_jobs import Measured
from .inspect_layers import LayerRow
from .inspect_words import ability_tip, layer_tip

COLOURS = {"encoder": "#0072B2", "adapter": "#D55E00", "decoder": "#009E73"}  # told apart by the colour-blind too
OTHER = "#888888"
SWATCH, BAR_WIDTH, BAR_HEIGHT = 10, 104, 10
WIDTHS = (150, 54, 48)
VISIBLE_ROWS = 9
VALUE, BAR = 2, 3


class LayerTable:
    """Layers in network order; a click, or the arrow keys, chooses one.

    Parameters
    ----------
    chosen : callable
        Called with the name of the layer.
    """

    def __init__(self, table, legend, chosen: Callable[[str], None]) -> None:
        self._table, self._chosen = table, chosen
        self._rows: tuple[LayerRow, ...] = ()
        self._key: tuple | None = None
        self._filling = False
        table.setColumnCount(4)
        prepare(table, WIDTHS)
        table.setIconSize(qt.QSize(BAR_WIDTH, BAR_HEIGHT))
        table.setFixedHeight(table.horizontalHeader().sizeHint.height() + VISIBLE_ROWS * ROW_HEIGHT + 6)
        table.currentCellChanged.connect(self._moved)
        table.cellClicked.connect(self._clicked)
        legend.text = _legend()

    def look(self, rows: Sequence[LayerRow], measured: Measured | None, bars: bool, current: str) -> None:
        """Show layers; nothing is done where they have not changed.

        Parameters
        ----------
        measured : Measured or None
            The bars' values.
        bars : bool
            Whether there are columns for bars.
        current : str
            Name of the chosen layer.
        """
        key = (tuple(rows), measured, bars)  # a measurement is held, so that no other can pass for it
        self._filling = True
        try:
            anew = key != self._key
            if anew:
                self._key, self._rows = key, tuple(rows)
                self._fill(measured, bars)
            self._select(current, anew)
        finally:
            self._filling = False

    def _fill(self, measured: Measured | None, bars: bool) -> None:
        table = self._table
        table.setUpdatesEnabled(False)
        labelled = measured is not None and measured.labelled
        table.setHorizontalHeaderLabels([_("Layer"), _("Detail"), "", _("Ability") if labelled else _("Agreement")])
        for column in (VALUE, BAR):
            table.setColumnHidden(column, not bars)
        table.setRowCount(len(self._rows))
        for number, row in enumerate(self._rows):
            self._fill_row(number, row, measured)
        table.setUpdatesEnabled(True)

    def _fill_row(self, number: int, row: LayerRow, measured: Measured | None) -> None:
        colour = COLOURS.get(row.kind, OTHER)
        name = _("{layer} (adapted)").format(layer=row.label) if row.adapted else row.label
        tip = layer_tip(row.kind, row.name, row.detail, row.channels, row.adapted)
        first = self._put(number, 0, name, f"{name}\n{tip}")
        first.setIcon(_block(SWATCH, colour))
        self._put(number, 1, row.detail, tip)
        found = None if measured is None else measured.rows.get(row.name)
        if found is None:
            self._put(number, VALUE, "", "")
            self._put(number, BAR, "", "")
            return
        value = found["sa"] if measured.labelled else found["agreement"]
        tip = ability_tip(found["sa"], found["agreement"], measured.control.get(row.name))
        if value is None:
            self._put(number, VALUE, "-", tip)
            self._put(number, BAR, _("not defined"), tip)
            return
        self._put(number, VALUE, f"{value:.2f}", tip)
        self._put(number, BAR, "", tip).setIcon(_block(max(1, round(BAR_WIDTH * value)), colour))

    def _put(self, number: int, column: int, text: str, tip: str):
        item = qt.QTableWidgetItem(text)
        item.setToolTip(tip)
        if column == VALUE:
            item.setData(qt.Qt.TextAlignmentRole, int(qt.Qt.AlignRight | qt.Qt.AlignVCenter))
        self._table.setItem(number, column, item)
        return item

    def _select(self, current: str, anew: bool) -> None:
        wanted = next((n for n, row in enumerate(self._rows) if row.name == current), -1)
        moved = self._table.currentRow() != wanted or not self._table.selectedItems()
        if wanted < 0:
            self._table.clearSelection()
        elif moved or anew:
            self._table.selectRow(wanted)
            self._table.scrollToItem(self._table.item(wanted, 0))

    def _moved(self, number: int, _column: int, _former: int, _former_column: int) -> None:
        if not self._filling and 0 <= number < len(self._rows):
            self._chosen(self._rows[number].name)

    def _clicked(self, number: int, _column: int) -> None:
        """A click on the layer that is chosen already: its map may have been removed."""
        if not self._filling and 0 <= number < len(self._rows):
            self._chosen(self._rows[number].name)


def _block(width: int, colour: str) -> qt.QIcon:
    picture = qt.QPixmap(width, BAR_HEIGHT)
    picture.fill(qt.QColor(colour))
    return qt.QIcon(picture)


def _legend() -> str:
    """The three colours in words."""
    parts = (
        ("encoder", _("Encoder: takes the scan in")),
        ("adapter", _("Adapter: added for your site")),
        ("decoder", _("Decoder: draws the structures")),
    )
    return "<br>".join(f'<span style="color:{COLOURS[kind]}">■</span> {text}' for kind, text in parts)
