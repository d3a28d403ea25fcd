"""How often the gate of adaptation without labels errs, and its limits: adaptations of known outcome at made-up sites.

    python Testing/bench/site_gate.py run        # every adaptation that Docs/results/site_gate.csv does not hold
    python Testing/bench/site_gate.py table      # limits from the first families, error rates on the others, as Markdown

Base: `brain-t1-bn`. A trial is a site (family, strength, seed) and a way to adapt; the real `site_adapt` runs on the shifted
support scans without their labels and keeps the adapter whatever the gate says. Outcome: change of the mean Dice at
that site by more than a point. Limits are set on `FAMILIES_SET`, scored on the support scans themselves, and judged on
`FAMILIES_JUDGED`, scored on the test scans. Scans of another anatomy are judged by what the adapter does to brains as
they are. Resumable. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs import add_rows, run_or_print

if TYPE_CHECKING:
    from peftseg.segmenter import Segmenter

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "Docs" / "results" / "site_gate.csv"
BASE = "brain-t1-bn"
FAMILIES_SET = ("contrast", "noise", "field_of_view", "made-up abdomen")
FAMILIES_JUDGED = ("bias_field", "resolution", "inverted", "other anatomy")
ELSEWHERE = ("made-up abdomen", "other anatomy")  # no shift of brains
STRENGTHS = (0.1, 0.3, 0.6, 1.0)
SCANS = 8  # of the twelve support scans, another choice for each site
BOX_MM = (86.0, 120.0, 68.0)  # that much of another anatomy, as of the brains
# What may get a limit, chosen before this calibration on a few trials with another network: absolute agreement and the worst
# single volume refused much that helped, shape and pieces told nothing more. All measures are in the rows.
CHECKS = (
    "not_found",
    "volume",
    "volume_worse",
    "transform_drop",
    "early_drop",
    "confidence_drop",
    "edge_drop",
    "departure",
)
# Get a limit far beyond what helped where the given trials need none: the next harm may show there.
ALWAYS = tuple(check for check in CHECKS if check != "volume")  # what is unusual before, too, is no harm
# Refuse only what nobody doubts, and take no part in the search, where they stand in for others: with `pieces_worse` in the
# place of `not_found` 22 of 25 helpful adapters of the judged families were refused.
GUARDS = ("elongation_worse", "pieces_worse")
KEYS = ("family", "strength", "seed", "way")
NO_ADAPTER = "no adapter"
HEADING = "| limits | trials | | errors | share | 95 % interval |\n|---|---|---|---|---|---|"
FACTS = ("dice_before", "dice_after", "gain", "status", "seconds")


@dataclass(frozen=True)
class Way:
    """A way to adapt."""

    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None


# The presets, and what careless users or bad luck make of them.
WAYS = {
    "adabn": Way("adabn"),
    "convlora": Way("convlora"),
    "convlora + adabn": Way("convlora_adabn"),
    "convlora + adabn, half": Way("convlora_adabn", {"source_weight": 0.5}),
    "convlora + adabn, hot": Way("convlora_adabn", {"lr_adapter": 1e-2}, 10),
    "self-training": Way("self_training"),
    "self-training, hot": Way("self_training", {"lr_body": 1e-3, "lr_norm": 1e-3}, 10),
    "udas": Way("udas", {"level": 1}, 10),  # the base's own head
    "published": Way("published", {"level": 1, "depth": 3}),
    "published, hot": Way("published", {"level": 1, "depth": 3, "lr_adapter": 3e-3, "lr_norm": 3e-3}, 10),
}


@dataclass(frozen=True)
class Job:
    """One trial; `asked` is the way to adapt where `WAYS` does not have it."""

    family: str
    strength: float
    seed: int
    way: str
    data: Path
    asked: Way | None = None

    def key(self) -> tuple[str, ...]:
        """As in the CSV file."""
        return (self.family, f"{self.strength:g}", str(self.seed), self.way)


def all_jobs(data: Path, seeds: int) -> list[Job]:
    """Seeds outermost, so that an early end is fair to all families; those that set the limits have one seed."""
    families = (*FAMILIES_SET, *FAMILIES_JUDGED)
    return [
        Job(family, strength, seed, way, data)
        for seed in range(seeds)
        for strength in STRENGTHS
        for family in families
        for way in WAYS
        if family not in ELSEWHERE or strength == STRENGTHS[-1]
        if seed == 0 or family in FAMILIES_JUDGED
    ]


def read_trials(path: Path = ROWS) -> list[dict[str, str]]:
    """Rows of the CSV file; none where it does not exist."""
    from peftseg.compare_rows import read_rows

    return read_rows(path, (*KEYS, *FACTS))


def run_job(job: Job) -> dict[str, Any]:
    """Adapt, ask the gate, and look at the labels: a row of the CSV file."""
    from peftseg.config import SiteAdaptJob
    from peftseg.errors import TrainingFailed
    from peftseg.events import Reporter
    from peftseg.site_adapt import run_site_adapt

    started = time.monotonic()
    way = job.asked or WAYS[job.way]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = folder / "site.safetensors"
        asked = SiteAdaptJob(
            model=BASE,
            unlabelled=tuple(write_site(job, folder)),
            out=str(adapter),
            preset=way.preset,
            options=way.options,
            epochs=way.epochs,
            seed=job.seed,
            device="cpu",
            keep_refused=True,
        )
        try:
            result = run_site_adapt(asked, Reporter.silent())
        except TrainingFailed:  # no adapter, so nothing for the gate to err about
            return {**dict(zip(KEYS, job.key(), strict=True)), "status": NO_ADAPTER}
        before, after = mean_dices(job, adapter)
    verdict = result["verdict"]
    values = {check: found["value"] for check, found in verdict["facts"]["checks"].items()}
    return {
        **dict(zip(KEYS, job.key(), strict=True)),
        "dice_before": round(before, 4),
        "dice_after": round(after, 4),
        "gain": round(after - before, 4),
        "status": verdict["status"],
        "seconds": round(time.monotonic() - started, 1),
        **{check: "" if value is None else f"{value:.5g}" for check, value in values.items()},
    }


def write_site(job: Job, folder: Path) -> list[str]:
    """The site's scans as files."""
    import numpy as np

    from peftseg.shifts import shift
    from peftseg.volume import read_volume, write_volume

    rng = np.random.default_rng([job.seed, (*FAMILIES_SET, *FAMILIES_JUDGED).index(job.family)])
    if job.family in ELSEWHERE:
        sources = elsewhere(job)
        volumes = [part_of(sources[n % len(sources)], rng) for n in range(SCANS)]
    else:
        paths = sorted((job.data / "subcortical_ixi" / "support" / "images").glob("*.nii.gz"))
        chosen = sorted(rng.choice(len(paths), SCANS, replace=False))
        volumes = [shift(read_volume(paths[n]), job.family, job.strength, job.seed) for n in chosen]
    written = []
    for number, volume in enumerate(volumes):
        path = folder / f"scan_{number}.nii.gz"
        write_volume(path, volume.array, volume.grid)
        written.append(str(path))
    return written


def elsewhere(job: Job) -> list:
    """Volumes of another anatomy."""
    from peftseg.phantom import make_case
    from peftseg.volume import read_volume

    if job.family == "made-up abdomen":
        return [make_case(100 * job.seed + n).volume for n in range(SCANS)]
    readers = job.data / "readers" / "ct_totalsegmentator"
    paths = (
        job.data / "spleen_ct" / "image.nii.gz",
        readers / "example_ct_sm.nii.gz",
        readers / "example_mr_sm.nii.gz",
    )
    return [read_volume(path) for path in paths]


def part_of(volume, rng):
    """A box of a volume, somewhere, so that bodies are not larger than brains."""
    import numpy as np

    from peftseg.volume import Grid, Volume

    sizes = [min(n, round(mm / s)) for n, mm, s in zip(volume.array.shape, BOX_MM, volume.grid.spacing, strict=True)]
    starts = [int(rng.integers(n - size + 1)) for n, size in zip(volume.array.shape, sizes, strict=True)]
    box = tuple(slice(a, a + size) for a, size in zip(starts, sizes, strict=True))
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(starts)
    return Volume(np.ascontiguousarray(volume.array[box]), Grid(tuple(sizes), affine), volume.name)


def mean_dices(job: Job, adapter: Path) -> tuple[float, float]:
    """Mean Dice of base and adapter over the base's structures and the scored scans at the site."""
    from peftseg.segmenter import adapter_segmenter

    site = (job.family, job.strength, job.seed, job.data)
    return dice_of_base(*site), mean_dice(adapter_segmenter(adapter), *site)


@cache
def dice_of_base(family: str, strength: float, seed: int, data: Path) -> float:
    """The base's at a site, which many trials share."""
    from peftseg.segmenter import model_segmenter

    return mean_dice(model_segmenter(BASE), family, strength, seed, data)


def mean_dice(segmenter: Segmenter, family: str, strength: float, seed: int, data: Path) -> float:
    """Mean Dice over structures and scored scans at a site."""
    import numpy as np
    import torch

    from peftseg.metrics import dice
    from peftseg.segmenter import segment_volume
    from peftseg.shifts import shift
    from peftseg.volume import read_labels, read_volume

    folder = data / "subcortical_ixi" / ("support" if family in FAMILIES_SET else "test")
    values, found = ixi_values(data), []
    for path in sorted((folder / "images").glob("*.nii.gz")):
        volume, labels = read_volume(path), read_labels(folder / "labels" / path.name)
        scan = volume if family in ELSEWHERE else shift(volume, family, strength, seed)
        result = segment_volume(segmenter, scan, torch.device("cpu"))
        truths = ((s.value, labels.layers[0] == values[s.name]) for s in segmenter.structures)
        found += [dice(result == value, truth) for value, truth in truths]
    return float(np.nanmean(found))


def ixi_values(data: Path) -> dict[str, int]:
    """Structure name -> label value of the IXI labels."""
    import json

    names = json.loads((data / "subcortical_ixi" / "labels.json").read_text(encoding="utf-8"))
    return {name: int(value) for value, name in names.items()}


def run_missing(jobs: Iterable[Job], path: Path, workers: int) -> None:
    """Run what the CSV file does not hold, `workers` at a time with one thread each."""
    from peftseg.gate_measures import MEASURES

    add_rows(run_job, jobs, path, workers, KEYS, FACTS, tuple(MEASURES))


def trials_of(rows: Iterable[dict[str, str]], families: Iterable[str]) -> list:
    """The trials of some families, for `gate_fit`."""
    import math

    from peftseg.gate_fit import Trial
    from peftseg.gate_measures import MEASURES

    chosen = tuple(families)
    return [
        Trial({m: float(row[m]) if row[m] else math.nan for m in MEASURES}, float(row["gain"]))
        for row in rows
        if row["family"] in chosen
    ]


def print_tables(path: Path) -> None:
    """Limits, error rates with intervals, and what each family was like."""
    from peftseg.gate import LIMITS
    from peftseg.gate_fit import error_rates, fit_limits

    rows = [row for row in read_trials(path) if row["status"] != NO_ADAPTER]
    families = (*FAMILIES_SET, *FAMILIES_JUDGED)
    given, judged = trials_of(rows, FAMILIES_SET), trials_of(rows, FAMILIES_JUDGED)
    offered = trials_of([row for row in rows if not row["way"].endswith("hot")], FAMILIES_JUDGED)
    fitted = fit_limits(given, CHECKS, ALWAYS, GUARDS)
    print(f"Limits from {len(given)} trials of {', '.join(FAMILIES_SET)}, for `gate.LIMITS`:\n")
    for name, limit in fitted.items():
        print(f'    "{name}": Limit(warn={limit.warn:.3g}, refuse={limit.refuse:.3g}),')
    print(f"\n{HEADING}")
    print_rates("fitted", "those that set them", error_rates(given, fitted))
    print_rates("fitted", "**the other families**", error_rates(judged, fitted))
    print_rates("fitted", "the other families, no `hot` ways", error_rates(offered, fitted))
    print_rates("`gate.LIMITS`", "the other families", error_rates(judged, LIMITS))
    print_rates("each family by all others'", "all families", left_out_rates(rows, families))
    print_passed([row for row in rows if row["family"] in FAMILIES_JUDGED], fitted)
    print("\n| left out | | errors | share | 95 % interval |\n|---|---|---|---|---|")
    for family in families:
        print_left_out(family, left_out_rates(rows, [family]))
    print_families(rows)


def left_out_rates(rows: list[dict[str, str]], families: Iterable[str]) -> dict:
    """Error rates over families, each judged by the limits that all others set."""
    from peftseg.gate_fit import error_rates, fit_limits, rate

    counts: dict[str, tuple[int, int]] = {}
    for family in families:
        others = [f for f in (*FAMILIES_SET, *FAMILIES_JUDGED) if f != family]
        limits = fit_limits(trials_of(rows, others), CHECKS, ALWAYS, GUARDS)
        for kind, found in error_rates(trials_of(rows, [family]), limits).items():
            count, total = counts.get(kind, (0, 0))
            counts[kind] = count + found.count, total + found.total
    return {kind: rate(*found) for kind, found in counts.items()}


def print_rates(limits_name: str, trials_name: str, rates: dict) -> None:
    """Lines of a table: error rates of limits on trials."""
    for kind, found in rates.items():
        print(
            f"| {limits_name} | {trials_name} | {kind} | {found.count} of {found.total} | {found.share:.1%} "
            f"| {found.low:.1%} to {found.high:.1%} |"
        )


def print_passed(rows: list[dict[str, str]], limits: dict) -> None:
    """What harmful adapters cost that the limits let pass, and how they were made."""
    from peftseg.gate import REFUSED, status_of

    print("\n| harmful, let pass | way | change of Dice | |\n|---|---|---|---|")
    for row, trial in zip(rows, trials_of(rows, FAMILIES_JUDGED), strict=True):
        status = status_of(trial.values, limits)
        if trial.harmful and status != REFUSED:
            print(f"| {row['family']} {row['strength']} | {row['way']} | {trial.gain:+.3f} | {status} |")


def print_left_out(family: str, rates: dict) -> None:
    """Error rates on one family with limits from all others."""
    for kind in ("harmful accepted", "helpful refused"):
        found = rates[kind]
        if found.total:
            share = f"{found.share:.1%} | {found.low:.1%} to {found.high:.1%}"
            print(f"| {family} | {kind} | {found.count} of {found.total} | {share} |")


def print_families(rows: list[dict[str, str]]) -> None:
    """What adaptation did, by family and by way."""
    import numpy as np

    print("\n| | trials | harmful | helpful | Dice of the base | mean change |\n|---|---|---|---|---|---|")
    for column in ("family", "way"):
        for name in dict.fromkeys(row[column] for row in rows):
            own = [row for row in rows if row[column] == name]
            gains = np.array([float(row["gain"]) for row in own])
            base = np.mean([float(row["dice_before"]) for row in own])
            print(
                f"| {name} | {len(own)} | {(gains < -0.01).sum()} | {(gains > 0.01).sum()} | {base:.3f} | {gains.mean():+.3f} |"
            )


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many sites are tried."""
    parser.add_argument("--seeds", type=int, default=1, help="sites of each judged family and strength")


def main() -> None:
    """Parse the command line and run a stage."""
    run_or_print(
        __doc__, ROWS, lambda a: run_missing(all_jobs(a.data, a.seeds), a.rows, a.workers), print_tables, add_options
    )


if __name__ == "__main__":
    main()
