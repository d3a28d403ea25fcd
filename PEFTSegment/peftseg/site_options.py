"""Options and presets of adaptation without labels (`peftseg site-adapt`). Torch-free.

The defaults are the sound variants, the presets `published`, `udas`, `udas_convlora` and `self_training` the lines of the
paper's Table 1 (Aleem et al., "ConvLoRA and AdaBN based domain adaptation via self-training") as its code runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftseg.adapters.options import Option, all_checked, filled
from peftseg.errors import BadInput, unknown_name

SITE = "site"  # the `method` of a site adapter
EARLY_LEVEL = 1  # of a head that is fitted where the base has none
DEFAULT_PRESET = "matched"
DEFAULT_EPOCHS = 5
UDAS_EPOCHS = 50  # at most: it stops when the agreement stands still
_BEFORE, _AFTER = ("before", "both"), ("after", "both")

SITE_OPTIONS: tuple[Option, ...] = (
    Option(
        "grey_values",
        "auto",
        "Whether a curve brings the site's grey values to those that the model learnt from: as_they_are, matched, or auto "
        "(where they differ, and the model's own results get no worse by it).",
        choices=("as_they_are", "matched", "auto"),
    ),
    Option(
        "train",
        "convlora",
        "What learns: convlora (a small low-rank change of the encoder's convolutions), encoder (its weights themselves), "
        "first_path (the weights of its first block), network (all weights), or none (recalibration only).",
        choices=("convlora", "encoder", "first_path", "network", "none"),
    ),
    Option(
        "depth",
        None,
        "Deepest encoder level that learns, from 0 (the first one) on; left out, that of the early head.",
        minimum=0,
    ),
    Option(
        "level",
        None,
        "Level of the early segmentation head, from 0 (full resolution) on; left out, that of the model's own head, or 1.",
        minimum=0,
    ),
    Option("rank", 2, "Number of components that each adapted layer gets.", minimum=1),
    Option("alpha", 2.0, "The change is multiplied by alpha / rank.", minimum=1e-3),
    Option(
        "form",
        "auto",
        "How a convolution's weight is factorised: loralib (as published), window (true rank, any kernel), or auto (loralib "
        "where all sides of the kernel are equal).",
        choices=("auto", "loralib", "window"),
    ),
    Option("train_norm", False, "Train the normalisation inside the adapted blocks, too, as the released code does."),
    Option(
        "adabn",
        "both",
        "When the statistics of batch normalisation are recalibrated on the site's scans: none, before or after "
        "training, both, or moving (a running mean during training, as published; needs bn_mode=batch).",
        choices=("none", "before", "after", "both", "moving"),
    ),
    Option("source_weight", 0.0, "Share of the model's own statistics in recalibrated ones, 0 to 1.", minimum=0.0),
    Option(
        "bn_mode",
        "adabn_pre",
        "Statistics of batch normalisation during training: adabn_pre (recalibrated ones), source (the model's own), or "
        "batch (those of each batch, as published).",
        choices=("adabn_pre", "source", "batch"),
    ),
    Option(
        "through",
        "early",
        "What is compared with the pseudo-labels: early (the early segmentation head) or final (the model's own result).",
        choices=("early", "final"),
    ),
    Option(
        "targets",
        "detached",
        "Pseudo-labels: detached (probabilities, taken as given), hard (yes or no, taken as given), or soft_attached "
        "(probabilities that are moved by the training, too, as published).",
        choices=("detached", "hard", "soft_attached"),
    ),
    Option(
        "teacher",
        "student",
        "Who makes the pseudo-labels: student (the network that learns), frozen (the network as it was before "
        "training), or ema (a moving average of the network that learns).",
        choices=("student", "frozen", "ema"),
    ),
    Option("ema", 0.99, "Share of the old average that each step keeps, 0 to below 1.", minimum=0.0),
    Option(
        "confidence", 0.0, "Only voxels with at least this probability are learned from, 0 (all) to 1.", minimum=0.0
    ),
    Option(
        "loss",
        "cross_entropy",
        "How early head and pseudo-labels are compared: cross_entropy (as published), or with_dice (overlap as well).",
        choices=("cross_entropy", "with_dice"),
    ),
    Option(
        "keep",
        "last",
        "Which state is kept: last, or agreement (the epoch in which early head and result agree best, nearly as published).",
        choices=("last", "agreement"),
    ),
    Option(
        "stop_change", 0.0, "Stop when the agreement changes by less than this in an epoch; 0 for never.", minimum=0.0
    ),
    Option("lr_adapter", 1e-4, "Learning rate of the low-rank change.", minimum=0.0),
    Option("lr_norm", 1e-4, "Learning rate of normalisation layers.", minimum=0.0),
    Option("lr_body", 1e-4, "Learning rate of weights that are trained themselves.", minimum=0.0),
)

_AS_THEY_ARE: dict[str, Any] = {"grey_values": "as_they_are"}
_PUBLISHED: dict[str, Any] = {
    **_AS_THEY_ARE,
    "form": "loralib",
    "train_norm": True,
    "bn_mode": "batch",
    "targets": "soft_attached",
    "keep": "agreement",
}
PRESETS: dict[str, dict[str, Any]] = {
    DEFAULT_PRESET: {},
    "convlora": {**_AS_THEY_ARE, "adabn": "none", "bn_mode": "source"},
    "convlora_adabn": _AS_THEY_ARE,
    "adabn": {**_AS_THEY_ARE, "train": "none", "adabn": "before"},
    "self_training": {
        **_AS_THEY_ARE,
        "train": "network",
        "through": "final",
        "targets": "hard",
        "confidence": 0.9,
        "adabn": "none",
        "bn_mode": "source",
        "lr_norm": 1e-5,
        "lr_body": 1e-5,
    },
    "udas": {
        **_PUBLISHED,
        "train": "first_path",
        "train_norm": False,
        "level": 0,
        "adabn": "moving",
        "stop_change": 0.005,
        "lr_norm": 1e-3,
        "lr_body": 1e-3,
    },
    "udas_convlora": {**_PUBLISHED, "depth": 0, "level": 0, "adabn": "none"},
    "published": {**_PUBLISHED, "depth": 3, "level": 3, "adabn": "moving"},
}
PRESET_TITLES = {
    DEFAULT_PRESET: "Matched grey values, ConvLoRA and recalibrated normalisation (recommended)",
    "convlora": "ConvLoRA alone",
    "convlora_adabn": "ConvLoRA and recalibrated normalisation",
    "adabn": "Recalibrated normalisation alone",
    "self_training": "Plain self-training of the whole network",
    "udas": "UDAS: self-training of the first layers, as published",
    "udas_convlora": "ConvLoRA in the first layers, as published",
    "published": "ConvLoRA in the whole encoder and moving normalisation, as published",
}


def check_site_options(preset: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options: the given ones checked, the others from the preset or else with their defaults.

    Parameters
    ----------
    preset : str
        Name in `PRESETS`.
    options : mapping
        Given values by option name; they count more than the preset's.

    Raises
    ------
    BadInput
        For an unknown preset or option, a value of the wrong type, choice or size, and options that contradict each
        other.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    given = all_checked(SITE, SITE_OPTIONS, options, "option of adaptation without labels")
    settled = filled(SITE_OPTIONS, given, PRESETS[preset])
    for name in ("depth", "level"):
        settled[name] = None if settled[name] is None else _whole(name, settled[name])
    _check_shares(settled)
    _check_together(settled)
    return settled


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise BadInput(f"Option '{name}' is {value!r}; expected a whole number.", "Correct it, or leave it out.")
    return int(value)


def _check_shares(options: dict[str, Any]) -> None:
    for name in ("source_weight", "confidence"):
        if options[name] > 1:
            raise BadInput(f"Option '{name}' is {options[name]}; expected 0 to 1.", "Correct it.")
    if options["ema"] >= 1:
        raise BadInput(f"Option 'ema' is {options['ema']}; expected 0 to below 1.", "Try 0.99.")


def _check_together(options: dict[str, Any]) -> None:
    trains = options["train"] != "none"
    if not trains and options["adabn"] in ("none", "moving"):
        raise BadInput(
            f"With train=none and adabn={options['adabn']} nothing is adapted.",
            "Set adabn=before, or choose what trains.",
        )
    if not trains:
        return
    if options["bn_mode"] == "adabn_pre" and options["adabn"] not in _BEFORE:
        raise BadInput(
            f"bn_mode=adabn_pre needs statistics that are recalibrated before training, but adabn is {options['adabn']}.",
            "Set adabn=before or both, or bn_mode=source.",
        )
    if options["adabn"] == "moving" and options["bn_mode"] != "batch":
        raise BadInput("adabn=moving needs bn_mode=batch: only then do statistics move in training.", "Set both.")
    own = options["targets"] == "detached" and options["teacher"] == "student"
    if options["through"] == "final" and own:
        raise BadInput(
            "With through=final, a network whose own probabilities are the pseudo-labels learns nothing.",
            "Set targets=hard, or another teacher.",
        )


def resolve_levels(options: dict[str, Any], count: int, own: int | None) -> dict[str, Any]:
    """The options with depth and level decided; None stays where they mean nothing.

    Parameters
    ----------
    options : dict
        From `check_site_options`.
    count : int
        Levels of the network.
    own : int or None
        Level of the base's own early head.

    Raises
    ------
    BadInput
        A level that the network has not got, or a depth that pseudo-labels which are taken as given cannot reach.
    """
    train, level, depth = options["train"], options["level"], options["depth"]
    if train == "first_path":
        depth = 0
    if level is None and needs_early_head(options):
        level = depth if depth is not None else own if own is not None else min(EARLY_LEVEL, count - 1)
    elif level is None:
        level = own
    if train in ("none", "network"):
        depth = None
    elif depth is None:
        depth = count - 1 if level is None else level
    for name, value in (("level", level), ("depth", depth)):
        if value is not None and value >= count:
            raise BadInput(
                f"Option '{name}' is {value}; this network has the levels 0 to {count - 1}.",
                f"Set {name} to one of them, or choose another preset.",
            )
    reaches = options["through"] == "final" or options["targets"] == "soft_attached" or depth is None
    if not reaches and depth > level:
        raise BadInput(
            f"Option 'depth' is {depth}, but the early head is at level {level}: with targets={options['targets']} nothing "
            "below it learns.",
            f"Set level={depth}, or depth={level}.",
        )
    return {**options, "level": level, "depth": depth}


def without_statistics(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of the options for a network without batch normalisation by running statistics."""
    return {**options, "adabn": "none", "bn_mode": "source"}


def recalibrates_before(options: Mapping[str, Any]) -> bool:
    """Whether statistics are recalibrated before training."""
    return options["adabn"] in _BEFORE


def recalibrates_after(options: Mapping[str, Any]) -> bool:
    """Whether statistics are recalibrated after training."""
    return options["adabn"] in _AFTER


def needs_early_head(options: Mapping[str, Any]) -> bool:
    """Whether training compares the early head with the pseudo-labels, or chooses an epoch by their agreement."""
    trains = options["train"] != "none"
    return trains and (options["through"] == "early" or options["keep"] == "agreement" or options["stop_change"] > 0)


def planned_epochs(options: Mapping[str, Any]) -> int:
    """Epochs where the job does not say."""
    return UDAS_EPOCHS if options["stop_change"] > 0 else DEFAULT_EPOCHS
