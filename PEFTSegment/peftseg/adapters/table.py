"""The methods that adapt a network, and their options. Torch-free, so that it can be shown before torch is installed.

A new method is one file with an `attach` function and one entry here; see Docs/add-a-method.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftseg.adapters.options import MethodInfo, Option, all_checked, filled
from peftseg.errors import unknown_name

__all__ = ["AUTO", "METHODS", "MethodInfo", "Option", "check_options", "learning_rates", "method_info", "saved_options"]

PRESET = "preset"
AUTO = "auto"  # chooses one of the others (`peftseg.auto`); it attaches nothing itself
_RANK = Option("rank", 16, "Number of components that each adapted layer gets.", minimum=1)
_LAYERS = Option(
    "layers",
    "auto",
    "Which part of the model is adapted, the same for all methods: qkv (the projections to query, key and value in "
    "transformer blocks), attention (all of their attention), transformer (these blocks as a whole), encoder, decoder, "
    "last_block (of the decoder), all, or proto-seg (the layers that fail on your scans, see `peftseg inspect "
    "proto-seg`); auto: what suits the method; or a regular expression that matches whole layer names. Of that part each "
    "method adapts what it can.",
)
_ALPHA = Option("alpha", None, "The change is multiplied by alpha / rank; left out, by 1.", minimum=1e-3)
_FORM = Option(
    "form",
    "window",
    "How a convolution's weight is factorised: window (true rank), or loralib (as the LoRA package does).",
    choices=("window", "loralib"),
)
_BN_MODE = Option(
    "bn_mode",
    "source",
    "Statistics of batch normalisation: source (those of the base model, kept), or batch (those of each training batch; "
    "their running mean becomes part of the adapter).",
    choices=("source", "batch"),
)


def _preset(*names: str) -> Option:
    return Option(
        PRESET, "none", "A published setting by name; options that are set here as well count more.", ("none", *names)
    )


_LR_ADAPTER = Option("lr_adapter", 1e-2, "Learning rate of the adapter.", minimum=0.0)
_LR_DECODER = Option("lr_decoder", 3e-3, "Learning rate of the decoder, where it is trained.", minimum=0.0)
_LR_HEAD = Option("lr_head", 3e-3, "Learning rate of the head.", minimum=0.0)
_LR_NORM = Option("lr_norm", 1e-2, "Learning rate of normalisation layers.", minimum=0.0)
_LR_BODY = Option("lr_body", 3e-3, "Learning rate of the rest of the network.", minimum=0.0)
_FSEFT_REST = {"lr_decoder": 1e-4, "lr_head": 1e-4}  # its one rate where the decoder trains, see published-settings.md

_LORA = MethodInfo(
    name="lora",
    title="LoRA",
    summary="Adds a small low-rank change to chosen layers and trains the head; the base weights stay as they are.",
    module="peftseg.adapters.lora",
    options=(
        _preset("fseft"),
        _RANK,
        _ALPHA,
        _LAYERS,
        _FORM,
        Option(
            "init",
            "kaiming",
            "First values of the change's inner factor: kaiming (random), or pca (main directions of the layer's weights).",
            choices=("kaiming", "pca"),
        ),
        Option("dynamic_rank", False, "Give each layer half its output channels as rank, whatever rank says."),
        Option(
            "qkv",
            "separate",
            "In transformer blocks: separate changes of query, key and value, or one joint change, three times as wide.",
            choices=("separate", "joint"),
        ),
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={
        "fseft": {
            "rank": 4,
            "layers": "qkv",
            "qkv": "joint",
            "lr_adapter": 1e-3,
            **_FSEFT_REST,
        }
    },
)

_ARENA = MethodInfo(
    name="arena",
    title="ARENA",
    summary="Low-rank changes whose components have gates: those that are not needed are dropped.",
    module="peftseg.adapters.arena",
    options=(
        _preset("published"),
        _RANK,
        Option(
            "mode",
            "importance",
            "How gates close: importance (by a component's effect), sora (by the gate's size), or paper (as published; "
            "with rho 0 the ranks do not depend on the data).",
            choices=("importance", "sora", "paper"),
        ),
        Option(
            "lam",
            None,
            "Strength of the shrinking; larger drops more components. Left out: 0.5 as published in mode paper, else "
            "0.05.",
            minimum=0.0,
        ),
        Option("rho", 0.0, "Step size of the gates' gradient, mode paper only.", minimum=0.0),
        Option(
            "v_init",
            "auto",
            "First value of the gates: ones, uniform between -1 and 1, or auto (uniform in mode paper, else ones).",
            choices=("auto", "ones", "uniform"),
        ),
        _LAYERS,
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={
        "published": {
            "rank": 8,
            "mode": "paper",
            "lam": 0.5,
            "rho": 0.0,
            "v_init": "uniform",
            "lr_adapter": 1e-3,
            **_FSEFT_REST,
        }
    },
)

_DORA = MethodInfo(
    name="dora",
    title="DoRA",
    summary="LoRA that learns the size of each layer's weights apart from their direction.",
    module="peftseg.adapters.dora",
    options=(_RANK, _ALPHA, _LAYERS, _FORM, _LR_ADAPTER, _LR_DECODER, _LR_HEAD),
)

_ADALORA = MethodInfo(
    name="adalora",
    title="AdaLoRA",
    summary="Starts with more components than wanted and keeps those that matter most for your scans.",
    module="peftseg.adapters.adalora",
    options=(
        replace(_RANK, default=8, help="Number of components that an adapted layer keeps on average."),
        Option("start_rank", 12, "Number of components that each adapted layer starts with.", minimum=1),
        _ALPHA,
        _LAYERS,
        Option("orthogonality", 0.1, "Strength of the rule that components must differ from each other.", minimum=0.0),
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
)

_CONVLORA = MethodInfo(
    name="convlora",
    title="ConvLoRA",
    summary="Very small low-rank changes of the encoder's convolutions, made for a change of scanner.",
    module="peftseg.adapters.convlora",
    options=(
        _preset("published"),
        replace(_RANK, default=2),
        _ALPHA,
        _LAYERS,
        replace(_FORM, default="loralib"),
        Option(
            "train_norm", False, "Train the normalisation inside the adapted blocks, too, as the released code does."
        ),
        _BN_MODE,
        _LR_ADAPTER,
        _LR_NORM,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={"published": {"rank": 2, "form": "loralib", "train_norm": True, "bn_mode": "batch"}},
)

_BITFIT = MethodInfo(
    name="bitfit",
    title="Bias tuning (BitFit)",
    summary="Trains the constant offsets of the layers only, a tiny part of the model.",
    module="peftseg.adapters.bitfit",
    options=(
        _preset("fseft"),
        _LAYERS,
        Option("relative_position", False, "Train the tables of relative positions of transformer blocks, too."),
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={
        "fseft": {
            "layers": r".*\.(attn|mlp)(\..*)?",
            "relative_position": True,
            "lr_adapter": 1e-2,
            **_FSEFT_REST,
        }
    },
)

_AFFINE = MethodInfo(
    name="affine",
    title="Normalisation tuning",
    summary="Trains how the layers' outputs are scaled and shifted when they are normalised.",
    module="peftseg.adapters.affine",
    options=(_preset("fseft"), _LAYERS, _BN_MODE, _LR_NORM, _LR_DECODER, _LR_HEAD),
    presets={"fseft": {"layers": "encoder", "lr_norm": 1e-2, **_FSEFT_REST}},
)

_SSF = MethodInfo(
    name="ssf",
    title="Scale and shift (SSF)",
    summary="Scales and shifts the layers' outputs; costs nothing when the adapter is used.",
    module="peftseg.adapters.ssf",
    options=(
        _preset("published"),
        _LAYERS,
        Option(
            "after",
            "norm",
            "What is scaled and shifted: the outputs of norm (normalisation layers), of norm_else_conv (these, and "
            "convolutions that no normalisation follows), of conv (convolutions and linear layers), or of all. A "
            "normalisation that follows a convolution may undo it.",
            choices=("norm", "norm_else_conv", "conv", "all"),
        ),
        Option(
            "init",
            "identity",
            "First values: identity (the model starts unchanged), or published (random around it).",
            choices=("identity", "published"),
        ),
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={"published": {"after": "all", "init": "published"}},
)

_CONV_ADAPTER = MethodInfo(
    name="conv_adapter",
    title="Conv-Adapter",
    summary="Puts small additional convolutions beside those of the model.",
    module="peftseg.adapters.conv_adapter",
    options=(
        _preset("official", "thesis"),
        Option(
            "scheme",
            "conv_parallel",
            "Where they go: beside each convolution or each block of convolutions, on its input (parallel) or on its "
            "output (sequential).",
            choices=("conv_parallel", "conv_sequential", "block_parallel", "block_sequential"),
        ),
        Option(
            "sum",
            "before_norm",
            "Beside a convolution that a normalisation follows: what they add comes before_norm or after_norm.",
            choices=("before_norm", "after_norm"),
        ),
        _LAYERS,
        Option("gamma", 4, "The inner width is the number of input channels divided by this.", minimum=1),
        Option("width", 0, "Inner width in channels, instead of gamma; 0: by gamma.", minimum=0),
        Option("depthwise", True, "Keep groups of channels apart in the first convolution; smaller."),
        Option(
            "init",
            "zero",
            "First values: zero (the model starts unchanged), or published (random).",
            choices=("zero", "published"),
        ),
        Option("train_norm", False, "Train the normalisation of the whole model, too, as the released code does."),
        _LR_ADAPTER,
        _LR_NORM,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={
        "official": {
            "scheme": "conv_parallel",
            "gamma": 4,
            "width": 0,
            "depthwise": True,
            "init": "published",
            "train_norm": True,
        },
        "thesis": {"scheme": "block_parallel", "width": 32, "depthwise": False},
    },
)

_RESIDUAL_ADAPTER = MethodInfo(
    name="residual_adapter",
    title="Residual adapter",
    summary="Changes how each convolution mixes its channels at one voxel; costs nothing when the adapter is used.",
    module="peftseg.adapters.residual_adapter",
    options=(
        _preset("fseft"),
        _LAYERS,
        Option(
            "init",
            "zero",
            "First values: zero (the model starts unchanged), or published (random).",
            choices=("zero", "published"),
        ),
        replace(_LR_ADAPTER, default=3e-3),
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={
        "fseft": {
            "layers": "encoder",
            "init": "published",
            "lr_adapter": 1e-2,
            **_FSEFT_REST,
        }
    },
)

_ADAPTFORMER = MethodInfo(
    name="adaptformer",
    title="AdaptFormer",
    summary="Puts a small additional network beside parts of each transformer block; for models that have them.",
    module="peftseg.adapters.adaptformer",
    options=(
        _preset("fseft"),
        _LAYERS,
        Option("bottleneck", 16, "Inner width of the additional networks.", minimum=1),
        Option("scale", 0.1, "Factor of what they add.", minimum=1e-6),
        _LR_ADAPTER,
        _LR_DECODER,
        _LR_HEAD,
    ),
    presets={"fseft": {"layers": "encoder", "bottleneck": 16, "scale": 0.1, "lr_adapter": 1e-2, **_FSEFT_REST}},
)

_SPATIAL_ADAPTER = MethodInfo(
    name="spatial_adapter",
    title="Spatial adapter",
    summary="Trains two small convolutions between the unchanged model and its last layer.",
    module="peftseg.adapters.spatial_adapter",
    options=(
        _preset("fseft"),
        Option("kernel", 3, "Width of the convolutions in voxels, an odd number.", minimum=1),
        _LR_ADAPTER,
        replace(_LR_HEAD, default=3e-2),
    ),
    presets={"fseft": {"kernel": 3, "lr_adapter": 1e-4, "lr_head": 1e-4}},
)

_LINEAR_PROBE = MethodInfo(
    name="linear_probe",
    title="Linear probe",
    summary="Trains the last layer only; the smallest change.",
    module="peftseg.adapters.linear_probe",
    options=(_preset("fseft"), replace(_LR_HEAD, default=0.1)),
    presets={"fseft": {"lr_head": 1e-2}},
)

_DECODER = MethodInfo(
    name="decoder",
    title="Decoder tuning",
    summary="Trains the whole decoder and the head; the encoder stays as it is.",
    module="peftseg.adapters.decoder_tuning",
    options=(_LR_DECODER, _LR_HEAD),
)

_SELECTIVE = MethodInfo(
    name="selective",
    title="Selective fine-tuning",
    summary="Trains chosen layers in full, if nothing else is said the last part of the decoder, and the head.",
    module="peftseg.adapters.selective",
    options=(_LAYERS, *(replace(rate, default=3e-2) for rate in (_LR_BODY, _LR_DECODER, _LR_HEAD))),
)

_FULL = MethodInfo(
    name="full",
    title="Full fine-tuning",
    summary="Trains every weight; the adapter is as large as the base model.",
    module="peftseg.adapters.full",
    options=(_preset("fseft"), _LR_BODY, _LR_DECODER, _LR_HEAD),
    presets={"fseft": {"lr_body": 1e-4, **_FSEFT_REST}},
)

_AUTO = MethodInfo(
    name=AUTO,
    title="Automatic",
    summary="Tries several methods on your own scans, leaving one scan out at a time (give one a patient), and uses the best.",
    module="",
    options=(
        Option(
            "methods",
            "lora,full,arena,residual_adapter,decoder",
            "Names of the methods to try, with commas between them; the first one is used where they tie.",
        ),
        Option("search_share", 0.5, "Part of the time that goes into trying, above 0 and below 1.", minimum=0.0),
    ),
)

METHODS: dict[str, MethodInfo] = {
    m.name: m
    for m in (
        _LORA,
        _ARENA,
        _ADALORA,
        _DORA,
        _CONVLORA,
        _CONV_ADAPTER,
        _RESIDUAL_ADAPTER,
        _SSF,
        _AFFINE,
        _BITFIT,
        _ADAPTFORMER,
        _SPATIAL_ADAPTER,
        _LINEAR_PROBE,
        _SELECTIVE,
        _DECODER,
        _FULL,
        _AUTO,
    )
}


def method_info(method: str) -> MethodInfo:
    """The method of this name; BadInput lists the valid names otherwise."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method]


def check_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a method: the given ones checked, the others from the preset or else with their defaults.

    Parameters
    ----------
    method : str
        Name in `METHODS`.
    options : dict
        Given values by option name; numbers may be int or float.

    Raises
    ------
    BadInput
        For an unknown method or option, and for a value of the wrong type, choice or size.
    """
    info = method_info(method)
    given = all_checked(method, info.options, options, f"option of method '{method}'")
    return filled(info.options, given, info.presets.get(given.get(PRESET, ""), {}))


def saved_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a saved adapter, as `check_options`.

    A file holds every option that there was when it was made, rates too; what its preset has come to set since had its
    default then.
    """
    if not any(name.startswith("lr_") for name in options):
        return check_options(method, options)
    preset = {name: value for name, value in options.items() if name == PRESET}
    others = {name: value for name, value in options.items() if name != PRESET}
    return check_options(method, {**check_options(method, others), **preset})


def learning_rates(options: dict[str, Any]) -> dict[str, float]:
    """Learning rates by kind ("adapter", "norm", "decoder", "head", "body") from options that `check_options` gave."""
    return {name.removeprefix("lr_"): value for name, value in options.items() if name.startswith("lr_")}
