"""The dialog that shows the state, the plan and the run of an installation; what it does is in installer.py."""

from __future__ import annotations

from collections.abc import Callable

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput

from .environment import EnvironmentState
from .install_plan import make_plan
from .install_resume import Pending, forget_pending, remember_pending, restart_and_go_on
from .install_steps import InstallPlan
from .installer import Installation, Outcome, log_file
from .wheels_folder import how_to_fill

WIDTH = 620
GIB = 1 << 30


class InstallDialog(qt.QDialog):
    """Shows what would be installed, asks, and installs.

    Parameters
    ----------
    state : EnvironmentState
        What `examine_environment` found.
    parent : QWidget or None
    pending : Pending or None
        What was chosen before a restart.
    on_done : callable or None
        Gets the Outcome of each installation.
    planner : callable
        Makes the plan, as `make_plan`; tests give another.
    starter : callable
        Makes the run, as `Installation`; tests give another.
    """

    def __init__(
        self,
        state: EnvironmentState,
        parent=None,
        pending: Pending | None = None,
        on_done: Callable[[Outcome], None] | None = None,
        planner: Callable[..., InstallPlan] = make_plan,
        starter: Callable[..., Installation] = Installation,
    ) -> None:
        super().__init__(parent)
        self.state, self.plan, self.installation = state, None, None
        self._on_done, self._planner, self._starter = on_done, planner, starter
        self._offered_again = pending is not None
        self._base_python: str | None = None  # looking for one starts several interpreters: once is enough
        self.windowTitle = _("Install what PEFTSegment needs")
        self._build()
        self._take_over(pending or Pending())
        self._connect()
        forget_pending()
        self.update_plan()

    def _build(self) -> None:
        layout = qt.QVBoxLayout(self)
        self.minimumWidth = WIDTH
        self.stateLabel = _text_label(self.state.sentence)
        own, other = _("Into Slicer's Python (usual)"), _("Into {python}").format(python=self.state.python)
        self.ownRadio = qt.QRadioButton(own if self.state.own else other)
        self.separateRadio = qt.QRadioButton(
            _("Into a separate environment: nothing of Slicer or its extensions changes")
        )
        self.ownRadio.checked = True
        where = qt.QGroupBox(_("Where"))
        inside = qt.QVBoxLayout(where)
        inside.addWidget(self.ownRadio)
        inside.addWidget(self.separateRadio)
        self.torchBox = qt.QGroupBox("PyTorch")
        self.torchQuestion = _text_label("")
        self.cudaRadio, self.cpuRadio = qt.QRadioButton(), qt.QRadioButton()
        inside = qt.QVBoxLayout(self.torchBox)
        for widget in (self.torchQuestion, self.cudaRadio, self.cpuRadio):
            inside.addWidget(widget)
        self.offlineBox = qt.QCheckBox(_("Without internet, from a folder of packages:"))
        self.folderEdit = ctk.ctkPathLineEdit()
        self.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.fillButton = qt.QPushButton(_("How to fill it"))
        self.fillButton.toolTip = _("Shows the command that downloads the packages on a computer with internet")
        row = qt.QHBoxLayout()
        row.addWidget(self.folderEdit)
        row.addWidget(self.fillButton)
        self.planLabel, self.warningLabel, self.resultLabel = (_text_label("") for _number in range(3))
        self.planLabel.objectName = "planLabel"
        self.agreeBox = qt.QCheckBox(_("I agree that these packages are replaced"))
        self.progressBar = qt.QProgressBar()
        self.progressBar.visible = False
        for widget in (self.stateLabel, where, self.torchBox, self.offlineBox):
            layout.addWidget(widget)
        layout.addLayout(row)
        for widget in (self.planLabel, self.warningLabel, self.agreeBox, self.progressBar, self.resultLabel):
            layout.addWidget(widget)
        self._build_details(layout)
        self._build_buttons(layout)

    def _build_details(self, layout) -> None:
        self.details = ctk.ctkCollapsibleButton()
        self.details.text = _("Details")
        self.log = qt.QPlainTextEdit()
        self.log.readOnly = True
        self.log.minimumHeight = 140
        self.copyButton = qt.QPushButton(_("Copy"))
        self.copyButton.toolTip = _("Copy all of this, to send it to someone who can help")
        inside = qt.QVBoxLayout(self.details)
        inside.addWidget(self.log)
        inside.addWidget(self.copyButton)
        self.details.collapsed = True
        layout.addWidget(self.details)

    def _build_buttons(self, layout) -> None:
        self.installButton = qt.QPushButton(_("Install"))
        self.restartButton = qt.QPushButton(_("Restart Slicer"))
        self.restartButton.visible = False
        self.closeButton = qt.QPushButton(_("Close"))
        row = qt.QHBoxLayout()
        row.addStretch(1)
        for button in (self.restartButton, self.installButton, self.closeButton):
            row.addWidget(button)
        layout.addLayout(row)

    def _take_over(self, pending: Pending) -> None:
        self.separateRadio.checked = pending.isolated
        self.offlineBox.checked = bool(pending.wheels_folder)
        self.folderEdit.currentPath = pending.wheels_folder or ""
        self.cudaRadio.checked = pending.torch_by == "cuda"
        self.cpuRadio.checked = pending.torch_by == "cpu"

    def _connect(self) -> None:
        for radio in (self.separateRadio, self.cudaRadio, self.cpuRadio, self.offlineBox):
            radio.toggled.connect(self._choice_changed)
        self.folderEdit.currentPathChanged.connect(self._choice_changed)
        self.folderEdit.validInputChanged.connect(self._validity_changed)
        self.agreeBox.toggled.connect(self._agreement_changed)
        self.fillButton.clicked.connect(self.show_how_to_fill)
        self.copyButton.clicked.connect(self.copy_log)
        self.installButton.clicked.connect(self.install)
        self.closeButton.clicked.connect(self.close_or_cancel)
        self.restartButton.clicked.connect(self.restart)

    @property
    def running(self) -> bool:
        """Whether an installation runs."""
        return self.installation is not None and self.installation.running

    def choices(self) -> Pending:
        """What is chosen now."""
        torch_by = "cuda" if self.cudaRadio.checked else "cpu" if self.cpuRadio.checked else None
        folder = self.folderEdit.currentPath if self.offlineBox.checked else None
        return Pending(self.separateRadio.checked, folder or None, torch_by)

    def update_plan(self) -> None:
        """Make the plan for the present choices and show it."""
        chosen = self.choices()
        self.plan, problem = None, ""
        if self.offlineBox.checked and not chosen.wheels_folder:
            problem = _("Choose the folder of packages.")
        else:
            try:
                self.plan = self._planner(
                    self.state, chosen.wheels_folder, chosen.isolated, chosen.torch_by, self._base_python
                )
                self._base_python = self.plan.base_python or self._base_python
            except BadInput as error:
                problem = str(error)
        if self.plan is not None and self.plan.question and not self._offered_again:
            remember_pending(chosen)  # the Extensions Manager restarts Slicer by itself
        self._show_plan(problem)

    def install(self) -> None:
        """Start what the plan says."""
        self.installation = self._starter(
            self.plan,
            on_line=self._line,
            on_step=self._step,
            on_progress=self._downloaded,
            on_done=self._done,
        )
        self.log.plainText = ""
        self.resultLabel.text = ""
        self._set_running(True)
        try:
            self.installation.start(agreed=True, agreed_to_changes=self.agreeBox.checked)
        except BadInput as error:
            self._set_running(False)
            self.resultLabel.text = str(error)

    def close_or_cancel(self) -> None:
        """Cancel while an installation runs, else close."""
        if self.running:
            self.installation.cancel()
            self.resultLabel.text = _("Stopping; the present step may have to end first.")
        else:
            self.reject()

    def restart(self) -> None:
        """Restart Slicer; what is not installed yet is offered again then."""
        restart_and_go_on(self.choices() if self.plan is not None and self.plan.question else None)

    def show_how_to_fill(self) -> None:
        """Show the command that fills a folder of packages."""
        self.log.plainText = how_to_fill(self.state)
        self.details.collapsed = False

    def copy_log(self) -> None:
        """Copy the details to the clipboard."""
        slicer.app.clipboard().setText(self.log.plainText)

    def _choice_changed(self, _value=None) -> None:
        self.update_plan()

    def _validity_changed(self, valid: bool) -> None:
        if not valid:  # of an emptied field, CTK tells no change of the path
            self.update_plan()

    def _agreement_changed(self, _value=None) -> None:
        self._enable_install()

    def _show_plan(self, problem: str) -> None:
        plan = self.plan
        steps = [f"{number}. {step.sentence}" for number, step in enumerate(plan.steps if plan else (), start=1)]
        lines = [*(plan.changes if plan else ()), *(plan.warnings if plan else ())]
        if plan is not None and plan.missing_wheels:
            lines += [_("The folder lacks:"), *(f"- {text}" for text in plan.missing_wheels)]
        self.planLabel.text = "\n".join(steps) or problem or _("There is nothing to install.")
        self.warningLabel.text = "\n".join(lines)
        self.warningLabel.visible = bool(lines)
        self.agreeBox.visible = plan is not None and plan.needs_consent
        self._show_torch_choices(plan)
        self._enable_install()
        self._make_room()

    def _show_torch_choices(self, plan: InstallPlan | None) -> None:
        """The choices stay once they were offered, so that another can be taken."""
        if plan is not None and plan.question:
            self.torchQuestion.text = plan.question
            titles = {choice.key: choice.title for choice in plan.choices}
            for key, radio in (("cuda", self.cudaRadio), ("cpu", self.cpuRadio)):
                radio.text = titles.get(key, "")
                radio.visible = key in titles
        asked = bool(self.torchQuestion.text) and not self.offlineBox.checked
        self.torchBox.visible = asked
        self.restartButton.visible = asked and plan is not None and bool(plan.question)

    def _enable_install(self) -> None:
        reason = self._why_not()
        self.installButton.enabled = not reason and not self.running
        self.installButton.toolTip = reason or _("Do what the plan says")

    def _why_not(self) -> str:
        if self.plan is None:
            return self.planLabel.text
        if self.plan.obstacle:
            return self.plan.obstacle
        if not self.plan.steps:
            return _("There is nothing to install.")
        if self.plan.needs_consent and not self.agreeBox.checked:
            return _("Agree to the packages being replaced first, or choose a separate environment.")
        return ""

    def _make_room(self) -> None:
        """Grow where the texts have become longer; a dialog does not do that by itself, and wraps them out of sight."""
        self.layout().activate()
        needed = self.layout().totalHeightForWidth(max(self.width, WIDTH))
        if needed > self.height:
            self.resize(max(self.width, WIDTH), needed)

    def _set_running(self, running: bool) -> None:
        chosen_from = (
            self.ownRadio,
            self.separateRadio,
            self.torchBox,
            self.offlineBox,
            self.folderEdit,
            self.agreeBox,
        )
        for widget in chosen_from:
            widget.enabled = not running
        self.progressBar.visible = running
        self.progressBar.setRange(0, 0)
        self.closeButton.text = _("Cancel") if running else _("Close")
        self.installButton.enabled = False

    def _line(self, line: str) -> None:
        self.log.appendPlainText(line)

    def _step(self, number: int, count: int, sentence: str) -> None:
        self.progressBar.setRange(0, 0)
        text = _("Step {number} of {count}: {sentence}")
        self.resultLabel.text = text.format(number=number, count=count, sentence=sentence)
        self._make_room()

    def _downloaded(self, so_far: int, total: int) -> None:
        self.progressBar.setRange(0, 1000)
        self.progressBar.value = int(1000 * so_far / max(total, 1))
        text = _("{done:.2f} of {total:.2f} GB")
        self.progressBar.format = text.format(done=so_far / GIB, total=total / GIB)

    def _done(self, outcome: Outcome) -> None:
        self._set_running(False)
        self.resultLabel.text = result_text(outcome)
        self.details.collapsed = outcome.kind != "failed"
        self.restartButton.visible = outcome.restart
        if outcome.kind != "finished":
            self._enable_install()
        self._make_room()
        if self._on_done is not None:
            self._on_done(outcome)


def result_text(outcome: Outcome) -> str:
    """How an installation ended, in plain words."""
    if outcome.kind == "failed":
        saved = _("All of it is in {file}.").format(file=log_file())
        return "\n".join([outcome.error.message, outcome.error.remedy, saved])
    if outcome.kind == "cancelled":
        return _("Cancelled. What was installed before stays; press Install to go on.")
    if outcome.kind == "skipped":
        return _("Nothing was installed: Slicer runs in its testing mode.")
    return _("Installed. Restart Slicer before you go on.") if outcome.restart else _("Installed.")


def _text_label(text: str):
    label = qt.QLabel(text)
    label.wordWrap = True
    label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
    return label
