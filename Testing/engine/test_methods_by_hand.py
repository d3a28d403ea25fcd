"""Methods against numbers that one can compute on paper, and what their sources say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from peftseg.adapters import attach, attach_saved, check_options, learning_rates
from peftseg.adapters.features import POOL
from peftseg.adapters.following import norms_after
from peftseg.adapters.layers import CONVOLUTIONS as KINDS
from peftseg.adapters.layers import conv_blocks
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.models import NetworkSpec
from peftseg.networks import Anatomy, build
from peftseg.optimise import fit
from test_methods_features import SCHEDULE, scans
from test_optimise import StopAfter, reporter_with
from tiny_networks import an_input, make, swin_unetr, train


def alone(layer: nn.Module) -> tuple[nn.Sequential, Anatomy]:
    """A network of one layer and a head without parameters, which runs."""
    return nn.Sequential(layer, nn.Identity()), Anatomy("1", ("0",), (), 1)


def randomise(attached, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attached.load_state({key: torch.randn(t.shape, generator=generator) for key, t in attached.state().items()})
    return attached.state()


class TestSsf:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1, padding_mode="reflect"),
            nn.Conv3d(4, 6, 3, dilation=2, bias=False),
            nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
            nn.ConvTranspose3d(4, 6, 2, stride=2, bias=False),
            nn.GroupNorm(2, 4),
            nn.BatchNorm3d(4),
        ],
        ids=["grouped", "no-bias", "transposed-grouped", "transposed-no-bias", "group-norm", "batch-norm"],
    )
    def test_it_scales_and_shifts_the_output_and_merges_exactly(self, layer):
        x = torch.randn(2, 4, *(8,) * (2 if "2d" in type(layer).__name__ else 3))
        layer = copy.deepcopy(layer).eval()
        plain = layer(x).detach()
        network, anatomy = alone(layer)
        attached = attach(network, anatomy, "ssf", {"after": "all", "layers": "0"})
        state = randomise(attached)
        gamma, beta = (state[k].view(-1, *[1] * (x.ndim - 2)) for k in ("0.weight::gamma", "0.bias::beta"))
        assert torch.allclose(network(x), gamma * plain + beta, atol=1e-5)
        merged = attached.merge()
        assert torch.equal(merged(x), network(x))
        assert type(merged[0]) is type(layer) or type(merged[0]).__name__ in type(layer).__name__
        assert [n for n, _ in merged.named_parameters()] == ["0.weight", "0.bias"]

    def test_linear_layers_too(self):
        network, anatomy = alone(nn.Linear(3, 2))
        x = torch.randn(5, 3)
        plain = network(x).detach()
        state = randomise(attach(network, anatomy, "ssf", {"after": "conv"}))
        assert torch.allclose(network(x), state["0.weight::gamma"] * plain + state["0.bias::beta"], atol=1e-6)

    def test_before_a_normalisation_by_batch_it_does_nothing_and_says_so(self):
        from peftseg.networks.unet3d import make_unet3d

        torch.manual_seed(0)
        network, anatomy = make_unet3d({}, 2)
        x = torch.randn(1, 1, 16, 16, 16)
        before = network(x).detach()
        first = r"down_tr64\.ops\.0\.conv1"
        attached = attach(network, anatomy, "ssf", {"after": "conv", "layers": first})
        state = attached.state()
        key = "down_tr64.ops.0.conv1.{}"
        state[key.format("weight::gamma")] = torch.full((32,), 3.0)
        state[key.format("bias::beta")] = torch.full((32,), 5.0)
        attached.load_state(state)
        assert (network(x) - before).abs().max() < 1e-2 * before.abs().max()
        assert any("undoes scale and shift" in note for note in attached.notes)
        other = make("unet-2d-batch")  # normalises by what it has learnt
        assert attach(other.network, other.anatomy, "ssf", {"after": "conv"}).notes == ()


class TestConvAdapter:
    @pytest.mark.parametrize("scheme", ["conv_parallel", "conv_sequential"])
    @pytest.mark.parametrize("depthwise", [True, False])
    def test_beside_a_convolution(self, scheme, depthwise):
        host = nn.Conv2d(8, 6, 3, stride=2, padding=2, dilation=2, padding_mode="circular", bias=False)
        network, anatomy = alone(host)
        x = torch.randn(2, 8, 9, 9)
        plain = network(x).detach()
        options = {"scheme": scheme, "depthwise": depthwise, "gamma": 2, "layers": "0"}
        state = randomise(attach(network, anatomy, "conv_adapter", options))
        w1, b1, w2, b2, alpha = (
            state[f"0::{k}"] for k in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "alpha")
        )
        if scheme == "conv_parallel":
            assert w1.shape == (4, 2 if depthwise else 8, 3, 3)
            padded = functional.pad(x, (2, 2, 2, 2), mode="circular")
            hidden = functional.conv2d(padded, w1, b1, stride=2, dilation=2, groups=4 if depthwise else 1)
        else:
            assert w1.shape == (3, 2 if depthwise else 6, 3, 3)
            hidden = functional.conv2d(plain, w1, b1, padding=1, groups=3 if depthwise else 1)
        by_hand = plain + alpha * functional.conv2d(hidden.relu(), w2, b2)
        assert torch.allclose(network(x), by_hand, atol=1e-4)

    @pytest.mark.parametrize("scheme", ["conv_parallel", "conv_sequential"])
    @pytest.mark.parametrize("where", ["before_norm", "after_norm"])
    def test_the_sum_is_before_or_after_the_normalisation(self, scheme, where):
        torch.manual_seed(0)
        host, norm = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(2, 6)
        network = nn.Sequential(host, norm, nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1), nn.Identity()).eval()
        anatomy = Anatomy("4", ("0", "1", "3"), (), 4)
        nn.init.normal_(norm.weight)
        x = torch.randn(2, 4, 8, 8)
        plain = network(x).detach()
        raw, tail = copy.deepcopy(host)(x).detach(), copy.deepcopy(network[3])
        normalise = copy.deepcopy(norm)
        options = {"scheme": scheme, "sum": where, "depthwise": False, "gamma": 2, "layers": "0"}
        attached = attach(network, anatomy, "conv_adapter", options)
        assert torch.equal(network(x), plain)
        state = randomise(attached)
        w1, b1, w2, b2, alpha = (
            state[f"0::{k}"] for k in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "alpha")
        )

        def delta(of: torch.Tensor) -> torch.Tensor:
            stride = 2 if scheme == "conv_parallel" else 1
            return alpha * functional.conv2d(functional.conv2d(of, w1, b1, stride, 1).relu(), w2, b2)

        if where == "before_norm":
            summed = normalise(raw + delta(x if scheme == "conv_parallel" else raw))
        else:
            summed = normalise(raw) + delta(x if scheme == "conv_parallel" else normalise(raw))
        assert torch.allclose(network(x), tail(summed.relu()), atol=1e-4)
        network(x).square().mean().backward()
        assert all(t.grad is not None and t.grad.abs().max() > 0 for t in attached.trainable().values())
        assert torch.allclose(attached.merge()(x), network(x), atol=1e-6)

    def test_where_no_normalisation_follows_the_sum_stays_behind_the_convolution(self):
        outputs = []
        for where in ("before_norm", "after_norm"):
            case = make("unet-2d-batch")
            attached = attach(case.network, case.anatomy, "conv_adapter", {"sum": where, "layers": "stem|mix"})
            generator = torch.Generator().manual_seed(0)
            attached.load_state(
                {
                    k: torch.zeros_like(t) if k.startswith("stem") else torch.randn(t.shape, generator=generator)
                    for k, t in attached.state().items()
                }
            )
            outputs.append(case.network(an_input(case)))
        assert torch.equal(*outputs)

    def test_a_sum_after_the_normalisation_needs_one(self):
        case = make("unet-2d-batch")
        with pytest.raises(BadInput, match="no normalisation follows any"):
            attach(case.network, case.anatomy, "conv_adapter", {"sum": "after_norm", "layers": "mix|dilated"})
        segresnet = make("segresnet-2d")
        options = {"sum": "after_norm", "scheme": "block_parallel"}
        with pytest.raises(BadInput, match="a block has no normalisation"):
            attach(segresnet.network, segresnet.anatomy, "conv_adapter", options)

    @pytest.mark.parametrize("scheme", ["block_parallel", "block_sequential"])
    def test_beside_a_residual_block_and_behind_it(self, scheme):
        case = make("segresnet-2d")
        seen = {}
        block = case.network.down_layers[1][1]
        attached = attach(
            case.network, case.anatomy, "conv_adapter", {"scheme": scheme, "layers": r"down_layers\.1\.1"}
        )
        state = randomise(attached)
        with torch.no_grad():
            hook = block.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], after=output))
            case.network(an_input(case))
            hook.remove()
            plain = type(block).forward(block, seen["x"])
            take = seen["x"] if scheme == "block_parallel" else plain
            key = "down_layers.1.1::{}"
            hidden = functional.conv2d(
                take, state[key.format("conv1.weight")], state[key.format("conv1.bias")], padding=1, groups=4
            ).relu()
            out = functional.conv2d(hidden, state[key.format("conv2.weight")], state[key.format("conv2.bias")])
        assert torch.allclose(seen["after"], plain + state[key.format("alpha")] * out, atol=1e-4)

    def test_a_width_that_does_not_divide_the_channels_is_made_smaller_and_said(self):
        network, anatomy = alone(nn.Conv2d(12, 4, 3))
        attached = attach(network, anatomy, "conv_adapter", {"width": 5, "layers": "0"})
        assert attached.state()["0::conv1.weight"].shape == (4, 3, 3, 3)
        (note,) = attached.notes
        assert "smaller than asked at 1 place(s), such as 0: 4 instead of 5." in note

    @pytest.mark.parametrize("options", [{"width": 6}, {"gamma": 4}, {"width": 5, "depthwise": False}])
    def test_a_width_that_is_kept_needs_no_word(self, options):
        network, anatomy = alone(nn.Conv2d(12, 4, 3))
        assert attach(network, anatomy, "conv_adapter", {"layers": "0", **options}).notes == ()

    def test_blocks_are_refused_where_there_are_none(self):
        case = make("unet-2d-batch")
        with pytest.raises(BadInput, match="layers that can be adapted: stem, down, dilated, mix"):
            attach(case.network, case.anatomy, "conv_adapter", {"scheme": "block_parallel"})

    def test_the_small_modules_come_before_the_networks_own(self):
        # Inference takes the last convolution for the head.
        case = make("segresnet-2d")
        attach(case.network, case.anatomy, "conv_adapter", {})
        assert [n for n, m in case.network.named_modules() if isinstance(m, nn.Conv2d)][-1] == case.anatomy.head
        assert next(iter(case.network.named_children()))[0] == "beside"

    def test_a_deep_copy_has_small_modules_of_its_own(self):
        case = make("segresnet-2d")
        attached = attach(case.network, case.anatomy, "conv_adapter", {})
        randomise(attached)
        twin = copy.deepcopy(case.network)
        x = an_input(case)
        with torch.no_grad():
            expected = case.network(x)
            for parameter in case.network.parameters():
                parameter.zero_()
            assert torch.equal(twin(x), expected)


class TestNormsAfter:
    def test_it_is_that_of_the_data_not_of_the_names(self):
        case = make("segresnet-3d")
        before = {k: t.clone() for k, t in case.network.state_dict().items()}
        convolutions = [n for n, m in case.network.named_modules() if isinstance(m, nn.Conv3d)]
        found = norms_after(case.network, case.anatomy, convolutions)
        # Blocks normalise first: only the first of their two convolutions has a normalisation right after it.
        block = "down_layers.0.1"
        assert found[f"{block}.conv1.conv"] == f"{block}.norm2"
        assert f"{block}.conv2.conv" not in found
        # The others' outputs are summed with something, too, also in place.
        assert set(found) == {n for n in convolutions if n.endswith("conv1.conv")}
        assert all(torch.equal(t, before[k]) for k, t in case.network.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.network.modules())

    def test_it_is_found_in_the_networks_of_the_models(self):
        for name, arguments, some in (
            ("unet3d", {}, {"down_tr64.ops.0.conv1": "down_tr64.ops.0.bn1"}),
            ("unet2d", {"filters": 4}, {"init_path.2.conv_path.0.layer": "init_path.2.conv_path.1.bn"}),
        ):
            network, anatomy = build(NetworkSpec(name, arguments), 2)
            found = norms_after(network, anatomy, [n for n, m in network.named_modules() if isinstance(m, KINDS)])
            assert some.items() <= found.items(), found
        network, anatomy = swin_unetr()
        found = norms_after(network, anatomy, [n for n, m in network.named_modules() if isinstance(m, KINDS)])
        assert found["encoder1.layer.conv1.conv"] == "encoder1.layer.norm1"
        assert "swinViT.patch_embed.proj" not in found

    def test_a_normalisation_that_runs_twice_is_left_out(self):
        norm = nn.BatchNorm2d(3)
        network = nn.Sequential(
            nn.Conv2d(1, 3, 1), norm, nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        )
        assert norms_after(network, Anatomy("4", ("0",), (), 1), ["0", "2", "4"]) == {"4": "5"}

    def test_a_network_that_cannot_be_run_is_refused(self):
        network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1))
        with pytest.raises(BadInput, match="cannot be told"):
            norms_after(network, Anatomy("1", ("0",), (), 1), ["0"])


class TestResidualAdapter:
    @pytest.mark.parametrize("groups", [1, 2])
    def test_it_is_a_convolution_over_one_voxel_beside_the_host(self, groups):
        host = nn.Conv3d(4, 6, (3, 1, 5), stride=2, padding=(1, 0, 2), groups=groups, bias=False)
        network, anatomy = alone(host)
        x = torch.randn(2, 4, 7, 7, 7)
        plain = network(x).detach()
        attached = attach(network, anatomy, "residual_adapter", {"layers": "0"})
        assert torch.equal(network(x), plain)
        state = randomise(attached)
        beside = functional.conv3d(x, state["0.weight::middle"], stride=2, groups=groups)
        assert torch.allclose(network(x), plain + beside, atol=1e-5)
        merged = attached.merge()
        assert torch.equal(merged(x), network(x))
        assert type(merged[0]) is nn.Conv3d

    def test_even_kernels_have_no_middle(self):
        case = make("unet-2d-batch")
        with pytest.raises(BadInput, match="layers that can be adapted: stem, dilated, mix"):
            attach(case.network, case.anatomy, "residual_adapter", {"layers": "down"})


class TestConvBlocks:
    def test_they_have_channels_and_stride(self):
        from monai.networks.blocks.dynunet_block import UnetResBlock

        network = nn.ModuleDict({"a": UnetResBlock(3, 2, 5, 3, 2, "batch"), "b": nn.Conv3d(1, 1, 3)})
        assert conv_blocks(network) == {"a": (2, 5, (2, 2, 2))}

    def test_what_runs_more_than_a_block_is_none(self):
        up = nn.Module()
        up.enlarge = nn.ConvTranspose2d(4, 4, 2, stride=2)
        up.block = nn.Module()
        up.block.path = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        assert conv_blocks(nn.ModuleDict({"up": up})) == {"up.block": (4, 2, (1, 1))}

    def test_a_list_of_convolutions_is_none(self):
        stages = nn.ModuleList(nn.Sequential(nn.Conv2d(2, 2, 3)) for _ in range(2))
        assert conv_blocks(nn.ModuleDict({"stages": stages})) == {}

    @pytest.mark.parametrize("scheme", ["block_parallel", "block_sequential"])
    def test_they_are_those_of_nnunet_also_where_axes_are_halved_unequally(self, scheme):
        pytest.importorskip("dynamic_network_architectures")
        arch = {
            "n_stages": 2,
            "features_per_stage": [8, 16],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2]],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
            "n_conv_per_stage": 2,
            "n_conv_per_stage_decoder": 2,
        }
        network, anatomy = build(NetworkSpec("nnunet", {"class": "PlainConvUNet", "arch_kwargs": arch}), 2)
        assert list(conv_blocks(network)) == ["encoder.stages.0.0", "encoder.stages.1.0", "decoder.stages.0"]
        x = torch.randn(1, 1, 8, 8, 8)
        before = network.eval()(x)
        attached = attach(network, anatomy, "conv_adapter", {"scheme": scheme, "layers": "all"})
        assert torch.equal(network(x), before)
        randomise(attached)
        changed = network(x)
        assert changed.shape == before.shape
        assert not torch.allclose(changed, before)

    def test_a_wrapper_counts_as_the_block_but_not_a_sequence_of_one(self):
        case = make("segresnet-2d")
        assert list(conv_blocks(case.network)) == [
            "down_layers.0.1",
            "down_layers.1.1",
            "down_layers.2.1",
            "up_layers.0.0",
            "up_layers.1.0",
        ]


class TestAdaptFormer:
    def test_it_adds_to_the_mlp_what_it_makes_of_the_tokens_before_their_normalisation(self):
        case = make("transformer-2d")
        block = case.network.block
        seen = {}
        block.norm2.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], normed=output))
        attached = attach(case.network, case.anatomy, "adaptformer", {"bottleneck": 4, "scale": 0.5})
        state = randomise(attached)
        block.mlp.register_forward_hook(lambda _m, _i, output: seen.update(after=output))
        with torch.no_grad():
            case.network(an_input(case))
            key = "block.mlp::{}"
            down = functional.linear(seen["x"], state[key.format("down.weight")], state[key.format("down.bias")])
            up = functional.linear(down.relu(), state[key.format("up.weight")], state[key.format("up.bias")])
            plain = type(block.mlp).forward(block.mlp, seen["normed"])
        assert torch.allclose(seen["after"], plain + 0.5 * up, atol=1e-5)


class TestLowRank:
    def test_pca_takes_the_main_directions_of_the_weight(self):
        layer = nn.Conv2d(3, 7, 3)
        weight = layer.weight.detach().flatten(1)
        network, anatomy = alone(layer)
        state = attach(network, anatomy, "lora", {"init": "pca", "rank": 4, "layers": "0"}).state()
        rows = state["0.weight::A"]
        assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)
        covariance = torch.cov(weight.T, correction=0)
        along = (rows @ covariance @ rows.T).diagonal()
        assert torch.allclose(along, torch.linalg.eigvalsh(covariance).flip(0)[:4], atol=1e-6)
        assert state["0.weight::B"].abs().max() == 0

    def test_pca_has_one_direction_less_than_rows_and_the_rest_is_random(self):
        network, anatomy = alone(nn.Linear(10, 4))
        rows = attach(network, anatomy, "lora", {"init": "pca", "rank": 4, "layers": "0"}).state()["0.weight::A"]
        assert torch.allclose(rows[:3].norm(dim=1), torch.ones(3), atol=1e-5)
        assert rows[3].abs().max() <= 1 / 10**0.5

    def test_pca_of_the_loralib_form_is_refused(self):
        network, anatomy = alone(nn.Conv2d(3, 7, 3))
        with pytest.raises(BadInput, match="'pca' needs the form 'window'"):
            attach(network, anatomy, "lora", {"init": "pca", "form": "loralib"})

    def test_a_dynamic_rank_is_half_the_output_channels(self):
        case = make("unet-2d-batch")
        facts = attach(case.network, case.anatomy, "lora", {"dynamic_rank": True, "layers": ".*"}).facts()
        assert facts["ranks"] == {"stem": 2, "down": 4, "dilated": 4, "up": 2, "mix": 2}
        assert "clipped" not in facts

    def test_dora_keeps_the_length_of_each_output_channel_at_m(self):
        network, anatomy = alone(nn.ConvTranspose2d(3, 5, 2, bias=False))
        attached = attach(network, anatomy, "dora", {"rank": 2, "layers": "0"})
        state = randomise(attached)
        lengths = network[0].weight.detach().transpose(0, 1).flatten(1).norm(dim=1)
        assert torch.allclose(lengths, state["0.weight::m"].abs(), atol=1e-5)

    def test_an_adapter_of_before_the_newer_options_still_loads(self):
        case, fresh = make("unet-2d-batch"), make("unet-2d-batch")
        old = {"rank": 2, "alpha": None, "layers": "auto", "form": "window", "lr_adapter": 0.01, "lr_head": 0.003}
        attached = attach(case.network, case.anatomy, "lora", old)
        train(attached, case)
        loaded = attach_saved(fresh.network, fresh.anatomy, "lora", old, False, attached.state())
        assert list(loaded.state()) == list(attached.state())
        assert torch.equal(fresh.network(an_input(case)), case.network(an_input(case)))


class TestTrainedOutright:
    def test_bitfit_finds_biases_by_name_and_tables_only_on_request(self):
        network = nn.Module()
        network.attn = nn.Module()
        network.attn.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        network.attn.qkv = nn.Linear(2, 6)
        network.bias_net = nn.Linear(2, 2, bias=False)
        network.head = nn.Linear(2, 2)
        anatomy = Anatomy("head", ("attn", "bias_net"), (), 1)
        head = ["head.bias::full", "head.weight::full"]
        found = attach(copy.deepcopy(network), anatomy, "bitfit", {})
        assert sorted(found.state()) == ["attn.qkv.bias::full", *head]
        found = attach(network, anatomy, "bitfit", {"relative_position": True})
        assert sorted(found.state()) == ["attn.qkv.bias::full", "attn.relative_position_bias_table::full", *head]

    def test_affine_in_batch_mode_moves_and_stores_the_statistics_of_the_chosen_layers_only(self):
        case = make("unet-3d-batch")
        attached = attach(case.network, case.anatomy, "affine", {"bn_mode": "batch", "layers": "norm1"})
        before = attached.state()
        assert {k for k in before if k.endswith("::buffer")} == {
            f"norm1.{leaf}::buffer" for leaf in ("running_mean", "running_var", "num_batches_tracked")
        }
        norm2 = case.network.norm2.running_mean.clone()
        train(attached, case)
        assert not torch.equal(attached.state()["norm1.running_mean::buffer"], before["norm1.running_mean::buffer"])
        assert torch.equal(case.network.norm2.running_mean, norm2)

    @pytest.mark.parametrize("method", ["affine", "convlora"])
    @pytest.mark.parametrize("network", ["unet-3d-group", "suprem"])
    def test_batch_mode_is_refused_without_running_statistics(self, method, network):
        from peftseg.networks.unet3d import make_unet3d

        if network == "suprem":
            with torch.device("meta"):
                net, anatomy = make_unet3d({}, 2)
        else:
            net, anatomy = (case := make(network)).network, case.anatomy
        with pytest.raises(BadInput, match="no batch normalisation with running statistics"):
            attach(net, anatomy, method, {"bn_mode": "batch"})

    def test_selective_tuning_of_all_layers_trains_what_full_tuning_trains(self):
        case, other = make("unet-2d-batch"), make("unet-2d-batch")
        ours = attach(case.network, case.anatomy, "selective", {"layers": "all"}).trained_share()
        full = attach(other.network, other.anatomy, "full", {}).trained_share()
        assert {**full, "buffers": 0} == ours

    @pytest.mark.parametrize("kernel", [2, 4])
    def test_a_spatial_adapter_has_an_odd_kernel(self, kernel):
        case = make("unet-2d-batch")
        with pytest.raises(BadInput, match="expected an odd number"):
            attach(case.network, case.anatomy, "spatial_adapter", {"kernel": kernel})


def adalora(rank: int = 1, start: int = 3, layers: int = 2, **options):
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)), nn.Identity())
    anatomy = Anatomy(str(layers), tuple(str(i) for i in range(layers)), (), 1)
    return attach(network, anatomy, "adalora", {"rank": rank, "start_rank": start, "layers": "all", **options})


class TestAdaLora:
    def test_the_budget_falls_along_a_cubic_between_the_warm_ups(self):
        attached = adalora(rank=8, start=12)  # clipped to 4 by the layers' size: nothing to drop
        assert attached.budget(0.5) == attached.first_budget == attached.last_budget == 8
        attached = adalora(rank=1, start=3, layers=10)
        assert [attached.budget(p) for p in (0.0, 0.1, 0.4, 0.7, 1.0)] == [30, 30, 10 + round(20 / 8), 10, 10]

    def test_scores_are_smoothed_sensitivity_times_uncertainty(self):
        attached = adalora(layers=1)
        factors = attached.labelled_factors()["0"]
        with torch.no_grad():
            factors.v.copy_(torch.tensor([1.0, 2.0, 0.0]))
            factors.A.fill_(0.5), factors.B.fill_(1.0)
        factors.v.grad = torch.tensor([1.0, -1.0, 4.0])
        factors.A.grad, factors.B.grad = torch.full((3, 4), 2.0), torch.zeros(4, 3)
        attached.after_step(0.1, 0.0)
        # |p g| = 1, 2, 0 for v and 1 for A: sensitivity 0.15 times it, uncertainty 0.15 * 0.85 times it.
        expected = 0.15 * 0.15 * 0.85 * torch.tensor([1.0 + 1, 4.0 + 1, 0.0 + 1])
        assert torch.allclose(attached.scores()["0"], expected)

    def test_layers_compete_for_the_budget_and_what_was_dropped_stays_dropped(self):
        attached = adalora()
        first, second = attached.labelled_factors().values()

        def step(progress: float) -> None:
            with torch.no_grad():
                first.v.fill_(1.0), second.v.fill_(1.0)
            for factors, size in ((first, 5.0), (second, 0.1)):
                factors.v.grad = size * torch.tensor([1.0, 2.0, 3.0])
                factors.A.grad, factors.B.grad = torch.zeros_like(factors.A), torch.zeros_like(factors.B)
            attached.after_step(0.1, progress)

        for _ in range(9):
            step(0.4)
        assert attached.ranks() == {"0": 3, "1": 3}
        step(0.4)  # the tenth: 2 + round(4 / 8) stay
        assert attached.ranks() == {"0": 2, "1": 0}
        step(0.7)
        assert attached.ranks() == {"0": 2, "1": 0}
        step(0.9)
        assert attached.ranks() == {"0": 2, "1": 0}
        attached.prune()
        assert attached.ranks() == {"0": 2}
        assert set(attached.changes) == {"0.weight"}

    def test_a_training_that_ended_early_is_pruned_to_the_budget(self):
        case = make("unet-2d-batch")
        attached = attach(case.network, case.anatomy, "adalora", {"rank": 1, "start_rank": 3})
        train(attached, case, steps=1)
        attached.prune()
        assert sum(attached.ranks().values()) == 3

    def test_the_penalty_is_the_mean_distance_from_orthonormal_factors(self):
        attached = adalora(layers=1, orthogonality=0.5)
        factors = attached.labelled_factors()["0"]
        with torch.no_grad():
            factors.A.copy_(torch.eye(4)[:3])
            factors.B.copy_(2 * torch.eye(4)[:, :3])
        # A is orthonormal, B^T B is 4 times the identity of size 3: distance 3 sqrt(3).
        assert attached.penalty().item() == pytest.approx(0.5 * 3 * 3**0.5 / 2)
        assert adalora(orthogonality=0.0).penalty() is None

    def test_training_keeps_the_factors_apart_by_the_penalty(self):
        distances = []
        for strength in (0.0, 10.0):
            case = make("unet-3d-batch")
            torch.manual_seed(1)
            attached = attach(
                case.network, case.anatomy, "adalora", {"orthogonality": strength, "rank": 1, "start_rank": 3}
            )
            groups = attached.parameter_groups({"adapter": 0.05, "head": 0.01})
            fit(attached, groups, scans(), SCHEDULE, "softmax", Reporter.silent())
            attached.orthogonality = 1.0
            distances.append(attached.penalty().item())
        assert distances[1] < 0.7 * distances[0]

    def test_a_start_rank_below_the_rank_is_refused(self):
        with pytest.raises(BadInput, match="start_rank is 3 and rank is 4"):
            adalora(rank=4, start=3)

    def test_a_killed_run_goes_on_as_if_it_had_not_been(self, tmp_path, monkeypatch):
        options = {"rank": 1, "start_rank": 3}

        def run(reporter: Reporter):
            case = make("unet-3d-batch")
            torch.manual_seed(1)
            attached = attach(case.network, case.anatomy, "adalora", options)
            groups = attached.parameter_groups(learning_rates(check_options("adalora", options)))
            return attached, fit(attached, groups, scans(), SCHEDULE, "softmax", reporter)

        whole, expected = run(Reporter.silent())
        assert sum(whole.ranks().values()) < 9
        monkeypatch.setattr("peftseg.optimise.CHECKPOINT_EVERY_S", -1.0)
        killed = reporter_with(tmp_path / "checkpoint.safetensors", StopAfter(2 * (POOL - 1)))
        with pytest.raises(JobCancelled):
            run(killed)
        again, history = run(reporter_with(killed.checkpoint))
        assert history.losses == expected.losses
        assert all(torch.equal(tensor, whole.state()[key]) for key, tensor in again.state().items())
        assert all(torch.equal(tensor, whole.memory()[key]) for key, tensor in again.memory().items())
