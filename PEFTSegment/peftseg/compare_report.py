"""The Markdown report of a comparison, from its rows and settings alone. Torch-free.

One task: the sections of that task. Several: those over all tasks, in which each counts once, and then those of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftseg.compare_bootstrap import ALPHA
from peftseg.compare_plots import can_draw, write_plots
from peftseg.compare_rows import Rows, in_every_task, over_patients
from peftseg.compare_settings import patients_of_task, same_patients
from peftseg.compare_tables import (
    RANK_MARK,
    chosen_table,
    count_runs,
    in_order,
    knows_start,
    markdown,
    paired_table,
    pareto_table,
    rank_rows,
    ranks_table,
    scores_table,
    share_table,
    structures_table,
    summaries,
    tasks_table,
)
from peftseg.compare_tasks import COUNTED_ALONE
from peftseg.events import Reporter
from peftseg.paths import write_text
from peftseg.patients import count_patients
from peftseg.report import NOTICE

__all__ = ["RANK_MARK", "REPORT", "markdown", "paired_table", "rank_rows", "summaries", "write_report"]

REPORT = "report.md"
POOL_EPOCHS = 8  # at most, as adapters.features.POOL, which needs torch


@dataclass(frozen=True)
class _Part:
    """Sections about some rows: of one task, or of all (`tasks` then holds their names).

    `level` is that of the headings, `mark` the beginning of the plots' file names; without `drawn` there are none.
    """

    rows: Rows
    tasks: tuple[str, ...]
    level: int
    mark: str
    drawn: bool
    tolerance_mm: float

    def heading(self, text: str, deeper: int = 0) -> str:
        """A heading of this part."""
        return f"{'#' * (self.level + deeper)} {text}"


def write_report(
    out: Path,
    rows: Rows,
    settings: dict[str, Any],
    missing: int,
    failed: Sequence[str],
    skipped: Sequence[str],
    reporter: Reporter,
) -> Path:
    """Write `report.md` and, with matplotlib, the plots that it shows; returns its path.

    Scores are averaged over the test scans of a patient first, so that each patient counts once.

    Parameters
    ----------
    out : Path
        Folder of the comparison.
    rows : sequence of dict
        From `read_rows`.
    settings : dict
        From `comparison.settings_of`.
    missing : int
        Runs that were asked for and are not done.
    failed, skipped : sequence of str
        Runs that failed, and methods that do not fit the model, with the reason.
    """
    tasks = tuple(dict.fromkeys([*settings["tasks"], *(row["task"] for row in rows)]))
    drawn, tolerance = can_draw(reporter), settings["tolerance_mm"]
    parts = [_head(rows, settings, missing, failed, skipped)]
    rows = over_patients(rows, same_patients(settings))
    if len(tasks) == 1:
        parts += _sections(out, _Part(rows, tasks, 2, "", drawn, tolerance))
    else:
        parts += ["## All tasks", _OVER_TASKS, *_sections(out, _Part(rows, tasks, 3, "", drawn, tolerance))]
    for number, task in enumerate(tasks if len(tasks) > 1 else (), start=1):
        of_task = [row for row in rows if row["task"] == task]
        part = _Part(of_task, (task,), 3, f"task{number}_", drawn, tolerance)
        parts += [f"## Task: {task}", *(_sections(out, part) if of_task else ["No run of this task is done yet."])]
    write_text(out / REPORT, "\n\n".join(part for part in parts if part) + "\n")
    return out / REPORT


_OVER_TASKS = (
    "Each task counts once: structures are averaged within a patient, then patients and draws within a task, then tasks. "
    "Intervals resample draws and patients in each task by itself; they say nothing about other tasks."
)


def _sections(out: Path, part: _Part) -> Iterator[str]:
    """The sections of a part, and its plots."""
    main = [row for row in part.rows if RANK_MARK not in row["candidate"]]
    shots = sorted({int(row["shots"]) for row in part.rows})
    of_ranks: list[dict[str, Any]] = []
    plotted: list[dict[str, Any]] = []
    for count in shots:
        chosen, left_out = _complete(main, count, part.tasks)
        plotted += chosen
        if chosen or left_out:
            yield part.heading(f"{count} shots")
        if left_out:
            yield f"Not in these tables, as they have no run in some of the tasks: {', '.join(left_out)}."
        yield from _shots_section(chosen, part) if chosen else ()
        of_ranks += _complete(part.rows, count, part.tasks)[0]
    ranks = rank_rows(of_ranks)
    if ranks:
        yield part.heading("Robustness to the initial rank")
    for count in sorted({int(row["shots"]) for row in ranks}):
        yield f"{count} shots:\n\n{ranks_table([row for row in ranks if int(row['shots']) == count])}"
    pictures = write_plots(out, plotted, ranks, part.mark) if part.drawn else []
    if pictures:
        yield part.heading("Plots")
    yield from (f"![{caption}]({name})\n\n{caption}" for name, caption in pictures)


def _complete(rows: Rows, shots: int, tasks: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one size of support set, of the methods that have some in all tasks, and the names of the others."""
    return in_every_task([row for row in rows if int(row["shots"]) == shots], tasks)


def _head(rows: Rows, settings: dict[str, Any], missing: int, failed: Sequence[str], skipped: Sequence[str]) -> str:
    training = [
        "the method's own number of epochs" if settings["epochs"] is None else f"{settings['epochs']} epochs",
        *([f"at most {settings['budget_minutes']:g} min"] if settings["budget_minutes"] else []),
        f"on {settings['device']} in {settings['precision']}",
    ]
    lines = [
        f"# Comparison of methods on {settings['model']}\n\n{NOTICE}\n",
        *_tasks_in_words(settings["tasks"]),
        f"- Training: {', '.join(training)}",
        f"- Runs: {count_runs(rows)} in runs.csv"
        + (f"; **{len(failed)} failed, see below**" if failed else "")
        + (f"; **{missing} are missing: start the same command again**" if missing else ""),
        "- Each draw is another support set and seed, the same for all methods. Intervals are 95 %, bootstrapped over "
        "draws and patients; structures count equally within a scan. A difference is a tie unless its p-value, adjusted for "
        f"the number of comparisons, is below {ALPHA:g}. Intervals are not widened for that number, and with two or three "
        "draws still somewhat narrow.",
        *(f"- Failed: {text}" for text in failed),
        *(f"- Left out: {text}" for text in skipped),
    ]
    return "\n".join(lines)


def _tasks_in_words(tasks: dict[str, Any]) -> list[str]:
    lines = []
    for name, task in tasks.items():
        structures = ", ".join(task["structures"])
        scans = f"{len(task['support'])} to draw support sets from, {len(task['test'])} to test on{_whose(task)}"
        one = [f"- Structures: {structures}", f"- Scans: {scans}"]
        lines += one if len(tasks) == 1 else [f"- Task {name}: {structures}; scans: {scans}"]
    return lines


def _whose(task: dict[str, Any]) -> str:
    """Words about the patients of a task's test scans, where some are of one."""
    patients = list(patients_of_task(task).values())
    number = count_patients(patients)
    if number == 1 and len(patients) > 1:
        return f" (**all of one patient**: {COUNTED_ALONE})"
    if number is None or number == len(patients):
        return ""
    return (
        f" (of {number} patients: scores are averaged over a patient's scans first, so that each patient counts once)"
    )


def _shots_section(rows: Rows, part: _Part) -> list[str]:
    facts = summaries(rows)
    order = in_order(facts)
    ordered = sorted(rows, key=lambda row: order.index(row["candidate"]))
    of_memory = ", ".join(sorted({row["memory_of"] for row in rows if row.get("memory_of")}))
    by_part = (
        [part.heading("By structure", 1), structures_table(ordered, part.tolerance_mm)]
        if len(part.tasks) == 1
        else [part.heading("By task", 1), tasks_table(rows, order)]
    )
    choices = chosen_table(ordered)
    return [
        scores_table(facts, order, part.tolerance_mm),
        *([_UNEQUAL] if len(_draws_of(rows)) > 1 else []),
        f"Spread: standard deviation of the draws' means. Trained values are those that the finished adapter holds, after "
        f"pruning. {_COSTS} Memory in all is the peak ({of_memory}) and memory added that peak minus what was taken when "
        "training began; all trainings here ran in one process, so that memory which an earlier one left behind counts in "
        "the former and not in the latter.",
        *([part.heading("What was chosen", 1), choices, _CHOICES] if choices else []),
        *by_part,
        part.heading("Trained values by kind", 1),
        share_table(facts, order),
        f"Values that trained at the start, before anything was pruned{_without_start(facts)}. Buffers are stored with the "
        "adapter and not trained.",
        part.heading("Accuracy against size", 1),
        pareto_table(facts, order),
        "On the front: no other method is as accurate and as small. Trained are here the values that trained at the start, "
        f"before anything was pruned{_without_total(facts)}. The score is that of the thesis, half the Dice and half the "
        "smallness, scaled over the methods in this table; what it calls a frontier is no Pareto front.",
        *(_paired_sections(ordered, part) if len(order) > 1 else ()),
    ]


def _paired_sections(ordered: Rows, part: _Part) -> list[str]:
    surface = f"Surface Dice {part.tolerance_mm:g} mm"
    return [
        part.heading("Paired differences", 1),
        paired_table(ordered),
        _PAIRED,
        part.heading(f"Paired differences of surface Dice {part.tolerance_mm:g} mm", 1),
        paired_table(ordered, "surface_dice", surface),
    ]


def _draws_of(rows: Rows) -> set[tuple[frozenset[str], ...]]:
    """The draws of the tasks, of each method; one entry where all have the same."""
    found: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        found.setdefault(row["candidate"], {}).setdefault(row["task"], set()).add(row["draw"])
    return {tuple(frozenset(of_task) for _, of_task in sorted(draws.items())) for draws in found.values()}


def _without_total(facts: dict[str, dict[str, Any]]) -> str:
    """Words about the methods whose rows are older than that count."""
    return _only_after([label for label, fact in facts.items() if math.isnan(fact["trained_at_start"])])


def _without_start(facts: dict[str, dict[str, Any]]) -> str:
    """Words about the methods whose rows are older than the counts by kind."""
    return _only_after([label for label, fact in facts.items() if not knows_start(fact)])


def _only_after(unknown: Sequence[str]) -> str:
    return f" (of {', '.join(unknown)} only the count after pruning is known)" if unknown else ""


_UNEQUAL = (
    "**The methods do not have the same draws.** Their means are over different support sets; only the paired differences "
    "compare the same ones."
)
_COSTS = (
    "Rank is the number of components that are left, effective rank that of the merged change of the weights (exp of the "
    "entropy of its singular values); both are means over layers, head and decoder apart. linear_probe and spatial_adapter "
    f"train on features that are kept: they see the patches of their first {POOL_EPOCHS} epochs (fewer where the memory does "
    "not hold them) again and again, the others new ones in each epoch. Time is that of training on the clock; processor time "
    "hardly depends on other work."
)
_PAIRED = (
    "Bold is what is no tie. p-values: paired bootstrap over patients and draws, two-sided, adjusted by Holm's method for all "
    "pairs in this table; intervals are not adjusted. Where methods have one draw in common there is no verdict: its "
    "interval is over patients only."
)


_CHOICES = "Chosen from the support set of each run alone; the time of the search is in the time of training."
