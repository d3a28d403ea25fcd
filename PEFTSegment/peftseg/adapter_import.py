"""Take an adapter file that someone shared into the library, after a look at what it is. Torch-free."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from peftseg.adapter_file import Recipe, read_adapter_info, renamed
from peftseg.errors import BadInput
from peftseg.library import OWN, file_name, list_adapters, show_adapter, store, store_next
from peftseg.library_rows import ref_of
from peftseg.licences import accept, acknowledgement, licence_text
from peftseg.models import ModelEntry, known_models
from peftseg.paths import adapters_dir
from peftseg.version import __version__


@dataclass(frozen=True)
class Imported:
    """What became of the file.

    Attributes
    ----------
    path, ref : Path, str
        The library's file and its name-vN.
    licence : str
        Of the base, as the adapter or the model here says.
    notes : tuple of str
        What the user should know, in sentences.
    """

    path: Path
    ref: str
    licence: str
    notes: tuple[str, ...]


def import_checked(path: str | Path, accept_licence: bool = False, renumber: bool = False) -> Imported:
    """Import an adapter file; nothing is written unless all is well, and nothing in the library is overwritten.

    Parameters
    ----------
    accept_licence : bool
        The user has read the licence of the base and accepts it; needed where that model asks for it, and recorded then.
    renumber : bool
        Where the library has another adapter of this name and version, import this one as the next version.

    Raises
    ------
    BadInput
        No adapter, damaged, of a newer format; the base's licence is not accepted; the version is taken.
    """
    recipe, digest = read_adapter_info(path)
    entry, notes = _base(recipe)
    licence = licence_text(entry) if entry is not None else recipe.base_licence
    if entry is not None and acknowledgement(entry) == "needed":
        if not accept_licence:
            raise BadInput(
                f"The adapter '{recipe.name}' belongs to the model '{entry.id}', whose licence must be accepted first:\n"
                f"{licence}",
                "Read it, then import again with --accept-licence.",
            )
        accept(entry)
    notes += _software(recipe)
    rows = list_adapters(check=False)
    same = next((row for row in rows if row["hash"] == digest and row["source"] == OWN), None)
    taken = same is None and (
        any(row["ref"] == ref_of(recipe) for row in rows)
        or (adapters_dir() / file_name(recipe.name, recipe.version)).exists()
    )
    if same is not None:
        notes.append("It was in the library already.")
    if taken and renumber:
        stored = _as_next(Path(path), recipe)
        notes.append(f"Another adapter has the reference {ref_of(recipe)}, so that this one got the next version.")
    elif taken:
        raise BadInput(
            f"The library has another adapter '{ref_of(recipe)}'; {Path(path).name} is not the same (hash {digest[:12]}).",
            "Import it with --renumber to take it as the next version; what is in the library is never overwritten.",
        )
    else:
        stored = store(path)
    return Imported(stored, show_adapter(stored)["ref"], licence or "not stated", tuple(notes))


def licence_to_accept(path: str | Path) -> ModelEntry | None:
    """The model that an adapter file belongs to, where its licence must be accepted first; BadInput for a bad file."""
    entry = base_here(read_adapter_info(path)[0].base_id)
    return entry if entry is not None and acknowledgement(entry) == "needed" else None


def _as_next(path: Path, recipe: Recipe) -> Path:
    """Store the file under the next version of its name; its record says the hash that it had."""
    with tempfile.TemporaryDirectory(prefix=".import-", dir=adapters_dir()) as folder:

        def write(version: int) -> Path:
            copy = Path(folder) / file_name(recipe.name, version)
            copy.write_bytes(renamed(path, recipe.name, version)[0])
            return copy

        return store_next(recipe.name, write)


def base_here(identity: str) -> ModelEntry | None:
    """The model of this id in the catalogue, with its weights where they are on this machine; None: not known here."""
    entries = [entry for entry in known_models()[0] if entry.id == identity]
    return next((entry for entry in entries if entry.weights_path is not None), entries[0] if entries else None)


def _base(recipe: Recipe) -> tuple[ModelEntry | None, list[str]]:
    """The adapter's base in the catalogue here, and what stands in the way of using it."""
    entry = base_here(recipe.base_id)
    which = f"'{recipe.base_id}' (fingerprint {recipe.base_fingerprint[:12]})"
    if entry is None:
        return None, [
            f"The model {which} that it belongs to is not on this machine: get its folder from whoever shared the adapter "
            "before you use it."
        ]
    if entry.weights_path is None:
        return entry, [
            f"The weights of the model {which} that it belongs to are not on this machine: get them "
            f"before you use it (step 1 of the module, or `peftseg models download {entry.id}`)."
        ]
    return entry, []


def _software(recipe: Recipe) -> list[str]:
    made_with = recipe.record.get("software", {}).get("peftseg", "")
    if _numbers(made_with) > _numbers(__version__):
        return [
            f"It was made with PEFTSegment {made_with}, this is {__version__}: results may differ; update if you can."
        ]
    return []


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version, for comparison."""
    found = []
    for part in str(version).split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)
