"""The strip at the top of the module: engine and device, and the running jobs, whatever section is open."""

from __future__ import annotations

import os
import platform

import qt
import slicer
from slicer.i18n import tr as _

from peftseg import paths
from peftseg.config import CPU_BUDGET_MINUTES
from peftseg.errors import PeftsegError

from . import dialogs, texts
from .background import Background
from .commands import Command
from .context import Context
from .environment import MISSING, PARTLY, READY, EnvironmentState, examine_environment
from .install_resume import pending_after_restart, restart_and_go_on
from .installer_dialog import InstallDialog
from .interpreter import chosen_interpreter, set_interpreter, start_report
from .runner import Task

EXAMINE_MS = 100
ROWS = 4
BAR_HEIGHT = 10
MIB_PER_GB = 1024.0


class StatusStrip:
    """Fills the widgets of `PEFTSegment.ui` above the sections."""

    def __init__(self, context: Context, ui) -> None:
        self.context = context
        self.ui = ui
        self.environment: EnvironmentState | None = None
        self._examining: Background | None = None
        self._problem = ""
        self._folder_problem = ""  # why nothing can be kept, in words
        self._rows: dict[int, JobRow] = {}
        self._dialog = None
        self._report = None
        self._timer = qt.QTimer()
        self._timer.setInterval(EXAMINE_MS)
        self._timer.timeout.connect(self._look_at_examination)
        context.engine_ready = self.reason_against_work
        self._make_menu()
        ui.engineButton.clicked.connect(self.help_engine)

    # the engine

    def examine(self) -> None:
        """Look at the engine's environment, in a thread: GPU drivers answer slowly."""
        python = chosen_interpreter()
        self._examining = Background([(examine_environment, python), (folder_problem,)])
        self._timer.start()

    @property
    def examined(self) -> bool:
        """Whether it is known how the engine stands."""
        return self._examining is None

    def _look_at_examination(self) -> None:
        if self._examining is None or not self._examining.done:
            return
        self._timer.stop()
        done, self._examining = self._examining, None
        self.environment = done.results[0] if done.results else None
        self._problem = str(done.error) if done.error is not None else ""
        self._folder_problem = done.results[1] if len(done.results) > 1 else ""
        self.context.refresh()
        pending = pending_after_restart()
        if pending is not None and self.environment is not None and self.environment.kind in (MISSING, PARTLY):
            self.install(pending)

    def reason_against_work(self) -> str:
        """Why the engine cannot run, in words; "" when it can."""
        if self._examining is not None:
            return _("PEFTSegment looks at its installation; a moment")
        if self.environment is None:
            return self._problem or _("The engine has not been looked at")
        return self._folder_problem if self.environment.usable else self.environment.sentence

    def help_engine(self) -> None:
        """Do what the one button beside the engine's state says."""
        action = self.environment.action if self.environment is not None else "report"
        if action == "restart":
            restart_and_go_on()
        elif action == "report":
            self.copy_report()
        else:
            self.install()

    def install(self, pending=None) -> None:
        """Show what would be installed, and install it when the user agrees."""
        if self.environment is None:
            return
        if self._dialog is not None and self._dialog.running:  # its window was closed, the installation goes on
            self._dialog.show()
            self._dialog.raise_()
            return
        if self._dialog is not None:
            self._dialog.close()
            self._dialog.deleteLater()
        self._dialog = InstallDialog(self.environment, slicer.util.mainWindow(), pending, self._installed)
        self._dialog.show()

    def _installed(self, outcome) -> None:
        self.examine()
        self.context.refresh()

    # the menu

    def _make_menu(self) -> None:
        menu = qt.QMenu(self.ui.moreButton)
        for text, function in (
            (_("Copy report (to ask for help)"), self.copy_report),
            (_("Installation..."), self.install),
            (_("Open the folder of models and adapters"), self.open_folder),
            (_("Choose another Python for the engine..."), self.choose_interpreter),
            (_("Use Slicer's own Python"), self.use_own_interpreter),
            (_("Delete all models, adapters and jobs..."), self.delete_everything),
        ):
            self._add_action(menu, text, function)
        self.ui.moreButton.setMenu(menu)
        self.menu = menu

    def _add_action(self, menu, text: str, function) -> None:
        # A function without parameters: PythonQt fills those that there are, also defaults.
        menu.addAction(text).triggered.connect(lambda: self._safely(function))

    def _safely(self, function) -> None:
        try:
            function()
        except Exception as error:
            dialogs.show(dialogs.problem_of(error, _("That did not work.")))

    def copy_report(self) -> None:
        """Put the engine's report into the clipboard; it takes some seconds in the background."""
        slicer.util.showStatusMessage(_("The report is being made..."), 5000)
        self._report = start_report(self._report_ready)

    def _report_ready(self, text: str) -> None:
        slicer.app.clipboard().setText(text)
        slicer.util.showStatusMessage(_("The report is in the clipboard."), 5000)

    def open_folder(self) -> None:
        """Show PEFTSegment's folder in the file manager."""
        folder = paths.owner_only(paths.home())
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))

    def choose_interpreter(self) -> None:
        """Choose another Python, which has the engine's packages, to run the engine."""
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Python of another environment"))
        if path:
            set_interpreter(path)
            self.examine()
            self.context.refresh()

    def use_own_interpreter(self) -> None:
        """Run the engine with Slicer's own Python again."""
        set_interpreter("")
        self.examine()
        self.context.refresh()

    def delete_everything(self) -> None:
        """Delete all that PEFTSegment keeps on this computer, after a question."""
        text = _("Delete all downloaded models, all adapters and all jobs from this computer?")
        warning = _("This cannot be undone. {folder}").format(folder=paths.home())
        if dialogs.ask(text, (_("Delete"), _("Cancel")), warning, careful=True) == 0:
            paths.delete_everything()
            self.context.models_changed()

    # what is shown

    def refresh(self) -> None:
        """Show how it stands."""
        text, button = self._engine_text()
        self.ui.engineLabel.text = text
        self.ui.engineButton.visible = bool(button)
        self.ui.engineButton.text = button
        self._show_rows()

    def _engine_text(self) -> tuple[str, str]:
        reason = self.reason_against_work()
        environment = self.environment
        if environment is None or self._examining is not None:
            return reason, ""
        if reason:
            return reason, "" if environment.usable else environment.button
        if environment.kind != READY:  # works, but slowly
            return environment.sentence, environment.button
        return _("Ready. {device}").format(device=device_text(environment)), ""

    def _show_rows(self) -> None:
        work: list[Task | Command] = [*self.context.runner.active, *self.context.commands.running]
        shown = {id(item): item for item in work[:ROWS]}
        for key in [key for key in self._rows if key not in shown]:
            self._rows.pop(key).remove()
        for key, item in shown.items():
            if key not in self._rows:
                self._rows[key] = JobRow(self.context, item, self.ui.jobsFrame)
            self._rows[key].look()
        self.ui.jobsFrame.visible = bool(shown)

    def cleanup(self) -> None:
        """The module is unloaded."""
        self._timer.stop()
        if self._examining is not None:
            self._examining.stop()
        if self._dialog is not None:
            self._dialog.close()
            if not self._dialog.running:  # an installation goes on, and tells its window
                self._dialog.deleteLater()
            self._dialog = None


class JobRow:
    """One running job or command: what it is, how far it is, and a Cancel button."""

    def __init__(self, context: Context, item: Task | Command, frame) -> None:
        self._context, self._item = context, item
        self._widget = qt.QWidget(frame)
        layout = qt.QGridLayout(self._widget)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setVerticalSpacing(1)
        self.label = qt.QLabel()
        self.label.wordWrap = True
        layout.addWidget(self.label, 0, 0)
        self.bar = qt.QProgressBar()
        self.bar.textVisible = False
        self.bar.maximumHeight = BAR_HEIGHT
        layout.addWidget(self.bar, 1, 0)
        self.button = qt.QPushButton(_("Cancel"))
        self.button.clicked.connect(self.cancel)
        layout.addWidget(self.button, 0, 1, 2, 1)
        layout.setColumnStretch(0, 1)
        frame.layout().addWidget(self._widget)

    def look(self) -> None:
        """Show how far it is."""
        item = self._item
        progress = item.progress
        known = bool(progress.get("total"))
        self.bar.maximum = int(progress["total"]) if known else 0
        self.bar.value = int(progress["step"]) if known else 0
        title = item.note["title"] if isinstance(item, Task) else item.title
        words = [str(title), self._state(), texts.time_left(progress.get("eta_s"))]
        self.label.text = " - ".join(word for word in words if word)

    def _state(self) -> str:
        if isinstance(self._item, Command):
            return ""
        if self._item.stopping:
            return _("stopping")
        return {"exporting": _("preparing"), "created": _("waiting"), "queued": _("waiting")}.get(self._item.state, "")

    def cancel(self) -> None:
        """Stop it."""
        if isinstance(self._item, Task):
            self._context.runner.cancel(self._item)
        else:
            self._context.commands.cancel(self._item)

    def remove(self) -> None:
        """Take the row off the strip."""
        self._widget.hide()
        self._widget.deleteLater()


def folder_problem() -> str:
    """Why jobs cannot be kept in PEFTSegment's folder, in words; "" where they can. May run in a thread."""
    remedy = _("Set PEFTSEGMENT_HOME to a folder that you may write to, and start Slicer again.")
    try:
        folder = paths.jobs_dir()
    except PeftsegError as error:
        return f"{error.message} {remedy}"
    if not os.access(folder, os.W_OK):
        return _("The folder {folder} is read-only. {remedy}").format(folder=folder, remedy=remedy)
    return ""


def device_text(environment: EnvironmentState) -> str:
    """The device in words: name and free memory, or that there is none."""
    if environment.gpus and environment.torch is not None and environment.torch.cuda is not None:
        gpu = environment.gpus[0]
        return _("{name}, {free:.1f} of {total:.0f} GB free").format(
            name=gpu.name, free=gpu.free_mib / MIB_PER_GB, total=gpu.memory_mib / MIB_PER_GB
        )
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return _("Apple GPU")
    return _("No GPU: adaptation is planned to fit {minutes:.0f} min").format(minutes=CPU_BUDGET_MINUTES)
