"""What is folded away under "Advanced": the method and its options, limits, device, seed."""

from __future__ import annotations

import json
import sys
from typing import Any

from slicer.i18n import tr as _

from peftseg.adapters.options import Option, filled
from peftseg.adapters.table import METHODS, method_info

from ..context import Context
from ..work import DEFAULT_METHOD
from .adapt_editors import OptionForm, kept, select, set_property


class AdvancedOptions:
    """Fills and reads the widgets of the group "Advanced".

    Parameters
    ----------
    context : Context
    panel : Panel
        Whose form holds the widgets, and which says whether it is showing.
    """

    def __init__(self, context: Context, panel) -> None:
        self.context, self.panel, self.ui = context, panel, panel.ui
        self._form = OptionForm(self.ui.optionsLayout, panel, self._keep)
        for name in [DEFAULT_METHOD, *(m for m in METHODS if m != DEFAULT_METHOD)]:
            title = METHODS[name].title
            shown = _("{title} (usual)").format(title=title) if name == DEFAULT_METHOD else title
            self.ui.methodBox.addItem(shown, name)
        devices = [(_("best available"), "auto"), (_("graphics card (CUDA)"), "cuda"), (_("processor only"), "cpu")]
        if sys.platform == "darwin":
            devices[1] = (_("graphics processor (Metal)"), "mps")
        for shown, name in devices:
            self.ui.deviceBox.addItem(shown, name)
        self.ui.methodBox.connect("currentIndexChanged(int)", self._choose_method)
        self.ui.deviceBox.connect("currentIndexChanged(int)", self._choose_device)
        self.ui.minutesBox.connect("valueChanged(int)", self._set_minutes)
        self.ui.seedBox.connect("valueChanged(int)", self._set_seed)
        self.ui.defaultsButton.clicked.connect(self.defaults)

    @property
    def editors(self) -> dict[str, Any]:
        """The widgets of the method's options, by name."""
        return self._form.editors

    def look(self) -> None:
        """Show the user's choices; the methods are those for labelled scans."""
        state, ui = self.context.state, self.ui
        # They lie in a frame of their own: what is shown within the group itself would be seen although it is folded.
        for widget in (ui.methodCaption, ui.methodBox, ui.methodSummary, ui.optionsFrame):
            widget.visible = state.labelled
        info = method_info(state.method if state.method in METHODS else DEFAULT_METHOD)
        select(ui.methodBox, info.name)
        select(ui.deviceBox, state.device)
        set_property(ui.methodSummary, "text", info.summary)
        set_property(ui.minutesBox, "value", round(state.minutes))
        set_property(ui.seedBox, "value", state.seed)
        self._form.show(info.options, filled(info.options, json.loads(state.methodOptions), {}))

    def _keep(self, option: Option, value: Any) -> None:
        state = self.context.state
        state.methodOptions = kept(json.loads(state.methodOptions), option, value, option.default)

    # what the user does

    def _choose_method(self, index: int) -> None:
        if not self.panel.showing:
            name = self.ui.methodBox.itemData(index)
            self.context.state.methodOptions = "{}"  # they are the other method's
            self.context.state.method = "" if name == DEFAULT_METHOD else name

    def _choose_device(self, index: int) -> None:
        if not self.panel.showing:
            self.context.state.device = self.ui.deviceBox.itemData(index)

    def _set_minutes(self, value: int) -> None:
        if not self.panel.showing:
            self.context.state.minutes = float(value)

    def _set_seed(self, value: int) -> None:
        if not self.panel.showing:
            self.context.state.seed = value

    def defaults(self) -> None:
        """Set everything under "Advanced" back."""
        state = self.context.state
        state.methodOptions, state.method, state.minutes, state.seed, state.device = "{}", "", 0.0, 0, "auto"
