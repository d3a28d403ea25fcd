"""What must stay the same while a comparison goes on, as its folder keeps it (`compare.json`). Torch-free.

Format 2 has the scans and structures by task. Format 1 had one task, without a name of its own: that of the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftseg.adapters.table import METHODS, check_options
from peftseg.compare_tasks import Task
from peftseg.download import file_hash
from peftseg.errors import BadInput
from peftseg.patients import by_patient
from peftseg.study import SupportItem
from peftseg.volume import file_stem

FORMAT = 2
RUNS, SETTINGS = "runs.csv", "compare.json"
GROWING = ("tasks", "candidates")  # that may be added to; what is there stays as it is
_OF_TASK = ("structures", "support", "test")


def task_settings(tasks: Sequence[Task]) -> dict[str, Any]:
    """Task's name -> structures with their values, and what tells that a scan or its labels were changed."""
    return {
        task.name: {
            "structures": {s.name: s.value for s in task.structures},
            "support": {file_stem(item.image): _identity(item) for item in task.support},
            "test": {file_stem(item.image): _identity(item) for item in task.test},
        }
        for task in tasks
    }


def merged_settings(path: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the tasks and candidates that are there already.

    Parameters
    ----------
    path : Path
        The folder's settings, of this format or an older one; it need not be there in a new folder.
    new : mapping
        From `comparison.settings_of`.

    Raises
    ------
    BadInput
        Says what differs; also for a file that is missing beside rows, damaged, or of a newer program.
    """
    if not path.is_file():
        if (path.parent / RUNS).is_file():
            raise BadInput(f"{path} is missing beside {RUNS}.", "Restore it, or choose another folder.")
        return dict(new)
    old = _read(path)
    differing = [_difference(k, old.get(k), new[k]) for k in new if k not in GROWING and old.get(k) != new[k]]
    for key in GROWING:
        before, now = old[key], new[key]
        differing += [_difference(n, before[n], now[n]) for n in now if before.get(n, now[n]) != now[n]]
    if differing:
        raise BadInput(
            f"{path.parent} holds a comparison with other settings: {'; '.join(differing)}.",
            "Give the same settings to go on with it, or another folder with --out.",
        )
    return {**new, **{key: old[key] | new[key] for key in GROWING}}


def patients_of_task(of_task: Mapping[str, Any]) -> dict[str, int | None]:
    """Scan -> number of its patient (None: not known), of the scans of a task that are scored: the test scans.

    Parameters
    ----------
    of_task : mapping
        A task's entry of the settings.
    """
    found = {scan: re.search(r"; patient (\d+)$", identity) for scan, identity in of_task["test"].items()}
    return {scan: int(match[1]) if match else None for scan, match in found.items()}


def same_patients(settings: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(task, test scan) -> the first scan of the same patient, of patients with several scans.

    Where all scans are of one patient, each counts alone: nothing would be left to compare patients by.
    """
    found = {}
    for task, of_task in settings["tasks"].items():
        patients = patients_of_task(of_task)
        scans = list(patients)
        for group in by_patient(list(patients.values())):
            found |= {(task, scans[n]): scans[group[0]] for n in group if len(group) > 1}
    return found


def _read(path: Path) -> dict[str, Any]:
    """The settings of a folder in today's form."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}).", "Restore it, or choose another folder.") from error
    number = old.get("format") if isinstance(old, dict) else None
    if type(number) is int and number > FORMAT:
        raise BadInput(
            f"{path} has format {number}; this program knows formats up to {FORMAT}.",
            "Use the newer program that wrote it, or choose another folder.",
        )
    if number == 1 and isinstance(old.get("model"), str) and all(key in old for key in _OF_TASK):
        old["tasks"] = {old["model"]: {key: old.pop(key) for key in _OF_TASK}}
        old["format"] = FORMAT
    if type(number) is not int or not all(isinstance(old.get(key), dict) for key in GROWING):
        raise BadInput(f"{path} is damaged: it is no comparison.", "Restore it, or choose another folder.")
    return old | {"candidates": {label: _renewed(facts) for label, facts in old["candidates"].items()}}


def _renewed(facts: Any) -> Any:
    """A candidate's settings with the options that its method has got since, at their defaults."""
    if not isinstance(facts, dict) or facts.get("method") not in METHODS:
        return facts
    try:
        return facts | {"options": check_options(facts["method"], facts.get("options", {}))}
    except BadInput:  # an option that is no more: shown as a difference
        return facts


def _identity(item: SupportItem) -> str:
    """What tells that a scan or its labels were changed: size of the image, hash of the labels, states, whose it is."""
    image = Path(item.image)
    size = image.stat().st_size if image.is_file() else sum(p.stat().st_size for p in image.iterdir() if p.is_file())
    states = [f"{name} {state.state} {state.slices} {state.axis}" for name, state in sorted(item.states.items())]
    # `auto` leaves out patients, and `patients_of_task` reads it.
    patient = [] if item.patient is None else [f"patient {item.patient}"]
    return "; ".join([str(size), file_hash(Path(item.labels), "sha256")[:16], *states, *patient])


def _difference(name: str, old: Any, new: Any) -> str:
    """What differs, down to the entry of a table."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(_difference(f"{name}.{key}", old.get(key), new.get(key)) for key in keys)
    return f"{name} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
