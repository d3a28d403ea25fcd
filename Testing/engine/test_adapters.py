"""The promises that every method keeps, as one table: methods x promises x networks, in 2D and 3D."""

from __future__ import annotations

import copy
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from peftseg.adapters import METHODS, attach, attach_saved, check_options, learning_rates
from peftseg.errors import BadInput
from tiny_networks import NETWORKS, Case, an_input, make, train

# Name -> (method, options, train_decoder). All start with the output of the base network; none is exempt.
VARIANTS = {
    "lora": ("lora", {"rank": 2}, False),
    "lora-loralib-all": ("lora", {"rank": 2, "form": "loralib", "layers": "all", "alpha": 4}, False),
    "lora-decoder": ("lora", {"rank": 3, "layers": "encoder"}, True),
    "arena": ("arena", {"rank": 3, "lam": 0.1}, False),
    "arena-paper": ("arena", {"rank": 3, "mode": "paper"}, True),
    "arena-paper-rho": ("arena", {"rank": 3, "mode": "paper", "rho": 0.1, "layers": "all"}, False),
    "arena-sora": ("arena", {"rank": 3, "mode": "sora"}, False),
    "linear_probe": ("linear_probe", {}, True),
    "decoder": ("decoder", {}, False),
    "full": ("full", {}, False),
}
SOME = {
    "unet-3d-group": ("lora", "arena", "decoder"),
    "transformer-2d": ("lora", "lora-decoder", "arena", "arena-paper"),
    "segresnet-2d": ("lora", "full"),
    "segresnet-3d": ("lora", "lora-decoder", "arena", "decoder", "full"),
    "swin-3d": (),  # its own test below, in one go because it is slow
}
TABLE = [
    pytest.param(variant, network, id=f"{variant}:{network}")
    for variant, network in product(VARIANTS, NETWORKS)
    if variant in SOME.get(network, VARIANTS)
]
promise = pytest.mark.parametrize(("variant", "network"), TABLE)


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
        if "parametrizations.weight.0" not in name:
            found[name.replace("parametrizations.weight.original", "weight")] = tensor.clone()
    return found


@promise
def test_attaching_leaves_the_output_unchanged(variant, network):
    case = make(network)
    before = output(case.network, case)
    attached_to(variant, case)
    assert (output(case.network, case) - before).abs().max() < 1e-5


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
def test_merging_gives_a_new_plain_network_with_the_same_output(variant, network):
    case = make(network)
    plain_class, keys = type(case.network), set(case.network.state_dict())
    attached = attached_to(variant, case)
    train(attached, case)
    before, state = output(case.network, case), attached.state()
    merged = attached.merge()
    assert (output(merged, case) - before).abs().max() < 1e-5
    assert type(merged) is plain_class
    assert set(merged.state_dict()) == keys
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
    key = next(k for k in state if k.startswith(case.anatomy.head))
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
    cancelled_by_a_norm = {"stem.bias::full", "up.bias::full"} if "batch" in network and variant == "full" else set()
    # Attention does not depend on a constant added to all keys, so a third of that bias is free, but not all of it.
    assert inert == cancelled_by_a_norm


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
    norms = [m for m in case.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    method, _, _ = VARIANTS[variant]
    assert all(m.training is (method == "full") for m in norms)
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
    case = make(network)
    attached = attached_to(variant, case)
    method, options, _ = VARIANTS[variant]
    rates = learning_rates(check_options(method, options))
    groups = attached.parameter_groups(rates)
    grouped = [id(p) for group in groups for p in group["params"]]
    gates = {id(t) for k, t in attached.trainable().items() if "::v" in k and options.get("mode") == "paper"}
    assert sorted(grouped) == sorted({id(p) for p in attached.trainable().values()} - gates)
    assert all(group["weight_decay"] == 0 for group in groups)
    same = {"norm": "body", "gate": "adapter"}
    assert all(group["lr"] == rates[same.get(group["kind"], group["kind"])] for group in groups)


@pytest.mark.parametrize("variant", ["lora", "arena"])
def test_the_promises_hold_on_swin_unetr(variant):
    case, fresh = make("swin-3d"), make("swin-3d")
    before = output(case.network, case)
    attached = attached_to(variant, case)
    assert (output(case.network, case) - before).abs().max() < 1e-5
    first, second = train(attached, case, steps=2)
    assert set(attached.trainable()) == first | second
    after = output(case.network, case)
    method, options, train_decoder = VARIANTS[variant]
    attach_saved(fresh.network, fresh.anatomy, method, options, train_decoder, attached.state())
    assert torch.equal(output(fresh.network, case), after)
    assert (output(attached.merge(), case) - after).abs().max() < 1e-5


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


def test_the_example_of_the_documentation_is_a_working_method():
    page = (Path(__file__).parents[2] / "Docs" / "add-a-method.md").read_text(encoding="utf-8")
    scope: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    case = make("unet-2d-batch")
    before = output(case.network, case)
    attached = scope["attach"](case.network, case.anatomy, {}, False)
    assert torch.equal(output(case.network, case), before)
    train(attached, case)
    assert {kind for kind, found in attached.parameters_by_kind().items() if found} == {"norm", "head"}


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("lorra", {}, "valid: arena, decoder, full, linear_probe, lora. Did you mean 'lora'"),
        ("lora", {"rnk": 2}, "valid: alpha, form, layers, lr_adapter, lr_decoder, lr_head, rank. Did you mean 'rank'"),
        ("lora", {"rank": 0}, "is 0; expected a whole number, at least 1"),
        ("lora", {"rank": 2.5}, "is 2.5; expected a whole number"),
        ("lora", {"rank": True}, "is True; expected a whole number"),
        ("lora", {"rank": None}, "is None; expected a whole number"),
        ("lora", {"layers": 3}, "is 3; expected text"),
        ("lora", {"alpha": "high"}, "is 'high'; expected a number or nothing, at least 0.001"),
        ("lora", {"lr_head": float("nan")}, "is nan; expected a number"),
        ("arena", {"mode": "soar"}, "is 'soar'; expected one of importance, sora, paper"),
        ("linear_probe", {"lr_decoder": 1e-3}, "valid: lr_head"),
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
        "lr_adapter": 1e-2,
        "lr_decoder": 3e-3,
        "lr_head": 3e-3,
    }
    assert learning_rates(check_options("full", {})) == {"body": 3e-3, "decoder": 3e-3, "head": 3e-3}


@pytest.mark.parametrize("method", METHODS)
def test_every_default_passes_its_own_check(method):
    defaults = check_options(method, {})
    assert check_options(method, defaults) == defaults


def test_the_method_table_is_importable_without_torch():
    code = "import sys; sys.modules['torch'] = None; import peftseg.adapters as a; print(sorted(a.METHODS))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "['arena', 'decoder', 'full', 'linear_probe', 'lora']"
