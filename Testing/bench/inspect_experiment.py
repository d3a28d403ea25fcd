"""Which layers to adapt on real data: those that fail by ProtoSeg, against the encoder's and all.

    python Testing/bench/inspect_experiment.py run [--on support|test] [--draws 5]   # trains what the CSV file lacks
    python Testing/bench/inspect_experiment.py table                                 # Markdown, from the rows

LoRA at 5 shots on `brain-t1`, with the rates of `rates.json` and 200 optimiser steps as in `experiment.py`. Two tasks on the
same scans: `known` (structures that the base segments; adapter and head train) and `novel` (those of the task `ixi` of
`experiment.py`; the decoder trains outright, so that "all" is the encoder, too, and is not run again). The layers "auto" of
LoRA are the encoder's in a network without attention. "random" is the control: as many layers as fail, drawn with the seed.

A decision between them is made on the support folds (`--on support`: the undrawn support scans are scored); test scans are
scored once, after it. "proto-seg" chooses its layers by the drawn scans alone, anew in each run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
from dataclasses import replace
from pathlib import Path

from experiment import BASE, RATES, RESULTS, ROOT, SHOTS, STEPS, TASKS
from runs import Job, run_missing

ROWS = {on: RESULTS / f"inspect_layers_{on}.csv" for on in ("support", "test")}
CHOICES = "inspect_layers_chosen.csv"  # beside the rows
METHOD, REFERENCE, FAILING, RANDOM = "lora", "encoder", "proto-seg", "random"
KNOWN = {"thalamus": 2, "caudate": 3, "putamen": 4, "pallidum": 5, "lateral ventricle": 7, "brainstem": 8}
LAYERS = {"known": (REFERENCE, "all", FAILING, RANDOM), "novel": (REFERENCE, FAILING, RANDOM)}
DRAWS = 5


def tasks(data: Path, with_test: bool) -> list:
    """The tasks by name; without test scans the undrawn support scans are scored."""
    from peftseg.compare import Task
    from peftseg.models import Structure
    from peftseg.study import read_support_folder

    folder, novel = TASKS["ixi"]
    found = []
    for name, values in (("known", KNOWN), ("novel", novel)):
        structures = tuple(Structure(structure, value) for structure, value in values.items())
        test = read_support_folder(data / folder / "test", structures) if with_test else ()
        found.append(Task(name, structures, read_support_folder(data / folder / "support", structures), test))
    return found


def choices(task: object, draw: int) -> tuple[list[str], list[str]]:
    """The failing layers of a draw, and as many of those that were judged, drawn by the draw's number."""
    import torch

    from peftseg.adapter_training import get_ready, make_setting
    from peftseg.adapters.options import failing_names
    from peftseg.compare import draw_support
    from peftseg.dataset import load_scans
    from peftseg.events import Reporter
    from peftseg.explain.failing import judged_layers
    from peftseg.explain.subject import model_subject
    from peftseg.models import resolve

    reporter = Reporter.silent()
    drawn = [task.support[i] for i in draw_support(len(task.support), SHOTS, draw)]
    scans = load_scans(drawn, task.structures, None, reporter)
    device, options = torch.device("cpu"), {**_options(), "layers": FAILING}
    setting = make_setting(resolve(BASE), task.structures, scans, METHOD, options, device, reporter)
    ready = get_ready(replace(setting, seed=draw, epochs=1), scans, reporter)
    failing = failing_names(ready.setting.options["layers"])
    subject = model_subject(BASE)
    names = [layer.name for layer in judged_layers(subject, subject.anatomy.decoder if setting.train_decoder else ())]
    return failing, sorted(random.Random(draw).sample(names, len(failing)), key=names.index)


def candidate(layers: str, value: str) -> object:
    """LoRA at its tuned rates with these layers."""
    from peftseg.compare import Candidate

    return Candidate(layers, METHOD, {**_options(), "layers": value})


def _options() -> dict:
    return json.loads(RATES.read_text(encoding="utf-8"))[METHOD]["options"]


def jobs_of(found: list, draws: int, steps: int, chosen: Path) -> list[Job]:
    """All runs; draws are outermost, so that an early end is fair. Failing layers are chosen here only for the control."""
    from peftseg.adapters.options import failing_option

    kept = read_choices(chosen)
    jobs = []
    for draw in range(draws):
        for task in found:
            if (task.name, draw) not in kept:
                kept[task.name, draw] = choices(task, draw)
                write_choices(chosen, kept)
            values = {name: name for name in LAYERS[task.name]} | {RANDOM: failing_option(kept[task.name, draw][1])}
            epochs = max(1, round(steps / SHOTS))
            jobs += [(task, candidate(n, values[n]), SHOTS, draw, epochs, BASE) for n in LAYERS[task.name]]
    return jobs


def read_choices(path: Path) -> dict[tuple[str, int], tuple[list[str], list[str]]]:
    """Task and draw -> failing layers, and those of the control."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["task"], int(row["draw"])): (row["failing"].split(), row["random"].split())
            for row in csv.DictReader(file)
        }


def write_choices(path: Path, kept: dict[tuple[str, int], tuple[list[str], list[str]]]) -> None:
    """Keep what was chosen, whole or not at all."""
    from peftseg.paths import atomic_write

    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "draw", "failing", "random"))
        writer.writerows((task, draw, " ".join(f), " ".join(r)) for (task, draw), (f, r) in kept.items())


def print_tables(rows_of: dict[str, Path]) -> None:
    """Tables of every file of rows that is there, and how often each layer failed."""
    from peftseg.compare_rows import read_rows

    for on, path in rows_of.items():
        rows = read_rows(path)
        for task in dict.fromkeys(row["task"] for row in rows):
            print(f"\n### {task} structures, {'test scans' if on == 'test' else 'support folds'}\n")
            print(_table([row for row in rows if row["task"] == task]))
    kept = read_choices(path.with_name(CHOICES))
    for task in dict.fromkeys(name for name, _ in kept):
        chosen = [failing for (name, _), (failing, _) in kept.items() if name == task]
        counts = {layer: sum(layer in names for names in chosen) for names in chosen for layer in names}
        often = ", ".join(f"{layer} ({count})" for layer, count in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
        print(f"\nLayers that fail, {task} structures, in how many of {len(chosen)} support sets: {often}.")


def _table(rows: list[dict[str, str]]) -> str:
    """Dice, its difference to the reference on the same draws and scans, values of the adapter, and time, by layers."""
    from experiment_tables import compared, paired_cell
    from peftseg.compare_report import markdown
    from peftseg.compare_rows import interval, mean_of, over_structures, score_table

    whole = over_structures(rows)
    against = compared(whole, REFERENCE)
    body = []
    for (_, label, _), table in score_table(whole).items():
        own = [row for row in whole if row["candidate"] == label]
        low, high = interval(table)
        values, seconds = (mean_of([float(row[key]) for row in own]) for key in ("trained_adapter", "seconds"))
        body.append(
            [
                label,
                f"{mean_of(table):.3f} ({low:.3f} to {high:.3f})",
                paired_cell(*against.get(label, (None,))),
                f"{values:,.0f}",
                f"{seconds:.0f}",
                str(len({row["draw"] for row in own})),
            ]
        )
    return markdown(["layers", "Dice", f"minus {REFERENCE}", "values of the adapter", "seconds", "draws"], body)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--on", choices=tuple(ROWS), default="support", help="which scans are scored")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--steps", type=int, default=STEPS, help="other than the default to try it out only")
    parser.add_argument("--tasks", nargs="+", choices=tuple(LAYERS), default=list(LAYERS))
    parser.add_argument("--out", type=Path, help="file of rows in place of the one in Docs/results")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    out = arguments.out or ROWS[arguments.on]
    if arguments.stage == "table":
        print_tables({arguments.on: out} if arguments.out else ROWS)
        return
    found = [t for t in tasks(arguments.data, arguments.on == "test") if t.name in arguments.tasks]
    run_missing(jobs_of(found, arguments.draws, arguments.steps, out.with_name(CHOICES)), out, arguments.workers)


if __name__ == "__main__":
    main()
