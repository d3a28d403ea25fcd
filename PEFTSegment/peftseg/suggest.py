"""Which stored adapter fits a new scan (`peftseg adapters suggest`): the one whose site's scans are most like it.

Every adapter of which the base is here, and the bases themselves, are ranked by `site_statistics.distance_to` of their
record's "site". An adapter that its own check had refused is ranked, too, but never suggested. A base without such a record
is ranked by the running statistics of its batch normalisations, which tell of the scans that it was trained on; one that
has neither is not ranked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftseg.adapter_file import Recipe, read_header
from peftseg.config import SuggestJob
from peftseg.device import choose_device
from peftseg.errors import BadInput, JobCancelled, PeftsegError
from peftseg.events import Reporter
from peftseg.library import list_adapters, shared_problems
from peftseg.licences import usable
from peftseg.models import ModelEntry, Preprocessing, known_models
from peftseg.networks import Anatomy
from peftseg.site_layers import running_moments, statistics_of, watched_layers
from peftseg.site_statistics import (
    GREY,
    LAYERS,
    TEXTURE,
    VOXELS,
    Distance,
    ScanStatistics,
    SiteStatistics,
    distance_to,
    read_site,
    same_layers,
    with_common_spread,
)
from peftseg.study import find_inputs
from peftseg.verdicts import REFUSED, REMARKS, WARNING, stored_status
from peftseg.volume import Volume, read_volume
from peftseg.weights import architecture, fingerprint, load_base

ALIKE, FAR = 1.5, 3.0  # distances up to the first are usual within a site, above the second they are not
EQUAL = 0.25  # difference of two distances that is none
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Base:
    """A model as it is, loaded."""

    entry: ModelEntry
    network: nn.Module
    anatomy: Anatomy
    fingerprint: str


def run_suggest(job: SuggestJob, reporter: Reporter) -> dict[str, Any]:
    """Rank stored adapters and their bases for a scan, the most fitting one in front.

    An adapter that cannot be ranked is told in "not_ranked", and the others are ranked.

    Returns
    -------
    dict
        "ranking": list of "kind" ("adapter" or "base"), "ref" (of the library, or the model's id), "name", "path" (of the
        adapter's file; None for a base), "model" (id of the base), "method", "structures" (names), "scans" (how many
        the site's facts come from; 0: running statistics), "distance" (1: as far as scans of one site are from each other),
        "parts" (the same by group of facts), "verdict" (of the check after an adaptation without labels: "accepted",
        "warning" or "refused"; None without one) and "reason" (sentences, also about such a verdict);
        "suggested": index in "ranking" of the one to use, never one that was refused, or None where none fits (then
        "advice" says what to do);
        "advice", "basis": sentences; "not_ranked": list of "ref", "reason".

    Raises
    ------
    PeftsegError
        The scan, the model or the device cannot be used.
    """
    device = choose_device(job.device)
    inputs = find_inputs([job.input])
    if len(inputs) > 1:
        raise BadInput(f"{job.input} holds {len(inputs)} scans; expected one.", "Give one scan.")
    volume = read_volume(inputs[0], job.replace_nonfinite)
    for problem in shared_problems():
        reporter.warning(problem)
    asked = usable(job.model) if job.model is not None else None
    waiting, not_ranked = _stored(asked)
    entries = _entries(asked, waiting)
    ranking: list[Row] = []
    bare: list[str] = []  # models without batch normalisation
    for number, entry in enumerate(entries):
        reporter.progress("suggest", number, len(entries))
        reporter.check()
        try:
            base = _load(entry)
        except PeftsegError as error:
            if asked is not None:
                raise
            not_ranked.append({"ref": entry.id, "reason": str(error)})
            continue
        mine = [row for row in waiting if _is_of(row["recipe"], base)]
        if not mine and asked is None:
            continue
        waiting = [row for row in waiting if row not in mine]
        rows = _rows_of(base, mine, _Looks(base, volume, device, reporter))
        ranking += [row for row in rows if "distance" in row]
        not_ranked += [row for row in rows if "distance" not in row]
        bare += [] if watched_layers(base.network, base.anatomy) else [entry.id]
        del base
    not_ranked += [{"ref": row["ref"], "reason": _why_foreign(row["recipe"], entries)} for row in waiting]
    for row in not_ranked:
        reporter.log(f"Not ranked: {row['ref']}. {row['reason']}")
    ranking.sort(key=lambda row: (row["distance"], row["kind"] == "base", row["ref"]))
    reporter.progress("suggest", len(entries), len(entries), eta_s=0.0)
    return {
        "ranking": ranking,
        "suggested": _suggested(ranking),
        "advice": _advice(ranking),
        "basis": _basis([entry.id for entry in entries], bare),
        "not_ranked": not_ranked,
    }


def _stored(asked: ModelEntry | None) -> tuple[list[Row], list[Row]]:
    """Adapters of the library that may be ranked, each with its "recipe", and those that cannot be read."""
    usable_rows, problems = [], []
    for row in list_adapters():
        if row["problem"] is not None:
            problems.append({"ref": row["ref"], "reason": row["problem"]})
            continue
        try:
            recipe, _ = read_header(row["path"])
        except BadInput as error:  # it went or changed a moment ago
            problems.append({"ref": row["ref"], "reason": str(error)})
            continue
        if asked is None or recipe.base_id == asked.id:
            usable_rows.append({**row, "recipe": recipe})
    return usable_rows, problems


def _entries(asked: ModelEntry | None, waiting: list[Row]) -> list[ModelEntry]:
    """The models to look at: the one that was asked for, or all with weights here that an adapter is of."""
    if asked is not None:
        return [asked]
    wanted = {row["recipe"].base_id for row in waiting}
    return [entry for entry in known_models()[0] if entry.id in wanted and entry.weights_path is not None]


def _load(entry: ModelEntry) -> Base:
    network, anatomy = load_base(entry)
    return Base(entry, network, anatomy, fingerprint(network.state_dict(), architecture(entry)))


def _is_of(recipe: Recipe, base: Base) -> bool:
    return recipe.base_id == base.entry.id and recipe.base_fingerprint == base.fingerprint


class _Looks:
    """Statistics of the new scan under one base, one look for each preprocessing."""

    def __init__(self, base: Base, volume: Volume, device: torch.device, reporter: Reporter) -> None:
        self._base, self._volume, self._device, self._reporter = base, volume, device, reporter
        self._found: list[tuple[Preprocessing, ScanStatistics]] = []

    def at(self, recipe: Preprocessing) -> ScanStatistics:
        """The scan's statistics under a preprocessing."""
        for known, statistics in self._found:
            if known == recipe:
                return statistics
        base = self._base
        statistics = statistics_of(
            self._volume, recipe, base.network, base.anatomy, base.entry.window, self._device, self._reporter
        )
        self._found.append((recipe, statistics))
        return statistics


def _rows_of(base: Base, adapters: list[Row], looks: _Looks) -> list[Row]:
    """Rows of "ranking", or of "not_ranked" (those without "distance"): of a base's adapters, then of itself."""
    rows: list[Row] = []
    found: list[tuple[Row, SiteStatistics, Preprocessing]] = []
    layers = running_moments(base.network, base.anatomy)
    for about, site_of, recipe in [*(_adapter(row) for row in adapters), _base(base)]:
        site = _site_or_reason(site_of)
        if isinstance(site, str):
            rows.append({"ref": about["ref"], "reason": site})
        elif not same_layers(site.layers, layers):
            rows.append({"ref": about["ref"], "reason": "It tells of its scans as other layers of the model saw them."})
        else:
            found.append((about, site, recipe))
    sites = with_common_spread([site for _, site, _ in found])
    return rows + [_judged(about, site, recipe, looks) for (about, _, recipe), site in zip(found, sites, strict=True)]


def _site_or_reason(site_of: Callable[[], SiteStatistics]) -> SiteStatistics | str:
    try:
        return site_of()
    except BadInput as error:
        return str(error)


def _adapter(row: Row) -> tuple[Row, Callable[[], SiteStatistics], Preprocessing]:
    recipe: Recipe = row["recipe"]

    def site() -> SiteStatistics:
        if "site" not in recipe.record:
            raise BadInput(
                "It does not say what its scans are like, as adapters of earlier versions.",
                "Adapt again to have it ranked.",
            )
        return read_site(recipe.record["site"])

    about = {
        "kind": "adapter",
        "ref": row["ref"],
        "name": row["name"],
        "path": row["path"],
        "model": recipe.base_id,
        "method": recipe.method,
        "structures": row["structures"],
        "verdict": stored_status(recipe.record),
    }
    return about, site, recipe.preprocessing


def _base(base: Base) -> tuple[Row, Callable[[], SiteStatistics], Preprocessing]:
    """A base by what its record says of its training scans, else by its running statistics."""
    entry = base.entry

    def site() -> SiteStatistics:
        if "site" in entry.record:
            return read_site(entry.record["site"])
        running = running_moments(base.network, base.anatomy)
        if not running:
            raise BadInput(
                "The model does not say what its training scans were like, and has no batch normalisation that would tell."
            )
        return SiteStatistics(0, {}, {}, running)

    about = {
        "kind": "base",
        "ref": entry.id,
        "name": entry.title,
        "path": None,
        "model": entry.id,
        "method": None,
        "structures": [s.name for s in entry.structures],
        "verdict": None,
    }
    return about, site, entry.preprocessing


def _judged(about: Row, site: SiteStatistics, recipe: Preprocessing, looks: _Looks) -> Row:
    try:
        distance = distance_to(site, looks.at(recipe))
    except JobCancelled:
        raise
    except PeftsegError as error:
        return {"ref": about["ref"], "reason": str(error)}
    assert distance is not None  # both have the groups of facts, or the layers
    reason = _reason(site, distance, "the model's training" if about["kind"] == "base" else "this site")
    remark = REMARKS.get(about["verdict"])
    return {
        **about,
        "scans": site.scans,
        "distance": round(distance.total, 3),
        "parts": {group: round(part, 3) for group, part in distance.parts.items()},
        "reason": f"{reason} {remark}" if remark else reason,
    }


def _reason(site: SiteStatistics, distance: Distance, whose: str) -> str:
    """One plain sentence."""
    count = "one scan" if site.scans == 1 else f"{site.scans} scans" if site.scans else "scans"
    measure = f"{distance.total:.1f} times as much as scans of one site differ from each other"
    if distance.total <= ALIKE:
        return f"The scan is like the {count} of {whose}: it differs from them {measure}."
    how = "differs somewhat from" if distance.total <= FAR else "is unlike"
    return f"The scan {how} the {count} of {whose}, most in its {distance.largest}: {measure}."


def _suggested(ranking: list[Row]) -> int | None:
    """The nearest one that fits and was not refused."""
    return next((n for n, row in enumerate(ranking) if row["distance"] <= FAR and row["verdict"] != REFUSED), None)


def _advice(ranking: list[Row]) -> str:
    if not ranking:
        return "There is no adapter or model to compare the scan with: adapt a model to scans of this site."
    place = _suggested(ranking)
    passed = _passed_over(ranking[:place])
    if place is None:
        none = "No other stored" if passed else "No stored"
        return (
            f"{passed}{none} adapter or model fits this scan well: adapt a model to scans of this site, or look at results "
            "with special care."
        )
    best, others = ranking[place], ranking[place + 1 :]
    alike = (row for row in others if row["distance"] - best["distance"] < EQUAL and row["verdict"] != REFUSED)
    also = next((_fits_too(row) for row in alike), "")
    what = f"the adapter {best['ref']}" if best["kind"] == "adapter" else f"the model {best['ref']} as it is"
    return f"{passed}Use {what}. {best['reason']}{also}"


def _fits_too(row: Row) -> str:
    doubt = ", but its check had accepted it with a warning" if row["verdict"] == WARNING else ""
    return f" {row['ref']} fits about as well{doubt}."


def _passed_over(nearer: list[Row]) -> str:
    """A sentence on the adapters that fit and were refused, or nothing."""
    refused = [row["ref"] for row in nearer if row["distance"] <= FAR]
    if not refused:
        return ""
    if len(refused) == 1:
        return f"{refused[0]} fits, but its check had refused it. "
    return f"{', '.join(refused)} fit, but their checks had refused them. "


def _basis(models: list[str], bare: list[str]) -> str:
    """What the distances are made of, given the models that were looked at and those without batch normalisation."""
    facts, without = f"{GREY}, {TEXTURE} and {VOXELS}", ", ".join(sorted(set(bare)))
    if bare and set(bare) == set(models):
        return f"Compared by {facts} alone, because {without} has no batch normalisation."
    end = f"; without the latter for {without}, which has no batch normalisation." if bare else "."
    return f"Compared by {facts}, and by the {LAYERS} (its first batch normalisations){end}"


def _why_foreign(recipe: Recipe, entries: list[ModelEntry]) -> str:
    if any(entry.id == recipe.base_id for entry in entries):
        return (
            f"It belongs to other weights of the model '{recipe.base_id}' (fingerprint {recipe.base_fingerprint[:12]}) than "
            "those on this machine."
        )
    return f"It belongs to the model '{recipe.base_id}', which is not on this machine."
