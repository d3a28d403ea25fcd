"""A network to look into: with its adapter attached and not merged, so that the adapter's own layers can be chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from peftseg.adapter_file import load_adapter
from peftseg.errors import unknown_name
from peftseg.library import find_adapter
from peftseg.licences import usable
from peftseg.models import ModelEntry
from peftseg.networks import Anatomy
from peftseg.segmenter import Segmenter, attach_adapter, base_segmenter, find_base, segmenter_of
from peftseg.weights import head_width


@dataclass(frozen=True, eq=False)
class Subject(Segmenter):
    """A segmenter whose adapter is attached to the network and not merged.

    Attributes
    ----------
    anatomy : Anatomy
        Where the network's parts are.
    """

    anatomy: Anatomy = field(kw_only=True)

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
    segmenter = segmenter_of(recipe, attached.network.eval(), digest, entry)
    return Subject(**vars(segmenter), anatomy=anatomy), entry


def model_subject(name: str | Path | ModelEntry) -> Subject:
    """A model as it is; one without structures of its own can be looked into with labels only."""
    entry = name if isinstance(name, ModelEntry) else usable(str(name))
    segmenter, anatomy = base_segmenter(entry)
    return Subject(**vars(segmenter), anatomy=anatomy)
