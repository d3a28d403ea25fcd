"""Small subjects for tests of Grad-CAM and ProtoSeg. No test itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from peftseg.adapter_file import FORMAT, Recipe, save_adapter
from peftseg.adapters import attach, check_options
from peftseg.explain.subject import Subject
from peftseg.grid import Grid
from peftseg.models import Intensity, ModelEntry, Preprocessing, Structure
from peftseg.networks import Anatomy, replace_head
from peftseg.preprocess import Prepared
from peftseg.weights import architecture, fingerprint, load_base
from small_scans import BOTH
from tiny_networks import make

BALL, ROD = Structure("ball", 1), Structure("rod", 2)
CPU = torch.device("cpu")


def subject_of(
    network: nn.Module, anatomy: Anatomy, window=(8, 8, 8), overlap: float = 0.5, activation: str = "softmax"
) -> Subject:
    structures = (BALL, ROD) if activation == "softmax" else (BALL, ROD, Structure("cube", 3))
    recipe = Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore"))
    facts = {"base": "tiny"}
    return Subject(network, structures, activation, recipe, tuple(window), overlap, facts, anatomy=anatomy)


def tiny(name: str = "unet-3d-batch", method: str | None = None, activation: str = "softmax", **options) -> Subject:
    """A tiny network, with an adapter whose values are not the first ones where a method is named."""
    case = make(name)
    if method is not None:
        torch.manual_seed(1)
        attached = attach(case.network, case.anatomy, method, options)
        with torch.no_grad():
            for tensor in attached.trainable().values():
                tensor.add_(0.3 * torch.randn_like(tensor))
        case.network.eval()
    return subject_of(case.network, case.anatomy, activation=activation)


def image_of(shape=(8, 8, 8), seed: int = 3) -> Prepared:
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    grid = Grid(tuple(shape), np.eye(4))
    return Prepared(image, grid, grid)


def ball_in(shape, radius: float = 3.0) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return sum(a.square() for a in axes) < radius**2


def hooks_of(network: nn.Module) -> int:
    """Hooks on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def small_segresnet() -> Subject:
    """MONAI's SegResNet, whose blocks add in place to the output of their second convolution."""
    case = make("segresnet-3d")
    return subject_of(case.network, case.anatomy, window=(12, 12, 12))


def write_adapter(path: Path, entry: ModelEntry, method: str = "lora", seed: int = 1) -> Path:
    """An adapter of a model for the balls of `small_scans`, with values that are not the first ones."""
    network, anatomy = load_base(entry)
    replace_head(network, anatomy, 3)
    torch.manual_seed(seed)
    attached = attach(network, anatomy, method, check_options(method, {}))
    with torch.no_grad():
        for tensor in attached.trainable().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
        network.get_submodule(anatomy.head).bias.copy_(torch.tensor([0.2, 0.1, 0.1]))
    recipe = Recipe(
        format=FORMAT,
        name="balls",
        version=1,
        method=method,
        options=check_options(method, {}),
        train_decoder=False,
        base_id=entry.id,
        base_fingerprint=fingerprint(load_base(entry)[0].state_dict(), architecture(entry)),
        base_licence=entry.licence,
        network=entry.network,
        structures=BOTH,
        activation="softmax",
        preprocessing=entry.preprocessing,
        window=(16, 16, 16),
        overlap=0.5,
        record={},
    )
    save_adapter(path, recipe, attached.state())
    return path
