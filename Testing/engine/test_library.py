"""The adapter library: listing, references, sharing, and what happens to damaged files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftseg.adapter_file import FORMAT, Recipe, read_adapter_info, save_adapter
from peftseg.errors import BadInput
from peftseg.library import (
    export_adapter,
    find_adapter,
    import_adapter,
    list_adapters,
    next_version,
    remove_adapter,
    show_adapter,
    store,
)
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
        "problem": None,
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
    monkeypatch.setattr("peftseg.library.list_adapters", lambda: rows)
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
    with pytest.raises(BadInput, match="Unknown adapter"):
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
