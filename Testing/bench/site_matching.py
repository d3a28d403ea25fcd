"""When to match a site's grey values: what a curve does to the base's own results, and what the rule makes of it.

    python Testing/bench/site_matching.py run      # what Docs/results/site_matching.csv does not hold
    python Testing/bench/site_matching.py table    # Markdown, from the rows

Base: `brain-t1-bn`. Sites: the made-up shifts on eight support scans of `ixi`, and those of `msd`, another site with scans that
show less (whole hippocampus is scored). The rule `site_matching.is_no_worse` was chosen after a look at `msd`, at
seed 0 and at the weakest sites of seed 1; the rest of seed 1 came later. Test scans are not used. Resumable. Needs the real
volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runs import add_rows, run_or_print
from site_gate import BASE, ixi_values

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "Docs" / "results" / "site_matching.csv"
FAMILIES = ("contrast", "noise", "bias_field", "resolution", "inverted", "field_of_view")
STRENGTHS = (0.3, 0.6, 1.0)
SEEDS = 2
SCANS = 8
KEYS = ("family", "strength", "seed")
FACTS = ("curve", "kept", "dice_before", "dice_after", "gain")
MEASURES = ("not_found", "volume_worse", "transform_drop", "confidence_drop", "edge_drop", "departure")


@dataclass(frozen=True)
class Job:
    """One site."""

    family: str
    strength: float
    seed: int
    data: Path

    def key(self) -> tuple[str, ...]:
        """As in the CSV file."""
        return self.family, f"{self.strength:g}", str(self.seed)


def all_jobs(data: Path) -> list[Job]:
    """The made-up sites, the real other one, and scans as they are."""
    made_up = [Job(f, strength, seed, data) for seed in range(SEEDS) for strength in STRENGTHS for f in FAMILIES]
    return [Job("none", 0, 0, data), Job("msd", 0, 0, data), *made_up]


@cache
def base() -> tuple[Any, Any, Any]:
    """Entry, network and anatomy."""
    from peftseg.models import resolve
    from peftseg.weights import load_base

    entry = resolve(BASE)
    return (entry, *load_base(entry))


def run(job: Job) -> dict[str, Any]:
    """Match, whatever the rule says, and score both: a row."""
    import torch

    from peftseg.events import Reporter
    from peftseg.gate_measures import measures
    from peftseg.grey_match import site_curve
    from peftseg.preprocess import prepare
    from peftseg.site_layers import statistics_of
    from peftseg.site_matching import followed, is_no_worse
    from peftseg.site_options import check_site_options
    from peftseg.site_statistics import read_site
    from peftseg.site_training import SiteSetting, evidence_of

    entry, network, anatomy = base()
    cpu, silent = torch.device("cpu"), Reporter.silent()
    cases = list(scans_of(job))
    scans = [prepare(volume, entry.preprocessing) for volume, _ in cases]
    seen = [
        statistics_of(volume, entry.preprocessing, network, anatomy, entry.window, cpu, silent, prepared=scan)
        for (volume, _), scan in zip(cases, scans, strict=True)
    ]
    curve = site_curve(seen, read_site(entry.record["site"]))
    row = {**dict(zip(KEYS, job.key(), strict=True)), "curve": curve is not None}
    if curve is None:
        dices = round(score(job, cases, scans), 4)
        return {**row, "kept": False, "dice_before": dices, "dice_after": dices, "gain": 0.0}
    matched = [followed(scan, curve) for scan in scans]
    before, after = score(job, cases, scans), score(job, cases, matched)
    setting = SiteSetting(entry, check_site_options("matched", {}), 1, cpu)
    evidence = [evidence_of(setting, network, None, some, silent) for some in (scans, matched)]
    found = measures(*evidence, entry.record["structure_facts"])
    return {
        **row,
        "kept": is_no_worse(*evidence, entry),
        "dice_before": round(before, 4),
        "dice_after": round(after, 4),
        "gain": round(after - before, 4),
        **{name: f"{found[name].value:.4g}" for name in MEASURES},
    }


def scans_of(job: Job):
    """(volume, label array) of the site's first scans."""
    from peftseg.shifts import shift
    from peftseg.volume import read_labels, read_volume

    folder = job.data / ("hippocampus_msd" if job.family == "msd" else "subcortical_ixi") / "support"
    for path in sorted((folder / "images").glob("*.nii.gz"))[:SCANS]:
        volume = read_volume(path)
        if job.family not in ("none", "msd"):
            volume = shift(volume, job.family, job.strength, job.seed)
        yield volume, read_labels(folder / "labels" / path.name).layers[0]


def score(job: Job, cases: list, scans: list) -> float:
    """Mean Dice of the base's own results on prepared scans."""
    import numpy as np
    import torch

    from peftseg.metrics import dice
    from peftseg.segmenter import model_segmenter, segment_volume

    segmenter, values, found = model_segmenter(BASE), ixi_values(job.data), []
    for (volume, labels), scan in zip(cases, scans, strict=True):
        result = segment_volume(segmenter, volume, torch.device("cpu"), prepared=scan)
        for s in segmenter.structures:
            if job.family != "msd":
                found.append(dice(result == s.value, labels == values[s.name]))
            elif s.name == "hippocampus":
                found.append(dice(result == s.value, labels > 0))
    return float(np.nanmean(found))


def print_table(path: Path) -> None:
    """What matching does to the base at each site, and whether the rule keeps it."""
    from peftseg.compare_rows import read_rows

    rows = read_rows(path, (*KEYS, *FACTS))
    print("| site | strength | seed | Dice of the base | change | rule |\n|---|---|---|---|---|---|")
    for row in rows:
        rule = "usual" if row["curve"] == "False" else "matched" if row["kept"] == "True" else "as they are"
        change = "" if rule == "usual" else f"{float(row['gain']):+.3f}"
        print(
            f"| {row['family']} | {row['strength']} | {row['seed']} | {float(row['dice_before']):.3f} | {change} | {rule} |"
        )
    kept = [float(row["gain"]) for row in rows if row["kept"] == "True"]
    others = [float(row["gain"]) for row in rows if row["kept"] != "True" and row["curve"] == "True"]
    print(f"\nMatched at {len(kept)} sites: change {min(kept):+.3f} to {max(kept):+.3f}.")
    print(
        f"Left as they are at {len(others)} sites with a curve: it would have been {min(others):+.3f} to {max(others):+.3f}."
    )


def run_stage(arguments: argparse.Namespace) -> None:
    """Run what the CSV file does not hold."""
    add_rows(run, all_jobs(arguments.data), arguments.rows, arguments.workers, KEYS, FACTS, MEASURES)


def main() -> None:
    """Parse the command line and run a stage."""
    run_or_print(__doc__, ROWS, run_stage, print_table)


if __name__ == "__main__":
    main()
