"""The promises of `test_adapters.py` on the four networks that foundation models have, small versions of them.

One test for each method and network checks all of them in one go: building and running these networks takes the time.
"""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
import torch
from torch import nn

from peftseg.adapters import METHODS, attach, attach_saved
from peftseg.adapters.base import Attached
from peftseg.adapters.layers import REGIONS, conv_blocks
from peftseg.errors import BadInput
from peftseg.models import NetworkSpec
from peftseg.networks import build, replace_head
from test_adapters import assert_grouped, plain_tensors
from tiny_networks import Case, an_input, train

# Name -> (method, options, train_decoder).
VARIANTS = {
    "lora": ("lora", {"rank": 2}, False),
    "lora-fseft": ("lora", {"preset": "fseft"}, False),
    "lora-all": ("lora", {"rank": 2, "layers": "all"}, False),
    "lora-all-loralib": ("lora", {"rank": 2, "layers": "all", "form": "loralib"}, False),
    "lora-pca": ("lora", {"rank": 2, "init": "pca", "layers": "encoder"}, True),
    "dora": ("dora", {"rank": 2, "layers": "encoder"}, False),
    "adalora": ("adalora", {"rank": 1, "start_rank": 2}, False),
    "arena": ("arena", {"rank": 2}, True),
    "arena-paper": ("arena", {"preset": "published", "rank": 2}, False),
    "arena-sora": ("arena", {"rank": 2, "mode": "sora"}, False),
    "convlora": ("convlora", {}, False),
    "convlora-window": ("convlora", {"form": "window"}, False),
    "convlora-train-norm": ("convlora", {"train_norm": True}, False),
    "convlora-published": ("convlora", {"preset": "published"}, False),
    "bitfit": ("bitfit", {}, False),
    "bitfit-relative-position": ("bitfit", {"relative_position": True}, False),
    "bitfit-fseft": ("bitfit", {"preset": "fseft"}, False),
    "affine": ("affine", {}, False),
    "affine-batch": ("affine", {"bn_mode": "batch"}, False),
    "affine-fseft": ("affine", {"preset": "fseft"}, True),
    "ssf": ("ssf", {}, False),
    "ssf-norm-else-conv": ("ssf", {"after": "norm_else_conv"}, False),
    "ssf-all": ("ssf", {"after": "all"}, False),
    "ssf-published": ("ssf", {"preset": "published"}, False),
    "conv_adapter": ("conv_adapter", {"scheme": "block_parallel"}, False),
    "conv_adapter-thesis": ("conv_adapter", {"preset": "thesis", "width": 4}, False),
    "conv_adapter-conv": ("conv_adapter", {"scheme": "conv_sequential"}, True),
    "conv_adapter-dense": ("conv_adapter", {"depthwise": False}, False),
    "conv_adapter-block-sequential": ("conv_adapter", {"scheme": "block_sequential"}, False),
    "conv_adapter-after-norm": ("conv_adapter", {"sum": "after_norm"}, False),
    "conv_adapter-official": ("conv_adapter", {"preset": "official"}, False),
    "residual_adapter": ("residual_adapter", {}, True),
    "residual_adapter-fseft": ("residual_adapter", {"preset": "fseft"}, False),
    "adaptformer": ("adaptformer", {"bottleneck": 4}, False),
    "spatial_adapter": ("spatial_adapter", {}, True),
    "linear_probe": ("linear_probe", {}, False),
    "selective": ("selective", {}, False),
    "selective-encoder": ("selective", {"layers": "encoder"}, False),
    "selective-decoder": ("selective", {"layers": "decoder"}, False),
    "decoder": ("decoder", {}, False),
    "full": ("full", {}, False),
}
CHANGED_AT_THE_START = ("ssf-published", "conv_adapter-official", "residual_adapter-fseft")  # declared as such
# What needs attention, or running statistics, is nowhere else.
ONLY = {
    "swinunetr": ("adaptformer", "lora-fseft", "bitfit-fseft", "bitfit-relative-position"),
    "unet2d": ("convlora-published", "affine-batch"),
}
# SwinUNETR is slow: what it shares with the other networks is left to them.
NOT_ON_SWIN = (
    "lora-all-loralib",
    "lora-pca",
    "arena-sora",
    "convlora-window",
    "convlora-train-norm",
    "ssf-published",
    "conv_adapter-thesis",
    "conv_adapter-conv",
    "conv_adapter-dense",
    "residual_adapter-fseft",
    "selective-decoder",
)
MERGE_NOT = ("conv_adapter", "adaptformer", "spatial_adapter")
NETWORKS = ("segresnet", "unet3d", "unet2d", "swinunetr")


def make(name: str) -> Case:
    case = _made(name)
    return Case(copy.deepcopy(case.network), case.anatomy, case.shape)


@cache
def _made(name: str) -> Case:
    torch.manual_seed(0)
    swin = {"in_channels": 1, "feature_size": 12, "depths": [1] * 4, "num_heads": [3, 6, 12, 24], "window_size": 2}
    arguments = {
        "segresnet": {"in_channels": 1, "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
        "unet3d": {},
        "unet2d": {"filters": 4},
        "swinunetr": swin,
    }[name]
    network, anatomy = build(NetworkSpec(name, arguments), 3)
    if anatomy.head_norm:
        replace_head(network, anatomy, 3)
    if name == "unet3d":
        _narrow(network)
    shape = {
        "segresnet": (1, 1, 12, 12, 12),
        "unet3d": (1, 1, 16, 16, 16),
        "unet2d": (1, 1, 16, 16, 2),
        "swinunetr": (1, 1, 64, 32, 32),
    }[name]
    return Case(network.eval(), anatomy, shape)


@cache
def _first_output(name: str) -> torch.Tensor:
    case = make(name)
    with torch.no_grad():
        return case.network(an_input(case))


def _narrow(network: nn.Module, factor: int = 8) -> None:
    """Give a network fewer channels, in place: this one's 19 million values are no option, and cost nothing but time."""
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            channels = (n if n < factor else n // factor for n in (module.in_channels, module.out_channels))
            small = type(module)(*channels, module.kernel_size, module.stride, module.padding)
        elif isinstance(module, nn.BatchNorm3d):
            small = type(module)(module.num_features // factor)
        else:
            continue
        around, _, own = name.rpartition(".")
        setattr(network.get_submodule(around), own, small)


def fits(variant: str, network: str) -> bool:
    """Whether the network has what the method adapts."""
    if network == "swinunetr" and variant in NOT_ON_SWIN:
        return False
    return variant in ONLY.get(network, ()) or not any(variant in names for names in ONLY.values())


@pytest.mark.parametrize(
    ("variant", "network"),
    [pytest.param(v, n, id=f"{v}:{n}") for v in VARIANTS for n in NETWORKS if fits(v, n)],
)
def test_a_method_keeps_its_promises(variant, network):
    method, options, train_decoder = VARIANTS[variant]
    case, fresh = make(network), make(network)
    x, before = an_input(case), _first_output(network)
    keys, total = set(case.network.state_dict()), sum(p.numel() for p in case.network.parameters())
    with torch.no_grad():
        attached = attach(case.network, case.anatomy, method, options, train_decoder)
        change = (case.network(x) - before).abs().max()
    if variant in CHANGED_AT_THE_START:
        assert change > 1e-3
        assert attached.notes
    else:
        assert change < 1e-5
    share = attached.trained_share()
    assert share.pop("base_total") == total
    share.pop("buffers")
    assert sum(share.values()) == sum(p.numel() for p in case.network.parameters() if p.requires_grad) > 0
    assert_grouped(attached, method, options)
    assert_frozen_parts_stay_in_eval(case, method, attached)

    base, state = plain_tensors(case.network), attached.state()
    own = {key.partition("::")[0] for key in state if key.endswith(("::full", "::buffer"))}
    first, second = train(attached, case, steps=2)
    assert set(attached.trainable()) - first - second <= set(attached.facts().get("inert", []))
    after = plain_tensors(case.network)
    assert [n for n in base if n not in own and not torch.equal(base[n], after[n])] == []

    attached.prune()
    state = attached.state()
    attach_saved(fresh.network, fresh.anatomy, method, options, train_decoder, state)
    with torch.no_grad():
        trained = case.network(x)
        assert torch.equal(fresh.network(x), trained)
        merged = attached.merge()
        assert (merged(x) - trained).abs().max() < 1e-5
    assert attached.merges == (method not in MERGE_NOT)
    if attached.merges:
        assert set(merged.state_dict()) == keys | set(attached.created)
    with pytest.raises(BadInput, match="does not belong here: other::A"):
        attached.load_state({**state, "other::A": torch.zeros(1)})


def assert_frozen_parts_stay_in_eval(case: Case, method: str, attached: Attached) -> None:
    """Neither statistics nor dropout of what is frozen move when the network is trained."""
    live = {name.rpartition(".")[0] for name in attached.statistics}
    case.network.train()
    kinds = (nn.modules.batchnorm._NormBase, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
    moving = [n for n, m in case.network.named_modules() if isinstance(m, kinds) and m.training]
    inside = (*case.anatomy.decoder, case.anatomy.head)
    assert method == "full" or {n for n in moving if not n.startswith(inside)} == {
        n for n in live if not n.startswith(inside)
    }
    assert method == "full" or live <= set(moving)
    assert case.network.get_submodule(case.anatomy.head).training
    case.network.eval()


@pytest.mark.parametrize("network", ["segresnet", "unet3d", "unet2d"])
def test_adaptformer_says_that_there_is_nothing_to_adapt_without_transformer_blocks(network):
    case = make(network)
    with pytest.raises(BadInput, match="layers that can be adapted: none"):
        attach(case.network, case.anatomy, "adaptformer", {})


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("segresnet", "up_layers.1.0"),
        ("unet3d", "up_tr64.ops"),
        ("unet2d", "up1.2"),
        ("swinunetr", "decoder1.conv_block"),
    ],
)
def test_the_last_block_is_the_decoders_block_next_to_the_head(network, expected):
    case = make(network)
    attached = attach(case.network, case.anatomy, "selective", {"layers": "last_block"})
    names = {key.partition("::")[0] for key in attached.state()} - {
        f"{case.anatomy.head}.{leaf}" for leaf in ("weight", "bias")
    }
    assert names == {f"{expected}.{n}" for n, _ in case.network.get_submodule(expected).named_parameters()}


# Network -> the names of the modules in a region, written out; a region that is left out has none.
_BLOCK = r"swinViT\.layers[1-4]\.0\.blocks\.0"
PARTS = {
    "segresnet": {
        "encoder": r"(convInit|down_layers)(\..*)?",
        "decoder": r"(up_layers|up_samples|conv_final\.0)(\..*)?",
        "last_block": r"up_layers\.1\.0(\..*)?",
    },
    "unet3d": {
        "encoder": r"down_tr(64|128|256|512)(\..*)?",
        "decoder": r"up_tr(64|128|256)(\..*)?",
        "last_block": r"up_tr64\.ops(\..*)?",
    },
    "unet2d": {
        "encoder": r"(init_path|down[123])(\..*)?",
        "decoder": r"(shortcut[0-3]|up[0-3]|out_path)(\..*)?",
        "last_block": r"up1\.2(\..*)?",
    },
    "swinunetr": {
        "qkv": rf"{_BLOCK}\.attn\.qkv",
        "attention": rf"{_BLOCK}\.attn(\..*)?",
        "transformer": rf"{_BLOCK}(\..*)?",
        "encoder": r"(swinViT|encoder(1|2|3|4|10))(\..*)?",
        "decoder": r"decoder[1-5](\..*)?",
        "last_block": r"decoder1\.conv_block(\..*)?",
    },
}
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _is_convolution(network: nn.Module, name: str) -> bool:
    return isinstance(network.get_submodule(name), (nn.Conv2d, nn.Conv3d))


def _is_linear_or_convolution(network: nn.Module, name: str) -> bool:
    return isinstance(network.get_submodule(name), (nn.Linear, nn.Conv2d, nn.Conv3d))


def _is_odd_convolution(network: nn.Module, name: str) -> bool:
    return _is_convolution(network, name) and all(k % 2 for k in network.get_submodule(name).kernel_size)


def _is_norm(network: nn.Module, name: str) -> bool:
    module = network.get_submodule(name)
    return isinstance(module, _NORMS) and module._parameters.get("weight") is not None


def _has_bias(network: nn.Module, name: str) -> bool:
    return network.get_submodule(name)._parameters.get("bias") is not None


def _has_parameters(network: nn.Module, name: str) -> bool:
    return any(p is not None for p in network.get_submodule(name)._parameters.values())


# Method and options -> what it adapts, of whatever part of a network.
ADAPTS = {
    "lora": ({}, _is_linear_or_convolution),
    "arena": ({}, _is_linear_or_convolution),
    "adalora": ({}, _is_linear_or_convolution),
    "dora": ({}, _is_linear_or_convolution),
    "convlora": ({}, _is_convolution),
    "conv_adapter": ({}, _is_convolution),
    "conv_adapter-block": ({"scheme": "block_parallel"}, lambda network, name: name in conv_blocks(network)),
    "residual_adapter": ({}, _is_odd_convolution),
    "ssf": ({}, _is_norm),
    "ssf-conv": ({"after": "conv"}, _is_linear_or_convolution),
    "affine": ({}, _is_norm),
    "bitfit": ({}, _has_bias),
    "adaptformer": ({}, lambda network, name: name.endswith(".mlp")),
    "selective": ({}, _has_parameters),
}


def test_every_method_with_layers_is_in_the_table_of_what_it_adapts():
    with_layers = {name for name, info in METHODS.items() if any(o.name == "layers" for o in info.options)}
    assert {variant.partition("-")[0] for variant in ADAPTS} == with_layers
    assert set(METHODS) - with_layers == {"linear_probe", "spatial_adapter", "decoder", "full", "auto"}


@cache
def _without_storage(name: str) -> Case:
    case = make(name)
    return Case(case.network.to("meta"), case.anatomy, case.shape)


def _touched(variant: str, network: str, layers: str) -> set[str]:
    """Names of the modules outside the head that an attached method trains something of or beside."""
    case = _without_storage(network)
    attached = attach(
        copy.deepcopy(case.network), case.anatomy, variant.partition("-")[0], {**ADAPTS[variant][0], "layers": layers}
    )
    modules = {name for name, _ in case.network.named_modules()}
    names = {key.partition("::")[0] for key in attached.tensors()}
    return {n if n in modules else n.rpartition(".")[0] for n in names} - {case.anatomy.head}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", ADAPTS)
def test_layer_names_mean_the_same_for_all_methods(variant, network):
    case, parts = _without_storage(network), {**PARTS[network], "all": ".*"}
    adapts = ADAPTS[variant][1]
    can = {n for n, _ in case.network.named_modules() if n not in ("", case.anatomy.head) and adapts(case.network, n)}
    fitting = []
    for name in REGIONS:
        expected = {n for n in can if re.fullmatch(parts[name], n)} if name in parts else set()
        if expected:
            fitting.append(name)
            assert _touched(variant, network, name) == expected, name
            continue
        with pytest.raises(BadInput, match=f"No layer that this method can adapt fits layers '{name}'") as refusal:
            _touched(variant, network, name)
        assert ("this network has none" in refusal.value.message) == (name not in parts)
        remedy = f"Use {', '.join(n for n in REGIONS if fits_region(can, parts, n))}, or a regular" if can else "Choose"
        assert refusal.value.remedy.startswith(remedy)
    assert bool(fitting) == bool(can)


def fits_region(can: set[str], parts: dict[str, str], name: str) -> bool:
    """Whether something that a method can adapt is in a region."""
    return name in parts and any(re.fullmatch(parts[name], n) for n in can)


def test_the_attention_holds_the_projections_and_the_table_but_neither_norms_nor_mlps():
    block = "swinViT.layers1.0.blocks.0.attn"
    of_first = {n for n in _touched("selective", "swinunetr", "attention") if n.startswith(f"{block}")}
    assert of_first == {block, f"{block}.qkv", f"{block}.proj"}
    state = attach(make("swinunetr").network, make("swinunetr").anatomy, "lora", {"layers": "attention"}).state()
    kinds = {re.sub(r".*\.attn\.", "", key) for key in state if "out.conv" not in key}
    assert kinds == {f"qkv.weight::{f}.{b}" for f in "AB" for b in "qkv"} | {"proj.weight::A", "proj.weight::B"}


def test_every_norm_of_the_transformer_is_reached():
    case = make("swinunetr")
    norms = {n for n, m in case.network.named_modules() if isinstance(m, nn.LayerNorm) and ".blocks." in n}
    assert _touched("affine", "swinunetr", "transformer") == norms
