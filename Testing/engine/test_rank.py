"""Which scan to label next: formulas by hand, and the order of small made-up scans."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peftseg import jobs
from peftseg.config import RankJob
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter, read_events
from peftseg.infer import predict_logits
from peftseg.models import read_model_dir
from peftseg.networks import build
from peftseg.preprocess import prepare
from peftseg.rank import Facts, _sigmoid_plane, _softmax_plane, look_at, rank_scans, run_rank
from peftseg.segmenter import entry_segmenter
from peftseg.volume import Grid, Volume, read_volume, write_volume
from peftseg.weights import load_base, save_model
from small_scans import make_scan_files, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def scans(tmp_path):
    return [make_scan_files(tmp_path, n).image for n in range(5)]


def job(model, inputs, support=(), **changes):
    return RankJob(None, str(model), tuple(inputs), tuple(support), device="cpu", precision="fp32", **changes)


def unlike(path: str, to: Path) -> str:
    """A scan with a much wider spread of grey values and larger voxels."""
    volume = read_volume(path)
    array = np.where(volume.array > 150, volume.array * 20, volume.array)
    write_volume(to, array.astype(np.float32), Grid(volume.grid.shape, np.diag([2.0, 2.0, 3.0, 1.0])))
    return str(to)


def facts(uncertainty=0.5, grey=0.0, empty=False):
    return Facts(uncertainty, empty, (np.full(5, grey), np.zeros(3), np.zeros(3), np.zeros(2)))


# the order


def test_a_scan_unlike_the_others_comes_first(model, scans, tmp_path):
    odd = unlike(scans[0], tmp_path / "odd.nii.gz")
    result = run_rank(job(model, [scans[1], scans[2], odd], scans[3:]), Reporter.silent())
    ranking = result["ranking"]
    assert [sorted(row["input"] for row in ranking), result["failed"]] == [[0, 1, 2], []]
    assert max(ranking, key=lambda row: row["distance"])["input"] == 2
    assert ranking[0]["input"] == 2
    assert "It differs from the labelled scans" in ranking[0]["reason"]


def test_twice_the_same_question_gives_the_same_answer(model, scans):
    first, second = (run_rank(job(model, scans[:3], scans[3:]), Reporter.silent()) for _ in range(2))
    assert first == second


def test_the_score_is_the_mean_of_the_two_ranks():
    labelled = [facts(grey=0.0)]
    scans = [facts(0.1, grey=5.0), facts(0.2, grey=0.0), facts(0.9, grey=1.0)]
    rows = {row["input"]: row for row in rank_scans(scans, labelled)}
    assert [rows[n]["score"] for n in range(3)] == [0.5, 0.25, 0.75]
    assert rows[1]["distance"] == 0
    assert [row["input"] for row in rank_scans(scans, labelled)] == [2, 0, 1]


def test_with_nothing_labelled_the_uncertainty_alone_decides():
    rows = rank_scans([facts(0.2), facts(0.9, grey=9.0), facts(0.4)], [])
    assert [row["input"] for row in rows] == [1, 2, 0]
    assert {row["distance"] for row in rows} == {0}
    assert "differs" not in "".join(row["reason"] for row in rows)


def test_equal_scans_keep_their_order_and_nothing_is_made_of_them():
    rows = rank_scans([facts()] * 3, [facts()])
    assert [row["input"] for row in rows] == [0, 1, 2]
    assert {row["reason"] for row in rows} == {"Nothing sets it apart from the other scans."}


def test_the_nearest_labelled_scan_counts():
    alike = rank_scans([facts(grey=5.0), facts(grey=2.0)], [facts(grey=0.0), facts(grey=5.0)])
    assert next(row for row in alike if row["input"] == 0)["distance"] == 0


def test_a_difference_of_a_hundredth_is_none():
    (row,) = rank_scans([facts(grey=0.0005)], [facts(grey=0.0)])
    assert row["distance"] < 0.02


# the uncertainty


def test_the_entropy_of_a_softmax_by_hand():
    logits = torch.tensor([0.0, 0.0, 0.0, math.log(3.0)]).view(2, 2, 1)[:, :, 0].T.reshape(2, 1, 2)
    # first voxel: logits 0, 0; second: 0, log 3
    entropy, inside, hits = _softmax_plane(logits)
    assert entropy[0, 0] == pytest.approx(1.0)
    assert entropy[0, 1] == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
    assert inside.tolist() == [[False, True]]
    assert hits.tolist() == [1]


def test_the_entropy_of_yes_or_no_outputs_is_that_of_the_most_doubtful_structure():
    logits = torch.tensor([[[20.0, 20.0]], [[0.0, -20.0]]])
    entropy, inside, hits = _sigmoid_plane(logits)
    assert entropy[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert inside.all()
    assert hits.tolist() == [2, 0]


def test_uncertainty_and_volumes_are_those_of_the_blended_logits(model):
    entry = read_model_dir(model)
    segmenter = replace(entry_segmenter(entry), window=(16, 16, 16))  # several windows, several slabs
    array = np.random.default_rng(0).normal(100, 20, (30, 28, 26)).astype(np.float32)
    volume = Volume(array, Grid(array.shape, np.eye(4)), "x")
    found = look_at(volume, entry.preprocessing, segmenter, CPU, "fp32", Reporter.silent())
    image = prepare(volume, entry.preprocessing).image
    logits = predict_logits(load_base(entry)[0], image, 2, (16, 16, 16), entry.overlap, CPU, "fp32")
    p = logits.softmax(0)
    winner = logits.argmax(0) == 1
    near = torch.nn.functional.max_pool3d(winner[None, None].float(), 5, 1, 2)[0, 0] > 0
    entropy = -(p * p.log()).sum(0) / math.log(2)
    assert found.uncertainty == pytest.approx(float(entropy[near].mean()), rel=1e-4)
    assert found.features[3] == pytest.approx([math.log1p(int(winner.sum()) / 1000)], rel=1e-6)


def with_bias(model, folder, bias):
    entry = read_model_dir(model)
    network, anatomy = load_base(entry)
    head = network.get_submodule(anatomy.head)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(bias))
    save_model(folder, replace(entry, id="flat"), network)
    return folder


def test_a_scan_in_which_nothing_is_found_is_the_most_uncertain(model, scans, tmp_path):
    empty = with_bias(model, tmp_path / "empty", [9.0, 0.0])
    (row,) = run_rank(job(empty, scans[:1]), Reporter.silent())["ranking"]
    assert row["uncertainty"] == 1.0
    assert row["reason"] == "The model finds none of its structures in this scan."
    sure = with_bias(model, tmp_path / "sure", [0.0, 9.0])
    (row,) = run_rank(job(sure, scans[:1]), Reporter.silent())["ranking"]
    assert row["uncertainty"] < 0.01


def test_a_model_without_structures_ranks_by_difference(model, scans, tmp_path):
    entry = read_model_dir(model)
    network, _ = build(entry.network, 1)
    save_model(tmp_path / "bare", replace(entry, structures=(), id="bare"), network)
    odd = unlike(scans[0], tmp_path / "odd.nii.gz")
    reporter = Reporter.silent()
    rows = run_rank(job(tmp_path / "bare", [scans[1], odd], scans[2:]), reporter)["ranking"]
    assert rows[0]["input"] == 1
    assert "finds none" not in rows[0]["reason"]
    assert any("no structures of its own" in e.get("message", "") for e in reporter.events)


# bad input and cancel


def test_a_scan_that_cannot_be_read_is_left_out_and_told(model, scans, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"this is no scan")
    reporter = Reporter.silent()
    result = run_rank(job(model, [str(bad), scans[0]], [str(bad), scans[1]]), reporter)
    assert [row["input"] for row in result["ranking"]] == [1]
    assert [row["input"] for row in result["failed"]] == [0]
    told = [e["message"] for e in reporter.events if e["event"] == "warning"]
    assert [t.split(" is ")[0] for t in told] == ["Scan 1", "Labelled scan 1"]
    with pytest.raises(BadInput):
        run_rank(job(model, [str(bad)]), Reporter.silent())


def test_a_model_or_an_adapter_and_at_least_one_scan_are_asked_for():
    for wrong in (("a", "m", ("x",)), (None, None, ("x",)), (None, "m", ())):
        with pytest.raises(BadInput):
            RankJob(*wrong)


def test_it_can_be_cancelled_at_every_step(model, scans):
    for looks in range(0, 12, 3):
        left = iter(range(10**6))
        reporter = Reporter.silent()
        reporter._request = lambda left=left, looks=looks: "cancel" if next(left) >= looks else ""
        with pytest.raises(JobCancelled):
            run_rank(job(model, scans), reporter)


@pytest.mark.slow
def test_as_a_job_it_is_cancelled_within_two_seconds(model, scans):
    handle = jobs.start(jobs.create_job(job(model, scans * 400)))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        e.get("stage") == "rank" for e in read_events(handle.jobdir / "events.jsonl")[0]
    ):
        time.sleep(0.05)
    began = time.monotonic()
    handle.cancel()
    assert handle.wait(60)["event"] == "cancelled"
    assert time.monotonic() - began < 4  # two seconds until it listens or is killed, and the exit of the process
    handle._process.wait(10)  # its last threads may end a moment after it counts as gone
