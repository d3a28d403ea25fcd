"""A site's grey values brought to those that the base learnt from: the curve, what follows it, and when it is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from peftseg.adapter_file import load_adapter
from peftseg.config import SiteAdaptJob
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.grey_match import BEYOND, STEEPEST, site_curve
from peftseg.metrics import dice
from peftseg.models import Intensity, Preprocessing, preprocessing_from_dict, resolve, to_dict
from peftseg.networks import build
from peftseg.preprocess import follow_curve, prepare
from peftseg.scan_statistics import GREY, ScanStatistics, grey_quantiles, measure_scan
from peftseg.segmenter import adapter_segmenter, model_segmenter, segment_volume
from peftseg.shifts import shift
from peftseg.site_adapt import run_site_adapt
from peftseg.site_matching import match_grey_values
from peftseg.site_options import check_site_options
from peftseg.site_statistics import SiteStatistics, site_record
from peftseg.site_training import SiteSetting
from peftseg.volume import read_labels, read_volume, write_volume
from site_cases import make_volume, write_site_model

CURVE = ((-3.0, -2.0), (-1.0, -1.0), (0.0, 2.0), (2.0, 3.0))
RECIPE = Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore"))
CPU = torch.device("cpu")


def measured(number: int, gamma: float = 1.0) -> ScanStatistics:
    volume = make_volume(number)
    low, high = volume.array.min(), volume.array.max()
    bent = (low + (high - low) * ((volume.array - low) / (high - low)) ** gamma).astype(np.float32)
    scan = replace(volume, array=bent)
    return measure_scan(scan, prepare(scan, RECIPE), RECIPE, ((np.zeros(4), np.ones(4)),))


def source_of(scans: list[ScanStatistics]) -> SiteStatistics:
    values = np.array([scan.features[GREY] for scan in scans])
    return SiteStatistics(len(scans), {GREY: values.mean(0)}, {GREY: np.full(values.shape[1], 0.01)})


# the curve


def test_the_curve_takes_the_sites_quantiles_to_the_sources():
    source, site = source_of([measured(n) for n in range(4)]), [measured(n, gamma=3.0) for n in range(4, 8)]
    curve = site_curve(site, source)
    found = np.mean([scan.features[GREY] for scan in site], axis=0)
    assert np.abs(found - source.means[GREY]).max() > 0.1
    image = torch.tensor(found, dtype=torch.float64)[None]
    follow_curve(image, curve)
    np.testing.assert_allclose(image[0].numpy(), source.means[GREY], atol=1e-4)


def test_beyond_the_outer_quantiles_it_goes_on_and_not_too_steeply():
    source = SiteStatistics(1, {GREY: np.array([0.0, 1, 2, 3, 4, 5, 6])}, {GREY: np.full(7, 0.1)})
    site = [ScanStatistics({GREY: np.array([0.0, 0.05, 2, 3, 4, 5.5, 6])})]
    (x0, y0), (x1, y1), *_, (x2, y2), (x3, y3) = site_curve(site, source)
    assert (y1 - y0) / (x1 - x0) == pytest.approx(STEEPEST)  # 20 between the first two quantiles
    assert (y3 - y2) / (x3 - x2) == pytest.approx(2)  # as between the last two
    assert x1 - x0 == pytest.approx(6 * BEYOND)


def test_quantiles_of_one_value_are_one_knot():
    source = SiteStatistics(1, {GREY: np.array([0.0, 1, 2, 3, 4, 5, 6])}, {GREY: np.full(7, 0.1)})
    curve = site_curve([ScanStatistics({GREY: np.array([0.0, 0, 0, 3, 4, 6, 6])})], source)
    assert [x for x, _ in curve[1:-1]] == [0, 3, 4, 6]
    Intensity("zscore", curve=curve)  # rises


def test_usual_unknown_and_constant_grey_values_have_no_curve():
    scans = [measured(n) for n in range(4)]
    source = source_of(scans)
    assert site_curve(scans, source) is None
    assert site_curve([measured(5, gamma=3.0)], replace(source, means={})) is None
    assert site_curve([ScanStatistics({GREY: np.full(7, 9.0)})], source) is None


# what follows it


def test_an_image_follows_the_curve_also_beyond_its_ends():
    image = torch.linspace(-6, 6, 49).reshape(7, 7, 1)
    values = image.numpy().copy()
    follow_curve(image, CURVE)
    x, y = np.array(CURVE).T
    expected = np.interp(values, x, y)
    expected = np.where(values < -3, -2 + (values + 3) * 0.5, np.where(values > 2, 3 + (values - 2) * 0.5, expected))
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
    untouched = image.clone()
    follow_curve(image, ())
    assert torch.equal(image, untouched)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Preprocessing("RAS", (2.0, 1.0, 1.0), Intensity("percentile", 1.0, 99.0), square=True),
        Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore_all"), scheme="nnunet"),
    ],
    ids=["zscore", "square", "nnunet"],
)
def test_preparing_with_a_curve_is_preparing_and_following_it(recipe):
    volume = make_volume(1)
    plain = prepare(volume, recipe).image.clone()
    follow_curve(plain[0], CURVE)
    curved = replace(recipe, intensity=replace(recipe.intensity, curve=CURVE))
    torch.testing.assert_close(prepare(volume, curved).image, plain)


def test_a_curve_comes_back_from_json_and_none_is_written_as_before():
    curved = replace(RECIPE, intensity=Intensity("zscore", curve=CURVE))
    assert preprocessing_from_dict(json.loads(json.dumps(to_dict(curved)))) == curved
    old = to_dict(RECIPE)
    del old["intensity"]["curve"]  # of files from before
    assert preprocessing_from_dict(old) == RECIPE


@pytest.mark.parametrize(
    "curve",
    [((0, 0),), ((0, 0), (0, 1)), ((0, 1), (1, 0)), ((0, 0), (1, float("nan"))), ((0, 0), (1,)), (("a", 0), (1, 1))],
)
def test_a_curve_that_does_not_rise_is_refused(curve):
    with pytest.raises(BadInput, match="two or more pairs of numbers that rise"):
        Intensity("zscore", curve=curve)


# when it is kept


def setting_for(entry, grey_values: str) -> SiteSetting:
    return SiteSetting(entry, check_site_options("matched", {"grey_values": grey_values}), 1, CPU)


def matched(entry, grey_values: str, gamma: float = 3.0):
    """The match of four scans with a tiny network; and its reporter."""
    network, anatomy = build(entry.network, 2)
    statistics = [measured(n, gamma=gamma) for n in range(4)]
    scans = [prepare(make_volume(n), entry.preprocessing) for n in range(4)]
    reporter = Reporter.silent()
    return match_grey_values(setting_for(entry, grey_values), network.eval(), anatomy, scans, statistics, reporter)


@pytest.fixture
def told(tmp_path):
    """A tiny model of which the record says what its scans were like."""
    entry = write_site_model(tmp_path / "m", "unet3d_bn")
    return replace(entry, record={"site": site_record([measured(n) for n in range(4)])})


def test_what_is_asked_for_is_done_and_said(told):
    found = matched(told, "matched")
    assert found.preprocessing.intensity.curve == found.curve != ()
    assert found.words == "Grey values are brought to those that the model learnt from."
    before = prepare(make_volume(0), told.preprocessing).image
    follow_curve(before[0], found.curve)
    torch.testing.assert_close(found.scans[0].image, before)
    np.testing.assert_allclose(found.statistics[0].features[GREY], grey_quantiles(found.scans[0]))
    asis = matched(told, "as_they_are")
    assert (asis.curve, asis.words, asis.preprocessing) == ((), "", told.preprocessing)


def test_usual_grey_values_a_silent_record_and_ct_stay_as_they_are(told):
    usual = matched(told, "auto", gamma=1.0)
    assert usual.curve == ()
    assert "as in the scans that the model learnt from" in usual.words
    for entry in (replace(told, record={}), replace(told, modality="CT")):
        found = matched(entry, "auto")
        assert (found.curve, found.preprocessing) == ((), entry.preprocessing)
        with pytest.raises(BadInput, match="grey_values=auto"):
            matched(entry, "matched")


@pytest.mark.realdata
@pytest.mark.slow
def test_a_scanner_with_other_grey_values_is_matched_and_a_smaller_field_of_view_is_not(shared_data, tmp_path):
    site, test = (shared_data / "subcortical_ixi" / part for part in ("support", "test"))
    adapted = {}
    for family in ("contrast", "field_of_view"):
        (tmp_path / family).mkdir()
        for path in sorted((site / "images").glob("*.nii.gz"))[:4]:
            volume = shift(read_volume(path), family, 0.6, 2)
            write_volume(tmp_path / family / path.name, volume.array, volume.grid)
        job = SiteAdaptJob(
            model="brain-t1-bn",
            unlabelled=(str(tmp_path / family),),
            out=str(tmp_path / f"{family}.safetensors"),
            options={"train": "none", "adabn": "before"},
            device="cpu",
            keep_refused=True,
        )
        adapted[family] = run_site_adapt(job, Reporter.silent())
    assert "get worse when they are matched" in adapted["field_of_view"]["grey_values"]
    assert load_adapter(adapted["field_of_view"]["adapter"])[0].preprocessing.intensity.curve == ()
    recipe = load_adapter(adapted["contrast"]["adapter"])[0]
    assert recipe.preprocessing.intensity.curve
    assert recipe.record["recipe_changes"] == [adapted["contrast"]["grey_values"]]
    path = sorted((test / "images").glob("*.nii.gz"))[0]
    scan, truth = shift(read_volume(path), "contrast", 0.6, 2), read_labels(test / "labels" / path.name).layers[0]
    thalamus = next(s for s in resolve("brain-t1-bn").structures if s.name == "thalamus").value
    found = [
        dice(segment_volume(segmenter, scan, CPU) == thalamus, truth == 2)
        for segmenter in (model_segmenter("brain-t1-bn"), adapter_segmenter(adapted["contrast"]["adapter"]))
    ]
    assert found[1] > found[0] + 0.1
