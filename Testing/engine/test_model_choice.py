"""Which models are offered first for a scan, and what grey values tell of a modality."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from peftseg.model_choice import other_kind, regions_of
from peftseg.models import (
    Intensity,
    ModelEntry,
    NetworkSpec,
    Preprocessing,
    catalogue,
    guess_modality,
    rank_models,
)
from peftseg.phantom import make_case
from peftseg.volume import read_volume


def entry(id_: str, modality: str, body_part: str = "", **fields) -> ModelEntry:
    base = ModelEntry(
        id=id_,
        title=id_,
        modality=modality,
        structures=(),
        network=NetworkSpec("segresnet", {}),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(16, 16, 16),
        overlap=0.5,
        licence="MIT",
        body_part=body_part,
    )
    return dataclasses.replace(base, **fields)


ENTRIES = (
    entry("demo", "CT", "abdomen", title="Made-up abdomen (demonstration)"),
    entry("brain", "MR", "brain"),
    entry("body", "CT", "whole body"),
    entry("trunk", "CT", "abdomen and thorax"),
    entry("belly", "CT", "abdomen"),
    entry("any", "", ""),
)


def order(modality: str, body_part: str = "") -> list[str]:
    return [e.id for e, _ in rank_models(ENTRIES, modality, body_part)]


def reasons(modality: str, body_part: str = "") -> dict[str, str]:
    return {e.id: reason for e, reason in rank_models(ENTRIES, modality, body_part)}


def test_the_model_of_just_this_part_comes_before_that_of_more_and_that_of_the_whole_body():
    assert order("CT", "abdomen") == ["belly", "trunk", "body", "demo", "any", "brain"]
    assert order("CT", "ABDOMEN")[0] == "belly"
    assert order("CT", "chest")[:3] == ["trunk", "body", "belly"]
    assert order("CT", "CHESTABDPELVIS")[0] == "body"
    assert order("CT", "CHESTABDOMEN")[0] == "trunk"
    assert order("CT", "whole body")[0] == "body"
    assert order("MR", "HEAD")[0] == "brain"


def test_every_model_is_listed_once_with_a_reason_in_words():
    found = reasons("CT", "abdomen")
    assert len(found) == len(ENTRIES)
    assert found["belly"] == "for CT of the abdomen"
    assert found["body"] == "for CT, whole body"
    assert found["brain"] == "made for MR: this scan looks like CT"
    assert found["demo"] == "for CT of the abdomen; for demonstration only"
    assert found["any"] == "for any scan"
    assert reasons("MR", "knee")["brain"] == "made for MR of the brain: this scan shows the limbs"


def test_another_modality_comes_last_whatever_its_body_part():
    assert order("MR", "abdomen")[-4:] == [e for e in order("MR", "abdomen") if e not in ("brain", "any")]
    assert order("PT")[0] == "any"
    assert reasons("PT")["belly"] == "made for CT: this scan looks like PT"


def test_nothing_known_keeps_the_catalogues_order_but_for_demonstrations():
    assert order("") == ["brain", "body", "trunk", "belly", "any", "demo"]


def test_of_equally_good_models_those_whose_weights_are_here_come_first(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    pair = [entry("far", "CT"), entry("here", "CT", directory=tmp_path), entry("far too", "CT")]
    assert [e.id for e, _ in rank_models(pair, "CT")] == ["here", "far", "far too"]


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("", set()),
        ("ABDOMEN", {"abdomen"}),
        ("CT_THORAX_LUNG 1.0 B70f", {"thorax"}),
        ("t1_mprage", set()),
        ("Whole Body", {"whole body"}),
        ("CHESTABDPELVIS", {"thorax", "abdomen", "pelvis"}),
        ("head and neck", {"brain", "neck"}),
    ],
)
def test_words_of_headers_and_descriptions_are_understood(text, regions):
    assert regions_of(text) == regions


def test_every_model_of_the_catalogue_is_understood():
    entries = list(catalogue().values())
    for model in entries:
        assert model.modality in ("CT", "MR")
        assert regions_of(model.body_part), model.id
    assert rank_models(entries, "MR", "brain")[0][0].modality == "MR"


def grey(rng: np.random.Generator, *parts: tuple[float, float, int]) -> np.ndarray:
    return np.concatenate([rng.normal(mean, sd, n) for mean, sd, n in parts])


@pytest.mark.parametrize(
    ("parts", "modality"),
    [
        (((-1000, 20, 5000), (-100, 20, 2000), (50, 20, 3000), (700, 200, 200)), "CT"),
        (((-100, 20, 3000), (50, 20, 6000), (400, 100, 300)), "CT"),  # a crop without air
        (((-3024, 0, 3000), (-1000, 20, 3000), (50, 20, 4000), (700, 200, 200)), "CT"),  # padded
        (((200, 50, 5000), (800, 100, 5000)), "MR"),
        (((0, 1, 9000),), ""),  # normalised by some program
        (((0, 1500, 9000),), ""),  # a phase image
        (((24, 5, 3000), (924, 20, 2000), (1074, 20, 5000)), ""),  # CT without its offset
        (((5, 0, 1000),), ""),
    ],
)
def test_grey_values_tell_the_modality_or_nothing(parts, modality):
    assert guess_modality(grey(np.random.default_rng(0), *parts)) == modality


@pytest.mark.parametrize(
    ("modality", "told", "kind"),
    [
        ("MR", "", "CT"),
        ("MR (T1)", "CT", "CT"),
        ("MR", "MR", ""),
        ("CT", "", ""),
        ("CT and MR", "PT", "PT"),
        ("", "CT", ""),
    ],
)
def test_a_scan_of_another_kind_than_the_model_is_made_for_is_named(modality, told, kind):
    ct = grey(np.random.default_rng(0), (-1000, 20, 5000), (50, 20, 5000), (700, 200, 200))
    assert other_kind(modality, ct, told) == kind


def test_odd_arrays_tell_nothing():
    assert guess_modality(np.zeros((0, 3))) == guess_modality(np.full((4, 4, 4), np.nan)) == ""
    assert guess_modality(np.arange(8, dtype=np.uint8).repeat(100).reshape(8, 10, 10)) == ""
    with_holes = grey(np.random.default_rng(0), (200, 50, 5000), (800, 100, 5000))
    with_holes[:10] = np.nan
    assert guess_modality(with_holes) == "MR"


def test_made_up_scans_look_like_ct():
    assert guess_modality(make_case(0).volume.array) == "CT"


@pytest.mark.realdata
def test_real_scans_are_told_apart(shared_data):
    mr = sorted((shared_data / "hippocampus_msd").rglob("images/*.nii.gz"))
    mr += sorted((shared_data / "subcortical_ixi").rglob("images/*.nii.gz"))
    assert len(mr) > 80
    assert {str(p) for p in mr if guess_modality(read_volume(p).array) != "MR"} == set()
    assert guess_modality(read_volume(shared_data / "spleen_ct" / "image.nii.gz").array) == "CT"
    label = read_volume(shared_data / "spleen_ct" / "label.nii.gz").array
    assert guess_modality(label) == ""
