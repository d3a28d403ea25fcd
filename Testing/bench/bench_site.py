"""Time of an adaptation without labels, five epochs on ten scans: `python Testing/bench/bench_site.py [--two-d MODELDIR]`.

The ten support scans of `subcortical_ixi` at a made-up noisy site, all cores. Models: a 2D U-Net (`--two-d`; left out, one is
trained for two epochs first, for how good it is changes no time) and `brain-t1-bn`. Time runs from start to verdict, by the
stage that events name. Needs the real volumes (`--data`, default `../shared/data`).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from make_models import brain_job
from site_experiment import BASE, ROOT, Job, write_scans

SCANS, EPOCHS = 10, 5
WARM_UP_EPOCHS = 2  # of the 2D network that is trained here


def seconds_by_stage(model: str, folder: Path, out: Path) -> tuple[dict[str, float], int]:
    """Seconds of each stage, in the order of the job, and epochs that were run."""
    from peftseg.config import SiteAdaptJob
    from peftseg.events import Reporter
    from peftseg.site_adapt import run_site_adapt

    marks: list[tuple[str, float]] = [("start", time.perf_counter())]

    def watch(kind: str, fields: dict) -> None:
        if kind == "progress" and fields["stage"] != marks[-1][0]:
            marks.append((fields["stage"], time.perf_counter()))

    asked = SiteAdaptJob(
        model=model,
        unlabelled=(str(folder),),
        out=str(out),
        epochs=EPOCHS,
        device="cpu",
        keep_refused=True,
    )
    result = run_site_adapt(asked, Reporter(watch))
    marks.append(("end", time.perf_counter()))
    found: dict[str, float] = {}
    for (stage, begun), (_, ended) in itertools.pairwise(marks):
        found[stage] = found.get(stage, 0.0) + ended - begun
    return found, result["epochs"]


def train_two_d(data: Path, out: Path) -> Path:
    """A 2D network with an early head, hardly trained."""
    from peftseg.events import Reporter
    from peftseg.pretrain import run_pretrain

    job, _ = brain_job(data, out, WARM_UP_EPOCHS, "brain-t1-2d")
    run_pretrain(replace(job, data=job.data[:SCANS]), Reporter.silent())
    return out


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--two-d", type=Path, default=None, help="MODELDIR of brain-t1-2d")
    arguments = parser.parse_args()
    if not (arguments.data / "subcortical_ixi").is_dir():
        print(f"Nothing is timed: {arguments.data / 'subcortical_ixi'} is not here.")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        write_scans(Job(BASE, "noise", "", 0, arguments.data), "support", site, (), SCANS)
        two_d = arguments.two_d or train_two_d(arguments.data, folder / "brain-t1-2d")
        for number, (title, model) in enumerate((("2D U-Net", str(two_d)), (BASE, BASE))):
            stages, epochs = seconds_by_stage(model, site / "images", folder / f"{number}.safetensors")
            parts = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in stages.items())
            print(f"{title}: {SCANS} scans, {epochs} epochs: {sum(stages.values()):.0f} s ({parts})", flush=True)


if __name__ == "__main__":
    main()
