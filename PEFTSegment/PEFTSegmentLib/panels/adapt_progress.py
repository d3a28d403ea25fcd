"""How a check or an adaptation stands, and what it gave, in words. No widgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from slicer.i18n import tr as _

from .. import scans, texts
from ..runner import Task

SHORT = 24  # characters of a name on a header
LONG = re.compile(r"(_|[^\s_]{28})")
SCANS = re.compile(r"\bScans? \d+(?:(?:, | and )\d+)*\b")
NUMBER = re.compile(r"\d+")


def short(name: str, length: int = SHORT) -> str:
    """A name cut to a length."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def on_header(name: str) -> str:
    """A name on the section's header, which is a button and would take & for a shortcut."""
    return short(name).replace("&", "&&")


def breakable(text: str) -> str:
    """A text whose long words may be wrapped: after underscores, as in names of structures, and where they do not end."""
    return LONG.sub("\\1\u200b", text)


def is_waiting(task: Task) -> bool:
    """Whether another job holds the device; a job counts as queued, too, while its process is starting."""
    return task.state == "queued" and bool(task.note.get("waits"))


def stage(task: Task) -> tuple[str, int, int]:
    """What a task does now, and how far it is: text, value and maximum of a progress bar (0: nobody knows)."""
    if task.state == "exporting":
        return _("Preparing the scans..."), 0, 0
    if is_waiting(task):
        return _("Waiting for another job to end..."), 0, 0
    if task.stopping or not task.progress:
        return (_("Stopping...") if task.stopping else _("Starting...")), 0, 0
    return _working(task, task.progress)


def _working(task: Task, progress: dict[str, Any]) -> tuple[str, int, int]:
    if progress["stage"] == "windows":  # within something else
        progress = task.note.get("part", progress)
    name, step, total = progress["stage"], int(progress["step"]), int(progress["total"])
    if progress.get("left_out") or name == "estimate":
        return _estimating(task, progress)
    if name == "choose":
        return _trying(progress)
    if name == "train":
        return _learning(task, progress)
    counted = {
        "check": _("Comparing the model with your labels: {n} of {total}"),
        "read": _("Reading the scans: {n} of {total}"),
    }
    if name in counted:
        return counted[name].format(n=step, total=total), step, total
    return _("Working..."), 0, 0


def _parts(task: Task) -> int:
    """Trainings of a task: the one that counts, and one without each scan, or patient, where accuracy is estimated."""
    return 1 + (task.note.get("patients") or len(task.note["scans"]) if task.note.get("estimate") else 0)


def _learning(task: Task, progress: dict[str, Any]) -> tuple[str, int, int]:
    step, total, eta = int(progress["step"]), int(progress["total"]), progress.get("eta_s")
    end = total * _parts(task)
    if step == 0:
        return _("Learning, pass 1 of {total}...").format(total=total), 0, end
    if step >= total or (eta is None and progress.get("loss") is not None):
        return (_("Learnt; saving...") if _parts(task) == 1 else _("Learnt; estimating the accuracy...")), step, end
    text = _("Pass {n} of {total} (may stop earlier), {left}").format(
        n=step, total=total, left=texts.time_left(eta or 0)
    )
    if _parts(task) > 1:
        text += _(", then the estimate of the accuracy")
    return text, step, end


def _trying(progress: dict[str, Any]) -> tuple[str, int, int]:
    """What the method "automatic" does before the training that counts."""
    eta = progress.get("eta_s")
    text = _("Trying out the method")
    text = f"{text}, {texts.time_left(eta)}" if eta and eta >= 1 else f"{text}..."
    return text, int(progress["step"]), int(progress["total"])


def _estimating(task: Task, progress: dict[str, Any]) -> tuple[str, int, int]:
    parts = _parts(task)
    inside = progress["stage"] == "train"
    left_out = progress.get("patient") or progress.get("left_out")
    number = int(left_out or min(int(progress["step"]) + 1, parts - 1))
    share = int(progress["step"]) / max(1, int(progress["total"])) if inside else 0.0
    text = _("Estimating the accuracy: scan {n} of {total}")
    if task.note.get("patients"):
        text = _("Estimating the accuracy: patient {n} of {total}")
    text = text.format(n=number, total=parts - 1)
    if inside and progress.get("eta_s"):
        each = progress["eta_s"] / max(1e-3, 1 - share)  # what a whole one takes
        left = progress["eta_s"] + each * (parts - 1 - number)
        text += ", " + texts.time_left(left) if left >= 1 else ""
    return text, round(100 * (number + share)), 100 * parts


def title_state(task: Task) -> str:
    """The end of the section's header while a task runs."""
    if is_waiting(task):
        return _("waiting")
    eta = task.progress.get("eta_s")
    learning = task.progress.get("stage") == "train" and _parts(task) == 1
    if task.state != "running" or not eta or not learning or task.stopping:
        return _("running")
    return _("running, {time} left").format(time=texts.duration(eta))


def match_now(match: dict[str, float | None]) -> str:
    """The running score; it is no accuracy, because the scans are those that it learns from."""
    known = [f"{name} {value:.2f}" for name, value in match.items() if value is not None]
    return _("Match to your own labels (not accuracy): {each}").format(each=", ".join(known)) if known else ""


def scan_name(token: str) -> str:
    """Name of a job's scan, "" where it is not in the scene."""
    scan = scans.scan_of(token)
    return scan.GetName() if scan is not None else ""


def with_names(text: str, tokens: Sequence[str]) -> str:
    """The engine's "Scan 3", or "Scans 3 and 4", with the scans' names in the scene."""

    def named(match: re.Match) -> str:
        number = int(match[0])
        name = scan_name(tokens[number - 1]) if 1 <= number <= len(tokens) else ""
        return _("{number} ({name})").format(number=number, name=name) if name else match[0]

    return SCANS.sub(lambda match: NUMBER.sub(named, match[0]), text)


def listed(sentences: Sequence[str], tokens: Sequence[str]) -> str:
    """Warnings as lines, each once."""
    return "\n".join(f"• {with_names(text, tokens)}" for text in dict.fromkeys(sentences))


def saved(ending: dict[str, Any]) -> str:
    """ "Adapter 'x', version 1, saved."; where the method was chosen by the scans, also which one it was."""
    if ending.get("ref") is None:
        text = _("Adapter '{name}' was made, but is not in the library yet. Save it before you close this.").format(
            name=ending["name"]
        )
    else:
        text = _("Adapter '{name}', version {version}, saved.").format(name=ending["name"], version=ending["version"])
    choice = ending.get("choice")
    return f"{text} " + _("Method chosen: {method}.").format(method=choice["label"]) if choice else text


def chosen(ending: dict[str, Any], tokens: Sequence[str]) -> str:
    """Why the method "automatic" chose what it chose; "" for other methods."""
    choice = ending.get("choice")
    return listed(choice["why"], tokens) if choice else ""


def estimated(ending: dict[str, Any], tokens: Sequence[str]) -> str:
    """Each left-out scan's value, worst first; never a bare mean."""
    estimate = ending.get("estimate")
    if not estimate:
        return _("Accuracy: not estimated.")
    title = _("Scans segmented by an adapter that had not seen them (1 is the same as your label, worst first):")
    if (ending.get("patients") or 0) > 1:
        title = _(
            "Scans segmented by an adapter that had not seen their patients (1 is the same as your label, worst first):"
        )
    lines = [title]
    for name, values in estimate.items():
        pairs = sorted((value, number) for number, value in enumerate(values) if value is not None)
        each = [f"{value:.2f}" + _in_brackets(tokens, number) for value, number in pairs]
        lines.append(f"{name}: {', '.join(each) or _('not estimated')}")
    lines.append(_("New studies may be worse."))
    return "\n".join(lines)


def _in_brackets(tokens: Sequence[str], number: int) -> str:
    name = scan_name(tokens[number]) if number < len(tokens) else ""
    return f" ({short(name, 18)})" if name else ""


def unfinished(task: Task) -> str:
    """What became of an adaptation that failed or was cancelled."""
    name, ending = task.note.get("adapter", ""), task.ending or {}
    if task.state == "cancelled":
        return _("The adaptation '{name}' was cancelled. What it had learnt is kept.").format(name=name)
    lines = [_("The adaptation '{name}' did not finish.").format(name=name), ending.get("message", "")]
    return " ".join(line for line in (*lines, ending.get("remedy", "")) if line)
