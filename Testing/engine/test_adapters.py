"""The promises that every method keeps, as one table: methods x promises x networks, in 2D and 3D."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from peftseg import adapter_file, adapters
from peftseg.adapter_file import load_adapter, save_adapter
from peftseg.adapters import METHODS, attach, attach_saved, check_options, learning_rates, table
from peftseg.errors import BadInput
from test_adapter_file import RECIPE
from tiny_networks import NETWORKS, Case, an_input, make, train

# Name -> (method, options, train_decoder).
VARIANTS = {
    "lora": ("lora", {"rank": 2}, False),
    "lora-loralib-all": ("lora", {"rank": 2, "form": "loralib", "layers": "all", "alpha": 4}, False),
    "lora-decoder": ("lora", {"rank": 3, "layers": "encoder"}, True),
    "lora-joint": ("lora", {"rank": 2, "qkv": "joint", "alpha": 4}, False),
    "lora-pca-dynamic": ("lora", {"init": "pca", "dynamic_rank": True, "layers": ".*"}, False),
    "dora": ("dora", {"rank": 2, "layers": ".*"}, False),
    "adalora": ("adalora", {"rank": 1, "start_rank": 3}, False),
    "convlora": ("convlora", {}, False),
    "convlora-published": ("convlora", {"preset": "published"}, False),
    "arena": ("arena", {"rank": 3, "lam": 0.1}, False),
    "arena-paper": ("arena", {"rank": 3, "mode": "paper"}, True),
    "arena-paper-rho": ("arena", {"rank": 3, "mode": "paper", "rho": 0.1, "layers": "all"}, False),
    "arena-sora": ("arena", {"rank": 3, "mode": "sora"}, False),
    "bitfit": ("bitfit", {}, False),
    "bitfit-decoder": ("bitfit", {"layers": "encoder"}, True),
    "affine": ("affine", {}, False),
    "affine-batch": ("affine", {"bn_mode": "batch", "layers": "encoder"}, True),
    "ssf": ("ssf", {}, False),
    "ssf-conv": ("ssf", {"after": "conv", "layers": ".*"}, False),
    "ssf-norm-else-conv": ("ssf", {"after": "norm_else_conv"}, False),
    "ssf-published": ("ssf", {"preset": "published"}, True),
    "conv_adapter": ("conv_adapter", {"layers": "all"}, False),
    "conv_adapter-sequential": ("conv_adapter", {"scheme": "conv_sequential", "depthwise": False, "width": 3}, True),
    "conv_adapter-official": ("conv_adapter", {"preset": "official"}, False),
    "conv_adapter-block": ("conv_adapter", {"scheme": "block_parallel", "layers": "all"}, False),
    "conv_adapter-block-sequential": ("conv_adapter", {"scheme": "block_sequential"}, False),
    "conv_adapter-after-norm": ("conv_adapter", {"sum": "after_norm", "layers": "all"}, False),
    "conv_adapter-sequential-after-norm": ("conv_adapter", {"scheme": "conv_sequential", "sum": "after_norm"}, True),
    "residual": ("residual_adapter", {"layers": "all"}, False),
    "residual-fseft": ("residual_adapter", {"preset": "fseft"}, True),
    "adaptformer": ("adaptformer", {"bottleneck": 4}, False),
    "spatial_adapter": ("spatial_adapter", {}, False),
    "linear_probe": ("linear_probe", {}, True),
    "selective": ("selective", {}, False),
    "selective-encoder": ("selective", {"layers": "encoder"}, False),
    "decoder": ("decoder", {}, False),
    "full": ("full", {}, False),
}
CHANGED_AT_THE_START = (
    "ssf-published",
    "conv_adapter-official",
    "residual-fseft",
)  # published first values, declared as such
UNETS = ("lora", "arena", "decoder", "adalora", "dora", "bitfit", "affine", "ssf", "selective-encoder")
BLOCKS = ("conv_adapter-block", "conv_adapter-block-sequential", "conv_adapter-official", "conv_adapter-after-norm")
TRANSFORMER = (
    "lora",
    "lora-decoder",
    "arena",
    "arena-paper",
    "lora-pca-dynamic",
    "dora",
    "adalora",
    "bitfit",
    "affine",
)
ONLY = {
    "unet-3d-group": (*UNETS, "conv_adapter", "conv_adapter-after-norm", "residual"),
    "transformer-2d": (*TRANSFORMER, "lora-joint", "ssf", "ssf-conv", "adaptformer", "spatial_adapter", "selective"),
    "transformer-3d": (
        "lora",
        "lora-joint",
        "arena",
        "arena-sora",
        "adaptformer",
        "spatial_adapter",
        "linear_probe",
        "full",
    ),
    "segresnet-2d": ("lora", "full", "convlora", "ssf", "ssf-norm-else-conv", "residual", *BLOCKS),
    "segresnet-3d": ("lora", "lora-decoder", "arena", "decoder", "full", "selective", "conv_adapter-block"),
}
NOT_ON_TINY_UNETS = ("adaptformer", "lora-joint", *(v for v in VARIANTS if "block" in v))  # no MLPs, no blocks
TABLE = [
    pytest.param(variant, network, id=f"{variant}:{network}")
    for variant, network in product(VARIANTS, NETWORKS)
    if (variant in ONLY[network] if network in ONLY else variant not in NOT_ON_TINY_UNETS)
]
promise = pytest.mark.parametrize(("variant", "network"), TABLE)


def test_every_variant_runs_on_a_network():
    assert {parameters.values[0] for parameters in TABLE} == set(VARIANTS)


def attached_to(variant: str, case: Case):
    method, options, train_decoder = VARIANTS[variant]
    torch.manual_seed(1)
    return attach(case.network, case.anatomy, method, options, train_decoder)


def output(network: nn.Module, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return network(an_input(case))


def plain_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the base's parameters and buffers by their plain names, without factors."""
    found = {}
    for name, tensor in network.state_dict().items():
        if not name.startswith("beside.") and not re.search(r"parametrizations\.\w+\.0", name):
            found[re.sub(r"parametrizations\.(\w+)\.original", r"\1", name)] = tensor.clone()
    return found


@promise
def test_attaching_leaves_the_output_unchanged(variant, network):
    case = make(network)
    before = output(case.network, case)
    attached = attached_to(variant, case)
    change = (output(case.network, case) - before).abs().max()
    if variant in CHANGED_AT_THE_START:
        assert change > 1e-3
        assert attached.notes
    else:
        assert change < 1e-5


@promise
def test_training_changes_the_adapter_state_and_nothing_else(variant, network):
    case = make(network)
    attached = attached_to(variant, case)
    base, state = plain_tensors(case.network), attached.state()
    own = {key.partition("::")[0] for key in state if key.endswith(("::full", "::buffer"))}
    train(attached, case)
    after = plain_tensors(case.network)
    assert set(after) == set(base)
    assert [n for n in base if n not in own and not torch.equal(base[n], after[n])] == []
    assert any(not torch.equal(tensor, state[key]) for key, tensor in attached.state().items())


@promise
def test_a_saved_state_gives_the_same_output_on_a_fresh_base(variant, network):
    case, fresh = make(network), make(network)
    attached = attached_to(variant, case)
    train(attached, case)
    attached.prune()
    state = attached.state()
    method, options, train_decoder = VARIANTS[variant]
    loaded = attach_saved(fresh.network, fresh.anatomy, method, options, train_decoder, state)
    assert torch.equal(output(case.network, case), output(fresh.network, case))
    assert set(loaded.state()) == set(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state().items())


@promise
def test_merging_gives_a_new_network_with_the_same_output_and_a_plain_one_where_it_can(variant, network):
    case = make(network)
    plain_class, keys = type(case.network), set(case.network.state_dict())
    attached = attached_to(variant, case)
    assert attached.merges == ("adapter" not in variant and variant != "adaptformer")
    train(attached, case)
    before, state = output(case.network, case), attached.state()
    merged = attached.merge()
    assert (output(merged, case) - before).abs().max() < 1e-5
    assert type(merged) is plain_class
    left = {name for name in merged.state_dict() if name.startswith("beside.")}
    assert set(merged.state_dict()) == keys | set(attached.created) | left
    assert bool(left) is not attached.merges
    assert not any(parametrize.is_parametrized(module) for module in merged.modules())
    assert all(p.requires_grad for p in merged.parameters())
    assert all(module.training for module in merged.train().modules())
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert torch.equal(output(case.network, case), before)
    assert all(torch.equal(tensor, state[key]) for key, tensor in attached.state().items())


@promise
def test_a_state_that_does_not_fit_is_refused_by_name(variant, network):
    case = make(network)
    attached = attached_to(variant, case)
    state = attached.state()
    key = f"{case.anatomy.head}.weight::full"
    before = output(case.network, case)
    with pytest.raises(BadInput, match=f"does not belong here: other.weight::A.*is missing: {key}"):
        attached.load_state({"other.weight::A": state[key], **{k: t for k, t in state.items() if k != key}})
    with pytest.raises(BadInput, match=rf"has the wrong shape: {key} \(7,\) instead of"):
        attached.load_state({**{k: t + 1 for k, t in state.items()}, key: torch.zeros(7)})
    assert torch.equal(output(case.network, case), before)


@promise
def test_every_trainable_tensor_gets_a_gradient_within_two_steps_or_is_reported_as_inert(variant, network):
    case = make(network)
    attached = attached_to(variant, case)
    first, second = train(attached, case, steps=2)
    inert = set(attached.facts().get("inert", []))
    assert set(attached.trainable()) - first - second <= inert
    # Attention does not depend on a constant added to all keys, so a third of that bias is free, but not all of it.
    assert inert == cancelled_by_a_norm(variant, network)


def cancelled_by_a_norm(variant: str, network: str) -> set[str]:
    """Biases before a normalisation by statistics of the batch, or of one channel alone."""
    if variant == "full":
        return {"stem.bias::full", "up.bias::full"} if "batch" in network else set()
    in_segresnet = {
        "conv_adapter-official": {"down_layers.0.1.conv1.conv::conv2.bias"},
        "conv_adapter-block": {"up_layers.1.0::conv2.bias"},
        # What follows goes into a sum that is normalised later.
        "ssf-norm-else-conv": {
            f"{n}.bias::beta" for n in ("up_layers.0.0.conv2.conv", "up_layers.1.0.conv2.conv", "up_samples.1.0.conv")
        },
        "conv_adapter-after-norm": {f"{n}::conv2.bias" for n in ("up_layers.1.0.conv2.conv", "up_samples.1.0.conv")},
    }
    return in_segresnet.get(variant, set()) if "segresnet" in network else set()


@promise
def test_the_trained_share_by_kind_sums_to_the_trainable_parameters(variant, network):
    case = make(network)
    total = sum(p.numel() for p in case.network.parameters())
    attached = attached_to(variant, case)
    share = attached.trained_share()
    assert share.pop("base_total") == total
    buffers = share.pop("buffers")
    assert buffers == sum(t.numel() for k, t in attached.state().items() if k.endswith("::buffer"))
    assert sum(share.values()) == sum(p.numel() for p in case.network.parameters() if p.requires_grad)
    assert {kind: sum(p.numel() for p in found) for kind, found in attached.parameters_by_kind().items()} == share
    assert share["head"] == sum(p.numel() for p in case.network.get_submodule(case.anatomy.head).parameters())


@promise
def test_frozen_parts_stay_in_eval_mode_when_the_network_is_trained(variant, network):
    case = make(network)
    attached_to(variant, case)
    case.network.train()
    norms = {n: m for n, m in case.network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    method, _, _ = VARIANTS[variant]
    moving = {"full": set(norms), "convlora-published": set(norms), "affine-batch": {"norm1", "norm2"}}
    assert {n for n, m in norms.items() if m.training} == moving.get(variant, set())
    if "unet" in network:
        assert case.network.dropout.training is (method == "full")
    assert case.network.get_submodule(case.anatomy.head).training
    case.network.eval()
    assert not any(m.training for m in case.network.modules())


@promise
def test_it_trains_under_bfloat16_autocast(variant, network):
    case = make(network)
    attached = attached_to(variant, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.network(an_input(case)).float().square().mean()
    loss.backward()
    gradients = [p.grad for p in attached.trainable().values() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@promise
def test_each_trainable_parameter_is_in_one_optimiser_group_with_its_rate(variant, network):
    assert_grouped(attached_to(variant, make(network)), *VARIANTS[variant][:2])


def assert_grouped(attached, method: str, options: dict) -> None:
    """Each trainable tensor is in one group with the rate of its kind; ARENA's published gates are in none."""
    rates = learning_rates(check_options(method, options))
    groups = attached.parameter_groups(rates)
    grouped = [id(p) for group in groups for p in group["params"]]
    gates = {id(t) for k, t in attached.trainable().items() if "::v" in k and options.get("mode") == "paper"}
    assert sorted(grouped) == sorted({id(p) for p in attached.trainable().values()} - gates)
    assert all(group["weight_decay"] == 0 for group in groups)
    rates = {"norm": rates.get("body"), "gate": rates.get("adapter"), **rates}
    assert all(group["lr"] == rates[group["kind"]] for group in groups)


@pytest.mark.parametrize("variant", ["arena", "arena-paper", "adalora", "lora", "conv_adapter-official"])
def test_the_share_at_the_start_is_that_before_pruning(variant):
    case = make("unet-2d-batch" if "official" not in variant else "segresnet-2d")
    attached = attached_to(variant, case)
    first = attached.trained_share()
    assert attached.share_at_start == first
    with torch.no_grad():
        for factors in attached.labelled_factors().values():
            if factors.v is not None:
                factors.v[1:] = 0
                factors.A.add_(1)
                factors.B.add_(1)
    attached.prune()
    assert attached.share_at_start == first
    pruned = variant.startswith("ar") or variant == "adalora"
    assert (attached.trained_share()["adapter"] < first["adapter"]) is pruned


def test_full_tuning_stores_the_running_statistics_that_it_moves():
    case = make("unet-3d-batch")
    attached = attached_to("full", case)
    before = attached.state()
    train(attached, case)
    assert not torch.equal(before["norm2.running_mean::buffer"], attached.state()["norm2.running_mean::buffer"])
    assert attached.trained_share()["buffers"] == 2 * (4 + 8 + 4) + 3


def test_norms_outside_the_decoder_are_a_kind_of_their_own():
    case = make("unet-2d-batch")
    share = attached_to("full", case).trained_share()
    assert share["norm"] == 2 * (4 + 8)
    assert share["decoder"] == sum(
        p.numel() for m in ("up", "norm3", "mix") for p in getattr(case.network, m).parameters()
    )


def test_a_deep_copy_of_an_attached_network_is_frozen_on_its_own():
    case = make("unet-2d-batch")
    attached_to("lora", case)
    twin = copy.deepcopy(case.network).train()
    assert not twin.norm1.training
    assert twin.norm1.train.__self__ is twin.norm1


@pytest.mark.parametrize("first", ["lora", "linear_probe"])
def test_a_second_adapter_on_the_same_network_is_refused(first):
    case = make("unet-2d-batch")
    attached_to(first, case)
    with pytest.raises(BadInput, match="already has an adapter"):
        attached_to("arena", case)


def test_a_network_with_weights_that_are_composed_otherwise_is_refused():
    case = make("unet-2d-batch")
    nn.utils.parametrizations.weight_norm(case.network.mix)
    with pytest.raises(BadInput, match="another parametrisation"):
        attached_to("full", case)


def test_a_state_of_another_method_is_refused():
    case, fresh = make("unet-2d-batch"), make("unet-2d-batch")
    state = attached_to("decoder", case).state()
    with pytest.raises(BadInput, match="does not belong here"):
        attach_saved(fresh.network, fresh.anatomy, "arena", {}, False, state)


PROMISES = (
    test_attaching_leaves_the_output_unchanged,
    test_training_changes_the_adapter_state_and_nothing_else,
    test_a_saved_state_gives_the_same_output_on_a_fresh_base,
    test_merging_gives_a_new_network_with_the_same_output_and_a_plain_one_where_it_can,
    test_a_state_that_does_not_fit_is_refused_by_name,
    test_every_trainable_tensor_gets_a_gradient_within_two_steps_or_is_reported_as_inert,
    test_the_trained_share_by_kind_sums_to_the_trainable_parameters,
    test_frozen_parts_stay_in_eval_mode_when_the_network_is_trained,
    test_it_trains_under_bfloat16_autocast,
    test_each_trainable_parameter_is_in_one_optimiser_group_with_its_rate,
)
PAGE = Path(__file__).parents[2] / "Docs" / "add-a-method.md"


@pytest.fixture
def toy_method(tmp_path, monkeypatch):
    """The method of the documentation: its file and its entry in the table, as they are printed there."""
    file, entry = (part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```python\n")[1:3])
    (tmp_path / "gain.py").write_text(file, encoding="utf-8")
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    names = dict(vars(table))
    exec(entry, names)
    monkeypatch.setitem(METHODS, "gain", names["_GAIN"])
    monkeypatch.setitem(VARIANTS, "gain", ("gain", {}, False))
    yield "gain"
    sys.modules.pop("peftseg.adapters.gain", None)


@pytest.mark.parametrize("network", ["unet-2d-batch", "transformer-3d"])
def test_the_method_of_the_documentation_keeps_all_promises(toy_method, network):
    for run in PROMISES:
        run(toy_method, network)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("lorra", {}, "Did you mean 'lora'"),
        (
            "lora",
            {"rnk": 2},
            "valid: alpha, dynamic_rank, form, init, layers, lr_adapter, lr_decoder, lr_head, preset, qkv, rank. Did you mean",
        ),
        ("lora", {"rank": 0}, "is 0; expected a whole number, at least 1"),
        ("lora", {"rank": 2.5}, "is 2.5; expected a whole number"),
        ("lora", {"rank": True}, "is True; expected a whole number"),
        ("lora", {"rank": None}, "is None; expected a whole number"),
        ("lora", {"layers": 3}, "is 3; expected text"),
        ("lora", {"alpha": "high"}, "is 'high'; expected a number or nothing, at least 0.001"),
        ("lora", {"lr_head": float("nan")}, "is nan; expected a number"),
        ("arena", {"mode": "soar"}, "is 'soar'; expected one of importance, sora, paper"),
        ("linear_probe", {"lr_decoder": 1e-3}, "valid: lr_head"),
        ("conv_adapter", {"preset": "thesys"}, "is 'thesys'; expected one of none, official, thesis"),
    ],
)
def test_wrong_methods_and_options_are_refused_with_what_is_valid(method, options, said):
    with pytest.raises(BadInput) as refusal:
        check_options(method, options)
    assert said in str(refusal.value)


def test_options_are_filled_in_with_their_defaults():
    assert check_options("lora", {"rank": 4.0, "alpha": 8}) == {
        "rank": 4,
        "alpha": 8.0,
        "layers": "auto",
        "form": "window",
        "init": "kaiming",
        "dynamic_rank": False,
        "preset": "none",
        "qkv": "separate",
        "lr_adapter": 1e-2,
        "lr_decoder": 3e-3,
        "lr_head": 3e-3,
    }
    assert learning_rates(check_options("full", {})) == {"body": 3e-3, "decoder": 3e-3, "head": 3e-3}


def test_a_preset_sets_options_and_given_ones_count_more():
    plain = check_options("conv_adapter", {})
    thesis = check_options("conv_adapter", {"preset": "thesis", "width": 16})
    changed = {name: value for name, value in thesis.items() if value != plain[name]}
    assert changed == {"preset": "thesis", "scheme": "block_parallel", "width": 16, "depthwise": False}
    assert check_options("conv_adapter", thesis) == thesis


@pytest.mark.parametrize("method", METHODS)
def test_presets_set_valid_values_of_options_that_exist(method):
    info = METHODS[method]
    choices = next((option.choices for option in info.options if option.name == "preset"), ("none",))
    assert choices == ("none", *info.presets)
    for preset, values in info.presets.items():
        assert check_options(method, {"preset": preset, **values}) == check_options(method, {"preset": preset})


@pytest.mark.parametrize("method", METHODS)
def test_titles_and_sentences_are_for_readers(method):
    info = METHODS[method]
    assert info.title.strip()
    assert info.summary.endswith(".")
    assert all(option.help.endswith(".") and "METHODS" not in option.help for option in info.options)


@pytest.mark.parametrize("method", METHODS)
def test_every_default_passes_its_own_check(method):
    defaults = check_options(method, {})
    assert check_options(method, defaults) == defaults


def test_the_method_table_is_importable_without_torch():
    code = "import sys; sys.modules['torch'] = None; import peftseg.adapters as a; print(sorted(a.METHODS))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(sorted(METHODS))


RATES = Path(__file__).parents[1] / "bench" / "rates.json"


@pytest.mark.parametrize("label", json.loads(RATES.read_text(encoding="utf-8")))
def test_the_options_of_the_experiment_still_mean_the_same(label):
    """Its rows go on with these: what a method has got since is at its default, which changes nothing."""
    method = {"scratch": "full"}.get(label, label.split()[0])
    frozen = json.loads(RATES.read_text(encoding="utf-8"))[label]["options"]
    assert check_options(method, frozen) == {**check_options(method, {}), **frozen}


@pytest.mark.parametrize(
    ("method", "preset", "rates"),
    [
        ("arena", "published", {"adapter": 1e-3, "decoder": 1e-4, "head": 1e-4}),
        ("lora", "fseft", {"adapter": 1e-3, "decoder": 1e-4, "head": 1e-4}),
        ("bitfit", "fseft", {"adapter": 1e-2, "decoder": 1e-4, "head": 1e-4}),
        ("residual_adapter", "fseft", {"adapter": 1e-2, "decoder": 1e-4, "head": 1e-4}),
        ("adaptformer", "fseft", {"adapter": 1e-2, "decoder": 1e-4, "head": 1e-4}),
        ("affine", "fseft", {"norm": 1e-2, "decoder": 1e-4, "head": 1e-4}),
        ("linear_probe", "fseft", {"head": 1e-2}),
        ("spatial_adapter", "fseft", {"adapter": 1e-4, "head": 1e-4}),
        ("full", "fseft", {"body": 1e-4, "decoder": 1e-4, "head": 1e-4}),
    ],
)
def test_published_presets_set_the_published_rates(method, preset, rates):
    assert learning_rates(check_options(method, {"preset": preset})) == rates


def test_the_published_arena_is_the_papers():
    options = check_options("arena", {"preset": "published"})
    expected = {"rank": 8, "mode": "paper", "lam": 0.5, "rho": 0.0, "v_init": "uniform"}
    assert {name: options[name] for name in expected} == expected


def test_an_adapter_from_before_its_preset_set_an_option_is_read_as_it_was_made():
    case, fresh = make("segresnet-2d"), make("segresnet-2d")
    made = {**check_options("conv_adapter", {"preset": "official"}), "train_norm": False}
    state = attach(case.network, case.anatomy, "conv_adapter", made).state()
    old = {name: value for name, value in made.items() if name not in ("train_norm", "lr_norm")}
    loaded = attach_saved(fresh.network, fresh.anatomy, "conv_adapter", old, False, state)
    assert set(loaded.state()) == set(state)
    assert torch.equal(output(case.network, case), output(fresh.network, fresh))


@pytest.mark.parametrize(
    ("method", "today", "old_name"),
    [
        ("lora", "qkv", "attention"),
        ("arena", "qkv", "attention"),
        ("affine", "transformer", "attention"),
        ("bitfit", "transformer", "attention"),
        ("selective", "attention", "block.attn.*"),
    ],
)
def test_an_adapter_file_of_format_1_is_attached_to_the_layers_that_it_was_made_with(
    method, today, old_name, tmp_path, monkeypatch
):
    case, fresh = make("transformer-2d"), make("transformer-2d")
    attached = attach(case.network, case.anatomy, method, {"layers": today})
    train(attached, case)
    options = {**check_options(method, {}), "layers": old_name}
    with monkeypatch.context() as earlier:
        earlier.setattr(adapter_file, "FORMAT", 1)
        recipe = dataclasses.replace(RECIPE, format=1, method=method, options=options)
        save_adapter(tmp_path / "old.safetensors", recipe, attached.state())
    recipe, state, _ = load_adapter(tmp_path / "old.safetensors")
    assert recipe.options == {**options, "layers": today if old_name == "attention" else old_name}
    attach_saved(fresh.network, fresh.anatomy, recipe.method, recipe.options, recipe.train_decoder, state)
    assert torch.equal(output(case.network, case), output(fresh.network, fresh))


def test_in_a_file_of_today_the_attention_is_the_attention(tmp_path):
    options = check_options("lora", {"layers": "attention"})
    save_adapter(tmp_path / "new.safetensors", dataclasses.replace(RECIPE, options=options), {"a": torch.zeros(1)})
    assert load_adapter(tmp_path / "new.safetensors")[0].options == options
