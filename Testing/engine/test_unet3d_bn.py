"""The 3D U-Net with running statistics: its size, its levels, and that it learns, is stored and comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from peftseg.adabn import running_norms
from peftseg.adapters import attach, check_options
from peftseg.config import PretrainJob
from peftseg.early_head import EARLY_FILE, EarlyBranch, find_levels, load_early_head
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.metrics import dice
from peftseg.models import NetworkSpec, read_model_dir
from peftseg.networks import build, head_of
from peftseg.pretrain import run_pretrain
from peftseg.segmenter import model_segmenter, segment_volume
from peftseg.site_statistics import read_site
from peftseg.study import load_support_item
from peftseg.weights import load_base
from small_scans import BOTH, make_scan_files

BUNDLED_LIMIT = 6_000_000  # bytes, weights and early head


def network_of(width: int = 4, rows: int = 3):
    torch.manual_seed(0)
    return build(NetworkSpec("unet3d_bn", {"width": width}), rows)


def test_the_bundled_width_keeps_to_its_limit_with_every_early_head():
    network, anatomy = network_of(16, 5)
    numbers = sum(t.numel() for t in network.state_dict().values())
    assert sum(p.numel() for p in network.parameters()) == 1_110_917
    for level in range(4):
        head = sum(t.numel() for t in EarlyBranch(network, anatomy, level, 5).head.state_dict().values())
        assert 4 * (numbers + head) < BUNDLED_LIMIT


def test_levels_are_halves_of_the_size_and_twice_the_channels():
    network, anatomy = network_of(4)
    assert [(lv.module, lv.channels) for lv in find_levels(network, anatomy)] == [
        ("init_path", 4),
        ("down1", 8),
        ("down2", 16),
        ("down3", 32),
    ]
    image = torch.randn(2, 1, 16, 24, 32)
    assert network.eval()(image).shape == (2, 3, 16, 24, 32)
    assert head_of(network, anatomy).out_channels == 3


def test_every_normalisation_runs_and_every_part_is_in_the_anatomy():
    network, anatomy = network_of()
    norms = [name for name, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert list(running_norms(network)) == norms
    assert len(norms) == 14
    parts = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert parts == {anatomy.head, *anatomy.encoder, *anatomy.decoder}


@pytest.mark.parametrize("method", ["lora", "convlora", "bitfit"])
def test_adapters_leave_its_output_as_it_is_at_the_start(method):
    network, anatomy = network_of()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        before = network.eval()(image)
    attached = attach(network, anatomy, method, check_options(method, {}), False)
    with torch.inference_mode():
        assert torch.allclose(attached.network.eval()(image), before, atol=1e-5)
        assert torch.allclose(attached.merge()(image), before, atol=1e-5)


@pytest.mark.parametrize("width", [0, -4, 2.5, "wide"])
def test_a_width_that_cannot_be_is_refused(width):
    with pytest.raises(BadInput, match="width"):
        build(NetworkSpec("unet3d_bn", {"width": width}), 2)


def test_it_learns_and_is_stored_with_its_early_head(tmp_path):
    items = tuple(make_scan_files(tmp_path, n) for n in range(4))
    job = PretrainJob(
        data=items,
        structures=BOTH,
        out=str(tmp_path / "model"),
        id="bn",
        title="BN",
        network="unet3d_bn",
        network_arguments={"width": 4},
        epochs=80,
        patch=(16, 16, 16),
        device="cpu",
        precision="fp32",
    )
    result = run_pretrain(job, Reporter.silent())
    entry = read_model_dir(Path(result["model"]))
    assert (Path(job.out) / EARLY_FILE).is_file()
    assert load_early_head(entry)[0] == result["early_level"] == entry.record["early_level"]
    network, _ = load_base(entry)
    assert all(bool((m.running_mean != 0).any()) for m in running_norms(network).values())
    scan = load_support_item(make_scan_files(tmp_path, 9), BOTH, None)
    labels = segment_volume(model_segmenter(job.out), scan.volume, torch.device("cpu"), precision="fp32")
    assert min(dice(labels == s.value, scan.masks[s.name]) for s in BOTH) > 0.5
    assert read_site(entry.record["site"]).scans == len(items)
    facts = entry.record["structure_facts"]
    assert set(facts) == {s.name for s in BOTH}
    assert facts["bright ball"]["volume_ml"]["mean"] == pytest.approx(4 / 3 * np.pi * 4**3 / 1000, rel=0.1)
