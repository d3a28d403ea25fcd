"""What can be looked into: the chosen adapter and its model, and their layers with names that a person can read.

The layers come from `peftseg inspect layers`, which runs in the background: torch is never in Slicer's own process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from peftseg.models import ModelEntry

from ..commands import Command
from ..context import Context
from .apply_adapters import AdapterList, title

ENCODER, ADAPTER, DECODER, HEAD = "encoder", "adapter", "decoder", "head"


# networks


@dataclass(frozen=True)
class Source:
    """A network to look into.

    Attributes
    ----------
    kind : str
        "adapter" or "model".
    ref : str
        Reference in the library, or id in the catalogue.
    digest : str
        Tells two of the same reference apart.
    name, title : str
        As it is shown alone, and in the list.
    structures : tuple of str
        What it finds.
    reason : str
        Why it cannot be used, or "".
    """

    kind: str
    ref: str
    digest: str
    name: str
    title: str
    structures: tuple[str, ...]
    reason: str

    @property
    def key(self) -> str:
        """The same for the same network."""
        return f"{self.kind}/{self.ref}/{self.digest}"


def sources(context: Context, adapters: AdapterList) -> list[Source]:
    """The adapter of step 4 and its model without it, and the model of step 1."""
    found: list[Source] = []
    row = adapters.row(context.state.adapter) if context.state.adapter else None
    if row is not None:
        found.append(
            Source(
                "adapter",
                row["ref"],
                row["hash"] or "",
                title(row),
                _("{adapter} (step 4)").format(adapter=title(row)),
                tuple(row["structures"] or ()),
                adapters.reason_against(row),
            )
        )
    models = context.models()
    base, chosen = models.get(row["base_id"] or "") if row is not None else None, context.model()
    for entry, text in ((base, _("{model} without adapter")), (chosen, _("{model} (step 1)"))):
        if entry is not None and not any((s.kind, s.ref) == ("model", entry.id) for s in found):
            found.append(_model(entry, text.format(model=entry.title)))
    return found


def _model(entry: ModelEntry, text: str) -> Source:
    reason = ""
    if entry.weights_path is None:
        reason = _("The weights of {model} are not on this computer; get them in step 1").format(model=entry.title)
    elif not entry.structures:
        reason = _("{model} finds nothing before it is adapted; choose an adapter in step 4").format(model=entry.title)
    names = tuple(s.name for s in entry.structures)
    return Source("model", entry.id, str(entry.weights_path or ""), entry.title, text, names, reason)


# layers


@dataclass(frozen=True)
class LayerRow:
    """A layer as it is shown.

    Attributes
    ----------
    name : str
        In the network, as jobs name it.
    kind : str
        "encoder", "adapter", "decoder", "head" or "other".
    label : str
        E.g. "Decoder 2".
    detail : str
        How finely it sees the scan: "full", "1/2".
    channels : int
        How many features it has.
    adapted : bool
        Whether an adapter has changed it.
    """

    name: str
    kind: str
    label: str
    detail: str
    channels: int
    adapted: bool


def named(rows: Sequence[dict[str, Any]]) -> tuple[LayerRow, ...]:
    """Layers as `peftseg inspect layers --json` lists them, with names: numbers count within encoder, adapter, decoder."""
    counts: dict[str, int] = defaultdict(int)
    labels: dict[str, str] = {}
    for row in rows:
        counts[row["kind"]] += 1
        labels[row["layer"]] = _label(row["kind"], counts[row["kind"]])
    return tuple(
        LayerRow(
            row["layer"], row["kind"], _at_host(row, labels), _detail(row["stride"]), row["channels"], row["adapted"]
        )
        for row in rows
    )


def _label(kind: str, number: int) -> str:
    if kind == HEAD:
        return _("Output") if number == 1 else _("Output {number}").format(number=number)
    words = {
        ENCODER: _("Encoder {number}"),
        ADAPTER: _("Adapter {number}"),
        DECODER: _("Decoder {number}"),
    }
    return words.get(kind, _("Middle {number}")).format(number=number)


def _at_host(row: dict[str, Any], labels: dict[str, str]) -> str:
    """An adapter's own layer is told by the layer beside which it sits, where that is listed."""
    own = labels[row["layer"]]
    host = labels.get(row["layer"].partition("::")[0], "") if row["kind"] == ADAPTER else ""
    return _("{adapter}, at {host}").format(adapter=own, host=host) if host else own


def _detail(stride: Sequence[int]) -> str:
    if set(stride) == {1}:
        return _("full")
    parts = ["1" if n == 1 else f"1/{n}" for n in stride]
    return parts[0] if len(set(parts)) == 1 else " x ".join(parts)


def default_layer(rows: Sequence[LayerRow]) -> str:
    """The features that the output reads: the last layer that is neither the output nor an adapter's own."""
    telling = [row for row in rows if row.kind != HEAD]
    own = [row for row in telling if row.kind != ADAPTER]
    found = (own or telling)[-1:]
    return found[0].name if found else ""


class LayerLists:
    """The layers of each network, asked for once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rows: dict[str, tuple[LayerRow, ...]] = {}
        self._asked: dict[str, str] = {}  # key -> "" while it is on the way, else what went wrong
        self._closed = False

    def rows(self, source: Source) -> tuple[LayerRow, ...]:
        """The layers; none before they are known."""
        return self._rows.get(source.key, ())

    def problem(self, source: Source) -> str:
        """Why the layers could not be listed, or ""."""
        return self._asked.get(source.key, "")

    def want(self, source: Source) -> None:
        """Ask for the layers, unless they are known, on the way or could not be had."""
        if source.key not in self._rows and source.key not in self._asked:
            self._asked[source.key] = ""
            qt.QTimer.singleShot(0, lambda: self._ask(source))  # starting a process is no part of a look

    def again(self, source: Source) -> None:
        """Ask once more after a failure."""
        if self.problem(source):
            del self._asked[source.key]
            self._context.refresh()

    def _ask(self, source: Source) -> None:
        if self._closed:
            return

        def done(command: Command) -> None:
            self._take(source, command)

        arguments = ["inspect", "layers", f"--{source.kind}", source.ref, "--json"]
        try:
            self._context.command(arguments, done, _("Listing the layers of {name}").format(name=source.name))
        except OSError as error:  # the interpreter is gone
            self._asked[source.key] = str(error)
            self._context.refresh()

    def _take(self, source: Source, command: Command) -> None:
        if command.code == 0:
            self._rows[source.key] = named(command.result())
            del self._asked[source.key]
        else:
            failure = command.failure()
            text = f"{failure.get('message', '')} {failure.get('remedy', '')}".strip()
            self._asked[source.key] = text or _("The engine did not answer")
        self._context.refresh()

    def close(self) -> None:
        """The module is unloaded."""
        self._closed = True
