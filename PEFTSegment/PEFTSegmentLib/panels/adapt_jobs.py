"""The check before an adaptation and the adaptation itself as background jobs. No widgets.

A finished adaptation stays with its folder, also over a restart of Slicer, until the user has dismissed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from peftseg.config import AdaptJob, CheckJob
from peftseg.events import Event
from peftseg.patients import by_patient, patients_differ

from .. import dialogs, work
from ..context import Context
from ..dialogs import Problem
from ..plots import Curves
from ..runner import Task
from .adapt_choices import Support, fingerprint, no_estimate
from .adapt_progress import with_names
from .adapt_resume import can_go_on

CHECK, ADAPT = "check before adapting", "adapt"
COSTS = ("seconds", "memory_gb", "free_gb")
MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Checked:
    """What a check has found so far.

    Attributes
    ----------
    fingerprint : str
        What it is valid for.
    tokens : tuple of str
        The scans, in the order of their numbers.
    facts : dict
        Time and memory; with everything else that `peftseg.check` tells when it has ended.
    device : str
        "cpu", "cuda:0"...
    ended : bool
    """

    fingerprint: str
    tokens: tuple[str, ...]
    facts: dict[str, Any]
    device: str
    ended: bool


class AdaptJobs:
    """Submits checks and adaptations and takes what they tell.

    Parameters
    ----------
    context : Context
    support_now : callable
        Gives the support set as it is now.
    go_on : callable
        Called when a check that an adaptation waits for has found nothing against it.
    """

    def __init__(self, context: Context, support_now: Callable[[], Support], go_on: Callable[[str], None]) -> None:
        self._context, self._support_now, self._go_on = context, support_now, go_on
        self.checked: Checked | None = None
        self.asks = False  # the model already matches the labels: the user decides
        self.message = ""
        self.curves: dict[str, Curves] = {}
        context.runner.on(CHECK, self._hear_check)
        context.runner.on(ADAPT, self._hear_adaptation)

    # what there is

    def check_now(self) -> Task | None:
        """The check that runs."""
        return next((task for task in self._context.runner.of(CHECK) if task.active), None)

    def finished(self) -> Task | None:
        """The newest adaptation that nobody has dismissed."""
        return next((t for t in reversed(self._context.runner.of(ADAPT)) if t.state == "finished"), None)

    def is_current(self, found: Support) -> bool:
        """Whether the last check is valid for the choices as they are now."""
        return self.checked is not None and self.checked.fingerprint == fingerprint(self._context, found)

    # asking for work

    def check(self, found: Support, then_adapt: bool, goes_on: bool = False) -> Task:
        """Start a check, of an adaptation that goes on from an adapter perhaps; PeftsegError says what is missing."""
        self.asks, self.message = False, ""
        note = {
            "purpose": CHECK,
            "title": _("Check before adapting"),
            "fingerprint": fingerprint(self._context, found),
            "then_adapt": then_adapt,
        }
        more = {"estimate": "none"} if goes_on or no_estimate(found) else {}
        return work.submit_support(self._context, note, CheckJob, **more)

    def adapt(self, found: Support, name: str, start: dict[str, Any] | None = None) -> Task:
        """Start an adaptation; `start` has the fields of one that goes on from an adapter. PeftsegError says what is
        missing."""
        start = start or {}
        self.asks, self.message = False, ""
        note = {
            "purpose": ADAPT,
            "title": _("Adapt: {name}").format(name=name),
            "adapter": name,
            "structures": [s.name for s in found.wanted],
            "colours": [list(s.colour) for s in found.wanted],
            "estimate": self._context.state.estimate and not start and not no_estimate(found),
            "patients": len(by_patient(found.patients)) if patients_differ(found.patients) else 0,
        }
        if no_estimate(found):
            start = {"estimate": "none", **start}

        def out(folder: Path) -> str:
            return str(folder / "result" / "adapter.safetensors")

        return work.submit_support(self._context, note, AdaptJob, out=out, name=name, store=True, **start)

    def dismiss(self, task: Task) -> None:
        """Take an ended adaptation off the list and delete its folder."""
        self.curves.pop(task.folder.name, None)
        self._context.runner.forget(task)

    # what they tell

    def _hear_check(self, task: Task, events: list[Event]) -> None:
        tokens, mark = tuple(task.note["scans"]), task.note["fingerprint"]
        for event in events:
            _note_event(task, event)
            if event["event"] == "progress" and event.get("seconds") is not None:
                facts = {name: event[name] for name in COSTS}
                self.checked = Checked(mark, tokens, facts, task.note.get("device", ""), False)
        if task.active:
            if task.note.get("earlier") and not task.stopping:
                self._context.runner.cancel(task)  # nobody waits for it any more
            return
        if task.state == "finished" and not task.note.get("earlier"):
            self.checked = Checked(mark, tokens, task.ending, task.ending["device"], True)
            self._judge(task)
        elif task.state == "failed" and not task.note.get("earlier"):
            what = _("The check before adapting did not finish.")
            dialogs.show_later(dialogs.problem_of_event(task.ending, what))
        self._context.runner.forget(task)

    def _judge(self, task: Task) -> None:
        """Tell what is wrong, or go on with the adaptation that waits for this check."""
        problems = task.ending["problems"]
        if problems:
            dialogs.show_later(_problem(problems, task.note["scans"]))
            return
        if not task.note["then_adapt"]:
            return
        if not self.is_current(self._support_now()):
            self.message = _("Scans, labels or options have changed during the check: press Adapt once more.")
        elif task.ending["already_matches"]:
            self.asks = True
        else:
            self._go_on(task.note["fingerprint"])

    def _hear_adaptation(self, task: Task, events: list[Event]) -> None:
        if take_events(task, events, self.curves):
            self.dismiss(task)


def take_events(task: Task, events: list[Event], known: dict[str, Curves]) -> bool:
    """What an adaptation tells, with or without labels; whether it is of no further use.

    Its curves are put into `known`, by the name of its folder.
    """
    curves = _curves_of(task, known)
    for event in events:
        _note_event(task, event)
        if event["event"] == "progress":
            curves.add(event)
    return _bad_ending(task)


def _curves_of(task: Task, known: dict[str, Curves]) -> Curves:
    """Without labels there are no structures to match."""
    if task.folder.name not in known:
        pairs = zip(task.note.get("structures", ()), task.note.get("colours", ()), strict=False)
        known[task.folder.name] = Curves(tuple((name, tuple(colour)) for name, colour in pairs))
    return known[task.folder.name]


def _bad_ending(task: Task) -> bool:
    """Tell of an adaptation that has failed, once; whether one that did not finish is of no further use."""
    if task.active or task.state == "finished" or task.note.get("earlier"):
        return False
    if task.state == "failed":
        what = _("The adaptation '{name}' did not finish.").format(name=task.note["adapter"])
        problem = dialogs.problem_of_event(task.ending, what)
        why = with_names(problem.why, task.note["scans"])
        dialogs.show_later(Problem(what, why, problem.remedy, problem.details))
    return not can_go_on(task)


def _note_event(task: Task, event: Event) -> None:
    """Keep what the words about a task need beyond its last event."""
    kind = event["event"]
    if kind == "queued":
        task.note["waits"] = True
    elif kind == "started":
        task.note["device"] = event["device"]
    elif kind == "progress" and event["stage"] != "windows":
        task.note["part"] = event


def _problem(problems: list[dict[str, Any]], tokens: list[str]) -> Problem:
    """One dialog for all scans that cannot be used."""
    texts = [with_names(row["message"], tokens) for row in problems]
    why = "\n".join(texts[:MOST_PROBLEMS])
    if len(texts) > MOST_PROBLEMS:
        why += "\n" + _("and {n} more scans").format(n=len(texts) - MOST_PROBLEMS)
    what = _("Nothing was adapted: a scan cannot be used.")
    if len(texts) > 1:
        what = _("Nothing was adapted: {n} scans cannot be used.").format(n=len(texts))
    details = "\n".join(f"{text} {row['remedy']}" for text, row in zip(texts, problems, strict=True))
    return Problem(what, why, problems[0]["remedy"], details)
