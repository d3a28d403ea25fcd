"""Reference rows beside the methods: multi-atlas registration, and nnU-Net v2 from scratch, on the same draws and scans.

    python Testing/bench/references.py tune      # multi-atlas: its settings, from support scans only
    python Testing/bench/references.py support   # both references on one draw's left-out support scans; nnU-Net with and
                                                 # without mirrored patches
    python Testing/bench/references.py test      # both on the test scans, scored once
    python Testing/bench/references.py table     # means on support scans and on test scans, beside those of some methods

Draws, support sets, tasks and scores are those of experiment.py. Resumable: runs that the CSV files hold are not repeated.

nnU-Net is no dependency of the engine. It runs in any interpreter that has it: this one when it was installed with the
extra `dev`, or one of its own:

    python -m venv ../nnunet-venv && ../nnunet-venv/bin/pip install nnunetv2==2.8.1
    python Testing/bench/references.py test --nnunet-python ../nnunet-venv/bin/python

Its folders are temporary and removed after each run. It takes 300 optimiser steps of two patches each on support scans and
1,000 on test scans instead of its default 250,000; the methods take 200 of one patch. Both references see voxel sizes, but
no position in the world: MSD's positions are nominal, IXI's are the scanner's.

Columns: `seconds` is processor time of one thread, which on an idle machine is the time it takes: of nnU-Net's training with
planning and preprocessing (in `cpu_seconds`, too); multi-atlas trains nothing, there it is the time a scan.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from experiment import DRAWS, RESULTS, ROOT, SHOTS, TASKS, tasks
from experiment import SUPPORT_ROWS as METHOD_ROWS
from experiment import TEST_ROWS as METHOD_TEST_ROWS
from multi_atlas import Atlas, Settings, fuse, make_atlas, segment, warp
from nnunet_reference import DATASET
from peftseg.errors import BadInput
from peftseg.grid import Grid, array_from_itk, image_to_itk
from runs import give_way, keep_rows

SUPPORT_ROWS, TEST_ROWS = RESULTS / "references_support.csv", RESULTS / "methods_references.csv"
ATLAS = Settings("demons", 0.7, 40, "joint")  # the best of `tune`
FUSIONS = ("majority", "local", "joint")
GRID = (
    Settings("none"),
    *(Settings("demons", smoothing, 40) for smoothing in (1.5, 1.0, 2.0, 0.7, 0.5)),
    Settings("bspline", 12.0, 20),
)
TUNING_SCANS = 3  # of the seven that the first draw leaves out
ATLAS_LABEL = "multi-atlas"
NNUNET_ITERATIONS = 10  # an epoch
NNUNET_LABEL = "nnU-Net v2, 300 steps"
NNUNET_TESTED = "nnU-Net v2, 1000 steps"
TRAINERS = {  # label -> trainer and epochs
    NNUNET_LABEL: ("nnUNetTrainer", 30),
    f"{NNUNET_LABEL}, no mirroring": ("nnUNetTrainerNoMirroring", 30),
    NNUNET_TESTED: ("nnUNetTrainer", 100),
}
TESTED = (ATLAS_LABEL, NNUNET_TESTED)
ON_SUPPORT = (ATLAS_LABEL, *(label for label in TRAINERS if label != NNUNET_TESTED))
Run = tuple[list[np.ndarray], dict]  # a label map (I, J, K) a scored scan, and columns of the rows


def draw_scans(task: object, draw: int) -> tuple[list, tuple, list]:
    """Loaded support scans of a draw; items to score (without test scans the undrawn support scans), and they, loaded."""
    from peftseg.compare import draw_support, items_to_score
    from peftseg.dataset import load_scans
    from peftseg.events import Reporter

    chosen = draw_support(len(task.support), SHOTS, draw)
    items = items_to_score(task, chosen)
    support, scored = (
        load_scans(of, task.structures, None, Reporter.silent()) for of in ([task.support[n] for n in chosen], items)
    )
    axes = {scan.volume.grid.axcodes for scan in (*support, *scored)}
    if len(axes) > 1:
        raise BadInput(f"The scans of {task.name} have the axes {sorted(axes)}; expected one.", "Reorient them alike.")
    return support, items, scored


def to_atlas(scan: object, structures: Iterable = ()) -> Atlas:
    """A loaded scan for registration, with the labels of `structures`."""
    return make_atlas(scan.volume.array, scan.volume.grid.spacing, [scan.masks[s.name] for s in structures])


def run_atlas(task: object, draw: int, support: list, scored: list, settings: Settings) -> Run:
    """Segment every scored scan with the support scans as atlases."""
    atlases = [to_atlas(scan, task.structures) for scan in support]
    started = time.process_time()
    found = [segment(to_atlas(scan), atlases, len(task.structures), settings) for scan in scored]
    return found, {"seconds": (time.process_time() - started) / len(scored), "method": "registration", "trained": 0}


def run_nnunet(task: object, draw: int, support: list, scored: list, python: str, label: str) -> Run:
    """Train nnU-Net on the support scans in a process of its own, and read its predictions of the scored scans."""
    trainer, epochs = TRAINERS[label]
    folder = Path(tempfile.mkdtemp(prefix="peftseg-nnunet-"))
    try:
        write_dataset(folder, task, support, scored)
        command = [python, str(Path(__file__).with_name("nnunet_reference.py")), str(folder), "--trainer", trainer]
        command += ["--epochs", str(epochs), "--iterations", str(NNUNET_ITERATIONS), "--seed", str(draw)]
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise RuntimeError(f"nnU-Net ended with {done.returncode}:\n{(folder / 'log.txt').read_text()[-3000:]}")
        paths = [folder / "predictions" / f"scan{n:03d}.nii.gz" for n in range(len(scored))]
        found = [array_from_itk(sitk.ReadImage(str(path))) for path in paths]
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder)
    print(f"{task.name}, draw {draw}: {facts}", flush=True)
    columns = {key: facts[key] for key in ("seconds", "trained")}
    columns |= {"cpu_seconds": round(facts["seconds"], 1), "trained_at_start": facts["trained"]}
    columns |= {"epochs": epochs, "trained_body": facts["trained"], "base_total": facts["trained"]}
    return found, columns | {"method": trainer}


def write_dataset(folder: Path, task: object, support: list, scored: list) -> None:
    """Scans and labels in nnU-Net's layout, on grids that keep the voxel sizes only; label 1 is the first structure."""
    raw, inputs = folder / "raw" / DATASET, folder / "inputs"
    for part in (raw / "imagesTr", raw / "labelsTr", inputs):
        part.mkdir(parents=True)
    for number, scan in enumerate(support):
        labels = to_atlas(scan, task.structures).labels
        write_nominal(scan.volume.array, scan, raw / "imagesTr" / f"support{number:03d}_0000.nii.gz")
        write_nominal(labels, scan, raw / "labelsTr" / f"support{number:03d}.nii.gz")
    for number, scan in enumerate(scored):
        write_nominal(scan.volume.array, scan, inputs / f"scan{number:03d}_0000.nii.gz")
    labels = {"background": 0} | {s.name: value for value, s in enumerate(task.structures, start=1)}
    facts = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(support), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")


def write_nominal(array: np.ndarray, scan: object, path: Path) -> None:
    grid = Grid(array.shape, np.diag([*scan.volume.grid.spacing, 1.0]))
    sitk.WriteImage(image_to_itk(array, grid), str(path))


def rows_of(task: object, label: str, draw: int, items: tuple, scored: list, run: Run) -> list[dict]:
    """One row a scan and structure, with peftseg's own metrics, in the columns of the comparison."""
    from peftseg.compare import TOLERANCE_MM
    from peftseg.compare_rows import SHARE
    from peftseg.metrics import dice, surface_dice
    from peftseg.volume import file_stem

    found, facts = run
    blank = dict.fromkeys(("epochs", "base_total", *SHARE), 0)
    common = blank | {"task": task.name, "candidate": label, "shots": SHOTS, "draw": draw, "device": "cpu"} | facts
    common |= {"seconds": round(facts["seconds"], 1)}
    rows = []
    for item, scan, labels in zip(items, scored, found, strict=True):
        spacing = scan.volume.grid.spacing
        for value, structure in enumerate(task.structures, start=1):
            pair = (labels == value, scan.masks[structure.name])
            scores = {"dice": dice(*pair), "surface_dice": surface_dice(*pair, spacing, TOLERANCE_MM)}
            rounded = {key: round(float(score), 4) for key, score in scores.items()}
            rows.append(common | {"scan": file_stem(item.image), "structure": structure.name} | rounded)
    return rows


def one_run(task: object, label: str, draw: int, python: str) -> list[dict]:
    """The rows of one reference on one draw, in a worker process."""
    support, items, scored = draw_scans(task, draw)
    if label == ATLAS_LABEL:
        run = run_atlas(task, draw, support, scored, ATLAS)
    else:
        run = run_nnunet(task, draw, support, scored, python, label)
    return rows_of(task, label, draw, items, scored, run)


def tuning_run(task: object, settings: Settings) -> list[dict]:
    """The rows of all fusions with one kind of registration, on left-out support scans of the first draw."""
    support, items, scored = draw_scans(replace(task, test=()), draw=0)
    items, scored = items[:TUNING_SCANS], scored[:TUNING_SCANS]
    atlases = [to_atlas(scan, task.structures) for scan in support]
    found: dict[str, list] = {fusion: [] for fusion in FUSIONS}
    started = time.process_time()
    for scan in scored:
        target = to_atlas(scan)
        moved, votes = zip(*(warp(target, atlas, len(task.structures), settings) for atlas in atlases), strict=True)
        for fusion, maps in found.items():
            maps.append(fuse(array_from_itk(target.image), np.stack(moved), np.stack(votes), fusion))
    facts = {"seconds": (time.process_time() - started) / len(scored), "method": "registration", "trained": 0}
    sets = ((tuning_label(settings, fusion), maps) for fusion, maps in found.items())
    return [row for label, maps in sets for row in rows_of(task, label, 0, items, scored, (maps, facts))]


def tuning_label(settings: Settings, fusion: str) -> str:
    return f"{ATLAS_LABEL} {settings.deformation} {settings.scale:g} {fusion}"


def _start_worker() -> None:
    give_way()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def print_choice() -> None:
    """Mean Dice of every setting of the multi-atlas reference on left-out support scans."""
    from peftseg.compare_rows import read_rows

    print_means(read_rows(SUPPORT_ROWS), itertools.starmap(tuning_label, itertools.product(GRID, FUSIONS)))


def print_support() -> None:
    """Mean Dice of the references and of three methods at their table's rates on all left-out support scans of one draw."""
    from peftseg.compare_rows import read_rows

    labels = (*ON_SUPPORT, "lora x1", "full x1", "scratch x1")
    print_means([*read_rows(SUPPORT_ROWS), *read_rows(METHOD_ROWS)], labels)


def print_test() -> None:
    """Mean Dice of nnU-Net on the test scans, beside the other reference and three methods on the same draws."""
    from peftseg.compare_rows import in_common_draws, read_rows

    labels = (*TESTED, "lora", "full", "scratch")
    rows = [*read_rows(TEST_ROWS), *(row for row in read_rows(METHOD_TEST_ROWS) if int(row["shots"]) == SHOTS)]
    chosen = [row for row in rows if row["candidate"] in labels]
    if {row["task"] for row in chosen if row["candidate"] == NNUNET_TESTED} == set(TASKS):
        common, _ = in_common_draws(chosen)
        draws = sorted({row["draw"] for row in common})
        print(f"\nTest scans, draws {', '.join(draws)}:")
        print_means(common, labels)


def print_means(rows: list[dict[str, str]], labels: Iterable[str]) -> None:
    """Mean Dice of those that have runs of all tasks, the best first; a task counts once, structures equally."""
    from peftseg.compare_rows import mean_of, over_structures, score_table

    tables = score_table(over_structures(rows))
    means = {}
    for label in labels:
        of_task = {task: mean_of(table) for (task, name, _), table in tables.items() if name == label}
        means |= {label: of_task} if len(of_task) == len(TASKS) else {}
    for label, of_task in sorted(means.items(), key=lambda entry: -mean_of(list(entry[1].values()))):
        each = ", ".join(f"{task} {mean:.4f}" for task, mean in sorted(of_task.items()))
        print(f"{label}: {mean_of(list(of_task.values())):.4f} ({each})")


def check_nnunet(python: str) -> None:
    """BadInput where the interpreter has no nnU-Net."""
    asked = "import nnunetv2"
    if not shutil.which(python) or subprocess.run([python, "-c", asked], capture_output=True, check=False).returncode:
        raise BadInput(
            f"{python} has no nnunetv2, which the reference '{NNUNET_LABEL}' needs.",
            "pip install nnunetv2==2.8.1, in an environment of its own, and give its interpreter with "
            f"--nnunet-python; or leave the reference out with --only {ATLAS_LABEL}.",
        )


def tune(data: Path, workers: int) -> None:
    """Score every setting of the multi-atlas reference on left-out support scans, and print the means."""
    chosen = tasks(data, with_test=False)
    jobs = [
        ((task.name, tuning_label(settings, FUSIONS[-1]), SHOTS, 0), (task, settings))
        for settings in GRID
        for task in chosen
    ]
    keep_rows(tuning_run, jobs, SUPPORT_ROWS, workers, _start_worker)
    print_choice()


def run_references(labels: tuple[str, ...], python: str, data: Path, draws: int, on_test: bool, workers: int) -> None:
    """Run references on all tasks and draws; draws outermost, so that an early end is fair."""
    if set(labels) & set(TRAINERS):
        check_nnunet(python)
    every = itertools.product(range(draws), tasks(data, on_test), labels)
    jobs = [((task.name, label, SHOTS, draw), (task, label, draw, python)) for draw, task, label in every]
    keep_rows(one_run, jobs, TEST_ROWS if on_test else SUPPORT_ROWS, workers, _start_worker)


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("tune", "support", "table", "test"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the test stage; the support stage has one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=(ATLAS_LABEL, *TRAINERS), help="one reference")
    parser.add_argument("--nnunet-python", default=sys.executable, help="interpreter that has nnunetv2")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    on_test = arguments.stage == "test"
    labels = (arguments.only,) if arguments.only else TESTED if on_test else ON_SUPPORT
    draws = arguments.draws if on_test else 1
    try:
        if arguments.stage == "tune":
            tune(arguments.data, arguments.workers)
        elif arguments.stage == "table":
            print_choice()
            print_support()
            print_test()
        else:
            run_references(labels, arguments.nnunet_python, arguments.data, draws, on_test, arguments.workers)
    except BadInput as error:
        parser.exit(2, f"{error.message} {error.remedy}\n")


if __name__ == "__main__":
    main()
