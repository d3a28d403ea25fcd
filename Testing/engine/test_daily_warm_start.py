"""Going on from an adapter with more scans, instead of starting over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peftseg import cli
from peftseg.adapter_file import load_adapter
from peftseg.adapter_training import get_ready
from peftseg.config import AdaptJob, from_json, to_json
from peftseg.dataset import load_scans
from peftseg.device import choose_device
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.models import resolve
from peftseg.plan import Plan
from peftseg.schedule import Schedule
from peftseg.train import job_setting, run_adapt, started_from
from peftseg.warm_start import TIME_SHARE, read_start, shortened
from small_scans import BRIGHT, DARK, RATES, balls_job, make_scan_files, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def job(model, tmp_path):
    return replace(balls_job(model, tmp_path, epochs=10, out="first.safetensors"), name="balls")


def going_on(job: AdaptJob, tmp_path, **changes) -> AdaptJob:
    """The same job with two more scans, from the first adapter."""
    support = (*job.support, *(make_scan_files(tmp_path, n) for n in (7, 8)))
    again = replace(job, support=support, out=str(tmp_path / "second.safetensors"), options={}, name="", epochs=None)
    return replace(again, **{"start_from": job.out, **changes})


def ready_network(job: AdaptJob):
    """What training starts from, before its first step."""
    loaded = load_scans(job.support, job.structures, None, Reporter.silent())
    entry = resolve(job.model)
    device = choose_device("cpu")
    setting = job_setting(job, entry, {}, device, loaded, Reporter.silent())
    return get_ready(started_from(setting, read_start(job, entry), loaded), loaded, Reporter.silent())


def test_going_on_starts_where_the_adapter_ended_and_makes_its_next_version(job, tmp_path):
    first = run_adapt(job, Reporter.silent())
    again = going_on(job, tmp_path, epochs=1)
    ready = ready_network(again)
    state = load_adapter(first["adapter"])[1]
    assert all(torch.equal(ready.attached.state()[key], tensor) for key, tensor in state.items())
    second = run_adapt(again, Reporter.silent())
    assert second["loss"] < 1.5 * first["loss"]
    recipe, _, _ = load_adapter(second["adapter"])
    assert (recipe.name, recipe.version, recipe.method, recipe.options["lr_adapter"]) == ("balls", 2, "lora", 1e-2)
    assert recipe.record["parent"]["hash"] == first["hash"]
    assert recipe.record["parent"]["line"] == [first["hash"]]
    assert recipe.record["shots"] == 5


def test_without_a_number_of_epochs_going_on_takes_under_half_of_those_of_starting_over(job, tmp_path):
    run_adapt(job, Reporter.silent())
    second = going_on(job, tmp_path)
    assert run_adapt(second, Reporter.silent())["epochs"] == int(10 * TIME_SHARE)
    third = replace(second, start_from=second.out, out=str(tmp_path / "third.safetensors"))
    result = run_adapt(third, Reporter.silent())
    assert result["epochs"] == int(10 * TIME_SHARE)  # of the first one's, not ever fewer
    record = load_adapter(result["adapter"])[0].record
    assert len(record["parent"]["line"]) == 2


def test_time_for_going_on_is_under_half_of_the_budget():
    plan = Plan(Schedule(100, (16, 16, 16), max_epochs=200, budget_s=600.0), 600.0, 1e9, 1e10, 750.0)
    start = type("Start", (), {"full_epochs": 60})()
    short = shortened(plan, start)
    assert (short.schedule.epochs, short.schedule.max_epochs) == (27, 27)
    assert short.schedule.budget_s == pytest.approx(270.0)
    assert short.deadline == pytest.approx(337.5)
    assert short.seconds == pytest.approx(162.0)


def test_an_added_structure_gets_a_row_and_the_others_keep_theirs_whatever_the_order(job, tmp_path):
    run_adapt(replace(job, structures=(DARK,), epochs=3), Reporter.silent())
    old = load_adapter(job.out)[1]
    ready = ready_network(going_on(job, tmp_path, structures=(BRIGHT, DARK)))
    new = ready.attached.state()
    head = next(key for key in old if ready.attached.trained.get(key.partition("::")[0]) == "head" and "weight" in key)
    assert new[head].shape[0] == old[head].shape[0] + 1 == 3
    assert torch.equal(new[head][2], old[head][1])
    assert torch.equal(new[head][0], old[head][0])
    assert not torch.equal(new[head][1], old[head][1])
    result = run_adapt(going_on(job, tmp_path, structures=(BRIGHT, DARK)), Reporter.silent())
    assert [s.name for s in load_adapter(result["adapter"])[0].structures] == ["bright ball", "dark ball"]


def test_a_novel_structure_added_to_an_adapter_with_a_frozen_decoder_trains_the_decoder_from_the_base(job, tmp_path):
    run_adapt(replace(job, structures=(BRIGHT,), epochs=2), Reporter.silent())
    assert not load_adapter(job.out)[0].train_decoder
    recipe, state, _ = load_adapter(run_adapt(going_on(job, tmp_path, epochs=1), Reporter.silent())["adapter"])
    assert recipe.train_decoder
    assert state.keys() > load_adapter(job.out)[1].keys()


@pytest.mark.parametrize("method", ["arena", "adalora", "conv_adapter", "full"])
def test_every_kind_of_method_can_go_on_also_with_pruned_ranks(job, tmp_path, method):
    run_adapt(replace(job, method=method, options={}, epochs=2), Reporter.silent())
    ready = ready_network(going_on(job, tmp_path, epochs=2))
    state = load_adapter(job.out)[1]
    assert state.keys() == ready.attached.state().keys()
    assert all(torch.equal(ready.attached.state()[key], tensor) for key, tensor in state.items())
    result = run_adapt(going_on(job, tmp_path, epochs=2), Reporter.silent())
    assert load_adapter(result["adapter"])[0].method == method


def test_what_does_not_fit_the_adapter_is_refused_with_a_reason(job, model, tmp_path):
    run_adapt(replace(job, epochs=1), Reporter.silent())
    for change, reason in (
        ({"structures": (BRIGHT,)}, "segments dark ball, too"),
        ({"method": "arena"}, "made with the method 'lora', and 'arena'"),
    ):
        with pytest.raises(BadInput, match=reason):
            run_adapt(going_on(job, tmp_path, **change), Reporter.silent())
    with pytest.raises(BadInput, match="which has its own"):
        going_on(job, tmp_path, options=RATES)
    with pytest.raises(BadInput, match="has seen them"):
        going_on(job, tmp_path, estimate="loo")
    with pytest.raises(BadInput, match="is not in it"):
        run_adapt(going_on(job, tmp_path, start_from="nobody"), Reporter.silent())


def test_other_weights_of_the_same_model_are_refused(job, tmp_path):
    run_adapt(replace(job, epochs=1), Reporter.silent())
    other = write_tiny_model(tmp_path / "other" / "tiny")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "weights.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, other / "weights.safetensors")
    with pytest.raises(BadInput, match="other weights of 'tiny'"):
        run_adapt(going_on(job, tmp_path, model=str(other)), Reporter.silent())


def test_a_job_with_a_start_survives_its_json_and_the_command_line_takes_it(job, tmp_path, capsys):
    again = going_on(job, tmp_path)
    assert from_json(to_json(again)) == again
    run_adapt(replace(job, store=True, epochs=1), Reporter.silent())
    support = tmp_path / "support"
    for part, suffix in (("images", ""), ("labels", "_labels")):
        (support / part).mkdir(parents=True)
        for n in range(3):
            source = tmp_path / f"patient_{n}{suffix}.nii.gz"
            (support / part / f"s{n}.nii.gz").write_bytes(source.read_bytes())
    out = tmp_path / "cli.safetensors"
    words = f"adapt --model {job.model} --support {support} --start-from balls --out {out} --epochs 1 --device cpu"
    assert cli.main([*words.split(), "--structures", "bright ball=1,dark ball=2"]) == 0
    assert load_adapter(out)[0].version == 2
    assert f"Wrote the adapter 'balls', version 2, to {out}" in capsys.readouterr().out
