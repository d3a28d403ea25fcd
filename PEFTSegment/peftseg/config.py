"""The jobs: one frozen dataclass a kind, and their strict JSON form in `job.json`. Torch-free.

Nothing is guessed when a job is read: unknown and missing fields, wrong types and another protocol are refused with the
field's name, because the program that wrote the job (Slicer's module) and the one that reads it (the engine) may be
of different versions.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput, unknown_name
from peftseg.explain.targets import Target
from peftseg.models import Structure
from peftseg.planes import orientation_for
from peftseg.site_options import DEFAULT_PRESET, PRESETS
from peftseg.strict_json import in_words, record_from
from peftseg.study import SupportItem

PROTOCOL = 1
CPU_BUDGET_MINUTES = 30.0  # of an adaptation without GPU, where the user gives no time
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ESTIMATES = ("none", "loo")
FORMATS = ("nifti", "nrrd")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
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
        "none", or "loo" for leaving one patient out at a time.
    replace_nonfinite : float or None
        Value that takes the place of NaN and infinite voxels; None refuses such scans.
    precision : str
        "auto", "fp32", "bf16" or "fp16".
    store : bool
        Also put the adapter into the adapter library when it is finished.
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

    def __post_init__(self) -> None:
        _check_common(self)
        _check_structures(self.structures)
        _check_choice("estimate", self.estimate, ESTIMATES)
        _check_amount(self)


@dataclass(frozen=True)
class ApplyJob:
    """Segment studies with an adapter, or with a model as it is; exactly one of the two is given.

    Attributes
    ----------
    adapter : str or None
        Adapter file, or a name in the adapter library.
    model : str or None
        Id of a model in the catalogue, or a MODELDIR.
    inputs : tuple of str
        Files, folders of files, or DICOM series folders.
    out : str
        The folder to write to.
    format : str
        "nifti" or "nrrd".
    overlap : float or None
        Overlap of neighbouring windows, 0 to below 1; None for the adapter's own.
    """

    adapter: str | None
    model: str | None
    inputs: tuple[str, ...]
    out: str
    format: str = "nifti"
    device: str = "auto"
    seed: int = 0
    replace_nonfinite: float | None = None
    precision: str = "auto"
    overlap: float | None = None

    def __post_init__(self) -> None:
        _check_common(self)
        _check_choice("format", self.format, FORMATS)
        _check_source(self, "An apply job")
        if not self.inputs:
            raise BadInput("No study to segment was given.", "Add a file, a folder or a DICOM series.")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise BadInput(f"overlap is {self.overlap}; expected 0 to below 1.", "Try 0.5.")


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
        _check_common(self)
        _check_structures(self.structures)
        _check_choice("estimate", self.estimate, ESTIMATES)
        _check_amount(self)
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
        _check_common(self)
        _check_source(self, "A rank job")
        if not self.inputs:
            raise BadInput("No scan to rank was given.", "Add at least one unlabelled scan.")


@dataclass(frozen=True)
class SuggestJob:
    """Rank the stored adapters, and the models they belong to, by how much their scans are like a new one.

    Attributes
    ----------
    input : str
        The new scan: a file, or a folder with one DICOM series.
    model : str or None
        Id of a model in the catalogue, or a MODELDIR: only this model and its adapters; None: all models that have adapters.
    """

    input: str
    model: str | None = None
    device: str = "auto"
    replace_nonfinite: float | None = None

    def __post_init__(self) -> None:
        _check_common(self)
        if not self.input:
            raise BadInput("No scan to suggest an adapter for was given.", "Give a file or a DICOM series folder.")


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
        _check_common(self)
        _check_amount(self)
        _check_choice("preset", self.preset, tuple(PRESETS))
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
        _check_common(self)
        _check_structures(self.structures)
        _check_choice("activation", self.activation, ("softmax", "sigmoid"))
        _check_amount(self)
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


@dataclass(frozen=True)
class GradCamJob:
    """Show which features of some layers speak for a structure in a scan (Grad-CAM); an adapter or a model is given.

    Attributes
    ----------
    adapter : str or None
        Adapter file, or a name in the adapter library.
    model : str or None
        Id of a model in the catalogue, or a MODELDIR.
    input : str
        The scan: a file, or a folder with one DICOM series.
    structure : Structure
        Bound to the network's by name; its value is that in `labels`.
    out : str
        The folder to write to.
    layers : tuple of str
        Names as in `peftseg inspect layers`; none: the last one before the head.
    target : Target
        The voxels that are explained.
    labels : str or None
        Labels of the scan, on its own grid: needed by the target "truth", else to compare the maps with.
    pictures : bool
        Also write PNG files, where matplotlib is installed.
    """

    adapter: str | None
    model: str | None
    input: str
    structure: Structure
    out: str
    layers: tuple[str, ...] = ()
    target: Target = field(default_factory=Target)
    labels: str | None = None
    pictures: bool = True
    device: str = "auto"
    seed: int = 0
    replace_nonfinite: float | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        _check_common(self)
        _check_source(self, "A grad_cam job")
        _check_structures((self.structure,))
        if not self.input:
            raise BadInput("No scan to look into was given.", "Give a file or a DICOM series folder.")
        if self.target.kind == "truth" and not self.labels:
            raise BadInput("The target is the labels of the structure, but no labels were given.", "Give the labels.")


@dataclass(frozen=True)
class ProtoSegJob:
    """Measure what each layer alone makes of structures (ProtoSeg), in one scan or over a support set.

    Attributes
    ----------
    adapter, model : str or None
        As in `GradCamJob`.
    out : str
        The folder to write to.
    input : str or None
        One scan: a file, or a folder with one DICOM series.
    labels : str or None
        Labels of `input`, on its own grid; without them there is no Segmentation Ability.
    support : tuple of SupportItem
        In place of `input`: labelled scans; of an adapter, the base is measured too, for before and after.
    structures : tuple of Structure
        Bound to the network's by name; none: all of the network's, with their own label values.
    layers : tuple of str
        Names as in `peftseg inspect layers`; none: all of these.
    maps : bool
        Also write the binary map of every layer (of `input` only).
    pictures : bool
        Also write PNG files, where matplotlib is installed.
    """

    adapter: str | None
    model: str | None
    out: str
    input: str | None = None
    labels: str | None = None
    support: tuple[SupportItem, ...] = ()
    structures: tuple[Structure, ...] = ()
    layers: tuple[str, ...] = ()
    maps: bool = True
    pictures: bool = True
    device: str = "auto"
    seed: int = 0
    replace_nonfinite: float | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        _check_common(self)
        _check_source(self, "A proto_seg job")
        if self.structures:
            _check_structures(self.structures)
        if bool(self.input) == bool(self.support):
            raise BadInput(
                f"A proto_seg job takes one scan or a support set, got {self.input!r} and {len(self.support)} scans.",
                "Give one of them.",
            )


Job = AdaptJob | ApplyJob | PretrainJob | CheckJob | RankJob | SuggestJob | SiteAdaptJob | GradCamJob | ProtoSegJob
KINDS: dict[str, type] = {
    "adapt": AdaptJob,
    "apply": ApplyJob,
    "pretrain": PretrainJob,
    "check": CheckJob,
    "rank": RankJob,
    "suggest": SuggestJob,
    "site_adapt": SiteAdaptJob,
    "grad_cam": GradCamJob,
    "proto_seg": ProtoSegJob,
}


def kind_of(job: Job) -> str:
    """The name of a job's kind, one of `KINDS`."""
    return next(kind for kind, record in KINDS.items() if type(job) is record)


def to_json(job: Job) -> str:
    """The text of `job.json`: protocol, kind and every field of the job."""
    record = {"protocol": PROTOCOL, "kind": kind_of(job), **dataclasses.asdict(job)}
    try:
        return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"The job holds a value that JSON has no word for ({error}).", "Correct the options.") from error


def from_json(text: str) -> Job:
    """Inverse of `to_json`.

    Raises
    ------
    BadInput
        When the text is not JSON, of another protocol or kind, or has unknown, missing or mistyped fields.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"job.json is not valid JSON ({error}).", "Create the job again.") from error
    if not isinstance(record, dict):
        raise BadInput(f"job.json holds {in_words(record)}; expected an object.", "Create the job again.")
    protocol = record.pop("protocol", None)
    if protocol != PROTOCOL or isinstance(protocol, bool):
        raise BadInput(
            f"The job has protocol {protocol!r}; this engine speaks protocol {PROTOCOL}.",
            "Update PEFTSegment and the engine's environment to the same version, then create the job again.",
        )
    kind = record.pop("kind", None)
    if kind not in KINDS:
        raise unknown_name("job kind", str(kind), KINDS)
    return record_from(KINDS[kind], record, f"{kind} job")


def with_absolute_paths(job: Job) -> Job:
    """The job with its paths made absolute from the current folder; a worker runs in its job's folder."""
    changes: dict[str, Any] = {"out": _absolute(job.out)} if getattr(job, "out", "") else {}
    for name in ("model", "adapter"):  # may also be names in the catalogue or the library
        value = getattr(job, name, None)
        if value and Path(value).exists():
            changes[name] = _absolute(value)
    if isinstance(job, (ApplyJob, RankJob)):
        changes["inputs"] = tuple(_absolute(p) for p in job.inputs)
    if isinstance(job, SiteAdaptJob):
        changes["unlabelled"] = tuple(_absolute(p) for p in job.unlabelled)
    for name in ("input", "labels"):
        if getattr(job, name, None):
            changes[name] = _absolute(getattr(job, name))
    if isinstance(job, RankJob):
        changes["support"] = tuple(_absolute(p) for p in job.support)
    scans = {AdaptJob: "support", CheckJob: "support", PretrainJob: "data", ProtoSegJob: "support"}.get(type(job))
    if scans:
        items = getattr(job, scans)
        changes[scans] = tuple(
            dataclasses.replace(item, image=_absolute(item.image), labels=_absolute(item.labels)) for item in items
        )
    return dataclasses.replace(job, **changes)


def _absolute(path: str) -> str:
    """An absolute path, with ~ opened up."""
    return str(Path(path).expanduser().absolute())


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise unknown_name(name, str(value), valid)


def _check_common(job: Any) -> None:
    _check_choice("precision", getattr(job, "precision", "fp32"), PRECISIONS)
    if not _DEVICE.fullmatch(job.device):
        raise BadInput(f"Unknown device '{job.device}'; valid: auto, cpu, cuda, cuda:n, mps.", "Choose a valid device.")
    if not getattr(job, "out", "nothing is written"):
        raise BadInput("The job does not say where to write its result.", "Give an output path.")
    if getattr(job, "seed", 0) < 0:
        raise BadInput(f"seed is {job.seed}; expected 0 or more.", "Choose another seed.")


def _check_source(job: Any, what: str) -> None:
    if (job.adapter is None) == (job.model is None):
        raise BadInput(
            f"{what} takes an adapter or a model, got {job.adapter!r} and {job.model!r}.", "Give one of them."
        )


def _check_amount(job: Any) -> None:
    if job.budget_minutes is not None and not job.budget_minutes > 0:
        raise BadInput(f"budget_minutes is {job.budget_minutes}; expected more than 0.", "Give more time, or none.")
    if job.epochs is not None and job.epochs < 1:
        raise BadInput(f"epochs is {job.epochs}; expected 1 or more.", "Give a larger number.")


def _check_structures(structures: tuple[Structure, ...]) -> None:
    if not structures:
        raise BadInput("No structure was given.", "Name at least one structure and its label value.")
    for attribute in ("name", "value"):
        values = [getattr(s, attribute) for s in structures]
        twice = sorted({str(v) for v in values if values.count(v) > 1})
        if twice:
            raise BadInput(f"Structures share the {attribute} {', '.join(twice)}.", f"Give each its own {attribute}.")
    for structure in structures:
        if not structure.name or not 1 <= structure.value <= 65535:
            raise BadInput(
                f"Structure '{structure.name}' has the value {structure.value}; expected a name and 1 to 65535.",
                "Correct the structure.",
            )
