"""Adaptation without labels: a site's scans in, a site adapter out, if the gate lets it (`peftseg site-adapt`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftseg.adapter_file import FORMAT, Recipe, check_name
from peftseg.config import SiteAdaptJob
from peftseg.device import choose_device
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.gate import REFUSED, Verdict
from peftseg.library import next_version
from peftseg.licences import licence_text, usable
from peftseg.models import ModelEntry, remember
from peftseg.networks import Anatomy
from peftseg.preprocess import Prepared, prepare
from peftseg.site_attach import early_to_state
from peftseg.site_checks import mixed_sites, modality_warnings
from peftseg.site_layers import statistics_of
from peftseg.site_matching import Match, match_grey_values
from peftseg.site_options import SITE, check_site_options, planned_epochs
from peftseg.site_statistics import ScanStatistics, site_record
from peftseg.site_training import SiteAdapted, SiteSetting, adapt_site
from peftseg.study import find_inputs
from peftseg.train import check_output, save_result
from peftseg.version import __version__
from peftseg.volume import read_volume
from peftseg.weights import load_base

FEWEST_SCANS = 3


def run_site_adapt(job: SiteAdaptJob, reporter: Reporter) -> dict[str, Any]:
    """Adapt a model to unlabelled scans, let the gate judge, and write the adapter file unless it refuses.

    Returns
    -------
    dict
        "adapter" (path, or None where the gate refused it), "verdict" ("status", "reasons", "facts"), "name", "preset",
        "scans", "grey_values" (a sentence about their matching, or ""), "epochs", "seconds", "loss" and "agreement" (of
        the last epoch, or None), "trained_share", "ranks", "recalibrated" (number of layers), "early_head" ("level",
        "fitted"; None without), "hash", "version", "ref" and "path" (as in `train.save_result`; None where nothing was
        written).

    Raises
    ------
    PeftsegError
        See `errors`; nothing is written then.
    """
    started = time.monotonic()
    out = check_output(Path(job.out))
    entry = usable(job.model)
    name = job.name or f"{entry.id} site"
    check_name(name)
    _check_structures(entry, job.structures)
    options = check_site_options(job.preset, job.options)
    if entry.directory is not None and Path(job.model).is_dir():
        remember(entry.directory)  # so that the adapter finds its base again
    device = choose_device(job.device)
    network, anatomy = load_base(entry)
    scans, statistics = _read(job, entry, network, anatomy, device, reporter)
    _warn(entry, statistics, reporter)
    setting = SiteSetting(
        entry, options, job.epochs or planned_epochs(options), device, job.seed, job.precision, deadline_s=None
    )
    match = match_grey_values(setting, network, anatomy, scans, statistics, reporter)
    left = job.budget_minutes * 60 - (time.monotonic() - started) if job.budget_minutes else None
    setting = replace(setting, deadline_s=left)
    adapted = adapt_site(setting, network, anatomy, match.scans, reporter, scans if match.curve else None)
    seconds = round(time.monotonic() - started, 1)
    recipe = _recipe(job, entry, name, adapted, match, seconds)
    reporter.check()
    kept = adapted.verdict.status != REFUSED or job.keep_refused
    saved: dict[str, Any] = dict.fromkeys(("hash", "version", "ref", "path"))
    if kept:
        saved = save_result(out, recipe, adapter_state(adapted), job.store, reporter)
    return {
        "adapter": str(out) if kept else None,
        "verdict": verdict_record(adapted.verdict),
        "name": name,
        "preset": job.preset,
        "scans": len(scans),
        "grey_values": match.words,
        "epochs": len(adapted.history.losses),
        "seconds": seconds,
        "loss": _last(adapted.history.losses),
        "agreement": _last(adapted.history.agreement),
        "trained_share": adapted.attached.trained_share(),
        "ranks": adapted.attached.facts().get("ranks", {}),
        "recalibrated": adapted.recalibrated,
        "early_head": adapted.early_facts(),
        **saved,
    }


def _check_structures(entry: ModelEntry, names: Sequence[str]) -> None:
    """What is asked for must be among what the base segments as it is: without labels nothing new can be learned."""
    if not entry.structures:
        raise BadInput(
            f"Model '{entry.id}' segments nothing by itself: it has no structures of its own.",
            "Adapt it to labelled scans, or choose a model that knows your structures.",
        )
    known = [s.name for s in entry.structures]
    for name in names:
        if name not in known:
            raise BadInput(
                f"Model '{entry.id}' has no head for '{name}'; it knows {', '.join(known)}. Without labels a model learns "
                "no new structure.",
                "Choose a model that knows it, or label about five scans and run `peftseg adapt`.",
            )


def _read(
    job: SiteAdaptJob,
    entry: ModelEntry,
    network: nn.Module,
    anatomy: Anatomy,
    device: torch.device,
    reporter: Reporter,
) -> tuple[list[Prepared], list[ScanStatistics]]:
    """Every scan prepared as the model asks, and what it is like under the base as it is."""
    paths = find_inputs(job.unlabelled)
    scans, statistics = [], []
    for number, path in enumerate(paths, start=1):
        reporter.check()
        volume = read_volume(path, job.replace_nonfinite)
        prepared = prepare(volume, entry.preprocessing)
        scans.append(prepared)
        statistics.append(
            statistics_of(
                volume, entry.preprocessing, network, anatomy, entry.window, device, reporter, prepared=prepared
            )
        )
        reporter.progress("read", number, len(paths))
    return scans, statistics


def _warn(entry: ModelEntry, statistics: list[ScanStatistics], reporter: Reporter) -> None:
    if len(statistics) < FEWEST_SCANS:
        reporter.warning(
            f"Only {len(statistics)} scan{'s' if len(statistics) > 1 else ''}: what is usual at the site is known poorly. Give "
            f"at least {FEWEST_SCANS}, better ten."
        )
    for text in (*modality_warnings(entry, statistics), *mixed_sites(statistics)):
        reporter.warning(text)


def adapter_state(adapted: SiteAdapted) -> dict[str, torch.Tensor]:
    """What the adapter file holds: the adapter's own state, and the early head beside it."""
    early = {} if adapted.branch is None else early_to_state(adapted.branch.head)
    return {**adapted.attached.state(), **early}


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data."""
    return {"status": verdict.status, "reasons": list(verdict.reasons), "facts": verdict.facts}


def _last(values: Sequence[float | None]) -> float | None:
    return values[-1] if values else None


def _recipe(
    job: SiteAdaptJob, entry: ModelEntry, name: str, adapted: SiteAdapted, match: Match, seconds: float
) -> Recipe:
    """The adapter's recipe: the base's own structures and windows, and its preprocessing with the curve of the match."""
    history, site = adapted.history, site_record(match.statistics)
    record = {
        "gate": verdict_record(adapted.verdict),
        "site": site,
        "unlabelled_scans": site["scans"],
        "preset": job.preset,
        "recipe_changes": [match.words] if match.curve else [],
        "epochs": len(history.losses),
        "best_epoch": history.best_epoch + 1,
        "stopped": history.stopped or "all epochs done",
        "losses": [round(loss, 5) for loss in history.losses],
        "agreement": history.agreement,
        "retries": history.retries,
        "notes": list(adapted.notes),
        "patch": list(adapted.patch),
        "precision": adapted.precision,
        "seed": job.seed,
        "early_head": adapted.early_facts(),
        "recalibrated": adapted.recalibrated,
        "trained_share": adapted.attached.trained_share(),
        "ranks": adapted.attached.facts().get("ranks", {}),
        "seconds": seconds,
        "software": {"peftseg": __version__, "torch": torch.__version__.split("+")[0]},
    }
    return Recipe(
        format=FORMAT,
        name=name,
        version=next_version(name),
        method=SITE,
        options=adapted.options,
        train_decoder=False,
        base_id=entry.id,
        base_fingerprint=adapted.base_fingerprint,
        base_licence=licence_text(entry),
        network=entry.network,
        structures=entry.structures,
        activation=entry.activation,
        preprocessing=match.preprocessing,
        window=entry.window,
        overlap=entry.overlap,
        record=record,
    )
