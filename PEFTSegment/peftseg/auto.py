"""The method `auto`: method, rates, rank and layers are chosen by leaving out one scan of the support set at a time.

A race: every method of its list learns from the other scans and is scored on the left-out one; after each left-out scan those
that are clearly behind drop out. The winner's rates, rank and layers are then varied one at a time. Everything that
depends on the scans (recipe, plan) is done anew in every trial. The first method of the list stays where nothing beats it
by more than the differences vary. In `leave_one_out` the whole choice is repeated without the left-out scan, so that its
estimate stays honest. Scans that are known to be of one patient are left out together and count as one, with their mean.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peftseg.adapter_training import (
    Adapted,
    Setting,
    get_ready,
    plan_for,
    predict_masks,
    starting_network,
    train_adapter,
)
from peftseg.adapters import AUTO
from peftseg.auto_choices import Choice, listed
from peftseg.auto_race import fitting_choices, race, refine
from peftseg.auto_search import Search, mean_dice, not_tried_words, read_search, write_search
from peftseg.config import CPU_BUDGET_MINUTES
from peftseg.device import fits, release_memory
from peftseg.errors import BadInput, OutOfMemory, TrainingFailed
from peftseg.events import TRIALS_FILE, Reporter
from peftseg.metrics import dice
from peftseg.patients import by_patient, patients_differ, patients_of, same_patient, without_patient_of
from peftseg.plan import Plan
from peftseg.study import LoadedScan

# A trial takes at least this share of the last training's epochs, and this many optimiser steps unless the last training
# takes fewer: what shorter ones say of methods and rates is how fast they learn (Docs/decisions/auto.md).
TRIAL_SHARE, TRIAL_STEPS = 0.5, 200
SEARCH_TRAININGS = 10.0  # effort of the search in trainings like the last one, where no time is given


@dataclass(frozen=True)
class Decision:
    """The outcome of a search: what to train, why, the seconds that it took, and an adapter of that choice's trials."""

    choice: Choice
    facts: dict[str, Any]
    seconds: float
    kept: Adapted | None = None


def adapt_scans(setting: Setting, loaded: Sequence[LoadedScan], reporter: Reporter) -> Adapted:
    """Train an adapter; with the method `auto`, choose first.

    What was trained is in the result's `setting`, how it was chosen in `choice`. Where the user stops during the search,
    the best trial's adapter is the result: it has not seen one of the scans.
    """
    if setting.method != AUTO:
        return train_adapter(setting, loaded, reporter)
    decision = choose(setting, list(loaded), reporter)
    if decision.kept is not None and reporter.stop_keep():
        but = "those of one patient" if patients_differ(patients_of(loaded)) else "one"
        reporter.warning(
            f"Stopped while methods were tried: this adapter has learnt from all labelled scans but {but}."
        )
        decision.kept.attached.network.to(setting.device)
        return replace(decision.kept, choice=decision.facts)
    minutes = _minutes(setting)
    if minutes is not None:
        minutes = max(minutes - decision.seconds / 60, (1 - _search_share(setting)) * minutes)
    chosen = with_choice(setting, decision.choice)
    adapted = train_adapter(replace(chosen, budget_minutes=minutes), loaded, reporter)
    return replace(adapted, choice=decision.facts)


def with_choice(setting: Setting, choice: Choice) -> Setting:
    """The setting with a choice in place of `auto`."""
    return replace(setting, method=choice.method, options=dict(choice.options))


def usual_setting(setting: Setting, choice: Choice | None = None) -> Setting:
    """The setting with a choice (None: the first that fits) in place of `auto`, and the time that is left to it."""
    minutes = _minutes(setting)
    first = with_choice(setting, choice or _fitting(setting)[0][0])
    return replace(first, budget_minutes=None if minutes is None else minutes * (1 - _search_share(setting)))


def search_seconds(setting: Setting, final: Plan) -> float:
    """Seconds that a search is expected to take, beside a last training by this plan."""
    minutes = _minutes(setting)
    return SEARCH_TRAININGS * final.seconds if minutes is None else 60 * minutes * _search_share(setting)


def choose(setting: Setting, loaded: list[LoadedScan], reporter: Reporter) -> Decision:
    """Search for the best choice within the time.

    Returns
    -------
    Decision
        Its facts: "method", "options", "label", "why" (sentences), "trial" (how long each was) and "scores" (label -> one
        Dice a scan, None where it was not tried there; a patient's mean is at his or her first scan that can be scored).
        They chose the method, so they are no estimate of its accuracy.

    Raises
    ------
    BadInput
        No method of the list fits the model, or the options are wrong.
    """
    started = time.monotonic()
    choices, misfits = _fitting(setting)
    for text in misfits:
        reporter.log(text)
    folds = usable_folds(loaded, setting)
    # Beside the checkpoint: trials are not repeated when a job goes on.
    path = None if reporter.checkpoint is None else reporter.checkpoint.with_name(TRIALS_FILE)
    search = read_search(path) or _planned(setting, loaded, choices, folds, reporter)
    trial = Trial(setting, loaded, search, path, started, reporter)
    choice = choices[0]
    if search.choices > 1:
        choice = refine(race(choices[: search.choices], folds, trial), folds, trial)
    if reporter.stop_keep():
        choice = trial.best_at_hand(choice)
    search.why += [f"{label} could not be trained: {message}" for label, message in search.failed.items()]
    search.why += not_tried_words(choices, search)
    for sentence in search.why:
        reporter.log(sentence)
    facts = {
        "method": choice.method,
        "options": dict(choice.options),
        "label": choice.label,
        "why": search.why,
        "trial": search.length() if search.choices > 1 else "",
        "scores": {label: [found.get(n) for n in range(len(loaded))] for label, found in search.scores.items()},
    }
    return Decision(choice, facts, trial.seconds(), trial.kept.get(choice.label))


def usable_folds(loaded: Sequence[LoadedScan], setting: Setting) -> list[int]:
    """Scans (from 0 on) that can be left out: they label a structure as a whole that others show too.

    Of each patient it is the first one, which stands for all of them.
    """
    usable = [[n for n in group if _scored(loaded, n, setting)] for group in by_patient(patients_of(loaded))]
    return [group[0] for group in usable if group]


def _scored(loaded: Sequence[LoadedScan], left_out: int, setting: Setting) -> list[str]:
    """Structures on which a left-out scan can be scored: scans of other patients show them too."""
    others = without_patient_of(loaded, left_out)
    return [
        s.name
        for s in setting.structures
        if loaded[left_out].known[s.name] is True
        and loaded[left_out].masks[s.name].any()
        and any(scan.masks[s.name].any() for scan in others)
    ]


def _fitting(setting: Setting) -> tuple[list[Choice], list[str]]:
    """The choices that fit the model, and why others were left out; BadInput where none does."""
    network, anatomy, _ = starting_network(setting)
    fitting, misfits = fitting_choices(setting, network, anatomy)
    if not fitting:
        raise BadInput(
            f"No method that 'auto' may try fits {setting.entry.id}: {' '.join(misfits)}",
            "Name other methods with the option 'methods'.",
        )
    return fitting, misfits


def _minutes(setting: Setting) -> float | None:
    """The time limit, if there is one."""
    if setting.budget_minutes is None and setting.epochs is None and setting.device.type == "cpu":
        return CPU_BUDGET_MINUTES
    return setting.budget_minutes


def _search_share(setting: Setting) -> float:
    share = setting.options["search_share"]
    if not 0 < share < 1:
        raise BadInput(f"search_share is {share}; expected above 0 and below 1.", "Try 0.5.")
    return share


def _planned(
    setting: Setting, loaded: list[LoadedScan], choices: list[Choice], folds: list[int], reporter: Reporter
) -> Search:
    """How many methods are tried and for how long, from what the first one costs.

    As many as a race of two scans has time for with trials that are long enough; what is left goes into further scans and
    into variations of the winner.
    """
    first, share, minutes = choices[0].label, _search_share(setting), _minutes(setting)
    if len(choices) == 1:
        return Search(why=[f"{first} is the only method that can be tried."])
    unit = "patient" if patients_differ(patients_of(loaded)) else "scan"
    if len(folds) < 2:
        remedy = " Label a scan of another patient, or correct 'patient' in support.json." if unit == "patient" else ""
        return Search(why=[f"{first} is used: under two {unit}s can be left out to compare methods on.{remedy}"])
    usual = usual_setting(setting, choices[0])
    ready = get_ready(usual, loaded, _quiet(reporter))
    planned = ready.plan.schedule.epochs
    # The trial that learns from most scans has to be afforded, too.
    away = min(by_patient(patients_of(loaded)), key=len)
    others = [scan for n, scan in enumerate(ready.scans) if n not in away]
    shortest = _shortest_trial(planned, len(others))
    for n in range(len(choices), 1, -1):
        trials = _trials_wanted(n)
        if minutes is None:
            limit = SEARCH_TRAININGS * planned * len(loaded)
            epochs = min(planned, int(limit / trials / len(others)))
            search = Search(n, epochs=epochs, limit=limit, unit=unit)
        else:
            each, limit = min(minutes * share / trials, usual.budget_minutes), 60 * minutes * share
            search = Search(n, minutes=each, limit=limit, unit=unit)
            trial = replace(usual, budget_minutes=search.minutes)
            plan = plan_for(trial, others, ready.attached, ready.divisor)
            epochs = plan.schedule.epochs if plan.seconds * trials <= limit else 0  # a plan has an epoch at least
        if epochs >= shortest:
            return search
    untried = listed([choice.label for choice in choices[1:]])
    why = f"{first} is used: the time is too short to try other methods ({untried}) for {shortest} epochs each."
    return Search(why=[why])


def _shortest_trial(planned: int, scans: int) -> int:
    """Epochs that a trial on so many scans takes at least, where the last training is planned for `planned`."""
    return min(planned, max(math.ceil(TRIAL_SHARE * planned), math.ceil(TRIAL_STEPS / scans)))


def _trials_wanted(choices: int) -> int:
    """Trials of a race of two scans in which half of the methods drop out after the first."""
    return choices + -(-choices // 2)


class Trial:
    """Runs trials and keeps their scores; what the file holds is not run again."""

    def __init__(
        self,
        setting: Setting,
        loaded: list[LoadedScan],
        search: Search,
        path: Path | None,
        started: float,
        reporter: Reporter,
    ) -> None:
        self.setting, self.loaded, self.search, self.path = setting, loaded, search, path
        self.reporter, self.quiet = reporter, _quiet(reporter)
        self.before = search.spent if search.minutes is not None else 0.0
        self.started = started
        self.kept: dict[str, Adapted] = {}  # choice's label -> of its last trial, on the CPU
        self.choices: dict[str, Choice] = {}

    def seconds(self) -> float:
        """Time that the search has taken, over all starts of the job."""
        return self.before + time.monotonic() - self.started

    def score(self, choice: Choice, left_out: int) -> float | None:
        """Mean Dice on the left-out scan; None where the choice cannot be trained, or its adapter not be used."""
        search = self.search
        found = search.scores.get(choice.label, {}).get(left_out)
        if found is not None or choice.label in search.failed:
            return found
        self.reporter.check()
        self._report(choice, left_out)
        try:
            release_memory()
            # Not all of it turns torch's own errors into OutOfMemory: segmenting does not.
            done = fits(partial(self._train_and_score, choice, left_out))
        except (OutOfMemory, TrainingFailed) as error:  # it says something about this method; the others go on
            search.failed[choice.label] = error.message
            return None
        if done is None:
            search.failed[choice.label] = "The memory does not suffice."
            return None
        if done[0] is None:
            return None
        adapted, value = done[0]
        search.scores.setdefault(choice.label, {})[left_out] = round(value, 4)
        self.kept[choice.label], self.choices[choice.label] = adapted, choice
        scans = len(without_patient_of(self.loaded, left_out))
        search.spent = self.seconds() if search.minutes is not None else search.spent + search.epochs * scans
        write_search(self.path, search)
        return search.scores[choice.label][left_out]

    def _train_and_score(self, choice: Choice, left_out: int) -> tuple[Adapted, float] | None:
        """An adapter of other patients' scans, on the CPU, and its mean Dice on those of the left-out scan's patient.

        None where it was cut short.
        """
        search = self.search
        others = without_patient_of(self.loaded, left_out)
        setting = replace(with_choice(self.setting, choice), epochs=search.epochs, budget_minutes=search.minutes)
        adapted = train_adapter(setting, others, self.quiet)
        if self.reporter.stop_keep() and search.scores:
            return None
        own = same_patient(patients_of(self.loaded), left_out)
        scored = {n: names for n in own if (names := _scored(self.loaded, n, self.setting))}
        value = statistics.fmean(self._dice(adapted, n, names) for n, names in scored.items())
        adapted.attached.network.to("cpu")
        return adapted, value

    def _dice(self, adapted: Adapted, number: int, names: list[str]) -> float:
        """Mean Dice of these structures on one scan."""
        scan = self.loaded[number]
        masks = predict_masks(adapted, scan, self.quiet)
        return statistics.fmean(float(dice(masks[name], scan.masks[name])) for name in names)

    def forget_but(self, choices: Sequence[Choice]) -> None:
        """Let go of the adapters of all other choices, where there are any of these."""
        found = {choice.label: self.kept[choice.label] for choice in choices if choice.label in self.kept}
        self.kept = found or self.kept

    def best_at_hand(self, choice: Choice) -> Choice:
        """The choice where one of its adapters is at hand, else the best of those that are, by scans that all were tried on.

        A job that was stopped after it had gone on has the scores of before, but no adapters.
        """
        if choice.label in self.kept or not self.kept:
            return choice
        scans = set.intersection(*(set(self.search.scores[label]) for label in self.kept))
        label = max(self.kept, key=lambda label: mean_dice(self.search, self.choices[label], sorted(scans)))
        self.search.why.append(f"{label} is used: of {choice.label} no adapter is left from before the job went on.")
        return self.choices[label]

    def _report(self, choice: Choice, left_out: int) -> None:
        search, eta = self.search, None
        if search.minutes is not None:
            eta = max(search.limit - search.spent, 0.0) + 60 * _minutes(self.setting) * (
                1 - _search_share(self.setting)
            )
        total = round(search.limit)
        done = min(round(search.spent), total)
        self.reporter.progress("choose", done, total, eta, trying=choice.label, without=left_out + 1)


def _quiet(reporter: Reporter) -> Reporter:
    """A reporter for what happens inside a trial: it can be cancelled, but tells nothing and keeps no checkpoint."""
    quiet = reporter.without("progress", "warning", "log")
    quiet.checkpoint = quiet.result_dir = None
    return quiet
