"""The real-data comparison: rates chosen on support folds (`--stage choose`), test scans scored once (`--stage test`).

    python Testing/bench/real_data.py --stage choose --out Docs/results/support_folds.csv
    python Testing/bench/real_data.py --stage test --out Docs/results/few_shot.csv
    python Testing/bench/real_data.py --stage table --out Docs/results/few_shot.csv --reference LoRA --reference scratch

Resumable: runs that the CSV file holds are not repeated. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from runs import run_missing

ROOT = Path(__file__).resolve().parents[2]
SHOTS = 5
DRAWS = 5
BASE = "brain-t1"

# Rates that the search covers, as multiples of the defaults in the method table.
FACTORS = (0.33, 1.0, 3.0)


def tasks(data: Path, with_test: bool) -> list:
    """The two tasks; without test scans the undrawn support scans are scored."""
    from peftseg.compare import Task
    from peftseg.models import Structure
    from peftseg.study import read_support_folder

    found = []
    for name, folder, structures in (
        ("ixi", "subcortical_ixi", (Structure("hippocampus", 1), Structure("amygdala", 6))),
        ("msd", "hippocampus_msd", (Structure("anterior hippocampus", 1), Structure("posterior hippocampus", 2))),
    ):
        test = read_support_folder(data / folder / "test", structures) if with_test else ()
        found.append(Task(name, structures, read_support_folder(data / folder / "support", structures), test))
    return found


def candidates() -> list:
    """The rows of the table: defaults of the method table, and what the support folds chose beyond them."""
    from peftseg.compare import Candidate

    return [
        Candidate("scratch", "full", {"lr_body": 3e-3, "lr_decoder": 3e-3, "lr_head": 3e-3}, scratch=True),
        Candidate("linear probe", "linear_probe"),
        Candidate("decoder tuning", "decoder"),
        Candidate("full fine-tuning", "full"),
        Candidate("LoRA", "lora"),
        Candidate("ARENA paper", "arena", {"mode": "paper", "rank": 8, "lr_adapter": 3e-3}),
        Candidate("ARENA sora", "arena", {"mode": "sora", "rank": 8}),
        Candidate("ARENA importance", "arena", {"mode": "importance"}),
    ]


def grid(extra: Path | None) -> list:
    """Candidates of the search: every method at a third, one and three times its default rates, or those of a file."""
    from peftseg.adapters import check_options
    from peftseg.compare import Candidate

    if extra is not None:
        return [Candidate(**entry) for entry in json.loads(extra.read_text(encoding="utf-8"))]
    found = []
    for base in candidates():
        rates = {k: v for k, v in check_options(base.method, base.options).items() if k.startswith("lr_")}
        for factor in FACTORS:
            options = base.options | {k: v * factor for k, v in rates.items()}
            found.append(Candidate(f"{base.label} x{factor:g}", base.method, options, base.scratch))
    return found


def all_rows(path: Path, beside: Path | None) -> list[dict[str, str]]:
    """The rows of a file, and those of another one about the same structures and shots."""
    from peftseg.compare_rows import read_rows

    rows = read_rows(path)
    asked = {(row["task"], row["structure"], row["shots"]) for row in rows}
    others = read_rows(beside) if beside else []
    return [*rows, *(row for row in others if (row["task"], row["structure"], row["shots"]) in asked)]


def print_table(rows: list[dict[str, str]]) -> None:
    """Mean and 95 % interval by task, candidate and structure, as Markdown."""
    import numpy as np

    from peftseg.compare_rows import interval, score_table

    dice, surface = score_table(rows), score_table(rows, "surface_dice")
    facts = {(r["task"], r["candidate"]): r for r in rows}
    print("| task | method | draws | structure | Dice | 95 % interval | surface Dice 1 mm | trained | mean rank | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (task, candidate, structure), values in dice.items():
        low, high = interval(values)
        fact = facts[task, candidate]
        print(
            f"| {task} | {candidate} | {len(values)} | {structure} | {np.nanmean(values):.3f} | {low:.3f} to {high:.3f} "
            f"| {np.nanmean(surface[task, candidate, structure]):.3f} | {int(fact['trained']):,} | {fact['rank']} "
            f"| {fact['seconds']} |"
        )


def print_differences(rows: list[dict[str, str]], reference: str) -> None:
    """Differences to a reference by task and over all, as Markdown; the verdict goes by the adjusted p-value."""
    from experiment_tables import compared
    from peftseg.compare_bootstrap import verdict
    from peftseg.compare_rows import over_structures
    from peftseg.compare_tables import p_in_words

    whole = over_structures(rows)
    print(f"\n| Dice minus that of {reference} | task | runs | mean | 95 % interval | p, adjusted | |")
    print("|---|---|---|---|---|---|---|")
    for task in (*dict.fromkeys(row["task"] for row in rows), None):
        for label, (found, p) in compared(whole, reference, task).items():
            print(
                f"| {label} | {task or 'all'} | {found.runs} | {found.mean:+.3f} | {found.low:+.3f} to {found.high:+.3f} "
                f"| {p_in_words(p)} | {verdict(found.mean, p)} |"
            )


def print_all(path: Path, references: list[str], beside: Path | None) -> None:
    """The table, and the differences to each reference."""
    rows = all_rows(path, beside)
    print_table(rows)
    for reference in references:
        print_differences(rows, reference)


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("choose", "test", "table"), required=True)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--task", default="")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--reference", action="append", default=[], help="print differences to this candidate too")
    parser.add_argument("--beside", type=Path, help="rows of other candidates on the same scans, for the tables")
    parser.add_argument("--grid", type=Path, default=None, help="JSON list of candidates instead of the built-in grid")
    arguments = parser.parse_args()
    if arguments.stage == "table":
        print_all(arguments.out, arguments.reference, arguments.beside)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    testing = arguments.stage == "test"
    chosen = [t for t in tasks(arguments.data, testing) if arguments.task in ("", t.name)]
    rows = candidates() if testing else grid(arguments.grid)
    draws = range(arguments.first_draw, arguments.first_draw + arguments.draws)
    jobs = [(t, c, SHOTS, d, arguments.epochs, arguments.base) for d in draws for t in chosen for c in rows]
    run_missing(jobs, arguments.out, arguments.workers)
    print_all(arguments.out, arguments.reference, arguments.beside)


if __name__ == "__main__":
    main()
