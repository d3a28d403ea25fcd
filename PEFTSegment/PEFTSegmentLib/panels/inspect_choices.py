"""What is chosen in step 5: network, scan, structure, layer, labels; and why it cannot be asked yet. No widgets."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from .. import scans
from ..context import Context
from .apply_adapters import AdapterList
from .inspect_jobs import Measured, Question
from .inspect_labels import labels_of, labels_to_offer, reason_against_labels
from .inspect_layers import HEAD, LayerLists, LayerRow, Source, default_layer, sources
from .inspect_maps import GRAD_CAM, PROTO_SEG, MapFacts


class Choices:
    """The user's choices, not saved with the scene; "" stands for the first or usual one.

    Attributes
    ----------
    method : str
        One of `inspect_maps.METHODS`.
    source_key, scan_id, structure_name, layer_name : str
        What was chosen here.
    labels_id : str or None
        The chosen segmentation, "" for none; None: that of the support scan.
    sources : list of Source
        What there is to look into, as of the last `look`.
    """

    def __init__(self, context: Context, adapters: AdapterList, lists: LayerLists) -> None:
        self._context, self._adapters, self._lists = context, adapters, lists
        self.method = GRAD_CAM
        self.source_key = self.scan_id = self.structure_name = self.layer_name = ""
        self.labels_id: str | None = None
        self.sources: list[Source] = []

    def look(self) -> None:
        """See what there is to look into, and have its layers listed."""
        self.sources = sources(self._context, self._adapters)
        source = self.source()
        if source is not None and not source.reason and not self._context.engine_ready():
            self._lists.want(source)

    def source(self) -> Source | None:
        """The network to look into: the chosen one, else the adapter of step 4, else a model."""
        chosen = next((s for s in self.sources if s.key == self.source_key), None)
        return chosen or next(iter(self.sources), None)

    def scan(self) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The scan to look at: the one chosen here, else that of step 4, else the one in view."""
        chosen = slicer.mrmlScene.GetNodeByID(self.scan_id) if self.scan_id else None
        return chosen or self._context.state.scan or scans.scan_in_view()

    def names(self) -> tuple[str, ...]:
        """The structures that the network finds."""
        source = self.source()
        return source.structures if source is not None else ()

    def structure(self) -> str:
        """The structure to ask about, "" where there is none."""
        names = self.names()
        return self.structure_name if self.structure_name in names else next(iter(names), "")

    def rows(self) -> tuple[LayerRow, ...]:
        """The layers of the network, none before they are known."""
        source = self.source()
        return self._lists.rows(source) if source is not None else ()

    def layer(self) -> LayerRow | None:
        """The chosen layer, else the one that the output reads."""
        rows = self.rows()
        wanted = self.layer_name if any(row.name == self.layer_name for row in rows) else default_layer(rows)
        return next((row for row in rows if row.name == wanted), None)

    def labels(self) -> slicer.vtkMRMLSegmentationNode | None:
        """A person's segmentation of the scan to compare with: the chosen one, else that of the support scan."""
        if self.labels_id is None:
            return labels_to_offer(self._context.support, self.scan(), self.structure())
        return slicer.mrmlScene.GetNodeByID(self.labels_id) if self.labels_id else None

    def answers(self, found: Measured | None) -> bool:
        """Whether a finished ProtoSeg is about what is chosen now."""
        source, scan = self.source(), self.scan()
        known = found is not None and source is not None and scan is not None
        return known and self.method == PROTO_SEG and found.is_of(source, self.structure(), scan)

    def reason(self) -> str:
        """Why nothing can be asked, in words, or ""."""
        source, scan = self.source(), self.scan()
        if source is None:
            return _("Choose an adapter in step 4, or a model in step 1, first")
        if source.reason or self._context.engine_ready():
            return source.reason or self._context.engine_ready()
        if scan is None:
            return _("Choose a scan first")
        against = scans.reason_against(scan)
        if against:
            return _("{name} {reason}").format(name=scan.GetName(), reason=against)
        if self.method == PROTO_SEG:
            against = reason_against_labels(self._context.support, self.labels(), scan, self.structure())
        return against or self._reason_against_layer(source)

    def _reason_against_layer(self, source: Source) -> str:
        problem = self._lists.problem(source)
        if problem:
            return _("The layers could not be listed. {problem}").format(problem=problem)
        layer = self.layer()
        if layer is None:
            return _("The layers of {name} are being listed...").format(name=source.name)
        if self.method == GRAD_CAM and layer.kind == HEAD:
            return _("The map of the output is the result itself and explains nothing; choose another layer")
        return ""

    def facts(self) -> MapFacts | None:
        """What the map of these choices would be of."""
        source, scan, layer = self.source(), self.scan(), self.layer()
        if source is None or scan is None or layer is None:
            return None
        token = scan.GetAttribute(scans.TOKEN) or ""
        return MapFacts(self.method, layer.name, layer.label, self.structure(), source.key, source.name, token)

    def question(self) -> Question:
        """What is asked now, where there is no reason against it; of a sequence the frame that it shows is chosen."""
        scan = scans.held_still(scans.require_usable(self.scan()))
        self.scan_id = scan.GetID()  # another scan chosen in step 4 meanwhile changes nothing here
        labels = labels_of(self.labels(), self.structure()) if self.method == PROTO_SEG else None
        return Question(self.method, self.source(), scan, self.structure(), self.layer(), labels)

    def scene_closing(self) -> None:
        """Nothing of this scene is kept."""
        self.scan_id, self.labels_id = "", None
