"""How well scans of other sites are told from a site's own: what `site_checks.py` and `suggest.py` promise, counted.

    python Testing/bench/site_statistics.py [--model brain-t1] [--draws 200]

Prints, for the real scans of one scanner (subcortical_ixi) and made-up shifts of them (`shifts.py`, one seed a site):
how often a folder of one site is called mixed; how often a mixed one is noticed, and all its strangers named; how often the
adapter of the right one of several sites is ranked first. Real data beside the project are needed (shared/data).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from peftseg.events import Reporter
from peftseg.models import resolve
from peftseg.shifts import FAMILIES, shift
from peftseg.site_checks import mixed_sites, numbered
from peftseg.site_layers import statistics_of
from peftseg.site_statistics import ScanStatistics, SiteStatistics, distance_to, summarise, with_common_spread
from peftseg.volume import Volume, read_volume
from peftseg.weights import load_base

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "subcortical_ixi"
OTHER = DATA.parent / "hippocampus_msd"
STRENGTHS = (0.2, 0.4)
PER_SITE = 5  # scans that an adapter was made of
SHIFTED = 16  # scans that are shifted, for each family and strength
Look = Callable[[Volume], ScanStatistics]


def looker(model: str) -> Look:
    """A function that measures a scan under a model."""
    entry = resolve(model)
    network, anatomy = load_base(entry)
    device, reporter = torch.device("cpu"), Reporter.silent()
    return lambda v: statistics_of(v, entry.preprocessing, network, anatomy, entry.window, device, reporter)


def read(folder: Path, *parts: str) -> list[Volume]:
    """The scans of a data set, in the order of their files' names."""
    return [read_volume(file) for part in parts for file in sorted((folder / part / "images").iterdir())]


def draw(rng: np.random.Generator, scans: list[ScanStatistics], count: int) -> list[ScanStatistics]:
    """Some scans, none twice."""
    return [scans[n] for n in rng.choice(len(scans), count, replace=False)]


def false_alarms(scans: list[ScanStatistics], draws: int) -> None:
    """Folders of one site that are called mixed."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 4, 5, 6, 8, 10, 16):
        alarms = sum(bool(mixed_sites(draw(rng, scans, count))) for _ in range(draws))
        print(f"one site, {count} scans: {alarms} of {draws} folders are called mixed")


def noticed(name: str, own: list[ScanStatistics], others: list[ScanStatistics], draws: int) -> None:
    """Folders of five and three scans of two sites: warned about, and with just the three named."""
    rng = np.random.default_rng(1)
    found = [mixed_sites([*draw(rng, own, 5), *draw(rng, others, 3)]) for _ in range(draws)]
    right = sum(any(text.startswith(numbered((5, 6, 7), 8)) for text in texts) for texts in found)
    print(
        f"{name}: {sum(map(bool, found))} of {draws} mixed folders are noticed, {right} with just the strangers named"
    )


def ranked_right(sites: dict[str, list[ScanStatistics]]) -> None:
    """New scans of each site, whose own site comes first among all."""
    known = [summarise(scans[:PER_SITE]) for scans in sites.values()]
    for how, compared in (("their own spreads", known), ("the common spread", with_common_spread(known))):
        _first(how, dict(zip(sites, compared, strict=True)), sites)


def _first(how: str, known: dict[str, SiteStatistics], sites: dict[str, list[ScanStatistics]]) -> None:
    right = every = 0
    for name, scans in sites.items():
        totals = [{k: distance_to(site, scan).total for k, site in known.items()} for scan in scans[PER_SITE:]]
        first = sum(min(total, key=total.get) == name for total in totals)
        right, every = right + first, every + len(totals)
        own = np.median([total[name] for total in totals])
        next_best = np.median([min(v for k, v in total.items() if k != name) for total in totals])
        print(
            f"  {name}: own first in {first} of {len(totals)}; median distance {own:.2f}, of the next {next_best:.2f}"
        )
    print(f"By {how}: {right} of {every} right")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="brain-t1")
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    look = looker(arguments.model)
    volumes = read(DATA, "pretrain", "support", "test")
    own, real = [look(v) for v in volumes], [look(v) for v in read(OTHER, "support", "test")]
    false_alarms(own, arguments.draws)
    noticed("hippocampus_msd", own, real, arguments.draws)
    for strength in STRENGTHS:
        shifted = {
            f"{family} {strength}": [look(shift(v, family, strength, 1)) for v in volumes[:SHIFTED]]
            for family in FAMILIES
        }
        for name, scans in shifted.items():
            noticed(name, own[SHIFTED:], scans, arguments.draws)
        print(f"Ranking among the scanner, {len(FAMILIES)} shifts of strength {strength}, and hippocampus_msd:")
        ranked_right({"subcortical_ixi": own[SHIFTED:], "hippocampus_msd": real, **shifted})


if __name__ == "__main__":
    main()
