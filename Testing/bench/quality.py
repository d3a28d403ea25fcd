"""How well the doubt of `quality` ranks the true Dice, and the weights that it is made with.

    python Testing/bench/quality.py run      # rows that Docs/results/quality.csv does not hold; about 25 core minutes
    python Testing/bench/quality.py fit      # the weights of quality_score.py, from support scans only
    python Testing/bench/quality.py table    # the table of Docs/results/quality.md: Spearman and AUROC on the test scans

Adapters of `brain-t1` (LoRA, its usual options) are trained on draws of five support scans, from hardly trained to fully
trained (`STEPS`), on both real data sets. Each scores the seven other support scans and the test scans, as they are and as
another scanner might have taken them (`shifts`), so that Dice varies as in daily use. Weights are fitted to the support scans'
rows; the test scans' are only reported. Resumable. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment import TASKS

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "Docs" / "results" / "quality.csv"
BASE = "brain-t1"
SHOTS, DRAWS = 5, 2
STEPS = (10, 40, 160)  # optimiser steps of a training
FAMILIES = ("contrast", "bias_field", "noise", "resolution", "inverted", "field_of_view")
STRENGTHS = (0.3, 0.6)
FAILED = 0.7  # Dice under it is a failure
LOWEST = 0.05  # Dice, for its logarithm
KEYS = ("task", "draw", "steps", "part", "scan", "shift", "strength", "structure")
REPEATS = 1000
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One adapter and all that it scores; `scans` of each part, None for all."""

    task: str
    draw: int
    steps: int
    data: Path
    scans: int | None = None


def run(job: Job) -> list[Row]:
    """Train, segment and score; one row a scan, shift and structure."""
    from peftseg.compare import draw_support
    from peftseg.config import AdaptJob
    from peftseg.dataset import load_scans
    from peftseg.events import Reporter
    from peftseg.models import Structure
    from peftseg.quality import make_checker
    from peftseg.segmenter import adapter_segmenter
    from peftseg.study import read_support_folder
    from peftseg.train import run_adapt

    folder, values = TASKS[job.task]
    structures = tuple(Structure(name, value) for name, value in values.items())
    support, test = (read_support_folder(job.data / folder / part, structures) for part in ("support", "test"))
    drawn = draw_support(len(support), SHOTS, job.draw)
    parts = {"support": [item for n, item in enumerate(support) if n not in drawn], "test": list(test)}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        out = str(Path(name) / "a.safetensors")
        epochs = max(1, round(job.steps / SHOTS))
        used = tuple(support[n] for n in drawn)
        common = {"seed": job.draw, "epochs": epochs, "device": "cpu", "precision": "fp32"}
        adapt = AdaptJob(BASE, used, structures, out, snapshots=True, **common)
        run_adapt(adapt, Reporter.silent())
        checker = make_checker(adapter_segmenter(out), "full", out)
        for part, items in parts.items():
            scans = load_scans(items[: job.scans], structures, None, Reporter.silent())
            for number, scan in enumerate(scans):
                rows += _rows_of_scan(job, part, number, scan, checker)
    return rows


def _rows_of_scan(job: Job, part: str, number: int, scan: Any, checker: Any) -> Iterator[Row]:
    """The scan as it is and at one made-up site."""
    from peftseg.shifts import shift

    family = FAMILIES[(number + job.draw + STEPS.index(job.steps)) % len(FAMILIES)]
    strength = STRENGTHS[(number // len(FAMILIES) + job.draw) % len(STRENGTHS)]
    common = {"task": job.task, "draw": job.draw, "steps": job.steps, "part": part, "scan": scan.volume.name}
    yield from _scored(common | {"shift": "", "strength": 0}, scan.volume, scan.masks, checker)
    changed = shift(scan.volume, family, strength, job.draw)
    yield from _scored(common | {"shift": family, "strength": strength}, changed, scan.masks, checker)


def _scored(common: Row, volume: Any, masks: dict[str, np.ndarray], checker: Any) -> Iterator[Row]:
    import torch

    from peftseg.apply_steps import mask_of
    from peftseg.metrics import dice
    from peftseg.quality import score
    from peftseg.quality_score import PARTS, badness
    from peftseg.segmenter import segment_volume

    seen = checker.watch()
    device = torch.device("cpu")
    result = segment_volume(checker.segmenter, volume, device, precision="fp32", observer=seen)
    found = score(checker, volume, result, device, seen=seen, precision="fp32")
    for row, structure in enumerate(checker.segmenter.structures):
        mask = mask_of(result, row, structure)
        quality = found.structures[structure.name]
        bad = badness(quality.parts, checker.segmenter.structure_facts.get(structure.name, {})) if mask.any() else {}
        yield common | {
            "structure": structure.name,
            "dice": round(float(dice(mask, masks[structure.name])), 4),
            "found": int(mask.any()),
            **{name: _rounded(quality.parts[name]) for name in PARTS},
            **{f"bad_{name}": _rounded(bad.get(name)) for name in PARTS},
        }


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def run_missing(data: Path, workers: int, draws: int, scans: int | None, out: Path) -> None:
    """Run what the CSV file does not hold; draws outermost, so that an early end is fair."""
    from peftseg.compare_rows import append_rows

    done = {(row["task"], int(row["draw"]), int(row["steps"])) for row in read(out)}
    jobs = [Job(task, draw, steps, data, scans) for draw in range(draws) for task in TASKS for steps in STEPS]
    jobs = [job for job in jobs if (job.task, job.draw, job.steps) not in done]
    print(f"{len(jobs)} runs to do", flush=True)
    with ProcessPoolExecutor(workers, initializer=os.nice, initargs=(10,)) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            job, rows = futures[future], future.result()
            append_rows(out, rows, list(rows[0]))
            print(
                f"{job.task}, draw {job.draw}, {job.steps} steps: {np.mean([r['dice'] for r in rows]):.3f}", flush=True
            )


def read(path: Path) -> list[dict[str, str]]:
    """The rows so far."""
    from peftseg.compare_rows import read_rows

    return read_rows(path, (*KEYS, "dice"))


def bad_of(row: dict[str, str]) -> dict[str, float]:
    """What `quality_score.badness` gave."""
    return {key.removeprefix("bad_"): float(row[key]) for key in row if key.startswith("bad_") and row[key]}


def fitted(rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Weights, none negative, and a constant, that explain -log(Dice) of what was found; the constant is dropped."""
    from scipy.optimize import nnls

    from peftseg.quality_score import PARTS, filled

    rows = [row for row in rows if int(row["found"])]
    table = np.array([[filled(bad_of(row)).get(name, 0.0) for name in PARTS] + [1.0] for row in rows])
    target = np.array([-math.log(max(float(row["dice"]), LOWEST)) for row in rows])
    weights, _ = nnls(table, target)
    return dict(zip(PARTS, (round(float(w), 2) for w in weights), strict=False))


def print_fit(path: Path) -> None:
    """The weights of all support rows, and how those of one task do on the other's support rows."""
    rows = [row for row in read(path) if row["part"] == "support"]
    print(f"WEIGHTS = {fitted(rows)}  # {len(rows)} rows")
    for task in TASKS:
        weights = fitted([row for row in rows if row["task"] != task])
        left = [row for row in rows if row["task"] == task]
        rank = spearman(np.array([doubt_row(row, weights) for row in left]), dices(left))
        print(f"fitted without {task}, on {task}: Spearman {rank:.3f}; {weights}")
    weights = fitted(rows)
    doubts, failed = np.array([doubt_row(row, weights) for row in rows]), dices(rows) < FAILED
    for share in (0.8, 0.9, 0.95):
        limit = np.quantile(doubts[failed], 1 - share)
        false = (doubts[~failed] >= limit).mean()
        print(f"a doubt of {limit:.2f} finds {share:.0%} of the failures, and {false:.0%} of the others")


def dices(rows: Sequence[dict[str, str]]) -> np.ndarray:
    """The true Dice of each row."""
    return np.array([float(row["dice"]) for row in rows])


def doubt_row(row: dict[str, str], weights: dict[str, float] | None = None, without: str = "") -> float:
    """The doubt in a row; 1 for what was not found."""
    from peftseg.quality_score import WEIGHTS, doubt_of

    if not int(row["found"]):
        return 1.0
    return doubt_of({k: v for k, v in bad_of(row).items() if k != without}, weights or WEIGHTS)


def part_row(name: str) -> Callable[[dict[str, str]], float]:
    """One part alone, as bad as `badness` says; what was not found is worst."""
    return lambda row: float(row[f"bad_{name}"] or 0) if int(row["found"]) else math.inf


def scores() -> dict[str, Callable[[dict[str, str]], float]]:
    """The rows of the table: name -> how doubtful a row of the CSV file is."""
    return {
        "doubt (full)": doubt_row,
        "doubt (fast: no snapshots)": lambda row: doubt_row(row, without="snapshot_agreement"),
        "three snapshots": part_row("snapshot_agreement"),
        "changed scan": part_row("transform_agreement"),
        "certainty": part_row("confidence"),
        "volume": part_row("volume_z"),
        "shape": part_row("shape_z"),
        "pieces": part_row("extra_pieces"),
        "border": part_row("borders"),
    }


def spearman(doubts: np.ndarray, dice: np.ndarray) -> float:
    """Rank correlation, positive where more doubt goes with less Dice; NaN where one is constant."""
    from scipy.stats import rankdata

    first, second = rankdata(doubts), rankdata(-dice)
    if first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def auroc(doubts: np.ndarray, dice: np.ndarray) -> float:
    """Chance that a failure has more doubt than a success, ties by half; NaN without one of both."""
    from scipy.stats import rankdata

    failed = dice < FAILED
    bad, good = int(failed.sum()), int((~failed).sum())
    if not bad or not good:
        return math.nan
    return float((rankdata(doubts)[failed].sum() - bad * (bad + 1) / 2) / (bad * good))


def interval(rows: Sequence[dict[str, str]], doubts: np.ndarray, measure: Callable) -> tuple[float, float]:
    """95 % bootstrap interval; patients are resampled with all of their rows."""
    rng = np.random.default_rng(0)
    dice, patients = dices(rows), np.array([f"{row['task']} {row['scan']}" for row in rows])
    groups = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    found = []
    for _ in range(REPEATS):
        chosen = np.concatenate([groups[n] for n in rng.integers(len(groups), size=len(groups))])
        found.append(measure(doubts[chosen], dice[chosen]))
    known = [value for value in found if not math.isnan(value)]
    return tuple(float(q) for q in np.percentile(known or [math.nan], [2.5, 97.5]))


def studies(rows: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], np.ndarray]:
    """One row a study with the mean Dice, and its doubt."""
    from peftseg.quality_score import study_doubt

    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS[:-1]), []).append(row)
    means = [group[0] | {"dice": str(dices(group).mean())} for group in groups.values()]
    return means, np.array([study_doubt([doubt_row(row) for row in group]) for group in groups.values()])


def print_table(path: Path, part: str) -> None:
    """Markdown: each score's Spearman and AUROC with intervals, over all, by task and by scans as they are."""
    rows = [row for row in read(path) if row["part"] == part]
    sets = {"all": rows} | {task: [row for row in rows if row["task"] == task] for task in TASKS}
    sets["no made-up shift"] = [row for row in rows if not row["shift"]]
    for label, chosen in sets.items():
        if not chosen:
            continue
        failed = int((dices(chosen) < FAILED).sum())
        print(f"\n{label}: {len(chosen)} results of {part} scans, {failed} with Dice under {FAILED}\n")
        print("| score | Spearman | 95 % | AUROC | 95 % |\n|---|---|---|---|---|")
        for name, of in scores().items():
            print(_line(name, chosen, np.array([of(row) for row in chosen])))
        print(_line("study: doubt against mean Dice", *studies(chosen)))


def _line(name: str, rows: Sequence[dict[str, str]], doubts: np.ndarray) -> str:
    cells = []
    for measure in (spearman, auroc):
        low, high = interval(rows, doubts, measure)
        cells += [f"{measure(doubts, dices(rows)):.3f}", f"{low:.3f} to {high:.3f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "fit", "table"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--scans", type=int, help="only the first so many scans of each part, to try the script")
    parser.add_argument("--part", default="test", choices=("support", "test"), help="of the table")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.stage == "run":
        run_missing(arguments.data, arguments.workers, arguments.draws, arguments.scans, arguments.out)
    elif arguments.stage == "fit":
        print_fit(arguments.out)
    else:
        print_table(arguments.out, arguments.part)


if __name__ == "__main__":
    main()
