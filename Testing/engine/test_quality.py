"""Doubt without ground truth: snapshots in the adapter, agreement under small changes, size and shape, words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peftseg import manifest
from peftseg.adapter_file import load_adapter, load_snapshots, save_adapter
from peftseg.apply import run_apply
from peftseg.config import AdaptJob, ApplyJob
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.flags import check_result
from peftseg.grid import Grid
from peftseg.models import Structure
from peftseg.quality import CHANGES, NO_SNAPSHOTS, make_checker, score
from peftseg.quality_runs import Seen, dices
from peftseg.quality_score import (
    PARTS,
    WEIGHTS,
    badness,
    doubt,
    doubt_of,
    doubt_of_missing,
    study_doubt,
    words,
    z_score,
)
from peftseg.segmenter import adapter_segmenter, model_segmenter, segment_volume
from peftseg.snapshots import MOST_KEPT, Recorder, nearest
from peftseg.train import run_adapt
from peftseg.volume import read_volume
from small_scans import balls_job, make_scan_files, write_tiny_model

CPU = torch.device("cpu")
NUMBERS = {"mean": 10.0, "sd": 1.0, "min": 9.0, "max": 11.0}
FACTS = {"scans": 5, "absent": 0, "volume_ml": NUMBERS, "elongation": {"mean": 2.0, "sd": 0.1, "min": 1.9, "max": 2.1}}
FACTS |= {"components": {"mean": 2.0, "sd": 0.0, "min": 2.0, "max": 2.0}, "scattered": dict.fromkeys(NUMBERS, 0.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quality")


@pytest.fixture(scope="module")
def job(folder):
    return replace(balls_job(write_tiny_model(folder / "tiny"), folder, epochs=30), snapshots=True)


@pytest.fixture(scope="module")
def adapter(job):
    return run_adapt(job, Reporter.silent())["adapter"]


@pytest.fixture(scope="module")
def short(job, folder):
    """An adapter of a short training."""
    return run_adapt(replace(job, out=str(folder / "short.safetensors"), epochs=8), Reporter.silent())["adapter"]


@pytest.fixture
def home(monkeypatch, folder, job):
    """The model is known again in this test's own library."""
    from peftseg.models import read_model_dir, remember

    remember(read_model_dir(job.model).directory)


@pytest.fixture(scope="module")
def study(folder):
    return read_volume(make_scan_files(folder, 9).image)


def judged(segmenter, mode, volume, adapter=None, watched=True):
    checker = make_checker(segmenter, mode, adapter)
    seen = checker.watch() if watched else None
    result = segment_volume(segmenter, volume, CPU, precision="fp32", observer=seen)
    return score(checker, volume, result, CPU, seen=seen, precision="fp32")


@pytest.fixture(scope="module")
def without(job, folder):
    """The same training, as it is by default."""
    asked = {**vars(job), "out": str(folder / "b.safetensors"), "epochs": 8}
    del asked["snapshots"]
    return run_adapt(AdaptJob(**asked), Reporter.silent())["adapter"]


def test_snapshots_are_kept_when_asked_for_and_change_no_bit_of_the_adapter(short, without):
    first, second = load_adapter(short)[1], load_adapter(without)[1]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert load_snapshots(without) == ()
    states = load_snapshots(short)
    assert len(states) == 2
    for state in states:
        assert state.keys() == first.keys()
        assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float16}
    far = [sum(float((state[key].float() - first[key]).square().sum()) for key in first) for state in states]
    assert far[0] > far[1] > 0  # the older, the farther from the end


def test_a_damaged_snapshot_is_refused_with_the_whole_file(short, folder):
    content = bytearray(Path(short).read_bytes())
    at = content.index(b'"snapshot.1/')
    start, stop = json.loads(content[content.index(b"{", at) : content.index(b"}", at) + 1])["data_offsets"]
    content[8 + int.from_bytes(content[:8], "little") + (start + stop) // 2] ^= 1
    (folder / "damaged.safetensors").write_bytes(content)
    for read in (load_adapter, load_snapshots):
        with pytest.raises(BadInput, match="damaged"):
            read(folder / "damaged.safetensors")


def test_a_killed_training_goes_on_to_the_same_snapshots(job, short, folder):
    class Killed(Reporter):
        def progress(self, stage, step, total, eta_s=None, **facts):
            if stage == "train" and step == 6:
                raise JobCancelled("Cancelled.")

    job = replace(job, out=str(folder / "c.safetensors"), epochs=8)
    killed, resumed = Killed.silent(), Reporter.silent()
    killed.checkpoint = resumed.checkpoint = folder / "checkpoint.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftseg.optimise.CHECKPOINT_EVERY_S", 0.0)
        with pytest.raises(JobCancelled):
            run_adapt(job, killed)
    run_adapt(job, resumed)
    for before, after in zip(load_snapshots(short), load_snapshots(job.out), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


class Tiny:
    """The part of an `Attached` that a recorder reads."""

    network, frozen_until = torch.nn.Linear(1, 1), ""

    def __init__(self):
        self.value = torch.zeros(1)

    def tensors(self):
        return {"w": self.value}

    def memory(self):
        return {"own": torch.ones(1)}

    def load_memory(self, memory):
        assert list(memory) == ["own"]

    def after_step(self, lr, progress):
        self.value = self.value + 1


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 64, 101, 1000])
def test_snapshots_lie_near_their_shares_wherever_training_stops(steps):
    recorder = Recorder(Tiny())
    for _ in range(steps):
        recorder.after_step(0.1, 0.0)
    assert len(recorder.kept) <= MOST_KEPT
    found = [int(state["w"]) for state in recorder.chosen(1.0)]
    assert found == sorted(set(found))
    assert all(step < steps for step in found)
    if steps > 6:
        assert len(found) == 2
        assert found[0] == pytest.approx(0.6 * steps, abs=0.2 * steps)
        assert found[1] == pytest.approx(0.8 * steps, abs=0.2 * steps)
    copy = Recorder(Tiny())
    copy.load_memory(recorder.memory())
    assert (copy.steps, copy.stride, copy.kept.keys()) == (recorder.steps, recorder.stride, recorder.kept.keys())


def test_a_checkpoint_of_before_snapshots_still_goes_on():
    recorder = Recorder(Tiny())
    recorder.load_memory({"own": torch.ones(1)})
    assert recorder.memory().keys() == {"own", "snapshot.steps"}
    assert nearest([], 10) == []


def test_a_full_tuning_keeps_no_snapshots(job, folder, monkeypatch):
    monkeypatch.setattr("peftseg.snapshots.MOST_VALUES", 100)
    reporter = Reporter.silent()
    path = run_adapt(replace(job, out=str(folder / "d.safetensors"), epochs=1), reporter)["adapter"]
    assert load_snapshots(path) == ()
    assert any("keeps no snapshots" in e.get("message", "") for e in reporter.events)


def test_no_change_of_the_scan_swaps_left_and_right():
    """A structure that exists on the left only stays there: its mirror image would not agree."""
    from peftseg.site_transforms import move

    left = torch.zeros(1, 24, 20, 16)
    left[0, 3:8, 6:12, 5:11] = 1
    for change in CHANGES:
        moved, _ = move(left, (1.0, 1.0, 2.0), change, "nearest")
        assert moved[0, :12].sum() > 0.8 * left.sum()
        assert moved[0, 12:].sum() == 0
        assert abs(change.degrees) < 45


@pytest.mark.usefixtures("home")
def test_a_good_result_gets_less_doubt_than_one_of_a_degraded_scan(adapter, study):
    segmenter = adapter_segmenter(adapter)
    noise = np.random.default_rng(0).normal(0, 120, study.array.shape).astype(np.float32)
    good = judged(segmenter, "full", study, adapter)
    bad = judged(segmenter, "full", replace(study, array=study.array + noise), adapter)
    assert good.left_out == []
    assert good.doubt + 0.1 < bad.doubt <= 1
    assert any("turned, shifted" in text for found in bad.structures.values() for text in found.flags)
    for found in good.structures.values():
        assert found.parts.keys() == set(PARTS)
        assert all(value is not None for value in found.parts.values())
        assert found.flags == []
        assert found.parts["transform_agreement"] > 0.8
    assert json.loads(json.dumps(good.to_dict()))["structures"].keys() == {"bright ball", "dark ball"}


@pytest.mark.usefixtures("home")
def test_watching_the_segmentation_gives_the_same_as_segmenting_again(adapter, study):
    segmenter = adapter_segmenter(adapter)
    watched, again = (judged(segmenter, "fast", study, adapter, watched=w) for w in (True, False))
    for name, found in watched.structures.items():
        parts = again.structures[name].parts
        assert found.parts.pop("snapshot_agreement") is parts.pop("snapshot_agreement") is None
        assert found.parts == pytest.approx(parts, rel=1e-5)


@pytest.mark.usefixtures("home")
def test_without_a_mode_no_network_runs(adapter, study):
    segmenter = adapter_segmenter(adapter)
    result = segment_volume(segmenter, study, CPU, precision="fp32")
    checker = make_checker(replace(segmenter, network=torch.nn.Identity()), "none", adapter)
    assert checker.watch() is None
    found = score(checker, study, result, CPU)
    assert found.structures["bright ball"].parts["transform_agreement"] is None
    assert found.structures["bright ball"].parts["volume_z"] is not None


@pytest.mark.usefixtures("home")
def test_an_adapter_of_before_facts_and_snapshots_says_what_is_left_out(adapter, folder, study):
    recipe, state, _ = load_adapter(adapter)
    record = {key: value for key, value in recipe.record.items() if key != "structure_facts"}
    save_adapter(folder / "old.safetensors", replace(recipe, record=record), state)
    found = judged(adapter_segmenter(folder / "old.safetensors"), "full", study, folder / "old.safetensors")
    assert NO_SNAPSHOTS in found.left_out
    assert any("bright ball, dark ball" in text for text in found.left_out)
    parts = found.structures["bright ball"].parts
    assert (parts["snapshot_agreement"], parts["volume_z"], parts["shape_z"]) == (None, None, None)
    assert 0 <= found.doubt < 0.5


@pytest.mark.usefixtures("home")
def test_full_checks_of_an_adapter_without_snapshots_say_once_what_they_go_by_instead(without, folder):
    scans = tuple(make_scan_files(folder, n).image for n in (7, 8))
    asked = {
        "adapter": without,
        "model": None,
        "inputs": scans,
        "precision": "fp32",
        "quality": "full",
        "device": "cpu",
    }
    for name, more in (("files", {}), ("batch", {"batch": True, "report": False})):
        reporter = Reporter.silent()
        run_apply(ApplyJob(**asked, **more, out=str(folder / name)), reporter)
        said = [event.get("message") for event in reporter.events if event["event"] == "warning"]
        assert [text for text in said if NO_SNAPSHOTS in text] == [NO_SNAPSHOTS]
    lines = manifest.read(folder / "batch").values()
    assert [line["quality"] for line in lines] == ["full", "full"]
    assert all(0 <= line["doubt"]["bright ball"] <= 1 for line in lines)


@pytest.mark.usefixtures("home")
def test_a_structure_that_is_not_found_is_in_doubt(adapter, study):
    segmenter = adapter_segmenter(adapter)
    checker = make_checker(segmenter, "fast", adapter)
    result = segment_volume(segmenter, study, CPU, precision="fp32")
    result[result == 2] = 0
    found = score(checker, study, result, CPU, precision="fp32")
    assert found.structures["dark ball"].doubt == 1.0
    assert found.checks["dark ball"] == ["not found"]
    assert found.doubt == 1.0
    empty = score(checker, study, np.zeros_like(result), CPU, precision="fp32")
    assert empty.doubt == 1.0


def test_a_model_as_it_is_can_be_judged_too(job, study):
    found = judged(model_segmenter(job.model), "full", study)
    assert NO_SNAPSHOTS in found.left_out
    assert 0 <= found.doubt <= 1


def test_an_unknown_mode_is_refused_with_the_known_ones(job):
    with pytest.raises(BadInput, match="fast, full, none"):
        make_checker(model_segmenter(job.model), "slow")


def test_certainty_and_result_do_not_depend_on_how_slabs_are_cut():
    """Neighbouring slabs share a plane or a row, which must count once."""
    from types import SimpleNamespace

    from peftseg.windows import Slab

    torch.manual_seed(0)
    prepared = SimpleNamespace(image=torch.zeros(1, 7, 6, 5))
    for activation, rows in (("softmax", 4), ("sigmoid", 3)):
        logits = torch.randn(rows, 7, 6, 5)
        whole, parts = Seen(activation, 3), Seen(activation, 3)
        whole(prepared, Slab((0, 6), (0, 5), logits))
        for _ in range(2):  # a second attempt starts anew
            for r0, r1 in ((0, 2), (2, 5)):
                for p0, p1 in ((0, 3), (3, 6)):
                    parts(prepared, Slab((p0, p1), (r0, r1), logits[:, p0 : p1 + 1, r0 : r1 + 1]))
        assert np.array_equal(whole.labels, parts.labels)
        assert np.array_equal(whole.voxels, parts.voxels)
        assert [whole.confidence(n) for n in range(3)] == pytest.approx([parts.confidence(n) for n in range(3)])
    expected = torch.sigmoid(logits[1])[logits[1] > 0].mean()
    assert whole.confidence(1) == pytest.approx(float(expected))


def test_the_dice_of_label_maps_is_that_of_their_masks():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, (2, 6, 6, 6)).astype(np.uint8)
    masks = [np.stack([labels == n for n in range(1, 6)]) for labels in (one, other)]
    assert dices(one, other, 5) == pytest.approx(dices(*masks, 5), nan_ok=True)
    assert math.isnan(dices(one, other, 5)[4])


def parts_with(**changes):
    good = {
        "transform_agreement": 0.95,
        "snapshot_agreement": 0.95,
        "confidence": 0.95,
        "volume_z": 0.5,
        "shape_z": -0.5,
    }
    return {**good, "extra_pieces": 0.0, "specks": 0.0, "borders": 0.0, **changes}


@pytest.mark.parametrize(
    "worse",
    [
        {"transform_agreement": 0.5},
        {"snapshot_agreement": 0.5},
        {"confidence": 0.5},
        {"volume_z": 8.0},
        {"volume_z": -8.0},
        {"shape_z": 8.0},
        {"extra_pieces": 1.0},
        {"specks": 0.4},
        {"borders": 1.0},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_each_part_can_only_raise_the_doubt(worse):
    weights = dict.fromkeys(WEIGHTS, 0.5)
    bad, good = (badness(parts, FACTS) for parts in (parts_with(**worse), parts_with()))
    assert doubt_of(bad, weights) > doubt_of(good, weights)
    assert doubt(parts_with(**worse), FACTS) >= doubt(parts_with(), FACTS)
    assert all(weight >= 0 for weight in WEIGHTS.values())


def test_one_agreement_counts_for_both_where_the_other_is_missing():
    both = parts_with(transform_agreement=0.6, snapshot_agreement=0.6)
    assert doubt(both | {"snapshot_agreement": None}, FACTS) == pytest.approx(doubt(both, FACTS))


def test_few_scans_make_a_wide_band():
    one = {"scans": 1, "volume_ml": {"mean": 10.0, "sd": 0.0, "min": 10.0, "max": 10.0}}
    assert z_score(20.0, one, "volume_ml") == pytest.approx(math.log(2) / 0.4)
    assert z_score(20.0, FACTS, "volume_ml") > 4
    assert z_score(20.0, {}, "volume_ml") is None
    assert z_score(None, FACTS, "elongation") is None


def test_what_stands_out_is_said_with_numbers():
    measured = {"volume_ml": 40.0, "elongation": 2.0, "scattered": 0.2}
    said = words(parts_with(transform_agreement=0.612, volume_z=9.0, specks=0.2, confidence=0.6), measured, FACTS)
    assert said[0] == "the result changes when the scan is turned, shifted and darkened slightly (agreement 0.61 of 1)"
    assert "mean certainty 0.60" in said[1]
    assert "40 ml is unusual: it has 9 to 11 ml" in said[2]
    assert said[3] == "20 % of it are scattered small specks"
    assert words(parts_with(), measured, FACTS) == []


def test_missing_structures_count_by_how_often_people_have_them():
    assert doubt_of_missing({"scans": 3, "absent": 1}, True) == 0.75
    assert doubt_of_missing({}, True) == 1.0
    assert doubt_of_missing({}, False) == 0.5


def test_a_study_is_as_doubtful_as_the_worst_quarter_of_its_structures():
    assert study_doubt([0.1, 0.9, 0.2]) == 0.9
    assert study_doubt([0.0] * 6 + [1.0, 0.5]) == 0.75
    assert study_doubt([]) == 0.0


def test_two_pieces_are_usual_where_the_labels_had_two_and_one_is_not():
    grid = Grid((30, 20, 20), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 50)
    both = np.zeros(grid.shape, np.uint8)
    both[4:8, 8:12, 8:12] = both[20:24, 8:12, 8:12] = 1
    one = both.copy()
    one[15:] = 0
    hippocampus, facts = (Structure("hippocampus", 1),), {"hippocampus": FACTS}
    assert check_result(both, hippocampus, grid, None, facts) == {"hippocampus": []}
    assert check_result(both, hippocampus, grid) == {"hippocampus": ["is in 2 separate pieces"]}
    assert check_result(one, hippocampus, grid, None, facts) == {
        "hippocampus": ["is in one piece; in the scans that it was learnt from there are 2"]
    }
    assert check_result(one, hippocampus, grid) == {"hippocampus": []}
