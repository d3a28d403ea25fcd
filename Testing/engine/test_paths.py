"""Folders and whole files."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from peftseg import paths
from peftseg.errors import BadInput
from peftseg.paths import adapters_dir, atomic_write, delete_everything, home, jobs_dir, models_dir, write_text

posix = pytest.mark.skipif(sys.platform == "win32", reason="rights of Unix")
not_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="rights do not bind the administrator"
)


def test_the_home_folder_is_the_chosen_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"
    assert jobs_dir() == tmp_path / "mine" / "jobs"


@pytest.mark.parametrize(
    ("platform", "variable", "inside"),
    [
        ("linux", "XDG_DATA_HOME", ""),
        ("win32", "LOCALAPPDATA", ""),
        ("linux", None, ".local/share"),
        ("darwin", None, "Library/Application Support"),
        ("win32", None, "AppData/Local"),
    ],
)
def test_without_a_choice_the_platforms_local_data_folder_is_taken(monkeypatch, tmp_path, platform, variable, inside):
    for name in ("PEFTSEGMENT_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert home() == tmp_path / inside / "PEFTSegment"


@posix
def test_folders_are_readable_by_their_owner_only(own_home, monkeypatch):
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(own_home / "a" / "b"))
    before = os.umask(0)
    try:
        made = [jobs_dir(), models_dir(), adapters_dir(), home()]
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in made] == [0o700] * 4


def test_a_file_appears_whole_under_its_name(tmp_path):
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith("scan.nii.gz"), "writers choose the format by the suffix"
        temporary.write_bytes(b"abc")
        assert not target.exists()
        inode = temporary.stat().st_ino
    assert target.stat().st_ino == inode, "renamed, not copied"
    assert target.read_bytes() == b"abc"
    assert os.listdir(target.parent) == ["scan.nii.gz"]


@pytest.mark.parametrize("error", [RuntimeError("writer"), KeyboardInterrupt(), FileNotFoundError(2, "no", "in.nii")])
def test_an_error_leaves_what_was_there_before_and_nothing_half_written(tmp_path, error):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_bad_input_that_names_the_path_and_the_remedy(tmp_path):
    target = tmp_path / "a.txt"
    with pytest.raises(BadInput) as caught, atomic_write(target), open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"x")
    assert str(target) in caught.value.message
    assert "free some space" in caught.value.remedy
    assert os.listdir(tmp_path) == []


def test_a_writers_own_error_on_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    usage = type(paths.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(paths.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 0))
    with pytest.raises(BadInput, match="no space left"), atomic_write(tmp_path / "a"):
        raise RuntimeError("ITK could not write")
    assert os.listdir(tmp_path) == []


@not_root
def test_a_folder_without_the_right_to_write_is_bad_input(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BadInput, match="locked"), atomic_write(tmp_path / "locked" / "a"):
        raise AssertionError("found before the work begins")


def test_a_path_through_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file"), atomic_write(tmp_path / "file" / "a.txt"):
        raise AssertionError("found before the work begins")
    with pytest.raises(BadInput):
        paths.owner_only(tmp_path / "file" / "jobs")


def test_a_folder_in_the_files_place_is_bad_input(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(BadInput, match="folder"):
        write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    error = PermissionError(errno.EACCES, "denied", "/somewhere/input.nii")
    with pytest.raises(PermissionError), atomic_write(tmp_path / "a"):
        raise error


def test_delete_everything_deletes_what_the_program_made_and_nothing_else(own_home):
    for folder in (jobs_dir(), models_dir(), adapters_dir()):
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
    (own_home / "thesis.txt").touch()
    (own_home / "shared-libraries.json").write_text("[]")
    deleted = delete_everything()
    assert {p.name for p in deleted} == {"jobs", "models", "adapters"}
    assert os.listdir(own_home) == ["thesis.txt"]
    (own_home / "thesis.txt").unlink()
    delete_everything()
    assert not own_home.exists()
