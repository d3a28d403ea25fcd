"""Step 5: look into the model: which places speak for a structure (Grad-CAM), which layers know it (ProtoSeg)."""

from __future__ import annotations

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from .. import scans
from ..panel import Panel, enable
from . import inspect_maps as maps
from . import inspect_words as words
from .adapt_result import say
from .apply_adapters import AdapterList
from .inspect_choices import Choices
from .inspect_jobs import InspectJobs, Measured, show_progress
from .inspect_layers import LayerLists
from .inspect_maps import GRAD_CAM, PROTO_SEG, MapFacts
from .inspect_table import LayerTable


class InspectPanel(Panel):
    """Step 5. What is chosen here is not saved with the scene; the maps are.

    Attributes
    ----------
    adapters : AdapterList
    lists : LayerLists
    choices : Choices
    jobs : InspectJobs
    views : MapViews
    table : LayerTable
    """

    STEP = 5
    FORM = "InspectPanel.ui"

    def __init__(self, context, section) -> None:
        super().__init__(context, section)
        self.adapters, self.lists, self.views = AdapterList(context), LayerLists(context), maps.MapViews()
        self.choices = Choices(context, self.adapters, self.lists)
        self.jobs = InspectJobs(context, self._arrived)
        self._shown_names: tuple[str, ...] = ()  # what the list of structures holds
        ui = self.ui
        ui.methodCombo.addItem(_("Grad-CAM: what speaks for a structure"), GRAD_CAM)
        ui.methodCombo.addItem(_("ProtoSeg: which layers know a structure"), PROTO_SEG)
        self.table = LayerTable(ui.layerTable, ui.legendLabel, self._choose_layer)
        ui.cautionLabel.text = words.caution()
        ui.methodCombo.currentIndexChanged.connect(self._choose_method)
        ui.sourceCombo.currentIndexChanged.connect(self._choose_source)
        ui.scanSelector.connect("nodeActivated(vtkMRMLNode*)", self._choose_scan)  # not when a node goes
        ui.structureCombo.currentIndexChanged.connect(self._choose_structure)
        ui.labelsSelector.connect("nodeActivated(vtkMRMLNode*)", self._choose_labels)
        ui.againButton.clicked.connect(self._ask_again)
        ui.showButton.clicked.connect(self.show)
        ui.cancelButton.clicked.connect(self.cancel)
        ui.opacitySlider.valueChanged.connect(self._set_opacity)
        ui.removeButton.clicked.connect(self.remove_maps)
        section.contentsCollapsed.connect(self._folded)

    # what is shown

    def title(self) -> str:
        """The section's header."""
        if self.jobs.running() is not None:
            return _("5 Inspect - running")
        count = len(maps.all_maps())
        if not count:
            return _("5 Inspect")
        return _("5 Inspect - 1 map") if count == 1 else _("5 Inspect - {count} maps").format(count=count)

    def look(self) -> None:
        """Show the choices, the layers, the job and the map in view; a folded section has nothing to show."""
        if self.section.collapsed:
            return
        self.choices.look()
        self._look_at_choices()
        measured, reason = self._measured(), self.choices.reason()
        self._look_at_layers(measured)
        say(self.ui.stateLabel, reason or self._sentence(measured))
        self._look_at_job(reason)
        self._look_at_map()

    def _measured(self) -> Measured | None:
        """The finished ProtoSeg, where it answers what is chosen now."""
        return self.jobs.measured if self.choices.answers(self.jobs.measured) else None

    def _look_at_choices(self) -> None:
        ui, chosen = self.ui, self.choices
        source, names = chosen.source(), chosen.names()
        ui.methodCombo.toolTip = words.purpose(chosen.method)
        titles = tuple(s.title for s in chosen.sources)
        if titles != tuple(ui.sourceCombo.itemText(n) for n in range(ui.sourceCombo.count)):
            ui.sourceCombo.clear()
            for title in titles:
                ui.sourceCombo.addItem(title)
        ui.sourceCombo.setCurrentIndex(chosen.sources.index(source) if source is not None else -1)
        ui.sourceCombo.toolTip = source.title if source is not None else _("Choose an adapter in step 4")
        ui.scanSelector.setCurrentNode(chosen.scan())
        if names != self._shown_names:
            self._shown_names = names
            ui.structureCombo.clear()
            for name in names:
                ui.structureCombo.addItem(name)
        ui.structureCombo.setCurrentIndex(names.index(chosen.structure()) if names else -1)
        comparing = chosen.method == PROTO_SEG
        ui.labelsTitle.visible = ui.labelsSelector.visible = comparing
        if comparing:
            ui.labelsSelector.setCurrentNode(chosen.labels())

    def _look_at_layers(self, measured: Measured | None) -> None:
        source, rows, layer = self.choices.source(), self.choices.rows(), self.choices.layer()
        self.ui.againButton.visible = source is not None and bool(self.lists.problem(source))
        self.ui.layerFrame.visible = bool(rows)
        if layer is not None:
            self.table.look(rows, measured, self.choices.method == PROTO_SEG, layer.name)

    def _sentence(self, measured: Measured | None) -> str:
        if measured is None:
            return words.purpose(self.choices.method)
        return words.bars(self.choices.structure(), measured.labelled, measured.not_defined)

    def _look_at_job(self, reason: str) -> None:
        ui, task, method = self.ui, self.jobs.running(), self.choices.method
        tips = {
            GRAD_CAM: _("Compute the map of the chosen layer and show it over the scan"),
            PROTO_SEG: _("Measure every layer, then click one to see its map"),
        }
        ui.showButton.text = _("Show") if method == GRAD_CAM else _("Measure all layers")
        enable(ui.showButton, reason or (_("It is being computed") if task is not None else ""), tips[method])
        ui.progressFrame.visible = task is not None
        if task is not None:
            show_progress(task, ui.progressBar, ui.progressLabel)
            enable(ui.cancelButton, _("It is being stopped") if task.stopping else "", _("Stop; nothing is kept"))
        say(ui.messageLabel, self.jobs.message if task is None else "")

    def _look_at_map(self) -> None:
        ui, node, count = self.ui, maps.in_view(), len(maps.all_maps())
        ui.mapFrame.visible = count > 0
        if not count:
            return
        facts = maps.facts_of(node) if node is not None else None
        title = _("No map is in view; click its layer.")
        if facts is not None:
            title = _("In view: {method}, {layer}, of {title}").format(
                method=maps.method_name(facts.method), layer=facts.label, title=facts.title
            )
        say(ui.mapLabel, title)
        ui.mapLabel.toolTip = node.GetName() if node is not None else ""
        say(ui.readingLabel, words.reading(facts) if facts is not None else "")
        enable(ui.opacitySlider, "" if node is not None else _("No map is in view"), _("How much covers the scan"))
        tip = _("Takes all {count} maps out of the scene. At most {most} are kept.").format(count=count, most=maps.MOST)
        enable(ui.removeButton, "", tip)

    # what the user chooses

    def _folded(self, collapsed: bool) -> None:
        if not collapsed:
            self.context.refresh()

    def _choose_method(self, _index: int) -> None:
        if not self.showing:
            self.choices.method = self.ui.methodCombo.currentData
            self._chosen_anew()

    def _choose_source(self, index: int) -> None:
        if not self.showing and 0 <= index < len(self.choices.sources):
            self.choices.source_key = self.choices.sources[index].key
            self._chosen_anew()

    def _choose_scan(self, node) -> None:
        if not self.showing:
            self.choices.scan_id = node.GetID() if node is not None else ""
            self.choices.labels_id = None
            self._chosen_anew()

    def _choose_structure(self, index: int) -> None:
        if not self.showing and 0 <= index < len(self._shown_names):
            self.choices.structure_name = self._shown_names[index]
            self._chosen_anew()

    def _choose_labels(self, node) -> None:
        if not self.showing:
            self.choices.labels_id = node.GetID() if node is not None else ""
            self._chosen_anew()

    def _chosen_anew(self) -> None:
        self.jobs.message = ""  # it was about something else
        self.context.refresh()

    def _choose_layer(self, name: str) -> None:
        """A layer was clicked: its map is shown where there is one."""
        if self.showing:
            return
        self.choices.layer_name = name
        with self.telling(_("The map could not be shown.")):
            facts = self.choices.facts()
            there = maps.find(facts) if facts is not None else None
            if there is not None and maps.in_view() is not there:
                self.views.show(there, self.choices.scan(), self._opacity())
            elif there is None and self._measured() is not None:
                self.jobs.show_layer(name, facts.label)
        self._chosen_anew()

    # what the user does

    def show(self) -> None:
        """Ask for the map of the chosen layer, or for the bars of all layers, in the background."""
        with self.telling(_("The model could not be looked into.")):
            question = self.choices.question()
            self.jobs.ask(question)
            scans.turn_to(question.scan)
            self.context.work_changed()

    def cancel(self) -> None:
        """Stop what runs."""
        task = self.jobs.running()
        if task is not None:
            self.context.runner.cancel(task)

    def remove_maps(self) -> None:
        """Take all maps out of the scene."""
        self.views.remove_all()
        self.context.refresh()

    def _ask_again(self) -> None:
        source = self.choices.source()
        if source is not None:
            self.lists.again(source)

    def _opacity(self) -> float:
        return self.ui.opacitySlider.value / 100

    def _set_opacity(self, value: float) -> None:
        maps.set_opacity(value / 100)

    def _arrived(self, path: Path, facts: MapFacts, provenance: dict[str, str], fresh: bool) -> None:
        """A map has come: it is shown over its scan, and a new one with its middle in the views.

        One that a job has made waits for a click while the user looks at another scan or paints.
        """
        scan = scans.scan_of(facts.token)
        with slicer.util.WaitCursor():
            node = maps.load(path, facts, scan, provenance)
            if fresh and not scans.may_show(scan):
                self.jobs.message = words.waits(facts, scan.GetName())
                return
            self.views.show(node, scan, self._opacity())
        place = maps.middle(node) if fresh else None
        if place is not None:
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place)

    # the module's life

    def enter(self) -> None:
        """Adapters may have come meanwhile, also into shared folders."""
        self.adapters.look_again()

    def scene_closing(self) -> None:
        """Nothing of this scene is kept."""
        self.choices.scene_closing()
        self.views.forget()
        self.jobs.scene_closing()

    def cleanup(self) -> None:
        """The module is unloaded; maps stay in the scene."""
        self.lists.close()
        self.jobs.close()
