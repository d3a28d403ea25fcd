"""Going on from an adapter with more or corrected scans, instead of starting over (`peftseg adapt --start-from`).

Method, options, preprocessing and head are the earlier adapter's; training takes at most half of what starting over takes,
at half the learning rates, because the weights are near their goal. The training scans are the ones that are given now: all
of them, not only the new ones, else the adapter would forget the earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from peftseg.adapter_file import Recipe, load_adapter
from peftseg.adapters.base import Attached
from peftseg.config import AdaptJob
from peftseg.dataset import structures_overlap
from peftseg.errors import BadInput
from peftseg.library import find_adapter
from peftseg.models import ModelEntry, Structure
from peftseg.plan import Plan
from peftseg.site_options import SITE
from peftseg.study import LoadedScan

TIME_SHARE = 0.45  # of starting over: under half, because getting ready takes as long as there
RATE_SHARE = 0.5  # of the method's learning rates
START_OVER = "Adapt without an adapter to start from."
OR_OVER = "adapt without an adapter to start from."


@dataclass(frozen=True, eq=False)
class WarmStart:
    """The adapter that training starts from: its recipe, its state, its hash."""

    recipe: Recipe
    state: dict[str, torch.Tensor]
    hash: str

    @property
    def full_epochs(self) -> int:
        """Epochs that starting over took: the adapter's own, or those of the one at the beginning of the line."""
        record = self.recipe.record
        return int(record.get("parent", {}).get("full_epochs") or record.get("epochs") or 0)


def read_start(job: AdaptJob, entry: ModelEntry) -> WarmStart:
    """The adapter that a job starts from, checked against what the job asks for.

    Raises
    ------
    BadInput
        Unknown or damaged adapter; it belongs to another model, was made without labels, lacks none of its structures
        now, or the job asks for another method.
    """
    recipe, state, digest = load_adapter(find_adapter(job.start_from))
    who = f"The adapter '{recipe.name}' (version {recipe.version})"
    if recipe.base_id != entry.id:
        raise BadInput(f"{who} belongs to the model '{recipe.base_id}', not to '{entry.id}'.", "Choose its own model.")
    if recipe.method == SITE:
        raise BadInput(f"{who} was made without labels; there is nothing to go on from with labels.", START_OVER)
    if job.method not in (AdaptJob.method, recipe.method):
        raise BadInput(
            f"{who} was made with the method '{recipe.method}', and '{job.method}' was asked for.",
            f"Leave the method out, or {OR_OVER[:-1]} to use another one.",
        )
    asked = {s.name for s in job.structures}
    missing = [s.name for s in recipe.structures if s.name not in asked]
    if missing:
        raise BadInput(
            f"{who} segments {', '.join(missing)}, too, which is not among the structures now.",
            f"Name all of its structures, also those that no new scan labels, or {OR_OVER}",
        )
    return WarmStart(recipe, state, digest)


def take_over(
    attached: Attached, start: WarmStart, structures: Sequence[Structure], activation: str, base_fingerprint: str
) -> None:
    """Put an adapter's state into a freshly attached one, in place.

    The head's rows are bound by name; rows of added structures, and a decoder that trains only because of them, stay as
    the base has them. BadInput where the state does not fit.
    """
    recipe = start.recipe
    if base_fingerprint != recipe.base_fingerprint:
        raise BadInput(
            f"The adapter '{recipe.name}' was made from other weights of '{recipe.base_id}' "
            f"({recipe.base_fingerprint[:12]}) than those on this machine ({base_fingerprint[:12]}).",
            f"Get the weights that it was made with, or {OR_OVER}",
        )
    attached.fit_to(start.state)
    fresh = attached.state()
    state = dict(start.state)
    first = int(activation == "softmax")
    for key in state.keys() & fresh.keys():
        if attached.trained.get(key.partition("::")[0]) == "head" and recipe.structures != tuple(structures):
            state[key] = _head_rows(state[key], fresh[key], recipe.structures, structures, first)
    untrained = {k for k in fresh.keys() - state.keys() if attached.trained.get(k.partition("::")[0]) == "decoder"}
    try:
        attached.load_state({**{key: fresh[key] for key in untrained}, **state})
    except BadInput as error:
        raise BadInput(
            f"Training cannot go on from '{recipe.name}' with these structures. {error.message}", START_OVER
        ) from error


def shortened(plan: Plan, start: WarmStart) -> Plan:
    """The plan for going on: under half of the epochs that starting over takes, and of its time."""
    schedule = plan.schedule
    full = min(schedule.epochs, start.full_epochs or schedule.epochs)
    epochs = max(1, int(full * TIME_SHARE))
    budget = None if schedule.budget_s is None else schedule.budget_s * TIME_SHARE
    return replace(
        plan,
        schedule=replace(schedule, epochs=epochs, max_epochs=epochs, budget_s=budget),
        seconds=plan.seconds * epochs / schedule.epochs,
        deadline=None if plan.deadline is None else plan.deadline * TIME_SHARE,
    )


def with_fewer(rates: dict[str, float]) -> dict[str, float]:
    """Learning rates for going on."""
    return {kind: rate * RATE_SHARE for kind, rate in rates.items()}


def check_scans(start: WarmStart, loaded: Sequence[LoadedScan]) -> None:
    """BadInput where structures overlap now, and the adapter gives each voxel one structure."""
    if start.recipe.activation == "softmax" and structures_overlap(list(loaded)):
        raise BadInput(
            f"Structures overlap in these scans, but '{start.recipe.name}' gives each voxel one structure.",
            f"Correct the labels, or {OR_OVER}",
        )


def lineage(start: WarmStart) -> dict[str, Any]:
    """What the new adapter's record says of the one that it started from, under "parent"."""
    record = start.recipe.record
    earlier = record.get("parent", {}).get("line", [])
    return {
        "hash": start.hash,
        "version": start.recipe.version,
        "shots": record.get("shots"),
        "full_epochs": start.full_epochs,
        "line": [*earlier, start.hash],
    }


def _head_rows(
    saved: torch.Tensor, fresh: torch.Tensor, old: Sequence[Structure], new: Sequence[Structure], first: int
) -> torch.Tensor:
    """A head's tensor with the saved rows where their structures are now, and the fresh ones' elsewhere."""
    if len(saved) != len(old) + first or len(fresh) != len(new) + first or saved.shape[1:] != fresh.shape[1:]:
        return saved  # of no rows, or misshapen: loading judges it
    row_of = {s.name: row for row, s in enumerate(new, start=first)}
    rows = fresh.clone()
    if first:
        rows[0] = saved[0]
    for row, structure in enumerate(old, start=first):
        rows[row_of[structure.name]] = saved[row]
    return rows
