"""Which presets and options of adaptation without labels do something for a model, for who offers them. Torch-free."""

from __future__ import annotations

from functools import cache
from typing import Any

from peftseg.models import ModelEntry
from peftseg.sealed_file import tensor_names
from peftseg.site_options import (
    PRESETS,
    SITE_OPTIONS,
    Option,
    check_site_options,
    recalibrates_after,
    recalibrates_before,
    without_statistics,
)

RUNNING_MEAN = ".running_mean"
UNUSED = ("unet3d",)  # networks that hold running statistics and never use them, see `networks.unet3d`
MAIN_OPTIONS = ("confidence", "source_weight", "rank")


def has_running_statistics(entry: ModelEntry) -> bool:
    """Whether a model has batch normalisation whose statistics can be recalibrated, by its weights' header.

    True where the weights are not on this machine: nobody knows. `adabn.running_norms` says it of the network itself.

    Raises
    ------
    BadInput
        The weights' file is damaged or cannot be read.
    """
    if entry.weights_path is None:
        return True
    if entry.network.name in UNUSED:
        return False
    return any(name.endswith(RUNNING_MEAN) for name in tensor_names(entry.weights_path))


@cache
def presets_for(running_statistics: bool) -> tuple[str, ...]:
    """The presets that do something for a model with or without running statistics, each another thing.

    Without them recalibration alone is nothing, and of those that differ in it only the first is left.
    """
    found: dict[str, str] = {}
    for preset in PRESETS:
        options = settled(preset, {}, running_statistics)
        if options["train"] != "none" or recalibrates_before(options):
            found.setdefault(repr(options), preset)
    return tuple(found.values())


def settled(preset: str, options: dict[str, Any], running_statistics: bool) -> dict[str, Any]:
    """All options as they count for a model; BadInput as `site_options.check_site_options`."""
    checked = check_site_options(preset, options)
    return checked if running_statistics else without_statistics(checked)


def main_options(options: dict[str, Any]) -> tuple[Option, ...]:
    """Of `MAIN_OPTIONS` those that change something, given all options as they count."""
    matters = {
        "confidence": options["train"] != "none",
        "source_weight": recalibrates_before(options) or recalibrates_after(options),
        "rank": options["train"] == "convlora",
    }
    return tuple(option for option in SITE_OPTIONS if option.name in MAIN_OPTIONS and matters[option.name])
