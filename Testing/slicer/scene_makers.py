"""Small scans in the scene and a tiny model in the catalogue, for tests of the Slicer module. No test itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZE = 24
BRIGHT, DARK = "bright ball", "dark ball"
GREY = {BRIGHT: 200.0, DARK: 20.0}


def balls(number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A grey (K, J, I) scan with a bright and a dark ball, and their masks; each number is another one."""
    rng = np.random.default_rng(number)
    image = rng.normal(100, 5, (SIZE,) * 3).astype(np.float32)
    axes = np.indices((SIZE,) * 3)
    masks = {}
    for name, centre_i in ((BRIGHT, 7), (DARK, 17)):
        centre = np.array([12, 12, centre_i]) + rng.uniform(-2, 2, 3)
        masks[name] = ((axes - centre[:, None, None, None]) ** 2).sum(0) < 4.0**2
        image[masks[name]] = GREY[name]
    return image, masks


def add_scan(number: int, name: str = ""):
    """Add one scan to the scene."""
    import slicer

    return slicer.util.addVolumeFromArray(balls(number)[0], name=name or f"Scan {number}")


def add_labelled_scan(number: int, names: tuple[str, ...] = (BRIGHT, DARK), name: str = ""):
    """Add one scan and a segmentation with these structures painted; both nodes."""
    import slicer

    scan = add_scan(number, name)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{scan.GetName()} labels")
    labels.CreateDefaultDisplayNodes()
    labels.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    for structure in names:
        segment_id = labels.GetSegmentation().AddEmptySegment("", structure)
        mask = balls(number)[1][structure].astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, labels, segment_id, scan)
    return scan, labels


def add_ct():
    """Add a scan with Hounsfield units: air and a body."""
    import slicer

    values = np.full((12, 40, 40), -1000, np.int16)
    values[:, 8:32, 8:32] = np.random.default_rng(0).normal(40, 30, (12, 24, 24)).astype(np.int16)
    return slicer.util.addVolumeFromArray(values, name="CT")


def install_tiny_model(home: Path) -> str:
    """Put a tiny model with random weights, which knows the bright ball, into the catalogue; its id."""
    write_tiny_model(home / "models" / "tiny", "tiny")
    return "tiny"


def pick(selector, node) -> None:
    """Choose a node in a selector, as a click in its list does; None for no node."""
    selector.setCurrentNode(node)
    selector.nodeActivated.emit(node)


def module_nodes(kind: str) -> list:
    """The module's own nodes of a class, which are singletons."""
    import slicer

    tagged = slicer.util.getNodesByClass(kind)
    return [node for node in tagged if (node.GetSingletonTag() or "").startswith("PEFTSegment")]


def write_tiny_model(folder: Path, identity: str) -> None:
    """Write a MODELDIR with random weights."""
    import torch

    from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
    from peftseg.networks import build
    from peftseg.weights import save_model

    entry = ModelEntry(
        id=identity,
        title=f"{identity.title()} test model",
        modality="MR",
        structures=(Structure(BRIGHT, 1),),
        network=NetworkSpec(
            "segresnet",
            {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]},
        ),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(24, 24, 24),
        overlap=0.5,
        licence="Apache-2.0",
    )
    torch.manual_seed(0)
    save_model(folder, entry, build(entry.network, 2)[0])


def install_site_model(home: Path) -> str:
    """Put a tiny 2D model with random weights, batch normalisation and an early head into the catalogue; its id."""
    import torch

    from peftseg.early_head import EarlyBranch, save_early_head
    from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
    from peftseg.networks import build
    from peftseg.weights import save_model

    entry = ModelEntry(
        id="tiny-bn",
        title="Tiny model with batch normalisation",
        modality="MR",
        structures=(Structure(BRIGHT, 1),),
        network=NetworkSpec("unet2d", {"filters": 4}),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(16, 16, 16),
        overlap=0.75,  # many windows: the check takes long enough to be seen
        licence="Apache-2.0",
    )
    torch.manual_seed(0)
    network, anatomy = build(entry.network, 2)
    network.eval()
    folder = home / "models" / entry.id
    save_model(folder, entry, network)
    save_early_head(folder, EarlyBranch(network, anatomy, 1, 2))
    return entry.id
