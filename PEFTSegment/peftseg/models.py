"""The catalogue of foundation models and the records that describe one. Torch-free.

A foundation model is network + base weights + preprocessing + structures. Bundled models and every MODELDIR that
`peftseg pretrain` writes are a folder with `model.json` (one `ModelEntry`) and `weights.safetensors`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput, unknown_name
from peftseg.model_choice import guess_modality, rank_models  # noqa: F401  (offered to clients here, too)
from peftseg.paths import home, models_dir, write_text

MODEL_FORMAT = 1
FOLDERS_FILE = "folders.json"
EARLY_FILE = "early_head.safetensors"  # of a model folder, where the model has an early segmentation head
BUNDLED = Path(__file__).parent / "resources" / "models"
ACTIVATIONS = ("softmax", "sigmoid")
NNUNET_KINDS = ("zscore_all", "zscore_inside", "range01", "none")
INTENSITY_KINDS = ("window", "zscore", "percentile", "nonzero_range", *NNUNET_KINDS)
SCHEMES = ("linear", "nnunet")


@dataclass(frozen=True)
class Structure:
    """One segmented structure.

    Attributes
    ----------
    name : str
        Name; classes are bound by it, never by index.
    value : int
        Label value in label maps, at least 1.
    colour : tuple of int
        RGB, 0 to 255.
    code : str
        "scheme^value^meaning" of the type, a whole terminology entry as Slicer and slicerio write it, or "".
    """

    name: str
    value: int
    colour: tuple[int, int, int] = (128, 174, 128)
    code: str = ""


@dataclass(frozen=True)
class Intensity:
    """How grey values become network input.

    Attributes
    ----------
    kind : str
        "window": clip to [low, high], map to [out_low, out_high] (CT, Hounsfield units);
        "zscore": mean 0 and standard deviation 1 over voxels that are not 0;
        "percentile": clip to the low-th and high-th percentile of the voxels that are not 0 (0 and 100: smallest and largest
        of all voxels), map to [out_low, out_high];
        "nonzero_range": voxels of exactly 0 take the mean of the others, then smallest to largest value map to
        [out_low, out_high], on the resampled study (MONAI's NormalizeIntensity(nonzero) and ScaleIntensity);
        "zscore_all", "zscore_inside", "range01", "none": nnU-Net's, for the scheme "nnunet" only (see
        `nnunet_preprocess.prepare_nnunet`).
    curve : tuple of pairs
        Knots of a curve that is applied last: (value so far, value in its place), both rising; straight between them, and
        on beyond them as in the end pieces. Empty for none. See `grey_match`.
    """

    kind: str
    low: float = 0.0
    high: float = 1.0
    out_low: float = 0.0
    out_high: float = 1.0
    curve: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in INTENSITY_KINDS:
            raise unknown_name("intensity kind", self.kind, INTENSITY_KINDS)
        object.__setattr__(self, "curve", _checked_curve(self.curve))


def _checked_curve(curve: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """The knots as tuples; JSON has lists."""
    if not curve:
        return ()
    try:
        knots = tuple((float(before), float(after)) for before, after in curve)
    except (TypeError, ValueError):
        knots = ()
    pairs = list(itertools.pairwise(knots))
    rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairs)
    if not (pairs and rises and all(math.isfinite(value) for knot in knots for value in knot)):
        raise BadInput(
            f"The curve of grey values is {curve}; expected two or more pairs of numbers that rise.",
            "Adapt again, or get an undamaged file.",
        )
    return knots


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a study before the network sees it.

    Attributes
    ----------
    orientation : str
        Axis codes of the model grid, e.g. "RAS", or the study's own axes in some order, e.g. "kji".
    spacing : tuple of float
        Voxel size of the model grid in mm along its three axes.
    intensity : Intensity
        Grey value mapping.
    crop_foreground : bool
        Crop to the voxels above 0 after the intensity mapping (MONAI's CropForegroundd on the source).
    scheme : str
        "linear": resample linearly, then map grey values; windows as MONAI places and blends them;
        "nnunet": nnU-Net's order, interpolation, padding, windows and weights (`nnunet_preprocess.py`).
    square : bool
        Repeat the outer voxels along the shorter one of the first two axes until both are as long: for networks of slices
        that were trained on square ones. Voxels keep their size.
    """

    orientation: str
    spacing: tuple[float, float, float]
    intensity: Intensity
    crop_foreground: bool = False
    scheme: str = "linear"
    square: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise unknown_name("preprocessing scheme", self.scheme, SCHEMES)
        if self.square and self.scheme != "linear":
            raise BadInput("Square slices are only for the scheme 'linear'.", "Correct the preprocessing.")
        if self.intensity.kind in NNUNET_KINDS and self.scheme != "nnunet":
            raise BadInput(
                f"Grey values of the kind '{self.intensity.kind}' are only for the scheme 'nnunet', not '{self.scheme}'.",
                "Correct the preprocessing.",
            )


@dataclass(frozen=True)
class NetworkSpec:
    """Name of a network builder in `peftseg.networks` and its arguments (the head's width is not among them)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a public checkpoint is, and how it is recognised.

    Attributes
    ----------
    file : str
        The public file's name.
    address : str
        Where it can be downloaded, with a pinned revision where there is one; "" when it can only be fetched by hand.
    page : str
        Page to read, and to fetch the file from by hand.
    sha256, md5 : str
        Published hash, hexadecimal; both "" where none is published: then the SHA-256 is recorded at the first import.
    size : int
        Bytes; 0 where it is not known.
    """

    file: str
    address: str = ""
    page: str = ""
    sha256: str = ""
    md5: str = ""
    size: int = 0


@dataclass(frozen=True)
class Layout:
    """How the tensors of a public checkpoint are named.

    Attributes
    ----------
    containers : tuple of str
        Keys under which the file may hold its tensors, the first that is there counts; without one of them the file
        is taken as the tensors themselves.
    prefixes : tuple of str
        Removed from the front of every name, in this order, each only where all tensors of the body carry it.
    renames : tuple of (str, str)
        Prefix of a name, and what takes its place; whole name components, after `prefixes`, the first that fits counts.
    ignored : tuple of str
        Prefixes of names, after `renames`, that are no part of the network.
    """

    containers: tuple[str, ...] = ("state_dict", "net", "model")
    prefixes: tuple[str, ...] = ("module.",)
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelEntry:
    """A foundation model, declared.

    Attributes
    ----------
    structures : tuple of Structure
        In the order of the head's rows; empty for a model that segments nothing before it is adapted.
    window : tuple of int
        Sliding window in voxels of the model grid.
    overlap : float
        Overlap of neighbouring windows, 0 to below 1.
    activation : str
        "softmax" (row 0 of the head is background) or "sigmoid" (one row a structure, no background row).
    record : dict
        Training record: command, data, scores; free-form facts, shown to the user.
    source : Source or None
        Where the weights come from; None for models that `pretrain` wrote.
    layout : Layout
        Names inside of the public checkpoint.
    alternatives : tuple of (tuple of Structure)
        Other lists of structures that a checkpoint of this model may have been trained for; its head tells which.
    acknowledge : bool
        The user must accept the licence before the first use.
    patents : str
        Known patents, or "".
    directory : Path or None
        Where `weights.safetensors` lies; not part of `model.json`.
    """

    id: str
    title: str
    modality: str
    structures: tuple[Structure, ...]
    network: NetworkSpec
    activation: str
    preprocessing: Preprocessing
    window: tuple[int, int, int]
    overlap: float
    licence: str
    body_part: str = ""
    licence_notice: str = ""
    citation: str = ""
    description: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    source: Source | None = None
    layout: Layout = Layout()
    alternatives: tuple[tuple[Structure, ...], ...] = ()
    acknowledge: bool = False
    patents: str = ""
    format: int = MODEL_FORMAT
    directory: Path | None = None

    @property
    def weights_path(self) -> Path | None:
        """The safetensors file of the base weights, or None while they are not on this machine."""
        path = self.directory / "weights.safetensors" if self.directory else None
        return path if path is not None and path.is_file() else None

    @property
    def known_structures(self) -> tuple[Structure, ...]:
        """Structures whose rows a new head starts from: none of a text-driven head's, which has no rows."""
        return () if "clip_driven" in self.network.arguments else self.structures

    def structure(self, name: str) -> Structure:
        """The structure called `name`; BadInput lists the valid names otherwise."""
        for structure in self.structures:
            if structure.name == name:
                return structure
        raise unknown_name(f"structure of model {self.id}", name, [s.name for s in self.structures])


def to_dict(record: Any) -> dict[str, Any]:
    """A dataclass of this module as plain JSON data; `directory` is left out."""
    data = dataclasses.asdict(record)
    data.pop("directory", None)
    return json.loads(json.dumps(data))


def preprocessing_from_dict(data: dict[str, Any]) -> Preprocessing:
    """Inverse of `to_dict` for `Preprocessing`."""
    return Preprocessing(
        orientation=data["orientation"],
        spacing=tuple(float(s) for s in data["spacing"]),
        intensity=Intensity(**data["intensity"]),
        crop_foreground=bool(data["crop_foreground"]),
        scheme=data.get("scheme", "linear"),
        square=bool(data.get("square", False)),
    )


def structure_from_dict(data: dict[str, Any]) -> Structure:
    """Inverse of `to_dict` for `Structure`."""
    return Structure(data["name"], int(data["value"]), tuple(data["colour"]), data["code"])


def entry_from_dict(data: dict[str, Any], directory: Path | None = None) -> ModelEntry:
    """Inverse of `to_dict` for `ModelEntry`; unknown or missing fields and newer formats are refused."""
    known = {f.name for f in dataclasses.fields(ModelEntry)} - {"directory"}
    unknown, missing = set(data) - known, {"id", "network", "structures", "preprocessing"} - set(data)
    if unknown or missing:
        raise BadInput(
            f"model.json has unknown fields {sorted(unknown)} and lacks {sorted(missing)}; expected {sorted(known)}.",
            "Write it with `peftseg pretrain`, or see Docs/design.md.",
        )
    if data.get("format", 1) > MODEL_FORMAT:
        raise BadInput(
            f"model.json has format {data['format']}; this version reads up to {MODEL_FORMAT}.", "Update PEFTSegment."
        )
    fields = dict(data)
    fields["structures"] = tuple(structure_from_dict(s) for s in data["structures"])
    fields["network"] = NetworkSpec(data["network"]["name"], data["network"]["arguments"])
    fields["preprocessing"] = preprocessing_from_dict(data["preprocessing"])
    fields["window"] = tuple(int(w) for w in data["window"])
    fields["alternatives"] = tuple(tuple(map(structure_from_dict, a)) for a in data.get("alternatives", ()))
    fields["source"] = Source(**data["source"]) if data.get("source") else None
    fields["layout"] = _layout_from_dict(data["layout"]) if "layout" in data else Layout()
    return ModelEntry(**fields, directory=directory)


def _layout_from_dict(data: dict[str, Any]) -> Layout:
    fields = {name: tuple(value) for name, value in data.items()}
    fields["renames"] = tuple((old, new) for old, new in data["renames"])
    return Layout(**fields)


def read_model_dir(directory: Path) -> ModelEntry:
    """Read `model.json` of a MODELDIR; raises BadInput where it is missing or malformed."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise BadInput(
            f"{directory} is not a model folder: it has no model.json.", "Give a folder that `peftseg pretrain` wrote."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        raise BadInput(f"{path} is not valid JSON ({error}).", "Write the model again or restore the file.") from error
    try:
        return entry_from_dict(data, Path(directory))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{path} is not complete, or a value is of another kind: {error!r}.",
            "Write the model again or restore the file.",
        ) from error


def known_models() -> tuple[list[ModelEntry], list[str]]:
    """All models that this installation knows, the ones that count first where two have one id.

    Returns
    -------
    entries : list of ModelEntry
        The bundled ones, the model folders in PEFTSegment's `models` (imported weights among them), those named by
        `remember`, and the public ones that `foundation_models` declares.
    problems : list of str
        One sentence a model folder that cannot be read.
    """
    from peftseg.foundation_models import FOUNDATION_MODELS  # made of this module's records

    folders = [path.parent for root in (BUNDLED, home() / "models") for path in sorted(root.glob("*/model.json"))]
    remembered, problems = _remembered()
    listed = {folder.resolve() for folder in folders}
    entries = []
    for folder in [*folders, *(folder for folder in remembered if folder not in listed)]:
        entry, problem = _entry_or_problem(folder)
        entries += [_refreshed(entry, FOUNDATION_MODELS)] if entry else []
        problems += [problem] if problem else []
    return entries + list(FOUNDATION_MODELS), problems


def _refreshed(entry: ModelEntry, declared: Sequence[ModelEntry]) -> ModelEntry:
    """An imported public model with what is declared of it now; what its file decided stays."""
    now = next((d for d in declared if d.id == entry.id and "import" in entry.record), None)
    if now is None:
        return entry
    kept = ("structures", "alternatives", "network", "activation", "record", "directory")
    return dataclasses.replace(now, **{name: getattr(entry, name) for name in kept})


def _entry_or_problem(folder: Path) -> tuple[ModelEntry | None, str]:
    try:
        return read_model_dir(folder), ""
    except BadInput as error:
        return None, f"{folder}: {error}"


def by_id(entries: Sequence[ModelEntry]) -> dict[str, ModelEntry]:
    """Entries by id, in their order; the first of an id counts."""
    found: dict[str, ModelEntry] = {}
    for entry in entries:
        found.setdefault(entry.id, entry)
    return found


def catalogue() -> dict[str, ModelEntry]:
    """The models by id; see `known_models`."""
    return by_id(known_models()[0])


def remember(directory: Path) -> None:
    """Add a model folder elsewhere on this machine to the catalogue, by path; folders that are gone are forgotten."""
    folders = {str(folder) for folder in _remembered()[0]} | {str(Path(directory).resolve())}
    write_text(models_dir() / FOLDERS_FILE, json.dumps(sorted(folders), indent=1) + "\n")


def _remembered() -> tuple[list[Path], list[str]]:
    file = home() / "models" / FOLDERS_FILE
    if not file.is_file():
        return [], []
    try:
        folders = [Path(p) for p in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        return [], [f"{file} cannot be read ({error}): model folders elsewhere are not listed. Delete it."]
    return [folder for folder in folders if (folder / "model.json").is_file()], []


def resolve(name: str | Path) -> ModelEntry:
    """The model with this id, or in this MODELDIR; BadInput lists the valid ids otherwise."""
    entries = catalogue()
    if str(name) in entries:
        return entries[str(name)]
    if Path(name).is_dir():
        return read_model_dir(Path(name))
    raise unknown_name("model", str(name), entries)
