"""One adaptation without labels, from prepared scans to the gate's verdict; no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from peftseg.adabn import copy_statistics, recalibrate, restore_statistics, running_norms
from peftseg.adapters.base import Attached
from peftseg.device import choose_precision, fits, within_memory
from peftseg.early_head import EarlyBranch, load_early_head, load_head_state
from peftseg.early_levels import find_levels
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.gate import Verdict, judge
from peftseg.models import ModelEntry
from peftseg.networks import Anatomy
from peftseg.plan import safe_precision
from peftseg.preprocess import Prepared
from peftseg.segmenter import SMALLER
from peftseg.self_training import VOXELS_AT_ONCE, SiteHistory, SiteTraining, self_train
from peftseg.site_attach import attach_site
from peftseg.site_batches import SiteBatches, make_batches
from peftseg.site_early import find_early_head
from peftseg.site_evidence import Evidence, chosen_scans, collect_evidence
from peftseg.site_options import recalibrates_after, recalibrates_before, resolve_levels, without_statistics
from peftseg.weights import architecture, fingerprint

RECALIBRATION_VOXELS = 2**21  # through the network at once, without gradients: 32 slices of 256 x 256


@dataclass(frozen=True, eq=False)
class SiteSetting:
    """What is fixed before: the base, the options of `check_site_options`, and how it is run.

    `deadline_s` are the seconds after which training ends, None for no limit; fitting an early head counts.
    """

    entry: ModelEntry
    options: dict[str, Any]
    epochs: int
    device: torch.device
    seed: int = 0
    precision: str = "auto"
    deadline_s: float | None = None


@dataclass(frozen=True, eq=False)
class SiteAdapted:
    """The outcome.

    Attributes
    ----------
    attached : Attached
        The adapter on its network.
    branch : EarlyBranch or None
        The early head on the same network.
    fitted : bool
        The early head was fitted here, to the base's own predictions.
    options : dict
        With depth and level decided.
    recalibrated : int
        Layers whose statistics are the site's.
    notes : tuple of str
        What the user was told.
    before, after : Evidence or None
        None without gate.
    """

    attached: Attached
    branch: EarlyBranch | None
    fitted: bool
    options: dict[str, Any]
    history: SiteHistory
    recalibrated: int
    notes: tuple[str, ...]
    patch: tuple[int, int, int]
    precision: str
    base_fingerprint: str
    before: Evidence
    after: Evidence
    verdict: Verdict

    def early_facts(self) -> dict[str, Any] | None:
        """Level, origin and size of the early head."""
        if self.branch is None:
            return None
        size = sum(p.numel() for p in self.branch.head.parameters())
        return {"level": self.branch.level, "fitted": self.fitted, "parameters": size}


def adapt_site(
    setting: SiteSetting,
    network: nn.Module,
    anatomy: Anatomy,
    scans: Sequence[Prepared],
    reporter: Reporter,
    as_they_are: Sequence[Prepared] | None = None,
) -> SiteAdapted:
    """Adapt a base to a site's scans, and judge the outcome.

    Parameters
    ----------
    network, anatomy
        From `weights.load_base`; the network is changed in place.
    scans : sequence of Prepared
        With the adapter's preprocessing.
    as_they_are : sequence of Prepared, optional
        The same scans with the base's preprocessing, where that is another one: the outcome is judged against the base as
        it is.

    Raises
    ------
    JobCancelled, BadInput, OutOfMemory, TrainingFailed
    """
    entry, device = setting.entry, setting.device
    base_fingerprint = fingerprint(network.state_dict(), architecture(entry))
    network.to(device)
    torch.manual_seed(setting.seed)
    batches = make_batches(scans, network, anatomy, entry.window, setting.seed)
    if not any(batches.places):
        raise BadInput("All scans are constant: there is nothing to adapt to.", "Check that these are the right scans.")
    options, notes = _settle(setting, network, reporter)
    own = load_early_head(entry)
    options = resolve_levels(options, len(find_levels(network, anatomy)), None if own is None else own[0])
    head = find_early_head(entry, network, anatomy, options, batches, own, setting.deadline_s, reporter)
    branch = head.branch
    if setting.deadline_s is not None:
        setting = replace(setting, deadline_s=setting.deadline_s - head.seconds)
    reporter.progress("gate", 0, 2)
    before = evidence_of(setting, network, branch, scans if as_they_are is None else as_they_are, reporter)
    attached = attach_site(network, anatomy, options)
    precision = _precision(setting, batches, anatomy)
    history, recalibrated = _train(setting, attached, branch, batches, options, precision, reporter)
    merged = attached.merge()
    reporter.progress("gate", 1, 2)
    after = evidence_of(setting, merged, _same_head(merged, anatomy, branch), scans, reporter)
    verdict = judge(before, after, entry.record.get("structure_facts"))
    reporter.progress("gate", 2, 2)
    return SiteAdapted(
        attached,
        branch,
        head.fitted,
        options,
        history,
        recalibrated,
        tuple(notes),
        batches.patch,
        precision,
        base_fingerprint,
        before,
        after,
        verdict,
    )


def _settle(setting: SiteSetting, network: nn.Module, reporter: Reporter) -> tuple[dict[str, Any], list[str]]:
    """The options as far as this network has what they are about; what that leaves out is said."""
    options = setting.options
    if running_norms(network) or (options["adabn"] == "none" and options["bn_mode"] == "source"):
        return options, []
    what = f"Model '{setting.entry.id}' has no batch normalisation with running statistics: recalibration does nothing here"
    if options["train"] == "none":
        raise BadInput(f"{what}, and nothing else was asked for.", "Choose a preset that trains, such as convlora.")
    note = f"{what}; self-training goes on without it."
    reporter.warning(note)
    return without_statistics(options), [note]


def _precision(setting: SiteSetting, batches: SiteBatches, anatomy: Anatomy) -> str:
    """Of training; without the scaling of gradients that 16-bit floats need."""
    precision = choose_precision(setting.device, setting.precision)
    patch = (*batches.patch[:2], batches.per_step) if batches.slicewise else batches.patch
    return "fp32" if precision == "fp16" else safe_precision(precision, setting.device, patch, anatomy.divisor)


def _train(
    setting: SiteSetting,
    attached: Attached,
    branch: EarlyBranch | None,
    batches: SiteBatches,
    options: dict[str, Any],
    precision: str,
    reporter: Reporter,
) -> tuple[SiteHistory, int]:
    """Recalibrate, train, recalibrate, as the options say; returns the history and the number of recalibrated layers."""
    layers: list[str] = []
    source = copy_statistics(attached.network)
    if recalibrates_before(options):
        layers = _recalibrate(attached, batches, options, source, reporter)
    recalibrated = copy_statistics(attached.network)
    if options["bn_mode"] == "source":
        restore_statistics(attached.network, source)
    history = SiteHistory()
    if options["train"] != "none":
        training = SiteTraining(
            attached,
            branch,
            _for_training(batches, options, reporter),
            options,
            setting.entry.activation,
            setting.epochs,
            precision,
            setting.deadline_s,
        )
        history = self_train(training, reporter)
        if history.inert:
            reporter.warning(
                f"{len(history.inert)} trained tensors had no influence on the loss, such as {history.inert[0]}."
            )
    if options["bn_mode"] == "source":
        restore_statistics(attached.network, recalibrated)
    if recalibrates_after(options) and options["train"] != "none":
        layers = _recalibrate(attached, batches, options, source, reporter)
    if options["adabn"] == "moving":
        layers = list(running_norms(attached.network))
    return history, len(layers)


def _for_training(batches: SiteBatches, options: dict[str, Any], reporter: Reporter) -> SiteBatches:
    """Fewer parts a step where the system ended the job for memory and a step cannot be taken apart."""
    if not (reporter.smaller_plan and options["bn_mode"] == "batch"):
        return batches
    parts = max(1, batches.per_step // SMALLER)
    reporter.warning(f"With less memory: training with {parts} instead of {batches.per_step} parts a step.")
    return replace(batches, per_step=parts)


def _recalibrate(
    attached: Attached,
    batches: SiteBatches,
    options: dict[str, Any],
    source: dict[str, torch.Tensor],
    reporter: Reporter,
) -> list[str]:
    """Over batches of so many parts as fit into memory.

    All batches count alike in the mean, so all are made smaller, and not some of them taken apart. Smaller batches make
    variances a little smaller: what lies between the parts of different batches does not count.
    """
    device = next(attached.network.parameters()).device
    limit = VOXELS_AT_ONCE if reporter.smaller_plan else RECALIBRATION_VOXELS
    batches = replace(batches, per_step=batches.parts_within(limit))

    def run(place: torch.device) -> list[str]:
        attached.network.to(place)
        try:
            own = {name: tensor.to(place) for name, tensor in source.items()}
            return recalibrate(attached.network, _watched(batches, reporter), options["source_weight"], own)
        finally:
            attached.network.to(device)

    while (largest := max(map(len, batches.steps(0)))) > 1:
        done = fits(partial(run, device))
        if done is not None:
            return done[0]
        batches = replace(batches, per_step=largest // 2)
        reporter.warning(f"Out of memory: recalibrating with {largest // 2} parts at once.")
    return within_memory(run, device, f"Recalibration on parts of {batches.patch} voxels", reporter)


def _watched(batches: SiteBatches, reporter: Reporter) -> Iterator[torch.Tensor]:
    steps = batches.steps(0)
    for number, places in enumerate(steps):
        reporter.check()
        reporter.progress("recalibrate", number, len(steps))
        yield batches.tensor(places)


def _same_head(merged: nn.Module, anatomy: Anatomy, branch: EarlyBranch | None) -> EarlyBranch | None:
    """The early head on the merged network."""
    if branch is None:
        return None
    new = EarlyBranch(merged, anatomy, branch.level, branch.head.conv3.out_channels)
    load_head_state(new, branch.head.state_dict())
    return new


def evidence_of(
    setting: SiteSetting,
    network: nn.Module,
    branch: EarlyBranch | None,
    scans: Sequence[Prepared],
    reporter: Reporter,
) -> Evidence:
    """What the gate looks at of some of the scans; the network, on `branch` where there is one, stays on the device."""
    entry = setting.entry
    evidence = collect_evidence(
        network,
        branch,
        [scans[n] for n in chosen_scans(len(scans))],
        entry.structures,
        entry.activation,
        entry.window,
        entry.overlap,
        setting.device,
        precision=setting.precision,
        reporter=reporter,
    )
    (network if branch is None else branch).to(setting.device)  # back from where the memory sufficed
    return evidence
