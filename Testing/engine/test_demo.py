"""The demo: plays the whole story, leaves whole results or none, and touches nobody else's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from peftseg import demo, phantom
from peftseg.adapter_file import read_recipe
from peftseg.config import PretrainJob
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.metrics import evaluate_folders
from peftseg.models import catalogue
from peftseg.pretrain import run_pretrain
from peftseg.study import read_support_folder
from peftseg.volume import read_labels, read_volume

KNOWN = phantom.structures_named(["liver", "aorta"])


@pytest.fixture(scope="module")
def model_home(tmp_path_factory) -> Path:
    """A PEFTSEGMENT_HOME whose models hold a tiny base that knows two structures."""
    folder = tmp_path_factory.mktemp("base")
    phantom.write_dataset(folder / "data", range(2), phantom.SITE_A, [s.name for s in KNOWN])
    job = PretrainJob(
        data=read_support_folder(folder / "data", KNOWN),
        structures=KNOWN,
        out=str(folder / "home" / "models" / "tiny"),
        id="tiny",
        title="Tiny",
        network_arguments={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
        intensity="window:-160,260",
        spacing=(6.0, 6.0, 6.0),
        epochs=2,
        patch=(48, 40, 32),
        device="cpu",
    )
    run_pretrain(job, Reporter.silent())
    return folder / "home"


@pytest.fixture(scope="module")
def small_story(model_home) -> demo.Story:
    """A story with the tiny base and hardly any training."""
    return demo.Story(model=str(model_home / "models" / "tiny"), support=2, unseen=2, budget_minutes=0.2, epochs=2)


@pytest.fixture(scope="module")
def played(model_home, small_story, tmp_path_factory):
    """One run of the demo: folder, result, reporter."""
    out, reporter = tmp_path_factory.mktemp("demo") / "out", Reporter.silent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTSEGMENT_HOME", str(model_home))
        result = demo.run_demo(out, 0, reporter, small_story)
    return out, result, reporter


@pytest.mark.slow
def test_it_leaves_data_results_adapter_report_and_nothing_else(played):
    out, result, _ = played
    assert sorted(p.name for p in out.iterdir()) == ["data", demo.MARK, "report.html", "segmentations", demo.ADAPTER]
    assert result["report"] == str(out / "report.html")
    assert result["adapter"] == str(out / demo.ADAPTER)
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]


def test_the_table_has_every_structure_and_no_score_before_for_the_novel_one(played):
    _, result, reporter = played
    assert [r["structure"] for r in result["rows"]] == ["liver", "aorta", "gallbladder"]
    before = [r["dice_before"] for r in result["rows"]]
    assert before[2] is None
    assert all(0 <= score <= 1 for score in before[:2])
    said = [e["message"] for e in reporter.events if e["event"] == "log"]
    assert said[-len(result["table"].splitlines()) :] == result["table"].splitlines()
    assert "gallbladder (new)" in result["table"]


def test_the_scores_are_those_of_the_files_it_leaves(played):
    out, result, _ = played
    structures = (*KNOWN, *phantom.structures_named(["gallbladder"]))
    rows = evaluate_folders(out / "segmentations", out / "data" / "unseen" / "labels", structures)
    for shown in result["rows"]:
        scores = [r["dice"] for r in rows if r["structure"] == shown["structure"]]
        assert shown["dice_after"] == pytest.approx(np.mean(scores))


def test_unseen_persons_are_no_support_persons_and_all_are_of_site_b(played):
    out, _, _ = played
    support, unseen = ({p.name for p in (out / "data" / part / "images").iterdir()} for part in ("support", "unseen"))
    assert len(support) == len(unseen) == 2
    assert not support & unseen
    assert all(name.startswith("phantom-B-") for name in support | unseen)


def test_segmentations_lie_on_the_grids_of_their_scans(played):
    out, _, _ = played
    for image in sorted((out / "data" / "unseen" / "images").glob("*.nii.gz")):
        result = next((out / "segmentations").glob(image.name.split(".")[0] + "*.nii.gz"))
        assert read_labels(result).grid.same_as(read_volume(image).grid)


def test_the_adapter_knows_its_structures_and_its_trained_share_is_the_one_shown(played):
    out, result, _ = played
    recipe = read_recipe(out / demo.ADAPTER)
    assert [s.name for s in recipe.structures] == ["liver", "aorta", "gallbladder"]
    assert recipe.record["trained_share"] == result["trained_share"]
    share = {"adapter": 30, "head": 20, "base_total": 1000}
    assert demo.trained_percent(share) == pytest.approx(5.0)


def test_the_report_shows_scores_pictures_and_the_warning(played):
    out, result, _ = played
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1 + 2 + 1  # one before, each unseen scan after, the curves
    assert f"{result['rows'][0]['dice_after']:.3f}" in page
    assert "research use only" in page
    assert str(out) not in page


@pytest.mark.slow
def test_a_second_demo_replaces_the_first_and_leaves_the_users_own_files(played, small_story, model_home, monkeypatch):
    out, _, _ = played
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(model_home))
    (out / "my notes.txt").write_text("mine", encoding="utf-8")
    first = (out / demo.ADAPTER).read_bytes()
    demo.run_demo(out, 1, None, small_story)
    assert (out / "my notes.txt").read_text(encoding="utf-8") == "mine"
    assert (out / demo.ADAPTER).read_bytes() != first
    assert json.loads((out / demo.MARK).read_text(encoding="utf-8"))["seed"] == 1
    assert len(list((out / "data" / "support" / "images").iterdir())) == 2
    (out / "my notes.txt").unlink()


@pytest.mark.parametrize("content", ["holiday.txt", demo.MARK])
def test_a_folder_that_the_demo_did_not_make_is_refused_and_untouched(tmp_path, small_story, content):
    (tmp_path / content).write_text("[]", encoding="utf-8")
    with pytest.raises(BadInput, match="was not made by the demo"):
        demo.run_demo(tmp_path, 0, None, small_story)
    assert [p.name for p in tmp_path.iterdir()] == [content]


def test_a_file_as_output_is_refused(tmp_path, small_story):
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match="is a file"):
        demo.run_demo(tmp_path / "out", 0, None, small_story)


def test_a_negative_seed_is_refused_because_it_may_mean_persons_of_the_base_model(tmp_path, small_story):
    with pytest.raises(BadInput, match="seed is -1"):
        demo.run_demo(tmp_path / "out", -1, None, small_story)


def cancelling_after(events: int) -> Reporter:
    """A reporter whose user cancels once it has heard more than `events` events."""
    heard = []
    return Reporter(lambda kind, fields: heard.append(kind), lambda: "cancel" if len(heard) > events else "")


@pytest.mark.parametrize("existed", [False, True])
def test_a_cancelled_demo_leaves_nothing(tmp_path, small_story, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with pytest.raises(JobCancelled):
        demo.run_demo(out, 0, cancelling_after(1), small_story)
    assert out.is_dir() == existed
    assert not list(tmp_path.rglob("*.nii.gz"))
    assert not list(tmp_path.rglob(".*"))


def test_what_a_killed_demo_left_is_cleared(tmp_path, small_story):
    (tmp_path / demo.UNFINISHED / "data").mkdir(parents=True)
    demo.check_out(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_structure_that_phantoms_lack_is_refused(tmp_path, small_story):
    with pytest.raises(BadInput, match="galbladder"):
        demo.run_demo(tmp_path / "out", 0, None, dataclasses.replace(small_story, novel="galbladder"))
    assert not list(tmp_path.iterdir())


def test_the_usual_story_fits_the_bundled_model():
    story = demo.Story()
    assert story.model in catalogue(), "the demo's base model must be bundled"
    known = {s.name: s.value for s in catalogue()[story.model].structures}
    assert known == {s.name: s.value for s in phantom.BASE_STRUCTURES}
    assert story.novel in {s.name for s in phantom.STRUCTURES} - set(known)
