"""Parameter counts of methods, to the last one, as published or as the published code has them.

ConvLoRA and UDAS: Aleem et al. 2024, sec. 4.1. `fseft`: FSEFT's code. The thesis: Tables 5.1 to 5.4. ARENA, whose text
gives no count: its sec. 3.1 with separate factors for K and V.
"""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from peftseg.adapters import attach
from peftseg.early_head import EarlyHead
from peftseg.models import NetworkSpec
from peftseg.networks import Anatomy, build

ARGUMENTS = {
    "segresnet": {"in_channels": 1, "init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]},
    "unet3d": {},
    "unet2d": {},
    "swinunetr": {"in_channels": 1, "feature_size": 48},
}
ATTENTION_AND_MLP = r"swinViT\..*\.(attn|mlp)\..*"
FULL_DECODER = {"unet3d": 12_045_824 + 18 * 65, "segresnet": 301_842}  # with a head for 18 classes


@cache
def _empty(name: str, rows: int) -> tuple[nn.Module, Anatomy]:
    """A network without storage: only its sizes are looked at."""
    if name != "swinunetr":
        with torch.device("meta"):
            return build(NetworkSpec(name, ARGUMENTS[name]), rows)
    network, anatomy = build(NetworkSpec(name, ARGUMENTS[name]), rows)  # MONAI reads numbers while it builds
    return network.to("meta"), anatomy


def share(name: str, method: str, options: dict, train_decoder: bool = False, rows: int = 18) -> dict[str, int]:
    network, anatomy = _empty(name, rows)
    return attach(copy.deepcopy(network), anatomy, method, options, train_decoder).trained_share()


def adapter(name: str, method: str, options: dict, rows: int = 18) -> int:
    return share(name, method, options, rows=rows)["adapter"]


@pytest.mark.parametrize(
    ("layers", "lora", "norm"),
    [
        (r"init_path\..*", 3_762, 192),
        (r"(init_path|down1)\..*", 11_058, 576),
        (r"(init_path|down[12])\..*", 25_650, 1_344),
        ("auto", 54_834, 2_880),
    ],
)
def test_convlora_as_released(layers, lora, norm):
    found = share("unet2d", "convlora", {"preset": "published", "layers": layers}, rows=1)
    assert (found["adapter"], found["norm"]) == (lora, norm)
    # Running statistics are no parameters, but they are stored: means and variances but those of the normalisation after
    # the head, and a counter for each layer.
    assert found["buffers"] == 6_338 - 2 + 51
    assert share("unet2d", "convlora", {"layers": layers}, rows=1)["norm"] == 0


def test_the_first_path_of_the_2d_unet_in_full_as_in_udas():
    found = share("unet2d", "selective", {"layers": r"init_path\..*"}, rows=1)
    assert found["body"] + found["norm"] == 14_160


def test_fseft_lora_is_one_pair_for_query_key_and_value():
    assert adapter("swinunetr", "lora", {"preset": "fseft"}) == 69_120
    # Separate pairs of the same rank share no inner dimension: (d + d) 4 for each of three, d of eight blocks.
    assert adapter("swinunetr", "lora", {"rank": 4}) == 3 * 4 * 2 * 2 * (48 + 96 + 192 + 384)


def test_arena_with_separate_k_and_v():
    assert adapter("swinunetr", "arena", {"rank": 8}) == 46_208


def test_bitfit_is_true_biases_and_fsefts_on_request():
    found = adapter("swinunetr", "bitfit", {"layers": ATTENTION_AND_MLP})
    assert found == 12_960
    assert adapter("swinunetr", "bitfit", {"preset": "fseft"}) == 12_960 + 197_730 == 210_690


def test_bitfit_by_default_trains_every_bias_of_the_network():
    # The published 12,960 are the true biases of FSEFT's layers: its preset without the tables. The rest are those of the
    # normalisations (8,640) and of the embedding of patches (48).
    assert adapter("swinunetr", "bitfit", {}) == 21_648
    assert adapter("swinunetr", "bitfit", {"preset": "fseft", "relative_position": False}) == 12_960


def test_affine_of_the_transformer_is_that_of_fseft():
    assert share("swinunetr", "affine", {"layers": "encoder"})["norm"] == 17_280
    assert share("swinunetr", "affine", {"preset": "fseft"})["norm"] == 17_280
    # Of the UNet it is `bn1` on the way down.
    assert share("unet3d", "affine", {"preset": "fseft"})["norm"] == 2_880


def test_the_early_head_of_udas_is_ours_without_its_normalisation():
    layers = dict(EarlyHead(16).named_parameters())
    assert sum(p.numel() for p in layers.values()) == 2_725
    assert sum(p.numel() for name, p in layers.items() if not name.startswith("bn")) == 2_685


@pytest.mark.parametrize(("kernel", "count"), [(3, 124_416), (1, 4_608)])
def test_spatial_adapters(kernel, count):
    assert adapter("swinunetr", "spatial_adapter", {"kernel": kernel}) == count


def test_the_convolutional_adapter_of_fseft_has_one_value_a_pair_of_channels_on_the_way_down():
    # Convolutions over one voxel without bias beside the two of each level: 1 -> 32 -> 64 -> 64 -> 128 ... -> 512.
    channels = [1, 32, 64, 64, 128, 128, 256, 256, 512]
    pairs = sum(a * b for a, b in pairwise(channels))
    assert adapter("unet3d", "residual_adapter", {"preset": "fseft"}) == pairs == 260_128


def test_the_linear_probe_of_one_class_has_49_values():
    assert share("swinunetr", "linear_probe", {}, rows=1)["head"] == 49


@pytest.mark.parametrize(
    ("options", "count"),
    [({"rank": 8}, 606_424), ({"rank": 16}, 1_212_848), ({"dynamic_rank": True}, 8_460_000)],
    ids=["8", "16", "dynamic"],
)
def test_thesis_lora_on_the_unet(options, count):
    found = adapter("unet3d", "lora", {"layers": "all", **options})
    assert round(found, -3) == count if options.get("dynamic_rank") else found == count


def test_thesis_lora_of_rank_64_on_the_unet_counts_the_first_layer_beyond_its_size():
    found = adapter("unet3d", "lora", {"layers": "all", "rank": 64})
    # The first convolution is 32 x 27: rank 27 is all that there is, and ours is clipped to it.
    beyond = (64 - 27) * (27 + 32)
    assert found == 4_849_209
    assert found + beyond == 4_851_392
    assert round((found + beyond) / 1e6, 3) == 4.851


@pytest.mark.parametrize(("options", "millions"), [({"rank": 32}, 1.592), ({"dynamic_rank": True}, 2.431)])
def test_thesis_lora_on_segresnet_is_in_the_blocks_of_the_encoder(options, millions):
    found = share("segresnet", "lora", {"layers": r"down_layers\..*\.conv[12]\.conv", **options}, train_decoder=True)
    assert found["decoder"] + found["head"] == FULL_DECODER["segresnet"]
    # Two layers have 16 output channels; ranks above that are published, but ours are clipped.
    beyond = 2 * 16 * (16 * 27 + 16) if options.get("rank") == 32 else 0
    assert round((found["adapter"] + beyond + FULL_DECODER["segresnet"]) / 1e6, 3) == millions


def test_thesis_runs_with_one_side_in_full_follow_the_loralib_form():
    options = {"rank": 16, "form": "loralib"}
    unet = share("unet3d", "lora", {"layers": "encoder", **options}, train_decoder=True)
    assert round((unet["adapter"] + FULL_DECODER["unet3d"]) / 1e6, 3) == 12.803
    decoder = share("unet3d", "lora", {"layers": "decoder", **options})
    assert round((decoder["adapter"] + decoder["head"] + 7_027_776) / 1e6, 3) == 7.674
    blocks = {"layers": r"down_layers\..*\.conv[12]\.conv", **options}
    segresnet = share("segresnet", "lora", blocks, train_decoder=True)
    assert round((segresnet["adapter"] + FULL_DECODER["segresnet"]) / 1e6, 3) == 1.131


@pytest.mark.parametrize(
    ("network", "options", "train_decoder", "millions"),
    [
        ("segresnet", {"layers": "all"}, False, 0.7475),
        ("segresnet", {"layers": r"convInit\.conv|(down|up)_layers\.\d\.\d"}, False, 0.7490),
        ("segresnet", {"layers": "encoder"}, False, 0.6468),
        ("segresnet", {"layers": "encoder"}, True, 0.9487),
        ("unet3d", {"layers": "all"}, False, 1.5970),
        ("unet3d", {"layers": "encoder"}, True, 12.468),
    ],
)
def test_thesis_conv_adapter(network, options, train_decoder, millions):
    found = share(network, "conv_adapter", {"preset": "thesis", **options}, train_decoder)
    total = found["adapter"] + (FULL_DECODER[network] if train_decoder else 0)
    assert total / 1e6 == pytest.approx(millions, abs=1e-4 if millions < 1 else 5e-4)


@pytest.mark.parametrize(
    ("network", "scheme", "millions"), [("segresnet", "block_parallel", 0.106), ("unet3d", "conv_parallel", 0.685)]
)
def test_official_conv_adapters_stay_below_the_thesis_counts(network, scheme, millions):
    options = {"preset": "official", "gamma": 1, "layers": "all", "scheme": scheme}
    assert round(adapter(network, "conv_adapter", options) / 1e6, 3) == millions


@pytest.mark.parametrize("network", ["segresnet", "unet3d", "unet2d", "swinunetr"])
def test_where_a_conv_adapter_is_added_does_not_change_its_size(network):
    plain, after = (adapter(network, "conv_adapter", {"sum": where}) for where in ("before_norm", "after_norm"))
    assert plain == after > 0


def test_one_official_conv_adapter_has_the_published_formula():
    # C_in k^d + w + w C_out + 2 C_out with w = C_in / gamma.
    found = adapter("segresnet", "conv_adapter", {"preset": "official", "layers": r"down_layers\.0\.1\.conv1\.conv"})
    assert found == 16 * 27 + 4 + 4 * 16 + 2 * 16


@pytest.mark.parametrize(("network", "norms"), [("segresnet", 3_360), ("unet3d", 4_672)])
def test_official_conv_adapters_train_every_normalisation(network, norms):
    assert share(network, "conv_adapter", {"preset": "official"})["norm"] == norms
    assert share(network, "conv_adapter", {"preset": "official", "train_norm": False})["norm"] == 0
    assert share(network, "conv_adapter", {})["norm"] == 0


def test_ssf_after_every_convolution():
    every = {"after": "conv", "layers": "all"}
    # The published 4,082 of SegResNet counts the head of 25 classes, the 4,672 of the UNet counts no head.
    assert adapter("segresnet", "ssf", every, rows=25) + 2 * 25 == 4_082
    assert adapter("unet3d", "ssf", every) == 4_672
    assert adapter("unet3d", "ssf", {"after": "conv", "layers": ".*"}) == 4_672 + 1_792


def test_biases_and_normalisation_of_the_unet():
    assert adapter("unet3d", "bitfit", {}) == 5_568
    assert adapter("unet3d", "bitfit", {"layers": "encoder"}) == 2_880
    assert share("unet3d", "affine", {})["norm"] == 4_672
    assert share("unet3d", "affine", {"layers": "encoder"})["norm"] == 2_880


def test_biases_and_normalisation_of_segresnet():
    assert share("segresnet", "affine", {}, rows=25)["norm"] == 3_360
    found = share("segresnet", "bitfit", {}, rows=25)
    assert found["adapter"] + 25 == 1_705
    assert found["head"] == 16 * 25 + 25


@pytest.mark.parametrize("network", ["unet3d", "segresnet"])
def test_decoder_tuning(network):
    found = share(network, "decoder", {})
    assert found["decoder"] + found["head"] == FULL_DECODER[network]
    assert share(network, "selective", {"layers": "decoder"}) == found


def test_full_tuning_trains_everything():
    found = share("segresnet", "full", {}, rows=25)
    assert (
        found["base_total"] == 4_701_305 == sum(n for kind, n in found.items() if kind not in ("buffers", "base_total"))
    )


def test_adalora_starts_with_its_start_rank():
    widths = [48, 48, 96, 96, 192, 192, 384, 384]
    assert adapter("swinunetr", "adalora", {}) == sum(3 * 12 * (2 * d + 1) for d in widths)


def test_adaptformer_has_one_bottleneck_a_block():
    widths = [48, 48, 96, 96, 192, 192, 384, 384]
    assert adapter("swinunetr", "adaptformer", {}) == sum(2 * 16 * d + 16 + d for d in widths)
