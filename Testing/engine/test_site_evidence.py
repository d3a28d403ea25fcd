"""What is measured of results without labels: on networks of which the answers are known, and on a real shape of one."""

import numpy as np
import pytest
import torch
from torch import nn

from peftseg import site_evidence
from peftseg.errors import BadInput, JobCancelled, OutOfMemory
from peftseg.events import Reporter
from peftseg.models import Structure
from peftseg.preprocess import Prepared
from peftseg.site_evidence import chosen_scans, collect_evidence
from peftseg.site_transforms import TRANSFORMS, Transform, move, with_power
from peftseg.volume import Grid
from tiny_networks import make

BALL = (Structure("ball", 1),)
CPU = torch.device("cpu")
SIZE = (20, 22, 18)


class Brightness(nn.Module):
    """Finds what is brighter than a limit, as decidedly as it is steep."""

    def __init__(self, limit=1.0, steep=8.0, activation="softmax"):
        super().__init__()
        self.limit, self.steep, self.activation = limit, steep, activation

    def forward(self, x):
        logit = self.steep * (x - self.limit)
        return logit if self.activation == "sigmoid" else torch.cat([torch.zeros_like(x), logit], 1)


class Blind(nn.Module):
    """Finds a ball at one place, whatever the scan shows."""

    def forward(self, x):
        axes = torch.meshgrid(*(torch.arange(n) for n in x.shape[2:]), indexing="ij")
        inside = sum((a - c) ** 2 for a, c in zip(axes, (7, 14, 6), strict=True)) < 16
        logit = torch.where(inside, 9.0, -9.0).expand_as(x)
        return torch.cat([torch.zeros_like(x), logit], 1)


def a_scan(centre=(10, 11, 9), radius=5.0, spacing=(1.0, 1.0, 1.0), seed=0):
    at = np.indices(SIZE)
    distance = np.sqrt(sum((a - c) ** 2 for a, c in zip(at, centre, strict=True)))
    image = 2 / (1 + np.exp(distance - radius)) + np.random.default_rng(seed).normal(0, 0.05, SIZE)
    grid = Grid(SIZE, np.diag([*spacing, 1.0]))
    return Prepared(torch.from_numpy(image.astype(np.float32))[None], grid, grid)


def collect(network, scans, early=None, activation="softmax", window=SIZE):
    return collect_evidence(network, early, scans, BALL, activation, window, 0.5, CPU)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_good_network_has_stable_results_of_the_right_size_on_the_edges_of_the_scan(activation):
    evidence = collect(
        Brightness(activation=activation), [a_scan(spacing=(2.0, 1.0, 1.0)), a_scan(radius=6.0)], None, activation
    )
    assert evidence.volumes["ball"][0] == pytest.approx(2 * 4 / 3 * np.pi * 5**3 / 1000, rel=0.1)
    assert evidence.volumes["ball"][1] == pytest.approx(4 / 3 * np.pi * 6**3 / 1000, rel=0.1)
    assert min(evidence.transform_agreement["ball"]) > 0.8
    assert min(evidence.edge_contrast["ball"]) > 1.2
    assert evidence.shapes["components"]["ball"] == (1.0, 1.0)
    assert evidence.shapes["elongation"]["ball"][0] == pytest.approx(2.0, rel=0.1)
    assert evidence.early_agreement == {}
    assert evidence.mask(0, "ball").shape == SIZE
    assert evidence.mask(0, "ball").sum() * 2 / 1000 == pytest.approx(evidence.volumes["ball"][0])


def test_a_network_that_does_not_look_has_unstable_results_beside_the_edges():
    good, blind = (collect(network, [a_scan()]) for network in (Brightness(), Blind()))
    assert blind.transform_agreement["ball"][0] < good.transform_agreement["ball"][0] - 0.05
    assert blind.edge_contrast["ball"][0] < 1.15 < good.edge_contrast["ball"][0]
    assert blind.confident_share["ball"] == (1.0,)  # which proves nothing


def test_undecided_voxels_are_counted():
    decided, undecided = (collect(Brightness(steep=s), [a_scan()]) for s in (50.0, 1.0))
    assert decided.confident_share["ball"][0] > 0.85
    assert undecided.confident_share["ball"][0] < 0.1
    assert np.array_equal(decided.results[0], undecided.results[0])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_early_head_is_compared_with_the_final_result(activation):
    final = Brightness(activation=activation)

    def early(limit):
        other = Brightness(limit, activation=activation)
        return lambda x: (final(x), other(x))

    same, larger = (collect(final, [a_scan()], early(limit), activation) for limit in (1.0, 0.5))
    assert same.early_agreement["ball"] == (1.0,)
    assert 0.5 < larger.early_agreement["ball"][0] < 0.95
    assert np.array_equal(same.results[0], larger.results[0])


def test_what_is_not_found_has_no_agreement_and_no_volume():
    evidence = collect(Brightness(limit=99.0), [a_scan()])
    assert evidence.volumes["ball"] == (0.0,)
    for values in (evidence.transform_agreement, evidence.confident_share, evidence.edge_contrast):
        assert np.isnan(values["ball"]).all()


def test_a_turn_is_one_in_millimetres():
    # A ball in space is an ellipsoid of voxels; turned in voxels it would come out sheared, and so disagree.
    at = np.indices(SIZE) - np.array([9.5, 10.5, 8.5])[:, None, None, None]
    distance = np.sqrt((3 * at[0]) ** 2 + at[1] ** 2 + at[2] ** 2)
    grid = Grid(SIZE, np.diag([3.0, 1.0, 1.0, 1.0]))
    image = torch.from_numpy((2 / (1 + np.exp(distance - 6.0))).astype(np.float32))[None]
    evidence = collect(Brightness(), [Prepared(image, grid, grid)])
    assert evidence.transform_agreement["ball"][0] > 0.85


def test_no_transform_swaps_left_and_right():
    scan = a_scan(centre=(4, 11, 9), radius=2.0)
    for transform in TRANSFORMS:
        moved = move(scan.image, scan.grid.spacing, transform, "bilinear")[0][0].numpy()
        weights = (moved.clip(0.5) - 0.5).sum((1, 2))
        assert abs(np.average(np.arange(SIZE[0]), weights=weights) - 4) < 2.5
        assert abs(transform.degrees) <= 10


def test_a_move_goes_where_it_says_and_knows_what_it_has_not_seen():
    block = torch.rand((2, 40, 5, 4))
    moved, seen = move(block, (1.0, 1.0, 1.0), Transform(shift=(2.0, -1.0, 0.0)), "nearest")
    assert torch.equal(moved[:, 2:, :-1], block[:, :-2, 1:])
    assert torch.equal(seen.all(-1).all(-1)[:2], torch.tensor([False, False]))
    assert seen[2:, :-1].all()
    assert not seen[:, -1].any()


def test_bent_grey_values_keep_their_order_black_and_white():
    image = torch.linspace(-3, 5, 2000).reshape(1, 20, 10, 10)
    bent = with_power(image, 0.8).flatten()
    assert (bent.diff() > 0).all()
    assert torch.allclose(bent[[0, -1]], image.flatten()[[0, -1]], atol=0.05)
    assert (bent - image.flatten()).max() > 0.3
    assert torch.equal(with_power(torch.ones(1, 4, 4, 4), 0.8), torch.ones(1, 4, 4, 4))


def test_windows_smaller_than_the_scan_give_the_same_result():
    whole, parts = (collect(Brightness(), [a_scan()], window=w) for w in (SIZE, (12, 12, 12)))
    assert np.array_equal(whole.results[0], parts.results[0])


@pytest.mark.parametrize("name", ["unet-3d-batch", "unet-3d-group"])
def test_looking_at_a_network_changes_nothing_of_it(name):
    case = make(name)
    case.network.train()
    before = {key: value.clone() for key, value in case.network.state_dict().items()}
    structures = (Structure("one", 1), Structure("two", 2))
    scan = a_scan()
    kept = scan.image.clone()
    evidence = collect_evidence(case.network, None, [scan], structures, "softmax", (16, 16, 16), 0.5, CPU)
    assert case.network.training
    assert all(torch.equal(value, before[key]) for key, value in case.network.state_dict().items())
    assert torch.equal(scan.image, kept)
    again = collect_evidence(case.network, None, [scan], structures, "softmax", (16, 16, 16), 0.5, CPU)
    assert again.volumes == evidence.volumes
    assert evidence.structures == ("one", "two")


def test_no_scan_is_refused():
    with pytest.raises(BadInput):
        collect(Brightness(), [])


def test_a_cancel_is_heard():
    reporter = Reporter(lambda kind, fields: None, request=lambda: "cancel")
    with pytest.raises(JobCancelled):
        collect_evidence(Brightness(), None, [a_scan()], BALL, "softmax", SIZE, 0.5, CPU, reporter=reporter)


def test_a_scan_without_room_on_the_device_is_done_on_the_processor(monkeypatch):
    expected, tried, original = collect(Brightness(), [a_scan(), a_scan(radius=6.0)]), [], site_evidence.ready

    def ready(network, device, precision):
        tried.append(device.type)
        if device.type == "cuda" and tried.count("cuda") == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(network, CPU, precision)

    monkeypatch.setattr(site_evidence, "ready", ready)
    said = []
    reporter = Reporter(lambda kind, fields: said.append(fields["message"]))
    scans, gpu = [a_scan(), a_scan(radius=6.0)], torch.device("cuda", 0)
    monkeypatch.setattr(torch.Tensor, "to", stays_here(torch.Tensor.to))
    found = collect_evidence(Brightness(), None, scans, BALL, "softmax", SIZE, 0.5, gpu, reporter=reporter)
    assert tried == ["cuda", "cuda", "cpu"]
    assert found.volumes == expected.volumes
    assert said == [
        "Checking the adaptation with scan 2 of 2: the memory of cuda:0 does not suffice; going on with the processor."
    ]


def stays_here(move):
    """A move to a device that only this machine's processor stands in for."""
    return lambda tensor, where, *rest: tensor if isinstance(where, torch.device) else move(tensor, where, *rest)


def test_a_scan_that_fits_nowhere_is_told_by_its_number(monkeypatch):
    class Full(nn.Module):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: not enough memory")

    with pytest.raises(OutOfMemory, match="with scan 1 of 1 does not fit into memory"):
        collect(Full(), [a_scan()])


def test_few_scans_are_all_looked_at_and_of_many_some_from_end_to_end():
    assert chosen_scans(3, 8) == [0, 1, 2]
    assert chosen_scans(1, 8) == [0]
    assert chosen_scans(100, 3) == [0, 50, 99] or chosen_scans(100, 3) == [0, 49, 99]
