"""Public checkpoints into the catalogue: every tensor of the body is loaded, or the file is refused.

A checkpoint is read once, with `weights_only=True`, and written as a model folder with safetensors in `models_dir()`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from peftseg.download import verify_file
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.models import Layout, ModelEntry, NetworkSpec
from peftseg.networks import Anatomy, build, is_part
from peftseg.paths import models_dir
from peftseg.weights import architecture, fingerprint, head_width, n_outputs, save_model

CLIP = "clip_driven"
_LISTED = 5


@dataclass(frozen=True)
class KeyReport:
    """How a checkpoint's tensors meet a network's.

    Attributes
    ----------
    matched, missing, unexpected : tuple of str
        Names; unexpected are those of the checkpoint that the network lacks.
    misshapen : tuple of str
        Names with both shapes.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor has its partner."""
        return not (self.missing or self.unexpected or self.misshapen)

    def sentence(self) -> str:
        """The report in words, with the first names of each kind."""
        parts = [f"{len(self.matched)} tensors match"]
        for what in ("missing", "unexpected", "misshapen"):
            names = getattr(self, what)
            if names:
                more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:_LISTED])}{more})")
        return ", ".join(parts)


def import_checkpoint(
    entry: ModelEntry, file: Path, *, reporter: Reporter, clip_driven: bool | None = None
) -> ModelEntry:
    """Take a public checkpoint into the catalogue.

    Parameters
    ----------
    entry : ModelEntry
        Declared model that the file is said to be of.
    file : Path
        The public file, *.pth, *.pt or *.safetensors.
    clip_driven : bool or None
        For models with a text-driven head: True demands it, False leaves it out (then nothing can be segmented before
        adapting), None takes it where the file holds it.

    Returns
    -------
    ModelEntry
        The imported model; its `record` holds the file's SHA-256, whether a hash was published, and the fingerprint.

    Raises
    ------
    BadInput
        The file is another one than published, unreadable, unsafe to read, or does not fit the network.
    """
    digest = verify_file(entry.source, Path(file)) if entry.source else ""
    reporter.progress("read", 0, 3)
    tensors = strip_names(read_tensors(Path(file), entry.layout), entry.layout)
    reporter.progress("match", 1, 3)
    reporter.check()
    network, anatomy = _build(entry)
    fitted = _fit(entry, tensors, anatomy.head, clip_driven)
    if (fitted.network, len(fitted.structures)) != (entry.network, len(entry.structures)):
        network, anatomy = _build(fitted)
    if not fitted.structures:
        tensors = _with_empty_head(tensors, network, anatomy)
        reporter.warning(
            f"{entry.title} cannot segment anything before it is adapted: without its text-driven head there is no output "
            "for its structures."
        )
    report = match(network, tensors)
    reporter.log(f"{Path(file).name}: {report.sentence()}.")
    if not report.complete:
        raise _refusal(entry, Path(file), report, anatomy)
    network.load_state_dict(tensors)
    published = bool(entry.source and (entry.source.sha256 or entry.source.md5))
    record = {
        "file": entry.source.file if entry.source else Path(file).name,
        "sha256": digest,
        "hash": "as published" if published else "recorded at this first import; none is published",
        "fingerprint": fingerprint(network.state_dict(), architecture(fitted)),
        "tensors": len(report.matched),
        "imported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    folder = models_dir() / entry.id
    imported = replace(fitted, record={**entry.record, "import": record}, directory=folder)
    reporter.check()
    save_model(folder, imported, network)
    reporter.progress("write", 3, 3)
    return imported


def read_tensors(file: Path, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, in float32; other things in the file are left.

    Raises
    ------
    BadInput
        The file is missing, damaged, holds no tensors, or can only be read by running code in it.
    """
    if not file.is_file():
        raise BadInput(f"The checkpoint {file} does not exist.", "Check the path.")
    found: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    for key in layout.containers:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        keys = ", ".join(map(str, list(found)[:_LISTED])) if isinstance(found, dict) else type(found).__name__
        raise BadInput(
            f"{file.name} holds no tensors where they were expected ({', '.join(layout.containers)}); it holds: {keys}.",
            "Give the public weights file, not a training state of another program.",
        )
    return {k: (v.float() if v.is_floating_point() else v).detach().contiguous() for k, v in tensors.items()}


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file.name} cannot be read ({error}).", "Download it again.") from error


def harmless_types() -> list[Any]:
    """NumPy's numbers, which checkpoints hold beside tensors; reading them runs no code.

    What builds them has another name in files of NumPy 1, which most public ones are, than in those of NumPy 2.
    """
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdg"}
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *kinds]


def _read_pickle(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(harmless_types()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # bytes that mean nothing in a pickle, such as a web page's
            raise _unreadable(file, "its bytes are not those of one") from error
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise BadInput(
            f"{file.name} is no plain weights file: reading it would run code that it names"
            f"{f' ({wanted[1]})' if wanted else ''}.",
            "Ask its author for a file with the weights alone, or for safetensors.",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unreadable(file, str(error).splitlines()[0] if str(error) else repr(error)) from error


def _unreadable(file: Path, why: str) -> BadInput:
    return BadInput(
        f"{file.name} cannot be read as a checkpoint: {why}.",
        "Download it again; a web page saved under its name or half a file looks like this.",
    )


def strip_names(tensors: dict[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """Public names -> names of our network: prefixes off, renamed, what is no part of the network left out."""
    for prefix in layout.prefixes:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    renamed = {_renamed(name, layout.renames): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise BadInput("Two tensors of the checkpoint have the same name after renaming.", "Report the file's names.")
    return {name: tensor for name, tensor in renamed.items() if not is_part(name, layout.ignored)}


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for old, new in renames:
        if name == old or name.startswith(old + "."):
            return (new + name[len(old) :]).lstrip(".")
    return name


def match(network: nn.Module, tensors: dict[str, torch.Tensor]) -> KeyReport:
    """Compare names and shapes."""
    own = network.state_dict()
    both = [name for name in own if name in tensors]
    misshapen = [n for n in both if own[n].shape != tensors[n].shape]
    return KeyReport(
        matched=tuple(n for n in both if n not in set(misshapen)),
        missing=tuple(n for n in own if n not in tensors),
        unexpected=tuple(n for n in tensors if n not in own),
        misshapen=tuple(f"{n} {tuple(tensors[n].shape)} instead of {tuple(own[n].shape)}" for n in misshapen),
    )


def _build(entry: ModelEntry) -> tuple[nn.Module, Anatomy]:
    return build(entry.network, head_width(entry.structures, entry.activation))


def _fit(entry: ModelEntry, tensors: dict[str, torch.Tensor], head: str, clip_driven: bool | None) -> ModelEntry:
    """The entry with the structures and the head that the checkpoint has."""
    if CLIP in entry.network.arguments:
        return _fit_clip(entry, tensors, head, clip_driven)
    if clip_driven:
        raise BadInput(f"Model '{entry.id}' has no text-driven head.", "Leave the option clip_driven out.")
    if not entry.structures:
        return entry
    lists = [entry.structures, *entry.alternatives]
    rows = tensors[f"{head}.weight"].shape[0] if f"{head}.weight" in tensors else None
    if rows is None:
        return entry  # the report names the missing head
    fitting = [s for s in lists if n_outputs(s, entry.activation) == rows]
    if not fitting:
        known = " or ".join(str(n_outputs(s, entry.activation)) for s in lists)
        raise BadInput(
            f"The checkpoint's head has {rows} outputs; {entry.title} has {known}, and what the others mean is not known.",
            "Give the published file. For one of your own, write a model folder with its structures.",
        )
    return replace(entry, structures=fitting[0], alternatives=())


def _fit_clip(entry: ModelEntry, tensors: dict[str, torch.Tensor], head: str, clip_driven: bool | None) -> ModelEntry:
    plain = (f"{head}.weight", f"{head}.bias")
    there = any(is_part(name, (head,)) and name not in plain for name in tensors)  # half a head is refused later
    if clip_driven and not there:
        raise BadInput(
            "The checkpoint has no text-driven head.", "Leave the option clip_driven out: a fresh head is made then."
        )
    if there and clip_driven is not False:
        return entry
    for name in [n for n in tensors if is_part(n, (head,))]:
        del tensors[name]
    arguments = {k: v for k, v in entry.network.arguments.items() if k != CLIP}
    return replace(entry, network=NetworkSpec(entry.network.name, arguments), structures=())


def _with_empty_head(tensors: dict[str, torch.Tensor], network: nn.Module, anatomy: Anatomy) -> dict[str, torch.Tensor]:
    """Zeros for the head: adapting replaces it."""
    head = {n: torch.zeros_like(t) for n, t in network.state_dict().items() if is_part(n, (anatomy.head,))}
    return {n: t for n, t in tensors.items() if not is_part(n, (anatomy.head,))} | head


def _refusal(entry: ModelEntry, file: Path, report: KeyReport, anatomy: Anatomy) -> BadInput:
    return BadInput(
        f"{file.name} does not fit {entry.title}: {report.sentence()}. {_likely_cause(entry, report, anatomy)}",
        "Nothing was imported. Give the file that the catalogue names, or choose the model that this file belongs to.",
    )


def _likely_cause(entry: ModelEntry, report: KeyReport, anatomy: Anatomy) -> str:
    """Why the names differ, as far as it can be told."""
    wanted = {*report.missing, *report.matched, *(text.partition(" ")[0] for text in report.misshapen)}
    prefixes = {n[: -len(w)] for n in report.unexpected for w in wanted if n.endswith("." + w)}
    only_missing = report.missing and not report.unexpected and not report.misshapen
    causes = (
        (len(prefixes) == 1, f"all names carry the unknown prefix '{min(prefixes, default='')}'"),
        (not report.matched, "it is a checkpoint of another network"),
        (only_missing and _all_part(report.missing, (anatomy.head,)), "it was saved without its last layer"),
        (
            only_missing and _all_part(report.missing, (*anatomy.decoder, anatomy.head)),
            "it holds the encoder only, as self-supervised pre-training does",
        ),
        (only_missing, "the file is cut short or of a smaller network"),
        (
            report.misshapen and not (report.missing or report.unexpected),
            "it is of the same kind of network with another width or other inputs",
        ),
        (True, f"it is of another version of the network than {entry.network.name}"),
    )
    return f"Likely cause: {next(cause for holds, cause in causes if holds)}."


def _all_part(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return all(is_part(name, prefixes) for name in names)
