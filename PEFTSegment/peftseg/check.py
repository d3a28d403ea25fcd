"""A look before adapting (`peftseg check`): time and memory, what the base makes of the scans, what is wrong with them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.adapter_training import Ready, Setting, get_ready, plan_for
from peftseg.adapters import AUTO, check_options
from peftseg.auto import search_seconds, usual_setting
from peftseg.base_match import base_masks, dice_where_labelled, load_asked_base
from peftseg.config import CheckJob
from peftseg.dataset import ONE_SCAN, about_scan, scan_warnings
from peftseg.device import choose_device
from peftseg.errors import JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.licences import usable
from peftseg.models import ModelEntry, Preprocessing
from peftseg.patients import ONE_PATIENT, by_patient, of_one_patient, patients_of
from peftseg.recipe import FEWEST_VOXELS, SupportFacts, choose_recipe, support_facts
from peftseg.study import LoadedScan, SupportItem, load_support_item
from peftseg.train import asks_for_estimate, job_setting

# Two experts who outline a large organ agree to about this Dice: above it, five scans cannot show an improvement.
ALREADY_MATCHES = 0.95
Scans = dict[int, LoadedScan]  # by number, from 1 on


def run_check(job: CheckJob, reporter: Reporter) -> dict[str, Any]:
    """Say what an adaptation would cost and whether it is needed, and look for mistakes in the support set.

    Scans that cannot be used are listed in "problems", and the rest is judged without them.

    Returns
    -------
    dict
        "seconds" (of the whole adaptation, leave-one-out included where asked), "epochs", "memory_gb", "free_gb", "device",
        "patch", "plan" (a sentence), "recipe_changes" (sentences): None or empty where no scan can be used;
        "base_match" (structure -> Dice a scan, or None; base structures only, empty without `job.match`),
        "already_matches" (all asked structures are the base's, and each has a mean Dice of at least 0.95),
        "warnings" (sentences with the scan's number, no file names), "problems" (list of "scan", "message", "remedy").

    Raises
    ------
    PeftsegError
        Model, method or device cannot be used, or no plan fits into the memory.
    """
    entry = usable(job.model)
    options = check_options(job.method, job.options)
    device = choose_device(job.device)
    started = time.monotonic()
    scans, problems = _load(job, reporter)
    found = {**_no_plan(device), "base_match": {}, "already_matches": False, "warnings": [], "problems": problems}
    if not scans:
        return found
    facts = {n: support_facts(scan.volume, scan.masks, entry.preprocessing.orientation) for n, scan in scans.items()}
    asked = job_setting(job, entry, options, device, list(scans.values()), reporter)
    setting = usual_setting(asked) if asked.method == AUTO else asked
    ready = get_ready(setting, list(scans.values()), reporter)
    preparing = time.monotonic() - started
    searching = search_seconds(asked, ready.plan) if asked.method == AUTO else 0.0
    patients = by_patient(patients_of(scans.values()))
    estimates = asks_for_estimate(job, list(scans.values()))
    found |= _plan_facts(setting, ready, patients, estimates, preparing, searching)
    found["warnings"] = _warnings(scans, facts, entry, ready.recipe, ready.changes)
    del ready  # its network would take the base's memory
    cost = {key: found[key] for key in ("seconds", "epochs", "memory_gb", "free_gb", "plan")}
    reporter.progress("check", 0, len(scans), **cost)
    if job.match:
        found["base_match"] = _base_match(setting, scans, len(job.support), reporter)
        found["already_matches"] = _already_matches(found["base_match"], [s.name for s in job.structures])
    return found


def _load(job: CheckJob, reporter: Reporter) -> tuple[Scans, list[dict[str, Any]]]:
    scans: Scans = {}
    problems = []
    for number, item in enumerate(job.support, start=1):
        reporter.check()
        try:
            scans[number] = load_support_item(item, job.structures, job.replace_nonfinite)
        except JobCancelled:
            raise
        except PeftsegError as error:
            problems.append({"scan": number, "message": nameless(number, error.message, item), "remedy": error.remedy})
        reporter.progress("read", number, len(job.support))
    return scans, problems


def nameless(number: int, text: str, item: SupportItem) -> str:
    """A message about a support item without its file names, with "Scan <number>" in front."""
    same = Path(item.image).name == Path(item.labels).name
    stand_ins = {
        item.image: "the scan's file",
        item.labels: "the label file",
        Path(item.labels).name: "the file" if same else "the label file",
        Path(item.image).name: "the file" if same else "the scan's file",
    }
    for name in sorted(stand_ins, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", stand_ins[name], text)
    stem = Path(item.image).name.split(".")[0]
    return about_scan(number, text, stem)


def _no_plan(device: torch.device) -> dict[str, Any]:
    nothing = dict.fromkeys(("seconds", "epochs", "memory_gb", "free_gb"))
    return {**nothing, "device": str(device), "patch": None, "plan": "", "recipe_changes": []}


def _plan_facts(
    setting: Setting, ready: Ready, patients: list[list[int]], estimates: bool, preparing: float, searching: float
) -> dict[str, Any]:
    """What the plan says, in the job's words. Every training is prepared anew, which takes its time, too.

    `searching` are the seconds in which the method `auto` chooses, before each training; `patients` has the indices of each
    one's scans, of which the first one's are left out to see what `estimates` takes.
    """
    plan = ready.plan
    seconds = preparing + searching + plan.seconds
    if estimates:
        others = [scan for n, scan in enumerate(ready.scans) if n not in patients[0]]
        without_one = plan_for(setting, others, ready.attached, ready.divisor)
        seconds += len(patients) * (preparing + searching + without_one.seconds)
    return {
        "seconds": round(seconds, 1),
        "epochs": plan.schedule.epochs,
        "memory_gb": round(plan.memory / 2**30, 2),
        "free_gb": round(plan.free / 2**30, 2),
        "patch": list(plan.schedule.patch),
        "plan": plan.sentence(),
        "recipe_changes": ready.changes,
    }


def _warnings(
    scans: Scans, facts: dict[int, SupportFacts], entry: ModelEntry, recipe: Preprocessing, changes: list[str]
) -> list[str]:
    found = [ONE_SCAN] if len(scans) == 1 else []
    found += [ONE_PATIENT.format(n=len(scans))] if of_one_patient(patients_of(scans.values())) else []
    found += [change for change in changes if change.startswith("Grey values")]
    for number, scan in scans.items():
        found += scan_warnings(number, scan)
        own, _ = choose_recipe(entry.preprocessing, [facts[number]])
        if own.intensity.kind != recipe.intensity.kind:
            found.append(
                f"Scan {number}: its grey values are of another kind than those of the other scans. Check that all "
                "scans come from the same kind of scanner and are in the same units."
            )
        voxel = float(np.prod(recipe.spacing))
        for name, volume in facts[number].volumes_mm3.items():
            if volume / voxel < FEWEST_VOXELS:
                found.append(
                    f"Scan {number}: '{name}' covers only about {max(1, round(volume / voxel))} voxels at the voxel size "
                    f"that is used ({' x '.join(f'{s:.2g}' for s in recipe.spacing)} mm): it may be too small to learn."
                )
    return found


def _base_match(setting: Setting, scans: Scans, n_items: int, reporter: Reporter) -> dict[str, list[float | None]]:
    """Dice of each base structure in each scan, in the order of the support set; None where it cannot be said."""
    base = load_asked_base(setting.entry, setting.structures)
    if base is None:
        return {}
    found: dict[str, list[float | None]] = {s.name: [None] * n_items for s in base.asked}
    begun = time.monotonic()
    for done, (number, scan) in enumerate(scans.items()):
        reporter.check()
        masks = base_masks(base, scan.volume, setting.device, setting.precision, reporter)
        for name, mask in masks.items():
            value = dice_where_labelled(mask, scan, name)
            found[name][number - 1] = None if value is None else round(value, 4)
        eta = (time.monotonic() - begun) / (done + 1) * (len(scans) - done - 1)
        reporter.progress("check", done + 1, len(scans), eta_s=eta)
    return found


def _already_matches(base_match: dict[str, list[float | None]], names: list[str]) -> bool:
    values = [[v for v in base_match.get(name, []) if v is not None] for name in names]
    return all(found and float(np.mean(found)) >= ALREADY_MATCHES for found in values)
