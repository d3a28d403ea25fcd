"""Several adapters on one study: one base, shared preprocessing, and what becomes of structures that meet."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from peftseg import several as module
from peftseg.adapter_file import load_adapter, save_adapter
from peftseg.apply import run_apply
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.models import ModelEntry, Structure, read_model_dir
from peftseg.networks import build
from peftseg.paths import models_dir
from peftseg.segmenter import adapter_segmenter, segment_volume
from peftseg.several import load_several, segment_with
from peftseg.several_rules import RULES, combine
from peftseg.volume import Grid, Volume, write_volume
from peftseg.weights import save_model
from test_apply import ENTRY, OBLIQUE, job, make_adapter, warnings_of

CPU = torch.device("cpu")
LIVER, SPLEEN, LESION = Structure("liver", 1), Structure("spleen", 1), Structure("lesion", 2)


@pytest.fixture
def base() -> ModelEntry:
    """A random model in the user's models folder."""
    torch.manual_seed(0)
    save_model(models_dir() / "tiny", ENTRY, build(ENTRY.network, 3)[0])
    return read_model_dir(models_dir() / "tiny")


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).normal(size=(18, 20, 14)).astype(np.float32)
    return Volume(array, Grid(array.shape, OBLIQUE), "study")


def adapter(folder, entry, name, structures, *, bias=None, activation="softmax", recipe=None):
    """An adapter file; with `bias` it says the same everywhere, else it is random (`recipe` changes its recipe)."""
    path = make_adapter(folder / f"{name}.raw.safetensors", entry, structures, activation, bias)
    found, state, _ = load_adapter(path)
    target = folder / f"{name}.safetensors"
    save_adapter(target, dataclasses.replace(found, name=name, **(recipe or {})), state)
    return target


def values_of(several, merged) -> dict[str, float]:
    """Structure -> share of the voxels."""
    return {s.name: float((merged.result == s.value).mean()) for s in several.structures}


# the structures of the result


def test_values_that_two_adapters_use_for_different_structures_become_different_ones():
    found = combine([(LIVER, LESION), (SPLEEN, Structure("lesion", 7))])
    assert [(s.name, s.value) for s in found.structures] == [("liver", 1), ("lesion", 2), ("spleen", 3)]
    assert found.sources == {"liver": (0,), "lesion": (0, 1), "spleen": (1,)}
    assert found.shared == ("lesion",)
    assert len({s.colour for s in found.structures}) == 3


def test_values_that_are_free_stay_as_they_are():
    found = combine([(LIVER,), (Structure("aorta", 52),)])
    assert [(s.name, s.value) for s in found.structures] == [("liver", 1), ("aorta", 52)]


# segmenting


@pytest.mark.parametrize("rule", RULES)
def test_of_adapters_with_different_structures_each_result_is_found_where_no_other_claims_it(
    base, volume, tmp_path, rule
):
    files = [adapter(tmp_path, base, s.name, (s,), recipe={"version": n}) for n, s in enumerate((LIVER, SPLEEN), 1)]
    several = load_several(files, rule)
    merged = segment_with(several, volume, CPU, precision="fp32")
    own = [segment_volume(adapter_segmenter(file), volume, CPU, precision="fp32") != 0 for file in files]
    liver, spleen = (merged.result == s.value for s in several.structures)
    assert np.array_equal(liver | spleen, own[0] | own[1])
    assert not (liver & ~own[0]).any()
    assert not (spleen & ~own[1]).any()
    if rule in ("first", "union"):
        assert np.array_equal(liver, own[0])
    disputed = int((own[0] & own[1]).sum())
    assert bool(merged.notes) == bool(disputed)
    layered = segment_with(several, volume, CPU, precision="fp32", layers=True)
    assert np.array_equal(layered.result, np.stack(own))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("first", 0.0), ("union", 1.0), ("most_confident", 1.0), ("average", 1.0)],
)
def test_a_structure_of_two_adapters_is_settled_by_the_rule(base, volume, tmp_path, rule, expected):
    """The first says no with probability 0.6, the second yes with 0.95."""
    unsure = adapter(tmp_path, base, "unsure", (LIVER,), bias=[0.405, 0.0])
    sure = adapter(tmp_path, base, "sure", (LIVER,), bias=[0.0, 2.944])
    several = load_several([unsure, sure], rule)
    for layers in (False, True):
        merged = segment_with(several, volume, CPU, precision="fp32", layers=layers)
        assert merged.result.mean() == pytest.approx(expected)
        assert merged.result.shape == ((1, *volume.array.shape) if layers else volume.array.shape)
    assert [s.name for s in several.structures] == ["liver"]


def test_average_and_most_confident_differ_where_many_doubt_and_one_is_sure(base, volume, tmp_path):
    """Two say no with 0.75, one yes with 0.9: the mean probability of yes is 0.47."""
    files = [adapter(tmp_path, base, f"no{n}", (LIVER,), bias=[1.1, 0.0], recipe={"version": n}) for n in (1, 2)]
    files.append(adapter(tmp_path, base, "yes", (LIVER,), bias=[0.0, 2.2]))
    means = {rule: segment_with(load_several(files, rule), volume, CPU).result.mean() for rule in RULES}
    assert means == {"first": 0.0, "union": 1.0, "most_confident": 1.0, "average": 0.0}


def test_of_two_claims_to_a_voxel_the_more_probable_counts_by_probability_and_the_first_else(base, volume, tmp_path):
    files = [
        adapter(tmp_path, base, "weak", (LIVER,), bias=[0.0, 0.5]),
        adapter(tmp_path, base, "strong", (SPLEEN,), bias=[0.0, 3.0]),
    ]
    for rule, winner in (("first", "liver"), ("union", "liver"), ("most_confident", "spleen"), ("average", "spleen")):
        several = load_several(files, rule)
        merged = segment_with(several, volume, CPU)
        assert values_of(several, merged)[winner] == 1.0
        assert "ml are one structure to one adapter" in merged.notes[0]


def test_the_base_is_loaded_once_and_equal_preprocessing_is_done_once(base, volume, tmp_path, monkeypatch):
    calls = {"base": 0, "prepare": 0}

    def counted(name, function):
        def run(*arguments):
            calls[name] += 1
            return function(*arguments)

        return run

    monkeypatch.setattr(module, "base_for", counted("base", module.base_for))
    monkeypatch.setattr(module, "prepare", counted("prepare", module.prepare))
    other = {"preprocessing": dataclasses.replace(base.preprocessing, spacing=(3.0, 3.0, 3.0))}
    files = [
        adapter(tmp_path, base, "a", (LIVER,)),
        adapter(tmp_path, base, "b", (SPLEEN,), recipe=other),
        adapter(tmp_path, base, "c", (LESION,)),
    ]
    several = load_several(files)
    segment_with(several, volume, CPU)
    assert calls == {"base": 1, "prepare": 2}


def test_an_adapter_with_overlapping_structures_gives_layers(base, volume, tmp_path):
    plain = adapter(tmp_path, base, "plain", (LIVER,), bias=[0.0, 1.0])
    nested = adapter(tmp_path, base, "nested", (LIVER, LESION), bias=[2.0, 2.0], activation="sigmoid")
    several = load_several([plain, nested], "average")
    assert several.activation == "sigmoid"
    result = segment_with(several, volume, CPU).result
    assert result.shape == (2, *volume.array.shape)
    assert result.all()


def test_every_adapter_is_named_in_what_the_result_carries(base, tmp_path):
    files = [adapter(tmp_path, base, "a", (LIVER,)), adapter(tmp_path, base, "b", (LIVER, SPLEEN))]
    hashes = [load_adapter(file)[2] for file in files]
    facts = load_several(files, "union").provenance
    assert facts["adapter"] == "a; b"
    assert facts["adapter_hash"] == "; ".join(hashes)
    assert (facts["adapter_2"], facts["adapter_2_version"], facts["adapter_2_hash"]) == ("b", "4", hashes[1])
    assert facts["base"] == base.id
    assert facts["merge_rule"] == "union"
    assert facts["structures_of_adapters"] == "liver: 1, 2; spleen: 2"
    assert all(isinstance(value, str) for value in facts.values())


def test_what_makes_no_sense_is_refused(base, tmp_path):
    file = adapter(tmp_path, base, "a", (LIVER,))
    with pytest.raises(BadInput, match="two or more"):
        load_several([file])
    with pytest.raises(BadInput, match="named twice"):
        load_several([file, file])
    with pytest.raises(BadInput, match=r"Unknown merge rule 'vote'; valid: first"):
        load_several([file, file], "vote")


# scans of another kind


def mr_scan(folder):
    """A file whose grey values look like MR."""
    values = np.random.default_rng(0).integers(50, 900, (14, 12, 10)).astype(np.float32)
    write_volume(folder / "mr.nii.gz", values, Grid(values.shape, OBLIQUE))
    return folder / "mr.nii.gz"


def warned(folder, scan, *adapters) -> list[str]:
    reporter = Reporter.silent()
    run_apply(job(folder, scan, adapters=tuple(str(path) for path in adapters)), reporter)
    return [text for text in warnings_of(reporter) if "made for" in text]


def test_several_adapters_are_warned_about_scans_of_another_kind_as_one_is(base, tmp_path):
    both = [adapter(tmp_path, base, name, (s,)) for name, s in (("one", LIVER), ("two", SPLEEN))]
    assert warned(tmp_path / "out", mr_scan(tmp_path), *both) == [
        "mr: the scan looks like MR, but the model is made for CT: do not trust the result."
    ]


def test_of_adapters_for_different_scans_the_one_that_does_not_fit_is_named(base, tmp_path):
    entry = dataclasses.replace(ENTRY, id="other", modality="MR")
    torch.manual_seed(1)
    save_model(models_dir() / "other", entry, build(ENTRY.network, 3)[0])
    other = read_model_dir(models_dir() / "other")
    both = [adapter(tmp_path, base, "for CT", (LIVER,)), adapter(tmp_path, other, "for MR", (SPLEEN,))]
    assert warned(tmp_path / "out", mr_scan(tmp_path), *both) == [
        "mr: the scan looks like MR, but the model of 'for CT' is made for CT: do not trust the result."
    ]
