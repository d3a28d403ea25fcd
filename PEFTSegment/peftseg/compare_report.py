"""The Markdown report of a comparison, from its rows and settings alone. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peftseg.compare_plots import write_plots
from peftseg.compare_rows import (
    SHARE,
    Rows,
    differences,
    draw_spread,
    interval,
    mean_of,
    over_structures,
    score_table,
)
from peftseg.events import Reporter
from peftseg.pareto import pareto_front, thesis_front, thesis_scores
from peftseg.paths import write_text
from peftseg.report import NOTICE

REPORT = "report.md"
RANK_MARK = " rank="  # in the label of a method at another initial rank; no method's name holds it
SHARE_HEADS = ("adapter", "norm", "head", "decoder", "rest of the body", "buffers")


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
    main = [row for row in rows if RANK_MARK not in row["candidate"]]
    shots = sorted({int(row["shots"]) for row in rows})
    parts = [_head(rows, settings, missing, failed, skipped)]
    for count in shots:
        chosen = [row for row in main if int(row["shots"]) == count]
        if chosen:
            parts += [f"## {count} shots", *_shots_section(chosen, settings["tolerance_mm"])]
    ranks = rank_rows(rows)
    parts += ["## Robustness to the initial rank", *(_ranks_section(ranks, k) for k in shots)] if ranks else []
    pictures = write_plots(out, main, ranks, reporter)
    if pictures:
        parts += ["## Plots", *(f"![{caption}]({name})\n\n{caption}" for name, caption in pictures)]
    write_text(out / REPORT, "\n\n".join(part for part in parts if part) + "\n")
    return out / REPORT


def summaries(rows: Rows) -> dict[str, dict[str, Any]]:
    """Facts by candidate, over all structures, draws and scans of these rows (of one size of support set).

    Returns
    -------
    dict
        Candidate -> "draws", "dice", "dice_interval", "dice_spread", "surface", "surface_interval", "trained",
        "share" (of the base), "rank", "seconds", "memory", and the counts by kind (means over runs).
    """
    whole = over_structures(rows)
    dice, surface = score_table(whole), score_table(whole, "surface_dice")
    found = {}
    for (task, label, _), table in dice.items():
        of_label = [row for row in whole if row["candidate"] == label]
        facts = {key: _mean(of_label, key) for key in ("trained", "base_total", "rank", "seconds", *SHARE)}
        other = surface[task, label, "all"]
        found[label] = facts | {
            "draws": len(table),
            "dice": mean_of(table),
            "dice_interval": interval(table),
            "dice_spread": draw_spread(table),
            "surface": mean_of(other),
            "surface_interval": interval(other),
            "share": facts["trained"] / facts["base_total"] if facts["base_total"] else math.nan,
            "memory": max((float(row["memory_mib"]) for row in of_label if row.get("memory_mib")), default=math.nan),
        }
    return found


def rank_rows(rows: Rows) -> list[dict[str, Any]]:
    """Rows of methods that were run at more than one initial rank."""
    tried: dict[str, set[str]] = {}
    for row in rows:
        if row.get("initial_rank"):
            tried.setdefault(_base_label(row["candidate"]), set()).add(row["initial_rank"])
    return [r for r in rows if r.get("initial_rank") and len(tried[_base_label(r["candidate"])]) > 1]


def paired_table(rows: Rows) -> str:
    """Dice of the row's method minus that of the column's, on the same draws and patients; bold where it is no tie."""
    whole = over_structures(rows)
    labels = list(dict.fromkeys(row["candidate"] for row in whole))
    cells = {}
    for number, column in enumerate(labels):
        later = [row for row in whole if row["candidate"] in labels[number:]]
        for label, (_, mean, low, high) in differences(later, column).items():
            mark = "" if low <= 0 <= high or math.isnan(low) else "**"
            cells[label, column] = f"{mark}{_signed(mean)} ({_signed(low)} to {_signed(high)}){mark}"
            cells[column, label] = f"{mark}{_signed(-mean)} ({_signed(-high)} to {_signed(-low)}){mark}"
    body = [(row, *(cells.get((row, column), "") for column in labels)) for row in labels]
    return markdown(("Dice minus that of", *labels), body)


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _head(rows: Rows, settings: dict[str, Any], missing: int, failed: Sequence[str], skipped: Sequence[str]) -> str:
    training = [
        "the method's own number of epochs" if settings["epochs"] is None else f"{settings['epochs']} epochs",
        *([f"at most {settings['budget_minutes']:g} min"] if settings["budget_minutes"] else []),
        f"on {settings['device']} in {settings['precision']}",
    ]
    lines = [
        f"# Comparison of methods on {settings['model']}\n\n{NOTICE}\n",
        f"- Structures: {', '.join(settings['structures'])}",
        f"- Scans: {len(settings['support'])} to draw support sets from, {len(settings['test'])} to test on",
        f"- Training: {', '.join(training)}",
        f"- Runs: {len({_run(row) for row in rows})} in runs.csv"
        + (f"; **{missing} are missing: start the same command again**" if missing else ""),
        "- Each draw is another support set and seed, the same for all methods. Intervals are 95 %, bootstrapped over "
        "draws and patients; structures count equally within a scan. A difference whose interval holds 0 is a tie. "
        "Intervals are not widened for the number of comparisons.",
        *(f"- Failed: {text}" for text in failed),
        *(f"- Left out: {text}" for text in skipped),
    ]
    return "\n".join(lines)


def _shots_section(rows: Rows, tolerance_mm: float) -> list[str]:
    facts = summaries(rows)
    order = sorted(facts, key=lambda label: -_sortable(facts[label]["dice"]))
    in_order = sorted(rows, key=lambda row: order.index(row["candidate"]))
    of_memory = ", ".join(sorted({row["memory_of"] for row in rows if row.get("memory_of")}))
    return [
        _scores_table(facts, order, tolerance_mm),
        f"Spread: standard deviation of the draws' means. Trained values are those that the finished adapter holds, "
        f"rank is the mean over layers at the end; time is that of training, memory its peak ({of_memory}).",
        "### By structure",
        _structures_table(in_order, tolerance_mm),
        "### Trained values by kind",
        _share_table(facts, order),
        "### Accuracy against size",
        _pareto_table(facts, order),
        "On the front: no other method is as accurate and as small. The score is that of the thesis, half the Dice and "
        "half the smallness, scaled over the methods in this table; what it calls a frontier is no Pareto front.",
        *(["### Paired differences", paired_table(in_order)] if len(order) > 1 else []),
    ]


def _scores_table(facts: dict[str, dict[str, Any]], order: Sequence[str], tolerance_mm: float) -> str:
    head = ("method", "draws", "Dice", "95 % interval", "spread", f"surface Dice {tolerance_mm:g} mm", "95 % interval")
    body = []
    for label in order:
        fact = facts[label]
        scores = (_number(fact["dice"]), _span(fact["dice_interval"]), _number(fact["dice_spread"]))
        surface = (_number(fact["surface"]), _span(fact["surface_interval"]))
        cost = (_count(fact["trained"]), _percent(fact["share"]), _number(fact["rank"], 1))
        body.append(
            (label, fact["draws"], *scores, *surface, *cost, _number(fact["seconds"], 1), _count(fact["memory"]))
        )
    return markdown((*head, "trained", "of the base", "rank", "time in s", "memory in MiB"), body)


def _structures_table(rows: Rows, tolerance_mm: float) -> str:
    dice, surface = score_table(rows), score_table(rows, "surface_dice")
    body = []
    for key in sorted(dice, key=lambda key: key[2]):
        scores = (_number(mean_of(dice[key])), _span(interval(dice[key])), _number(draw_spread(dice[key])))
        body.append((key[2], key[1], *scores, _number(mean_of(surface[key])), _span(interval(surface[key]))))
    surface_head = f"surface Dice {tolerance_mm:g} mm"
    return markdown(("structure", "method", "Dice", "95 % interval", "spread", surface_head, "95 % interval"), body)


def _share_table(facts: dict[str, dict[str, Any]], order: Sequence[str]) -> str:
    body = [
        (label, *(_count(facts[label][kind]) for kind in SHARE), _count(facts[label]["base_total"])) for label in order
    ]
    return markdown(("method", *SHARE_HEADS, "base in all"), body)


def _pareto_table(facts: dict[str, dict[str, Any]], order: Sequence[str]) -> str:
    dices, trained = [facts[k]["dice"] for k in order], [facts[k]["trained"] for k in order]
    columns = (pareto_front(dices, trained), thesis_scores(dices, trained), thesis_front(dices, trained))
    body = [
        (label, _number(facts[label]["dice"]), _percent(facts[label]["share"]), _yes(front), _number(score), _yes(kept))
        for label, front, score, kept in zip(order, *columns, strict=True)
    ]
    return markdown(("method", "Dice", "trained share", "on the Pareto front", "score", "thesis's frontier"), body)


def _ranks_section(rows: Rows, shots: int) -> str:
    chosen = [row for row in rows if int(row["shots"]) == shots]
    if not chosen:
        return ""
    facts = summaries(chosen)
    first = {row["candidate"]: int(row["initial_rank"]) for row in chosen}
    body = []
    for method in dict.fromkeys(_base_label(label) for label in facts):
        labels = sorted((k for k in facts if _base_label(k) == method), key=lambda k: first[k])
        dices = [facts[k]["dice"] for k in labels]
        across = max(dices) - min(dices)
        for k in labels:
            scores = (_number(facts[k]["dice"]), _span(facts[k]["dice_interval"]), _number(facts[k]["surface"]))
            size = (_number(facts[k]["rank"], 1), _count(facts[k]["trained"]))
            body.append((method, first[k], *scores, *size, _number(across)))
    head = ("method", "initial rank", "Dice", "95 % interval", "surface Dice", "rank at the end", "trained")
    return f"{shots} shots:\n\n{markdown((*head, 'Dice from worst to best rank'), body)}"


def _base_label(label: str) -> str:
    return label.partition(RANK_MARK)[0]


def _run(row: dict[str, Any]) -> tuple[str, ...]:
    return row["task"], row["candidate"], row["shots"], row["draw"]


def _mean(rows: Rows, key: str) -> float:
    """Mean over runs of a fact that all rows of a run hold; NaN where it is not known."""
    by_run = {_run(row): float(row[key]) for row in rows if row.get(key)}
    return mean_of(list(by_run.values()))


def _sortable(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _number(value: float, digits: int = 3) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # never -0.000


def _span(bounds: tuple[float, float]) -> str:
    return "" if math.isnan(bounds[0]) else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _count(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2%}"


def _yes(value: bool) -> str:
    return "yes" if value else ""
