"""What adaptation without labels changes of a network: published counts, gradients, pseudo-labels, merging."""

from __future__ import annotations

import copy

import pytest
import torch

from peftseg.adabn import copy_statistics, recalibrate
from peftseg.early_head import EarlyBranch
from peftseg.errors import BadInput
from peftseg.models import NetworkSpec
from peftseg.networks import build
from peftseg.site_attach import attach_site, attach_site_saved, early_from_state, early_to_state
from peftseg.site_losses import pseudo_labels, site_loss
from peftseg.site_options import PRESETS, check_site_options, resolve_levels
from site_cases import ARGUMENTS, randomise, settled

SHAPES = {"unet2d": (1, 1, 16, 24, 3), "unet3d_bn": (2, 1, 16, 24, 16), "segresnet": (2, 1, 8, 12, 8)}
GIVEN = {"targets": "detached", "confidence": 0.0}


def small(name: str, rows: int = 2):
    network, anatomy = build(NetworkSpec(name, ARGUMENTS[name]), rows)
    return randomise(network), anatomy


def image(name: str) -> torch.Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(3))


def share(preset: str, **options) -> dict[str, int]:
    network, anatomy = build(NetworkSpec("unet2d", {}), 1)
    return attach_site(network, anatomy, settled(preset, own=None, **options)).trained_share()


class TestPublishedCounts:
    """The numbers of Aleem et al. 2024, sec. 4.1 (3,954 and 57,714), by kind, and those of their code in between."""

    @pytest.mark.parametrize(
        ("depth", "adapter", "norm"), [(0, 3762, 192), (1, 11058, 576), (2, 25650, 1344), (3, 54834, 2880)]
    )
    def test_convlora_by_depth_of_the_encoder(self, depth, adapter, norm):
        found = share("published", depth=depth, level=depth)
        assert (found["adapter"], found["norm"], found["body"]) == (adapter, norm, 0)
        assert adapter + norm == {0: 3954, 1: 11634, 2: 26994, 3: 57714}[depth]

    def test_table_1_line_by_line(self):
        trained = ("adapter", "norm", "head", "decoder", "body")
        totals = {preset: sum(share(preset)[kind] for kind in trained) for preset in PRESETS}
        assert totals["udas_convlora"] == 3954
        assert totals["published"] == 57714
        assert totals["udas"] == 14160
        assert totals["self_training"] == 2434771
        assert totals["adabn"] == 0

    def test_statistics_count_as_buffers_where_they_are_adapted(self):
        buffers = {preset: share(preset)["buffers"] for preset in PRESETS}
        adapted = {preset for preset, count in buffers.items() if count == 6338}
        assert adapted == {"matched", "convlora_adabn", "adabn", "udas", "published"}
        assert {buffers[preset] for preset in set(PRESETS) - adapted} == {0}


@pytest.mark.parametrize("name", SHAPES)
def test_attaching_changes_no_output_and_keeps_the_head(name):
    network, anatomy = small(name)
    with torch.no_grad():
        before = network(image(name))
        attach_site(network, anatomy, settled(count=2))
        network.train()
        torch.testing.assert_close(network(image(name)), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("preset", ["convlora_adabn", "udas", "self_training"])
def test_merged_equals_unmerged_and_a_saved_state_gives_the_same(name, preset):
    network, anatomy = small(name)
    plain = copy.deepcopy(network)
    options = settled(preset, count=2)
    if name == "segresnet":
        options |= {"adabn": "none", "bn_mode": "source"}
    attached = attach_site(network, anatomy, options)
    with torch.no_grad():
        for key, tensor in attached.tensors().items():
            tensor.add_(0.05 * torch.rand_like(tensor))
            assert key.partition("::")[2] in ("A", "B", "full", "buffer")
        network.eval()
        expected = network(image(name))
        torch.testing.assert_close(attached.merge()(image(name)), expected, atol=1e-5, rtol=1e-4)
        head = {"early_head.conv1.weight::early": torch.zeros(1)}
        again = attach_site_saved(plain, anatomy, options, {**attached.state(), **head}).merge()
        assert torch.equal(again(image(name)), attached.merge()(image(name)))


def test_a_foreign_state_is_refused():
    network, anatomy = small("unet2d")
    state = attach_site(network, anatomy, settled()).state()
    with pytest.raises(BadInput, match="does not belong here"):
        attach_site_saved(*small("unet2d"), settled(), {**state, "up1.0.weight::A": torch.zeros(1)})


def test_the_early_heads_tensors_have_keys_of_their_own():
    network, anatomy = small("unet2d")
    head = EarlyBranch(network, anatomy, 1, 2).head
    state = early_to_state(head)
    assert set(state) == {f"early_head.{name}::early" for name in head.state_dict()}
    found = early_from_state({**attach_site(network, anatomy, settled()).state(), **state})
    assert found.keys() == head.state_dict().keys()


def test_recalibration_reaches_the_adapter_and_frozen_norms_move_in_no_other_way():
    network, anatomy = small("unet2d")
    attached = attach_site(network, anatomy, settled())
    before = copy_statistics(network)
    network.train()
    network(image("unet2d"))
    assert all(torch.equal(before[k], t) for k, t in copy_statistics(network).items())
    recalibrate(network, [image("unet2d")])
    assert not torch.equal(
        before["init_path.2.conv_path.0.bn.running_mean"],
        attached.state()["init_path.2.conv_path.0.bn.running_mean::buffer"],
    )


def test_statistics_of_the_batch_move_only_where_they_are_asked_for():
    network, anatomy = small("unet2d")
    attach_site(network, anatomy, settled("published", own=None))
    before = copy_statistics(network)
    network.train()
    network(image("unet2d"))
    assert not any(torch.equal(before[k], t) for k, t in copy_statistics(network).items())


@pytest.mark.parametrize(("targets", "moves"), [("detached", False), ("hard", False), ("soft_attached", True)])
def test_only_published_targets_pass_a_gradient_to_the_final_head(targets, moves):
    z = torch.randn(2, 1, 5, 4, requires_grad=True)
    e = torch.randn(2, 1, 5, 4, requires_grad=True)
    target, weight = pseudo_labels(z, {"targets": targets, "confidence": 0.0}, "sigmoid")
    site_loss(e, target, weight, "sigmoid").backward()
    assert (z.grad is not None) == moves
    if moves:  # by hand, for the mean of BCE(e, sigmoid(z)): d loss / d z = -e p (1 - p) / N
        p = z.detach().sigmoid()
        torch.testing.assert_close(z.grad, -e.detach() * p * (1 - p) / z.numel())
        torch.testing.assert_close(e.grad, (e.detach().sigmoid() - p) / z.numel())


@pytest.mark.parametrize("rows", [2, 4])
def test_the_gradient_of_the_early_logits_is_their_difference_to_the_labels(rows):
    z, e = torch.randn(2, rows, 3, 3, 3), torch.randn(2, rows, 3, 3, 3, requires_grad=True)
    target, weight = pseudo_labels(z, GIVEN, "softmax")
    site_loss(e, target, weight, "softmax").backward()
    voxels = z.numel() / rows
    torch.testing.assert_close(e.grad, (e.detach().softmax(1) - z.softmax(1)) / voxels)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_voxels_that_are_not_sure_enough_teach_nothing(activation):
    z = torch.zeros(1, 2, 1, 4)
    z[0, :, 0, 1:] = torch.tensor([[5.0, -5.0, 0.4], [-5.0, 5.0, 0.4]])
    e = torch.randn(1, 2, 1, 4, requires_grad=True)
    target, weight = pseudo_labels(z, {"targets": "hard", "confidence": 0.9}, activation)
    site_loss(e, target, weight, activation).backward()
    assert (e.grad.abs().sum((0, 1, 2)) > 0).tolist() == [False, True, True, False]
    assert set(target.unique().tolist()) == {0.0, 1.0}


def test_the_dice_term_hears_overlap():
    target = torch.zeros(1, 1, 10, 10)
    target[..., :2, :2] = 1
    weight = torch.ones_like(target)
    e = torch.full_like(target, -3.0)
    plain, with_dice = (site_loss(e, target, weight, "sigmoid", dice) for dice in (False, True))
    assert with_dice - plain > 0.5


class TestOptions:
    """What may be asked for."""

    @pytest.mark.parametrize(
        ("preset", "options", "text"),
        [
            ("convlora_adabm", {}, "did you mean|valid"),
            ("convlora", {"rnak": 2}, "rank"),
            ("convlora", {"rank": 0}, "at least 1"),
            ("convlora", {"confidence": 1.5}, "0 to 1"),
            ("convlora", {"ema": 1.0}, "below 1"),
            ("convlora", {"depth": 0.5}, "whole number"),
            ("convlora", {"bn_mode": "adabn_pre"}, "recalibrated before"),
            ("convlora", {"adabn": "moving"}, "bn_mode=batch"),
            ("adabn", {"adabn": "none"}, "nothing is adapted"),
            ("convlora", {"through": "final"}, "learns nothing"),
        ],
    )
    def test_what_makes_no_sense_is_refused_with_the_reason(self, preset, options, text):
        with pytest.raises(BadInput, match=text):
            check_site_options(preset, options)

    def test_every_preset_stands_and_given_options_count_more(self):
        for preset in PRESETS:
            check_site_options(preset, {})
        assert check_site_options("published", {"lr_adapter": 0.5})["lr_adapter"] == 0.5

    @pytest.mark.parametrize(
        ("options", "own", "level", "depth"),
        [
            ({}, None, 1, 1),
            ({}, 2, 2, 2),
            ({"depth": 0}, 2, 0, 0),
            ({"level": 3}, 2, 3, 3),
            ({"level": 3, "depth": 1}, None, 3, 1),
        ],
    )
    def test_level_and_depth_follow_each_other_and_the_models_own_head(self, options, own, level, depth):
        found = settled(own=own, **options)
        assert (found["level"], found["depth"]) == (level, depth)

    def test_what_the_early_head_cannot_teach_is_refused_unless_targets_are_attached(self):
        with pytest.raises(BadInput, match="nothing below it learns"):
            settled(level=0, depth=2)
        assert settled(level=0, depth=2, targets="soft_attached")["depth"] == 2
        with pytest.raises(BadInput, match="levels 0 to 1"):
            resolve_levels(check_site_options("published", {}), 2, None)
