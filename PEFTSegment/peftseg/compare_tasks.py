"""The tasks of a comparison: structures, scans to learn from, scans to be scored on. Torch-free."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftseg.errors import BadInput, PeftsegError
from peftseg.events import Reporter
from peftseg.models import Structure
from peftseg.patients import of_one_patient, patients_of
from peftseg.study import SupportItem, load_support_item
from peftseg.volume import file_stem

MOST_TOLD = 10  # scans that cannot be used
COUNTED_ALONE = "each counts as one of its own, and intervals say nothing about other patients"


@dataclass(frozen=True)
class Task:
    """Structures to learn, labelled scans to draw support sets from, and scans to score on (empty: the drawn-out rest)."""

    name: str
    structures: tuple[Structure, ...]
    support: tuple[SupportItem, ...]
    test: tuple[SupportItem, ...] = ()


def of_task(task: Task, tasks: Sequence[Task]) -> str:
    """Words that tell a task from the others; none where it is the only one."""
    return f" of task '{task.name}'" if len(tasks) > 1 else ""


def check_tasks(tasks: Sequence[Task], shots: Sequence[int]) -> None:
    """Refuse what cannot be run, or would not be a test.

    Raises
    ------
    BadInput
        No task, two of one name, more shots than scans, test scans that are labelled on some slices only, and test scans
        that are support scans of any of the tasks.
    """
    names = [task.name for task in tasks]
    if not names:
        raise BadInput("There is no task to compare methods on.", "Name one or more tasks.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"Two tasks have the name '{twice}'.", "Give each task its own name.")
    for task in tasks:
        _check_shots(task, tasks, shots)
        _check_slices(task, tasks)
    for task in tasks:
        for other in tasks:
            _check_apart(task, other, tasks)


def check_scans(tasks: Sequence[Task], replace_nonfinite: float | None, reporter: Reporter) -> None:
    """Read every scan of every task with its labels once: what cannot be used is told before hours of training.

    Raises
    ------
    BadInput
        Names all scans that cannot be used, and why.
    JobCancelled
    """
    asked = [(task, role, item) for task in tasks for role, item in _by_role(task)]
    problems: list[tuple[str, str]] = []
    for number, (task, role, item) in enumerate(asked, start=1):
        reporter.check()
        try:
            load_support_item(item, task.structures, replace_nonfinite)
        except PeftsegError as error:
            where = f"the {role} scan {file_stem(item.image)}{of_task(task, tasks)}"
            problems.append((f"{where}: {error.message}", error.remedy))
        reporter.progress("read", number, len(asked))
    if problems:
        told = [message for message, _ in problems[:MOST_TOLD]]
        more = [f"and {len(problems) - MOST_TOLD} more"] if len(problems) > MOST_TOLD else []
        remedies = list(dict.fromkeys(remedy for _, remedy in problems[:MOST_TOLD]))
        raise BadInput(
            f"{len(problems)} of {len(asked)} scans cannot be used, so nothing was started. {' '.join([*told, *more])}",
            " ".join(remedies),
        )


def _by_role(task: Task) -> Iterator[tuple[str, SupportItem]]:
    for role, items in (("support", task.support), ("test", task.test)):
        yield from ((role, item) for item in items)


def task_warnings(tasks: Sequence[Task], shots: Sequence[int], draws: int) -> Iterator[str]:
    """What the user should know about the scans before anything runs."""
    for task in tasks:
        scans, where = len(task.support), of_task(task, tasks)
        if draws > 1 and scans in shots:
            yield f"{scans} shots of {scans} scans{where} are the same scans in every draw; only the seed differs."
        if len(task.test) < 2:
            yield f"One test scan{where}: intervals say nothing about other patients."
        if of_one_patient(patients_of(task.test)):
            yield (f"All test scans{where} are of one patient: {COUNTED_ALONE}.")


def _check_shots(task: Task, tasks: Sequence[Task], shots: Sequence[int]) -> None:
    for count in shots:
        if not 1 <= count <= len(task.support):
            raise BadInput(
                f"{count} shots cannot be drawn from {len(task.support)} support scans{of_task(task, tasks)}.",
                f"Give --shots from 1 to {min(len(t.support) for t in tasks)}.",
            )


def _check_slices(task: Task, tasks: Sequence[Task]) -> None:
    for item in task.test:
        sliced = [name for name, state in item.states.items() if state.slices is not None]
        if sliced:
            raise BadInput(
                f"The test scan {file_stem(item.image)}{of_task(task, tasks)} labels {sliced[0]} on some slices only.",
                "A test scan must be labelled as a whole: complete it, or move it to the support scans.",
            )


def _check_apart(task: Task, other: Task, tasks: Sequence[Task]) -> None:
    """No test scan of a task is a support scan of the other (or of itself), under whatever name."""
    for item in task.test:
        same = next((s for s in other.support if _same_file(s.image, item.image)), None)
        if same is not None:
            raise BadInput(
                f"The test scan {file_stem(item.image)}{of_task(task, tasks)} is also the support scan "
                f"{file_stem(same.image)}{of_task(other, tasks)}.",
                "Scores on scans that were learnt from say nothing: move it out of one of the folders.",
            )


def _same_file(first: str, second: str) -> bool:
    one, other = Path(first), Path(second)
    if not (one.is_file() and other.is_file()):
        return one.resolve() == other.resolve()
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
