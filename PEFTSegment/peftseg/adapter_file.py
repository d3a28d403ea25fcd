"""The adapter file: tensors and recipe in one `*.safetensors`, checked by a hash. Torch-free until tensors are wanted.

The recipe is canonical JSON in the header, key "recipe"; `sealed_file` checks it and all tensors whenever one is read.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from peftseg.adapters.options import migrated_from_format_1
from peftseg.errors import BadInput, unknown_name
from peftseg.events import plain
from peftseg.models import (
    ACTIVATIONS,
    NetworkSpec,
    Preprocessing,
    Structure,
    preprocessing_from_dict,
    structure_from_dict,
    to_dict,
)
from peftseg.paths import atomic_write
from peftseg.sealed_file import GET_AGAIN, damaged, open_seal, read_seal, reseal, seal

if TYPE_CHECKING:
    import torch

FORMAT = 2
NAME_LENGTH = 100
_SCAN_FILE = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|dcm|ima|img|hdr)\b", re.IGNORECASE)
_SNAPSHOT = re.compile(r"snapshot\.(\d+)/(.+)", re.DOTALL)
_FULL_PATH = re.compile(r"^(~[\\/]|[A-Za-z]:[\\/]|\\\\|/[^/\s]+/)")


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    options = data.get("options")
    known = isinstance(options, dict)  # what is not is refused afterwards
    return {**data, "options": migrated_from_format_1(str(data.get("method")), options)} if known else data


# Format n -> the function that turns a recipe of format n into one of format n + 1.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}


@dataclass(frozen=True)
class Recipe:
    """Everything about an adapter but its tensors.

    Attributes
    ----------
    name, version : str, int
        Of the adapter; adapting again under the same name makes the next version.
    method, options, train_decoder : str, dict, bool
        How it was made; see `peftseg.adapters`.
    base_id, base_fingerprint, base_licence : str
        The foundation model that it belongs to.
    network : NetworkSpec
        Of the base.
    structures : tuple of Structure
        In the order of the head's rows.
    activation : str
        "softmax" or "sigmoid".
    preprocessing, window, overlap : Preprocessing, tuple of int, float
        As in `ModelEntry`, with the changes that the support set asked for.
    smallest_window, window_step : tuple of int or None, int or tuple of int
        The window of a study, see `windows.window_for`: not under the training patch, not above `window`, a multiple of
        the step. None: always `window`.
    record : dict
        Training record: plain JSON facts, no file names, no patient data.
    """

    format: int
    name: str
    version: int
    method: str
    options: dict[str, Any]
    train_decoder: bool
    base_id: str
    base_fingerprint: str
    base_licence: str
    network: NetworkSpec
    structures: tuple[Structure, ...]
    activation: str
    preprocessing: Preprocessing
    window: tuple[int, int, int]
    overlap: float
    record: dict[str, Any]
    smallest_window: tuple[int, int, int] | None = None
    window_step: int | tuple[int, int, int] = 1


def save_adapter(path: str | Path, recipe: Recipe, state: Mapping[str, torch.Tensor]) -> str:
    """Write an adapter file, whole or not at all.

    Parameters
    ----------
    path : str or Path
        A file that does not exist yet: adapters are never overwritten.
    recipe : Recipe
        Numbers in `options` and `record` that are not finite are stored as null.
    state : mapping of str to tensor
        `Attached.state()`, any dtypes; `with_snapshots` adds earlier states to it.

    Returns
    -------
    str
        The adapter's hash, 64 hexadecimal digits.

    Raises
    ------
    BadInput
        The file exists or cannot be written, the name or format is not valid, or the record holds a path or file name.
    """
    path = Path(path)
    if path.exists():
        raise BadInput(f"The adapter file {path} exists; adapters are never overwritten.", "Give another file name.")
    if recipe.format != FORMAT:
        raise BadInput(
            f"The recipe has format {recipe.format}; this version writes {FORMAT}.", "Use adapter_file.FORMAT."
        )
    check_name(recipe.name)
    _refuse_private({"options": recipe.options, "record": recipe.record})
    content, digest = seal(state, "recipe", _recipe_text(recipe))
    _verified(content, path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return digest


def load_adapter(path: str | Path) -> tuple[Recipe, dict[str, torch.Tensor], str]:
    """Read and check an adapter file.

    Returns
    -------
    recipe : Recipe
    state : dict of str to tensor
        On the processor; without the snapshots.
    hash : str

    Raises
    ------
    BadInput
        The file is missing, incomplete, damaged by as much as one byte, no adapter, or of a newer format.
    """
    from safetensors.torch import load

    content = _content(Path(path))
    recipe, digest = _verified(content, Path(path))
    return recipe, {name: t for name, t in load(content).items() if not _SNAPSHOT.fullmatch(name)}, digest


def load_snapshots(path: str | Path) -> tuple[dict[str, torch.Tensor], ...]:
    """Earlier states that an adapter file holds beside its own, oldest first; none in files without. Errors as `load_adapter`.

    They are in 16 bits, and not pruned as the adapter's own state may be.
    """
    from safetensors.torch import load

    content = _content(Path(path))
    _verified(content, Path(path))
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load(content).items():
        if parts := _SNAPSHOT.fullmatch(key):
            found.setdefault(int(parts[1]), {})[parts[2]] = tensor
    return tuple(found[number] for number in sorted(found))


def with_snapshots(
    state: Mapping[str, torch.Tensor], snapshots: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors of an adapter file with snapshots: theirs are called `snapshot.<number>/<name>`."""
    earlier = {f"snapshot.{n}/{name}": t for n, found in enumerate(snapshots) for name, t in found.items()}
    return {**state, **earlier}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of an adapter file, after the same check of all its bytes as in `load_adapter`; without torch."""
    return read_adapter_info(path)[0]


def read_adapter_info(path: str | Path) -> tuple[Recipe, str]:
    """Recipe and hash of an adapter file, checked as in `load_adapter`; without torch."""
    return _verified(_content(Path(path)), Path(path))


def read_header(path: str | Path) -> tuple[Recipe, str]:
    """Recipe and hash as they stand in an adapter file's header; its tensors are not read, so the hash is not checked.

    For lists of many files. BadInput as `load_adapter`, but a damaged byte may go unnoticed.
    """
    path = Path(path)
    sealed = read_seal(path, "recipe")
    if sealed is None:
        raise _no_adapter(path)
    text, digest = sealed
    return _recipe_of(_parsed(text, path), path), digest


def renamed(path: str | Path, name: str, version: int) -> tuple[bytes, str]:
    """The bytes of an adapter file under another name and version, and their hash; without torch.

    The tensors stay; `record["renamed_from"]` lists the hashes under which the adapter was known before, oldest first.
    The file itself is checked as in `load_adapter` and left as it is.
    """
    check_name(name)
    content = _content(Path(path))
    recipe, digest = _verified(content, Path(path))
    record = {**recipe.record, "renamed_from": [*earlier_hashes(recipe), digest]}
    recipe = dataclasses.replace(recipe, name=name, version=version, record=record)
    changed, new_digest = reseal(content, "recipe", _recipe_text(recipe), Path(path))
    _verified(changed, Path(path))
    return changed, new_digest


def earlier_hashes(recipe: Recipe) -> list[str]:
    """Hashes that the adapter had under earlier names, oldest first."""
    found = recipe.record.get("renamed_from", [])
    return [entry for entry in found if isinstance(entry, str)] if isinstance(found, list) else []


def check_name(name: str) -> None:
    """Refuse adapter names that are empty, longer than 100 characters, or hold line breaks and the like."""
    if not name or name != name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise BadInput(
            f"The adapter name {name!r} is not valid; expected 1 to {NAME_LENGTH} printable characters, no space at "
            "either end.",
            "Choose a name such as 'liver site A'.",
        )


def recipe_from_dict(
    data: dict[str, Any],
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MIGRATIONS,
    newest: int = FORMAT,
) -> Recipe:
    """A recipe from its JSON data: older formats are migrated, newer ones and unknown or missing fields refused."""
    data = _migrated(data, migrations, newest)
    known = {f.name for f in dataclasses.fields(Recipe)}
    unknown, missing = sorted(set(data) - known), sorted(known - set(data))
    if unknown or missing:
        raise BadInput(f"The recipe has unknown fields {unknown} and lacks {missing}.", "Update PEFTSegment.")
    try:
        recipe = Recipe(**{name: _READ.get(name, _as_is)(value) for name, value in data.items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"The recipe has a value that it must not have ({type(error).__name__}: {error}).", GET_AGAIN
        ) from error
    _check_recipe(recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON data."""
    return to_dict(recipe)


def _as_is(value: Any) -> Any:
    return value


_READ: dict[str, Callable[[Any], Any]] = {
    "network": lambda data: NetworkSpec(data["name"], dict(data["arguments"])),
    "structures": lambda data: tuple(structure_from_dict(s) for s in data),
    "preprocessing": preprocessing_from_dict,
    "window": lambda data: tuple(int(n) for n in data),
    "smallest_window": lambda data: None if data is None else tuple(int(n) for n in data),
    "window_step": lambda data: tuple(int(n) for n in data) if isinstance(data, list) else int(data),
    "overlap": float,
    "options": dict,
    "record": dict,
}
_TYPES: dict[str, type] = {
    "name": str,
    "version": int,
    "method": str,
    "train_decoder": bool,
    "base_id": str,
    "base_fingerprint": str,
    "base_licence": str,
}


def _check_recipe(recipe: Recipe) -> None:
    for name, expected in _TYPES.items():
        if type(getattr(recipe, name)) is not expected:
            raise BadInput(
                f"The recipe's {name} is {getattr(recipe, name)!r}; expected {expected.__name__}.", GET_AGAIN
            )
    check_name(recipe.name)
    if recipe.activation not in ACTIVATIONS:
        raise unknown_name("activation", str(recipe.activation), ACTIVATIONS)
    names = [s.name for s in recipe.structures]
    if not names or len(set(names)) < len(names):
        raise BadInput(f"The recipe's structures are {names}; expected one or more different names.", GET_AGAIN)
    step = recipe.window_step
    sizes = (recipe.window, recipe.smallest_window or recipe.window, (step,) * 3 if isinstance(step, int) else step)
    if any(len(size) != 3 or min(size) < 1 for size in sizes):
        raise BadInput(
            f"The recipe has the windows {sizes[:2]} and the step {step}; expected three numbers from 1 on each, and a "
            "step from 1 on or three.",
            GET_AGAIN,
        )
    if recipe.version < 1 or not 0 <= recipe.overlap < 1:
        raise BadInput(
            f"The recipe has version {recipe.version} and overlap {recipe.overlap}; expected 1 or more, and 0 to below 1.",
            GET_AGAIN,
        )


def _migrated(data: dict[str, Any], migrations: Mapping[int, Callable], newest: int) -> dict[str, Any]:
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is not int or found < 1:
        raise BadInput(f"The recipe's format is {found!r}; expected a whole number from 1 on.", GET_AGAIN)
    if found > newest:
        raise BadInput(f"The adapter has format {found}; this version reads up to {newest}.", "Update PEFTSegment.")
    for number in range(found, newest):
        data = {**migrations[number](data), "format": number + 1}
    return data


def _refuse_private(value: Any, where: str = "") -> None:
    """Refuse paths and names of scan files anywhere in the facts: they often hold a patient's name."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _refuse_private(str(key), where)
            _refuse_private(entry, f"{where}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _refuse_private(entry, where)
    elif isinstance(value, PurePath) or (
        isinstance(value, str) and (_FULL_PATH.search(value) or _SCAN_FILE.search(value))
    ):
        raise BadInput(
            f"The adapter's {where or 'facts'} hold a path or file name ({str(value)[:60]}); adapters are shared and "
            "must not name scans.",
            "Leave it out, or say it in other words.",
        )


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(
        plain(dataclasses.asdict(recipe)), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"The adapter file {path} cannot be read: {error.strerror}.", "Check the path.") from error
    if not content:
        raise BadInput(f"The adapter file {path} is empty (0 bytes).", GET_AGAIN)
    return content


def _verified(content: bytes, path: Path) -> tuple[Recipe, str]:
    """Recipe and hash, after the check of every byte."""
    sealed = open_seal(content, "recipe", path)
    if sealed is None:
        raise _no_adapter(path)
    data = _parsed(sealed.text, path)
    newer = isinstance(data, dict) and type(data.get("format")) is int and data["format"] > FORMAT
    if not sealed.intact and not newer:  # a newer format may be sealed otherwise; it is refused below
        raise damaged(path, "its content does not match its hash")
    return _recipe_of(data, path), sealed.hash


def _no_adapter(path: Path) -> BadInput:
    return BadInput(
        f"{path} is a safetensors file, but no adapter: it has no recipe.",
        "Give a file that `peftseg adapt` wrote. A model is its whole folder: give that with --model.",
    )


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise damaged(path, "its recipe is not JSON") from error


def _recipe_of(data: Any, path: Path) -> Recipe:
    try:
        return recipe_from_dict(data)
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.remedy) from error
