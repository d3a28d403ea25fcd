"""The comparison of all methods on real data: rates from support folds, then test scans, scored once.

    python Testing/bench/experiment.py rates     # learning rates of every method, by one rule, from support scans only
    python Testing/bench/experiment.py test      # all methods at 5 shots, five of them at 1, 3 and 10; then `auto`
    python Testing/bench/experiment.py table     # the tables of Docs/results.md, from the committed rows

Base: `brain-t1`. Tasks: `ixi` (hippocampus, amygdala, 3rd and 4th ventricle are novel to the base; thalamus and putamen are
not) and `msd` (anterior and posterior hippocampus, novel). Each draw is another support set and seed, the same for all
methods. Every training takes as many optimiser steps, however many shots it has. Resumable: runs that the CSV files hold
are not repeated. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from runs import Job, run_missing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "Docs" / "results"
SUPPORT_ROWS, TEST_ROWS = RESULTS / "methods_support.csv", RESULTS / "methods_test.csv"
REFERENCE_ROWS = RESULTS / "methods_references.csv"
RATES = ROOT / "Testing" / "bench" / "rates.json"
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


def tasks(data: Path, with_test: bool) -> list:
    """The tasks; without test scans the undrawn support scans are scored."""
    from peftseg.compare import Task
    from peftseg.models import Structure
    from peftseg.study import read_support_folder

    found = []
    for name, (folder, values) in TASKS.items():
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


def at_factor(candidate: object, factor: float) -> object:
    """The candidate with all of its learning rates multiplied."""
    from peftseg.adapters import check_options

    if factor == 1.0:
        return candidate
    options = check_options(candidate.method, candidate.options)
    rates = {key: float(f"{value * factor:.2g}") for key, value in options.items() if key.startswith("lr_")}
    return replace(candidate, options=candidate.options | rates)


def job_of(task: object, candidate: object, shots: int, draw: int) -> Job:
    """A run of as many optimiser steps as all."""
    return task, candidate, shots, draw, max(1, round(STEPS / shots)), BASE


def fold_scores(label: str) -> dict[float, float]:
    """Factor -> mean Dice over both tasks on the left-out support scans; a task counts once, structures equally."""
    from peftseg.compare_rows import mean_of, over_structures, read_rows, score_table

    tables = score_table(over_structures(read_rows(SUPPORT_ROWS)))
    found = {}
    for factor in (*FACTORS, *FURTHER.values()):
        means = [mean_of(table) for (_, name, _), table in tables.items() if name == _at(label, factor)]
        if len(means) == len(TASKS):
            found[factor] = mean_of(means)
    return found


def search_rates(data: Path, workers: int) -> None:
    """The rule: all rates times 1, 3 and 1/3, and on beyond the best while it is the last on its side; the best is taken.

    One draw of five support scans a task, the other seven are scored. Where two tie, the factor tried first stays.
    """
    chosen = tasks(data, with_test=False)
    rows = candidates()
    asked = {c.label: list(FACTORS) for c in rows}
    while True:
        jobs = [
            job_of(task, replace(at_factor(c, f), label=_at(c.label, f)), SHOTS, 0)
            for f in (*FACTORS, *FURTHER.values())
            for c in rows
            if f in asked[c.label]
            for task in chosen
        ]
        run_missing(jobs, SUPPORT_ROWS, workers)
        best = {c.label: _best(fold_scores(c.label)) for c in rows}
        further = {label: FURTHER.get(factor) for label, factor in best.items()}
        if all(factor is None or factor in asked[label] for label, factor in further.items()):
            break
        for label, factor in further.items():
            asked[label] += [factor] if factor is not None and factor not in asked[label] else []
    write_rates(best)


def write_rates(best: dict[str, float]) -> None:
    """Keep the chosen factors and the options that they make, so that later changes of defaults change no candidate."""
    from peftseg.adapters import check_options

    chosen = {c.label: at_factor(c, best[c.label]) for c in candidates()}
    record = {label: {"factor": best[label], "options": _frozen(candidate)} for label, candidate in chosen.items()}
    record["auto"] = {"options": check_options("auto", {})}
    RATES.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _frozen(candidate: object) -> dict:
    from peftseg.adapters import check_options

    return check_options(candidate.method, candidate.options)


def _best(scores: dict[float, float]) -> float:
    return max(scores, key=scores.get)  # the first of equals


def _at(label: str, factor: float) -> str:
    return f"{label} x{factor:.2g}"


def tuned_candidates() -> list:
    """The candidates at the rates that the support folds chose."""
    chosen = json.loads(RATES.read_text(encoding="utf-8"))
    return [replace(c, options=chosen[c.label]["options"]) for c in candidates() if c.label in chosen]


def score_test(data: Path, workers: int, draws: int) -> None:
    """All methods at five shots, the telling ones at the other sizes, and `auto`, which searches beside its last training.

    Draws are outermost, so that an early end is fair.
    """
    from peftseg.adapters import AUTO
    from peftseg.compare import Candidate

    chosen, rows = tasks(data, with_test=True), tuned_candidates()
    telling = [c for c in rows if c.label in TELLING]
    jobs = [job_of(t, c, SHOTS, d) for d in range(draws) for t in chosen for c in rows]
    jobs += [job_of(t, c, k, d) for d in range(draws) for k in OTHER_SHOTS for t in chosen for c in telling]
    auto = Candidate(AUTO, AUTO, json.loads(RATES.read_text(encoding="utf-8"))[AUTO]["options"])
    jobs += [job_of(t, auto, SHOTS, d) for d in range(draws) for t in chosen]
    run_missing(jobs, TEST_ROWS, workers)


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("rates", "test", "table"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.stage == "rates":
        search_rates(arguments.data, arguments.workers)
    elif arguments.stage == "test":
        score_test(arguments.data, arguments.workers, arguments.draws)
    else:
        from experiment_tables import print_tables

        print_tables(SUPPORT_ROWS, TEST_ROWS, REFERENCE_ROWS, RATES, BASE_STRUCTURES, SHOTS)


if __name__ == "__main__":
    main()
