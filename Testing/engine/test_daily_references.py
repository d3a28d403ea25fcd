"""Pinned reference scans that are run again, and drift by month."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftseg import cli
from peftseg.adapter_file import load_adapter, save_adapter
from peftseg.drift import by_month, marked, read_studies
from peftseg.drift_chart import write_drift
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.library import store
from peftseg.paths import delete_everything, references_dir
from peftseg.reference_runs import run_references
from peftseg.reference_scans import add_reference, read_references, read_runs, remove_reference
from peftseg.site_distance import SiteDistance
from peftseg.train import run_adapt
from peftseg.volume import Volume, read_volume
from small_scans import BOTH, BRIGHT, DARK, balls_job, make_scan_files, write_tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model folder and an adapter of it that has learnt something."""
    folder = tmp_path_factory.mktemp("trained")
    model = write_tiny_model(folder / "tiny")
    job = replace(balls_job(model, folder, scans=2, epochs=15, out="balls.safetensors"), name="balls")
    home = folder / "home"
    before = os.environ.get("PEFTSEGMENT_HOME")
    os.environ["PEFTSEGMENT_HOME"] = str(home)
    try:
        run_adapt(job, Reporter.silent())
    finally:
        os.environ.pop("PEFTSEGMENT_HOME") if before is None else os.environ.update(PEFTSEGMENT_HOME=before)
    return model, Path(job.out)


@pytest.fixture
def pinned(trained, tmp_path):
    """The adapter in the library, its model known, and one scan pinned for it by path."""
    from peftseg.models import remember

    model, adapter = trained
    remember(model)
    store(adapter)
    item = make_scan_files(tmp_path, 11)
    return add_reference("balls", item.image, item.labels, BOTH, "phantom 1"), item


def spoil(adapter: Path, target: Path) -> Path:
    """The next version of an adapter, which has forgotten its head."""
    recipe, state, _ = load_adapter(adapter)
    changed = {key: torch.zeros_like(t) if t.shape[:1] == (3,) else t for key, t in state.items()}
    save_adapter(target, replace(recipe, version=2), changed)
    return target


def test_a_pinned_scan_is_scored_and_held_against_its_first_result(pinned):
    first = run_references(device="cpu")
    assert [(row["structure"], row["verdict"]) for row in first["rows"]] == [
        ("bright ball", "first"),
        ("dark ball", "first"),
    ]
    assert first["rows"][0]["dice"] > 0.5
    again = run_references(device="cpu")
    assert [(row["verdict"], row["change"]) for row in again["rows"]] == [("same", 0.0)] * 2
    assert (again["worse"], again["changes"], again["failed"]) == (0, [], [])
    assert len(read_runs()) == 2


def test_a_worse_new_version_is_seen_with_what_changed_until_it_is_accepted(pinned, trained, tmp_path, capsys):
    run_references(device="cpu")
    store(spoil(trained[1], tmp_path / "two.safetensors"))
    assert cli.main(["adapters", "references", "run", "--device", "cpu"]) == 5
    out = capsys.readouterr().out
    assert "The adapter is balls-v2" in out
    assert "it was balls-v1" in out
    assert "worse" in out
    assert cli.main(["adapters", "references", "run", "--device", "cpu"]) == 5  # not taken for usual by itself
    assert cli.main(["adapters", "references", "run", "--device", "cpu", "--accept"]) == 5
    assert cli.main(["adapters", "references", "run", "--device", "cpu", "--json"]) == 0
    ending = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ending["event"] == "finished"
    assert {row["verdict"] for row in ending["rows"]} == {"same"}


def test_a_scan_that_changed_or_went_is_not_scored_but_said(pinned, tmp_path):
    _, item = pinned
    run_references(device="cpu")
    (tmp_path / "other").mkdir()
    other = make_scan_files(tmp_path / "other", 12)
    Path(item.labels).write_bytes(Path(other.labels).read_bytes())
    found = run_references(device="cpu")
    assert found["rows"] == []
    assert "have changed since" in found["failed"][0]["message"]
    Path(item.labels).unlink()
    assert "not there any more" in run_references(device="cpu")["failed"][0]["message"]


def test_a_copy_is_for_its_owner_only_survives_the_original_and_goes_with_the_reference(pinned, tmp_path):
    item = make_scan_files(tmp_path, 21)
    found = add_reference("balls", item.image, item.labels, (DARK,), copy=True)
    Path(item.image).unlink()
    Path(item.labels).unlink()
    assert found.name == "reference 2"
    assert Path(found.image).is_relative_to(references_dir())
    assert references_dir().stat().st_mode & 0o077 == 0
    assert [row["structure"] for row in run_references(device="cpu")["rows"]] == [
        "bright ball",
        "dark ball",
        "dark ball",
    ]
    remove_reference("reference 2")
    assert not Path(found.image).exists()
    assert [entry.name for entry in read_references()] == ["phantom 1"]


def test_unpinning_leaves_the_users_own_files_and_deleting_everything_deletes_copies(pinned, tmp_path):
    _, item = pinned
    copied = make_scan_files(tmp_path, 31)
    found = add_reference("balls", copied.image, copied.labels, BOTH, "copied", copy=True)
    remove_reference("phantom 1")
    assert Path(item.image).is_file()
    delete_everything()
    assert not Path(found.image).exists()
    assert Path(copied.image).is_file()


def test_what_cannot_be_pinned_is_refused(pinned, tmp_path):
    _, item = pinned
    with pytest.raises(BadInput, match="called 'phantom 1' already"):
        add_reference("balls", item.image, item.labels, BOTH, "phantom 1")
    with pytest.raises(BadInput, match="Unknown structure of the adapter 'balls' 'liver'"):
        add_reference("balls", item.image, item.labels, (replace(BRIGHT, name="liver"),))
    with pytest.raises(BadInput, match="Unknown adapter"):
        add_reference("nobody", item.image, item.labels, BOTH)
    with pytest.raises(BadInput, match="Unknown adapter with reference scans 'nobody'; valid: balls"):
        run_references(("balls", "nobody"))
    remove_reference("phantom 1")
    with pytest.raises(BadInput, match="There is no reference scan"):
        run_references()


def test_references_are_pinned_listed_and_removed_on_the_command_line(pinned, tmp_path, capsys):
    item = make_scan_files(tmp_path, 41)
    words = f"adapters references add --adapter balls --image {item.image} --labels {item.labels} --name second".split()
    assert cli.main([*words, "--structures", "bright ball=1"]) == 0
    assert "kept where they are" in capsys.readouterr().out
    assert cli.main(["adapters", "references", "list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["phantom 1", "second"]
    assert cli.main(["adapters", "references", "remove", "second"]) == 0
    assert [entry.name for entry in read_references()] == ["phantom 1"]


# distance to the support set


def test_a_scan_like_the_labelled_ones_is_nearer_than_one_that_is_not(pinned):
    _, item = pinned
    volume = read_volume(item.image)
    measure = SiteDistance("balls", torch.device("cpu"))
    noisy = Volume(volume.array + 60 * torch.randn(volume.array.shape).numpy(), volume.grid, "noisy")
    assert measure.of(volume) < measure.of(noisy)


# drift


def batch(folder: Path, months: dict[str, int], flagged=(), volume=100.0, distance=1.0) -> Path:
    """A batch's output folder with finished studies of some months."""
    folder.mkdir(exist_ok=True)
    lines = [
        {
            "study": f"{month}-{n}",
            "state": "done",
            "time": f"{month}-15T10:00:00+00:00",
            "adapter": "liver-v1",
            "flags": {"liver": ["is in 2 separate pieces"]} if month in flagged else {},
            "doubt": {"liver": 0.2},
            "volumes_ml": {"liver": volume + n},
            "distance": distance,
        }
        for month, count in months.items()
        for n in range(count)
    ]
    with open(folder / "manifest.jsonl", "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def test_a_month_with_many_flags_other_volumes_and_unlike_scans_is_marked(tmp_path):
    folder = batch(tmp_path / "out", {"2026-08": 6, "2026-09": 6})
    batch(folder, {"2026-10": 6}, flagged=("2026-10",), volume=160.0, distance=2.5)
    rows = by_month(read_studies([folder])[0])
    assert [(row["month"], row["studies"], len(row["marks"])) for row in rows] == [
        ("2026-08", 6, 0),
        ("2026-09", 6, 0),
        ("2026-10", 6, 3),
    ]
    text = " ".join(marked(rows))
    for words in ("100% of the studies have a flag; it was 0%", "median volume is 162.5 ml", "distance 2.5; it was 1"):
        assert words in text


def test_few_studies_are_not_judged(tmp_path):
    folder = batch(tmp_path / "out", {"2026-09": 6})
    batch(folder, {"2026-10": 2}, flagged=("2026-10",), volume=500.0)
    assert marked(by_month(read_studies([folder])[0])) == []


def test_the_last_line_of_a_study_counts_and_unfinished_damaged_and_undated_ones_are_told(tmp_path):
    folder = batch(tmp_path / "out", {"2026-09": 2})
    with open(folder / "manifest.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"study": "2026-09-0", "state": "failed"}) + "\n")
        stream.write(json.dumps({"study": "x", "state": "done"}) + "\nhalf a li")
    studies, notes = read_studies([folder])
    assert len(studies) == 1
    assert any("1 line(s) cannot be read" in note for note in notes)
    assert any("have no date" in note for note in notes)
    with pytest.raises(BadInput, match="cannot be read"):
        read_studies([tmp_path / "nowhere"])


def noted(folder: Path, study: str, time: str, volume: float, sha: str = "", adapter: str = "liver-v1") -> Path:
    """A batch's output folder with one more finished study."""
    folder.mkdir(exist_ok=True)
    line = {"study": study, "state": "done", "time": time, "adapter": adapter, "volumes_ml": {"liver": volume}}
    with open(folder / "manifest.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line | ({"input_sha256": sha} if sha else {})) + "\n")
    return folder


def test_a_study_in_several_folders_counts_once_with_its_latest_result(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    noted(first, "same series", "2026-09-30T23:30:00-02:00", 120.0)  # 01:30 by UTC
    noted(second, "same series", "2026-10-01T01:00:00Z", 100.0)
    noted(first, "/a/scan", "2026-08-01T10:00:00Z", 50.0, sha="x")
    noted(second, "/b/copy of it", "2026-09-01T10:00:00Z", 60.0, sha="x")
    noted(second, "another", "2026-09-01T10:00:00Z", 70.0, sha="y")
    third = noted(tmp_path / "third", "same series", "2026-10-02T01:00:00Z", 90.0, adapter="liver-v2")
    for folders in ([first, second, third], [third, second, first]):
        studies, notes = read_studies(folders)
        found = sorted((s.adapter, s.month, s.volumes_ml["liver"]) for s in studies)
        assert found == [
            ("liver-v1", "2026-09", 60.0),
            ("liver-v1", "2026-09", 70.0),
            ("liver-v1", "2026-09", 120.0),
            ("liver-v2", "2026-10", 90.0),
        ]
        assert notes == ["Left out because the same adapter segmented the study again later: 2 results."]


def test_the_chart_is_a_page_a_picture_or_a_table(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = batch(tmp_path / "out", {"2026-08": 6, "2026-09": 6, "2026-10": 6}, flagged=("2026-10",))
    command = ["adapters", "drift", "--manifest", str(folder), "--out"]
    for name in ("drift.html", "drift.png", "drift.csv"):
        assert cli.main([*command, str(tmp_path / name)]) == 0
    assert "100% of the studies have a flag" in capsys.readouterr().out
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "What stands out" in page
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "drift.csv", encoding="utf-8", newline="") as stream:
        assert [row["flagged_share"] for row in csv.DictReader(stream)] == ["0.0", "0.0", "1.0"]
    with pytest.raises(BadInput, match="ends in none of"):
        write_drift(tmp_path / "drift.pdf", [])
