"""Features that are computed once: the same numbers as without, bounded memory, and far fewer runs of the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from peftseg import optimise
from peftseg.adapters import attach, learning_rates
from peftseg.adapters.features import POOL, FeatureCache
from peftseg.adapters.table import check_options
from peftseg.errors import JobCancelled
from peftseg.events import Reporter
from peftseg.models import NetworkSpec
from peftseg.networks import Anatomy, build
from peftseg.optimise import fit
from peftseg.patches import make_scan
from peftseg.schedule import Schedule
from peftseg.weights import replace_head
from test_optimise import StopAfter, reporter_with
from tiny_networks import make

EPOCHS = POOL + 4
SCHEDULE = Schedule(epochs=EPOCHS, patch=(8, 8, 8), patches_per_step=2, micro_batch=2, early_stop=False)


def scans(n: int = 3):
    made = []
    for i in range(n):
        image = torch.randn(1, 10, 10, 10, generator=torch.Generator().manual_seed(i)) * 0.1
        masks = [torch.zeros(10, 10, 10, dtype=torch.bool) for _ in range(2)]
        masks[0][2:5, 3:7, 3:7] = True
        masks[1][6:9, 3:7, 3:7] = True
        image[0][masks[0]] += 1
        made.append(make_scan(image, masks, [True, True], overlapping=False))
    return made


def probe(method: str, network: str):
    if network == "unet2d":
        torch.manual_seed(0)
        net, anatomy = build(NetworkSpec("unet2d"), 3)
        replace_head(net, anatomy, 3)
    else:
        case = make(network)
        net, anatomy = case.network, case.anatomy
    torch.manual_seed(1)
    attached = attach(net, anatomy, method, {})
    runs = []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    return attached, runs


def fitted(method: str, network: str, schedule: Schedule = SCHEDULE, reporter: Reporter | None = None):
    attached, runs = probe(method, network)
    groups = attached.parameter_groups(learning_rates(check_options(method, {})))
    history = fit(attached, groups, scans(), schedule, "softmax", reporter or Reporter.silent())
    return attached, history, len(runs)


@pytest.mark.parametrize("network", ["unet-3d-batch", "transformer-3d", "segresnet-3d", "unet2d"])
@pytest.mark.parametrize("method", ["linear_probe", "spatial_adapter"])
def test_training_on_kept_features_gives_the_same_numbers_as_running_the_network(method, network, monkeypatch):
    kept, history, runs = fitted(method, network)
    monkeypatch.setattr(optimise, "MEMORY_SHARE", 0.0)
    whole, expected, every = fitted(method, network)
    assert history.losses == expected.losses
    assert all(torch.equal(tensor, whole.state()[key]) for key, tensor in kept.state().items())
    # Three scans, two patches a step: two steps an epoch.
    assert (runs, every) == (2 * POOL, 2 * EPOCHS)


def test_fewer_epochs_of_patches_need_fewer_runs_of_the_network():
    _, history, runs = fitted("linear_probe", "segresnet-3d", replace(SCHEDULE, pool=3))
    assert runs == 2 * 3
    assert len(history.losses) == EPOCHS


def test_a_plan_by_time_waits_until_features_are_kept():
    """Epochs that compute features take all of the time budget, and still none of the planned ones is given up."""
    schedule = replace(SCHEDULE, pool=6, budget_s=1e-9, max_epochs=EPOCHS)
    _, history, _ = fitted("linear_probe", "segresnet-3d", schedule)
    assert len(history.losses) == 7
    _, other, _ = fitted("bitfit", "segresnet-3d", schedule)
    assert len(other.losses) == 3


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, expected, _ = fitted("linear_probe", "unet-3d-batch")
    reporter = reporter_with(tmp_path / "checkpoint.safetensors", StopAfter(2 * (POOL + 2)))
    attached, _ = probe("linear_probe", "unet-3d-batch")
    groups = attached.parameter_groups({"head": 0.1})
    monkeypatch.setattr(optimise, "CHECKPOINT_EVERY_S", -1.0)
    with pytest.raises(JobCancelled):
        fit(attached, groups, scans(), SCHEDULE, "softmax", reporter)
    again, history, _ = fitted("linear_probe", "unet-3d-batch", reporter=reporter_with(reporter.checkpoint))
    assert history.losses == expected.losses
    assert all(torch.equal(tensor, whole.state()[key]) for key, tensor in again.state().items())


def test_what_does_not_fit_is_computed_again():
    attached, _ = probe("linear_probe", "unet-3d-batch")
    image, target = torch.randn(2, 1, 8, 8, 8), torch.zeros(2, 1, 8, 8, 8)
    known = torch.ones(2, 1, 1, 1, 1)
    one_batch = 4 * (2 * 4 * 8**3 + target.numel() + known.numel())
    cache = FeatureCache(attached.network, "head", int(2.5 * one_batch))
    expected = [cache.run(key, image + key, target, known) for key in range(5)]
    assert cache.used <= cache.limit
    assert [cache.get(key) is not None for key in range(5)] == [True, True, False, False, False]
    assert torch.equal(cache.logits(cache.get(1)), expected[1])
    cache.stop()
    assert cache.get(0) is None
    cache.run(0, image, target, known)
    assert (cache.get(0), cache.used) == (None, 0)


def test_a_network_that_goes_on_after_its_head_is_run_as_a_whole():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1), nn.Tanh())
    attached = attach(network, Anatomy("1", ("0",), (), 1), "linear_probe", {})
    cache = FeatureCache(network, attached.frozen_until, 10**9)
    image = torch.randn(1, 1, 5, 5, 5)
    out = cache.run("a", image, torch.zeros(1), torch.zeros(1))
    assert torch.equal(out, network(image))
    assert cache.get("a") is None
    assert cache.limit == 0


def test_a_network_that_looks_at_its_whole_batch_is_kept_by_batch():
    torch.manual_seed(0)
    network, anatomy = build(NetworkSpec("unet3d"), 2)
    attached = attach(network, anatomy, "linear_probe", {})
    cache = FeatureCache(network, attached.frozen_until, 10**9)
    image = torch.randn(2, 1, 16, 16, 16) + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1, 1)
    both = cache.run("both", image, torch.zeros(1), torch.zeros(1))
    one = cache.run("one", image[:1], torch.zeros(1), torch.zeros(1))
    assert (both[:1] - one).abs().max() > 1e-3
    assert torch.equal(cache.logits(cache.get("both")), both)
    assert torch.equal(cache.logits(cache.get("one")), one)


def test_gradients_from_kept_features_are_those_of_the_whole_network():
    attached, _ = probe("spatial_adapter", "segresnet-3d")
    cache = FeatureCache(attached.network, attached.frozen_until, 10**9)
    image = torch.randn(1, 1, 12, 12, 12)
    found = []
    for run in (lambda: cache.run(0, image, image, image), lambda: cache.logits(cache.get(0))):
        attached.network.zero_grad()
        run().square().mean().backward()
        found.append({key: tensor.grad.clone() for key, tensor in attached.trainable().items()})
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
