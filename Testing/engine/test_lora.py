"""LoRA by hand: factorisations, counts, choice of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from peftseg.adapters import attach, attach_saved
from peftseg.errors import BadInput
from peftseg.networks import Anatomy
from tiny_networks import an_input, make, swin_unetr, train


def one_layer(layer: nn.Module) -> tuple[nn.Module, Anatomy]:
    """A network of one layer and a head without parameters."""
    network = nn.ModuleDict({"layer": layer, "head": nn.Identity()})
    return network, Anatomy("head", ("layer",), (), 1)


def attached_layer(layer: nn.Module, **options):
    network, anatomy = one_layer(layer)
    return attach(network, anatomy, "lora", {"layers": "layer", **options})


def fill(attached, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random factors; returns them by suffix."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(t.shape, generator=generator) for key, t in attached.state().items()}
    attached.load_state(state)
    return {key.partition("::")[2]: tensor for key, tensor in state.items()}


def test_a_linear_change_is_what_one_computes_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    attached = attached_layer(layer, rank=1, alpha=2)
    attached.load_state(
        {"layer.weight::A": torch.tensor([[1.0, 2.0]]), "layer.weight::B": torch.tensor([[3.0], [4.0]])}
    )
    # 1 + 2/1 * [3 4]^T [1 2]
    assert layer.weight.tolist() == [[7.0, 12.0], [8.0, 17.0]]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 5, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 1), dilation=2, groups=2, bias=False),
        nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular"),
    ],
    ids=["strided-1d", "grouped-dilated-anisotropic-2d", "circular-3d"],
)
def test_the_window_form_is_a_product_in_the_natural_unfolding(layer):
    before = layer.weight.detach().clone()
    factors = fill(attached_layer(layer, rank=2))
    assert torch.allclose(layer.weight, before + (factors["B"] @ factors["A"]).view(before.shape), atol=1e-6)
    assert torch.linalg.matrix_rank((layer.weight - before).flatten(1)) == 2


def test_the_layer_runs_once_with_its_own_geometry():
    layer = nn.Conv2d(2, 4, 3, stride=2, dilation=2, groups=2, padding=1, padding_mode="reflect")
    x = torch.randn(1, 2, 9, 9)
    attached = attached_layer(layer, rank=2)
    fill(attached)
    padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
    by_hand = functional.conv2d(padded, layer.weight, layer.bias, stride=2, dilation=2, groups=2)
    assert torch.equal(layer(x), by_hand)


def test_a_transposed_convolution_has_the_window_form_with_its_first_axes_swapped():
    layer = nn.ConvTranspose2d(6, 4, 2, stride=2)
    before = layer.weight.detach().clone()
    for form in ("window", "loralib"):
        network, anatomy = one_layer(nn.ConvTranspose2d(6, 4, 2, stride=2))
        attached = attach(network, anatomy, "lora", {"layers": "layer", "rank": 2, "form": form})
        assert {k: tuple(t.shape) for k, t in attached.state().items()} == {
            "layer.weight::A": (2, 24),
            "layer.weight::B": (4, 2),
        }
    factors = fill(attached_layer(layer, rank=2))
    change = (factors["B"] @ factors["A"]).view(4, 6, 2, 2).transpose(0, 1)
    assert torch.allclose(layer.weight, before + change, atol=1e-6)


def test_the_loralib_form_reads_the_product_in_memory_order():
    layer = nn.Conv3d(4, 5, 3, bias=False)
    before = layer.weight.detach().clone()
    factors = fill(attached_layer(layer, rank=2, form="loralib"))
    assert factors["A"].shape == (2 * 3, 4 * 3)
    assert factors["B"].shape == (5 * 3**2, 2 * 3)
    assert torch.allclose(layer.weight, before + (factors["B"] @ factors["A"]).view(5, 4, 3, 3, 3), atol=1e-5)


def test_the_loralib_form_refuses_unequal_kernels_by_layer_name():
    with pytest.raises(BadInput, match=r"Layer layer has kernel size \(3, 1\).*form 'window'"):
        attached_layer(nn.Conv2d(4, 4, (3, 1)), form="loralib")


def test_convlora_counts_of_the_published_first_stage_are_reproduced():
    # Aleem et al. 2024, sec. 4.1: 3,954, 192 of them normalisation. Conv2d(1, 16, 3), six Conv2d(16, 16, 3), r = 2: 3,762.
    convolutions = nn.Sequential(nn.Conv2d(1, 16, 3), *(nn.Conv2d(16, 16, 3) for _ in range(6)))
    network, anatomy = one_layer(convolutions)
    attached = attach(network, anatomy, "lora", {"rank": 2, "form": "loralib"})
    assert attached.trained_share()["adapter"] == 3762
    assert attached.state()["layer.0.weight::A"].numel() + attached.state()["layer.0.weight::B"].numel() == 306


@pytest.mark.parametrize(("rank", "expected"), [(8, 606_424), (16, 1_212_848), (64, 4_851_392 - 37 * (27 + 32))])
def test_thesis_counts_of_the_suprem_unet_are_reproduced(rank, expected):
    # The thesis, Table 5.1: 0.6, 1.2, 4.9 M; all convolutions but head and transposed ones. Here the first layer's
    # rank is clipped from 64 to 27, the size of its unfolding.
    encoder = [(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    decoder = [(768, 256), (256, 256), (384, 128), (128, 128), (192, 64), (64, 64)]
    with torch.device("meta"):
        layers = nn.ModuleList(nn.Conv3d(i, o, 3) for i, o in encoder + decoder)
    network, anatomy = one_layer(layers)
    attached = attach(network, anatomy, "lora", {"rank": rank})
    assert attached.trained_share()["adapter"] == expected
    assert attached.facts().get("clipped", {}) == ({"layer.0": 27} if rank == 64 else {})


def test_rank_is_clipped_to_the_smaller_side_and_reported():
    case = make("unet-3d-group")
    facts = attach(case.network, case.anatomy, "lora", {"rank": 6}).facts()
    assert facts["ranks"] == {"stem": 4, "down": 6, "dilated": 6}
    assert facts["clipped"] == {"stem": 4}


def test_alpha_is_divided_by_the_rank_and_its_default_gives_scale_one():
    changes = []
    for alpha in (None, 4, 8):
        layer = nn.Linear(5, 5)
        before = layer.weight.detach().clone()
        fill(attached_layer(layer, rank=4, alpha=alpha))
        changes.append(layer.weight - before)
    assert torch.allclose(changes[0], changes[1], atol=1e-6)
    assert torch.allclose(changes[2], 2 * changes[1], atol=1e-5)


def test_weights_are_composed_in_full_precision_under_autocast():
    layer = nn.Linear(32, 32)
    fill(attached_layer(layer))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        composed = layer.weight
    assert torch.equal(composed, layer.weight)


def test_a_fused_projection_gets_separate_factors_for_q_k_and_v():
    case = make("transformer-2d")
    qkv = case.network.block.attn.qkv
    before = qkv.weight.detach().clone()
    attached = attach(case.network, case.anatomy, "lora", {"rank": 2})
    state = {k: t + 0.1 if "::" in k and "head" not in k else t for k, t in attached.state().items()}
    attached.load_state(state)
    names = [f"block.attn.qkv.weight::{factor}.{block}" for block in "qkv" for factor in "AB"]
    assert [k for k in state if "head" not in k] == names
    by_hand = torch.cat(
        [state[f"block.attn.qkv.weight::B.{b}"] @ state[f"block.attn.qkv.weight::A.{b}"] for b in "qkv"]
    )
    assert torch.allclose(qkv.weight - before, by_hand, atol=1e-6)
    assert attached.facts()["ranks"] == {f"block.attn.qkv[{block}]": 2 for block in "qkv"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("auto", ["stem", "down", "dilated"]),
        ("encoder", ["stem", "down", "dilated"]),
        ("all", ["stem", "down", "dilated", "mix"]),
        ("up", ["up"]),
        (r"d.*", ["down", "dilated"]),
    ],
)
def test_layers_are_chosen_by_name(layers, expected):
    case = make("unet-2d-batch")
    attached = attach(case.network, case.anatomy, "lora", {"layers": layers})
    assert list(attached.facts()["ranks"]) == expected


def test_auto_prefers_the_attention_of_the_encoder():
    network, anatomy = swin_unetr()
    ranks = attach(network, anatomy, "lora", {}).facts()["ranks"]
    assert len(ranks) == 4 * 3
    assert all(".attn.qkv[" in layer for layer in ranks)


def test_a_pattern_that_matches_nothing_lists_layers_that_can_be_adapted():
    case = make("unet-2d-batch")
    with pytest.raises(BadInput, match=r"No layer .* fits layers 'attention'.*: stem, down, dilated, up, mix\."):
        attach(case.network, case.anatomy, "lora", {"layers": "attention"})
    with pytest.raises(BadInput, match=r": stem, down, dilated\."):
        attach(case.network, case.anatomy, "lora", {"layers": "mix"}, train_decoder=True)
    with pytest.raises(BadInput, match="is not a regular expression"):
        attach(case.network, case.anatomy, "lora", {"layers": "(stem"})
    assert all(p.requires_grad for p in case.network.parameters())


def test_a_long_list_of_layers_is_cut_after_twenty():
    network, anatomy = swin_unetr()
    with pytest.raises(BadInput, match=r"and \d+ more\.") as refusal:
        attach(network, anatomy, "lora", {"layers": "nothing"})
    assert refusal.value.message.count("swinViT.") + refusal.value.message.count("encoder") == 20


def test_a_decoder_that_trains_outright_gets_no_low_rank_change():
    case = make("unet-2d-batch")
    attached = attach(case.network, case.anatomy, "lora", {"layers": "all", "rank": 2}, train_decoder=True)
    assert list(attached.facts()["ranks"]) == ["stem", "down", "dilated"]
    assert {"mix.weight::full", "norm3.weight::full", "up.bias::full"} <= set(attached.state())


def test_a_state_that_lacks_a_whole_layer_is_refused():
    case, fresh = make("unet-2d-batch"), make("unet-2d-batch")
    attached = attach(case.network, case.anatomy, "lora", {"rank": 2})
    train(attached, case)
    state = {k: t for k, t in attached.state().items() if not k.startswith("down.")}
    with pytest.raises(BadInput, match=r"is missing: down\.weight::A, down\.weight::B"):
        attach_saved(fresh.network, fresh.anatomy, "lora", {"rank": 2}, False, state)


def test_merging_a_deep_copied_network_leaves_both_working():
    case = make("unet-2d-batch")
    attached = attach(case.network, case.anatomy, "lora", {"rank": 2})
    train(attached, case)
    with torch.no_grad():
        first = attached.merge()(an_input(case))
        second = attached.merge()(an_input(case))
    assert torch.equal(first, second)
    assert list(attached.merge().state_dict()) == list(make("unet-2d-batch").network.state_dict())
