"""Under "Advanced" of the unlabelled choice: which way to adapt, how many passes, and the options that matter most.

What there is to choose, and what it is usually, are the engine's tables; here are only words for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from peftseg import site_options as table
from peftseg.adapters.options import Option, filled
from peftseg.errors import PeftsegError
from peftseg.models import ModelEntry
from peftseg.site_presets import has_running_statistics, main_options, presets_for, settled

from ..context import Context
from ..panel import enable
from .adapt_editors import OptionForm, kept, select, set_property
from .adapt_result import say

MOST_PASSES = 1000
SHARE_STEP, SHARE_DIGITS = 0.05, 3


@dataclass(frozen=True)
class Way:
    """How an adaptation without labels goes; the fields of `SiteAdaptJob`.

    Attributes
    ----------
    preset : str
    options : dict
        What the user has changed.
    epochs : int or None
        None for the preset's own number.
    """

    preset: str
    options: dict[str, Any]
    epochs: int | None


def words(preset: str) -> str:
    """A way to adapt in plain words; the engine's title where there are none."""
    said = {
        "matched": _("Brightness and grey values, then small changes"),
        "convlora_adabn": _("Grey values, then small changes"),
        "convlora": _("Small changes only"),
        "adabn": _("Grey values only (fastest)"),
        "self_training": _("The whole model"),
        "udas": _("The first layers (published)"),
        "udas_convlora": _("Small changes, first layers (published)"),
        "published": _("Grey values, small changes (published)"),
    }
    return said.get(preset, table.PRESET_TITLES[preset])


def captions() -> dict[str, str]:
    """What stands before the options."""
    return {
        "confidence": _("Only where surer than:"),
        "source_weight": _("Own grey values kept:"),
        "rank": _("Size of change (rank):"),
    }


class WayChoice:
    """Fills and reads these widgets, and says what is chosen.

    Parameters
    ----------
    context : Context
    panel : Panel
        Whose form holds the widgets, and which says whether it is showing.
    """

    def __init__(self, context: Context, panel) -> None:
        self._context, self._panel, self.ui = context, panel, panel.ui
        self._known: tuple[tuple, bool] = ((), True)  # of which file it was asked, and whether it has statistics
        self._offered: tuple[str, ...] = ()
        self._form = OptionForm(self.ui.siteOptionsLayout, panel, self._keep)
        self.ui.sitePassesBox.maximum = MOST_PASSES
        self.ui.siteWayBox.connect("currentIndexChanged(int)", self._choose)
        self.ui.sitePassesBox.connect("valueChanged(int)", self._set_passes)
        self.ui.defaultsButton.clicked.connect(self.defaults)

    @property
    def editors(self) -> dict[str, Any]:
        """The widgets of the options, by name."""
        return self._form.editors

    # what is chosen

    def chosen(self) -> Way:
        """The user's way; the usual one where it does nothing for the model."""
        return self._way(self._has_statistics())

    def _way(self, has_statistics: bool) -> Way:
        state = self._context.state
        wanted = state.sitePreset or table.DEFAULT_PRESET
        preset = wanted if wanted in presets_for(has_statistics) else table.DEFAULT_PRESET
        options = json.loads(state.siteOptions) if preset == wanted else {}
        learns = settled(preset, {}, has_statistics)["train"] != "none"
        return Way(preset, options, state.sitePasses if learns and state.sitePasses else None)

    def reason_against(self) -> str:
        """Why the options cannot be used, or ""."""
        way = self.chosen()
        try:
            table.check_site_options(way.preset, way.options)
        except PeftsegError as error:
            return error.message
        return ""

    def _has_statistics(self) -> bool:
        """Whether the model has grey-value statistics to recalibrate; its file is read once, each call asks for its time."""
        entry = self._context.model()
        key = _file_key(entry)
        if self._known[0] != key:
            try:
                self._known = (key, entry is None or has_running_statistics(entry))
            except PeftsegError:  # a damaged file; the job tells it
                self._known = (key, True)
        return self._known[1]

    # what is shown

    def look(self) -> None:
        """Show what there is to choose for the model, and what is chosen."""
        ui, state = self.ui, self._context.state
        ui.siteWayFrame.visible = not state.labelled
        if state.labelled:
            return
        has_statistics = self._has_statistics()
        way = self._way(has_statistics)
        usual = settled(way.preset, {}, has_statistics)
        self._offer(presets_for(has_statistics))
        select(ui.siteWayBox, way.preset)
        ui.siteWayBox.toolTip = _technical(way.preset)
        say(ui.siteWayHint, self._hint(way.preset, has_statistics))
        set_property(ui.sitePassesBox, "specialValueText", _usual_passes(usual))
        set_property(ui.sitePassesBox, "value", way.epochs or 0)
        nothing = _("This way learns nothing, it only takes over the grey values of the scans")
        tip = _("How often it learns from all of the scans (epochs)")
        enable(ui.sitePassesBox, "" if usual["train"] != "none" else nothing, tip)
        self._show_options(way, usual)

    def _offer(self, presets: tuple[str, ...]) -> None:
        if presets == self._offered:
            return
        self._offered, box = presets, self.ui.siteWayBox
        box.clear()
        for number, preset in enumerate(presets):
            said = words(preset)
            box.addItem(_("{title} (usual)").format(title=said) if preset == table.DEFAULT_PRESET else said, preset)
            box.setItemData(number, _technical(preset), qt.Qt.ToolTipRole)

    def _hint(self, preset: str, has_statistics: bool) -> str:
        lines = []
        if self._context.state.sitePreset not in ("", preset):
            lines.append(_("The way that was chosen before is not for this model: the usual one is taken."))
        if not has_statistics and table.check_site_options(preset, {})["adabn"] != "none":
            lines.append(
                _("This model keeps no statistics of grey values (no batch normalisation): that part is left out.")
            )
        return " ".join(lines)

    def _show_options(self, way: Way, usual: dict[str, Any]) -> None:
        shown = main_options(usual)
        values = filled(shown, way.options, usual)
        self._form.show(shown, values, captions())
        for option in shown:
            if isinstance(option.default, float):  # a share
                set_property(self.editors[option.name], "decimals", SHARE_DIGITS)
                set_property(self.editors[option.name], "singleStep", SHARE_STEP)

    # what the user does

    def _choose(self, index: int) -> None:
        if not self._panel.showing:
            state, preset = self._context.state, self.ui.siteWayBox.itemData(index)
            state.siteOptions = "{}"  # they are the other way's
            state.sitePreset = "" if preset == table.DEFAULT_PRESET else preset

    def _set_passes(self, value: int) -> None:
        if not self._panel.showing:
            self._context.state.sitePasses = value

    def _keep(self, option: Option, value: Any) -> None:
        state, has_statistics = self._context.state, self._has_statistics()
        way = self._way(has_statistics)
        usual = settled(way.preset, {}, has_statistics)
        state.siteOptions = kept(way.options, option, value, usual[option.name])
        state.sitePreset = "" if way.preset == table.DEFAULT_PRESET else way.preset

    def defaults(self) -> None:
        """Set these choices back."""
        state = self._context.state
        state.sitePreset, state.siteOptions, state.sitePasses = "", "{}", 0


def _file_key(entry: ModelEntry | None) -> tuple:
    path = entry.weights_path if entry is not None else None
    try:
        return () if path is None else (entry.id, str(path), path.stat().st_mtime_ns)
    except OSError:  # it went away since; the job tells it
        return (entry.id, str(path))


def _technical(preset: str) -> str:
    """The engine's name of a way."""
    return f"{table.PRESET_TITLES[preset]} [{preset}]"


def _usual_passes(options: dict[str, Any]) -> str:
    count = table.planned_epochs(options)
    if options["stop_change"] > 0:
        return _("as usual (at most {n})").format(n=count)
    return _("as usual ({n})").format(n=count)
