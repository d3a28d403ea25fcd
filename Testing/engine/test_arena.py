"""ARENA: gates, ranks, pruning, against numbers derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from peftseg.adapters import attach, attach_saved
from peftseg.adapters.arena import predicted_shrink
from peftseg.errors import BadInput
from peftseg.networks import Anatomy
from tiny_networks import an_input, make, swin_unetr, train

NETWORK_NAMES = ("unet-2d-batch", "unet-3d-group", "transformer-3d")


def one_layer(mode: str, rank: int = 2, **options):
    """ARENA on a Linear(2, 3): rows of A have length 1, columns of B length 2, v = 1; returns (attached, factors)."""
    network = nn.ModuleDict({"layer": nn.Linear(2, 3), "head": nn.Identity()})
    anatomy = Anatomy("head", ("layer",), (), 1)
    attached = attach(network, anatomy, "arena", {"mode": mode, "rank": rank, "layers": "layer", **options})
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    attached.load_state(
        {"layer.weight::A": a[:rank], "layer.weight::B": b[:, :rank], "layer.weight::v": torch.ones(rank)}
    )
    return attached, attached.changes["layer.weight"].blocks["whole"]


def trained(name: str, mode: str, lam: float, seed: int = 0, rank: int = 4):
    case = make(name, seed)
    torch.manual_seed(seed)
    attached = attach(
        case.network, case.anatomy, "arena", {"mode": mode, "lam": lam, "rank": rank, "v_init": "uniform"}
    )
    train(attached, case, steps=12)
    return case, attached


def test_separate_k_and_v_pairs_of_swin_unetr_have_the_published_count():
    # That K and V have factors of their own is our reading of ARENA, sec. 3.1. f = 48, r = 8: 46,080 in A and B, 128 gates.
    network, anatomy = swin_unetr(feature_size=48, blocks=2)
    attached = attach(network, anatomy, "arena", {"rank": 8})
    state = attached.state()
    assert attached.trained_share()["adapter"] == 46_208
    assert sum(t.numel() for k, t in state.items() if "::v." in k) == 128
    assert {k.rpartition(".")[2] for k in state if "::A" in k} == {"k", "v"}
    assert len([k for k in state if "::A" in k]) == 16


def test_a_fused_projection_changes_in_its_k_and_v_rows_only():
    case = make("transformer-2d")
    qkv = case.network.block.attn.qkv
    before = qkv.weight.detach().clone()
    attached = attach(case.network, case.anatomy, "arena", {"rank": 2})
    state = attached.state()
    attached.load_state({k: t + 0.5 if "attn" in k else t for k, t in state.items()})
    change = (qkv.weight - before).detach()
    assert torch.equal(change[:6], torch.zeros(6, 6))
    assert change[6:12].abs().min() > 0
    assert change[12:].abs().min() > 0


def test_sora_subtracts_lr_times_lambda_from_each_gate_and_stops_at_zero():
    attached, factors = one_layer("sora", lam=0.5)
    with torch.no_grad():
        factors.v.copy_(torch.tensor([0.8, -0.03]))
    attached.after_step(lr=0.1, progress=0.0)
    assert torch.allclose(factors.v, torch.tensor([0.75, 0.0]))


def test_importance_subtracts_lr_times_lambda_from_the_importance_after_the_warm_up():
    attached, factors = one_layer("importance", lam=0.5)
    with torch.no_grad():
        factors.v.copy_(torch.tensor([-0.5, 0.02]))
    assert factors.importance().tolist() == pytest.approx([1.0, 0.04])
    attached.after_step(lr=0.1, progress=0.099)
    assert factors.v.tolist() == pytest.approx([-0.5, 0.02])
    attached.after_step(lr=0.1, progress=0.1)
    assert factors.importance().tolist() == pytest.approx([0.95, 0.0])
    assert factors.v.tolist() == pytest.approx([-0.475, 0.0])


def test_importance_does_not_depend_on_how_a_component_is_scaled():
    ranks = []
    for scale in (1.0, 100.0):
        attached, factors = one_layer("importance", lam=0.5)
        with torch.no_grad():
            factors.v.copy_(torch.tensor([0.5, 0.02]) * scale)
            factors.B.div_(scale)
        attached.after_step(lr=0.1, progress=0.5)
        ranks.append(factors.importance())
    assert torch.allclose(ranks[0], ranks[1])


def test_a_gate_at_zero_opens_again_in_importance_mode_when_its_component_is_needed():
    attached, factors = one_layer("importance", lam=0.1)
    with torch.no_grad():
        factors.v.zero_()
    layer = attached.network["layer"]
    with torch.no_grad():
        x = torch.eye(2)
        target = layer(x) + (factors.B @ factors.A).T
    optimiser = torch.optim.AdamW(attached.parameter_groups({"adapter": 0.05}))
    for _ in range(40):
        optimiser.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimiser.step()
        attached.after_step(0.05, 0.5)
    assert attached.ranks() == {"layer": 2}
    assert (factors.v > 0.5).all()


def test_a_gate_at_zero_stays_closed_in_paper_mode():
    attached, factors = one_layer("paper")
    with torch.no_grad():
        factors.v.copy_(torch.tensor([0.0, 1.0]))
    attached.after_step(lr=0.01, progress=0.5)
    assert factors.v.tolist() == pytest.approx([0.0, 0.995])
    attached.network["layer"](torch.randn(4, 2)).square().sum().backward()
    assert factors.A.grad[0].abs().max() == 0
    assert factors.B.grad[:, 0].abs().max() == 0


def test_paper_gates_follow_the_prediction_from_learning_rates_alone():
    case = make("unet-3d-group")
    attached = attach(case.network, case.anatomy, "arena", {"mode": "paper", "rank": 8})
    first = {k: t for k, t in attached.state().items() if "::v" in k}
    assert not set(first) & set(attached.trainable())
    steps = 60
    rates = [0.5 * 0.05 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    optimiser = torch.optim.AdamW(attached.parameter_groups({"adapter": 0.05, "head": 0.05}))
    x = an_input(case)
    for i, rate in enumerate(rates):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        case.network(x).square().mean().backward()
        optimiser.step()
        attached.after_step(rate, (i + 1) / steps)
    shrink = predicted_shrink(rates, 0.5)
    after = attached.state()
    for key, gate in first.items():
        assert torch.allclose(after[key], gate.sign() * (gate.abs() - shrink).clamp(min=0), atol=1e-5)
    facts = attached.facts()
    assert facts["predicted_shrink"] == pytest.approx(shrink)
    assert facts["predicted_ranks"] == facts["ranks"]
    # The schedule is long enough to close some gates and short enough to leave some.
    assert 0 < sum(facts["ranks"].values()) < sum(len(gate) for gate in first.values())


def test_paper_gates_move_against_their_gradient_by_rho():
    attached, factors = one_layer("paper", rho=0.1, lam=0.5)
    x = torch.tensor([[1.0, 3.0]])
    attached.network["layer"](x).sum().backward()
    # The output's sum is 2 v_1 x_1 + 2 v_2 x_2 + ..., so dL/dv = (2, 6).
    assert factors.v.grad.tolist() == pytest.approx([2.0, 6.0])
    attached.after_step(lr=0.2, progress=0.0)
    assert factors.v.tolist() == pytest.approx([1 - 0.2 - 0.1, 1 - 0.6 - 0.1])
    with pytest.raises(RuntimeError, match="before zero_grad"):
        attached.after_step(lr=0.2, progress=0.0)


def test_the_optimiser_gets_the_gates_in_their_own_group_but_in_paper_mode_not_at_all():
    rates = {"adapter": 1e-3, "head": 1e-2}
    kinds = {}
    for mode in ("importance", "sora", "paper"):
        case = make("unet-2d-batch")
        attached = attach(case.network, case.anatomy, "arena", {"mode": mode, "rank": 2})
        kinds[mode] = {g["kind"]: (g["lr"], len(g["params"])) for g in attached.parameter_groups(rates)}
    with_gates = {"adapter": (1e-3, 6), "head": (1e-2, 2), "gate": (1e-3, 3)}
    assert kinds == {
        "importance": with_gates,
        "sora": with_gates,
        "paper": {k: v for k, v in with_gates.items() if k != "gate"},
    }


def test_first_gates_are_as_asked():
    values = {}
    for mode, first in (("importance", "auto"), ("paper", "auto"), ("paper", "ones"), ("sora", "uniform")):
        case = make("unet-2d-batch")
        attached = attach(case.network, case.anatomy, "arena", {"mode": mode, "v_init": first})
        values[mode, first] = torch.cat([t for k, t in attached.state().items() if "::v" in k])
    assert (values["importance", "auto"] == 1).all()
    assert (values["paper", "ones"] == 1).all()
    for key in (("paper", "auto"), ("sora", "uniform")):
        assert -1 <= values[key].min() < 0 < values[key].max() <= 1


def test_rho_outside_the_paper_mode_is_refused():
    case = make("unet-2d-batch")
    with pytest.raises(BadInput, match="only mode 'paper' uses rho"):
        attach(case.network, case.anatomy, "arena", {"rho": 0.1})


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize(("mode", "lam"), [("importance", 0.4), ("sora", 5.0), ("paper", 5.0)])
def test_the_rank_of_the_merged_change_is_the_kept_rank(name, mode, lam):
    _, attached = trained(name, mode, lam)
    base = make(name).network.state_dict()
    attached.prune()
    ranks = attached.ranks()
    merged = attached.merge().state_dict()
    assert 0 < sum(ranks.values()) < 4 * len(ranks)
    for label, rank in ranks.items():
        layer, _, block = label.partition("[")
        change = (merged[f"{layer}.weight"] - base[f"{layer}.weight"]).flatten(1)
        if block:
            change = change.chunk(3)["qkv".index(block[0])]
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == rank


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize(("mode", "lam"), [("importance", 0.4), ("sora", 5.0), ("paper", 5.0)])
def test_pruning_computes_what_closed_gates_compute(name, mode, lam):
    case, attached = trained(name, mode, lam)
    living = attached.kept()
    assert not all(kept.all() for kept in living.values())
    with torch.no_grad():
        for label, factors in attached.labelled_factors().items():
            factors.v[~living[label]] = 0
        closed = case.network(an_input(case))
        attached.prune()
        assert (case.network(an_input(case)) - closed).abs().max() < 1e-5
    assert attached.ranks() == {label: int(kept.sum()) for label, kept in living.items() if kept.any()}
    lengths = {label: len(factors.v) for label, factors in attached.labelled_factors().items()}
    assert lengths == attached.ranks()


def test_a_pruned_adapter_is_smaller_and_comes_back_from_its_shapes():
    case, attached = trained("transformer-3d", "paper", 5.0)
    full = sum(t.numel() for t in attached.state().values())
    attached.prune()
    state = attached.state()
    assert sum(t.numel() for t in state.values()) < full
    fresh = make("transformer-3d")
    loaded = attach_saved(fresh.network, fresh.anatomy, "arena", {"mode": "paper", "rank": 4}, False, state)
    assert loaded.ranks() == attached.ranks()
    with torch.no_grad():
        assert torch.equal(fresh.network(an_input(case)), case.network(an_input(case)))


def test_a_layer_with_no_component_left_becomes_plain_again_also_after_loading():
    case, attached = trained("unet-2d-batch", "paper", 1e3)
    attached.prune()
    state = attached.state()
    assert set(state) == {"head.weight::full", "head.bias::full"}
    assert type(case.network.stem) is nn.Conv2d
    fresh = make("unet-2d-batch")
    loaded = attach_saved(fresh.network, fresh.anatomy, "arena", {"mode": "paper", "rank": 4}, False, state)
    assert loaded.changes == {}
    with torch.no_grad():
        assert torch.equal(fresh.network(an_input(case)), case.network(an_input(case)))


def test_a_saved_rank_above_the_declared_one_is_refused():
    case, fresh = make("unet-2d-batch"), make("unet-2d-batch")
    state = attach(case.network, case.anatomy, "arena", {"rank": 4}).state()
    with pytest.raises(BadInput, match=r"stem.weight::A \(4, 9\) instead of \(2, 9\)"):
        attach_saved(fresh.network, fresh.anatomy, "arena", {"rank": 2}, False, state)


def test_factors_that_disagree_about_their_rank_are_refused():
    case, fresh = make("unet-2d-batch"), make("unet-2d-batch")
    state = attach(case.network, case.anatomy, "arena", {"rank": 3}).state()
    state["down.weight::A"] = state["down.weight::A"][:2]
    with pytest.raises(BadInput, match=r"has the wrong shape: down.weight::B \(8, 3\) instead of \(8, 2\)"):
        attach_saved(fresh.network, fresh.anatomy, "arena", {"rank": 3}, False, state)


class Toy(nn.Module):
    """Two square layers; `needed` is off by a change of rank 3, `idle` is right already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.needed, self.idle, self.head = nn.Linear(width, width), nn.Linear(width, width), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.idle(torch.tanh(self.needed(x)))))


def ranks_of_toy(mode: str, seed: int, rate: float, steps: int = 500) -> dict[str, int]:
    torch.manual_seed(seed)
    width = 24
    network, x = Toy(width), torch.randn(256, width)
    missing = torch.linalg.qr(torch.randn(width, 3))[0] @ torch.linalg.qr(torch.randn(width, 3))[0].T
    with torch.no_grad():
        network.needed.weight.add_(missing)
        target = network(x) + 0.02 * torch.randn(256, width)
        network.needed.weight.sub_(missing)
    anatomy = Anatomy("head", ("needed", "idle"), (), 1)
    attached = attach(network, anatomy, "arena", {"mode": mode, "lam": 0.5, "layers": "needed|idle"})
    optimiser = torch.optim.AdamW(attached.parameter_groups({"adapter": rate}))
    for step in range(steps):
        optimiser.zero_grad()
        (network(x) - target).square().mean().backward()
        optimiser.step()
        attached.after_step(rate, (step + 1) / steps)
    return attached.ranks()


def test_importance_separates_a_needed_layer_from_an_idle_one_and_the_paper_rule_does_not():
    # A toy of our own with known ranks, 3 and 0; the paper rule's ranks come from its draw and the number of steps.
    for seed, rate in ((0, 3e-3), (1, 1e-2)):
        ranks = ranks_of_toy("importance", seed, rate)
        assert ranks["needed"] >= 3
        assert ranks["idle"] <= 1
    assert ranks_of_toy("paper", 0, 3e-3, steps=700) == {"needed": 0, "idle": 0}
