"""The comparison of all methods on real data: rates from support folds, then test scans, scored once.

    python Testing/bench/experiment.py rates     # learning rates of every method, by one rule, from support scans only
    python Testing/bench/experiment.py test      # all methods and `auto` at 5 shots; five of them at 1, 3 and 10
    python Testing/bench/experiment.py table     # the tables of Docs/results/methods.md

Base: `brain-t1`. Tasks: `ixi` (hippocampus, amygdala, 3rd and 4th ventricle are novel to the base; thalamus and putamen are
not) and `msd` (anterior and posterior hippocampus, novel). Each draw is another support set and seed, the same for all
methods. Every training takes as many optimiser steps, however many shots it has. Resumable: runs that the CSV files hold
are not repeated. Needs the real volumes (`--data`, default `../shared/data`).

In both tasks structures are novel, so that the decoder trains beside every adapter. With `--tasks ixi-base` each stage is
about thalamus and putamen alone: the decoder then stays frozen, and the base as it is ("zero-shot") is a row. That has
rows, rates and tables of its own and a few methods (`FROZEN_DECODER.labels`).

`rates` keeps the rates that it multiplied beside each factor: defaults of the method table may change after it, as they did
for spatial_adapter and selective. Once there, `rates.json` is only replaced with `--overwrite`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runs import Job, run_missing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "Docs" / "results"
SUPPORT_ROWS, TEST_ROWS = RESULTS / "methods_support.csv", RESULTS / "methods_test.csv"
REFERENCE_ROWS = RESULTS / "methods_references.csv"
BENCH = ROOT / "Testing" / "bench"
RATES = BENCH / "rates.json"
BASE = "brain-t1"
SHOTS, DRAWS = 5, 5
OTHER_SHOTS = (1, 3, 10)
STEPS = 200  # optimiser steps of a training, one a scan and epoch; for rates and test scans alike
FACTORS = (1.0, 3.0, 1 / 3)  # of all of a method's rates together
FURTHER = {3.0: 10.0, 10.0: 30.0, 1 / 3: 0.1, 0.1: 1 / 30}  # tried when the best so far is the last on its side
TELLING = ("lora", "arena", "conv_adapter", "full", "scratch")  # at 1, 3 and 10 shots, too
TASKS = {
    "ixi": (
        "subcortical_ixi",
        {"hippocampus": 1, "amygdala": 6, "3rd ventricle": 9, "4th ventricle": 10, "thalamus": 2, "putamen": 4},
    ),
    "msd": ("hippocampus_msd", {"anterior hippocampus": 1, "posterior hippocampus": 2}),
}
BASE_STRUCTURES = ("thalamus", "putamen")


@dataclass(frozen=True)
class Regime:
    """One experiment: its tasks, its files, and the labels of its candidates (none: all)."""

    tasks: Mapping[str, tuple[str, dict[str, int]]]
    support_rows: Path
    test_rows: Path
    rates: Path
    labels: tuple[str, ...] = ()


NOVEL = Regime(TASKS, SUPPORT_ROWS, TEST_ROWS, RATES)
FROZEN_DECODER = Regime(
    {"ixi-base": ("subcortical_ixi", {"thalamus": 2, "putamen": 4})},
    RESULTS / "methods_base_support.csv",
    RESULTS / "methods_base_test.csv",
    BENCH / "rates_base.json",
    ("lora", "arena", "conv_adapter", "full", "bitfit", "affine"),  # affine: the normalisation
)
REGIMES = {"novel": NOVEL, "ixi-base": FROZEN_DECODER}


def tasks(data: Path, with_test: bool, wanted: Mapping[str, tuple[str, dict[str, int]]] = TASKS) -> list:
    """The tasks; without test scans the undrawn support scans are scored."""
    from peftseg.compare import Task
    from peftseg.models import Structure
    from peftseg.study import read_support_folder

    found = []
    for name, (folder, values) in wanted.items():
        structures = tuple(Structure(structure, value) for structure, value in values.items())
        test = read_support_folder(data / folder / "test", structures) if with_test else ()
        found.append(Task(name, structures, read_support_folder(data / folder / "support", structures), test))
    return found


def candidates() -> list:
    """Every method of the table that fits a convolutional network, ARENA's other modes, and training from scratch."""
    from peftseg.adapters.table import AUTO, METHODS
    from peftseg.compare import Candidate
    from peftseg.compare_candidates import SCRATCH, make_candidates

    names = [name for name in METHODS if name not in ("adaptformer", AUTO)]  # the base has no transformer blocks
    modes = [Candidate(f"arena {mode}", "arena", {"mode": mode}) for mode in ("sora", "paper")]
    return [*make_candidates([*names, SCRATCH]), *modes]


def base_candidates(regime: Regime = NOVEL) -> list:
    """The regime's candidates at the rates that its factors multiply.

    Where a search has frozen them: its options and base rates. Else the method table's.
    """
    frozen = _record(regime)
    chosen = [c for c in candidates() if not regime.labels or c.label in regime.labels]
    return [
        replace(c, options=frozen[c.label]["options"] | frozen[c.label]["base_rates"]) if c.label in frozen else c
        for c in chosen
    ]


def _record(regime: Regime) -> dict:
    """What the search has frozen, label -> "factor", "base_rates" and "options"; of `auto` options only."""
    return json.loads(regime.rates.read_text(encoding="utf-8")) if regime.rates.is_file() else {}


def at_factor(candidate: object, factor: float) -> object:
    """The candidate with all of its learning rates multiplied: those of its options, else those of the method table."""
    if factor == 1.0:
        return candidate
    return replace(candidate, options=candidate.options | _rates(candidate, factor))


def _rates(candidate: object, factor: float) -> dict[str, float]:
    from peftseg.adapters import check_options

    options = check_options(candidate.method, candidate.options)
    # A rate that came to the method after its options were frozen is not part of the search.
    known = [
        key for key in options if key.startswith("lr_") and (key in candidate.options or not _is_frozen(candidate))
    ]
    return {key: float(f"{options[key] * factor:.2g}") for key in known}


def _is_frozen(candidate: object) -> bool:
    """Whether the candidate's options name rates."""
    return any(key.startswith("lr_") for key in candidate.options)


def job_of(task: object, candidate: object, shots: int, draw: int, steps: int = STEPS, base: str = BASE) -> Job:
    """A run of as many optimiser steps as all, or of others; on the same base, or another one."""
    return task, candidate, shots, draw, max(1, round(steps / shots)), base


def fold_scores(label: str, regime: Regime = NOVEL) -> dict[float, float]:
    """Factor -> mean Dice over all tasks on the left-out support scans; a task counts once, structures equally."""
    from peftseg.compare_rows import mean_of, over_structures, read_rows, score_table

    tables = score_table(over_structures(read_rows(regime.support_rows)))
    found = {}
    for factor in (*FACTORS, *FURTHER.values()):
        means = [mean_of(table) for (_, name, _), table in tables.items() if name == _at(label, factor)]
        if len(means) == len(regime.tasks):
            found[factor] = mean_of(means)
    return found


def search_rates(data: Path, workers: int, regime: Regime, overwrite: bool) -> None:
    """The rule: all rates times 1, 3 and 1/3, and on beyond the best while it is the last on its side; the best is taken.

    One draw of five support scans a task, the other seven are scored. Where two tie, the factor tried first stays. The
    search ends at factors 30 and 1/30.
    """
    chosen = tasks(data, with_test=False, wanted=regime.tasks)
    rows = base_candidates(regime)
    asked = {c.label: list(FACTORS) for c in rows}
    while True:
        jobs = [
            job_of(task, replace(at_factor(c, f), label=_at(c.label, f)), SHOTS, 0)
            for f in (*FACTORS, *FURTHER.values())
            for c in rows
            if f in asked[c.label]
            for task in chosen
        ]
        run_missing(jobs, regime.support_rows, workers)
        best = {c.label: _best(fold_scores(c.label, regime)) for c in rows}
        further = {label: FURTHER.get(factor) for label, factor in best.items()}
        if all(factor is None or factor in asked[label] for label, factor in further.items()):
            break
        for label, factor in further.items():
            asked[label] += [factor] if factor is not None and factor not in asked[label] else []
    write_rates(best, regime, overwrite)


def write_rates(best: dict[str, float], regime: Regime = NOVEL, overwrite: bool = False) -> None:
    """Keep the chosen factors, the rates that they multiply, and the options that they make.

    Later changes of defaults then change no candidate. What is frozen with the same factor stays as it is.

    Raises
    ------
    BadInput
        When the file is there with other content and `overwrite` is not given.
    """
    from peftseg.adapters import check_options
    from peftseg.errors import BadInput

    old = _record(regime)
    record = {}
    for candidate in base_candidates(regime):
        label = candidate.label
        if label in old and old[label]["factor"] == best[label]:
            record[label] = old[label]
            continue
        chosen = at_factor(candidate, best[label])
        options = chosen.options if label in old else check_options(chosen.method, chosen.options)
        record[label] = {"factor": best[label], "base_rates": _rates(candidate, 1.0), "options": options}
    if not regime.labels:
        record["auto"] = old.get("auto", {"options": check_options("auto", {})})
    differing = [label for label in old | record if old.get(label) != record.get(label)]
    if old and differing and not overwrite:
        raise BadInput(
            f"{regime.rates} holds other rates of {', '.join(differing)} than this search found.",
            "Test scans were scored with what it holds. Give --overwrite only if no test row is to be kept.",
        )
    regime.rates.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _best(scores: dict[float, float]) -> float:
    return max(scores, key=scores.get)  # the first of equals


def _at(label: str, factor: float) -> str:
    return f"{label} x{factor:.2g}"


def tuned_candidates(regime: Regime = NOVEL) -> list:
    """The candidates at the rates that the support folds chose."""
    chosen = _record(regime)
    return [replace(c, options=chosen[c.label]["options"]) for c in candidates() if c.label in chosen]


def score_test(data: Path, workers: int, draws: int) -> None:
    """All methods at five shots, `auto`, which searches beside its last training, and the telling ones at the other sizes.

    Draws are outermost, so that an early end is fair.
    """
    from peftseg.adapters import AUTO
    from peftseg.compare import Candidate

    chosen, rows = tasks(data, with_test=True), tuned_candidates()
    telling = [c for c in rows if c.label in TELLING]
    jobs = [job_of(t, c, SHOTS, d) for d in range(draws) for t in chosen for c in rows]
    auto = Candidate(AUTO, AUTO, _record(NOVEL)[AUTO]["options"])
    jobs += [job_of(t, auto, SHOTS, d) for d in range(draws) for t in chosen]
    jobs += [job_of(t, c, k, d) for d in range(draws) for k in OTHER_SHOTS for t in chosen for c in telling]
    run_missing(jobs, TEST_ROWS, workers)


def score_base_structures(data: Path, workers: int, draws: int) -> None:
    """The few methods with a frozen decoder, and the base as it is, which is the same in every draw."""
    from peftseg.compare import ZERO_SHOT, Candidate

    regime = FROZEN_DECODER
    rows = [*tuned_candidates(regime), Candidate(ZERO_SHOT, ZERO_SHOT)]
    chosen = tasks(data, with_test=True, wanted=regime.tasks)
    run_missing([job_of(t, c, SHOTS, d) for d in range(draws) for t in chosen for c in rows], regime.test_rows, workers)


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("rates", "test", "table"))
    parser.add_argument(
        "--tasks", choices=tuple(REGIMES), default="novel", help="ixi-base: structures that the base knows"
    )
    parser.add_argument("--overwrite", action="store_true", help="rates: replace a file of rates that differs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    regime = REGIMES[arguments.tasks]
    if arguments.stage == "table":
        from experiment_tables import print_tables

        beside = REFERENCE_ROWS if regime is NOVEL else None
        print_tables(regime.support_rows, regime.test_rows, beside, regime.rates, BASE_STRUCTURES, SHOTS)
        return
    from peftseg.errors import BadInput

    try:
        if arguments.stage == "rates":
            search_rates(arguments.data, arguments.workers, regime, arguments.overwrite)
        elif regime is NOVEL:
            score_test(arguments.data, arguments.workers, arguments.draws)
        else:
            score_base_structures(arguments.data, arguments.workers, arguments.draws)
    except BadInput as error:
        parser.exit(2, f"{error.message} {error.remedy}\n")


if __name__ == "__main__":
    main()
