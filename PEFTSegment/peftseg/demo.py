"""The whole story on made-up anatomy, offline, in minutes (`peftseg demo`).

A model that was trained at site A meets scans of site B: another contrast phase, more noise, other voxels, another axis
order, and a structure that it does not know. Five labelled scans adapt it; four others, which it has never seen, are
scored before and after.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftseg import phantom, report
from peftseg.apply import run_apply
from peftseg.config import AdaptJob, ApplyJob
from peftseg.errors import BadInput
from peftseg.events import Event, Reporter, plain
from peftseg.label_pairs import LabelPair, pair_files, read_pairs
from peftseg.metrics import evaluate_folders, summarise
from peftseg.models import Structure, resolve
from peftseg.paths import write_text
from peftseg.report import Section
from peftseg.study import read_support_folder, require_writable_dir
from peftseg.train import run_adapt
from peftseg.version import __version__
from peftseg.volume import read_volume

MARK = "demo.json"  # says that a folder was made by the demo
UNFINISHED = ".unfinished"
ADAPTER = "site-b.safetensors"
FIRST_PERSON = 10_000  # persons below are free for training base models
TOLERANCE_MM = 3.0
NEEDED_BYTES = 50_000_000
WINDOW = (-160.0, 260.0)


@dataclass(frozen=True)
class Story:
    """What the demo plays through.

    Attributes
    ----------
    model : str
        Base model, trained on phantoms of site A.
    support, unseen : int
        Labelled scans to learn from, and other scans to score on.
    novel : str
        A phantom structure that the base does not know.
    budget_minutes : float
        Time after which the adaptation stops.
    epochs : int or None
        Fixed, so that the planner keeps whole patches: left to the budget (None), it takes many small ones, which learn
        little in two minutes.
    """

    model: str = "phantom-ct"
    support: int = 5
    unseen: int = 4
    novel: str = "gallbladder"
    budget_minutes: float = 2.5
    epochs: int | None = 24


class _Listener(Reporter):
    """Passes everything on to another reporter, and keeps the progress of the training for the curves.

    "Stop and keep" is not passed on: a demo with half of its scans has nothing to compare.
    """

    def __init__(self, outer: Reporter) -> None:
        super().__init__(lambda kind, fields: getattr(outer, kind)(**fields))
        self._outer = outer
        self.result_dir, self.smaller_plan = outer.result_dir, outer.smaller_plan

    def progress(self, stage: str, step: int, total: int, eta_s: float | None = None, **facts: Any) -> None:
        """Keep the event, and pass it on."""
        self.events.append({"event": "progress", "stage": stage, "step": step, "total": total, **plain(facts)})
        self._outer.progress(stage, step, total, eta_s, **facts)

    def check(self) -> None:
        """As the outer reporter."""
        self._outer.check()


def run_demo(
    out: Path | str, seed: int = 0, reporter: Reporter | None = None, story: Story | None = None
) -> dict[str, Any]:
    """Play the story and leave data, segmentations, adapter and report in `out`.

    Parameters
    ----------
    out : Path or str
        New or empty folder, or one of an earlier demo, whose results are replaced when everything has gone well.
    seed : int
        Other seeds are other persons.
    reporter : Reporter, optional
        Hears every step; the table goes to it as log lines. None says nothing.
    story : Story, optional
        Model, numbers of scans and time; None for the usual ones.

    Returns
    -------
    dict
        "report", "adapter", "out" (paths), "rows" (structure, dice_before, dice_after, surface_dice_after), "table"
        (text), "trained_share", "trained_percent", "adapt_seconds", "seconds".

    Raises
    ------
    BadInput
        When `out` holds something else, the seed is negative, or matplotlib is missing. Whatever stops the demo,
        nothing half-done stays.
    """
    story, out = story or Story(), Path(out)
    if seed < 0:  # such persons may be among those that the base model was trained on
        raise BadInput(f"seed is {seed}; expected 0 or more.", "Choose another seed.")
    report.require_matplotlib()
    resolve(story.model)
    check_out(out)
    listener = _Listener(reporter or Reporter.silent())
    work = out / UNFINISHED
    was_there = out.is_dir()
    try:
        work.mkdir(parents=True)
        result = _play(work, seed, story, listener)
        _move_results(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    for line in result["table"].splitlines():
        listener.log(line)
    return {"out": str(out), "report": str(out / "report.html"), "adapter": str(out / ADAPTER), **result}


def check_out(out: Path) -> None:
    """Refuse an output folder that holds anything but an earlier demo; clear what a killed demo left."""
    require_writable_dir(out, NEEDED_BYTES)
    if not out.is_dir():
        return
    others = [p.name for p in out.iterdir() if p.name != UNFINISHED]
    if others and not _made_by_demo(out / MARK):
        raise BadInput(
            f"{out} is not empty and was not made by the demo (it holds {', '.join(sorted(others)[:3])}).",
            "Give a new folder with --out.",
        )
    if (out / UNFINISHED).is_dir():
        shutil.rmtree(out / UNFINISHED)


def _made_by_demo(mark: Path) -> bool:
    try:
        return json.loads(mark.read_text(encoding="utf-8")).get("made_by") == "peftseg demo"
    except (OSError, ValueError, AttributeError):  # missing, not JSON, not an object: somebody else's folder
        return False


def _move_results(work: Path, out: Path) -> None:
    """Put finished results in their place, the mark last."""
    for path in sorted(work.iterdir(), key=lambda p: p.name == MARK):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)


def _play(work: Path, seed: int, story: Story, listener: _Listener) -> dict[str, Any]:
    """All steps, in the folder `work`."""
    started = time.monotonic()
    entry = resolve(story.model)
    known = [s.name for s in entry.structures]
    structures = phantom.structures_named([*known, story.novel])
    support, unseen = work / "data" / "support", work / "data" / "unseen"
    _step(listener, 1, f"Making {story.support} labelled and {story.unseen} unseen scans of site B.")
    persons = [FIRST_PERSON + 100 * seed + n for n in range(story.support + story.unseen)]
    names = [s.name for s in structures]
    phantom.write_dataset(support, persons[: story.support], phantom.SITE_B, names)
    phantom.write_dataset(unseen, persons[story.support :], phantom.SITE_B, names)

    _step(listener, 2, f"Segmenting the unseen scans with {entry.id} as it is.")
    studies = tuple(str(p) for p in sorted((unseen / "images").glob("*.nii.gz")))
    before, after = work / "before", work / "segmentations"
    run_apply(ApplyJob(adapter=None, model=story.model, inputs=studies, out=str(before), seed=seed), listener)

    _step(listener, 3, f"Adapting to site B and to '{story.novel}', at most {story.budget_minutes:g} minutes.")
    adapter = work / ADAPTER
    items = read_support_folder(support, structures)
    job = AdaptJob(
        model=story.model,
        support=items,
        structures=structures,
        out=str(adapter),
        name="Demo: site B",
        seed=seed,
        budget_minutes=story.budget_minutes,
        method="arena",
        options={"lam": 0.3},  # stronger than the default, so that the report shows ranks shrinking within 24 epochs
        epochs=story.epochs,
    )
    adapted = run_adapt(job, listener)

    _step(listener, 4, "Segmenting the unseen scans with the adapter.")
    run_apply(ApplyJob(adapter=str(adapter), model=None, inputs=studies, out=str(after), seed=seed), listener)

    _step(listener, 5, "Comparing with the truth and writing the report.")
    rows = compare(before, after, unseen / "labels", structures, story.novel)
    share = adapted["trained_share"]
    result = {
        "rows": rows,
        "trained_share": share,
        "trained_percent": round(trained_percent(share), 2),
        "adapt_seconds": adapted["seconds"],
        "seconds": round(time.monotonic() - started, 1),
    }
    result["table"] = table_text(result)
    _write_report(work, story, structures, result, listener.events)
    shutil.rmtree(before)
    mark = {"made_by": "peftseg demo", "version": __version__, "seed": seed, **plain(result)}
    write_text(work / MARK, json.dumps(mark, indent=1))
    return result


def _step(listener: _Listener, number: int, sentence: str) -> None:
    listener.check()
    listener.log(f"{number} of 5. {sentence}")


def compare(
    before: Path, after: Path, truth: Path, structures: Sequence[Structure], novel: str
) -> list[dict[str, Any]]:
    """Mean scores of each structure over the cases of two folders of segmentations.

    Returns
    -------
    list of dict
        "structure", "novel", "dice_before" (None where the base does not know it), "dice_after", "surface_dice_after"
        (tolerance 3 mm).
    """
    known = [s for s in structures if s.name != novel]
    first = summarise(evaluate_folders(before, truth, known, TOLERANCE_MM))
    second = summarise(evaluate_folders(after, truth, structures, TOLERANCE_MM))
    return [
        {
            "structure": s.name,
            "novel": s.name == novel,
            "dice_before": None if s.name == novel else first[s.name]["dice"]["mean"],
            "dice_after": second[s.name]["dice"]["mean"],
            "surface_dice_after": second[s.name]["surface_dice"]["mean"],
        }
        for s in structures
    ]


def trained_percent(share: Mapping[str, int]) -> float:
    """Trained numbers in percent of the base's."""
    return 100.0 * sum(n for kind, n in share.items() if kind != "base_total") / share["base_total"]


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Head and rows as text."""
    head = ("structure", "Dice before", "Dice after", f"surface Dice after ({TOLERANCE_MM:g} mm)")
    return [
        head,
        *(
            (
                row["structure"] + (" (new)" if row["novel"] else ""),
                *(_number(row[key]) for key in ("dice_before", "dice_after", "surface_dice_after")),
            )
            for row in rows
        ),
    ]


def table_text(result: Mapping[str, Any]) -> str:
    """The result as lines for a terminal."""
    rows = table_rows(result["rows"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, _facts_line(result)])


def _facts_line(result: Mapping[str, Any]) -> str:
    share = result["trained_share"]
    kinds = ", ".join(f"{kind} {n}" for kind, n in share.items() if n and kind != "base_total")
    return (
        f"Trained: {result['trained_percent']:.1f} % of the model's {share['base_total']} numbers ({kinds}). "
        f"Adapting took {result['adapt_seconds']:.0f} s, everything {result['seconds']:.0f} s."
    )


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _write_report(
    work: Path, story: Story, structures: Sequence[Structure], result: Mapping[str, Any], events: Sequence[Event]
) -> None:
    losses, ranks = report.training_history(events)
    sections = [
        Section(
            "What was done",
            (
                f"The base model {story.model} was trained on made-up scans of site A. It then met made-up scans of "
                "site B: another contrast phase, more noise, other voxel sizes, another axis order. "
                f"It does not know the {story.novel}.",
                f"{story.support} labelled scans of site B adapted it. The scores are means over {story.unseen} other "
                "scans of site B, which took no part in the adaptation.",
                "All scans are computed, none is a patient's. The scores say that the program works; they say nothing "
                "about its accuracy on patients.",
            ),
        ),
        Section(
            "Scores",
            ("1 is a perfect match with the truth, 0 is none.", _facts_line(result)),
            tuple(table_rows(result["rows"])),
        ),
        Section(
            "Unseen scans", ("Solid: truth. Dashed: segmentation.",), pictures=_pictures(work, structures, story.novel)
        ),
        Section(
            "Training", (), pictures=(("Loss, and the rank of each adapted layer.", report.curves(losses, ranks)),)
        ),
        Section(
            "Go on",
            (
                f"{ADAPTER} is the adapter, data holds the scans and their labels, segmentations the results; "
                "3D Slicer opens them.",
                f"peftseg apply --adapter {ADAPTER} --input data/unseen/images --out again",
            ),
        ),
    ]
    report.write_html(work / "report.html", "PEFTSegment demo", sections)


def _pictures(work: Path, structures: Sequence[Structure], novel: str) -> tuple[tuple[str, bytes], ...]:
    """The first unseen scan before and after, the others after."""
    images, truth = work / "data" / "unseen" / "images", work / "data" / "unseen" / "labels"
    before = pair_files(work / "before", truth)[:1]
    after = pair_files(work / "segmentations", truth)
    return tuple(
        (f"{pair.case}, {title} adaptation", _picture(images, pair, structures, novel))
        for title, files in (("before", before), ("after", after))
        for pair in read_pairs(files, structures)
    )


def _picture(images: Path, pair: LabelPair, structures: Sequence[Structure], novel: str) -> bytes:
    volume = read_volume(images / f"{pair.case}.nii.gz")
    truth, prediction = (_label_map(masks, structures) for masks in (pair.truth, pair.prediction))
    return report.overlay(
        volume.array,
        volume.grid,
        structures,
        truth=truth,
        prediction=prediction,
        focus=pair.truth[novel],
        window=WINDOW,
    )


def _label_map(masks: Mapping[str, np.ndarray], structures: Sequence[Structure]) -> np.ndarray:
    labels = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for structure in structures:
        if structure.name in masks:
            labels[masks[structure.name]] = structure.value
    return labels
