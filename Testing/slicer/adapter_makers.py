"""Adapters in the library for tests of the Slicer module. No test itself."""

from __future__ import annotations

from pathlib import Path

from scene_makers import BRIGHT


def make_adapter(
    path: Path, name: str = "bright, site Ä", version: int = 1, structures: tuple[str, ...] = (BRIGHT,), seed: int = 1
) -> Path:
    """An adapter of the tiny model with random changes; about half of the voxels become foreground."""
    import torch

    from peftseg.adapter_file import FORMAT, Recipe, save_adapter
    from peftseg.adapters import attach, check_options
    from peftseg.models import Structure, resolve
    from peftseg.networks import head_of, replace_head
    from peftseg.weights import architecture, fingerprint, load_base

    entry = resolve("tiny")
    base_print = fingerprint(load_base(entry)[0].state_dict(), architecture(entry))
    torch.manual_seed(seed)
    network, anatomy = load_base(entry)
    replace_head(network, anatomy, len(structures) + 1)
    attached = attach(network, anatomy, "lora", check_options("lora", {"rank": 2}), True)
    for tensor in attached.trainable().values():
        torch.nn.init.normal_(tensor.data, std=0.3)
    with torch.no_grad():
        head_of(network, anatomy).bias -= network(torch.randn(1, 1, 24, 24, 24)).mean(dim=(0, 2, 3, 4))
    recipe = Recipe(
        format=FORMAT,
        name=name,
        version=version,
        method="lora",
        options=check_options("lora", {"rank": 2}),
        train_decoder=True,
        base_id=entry.id,
        base_fingerprint=base_print,
        base_licence=entry.licence,
        network=entry.network,
        structures=tuple(
            Structure(s, n, (200, 40 * n, 40), "SCT^10200004^Liver" if n == 1 else "")
            for n, s in enumerate(structures, start=1)
        ),
        activation="softmax",
        preprocessing=entry.preprocessing,
        window=entry.window,
        overlap=0.5,
        record={
            "shots": 5,
            "labelled": {s: {"labelled": 5} for s in structures},
            "estimate": {s: [0.78, 0.81, None] for s in structures},
            "software": {"peftseg": "1.0"},
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(path, recipe, attached.state())
    return path


def store_adapter(folder: Path, **facts) -> str:
    """Put an adapter of the tiny model into the library; its reference."""
    from peftseg.library import show_adapter, store

    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    return show_adapter(store(make_adapter(folder / f"{number}.safetensors", **facts)))["ref"]
