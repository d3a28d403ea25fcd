"""The few resource files without which Slicer's logics complain: colour tables and terminologies, in short versions."""

from __future__ import annotations

import json
from pathlib import Path

COLOURS = ((128, 174, 128), (241, 214, 145), (177, 122, 101), (111, 184, 210), (216, 101, 79), (221, 130, 101))
TISSUE = {"CodingSchemeDesignator": "SCT", "CodeValue": "85756007", "CodeMeaning": "Tissue"}
ORGAN = {"CodingSchemeDesignator": "SCT", "CodeValue": "123037004", "CodeMeaning": "Anatomical Structure"}
TYPES = (("10200004", "Liver"), ("78961009", "Spleen"), ("64033007", "Kidney"), ("9875009", "Urinary bladder"))
CONTEXTS = ("SegmentationCategoryTypeModifier-SlicerGeneralAnatomy", "SegmentationCategoryTypeModifier-DICOM-Master")
SCHEMAS = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas"
REGIONS = "AnatomicRegionAndModifier-DICOM-Master"


def write(folder: Path) -> None:
    """Write all files below `folder`."""
    colours = folder / "ColorFiles"
    colours.mkdir(parents=True)
    lines = [f"{i} region_{i} {r} {g} {b} 255" for i, (r, g, b) in enumerate(COLOURS * 10, start=1)]
    for name in ("GenericColors", "GenericAnatomyColors", "DarkBrightChartColors"):
        (colours / f"{name}.txt").write_text("\n".join(["# " + name, "0 background 0 0 0 0", *lines]) + "\n")
    for name in CONTEXTS:
        write_json(folder, name, terminology(name))
    region = {
        "@schema": f"{SCHEMAS}/anatomic-context-schema.json#",
        "AnatomicContextName": REGIONS,
        "AnatomicCodes": {"AnatomicRegion": [typed(*TYPES[0])]},
    }
    write_json(folder, REGIONS, region)


def typed(code: str, meaning: str) -> dict:
    """Describe one structure."""
    return {
        "CodingSchemeDesignator": "SCT",
        "CodeValue": code,
        "CodeMeaning": meaning,
        "recommendedDisplayRGBValue": [221, 130, 101],
    }


def terminology(name: str) -> dict:
    """Describe a context with tissues and a few organs."""
    tissue = {**TISSUE, "showAnatomy": "true", "Type": [{**TISSUE, "recommendedDisplayRGBValue": [128, 174, 128]}]}
    organs = {**ORGAN, "showAnatomy": "false", "Type": [typed(*organ) for organ in TYPES]}
    return {
        "SegmentationCategoryTypeContextName": name.replace("-", " "),
        "@schema": f"{SCHEMAS}/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [tissue, organs]},
    }


def write_json(folder: Path, name: str, content: dict) -> None:
    """Write one terminology file."""
    (folder / f"{name}.term.json").write_text(json.dumps(content), encoding="utf-8")
