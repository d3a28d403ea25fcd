"""The look before adapting: cost, what the base makes of the scans, and mistakes, on small made-up scans."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peftseg import jobs
from peftseg.base_match import base_masks, load_asked_base
from peftseg.check import nameless, run_check
from peftseg.config import AdaptJob, CheckJob
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter, read_events
from peftseg.models import Structure, read_model_dir
from peftseg.study import LabelState, SupportItem
from peftseg.train import run_adapt
from peftseg.volume import Grid, read_labels, read_volume, write_segmentation, write_volume
from small_scans import BOTH, BRIGHT, DARK, SIZE, make_scan_files, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def job(model, tmp_path):
    support = tuple(make_scan_files(tmp_path, n) for n in range(3))
    return CheckJob(str(model), support, BOTH, epochs=4, device="cpu", precision="fp32")


def check(job):
    reporter = Reporter.silent()
    return run_check(job, reporter), reporter


def relabelled(item: SupportItem, labels: np.ndarray, structures=BOTH, affine=None) -> SupportItem:
    """The item with other labels (and, with `affine`, another position), under new file names."""
    image = read_volume(item.image)
    grid = image.grid if affine is None else Grid(image.grid.shape, affine)
    files = [Path(item.image).with_name(f"new_{Path(path).name}") for path in (item.image, item.labels)]
    write_volume(files[0], image.array, grid)
    write_segmentation(files[1], labels, grid, list(structures), {})
    return SupportItem(str(files[0]), str(files[1]), item.states)


# what it costs


def test_the_plan_is_the_one_that_the_adaptation_makes(job, tmp_path):
    found, _ = check(job)
    adaptation = AdaptJob(job.model, job.support, BOTH, str(tmp_path / "a.safetensors"), epochs=4, device="cpu")
    reporter = Reporter.silent()
    run_adapt(replace(adaptation, precision="fp32"), reporter)
    (plan,) = [e["message"] for e in reporter.events if e.get("message", "").startswith("Plan:")]
    said = plan.split(";")[0]
    assert found["plan"].split(";")[0] == said
    assert found["epochs"] == 4
    assert found["patch"] == [24, 24, 24]
    assert found["device"] == "cpu"
    assert 0 < found["memory_gb"] < found["free_gb"]
    assert found["seconds"] > 0


def test_nothing_is_written(job, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    check(job)
    assert sorted(tmp_path.rglob("*")) == before


def test_leaving_one_out_adds_its_trainings(job):
    job = replace(job, match=False, epochs=2000)
    alone, _ = check(job)
    with_estimate, _ = check(replace(job, estimate="loo"))
    assert with_estimate["seconds"] > 1.5 * alone["seconds"]  # three trainings of two scans beside one of three


def test_the_cost_is_told_before_the_base_has_run(job):
    _, reporter = check(job)
    events = [e for e in reporter.events if e.get("stage") == "check"]
    assert [e["step"] for e in events] == [0, 1, 2, 3]
    assert events[0]["seconds"] > 0


# what the base makes of the scans


def test_the_bases_dice_is_told_for_its_own_structures_only(job):
    found, _ = check(job)
    assert list(found["base_match"]) == ["bright ball"]
    assert len(found["base_match"]["bright ball"]) == 3
    assert all(0 <= value < 0.9 for value in found["base_match"]["bright ball"])  # its weights are random
    assert found["already_matches"] is False


def as_the_base_says(job, item):
    """The item with what the base finds as its labels."""
    base = load_asked_base(read_model_dir(Path(job.model)), BOTH)
    mask = base_masks(base, read_volume(item.image), CPU, "fp32", Reporter.silent())["bright ball"]
    assert mask.any()
    return relabelled(item, mask.astype(np.uint8), (BRIGHT,))


def test_a_base_that_matches_the_labels_makes_adapting_needless(job):
    support = tuple(as_the_base_says(job, item) for item in job.support)
    found, _ = check(replace(job, support=support, structures=(BRIGHT,)))
    assert found["base_match"]["bright ball"] == [1.0, 1.0, 1.0]
    assert found["already_matches"] is True


def test_a_novel_structure_always_needs_adapting(job):
    items = [as_the_base_says(job, item) for item in job.support]
    items = tuple(replace(item, states={"dark ball": LabelState("absent")}) for item in items)
    found, _ = check(replace(job, support=items))
    assert found["base_match"] == {"bright ball": [1.0, 1.0, 1.0]}
    assert found["already_matches"] is False


def test_a_scan_counts_only_where_it_is_labelled(job):
    item = as_the_base_says(job, job.support[0])
    mask = read_labels(item.labels).mask(BRIGHT)
    slices = tuple(int(k) for k in np.flatnonzero(mask.any(axis=(0, 1)))[:2])
    partly = replace(item, states={"bright ball": LabelState("labelled", slices, 2)})
    not_at_all = replace(job.support[1], states={"bright ball": LabelState("not labelled")})
    found, _ = check(replace(job, support=(partly, not_at_all, item)))
    assert found["problems"][0]["scan"] == 1, "the dark ball has no voxels in the first scan"
    found, _ = check(replace(job, support=(partly, not_at_all), structures=(BRIGHT,)))
    assert found["base_match"]["bright ball"] == [1.0, None]
    assert found["problems"][0]["scan"] == 2, "nothing is labelled there"


def test_the_base_is_left_alone_on_request(job, monkeypatch):
    monkeypatch.setattr("peftseg.check.load_asked_base", lambda *_: pytest.fail("the base was loaded"))
    found, _ = check(replace(job, match=False))
    assert found["base_match"] == {}
    assert found["already_matches"] is False


# what is wrong with the scans


def test_every_bad_scan_is_told_with_its_number_and_the_others_are_judged(job):
    Path(job.support[1].image).write_bytes(b"this is no scan")
    empty = relabelled(job.support[2], np.zeros((SIZE,) * 3, np.uint8))
    good = make_scan_files(Path(job.support[0].image).parent, 7)
    found, _ = check(replace(job, support=(job.support[0], job.support[1], empty, good)))
    assert [problem["scan"] for problem in found["problems"]] == [2, 3]
    assert "no voxels" in found["problems"][1]["message"]
    assert all(problem["remedy"] for problem in found["problems"])
    assert [v is None for v in found["base_match"]["bright ball"]] == [False, True, True, False]
    assert found["epochs"] == 4


def test_without_any_usable_scan_there_is_no_plan_and_no_failure(job):
    support = tuple(relabelled(item, np.zeros((SIZE,) * 3, np.uint8)) for item in job.support)
    found, _ = check(replace(job, support=support))
    assert len(found["problems"]) == 3
    assert found["seconds"] is None
    assert found["already_matches"] is False


def test_no_file_name_is_in_what_is_told(job):
    far = np.eye(4)
    far[:3, 3] = 500
    folder = Path(job.support[0].image).parent
    other_grid = replace(
        job.support[0], labels=relabelled(job.support[1], np.ones((SIZE,) * 3, np.uint8), affine=far).labels
    )
    gone = SupportItem(str(folder / "patient_9.nii.gz"), str(folder / "patient_9_labels.nii.gz"))
    found, _ = check(replace(job, structures=(BRIGHT,), support=(other_grid, gone, job.support[2])))
    assert [p["scan"] for p in found["problems"]] == [1, 2]
    text = json.dumps([found["problems"], found["warnings"]])
    assert "patient_" not in text
    assert str(folder) not in text
    assert any("dark ball" in warning and "left out" in warning for warning in found["warnings"])


def test_names_are_taken_out_of_sentences():
    item = SupportItem("/a b/x (1).nii.gz", "/a b/x_seg.seg.nrrd")
    assert nameless(2, "x (1): 'liver' has no voxels.", item) == "Scan 2: 'liver' has no voxels."
    assert nameless(2, "x_seg.seg.nrrd has no segment.", item) == "Scan 2: the label file has no segment."
    assert nameless(2, "/a b/x (1).nii.gz does not exist.", item) == "Scan 2: the scan's file does not exist."


def test_swapped_sides_are_told_with_the_scans_number(job):
    names = (Structure("left ball", 1), Structure("right ball", 2))
    affine = np.eye(4)
    affine[:3, 3] = -400, 30, 30

    def with_sides(item, swap):
        labels = read_labels(item.labels).layers[0].astype(np.uint8)
        return relabelled(item, np.array([0, 2, 1], np.uint8)[labels] if swap else labels, names, affine)

    support = tuple(with_sides(item, swap=n == 1) for n, item in enumerate(job.support))
    found, _ = check(replace(job, structures=names, support=support, match=False))
    (warning,) = found["warnings"]
    assert warning.startswith("Scan 2: 'left ball' lies")


def test_a_structure_too_small_for_the_grid_is_told(job):
    labels = read_labels(job.support[1].labels).layers[0].astype(np.uint8)
    dark = np.argwhere(labels == DARK.value)[:20]
    labels[labels == DARK.value] = 0
    labels[tuple(dark.T)] = DARK.value
    found, _ = check(replace(job, match=False, support=(job.support[0], relabelled(job.support[1], labels))))
    (warning,) = found["warnings"]
    assert warning.startswith("Scan 2: 'dark ball' covers only about 20 voxels")


def test_a_scan_of_another_kind_is_told(job):
    image = read_volume(job.support[1].image)
    ct = image.array * 10 - 1500  # air and Hounsfield units
    write_volume(job.support[1].image, ct.astype(np.float32), image.grid)
    found, _ = check(replace(job, match=False))
    (warning,) = found["warnings"]
    assert warning.startswith("Scan 2: its grey values")


def test_one_scan_alone_is_warned_about(job):
    found, _ = check(replace(job, match=False, support=job.support[:1]))
    assert any("Only one" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "no-such-model"}, "Unknown model"),
        ({"method": "no-such-method"}, "valid: adalora, adaptformer, affine, arena"),
        ({"options": {"rnak": 3}}, "rank"),
    ],
)
def test_what_cannot_be_adapted_with_is_refused(job, change, text):
    with pytest.raises(BadInput, match=text):
        run_check(replace(job, **change), Reporter.silent())


def test_it_can_be_cancelled_at_every_step(job):
    for looks in range(0, 9, 2):
        left = iter(range(10**6))
        reporter = Reporter.silent()
        reporter._request = lambda left=left, looks=looks: "cancel" if next(left) >= looks else ""
        with pytest.raises(JobCancelled):
            run_check(job, reporter)


def test_as_a_job_it_is_cancelled_within_two_seconds(job):
    support = job.support * 60  # long enough to be met at work
    handle = jobs.start(jobs.create_job(replace(job, support=support)))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        e.get("stage") == "check" for e in read_events(handle.jobdir / "events.jsonl")[0]
    ):
        time.sleep(0.05)
    began = time.monotonic()
    handle.cancel()
    assert handle.wait(60)["event"] == "cancelled"
    assert time.monotonic() - began < 4  # two seconds until it listens or is killed, and the exit of the process
    handle._process.wait(10)  # its last threads may end a moment after it counts as gone
