"""The module's widget: a status strip and five sections, each filled by its panel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import slicer
import vtk
from slicer.util import VTKObservationMixin

from peftseg.errors import PeftsegError

from . import scene_import
from .context import Context
from .panel import Panel
from .panels.adapt import AdaptPanel
from .panels.apply import ApplyPanel
from .panels.inspect import InspectPanel
from .panels.model import ModelPanel
from .panels.support import SupportPanel
from .status import StatusStrip

PANELS: tuple[type[Panel], ...] = (ModelPanel, SupportPanel, AdaptPanel, ApplyPanel, InspectPanel)
SCENE_EVENTS = ("NodeAddedEvent", "NodeRemovedEvent", "EndBatchProcessEvent", "EndRestoreEvent")


class ModuleWidget(VTKObservationMixin):
    """Everything that the module shows; `PEFTSegment.py` puts `form` into its layout.

    Parameters
    ----------
    resources : Path
        The module's folder `Resources`.
    python : callable
        Gives the interpreter that runs the engine.
    parameter_node : callable
        Gives the module's parameter node.
    panels : sequence of Panel classes
        One a section.
    """

    def __init__(
        self,
        resources: Path,
        python: Callable[[], str],
        parameter_node: Callable[[], object],
        panels: tuple[type[Panel], ...] = PANELS,
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.context = Context(resources, python, parameter_node)
        self.form = slicer.util.loadUI(str(Path(resources) / "UI" / "PEFTSegment.ui"))
        self.form.setMRMLScene(slicer.mrmlScene)
        self.ui = slicer.util.childWidgetVariables(self.form)
        self.sections = [getattr(self.ui, f"section{kind.STEP}") for kind in panels]
        self.context.unfold = self.unfold
        self.strip = StatusStrip(self.context, self.ui)
        self.panels = [kind(self.context, section) for kind, section in zip(panels, self.sections, strict=True)]
        self.context.on_refresh(self.refresh)
        self._observed = None
        self._before_import: scene_import.Session | None = None
        self._observe_scene()
        self._observe_state()

    def start(self) -> None:
        """Called once everything stands: jobs of earlier sessions are found, the engine is examined."""
        try:
            self.context.runner.find_earlier()
        except PeftsegError as error:  # no dialog at each start: the strip says it where the folder is the reason
            logging.warning("Jobs of an earlier session could not be looked at. %s %s", error.message, error.remedy)
        self.strip.examine()
        self.context.work_changed()
        self.refresh()

    # sections

    def unfold(self, step: int) -> None:
        """Open the section of a step, its turn has come; the others stay as they are."""
        self.sections[step - 1].collapsed = False

    def refresh(self) -> None:
        """Show what has changed."""
        self._observe_state()
        self.strip.refresh()
        for panel in self.panels:
            panel.refresh()

    def panel(self, kind: type[Panel]) -> Panel:
        """The panel of this class."""
        return next(panel for panel in self.panels if isinstance(panel, kind))

    # the life of a module

    def enter(self) -> None:
        """The module is shown."""
        for panel in self.panels:
            panel.enter()
        self.context.refresh()

    def exit(self) -> None:
        """Another module is shown."""
        for panel in self.panels:
            panel.exit()

    def cleanup(self) -> None:
        """The module is unloaded, or Slicer closes: jobs go on, nothing of the module stays behind."""
        self.removeObservers()
        self.strip.cleanup()
        self.context.close()
        for panel in self.panels:
            panel.cleanup()

    # the scene

    def _observe_scene(self) -> None:
        scene = slicer.mrmlScene
        for name in SCENE_EVENTS:
            self.addObserver(scene, getattr(slicer.vtkMRMLScene, name), self._scene_changed)
        self.addObserver(scene, slicer.vtkMRMLScene.StartCloseEvent, self._scene_closing)
        self.addObserver(scene, slicer.vtkMRMLScene.EndCloseEvent, self._scene_changed)
        self.addObserver(scene, slicer.vtkMRMLScene.StartImportEvent, self._import_begins)
        self.addObserver(scene, slicer.vtkMRMLScene.EndImportEvent, self._import_ended)

    def _scene_changed(self, caller, event) -> None:
        self.context.refresh()

    def _import_begins(self, caller, event) -> None:
        """Another scene is added, or one is loaded into an empty one."""
        self._before_import = scene_import.remember(self.context.state) if self._observed is not None else None

    def _import_ended(self, caller, event) -> None:
        before, self._before_import = self._before_import, None
        if before is not None:
            scene_import.join(self.context.state, before)
        self.context.refresh()

    def _scene_closing(self, caller, event) -> None:
        """Jobs go on; only what this scene holds is let go."""
        for panel in self.panels:
            panel.scene_closing()
        self._forget_state()
        self.context.drop_state()
        self.context.refresh()

    def _observe_state(self) -> None:
        node = self.context.state.parameterNode
        if node is self._observed:
            return
        self._forget_state()
        self._observed = node
        self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._scene_changed)

    def _forget_state(self) -> None:
        if self._observed is not None:
            self.removeObserver(self._observed, vtk.vtkCommand.ModifiedEvent, self._scene_changed)
            self._observed = None
