"""Going on from an adapter of three scans with two more, against starting over with all five, on real data.

    python Testing/bench/warm_start.py run --draws 5      # or --epochs 40: that many, instead of the engine's own
    python Testing/bench/warm_start.py table

Each draw is another order of the support scans: three make the first adapter; then two more come, and five are learnt from
anew ("over"), or from the first adapter ("warm"). Scored on the support scans that were not drawn; test scans are not touched.
Resumable: what the CSV file holds is not run again. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "Docs" / "results" / "warm_start.csv"
BASE = "brain-t1"
FIRST, ALL = 3, 5  # scans
TASKS = {
    "ixi": ("subcortical_ixi", {"hippocampus": 1, "amygdala": 6, "thalamus": 2, "putamen": 4}),
    "msd": ("hippocampus_msd", {"anterior hippocampus": 1, "posterior hippocampus": 2}),
}
FIELDS = ("task", "draw", "run", "scan", "structure", "dice", "seconds", "epochs")
RUNS = ("first", "over", "warm")
Row = dict[str, str]


def run_draw(task: str, draw: int, arguments: argparse.Namespace, folder: Path) -> Iterator[list[Row]]:
    """The three trainings of one draw, each with its scores."""
    from peftseg.compare import draw_support
    from peftseg.config import AdaptJob
    from peftseg.events import Reporter
    from peftseg.models import Structure
    from peftseg.study import read_support_folder
    from peftseg.train import run_adapt

    where, values = TASKS[task]
    structures = tuple(Structure(name, value) for name, value in values.items())
    items = read_support_folder(arguments.data / where / "support", structures)
    order = draw_support(len(items), ALL, draw)
    apart = [item for n, item in enumerate(items) if n not in order][: arguments.scored]
    for name in RUNS:
        shots = order[:FIRST] if name == "first" else order
        job = AdaptJob(
            model=BASE,
            support=tuple(items[n] for n in shots),
            structures=structures,
            out=str(folder / f"{task}-{draw}-{name}.safetensors"),
            name=f"{task} {draw}",
            method=arguments.method if name != "warm" else AdaptJob.method,
            seed=draw,
            device=arguments.device,
            epochs=None if name == "warm" else arguments.epochs,
            budget_minutes=arguments.budget,
            start_from=str(folder / f"{task}-{draw}-first.safetensors") if name == "warm" else None,
        )
        result = run_adapt(job, Reporter.silent())
        facts = {"task": task, "draw": str(draw), "run": name, "epochs": str(result["epochs"])}
        facts["seconds"] = str(result["seconds"])
        yield [{**facts, **score} for score in scores(job.out, apart, structures, arguments.device)]


def scores(adapter: str, items: Sequence, structures: Sequence, device: str) -> Iterator[Row]:
    """Dice of each scan and structure."""
    from peftseg.apply_steps import mask_of
    from peftseg.device import choose_device
    from peftseg.metrics import dice
    from peftseg.segmenter import adapter_segmenter, segment_volume
    from peftseg.study import load_support_item

    segmenter = adapter_segmenter(adapter)
    for number, item in enumerate(items):
        scan = load_support_item(item, structures)
        result = segment_volume(segmenter, scan.volume, choose_device(device))
        for row, structure in enumerate(segmenter.structures):
            value = dice(mask_of(result, row, structure), scan.masks[structure.name])
            yield {"scan": str(number), "structure": structure.name, "dice": f"{value:.4f}"}


def run(arguments: argparse.Namespace) -> None:
    """Run the draws that the CSV file does not hold as a whole."""
    from peftseg.compare_rows import append_rows, read_rows

    os.nice(arguments.nice)
    done = {(row["task"], row["draw"]) for row in read_rows(arguments.rows, FIELDS) if row["run"] == RUNS[-1]}
    for draw in range(arguments.draws):
        for task in arguments.tasks:
            if (task, str(draw)) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows = []
                for found in run_draw(task, draw, arguments, Path(folder)):
                    rows += found
                    mean = statistics.fmean(float(row["dice"]) for row in found)
                    print(
                        f"{task}, draw {draw}, {found[0]['run']}: Dice {mean:.3f}, {found[0]['seconds']} s, "
                        f"{found[0]['epochs']} epochs",
                        flush=True,
                    )
            append_rows(arguments.rows, rows, FIELDS)


def table(arguments: argparse.Namespace) -> None:
    """Means by task, and of each draw warm minus over, in Dice and in time, as Markdown."""
    from peftseg.compare_rows import read_rows

    rows = read_rows(arguments.rows, FIELDS)
    print("| Task | Draws | Three scans | Five, starting over | Five, going on | Difference | Time of starting over |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for task in dict.fromkeys(row["task"] for row in rows):
        draws = sorted({row["draw"] for row in rows if row["task"] == task})
        means = {
            (draw, name): [
                statistics.fmean(float(row[key]) for row in rows if _is(row, task, draw, name))
                for key in ("dice", "seconds")
            ]
            for draw in draws
            for name in RUNS
        }
        dice = [statistics.fmean(means[draw, name][0] for draw in draws) for name in RUNS]
        gains = [means[draw, "warm"][0] - means[draw, "over"][0] for draw in draws]
        shares = [means[draw, "warm"][1] / means[draw, "over"][1] for draw in draws]
        spread = f" (from {min(gains):+.3f} to {max(gains):+.3f})"
        print(
            f"| {task} | {len(draws)} | {dice[0]:.3f} | {dice[1]:.3f} | {dice[2]:.3f} | "
            f"{statistics.fmean(gains):+.3f}{spread} | {statistics.fmean(shares):.0%} ({max(shares):.0%} at most) |"
        )


def _is(row: Row, task: str, draw: str, name: str) -> bool:
    return (row["task"], row["draw"], row["run"]) == (task, draw, name)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--scored", type=int, default=5, help="undrawn scans that are scored")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nice", type=int, default=10, help="how far to give way to other work")
    parser.add_argument("--epochs", type=int, help="of the first adapter and of starting over")
    parser.add_argument("--budget", type=float, help="minutes of starting over; going on takes its share of them")
    arguments = parser.parse_args()
    run(arguments) if arguments.stage == "run" else table(arguments)


if __name__ == "__main__":
    main()
