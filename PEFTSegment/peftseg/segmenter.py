"""A network ready to segment studies: a base with an adapter merged in, or a model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftseg.adapter_file import Recipe, load_adapter
from peftseg.adapters import attach_saved
from peftseg.adapters.base import Attached
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.infer import ACCUMULATOR_BYTES, Observer, segment
from peftseg.library import find_adapter
from peftseg.licences import usable
from peftseg.models import ModelEntry, Preprocessing, Structure, known_models
from peftseg.networks import Anatomy, replace_head
from peftseg.paths import models_dir
from peftseg.preprocess import Prepared, prepare
from peftseg.site_attach import attach_site_saved
from peftseg.site_options import SITE
from peftseg.volume import Volume
from peftseg.weights import architecture, fingerprint, load_base, n_outputs
from peftseg.windows import window_for

SMALLER = 4  # after the system ended a job for memory, blended logits get this part of their usual room


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A plain network and all that is needed to segment a study with it.

    Attributes
    ----------
    network : nn.Module
        (B, 1, *window) -> (B, n, *window) logits.
    structures : tuple of Structure
        In the order of the network's rows (after the background row of "softmax").
    provenance : dict
        Flat facts that every result carries.
    usual_borders : dict
        Structure name -> borders of the scan that it touched in the support set; see `flags.check_result`.
    modality : str
        Of the scans that the base is made for; "" where nobody says.
    structure_facts : dict
        Size and shape of the structures in the scans that the network was trained on, see `structure_facts`; empty where
        nobody kept them.
    """

    network: nn.Module
    structures: tuple[Structure, ...]
    activation: str
    preprocessing: Preprocessing
    window: tuple[int, int, int]
    overlap: float
    provenance: dict[str, str]
    smallest_window: tuple[int, int, int] | None = None
    window_step: int | tuple[int, int, int] = 1
    usual_borders: dict[str, list[str]] = field(default_factory=dict)
    structure_facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    modality: str = ""

    def window_on(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The window for a prepared image of this many voxels."""
        return window_for(shape, self.smallest_window, self.window, self.window_step)


def adapter_segmenter(ref: str | Path) -> Segmenter:
    """The segmenter of an adapter, by file or by reference in the library.

    Raises
    ------
    BadInput
        Unknown or damaged adapter, or its base is not here or is another one.
    """
    recipe, state, digest = load_adapter(find_adapter(ref))
    entry = find_base(recipe)
    return segmenter_of(recipe, load_adapted_network(recipe, state, entry), digest, entry)


def segmenter_of(recipe: Recipe, network: nn.Module, digest: str, entry: ModelEntry) -> Segmenter:
    """A network with an adapter, by the adapter's recipe and hash, and its base."""
    known = entry.record if recipe.method == SITE else recipe.record  # made without labels: the base's knowledge counts
    facts = {
        "adapter": recipe.name,
        "adapter_version": str(recipe.version),
        "adapter_hash": digest,
        "base": recipe.base_id,
        "base_fingerprint": recipe.base_fingerprint,
    }
    return Segmenter(
        network,
        recipe.structures,
        recipe.activation,
        recipe.preprocessing,
        recipe.window,
        recipe.overlap,
        facts,
        recipe.smallest_window,
        recipe.window_step,
        recipe.record.get("borders", {}),
        known.get("structure_facts", {}),
        entry.modality,
    )


def model_segmenter(name: str | Path) -> Segmenter:
    """The segmenter of a model as it is, by id or MODELDIR."""
    return entry_segmenter(usable(name))


def entry_segmenter(entry: ModelEntry) -> Segmenter:
    """The segmenter of a model as it is; BadInput for one that has no structures of its own."""
    if not entry.structures:
        raise BadInput(
            f"Model '{entry.id}' segments nothing by itself: it has no structures of its own.",
            "Adapt it to labelled scans first, then apply the adapter.",
        )
    return base_segmenter(entry)[0]


def base_segmenter(entry: ModelEntry) -> tuple[Segmenter, Anatomy]:
    """A model's network as it is and where its parts are, whether it has structures of its own or not."""
    network, anatomy = load_base(entry)
    facts = {"base": entry.id, "base_fingerprint": fingerprint(network.state_dict(), architecture(entry))}
    segmenter = Segmenter(
        network,
        entry.structures,
        entry.activation,
        entry.preprocessing,
        entry.window,
        entry.overlap,
        facts,
        structure_facts=entry.record.get("structure_facts", {}),
        modality=entry.modality,
    )
    return segmenter, anatomy


def load_adapted_network(recipe: Recipe, state: dict[str, torch.Tensor], entry: ModelEntry) -> nn.Module:
    """The base with an adapter merged in, in evaluation mode: a plain network, but for methods that cannot merge.

    Parameters and errors are those of `attach_adapter`.
    """
    return attach_adapter(recipe, state, entry)[0].merge()


def attach_adapter(recipe: Recipe, state: dict[str, torch.Tensor], entry: ModelEntry) -> tuple[Attached, Anatomy]:
    """The base with an adapter attached and not merged.

    Parameters
    ----------
    recipe, state : Recipe, dict of str to tensor
        From `adapter_file.load_adapter`.
    entry : ModelEntry
        The base, with its weights on this machine.

    Raises
    ------
    BadInput
        The entry's weights are not those that the adapter was made from, or the state does not fit.
    """
    network, anatomy = base_for(recipe, entry)
    return attach_to(recipe, state, network, anatomy), anatomy


def base_for(recipe: Recipe, entry: ModelEntry) -> tuple[nn.Module, Anatomy]:
    """The base's plain network for an adapter; BadInput where its weights are not those that the adapter was made from."""
    network, anatomy = load_base(entry)
    found = fingerprint(network.state_dict(), architecture(entry))
    if found != recipe.base_fingerprint:
        raise BadInput(
            f"The adapter '{recipe.name}' (version {recipe.version}) belongs to base '{recipe.base_id}' with the "
            f"fingerprint {recipe.base_fingerprint[:12]}, but model '{entry.id}' here has {found[:12]}.",
            "Get the model version that the adapter was made with, or adapt this one again.",
        )
    return network, anatomy


def attach_to(recipe: Recipe, state: dict[str, torch.Tensor], network: nn.Module, anatomy: Anatomy) -> Attached:
    """An adapter attached to its base's plain network, in place; BadInput where the state does not fit."""
    if recipe.method == SITE:  # the base's own head
        return attach_site_saved(network, anatomy, recipe.options, state)
    replace_head(network, anatomy, n_outputs(recipe.structures, recipe.activation))
    return attach_saved(network, anatomy, recipe.method, recipe.options, recipe.train_decoder, state)


def find_base(recipe: Recipe) -> ModelEntry:
    """The model that an adapter belongs to, from the catalogue.

    Of several models with that id the one with the adapter's fingerprint is taken.
    """
    entries, problems = known_models()
    fitting = [entry for entry in entries if entry.id == recipe.base_id]
    if not fitting:
        known = ", ".join(sorted({entry.id for entry in entries})) or "none"
        raise BadInput(
            f"The adapter '{recipe.name}' belongs to the model '{recipe.base_id}' (fingerprint "
            f"{recipe.base_fingerprint[:12]}), which is not on this machine; models here: {known}. {' '.join(problems)}",
            f"Copy that model's folder into {models_dir()}.",
        )
    here = [entry for entry in fitting if entry.weights_path]  # an imported model is declared, too, without weights
    if len(here) < 2:
        return (here or fitting)[0]
    for entry in here:
        if fingerprint(load_base(entry)[0].state_dict(), architecture(entry)) == recipe.base_fingerprint:
            return entry
    return here[0]


def segment_volume(
    segmenter: Segmenter,
    volume: Volume,
    device: torch.device,
    *,
    overlap: float | None = None,
    precision: str = "auto",
    reporter: Reporter | None = None,
    observer: Observer | None = None,
    prepared: Prepared | None = None,
) -> np.ndarray:
    """Segment a study in memory.

    Parameters
    ----------
    overlap : float or None
        Of neighbouring windows, 0 to below 1; None for the segmenter's own.
    observer : callable, optional
        See `infer.segment`.
    prepared : Prepared, optional
        What `prepare` makes of the volume, where it was done before.

    Returns
    -------
    array
        "softmax": (I, J, K) label map with the structures' values; "sigmoid": (C, I, J, K) bool, one mask a structure.
        On the study's own grid.
    """
    prepared = prepare(volume, segmenter.preprocessing) if prepared is None else prepared
    result = segment_rows(
        segmenter, prepared, device, overlap=overlap, precision=precision, reporter=reporter, observer=observer
    )
    if segmenter.activation == "sigmoid":
        return result
    values = [0, *(s.value for s in segmenter.structures)]
    return np.array(values, dtype=np.min_scalar_type(max(values)))[result]


def segment_rows(
    segmenter: Segmenter,
    prepared: Prepared,
    device: torch.device,
    *,
    overlap: float | None = None,
    precision: str = "auto",
    reporter: Reporter | None = None,
    observer: Observer | None = None,
) -> np.ndarray:
    """Segment a prepared study, by rows of the network as `infer.segment` gives it; parameters of `segment_volume`."""
    return segment(
        segmenter.network,
        prepared,
        n_outputs(segmenter.structures, segmenter.activation),
        segmenter.window_on(prepared.image.shape[1:]),
        segmenter.overlap if overlap is None else overlap,
        segmenter.activation,
        device,
        precision=precision,
        reporter=reporter,
        accumulator_bytes=room_for_logits(reporter),
        observer=observer,
    )


def room_for_logits(reporter: Reporter | None) -> int:
    """Bytes for blended logits: less after the system ended the job for memory."""
    return ACCUMULATOR_BYTES // (SMALLER if reporter is not None and reporter.smaller_plan else 1)
