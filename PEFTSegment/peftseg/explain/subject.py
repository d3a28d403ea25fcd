"""A network to look into: with its adapter attached and not merged, so that the adapter's own layers can be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from peftseg.adapter_file import load_adapter
from peftseg.errors import unknown_name
from peftseg.library import find_adapter
from peftseg.licences import usable
from peftseg.models import ModelEntry, Preprocessing, Structure
from peftseg.networks import Anatomy
from peftseg.segmenter import attach_adapter, find_base
from peftseg.weights import architecture, fingerprint, head_width, load_base
from peftseg.windows import window_for


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and what is needed to run it on a study.

    Attributes
    ----------
    network : nn.Module
        (B, 1, *window) -> (B, n, *window) logits; an adapter is attached to it, not merged.
    structures : tuple of Structure
        In the order of the network's rows (after the background row of "softmax").
    smallest_window, window_step
        See `windows.window_for`.
    provenance : dict
        Flat facts that every result carries.
    """

    network: nn.Module
    anatomy: Anatomy
    structures: tuple[Structure, ...]
    activation: str
    preprocessing: Preprocessing
    window: tuple[int, int, int]
    overlap: float
    provenance: dict[str, str]
    smallest_window: tuple[int, int, int] | None = None
    window_step: int | tuple[int, int, int] = 1

    @property
    def rows(self) -> int:
        """Channels of the network's output."""
        return head_width(self.structures, self.activation)

    def row(self, structure: str) -> int:
        """The channel of a structure by name; BadInput lists what there is."""
        names = [s.name for s in self.structures]
        if structure not in names:
            raise unknown_name("structure of this network", structure, names)
        return names.index(structure) + (self.activation == "softmax")

    def window_on(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The window for an image of this many voxels."""
        return window_for(shape, self.smallest_window, self.window, self.window_step)


def adapter_subject(ref: str | Path) -> tuple[Subject, ModelEntry]:
    """An adapter by file or by reference in the library, attached to its base; and the base's entry.

    Raises
    ------
    BadInput
        Unknown or damaged adapter, or its base is not here or is another one.
    """
    recipe, state, digest = load_adapter(find_adapter(ref))
    entry = find_base(recipe)
    attached, anatomy = attach_adapter(recipe, state, entry)
    facts = {
        "adapter": recipe.name,
        "adapter_version": str(recipe.version),
        "adapter_hash": digest,
        "base": recipe.base_id,
        "base_fingerprint": recipe.base_fingerprint,
    }
    subject = Subject(
        attached.network.eval(),
        anatomy,
        recipe.structures,
        recipe.activation,
        recipe.preprocessing,
        recipe.window,
        recipe.overlap,
        facts,
        recipe.smallest_window,
        recipe.window_step,
    )
    return subject, entry


def model_subject(name: str | Path | ModelEntry) -> Subject:
    """A model as it is; one without structures of its own can be looked into with labels only."""
    entry = name if isinstance(name, ModelEntry) else usable(str(name))
    network, anatomy = load_base(entry)
    facts = {"base": entry.id, "base_fingerprint": fingerprint(network.state_dict(), architecture(entry))}
    return Subject(
        network, anatomy, entry.structures, entry.activation, entry.preprocessing, entry.window, entry.overlap, facts
    )
