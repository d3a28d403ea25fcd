"""The layers "proto-seg": which fail, by which rule, that only these are adapted, and that a saved adapter names them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from explain_cases import hooks_of
from peftseg import cli
from peftseg.adapter_file import load_adapter
from peftseg.adapter_training import get_ready, make_setting, train_adapter
from peftseg.adapters import attach, attach_saved, check_options
from peftseg.adapters.options import PROTO_SEG, failing_names, failing_option
from peftseg.check import run_check
from peftseg.config import AdaptJob, CheckJob
from peftseg.dataset import load_scans
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import CANCEL, Reporter
from peftseg.explain.failing import FILE, failing, layer_abilities
from peftseg.explain.subject import Subject, model_subject
from peftseg.models import resolve
from peftseg.networks import is_part
from peftseg.train import run_adapt
from peftseg.weights import load_base
from small_scans import BOTH, BRIGHT, make_scan_files, write_tiny_model

CPU = torch.device("cpu")
BLOCK = "down_layers.1.1"
CONV = f"{BLOCK}.conv1.conv"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return tuple(make_scan_files(folder, n) for n in range(3))


@pytest.fixture(scope="module")
def scans(items):
    return load_scans(items, BOTH, None, Reporter.silent())


@pytest.fixture(scope="module")
def adapted(model, items, tmp_path_factory):
    """A job in a folder of its own that chose its layers, accuracy estimated: its adapter, its reporter."""
    folder = tmp_path_factory.mktemp("job")
    reporter = Reporter.silent()
    reporter.checkpoint = folder / "checkpoint.safetensors"
    run_adapt(job_for(model, items, folder / "a.safetensors", estimate="loo"), reporter)
    return folder / "a.safetensors", reporter


def job_for(model, items, out: Path, **changes) -> AdaptJob:
    given = {
        "model": str(model),
        "support": items,
        "structures": (BRIGHT,),
        "out": str(out),
        "method": "lora",
        "options": {"layers": PROTO_SEG, "rank": 2},
        "epochs": 1,
        "device": "cpu",
        "precision": "fp32",
        "snapshots": False,
    }
    return AdaptJob(**(given | changes))


def setting_for(model, scans, structures=(BRIGHT,), layers=PROTO_SEG):
    options = check_options("lora", {"layers": layers, "rank": 2})
    made = make_setting(resolve(str(model)), structures, scans, "lora", options, CPU, Reporter.silent())
    return replace(made, epochs=1, precision="fp32")


def said(reporter):
    return [event["message"] for event in reporter.events if event["event"] == "log"]


def test_a_layer_fails_where_its_ability_lies_clearly_below_that_of_the_layer_before():
    abilities = {"a": 0.1, "b": 0.3, "c": 0.297, "d": 0.2, "e": 0.25, "f": 0.05}
    chosen, why = failing(abilities)
    assert chosen == ["d", "f"]
    assert "before" in why


def test_where_no_layer_falls_those_below_the_median_fail():
    chosen, why = failing({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4})
    assert chosen == ["a", "b"]
    assert "median" in why
    assert failing({"a": 0.2, "b": 0.2})[0] == ["a", "b"]


def test_without_any_ability_the_layers_cannot_be_chosen():
    with pytest.raises(BadInput, match="no layer of this model") as caught:
        failing({})
    assert "--layers auto" in caught.value.remedy


def test_only_the_failing_layers_are_adapted_and_the_saved_adapter_names_them(adapted):
    out, reporter = adapted
    recipe, state, _ = load_adapter(out)
    names = failing_names(recipe.options["layers"])
    assert names
    assert {key.partition("::")[0].removesuffix(".weight") for key in state if key.endswith(("::A", "::B"))} == set(
        names
    )
    message = next(text for text in said(reporter) if text.startswith("ProtoSeg"))
    assert all(f"{name} (0." in message for name in names)


def test_a_saved_adapter_gives_what_the_trained_one_gave_without_any_labels(model, scans):
    adapted = train_adapter(setting_for(model, scans), scans, Reporter.silent())
    network, anatomy = load_base(resolve(str(model)))
    setting = adapted.setting
    loaded = attach_saved(network, anatomy, setting.method, setting.options, False, adapted.attached.state())
    image = torch.randn((1, 1, 24, 24, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.merge().eval()(image), adapted.attached.merge().eval()(image))


def test_the_choice_leaves_weights_modes_hooks_and_random_numbers_as_they_are(model, scans):
    chosen = get_ready(setting_for(model, scans), scans, Reporter.silent())
    named = get_ready(setting_for(model, scans, layers=chosen.setting.options["layers"]), scans, Reporter.silent())
    first, second = chosen.attached, named.attached
    assert first.state().keys() == second.state().keys()
    assert all(torch.equal(first.state()[key], tensor) for key, tensor in second.state().items())
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True))
    assert [m.training for m in first.network.modules()] == [m.training for m in second.network.modules()]
    assert hooks_of(first.network) == hooks_of(second.network)


def test_the_decoder_is_not_judged_where_it_trains_anyway(model, scans):
    novel = get_ready(setting_for(model, scans, BOTH), scans, Reporter.silent()).setting
    assert novel.train_decoder
    _, anatomy = load_base(resolve(str(model)))
    assert not any(is_part(name, anatomy.decoder) for name in failing_names(novel.options["layers"]))
    subject = replace(model_subject(resolve(str(model))), structures=())
    judged = layer_abilities(subject, BOTH, scans[:1], (), CPU, "fp32", Reporter.silent())
    assert any(is_part(name, anatomy.decoder) for name in judged)
    assert all(0 <= value <= 1 for value in judged.values())


def test_leaving_one_out_repeats_the_choice_without_the_left_out_scan(adapted):
    choices = [text for text in said(adapted[1]) if text.startswith("ProtoSeg")]
    assert ["on 3 labelled" in text for text in choices] == [True, False, False, False]
    assert sum("on 2 labelled" in text for text in choices) == 3


def test_a_job_that_goes_on_takes_the_layers_that_it_began_with(adapted, model, items, tmp_path):
    out, first = adapted
    kept = json.loads(first.checkpoint.with_name(FILE).read_text(encoding="utf-8"))
    assert failing_option(kept) == load_adapter(out)[0].options["layers"]
    second = Reporter.silent()
    second.checkpoint = tmp_path / "checkpoint.safetensors"
    second.checkpoint.with_name(FILE).write_text(json.dumps([CONV]), encoding="utf-8")
    run_adapt(job_for(model, items, tmp_path / "b.safetensors"), second)
    assert load_adapter(tmp_path / "b.safetensors")[0].options["layers"] == failing_option([CONV])
    assert f"Goes on with the layers that were chosen before: {CONV}." in said(second)
    assert not any(text.startswith("ProtoSeg") for text in said(second))


def test_cancelling_ends_the_choice(model, scans):
    reporter = Reporter(lambda kind, fields: None, lambda: CANCEL)
    subject = replace(model_subject(resolve(str(model))), structures=())
    with pytest.raises(JobCancelled):
        layer_abilities(subject, BOTH, scans, (), CPU, "fp32", reporter)
    assert hooks_of(subject.network) == 0


def test_a_look_before_adapting_counts_the_choice_and_the_plan_stands(model, items):
    found = run_check(
        CheckJob(
            model=str(model),
            support=items,
            structures=(BRIGHT,),
            method="lora",
            options={"layers": PROTO_SEG},
            epochs=1,
            device="cpu",
            match=False,
        ),
        Reporter.silent(),
    )
    assert found["epochs"] == 1
    assert found["seconds"] > 0


def test_scans_in_which_nothing_is_there_are_refused(model, scans):
    empty = [replace(scan, masks={name: mask & False for name, mask in scan.masks.items()}) for scan in scans]
    with pytest.raises(BadInput, match="Segmentation Ability"):
        get_ready(setting_for(model, scans), empty, Reporter.silent())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("arena", {}),
        ("adalora", {}),
        ("dora", {}),
        ("convlora", {"train_norm": True}),
        ("residual_adapter", {}),
        ("conv_adapter", {}),
        ("conv_adapter", {"scheme": "block_parallel"}),
        ("ssf", {}),
        ("ssf", {"after": "conv"}),
        ("affine", {}),
        ("bitfit", {}),
        ("selective", {}),
    ],
)
def test_every_method_adapts_what_it_can_of_a_failing_layer_and_nothing_elsewhere(model, method, options):
    network, anatomy = load_base(resolve(str(model)))
    attached = attach(network, anatomy, method, {**options, "layers": failing_option([CONV])})
    keys = [key for key in attached.state() if not is_part(key.partition("::")[0], (anatomy.head,))]
    assert keys
    assert all(is_part(key.partition("::")[0].removeprefix("beside."), (BLOCK,)) for key in keys), keys
    exact = any(key.startswith(CONV) for key in keys)
    assert exact or method in ("affine", "bitfit") or options.get("scheme") or (method, options) == ("ssf", {})


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (PROTO_SEG, "labelled scans"),
        (f"{PROTO_SEG}:no.such.layer", "no layer 'no.such.layer'"),
        (f"{PROTO_SEG}:", "no layer ''"),
    ],
)
def test_names_that_do_not_fit_are_told(model, layers, match):
    network, anatomy = load_base(resolve(str(model)))
    with pytest.raises(BadInput, match=match):
        attach(network, anatomy, "lora", {"layers": layers})


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--method", "linear_probe"], "layers"),
        (["--method", "auto"], "layers"),
        (["--method", "lora", "--option", "layers=all"], "layers is given twice"),
    ],
)
def test_on_the_command_line_what_has_no_layers_to_choose_is_told(model, tmp_path, capsys, more, match):
    words = ["adapt", "--model", str(model), "--support", str(tmp_path), "--structures", "a=1"]
    assert cli.main([*words, "--layers", PROTO_SEG, "--out", str(tmp_path / "a.safetensors"), *more]) == 2
    assert match in capsys.readouterr().err


def test_a_subject_without_structures_is_all_that_a_choice_needs(model, scans):
    entry = resolve(str(model))
    network, anatomy = load_base(entry)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    subject = Subject(network, (), "softmax", entry.preprocessing, entry.window, 0.5, {}, anatomy=anatomy)
    assert layer_abilities(subject, BOTH, scans[:1], (), CPU, "auto", Reporter.silent())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
