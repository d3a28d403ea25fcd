"""The jobs that use an adapter or a model. Torch-free; `config` holds all kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftseg.dicom_source import FORMATS as DICOM_FORMATS
from peftseg.errors import BadInput
from peftseg.explain.targets import Target
from peftseg.job_checks import check_choice, check_common, check_source, check_structures
from peftseg.models import Structure
from peftseg.several_rules import RULES
from peftseg.study import SupportItem

FORMATS = ("nifti", "nrrd", *DICOM_FORMATS)
QUALITIES = ("none", "fast", "full")  # how far results are checked by running the network again, see `quality`
NAMES = ("auto", "keep", "opaque")  # of a batch's results


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
    adapters, merge : tuple of str, str
        In place of `adapter`: several adapters whose results become one by this rule, see `several_rules.RULES`.
    quality : str
        How much is done to tell doubtful results, see `QUALITIES`.
    series_rules : str or None
        "default" or a file of rules: DICOM inputs are sorted into series of which the rules choose; None takes them as given.
    batch : bool
        Keep a manifest, measurements and a report in `out`, leave out what is done already, and go on after a failure; see
        Docs/batch.md. False: results only, and an existing result is an error of that study.
    names : str
        Of results, of a batch: "auto" (opaque ones for DICOM, files keep theirs), "keep" or "opaque".
    watch, settle_s : bool, float
        Of a batch: go on looking for new studies; one is taken when it did not change for so many seconds.
    workers, cluster : int, str
        Of a batch: so many processes on this machine, or the address of a Dask scheduler; 0 and "": in this process.
    report : bool
        Of a batch: write report.html with its pictures.
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
    adapters: tuple[str, ...] = ()
    merge: str = "first"
    quality: str = "none"
    series_rules: str | None = None
    batch: bool = False
    names: str = "auto"
    watch: bool = False
    settle_s: float = 5.0
    workers: int = 0
    cluster: str = ""
    report: bool = True

    def __post_init__(self) -> None:
        check_common(self)
        check_choice("format", self.format, FORMATS)
        if self.names not in NAMES:
            raise BadInput(
                f"Results cannot be named by '{self.names}'; valid for names: {', '.join(NAMES)}.",
                "Choose keep (the files' own names), opaque (names that tell nothing) or auto (opaque for DICOM, else keep).",
            )
        check_choice("quality", self.quality, QUALITIES)
        check_choice("merge", self.merge, RULES)
        _check_several(self)
        _check_many(self)
        if not self.inputs:
            raise BadInput("No study to segment was given.", "Add a file, a folder or a DICOM series.")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise BadInput(f"overlap is {self.overlap}; expected 0 to below 1.", "Try 0.5.")


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
        check_common(self)
        if not self.input:
            raise BadInput("No scan to suggest an adapter for was given.", "Give a file or a DICOM series folder.")


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
        check_common(self)
        check_source(self, "A grad_cam job")
        check_structures((self.structure,))
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
        check_common(self)
        check_source(self, "A proto_seg job")
        if self.structures:
            check_structures(self.structures)
        if bool(self.input) == bool(self.support):
            raise BadInput(
                f"A proto_seg job takes one scan or a support set, got {self.input!r} and {len(self.support)} scans.",
                "Give one of them.",
            )


@dataclass(frozen=True)
class ExportDicomJob:
    """Write a result as a DICOM object that refers to the series that was segmented. It uses no device.

    Attributes
    ----------
    input : str
        The result: a label map with these structures' values, or .seg.nrrd.
    source_files : tuple of str
        The files of the DICOM series.
    source_frames : tuple of int
        Of one multi-frame file that holds several volumes: the frames (from 0) of the one that was segmented. Empty: all.
    structures : tuple of Structure
        What is in the result.
    provenance : dict
        Facts of its adapter, as every result carries them.
    out : str
        The file to write.
    format : str
        "dicom-seg" or "rtstruct".
    edited : bool
        A person has changed the result: it says SEMIAUTOMATIC instead of AUTOMATIC.
    overwrite : bool
        Replace the file; otherwise one that exists is an error.
    """

    input: str
    source_files: tuple[str, ...]
    structures: tuple[Structure, ...]
    provenance: dict[str, Any]
    out: str
    format: str = "dicom-seg"
    edited: bool = False
    overwrite: bool = False
    source_frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choice("format", self.format, DICOM_FORMATS)
        check_structures(self.structures)
        if not self.source_files or not self.out:
            raise BadInput("An export needs the series' files and a file to write.", "Give both.")
        if self.source_frames and len(self.source_files) > 1:
            raise BadInput(
                f"Frames are of one multi-frame file; got {len(self.source_files)} files.", "Give that file alone."
            )


def _check_several(job: ApplyJob) -> None:
    """One adapter, several, or a model."""
    if not job.adapters:
        check_source(job, "An apply job")
        return
    if job.adapter is not None or job.model is not None or len(job.adapters) < 2:
        raise BadInput(
            f"An apply job takes one adapter, several, or a model; got {job.adapter!r}, {list(job.adapters)} and "
            f"{job.model!r}.",
            "Give one of them; a single adapter is `adapter`.",
        )


def _check_many(job: ApplyJob) -> None:
    """What only a batch has."""
    if not job.batch and (job.watch or job.workers or job.cluster):
        raise BadInput("watch, workers and cluster belong to a batch, but batch is off.", "Turn batch on.")
    if job.workers < 0 or not 0 <= job.settle_s <= 3600:
        raise BadInput(
            f"workers is {job.workers} and settle_s is {job.settle_s}; expected 0 or more, and 0 to 3600 seconds.",
            "Correct them.",
        )
    if job.workers and job.cluster:
        raise BadInput(
            f"Both {job.workers} workers of this machine and the cluster {job.cluster} were asked for.", "Choose one."
        )
