"""Importing, publishing, shared folders that vanish, and the model card."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from peftseg import cli, library_rows, shared_folders
from peftseg.adapter_file import FORMAT, load_adapter, read_adapter_info, save_adapter
from peftseg.adapter_import import import_checked
from peftseg.errors import BadInput
from peftseg.library import list_adapters, shared_problems, show_adapter, store
from peftseg.model_card import model_card
from peftseg.models import known_models
from peftseg.paths import adapters_dir
from peftseg.publish import publish
from test_library import RECIPE, flip_a_byte


@pytest.fixture
def make(tmp_path):
    """Write an adapter file; `value` makes its content differ, the rest changes its recipe."""

    def write(name: str = "liver", version: int = 1, value: float = 0.0, **changes) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_adapter(
            path, dataclasses.replace(RECIPE, name=name, version=version, **changes), {"w::full": torch.tensor([value])}
        )
        return path

    return write


@pytest.fixture
def folder(tmp_path) -> Path:
    shared = tmp_path / "shared"
    shared.mkdir()
    return shared


# importing


def test_an_import_says_that_the_model_is_not_here_and_which_licence_binds(make):
    found = import_checked(make())
    assert found.ref == "liver-v1"
    assert found.licence == "Apache-2.0"
    assert "'tiny' (fingerprint ffffffffffff)" in found.notes[0]
    assert "not on this machine" in found.notes[0]


def test_a_licence_that_must_be_accepted_is_shown_and_nothing_is_imported_until_it_is(make):
    entry = next(entry for entry in known_models()[0] if entry.acknowledge)
    path = make(base_id=entry.id)
    with pytest.raises(BadInput, match="licence must be accepted first") as refusal:
        import_checked(path)
    assert entry.licence in str(refusal.value)
    assert "--accept-licence" in str(refusal.value)
    assert list_adapters() == []
    found = import_checked(path, accept_licence=True)
    assert found.path.is_file()
    import_checked(make("spleen", base_id=entry.id))  # it is recorded now


def test_another_adapter_of_the_same_name_and_version_is_refused_or_gets_the_next_version(make):
    first = import_checked(make(value=1.0)).path
    other = make(value=2.0)
    digest = read_adapter_info(other)[1]
    with pytest.raises(BadInput, match="never overwritten"):
        import_checked(other)
    found = import_checked(other, renumber=True)
    assert found.ref == "liver-v2"
    recipe, state, _ = load_adapter(found.path)
    assert state["w::full"].tolist() == [2.0]
    assert recipe.record["renamed_from"] == [digest]
    assert load_adapter(first)[1]["w::full"].tolist() == [1.0]
    assert sorted(p.name for p in adapters_dir().iterdir()) == ["liver-v1.safetensors", "liver-v2.safetensors"]


def test_importing_the_same_file_twice_changes_nothing_and_says_so(make):
    path = make()
    first = import_checked(path)
    second = import_checked(path, renumber=True)
    assert second.path == first.path
    assert "in the library already" in " ".join(second.notes)
    assert len(list_adapters()) == 1


def test_a_newer_format_a_damaged_file_and_newer_software_are_told_apart(make, tmp_path):
    damaged = make()
    flip_a_byte(damaged)
    with pytest.raises(BadInput, match="does not match its hash"):
        import_checked(damaged)
    newer = tmp_path / "newer.safetensors"
    content = make("other").read_bytes()
    newer.write_bytes(content.replace(b'\\"format\\":%d' % FORMAT, b'\\"format\\":9'))
    with pytest.raises(BadInput, match=f"has format 9; this version reads up to {FORMAT}"):
        import_checked(newer)
    record = {"software": {"peftseg": "99.1.0"}}
    assert "made with PEFTSegment 99.1.0" in " ".join(import_checked(make("later", record=record)).notes)


def test_the_command_line_imports_with_licence_and_notes(make, capsys):
    assert cli.main(["adapters", "import", str(make())]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Took the adapter into the library as liver-v1: ")
    assert "The licence of its model: Apache-2.0" in out
    assert "Note: The model 'tiny'" in out
    assert cli.main(["adapters", "import", str(make("aorta")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ref"] == "aorta-v1"


# publishing


def test_a_published_adapter_is_the_same_file_and_publishing_it_again_writes_nothing(make, folder):
    stored = store(make())
    found = publish("liver", folder)
    assert found.path == folder / "liver-v1.safetensors"
    assert found.path.read_bytes() == stored.read_bytes()
    before = found.path.stat().st_mtime_ns
    again = publish("liver", folder)
    assert (again.path, again.was_there) == (found.path, True)
    assert found.path.stat().st_mtime_ns == before
    assert [p.name for p in folder.iterdir()] == ["liver-v1.safetensors"]  # no lock, no database, nothing left over


def test_a_published_version_is_never_overwritten_but_the_next_one_can_be_taken(make, folder):
    first = publish(make(value=1.0), folder).path
    other = make(value=2.0)
    with pytest.raises(BadInput, match="never overwritten"):
        publish(other, folder)
    found = publish(other, folder, renumber=True)
    assert (found.ref, found.path.name) == ("liver-v2", "liver-v2.safetensors")
    assert load_adapter(first)[1]["w::full"].tolist() == [1.0]
    assert load_adapter(found.path)[0].version == 2


PUBLISH = """
import sys, time
from peftseg.publish import publish
while time.time() < float(sys.argv[3]):
    pass
print(publish(sys.argv[1], sys.argv[2], renumber=True).path.name)
"""


@pytest.mark.parametrize("links", [True, False])
def test_machines_that_publish_the_same_version_at_once_get_one_each(make, folder, links):
    """Without links, as on many drives that Windows shares, names are claimed by an empty file first."""
    code = (
        PUBLISH
        if links
        else f"import os\ndel os.link\nos.link = lambda *_: (_ for _ in ()).throw(OSError('no'))\n{PUBLISH}"
    )
    files = [make(value=float(n)) for n in range(3)]
    start = str(time.time() + 3.0)
    commands = [[sys.executable, "-c", code, str(file), str(folder), start] for file in files]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    names = sorted(process.communicate(timeout=120)[0].strip() for process in running)
    assert names == [f"liver-v{n}.safetensors" for n in (1, 2, 3)]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert {load_adapter(folder / name)[1]["w::full"].item() for name in names} == {0.0, 1.0, 2.0}


def test_a_publisher_that_fails_leaves_nothing_in_the_folder(make, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        publish(make(), folder)
    assert list(folder.iterdir()) == []


def test_publishing_into_a_folder_that_is_not_there_is_refused(make, tmp_path, capsys):
    with pytest.raises(BadInput, match="cannot be read"):
        publish(make(), tmp_path / "nowhere")
    assert cli.main(["adapters", "publish", str(make()), str(tmp_path / "nowhere")]) == 2
    assert "cannot be read" in capsys.readouterr().err


# shared folders on drives that vanish


@pytest.fixture
def drive(make, folder, monkeypatch) -> Path:
    """A shared folder with three adapters."""
    for name in ("aorta", "liver", "spleen"):
        publish(make(name), folder)
    shared_folders.add_shared_folder(folder)
    monkeypatch.setattr(shared_folders, "_SILENT", {})
    return folder


def test_listing_a_shared_folder_writes_nothing_into_it(drive):
    before = {p.name: p.stat().st_mtime_ns for p in drive.iterdir()}
    drive.chmod(0o555)
    assert [row["ref"] for row in list_adapters()] == ["aorta-v1", "liver-v1", "spleen-v1"]
    assert {p.name: p.stat().st_mtime_ns for p in drive.iterdir()} == before
    drive.chmod(0o755)


def test_a_drive_that_is_gone_is_one_message_and_the_own_adapters_stay(drive, make):
    store(make("kidney"))
    drive.rename(drive.with_name("away"))
    assert [row["ref"] for row in list_adapters()] == ["kidney-v1"]
    (problem,) = shared_problems()
    assert "its adapters are not listed" in problem


def test_a_drive_that_goes_in_the_middle_of_a_listing_is_one_message_not_one_a_file(drive, monkeypatch):
    real, seen = shared_folders.row_of, []

    def going(path, check, *more):
        seen.append(path)
        if len(seen) == 2:
            drive.rename(drive.with_name("away"))
        return real(path, check, *more) or library_rows._problem(path, "gone", check)

    monkeypatch.setattr(shared_folders, "row_of", going)
    assert list_adapters() == []
    assert len(shared_problems()) == 1


def test_a_drive_that_does_not_answer_is_given_up_soon_and_not_asked_again_for_a_while(drive, make, monkeypatch):
    store(make("kidney"))
    asked, real = [], os.listdir

    def hang(path="."):
        if Path(path) == drive:
            asked.append(path)
            time.sleep(20)
        return real(path)

    monkeypatch.setattr(shared_folders.os, "listdir", hang)
    monkeypatch.setattr(shared_folders, "PATIENCE_S", 0.2)
    started = time.monotonic()
    for _ in range(3):
        assert [row["ref"] for row in list_adapters(check=False)] == ["kidney-v1"]
    (problem,) = shared_problems()
    assert "does not answer" in problem
    assert len(asked) == 1
    assert time.monotonic() - started < 15


def test_a_damaged_file_on_a_drive_that_is_there_is_still_listed_with_its_problem(drive):
    flip_a_byte(drive / "liver-v1.safetensors")
    problems = {row["name"]: row["problem"] for row in list_adapters()}
    assert set(problems) == {"aorta", "liver-v1", "spleen"}
    assert "does not match its hash" in problems["liver-v1"]


# the model card


RECORD = {
    "shots": 5,
    "labelled": {"liver": {"labelled": 4, "absent": 1}},
    "novel": ["liver"],
    "recipe_changes": ["The voxel size along the head-foot axis is 3 mm."],
    "epochs": 80,
    "seconds": 312.0,
    "stopped": "converged",
    "estimate": {"liver": [0.91, 0.85, None, 0.55, 0.4]},
    "trained_share": {"adapter": 12000, "base_total": 1000000},
    "made": "2026-11-26",
    "parent": {"hash": "ab" * 32, "version": 1, "shots": 3, "full_epochs": 90, "line": ["ab" * 32]},
    "software": {"peftseg": "0.8.0", "torch": "2.13.0"},
}


def test_the_card_says_in_words_what_an_adapter_is_made_of_and_how_good_it_is(make):
    path = store(make(version=2, record=RECORD))
    card = model_card(show_adapter(path))
    for words in (
        "# liver, version 2",
        "Research use only. Not a medical device",
        "| liver | 1 | no, learnt from the labelled scans |",
        "`tiny`, fingerprint `ffffffffffff`. The model's weights are not on this machine.",
        "Licence of the model, which also binds the adapter: Apache-2.0.",
        "5 labelled scans",
        "liver: labelled in 4, absent in 1",
        "Went on from version 1 (hash `abababababab`), which had 3 scans",
        "| liver | 0.68 | 0.40 to 0.91 | 4 |",
        "Low for liver",
        "12,000 trained values",
        f"Hash: `{read_adapter_info(path)[1]}`",
        "Made on: 2026-11-26",
        "peftseg 0.8.0, torch 2.13.0",
        "SHA-256",
    ):
        assert words in card, words


def test_the_card_of_an_adapter_without_estimate_or_record_says_so_instead_of_inventing(make):
    card = model_card(show_adapter(store(make(record={}))))
    assert "Not estimated" in card
    assert "None" not in card
    assert "nan" not in card


def test_show_prints_the_card_and_json_stays_the_whole_recipe(make, capsys):
    store(make(record=RECORD))
    assert cli.main(["adapters", "show", "liver"]) == 0
    assert capsys.readouterr().out.startswith("# liver, version 1\n\n**Research use only")
    assert cli.main(["adapters", "show", "liver", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["record"]["shots"] == 5
