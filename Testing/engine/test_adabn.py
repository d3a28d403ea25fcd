"""AdaBN: running statistics become the mean over the batches of a site's scans."""

from __future__ import annotations

import copy
from itertools import islice

import pytest
import torch
from torch import nn

from peftseg.adabn import copy_statistics, recalibrate, running_norms, statistics_names
from peftseg.errors import BadInput, JobCancelled
from peftseg.models import NetworkSpec
from peftseg.networks import build
from site_cases import randomise
from tiny_networks import make


def batches(number: int = 3, shape=(4, 2, 6, 5)):
    generator = torch.Generator().manual_seed(1)
    return [1.5 * torch.randn(shape, generator=generator) + n for n in range(number)]


def one_norm() -> nn.Module:
    return randomise(nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5)))


def test_statistics_equal_a_hand_computation():
    network = one_norm()
    assert recalibrate(network, batches()) == ["0"]
    flat = [b.transpose(0, 1).flatten(1) for b in batches()]
    torch.testing.assert_close(network[0].running_mean, torch.stack([f.mean(1) for f in flat]).mean(0))
    torch.testing.assert_close(network[0].running_var, torch.stack([f.var(1) for f in flat]).mean(0))


def test_statistics_equal_those_of_torchs_own_update_bn():
    case = make("unet-2d-batch")
    case.network.dropout.p = 0.0  # update_bn would drop
    images = batches(3, (2, 1, 8, 8))
    expected = copy.deepcopy(case.network)
    torch.optim.swa_utils.update_bn(images, expected)
    recalibrate(case.network, images)
    for name, tensor in copy_statistics(case.network).items():
        torch.testing.assert_close(tensor, expected.get_buffer(name))


@pytest.mark.parametrize("name", ["unet-2d-batch", "unet-3d-batch"])
def test_only_the_statistics_change_and_all_modes_are_restored(name):
    case = make(name)
    case.network.down.train()
    before = {k: t.clone() for k, t in case.network.state_dict().items()}
    modes = [m.training for m in case.network.modules()]
    assert recalibrate(case.network, batches(2, case.shape)) == ["norm1", "norm2", "norm3"]
    after = case.network.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == set(statistics_names(case.network))
    assert [m.training for m in case.network.modules()] == modes
    assert {norm.momentum for norm in running_norms(case.network).values()} == {0.1}


def test_source_weight_blends_with_the_statistics_of_before():
    whole, blended, kept = one_norm(), one_norm(), one_norm()
    source = whole[0].running_mean.clone()
    recalibrate(whole, batches())
    recalibrate(blended, batches(), 0.25)
    recalibrate(kept, batches(), 1.0)
    torch.testing.assert_close(blended[0].running_mean, 0.25 * source + 0.75 * whole[0].running_mean)
    assert torch.equal(kept[0].running_mean, source)


def test_a_second_pass_blends_with_the_source_and_not_with_the_first_pass():
    whole, twice = one_norm(), one_norm()
    source = copy_statistics(twice)
    recalibrate(whole, batches())
    for _ in range(2):
        recalibrate(twice, batches(), 0.5, source)
    torch.testing.assert_close(twice[0].running_mean, 0.5 * source["0.running_mean"] + 0.5 * whole[0].running_mean)


def test_cancelling_leaves_the_statistics_as_they_were():
    network = one_norm()
    before = copy_statistics(network)

    def cancelled():
        yield from islice(batches(), 2)
        raise JobCancelled("The job was cancelled.")

    with pytest.raises(JobCancelled):
        recalibrate(network, cancelled())
    assert all(torch.equal(before[k], t) for k, t in copy_statistics(network).items())
    assert network[0].momentum == 0.1
    assert not network[0].training


@pytest.mark.parametrize(("given", "text"), [([], "no scan"), ([torch.full((2, 2, 3, 3), float("nan"))], "not finite")])
def test_nothing_to_go_by_is_refused_and_changes_nothing(given, text):
    network = one_norm()
    before = copy_statistics(network)
    with pytest.raises(BadInput, match=text):
        recalibrate(network, given)
    assert all(torch.equal(before[k], t) for k, t in copy_statistics(network).items())


@pytest.mark.parametrize(
    ("network", "arguments"),
    [("segresnet", {"spatial_dims": 3, "init_filters": 8, "in_channels": 1}), ("unet3d", {})],
)
def test_group_norms_and_norms_by_the_batch_have_nothing_to_recalibrate(network, arguments):
    built, _ = build(NetworkSpec(network, arguments), 2)

    def never():
        raise AssertionError("the scans are not needed")
        yield

    assert running_norms(built) == {}
    assert recalibrate(built, never()) == []


@pytest.mark.parametrize(("network", "layers"), [("unet2d", 52), ("unet3d_bn", 14)])
def test_all_running_norms_of_2d_and_3d_networks_are_found(network, layers):
    built, _ = build(NetworkSpec(network, {}), 1)
    assert len(running_norms(built)) == layers
    if network == "unet2d":
        assert sum(built.get_buffer(n).numel() for n in statistics_names(built)) == 6338
