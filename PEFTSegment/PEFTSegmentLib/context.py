"""What the panels share: the user's choices, the engine, jobs and commands, and how they ask for a new look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput
from peftseg.models import ModelEntry, by_id, known_models

from .commands import Commands
from .runner import Runner
from .state import ModuleState
from .support import SupportSet

REFRESH_MS = 50
POLL_MS = 200


class Context:
    """One for each module widget.

    Parameters
    ----------
    resources : Path
        The module's folder `Resources`.
    python : callable
        Gives the interpreter that runs the engine.
    parameter_node : callable
        Gives the module's parameter node.
    """

    def __init__(self, resources: Path, python: Callable[[], str], parameter_node: Callable[[], object]) -> None:
        self.resources = Path(resources)
        self.runner = Runner(python)
        self.commands = Commands(python)
        self.engine_ready: Callable[[], str] = lambda: ""  # why the engine cannot run yet, or ""
        self.unfold: Callable[[int], None] = lambda step: None  # opens the section of a step
        self._parameter_node = parameter_node
        self._state: ModuleState | None = None
        self._models: tuple[dict[str, ModelEntry], list[str]] | None = None
        self._listeners: list[Callable[[], None]] = []
        self._refresh_timer = qt.QTimer()
        self._refresh_timer.setSingleShot(True)
        self._refresh_timer.setInterval(REFRESH_MS)
        self._refresh_timer.timeout.connect(self._refresh)
        self._poll_timer = qt.QTimer()
        self._poll_timer.setInterval(POLL_MS)
        self._poll_timer.timeout.connect(self.poll)
        self.runner.on_change(self.work_changed)

    # the user's choices

    @property
    def state(self) -> ModuleState:
        """The user's choices in the current scene; made anew after the scene was closed."""
        if self._state is None:
            self._state = ModuleState(self._parameter_node())
        return self._state

    def drop_state(self) -> None:
        """The scene closes: the choices went with it."""
        self._state = None

    @property
    def support(self) -> SupportSet:
        """The support scans of the current scene."""
        return SupportSet(self.state)

    # the catalogue

    def models(self) -> dict[str, ModelEntry]:
        """The catalogue by id; read once, and again after `models_changed`."""
        if self._models is None:
            entries, problems = known_models()
            self._models = by_id(entries), problems
        return self._models[0]

    def model_problems(self) -> list[str]:
        """Model folders that cannot be read."""
        self.models()
        return self._models[1]

    def models_changed(self) -> None:
        """Weights came or went."""
        self._models = None
        self.refresh()

    def model(self) -> ModelEntry | None:
        """The chosen foundation model, None before one is chosen."""
        return self.models().get(self.state.model)

    def require_model(self) -> ModelEntry:
        """The chosen foundation model with its weights; BadInput says what is missing."""
        entry = self.model()
        if entry is None:
            raise BadInput(_("No model is chosen."), _("Choose one in step 1."))
        if entry.weights_path is None:
            raise BadInput(
                _("The weights of {model} are not on this computer.").format(model=entry.title),
                _("Download or import them in step 1."),
            )
        return entry

    # looking again

    def on_refresh(self, function: Callable[[], None]) -> None:
        """Call a function whenever something that the module shows has changed."""
        self._listeners.append(function)

    def refresh(self) -> None:
        """Ask for a new look; many requests at once become one."""
        if not self._refresh_timer.active:
            self._refresh_timer.start()

    def _refresh(self) -> None:
        if slicer.mrmlScene.IsBatchProcessing() or slicer.mrmlScene.IsClosing() or slicer.mrmlScene.IsImporting():
            self._refresh_timer.start()
            return
        for function in list(self._listeners):
            function()

    # work in the background

    def work_changed(self) -> None:
        """Watch over jobs and commands while there are any."""
        working = bool(self.runner.busy or self.commands.running)
        if working and not self._poll_timer.active:
            self._poll_timer.start()
        elif not working:
            self._poll_timer.stop()
        self.refresh()

    def command(self, arguments: list[str], done: Callable, title: str = ""):
        """Run an engine command in the background; `done(command)` is called when it has ended."""
        command = self.commands.start(arguments, done, title)
        self.work_changed()
        return command

    def poll(self) -> None:
        """Look after jobs and commands once; called by a timer."""
        self.runner.poll()
        self.commands.poll()
        self.work_changed()

    def close(self) -> None:
        """The module is unloaded: timers and commands end, jobs go on."""
        self._listeners.clear()
        self.runner.close()
        self.commands.stop_all()
        self._refresh_timer.stop()  # at the end: giving up an export starts both once more
        self._poll_timer.stop()
