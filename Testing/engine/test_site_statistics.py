"""What the scans of a site are like, how far a scan is from it, and scans that do not belong together."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from made_up_sites import (
    BLURRED,
    COARSE,
    FLAT,
    NOISY,
    PLAIN,
    PREPROCESSING,
    SIZE,
    Scanner,
    made_up_scan,
    tiny_base,
)
from peftseg.adapter_file import _refuse_private
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.models import Intensity, NetworkSpec
from peftseg.networks import build
from peftseg.preprocess import prepare
from peftseg.site_checks import find_split, mixed_sites, modality_warnings
from peftseg.site_layers import layer_moments, running_moments, statistics_of, watched_layers
from peftseg.site_statistics import (
    GREY,
    LAYERS,
    TEXTURE,
    USUAL_OWN,
    VOXELS,
    ScanStatistics,
    SiteStatistics,
    distance_to,
    layer_distance,
    read_site,
    site_record,
    summarise,
    with_common_spread,
)
from peftseg.volume import Grid, Volume

CPU = torch.device("cpu")
SITES = {"noisy": NOISY, "flat": FLAT, "blurred": BLURRED, "coarse": COARSE}


@pytest.fixture(scope="module")
def base():
    """A tiny 2D U-Net with batch normalisation."""
    entry, network = tiny_base(batch_norm=True)
    return network, build(entry.network, 2)[1]


@pytest.fixture(scope="module")
def look(base):
    """Statistics of a patient at a scanner, measured once."""
    known = {}

    def measure(scanner: Scanner, patient: int) -> ScanStatistics:
        key = (scanner, patient)
        if key not in known:
            known[key] = measured(made_up_scan(scanner, patient), base)
        return known[key]

    return measure


def measured(volume: Volume, base, recipe=PREPROCESSING) -> ScanStatistics:
    return statistics_of(volume, recipe, *base, (SIZE, SIZE, 8), CPU, Reporter.silent())


def test_the_numbers_need_no_torch():
    script = "import sys\nfor name in ('torch', 'monai', 'safetensors'): sys.modules[name] = None\n"
    script += "import peftseg.site_statistics, peftseg.site_checks"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# distances


def test_scans_of_the_site_itself_are_about_as_far_as_its_scans_are_from_each_other(look):
    own = []
    for seed in range(5):
        site = summarise([look(PLAIN, 8 * seed + n) for n in range(5)])
        own += [distance_to(site, look(PLAIN, 8 * seed + n)).total for n in range(5, 8)]
    assert 0.7 < np.mean(own) < 1.4
    assert max(own) < 2.5


@pytest.mark.parametrize(
    ("scanner", "groups"), [("noisy", {TEXTURE}), ("blurred", {TEXTURE, GREY}), ("coarse", {VOXELS}), ("flat", {GREY})]
)
def test_a_scan_of_another_scanner_is_far_and_the_difference_is_named(look, scanner, groups):
    site = summarise([look(PLAIN, n) for n in range(6)])
    found = [distance_to(site, look(SITES[scanner], n)) for n in range(100, 104)]
    assert min(d.total for d in found) > 2.5
    assert {d.largest for d in found} <= groups | {LAYERS}


def test_the_layers_alone_tell_another_scanner_from_the_sites_own(look):
    site = summarise([look(PLAIN, n) for n in range(6)])
    own = max(distance_to(site, look(PLAIN, n)).parts[LAYERS] for n in range(6, 10))
    assert own < min(distance_to(site, look(FLAT, n)).parts[LAYERS] for n in range(6, 10))


def test_the_divergence_of_normal_distributions_by_hand():
    many = np.ones(1000)
    assert layer_distance((0 * many, many), (0 * many, many)) == 0
    # (1 + 1 + 1 + 1) / 2 - 1 for a shift by one standard deviation, (4 + 1/4) / 2 - 1 for fourfold variance
    assert layer_distance((0 * many, many), (many, many)) == pytest.approx(1.0, rel=0.02)
    assert layer_distance((0 * many, many), (0 * many, 4 * many)) == pytest.approx(np.sqrt(1.125), rel=0.03)
    mixed = np.where(np.arange(1000) < 250, 1.0, 0.0)
    assert layer_distance((0 * many, many), (mixed, many)) == pytest.approx(0.5, rel=0.02)


def test_channels_that_are_never_active_make_no_distance():
    alive, dead = np.array([1.0, 1.0, 1e-9]), np.array([1.0, 1.0, 1e-14])
    assert layer_distance((np.zeros(3), alive), (np.zeros(3), dead)) < 1e-3


def test_sites_are_compared_by_the_spread_of_all_of_them_together(look):
    wide, narrow = (summarise([look(scanner, n) for n in range(4)]) for scanner in (PLAIN, COARSE))
    wide = replace(wide, spreads={g: 3 * s for g, s in wide.spreads.items()}, scans=12)
    both = with_common_spread([wide, narrow])
    for group in wide.spreads:
        expected = np.sqrt(0.75 * wide.spreads[group] ** 2 + 0.25 * narrow.spreads[group] ** 2)
        assert all(site.spreads[group] == pytest.approx(expected) for site in both)
    assert both[0].layer_spreads == both[1].layer_spreads
    assert both[0].own == both[1].own
    assert all((site.means[GREY] == own.means[GREY]).all() for site, own in zip(both, (wide, narrow), strict=True))
    running = SiteStatistics(0, {}, {}, wide.layers)
    assert with_common_spread([narrow, running])[1].layer_spreads == narrow.layer_spreads
    assert np.isfinite(distance_to(with_common_spread([running])[0], look(PLAIN, 5)).total)


def test_one_scan_makes_a_site_of_usual_spread(look):
    site = summarise([look(PLAIN, 0)])
    assert (site.scans, site.own) == (1, USUAL_OWN)
    assert distance_to(site, look(PLAIN, 1)).total < 3 < distance_to(site, look(NOISY, 1)).total
    with pytest.raises(BadInput):
        summarise([])


def test_equal_scans_make_a_site_whose_spread_is_not_zero(look):
    site = summarise([look(PLAIN, 0)] * 8)
    assert distance_to(site, look(PLAIN, 0)).total < 1e-9
    assert np.isfinite(distance_to(site, look(NOISY, 0)).total)


def test_a_scan_counts_the_same_however_its_axes_are_stored(base):
    volume = made_up_scan(COARSE, 3)
    turned = np.diag([-1.3, 1.3, 1.3, 1.0])[:, [2, 0, 1, 3]]
    stored = Volume(np.ascontiguousarray(volume.array[::-1].transpose(2, 0, 1)), Grid(volume.array.shape, turned), "x")
    one, other = measured(volume, base), measured(stored, base)
    for group in one.features:
        assert other.features[group] == pytest.approx(one.features[group], abs=1e-4)
    for (mean, variance), (mean_2, variance_2) in zip(one.layers, other.layers, strict=True):
        assert mean_2 == pytest.approx(mean, abs=1e-3)
        assert variance_2 == pytest.approx(variance, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 40), (2, 2, 2), (64, 64, 1)])
def test_thin_and_constant_scans_can_be_measured(base, shape):
    for array in (np.zeros(shape), np.random.default_rng(0).uniform(1, 100, shape)):
        found = measured(Volume(array.astype(np.float32), Grid(shape, np.eye(4)), "x"), base)
        assert all(np.isfinite(vector).all() for vector in found.features.values())
        assert all(np.isfinite(m).all() and np.isfinite(v).all() for m, v in found.layers)


# layers


def test_the_moments_of_a_layer_are_those_of_everything_that_goes_into_it(base):
    network, anatomy = base
    prepared = prepare(made_up_scan(PLAIN, 0), PREPROCESSING)
    seen = []
    layer = watched_layers(network, anatomy)[2]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(prepared.image[None])
    handle.remove()
    whole = seen[0].transpose(0, 1).flatten(1).double()
    mean, variance = layer_moments(network, anatomy, prepared, (SIZE, SIZE, 4), CPU, Reporter.silent())[2]
    assert mean == pytest.approx(whole.mean(1).numpy(), rel=1e-4, abs=1e-6)
    assert variance == pytest.approx(whole.var(1, unbiased=False).numpy(), rel=1e-4)


def test_looking_leaves_the_network_as_it_was_and_does_not_run_all_of_it(base):
    network, anatomy = base
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    hooks = sum(len(m._forward_pre_hooks) for m in network.modules())
    handle = network.get_submodule(anatomy.head).register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    network.train()
    layer_moments(network, anatomy, prepare(made_up_scan(PLAIN, 0), PREPROCESSING), (SIZE,) * 3, CPU, Reporter.silent())
    handle.remove()
    assert all(module.training for module in network.modules())
    network.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert sum(len(m._forward_pre_hooks) for m in network.modules()) == hooks


def test_networks_without_running_statistics_have_no_layers_to_watch():
    for spec in (tiny_base(batch_norm=False)[0].network, NetworkSpec("unet3d", {})):
        network, anatomy = build(spec, 2)
        assert watched_layers(network, anatomy) == []
        assert running_moments(network, anatomy) == ()
        assert (
            layer_moments(network, anatomy, prepare(made_up_scan(PLAIN, 0), PREPROCESSING), (16,) * 3, CPU, None) == ()
        )


def test_the_published_u_net_is_watched_in_its_first_layers_only():
    network, anatomy = build(NetworkSpec("unet2d", {}), 1)
    assert [layer.num_features for layer in watched_layers(network, anatomy)] == [16] * 7


def test_looking_can_be_cancelled(base):
    reporter = Reporter.silent()
    reporter._request = lambda: "cancel"
    with pytest.raises(JobCancelled):
        statistics_of(made_up_scan(PLAIN, 0), PREPROCESSING, *base, (SIZE, SIZE, 8), CPU, reporter)


# the record


def test_the_record_is_a_few_hundred_numbers_and_comes_back_from_json(look):
    scans = [look(PLAIN, n) for n in range(5)]
    record = site_record(scans)
    text = json.dumps(record)
    assert text.count(",") < 500
    assert "doe" not in text
    _refuse_private(record)
    site, back = summarise(scans), read_site(json.loads(text))
    for scan in (look(PLAIN, 9), look(NOISY, 9)):
        assert distance_to(back, scan).total == pytest.approx(distance_to(site, scan).total, rel=0.01)
    real = {"unet2d": {}, "unet3d_bn": {}}
    for name, arguments in real.items():
        network, anatomy = build(NetworkSpec(name, arguments), 4)
        assert 60 < sum(layer.num_features for layer in watched_layers(network, anatomy)) <= 128


BREAKS = {
    "no record": lambda r: None,
    "a text": lambda r: "site",
    "another format": lambda r: {**r, "format": 2},
    "a group is missing": lambda r: {**r, "features": {GREY: r["features"][GREY]}},
    "a number is missing": lambda r: {**r, "features": {**r["features"], GREY: [[1.0], [1.0]]}},
    "no numbers": lambda r: {**r, "layers": [[["a"], ["b"]]], "layer_spreads": [1.0]},
    "null": lambda r: {**r, "layer_spreads": [None] * len(r["layer_spreads"])},
    "a spread of 0": lambda r: {**r, "layer_spreads": [0.0] * len(r["layer_spreads"])},
    "a negative variance": lambda r: {**r, "layers": [[m, [-1.0] * len(m)] for m, _ in r["layers"]]},
    "a spread is missing": lambda r: {**r, "layer_spreads": r["layer_spreads"][1:]},
    "no scans": lambda r: {**r, "scans": 0},
    "own is infinite": lambda r: {**r, "own": float("inf")},
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_record_that_is_not_whole_is_refused(look, what):
    record = site_record([look(PLAIN, n) for n in range(3)])
    with pytest.raises(BadInput):
        read_site(BREAKS[what](record))


# several sites in one folder


def test_one_site_is_not_taken_for_two(look):
    rng = np.random.default_rng(0)
    for scanner in (PLAIN, NOISY):
        for count in (2, 3, 4, 5, 6, 8, 10):
            for _ in range(6):
                scans = [look(scanner, n) for n in rng.choice(20, count, replace=False)]
                assert mixed_sites(scans) == []
    assert mixed_sites([]) == mixed_sites([look(PLAIN, 0)]) == mixed_sites([look(PLAIN, 0)] * 5) == []


@pytest.mark.parametrize("scanner", SITES)
def test_two_sites_are_found_and_the_scans_of_the_smaller_part_are_named_by_number(look, scanner):
    scans = [look(PLAIN, n) for n in range(6)]
    scans[1:1] = [look(SITES[scanner], n) for n in (20, 21)]
    (text,) = mixed_sites(scans)
    assert text.startswith("Scans 2 and 3 of 8 differ from the others in ")
    assert "doe" not in text


def test_a_single_scan_of_another_scanner_is_found(look):
    (text,) = mixed_sites([*(look(PLAIN, n) for n in range(5)), look(NOISY, 9)])
    assert text.startswith("Scan 6 of 6 differs from the others in noise and sharpness")


def test_scans_of_bases_without_batch_normalisation_are_told_apart_too(look):
    bare = [replace(look(scanner, n), layers=()) for n, scanner in enumerate([PLAIN] * 4 + [NOISY] * 4)]
    assert len(mixed_sites(bare)) == 1


def test_scans_that_lie_spread_out_in_a_row_are_no_two_sites():
    places = np.arange(10.0) * 5
    assert find_split(np.abs(places[:, None] - places[None])) is None
    places[5:] += 100
    split = find_split(np.abs(places[:, None] - places[None]))
    assert len(split.smaller) == 5


# another kind of scan


def test_ct_for_a_model_of_mr_is_warned_about_by_number():
    entry = tiny_base(batch_norm=True)[0]
    mr, ct = (ScanStatistics({}, modality=kind) for kind in ("MR", "CT"))
    assert modality_warnings(entry, [mr, ScanStatistics({}), mr]) == []
    (text,) = modality_warnings(entry, [mr, ct, mr, ct])
    assert text.startswith(
        "Scans 2 and 4 of 4 look like CT by the grey values, but the model 'tiny-bn' is made for MR."
    )
    assert modality_warnings(replace(entry, modality="CT, MR"), [mr, ct]) == []
    assert modality_warnings(replace(entry, modality=""), [mr, ct]) == []


def test_what_a_scan_looks_like_is_measured_from_its_grey_values(base):
    mr = made_up_scan(PLAIN, 0)
    ct = replace(mr, array=np.where(mr.array < 20, -1000, mr.array - 60).astype(np.float32))
    assert [measured(mr, base).modality, measured(ct, base).modality] == ["MR", "CT"]


def test_a_window_of_hounsfield_units_does_not_suit_mr(base):
    entry = tiny_base(batch_norm=True)[0]
    window = replace(PREPROCESSING, intensity=Intensity("window", -175, 250))
    found = measured(made_up_scan(PLAIN, 0), base, window)
    assert not found.fits
    (text,) = modality_warnings(replace(entry, modality="CT"), [found])
    assert "looks like MR" in text
    (text,) = modality_warnings(replace(entry, modality=""), [found])
    assert text.startswith("Scan 1 of 1 has grey values that the model")
