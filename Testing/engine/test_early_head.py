"""The early segmentation head: its place, its size, its gradient, and how it is fitted and kept."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from peftseg.early_head import (
    EARLY_FILE,
    EarlyBranch,
    EarlyHead,
    fit_early_head,
    load_early_head,
    load_head_state,
    save_early_head,
)
from peftseg.early_levels import find_levels, reaching
from peftseg.errors import BadInput, JobCancelled, TrainingFailed
from peftseg.events import Reporter
from peftseg.models import NetworkSpec
from peftseg.networks import build
from peftseg.weights import architecture, fingerprint, load_base
from site_cases import ARGUMENTS, randomise, write_site_model

SHAPES = {"unet2d": (2, 1, 16, 24, 3), "unet3d_bn": (2, 1, 16, 24, 16), "segresnet": (2, 1, 8, 12, 8)}


def branch_of(name: str, level: int = 1, rows: int = 2) -> EarlyBranch:
    network, anatomy = build(NetworkSpec(name, ARGUMENTS[name]), rows)
    branch = EarlyBranch(randomise(network), anatomy, level, rows)
    randomise(branch.head)
    return branch


def image(name: str) -> torch.Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(3))


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_heads_have_the_published_names_and_sizes():
    assert [size(EarlyHead(16 * 2**level)) for level in range(4)] == [2725, 4453, 7909, 14821]
    assert [n for n, _ in EarlyHead(16).named_children()] == ["conv1", "bn1", "conv2", "bn2", "conv3"]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("level", [0, 1])
def test_early_and_final_logits_have_the_size_of_the_input(name, level):
    branch, x = branch_of(name, level), image(name)
    with torch.no_grad():
        final, early = branch(x)
        assert final.shape == early.shape == (2, 2, *x.shape[2:])
        assert torch.equal(final, branch.network(x))
        assert torch.equal(early, branch.encoder_only(x))
        given = branch.final_as_given(x)
    assert torch.equal(given[0], final)
    assert torch.equal(given[1], early)


def test_slices_of_a_volume_are_segmented_one_by_one():
    branch, x = branch_of("unet2d"), image("unet2d")
    with torch.no_grad():
        whole = branch.encoder_only(x)
        single = branch.encoder_only(x[..., 1])
    torch.testing.assert_close(whole[..., 1], single)


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_behind_the_level_runs_or_gets_a_gradient(name):
    branch, x = branch_of(name, 0), image(name)
    ran = []
    branch.network.get_submodule(find_levels_of(branch, name)[1]).register_forward_hook(lambda *_: ran.append(1))
    branch.encoder_only(x).sum().backward()
    assert ran == []
    branch.network.zero_grad()
    final, early = branch.final_as_given(x)
    assert not final.requires_grad
    assert torch.is_grad_enabled()
    early.sum().backward()
    assert ran == [1]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in branch.network.parameters())


def find_levels_of(branch: EarlyBranch, name: str) -> list[str]:
    anatomy = build(NetworkSpec(name, ARGUMENTS[name]), 2)[1]
    return [level.module for level in find_levels(branch.network, anatomy)]


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("unet2d", ["init_path", "down1", "down2", "down3"]),
        ("unet3d_bn", ["init_path", "down1", "down2", "down3"]),
        ("segresnet", ["down_layers.0", "down_layers.1"]),
    ],
)
def test_levels_are_the_encoders_blocks_finest_first(name, modules):
    assert find_levels_of(branch_of(name), name) == modules


def test_what_reaches_a_level_is_the_encoder_down_to_it():
    network, anatomy = build(NetworkSpec("unet2d", {"filters": 4}), 1)
    levels = find_levels(network, anatomy)
    found = reaching(network, anatomy, levels[1])
    assert found == {n for n, _ in network.named_parameters() if n.startswith(("init_path.", "down1."))}
    assert not any(p.grad is not None for p in network.parameters())


def test_a_level_that_the_network_has_not_got_is_refused():
    with pytest.raises(BadInput, match="levels 0 to 3"):
        branch_of("unet2d", 4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_head_learns_from_labels_and_leaves_the_network_alone(activation):
    rows = 2 if activation == "softmax" else 1
    branch, x = branch_of("unet2d", 0, rows), image("unet2d")
    before = {k: t.clone() for k, t in branch.network.state_dict().items()}
    label = (x > 0.5).to(torch.uint8)

    def batches(epoch: int):
        for _ in range(15):
            yield x, label, torch.ones(2, 1, 1, 1, 1, dtype=torch.bool)

    losses = fit_early_head(branch, batches, activation, 8, Reporter.silent())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[k], t) for k, t in branch.network.state_dict().items())
    assert not any(m.training for m in [*branch.network.modules(), *branch.head.modules()])


def test_after_its_deadline_the_head_is_taken_as_it_is():
    branch, x = branch_of("unet2d", 0, 2), image("unet2d")
    late = time.monotonic() - 1.0
    assert len(fit_early_head(branch, lambda epoch: [(x, None, None)], "softmax", 8, Reporter.silent(), late)) == 1


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_without_labels_a_head_learns_what_the_network_is_sure_of(activation):
    rows = 2 if activation == "softmax" else 1
    branch, x = branch_of("unet2d", 1, rows), image("unet2d")
    head = branch.network.out_path[2]
    with torch.no_grad():
        head.weight.fill_(30.0)  # a network that is sure

    def batches(epoch: int):
        for _ in range(15):
            yield x, None, None

    losses = fit_early_head(branch, batches, activation, 8, Reporter.silent())
    assert losses[-1] < 0.85 * losses[0]


def test_a_cancelled_fit_restores_modes_and_a_loss_that_is_not_finite_is_told():
    branch, x = branch_of("unet2d"), image("unet2d")
    reporter = Reporter.silent()
    reporter._request = lambda: "cancel"
    with pytest.raises(JobCancelled):
        fit_early_head(branch, lambda epoch: [(x, None, None)], "softmax", 1, reporter)
    assert not branch.head.training
    bad = (torch.full_like(x, float("nan")), torch.zeros_like(x, dtype=torch.uint8), torch.ones(2, 1, 1, 1, 1).bool())
    with pytest.raises(TrainingFailed, match="early segmentation head"):
        fit_early_head(branch, lambda epoch: [bad], "softmax", 1, Reporter.silent())


def test_a_kept_head_comes_back_and_changes_no_fingerprint(tmp_path):
    bare = write_site_model(tmp_path / "bare", early=None)
    assert load_early_head(bare) is None
    network, anatomy = load_base(bare)
    print_before = fingerprint(network.state_dict(), architecture(bare))
    branch = EarlyBranch(network, anatomy, 2, 2)
    randomise(branch.head)
    save_early_head(bare.directory, branch)
    level, state = load_early_head(bare)
    assert level == 2
    again = EarlyBranch(load_base(bare)[0], anatomy, level, 2)
    load_head_state(again, state)
    assert all(torch.equal(t, branch.head.state_dict()[k]) for k, t in again.head.state_dict().items())
    assert fingerprint(load_base(bare)[0].state_dict(), architecture(bare)) == print_before
    with pytest.raises(BadInput, match="does not fit"):
        load_head_state(EarlyBranch(network, anatomy, 1, 2), state)
    assert load_early_head(replace(bare, directory=None)) is None


def test_a_damaged_head_is_named(tmp_path):
    entry = write_site_model(tmp_path / "m")
    (entry.directory / EARLY_FILE).write_bytes(b"nothing of use")
    with pytest.raises(BadInput, match="cannot be read"):
        load_early_head(entry)
