"""The planner: what it measures is real, what it plans fits time and memory."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import SegResNet

from peftseg import plan as planner
from peftseg.errors import BadInput, OutOfMemory
from peftseg.plan import make_plan, measure_step, patch_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=1, out_channels=3)


def plan_for(network, **changes):
    arguments = {"precision": "fp32", **changes}
    return make_plan(network, [(40, 30, 20)] * 5, (96, 96, 96), 2, CPU, **arguments)


def test_the_patch_is_the_window_cut_down_to_the_scans():
    assert patch_for([(40, 30, 20), (38, 33, 21)], (96, 32, 96), 4) == (40, 32, 24)
    assert patch_for([(200, 200, 10)], (96, 96, 96), 16) == (96, 96, 32)


def test_measuring_leaves_weights_and_statistics_alone():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.BatchNorm3d(4), torch.nn.Conv3d(4, 2, 1))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    measure_step(network, CPU, (16, 16, 16), "fp32")
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_measured_bytes_are_those_of_a_layer_counted_by_hand():
    """One convolution keeps its input, 4 bytes a voxel; the loss takes 16 bytes a voxel for each of two outputs."""
    network = torch.nn.Conv3d(1, 2, 1)
    cost = measure_step(network, CPU, (16, 16, 16), "fp32")
    assert cost.bytes_per_voxel == pytest.approx(4 + 2 * 16, rel=0.02)


def test_features_to_keep_are_those_of_a_layer_counted_by_hand():
    """The head takes 4 channels of 4 bytes."""
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 2, 1))
    assert measure_step(network, CPU, (16, 16, 16), "fp32", frozen_until="1").feature_bytes_per_voxel == 16
    assert measure_step(network, CPU, (16, 16, 16), "fp32").feature_bytes_per_voxel == 0
    assert not network[1]._forward_pre_hooks


def test_as_many_epochs_of_patches_are_used_again_as_their_features_fit(network, monkeypatch):
    """Five scans of one patch of 40 x 30 x 20 voxels, eight channels of four bytes and a byte of truth."""
    each = 5 * 40 * 30 * 20 * (8 * 4 + 1)

    def pool(epochs_that_fit: float, **changes):
        monkeypatch.setattr(planner, "free_memory", lambda device: 4 * epochs_that_fit * each / 0.9 + 1)
        plan = plan_for(network, epochs=40, **{"frozen_until": "conv_final.2", **changes})
        return plan.schedule.pool, plan.memory

    (all_of_them, most), (three, memory), (none, _) = pool(100), pool(3), pool(0.5)
    assert (all_of_them, three, none) == (8, 3, 1)
    assert most - memory == pytest.approx(5 * each)
    assert pool(3, frozen_until="")[0] == 8


def test_a_time_budget_counts_on_kept_features(network, monkeypatch):
    """What is kept costs a tenth, so that many more epochs fit; time for eight alone buys no more than eight."""
    costs = [planner.StepCost(1e-6, 100.0, 10**6, features) for features in (0.0, 4.0)]

    def planned(minutes: float) -> list[int]:
        found = []
        for cost in costs:
            monkeypatch.setattr(planner, "measure_step", lambda *_, cost=cost, **__: cost)
            plan = plan_for(network, budget_minutes=minutes, frozen_until="conv_final.2")
            assert plan.seconds <= minutes * 60
            found.append(plan.schedule.epochs)
        return found

    epoch = 5 * 40 * 30 * 20 * 1e-6 * planner.STEP_OVERHEAD
    assert planned(30.5 * epoch / 60) == [30, planner.MAX_EPOCHS]
    assert planned(12.25 * epoch / 60) == [12, 8 + 42]
    assert planned(5.5 * epoch / 60) == [5, 5]


def test_scans_that_a_patch_covers_need_one_patch_each(network):
    schedule = plan_for(network, epochs=10).schedule
    assert schedule.patches_per_scan == 1
    assert schedule.epochs == 10


def test_a_smaller_budget_never_plans_more_work(network):
    long, short = plan_for(network, budget_minutes=30.0), plan_for(network, budget_minutes=0.02)
    assert short.seconds < long.seconds
    assert short.schedule.epochs < long.schedule.epochs


def test_the_plan_keeps_its_budget(network, monkeypatch):
    monkeypatch.setattr(planner, "measure_step", lambda *a, **k: planner.StepCost(1e-6, 100.0, 10**6))
    found = make_plan(network, [(300, 300, 300)] * 5, (96, 96, 96), 8, CPU, budget_minutes=1.0)
    assert found.seconds <= 60
    assert found.schedule.patches_per_scan >= 1


def test_little_memory_means_fewer_patches_then_recomputing_then_smaller_patches(network, monkeypatch):
    voxels = 96**3
    monkeypatch.setattr(planner, "measure_step", lambda *a, **k: planner.StepCost(1e-9, 1000.0, 0))

    def with_free(n_bytes):
        monkeypatch.setattr(planner, "free_memory", lambda device: n_bytes)
        return make_plan(network, [(300, 300, 300)] * 2, (96, 96, 96), 8, CPU, epochs=1).schedule

    plenty, less, little, least = (with_free(share * voxels * 1000 / 0.8) for share in (6.1, 2.5, 0.5, 0.2))
    assert (plenty.micro_batch, plenty.checkpointing) == (6, False)
    assert (less.micro_batch, less.checkpointing) == (2, False)
    assert (little.micro_batch, little.checkpointing, little.patch) == (1, True, (96, 96, 96))
    assert math.prod(least.patch) < voxels
    with pytest.raises(OutOfMemory, match="free"):
        with_free(1000)


def test_after_a_kill_for_memory_the_plan_uses_half(network, monkeypatch):
    monkeypatch.setattr(planner, "measure_step", lambda *a, **k: planner.StepCost(1e-9, 1000.0, 0))
    monkeypatch.setattr(planner, "free_memory", lambda device: 96**3 * 1000 * 6.1 / 0.8)
    first, second = (
        make_plan(network, [(300, 300, 300)] * 2, (96, 96, 96), 8, CPU, epochs=1, smaller=s) for s in (False, True)
    )
    assert second.schedule.micro_batch < first.schedule.micro_batch


def test_a_plan_says_what_it_will_cost(network):
    text = plan_for(network, epochs=3).sentence()
    assert "3 epochs" in text
    assert "free memory" in text


@pytest.mark.parametrize("wrong", [{"budget_minutes": 0.0}, {"epochs": -1}])
def test_a_budget_that_is_not_positive_is_refused(network, wrong):
    with pytest.raises(BadInput, match="must be positive"):
        plan_for(network, **wrong)


def test_a_deepest_level_under_three_voxels_is_trained_in_float32_on_a_processor():
    safe, unsafe = (planner.safe_precision("bf16", CPU, patch, 4) for patch in ((12, 12, 16), (12, 8, 16)))
    assert (safe, unsafe) == ("bf16", "fp32")
    assert planner.safe_precision("bf16", torch.device("cuda"), (8, 8, 8), 4) == "bf16"
