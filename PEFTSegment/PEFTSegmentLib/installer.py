"""Runs an installation plan in Slicer: never at import, never without having been agreed to.

Packages go in by `slicer.packaging` (5.12 and later, without blocking), else by `slicer.util.pip_install`; into another
interpreter by its own pip in a process; torch by the extension PyTorch where the plan says so (torch_extension.py).
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import qt
import slicer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from slicer.i18n import tr as _

from peftseg.errors import BadInput, PeftsegError
from peftseg.jobs import worker_environment
from peftseg.paths import home, owner_only, write_text

from . import environment_facts
from .environment import RESTART, examine_environment, run_facts
from .install_errors import InstallFailed, explain_failure
from .install_plan import constraints_text
from .install_resume import Pending, forget_pending, pending_after_restart, remember_pending, restart_and_go_on
from .install_steps import InstallPlan, Step
from .interpreter import INTERPRETER_KEY, check_interpreter, chosen_interpreter, set_interpreter, start_report
from .line_process import LineProcess
from .separate_environment import environment_folder, environment_python
from .torch_extension import install_torch_by_extension, light_the_torch_arguments

__all__ = [
    "Installation",
    "Outcome",
    "Pending",
    "check_interpreter",
    "chosen_interpreter",
    "log_file",
    "pending_after_restart",
    "remember_pending",
    "restart_and_go_on",
    "set_interpreter",
    "start_report",
]

RAW_PROGRESS = Version("24.1")  # the pip that prints its progress as lines
PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,]+ ")


@dataclass(frozen=True)
class Outcome:
    """How an installation ended.

    Attributes
    ----------
    kind : str
        "finished", "failed", "cancelled", or "skipped" (Slicer's testing mode).
    error : InstallFailed or None
    log_path : Path or None
        Everything that pip printed.
    restart : bool
        Whether Slicer must be restarted before it is used.
    """

    kind: str
    error: InstallFailed | None = None
    log_path: Path | None = None
    restart: bool = False


def log_file() -> Path:
    """Where the output of the last installation is kept."""
    return home() / "install.log"


def _ignore(*_anything: object) -> None:
    """Stand in for a callback that nobody gave."""


class Installation:
    """One run of a plan, step by step; nothing here blocks but Slicer 5.10's own pip.

    Parameters
    ----------
    plan : InstallPlan
    on_line : callable
        Gets each line of pip.
    on_step : callable
        Gets (number from 1, number of steps, sentence) when a step begins.
    on_progress : callable
        Gets (bytes so far, bytes in all) of a download, where pip tells.
    on_done : callable
        Gets the Outcome, once.
    """

    def __init__(
        self,
        plan: InstallPlan,
        on_line: Callable[[str], None] = _ignore,
        on_step: Callable[[int, int, str], None] = _ignore,
        on_progress: Callable[[int, int], None] = _ignore,
        on_done: Callable[[Outcome], None] = _ignore,
    ) -> None:
        self.plan = plan
        self.running = False
        self.lines: list[str] = []
        self._on_line, self._on_step, self._on_progress, self._on_done = on_line, on_step, on_progress, on_done
        self._todo: list[Step] = []
        self._process: LineProcess | None = None
        self._cancelled = False

    def start(self, agreed: bool, agreed_to_changes: bool = False, in_testing: bool = False) -> None:
        """Begin. The user has seen the plan and agreed.

        Parameters
        ----------
        agreed : bool
            To the plan.
        agreed_to_changes : bool
            To changes of what is installed, where the plan has any.
        in_testing : bool
            Whether to install in Slicer's testing mode too.

        Raises
        ------
        BadInput
            Without agreement, when the plan cannot be run, or another installation runs.
        """
        if not agreed:
            raise BadInput(_("Nothing is installed without your agreement."), _("Look at the plan and press Install."))
        if self.plan.needs_consent and not agreed_to_changes:
            raise BadInput(
                _("The plan changes packages that are installed: {changes}").format(
                    changes=" ".join(self.plan.changes)
                ),
                _("Agree to that, or choose a separate environment."),
            )
        if self.plan.obstacle:
            raise BadInput(self.plan.obstacle, _("Decide that first."))
        if self.running or pip_is_busy():
            raise BadInput(_("Another installation is running."), _("Wait until it has ended, then try again."))
        if slicer.app.testingEnabled() and not in_testing:
            self._on_done(Outcome("skipped"))
            return
        self.running, self._todo = True, list(self.plan.steps)
        self._next()

    def cancel(self) -> None:
        """Stop: a process at once, Slicer's own pip after the step that it is in."""
        self._cancelled = True
        if self._process is not None:
            self._process.kill()

    def _next(self) -> None:
        if self._cancelled:
            self._end("cancelled")
        elif not self._todo:
            self._end("finished")
        else:
            step = self._todo[0]
            count = len(self.plan.steps)
            self._on_step(count - len(self._todo) + 1, count, step.sentence)
            self._line(f"# {step.sentence}")
            self._attempt(step)

    def _attempt(self, step: Step) -> None:
        run = {
            "clean": self._clean,
            "remove": self._remove,
            "environment": self._make_environment,
            "torch extension": self._install_torch,
            "install": self._install,
        }[step.kind]
        try:
            run(step)
        except CalledProcessError as error:
            self._step_ended(error.returncode or 1)
        except (PeftsegError, OSError, RuntimeError, ImportError) as error:
            self._line(f"ERROR: {error}")
            self._step_ended(1)

    def _step_ended(self, code: int) -> None:
        self._process = None
        qt.QTimer.singleShot(0, lambda: self._after_step(code))  # not inside of pip's own callback

    def _after_step(self, code: int) -> None:
        step = self._todo.pop(0)
        if code and step.kind == "environment":
            shutil.rmtree(environment_folder(), ignore_errors=True)  # half of one would count as made
        if code and not self._cancelled:
            self._end("failed", step)
        else:
            self._next()

    def _end(self, kind: str, failed: Step | None = None) -> None:
        self.running = False
        importlib.invalidate_caches()
        log = log_file()
        write_text(log, "\n".join(self.lines) + "\n")
        _constraints_file().unlink(missing_ok=True)
        error = explain_failure(self.lines, failed.sentence, log) if failed is not None else None
        restart = False
        if kind == "finished":
            forget_pending()
            if self.plan.isolated:
                qt.QSettings().setValue(INTERPRETER_KEY, str(environment_python()))
            restart = self.plan.own and examine_environment(gpus=()).kind == RESTART
        self._on_done(Outcome(kind, error, log, restart))

    def _line(self, line: str) -> None:
        progress = PROGRESS.match(line)
        if progress:
            self._on_progress(int(progress.group(1)), int(progress.group(2)))
            return
        self.lines.append(line)
        self._on_line(line)

    def _clean(self, step: Step) -> None:
        folder = Path(step.requirements[0])
        if folder.suffix == ".dist-info" and folder.is_dir():
            shutil.rmtree(folder)
        self._step_ended(0)

    def _make_environment(self, _step: Step) -> None:
        owner_only(home())
        base = str(self.plan.base_python)
        self._run([base, "-m", "venv", "--clear", str(environment_folder())], base)

    def _remove(self, step: Step) -> None:
        names = list(step.requirements)
        if not self.plan.own:
            self._run([self.plan.python, "-m", "pip", "uninstall", "--yes", *names], self.plan.python)
        elif slicer_packaging() is not None:
            slicer_packaging().pip_uninstall(
                names, blocking=False, logCallback=self._line, completedCallback=self._step_ended
            )
        else:
            slicer.util.pip_uninstall(names)
            self._step_ended(0)

    def _install(self, step: Step) -> None:
        facts = environment_facts.collect([]) if self.plan.own else run_facts(self.plan.python, [])
        arguments = [*step.requirements, *step.options, "--no-input", *progress_options(facts)]
        constraints = self._constraints(step, facts)
        if not self.plan.own:
            limits = ["-c", str(constraints)] if constraints else []
            self._run([self.plan.python, "-m", "pip", "install", *arguments, *limits], self.plan.python)
        elif slicer_packaging() is not None:
            self._install_in_slicer(arguments, constraints)
        else:
            self._install_in_5_10(arguments, constraints)

    def _install_in_5_10(self, arguments: list[str], constraints: Path | None) -> None:
        """Slicer 5.10's pip blocks and keeps what it prints to itself: pip writes a log of its own."""
        log = owner_only(home()) / "pip.log"
        limits = ["-c", str(constraints)] if constraints else []
        try:
            slicer.util.pip_install([*arguments, *limits, "--log", str(log)])
        finally:
            if log.is_file():
                for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                    self._line(TIMESTAMP.sub("", line))
                log.unlink()
        self._step_ended(0)

    def _install_in_slicer(self, arguments: list[str], constraints: Path | None) -> None:
        ended: list[int] = []

        def end(code: int) -> None:
            ended.append(code)
            self._step_ended(code)

        slicer_packaging().pip_install(
            arguments,
            constraints=str(constraints) if constraints else None,
            blocking=False,
            show_progress=False,
            requester="PEFTSegment",
            logCallback=self._line,
            completedCallback=end,
        )
        if slicer.app.testingEnabled() and not ended:  # in testing mode it blocks and calls nobody back
            end(0)

    def _install_torch(self, step: Step) -> None:
        arguments = light_the_torch_arguments(step)
        if arguments is not None:
            python = shutil.which("PythonSlicer") or sys.executable
            facts = environment_facts.collect([])
            constraints = self._constraints(step, facts)
            limits = ["-c", str(constraints)] if constraints else []
            self._run([python, "-m", "light_the_torch", *arguments, *limits], sys.executable)
        else:
            install_torch_by_extension()
            self._step_ended(0)

    def _constraints(self, step: Step, facts: dict) -> Path | None:
        """File that keeps pip from changing what the step does not name; None where nothing of it is installed."""
        named = tuple(canonicalize_name(Requirement(text).name) for text in step.requirements)
        text = constraints_text(facts, named)
        if not text:
            return None
        write_text(_constraints_file(), text)
        return _constraints_file()

    def _run(self, command: list[str], python: str) -> None:
        self._process = LineProcess(command, worker_environment(python), self._line, self._step_ended)


def slicer_packaging() -> Any:
    """`slicer.packaging`, or None in Slicer 5.10."""
    try:
        return importlib.import_module("slicer.packaging")
    except ImportError:
        return None


def pip_is_busy() -> bool:
    """Whether Slicer's own pip is installing something, for any extension."""
    packaging = slicer_packaging()
    return packaging is not None and packaging.isPipInstallInProgress()


def progress_options(facts: dict) -> list[str]:
    """What makes pip print its progress as lines, where it can."""
    pip = facts["installed"].get("pip")
    return ["--progress-bar=raw"] if pip and Version(pip) >= RAW_PROGRESS else []


def _constraints_file() -> Path:
    return home() / "install-constraints.txt"
