"""How an adaptation to unlabelled scans stands, and what the check afterwards says of it, in words. No widgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slicer.i18n import tr as _

from peftseg.gate import REFUSED, WARNING
from peftseg.models import ModelEntry

from .. import texts
from ..runner import Task
from .adapt_progress import is_waiting, short

FEWEST_SCANS, GOOD_SCANS = 3, 10
SHOWN_NAMES = 4
LENGTH = 40  # characters of a name within a sentence
Words = tuple[str, int, int]


def about(entry: ModelEntry | None) -> str:
    """What the unlabelled choice does and does not."""
    text = _(
        "For scans of a new scanner, without labels: the model gets used to how they look, so that it finds there, too, "
        "what it knows{names}. It learns no new structure. Afterwards it is checked whether this did good or harm; that check "
        "errs now and then: look at the results before you rely on them."
    )
    return text.format(names=f" ({_some([s.name for s in entry.structures])})" if entry is not None else "")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(short(name, LENGTH) for name in names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return _("{names} and {n} more").format(names=shown, n=more) if more > 0 else shown


def kind_reason(entry: ModelEntry | None) -> str:
    """Why a model cannot be adapted without labels at all, or ""."""
    if entry is None:
        return _("Choose a model in step 1 first")
    if not entry.structures:
        return _("{model} finds no structure by itself: it has to be adapted to labelled scans").format(
            model=entry.title
        )
    return ""


def caption(chosen: int, total: int) -> str:
    """What stands above the list of scans."""
    if not total:
        return _("No scan without labels is loaded.")
    return _("{n} of {total} scans without labels:").format(n=chosen, total=total)


def too_few(chosen: int) -> str:
    """A warning where the scans are so few that they say little, or ""."""
    if not 0 < chosen < FEWEST_SCANS:
        return ""
    counted = _("Only 1 scan") if chosen == 1 else _("Only {n} scans").format(n=chosen)
    return _("{counted}: that says little about the scanner. Take at least {n}, better {many}.").format(
        counted=counted, n=FEWEST_SCANS, many=GOOD_SCANS
    )


# while it runs


def stage(task: Task, usual: Words) -> Words:
    """Text, value and maximum of a progress bar; `usual` is what counts for every task that has not begun to work."""
    if task.state != "running" or is_waiting(task) or not task.progress:
        return usual
    part = task.progress if task.progress["stage"] != "windows" else task.note.get("part", task.progress)
    judging = part["stage"] == "gate" and int(part["step"]) > 0
    if task.stopping and not (task.note.get("keeps") and judging):
        return usual
    return _working(part["stage"], int(part["step"]), int(part["total"]), part.get("eta_s"))


def _working(name: str, step: int, total: int, eta: float | None) -> Words:
    if name == "train":
        return _learning(step, total, eta)
    if name == "gate":
        return (
            (_("Looking at the model's results as it is..."), _("Checking the results after the adaptation..."))[
                min(step, 1)
            ],
            0,
            0,
        )
    counted = {
        "read": _("Reading the scans: {n} of {total}"),
        "match": _("Comparing the brightness with that of scans that the model knows: {n} of {total}"),
        "early_head": _("Preparing a second opinion of the model on the scans: {n} of {total}"),
        "recalibrate": _("Getting used to the grey values: {n} of {total}"),
    }
    if name in counted and total:
        return counted[name].format(n=step, total=total), step, total
    return _("Working..."), 0, 0


def _learning(step: int, total: int, eta: float | None) -> Words:
    if step >= total:
        return _("Learnt; the check is next..."), step, total
    text = _("Learning, pass {n} of {total}").format(n=step + 1, total=total)
    if eta:
        text += ", " + texts.time_left(eta) + _(", then the check")
    return text, step, total


def agreement_now(value: float | None) -> str:
    """The running score of an adaptation without labels; it is no accuracy, because nothing says what is right."""
    if value is None:
        return ""
    return _("Agreement with itself (not accuracy): {value:.2f}").format(value=value)


# what came of it


def is_refused(ending: dict[str, Any]) -> bool:
    """Whether the check advises against the adapter."""
    return ending["verdict"]["status"] == REFUSED


def headline(ending: dict[str, Any]) -> str:
    """The verdict in words; of an adapter that was put into the library, that it was."""
    name, status = ending["name"], ending["verdict"]["status"]
    if ending.get("ref") is not None:
        text = _("Adapter '{name}', version {version}, saved.").format(name=name, version=ending["version"])
        return text + (" " + _("The check had refused it: use it with care.") if status == REFUSED else "")
    if status == REFUSED:
        return _(
            "Refused: keep using the model as it is. '{name}' would probably make the results worse; nothing was saved."
        ).format(name=name)
    if status == WARNING:
        return _("Accepted with a warning: '{name}' can be kept, but look at its results with care.").format(name=name)
    return _("Accepted: '{name}' passed the check and can be kept.").format(name=name)


def reasons(ending: dict[str, Any]) -> str:
    """The check's reasons, one a line."""
    return "\n".join(f"• {reason}" for reason in ending["verdict"]["reasons"])


def title_state(ending: dict[str, Any], shown_name: str) -> str:
    """The end of the section's header when it is done."""
    if ending.get("ref") is not None:
        return _("'{name}' saved").format(name=shown_name)
    refused = is_refused(ending)
    return (_("'{name}' refused") if refused else _("keep '{name}'?")).format(name=shown_name)
