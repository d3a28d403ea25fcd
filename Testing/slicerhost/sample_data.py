"""The module `SampleData`: registrations are checked and kept as Slicer keeps them, nothing is downloaded."""

from __future__ import annotations

import types
from pathlib import Path

import slicer

FIELDS = ("uris", "fileNames", "nodeNames", "loadFileTypes", "loadFiles", "checksums")


class SampleDataSource:
    """One sample, with a list entry a file in each of `FIELDS`."""

    def __init__(self, **given):
        self.sampleName = given["sampleName"]
        self.customDownloader = given["customDownloader"]
        self.thumbnailFileName = given["thumbnailFileName"]
        count = 1 if isinstance(given["uris"], str) else len(given["uris"])  # TypeError without addresses, as in Slicer
        for name in FIELDS:
            value = given[name]
            setattr(self, name, list(value) if isinstance(value, (list, tuple)) else [value] * count)


class SampleDataLogic:
    """The part of Slicer's class that modules register their samples with."""

    sources: list[dict]
    categories: dict[str, str]

    @classmethod
    def registerCustomSampleDataCategory(cls, category, title) -> None:
        cls.categories[category] = title

    @classmethod
    def registerCustomSampleDataSource(
        cls,
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        loadFileType=None,
    ) -> None:
        source = {name: value for name, value in locals().items() if name != "cls"}
        counts = {name: len(source[name]) for name in FIELDS if isinstance(source[name], (list, tuple))}
        if len(set(counts.values())) > 1:
            raise ValueError(f"sample {sampleName!r}: the lists differ in length: {counts}")
        if thumbnailFileName and not Path(thumbnailFileName).is_file():
            raise FileNotFoundError(f"sample {sampleName!r}: no picture {thumbnailFileName}")
        if not customDownloader and not (uris and checksums):
            raise ValueError(f"sample {sampleName!r} needs an address and a checksum, or a customDownloader")
        vars(slicer.modules).setdefault("sampleDataSources", {}).setdefault(category, []).append(
            SampleDataSource(**source)
        )
        cls.sources.append(source)

    @classmethod
    def isSampleDataSourceRegistered(cls, category, sampleDataSource) -> bool:
        return any((s["category"], s["sampleName"]) == (category, sampleDataSource.sampleName) for s in cls.sources)


def build() -> types.ModuleType:
    """Build the module, without registrations."""
    module = types.ModuleType("SampleData")
    SampleDataLogic.sources, SampleDataLogic.categories = [], {}
    module.SampleDataLogic, module.SampleDataSource = SampleDataLogic, SampleDataSource
    vars(getattr(slicer, "modules", module)).pop("sampleDataSources", None)
    return module
