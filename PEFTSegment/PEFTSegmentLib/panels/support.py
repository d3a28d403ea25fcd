"""Step 2: the structures to learn, and the scans that they are labelled in."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from .. import scans, structures, support
from ..panel import Panel
from .support_editor import LabelEditor
from .support_jobs import SupportJobs
from .support_loader import FolderLoader
from .support_rows import RowActions, empty, menu_of
from .support_show import show_current, show_scene
from .support_structures import AddDialog, StructureList, ask_change
from .support_table import SupportTable
from .support_views import RowViews
from .support_watch import NodeWatch
from .support_words import MOST_COLUMNS, RowView, headers, section_title

PLACES = 3


class SupportPanel(Panel):
    """Step 2."""

    STEP = 2
    FORM = "SupportPanel.ui"

    def __init__(self, context, section) -> None:
        Panel.__init__(self, context, section)
        ui = self.ui
        self.editor = LabelEditor(ui.editorFrame, ui.editorLabel, ui.editorFrame.layout())
        self.actions = RowActions(context, self.editor, self.say, self.telling)
        self.jobs = SupportJobs(context, self.say, self.actions.put_labels, self._take_ranking)
        self.loader = FolderLoader(context, ui, self.say)
        self.structure_list = StructureList(ui, self.add_structures, self.change_structure, self.remove_structure)
        self.table = SupportTable(ui.supportTable, self._select, self.start, self._row_menu)
        self.watch = NodeWatch(self._node_changed)
        self.views = RowViews()
        self._advice: dict[str, str] = {}  # by scan token: why to label it next
        self._shown: list[RowView] = []
        self._dropping = self._following = False
        self._removed_tag = slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._node_removed)
        self._connect()

    def _connect(self) -> None:
        ui = self.ui
        ui.addScansButton.clicked.connect(self.add_loaded)
        ui.addFolderButton.clicked.connect(self.add_folder)
        ui.nextScanButton.clicked.connect(self.rank)
        ui.startButton.clicked.connect(lambda: self.start(self.state.currentRow))
        ui.presegmentButton.clicked.connect(lambda: self.presegment(self.state.currentRow))
        ui.doneButton.clicked.connect(self.done)
        ui.closeEditorButton.clicked.connect(self.close_editor)
        ui.refusedButton.clicked.connect(self.context.refresh)
        one = menu_of(ui.addOneButton)
        one.aboutToShow.connect(lambda: self._fill_one(one))
        more = menu_of(ui.moreButton)
        more.aboutToShow.connect(lambda: self._fill_more(more))

    # shown

    def title(self) -> str:
        """The section's header."""
        return section_title(self._shown)

    def look(self) -> None:
        """Show the scene and the user's choices."""
        state = self.state
        wanted = structures.read(state)
        model = self.context.model()
        known = model.structures if model is not None else ()
        self.structure_list.show(wanted, known, model.title if model is not None else "")
        rows = self.context.support.rows()
        self.watch.watch([node for row in rows for node in (row.scan, row.labels)])
        self._shown, late = self.views.of(rows, wanted, model, self._advice)
        if late:
            self.context.refresh()
        self._look_at_editor(rows)
        self.table.show(headers(wanted), self._shown, state.currentRow)
        show_current(self, rows, self._shown, wanted)
        show_scene(self, self._shown, wanted)

    def _look_at_editor(self, rows: list[support.Row]) -> None:
        """The open row has got other labels, from step 4 or elsewhere: the editor goes on with those."""
        row = next((row for row in rows if row.key == self.editor.key), None)
        if row is None or row.labels is None or row.labels is self.editor.segmentation or self._following:
            return
        self._following = True
        qt.QTimer.singleShot(0, self._follow_labels)

    def _follow_labels(self) -> None:
        self._following = False
        row = self.context.support.row(self.editor.key) if self.editor.key else None
        if row is not None and row.labels is not None and row.labels is not self.editor.segmentation:
            self.editor.close()  # it stays closed where the user looks at another scan, or paints in another editor
            if scans.may_show(row.scan):
                self.start(row.key)

    def say(self, text: str) -> None:
        """Show a sentence under the table."""
        self.ui.messageLabel.text = text
        self.ui.messageLabel.setVisible(bool(text))
        self.context.refresh()

    # what the user does

    def add_structures(self) -> None:
        """Choose more structures to learn."""
        with self.telling(_("The structure was not added.")):
            wanted = structures.read(self.state)
            model = self.context.model()
            known = model.structures if model is not None else ()
            form = self.context.resources / "UI" / "StructureDialog.ui"
            for name in AddDialog(form, known, wanted, model.title if model is not None else "").exec_():
                wanted = (*wanted, structures.proposed(name, known, wanted))
            structures.write(self.state, wanted)

    def change_structure(self, name: str) -> None:
        """Change name, colour or terminology of a structure."""
        with self.telling(_("The structure was not changed.")):
            before = next(s for s in structures.read(self.state) if s.name == name)
            after = ask_change(before)
            if after is not None and after != before:
                self.actions.change_structure(before, after)

    def remove_structure(self, name: str) -> None:
        """Learn a structure no longer."""
        with self.telling(_("The structure was not removed.")):
            self.actions.remove_structure(name)

    def add_loaded(self) -> None:
        """Add all loaded scans that can be used."""
        with self.telling(_("The scans were not added.")):
            self.actions.add(self.actions.candidates())

    def add_folder(self) -> None:
        """Load a folder of scans and labels."""
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder with 'images' and 'labels'"))
        if folder:
            with self.telling(_("The folder was not loaded.")):
                self.loader.start(folder)

    def start(self, key: str) -> None:
        """Open the editor on a scan."""
        with self.telling(_("The scan cannot be labelled.")):
            self.actions.start(key)
            self.context.refresh()

    def done(self) -> None:
        """The scan is labelled: go on with the next one."""
        with self.telling(_("The next scan cannot be labelled.")):
            self.actions.done()
            self.context.refresh()

    def close_editor(self) -> None:
        """Put the tools away."""
        self.editor.close()
        self.context.refresh()

    def presegment(self, key: str) -> None:
        """Let the current model outline a scan, to be corrected."""
        with self.telling(_("The scan cannot be pre-segmented.")):
            row = self.context.support.row(key)
            if row is not None:
                self.jobs.presegment(row, structures.read(self.state))

    def rank(self) -> None:
        """Find the scan to label next."""
        with self.telling(_("The scans cannot be ranked.")):
            wanted = structures.read(self.state)
            rows = self.context.support.rows()
            unlabelled = [r.scan for r in rows if r.scan is not None and not support.is_labelled(r, wanted)]
            usable = [scan for scan in unlabelled if not scans.reason_against(scan)]
            labelled = [r for r in rows if not support.problems(r, wanted)]
            self.jobs.rank([*usable, *self.actions.candidates()], labelled)

    def _take_ranking(self, ranking: list[tuple[str, str]]) -> None:
        """Show why the first ones come first, and select the best; it is added where it is not in the list."""
        self._advice = {
            token: _("label it as number {place}. {reason}").format(place=place, reason=reason)
            for place, (token, reason) in enumerate(ranking[:PLACES], start=1)
        }
        best = scans.scan_of(ranking[0][0])
        row = self.context.support.add(best)
        self.state.currentRow = row.key
        names = [scans.scan_of(token).GetName() for token, _reason in ranking[:PLACES]]
        text = _("Label {scan} next. {reason} The order: {names}.")
        self.say(text.format(scan=names[0], reason=ranking[0][1], names=", ".join(names)))

    def _select(self, key: str) -> None:
        if self.showing or not key or key == self.state.currentRow:
            return
        self.state.currentRow = key
        if not self.editor.key:
            self.actions.show(key)

    def _row_menu(self, key: str, column: int, position) -> None:
        wanted = structures.read(self.state)
        own = 2 <= column < 2 + len(wanted) and len(wanted) <= MOST_COLUMNS
        menu = qt.QMenu(self.ui.supportTable)
        self.actions.fill_menu(menu, key, wanted[column - 2].name if own else "")
        menu.exec_(position)
        menu.deleteLater()

    def _fill_more(self, menu) -> None:
        empty(menu)
        self.actions.fill_menu(menu, self.state.currentRow)

    def _fill_one(self, menu) -> None:
        empty(menu)
        for scan in self.actions.candidates():
            menu.addAction(scan.GetName()).triggered.connect(self._adder(scan.GetID()))
        for scan in scans.sequences():
            text = _("{sequence}: the frame that it shows now").format(sequence=scan.GetName())
            menu.addAction(text).triggered.connect(self._adder(scan.GetID()))

    def _adder(self, node_id: str):
        def add() -> None:
            with self.telling(_("The scan was not added.")):
                self.actions.add([scans.require_usable(slicer.mrmlScene.GetNodeByID(node_id))])

        return add

    # what happens to the scene

    def _node_changed(self, node_id: str) -> None:
        self.views.changed(node_id)
        self.context.refresh()

    def _node_removed(self, caller, event) -> None:
        if not slicer.mrmlScene.IsClosing() and not self._dropping:
            self._dropping = True
            qt.QTimer.singleShot(0, self._drop_lost)

    def _drop_lost(self) -> None:
        """A scan was removed from the scene: its row goes too, and the editor closes."""
        self._dropping = False
        if self.editor.key:
            row = self.context.support.row(self.editor.key)
            if row is None or row.scan is None or row.labels is None:
                self.editor.close()
                self.context.refresh()
        if self.context.support.drop_lost():
            self.say(_("A scan was removed from the scene, and from this list."))

    def enter(self) -> None:
        """The module is shown."""
        self.editor.enter()

    def exit(self) -> None:
        """Another module is shown."""
        self.editor.exit()

    def scene_closing(self) -> None:
        """The scene is about to be emptied."""
        self.loader.stop()
        self.editor.scene_closing()
        self.watch.stop()
        self.views, self._advice, self._shown = RowViews(), {}, []
        self.ui.messageLabel.text = ""

    def cleanup(self) -> None:
        """The module is unloaded."""
        slicer.mrmlScene.RemoveObserver(self._removed_tag)
        self.loader.stop()
        self.editor.cleanup()
        self.watch.stop()
