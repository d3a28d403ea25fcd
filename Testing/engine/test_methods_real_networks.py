"""The promises of `test_adapters.py` on the four networks that foundation models have, small versions of them.

One test for each method and network checks all of them in one go: building and running these networks takes the time.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

from peftseg.adapters import attach, attach_saved
from peftseg.errors import BadInput
from peftseg.models import NetworkSpec
from peftseg.networks import build, replace_head
from test_adapters import assert_grouped, plain_tensors
from tiny_networks import Case, an_input, swin_unetr, train

# Name -> (method, options, train_decoder).
VARIANTS = {
    "lora": ("lora", {"rank": 2}, False),
    "lora-all-loralib": ("lora", {"rank": 2, "layers": "all", "form": "loralib"}, False),
    "lora-pca": ("lora", {"rank": 2, "init": "pca", "layers": "encoder"}, True),
    "dora": ("dora", {"rank": 2, "layers": "encoder"}, False),
    "adalora": ("adalora", {"rank": 1, "start_rank": 2}, False),
    "arena": ("arena", {"rank": 2}, True),
    "convlora": ("convlora", {}, False),
    "convlora-window": ("convlora", {"form": "window"}, False),
    "bitfit": ("bitfit", {}, False),
    "affine": ("affine", {}, False),
    "ssf": ("ssf", {}, False),
    "ssf-norm-else-conv": ("ssf", {"after": "norm_else_conv"}, False),
    "ssf-all": ("ssf", {"after": "all"}, False),
    "conv_adapter": ("conv_adapter", {"scheme": "block_parallel"}, False),
    "conv_adapter-thesis": ("conv_adapter", {"preset": "thesis", "width": 4}, False),
    "conv_adapter-conv": ("conv_adapter", {"scheme": "conv_sequential"}, True),
    "conv_adapter-after-norm": ("conv_adapter", {"sum": "after_norm"}, False),
    "residual_adapter": ("residual_adapter", {}, True),
    "adaptformer": ("adaptformer", {"bottleneck": 4}, False),
    "spatial_adapter": ("spatial_adapter", {}, True),
    "linear_probe": ("linear_probe", {}, False),
    "selective": ("selective", {}, False),
    "decoder": ("decoder", {}, False),
    "full": ("full", {}, False),
}
# SwinUNETR is slow: what it shares with the other networks is left to them.
NOT_ON_SWIN = ("lora-all-loralib", "lora-pca", "convlora-window", "conv_adapter-thesis", "conv_adapter-conv")
MERGE_NOT = ("conv_adapter", "adaptformer", "spatial_adapter")
NETWORKS = ("segresnet", "unet3d", "unet2d", "swinunetr")


def make(name: str) -> Case:
    case = _made(name)
    return Case(copy.deepcopy(case.network), case.anatomy, case.shape)


@cache
def _made(name: str) -> Case:
    torch.manual_seed(0)
    if name == "swinunetr":
        network, anatomy = swin_unetr()
        return Case(network.eval(), anatomy, (1, 1, 64, 32, 32))
    arguments = {
        "segresnet": {"in_channels": 1, "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
        "unet3d": {},
        "unet2d": {"filters": 4},
    }[name]
    network, anatomy = build(NetworkSpec(name, arguments), 3)
    if anatomy.head_norm:
        replace_head(network, anatomy, 3)
    shape = {"segresnet": (1, 1, 12, 12, 12), "unet3d": (1, 1, 16, 16, 16), "unet2d": (1, 1, 16, 16, 2)}[name]
    return Case(network.eval(), anatomy, shape)


def fits(variant: str, network: str) -> bool:
    """Whether the network has what the method adapts."""
    return variant not in NOT_ON_SWIN if network == "swinunetr" else variant != "adaptformer"


@pytest.mark.parametrize(
    ("variant", "network"),
    [pytest.param(v, n, id=f"{v}:{n}") for v in VARIANTS for n in NETWORKS if fits(v, n)],
)
def test_a_method_keeps_its_promises(variant, network):
    method, options, train_decoder = VARIANTS[variant]
    case, fresh = make(network), make(network)
    x = an_input(case)
    keys, total = set(case.network.state_dict()), sum(p.numel() for p in case.network.parameters())
    with torch.no_grad():
        before = case.network(x)
        attached = attach(case.network, case.anatomy, method, options, train_decoder)
        assert (case.network(x) - before).abs().max() < 1e-5
    share = attached.trained_share()
    assert share.pop("base_total") == total
    share.pop("buffers")
    assert sum(share.values()) == sum(p.numel() for p in case.network.parameters() if p.requires_grad) > 0
    assert_grouped(attached, method, options)
    assert_frozen_parts_stay_in_eval(case, method)

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
        assert (merged(x) - trained).abs().max() < 1e-5 * max(1, float(trained.abs().max()))
    assert attached.merges == (method not in MERGE_NOT)
    if attached.merges:
        assert set(merged.state_dict()) == keys | set(attached.created)
    with pytest.raises(BadInput, match="does not belong here: other::A"):
        attached.load_state({**state, "other::A": torch.zeros(1)})


def assert_frozen_parts_stay_in_eval(case: Case, method: str) -> None:
    """Neither statistics nor dropout of what is frozen move when the network is trained."""
    case.network.train()
    kinds = (nn.modules.batchnorm._NormBase, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
    moving = [n for n, m in case.network.named_modules() if isinstance(m, kinds) and m.training]
    inside = (*case.anatomy.decoder, case.anatomy.head)
    assert method == "full" or not [n for n in moving if not n.startswith(inside)]
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


@pytest.mark.parametrize("network", NETWORKS)
def test_layer_names_mean_the_same_for_all_methods(network):
    case = make(network)
    chosen = {}
    for layers in ("encoder", "decoder", "all"):
        attached = attach(make(network).network, case.anatomy, "selective", {"layers": layers})
        chosen[layers] = {k.partition("::")[0] for k in attached.state()}
    inside = {part: tuple(f"{p}." for p in getattr(case.anatomy, part)) for part in ("encoder", "decoder")}
    for part in ("encoder", "decoder"):
        body = {n for n in chosen[part] if not n.startswith(case.anatomy.head)}
        assert body
        assert all(n.startswith(inside[part]) for n in body)
    assert chosen["encoder"] | chosen["decoder"] == chosen["all"] == {n for n, _ in case.network.named_parameters()}


def test_every_norm_and_bias_of_the_transformer_is_reached():
    case = make("swinunetr")
    affine = attach(make("swinunetr").network, case.anatomy, "affine", {"layers": "attention"})
    norms = {n for n, m in case.network.named_modules() if isinstance(m, nn.LayerNorm) and ".blocks." in n}
    assert {k.rpartition(".")[0] for k in affine.state() if "out.conv" not in k} == norms
