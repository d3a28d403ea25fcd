"""The table of structures: every list is complete and in order, names and aliases are clear, codes are well formed."""

from __future__ import annotations

import csv
import itertools
import re

import numpy as np
import pytest

from peftseg.errors import BadInput
from peftseg.grid import Grid
from peftseg.models import Structure
from peftseg.structures import LISTS, REGIONS, TABLE, TYPES, canonical_name, structures
from peftseg.study import paired_names
from peftseg.writing import check_structures, write_segmentation

COUNTS = {
    "monai-wholebody-104": 104,
    "totalsegmentator-v2-117": 117,
    "atlas-1.0-9": 9,
    "atlas-1.1-25": 25,
    "suprem-template-32": 32,
    "fseft-29": 29,
    "btcv-13": 13,
}
# The models' own names, in the order of their channels.
OWN_NAMES = {
    "atlas-1.0-9": "aorta gall_bladder kidney_left kidney_right liver pancreas postcava spleen stomach",
    "atlas-1.1-25": "aorta gall_bladder kidney_left kidney_right liver pancreas postcava spleen stomach "
    "adrenal_gland_left adrenal_gland_right bladder celiac_trunk colon duodenum esophagus femur_left femur_right "
    "hepatic_vessel intestine lung_left lung_right portal_vein_and_splenic_vein prostate rectum",
    "suprem-template-32": "spleen kidney_right kidney_left gall_bladder esophagus liver stomach aorta postcava "
    "portal_vein_and_splenic_vein pancreas adrenal_gland_right adrenal_gland_left duodenum hepatic_vessel lung_right "
    "lung_left colon intestine rectum bladder prostate femur_left femur_right celiac_truck kidney_tumor liver_tumor "
    "pancreas_tumor hepatic_vessel_tumor lung_tumor colon_tumor kidney_cyst",
    "fseft-29": "spleen rkidney lkidney gall esophagus liver stomach aorta postcava psv pancreas radrenal ladrenal "
    "duodenum bladder prost_ut liver_tumor kidney_tumor kidney_cyst celiac_truck rlung llung bone brain lung_tumor "
    "pancreas_tumor hv hvt colon_tumor",
    "btcv-13": "spleen Right-Kidney Left-Kideny Gallbladder Esophagus Liver Stomach Aorta IVC "
    "Portal-and-Splenic-Veins Pancreas Right-adrenal-gland Left-adrenal-gland",
}
CHANNELS = {  # channel of a model with background 0
    "monai-wholebody-104": {
        1: "spleen",
        7: "aorta",
        17: "lung_lower_lobe_right",
        18: "vertebrae_L5",
        41: "vertebrae_C1",
        48: "heart_ventricle_right",
        58: "rib_left_1",
        81: "rib_right_12",
        93: "face",
        104: "urinary_bladder",
    },
    "totalsegmentator-v2-117": {
        1: "spleen",
        7: "pancreas",
        24: "kidney_cyst_right",
        26: "vertebrae_S1",
        50: "vertebrae_C1",
        52: "aorta",
        61: "atrial_appendage_left",
        79: "spinal_cord",
        92: "rib_left_1",
        115: "rib_right_12",
        117: "costal_cartilages",
    },
}
WITHOUT_CODE = {"intestine", "hepatic vessel tumor", "prostate or uterus"}
TRIPLE = re.compile(r"SCT\^\d{6,18}\^[A-Z][^~^|]+")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def everything() -> dict[str, Structure]:
    return {s.name: s for name in LISTS for s in structures(name)}


def swapped(name: str) -> str:
    return re.sub(r"\b(left|right)\b", lambda m: {"left": "right", "right": "left"}[m.group()], name)


def test_the_lists_are_the_table_s_columns_and_every_structure_is_in_one(rows):
    assert tuple(LISTS) == tuple(COUNTS) == tuple(rows[0])[-len(LISTS) :]
    assert set(everything()) == {row["name"] for row in rows}
    assert len({row["name"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_counts_its_channels_from_one_without_background(name):
    found = structures(name)
    check_structures(found)
    assert [s.value for s in found] == list(range(1, COUNTS[name] + 1))


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_list_is_in_the_order_of_the_model_s_own_names(name):
    assert [canonical_name(own) for own in OWN_NAMES[name].split()] == [s.name for s in structures(name)]


@pytest.mark.parametrize("name", CHANNELS)
def test_known_channels_of_the_whole_body_models_are_where_they_belong(name):
    found = {s.value: s.name for s in structures(name)}
    assert {c: canonical_name(own) for c, own in CHANNELS[name].items()} == {c: found[c] for c in CHANNELS[name]}


@pytest.mark.parametrize("name", LISTS)
def test_only_left_and_right_and_tumors_share_a_colour_and_nothing_shares_a_code(name):
    for first, second in itertools.combinations(structures(name), 2):
        assert first.code != second.code or first.code == ""
        if first.colour == second.colour:
            assert first.name == swapped(second.name) or (first.name[-6:], second.name[-6:]) == (" tumor", " tumor")
    assert all(0 <= c <= 255 for s in structures(name) for c in s.colour)


@pytest.mark.parametrize("name", LISTS)
def test_left_and_right_are_both_there_and_recognised_as_pairs(name):
    names = [s.name for s in structures(name)]
    alone = {"left atrial appendage", "middle lobe of right lung"}
    sided = {n for n in names if swapped(n) != n} - alone
    pairs = paired_names(names)
    assert {n for pair in pairs for n in pair} == sided
    assert all(left == swapped(right) and "left" in left for left, right in pairs)


def test_codes_are_whole_terminology_entries():
    assert {s.name for s in everything().values() if not s.code} == WITHOUT_CODE
    for structure in everything().values():
        if not structure.code:
            continue
        context, category, kind, modifier, regions, region, region_modifier = structure.code.split("~")
        assert (context, regions) == (TYPES, REGIONS)
        assert TRIPLE.fullmatch(category)
        assert TRIPLE.fullmatch(kind)
        assert all(t == "^^" or TRIPLE.fullmatch(t) for t in (modifier, region, region_modifier))
        side = {"left": "Left", "right": "Right"}.get(structure.name.split()[0], "")
        if side and kind.split("^")[2] not in ("Left atrium", "Right atrium") and "of heart" not in structure.name:
            assert side in (modifier.split("^")[2], region_modifier.split("^")[2])


def test_a_written_segmentation_carries_category_type_region_and_side(tmp_path):
    slicerio = pytest.importorskip("slicerio")
    found = structures("totalsegmentator-v2-117")
    write_segmentation(tmp_path / "a.seg.nrrd", np.zeros((3, 4, 5), np.uint8), Grid((3, 4, 5), np.eye(4)), found, {})
    read = {s["name"]: s["terminology"] for s in slicerio.read_segmentation(str(tmp_path / "a.seg.nrrd"))["segments"]}
    assert set(read) == {s.name for s in found}
    kidney, cyst = read["right kidney"], read["left kidney cyst"]
    assert kidney["contextName"] == "Segmentation category and type - DICOM master list"
    assert kidney["category"] == ["SCT", "123037004", "Anatomical Structure"]
    assert kidney["type"] == ["SCT", "64033007", "Kidney"]
    assert kidney["typeModifier"] == ["SCT", "24028007", "Right"]
    assert "anatomicRegion" not in kidney
    assert cyst["anatomicRegion"] == ["SCT", "64033007", "Kidney"]
    assert cyst["anatomicRegionModifier"] == ["SCT", "7771000", "Left"]


def test_codes_that_are_known_by_heart():
    known = {"spleen": 78961009, "liver": 10200004, "aorta": 15825003, "pancreas": 15776009, "stomach": 69695003}
    assert {n: int(everything()[n].code.split("~")[2].split("^")[1]) for n in known} == known


def test_what_models_share_has_one_name_one_colour_and_one_code():
    shared = set.intersection(*({s.name for s in structures(name)} for name in LISTS))
    assert shared == {
        *("aorta", "gallbladder", "inferior vena cava", "left kidney", "liver", "pancreas", "right kidney"),
        *("spleen", "stomach"),
    }
    for name in LISTS:
        assert all(
            (s.colour, s.code) == (everything()[s.name].colour, everything()[s.name].code) for s in structures(name)
        )


def test_an_alias_means_one_structure(rows):
    meant: dict[str, str] = {}
    for row in rows:
        for name in (row["name"], *filter(None, row["aliases"].split("|"))):
            assert canonical_name(name) == row["name"]
            key = re.sub(r"[\s_-]+", " ", name.strip().lower())
            assert meant.setdefault(key, row["name"]) == row["name"]


def test_names_are_found_in_any_spelling_and_unknown_ones_are_not():
    assert canonical_name("Kidney_Right") == canonical_name("RKIDNEY") == "right kidney"
    assert canonical_name(" inferior-vena  cava ") == "inferior vena cava"
    assert canonical_name("oesophagus") == "esophagus"
    assert canonical_name("hippocampus") is None
    assert canonical_name("") is None


def test_an_unknown_list_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match="btcv-13"):
        structures("btcv-14")
