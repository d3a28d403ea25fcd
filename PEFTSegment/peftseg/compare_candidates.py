"""The candidates of a comparison, from names, options and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftseg.adapters.table import METHODS, check_options
from peftseg.compare import ZERO_SHOT, Candidate, checked_options
from peftseg.compare_tables import RANK_MARK
from peftseg.errors import BadInput, unknown_name

ALL, SCRATCH = "all", "scratch"
# Chosen on support folds, as for the table in Docs/results.md: random weights need larger steps.
SCRATCH_RATES = {"lr_body": 3e-3, "lr_decoder": 3e-3, "lr_head": 3e-3}


def make_candidates(
    names: Sequence[str], options: Mapping[str, Any] | None = None, ranks: Sequence[int] = ()
) -> tuple[Candidate, ...]:
    """Candidates by method names, each with its own options; methods with a rank once more at each of `ranks`.

    Parameters
    ----------
    names : sequence of str
        Names of the method table, "all" for all of these, "scratch": the same network from random weights, and
        "zero-shot": the model as it is.
    options : mapping
        "method.key" -> value.
    ranks : sequence of int
        Initial ranks to try beside the one of the options.

    Raises
    ------
    BadInput
        For unknown methods and options (all valid ones are listed), wrong values, and ranks where no method has one.
    """
    chosen = list(dict.fromkeys(m for name in names for m in (METHODS if name == ALL else [name])))
    for name in chosen:
        if name not in METHODS and name not in (SCRATCH, ZERO_SHOT):
            raise unknown_name("method", name, [*METHODS, SCRATCH, ZERO_SHOT, ALL])
    given = _by_method(options or {}, chosen)
    plain = [
        Candidate(SCRATCH, "full", SCRATCH_RATES | given[name], scratch=True)
        if name == SCRATCH
        else Candidate(name, name, given[name])
        for name in chosen
    ]
    for candidate in plain:
        checked_options(candidate)
    trained = [c for c in plain if c.method != ZERO_SHOT]
    ranked = [c for c in trained if any(o.name == "rank" for o in METHODS[c.method].options)]
    if ranks and not ranked:
        able = [name for name, method in METHODS.items() if any(o.name == "rank" for o in method.options)]
        raise BadInput(
            f"None of {', '.join(chosen)} has a rank.", f"Add one of {', '.join(able)}, or leave out --ranks."
        )
    return (*plain, *(c for candidate in ranked for c in _at_ranks(candidate, ranks)))


def _by_method(options: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for key, value in options.items():
        method, dot, option = key.partition(".")
        if not dot or not option:
            raise BadInput(f"--option {key} is not method.key=value.", "Write for example --option lora.rank=8.")
        if method not in found:
            raise unknown_name("method in --option", method, chosen)
        found[method][option] = value
    return found


def _at_ranks(candidate: Candidate, ranks: Sequence[int]) -> Iterator[Candidate]:
    """The candidate at each rank that it has not got already."""
    own = check_options(candidate.method, candidate.options)
    for rank in dict.fromkeys(ranks):
        # AdaLoRA's rank is where it ends: it cannot end above where it starts.
        initial = {"start_rank": rank, "rank": min(own["rank"], rank)} if "start_rank" in own else {"rank": rank}
        options = candidate.options | initial
        if check_options(candidate.method, options) != own:
            yield replace(candidate, label=f"{candidate.label}{RANK_MARK}{rank}", options=options)
