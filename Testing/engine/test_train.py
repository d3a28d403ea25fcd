"""Few-shot adaptation from files to an adapter file, on small made-up scans."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from peftseg.adapter_file import load_adapter
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.library import list_adapters
from peftseg.study import LabelState
from peftseg.train import run_adapt
from small_scans import BOTH, BRIGHT, SIZE, balls_job, make_scan_files, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def job(model, tmp_path):
    return balls_job(model, tmp_path)


def messages(reporter, kind):
    return [e["message"] for e in reporter.events if e["event"] == kind]


def test_labelled_scans_become_an_adapter_file_that_matches_the_labels(job):
    reporter = Reporter.silent()
    result = run_adapt(replace(job, epochs=30), reporter)
    recipe, state, digest = load_adapter(result["adapter"])
    match = [e["match"] for e in reporter.events if "match" in e][-1]
    assert list(match) == ["bright ball", "dark ball"]
    assert min(match.values()) > 0.8
    assert digest == result["hash"]
    assert [s.name for s in recipe.structures] == ["bright ball", "dark ball"]
    assert recipe.train_decoder
    assert recipe.record["shots"] == 3
    assert recipe.record["novel"] == ["dark ball"]
    assert any(key.endswith("::A") for key in state)


def test_windows_for_studies_are_never_under_the_training_patch(job):
    """A window padded with air would shift the norms' statistics."""
    recipe, _, _ = load_adapter(run_adapt(replace(job, epochs=1), Reporter.silent())["adapter"])
    assert list(recipe.smallest_window) == recipe.record["patch"]
    assert recipe.window_step == 2


def test_the_adapter_file_names_no_scan(job):
    recipe, _, _ = load_adapter(run_adapt(replace(job, epochs=1), Reporter.silent())["adapter"])
    text = json.dumps(recipe.record) + recipe.name
    assert "patient" not in text
    assert "nii" not in text


def test_base_structures_alone_leave_the_decoder_frozen(job):
    result = run_adapt(replace(job, structures=(BRIGHT,), epochs=1), Reporter.silent())
    assert result["trained_share"]["decoder"] == 0
    assert result["trained_share"]["adapter"] > 0


def test_two_runs_with_one_seed_give_the_same_adapter_and_another_seed_another(job, tmp_path):
    files = [str(tmp_path / f"{n}.safetensors") for n in "xyz"]
    seeds = (0, 0, 1)
    states = []
    for file, seed in zip(files, seeds, strict=True):
        run_adapt(replace(job, out=file, seed=seed, epochs=2), Reporter.silent())
        states.append(load_adapter(file)[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.slow
def test_a_structure_that_only_some_scans_label_is_learned_from_those(job, tmp_path):
    folder = tmp_path / "partial"
    folder.mkdir()
    not_labelled = {"dark ball": LabelState("not labelled")}
    support = (
        make_scan_files(folder, 0),
        make_scan_files(folder, 1),
        make_scan_files(folder, 2, (BRIGHT,), not_labelled),
        make_scan_files(folder, 3, (BRIGHT,), not_labelled),
    )
    reporter = Reporter.silent()
    result = run_adapt(replace(job, support=support, epochs=30), reporter)
    match = [e["match"] for e in reporter.events if "match" in e][-1]
    recipe, _, _ = load_adapter(result["adapter"])
    assert recipe.record["labelled"]["dark ball"] == {"labelled": 2, "not labelled": 2}
    assert match["bright ball"] > 0.8


def test_every_fourth_slice_labelled_suffices(job, tmp_path):
    from peftseg.compare import Candidate, Task, run_candidate
    from peftseg.models import read_model_dir

    folder = tmp_path / "slices"
    folder.mkdir()
    slices = {s.name: LabelState("labelled", tuple(range(0, SIZE, 4)), 2) for s in BOTH}
    support = tuple(make_scan_files(folder, n, states=slices) for n in range(3))
    task = Task("slices", BOTH, support, (make_scan_files(folder, 9),))
    rows = run_candidate(
        read_model_dir(job.model), task, Candidate("lora", "lora", job.options), 3, 0, torch.device("cpu"), epochs=40
    )
    assert min(row["dice"] for row in rows) > 0.8, rows


@pytest.mark.slow
def test_leave_one_out_gives_each_scans_value(job):
    result = run_adapt(replace(job, epochs=20, estimate="loo"), Reporter.silent())
    assert {name: len(values) for name, values in result["estimate"].items()} == {"bright ball": 3, "dark ball": 3}
    assert max(result["estimate"]["bright ball"]) > 0.5


def test_the_running_match_changes_nothing_about_the_adapter(job, tmp_path, monkeypatch):
    first = run_adapt(job, Reporter.silent())
    monkeypatch.setattr("peftseg.losses.Match.add", lambda *_: None)
    reporter = Reporter.silent()
    second = run_adapt(replace(job, out=str(tmp_path / "b.safetensors")), reporter)
    assert [e["match"] for e in reporter.events if "match" in e][-1] == {}
    states = [load_adapter(result["adapter"])[1] for result in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_progress_tells_loss_rank_match_and_time_left(job):
    reporter = Reporter.silent()
    run_adapt(job, reporter)
    event = [e for e in reporter.events if e.get("stage") == "train"][-2]
    assert (event["step"], event["total"]) == (11, 12)
    assert event["eta_s"] > 0
    assert event["loss"] > 0
    assert event["mean_rank"] == pytest.approx(sum(event["ranks"].values()) / len(event["ranks"]), abs=0.01)
    assert 1 <= event["best_epoch"] <= 11


def test_under_three_scans_accuracy_is_not_estimated(job):
    reporter = Reporter.silent()
    result = run_adapt(replace(job, support=job.support[:2], epochs=1, estimate="loo"), reporter)
    assert result["estimate"] is None
    assert result["left_out"] == []
    assert any("not estimated" in m for m in messages(reporter, "warning"))


def test_one_scan_is_allowed_with_a_warning(job):
    reporter = Reporter.silent()
    run_adapt(replace(job, support=job.support[:1], epochs=1), reporter)
    assert any("Only one" in m for m in messages(reporter, "warning"))


def test_the_plan_is_said_before_training_starts(job):
    reporter = Reporter.silent()
    run_adapt(replace(job, epochs=1), reporter)
    kinds = [(e["event"], e.get("stage") or e.get("message", "")[:4]) for e in reporter.events]
    assert kinds.index(("log", "Plan")) < kinds.index(("progress", "train"))


def test_cancelling_leaves_no_file(job, tmp_path):
    reporter = Reporter.silent()
    looks = iter(range(10**6))
    reporter._request = lambda: "cancel" if next(looks) > 8 else ""
    with pytest.raises(JobCancelled):
        run_adapt(job, reporter)
    assert not list(tmp_path.glob("*.safetensors*"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "no-such-model"}, "Unknown model"),
        ({"method": "no-such-method"}, "valid: adalora, adaptformer, affine, arena"),
        ({"options": {"rnak": 3}}, "rank"),
        ({"out": "adapter.pt"}, ".safetensors"),
        ({"device": "cuda:7"}, "available: cpu"),
    ],
)
def test_bad_requests_name_what_is_valid_and_write_nothing(job, tmp_path, change, text):
    with pytest.raises(BadInput, match=text):
        run_adapt(replace(job, **change), Reporter.silent())
    assert not list(tmp_path.glob("*.safetensors*"))


def test_an_existing_adapter_is_never_overwritten(job, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    with pytest.raises(BadInput, match="never overwritten"):
        run_adapt(job, Reporter.silent())
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"


def test_a_stored_adapter_is_in_the_library_under_the_next_version_of_its_name(job, tmp_path):
    results = [
        run_adapt(
            replace(job, name="balls", out=str(tmp_path / f"{n}.safetensors"), epochs=1, store=True, seed=n), silent
        )
        for n, silent in enumerate((Reporter.silent(), Reporter.silent()))
    ]
    assert [r["ref"] for r in results] == ["balls-v1", "balls-v2"]
    assert [row["path"] for row in list_adapters()] == [r["path"] for r in results]
    for result in results:
        assert load_adapter(result["path"])[2] == load_adapter(result["adapter"])[2] == result["hash"]
        assert load_adapter(result["adapter"])[0].version == result["version"]


def test_an_adapter_that_is_not_asked_to_be_stored_is_not(job):
    result = run_adapt(replace(job, epochs=1), Reporter.silent())
    assert (result["ref"], result["path"]) == (None, None)
    assert list_adapters() == []


def test_a_library_that_takes_nothing_costs_a_warning_and_not_the_adapter(job, own_home):
    (own_home / "locks").write_text("a file where a folder is needed")
    reporter = Reporter.silent()
    result = run_adapt(replace(job, epochs=1, store=True), reporter)
    assert (result["ref"], result["path"]) == (None, None)
    assert load_adapter(job.out)[2] == result["hash"]
    assert "could not be put into the library" in messages(reporter, "warning")[-1]


def test_the_adapter_knows_which_borders_its_structures_touch(tmp_path):
    from peftseg.flags import check_result
    from peftseg.models import Structure
    from peftseg.study import LoadedScan
    from peftseg.train import usual_borders
    from peftseg.volume import Grid, Volume

    grid = Grid((6, 6, 6), np.diag([1.0, 1.0, 1.0, 1.0]) + 5 * np.eye(4, k=3))
    through, inside = np.zeros((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
    through[2:4, 2:4, :], inside[2:4, 2:4, 2:4] = True, True
    volume = Volume(np.zeros((6, 6, 6), np.float32), grid, "x")
    scans = [LoadedScan(volume, {"aorta": mask}, {"aorta": known}) for mask, known in ((through, True), (inside, True))]
    assert usual_borders("aorta", scans) == ["lower", "upper"]
    assert usual_borders("aorta", [LoadedScan(volume, {"aorta": through}, {"aorta": through})]) == []  # partly labelled
    usual = {"aorta": usual_borders("aorta", scans)}
    assert check_result(through.astype(np.uint8), (Structure("aorta", 1),), grid, usual) == {"aorta": []}
