"""Few-shot adaptation: labelled scans in, an adapter file out (`peftseg adapt`)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.adapter_file import FORMAT, Recipe, check_name, read_adapter_info, save_adapter
from peftseg.adapter_training import Adapted, Setting, make_setting, predict_masks
from peftseg.adapters import check_options
from peftseg.auto import adapt_scans
from peftseg.base_match import Base, LeftOutFiles, left_out_facts, load_asked_base
from peftseg.config import AdaptJob, CheckJob
from peftseg.dataset import ONE_SCAN, load_scans, scan_warnings
from peftseg.device import choose_device
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.flags import borders
from peftseg.library import next_version, store_next
from peftseg.library_rows import ref_of
from peftseg.licences import licence_text, usable
from peftseg.metrics import dice
from peftseg.models import ModelEntry, remember
from peftseg.patients import (
    ONE_PATIENT,
    by_patient,
    count_patients,
    of_one_patient,
    patients_differ,
    patients_of,
    without_patient_of,
)
from peftseg.site_layers import describe_site
from peftseg.structure_facts import structure_facts
from peftseg.study import LoadedScan, require_writable_dir
from peftseg.version import __version__
from peftseg.warm_start import WarmStart, check_scans, lineage, read_start

FEWEST_TO_ESTIMATE = 3  # scans, for leaving one out


def run_adapt(job: AdaptJob, reporter: Reporter) -> dict[str, Any]:
    """Adapt a model to a support set and write the adapter file.

    Returns
    -------
    dict
        "adapter" (path), "hash", "version", "ref", "path" (see `save_result`), "name", "epochs", "seconds", "loss",
        "trained_share", "ranks", "recipe_changes", "estimate" (structure -> Dice of each left-out scan, or None),
        "patients" (how many the scans are of, None where the support set does not say),
        "left_out" (see `leave_one_out`), "choice" (of the method `auto`, see `auto.choose`; else empty).

    Raises
    ------
    PeftsegError
        See `errors`; nothing is written then.
    """
    started = time.monotonic()
    out = check_output(Path(job.out))
    entry = usable(job.model)
    start = read_start(job, entry) if job.start_from else None
    name = job.name or (start.recipe.name if start else " + ".join(s.name for s in job.structures))
    check_name(name)
    if entry.directory is not None and Path(job.model).is_dir():
        remember(entry.directory)  # so that the adapter finds its base again
    options = check_options(job.method, job.options)
    device = choose_device(job.device)
    loaded = load_scans(job.support, job.structures, job.replace_nonfinite, reporter)
    _warn_about(loaded, reporter)
    setting = job_setting(job, entry, options, device, loaded, reporter)
    setting = setting if start is None else started_from(setting, start, loaded)
    adapted = adapt_scans(replace(setting, snapshots=job.snapshots), loaded, reporter)  # leaving one out keeps none
    site = describe_site(entry, [scan.volume for scan in loaded], adapted.recipe, device, reporter)
    estimate, left_out = leave_one_out(setting, loaded, reporter) if job.estimate == "loo" else (None, [])
    recipe = Recipe(
        format=FORMAT,
        name=name,
        version=max(next_version(name), start.recipe.version + 1 if start and start.recipe.name == name else 1),
        method=adapted.setting.method,
        options=adapted.setting.options,
        train_decoder=setting.train_decoder,
        base_id=entry.id,
        base_fingerprint=adapted.base_fingerprint,
        base_licence=licence_text(entry),
        network=entry.network,
        structures=setting.structures,
        activation=setting.activation,
        preprocessing=adapted.recipe,
        window=entry.window,
        smallest_window=adapted.plan.schedule.patch,
        window_step=adapted.divisor,
        overlap=entry.overlap,
        record=training_record(adapted, setting, loaded, estimate, time.monotonic() - started) | {"site": site},
    )
    reporter.check()
    saved = save_result(out, recipe, adapted.stored_state(), job.store, reporter)
    return {
        "adapter": str(out),
        **saved,
        "name": name,
        "epochs": len(adapted.history.losses),
        "seconds": round(time.monotonic() - started, 1),
        "loss": adapted.history.losses[-1],
        "trained_share": adapted.attached.trained_share(),
        "ranks": adapted.attached.facts().get("ranks", {}),
        "recipe_changes": adapted.changes,
        "estimate": estimate,
        "patients": count_patients(patients_of(loaded)),
        "left_out": left_out,
        "choice": adapted.choice,
    }


def save_result(
    out: Path, recipe: Recipe, state: dict[str, torch.Tensor], in_library: bool, reporter: Reporter
) -> dict[str, Any]:
    """Write the adapter file, and put it into the library where that is wanted.

    Returns
    -------
    dict
        "hash", "version", and of the library's copy "ref" (name-vN) and "path", both None where there is none: a library
        that does not take the adapter is a warning, for the adapter itself is safe in `out`.
    """
    path = None
    if in_library:

        def write(version: int) -> Path:
            save_adapter(out, replace(recipe, version=max(version, recipe.version)), state)
            return out

        try:
            path = str(store_next(recipe.name, write))
        except BadInput as error:
            reporter.warning(f"The adapter could not be put into the library; it is in {out}. {error}")
    if not out.exists():
        save_adapter(out, recipe, state)
    saved, digest = read_adapter_info(out)
    return {"hash": digest, "version": saved.version, "ref": ref_of(saved) if path else None, "path": path}


def asks_for_estimate(job: AdaptJob | CheckJob, loaded: Sequence[LoadedScan]) -> bool:
    """Whether one is left out at a time: it is asked for, and the scans are enough."""
    return job.estimate == "loo" and len(loaded) >= FEWEST_TO_ESTIMATE


def job_setting(
    job: AdaptJob | CheckJob,
    entry: ModelEntry,
    options: dict[str, Any],
    device: torch.device,
    loaded: list[LoadedScan],
    reporter: Reporter,
) -> Setting:
    """The setting that a job asks for; leaving one out shares the time budget between all trainings."""
    budget = job.budget_minutes
    if budget and asks_for_estimate(job, loaded):
        budget /= len(by_patient(patients_of(loaded))) + 1
    return replace(
        make_setting(entry, job.structures, loaded, job.method, options, device, reporter),
        seed=job.seed,
        precision=job.precision,
        epochs=job.epochs,
        budget_minutes=budget,
        smaller_plan=reporter.smaller_plan,
    )


def started_from(setting: Setting, start: WarmStart, loaded: list[LoadedScan]) -> Setting:
    """The setting of going on from an adapter: its method, options and head, and its decoder or a novel structure's."""
    check_scans(start, loaded)
    recipe = start.recipe
    return replace(
        setting,
        method=recipe.method,
        options=check_options(recipe.method, recipe.options),
        activation=recipe.activation,
        train_decoder=recipe.train_decoder or setting.train_decoder,
        start=start,
    )


def leave_one_out(
    setting: Setting, loaded: list[LoadedScan], reporter: Reporter
) -> tuple[dict[str, list[float | None]] | None, list[dict[str, Any]]]:
    """Score each scan under an adapter trained on the others, every choice repeated inside the loop.

    The others are those of other patients, if there are any: scans of one patient are left out together, and one adapter
    scores them.

    With a `result_dir`, that adapter's prediction is kept in it (`left_out_<n>.seg.nrrd`), and beside it what the base
    as it is makes of the scan (`base_<n>.seg.nrrd`).

    Returns
    -------
    estimate : dict or None
        Structure -> one Dice a scan (None where the scan does not label all of it); None under three scans, or when the
        user stopped ("not estimated").
    left_out : list of dict
        One a finished scan: "scan" (from 1 on), "adapter" and "base" (paths or None), "dice" (structure -> value or
        None).
    """
    if len(loaded) < FEWEST_TO_ESTIMATE:
        reporter.warning(f"{len(loaded)} scans are too few to estimate accuracy (3 are needed): not estimated.")
        return None, []
    files = LeftOutFiles(reporter.result_dir, setting.entry, reporter)
    base = load_asked_base(setting.entry, setting.structures) if files.wanted else None
    rows: list[dict[str, Any]] = []
    known = patients_of(loaded)
    patients, differ = by_patient(known), patients_differ(known)
    made_by = "an adapter of the other patients' scans" if differ else "an adapter of the other scans"
    for done, group in enumerate(patients):
        reporter.progress("estimate", done, len(patients))
        inner = _inside(reporter, group[0] + 1, done + 1 if differ else None)
        others = without_patient_of(loaded, group[0])
        adapted = None if reporter.stop_keep() else adapt_scans(setting, others, inner)
        if adapted is None or reporter.stop_keep():  # an adapter that was cut short would make a false estimate
            reporter.warning("Stopped on request: accuracy is not estimated.")
            return None, sorted(rows, key=lambda row: row["scan"])
        found = {n: predict_masks(adapted, loaded[n], reporter) for n in group}
        del adapted
        rows += [_left_out_row(setting, loaded[n], n + 1, masks, made_by, files, base) for n, masks in found.items()]
    reporter.progress("estimate", len(patients), len(patients))
    rows.sort(key=lambda row: row["scan"])
    return {s.name: [row["dice"][s.name] for row in rows] for s in setting.structures}, rows


def _left_out_row(
    setting: Setting,
    scan: LoadedScan,
    number: int,
    masks: dict[str, np.ndarray],
    made_by: str,
    files: LeftOutFiles,
    base: Base | None,
) -> dict[str, Any]:
    """Score one left-out scan and keep what is shown of it; see `leave_one_out`."""
    whole = [s.name for s in setting.structures if scan.known[s.name] is True]
    dices = {s.name: None for s in setting.structures}
    dices |= {name: float(dice(masks[name], scan.masks[name])) for name in whole}
    path = files.write(f"left_out_{number}", masks, setting.structures, scan, made_by)
    wanted = base is not None and files.wanted
    beside = files.write_base(f"base_{number}", base, scan, setting.device, setting.precision) if wanted else None
    return left_out_facts(number, path, beside, dices)


def _inside(reporter: Reporter, number: int, patient: int | None) -> Reporter:
    """A reporter for the training without one scan, or one patient's scans: its events say which is the first of them.

    The checkpoint is left alone. `patient` counts the patients in the order in which they are left out, where any is known.
    """
    inner = copy.copy(reporter)
    inner.checkpoint = None  # it is of the main training
    facts = {"left_out": number} if patient is None else {"left_out": number, "patient": patient}
    inner.progress = partial(reporter.progress, **facts)
    return inner


def training_record(
    adapted: Adapted,
    setting: Setting,
    loaded: list[LoadedScan],
    estimate: dict[str, list[float | None]] | None,
    seconds: float,
) -> dict[str, Any]:
    """Facts about the training for the adapter file: no paths, no names of scans."""
    history = adapted.history
    start = setting.start
    states = {s.name: [label_state(scan, s.name) for scan in loaded] for s in setting.structures}
    return {
        "shots": len(loaded),
        **({"patients": number} if (number := count_patients(patients_of(loaded))) else {}),
        "labelled": {
            name: {state: found.count(state) for state in sorted(set(found))} for name, found in states.items()
        },
        "borders": {s.name: usual_borders(s.name, loaded) for s in setting.structures},
        "structure_facts": structure_facts(loaded, setting.structures),
        "novel": sorted({s.name for s in setting.structures} - {s.name for s in setting.entry.known_structures}),
        "epochs": len(history.losses),
        "best_epoch": history.best_epoch + 1,
        "stopped": history.stopped or "all epochs done",
        "losses": [round(loss, 5) for loss in history.losses],
        "retries": history.retries,
        "patch": list(adapted.plan.schedule.patch),
        "precision": adapted.plan.schedule.precision,
        "seed": setting.seed,
        "recipe_changes": adapted.changes,
        "trained_share": adapted.attached.trained_share(),
        "ranks": adapted.attached.facts().get("ranks", {}),
        "estimate": estimate if estimate is not None else "not estimated",
        **({"choice": adapted.choice} if adapted.choice else {}),
        **({"parent": lineage(start)} if start is not None else {}),
        "seconds": round(seconds, 1),
        "made": datetime.now(timezone.utc).date().isoformat(),
        "software": {"peftseg": __version__, "torch": torch.__version__.split("+")[0]},
    }


def usual_borders(name: str, loaded: Sequence[LoadedScan]) -> list[str]:
    """Borders of the scan that a structure touches in any support scan that labels all of it."""
    whole = [scan for scan in loaded if label_state(scan, name) == "labelled"]
    return sorted({side for scan in whole for side in borders(scan.masks[name], scan.volume.grid)})


def label_state(scan: LoadedScan, name: str) -> str:
    """What a scan says of a structure: "labelled", "partly labelled", "absent" or "not labelled"."""
    known = scan.known[name]
    if isinstance(known, np.ndarray):
        return "partly labelled"
    if not known:
        return "not labelled"
    return "labelled" if scan.masks[name].any() else "absent"


def check_output(out: Path) -> Path:
    """The adapter file to write; BadInput unless it ends in .safetensors, is new, and its folder can be written to."""
    if out.suffix != ".safetensors":
        raise BadInput(f"The adapter file '{out.name}' does not end in .safetensors.", "Give such a name with --out.")
    if out.exists():
        raise BadInput(f"The adapter file {out} exists; adapters are never overwritten.", "Give another name.")
    require_writable_dir(out.parent)
    return out


def _warn_about(loaded: list[LoadedScan], reporter: Reporter) -> None:
    if len(loaded) == 1:
        reporter.warning(ONE_SCAN)
    if of_one_patient(patients_of(loaded)):
        reporter.warning(ONE_PATIENT.format(n=len(loaded)))
    for number, scan in enumerate(loaded, start=1):
        for problem in scan_warnings(number, scan):
            reporter.warning(problem)
