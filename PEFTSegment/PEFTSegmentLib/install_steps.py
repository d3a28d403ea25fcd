"""An installation as data: the steps, what they change, what stands in the way. No slicer: importable anywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_ = getattr(sys.modules.get("slicer.i18n"), "tr", str)


@dataclass(frozen=True)
class Step:
    """One thing that is done.

    Attributes
    ----------
    kind : str
        "clean" (remove the description that an interrupted installation left), "remove" (uninstall), "environment" (make the
        separate environment), "torch extension" (by the extension PyTorch) or "install" (by pip).
    sentence : str
        What is done, in plain words.
    requirements : tuple of str
        What pip is asked for, or uninstalls; for "clean" the folder.
    options : tuple of str
        Further arguments of pip; for "torch extension" the build.
    changes : tuple of str
        What is there already and becomes another version, one sentence each.
    """

    kind: str
    sentence: str
    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TorchChoice:
    """A way to install torch when the extension PyTorch is not there: key for `make_plan(torch_by=...)` and its words."""

    key: str
    title: str


@dataclass(frozen=True)
class InstallPlan:
    """An installation, before it is done.

    Attributes
    ----------
    python : str
        The interpreter that gets the packages.
    own : bool
        Whether that is Slicer's own.
    isolated : bool
        Whether it is the separate environment; it is then set as the interpreter that runs the engine.
    steps : tuple of Step
        Nothing to do: empty.
    warnings : tuple of str
        What may go wrong on this computer.
    question : str
        What is to be decided first, "" when nothing is: make the plan again with `torch_by` one of `choices`.
    choices : tuple of TorchChoice
    missing_wheels : tuple of str
        What the folder of wheels lacks; such a plan cannot be run.
    base_python : str or None
        The Python that makes the separate environment.
    wheels_folder : Path or None
    torch_by : str or None
    """

    python: str
    own: bool
    isolated: bool
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    question: str = ""
    choices: tuple[TorchChoice, ...] = ()
    missing_wheels: tuple[str, ...] = ()
    base_python: str | None = None
    wheels_folder: Path | None = None
    torch_by: str | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """What becomes another version, of all steps."""
        return tuple(change for step in self.steps for change in step.changes)

    @property
    def needs_consent(self) -> bool:
        """Whether something that is installed is changed; the user must agree to that by itself."""
        return bool(self.changes)

    @property
    def obstacle(self) -> str:
        """Why the plan cannot be run yet, "" when it can."""
        if self.question:
            return self.question
        if self.missing_wheels:
            return _("The folder of packages is not complete.")
        if self.isolated and self.base_python is None and any(s.kind == "environment" for s in self.steps):
            return _(
                "No other Python (3.10 to 3.13) was found on this computer. Install one, or choose an interpreter."
            )
        return ""
