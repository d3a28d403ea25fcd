"""The training checkpoint: one safetensors file with everything needed to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peftseg.errors import BadInput
from peftseg.paths import atomic_write


@dataclass
class Checkpoint:
    """Everything needed to go on.

    Attributes
    ----------
    state, best : dict of tensors
        The trainable's state now, and at its best epoch.
    optimiser : dict
        AdamW's slots by parameter number.
    random : uint8 tensor
        torch's random state.
    facts : dict
        Epoch, history, retries: JSON data.
    memory : dict of tensors
        What the method remembers from step to step.
    """

    state: dict[str, torch.Tensor]
    optimiser: dict[int, dict[str, torch.Tensor]]
    best: dict[str, torch.Tensor]
    random: torch.Tensor
    facts: dict[str, Any]
    memory: dict[str, torch.Tensor] = field(default_factory=dict)


def copy_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy in main memory, so that it takes none of the device's."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def copy_slots(optimiser: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    """What an optimiser remembers of each parameter, by its number, copied to main memory."""
    state = optimiser.state_dict()["state"]
    return {index: copy_state({k: torch.as_tensor(v) for k, v in slots.items()}) for index, slots in state.items()}


def load_slots(optimiser: torch.optim.Optimizer, slots: dict[int, dict[str, torch.Tensor]]) -> None:
    """Inverse of `copy_slots`; the groups with their rates stay as they are."""
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write to a temporary name, then rename."""
    tensors = {f"state/{k}": v for k, v in checkpoint.state.items()}
    tensors |= {f"best/{k}": v for k, v in checkpoint.best.items()}
    tensors |= {f"optimiser/{i}/{k}": v for i, slots in checkpoint.optimiser.items() for k, v in slots.items()}
    tensors |= {f"memory/{k}": v for k, v in checkpoint.memory.items()}
    tensors["random"] = checkpoint.random
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(checkpoint.facts)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Inverse of `write_checkpoint`; BadInput where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            facts = json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise BadInput(f"The checkpoint {path.name} cannot be read ({error}).", "Start the job again.") from error
    optimiser: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            _, index, slot = name.split("/", 2)
            optimiser.setdefault(int(index), {})[slot] = tensor
    return Checkpoint(
        state={k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")},
        best={k.removeprefix("best/"): v for k, v in tensors.items() if k.startswith("best/")},
        optimiser=optimiser,
        random=tensors["random"],
        facts=facts,
        memory={k.removeprefix("memory/"): v for k, v in tensors.items() if k.startswith("memory/")},
    )
