"""What an adaptation would be made of, whether it can start, and what it would cost. No widgets."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from peftseg import library, licences
from peftseg.adapter_file import NAME_LENGTH, check_name
from peftseg.adapters import table
from peftseg.errors import BadInput, PeftsegError
from peftseg.models import Structure
from peftseg.paths import adapters_dir
from peftseg.patients import by_patient, patients_differ

from .. import scans, structures, support, texts
from ..context import Context
from ..support import Row
from ..work import DEFAULT_METHOD

FEWEST_TO_ESTIMATE = 3  # scans, for leaving each out once
NAMED = 3  # structures that a proposed name holds


@dataclass(frozen=True)
class Support:
    """The support set as it is now.

    Attributes
    ----------
    total : int
        Support scans in the table.
    rows : tuple of Row
        Those that are ready.
    wanted : tuple of Structure
        The structures to learn.
    fingerprint : str
        Changes whenever a scan or a label does, or whose scan it is.
    patients : tuple of int or None
        Of each ready row; see `scans.patient_numbers`.
    """

    total: int
    rows: tuple[Row, ...]
    wanted: tuple[Structure, ...]
    fingerprint: str
    patients: tuple[int | None, ...] = ()


class SupportCache:
    """Looks at the support set, and only again after a change: rows may have hundreds of segments."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._found: Support | None = None

    def look(self, context: Context) -> Support:
        """The support set of the current scene."""
        rows = context.support.rows()
        key = (context.state.structures, context.state.support, *(_row_key(row) for row in rows))
        key += tuple(scans.patient_numbers([row.scan for row in rows]))
        if key != self._key or self._found is None:
            wanted = structures.read(context.state)
            ready = tuple(row for row in rows if wanted and not support.problems(row, wanted))
            patients = tuple(scans.patient_numbers([row.scan for row in ready]))
            seen = json.dumps([*(_seen(row, wanted) for row in ready), patients])
            self._found, self._key = Support(len(rows), ready, wanted, seen, patients), key
        return self._found


def _row_key(row: Row) -> tuple:
    """Changes with everything that a row's state depends on."""
    nodes = (row.scan, row.labels)
    transforms = [n.GetParentTransformNode() if n is not None else None for n in nodes]
    times = [n.GetMTime() for n in (*nodes, *transforms) if n is not None]
    image = row.scan.GetImageData() if row.scan is not None else None
    ids = [n.GetID() if n is not None else "" for n in (*nodes, *transforms)]
    return (row.key, *ids, *times, image.GetMTime() if image is not None else 0, *_label_times(row))


def _label_times(row: Row) -> tuple[int, ...]:
    """When a segmentation's voxels and names were last changed; its own time does not tell."""
    if row.labels is None:
        return ()
    core = row.labels.GetSegmentation()
    layers = [core.GetLayerDataObject(n) for n in range(core.GetNumberOfLayers())]
    named = sum(core.GetNthSegment(n).GetMTime() for n in range(core.GetNumberOfSegments()))
    return (core.GetNumberOfSegments(), named, *(layer.GetMTime() for layer in layers if layer is not None))


def _seen(row: Row, wanted: Sequence[Structure]) -> list:
    """What a check of this row is valid for. The scan's own time is left out: it changes with its attributes."""
    cells = [(s.name, c.state, c.segment, c.slices) for s in wanted for c in [support.cell(row, s)]]
    place = scans.ijk_to_world(row.scan).ravel().tolist()
    layers = _label_times(row)[2:]
    return [row.scan.GetID(), row.scan.GetImageData().GetMTime(), place, row.labels.GetID(), layers, cells]


def fingerprint(context: Context, found: Support) -> str:
    """What a check is valid for: another text after any change of scans, labels, structures, model or options."""
    state = context.state
    own = [state.model, state.structures, state.method, state.methodOptions, state.minutes, state.estimate]
    return json.dumps([*own, state.seed, state.device, found.fingerprint])


# the name


def proposed_name(wanted: Sequence[Structure], day: datetime.date) -> str:
    """A name of the structures and the date."""
    names = [s.name for s in wanted[:NAMED]]
    more = len(wanted) - len(names)
    end = (_(" and {n} more").format(n=more) if more else "") + f", {day.isoformat()}"
    return " + ".join(names)[: NAME_LENGTH - len(end)].strip() + end


class LibraryCache:
    """The adapter library's rows, read again only after its folder has changed."""

    def __init__(self) -> None:
        self._key: int | None = None
        self._rows: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        """As `library.list_adapters`, unchecked; none where the folder cannot be read, which step 4 tells."""
        try:
            key = adapters_dir().stat().st_mtime_ns
            if key != self._key:
                self._rows, self._key = library.list_adapters(check=False), key
        except (PeftsegError, OSError):
            return []
        return self._rows


def name_state(name: str, rows: Sequence[dict[str, Any]], model: str, wanted: Sequence[Structure]) -> tuple[str, str]:
    """Why an adapter cannot have this name, or "", and what the user should know of it."""
    try:
        check_name(name)
    except BadInput:
        return _("The name needs 1 to {n} characters").format(n=NAME_LENGTH), ""
    same = [row for row in rows if row["name"] == name and row["problem"] is None]
    if not same:
        return "", ""
    newest = max(same, key=lambda row: row["version"])
    if newest["base_id"] != model or set(newest["structures"]) != {s.name for s in wanted}:
        return _("The name is taken by an adapter for other structures or another model; choose another one"), ""
    return "", _("There is an adapter of this name: this one becomes its version {n}.").format(n=newest["version"] + 1)


# whether it can start


def reason_against(context: Context, found: Support, name_reason: str) -> str:
    """Why an adaptation cannot start, in words; "" when it can."""
    return (
        context.engine_ready()
        or model_reason(context)
        or _scans_reason(found)
        or name_reason
        or options_reason(context)
    )


def model_reason(context: Context) -> str:
    """Why the chosen model cannot be used, or ""."""
    entry = context.model()
    if entry is None:
        return _("Choose a model in step 1 first")
    if entry.weights_path is None:
        return _("The model's weights are not on this computer; download them in step 1")
    try:
        if licences.acknowledgement(entry) == "needed":
            return _("The model's licence has not been accepted; see step 1")
    except PeftsegError as error:
        return error.message
    return ""


def _scans_reason(found: Support) -> str:
    if not found.wanted:
        return _("Name a structure to learn in step 2 first")
    if not found.rows:
        return _("Label at least one scan in step 2 first")
    return ""


def options_reason(context: Context) -> str:
    """Why the method's options cannot be used, or ""."""
    try:
        table.check_options(context.state.method or DEFAULT_METHOD, json.loads(context.state.methodOptions))
    except PeftsegError as error:
        return error.message
    return ""


# how it is said


def summary(found: Support) -> str:
    """ "5 scans, 2 structures."."""
    n, of = len(found.rows), len(found.wanted)
    if not n:
        return ""
    counted = _("1 scan") if n == 1 else _("{n} scans").format(n=n)
    named = _("1 structure") if of == 1 else _("{n} structures").format(n=of)
    lines = [f"{counted}, {named}."]
    if n == 1:
        lines.append(_("From one scan it learns this one look only: check what it does to other scans with care."))
    left = found.total - n
    if left:
        lines.append(
            _("1 scan of the table is not ready and left out; step 2 says why.")
            if left == 1
            else _("{n} scans of the table are not ready and left out; step 2 says why.").format(n=left)
        )
    return " ".join(lines)


def cost(facts: dict[str, Any], device: str) -> str:
    """ "About 4 min on this graphics card, 6.2 GB of 13.1 GB free memory."; "" where a check could not say."""
    if facts.get("seconds") is None:
        return ""
    where = _("this computer's processor") if device.startswith("cpu") else _("this graphics card")
    return _("About {time} on {where}, {memory:.1f} GB of {free:.1f} GB free memory.").format(
        time=texts.duration(facts["seconds"]), where=where, memory=max(0.1, facts["memory_gb"]), free=facts["free_gb"]
    )


def no_estimate(found: Support) -> str:
    """Why the accuracy cannot be estimated, or ""."""
    if len(found.rows) < FEWEST_TO_ESTIMATE:
        return _("Needs at least {n} ready scans.").format(n=FEWEST_TO_ESTIMATE)
    return ""


def estimate_hint(found: Support) -> str:
    """What estimating the accuracy takes, or why it cannot be done."""
    against = no_estimate(found)
    if against:
        return against
    text = _("Leaves each scan out once and segments it. Takes about {n} times as long.")
    if patients_differ(found.patients):
        text = _(
            "Leaves each scan out once, with other scans of the same patient, and segments it. Takes about {n} times as long."
        )
    elif any(n is not None for n in found.patients):
        text = _(
            "Leaves each scan out once and segments it. All are of one patient (see the module Data): it says nothing about "
            "others. Takes about {n} times as long."
        )
    return text.format(n=len(by_patient(found.patients)) + 1)


def dices(values: Sequence[float | None]) -> str:
    """Dice values, worst first, with two digits."""
    known = sorted(value for value in values if value is not None)
    return ", ".join(f"{value:.2f}" for value in known) or "-"


def base_match(match: dict[str, list[float | None]], already: bool) -> str:
    """What the model makes of the labelled scans without any adaptation."""
    if not any(value is not None for values in match.values() for value in values):
        return ""
    each = "; ".join(f"{name}: {dices(values)}" for name, values in match.items())
    if already:
        return _(
            "The model already matches your labels. {each} (1 is the same as your label, each scan, worst first)."
        ).format(each=each)
    return _("The model as it is, compared with your labels (1 is the same, worst first): {each}").format(each=each)
