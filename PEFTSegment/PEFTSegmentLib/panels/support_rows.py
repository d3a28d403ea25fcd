"""What the user does with the rows of the support table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.models import Structure

from .. import dialogs, painted, pairing, scans, structures, support
from ..context import Context
from ..support import Mark, Row
from .support_editor import LabelEditor, add_missing
from .support_menus import fill_labels_menu, fill_structure_menu

ENOUGH = 5  # labelled scans from which step 3 has its turn, whatever else is in the list
VALUES = "PEFTSegment.Map"  # attribute of a volume that this module made: no scan


class RowActions:
    """Adds, labels, marks and removes support scans.

    Parameters
    ----------
    context : Context
    editor : LabelEditor
    say : callable
        Shows a sentence in the panel.
    telling : callable
        As `Panel.telling`.
    """

    def __init__(self, context: Context, editor: LabelEditor, say: Callable[[str], None], telling: Callable) -> None:
        self.context, self.editor, self._say, self._telling = context, editor, say, telling

    @property
    def wanted(self) -> tuple[Structure, ...]:
        """The structures to learn."""
        return structures.read(self.context.state)

    # which scans

    def candidates(self, usable: list | None = None) -> list[slicer.vtkMRMLScalarVolumeNode]:
        """Usable loaded scans that are not in the table yet; `usable` are those of the scene, where they are known."""
        taken = {row.scan.GetID() for row in self.context.support.rows() if row.scan is not None}
        usable = scans.usable_scans() if usable is None else usable
        found = [scan for scan in usable if scan.GetAttribute(VALUES) is None]
        return [scan for scan in found if scan.GetID() not in taken]

    def add(self, added: list[slicer.vtkMRMLScalarVolumeNode]) -> None:
        """Add scans with the segmentations that belong to them."""
        paired = 0
        for scan in added:
            labels = pairing.labels_for(scan, self.wanted)
            row = self.context.support.add(scan, labels)
            paired += row.labels is not None
        if added and not self.context.state.currentRow:
            self.context.state.currentRow = self.context.support.rows()[0].key
        self._say(_("Scans added: {count}, with their segmentation: {paired}.").format(count=len(added), paired=paired))
        unfold_next(self.context)

    def remove(self, key: str) -> None:
        """Take a scan off the list; scan and segmentation stay in the scene."""
        if self.editor.key == key:
            self.editor.close()
        self.context.support.remove(key)
        if self.context.state.currentRow == key:
            rows = self.context.support.rows()
            self.context.state.currentRow = rows[0].key if rows else ""
        self._say(_("The scan was taken off the list; it is still loaded."))

    # labelling

    def start(self, key: str) -> None:
        """Open the editor on a scan; an empty segmentation is made where it has none."""
        row = self._row(key)
        scans.require_usable(row.scan)
        if not self.wanted:
            raise BadInput(_("No structure to learn is named."), _("Add one at the top of step 2."))
        if row.labels is None:
            name = slicer.mrmlScene.GenerateUniqueName(_("{scan} labels").format(scan=row.scan.GetName()))
            self.context.support.set_labels(key, support.new_segmentation(row.scan, self.wanted, name))
            row = self._row(key)
        else:
            self._offer_missing(row)
        self.context.state.currentRow = key
        others = [other.labels for other in self.context.support.rows() if other.labels is not None]
        self.editor.open(row, self.wanted, others)

    def _offer_missing(self, row: Row) -> None:
        """Add segments for structures that the segmentation lacks; one that the user made is asked for."""
        missing = pairing.missing_structures(row, self.wanted)
        if not missing:
            return
        if row.labels.GetAttribute(support.MADE):
            add_missing(row, missing)
            return
        names = ", ".join(s.name for s in missing)
        question = _("'{labels}' has no segment for {names}. Add empty ones, to be painted?")
        chosen = dialogs.ask(
            question.format(labels=row.labels.GetName(), names=names),
            (_("Add missing segments"), _("Leave it as it is")),
            _("What is painted in it stays as it is."),
        )
        if chosen == 0:
            add_missing(row, missing)

    def show(self, key: str) -> None:
        """Show a scan with its labels in the slice views."""
        row = self.context.support.row(key)
        if row is None or row.scan is None:
            return
        scans.show_scan(row.scan)
        scans.hide_other_scans(row.scan)
        for other in self.context.support.rows():
            if other.labels is not None and other.labels.GetDisplayNode() is not None:
                other.labels.SetDisplayVisibility(other.labels is row.labels)

    def done(self) -> None:
        """Put the tools away and go on with the next scan that is not labelled."""
        row = self.context.support.row(self.editor.key)
        if row is not None and row.labels is not None and row.labels.GetAttribute(support.TO_CORRECT):
            row.labels.RemoveAttribute(support.TO_CORRECT)
        self.editor.close()
        following = self.next_unlabelled(row.key if row is not None else "")
        if following is not None:
            self.start(following.key)
            return
        self._say(_("All scans of the list are labelled. Go on with step 3."))
        self.context.unfold(3)

    def next_unlabelled(self, after: str) -> Row | None:
        """The next row that cannot be used yet for want of labels, from the one after `after` on."""
        rows = self.context.support.rows()
        place = next((n for n, row in enumerate(rows) if row.key == after), -1)
        turned = [*rows[place + 1 :], *rows[: place + 1]]
        return next((r for r in turned if r.scan is not None and not support.is_labelled(r, self.wanted)), None)

    # marks and choices

    def put_mark(self, key: str, structure: str, mark: Mark) -> None:
        """Note what the user says of a structure in a scan."""
        self.context.support.set_mark(key, structure, mark)

    def put_labels(self, key: str, labels: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Choose another segmentation for a scan; the editor goes on with it where it is open on this scan.

        It is closed where the user looks at another scan meanwhile, or paints in another editor.
        """
        before = self._row(key).labels
        editing = self.editor.key == key
        if editing:
            self.editor.close()
        self.context.support.set_labels(key, labels)
        if before is not None and before is not labels:
            self._drop_unused(before, labels)
        if editing and labels is not None and scans.may_show(self._row(key).scan):
            self.start(key)

    def _drop_unused(self, labels: slicer.vtkMRMLSegmentationNode, heir: slicer.vtkMRMLSegmentationNode | None) -> None:
        """An empty segmentation that this module made, and that no row uses any more, would only be in the way.

        Its name goes to another one that this module made in its place.
        """
        core = labels.GetSegmentation()
        used = any(row.labels is labels for row in self.context.support.rows())
        filled = any(painted.is_painted(labels, segment_id) for segment_id in core.GetSegmentIDs())
        if used or filled or not labels.GetAttribute(support.MADE):
            return
        slicer.mrmlScene.RemoveNode(labels)
        if heir is not None and heir.GetAttribute(support.MADE):
            heir.SetName(labels.GetName())

    def fill_menu(self, menu, key: str, structure: str = "") -> None:
        """Offer everything that can be done with a row; of one structure only, where one is given."""
        row = self.context.support.row(key)
        if row is None or row.scan is None:
            menu.addAction(_("Remove from the list")).triggered.connect(lambda: self.remove(key))
            return
        chosen = [s for s in self.wanted if s.name == structure]
        for one in chosen or self.wanted:
            inner = menu if chosen else menu.addMenu(one.name)
            put = self._putter(key, one.name)
            fill_structure_menu(inner, row, one, put, self._telling)
        if chosen:
            return
        menu.addSeparator()
        labels_menu = menu.addMenu(_("Segmentation"))
        fill_labels_menu(labels_menu, row, lambda labels: self.put_labels(key, labels))
        missing = pairing.missing_structures(row, self.wanted) if row.labels is not None else []
        adding = menu.addAction(_("Add missing segments"))
        adding.setEnabled(bool(missing))
        adding.triggered.connect(lambda: add_missing(row, missing))
        menu.addAction(_("Show in the slice views")).triggered.connect(lambda: self.show(key))
        menu.addAction(_("Remove from the list")).triggered.connect(lambda: self.remove(key))

    def _putter(self, key: str, name: str) -> Callable[[Mark], None]:
        return lambda mark: self.put_mark(key, name, mark)

    def _row(self, key: str) -> Row:
        row = self.context.support.row(key)
        if row is None:
            raise BadInput(_("No scan is chosen."), _("Choose one in the table."))
        return row

    # structures

    def change_structure(self, before: Structure, after: Structure) -> None:
        """Another name, colour or terminology, also in the segmentations that this module made."""
        wanted = self.wanted
        others = [s for s in wanted if s.name != before.name]
        name = structures.proposed(after.name, (), others).name
        changed = replace(after, name=name)
        for row in self.context.support.rows():
            if row.labels is None or not row.labels.GetAttribute(support.MADE):
                continue
            segment_id = support.segment_of(row, before)
            if segment_id:
                structures.dress(row.labels.GetSegmentation().GetSegment(segment_id), changed)
        structures.write(self.context.state, [changed if s.name == before.name else s for s in wanted])
        if name != before.name:
            self.context.support.forget_structure(before.name, name)

    def remove_structure(self, name: str) -> None:
        """Learn a structure no longer; its segments stay."""
        structures.write(self.context.state, [s for s in self.wanted if s.name != name])
        self.context.support.forget_structure(name)


def empty(menu) -> None:
    """Take all out of a menu, with the menus in it."""
    for action in menu.actions():
        if action.menu() is not None:
            action.menu().deleteLater()
    menu.clear()


def menu_of(button) -> qt.QMenu:
    """A menu that belongs to a button."""
    menu = qt.QMenu(button)
    button.setMenu(menu)
    return menu


def unfold_next(context: Context) -> None:
    """Scans have come: step 3 has its turn where nothing is left to label, or enough is labelled."""
    rows, wanted = context.support.rows(), structures.read(context.state)
    labelled = sum(support.is_labelled(row, wanted) for row in rows)
    if labelled and labelled >= min(len(rows), ENOUGH):
        context.unfold(3)
