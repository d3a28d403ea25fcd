"""What all panels have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import slicer

from . import dialogs
from .context import Context


class Panel:
    """The contents of one section.

    Attributes
    ----------
    STEP : int
        Its number, from 1.
    FORM : str
        File in Resources/UI.
    ui :
        The form's widgets by name.
    """

    STEP = 0
    FORM = ""

    def __init__(self, context: Context, section) -> None:
        """Load the form into a section (a ctkCollapsibleButton with a layout)."""
        self.context = context
        self.section = section
        self.form = slicer.util.loadUI(str(context.resources / "UI" / self.FORM))
        section.layout().addWidget(self.form)
        self.ui = slicer.util.childWidgetVariables(self.form)
        self.form.setMRMLScene(slicer.mrmlScene)
        self._showing = False

    @property
    def state(self):
        """The user's choices."""
        return self.context.state

    def title(self) -> str:
        """The section's header, with the state in one line: "2 Support scans - 4 of 5 ready"."""
        raise NotImplementedError

    def look(self) -> None:
        """Show the scene and the user's choices; called whenever they have changed, so it must be cheap."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Look again, without taking the widgets' own signals for the user's."""
        self._showing = True
        try:
            self.look()
        finally:
            self._showing = False
        title = self.title()
        if self.section.text != title:
            self.section.text = title

    @property
    def showing(self) -> bool:
        """Whether widgets change because the panel shows something, not because the user acts."""
        return self._showing

    def enter(self) -> None:
        """The module is shown."""

    def exit(self) -> None:
        """Another module is shown."""

    def scene_closing(self) -> None:
        """The scene is about to be emptied."""

    def cleanup(self) -> None:
        """The module is unloaded."""

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Show any error of a user's action in a dialog: `what` says what did not work."""
        try:
            yield
        except Exception as error:
            dialogs.show(dialogs.problem_of(error, what))


def enable(widget, reason: str, tip: str = "") -> None:
    """Enable a widget, or disable it with the reason as its tool tip; `reason` is "" when it can work."""
    widget.enabled = not reason
    widget.toolTip = reason or tip
