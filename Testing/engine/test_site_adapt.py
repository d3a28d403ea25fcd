"""Adaptation without labels from scans to an adapter, on tiny 2D and 3D networks."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from made_up_sites import BLURRED, PLAIN, made_up_scan
from peftseg import early_head, self_training, site_early, site_layers, site_training
from peftseg.adabn import copy_statistics, recalibrate
from peftseg.adapter_file import load_adapter, read_recipe
from peftseg.apply import run_apply
from peftseg.config import ApplyJob, SiteAdaptJob
from peftseg.early_head import EarlyBranch
from peftseg.errors import BadInput, JobCancelled, OutOfMemory, TrainingFailed
from peftseg.events import Reporter
from peftseg.gate import ACCEPTED, REFUSED, Verdict
from peftseg.library import list_adapters
from peftseg.networks import is_slicewise
from peftseg.segmenter import load_adapted_network
from peftseg.self_training import SiteTraining, self_train
from peftseg.site_adapt import run_site_adapt
from peftseg.site_attach import attach_site, early_from_state
from peftseg.site_batches import make_batches
from peftseg.volume import Volume, read_labels, write_volume
from peftseg.weights import load_base
from site_cases import make_volume, prepared_scans, settled, write_scans, write_site_model

NETWORKS = ("unet2d", "unet3d_bn")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    entries = {name: write_site_model(folder / name, name) for name in NETWORKS}
    entries["bare"] = write_site_model(folder / "bare", early=None)
    entries["segresnet"] = write_site_model(folder / "segresnet", "segresnet", early=None)
    entries["sigmoid"] = write_site_model(folder / "sigmoid", activation="sigmoid", early=0)
    return entries


@pytest.fixture
def accept(monkeypatch):
    """Let the gate accept: random weights find nothing that it could like."""
    monkeypatch.setattr(site_training, "judge", lambda *_: Verdict(ACCEPTED, ("Fine.",), {}))
    monkeypatch.setattr(early_head, "FEWEST_EARLY_STEPS", 4)
    monkeypatch.setattr(early_head, "EARLY_EPOCHS", 2)


@pytest.fixture
def job(models, tmp_path):
    return SiteAdaptJob(
        model=str(models["unet2d"].directory),
        unlabelled=tuple(write_scans(tmp_path / "scans")),
        out=str(tmp_path / "a.safetensors"),
        epochs=2,
        device="cpu",
        precision="fp32",
    )


def messages(reporter, kind="warning"):
    return [e["message"] for e in reporter.events if e["event"] == kind]


def training_of(entry, epochs=2, options=None, count=4):
    """A training on a fresh network."""
    network, anatomy = load_base(entry)
    options = options or settled(lr_adapter=1e-2)
    batches = replace(make_batches(prepared_scans(entry, count), network, anatomy, entry.window, 0), per_step=6)
    branch = EarlyBranch(network, anatomy, options["level"], 2)
    torch.manual_seed(1)
    for tensor in branch.head.parameters():
        torch.nn.init.normal_(tensor, std=0.2)
    return SiteTraining(attach_site(network, anatomy, options), branch, batches, options, "softmax", epochs)


# batches


@pytest.mark.parametrize("name", NETWORKS)
def test_an_epoch_covers_every_voxel_once_and_mixes_the_scans(models, name):
    entry = models[name]
    network, anatomy = load_base(entry)
    scans = prepared_scans(entry)
    batches = make_batches(scans, network, anatomy, entry.window, seed=3)
    assert batches.slicewise == is_slicewise(network)
    steps = batches.steps(0)
    places = [place for step in steps for place in step]
    assert sorted(places) == sorted(p for own in batches.places for p in own)
    assert len({scan for scan, *_ in steps[0]}) > 1
    assert batches.steps(0) == steps
    assert batches.steps(1) != steps
    tensor = batches.tensor(steps[0])
    expected = (1, 1, 24, 24, len(steps[0])) if batches.slicewise else (len(steps[0]), 1, 24, 24, 16)
    assert tensor.shape == expected
    if batches.slicewise:
        scan, i, j, k = steps[0][1]
        image = scans[scan].image[0, :, :, k]
        assert torch.equal(tensor[0, 0, -i : -i + 20, -j : -j + 18, 1], image)
        assert len(places) == 4 * 6


def test_a_scan_larger_than_the_window_is_covered_by_several_parts(models):
    entry = replace(models["unet2d"], window=(16, 16, 8))
    network, anatomy = load_base(entry)
    batches = make_batches(prepared_scans(entry, 1), network, anatomy, entry.window, 0)
    assert batches.patch == (16, 16, 1)
    assert {(i, j) for _, i, j, _ in batches.places[0]} == {(0, 0), (0, 2), (4, 0), (4, 2)}


# training


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lowers_the_loss_and_changes_only_the_adapter(models, name):
    training = training_of(models[name], epochs=6)
    network = training.attached.network
    own = set(training.attached.tensors())
    before = {k: t.clone() for k, t in network.state_dict().items()}
    history = self_train(training, Reporter.silent())
    assert history.losses[-1] < history.losses[0]
    assert history.inert == []
    changed = {k for k, t in network.state_dict().items() if not torch.equal(before[k], t)}
    assert changed
    assert all(".parametrizations.weight.0." in key for key in changed)
    assert any(key.endswith("::B") for key in own)


@pytest.mark.parametrize("teacher", ["student", "frozen", "ema"])
def test_teachers_differ_in_what_they_know_of_the_training(models, teacher, monkeypatch):
    training = training_of(models["unet2d"], 2, settled(teacher=teacher, ema=0.5, lr_adapter=5e-2))
    seen = []
    original = self_training.pseudo_labels
    monkeypatch.setattr(
        self_training,
        "pseudo_labels",
        lambda final, *rest: seen.append(final.detach().clone()) or original(final, *rest),
    )
    base = copy.deepcopy(training.attached.network).eval()
    loops = []
    init = self_training._Loop.__init__
    monkeypatch.setattr(self_training._Loop, "__init__", lambda loop, *a: loops.append(loop) or init(loop, *a))
    self_train(training, Reporter.silent())
    places = training.batches.steps(1)[-1]
    with torch.no_grad():
        as_base = base(training.batches.tensor(places))
    same = torch.allclose(seen[-1], as_base, atol=1e-6)
    assert same == (teacher == "frozen")
    if teacher == "ema":
        student, average = training.attached.state(), loops[0].teacher.state()
        moved = [k for k in student if k.endswith("::B")]
        assert all(average[k].abs().max() > 0 for k in moved)
        assert not any(torch.equal(average[k], student[k]) for k in moved)


def test_detached_targets_leave_the_decoders_path_without_gradient_and_published_ones_do_not(models):
    """With an adapter below the early head only attached targets can reach it."""
    for targets, reached in (("soft_attached", True), ("detached", False)):
        options = {**settled(level=0, depth=0, lr_adapter=1e-2), "depth": 2, "targets": targets}
        training = training_of(models["unet2d"], 1, options)
        self_train(training, Reporter.silent())
        deep = {k: t for k, t in training.attached.state().items() if k.startswith("down2") and k.endswith("::B")}
        assert deep
        assert all((t.abs().max() > 0) == reached for t in deep.values())


def test_as_published_statistics_move_in_training_and_without_adabn_go_back(models):
    moving = training_of(models["unet2d"], 1, settled("published", own=None, keep="last"))
    fixed = training_of(models["unet2d"], 1, settled("udas_convlora", own=None, keep="last"))
    for training, stays in ((moving, False), (fixed, True)):
        before = copy_statistics(training.attached.network)
        self_train(training, Reporter.silent())
        after = copy_statistics(training.attached.network)
        assert all(torch.equal(before[k], after[k]) for k in before) == stays


def test_training_that_changes_nothing_gains_no_agreement_by_statistics_that_go_back(models):
    rates = {"lr_adapter": 0.0, "lr_norm": 0.0}
    history = self_train(
        training_of(models["unet2d"], 3, settled("udas_convlora", own=None, **rates)), Reporter.silent()
    )
    assert history.agreement == [history.before] * 3
    assert history.best_epoch == -1


def test_a_batch_in_parts_gives_the_same_adapter(models, monkeypatch):
    states = []
    for voxels in (2**19, 24 * 24):
        monkeypatch.setattr(self_training, "VOXELS_AT_ONCE", voxels)
        training = training_of(models["unet2d"], 1)
        self_train(training, Reporter.silent())
        states.append(training.attached.state())
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], atol=1e-3, rtol=1e-3)


def test_the_best_agreement_is_kept_and_nothing_where_training_only_loses_it(models):
    training = training_of(models["unet2d"], 3, settled(keep="agreement", lr_adapter=1e-2))
    start = training.attached.state()
    history = self_train(training, Reporter.silent())
    assert len(history.agreement) == 3
    if history.best_epoch < 0:
        assert all(torch.equal(start[k], t) for k, t in training.attached.state().items())
    else:
        assert history.agreement[history.best_epoch] == max([history.before, *history.agreement])
    still = training_of(models["unet2d"], 9, settled(keep="agreement", stop_change=0.9))
    assert self_train(still, Reporter.silent()).stopped == "agreement stands still"
    assert len(still.attached.state()) == len(start)


@pytest.mark.parametrize("options", [{"teacher": "ema"}, {"keep": "agreement"}])
@pytest.mark.parametrize("bn", [{}, {"bn_mode": "batch", "adabn": "moving"}])
def test_a_resumed_training_equals_the_uninterrupted_one_bit_by_bit(models, tmp_path, monkeypatch, options, bn):
    monkeypatch.setattr(self_training, "CHECKPOINT_EVERY_S", 0.0)
    settings = settled(lr_adapter=1e-2, **options, **bn)
    whole = training_of(models["unet2d"], 4, settings)
    expected = self_train(whole, Reporter.silent())
    interrupted = training_of(models["unet2d"], 4, settings)
    reporter = Reporter.silent()
    reporter.checkpoint = tmp_path / "checkpoint.safetensors"
    reporter._request = lambda: "cancel" if reporter.checkpoint.exists() and len(losses(reporter)) == 2 else ""
    with pytest.raises(JobCancelled):
        self_train(interrupted, reporter)
    resumed = training_of(models["unet2d"], 4, settings)
    again = Reporter.silent()
    again.checkpoint = reporter.checkpoint
    history = self_train(resumed, again)
    assert "Continued from epoch 2." in messages(again, "log")
    assert history.losses == expected.losses
    assert all(torch.equal(t, resumed.attached.state()[k]) for k, t in whole.attached.state().items())
    assert all(
        torch.equal(t, copy_statistics(resumed.attached.network)[k])
        for k, t in copy_statistics(whole.attached.network).items()
    )


def losses(reporter):
    return [e for e in reporter.events if "loss" in e]


def test_stop_and_keep_ends_at_the_next_step_and_a_deadline_too(models):
    reporter = Reporter.silent()
    reporter._request = lambda: "stop_keep"
    history = self_train(training_of(models["unet2d"], 5), reporter)
    assert (len(history.losses), history.stopped) == (1, "stopped by the user")
    late = replace(training_of(models["unet2d"], 5), deadline_s=0.0)
    assert self_train(late, Reporter.silent()).stopped == "time budget used"


def test_a_loss_that_is_not_finite_goes_back_once_and_then_gives_up(models, monkeypatch):
    original, calls = self_training.site_loss, []

    def broken(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) in bad else 1.0)

    monkeypatch.setattr(self_training, "site_loss", broken)
    bad = {6}
    reporter = Reporter.silent()
    history = self_train(training_of(models["unet2d"], 2), reporter)
    assert history.retries == ["loss not finite"]
    assert history.rate_factor == 0.1
    assert any("last good state" in m for m in messages(reporter))
    bad = set(range(1000))
    with pytest.raises(TrainingFailed, match="not finite in epoch 1"):
        self_train(training_of(models["unet2d"], 2), Reporter.silent())


# little memory


def without_room_for(parts, network):
    """Let a network of volumes run out of memory where it gets more than so many parts at once; returns what it got."""
    seen = []

    def look(_module, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > parts:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")

    network.register_forward_pre_hook(look)
    return seen


def recalibrated(entry, parts, reporter):
    """Statistics after a recalibration on four volumes, and how many of them the network got at once."""
    training = training_of(entry)
    network = training.attached.network
    source = copy_statistics(network)
    seen = without_room_for(parts, network)
    site_training._recalibrate(training.attached, training.batches, training.options, source, reporter)
    return copy_statistics(network), seen


def test_recalibration_without_room_starts_again_with_fewer_parts_in_batches_of_one_size(models):
    reporter = Reporter.silent()
    found, seen = recalibrated(models["unet3d_bn"], 2, reporter)
    assert seen == [4, 2, 2]
    assert messages(reporter) == ["Out of memory: recalibrating with 2 parts at once."]
    training = training_of(models["unet3d_bn"])
    recalibrate(training.attached.network, replace(training.batches, per_step=2).tensors())
    assert all(torch.equal(found[k], t) for k, t in copy_statistics(training.attached.network).items())
    with pytest.raises(OutOfMemory, match=r"Recalibration on parts of \(24, 24, 16\) voxels does not fit"):
        recalibrated(models["unet3d_bn"], 0, reporter)


def test_after_the_system_ended_the_job_for_memory_fewer_parts_are_done_at_once(models, monkeypatch):
    usual, smaller = Reporter.silent(), Reporter.silent()
    smaller.smaller_plan = True
    for module in (self_training, site_training):
        monkeypatch.setattr(module, "VOXELS_AT_ONCE", 2 * 24 * 24 * 16)
    assert recalibrated(models["unet3d_bn"], 4, usual)[1] == [4]
    assert recalibrated(models["unet3d_bn"], 4, smaller)[1] == [2, 2]
    training = training_of(models["unet3d_bn"])
    assert [self_training._Loop(training, reporter).micro for reporter in (usual, smaller)] == [2, 1]
    published = settled("published", own=None)
    assert site_training._for_training(training.batches, published, usual) is training.batches
    assert site_training._for_training(training.batches, training.options, smaller) is training.batches
    assert site_training._for_training(training.batches, published, smaller).per_step == 1
    assert messages(smaller) == ["With less memory: training with 1 instead of 6 parts a step."]


def test_a_state_of_before_does_not_bring_back_the_larger_parts(models, tmp_path):
    training, reporter = training_of(models["unet2d"], 1), Reporter.silent()
    reporter.checkpoint = tmp_path / "checkpoint.safetensors"
    self_train(training, reporter)
    reporter.smaller_plan = True
    loop = self_training._Loop(replace(training, epochs=2), reporter)
    loop.micro = 1
    loop.resume()
    assert (loop.epoch, loop.micro) == (1, 1)


def test_a_scan_that_does_not_fit_while_it_is_read_is_told_by_its_size(job, monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(site_layers, "layer_moments", full)
    with pytest.raises(OutOfMemory, match="A scan of 20 x 18 x 6"):
        run_site_adapt(job, Reporter.silent())
    assert not Path(job.out).exists()


def test_an_early_head_without_room_is_fitted_anew_with_fewer_slices(models, job, accept, monkeypatch):
    seen, original = [], early_head._fit_step

    def little_room(branch, optimiser, batch, *rest):
        seen.append(batch[0].shape[-1])
        if seen[-1] > 8:
            raise MemoryError
        return original(branch, optimiser, batch, *rest)

    monkeypatch.setattr(early_head, "_fit_step", little_room)
    reporter = Reporter.silent()
    run_site_adapt(replace(job, model=str(models["bare"].directory), epochs=1), reporter)
    assert seen[:3] == [24, 12, 6]
    assert set(seen[3:]) == {6}
    assert any("fitting the early segmentation head with 6 parts" in m for m in messages(reporter))


# the whole job


@pytest.mark.parametrize("name", NETWORKS)
def test_scans_become_an_adapter_that_apply_takes(models, job, tmp_path, accept, name):
    job = replace(job, model=str(models[name].directory), store=True)
    reporter = Reporter.silent()
    result = run_site_adapt(job, reporter)
    recipe, state, digest = load_adapter(result["adapter"])
    assert digest == result["hash"]
    assert recipe.method == "site"
    assert recipe.structures == models[name].structures
    assert (recipe.options["level"], recipe.options["depth"]) == (1, 1)
    assert recipe.record["unlabelled_scans"] == 4
    assert recipe.record["gate"]["status"] == ACCEPTED
    assert recipe.record["site"]["scans"] == 4
    assert result["early_head"] == {"level": 1, "fitted": False, "parameters": result["early_head"]["parameters"]}
    assert result["recalibrated"] > 0
    assert early_from_state(state).keys() == {
        f"{n}" for n in EarlyBranch(*load_base(models[name]), 1, 2).head.state_dict()
    }
    assert not any("patient" in text or ".nii" in text for text in (json.dumps(recipe.record), recipe.name))
    assert list_adapters()[0]["method"] == "site"
    out = run_apply(
        ApplyJob(str(job.out), None, job.unlabelled[:1], str(tmp_path / "seg"), device="cpu"), Reporter.silent()
    )
    network = load_adapted_network(recipe, state, models[name])
    assert out["provenance"]["adapter_hash"] == digest
    assert read_labels(out["outputs"][0]).layers.shape == (1, *make_volume(0).array.shape)
    base, _ = load_base(models[name])
    x = torch.randn(1, 1, 24, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(network(x), base(x), atol=1e-3)
    stages = {e["stage"] for e in reporter.events if e["event"] == "progress"}
    assert stages >= {"read", "recalibrate", "train", "gate"}


def test_one_seed_gives_one_adapter_and_another_seed_another(job, tmp_path, accept):
    states = []
    for file, seed in (("x", 0), ("y", 0), ("z", 1)):
        run_site_adapt(replace(job, out=str(tmp_path / f"{file}.safetensors"), seed=seed), Reporter.silent())
        states.append(load_adapter(tmp_path / f"{file}.safetensors")[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def adapted(job, **options):
    """The tensors of an adapter, with these options."""
    run_site_adapt(replace(job, options=options), Reporter.silent())
    state = load_adapter(job.out)[1]
    Path(job.out).unlink()
    return state


def statistics_in(state):
    return {k: t for k, t in state.items() if "running_" in k}


def test_a_share_of_the_models_own_statistics_is_that_share_after_both_passes(job, accept):
    still = {"lr_adapter": 0.0, "lr_norm": 0.0}
    model, site = (statistics_in(adapted(job, source_weight=share, **still)) for share in (1.0, 0.0))
    assert any(not torch.allclose(model[k], site[k], rtol=1e-2) for k in model)
    for key, tensor in statistics_in(adapted(job, source_weight=0.5, **still)).items():
        torch.testing.assert_close(tensor, 0.5 * model[key] + 0.5 * site[key])


def test_training_with_the_models_own_statistics_is_another_training_that_ends_with_the_sites(job, accept):
    pre = adapted(job, adabn="before", lr_adapter=1e-2)
    source = adapted(job, adabn="before", lr_adapter=1e-2, bn_mode="source")
    assert all(torch.equal(tensor, source[key]) for key, tensor in statistics_in(pre).items())
    assert any(not torch.equal(tensor, source[key]) for key, tensor in pre.items())


def test_a_base_without_early_head_gets_one_that_the_adapter_keeps(models, job, accept):
    reporter = Reporter.silent()
    result = run_site_adapt(replace(job, model=str(models["bare"].directory)), reporter)
    assert result["early_head"]["fitted"]
    assert any("no early segmentation head at level 1" in m for m in messages(reporter, "log"))
    assert early_from_state(load_adapter(job.out)[1])["conv1.weight"].shape == (12, 8, 3, 3)
    assert not (models["bare"].directory / "early_head.safetensors").exists()


def test_a_resumed_job_goes_on_with_the_early_head_that_it_had_fitted(models, job, tmp_path, accept, monkeypatch):
    """With another rest of the time a head that is fitted anew would be another one."""
    monkeypatch.setattr(self_training, "CHECKPOINT_EVERY_S", 0.0)
    job = replace(job, model=str(models["bare"].directory), epochs=4, budget_minutes=60)
    states = []
    for name, stops in (("whole", 9), ("cancelled", 2)):
        monkeypatch.setattr(site_early, "EARLY_SHARE", 0.0)
        reporter = reporter_of(tmp_path / name, stops)
        if stops == 2:
            with pytest.raises(JobCancelled):
                run_site_adapt(job, reporter)
            monkeypatch.setattr(site_early, "EARLY_SHARE", 0.5)
            reporter = reporter_of(tmp_path / name, 9)
        result = run_site_adapt(replace(job, out=str(tmp_path / f"{name}.safetensors")), reporter)
        assert result["early_head"]["fitted"]
        assert result["epochs"] == 4
        states.append(load_adapter(tmp_path / f"{name}.safetensors")[1])
    assert "Continued with the early segmentation head that was fitted before." in messages(reporter, "log")
    assert not any(event.get("stage") == "early_head" for event in reporter.events)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    monkeypatch.setattr(site_early, "EARLY_SHARE", 0.5)
    run_site_adapt(job, Reporter.silent())
    other = early_from_state(load_adapter(job.out)[1])
    assert not all(torch.equal(t, other[key]) for key, t in early_from_state(states[0]).items())


def reporter_of(folder, stops):
    """With a checkpoint in a folder; cancels after so many epochs of training."""
    folder.mkdir(exist_ok=True)
    reporter = Reporter.silent()
    reporter.checkpoint = folder / "checkpoint.safetensors"
    reporter._request = lambda: "cancel" if sum("agreement" in e for e in reporter.events) >= stops else ""
    return reporter


def test_the_time_of_an_earlier_run_that_fitted_the_early_head_counts(models, job, tmp_path, accept, monkeypatch):
    bare = replace(job, model=str(models["bare"].directory), epochs=1, budget_minutes=60)
    branch = EarlyBranch(*load_base(models["bare"]), 1, 2)
    early_head.write_head(tmp_path / "early_head.safetensors", branch, 3500.0)
    left, original = [], site_training.SiteTraining
    monkeypatch.setattr(site_training, "SiteTraining", lambda *given: left.append(given[-1]) or original(*given))
    reporter = reporter_of(tmp_path, 9)
    run_site_adapt(bare, reporter)
    assert 0 < left[0] < 100


@pytest.mark.parametrize(("asked", "budget", "told"), [("stop_keep", None, False), ("", 1e-6, True)])
def test_an_early_head_that_is_cut_short_is_put_down_to_the_time_only_where_it_was_that(
    models, job, accept, asked, budget, told
):
    reporter = Reporter.silent()
    reporter._request = lambda: asked
    run_site_adapt(replace(job, model=str(models["bare"].directory), budget_minutes=budget), reporter)
    assert sum(event["event"] == "progress" and event["stage"] == "early_head" for event in reporter.events) == 1
    assert any("the time is short" in m for m in messages(reporter)) == told


def test_a_network_without_running_statistics_says_so_and_still_trains(models, job, accept):
    reporter = Reporter.silent()
    result = run_site_adapt(replace(job, model=str(models["segresnet"].directory)), reporter)
    assert any("recalibration does nothing here; self-training goes on" in m for m in messages(reporter))
    assert result["recalibrated"] == 0
    assert result["trained_share"]["adapter"] > 0
    recipe, state, _ = load_adapter(job.out)
    assert recipe.options["adabn"] == "none"
    assert any(t.abs().max() > 0 for k, t in state.items() if k.endswith("::B"))
    with pytest.raises(BadInput, match="nothing else was asked for"):
        run_site_adapt(
            replace(job, model=str(models["segresnet"].directory), preset="adabn", out=job.out + "2.safetensors"),
            reporter,
        )


@pytest.mark.parametrize("preset", ["adabn", "self_training", "udas", "convlora"])
def test_every_preset_makes_an_adapter(models, job, accept, preset):
    result = run_site_adapt(
        replace(job, model=str(models["sigmoid"].directory), preset=preset, epochs=1), Reporter.silent()
    )
    recipe, state, _ = load_adapter(result["adapter"])
    network = load_adapted_network(recipe, state, models["sigmoid"])
    assert isinstance(network.out_path[2], torch.nn.BatchNorm2d)  # the base's own head and what follows it
    assert (recipe.record["epochs"] == 0) == (preset == "adabn")


def test_fewer_than_three_scans_warn(job, accept):
    reporter = Reporter.silent()
    run_site_adapt(replace(job, unlabelled=job.unlabelled[:2], epochs=1), reporter)
    assert any(m.startswith("Only 2 scans") for m in messages(reporter))


def warned_about(job, volumes, folder):
    """The warnings of a job on these scans."""
    folder.mkdir()
    paths = [folder / f"{n}.nii.gz" for n in range(len(volumes))]
    for path, volume in zip(paths, volumes, strict=True):
        write_volume(path, volume.array, volume.grid)
    reporter = Reporter.silent()
    run_site_adapt(replace(job, unlabelled=tuple(map(str, paths)), preset="adabn"), reporter)
    return messages(reporter)


def test_scans_of_another_kind_than_the_model_is_made_for_warn(job, tmp_path, accept):
    def as_ct(number):
        plain = make_volume(number)
        air = np.indices(plain.array.shape)[0] < 5
        values = np.where(air, -1000, plain.array - 60).round()
        return Volume(values.astype(np.int16), plain.grid, plain.name)

    said = warned_about(job, [as_ct(n) for n in range(3)], tmp_path / "ct")
    assert [m for m in said if "look like CT" in m] == said
    assert said[0].startswith("Scans 1, 2 and 3 of 3 look like CT by the grey values, but the model 'tiny-unet2d'")
    assert (
        warned_about(replace(job, out=job.out + "2.safetensors"), [make_volume(n) for n in range(3)], tmp_path / "mr")
        == []
    )


def test_scans_of_two_scanners_in_one_folder_warn(job, tmp_path, accept):
    two = [made_up_scan(PLAIN if n < 4 else BLURRED, n) for n in range(7)]
    said = warned_about(job, two, tmp_path / "two")
    assert len(said) == 1
    assert said[0].startswith("Scans 5, 6 and 7 of 7 differ from the others in ")
    assert "another scanner or protocol" in said[0]
    one = [made_up_scan(PLAIN, n) for n in range(7)]
    assert warned_about(replace(job, out=job.out + "2.safetensors"), one, tmp_path / "one") == []


@pytest.mark.parametrize("keep", [False, True])
def test_what_the_gate_refuses_is_not_written_unless_asked_for(job, monkeypatch, keep):
    reasons = ("It finds half as much.", "Keep the base model.")
    monkeypatch.setattr(site_training, "judge", lambda *_: Verdict(REFUSED, reasons, {"scans": 4}))
    result = run_site_adapt(replace(job, epochs=1, keep_refused=keep), Reporter.silent())
    assert result["verdict"] == {"status": REFUSED, "reasons": list(reasons), "facts": {"scans": 4}}
    if keep:
        assert read_recipe(result["adapter"]).record["gate"]["status"] == REFUSED
    else:
        assert result["adapter"] is result["hash"] is None
        assert not Path(job.out).exists()


def test_the_gate_judges_the_network_that_apply_will_run(job, models, monkeypatch):
    found = {}

    def judge(before, after, facts):
        found.update(before=before, after=after)
        return Verdict(ACCEPTED, ("Fine.",), {})

    monkeypatch.setattr(site_training, "judge", judge)
    run_site_adapt(job, Reporter.silent())
    recipe, state, _ = load_adapter(job.out)
    from peftseg.infer import predict_logits

    image = prepared_scans(models["unet2d"])[0].image
    for network, evidence in (
        (load_base(models["unet2d"])[0], found["before"]),
        (load_adapted_network(recipe, state, models["unet2d"]), found["after"]),
    ):
        logits = predict_logits(network, image, 2, recipe.window, recipe.overlap, torch.device("cpu"), "fp32")
        assert np.mean(evidence.results[0] == logits.argmax(0).numpy()) > 0.999


@pytest.mark.parametrize("after", [3, 12, 40])
def test_cancelling_leaves_no_file(job, tmp_path, accept, after):
    reporter = Reporter.silent()
    looks = iter(range(10**6))
    reporter._request = lambda: "cancel" if next(looks) > after else ""
    with pytest.raises(JobCancelled):
        run_site_adapt(job, reporter)
    assert not list(tmp_path.glob("*.safetensors*"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "no-such-model"}, "Unknown model"),
        ({"structures": ("spleen",)}, "no head for 'spleen'; it knows ball"),
        ({"options": {"rnak": 3}}, "rank"),
        ({"options": {"level": 4, "depth": 4}}, "levels 0 to 3"),
        ({"out": "adapter.pt"}, ".safetensors"),
    ],
)
def test_bad_requests_name_what_is_valid_and_write_nothing(job, tmp_path, change, text):
    with pytest.raises(BadInput, match=text):
        run_site_adapt(replace(job, **change), Reporter.silent())
    assert not list(tmp_path.glob("*.safetensors*"))
