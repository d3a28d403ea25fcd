"""Run the pinned reference scans again and say what changed (`peftseg adapters references run`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from peftseg.base_match import Base, base_masks, dice_where_labelled
from peftseg.device import choose_device
from peftseg.errors import BadInput, JobCancelled, PeftsegError, unknown_name
from peftseg.events import Reporter
from peftseg.models import Structure
from peftseg.reference_scans import Reference, append_run, baselines, check_unchanged, read_references, read_runs
from peftseg.segmenter import Segmenter, adapter_segmenter
from peftseg.study import SupportItem, load_support_item
from peftseg.version import __version__

TOLERANCE = 0.01  # Dice; less is what another processor or library version may change
Row = dict[str, Any]


def run_references(
    adapters: Sequence[str] = (),
    *,
    device: str = "auto",
    tolerance: float = TOLERANCE,
    accept: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Segment every pinned scan and hold its Dice against the last accepted one.

    The first result of a scan is accepted by itself. Every run is kept.

    Parameters
    ----------
    adapters : sequence of str
        References as they were pinned, to run only their scans; none: all.
    tolerance : float
        A loss of more Dice than this is "worse", a gain "better".
    accept : bool
        Hold later runs against this one.

    Returns
    -------
    dict
        "rows" (a list of "reference", "name", "adapter", "adapter_hash", "structure", "dice", "before", "change", "verdict"
        ("first", "same", "better" or "worse"), "accepted"), "changes" (sentences: what is not as at the accepted run),
        "failed" (list of "name", "message", "remedy"), "worse" (how many rows), "time", "software", "device".

    Raises
    ------
    BadInput
        No scan is pinned, or none for one of these adapters; or the device is not there.
    """
    reporter = reporter or Reporter.silent()
    pinned = read_references()
    if not pinned:
        raise BadInput("There is no reference scan.", "Pin some: `peftseg adapters references add`.")
    known = {entry.adapter for entry in pinned}
    for name in adapters:
        if name not in known:
            raise unknown_name("adapter with reference scans", name, known)
    chosen = [entry for entry in pinned if not adapters or entry.adapter in adapters]
    place = choose_device(device)
    before = baselines(read_runs())
    rows: list[Row] = []
    failed: list[dict[str, str]] = []
    for adapter in dict.fromkeys(entry.adapter for entry in chosen):
        mine = [entry for entry in chosen if entry.adapter == adapter]
        try:
            segmenter = adapter_segmenter(adapter)
        except PeftsegError as error:
            failed += [_failure(entry, error) for entry in mine]
            continue
        for entry in mine:
            reporter.progress("references", len(rows) + len(failed), len(chosen))
            try:
                rows += _judged(_dices(entry, segmenter, place, reporter), entry, segmenter, before, tolerance, accept)
            except JobCancelled:
                raise
            except PeftsegError as error:
                failed.append(_failure(entry, error))
    software = {"peftseg": __version__, "torch": torch.__version__.split("+")[0]}
    run = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": software,
        "device": place.type,
        "rows": rows,
    }
    if rows:
        append_run(run)
    return {
        **run,
        "changes": _changes(rows, before, software),
        "failed": failed,
        "worse": sum(row["verdict"] == "worse" for row in rows),
    }


def _dices(entry: Reference, segmenter: Segmenter, device: torch.device, reporter: Reporter) -> dict[str, float | None]:
    """Structure -> Dice with the labels, None where both are empty."""
    check_unchanged(entry)
    structures = tuple(Structure(name, value) for name, value in entry.structures.items())
    scan = load_support_item(SupportItem(entry.image, entry.labels), structures)
    known = {s.name for s in segmenter.structures}
    gone = [s.name for s in structures if s.name not in known]
    if gone:
        raise BadInput(
            f"The adapter does not segment {', '.join(gone)} any more, which '{entry.name}' is labelled for.",
            "Remove the reference scan and pin it anew.",
        )
    masks = base_masks(Base(segmenter, structures), scan.volume, device, "auto", reporter)
    return {name: dice_where_labelled(mask, scan, name) for name, mask in masks.items()}


def _judged(
    dices: Mapping[str, float | None],
    entry: Reference,
    segmenter: Segmenter,
    before: Mapping[tuple[str, str], Row],
    tolerance: float,
    accept: bool,
) -> list[Row]:
    facts = segmenter.provenance
    rows = []
    for structure, dice in dices.items():
        old = before.get((entry.id, structure), {}).get("dice")
        change = None if dice is None or old is None else round(dice - old, 4)
        first = (entry.id, structure) not in before
        rows.append(
            {
                "reference": entry.id,
                "name": entry.name,
                "adapter": f"{facts['adapter']}-v{facts['adapter_version']}",
                "adapter_hash": facts["adapter_hash"],
                "structure": structure,
                "dice": None if dice is None else round(dice, 4),
                "before": old,
                "change": change,
                "verdict": "first" if first else _verdict(dice, old, change, tolerance),
                "accepted": accept or first,
            }
        )
    return rows


def _verdict(dice: float | None, old: float | None, change: float | None, tolerance: float) -> str:
    if change is None:  # nothing to find and nothing found, now or before
        return "same" if dice is None and old is None else "better" if dice is None else "worse"
    return "worse" if change < -tolerance else "better" if change > tolerance else "same"


def _changes(rows: Sequence[Row], before: Mapping[tuple[str, str], Row], software: Mapping[str, str]) -> list[str]:
    """What is not as at the accepted runs, each once."""
    found: dict[str, None] = {}
    for row in rows:
        old = before.get((row["reference"], row["structure"]))
        if old is None:
            continue
        if old["adapter_hash"] != row["adapter_hash"]:
            found[
                f"The adapter is {row['adapter']} ({row['adapter_hash'][:12]}); it was {old['adapter']} "
                f"({old['adapter_hash'][:12]})."
            ] = None
        for name, version in software.items():
            if old["software"].get(name) != version:
                found[f"{name} is {version}; it was {old['software'].get(name)}."] = None
    return list(found)


def _failure(entry: Reference, error: PeftsegError) -> dict[str, str]:
    return {"name": entry.name, "message": error.message, "remedy": error.remedy}
