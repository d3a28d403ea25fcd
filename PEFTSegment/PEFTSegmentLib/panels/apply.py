"""Step 4: apply an adapter to scans, look at the results, compare them, review them."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from .. import results, scans, work
from ..library_dialog import LibraryDialog
from ..panel import Panel, enable
from ..runner import Task
from .apply_adapters import AdapterList, show_adapters
from .apply_adapters import title as adapter_title
from .apply_compare import Comparing
from .apply_correct import correct
from .apply_export import Exporting
from .apply_folder import DICOM, FOLDER, STUDIES, ManyScans
from .apply_jobs import COMPARE, PURPOSE, ResultJobs
from .apply_results import ResultTable, status_text
from .apply_studies import StudyList
from .apply_suggest import Suggesting
from .apply_watch import EditWatch

QUALITY = "fast"  # of results: one more look of the network at each scan


class ApplyPanel(Panel):
    """Step 4.

    Attributes
    ----------
    adapters : AdapterList
    library : LibraryDialog or None
        The window, once it was opened.
    jobs : ResultJobs
        Running work and results that wait for the user.
    table : ResultTable
    comparing : Comparing
    suggesting : Suggesting
    many : ManyScans
        The choice of a folder or of DICOM studies.
    many_studies : StudyList
        The run over them.
    exporting : Exporting
    """

    STEP = 4
    FORM = "ApplyPanel.ui"

    def __init__(self, context, section) -> None:
        super().__init__(context, section)
        self.adapters = AdapterList(context)
        self.library: LibraryDialog | None = None
        self.table = ResultTable(self.ui, self._row_chosen)
        self.comparing = Comparing(self)
        self.suggesting = Suggesting(self)
        self.jobs = ResultJobs(context, self._loaded, self.comparing.arrived)
        self.many = ManyScans(context, self.ui)
        self.many_studies = StudyList(self)
        self.exporting = Exporting(self)
        self.watch = EditWatch(context.refresh)
        ui = self.ui
        ui.adapterCombo.currentIndexChanged.connect(self._choose_adapter)
        ui.libraryButton.clicked.connect(self.open_library)
        ui.thisScanRadio.toggled.connect(lambda on: self._choose_target(on, "", False))
        ui.allScansRadio.toggled.connect(lambda on: self._choose_target(on, "", True))
        ui.folderRadio.toggled.connect(lambda on: self._choose_target(on, FOLDER, self.state.allScans))
        ui.dicomRadio.toggled.connect(lambda on: self._choose_target(on, DICOM, self.state.allScans))
        ui.scanSelector.connect("nodeActivated(vtkMRMLNode*)", self._choose_scan)  # not when a node goes
        ui.applyButton.clicked.connect(self.apply)
        ui.cancelButton.clicked.connect(self.cancel)
        ui.offerLoadButton.clicked.connect(self._take_offer)
        ui.offerDropButton.clicked.connect(self._drop_offer)
        ui.reviewedButton.clicked.connect(self.review)
        ui.show3DButton.clicked.connect(self.show_3d)
        ui.correctButton.clicked.connect(self.correct)

    # what is shown

    def title(self) -> str:
        """The section's header."""
        if self._running():
            return _("4 Apply - running")
        nodes = results.all_results()
        if not nodes:
            return _("4 Apply")
        look = self.table.results_to_look_at
        text = _("4 Apply - 1 result") if len(nodes) == 1 else _("4 Apply - {count} results").format(count=len(nodes))
        return _("{text}, {look} to look at").format(text=text, look=look) if look else text

    def look(self) -> None:
        """Show the library, the scans, the jobs and the results."""
        show_adapters(self.adapters, self.ui, self.state.adapter)
        self._look_at_target()
        self.suggesting.look()
        self._look_at_jobs()
        self.many_studies.look()
        nodes = results.all_results()
        self.watch.follow(nodes)
        self.table.look(nodes)
        self.ui.resultsFrame.visible = bool(nodes)
        self._look_at_result()
        self.exporting.look(self.table.current())
        self.comparing.look(self.table.current())

    def _look_at_target(self) -> None:
        ui, scan, many = self.ui, self.scan(), bool(self.many.kind)
        every = self.state.allScans and not many
        radios = {FOLDER: ui.folderRadio, DICOM: ui.dicomRadio, "": ui.allScansRadio if every else ui.thisScanRadio}
        radios[self.many.kind].checked = True
        self.many.look()
        ui.scanSelector.setCurrentNode(scan)
        ui.scanSelector.enabled = not every and not many
        usable, refused_volumes = scans.sort_out()
        ui.allScansRadio.text = _("all loaded scans ({count})").format(count=len(usable))
        refused = [f"{name} {reason}" for name, reason in refused_volumes]
        ui.allScansRadio.toolTip = "\n".join([_("Left out:"), *refused]) if refused else _("Every scan of the scene")
        against = "" if every or many or scan is None else scans.reason_against(scan)
        if against:
            against = _("{name} {reason}").format(name=scan.GetName(), reason=against)
        left_out = _("{count} volumes cannot be used and are left out.").format(count=len(refused))
        ui.targetLabel.text = against or (left_out if every and refused else "")
        ui.targetLabel.visible = bool(ui.targetLabel.text)
        ui.targetLabel.toolTip = "\n".join(refused) if every else ""
        missing = ""
        if many:
            missing = self.many.reason_against()
        elif every or scan is None:
            missing = _("Load a scan first") if not usable else "" if every else _("Choose a scan first")
        tip = _("Segment with this adapter; the results are new segmentations beside their scans")
        if many:
            tip = _("Segment with this adapter; the results are files, and what is done already is left out")
        enable(ui.applyButton, self._reason_against_adapter() or missing or against or self.context.engine_ready(), tip)

    def _reason_against_adapter(self) -> str:
        if not self.state.adapter:
            return _("Choose an adapter first")
        row = self.adapters.row(self.state.adapter)
        if row is None:
            return _("The adapter {name} is no longer in the library").format(name=self.state.adapter)
        return self.adapters.reason_against(row)

    def _running(self) -> list[Task]:
        """In the order in which they were asked for: the first one runs, the others wait."""
        return [task for task in self.context.runner.active if task.purpose in (PURPOSE, COMPARE, STUDIES)]

    def _look_at_jobs(self) -> None:
        ui, running = self.ui, self._running()
        loading = self.jobs.loading > 0 or self.many_studies.loader.busy
        ui.progressFrame.visible = bool(running) or loading
        ui.cancelButton.visible = bool(running)
        if running:
            self.jobs.show_progress(running, ui.progressBar, ui.progressLabel)
            kept = (
                _("Stop; the studies that are done stay")
                if running[0].purpose == STUDIES
                else _("Stop; nothing is kept")
            )
            enable(ui.cancelButton, _("It is being stopped") if running[0].stopping else "", kept)
        elif loading:
            ui.progressBar.maximum = 0
            ui.progressLabel.text = _("Loading results...")
        offer = self.jobs.offer()
        ui.offerFrame.visible = bool(offer)
        ui.offerLabel.text = offer

    def _look_at_result(self) -> None:
        ui, node = self.ui, self.table.current()
        none = "" if node is not None else _("Select a result in the table first")
        ui.resultLabel.visible = node is not None
        if node is None:
            scan = shown_3d = None
            reviewed = False
        else:
            scan, shown_3d = results.scan_of(node), results.has_3d(node)
            reviewed = results.get(node, results.STATUS) == results.REVIEWED
            checks = self.table.current_checks()
            ui.resultLabel.text = "\n".join([status_text(node), *checks])
            ui.resultLabel.toolTip = node.GetName()
        already = _("It is marked as reviewed; an edit makes it a draft again") if reviewed else ""
        enable(
            ui.reviewedButton,
            none or already,
            _("You have looked at it and take it as it is; the mark is saved with it"),
        )
        enable(ui.show3DButton, none, _("Make surfaces and show them; large structures take a while"))
        ui.show3DButton.checked = bool(shown_3d)
        lost = "" if scan is not None else _("Its scan is no longer loaded")
        enable(ui.correctButton, none or lost, _("Put a copy into the support scans of step 2 and correct it there"))

    # what the user chooses

    def scan(self) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The scan to apply to: the chosen one, else the one in view."""
        return self.state.scan or scans.scan_in_view()

    def _choose_adapter(self, index: int) -> None:
        if not self.showing:
            self.state.adapter = self.ui.adapterCombo.itemData(index) or ""

    def _choose_target(self, on: bool, kind: str, every: bool) -> None:
        if on and not self.showing:
            self.many.kind, self.state.allScans = kind, every
            self.context.refresh()

    def _choose_scan(self, node) -> None:
        """A scan was chosen, or none: then it is the one in view, which the selector is to say."""
        if not self.showing:
            self.state.scan = node
            self.context.refresh()

    def _use(self, ref: str) -> None:
        self.state.adapter = ref
        self.context.refresh()

    def open_library(self) -> None:
        """Show the library's window."""
        if self.library is None:
            self.library = LibraryDialog(self.context, self.adapters, self._use)
        with self.telling(_("The library could not be shown.")):
            self.library.show()

    # applying

    def apply(self) -> None:
        """Segment what is chosen, in the background."""
        with self.telling(_("The adapter could not be applied.")):
            row = self.adapters.row(self.state.adapter)
            if self.many.kind:
                self.many_studies.forget_ended()
                self.many_studies.begin(self.many.submit(row))
                return
            volumes = scans.usable_scans() if self.state.allScans else [scans.require_usable(self.scan())]
            if not self.state.allScans:
                self._turn_to(volumes[0])
            title = _("Applying {adapter}").format(adapter=adapter_title(row))
            facts = {"name": row["name"], "shown": adapter_title(row)}
            work.segment(self.context, volumes, PURPOSE, title, adapter=row["ref"], facts=facts, quality=QUALITY)

    def _turn_to(self, scan: slicer.vtkMRMLScalarVolumeNode) -> None:
        if self.comparing.active and scans.scan_in_view() is not scan:
            self.comparing.leave()
        scans.turn_to(scan)

    def cancel(self) -> None:
        """Stop what runs; what waits goes on."""
        running = self._running()
        if running:
            self.context.runner.cancel(running[0])

    def _take_offer(self) -> None:
        with self.telling(_("The results could not be loaded.")):
            self.jobs.take_offer()

    def _drop_offer(self) -> None:
        self.jobs.drop_offer()

    def _loaded(self, task: Task, node) -> None:
        """A result has come: it is shown, unless the user looks at another scan or at a comparison, or paints."""
        self.table.choose(node)
        if scans.may_show(results.scan_of(node)) and not self.comparing.active:
            results.show(node)
        else:
            node.SetDisplayVisibility(False)
        self.context.refresh()

    # results

    def _row_chosen(self, row: results.ResultRow) -> None:
        with self.telling(_("The result could not be shown.")):
            if self.comparing.active and row.node not in self.comparing.nodes():
                self.comparing.leave()
            if self.comparing.active:
                self.comparing.jump(row.structure)
            else:
                results.show(row.node, row.structure)
            self.context.refresh()

    def review(self) -> None:
        """The user has looked at the result and takes it as it is."""
        with self.telling(_("The result could not be marked as reviewed.")):
            results.review(self.table.current(), results.user_name())
            self.context.refresh()

    def show_3d(self, shown: bool) -> None:
        """Show the result's surfaces, or hide them."""
        with self.telling(_("The result could not be shown in 3D.")), slicer.util.WaitCursor():
            results.show_3d(self.table.current(), shown)
            views = slicer.util.getNodesByClass("vtkMRMLViewNode")
            if shown and not any(view.IsMappedInLayout() for view in views) and not self.comparing.active:
                slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
            if shown:
                slicer.util.resetThreeDViews()
        self.context.refresh()

    def correct(self) -> None:
        """Put a copy of the result into the support scans and open it there."""
        with self.telling(_("The result could not be added to the support scans.")):
            node = self.table.current()
            if correct(self.context, node) is not None:
                self.comparing.leave()
                scans.show_scan(results.scan_of(node))
                self.context.unfold(2)

    # the module's life

    def enter(self) -> None:
        """Adapters may have come meanwhile, also into shared folders, and series into the DICOM database."""
        self.adapters.look_again()
        self.exporting.look_again()

    def scene_closing(self) -> None:
        """Nothing of this scene is kept."""
        self.watch.forget()
        self.exporting.forget()
        self.many_studies.loader.forget()
        self.comparing.scene_closing()
        self.table.forget()

    def cleanup(self) -> None:
        """The module is unloaded: views as before, no window, no observers."""
        self.watch.close()
        self.jobs.close()
        self.many_studies.close()
        self.comparing.close()
        if self.library is not None:
            self.library.close()
