"""Step 5: the place of the maps that explain a result; the engine cannot make them yet."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..panel import Panel, enable


class InspectPanel(Panel):
    """Step 5."""

    STEP = 5
    FORM = "InspectPanel.ui"

    def title(self) -> str:
        """The section's header."""
        return _("5 Inspect - comes later")

    def look(self) -> None:
        """Say that nothing works here yet."""
        for widget in (self.ui.structureCombo, self.ui.opacitySlider, self.ui.showButton):
            enable(widget, _("Comes with a later version"))
