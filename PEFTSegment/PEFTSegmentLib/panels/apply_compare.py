"""Comparing a result with its model as it is, with another version of its adapter, or with another result of the scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from .. import results, scans, structures, work
from ..compare_views import LAYOUT, CompareViews, Difference, common_structures, differences, repair
from ..panel import enable
from ..runner import Task
from .apply_adapters import title as adapter_title
from .apply_jobs import COMPARE
from .apply_results import fit_height, prepare

if TYPE_CHECKING:
    from .apply import ApplyPanel

Node = slicer.vtkMRMLSegmentationNode


@dataclass(frozen=True)
class Choice:
    """One thing to compare with: a result that is there ("result", token), a model, or an adapter.

    Attributes
    ----------
    reason : str
        Why it cannot be, or "".
    """

    kind: str
    ref: str
    text: str
    reason: str = ""


class Comparing(VTKObservationMixin):
    """The lower part of step 4."""

    def __init__(self, panel: ApplyPanel) -> None:
        VTKObservationMixin.__init__(self)
        self._panel, self._ui = panel, panel.ui
        self.views = CompareViews()
        self._pair: tuple[str, str] = ("", "")
        self._choices: list[Choice] = []
        table = self._ui.compareTable
        table.setColumnCount(5)
        prepare(table, (78, 50, 50, 104))
        self._ui.compareButton.clicked.connect(self.compare)
        self._ui.leaveButton.clicked.connect(self.leave)
        self._layout_manager = slicer.app.layoutManager()  # None where Slicer runs without its main window
        if self._layout_manager is not None:
            self._layout_manager.layoutChanged.connect(self._layout_changed)
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.EndImportEvent, self._scene_imported)
        repair()  # of a scene that was loaded before the module was first opened

    @property
    def active(self) -> bool:
        """Whether two results are shown side by side."""
        return self.views.active

    def nodes(self) -> list[Node]:
        """The results that are compared and still in the scene."""
        found = [slicer.mrmlScene.GetNodeByID(node_id) for node_id in self._pair if node_id]
        return [node for node in found if node is not None]

    # what is shown

    def look(self, node: Node | None) -> None:
        """Show what the current result can be compared with."""
        if self.active and len(self.nodes()) < 2:  # one was deleted
            self.leave()
        ui, combo = self._ui, self._ui.compareCombo
        choices = self._offer(node)
        if choices != self._choices:
            wanted = combo.currentText
            self._choices = choices
            combo.clear()
            for number, choice in enumerate(choices):
                combo.addItem(choice.text)
                combo.model().item(number).setToolTip(choice.reason or choice.text)
                combo.model().item(number).setEnabled(not choice.reason)
            usable = [n for n, choice in enumerate(choices) if not choice.reason]
            kept = combo.findText(wanted) if wanted else -1
            combo.setCurrentIndex(kept if kept in usable else next(iter(usable), -1))
        index = combo.currentIndex
        chosen = self._choices[index] if 0 <= index < len(self._choices) else None
        combo.toolTip = chosen.text if chosen is not None else _("What to compare this result with")
        enable(ui.compareButton, self._reason(node, chosen), _("Show both side by side, and how much they differ"))
        ui.compareFrame.visible = self.active

    def _reason(self, node: Node | None, chosen: Choice | None) -> str:
        if node is None:
            return _("Select a result in the table first")
        if self._layout_manager is None:
            return _("Slicer runs without its main window")
        if results.scan_of(node) is None:
            return _("Its scan is no longer loaded")
        if chosen is None:
            reasons = [choice.reason for choice in self._choices if choice.reason]
            return reasons[0] if reasons else _("There is nothing to compare it with")
        return chosen.reason or ("" if chosen.kind == "result" else self._panel.context.engine_ready())

    def _offer(self, node: Node | None) -> list[Choice]:
        if node is None:
            return []
        scan = results.scan_of(node)
        others = [other for other in results.all_results() if other is not node and results.scan_of(other) is scan]
        found = [
            Choice("result", results.get(o, results.TOKEN), _("with: {name}").format(name=o.GetName())) for o in others
        ]
        made = {(results.get(o, "adapter_hash"), results.get(o, "base")) for o in (node, *others)}
        base = results.get(node, "base")
        if ("", base) not in made:
            found.append(self._base(node, base))
        for row in self._panel.adapters.rows():
            if row["name"] == results.get(node, "adapter") and (row["hash"], row["base_id"]) not in made:
                text = _("with: {adapter}").format(adapter=adapter_title(row))
                found.append(Choice("adapter", row["ref"], text, self._panel.adapters.reason_against(row)))
        return found

    def _base(self, node: Node, base: str) -> Choice:
        entry = self._panel.context.models().get(base)
        text = _("with the model as it is: {model}").format(model=entry.title if entry is not None else base)
        if entry is None or entry.weights_path is None:
            return Choice("model", base, text, _("The model's weights are not on this computer"))
        core = node.GetSegmentation()
        own = {core.GetSegment(segment_id).GetName().casefold() for segment_id in core.GetSegmentIDs()}
        if not any(s.name.casefold() in own for s in entry.structures):
            return Choice("model", base, text, _("The model knows none of these structures before it is adapted"))
        return Choice("model", base, text)

    # comparing

    def compare(self) -> None:
        """Show the current result beside the chosen one; what is not there yet is computed first."""
        node, choice = self._panel.table.current(), self._choices[self._ui.compareCombo.currentIndex]
        with self._panel.telling(_("The results could not be compared.")):
            if choice.kind == "result":
                self._show(node, results.by_token(choice.ref))
                self._panel.context.refresh()
                return
            scan = scans.require_usable(results.scan_of(node))
            facts = {"beside": results.get(node, results.TOKEN), **self._names(choice)}
            title = _("Segmenting for a comparison: {name}").format(name=facts["shown"])
            source = {"adapter": choice.ref} if choice.kind == "adapter" else {"model": choice.ref}
            work.segment(self._panel.context, [scan], COMPARE, title, facts=facts, **source)

    def _names(self, choice: Choice) -> dict[str, str]:
        if choice.kind == "adapter":
            row = self._panel.adapters.row(choice.ref)
            return {"name": row["name"], "shown": adapter_title(row)}
        entry = self._panel.context.models().get(choice.ref)
        return {"name": entry.title, "shown": _("{model} as it is").format(model=entry.title)}

    def arrived(self, task: Task, second: Node) -> None:
        """What was computed for a comparison has come: show both, unless the first is gone or has no scan, or the user
        looks at another scan or paints."""
        first = results.by_token(task.note.get("beside", ""))
        if first is None or results.scan_of(first) is None or results.scan_of(second) is not results.scan_of(first):
            return
        known = {ids[2] for ids in common_structures(first, second)}
        for segment_id in second.GetSegmentation().GetSegmentIDs():
            second.GetDisplayNode().SetSegmentVisibility(segment_id, segment_id in known)
        second.GetDisplayNode().SetVisibility(False)  # in the usual views, after the comparison
        if scans.may_show(results.scan_of(first)):  # otherwise it is listed, and can be chosen to compare with
            self._show(first, second)

    def _show(self, first: Node, second: Node) -> None:
        scan = results.scan_of(first)
        names = [results.title_of(node) for node in (first, second)]
        self.views.show((first, second), names, scan)
        self._pair = (first.GetID(), second.GetID())
        self._ui.compareLabel.text = _("Left (A): {first}. Right (B): {second}.").format(
            first=names[0], second=names[1]
        )
        with slicer.util.WaitCursor():
            self._list(differences(first, second, scan))
        self._panel.table.choose(first)
        rows = results.rows([first])
        if rows:
            self.jump(rows[0].structure)

    def _list(self, found: list[Difference]) -> None:
        table = self._ui.compareTable
        table.setHorizontalHeaderLabels([_("Structure"), _("A (ml)"), _("B (ml)"), _("B - A"), _("Overlap")])
        table.setRowCount(len(found))
        for number, row in enumerate(found):
            change = f"{row.second_ml - row.first_ml:+.2f}"
            if row.percent is not None:
                change = f"{change} ({row.percent:+.0f} %)"
            dice = "-" if row.dice is None else f"{row.dice:.2f}"
            texts = (row.structure, f"{row.first_ml:.2f}", f"{row.second_ml:.2f}", change, dice)
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(_("Overlap (Dice): 1 where both are the same, 0 where they have nothing in common")
                                if column == 4 else text)  # fmt: skip
                table.setItem(number, column, item)

        fit_height(table)

    def jump(self, structure: str) -> None:
        """Move both views to a structure."""
        for node in self.nodes():
            segment_id = structures.find_segment(node, structure)
            if segment_id and results.jump_to(node, segment_id):
                return

    # leaving

    def leave(self) -> None:
        """Show what was shown before."""
        self.views.leave()
        self._end()

    def _layout_changed(self, layout: int) -> None:
        if self.active and layout != LAYOUT:  # the user has chosen another one
            self.views.leave(layout_too=False)
            self._end()

    def _scene_imported(self, _scene, _event) -> None:
        """A scene that was saved during a comparison must not come back as half of one."""
        if self.active:
            self.leave()
        repair()

    def _end(self) -> None:
        self._pair = ("", "")
        self._ui.compareTable.setRowCount(0)
        self._panel.context.refresh()

    def scene_closing(self) -> None:
        """Leave while the nodes are still there."""
        if self.active:
            self.leave()
        self._choices = []
        self._ui.compareCombo.clear()

    def close(self) -> None:
        """The module is unloaded."""
        self.removeObservers()
        if self._layout_manager is not None:
            self._layout_manager.layoutChanged.disconnect(self._layout_changed)
        self.views.leave()
