"""Step 1: choose a foundation model, get its weights, try it on a scan."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from peftseg import licences
from peftseg.errors import BadInput
from peftseg.events import Event
from peftseg.model_choice import guess_modality, rank_models
from peftseg.models import ModelEntry

from .. import dialogs, scans, work
from ..commands import Command
from ..endings import settle
from ..panel import Panel, enable
from ..runner import Task
from . import model_text
from .adapt_progress import short
from .model_details import ModelDetails

PURPOSE = "try"
HEADER = 38  # characters of title and state that fit on the section's header


class ModelPanel(Panel):
    """Step 1."""

    STEP = 1
    FORM = "ModelPanel.ui"

    def __init__(self, context, section) -> None:
        super().__init__(context, section)
        self._command: Command | None = None
        self._listed: list[tuple[str, str, str]] = []
        self._tried = ""
        self._guesses: dict[tuple, str] = {}
        context.runner.on(PURPOSE, self._hear)
        ui = self.ui
        ui.modelCombo.currentIndexChanged.connect(self._choose)
        ui.detailsButton.clicked.connect(self.show_details)
        ui.downloadButton.clicked.connect(self.download)
        self._import_menu()
        ui.tryButton.clicked.connect(self.try_on_scan)
        ui.cancelButton.clicked.connect(self._cancel)

    def _import_menu(self) -> None:
        menu = qt.QMenu(self.form)
        self.import_file_action = menu.addAction(_("File of this model that you have downloaded..."))
        self.import_file_action.triggered.connect(self.import_file)
        self.import_folder_action = menu.addAction(_("Folder of another model (made with PEFTSegment or nnU-Net)..."))
        self.import_folder_action.triggered.connect(self.import_folder)
        self.ui.importButton.setMenu(menu)

    # what is shown

    def title(self) -> str:
        """The section's header."""
        entry = self.context.model()
        if entry is None:
            return _("1 Model - choose one")
        missing = _("weights missing") if model_text.reason_against_download(entry) else _("not downloaded")
        stands = _("ready") if entry.weights_path is not None else missing
        title = short(entry.title, HEADER - len(stands)).replace("&", "&&")  # a button takes & for a shortcut
        return _("1 Model - {title}, {stands}").format(title=title, stands=stands)

    def look(self) -> None:
        """Show the catalogue, best for the scan in view first, and how the chosen model stands."""
        scan = scans.scan_in_view()
        self._list(scan)
        entry = self.context.model()
        ui = self.ui
        ui.factsLabel.text = model_text.facts(entry) if entry is not None else _("Choose a model to start from.")
        ui.factsLabel.toolTip = entry.description if entry is not None else ""
        busy, waiting = self._command is not None, self._waiting()
        no_model = "" if entry is not None else _("Choose a model first")
        no_engine = self.context.engine_ready()
        enable(ui.detailsButton, no_model, _("Structures, licence, citation, files"))
        ui.downloadButton.visible = entry is not None and not model_text.reason_against_download(entry)
        enable(
            ui.downloadButton, waiting or no_engine, _("Get the weights from their public address; they are checked")
        )
        enable(ui.importButton, waiting or no_engine, _("Take weights that you got yourself; no network is needed"))
        has_file = entry is not None and entry.source is not None and entry.weights_path is None
        self.import_file_action.enabled = has_file
        self._look_at_trying(entry, scan)
        ui.progressFrame.visible = busy
        if busy:
            self._show_progress()
        problems = self.context.model_problems()
        ui.problemLabel.visible = bool(problems)
        ui.problemLabel.text = "\n".join(problems)

    def _waiting(self) -> str:
        """Why no other download, import or removal can begin, or ""."""
        return _("Wait until the current download or import has ended") if self._command is not None else ""

    def _look_at_trying(self, entry: ModelEntry | None, scan) -> None:
        no_scan = "" if scan is not None else _("Load a scan and show it in the slice views")
        untrained = "" if entry is None or entry.structures else _("It segments nothing before it is adapted")
        reason = model_text.reason_against_use(entry) or untrained or no_scan or self.context.engine_ready()
        enable(self.ui.tryButton, reason, _("Run the model as it is on the scan in view"))
        running = [task for task in self.context.runner.of(PURPOSE) if task.active]
        self.ui.tryLabel.text = _("Trying it on the scan...") if running else self._tried
        self.ui.tryLabel.visible = bool(running or self._tried)

    def _list(self, scan) -> None:
        ranked = rank_models(list(self.context.models().values()), self._modality(scan))
        listed = [
            (entry.id, model_text.name(entry), f"{reason}; {model_text.weights(entry)}" if reason else "")
            for entry, reason in ranked
        ]
        combo = self.ui.modelCombo
        if listed != self._listed:
            self._listed = listed
            combo.clear()
            combo.addItem(_("Choose a model..."), "")
            for number, (identity, name, tip) in enumerate(listed, start=1):
                combo.addItem(name, identity)
                combo.setItemData(number, tip, qt.Qt.ToolTipRole)
        chosen = max(combo.findData(self.state.model), 0)
        if combo.currentIndex != chosen:
            combo.setCurrentIndex(chosen)
        combo.toolTip = listed[chosen - 1][2] if chosen else _("Models that suit the scan in view come first")

    def _modality(self, scan) -> str:
        """The scan's modality, from DICOM or guessed from its grey values; guessed once a scan."""
        if scan is None:
            return ""
        said = scans.modality(scan)
        if said:
            return said
        key = (scan.GetID(), scan.GetImageData().GetMTime())
        if key not in self._guesses:
            self._guesses[key] = guess_modality(slicer.util.arrayFromVolume(scan))
        return self._guesses[key]

    def _show_progress(self) -> None:
        progress = self._command.progress
        bar = self.ui.progressBar
        bar.maximum = int(progress.get("total", 0))
        bar.value = int(progress.get("step", 0))
        amount = _("{title} - %v of %m MB").format(title=self._command.title)
        bar.format = amount if "MB" in progress.get("stage", "") else self._command.title  # an import counts steps

    # what the user does

    def _choose(self, index: int) -> None:
        if not self.showing:
            self.state.model = self.ui.modelCombo.itemData(index) or ""
            self._tried = ""
            self._go_on()

    def _go_on(self) -> None:
        """A model that can be used is chosen: step 2 has its turn."""
        entry = self.context.model()
        if entry is not None and not model_text.reason_against_use(entry):
            self.context.unfold(2)

    def show_details(self) -> None:
        """Show the chosen model's details, and do what the user asks for there."""
        entry = self.context.model()
        if entry is None:
            return
        answer = ModelDetails(entry, slicer.util.mainWindow(), self._waiting()).show()
        if answer == "accept":
            self._accepted(entry)
        elif answer == "delete":
            self._run(["models", "remove", entry.id], _("Deleting"), _("The model's files were not deleted."))

    def _accepted(self, entry: ModelEntry) -> bool:
        """Whether the licence is accepted; asks where it has to be."""
        if licences.acknowledgement(entry) != "needed":
            return True
        choice = dialogs.ask(
            _("The licence of {model} has to be accepted first.").format(model=entry.title),
            (_("I accept"), _("Cancel")),
            model_text.licence(entry),
        )
        if choice != 0:
            return False
        with self.telling(_("The licence could not be recorded.")):
            licences.accept(entry)
        self.context.refresh()
        return True

    def download(self) -> None:
        """Get the chosen model's weights."""
        entry = self.context.model()
        if entry is not None and self._accepted(entry):
            self._run(["models", "download", entry.id], _("Downloading"), _("The download did not finish."))

    def import_file(self) -> None:
        """Take a weights file of the chosen model."""
        entry = self.context.model()
        if entry is None or not self._accepted(entry):
            return
        wanted = entry.source.file if entry.source is not None else ""
        title = _("Weights of {model}: {file}").format(model=entry.title, file=wanted)
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title)
        if path:
            self._run(["models", "import", entry.id, path], _("Importing"), _("The weights were not imported."))

    def import_folder(self) -> None:
        """Take a model folder that PEFTSegment or nnU-Net wrote."""
        title = _("Folder of the model: the one with the file model.json or plans.json in it")
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title)
        if path:
            more = self._nnunet_arguments(Path(path)) if (Path(path) / "plans.json").is_file() else []
            if more is not None:
                self._run(["models", "import", path, *more], _("Importing"), _("The model was not imported."))

    def _nnunet_arguments(self, folder: Path) -> list[str] | None:
        """nnU-Net files do not say how their training scans lay; the two public collections are known. None: cancelled."""
        unsure = _(
            "If you are not sure, choose 'Another source', then 'Try on the scan in view' with a scan that you know. Where"
            " the outlines lie on the wrong side, delete the model's files (Details...) and import it with another choice."
        )
        choice = dialogs.ask(
            _("Where does this model come from?"),
            (_("TotalSegmentator"), _("MRSegmentator"), _("Another source"), _("Cancel")),
            f"{unsure}\n\n{folder}",
        )
        return [["--orientation", "RAS"], ["--orientation", "LPS"], [], None][choice]

    def _run(self, arguments: list[str], title: str, failed: str) -> None:
        def done(command: Command) -> None:
            self._command = None
            if command.code and not command.cancelled:
                dialogs.show_later(dialogs.problem_of_event(command.failure(), failed))
            elif not command.code and "import" in arguments:
                self.state.model = command.result().get("id", self.state.model)
            self.context.models_changed()
            if not command.code and "remove" not in arguments:
                self._go_on()

        with self.telling(failed):
            if self._command is not None:
                raise BadInput(_("Another download or import is running."), _("Try again when it has ended."))
            self._command = self.context.command([*arguments, "--json"], done, title)

    def _cancel(self) -> None:
        if self._command is not None:
            self.context.commands.cancel(self._command)

    # trying

    def try_on_scan(self) -> None:
        """Run the model as it is on the scan in view."""
        entry, scan = self.context.model(), scans.scan_in_view()
        with self.telling(_("The model could not be tried.")):
            if self._accepted(self.context.require_model()):
                self._tried = ""
                title = _("Trying {model}").format(model=entry.title)
                work.segment(self.context, [scan], PURPOSE, title, model=entry.id)

    def _hear(self, task: Task, events: list[Event]) -> None:
        if not task.active:
            settle(self.context, task, self._take, _("The model could not be tried."))

    def _take(self, task: Task) -> None:
        record = work.outcomes(task)[0]
        if record["path"] is None:
            problem = dialogs.Problem(_("The model could not be tried."), record["message"], record["remedy"])
            dialogs.show_later(problem)
            return
        scan = scans.scan_of(record["token"])
        entry = self.context.models().get(task.note["model"])
        title = entry.title if entry is not None else task.note["model"]
        if scan is None:
            self._tried = _("The scan was closed before the result came.")
            return
        work.load_outcome(record, f"{scan.GetName()} - {title}", task.ending["provenance"])
        in_view = scan is scans.scan_in_view()
        if in_view:
            scans.hide_other_scans(scan)
        found = [name for name, volume in record["volumes_ml"].items() if volume > 0]
        self._tried = _("{scan}: {found} of {count} structures found.").format(
            scan=scan.GetName(), found=len(found), count=len(record["volumes_ml"])
        )
        if not in_view:
            hidden = _("Its outlines are hidden, because another scan is in view; Slicer's Data module shows them.")
            self._tried = f"{self._tried} {hidden}"
