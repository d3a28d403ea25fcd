"""Read a trained nnU-Net (version 2): its plans, its data set's labels, and one fold's weights.

A model folder is what nnU-Net's training writes, `.../nnUNetTrainer__nnUNetPlans__3d_fullres`: `plans.json`,
`dataset.json` and `fold_*/checkpoint_final.pth`. TotalSegmentator, MRSegmentator and CADS publish such folders.
3D networks with one input channel are read; nnU-Net itself is not needed, only its network package.
"""

from __future__ import annotations

import colorsys
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftseg.axis_map import orient_to
from peftseg.checkpoint_import import harmless_types
from peftseg.errors import BadInput
from peftseg.grid import Grid
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure
from peftseg.networks import build
from peftseg.networks.nnunet import CLASSES, trimmed_state
from peftseg.paths import models_dir
from peftseg.structures import canonical_name, structure_named
from peftseg.weights import architecture, fingerprint, head_width, save_model

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
OVERLAP = 0.5
AS_STORED = ("SimpleITKIO", "NibabelIO")  # readers that leave the axes as they are in the file
REORIENTED = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")  # to RAS
RESAMPLING = "resample_data_or_seg_to_shape"
NORMALISATIONS = ("CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "NoNormalization")
REMEDY = "Choose another configuration of this model, such as 3d_fullres, or another model."
WHOLE = "Get the model folder again, as nnU-Net's training or `nnUNetv2_export_model_to_zip` wrote it."


def read_nnunet(
    folder: Path, fold: str | None = None, orientation: str | None = None, model_id: str | None = None
) -> tuple[ModelEntry, dict[str, torch.Tensor]]:
    """Read an nnU-Net model folder.

    Parameters
    ----------
    folder : Path
        Holds `plans.json`, `dataset.json` and `fold_*`.
    fold : str or None
        "0" to "4" or "all"; None for "all" where it is there, else the lowest. Folds are not averaged: an adapter
        belongs to one network. The entry's record names those that are there.
    orientation : str or None
        Axis codes, such as "RAS", to which the files of the training were turned before nnU-Net read them (as
        TotalSegmentator does). None for nnU-Net's own rule: the file's axes as they are.
    model_id : str or None
        The entry's id; None for one made of the data set's name, the configuration and the fold.

    Returns
    -------
    entry : ModelEntry
        Without a directory.
    state : dict of str to tensor
        The weights of the entry's network.

    Raises
    ------
    BadInput
        Files are missing or damaged, the checkpoint needs more than tensors and numbers to be read, or the model is of
        a kind that is not supported: 2D, a cascade, several channels, its own preprocessing or network.
    """
    folder = Path(folder)
    plans, dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    file, folds = _find_checkpoint(folder, fold)
    checkpoint = _load_checkpoint(file)
    try:
        name = checkpoint["init_args"]["configuration"]
        configuration = _configuration(plans, name)
        _check_supported(plans, dataset, configuration, name)
        arguments = network_arguments(configuration)
        structures, activation = _structures(dataset)
        preprocessing = _preprocessing(plans, configuration, orientation)
        weights = checkpoint["network_weights"]
        window = tuple(int(n) for n in configuration["patch_size"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder.name} is not complete, or a value is of another kind: {error!r}.", WHOLE) from error
    chosen = file.parent.name.removeprefix("fold_")
    dataset_name = str(plans.get("dataset_name", dataset.get("name", folder.parent.name)))
    entry = ModelEntry(
        id=model_id or re.sub(r"[^a-z0-9.]+", "-", f"{dataset_name}-{name}-fold-{chosen}".lower()),
        title=f"nnU-Net {dataset_name} ({name}, fold {chosen})",
        modality=_channels(dataset)[0],
        structures=structures,
        network=NetworkSpec("nnunet", arguments),
        activation=activation,
        preprocessing=preprocessing,
        window=window,
        overlap=OVERLAP,
        licence=str(dataset.get("licence") or dataset.get("license") or "not stated in dataset.json"),
        description=str(dataset.get("description", "")),
        record={
            "trainer": str(checkpoint.get("trainer_name", "")),
            "configuration": name,
            "fold": chosen,
            "folds": folds,
            "checkpoint": file.name,
            "epochs": int(checkpoint.get("current_epoch", 0)),
        },
    )
    return entry, trimmed_state(arguments, weights, len(structures) + (activation == "softmax"))


def import_nnunet(
    folder: Path, *, fold: str | None = None, orientation: str | None = None, model_id: str | None = None
) -> ModelEntry:
    """Take an nnU-Net model folder into the catalogue, as a model folder in `models_dir()`; see `read_nnunet`."""
    entry, state = read_nnunet(folder, fold, orientation, model_id)
    target = models_dir() / entry.id
    if target.exists():
        raise BadInput(f"The folder {target} exists.", f"Run `peftseg models remove {entry.id}`, or give another id.")
    network, _ = build(entry.network, head_width(entry.structures, entry.activation))
    network.load_state_dict(state)
    found = fingerprint(network.state_dict(), architecture(entry))
    imported = replace(entry, record={**entry.record, "fingerprint": found}, directory=target)
    save_model(target, imported, network)
    return imported


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(
            f"{path.parent} is no nnU-Net model folder: it has no {path.name}.",
            "Give the folder that holds plans.json, dataset.json and fold_0, such as "
            "nnUNetTrainer__nnUNetPlans__3d_fullres.",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON ({error}).", WHOLE) from error
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds a {type(data).__name__}; expected a JSON object.", WHOLE)
    return data


def _find_checkpoint(folder: Path, fold: str | None) -> tuple[Path, list[str]]:
    """The checkpoint of one fold, and the names of all folds that have one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("fold_*")):
        files = [path / name for name in CHECKPOINTS if (path / name).is_file()]
        if files:
            found[path.name.removeprefix("fold_")] = files[0]
    if not found:
        raise BadInput(f"{folder} has no weights; expected fold_0/{CHECKPOINTS[0]} or the like.", WHOLE)
    chosen = str(fold) if fold is not None else "all" if "all" in found else min(found)
    if chosen not in found:
        raise BadInput(f"Fold '{chosen}' is not in {folder}; there are: {', '.join(found)}.", "Choose one of them.")
    return found[chosen], list(found)


def _load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, unpickled without running anything that the file brings along."""
    try:
        with torch.serialization.safe_globals(harmless_types()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].strip()
        raise BadInput(
            f"{path.name} holds more than tensors, numbers and text, and reading that could run foreign code: {reason}",
            "Have its author save it without the other objects; only the keys network_weights, init_args and "
            "trainer_name are needed.",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} cannot be read ({error}).", WHOLE) from error
    if not isinstance(checkpoint, dict):
        raise BadInput(f"{path.name} holds a {type(checkpoint).__name__}; expected nnU-Net's checkpoint.", WHOLE)
    return checkpoint


def _configuration(plans: dict[str, Any], name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """One configuration of the plans, with what it inherits."""
    configurations = plans["configurations"]
    if name not in configurations or name in seen:
        raise BadInput(
            f"plans.json has no usable configuration '{name}'; there are: {', '.join(configurations)}.", WHOLE
        )
    own = configurations[name]
    parent = own.get("inherits_from")
    return {**_configuration(plans, parent, (*seen, name)), **own} if parent else dict(own)


def _channels(dataset: dict[str, Any]) -> list[str]:
    return [str(name) for name in (dataset.get("modality") or dataset["channel_names"]).values()]


def _check_supported(plans: dict[str, Any], dataset: dict[str, Any], configuration: dict[str, Any], name: str) -> None:
    channels = _channels(dataset)
    if len(channels) != 1:
        raise BadInput(
            f"The model takes {len(channels)} channels ({', '.join(channels)}); expected one scan a study.",
            "Choose a model with one input channel.",
        )
    if len(configuration["patch_size"]) != 3:
        raise BadInput(f"The configuration '{name}' is 2D; expected a 3D one.", REMEDY)
    if configuration.get("previous_stage"):
        raise BadInput(
            f"The configuration '{name}' is the second stage of a cascade: it needs the result of "
            f"'{configuration['previous_stage']}' as input; expected one that needs the scan only.",
            REMEDY,
        )
    _expect("preprocessor", configuration["preprocessor_name"], ("DefaultPreprocessor",))
    _expect("image reader", plans["image_reader_writer"], (*AS_STORED, *REORIENTED))
    _expect("normalisation", configuration["normalization_schemes"][0], NORMALISATIONS)
    for what, order in (("data", 3), ("probabilities", 1)):
        _expect("resampling", configuration[f"resampling_fn_{what}"], (RESAMPLING,))
        options = configuration[f"resampling_fn_{what}_kwargs"]
        expected = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        if any(options.get(key, value) != value for key, value in expected.items()):
            raise BadInput(
                f"The model resamples its {what} with {options}; expected nnU-Net's default, {expected}.", REMEDY
            )


def _expect(what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise BadInput(f"The model uses the {what} '{found}'; expected {' or '.join(known)}.", REMEDY)


def network_arguments(configuration: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the network "nnunet" for a configuration of nnU-Net's plans, of the present or the first format."""
    if "architecture" in configuration:
        architecture = configuration["architecture"]
        name, options = architecture["network_class_name"].rpartition(".")[2], architecture["arch_kwargs"]
    else:
        name, options = configuration["UNet_class_name"], _first_format(configuration)
    _expect("network", name, CLASSES)
    return {"class": name, "arch_kwargs": options}


def _first_format(configuration: dict[str, Any]) -> dict[str, Any]:
    """Network arguments of plans before nnU-Net 2.4, which have a fixed rule for what is not among them."""
    blocks = configuration["n_conv_per_stage_encoder"]
    base, largest = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    plain = configuration["UNet_class_name"] == "PlainConvUNet"
    return {
        "n_stages": len(blocks),
        "features_per_stage": [min(base * 2**stage, largest) for stage in range(len(blocks))],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _structures(dataset: dict[str, Any]) -> tuple[tuple[Structure, ...], str]:
    """Structures in the order of the network's outputs, and "softmax", or "sigmoid" for regions that overlap."""
    labels = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        values = [int(value) for value in dataset["regions_class_order"]]
        if len(values) != len(labels) or len(set(values)) != len(values) or min(values) < 1:
            raise BadInput(
                f"dataset.json has the regions {', '.join(labels)} and regions_class_order {values}; expected one "
                "different number above 0 for each.",
                WHOLE,
            )
        return _coloured(dict(zip(labels, values, strict=True))), "sigmoid"
    values = {name: int(value[0] if isinstance(value, list) else value) for name, value in labels.items()}
    if sorted(values.values()) != list(range(1, len(values) + 1)):
        raise BadInput(
            f"dataset.json has the label values {sorted(values.values())}; expected 1 to {len(values)} without a gap.",
            WHOLE,
        )
    return _coloured(dict(sorted(values.items(), key=lambda item: item[1]))), "softmax"


def _coloured(values: dict[str, int]) -> tuple[Structure, ...]:
    """Structures with the colour and code of the table where it knows the name, else with hues at the golden angle."""
    hues = [(0.618034 * number) % 1 for number in range(len(values))]
    colours = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.55, 0.85)) for hue in hues]
    return tuple(
        _known(name, value) or Structure(name, value, colour)
        for (name, value), colour in zip(values.items(), colours, strict=True)
    )


def _known(name: str, value: int) -> Structure | None:
    known = canonical_name(name)
    found = structure_named(known) if known else None
    return replace(found, name=name, value=value) if found else None


def _preprocessing(plans: dict[str, Any], configuration: dict[str, Any], orientation: str | None) -> Preprocessing:
    """nnU-Net's arrays are indexed (k, j, i) of the file, then transposed; the model grid has its axes in that order.

    `orientation` is that of `read_nnunet`.
    """
    if orientation is None:
        orientation = "RAS" if plans["image_reader_writer"] in REORIENTED else "ijk"
    else:
        orient_to(Grid((1, 1, 1), np.eye(4)), orientation)  # refuses what is none
    axes = orientation[::-1]
    return Preprocessing(
        orientation="".join(axes[axis] for axis in plans["transpose_forward"]),
        spacing=tuple(float(s) for s in configuration["spacing"]),
        intensity=_intensity(plans, configuration),
        scheme="nnunet",
    )


def _intensity(plans: dict[str, Any], configuration: dict[str, Any]) -> Intensity:
    scheme, masked = configuration["normalization_schemes"][0], configuration["use_mask_for_norm"][0]
    if scheme == "ZScoreNormalization":
        return Intensity("zscore_inside" if masked else "zscore_all")
    if scheme != "CTNormalization":
        return Intensity("range01" if scheme == "RescaleTo01Normalization" else "none")
    key = "foreground_intensity_properties_per_channel"
    numbers = plans[key if key in plans else "foreground_intensity_properties_by_modality"]["0"]
    mean, spread = float(numbers["mean"]), max(float(numbers["std"]), 1e-8)
    low, high = float(numbers["percentile_00_5"]), float(numbers["percentile_99_5"])
    return Intensity("window", low, high, (low - mean) / spread, (high - mean) / spread)
