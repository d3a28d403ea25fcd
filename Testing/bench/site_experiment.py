"""Adaptation without labels on real scans: how much of the gap to training with labels it closes.

    python Testing/bench/site_experiment.py run [--two-d MODELDIR]   # what Docs/results/site_experiment.csv does not hold
    python Testing/bench/site_experiment.py table                    # the tables of Docs/results/site.md, from the rows

Sources: `brain-t1-bn` and, with `--two-d`, the model of `make_models.py brain-t1-2d`. Targets: each made-up shift at
`STRENGTH` (`ixi`: ten support scans without labels, scored on the test scans), and whole hippocampus on scans of another
data set (`msd`, with another label protocol, too). Each seed is another made-up site, and the seed of training. The upper
bound is full fine-tuning on the same ten scans with their labels. Options come from the table of presets as it is; test
scans choose nothing. Resumable. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import keep_rows, run_or_print
from site_gate import BASE, ixi_values

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "Docs" / "results" / "site_experiment.csv"
FAMILIES = ("contrast", "bias_field", "noise", "resolution", "inverted", "field_of_view")
INTENSITY = ("contrast", "bias_field", "noise", "inverted")  # shifts of grey values, which the aim is about
STRENGTH = 0.6
SCANS = 10
SEEDS = 3
SOURCE, UPPER = "source only", "full, with labels"
PRESETS = {
    "AdaBN": "adabn",
    "self-training": "self_training",
    "UDAS": "udas",
    "ConvLoRA": "convlora",
    "ConvLoRA + AdaBN": "convlora_adabn",
    "grey values, ConvLoRA + AdaBN": "matched",
}
CANDIDATES = (SOURCE, *PRESETS, UPPER)
STEPS = 200  # of the upper bound, as in experiment.py
GAP = 0.05  # below it a recovered share says nothing


@dataclass(frozen=True)
class Job:
    """One adaptation and its score."""

    base: str
    target: str
    candidate: str
    seed: int
    data: Path

    @property
    def task(self) -> str:
        """As in the CSV file: base and target."""
        return f"{Path(self.base).name} {self.target}"


def all_jobs(data: Path, bases: list[str], seeds: int) -> list[Job]:
    """Seeds outermost, so that an early end is fair to all rows."""
    return [
        Job(base, target, candidate, seed, data)
        for seed in range(seeds)
        for base in bases
        for target in (*FAMILIES, "msd")
        for candidate in CANDIDATES
    ]


def run(job: Job) -> list[dict[str, Any]]:
    """Rows of one job, one a test scan and structure."""
    from peftseg.models import resolve
    from peftseg.segmenter import adapter_segmenter, model_segmenter

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        structures = resolve(job.base).structures
        names = ["hippocampus"] if job.target == "msd" else [s.name for s in structures]
        wanted = tuple(s for s in structures if s.name in names)
        write_scans(job, "support", folder / "site", wanted, SCANS)
        write_scans(job, "test", folder / "test", wanted, None)
        facts = {"trained": 0, "epochs": 0, "chosen": ""}
        if job.candidate == SOURCE:
            segmenter = model_segmenter(job.base)
        else:
            adapt = with_labels if job.candidate == UPPER else without_labels
            facts = adapt(job, folder / "site", folder / "a.safetensors", wanted)
            segmenter = adapter_segmenter(folder / "a.safetensors")
        facts["seconds"] = round(time.monotonic() - started, 1)
        common = {"task": job.task, "candidate": job.candidate, "shots": SCANS, "draw": job.seed, "device": "cpu"}
        return [common | facts | row for row in scored(segmenter, folder / "test", wanted)]


def write_scans(job: Job, part: str, folder: Path, structures: tuple, count: int | None) -> None:
    """The target's scans and labels as files, labels with the base's values."""
    import numpy as np

    from peftseg.shifts import shift
    from peftseg.volume import read_labels, read_volume, write_volume

    source = job.data / ("hippocampus_msd" if job.target == "msd" else "subcortical_ixi") / part
    values = {"hippocampus": (1, 2)} if job.target == "msd" else {n: (v,) for n, v in ixi_values(job.data).items()}
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for path in sorted((source / "images").glob("*.nii.gz"))[:count]:
        volume, labels = read_volume(path), read_labels(source / "labels" / path.name)
        if job.target != "msd":
            volume = shift(volume, job.target, STRENGTH, job.seed)
        merged = np.zeros(volume.array.shape, np.float32)
        for structure in structures:
            merged[np.isin(labels.layers[0], values[structure.name])] = structure.value
        write_volume(folder / "images" / path.name, volume.array, volume.grid)
        write_volume(folder / "labels" / path.name, merged, labels.grid)


def without_labels(job: Job, site: Path, out: Path, _: tuple) -> dict[str, Any]:
    """Adapt by a preset; the adapter is kept whatever the gate says, which is noted."""
    from peftseg.config import SiteAdaptJob
    from peftseg.events import Reporter
    from peftseg.site_adapt import run_site_adapt

    asked = SiteAdaptJob(
        model=job.base,
        unlabelled=(str(site / "images"),),
        out=str(out),
        preset=PRESETS[job.candidate],
        seed=job.seed,
        device="cpu",
        keep_refused=True,
    )
    result = run_site_adapt(asked, Reporter.silent())
    return facts_of(result["trained_share"], result["epochs"], result["verdict"]["status"])


def with_labels(job: Job, site: Path, out: Path, structures: tuple) -> dict[str, Any]:
    """Full fine-tuning on the same scans and their labels."""
    from peftseg.adapter_file import read_recipe
    from peftseg.config import AdaptJob
    from peftseg.events import Reporter
    from peftseg.study import read_support_folder
    from peftseg.train import run_adapt

    asked = AdaptJob(
        model=job.base,
        support=read_support_folder(site, structures),
        structures=structures,
        out=str(out),
        method="full",
        epochs=STEPS // SCANS,
        seed=job.seed,
        device="cpu",
    )
    run_adapt(asked, Reporter.silent())
    record = read_recipe(out).record
    return facts_of(record["trained_share"], record["epochs"], "")


def facts_of(share: dict[str, int], epochs: int, verdict: str) -> dict[str, Any]:
    """What a row says about the training; "chosen" is the gate's verdict."""
    kinds = {f"trained_{kind}": n for kind, n in share.items() if kind not in ("base_total", "buffers")}
    known = {"buffers": share["buffers"], "base_total": share["base_total"], "epochs": epochs, "chosen": verdict}
    return {"trained": sum(kinds.values()), **kinds, **known}


def scored(segmenter: Any, folder: Path, structures: tuple) -> list[dict[str, Any]]:
    """Dice and surface Dice at 1 mm of every test scan."""
    import torch

    from peftseg.metrics import dice, surface_dice
    from peftseg.segmenter import segment_volume
    from peftseg.volume import file_stem, read_labels, read_volume

    rows = []
    values = {s.name: s.value for s in segmenter.structures}
    for path in sorted((folder / "images").glob("*.nii.gz")):
        volume, truth = read_volume(path), read_labels(folder / "labels" / path.name).layers[0]
        result = segment_volume(segmenter, volume, torch.device("cpu"))
        for s in structures:
            found, real = result == values[s.name], truth == s.value
            score = {
                "dice": round(float(dice(found, real)), 4),
                "surface_dice": round(float(surface_dice(found, real, volume.grid.spacing, 1.0)), 4),
            }
            rows.append({"scan": file_stem(path), "structure": s.name, **score})
    return rows


def print_tables(path: Path) -> None:
    """Scores by source and target, the recovered share of the gap, and the gate's words."""
    from peftseg.compare_rows import over_structures, read_rows

    rows = over_structures(read_rows(path))
    for base in dict.fromkeys(row["task"].rsplit(" ", 1)[0] for row in rows):
        own = [row | {"task": row["task"].rsplit(" ", 1)[1]} for row in rows if row["task"].rsplit(" ", 1)[0] == base]
        print_scores(base, own)
        print_recovered(own)
        print_verdicts(own)


def print_scores(base: str, rows: list[dict[str, str]]) -> None:
    """Mean Dice with its interval over made-up sites and scans, and surface Dice."""
    from peftseg.compare_rows import interval, mean_of, score_table

    targets = list(dict.fromkeys(row["task"] for row in rows))
    tables, surfaces = score_table(rows), score_table(rows, "surface_dice")
    print(f"\n### `{base}`: Dice (95 % interval), surface Dice at 1 mm\n")
    print(f"| | trained | {' | '.join(targets)} |\n|---|---|{'---|' * len(targets)}")
    for candidate in CANDIDATES:
        cells = []
        for target in targets:
            table = tables.get((target, candidate, "all"))
            if table is None:
                cells.append("")
                continue
            low, high = interval(table)
            surface = mean_of(surfaces[target, candidate, "all"])
            cells.append(f"{mean_of(table):.3f} ({low:.3f} to {high:.3f}), {surface:.3f}")
        shares = {
            f"{int(r['trained']) / int(r['base_total']):.1%}"
            for r in rows
            if r["candidate"] == candidate and r["base_total"]
        }
        print(f"| {candidate} | {', '.join(sorted(shares))} | {' | '.join(cells)} |")


def print_recovered(rows: list[dict[str, str]]) -> None:
    """Share of the gap between source and upper bound that is closed, where it is at least five points."""
    from peftseg.compare_rows import in_common_draws, mean_of, score_table

    targets = list(dict.fromkeys(row["task"] for row in rows))
    print(f"\n| recovered share of the gap | {' | '.join(targets)} |\n|---|{'---|' * len(targets)}")
    for candidate in PRESETS:
        cells = []
        for target in targets:
            compared = (SOURCE, candidate, UPPER)
            own = [row for row in rows if row["task"] == target and row["candidate"] in compared]
            tables = score_table(in_common_draws(own)[0])
            if len(tables) < len(compared):
                cells.append("")
                continue
            low, here, high = (mean_of(tables[target, c, "all"]) for c in compared)
            cells.append(f"{(here - low) / (high - low):.0%}" if high - low >= GAP else f"no gap ({high - low:+.3f})")
        print(f"| {candidate} | {' | '.join(cells)} |")


def print_verdicts(rows: list[dict[str, str]]) -> None:
    """What the gate said, and the largest loss of Dice among what it accepted."""
    from peftseg.compare_rows import mean_of

    means: dict[tuple[str, str, str], list[float]] = {}
    verdicts = {}
    for row in rows:
        key = (row["task"], row["draw"], row["candidate"])
        means.setdefault(key, []).append(float(row["dice"]))
        verdicts[key] = row["chosen"]
    print("\n| | accepted | with a warning | refused | smallest change of Dice where accepted | where not refused |")
    print("|---|---|---|---|---|---|")
    for candidate in PRESETS:
        changes: dict[str, list[float]] = {"accepted": [], "warning": [], "refused": []}
        for (target, draw, name), values in means.items():
            source = means.get((target, draw, SOURCE))
            if name == candidate and source:
                changes[verdicts[target, draw, name]].append(mean_of(values) - mean_of(source))
        least = [
            f"{min(v):+.3f}" if v else "none" for v in (changes["accepted"], changes["accepted"] + changes["warning"])
        ]
        print(f"| {candidate} | {' | '.join(str(len(v)) for v in changes.values())} | {' | '.join(least)} |")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which sources and how many seeds."""
    parser.add_argument("--two-d", type=Path, default=None, help="MODELDIR of brain-t1-2d")
    parser.add_argument("--seeds", type=int, default=SEEDS)


def run_stage(arguments: argparse.Namespace) -> None:
    """Run what the CSV file does not hold."""
    bases = [BASE, *([str(arguments.two_d.absolute())] if arguments.two_d else [])]
    jobs = all_jobs(arguments.data, bases, arguments.seeds)
    keyed = [((job.task, job.candidate, SCANS, job.seed), (job,)) for job in jobs]
    keep_rows(run, keyed, arguments.rows, arguments.workers)


def main() -> None:
    """Parse the command line and run a stage."""
    run_or_print(__doc__, ROWS, run_stage, print_tables, add_options)


if __name__ == "__main__":
    main()
