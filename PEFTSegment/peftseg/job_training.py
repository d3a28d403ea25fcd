"""The jobs that make an adapter or a model, or prepare that. Torch-free; `config` holds all kinds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from peftseg.errors import BadInput
from peftseg.job_checks import check_amount, check_choice, check_common, check_source, check_structures
from peftseg.models import Structure
from peftseg.planes import orientation_for
from peftseg.site_options import DEFAULT_PRESET, PRESETS
from peftseg.study import SupportItem

ESTIMATES = ("none", "loo")
_NUMBER = r"[+-]?\d+(\.\d+)?"
_INTENSITY = re.compile(rf"zscore|percentile|range|window:{_NUMBER},{_NUMBER}")


@dataclass(frozen=True)
class AdaptJob:
    """Adapt a model to a support set.

    Attributes
    ----------
    model : str
        Id of a model in the catalogue, or a MODELDIR.
    support : tuple of SupportItem
        The labelled scans.
    structures : tuple of Structure
        What to segment; bound to the labels and to the model's rows by name.
    out : str
        The adapter file to write.
    options : dict
        Options of the method; see `peftseg methods`.
    budget_minutes : float or None
        Time after which the best so far is kept; None for no limit.
    epochs : int or None
        None for the method's own number.
    estimate : str
        "none", or "loo" for leaving one scan out at a time, with all scans that `support` says are of the same patient.
    replace_nonfinite : float or None
        Value that takes the place of NaN and infinite voxels; None refuses such scans.
    precision : str
        "auto", "fp32", "bf16" or "fp16".
    store : bool
        Also put the adapter into the adapter library when it is finished.
    snapshots : bool
        Keep two earlier states in the file, for checks of results by "full" (`quality`); not done for large adapters. The file
        doubles, and the doubt is no better for it (Docs/decisions/snapshots.md).
    start_from : str or None
        An adapter file, or a reference in the library, whose state training starts from: `support` holds its scans and the new
        or corrected ones, `structures` its structures and maybe more. Method and options are its own; `name` "" is its name.
    """

    model: str
    support: tuple[SupportItem, ...]
    structures: tuple[Structure, ...]
    out: str
    name: str = ""
    method: str = "lora"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    budget_minutes: float | None = None
    epochs: int | None = None
    estimate: str = "none"
    replace_nonfinite: float | None = None
    precision: str = "auto"
    store: bool = False
    snapshots: bool = False
    start_from: str | None = None

    def __post_init__(self) -> None:
        check_common(self)
        check_structures(self.structures)
        check_choice("estimate", self.estimate, ESTIMATES)
        check_amount(self)
        _check_start(self)


@dataclass(frozen=True)
class CheckJob:
    """Look at a support set before adapting: time and memory, what the base makes of it, and what is wrong with it.

    Attributes
    ----------
    model, support, structures, method, options, seed, device, budget_minutes, epochs, estimate, replace_nonfinite, precision
        As in `AdaptJob`: those of the adaptation that is meant.
    match : bool
        Also segment every scan with the base as it is, and compare that with the labels.
    """

    model: str
    support: tuple[SupportItem, ...]
    structures: tuple[Structure, ...]
    method: str = AdaptJob.method
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    budget_minutes: float | None = None
    epochs: int | None = None
    estimate: str = "none"
    replace_nonfinite: float | None = None
    precision: str = "auto"
    match: bool = True

    def __post_init__(self) -> None:
        check_common(self)
        check_structures(self.structures)
        check_choice("estimate", self.estimate, ESTIMATES)
        check_amount(self)
        if not self.support:
            raise BadInput("There is no labelled scan to check.", "Add at least one labelled scan.")


@dataclass(frozen=True)
class RankJob:
    """Rank unlabelled scans by how much labelling them would help; an adapter or a model is given, one of the two.

    Attributes
    ----------
    adapter : str or None
        Adapter file, or a name in the adapter library.
    model : str or None
        Id of a model in the catalogue, or a MODELDIR.
    inputs : tuple of str
        The unlabelled scans: files, or DICOM series folders.
    support : tuple of str
        Images of the scans that are labelled already; may be empty.
    """

    adapter: str | None
    model: str | None
    inputs: tuple[str, ...]
    support: tuple[str, ...] = ()
    device: str = "auto"
    seed: int = 0
    replace_nonfinite: float | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_common(self)
        check_source(self, "A rank job")
        if not self.inputs:
            raise BadInput("No scan to rank was given.", "Add at least one unlabelled scan.")


@dataclass(frozen=True)
class SiteAdaptJob:
    """Adapt a model to a site's scans without labels.

    Attributes
    ----------
    model : str
        Id of a model in the catalogue, or a MODELDIR.
    unlabelled : tuple of str
        The site's scans: files, folders of files, or DICOM series folders.
    out : str
        The adapter file to write; nothing is written when the gate refuses the adapter.
    preset, options : str, dict
        See `site_options.PRESETS` and `site_options.SITE_OPTIONS`.
    structures : tuple of str
        Structures that the model must know by name; all of the model's structures are adapted.
    budget_minutes : float or None
        Time after which training ends; None for no limit.
    epochs : int or None
        None for the preset's own number.
    store : bool
        Also put the adapter into the adapter library when it is kept.
    keep_refused : bool
        Write the adapter also when the gate refuses it, to look at it.
    """

    model: str
    unlabelled: tuple[str, ...]
    out: str
    name: str = ""
    preset: str = DEFAULT_PRESET
    options: dict[str, Any] = field(default_factory=dict)
    structures: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    budget_minutes: float | None = None
    epochs: int | None = None
    replace_nonfinite: float | None = None
    precision: str = "auto"
    store: bool = False
    keep_refused: bool = False

    def __post_init__(self) -> None:
        check_common(self)
        check_amount(self)
        check_choice("preset", self.preset, tuple(PRESETS))
        if not self.unlabelled:
            raise BadInput("There is no scan to adapt to.", "Give at least three scans of the site.")


@dataclass(frozen=True)
class PretrainJob:
    """Train a foundation model from labelled scans and write a MODELDIR.

    Attributes
    ----------
    data : tuple of SupportItem
        The labelled scans.
    out : str
        The MODELDIR to write.
    id, title, modality, body_part, licence, licence_notice, description : str
        What the catalogue shows of the model.
    network : str
        Name of a network builder; `network_arguments` are its arguments.
    activation : str
        "softmax" or "sigmoid".
    spacing : tuple of float or None
        Voxel size of the model in mm: left-right, front-back, head-foot; None for the scans' median.
    intensity : str
        "zscore", "percentile", "range" (smallest to largest), or "window:lo,hi" in the scans' grey values.
    patch : tuple of int or None
        Training patch in voxels, in the order of `spacing`; None lets the engine choose.
    plane : str or None
        "axial", "coronal" or "sagittal": the slices that a 2D network sees; None: axial, and for networks of volumes.
    square : bool
        Repeat the outer voxels of slices until they are square, as in the CC359 experiments.
    early_level : int or None
        Level of the early segmentation head that is fitted at the end, 0 for full resolution; -1 for none; None lets
        the engine choose: a head for networks with running-statistics batch normalisation only.
    """

    data: tuple[SupportItem, ...]
    structures: tuple[Structure, ...]
    out: str
    id: str
    title: str
    network: str = "segresnet"
    network_arguments: dict[str, Any] = field(default_factory=dict)
    activation: str = "softmax"
    spacing: tuple[float, float, float] | None = None
    intensity: str = "zscore"
    epochs: int = 100
    patch: tuple[int, int, int] | None = None
    plane: str | None = None
    square: bool = False
    early_level: int | None = None
    modality: str = ""
    body_part: str = ""
    licence: str = ""
    licence_notice: str = ""
    description: str = ""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    budget_minutes: float | None = None

    def __post_init__(self) -> None:
        check_common(self)
        check_structures(self.structures)
        check_choice("activation", self.activation, ("softmax", "sigmoid"))
        check_amount(self)
        orientation_for(self.network, self.plane)
        if self.early_level is not None and not -1 <= self.early_level <= 3:
            raise BadInput(f"early_level is {self.early_level}; expected -1 (none) to 3.", "Choose one of these.")
        if not _INTENSITY.fullmatch(self.intensity):
            raise BadInput(
                f"intensity is '{self.intensity}'; expected zscore, percentile, range or window:lo,hi.",
                "For CT give a window in Hounsfield units, e.g. window:-175,250.",
            )
        for name in ("spacing", "patch"):
            if any(not value > 0 for value in getattr(self, name) or ()):
                raise BadInput(f"{name} is {getattr(self, name)}; expected three numbers above 0.", "Correct it.")


def _check_start(job: AdaptJob) -> None:
    """What does not go together with starting from an adapter."""
    if job.start_from is None:
        return
    if job.options:
        raise BadInput(
            f"Options {sorted(job.options)} were given beside an adapter to start from, which has its own.",
            "Leave the options out, or adapt without an adapter to start from.",
        )
    if job.estimate != "none":
        raise BadInput(
            "Leaving scans out cannot tell how good this adapter gets: the one it starts from has seen them.",
            "Leave the estimate out, or adapt without an adapter to start from.",
        )
