"""One training of an adapter: what is fixed before it, getting ready, fitting, and segmenting with the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.adapter_file import with_snapshots
from peftseg.adapters import attach, learning_rates
from peftseg.adapters.base import Attached
from peftseg.adapters.options import PROTO_SEG
from peftseg.dataset import prepare_scans, structures_overlap
from peftseg.device import within_memory
from peftseg.events import Reporter
from peftseg.infer import segment
from peftseg.models import ModelEntry, Preprocessing, Structure
from peftseg.networks import Anatomy, build, head_rows, replace_head
from peftseg.optimise import fit
from peftseg.patches import Scan
from peftseg.plan import Plan, make_plan
from peftseg.preprocess import prepare
from peftseg.recipe import choose_recipe, support_facts
from peftseg.schedule import History
from peftseg.snapshots import MOST_VALUES, Recorder, State, small_enough
from peftseg.study import LoadedScan
from peftseg.warm_start import WarmStart, shortened, take_over, with_fewer
from peftseg.weights import architecture, fingerprint, fit_head, load_base, n_outputs
from peftseg.windows import window_for


@dataclass(frozen=True)
class Setting:
    """What is fixed before training: the base, the structures, the method and how it is run."""

    entry: ModelEntry
    structures: tuple[Structure, ...]
    activation: str
    method: str
    options: dict[str, Any]
    train_decoder: bool
    device: torch.device
    seed: int = 0
    precision: str = "auto"
    epochs: int | None = None
    budget_minutes: float | None = None
    smaller_plan: bool = False
    scratch: bool = False
    """Start from random weights instead of the base's, as the comparison's reference does."""
    snapshots: bool = False
    """Keep earlier states, for `quality`; see `snapshots`."""
    start: WarmStart | None = None
    """Go on from this adapter, see `warm_start`; method, options, activation and decoder must be as it asks."""


@dataclass(frozen=True)
class Adapted:
    """The outcome of one training: the pruned adapter on its network, its recipe and its history.

    `setting` is what was trained, `choice` how the method `auto` came to it (see `auto.choose`; empty for others).
    `base_fingerprint` is that of the weights it started from; `divisor` is the network's: windows for studies are
    multiples of it (see `windows.window_for`). `snapshots` are earlier states of the same training, not pruned.
    """

    setting: Setting

    attached: Attached
    recipe: Preprocessing
    changes: list[str]
    plan: Plan
    history: History
    divisor: int | tuple[int, int, int]
    base_fingerprint: str
    choice: dict[str, Any] = field(default_factory=dict)
    snapshots: tuple[State, ...] = ()

    def stored_state(self) -> State:
        """What the adapter file holds: the adapter's tensors, and its snapshots' where there are some."""
        return with_snapshots(self.attached.state(), self.snapshots)


def make_setting(
    entry: ModelEntry,
    structures: tuple[Structure, ...],
    loaded: list[LoadedScan],
    method: str,
    options: dict[str, Any],
    device: torch.device,
    reporter: Reporter,
) -> Setting:
    """Decide head and decoder: overlap makes a sigmoid head, any novel structure trains the decoder.

    The first is our choice; the second is that of FSEFT and ARENA (Baklouti et al. 2025, sec. 3.1).

    Seed, precision, epochs and budget are the defaults; `dataclasses.replace` gives others.
    """
    known = {s.name for s in entry.known_structures}
    novel = [s.name for s in structures if s.name not in known]
    if novel:
        reporter.log(f"Novel for this model: {', '.join(novel)}; the decoder trains too.")
    activation = "sigmoid" if structures_overlap(loaded) else "softmax"
    if activation == "sigmoid":
        reporter.log("Structures overlap: each gets its own yes-or-no output, results are layered .seg.nrrd files.")
    return Setting(
        entry=entry,
        structures=structures,
        activation=activation,
        method=method,
        options=options,
        train_decoder=bool(novel),
        device=device,
    )


@dataclass(frozen=True)
class Ready:
    """Everything that training needs, and what it is expected to cost.

    `setting` is the one that was asked for, with the layers that fail on these scans where the option `layers` is
    "proto-seg".
    """

    setting: Setting
    attached: Attached
    recipe: Preprocessing
    changes: list[str]
    scans: list[Scan]
    plan: Plan
    divisor: int | tuple[int, int, int]
    base_fingerprint: str


def get_ready(setting: Setting, loaded: Sequence[LoadedScan], reporter: Reporter) -> Ready:
    """Preprocess, attach and plan. Every choice that depends on the scans is made in here."""
    recipe, changes = _recipe(setting, loaded)
    for change in changes:
        reporter.log(change)
    scans = prepare_scans(list(loaded), recipe, setting.structures, setting.activation == "sigmoid", setting.device)
    reporter.check()
    torch.manual_seed(setting.seed)
    network, anatomy, base_fingerprint = starting_network(setting)
    setting = _with_failing_layers(setting, network, anatomy, recipe, loaded, reporter)
    attached = attach(network, anatomy, setting.method, setting.options, setting.train_decoder)
    if setting.start is not None:
        take_over(attached, setting.start, setting.structures, setting.activation, base_fingerprint)
    for note in attached.notes:
        reporter.log(note)
    network.to(setting.device)
    plan = plan_for(setting, scans, attached, anatomy.divisor)
    if setting.start is not None and setting.epochs is None:
        plan = shortened(plan, setting.start)
    reporter.log(plan.sentence())
    return Ready(setting, attached, recipe, changes, scans, plan, anatomy.divisor, base_fingerprint)


def _with_failing_layers(
    setting: Setting,
    network: nn.Module,
    anatomy: Anatomy,
    recipe: Preprocessing,
    loaded: Sequence[LoadedScan],
    reporter: Reporter,
) -> Setting:
    """The setting with its layers by name where the scans are to choose them; the network stays as it is."""
    if setting.options.get("layers") != PROTO_SEG:
        return setting
    from peftseg.explain.failing import with_failing_layers  # most trainings look into nothing
    from peftseg.explain.subject import Subject

    window, overlap = setting.entry.window, setting.entry.overlap
    subject = Subject(network, (), setting.activation, recipe, window, overlap, {}, anatomy=anatomy)
    options = with_failing_layers(
        setting.options,
        subject,
        setting.structures,
        loaded,
        anatomy.decoder if setting.train_decoder else (),
        setting.device,
        setting.precision,
        reporter,
    )
    return replace(setting, options=options)


def _recipe(setting: Setting, loaded: Sequence[LoadedScan]) -> tuple[Preprocessing, list[str]]:
    """The preprocessing, and what was changed of the base's in a sentence each."""
    if setting.start is not None:
        return setting.start.recipe.preprocessing, list(setting.start.recipe.record.get("recipe_changes", []))
    facts = [support_facts(scan.volume, scan.masks, setting.entry.preprocessing.orientation) for scan in loaded]
    return choose_recipe(setting.entry.preprocessing, facts)


def train_adapter(setting: Setting, loaded: Sequence[LoadedScan], reporter: Reporter) -> Adapted:
    """Get ready, fit and prune, with the setting's method; `auto.adapt_scans` chooses one first where asked to."""
    ready = get_ready(setting, loaded, reporter)
    setting, attached, plan = ready.setting, ready.attached, ready.plan
    rates = learning_rates(setting.options)
    groups = attached.parameter_groups(rates if setting.start is None else with_fewer(rates))
    names = [s.name for s in setting.structures]
    recorder = _recorder(attached, reporter) if setting.snapshots else None
    history = fit(
        recorder or attached,
        groups,
        ready.scans,
        plan.schedule,
        setting.activation,
        reporter,
        plan.deadline,
        structures=names,
    )
    snapshots = recorder.chosen((history.best_epoch + 1) / len(history.losses)) if recorder else ()
    attached.prune()
    return Adapted(
        setting,
        attached,
        ready.recipe,
        ready.changes,
        plan,
        history,
        ready.divisor,
        ready.base_fingerprint,
        snapshots=snapshots,
    )


def _recorder(attached: Attached, reporter: Reporter) -> Recorder | None:
    if small_enough(attached):
        return Recorder(attached)
    reporter.log(f"The adapter has more than {MOST_VALUES:,} values: it keeps no snapshots, its file stays small.")
    return None


def starting_network(setting: Setting) -> tuple[nn.Module, Anatomy, str]:
    """The base with a head for the structures, and the base's fingerprint.

    From scratch: the same network with random weights, and no fingerprint.
    """
    if setting.scratch:
        rows = n_outputs(setting.structures, setting.activation)
        network, anatomy = build(setting.entry.network, rows)
        if head_rows(network, anatomy) is None:  # text-driven: it has its own structures' rows
            replace_head(network, anatomy, rows)
        return network, anatomy, ""
    network, anatomy = load_base(setting.entry)
    base_fingerprint = fingerprint(network.state_dict(), architecture(setting.entry))
    fit_head(network, anatomy, setting.entry, setting.structures, setting.activation)
    return network, anatomy, base_fingerprint


def plan_for(setting: Setting, scans: list[Scan], attached: Attached, divisor: int | tuple[int, int, int]) -> Plan:
    """The plan for training on these scans."""
    return make_plan(
        attached.network,
        [tuple(scan.image.shape[1:]) for scan in scans],
        setting.entry.window,
        divisor,
        setting.device,
        budget_minutes=setting.budget_minutes,
        epochs=setting.epochs,
        precision=setting.precision,
        seed=setting.seed,
        smaller=setting.smaller_plan,
        frozen_until=attached.frozen_until,
    )


def predict_masks(adapted: Adapted, scan: LoadedScan, reporter: Reporter) -> dict[str, np.ndarray]:
    """Masks (I, J, K) by structure name, on the scan's own grid; OutOfMemory where no device's memory suffices."""
    setting = adapted.setting
    prepared = prepare(scan.volume, adapted.recipe)
    network = adapted.attached.merge()

    def run(place: torch.device) -> np.ndarray:
        return segment(
            network,
            prepared,
            n_outputs(setting.structures, setting.activation),
            window_for(prepared.image.shape[1:], adapted.plan.schedule.patch, setting.entry.window, adapted.divisor),
            setting.entry.overlap,
            setting.activation,
            place,
            precision=setting.precision,
            reporter=reporter,
        )

    result = within_memory(run, setting.device, f"A scan of {scan.volume.grid.describe()}", reporter)
    if setting.activation == "sigmoid":
        return {s.name: result[i] for i, s in enumerate(setting.structures)}
    return {s.name: result == i for i, s in enumerate(setting.structures, start=1)}
