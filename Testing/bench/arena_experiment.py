"""What could make ARENA lead LoRA: rates, initial rank, gate and first gates, on support folds only.

    python Testing/bench/arena_experiment.py run
    python Testing/bench/arena_experiment.py table
    python Testing/bench/make_models.py brain-t1-swin --epochs 60 --out ../brain-t1-swin
    python Testing/bench/arena_experiment.py run --swin ../brain-t1-swin
    python Testing/bench/arena_experiment.py table --swin

Base, tasks, draws and steps are those of `experiment.py`; each row changes one thing of LoRA or ARENA at the options in
`rates.json`. The support scans that were not drawn are scored; test scans are not touched. The rates times 0.1 are a question
of their own: the baselines' published code learns ten times slower once the decoder is trained, for all but full fine-tuning,
while ARENA's paper names one rate, so that its lead on novel structures may be one of rates. As to layers: with a decoder that
is trained as it is, "all" are those of the encoder; the subset is its two deepest stages, nearest to where ARENA's paper
adapts (the attention of a transformer's stages, which this base has not).

`--swin` is about that place: the same comparison on a base with attention, in which LoRA adapts queries, keys and values,
and ARENA keys and values, as published. Rates of `rates.json` were found on `brain-t1`; larger ones are rows of their own.
Resumable. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiment import BASE, BASE_STRUCTURES, RATES, RESULTS, ROOT, SHOTS, STEPS, at_factor, job_of, tasks
from experiment_tables import compared, paired_cell
from runs import run_missing

ROWS, SWIN_ROWS = RESULTS / "arena_support.csv", RESULTS / "arena_swin_support.csv"
REFERENCE = "lora"
SLOW, FAST = 0.1, 3.0
LONG_STEPS = 1000  # 200 epochs of five scans, as published
# ARENA's paper names one rate; the baselines' code learns ten times slower once the decoder trains: both methods at both.
LONG = ("arena", "lora, rates x 0.1", "lora", "arena, rates x 0.1")
RANKS = (8, 32, 64)  # ARENA's Fig. 1(a); the candidates as they are have 16
DEEPEST = r"down_layers\.[12]\..*"  # of the three stages of the encoder of `brain-t1`
CHANGES: dict[str, tuple[str, dict]] = {
    **{f"{method}, rank {rank}": (method, {"rank": rank}) for rank in RANKS for method in ("lora", "arena")},
    "arena, gates never shrunk": ("arena", {"lam": 0.0}),
    "arena, lambda 0.2": ("arena", {"lam": 0.2}),
    "arena, gates drawn from -1 to 1": ("arena", {"v_init": "uniform"}),
    **{f"{method}, two deepest stages": (method, {"layers": DEEPEST}) for method in ("lora", "arena")},
}


def _tuned(*labels: str) -> dict:
    """Label -> candidate at the options of `rates.json`."""
    from peftseg.compare import Candidate

    chosen = json.loads(RATES.read_text(encoding="utf-8"))
    return {label: Candidate(label, label.split()[0], chosen[label]["options"]) for label in labels}


def _at_rates(plain: dict, *factors: float) -> list:
    return [
        replace(at_factor(candidate, factor), label=f"{label}, rates x {factor:g}")
        for factor in factors
        for label, candidate in plain.items()
    ]


def candidates() -> list:
    """LoRA and ARENA as they are, at other rates, and with one option changed."""
    plain = _tuned("lora", "arena", "arena paper")
    rates = _at_rates(plain, SLOW, FAST)
    changed = [
        replace(plain[base], label=label, options=plain[base].options | options)
        for label, (base, options) in CHANGES.items()
    ]
    return [*plain.values(), *rates, *changed]


def long_candidates() -> list:
    """Those that are trained for `LONG_STEPS`, too."""
    return [replace(c, label=f"{c.label}, {LONG_STEPS} steps") for c in candidates() if c.label in LONG]


def swin_candidates() -> list:
    """LoRA and ARENA in the attention, at two rates, and what there is without them."""
    plain = _tuned("lora", "arena", "arena paper")
    return [*plain.values(), *_tuned("full", "decoder").values(), *_at_rates(_tuned("lora", "arena"), FAST)]


def print_table(path: Path, listed: Sequence) -> None:
    """Mean Dice of novel structures by task, and the difference from LoRA as it is, as Markdown.

    A difference is over the draws that both have; with one draw there is no verdict.
    """
    from peftseg.compare_report import markdown
    from peftseg.compare_rows import mean_of, over_structures, read_rows, score_table

    rows = over_structures([row for row in read_rows(path) if row["structure"] not in BASE_STRUCTURES])
    names, tables = list(dict.fromkeys(row["task"] for row in rows)), score_table(rows)
    found = compared(rows, REFERENCE)
    body = []
    for label in (c.label for c in listed):
        own = [row for row in rows if row["candidate"] == label]
        if not own:
            continue
        each = [tables.get((task, label, "all")) for task in names]
        ranks = [float(row["rank"]) for row in own if row["rank"]]
        body.append(
            [
                label,
                str(len({row["draw"] for row in own})),
                *("" if table is None else f"{mean_of(table):.3f}" for table in each),
                paired_cell(*found.get(label, (None,))),
                f"{mean_of(ranks):.1f}" if ranks else "",
            ]
        )
    print(markdown(["novel structures", "draws", *names, f"minus {REFERENCE}, mean of the tasks", "mean rank"], body))


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument(
        "--swin", metavar="MODELDIR", nargs="?", const="", help="a base with attention (run: its folder)"
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.swin is None:
        path, base, by_steps = ROWS, BASE, {STEPS: candidates(), LONG_STEPS: long_candidates()}
    else:
        path, base, by_steps = SWIN_ROWS, arguments.swin, {STEPS: swin_candidates()}
    if arguments.stage == "table":
        print_table(path, [c for listed in by_steps.values() for c in listed])
        return
    if not base:
        parser.error("run needs the folder of the base: --swin MODELDIR")
    os.environ["OMP_NUM_THREADS"] = "1"
    chosen = tasks(arguments.data, with_test=False)
    jobs = [
        job_of(t, c, SHOTS, d, steps, base)
        for steps, listed in by_steps.items()
        for d in range(arguments.draws)
        for t in chosen
        for c in listed
    ]
    run_missing(jobs, path, arguments.workers)


if __name__ == "__main__":
    main()
