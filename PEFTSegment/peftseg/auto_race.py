"""The race of the method `auto`: who may run, who stays after each left-out scan, which changes of the winner are taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import nn

from peftseg.adapter_training import Setting, starting_network
from peftseg.adapters import attach
from peftseg.auto_choices import Choice, listed, starters, variations
from peftseg.auto_search import Search, difference, mean_dice, score_words, tried_words
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.networks import Anatomy

BEHIND = (0.05, 0.02, 0.01)  # Dice behind the best at which a method drops out, after 1, 2, and more scans
MOST_FOLDS = 3  # scans that are left out in the race
SURE = 2.0  # standard errors by which the first method, or what is best so far, has to be beaten
MOST_VARIED_FOLDS = 3  # scans on which a variation of the winner is tried
MOST_OWN = 5_000_000  # values of a method's own: with more, its adapter files are no longer small beside the others'


class Trials(Protocol):
    """What a race needs of what runs its trials (`auto.Trial`)."""

    setting: Setting
    search: Search
    reporter: Reporter

    def score(self, choice: Choice, left_out: int) -> float | None:
        """Mean Dice on the left-out scan; None where the choice cannot be trained."""
        ...

    def forget_but(self, choices: Sequence[Choice]) -> None:
        """Let go of all other choices' adapters."""
        ...


def fitting_choices(setting: Setting, network: nn.Module, anatomy: Anatomy) -> tuple[list[Choice], list[str]]:
    """What `auto` may try on a network, the one rule for whoever asks whether it can be used.

    Only what a method trains beside the others counts as its size: the head and, for a novel structure, the decoder train
    with every method. The first that fits is never too large: something has to be tried.

    Parameters
    ----------
    setting : Setting
        Its method's options are those of `auto`, all of them.
    network, anatomy : nn.Module, Anatomy
        From `starting_network`; they stay as they are.

    Returns
    -------
    choices : list of Choice
        In the order of the option `methods`; empty where none can be attached.
    misfits : list of str
        A sentence for each of the others.

    Raises
    ------
    BadInput
        The option `methods` names what is no method.
    """
    fitting: list[Choice] = []
    misfits: list[str] = []
    for choice in starters(setting.options["methods"]):
        try:
            _, own = values_trained(choice, network, anatomy, setting)
        except BadInput as error:
            misfits.append(f"{choice.label} is not tried: {error.message}")
            continue
        if fitting and own > MOST_OWN:
            misfits.append(
                f"{choice.label} is not tried: it trains {own:,} values beside those that all train, more than {MOST_OWN:,}."
            )
            continue
        fitting.append(choice)
    return fitting, misfits


def race(choices: list[Choice], folds: list[int], trial: Trials) -> Choice:
    """The best of the choices by the scans that all who are left were tried on."""
    search = trial.search
    first, alive = choices[0], list(choices)
    done: list[int] = []
    for fold in folds[:MOST_FOLDS]:
        if len(alive) < 2 or not search.affords(len(alive)):
            break
        scored = [choice for choice in alive if trial.score(choice, fold) is not None]
        if trial.reporter.stop_keep():
            return _best_so_far(choices, alive, done or [fold], search)
        done.append(fold)
        alive = _still_close(scored, first, done, search)
        trial.forget_but(alive)
    if not done or not alive:
        search.why.append(f"{first.label} is used: no method could be trained and scored on a left-out {search.unit}.")
        return first
    best = max(alive, key=lambda c: mean_dice(search, c, done))
    search.why.insert(0, tried_words(choices, search, len(done)))
    if best == first or first not in alive:
        search.why.append(f"{best.label} is best: {score_words(search, best, done)}.")
        return best
    gain, noise = difference(search, best, first, done)
    on = f"{len(done)} {search.unit}(s)"
    words = f"{best.label} against {first.label}: {gain:+.3f} Dice on {on}, which varies by {noise:.3f}"
    chosen = best if gain > SURE * noise else first
    search.why.append(f"{words}: {chosen.label} is used.")
    return chosen


def _best_so_far(choices: list[Choice], alive: list[Choice], scans: list[int], search: Search) -> Choice:
    """The best of those that were tried on all of these scans, where the user stops the race."""
    complete = [c for c in alive if set(scans) <= set(search.scores.get(c.label, {})) and c.label not in search.failed]
    if not complete:
        return choices[0]
    best = max(complete, key=lambda c: mean_dice(search, c, scans))
    words = f"of {listed([c.label for c in complete])}, {best.label} is best"
    search.why.append(f"The search was stopped: {words}, {score_words(search, best, scans)}.")
    return best


def _still_close(alive: list[Choice], first: Choice, done: list[int], search: Search) -> list[Choice]:
    """Who goes on after these scans; the first of the list, with which the best is compared, unless it is far behind."""
    if not alive:
        return []
    means = {choice: mean_dice(search, choice, done) for choice in alive}
    most = BEHIND[min(len(done), len(BEHIND)) - 1]
    behinds = {choice: max(means.values()) - mean for choice, mean in means.items()}
    close = [choice for choice, behind in behinds.items() if behind <= (BEHIND[0] if choice == first else most)]
    for choice, behind in behinds.items():
        if choice not in close:
            after = f"{len(done)} {search.unit}(s)"
            search.why.append(f"{choice.label} drops out after {after}, {behind:.3f} Dice behind the best.")
    return close


def refine(best: Choice, folds: list[int], trial: Trials) -> Choice:
    """Vary the winner's rates, rank and layers one at a time, and keep what helps by more than it varies."""
    search = trial.search
    done = [fold for fold in folds if fold in search.scores.get(best.label, {})][:MOST_VARIED_FOLDS]
    if len(done) < 2:
        return best
    for varied in _worth_trying(best, trial.setting):
        if trial.reporter.stop_keep():
            break
        if not search.affords(2):
            search.why.append(
                f"{varied.label}, and what else could be varied, was not tried: the time did not suffice."
            )
            break
        used = _scans_of_variation(varied, best, done, trial)
        if _is_taken(varied, best, used, search):
            best = varied
        trial.forget_but([best])
    return best


def _scans_of_variation(varied: Choice, best: Choice, done: list[int], trial: Trials) -> list[int]:
    """The scans on which a variation was tried: no more once it is not ahead, or the time is used."""
    used: list[int] = []
    for fold in done:
        if trial.score(varied, fold) is None:
            break
        used.append(fold)
        gain, _ = difference(trial.search, varied, best, used)
        if gain <= 0 or not trial.search.affords(1):
            break
    return used


def _is_taken(varied: Choice, best: Choice, used: list[int], search: Search) -> bool:
    """Whether a variation takes the best one's place, with the reason; one that could not be trained is named elsewhere."""
    if not used:
        return False
    gain, noise = difference(search, varied, best, used)
    if len(used) == 1:
        why = "no better than without" if gain <= 0 else "which is too little to tell"
        search.why.append(f"{varied.label}: {gain:+.3f} Dice on one {search.unit}, {why}: not taken.")
        return False
    words = f"{varied.label}: {gain:+.3f} Dice on {len(used)} {search.unit}s, which varies by {noise:.3f}"
    taken = gain > SURE * noise
    search.why.append(f"{words}: {'taken' if taken else 'not taken'}.")
    return taken


def _worth_trying(best: Choice, setting: Setting) -> Iterator[Choice]:
    """Variations that change what is trained, or how."""
    network, anatomy, _ = starting_network(setting)
    before, own_before = values_trained(best, network, anatomy, setting)
    for varied in variations(best):
        try:
            size, own = values_trained(varied, network, anatomy, setting)
        except BadInput:  # a rank that goes with no other option, or layers that the model has not
            continue
        if own <= max(MOST_OWN, own_before) and (size != before or "rates" in varied.changes[-1]):
            yield varied


def values_trained(choice: Choice, network: nn.Module, anatomy: Anatomy, setting: Setting) -> tuple[int, int]:
    """How many values a choice trains, and how many of them are its own: not those that train with every method."""
    attached = attach(copy.deepcopy(network), anatomy, choice.method, dict(choice.options), setting.train_decoder)
    trained = {kind: sum(p.numel() for p in found) for kind, found in attached.parameters_by_kind().items()}
    total = sum(trained.values())
    return total, total - trained["head"] - (trained["decoder"] if setting.train_decoder else 0)
