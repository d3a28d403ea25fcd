"""The method `auto`: what it tries, what it decides by which numbers, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftseg import auto, auto_race
from peftseg.adapter_file import load_adapter
from peftseg.adapter_training import Setting, make_setting, predict_masks, starting_network, train_adapter
from peftseg.adapters import METHODS, attach, check_options
from peftseg.auto_choices import starters, variations
from peftseg.auto_search import Search, write_search
from peftseg.check import run_check
from peftseg.compare import Candidate
from peftseg.comparison import _check_fit
from peftseg.config import AdaptJob, CheckJob
from peftseg.dataset import load_scans
from peftseg.errors import BadInput, JobCancelled, OutOfMemory, TrainingFailed
from peftseg.events import CANCEL, STOP_KEEP, TRIALS_FILE, Reporter
from peftseg.foundation_models import FOUNDATION_MODELS
from peftseg.metrics import dice
from peftseg.models import resolve
from peftseg.segmenter import adapter_segmenter, segment_volume
from peftseg.study import LabelState
from peftseg.train import run_adapt
from peftseg.volume import read_volume
from small_scans import BOTH, make_scan_files, write_tiny_model

CPU = torch.device("cpu")
LORA, PROBE, FULL = (METHODS[name].title for name in ("lora", "linear_probe", "full"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return tuple(make_scan_files(folder, n) for n in range(4))


@pytest.fixture(autouse=True)
def long_search(monkeypatch):
    """A search that is long beside the few epochs of a test."""
    monkeypatch.setattr(auto, "SEARCH_TRAININGS", 20.0)


@pytest.fixture
def setting(model, items):
    return setting_for(model, items)


@pytest.fixture
def scans(items):
    return load_scans(items[:3], BOTH, None, Reporter.silent())


def setting_for(model, items, methods="linear_probe,full", epochs=4, **changes):
    loaded = load_scans(items[:3], BOTH, None, Reporter.silent())
    options = check_options("auto", {"methods": methods})
    made = make_setting(resolve(str(model)), BOTH, loaded, "auto", options, CPU, Reporter.silent())
    return replace(made, epochs=epochs, precision="fp32", **changes)


def job_for(model, items, out: Path, **changes) -> AdaptJob:
    given = {
        "model": str(model),
        "support": items[:3],
        "structures": BOTH,
        "out": str(out),
        "method": "auto",
        "options": {"methods": "linear_probe,full"},
        "epochs": 6,
        "device": "cpu",
        "precision": "fp32",
    }
    return AdaptJob(**(given | changes))


def decided(setting, scans, tmp_path, scores: dict[str, list[float]]) -> auto.Decision:
    """The decision by scores that a search has found already; its time is used, so that nothing more is tried."""
    search = Search(choices=len(scores), epochs=3, limit=100.0, spent=0.0)
    search.scores = {label: dict(enumerate(values)) for label, values in scores.items()}
    write_search(tmp_path / TRIALS_FILE, search)
    reporter = Reporter.silent()
    reporter.checkpoint = tmp_path / "checkpoint.safetensors"
    return auto.choose(setting, scans, reporter)


def test_the_method_that_learns_wins_and_the_adapter_segments(model, items, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "SEARCH_TRAININGS", 6.0)
    result = run_adapt(job_for(model, items, tmp_path / "a.safetensors", epochs=15), Reporter.silent())
    recipe, _, _ = load_adapter(result["adapter"])
    assert recipe.method == result["choice"]["method"] == "full"
    assert recipe.options == result["choice"]["options"]
    assert recipe.record["choice"]["why"] == result["choice"]["why"]
    assert any(FULL in sentence for sentence in result["choice"]["why"])
    labels = segment_volume(adapter_segmenter(result["adapter"]), read_volume(items[3].image), CPU)
    assert set(labels.ravel().tolist()) == {0, 1, 2}


def test_a_score_is_that_of_training_on_the_other_scans(setting, scans):
    search = Search(choices=2, epochs=4, limit=1e9)
    trial = auto.Trial(setting, scans, search, None, 0.0, Reporter.silent())
    choice = starters("full")[0]
    found = trial.score(choice, 1)
    fixed = replace(auto.with_choice(setting, choice), epochs=4)
    adapted = train_adapter(fixed, [scans[0], scans[2]], Reporter.silent())
    masks = predict_masks(adapted, scans[1], Reporter.silent())
    expected = sum(float(dice(masks[s.name], scans[1].masks[s.name])) for s in BOTH) / 2
    assert found == pytest.approx(expected, abs=1e-4)
    assert search.spent == 4 * 2


def test_one_that_is_far_behind_is_not_tried_on_the_next_scan(setting, scans, monkeypatch):
    tried = []

    def scored(trial, choice, fold):
        tried.append((choice.label, fold))
        value = 0.9 if choice.label == FULL else 0.9 - 2 * auto_race.BEHIND[0]
        trial.search.scores.setdefault(choice.label, {})[fold] = value
        return value

    monkeypatch.setattr(auto.Trial, "score", scored)
    search = Search(choices=2, epochs=3, limit=1e9)
    trial = auto.Trial(setting, scans, search, None, 0.0, Reporter.silent())
    best = auto_race.race(starters("linear_probe,full"), [0, 1, 2], trial)
    assert best.method == "full"
    assert tried == [(PROBE, 0), (FULL, 0)]
    assert any(PROBE in sentence and "drops out after 1 scan" in sentence for sentence in search.why)


@pytest.mark.parametrize(
    ("full", "winner"),
    [
        ([0.805, 0.795, 0.806], "linear_probe"),  # ahead by less than it varies
        ([0.804, 0.816, 0.802], "linear_probe"),  # by less than twice that
        ([0.81, 0.82, 0.81], "full"),
        ([0.79, 0.80, 0.79], "linear_probe"),
    ],
)
def test_the_first_method_stays_unless_it_is_beaten_by_more_than_the_differences_vary(
    full, winner, setting, scans, tmp_path, monkeypatch
):
    monkeypatch.setattr(auto_race, "variations", lambda choice: iter(()))
    decision = decided(setting, scans, tmp_path, {PROBE: [0.8, 0.8, 0.8], FULL: full})
    assert decision.choice.method == winner
    assert any("is used" in sentence or "is best" in sentence for sentence in decision.facts["why"])


def test_a_variation_is_taken_only_where_it_helps_on_two_scans(setting, scans, tmp_path):
    found = decided(
        setting,
        scans,
        tmp_path,
        {
            PROBE: [0.5, 0.5, 0.5],
            FULL: [0.8, 0.8, 0.8],
            f"{FULL}, rates x 3": [0.85, 0.84, 0.85],
            f"{FULL}, rates / 3": [0.7, 0.7, 0.7],
            f"{FULL}, rates x 3, rates / 3": [0.7, 0.7, 0.7],
        },
    )
    assert found.choice.label == f"{FULL}, rates x 3"
    options, usual = dict(found.choice.options), check_options("full", {})
    rates = {name for name in usual if name.startswith("lr_")}
    assert {name: options[name] for name in rates} == {name: pytest.approx(3 * usual[name]) for name in rates}
    assert {name: options[name] for name in options.keys() - rates} == {n: usual[n] for n in usual.keys() - rates}
    assert found.facts["scores"][FULL] == [0.8, 0.8, 0.8]


def test_variations_change_one_thing_each_and_can_be_attached(setting):
    network, anatomy, _ = starting_network(setting)
    for name in METHODS:
        if name in ("auto", "adaptformer"):
            continue
        choice = starters(name)[0]
        labels = [v.label for v in auto_race._worth_trying(choice, setting)]
        assert len(labels) == len(set(labels))
        assert all(label.startswith(METHODS[name].title) for label in labels)
    ranks = [dict(v.options)["rank"] for v in variations(starters("lora")[0])]
    assert {8, 16, 32} == set(ranks)
    with pytest.raises(BadInput, match="cannot be attached"):
        attach(network, anatomy, "auto", {})


def test_a_search_that_goes_on_repeats_no_trial_and_decides_the_same(model, items, tmp_path, monkeypatch):
    setting = setting_for(model, items)
    loaded = load_scans(items[:3], BOTH, None, Reporter.silent())
    reporter = Reporter.silent()
    reporter.checkpoint = tmp_path / "checkpoint.safetensors"
    whole = auto.choose(setting, loaded, reporter)
    record = json.loads((tmp_path / TRIALS_FILE).read_text())
    assert record["spent"] > 0

    def forbidden(*_arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(auto, "train_adapter", forbidden)
    again = auto.choose(setting, loaded, reporter)
    assert again.facts == whole.facts


def test_cancelling_ends_the_search(setting, scans):
    reporter = Reporter(lambda kind, fields: None, lambda: CANCEL)
    with pytest.raises(JobCancelled):
        auto.adapt_scans(setting, scans, reporter)


def test_stopping_in_the_search_keeps_the_best_trial(setting, scans):
    wish = [""]
    said = []

    def emit(kind, fields):
        said.append((kind, fields))
        if kind == "progress" and fields["stage"] == "choose" and fields["step"]:
            wish[0] = STOP_KEEP

    adapted = auto.adapt_scans(setting, scans, Reporter(emit, lambda: wish[0]))
    assert adapted.setting.method == "linear_probe"  # the only one that was finished
    assert len(adapted.history.losses) > 1
    assert any(kind == "warning" and "all labelled scans but one" in fields["message"] for kind, fields in said)


def stopped_at(monkeypatch, setting, scans, scores: list[float], trying: str, without: int, tmp_path=None):
    """What is adapted when the user stops while a method is tried without a scan, by made-up scores of what was before."""
    values = iter([score for score in scores for _ in BOTH])
    monkeypatch.setattr(auto, "dice", lambda found, truth: next(values))
    wish = [""]

    def emit(kind, fields):
        if kind == "progress" and fields["stage"] == "choose":
            stops = (fields["trying"], fields["without"]) == (trying, without)
            wish[0] = STOP_KEEP if stops else wish[0]

    reporter = Reporter(emit, lambda: wish[0])
    reporter.checkpoint = tmp_path and tmp_path / "checkpoint.safetensors"
    return auto.adapt_scans(setting, scans, reporter)


def test_the_best_trial_of_a_stopped_search_is_that_by_the_same_scans(setting, scans, monkeypatch):
    # The probe's 0.95 is on a scan on which nothing else was tried.
    adapted = stopped_at(monkeypatch, setting, scans, [0.66, 0.70, 0.95], FULL, 2)
    assert adapted.setting.method == adapted.choice["method"] == "full"
    assert any(f"{FULL} is best, mean Dice 0.700" in sentence for sentence in adapted.choice["why"])


def test_a_search_that_is_stopped_on_the_first_scan_names_what_was_not_tried(model, items, scans, monkeypatch):
    setting = setting_for(model, items, methods="linear_probe,full,lora")
    adapted = stopped_at(monkeypatch, setting, scans, [0.6, 0.7], LORA, 1)
    assert adapted.setting.method == adapted.choice["method"] == "full"
    assert f"Not tried: {LORA}; the search was stopped before." in adapted.choice["why"]


def test_a_search_that_went_on_and_is_stopped_uses_an_adapter_that_it_has(setting, scans, tmp_path, monkeypatch):
    search = Search(choices=2, epochs=3, limit=1e6, spent=12.0)
    search.scores = {PROBE: {0: 0.66}, FULL: {0: 0.7}}
    write_search(tmp_path / TRIALS_FILE, search)
    adapted = stopped_at(monkeypatch, setting, scans, [0.6], FULL, 2, tmp_path)
    assert adapted.setting.method == adapted.choice["method"] == "linear_probe"
    assert any(f"of {FULL} no adapter is left" in sentence for sentence in adapted.choice["why"])


@pytest.mark.parametrize(
    ("planned", "scans", "shortest"),
    [
        (40, 4, 40),  # 200 steps: each trial is a whole training
        (120, 4, 60),  # half of it is 240 steps
        (60, 4, 50),  # half would be 120 steps
        (30, 20, 15),
    ],
)
def test_a_trial_is_half_a_training_and_200_steps_at_least_or_a_whole_one(planned, scans, shortest):
    assert auto._shortest_trial(planned, scans) == shortest


def test_fewer_methods_are_tried_before_trials_are_made_shorter(model, items, tmp_path, monkeypatch):
    """Five scans, 40 epochs, the five usual methods. Trials of 12 epochs had chosen by how fast a method learns."""
    five = (*items, make_scan_files(tmp_path, 4))
    loaded = load_scans(five, BOTH, None, Reporter.silent())
    setting = setting_for(model, items, methods=check_options("auto", {})["methods"], epochs=40)
    choices, _ = auto._fitting(setting)

    def planned(trainings: float) -> tuple[int, int | None]:
        monkeypatch.setattr(auto, "SEARCH_TRAININGS", trainings)
        search = auto._planned(setting, loaded, choices, [0, 1, 2, 3, 4], Reporter.silent())
        return search.choices, search.epochs

    assert planned(10.0) == (5, 40)
    assert planned(4.0) == (3, 40)
    assert planned(2.5) == (2, 40)
    assert planned(2.0) == (0, None)


def test_the_first_method_stays_in_the_race_unless_it_is_far_behind(setting, scans, monkeypatch):
    """What beats it has to be compared with it on all scans."""
    values = {PROBE: 0.8, FULL: 0.8 + 2 * auto_race.BEHIND[2], LORA: 0.8}

    def scored(trial, choice, fold):
        trial.search.scores.setdefault(choice.label, {})[fold] = values[choice.label]
        return values[choice.label]

    monkeypatch.setattr(auto.Trial, "score", scored)
    search = Search(choices=3, epochs=3, limit=1e9)
    trial = auto.Trial(setting, scans, search, None, 0.0, Reporter.silent())
    assert auto_race.race(starters("linear_probe,full,lora"), [0, 1, 2], trial).method == "full"
    assert any(f"{LORA} drops out" in sentence for sentence in search.why)
    assert any(f"{FULL} against {PROBE}: +0.020 Dice on 3 scan(s)" in sentence for sentence in search.why)


def test_methods_that_the_time_does_not_suffice_for_are_named(model, items, scans, monkeypatch):
    def scored(trial, choice, fold):
        trial.search.scores.setdefault(choice.label, {})[fold] = {PROBE: 0.5, FULL: 0.9}[choice.label]
        return trial.search.scores[choice.label][fold]

    monkeypatch.setattr(auto.Trial, "score", scored)
    monkeypatch.setattr(auto, "SEARCH_TRAININGS", 2.5)
    reporter = Reporter.silent()
    setting = setting_for(model, items, methods="linear_probe,full,lora", epochs=12)
    decision = auto.choose(setting, scans, reporter)
    sentence = f"Not tried: {LORA}; the time did not suffice."
    assert decision.choice.method == "full"
    assert sentence in decision.facts["why"]
    assert sentence in [e["message"] for e in reporter.events if e["event"] == "log"]


def test_a_variation_that_is_dropped_after_one_scan_is_named(setting, scans, tmp_path):
    found = decided(
        setting,
        scans,
        tmp_path,
        {
            PROBE: [0.5, 0.5, 0.5],
            FULL: [0.8, 0.8, 0.8],
            f"{FULL}, rates x 3": [0.7],
            f"{FULL}, rates / 3": [0.79],
        },
    )
    assert found.choice.label == FULL
    said = [s for s in found.facts["why"] if "on one scan, no better than without: not taken." in s]
    assert [s.split(":")[0] for s in said] == [f"{FULL}, rates x 3", f"{FULL}, rates / 3"]


def test_variations_that_there_was_no_time_for_are_said(setting, scans, tmp_path):
    search = Search(choices=2, epochs=3, limit=100.0, spent=99.0)
    search.scores = {PROBE: dict.fromkeys(range(3), 0.5), FULL: dict.fromkeys(range(3), 0.8)}
    trial = auto.Trial(setting, scans, search, None, 0.0, Reporter.silent())
    assert auto_race.refine(starters("full")[0], [0, 1, 2], trial).method == "full"
    assert search.why == [f"{FULL}, rates x 3, and what else could be varied, was not tried: the time did not suffice."]


def test_methods_that_all_fail_leave_the_first_one_and_the_reasons(setting, scans, monkeypatch):
    def train(given, *arguments):
        raise TrainingFailed(f"The loss of {given.method} is not finite.", "Choose another method.")

    monkeypatch.setattr(auto, "train_adapter", train)
    decision = auto.choose(setting, scans, Reporter.silent())
    assert decision.choice.method == "linear_probe"
    assert sum("could not be trained: The loss of" in sentence for sentence in decision.facts["why"]) == 2


def test_a_method_that_cannot_be_trained_drops_out_and_is_named(setting, scans, monkeypatch):
    def train(given, *arguments):
        if given.method == "linear_probe":
            raise TrainingFailed("The loss is not finite.", "Choose another method.")
        return train_adapter(given, *arguments)

    monkeypatch.setattr(auto, "train_adapter", train)
    decision = auto.choose(setting, scans, Reporter.silent())
    assert decision.choice.method == "full"
    assert any("could not be trained: The loss is not finite." in sentence for sentence in decision.facts["why"])


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("predict_masks", torch.OutOfMemoryError("full")),
        ("predict_masks", OutOfMemory("full", "Buy more.")),
        ("train_adapter", torch.OutOfMemoryError("full")),
    ],
)
def test_memory_that_runs_out_in_a_trial_is_the_failure_of_that_method_alone(
    place, error, model, items, scans, monkeypatch
):
    runs = getattr(auto, place)

    def failing(given, *arguments):
        if getattr(given, "setting", given).method == "linear_probe":
            raise error
        return runs(given, *arguments)

    monkeypatch.setattr(auto, place, failing)
    monkeypatch.setattr(auto_race, "variations", lambda choice: iter(()))
    decision = auto.choose(setting_for(model, items, epochs=1), scans, Reporter.silent())
    assert decision.choice.method == "full"
    assert list(decision.facts["scores"]) == [FULL]
    assert any(s.startswith(f"{PROBE} could not be trained: ") for s in decision.facts["why"])


def test_an_error_that_is_not_about_memory_ends_the_search(setting, scans, monkeypatch):
    def failing(*arguments):
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(auto, "predict_masks", failing)
    with pytest.raises(RuntimeError, match="a mistake"):
        auto.choose(setting, scans, Reporter.silent())


def test_with_one_scan_the_first_method_is_used_and_the_reason_is_said(setting, scans):
    decision = auto.choose(setting, scans[:1], Reporter.silent())
    assert decision.choice.method == "linear_probe"
    assert decision.facts["scores"] == {}
    assert "under two scans can be left out" in decision.facts["why"][0]


def test_too_little_time_means_the_first_method(model, items, scans):
    setting = setting_for(model, items, epochs=None, budget_minutes=1e-4)
    decision = auto.choose(setting, scans, Reporter.silent())
    assert decision.choice.method == "linear_probe"
    assert "the time is too short" in decision.facts["why"][0]


def test_a_time_limit_is_shared_between_trying_and_the_last_training(model, items, scans):
    setting = setting_for(model, items, epochs=None, budget_minutes=10.0)
    search = auto._planned(setting, scans, starters("linear_probe,full"), [0, 1, 2], Reporter.silent())
    assert search.limit == 300.0
    assert search.minutes * 60 * auto._trials_wanted(2) <= 300.0 + 1e-6
    assert auto.usual_setting(setting).budget_minutes == 5.0


def test_scans_that_label_no_structure_as_a_whole_are_not_left_out(model, items, tmp_path):
    bright, dark = BOTH
    partly = make_scan_files(
        tmp_path, 9, states={dark.name: LabelState("not labelled"), bright.name: LabelState("labelled", (8, 12))}
    )
    loaded = load_scans((*items[:2], partly), BOTH, None, Reporter.silent())
    assert auto.usable_folds(loaded, setting_for(model, items)) == [0, 1]


@pytest.mark.slow
def test_the_estimate_repeats_the_choice_without_each_scan(model, items, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "SEARCH_TRAININGS", 8.0)
    reporter = Reporter.silent()
    job = job_for(model, items, tmp_path / "a.safetensors", epochs=2, estimate="loo")
    result = run_adapt(job, reporter)
    choosing = [e for e in reporter.events if e["event"] == "progress" and e["stage"] == "choose"]
    assert {e.get("left_out") for e in choosing} == {None, 1, 2, 3}
    assert all(len(values) == 3 for values in result["estimate"].values())


def test_methods_that_do_not_fit_or_train_too_much_are_left_out_and_named(model, items, scans, monkeypatch):
    setting = setting_for(model, items, methods="adaptformer,linear_probe,full")
    monkeypatch.setattr(auto_race, "MOST_OWN", 1000)
    reporter = Reporter.silent()
    decision = auto.choose(setting, scans, reporter)
    said = " ".join(e["message"] for e in reporter.events if e["event"] == "log")
    assert decision.choice.method == "linear_probe"
    assert "AdaptFormer is not tried" in said
    assert f"{FULL} is not tried: it trains" in said
    with pytest.raises(BadInput, match="No method that 'auto' may try fits"):
        auto.choose(setting_for(model, items, methods="adaptformer"), scans, Reporter.silent())


def test_the_first_method_that_fits_is_tried_however_large_it_is(model, items, monkeypatch):
    monkeypatch.setattr(auto_race, "MOST_OWN", 10)
    for methods, left in (
        ("full,linear_probe,lora", ["full", "linear_probe"]),
        ("adaptformer,full,lora", ["full"]),
    ):
        choices, misfits = auto._fitting(setting_for(model, items, methods=methods))
        assert [choice.method for choice in choices] == left
        assert f"{LORA} is not tried: it trains" in " ".join(misfits)
    setting = setting_for(model, items, methods="full")
    labels = [varied.label for varied in auto_race._worth_trying(starters("full")[0], setting)]
    assert labels == [f"{FULL}, rates x 3", f"{FULL}, rates / 3"]


def test_the_decoder_counts_where_a_method_trains_it_and_the_others_do_not(model, items, monkeypatch):
    setting = replace(setting_for(model, items, methods="linear_probe,decoder"), train_decoder=True)
    monkeypatch.setattr(auto_race, "MOST_OWN", 10)
    assert [choice.method for choice in auto._fitting(setting)[0]] == ["linear_probe", "decoder"]
    known = replace(setting, train_decoder=False)
    assert [choice.method for choice in auto._fitting(known)[0]] == ["linear_probe"]


@pytest.mark.parametrize("entry", FOUNDATION_MODELS, ids=lambda entry: entry.id)
def test_the_usual_methods_are_tried_on_every_foundation_model(entry):
    """With the decoder of a novel structure, which alone has up to 19 million values, and without."""
    usual = check_options("auto", {})
    setting = Setting(entry, BOTH, "softmax", "auto", usual, train_decoder=True, device=CPU, scratch=True)
    network, anatomy, _ = starting_network(setting)
    novel, misfits = auto_race.fitting_choices(setting, network, anatomy)
    names = usual["methods"].split(",")
    assert [c.method for c in novel] == [n for n in names if n != "full" or FULL not in " ".join(misfits)]
    assert all(FULL in sentence for sentence in misfits)
    known, _ = auto_race.fitting_choices(replace(setting, train_decoder=False), network, anatomy)
    assert [c.method for c in known if c.method not in ("full", "decoder")] == ["lora", "arena", "residual_adapter"]


def test_a_comparison_and_a_check_take_what_auto_takes(model, items):
    """Of a list whose first method does not fit, and of one of which none does."""
    setting = setting_for(model, items, methods="adaptformer,lora")
    network, anatomy, _ = starting_network(setting)
    _check_fit(Candidate("auto", "auto", {"methods": "adaptformer,lora"}), setting, network, anatomy)
    assert auto.usual_setting(setting).method == auto._fitting(setting)[0][0].method == "lora"
    nothing = setting_for(model, items, methods="adaptformer")
    with pytest.raises(BadInput, match="Nothing that 'auto' may try fits this model: AdaptFormer is not tried"):
        _check_fit(Candidate("auto", "auto", {"methods": "adaptformer"}), setting, network, anatomy)
    for refused in (auto._fitting, auto.usual_setting):
        with pytest.raises(BadInput, match="No method that 'auto' may try fits"):
            refused(nothing)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"methods": "lora,auto"}, "Unknown method in option"), ({"search_share": 1.0}, "search_share is 1.0")],
)
def test_wrong_options_are_refused(options, words, model, items, tmp_path):
    job = job_for(model, items, tmp_path / "a.safetensors", options=options)
    with pytest.raises(BadInput, match=words):
        run_adapt(job, Reporter.silent())
    assert not (tmp_path / "a.safetensors").exists()


def test_a_check_counts_the_time_of_the_search(model, items):
    common = {
        "model": str(model),
        "support": items[:3],
        "structures": BOTH,
        "epochs": 6,
        "device": "cpu",
        "match": False,
    }
    plain = run_check(CheckJob(**common, method="lora"), Reporter.silent())
    searching = run_check(CheckJob(**common, method="auto"), Reporter.silent())
    assert searching["seconds"] > 2 * plain["seconds"]
    assert searching["epochs"] == plain["epochs"]
