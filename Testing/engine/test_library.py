"""The adapter library: listing, references, sharing, and what happens to damaged files."""

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

from peftseg.adapter_file import FORMAT, Recipe, load_adapter, read_adapter_info, read_recipe, save_adapter
from peftseg.errors import BadInput
from peftseg.library import (
    add_shared_folder,
    export_adapter,
    find_adapter,
    import_adapter,
    list_adapters,
    next_version,
    remove_adapter,
    remove_shared_folder,
    rename_adapter,
    shared_folders,
    shared_problems,
    show_adapter,
    store,
    store_next,
)
from peftseg.library_rows import RowCache, rows_of
from peftseg.models import Intensity, NetworkSpec, Preprocessing, Structure
from peftseg.paths import adapters_dir

RECIPE = Recipe(
    format=FORMAT,
    name="liver",
    version=1,
    method="lora",
    options={},
    train_decoder=False,
    base_id="tiny",
    base_fingerprint="f" * 64,
    base_licence="Apache-2.0",
    network=NetworkSpec("segresnet", {}),
    structures=(Structure("liver", 1),),
    activation="softmax",
    preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
    window=(16, 16, 16),
    overlap=0.5,
    record={"shots": 5},
)


@pytest.fixture
def make(tmp_path):
    """Write an adapter file outside of the library; `value` makes its content differ."""

    def write(name: str = "liver", version: int = 1, value: float = 0.0) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        recipe = dataclasses.replace(RECIPE, name=name, version=version)
        save_adapter(path, recipe, {"w::full": torch.tensor([value])})
        return path

    return write


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


# storing and listing


def test_an_empty_library_is_an_empty_list():
    assert list_adapters() == []


def test_a_stored_adapter_is_listed_with_its_facts(make):
    path = store(make())
    assert path == adapters_dir() / "liver-v1.safetensors"
    (row,) = list_adapters()
    assert row == {
        "ref": "liver-v1",
        "name": "liver",
        "version": 1,
        "hash": read_adapter_info(path)[1],
        "path": str(path),
        "method": "lora",
        "base_id": "tiny",
        "structures": ["liver"],
        "shots": 5,
        "earlier_hashes": [],
        "problem": None,
        "checked": True,
        "source": "own",
        "writable": True,
    }


def test_adapters_are_listed_by_name_and_then_by_number_of_version(make):
    for name, version in (("liver", 10), ("aorta", 1), ("liver", 9)):
        store(make(name, version, value=version))
    assert [row["ref"] for row in list_adapters()] == ["aorta-v1", "liver-v9", "liver-v10"]


def test_importing_the_same_adapter_again_changes_nothing(make):
    first = import_adapter(make())
    before = first.stat().st_mtime_ns
    assert import_adapter(make()) == first
    assert first.stat().st_mtime_ns == before
    assert len(list_adapters()) == 1


def test_the_same_name_and_version_with_other_content_is_refused_with_a_remedy(make):
    stored = store(make(value=1.0))
    with pytest.raises(BadInput, match=r"another adapter 'liver-v1'.*adapters remove \"liver-v1\""):
        import_adapter(make(value=2.0))
    assert [row["path"] for row in list_adapters()] == [str(stored)]


def test_a_damaged_file_is_not_imported(make):
    path = make()
    damage(path)
    with pytest.raises(BadInput, match="incomplete"):
        import_adapter(path)
    assert list_adapters() == []


def test_a_damaged_file_in_the_library_is_listed_with_its_problem_beside_the_others(make):
    damage(store(make()))
    store(make("spleen"))
    (adapters_dir() / "text.safetensors").write_text("no adapter at all", encoding="utf-8")
    rows = {row["ref"]: row["problem"] for row in list_adapters()}
    assert rows["spleen-v1"] is None
    assert "incomplete" in rows["liver-v1"]
    assert "no safetensors file" in rows["text"]


def test_unfinished_and_foreign_files_are_not_listed(make):
    adapters_dir().joinpath(".abc.liver-v1.safetensors").write_bytes(b"half")
    adapters_dir().joinpath("notes.txt").write_text("mine", encoding="utf-8")
    assert list_adapters() == []


@pytest.mark.parametrize("name", ["../../escape", "a/b", "a:b\\c", ".hidden", "liver + spleen (site A)", "Lösion"])
def test_any_name_gets_a_file_inside_the_library_and_is_found_by_it(make, name):
    path = store(make(name))
    assert path.parent == adapters_dir()
    assert path.name.isprintable()
    assert not set(path.name) & set('/\\:*?"<>|')
    assert [row["name"] for row in list_adapters()] == [name]
    assert find_adapter(name) == find_adapter(f"{name}-v1") == path


# references


def test_a_name_means_the_newest_version_and_name_with_version_that_one(make):
    paths = [store(make("liver", version, value=version)) for version in (1, 2, 10)]
    assert find_adapter("liver") == paths[2]
    assert find_adapter("liver-v2") == paths[1]


def test_the_start_of_a_hash_means_its_adapter(make):
    path = store(make())
    digest = read_adapter_info(path)[1]
    assert find_adapter(digest[:6]) == find_adapter(digest) == path
    with pytest.raises(BadInput, match="Unknown adapter"):
        find_adapter(digest[:5])


def test_a_start_of_a_hash_that_two_adapters_share_is_refused(make, monkeypatch):
    rows = [{**list_adapters_row(make, version), "hash": "abcdef" + str(version)} for version in (1, 2)]
    monkeypatch.setattr("peftseg.library.list_adapters", lambda check: rows)
    with pytest.raises(BadInput, match="liver-v1, liver-v2"):
        find_adapter("abcdef")


def list_adapters_row(make, version: int) -> dict:
    store(make("liver", version, value=version))
    return next(row for row in list_adapters() if row["version"] == version)


def test_a_path_needs_no_library(make):
    path = make()
    assert find_adapter(path) == find_adapter(str(path)) == path
    with pytest.raises(BadInput, match="does not exist"):
        find_adapter(str(path) + "x.safetensors")


def test_an_unknown_reference_lists_the_valid_ones(make):
    store(make())
    with pytest.raises(BadInput, match=r"Unknown adapter 'livr'; valid: liver-v1\. Did you mean 'liver-v1'"):
        show_adapter("livr")


def test_showing_gives_the_whole_recipe_with_hash_and_size(make):
    path = store(make())
    shown = show_adapter("liver")
    assert (shown["ref"], shown["hash"], shown["path"]) == ("liver-v1", read_adapter_info(path)[1], str(path))
    assert shown["size_bytes"] == path.stat().st_size
    assert shown["preprocessing"]["spacing"] == [1.0, 1.0, 1.0]
    assert set(shown) >= {f.name for f in dataclasses.fields(Recipe)}


def test_showing_a_damaged_adapter_says_what_is_wrong(make):
    damage(store(make()))
    with pytest.raises(BadInput, match="incomplete"):
        show_adapter("liver-v1")


# sharing and removing


def test_an_exported_adapter_is_the_same_file_and_can_be_imported_elsewhere(make, tmp_path, monkeypatch):
    stored = store(make())
    (tmp_path / "usb").mkdir()
    exported = export_adapter("liver", tmp_path / "usb")
    assert exported == tmp_path / "usb" / "liver-v1.safetensors"
    assert exported.read_bytes() == stored.read_bytes()
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(tmp_path / "other"))
    assert import_adapter(exported).is_relative_to(tmp_path / "other")
    assert len(list_adapters()) == 1


def test_an_export_overwrites_nothing(make, tmp_path):
    store(make())
    (tmp_path / "mine.safetensors").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="exists"):
        export_adapter("liver", tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text(encoding="utf-8") == "mine"


def test_a_damaged_adapter_is_not_exported(make, tmp_path):
    damage(store(make()))
    with pytest.raises(BadInput, match="incomplete"):
        export_adapter("liver-v1", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_removing_takes_one_version_and_asks_which_where_there_are_several(make):
    for version in (1, 2):
        store(make("liver", version, value=version))
    with pytest.raises(BadInput, match="liver-v1, liver-v2"):
        remove_adapter("liver")
    remove_adapter("liver-v1")
    assert [row["ref"] for row in list_adapters()] == ["liver-v2"]


def test_a_damaged_adapter_can_be_removed(make):
    damage(store(make()))
    remove_adapter("liver-v1")
    assert list_adapters() == []


def test_a_file_outside_of_the_library_is_never_removed(make):
    path = make()
    with pytest.raises(BadInput, match="is not in it"):
        remove_adapter(str(path))
    assert path.is_file()


# versions


def test_the_next_version_follows_the_newest_of_that_name(make):
    assert next_version("liver") == 1
    for version in (1, 3):
        store(make("liver", version, value=version))
    store(make("liver left"))
    assert next_version("liver") == 4
    assert next_version("liver left") == 2


def test_a_damaged_file_keeps_its_version_number(make):
    store(make("liver", 1, 1.0))
    damage(store(make("liver", 2, 2.0)))
    assert next_version("liver") == 3


def test_the_library_works_without_torch(make):
    store(make())
    code = "import sys; sys.modules['torch'] = None\nfrom peftseg.library import list_adapters, show_adapter\n"
    code += "print(list_adapters()[0]['ref'], show_adapter('liver')['method'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["liver-v1", "lora"]


@pytest.mark.parametrize(("first", "second"), [("a/b", "a:b"), ("Liver", "liver")])
def test_names_that_make_the_same_file_on_some_system_get_versions_of_their_own(make, first, second):
    store(make(first))
    assert next_version(second) == 2


# two at a time

ADAPT = """
import sys, time
from pathlib import Path
from test_library import RECIPE
import dataclasses, torch
from peftseg.adapter_file import save_adapter
from peftseg.library import store_next

def write(version):
    time.sleep(0.3)  # long enough for another process to choose the same version
    save_adapter(sys.argv[1], dataclasses.replace(RECIPE, version=version), {"w::full": torch.tensor([float(sys.argv[2])])})
    return Path(sys.argv[1])

print(store_next("liver", write))
"""


def test_two_processes_that_store_the_same_name_at_once_get_two_versions(tmp_path):
    commands = [[sys.executable, "-c", ADAPT, str(tmp_path / f"{n}.safetensors"), str(n)] for n in (1, 2)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True, env=environment) for c in commands]
    paths = [Path(process.communicate(timeout=60)[0].strip()).name for process in running]
    assert sorted(paths) == ["liver-v1.safetensors", "liver-v2.safetensors"]
    assert [row["ref"] for row in list_adapters()] == ["liver-v1", "liver-v2"]


def test_what_is_written_for_the_library_keeps_nothing_behind_when_writing_fails():
    def write(version: int) -> Path:
        raise BadInput("no space", "free some")

    with pytest.raises(BadInput, match="no space"):
        store_next("liver", write)
    assert list_adapters() == []
    assert next_version("liver") == 1


# renaming


def test_a_renamed_adapter_has_the_same_tensors_under_the_next_version_of_its_new_name(make):
    old = store(make("liver", 3, value=7.0))
    store(make("site A"))
    digest = read_adapter_info(old)[1]
    new = rename_adapter("liver-v3", "site A")
    assert new == adapters_dir() / "site A-v2.safetensors"
    assert [row["ref"] for row in list_adapters()] == ["site A-v1", "site A-v2"]
    recipe, state, _ = load_adapter(new)
    assert state["w::full"].tolist() == [7.0]
    assert recipe == dataclasses.replace(
        RECIPE, name="site A", version=2, record={**RECIPE.record, "renamed_from": [digest]}
    )


def test_a_renamed_adapter_is_still_found_by_all_of_its_earlier_hashes(make):
    first = read_adapter_info(store(make()))[1]
    second = read_adapter_info(rename_adapter("liver", "spleen"))[1]
    path = rename_adapter("spleen", "Milz, Standort Süd")
    assert len({first, second, read_adapter_info(path)[1]}) == 3
    assert read_recipe(path).record["renamed_from"] == [first, second]
    assert find_adapter(first[:8]) == find_adapter(second) == path
    assert list_adapters()[0]["earlier_hashes"] == [first, second]


def test_tensors_of_every_kind_survive_a_new_name_bit_by_bit(tmp_path):
    state = {
        "b": torch.arange(5, dtype=torch.bfloat16).reshape(5, 1),
        "a": torch.tensor([float("nan"), -0.0, 1.0]),
        "empty": torch.zeros(0, 3),
        "n": torch.tensor(3, dtype=torch.uint8),
    }
    save_adapter(tmp_path / "x.safetensors", RECIPE, state)
    store(tmp_path / "x.safetensors")
    found = load_adapter(rename_adapter("liver", "löwe"))[1]
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_what_cannot_be_renamed_stays_as_it_is_with_a_reason(make):
    path = store(make())
    before = path.read_bytes()
    for name, reason in (("liver", "already"), ("", "not valid"), ("a\nb", "not valid")):
        with pytest.raises(BadInput, match=reason):
            rename_adapter("liver", name)
    flip_a_byte(path)
    with pytest.raises(BadInput, match="does not match its hash"):
        rename_adapter("liver", "spleen")
    flip_a_byte(path)
    assert path.read_bytes() == before
    assert [p.name for p in adapters_dir().iterdir()] == ["liver-v1.safetensors"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# shared folders


@pytest.fixture
def shared(make, tmp_path) -> Path:
    """A folder of the department with an adapter in it, on the list."""
    folder = tmp_path / "department"
    folder.mkdir()
    make("aorta", 2).rename(folder / "aorta-v2.safetensors")
    add_shared_folder(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_adapters_of_a_shared_folder_are_listed_found_shown_and_exported_beside_the_own_ones(make, shared, tmp_path):
    own = store(make())
    before = contents(shared)
    rows = {row["ref"]: (row["source"], row["writable"], row["path"]) for row in list_adapters()}
    path = shared / "aorta-v2.safetensors"
    assert rows == {"liver-v1": ("own", True, str(own)), "aorta-v2": (str(shared), False, str(path))}
    assert find_adapter("aorta") == path
    shown = show_adapter("aorta")
    assert (shown["source"], shown["writable"], shown["version"]) == (str(shared), False, 2)
    assert show_adapter("liver")["source"] == "own"
    assert show_adapter(make())["source"] == ""
    assert export_adapter("aorta", tmp_path / "mine.safetensors").read_bytes() == path.read_bytes()
    assert next_version("aorta") == 3, "a new one must not hide behind the department's"
    assert contents(shared) == before


def test_a_shared_adapter_is_neither_renamed_nor_removed_but_can_be_imported(shared):
    before = contents(shared)
    for change in (remove_adapter, lambda ref: rename_adapter(ref, "x")):
        with pytest.raises(BadInput, match="lies in the shared folder") as error:
            change("aorta")
        assert "import" in error.value.remedy
    assert contents(shared) == before
    own = import_adapter(shared / "aorta-v2.safetensors")
    assert find_adapter("aorta") == own, "the own one wins"
    assert [row["source"] for row in list_adapters()] == ["own"]
    remove_adapter("aorta")
    assert [row["source"] for row in list_adapters()] == [str(shared)]


def test_a_shared_folder_that_vanished_is_one_sentence_and_the_others_are_listed(make, shared, tmp_path):
    store(make())
    assert shared_problems() == []
    shared.rename(tmp_path / "away")
    assert [row["ref"] for row in list_adapters()] == ["liver-v1"]
    (problem,) = shared_problems()
    assert str(shared) in problem
    assert shared_folders() == [shared]
    (tmp_path / "away").rename(shared)
    assert len(list_adapters()) == 2


def test_a_damaged_file_in_a_shared_folder_is_a_row_with_its_problem(shared):
    (shared / "bad.safetensors").write_text("nothing")
    assert {row["ref"]: row["problem"] is None for row in list_adapters()} == {"aorta-v2": True, "bad": False}


def test_shared_folders_are_added_once_and_taken_off_the_list(shared, tmp_path, own_home):
    add_shared_folder(str(shared) + os.sep)
    assert json.loads((own_home / "shared-libraries.json").read_text()) == [str(shared)]
    for wrong, reason in ((tmp_path / "none", "cannot be read"), (adapters_dir(), "your own library")):
        with pytest.raises(BadInput, match=reason):
            add_shared_folder(wrong)
    remove_shared_folder(shared)
    assert shared_folders() == list_adapters() == []
    with pytest.raises(BadInput, match="Unknown shared folder"):
        remove_shared_folder(shared)
    assert (shared / "aorta-v2.safetensors").is_file()


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '[""]'])
def test_a_damaged_list_of_shared_folders_is_one_sentence_and_is_not_overwritten(make, own_home, tmp_path, text):
    store(make())
    (own_home / "shared-libraries.json").write_text(text)
    assert [row["ref"] for row in list_adapters()] == ["liver-v1"]
    assert "Delete this file" in shared_problems()[0]
    with pytest.raises(BadInput, match="cannot be read"):
        add_shared_folder(tmp_path)
    assert (own_home / "shared-libraries.json").read_text() == text


# many files


def settle(path: Path) -> None:
    """Make a file look as if it had been written a while ago."""
    os.utime(path, (time.time() - 60, time.time() - 60))


def test_a_file_is_checked_once_and_again_when_it_has_changed(make, monkeypatch):
    path = store(make())
    settle(path)
    assert list_adapters()[0]["checked"]
    read = []
    monkeypatch.setattr("peftseg.library_rows.read_adapter_info", lambda p: read.append(p) or read_adapter_info(p))
    assert list_adapters()[0]["problem"] is None
    assert read == []
    flip_a_byte(path)
    assert "does not match its hash" in list_adapters()[0]["problem"]
    assert read == [path]


def test_a_young_file_is_checked_every_time_because_its_time_may_not_tell_a_change(make):
    path = store(make())
    assert list_adapters()[0]["problem"] is None
    status = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert list_adapters()[0]["problem"] is not None


def test_headers_alone_make_the_same_list_without_the_check(make):
    paths = [store(make()), store(make("spleen")), store(make("aorta"))]
    damage(paths[1])
    flip_a_byte(paths[2])
    for path in paths:
        settle(path)
    quick = {row["ref"]: row for row in list_adapters(check=False)}
    assert not any(row["checked"] for row in quick.values())
    assert "incomplete" in quick["spleen-v1"]["problem"], "a file that was cut off is found by its header"
    assert quick["aorta-v1"]["problem"] is None, "a changed byte is not"
    with pytest.raises(BadInput, match="does not match its hash"):
        show_adapter("aorta")
    full = {row["ref"]: row for row in list_adapters()}
    assert {**quick["liver-v1"], "checked": True} == full["liver-v1"]
    assert full["aorta-v1"]["problem"] is not None
    assert list_adapters(check=False) == list_adapters(), "what was checked needs no second look"


def test_a_row_that_its_reader_changes_does_not_change_the_next_list(make):
    settle(store(make()))
    list_adapters()[0]["structures"].append("mine")
    assert list_adapters()[0]["structures"] == ["liver"]


def test_the_memory_of_rows_is_bounded(make):
    for n in range(5):
        settle(store(make(f"n{n}")))
    cache = RowCache(most=3)
    for _ in range(2):
        assert len(rows_of(adapters_dir(), check=True, cache=cache)) == 5
        assert len(cache) == 3


def test_importing_again_what_is_damaged_in_the_library_says_so(make):
    source = make()
    flip_a_byte(store(source))
    with pytest.raises(BadInput, match=r"another adapter 'liver-v1'.*damaged"):
        import_adapter(source)
