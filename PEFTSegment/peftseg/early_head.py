"""The early segmentation head: a small network that segments from the features of an early level.

The ESH of Aleem et al. 2024 (sec. 3.3) as in their code (models.py), after UDAS (Sheikh and Schultz 2022).

Self-training without labels compares it with the network's own result: what they share is the encoder up to that level,
and that is what learns (`self_training.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from peftseg.early_levels import Enough, dims_of, find_levels, in_eval
from peftseg.errors import BadInput, TrainingFailed
from peftseg.events import Reporter
from peftseg.losses import sigmoid_loss, softmax_loss
from peftseg.models import EARLY_FILE, ModelEntry
from peftseg.networks import Anatomy
from peftseg.paths import atomic_write

EARLY_FORMAT = 1
WIDTHS = (12, 8)
LEARNING_RATE = 1e-3
EARLY_EPOCHS = 20
FEWEST_EARLY_STEPS = 200  # few scans make few steps an epoch
SURE = 0.9  # probability from which the base's own prediction is taken as a label

Batch = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class EarlyHead(nn.Module):
    """Three convolutions, normalised in between; names as in the published code.

    Parameters
    ----------
    channels : int
        Of the features.
    n_outputs : int
        Rows, those of the network's own head.
    dims : int
        2 for networks of slices, 3 for those of volumes.
    """

    def __init__(self, channels: int, n_outputs: int = 1, dims: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.dims = dims
        self.conv1 = conv(channels, WIDTHS[0], kernel_size=3, padding=1)
        self.bn1 = norm(WIDTHS[0])
        self.conv2 = conv(WIDTHS[0], WIDTHS[1], kernel_size=3, padding=1)
        self.bn2 = norm(WIDTHS[1])
        self.conv3 = conv(WIDTHS[1], n_outputs, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor, size: tuple[int, ...] | None = None) -> torch.Tensor:
        """(B, C, *level) features to (B, n, *size) logits, enlarged linearly; without a size as large as the features."""
        x = functional.relu(self.bn1(self.conv1(features)))
        x = self.conv3(functional.relu(self.bn2(self.conv2(x))))
        if size is None or tuple(x.shape[2:]) == tuple(size):
            return x
        mode = "bilinear" if self.dims == 2 else "trilinear"
        return functional.interpolate(x, size=tuple(size), mode=mode, align_corners=False)


class EarlyBranch(nn.Module):
    """A network with an early segmentation head at one of its levels; it shares the network, and copies nothing.

    Parameters
    ----------
    network : nn.Module
        Plain or with an adapter.
    anatomy : Anatomy
        Where its encoder is.
    level : int
        From 0 (the finest) on; BadInput for one that the network has not got.
    n_outputs : int
        Rows of the network's own head.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, level: int, n_outputs: int) -> None:
        super().__init__()
        levels = find_levels(network, anatomy)
        if not 0 <= level < len(levels):
            raise BadInput(
                f"The early segmentation head's level is {level}; this network has the levels 0 to {len(levels) - 1}.",
                "Choose one of these.",
            )
        self.network = network
        self.level = level
        self.place = levels[level].module
        head = EarlyHead(levels[level].channels, n_outputs, dims_of(network))
        self.head = head.to(next(network.parameters()).device).eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, *spatial) -> final and early logits, (B, n, *spatial) both."""
        return self._run(x)

    def final_as_given(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, but of the final logits no gradient is kept: everything behind the level runs without."""
        return self._run(x, stop_gradient=True)

    def encoder_only(self, x: torch.Tensor) -> torch.Tensor:
        """Early logits; nothing behind the level runs."""
        return self._run(x, stop=True)[1]

    def _run(
        self, x: torch.Tensor, stop: bool = False, stop_gradient: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.is_grad_enabled()
        early: list[torch.Tensor] = []

        def look(_module: nn.Module, _inputs: object, features: torch.Tensor) -> None:
            # Here and not later: the network may change the features in place.
            early.append(self._early(features, x))
            if stop:
                raise Enough
            if stop_gradient:
                torch.set_grad_enabled(False)

        handle = self.network.get_submodule(self.place).register_forward_hook(look)
        final = x
        try:
            with contextlib.suppress(Enough):
                final = self.network(x)
        finally:
            handle.remove()
            torch.set_grad_enabled(before)
        return final, early[0]

    def _early(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == features.ndim:
            return self.head(features, tuple(x.shape[2:]))
        logits = self.head(features, tuple(x.shape[2:-1]))  # slices (B D, n, H, W) of a volume (B, 1, H, W, D)
        return logits.unflatten(0, (x.shape[0], x.shape[-1])).movedim(1, -1)


def epochs_for(steps: int) -> int:
    """How many epochs of so many steps `fit_early_head` is given."""
    return max(EARLY_EPOCHS, math.ceil(FEWEST_EARLY_STEPS / steps))


def fit_early_head(
    branch: EarlyBranch,
    batches: Callable[[int], Iterable[Batch]],
    activation: str,
    epochs: int,
    reporter: Reporter,
    deadline: float | None = None,
) -> list[float]:
    """Train the early head behind the frozen network, in place.

    Parameters
    ----------
    batches : callable
        Takes the epoch; gives (image, target, known) as `patches.sample_batch` does. Without a target the network's
        own prediction is the label, where its probability is at least 0.9.
    activation : str
        "softmax" or "sigmoid".
    deadline : float or None
        By `time.monotonic`: after the epoch that passes it, the head is taken as it is.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    JobCancelled, TrainingFailed
        The user cancelled, or the loss is not finite; the head is then half-trained, the network as it was.
    """
    optimiser = torch.optim.Adam(branch.head.parameters(), lr=LEARNING_RATE)
    losses = []
    device = next(branch.head.parameters()).device
    with in_eval(branch.network):
        try:
            for epoch in range(epochs):
                branch.head.train()
                found = []
                for batch in batches(epoch):
                    reporter.check()
                    found.append(_fit_step(branch, optimiser, batch, activation, device))
                losses.append(float(torch.stack(found).mean()) if found else math.nan)
                _check_finite(losses)
                reporter.progress("early_head", epoch + 1, epochs, loss=losses[-1])
                if reporter.stop_keep() or (deadline is not None and time.monotonic() > deadline):
                    break
        finally:
            branch.head.eval()
    return losses


def _check_finite(losses: list[float]) -> None:
    if not math.isfinite(losses[-1]):
        raise TrainingFailed(
            f"The loss of the early segmentation head is {losses[-1]} in epoch {len(losses)}.",
            "Look for extreme grey values in the scans.",
        )


def _fit_step(
    branch: EarlyBranch, optimiser: torch.optim.Optimizer, batch: Batch, activation: str, device: torch.device
) -> torch.Tensor:
    image, target, known = batch
    image = image.to(device)
    features: list[torch.Tensor] = []
    handle = branch.network.get_submodule(branch.place).register_forward_hook(_keep_in(features, target is not None))
    try:
        with torch.no_grad(), contextlib.suppress(Enough):
            final = branch.network(image)
    finally:
        handle.remove()
    if target is None:
        target, known = own_labels(final, activation)
    optimiser.zero_grad(set_to_none=True)
    logits = branch._early(features[0], image)
    target, known = target.to(device), known.to(device)
    softmax = activation == "softmax"
    loss = softmax_loss(logits, target[:, 0], known) if softmax else sigmoid_loss(logits, target, known)
    loss.backward()
    optimiser.step()
    return loss.detach()


def _keep_in(features: list[torch.Tensor], stop: bool) -> Callable[..., None]:
    """A hook that keeps a copy of a module's output."""

    def look(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        features.append(output.clone())
        if stop:
            raise Enough

    return look


def own_labels(logits: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and known, as `patches.sample_batch` gives them, from a network's own logits (B, n, *spatial).

    Known is where the probability is at least 0.9.
    """
    logits = logits.detach().float()
    if activation == "softmax":
        probability, label = logits.softmax(1).max(1, keepdim=True)
        sure = probability >= SURE
        known = sure.expand(-1, logits.shape[1] - 1, *[-1] * (logits.ndim - 2))
        return (label * sure).to(torch.uint8), known
    limit = math.log(SURE / (1 - SURE))
    return (logits > 0).to(torch.uint8), logits.abs() >= limit


def save_early_head(folder: Path, branch: EarlyBranch) -> None:
    """Write the head beside the weights of a MODELDIR; it is no part of the base's fingerprint."""
    write_head(Path(folder) / EARLY_FILE, branch)


def write_head(path: Path, branch: EarlyBranch, seconds: float | None = None) -> None:
    """Write the head and its level, and how long fitting took where a job is to go on with it."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in branch.head.state_dict().items()}
    facts = {"format": EARLY_FORMAT, "level": branch.level} | ({} if seconds is None else {"seconds": seconds})
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={"early_head": json.dumps(facts)})


def load_early_head(entry: ModelEntry) -> tuple[int, dict[str, torch.Tensor]] | None:
    """Level and state of the head beside a model's weights, or None where there is none; BadInput for a damaged file."""
    path = entry.directory / EARLY_FILE if entry.directory else None
    return read_head(path)[:2] if path is not None and path.is_file() else None


def read_head(path: Path) -> tuple[int, dict[str, torch.Tensor], float]:
    """Level, state and seconds (0 where nobody kept them) of `write_head`; BadInput for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["early_head"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if facts["format"] != EARLY_FORMAT:
            raise ValueError(f"format {facts['format']}")
        return int(facts["level"]), state, float(facts.get("seconds", 0.0))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"The early segmentation head {path} cannot be read ({error}).",
            "Write the model again, or delete the file.",
        ) from error


def load_head_state(branch: EarlyBranch, state: dict[str, torch.Tensor]) -> None:
    """Give the branch a stored head; BadInput where it belongs to another network."""
    own = branch.head.state_dict()
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise BadInput(
            "The stored early segmentation head does not fit this network and its structures.",
            "Write the model again, or delete its early_head.safetensors.",
        )
    branch.head.load_state_dict(state)
