"""Base weights: fingerprint, MODELDIR on disk, heads for new structures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from peftseg.errors import BadInput
from peftseg.licences import require_accepted
from peftseg.models import ModelEntry, Structure, to_dict
from peftseg.networks import Anatomy, build, head_rows, replace_head
from peftseg.paths import atomic_write


def fingerprint(state: dict[str, torch.Tensor], architecture: str) -> str:
    """SHA-256 of base weights: architecture, then sorted names, dtypes, shapes and bytes of all tensors.

    Parameters
    ----------
    state : dict
        A network's `state_dict()`.
    architecture : str
        Name of the network builder (and, for Swin networks, the patch merging order).
    """
    digest = hashlib.sha256(architecture.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture(entry: ModelEntry) -> str:
    """Canonical text of the entry's network, for the fingerprint."""
    return json.dumps([entry.network.name, entry.network.arguments], sort_keys=True)


def n_outputs(structures: tuple[Structure, ...], activation: str) -> int:
    """Rows of a head: one a structure, and a background row for softmax."""
    return len(structures) + (activation == "softmax")


def head_width(structures: tuple[Structure, ...], activation: str) -> int:
    """Rows of a base's head as it is built and stored; a base that segments nothing yet has one empty row."""
    return n_outputs(structures, activation) if structures else 1


def load_base(entry: ModelEntry) -> tuple[nn.Module, Anatomy]:
    """Build the entry's network and load its base weights, every tensor of them.

    Raises
    ------
    BadInput
        The weights are not on this machine, are damaged, or do not fit the network; or the model's licence must be
        accepted and was not.
    """
    require_accepted(entry)
    path = entry.weights_path
    if path is None:
        raise BadInput(
            f"The weights of model '{entry.id}' are not on this machine.",
            f"Run `peftseg models download {entry.id}`, or `peftseg models import {entry.id} FILE`.",
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"The weights file {path} cannot be read ({error}).", "Write or import the model again."
        ) from None
    state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    network, anatomy = build(entry.network, head_width(entry.structures, entry.activation))
    _load_strictly(network, state, entry.id)
    return network.eval(), anatomy


def _load_strictly(network: nn.Module, state: dict[str, torch.Tensor], model: str) -> None:
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    foreign = sorted(set(state) - set(expected))
    misshapen = sorted(n for n in set(expected) & set(state) if expected[n].shape != state[n].shape)
    if missing or foreign or misshapen:
        raise BadInput(
            f"The weights of model '{model}' do not fit its network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(foreign)} unexpected {foreign[:3]}, {len(misshapen)} of another shape {misshapen[:3]}.",
            "The file belongs to another model or version; get the file that model.json describes.",
        )
    network.load_state_dict(state)


def save_model(directory: Path, entry: ModelEntry, network: nn.Module) -> None:
    """Write a MODELDIR: `weights.safetensors`, then `model.json`, each to a temporary name first."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(directory / "weights.safetensors") as temporary:
        save_file(state, temporary)
    with atomic_write(directory / "model.json") as temporary:
        temporary.write_text(json.dumps(to_dict(entry), indent=2) + "\n", encoding="utf-8")


def fit_head(
    network: nn.Module, anatomy: Anatomy, entry: ModelEntry, structures: tuple[Structure, ...], activation: str
) -> None:
    """Replace the head by one for `structures`, in place; base structures start from the base's rows.

    Softmax from softmax: the background row is kept. Softmax from sigmoid: the background row is zero, so that a single
    structure's softmax equals the base's sigmoid. Sigmoid from softmax: row minus background row, which is the same
    equality read backwards. Rows of novel structures get the default initialisation, scaled down a hundredfold with a
    bias of -1, so that they start as "not there" instead of as noise. A head whose rows cannot be taken over (text-driven)
    leaves all structures to be learnt.
    """
    old = head_rows(network, anatomy)
    base_has_background = entry.activation == "softmax"
    rows = {} if old is None else {s.name: i + base_has_background for i, s in enumerate(entry.structures)}
    new = replace_head(network, anatomy, n_outputs(structures, activation))
    first = int(activation == "softmax")
    with torch.no_grad():
        new.weight.mul_(0.01)
        new.bias.fill_(-1.0)
        background = (old[0][0], old[1][0]) if rows and base_has_background else (0.0, 0.0)
        if activation == "softmax":
            new.weight[0], new.bias[0] = background
        for row, structure in enumerate(structures, start=first):
            if structure.name not in rows:
                continue
            weight, bias = old[0][rows[structure.name]], old[1][rows[structure.name]]
            if activation == "sigmoid" and base_has_background:
                weight, bias = weight - background[0], bias - background[1]
            new.weight[row], new.bias[row] = weight, bias
