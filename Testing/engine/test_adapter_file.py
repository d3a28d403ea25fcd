"""Adapter files: exact round trips, and refusal of everything that is not exactly what was written."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftseg.adapter_file import (
    FORMAT,
    Recipe,
    load_adapter,
    read_adapter_info,
    read_recipe,
    recipe_from_dict,
    recipe_to_dict,
    save_adapter,
)
from peftseg.errors import BadInput
from peftseg.models import Intensity, NetworkSpec, Preprocessing, Structure

RECIPE = Recipe(
    format=FORMAT,
    name="liver, site A",
    version=1,
    method="lora",
    options={"rank": 2, "lr": 1e-3},
    train_decoder=False,
    base_id="tiny",
    base_fingerprint="f" * 64,
    base_licence="Apache-2.0",
    network=NetworkSpec("segresnet", {"init_filters": 8, "blocks_down": [1, 1]}),
    structures=(Structure("liver", 3, (1, 2, 3), "SCT^10200004^Liver"), Structure("Lösion", 7)),
    activation="softmax",
    preprocessing=Preprocessing("RAS", (1.5, 1.5, 2.0), Intensity("window", -175.0, 250.0, 0.0, 1.0)),
    window=(32, 32, 16),
    overlap=0.5,
    record={"shots": 5, "losses": [0.5, 0.25], "software": {"peftseg": "0.1"}},
)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight::A": torch.randn(2, 3, generator=generator),
        "conv.weight::B": torch.randn(4, 2, generator=generator).to(torch.bfloat16),
        "conv.weight::v": torch.zeros(0),
        "norm.count::buffer": torch.tensor(7),
    }


@pytest.fixture
def adapter(tmp_path) -> Path:
    save_adapter(tmp_path / "a.safetensors", RECIPE, state())
    return tmp_path / "a.safetensors"


# round trip


def test_recipe_tensors_and_hash_come_back_exactly(adapter):
    recipe, tensors, digest = load_adapter(adapter)
    assert recipe == RECIPE
    assert set(tensors) == set(state())
    for name, tensor in state().items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)
    assert read_adapter_info(adapter) == (RECIPE, digest)
    assert read_recipe(adapter) == RECIPE


def test_any_safetensors_reader_can_open_the_file(adapter):
    assert torch.equal(load_file(adapter)["conv.weight::A"], state()["conv.weight::A"])


def test_the_hash_depends_on_every_part_and_on_nothing_else(tmp_path):
    def hash_of(number: int, recipe: Recipe = RECIPE, **tensors: torch.Tensor) -> str:
        return save_adapter(tmp_path / f"{number}.safetensors", recipe, {**state(), **tensors})

    first = hash_of(0)
    assert first == hash_of(1)
    assert first == save_adapter(tmp_path / "2.safetensors", RECIPE, dict(reversed(state().items())))
    flat = state()["conv.weight::A"].reshape(3, 2)
    bits = state()["conv.weight::A"].view(torch.int32)
    others = [
        hash_of(3, dataclasses.replace(RECIPE, version=2)),
        hash_of(4, **{"conv.weight::A": flat}),
        hash_of(5, **{"conv.weight::A": bits}),
        hash_of(6, extra=torch.zeros(0)),
    ]
    assert len({first, *others}) == 5


def test_views_and_shared_tensors_are_stored_by_their_values(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    save_adapter(tmp_path / "a.safetensors", RECIPE, {"one": whole, "two": whole.T})
    _, tensors, _ = load_adapter(tmp_path / "a.safetensors")
    assert torch.equal(tensors["two"], whole.T)


def test_numbers_that_are_not_finite_and_array_scalars_become_plain_json(tmp_path):
    record = {"loss": float("nan"), "shots": np.int64(3), "patch": (1, 2)}
    save_adapter(tmp_path / "a.safetensors", dataclasses.replace(RECIPE, record=record), state())
    assert read_recipe(tmp_path / "a.safetensors").record == {"loss": None, "shots": 3, "patch": [1, 2]}


def test_reading_a_recipe_needs_no_torch(adapter):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from peftseg.adapter_file import read_adapter_info\n"
        f"print(read_adapter_info({str(adapter)!r})[1])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == load_adapter(adapter)[2]


# damage


def test_a_flipped_bit_in_any_byte_of_the_file_is_refused(tmp_path):
    path = tmp_path / "small.safetensors"
    save_adapter(path, RECIPE, {"conv.weight::A": torch.ones(2), "conv.weight::B": torch.zeros(2, 1)})
    content = path.read_bytes()
    accepted = []
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)  # all eight bits of all bytes take a minute, and were refused too
        path.write_bytes(flipped)
        try:
            read_recipe(path)
            accepted.append(position)
        except BadInput:
            pass
    assert accepted == []
    path.write_bytes(content)
    assert read_recipe(path) == RECIPE


def test_other_white_space_in_the_headers_padding_is_refused(adapter):
    content = adapter.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip(b" ")
    for padding in (b"\t", b"\n", b" \r"):
        adapter.write_bytes((len(header) + len(padding)).to_bytes(8, "little") + header + padding + content[end:])
        with pytest.raises(BadInput, match="header"):
            read_recipe(adapter)


def test_safetensors_itself_would_load_the_flipped_byte(adapter):
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    load_file(adapter)
    for read in (load_adapter, read_recipe):
        with pytest.raises(BadInput, match="damaged"):
            read(adapter)


def test_a_file_cut_off_anywhere_is_refused(adapter):
    content = adapter.read_bytes()
    for length in [*range(1, len(content), 23), *range(len(content) - 40, len(content))]:
        adapter.write_bytes(content[:length])
        with pytest.raises(BadInput, match=r"incomplete|damaged"):
            read_recipe(adapter)


def test_a_file_cut_off_in_its_tensors_says_how_much_is_missing(adapter):
    adapter.write_bytes(adapter.read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"a\.safetensors is incomplete: 5 bytes"):
        load_adapter(adapter)


def test_an_empty_and_a_missing_file_are_refused_by_name(tmp_path):
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(BadInput, match=r"empty\.safetensors is empty"):
        load_adapter(tmp_path / "empty.safetensors")
    with pytest.raises(BadInput, match=r"none\.safetensors cannot be read"):
        load_adapter(tmp_path / "none.safetensors")


def test_appended_bytes_are_refused(adapter):
    adapter.write_bytes(adapter.read_bytes() + b"x")
    with pytest.raises(BadInput, match="1 bytes too many"):
        load_adapter(adapter)


def test_a_recipe_that_was_edited_by_hand_is_refused(adapter, tmp_path):
    content = adapter.read_bytes().replace(b'\\"version\\":1', b'\\"version\\":2')
    assert content != adapter.read_bytes()
    adapter.write_bytes(content)
    with pytest.raises(BadInput, match="hash"):
        load_adapter(adapter)


def test_weights_without_recipe_and_other_files_are_no_adapters(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(BadInput, match="no recipe"):
        load_adapter(tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("this is a text, not an adapter", encoding="utf-8")
    with pytest.raises(BadInput, match="no safetensors file"):
        load_adapter(tmp_path / "text.safetensors")


def test_a_pickle_is_refused_unread(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(BadInput):
        load_adapter(tmp_path / "pickle.safetensors")


# formats


def test_a_newer_format_is_refused_with_the_advice_to_update():
    with pytest.raises(BadInput, match=f"format {FORMAT + 1}.*Update"):
        recipe_from_dict({**recipe_to_dict(RECIPE), "format": FORMAT + 1})


def test_a_file_of_a_newer_format_says_so_although_its_hash_may_be_made_otherwise(adapter):
    content = adapter.read_bytes().replace(b'\\"format\\":%d' % FORMAT, b'\\"format\\":9')
    adapter.write_bytes(content)
    with pytest.raises(BadInput, match="format 9"):
        load_adapter(adapter)


def test_older_formats_are_migrated_step_by_step():
    old = {**recipe_to_dict(RECIPE), "format": 1, "title": RECIPE.name}
    del old["name"]
    steps = {
        1: lambda data: {("label" if k == "title" else k): v for k, v in data.items()},
        2: lambda data: {("name" if k == "label" else k): v for k, v in data.items()},
    }
    assert recipe_from_dict(old, steps, newest=3) == dataclasses.replace(RECIPE, format=3)


@pytest.mark.parametrize("value", [None, "1", 0, 1.0, True])
def test_a_format_that_is_no_whole_number_is_refused(value):
    with pytest.raises(BadInput, match="format"):
        recipe_from_dict({**recipe_to_dict(RECIPE), "format": value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation", "relu"),
        ("structures", []),
        ("structures", [{"name": "liver"}]),
        ("window", [1, 2]),
        ("overlap", 1.0),
        ("version", "1"),
        ("name", "two\nlines"),
        ("preprocessing", None),
    ],
)
def test_recipes_with_impossible_values_are_refused(field, value):
    with pytest.raises(BadInput):
        recipe_from_dict({**recipe_to_dict(RECIPE), field: value})


def test_unknown_and_missing_fields_are_named():
    data = {**recipe_to_dict(RECIPE), "colour": 1}
    del data["method"]
    with pytest.raises(BadInput, match=r"\['colour'\].*\['method'\]"):
        recipe_from_dict(data)


# what may be in it


@pytest.mark.parametrize(
    "private",
    [
        {"scans": ["DOE_JOHN.nii.gz"]},
        {"folder": "/data/patients/doe"},
        {"folder": "C:\\Users\\clinic\\scan"},
        {"folder": "~/scans"},
        {"folder": Path("scans")},
        {"scores": {"doe.nrrd": 0.9}},
    ],
)
def test_a_record_that_names_scans_is_refused_and_nothing_is_written(private, tmp_path):
    with pytest.raises(BadInput, match="must not name scans"):
        save_adapter(tmp_path / "a.safetensors", dataclasses.replace(RECIPE, record=private), state())
    assert list(tmp_path.iterdir()) == []


def test_ordinary_facts_are_no_paths(tmp_path):
    record = {"licence": "CC BY-SA 4.0", "layer": "down_layers.0.1.conv1.weight", "unit": "mm/voxel", "v": "2.13.0"}
    save_adapter(tmp_path / "a.safetensors", dataclasses.replace(RECIPE, record=record), state())


def test_the_recipe_has_no_field_for_paths_and_the_file_holds_nothing_but_it(adapter):
    assert not [f.name for f in dataclasses.fields(Recipe) if "path" in f.name or "file" in f.name]
    header = json.loads(adapter.read_bytes()[8 : 8 + int.from_bytes(adapter.read_bytes()[:8], "little")])
    assert set(header) == {"__metadata__", *state()}
    assert set(header["__metadata__"]) == {"recipe", "sha256"}
    assert str(adapter.parent) not in header["__metadata__"]["recipe"]


def test_adapters_are_never_overwritten(adapter):
    before = adapter.read_bytes()
    with pytest.raises(BadInput, match="never overwritten"):
        save_adapter(adapter, RECIPE, state())
    assert adapter.read_bytes() == before


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(BadInput):
        save_adapter(tmp_path / "a.safetensors", RECIPE, state())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", " liver", "a" * 101, "a\tb"])
def test_names_that_cannot_be_shown_are_refused(name, tmp_path):
    with pytest.raises(BadInput, match="name"):
        save_adapter(tmp_path / "a.safetensors", dataclasses.replace(RECIPE, name=name), state())
