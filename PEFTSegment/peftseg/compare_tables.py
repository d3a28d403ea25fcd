"""Tables of a comparison's report, as Markdown, from its rows. Torch-free.

Rows may be of several tasks: each task then counts once, and structures are averaged within a patient first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftseg.compare_bootstrap import holm, repeats_for, verdict
from peftseg.compare_rows import (
    AT_START,
    SHARE,
    Rows,
    draw_spread,
    interval,
    interval_over_tasks,
    mean_of,
    mean_over_tasks,
    over_structures,
    paired_differences,
    score_table,
    spread_over_tasks,
    task_tables,
)
from peftseg.pareto import pareto_front, thesis_front, thesis_scores

RANK_MARK = " rank="  # in the label of a method at another initial rank; no method's name holds it
COUNTS = ("trained", "trained_at_start", "base_total", *SHARE, *AT_START)
FACTS = (*COUNTS, "rank", "effective_rank", "seconds", "cpu_seconds")
SHARE_HEADS = ("adapter", "norm", "head", "decoder", "rest of the body", "buffers")


def summaries(rows: Rows) -> dict[str, dict[str, Any]]:
    """Facts by candidate, over all tasks, structures, draws and scans of these rows (of one size of support set).

    Returns
    -------
    dict
        Candidate -> "draws" (of the task that has fewest), "dice", "dice_interval", "dice_spread", "surface",
        "surface_interval", "trained", "size" (what trained at the start, as far as the rows know it, else "trained"),
        "share" (of the base), "rank", "effective_rank", "seconds", "cpu_seconds", "memory" and "memory_added" (the
        largest), and the counts by kind, at the end and at the start (means over runs, then over tasks).
    """
    whole = over_structures(rows)
    dice, surface = task_tables(whole), task_tables(whole, "surface_dice")
    found = {}
    for label, tables in dice.items():
        of_label = [row for row in whole if row["candidate"] == label]
        facts = {key: mean_over_runs(of_label, key) for key in FACTS}
        found[label] = facts | {
            "draws": min(len(table) for table in tables),
            "dice": mean_over_tasks(tables),
            "dice_interval": interval_over_tasks(tables),
            "dice_spread": spread_over_tasks(of_label),
            "surface": mean_over_tasks(surface[label]),
            "surface_interval": interval_over_tasks(surface[label]),
            "share": facts["trained"] / facts["base_total"] if facts["base_total"] else math.nan,
            "size": facts["trained"] if math.isnan(facts["trained_at_start"]) else facts["trained_at_start"],
            "memory": _largest(of_label, "memory_mib"),
            "memory_added": _largest(of_label, "memory_added_mib"),
        }
    return found


def rank_rows(rows: Rows) -> list[dict[str, Any]]:
    """Rows of methods that were run at more than one initial rank."""
    tried: dict[str, set[str]] = {}
    for row in rows:
        if row.get("initial_rank"):
            tried.setdefault(_base_label(row["candidate"]), set()).add(row["initial_rank"])
    return [r for r in rows if r.get("initial_rank") and len(tried[_base_label(r["candidate"])]) > 1]


def paired_table(rows: Rows, metric: str = "dice", name: str = "Dice") -> str:
    """Score of the row's method minus that of the column's, on the same draws and patients; bold where it is no tie.

    p-values are those of a paired bootstrap over patients and draws, adjusted by Holm's method for all pairs in the
    table; what is no tie has one below `ALPHA`. A pair with one draw in common has neither.
    """
    whole = over_structures(rows)
    labels = list(dict.fromkeys(row["candidate"] for row in whole))
    found, repeats = {}, repeats_for(len(labels) * (len(labels) - 1) // 2)
    for number, column in enumerate(labels):
        later = [row for row in whole if row["candidate"] in labels[number:]]
        differences = paired_differences(later, column, repeats=repeats, metric=metric)
        found |= {(label, column): difference for label, difference in differences.items()}
    adjusted = holm({pair: difference.p for pair, difference in found.items()})
    cells = {}
    for (label, column), d in found.items():
        p = adjusted[label, column]
        mark = "**" if verdict(d.mean, p) in ("better", "worse") else ""
        after = mark + (", one draw" if d.draws < 2 else f", p {p_in_words(p)}")
        cells[label, column] = f"{mark}{_signed(d.mean)} ({_signed(d.low)} to {_signed(d.high)}){after}"
        cells[column, label] = f"{mark}{_signed(-d.mean)} ({_signed(-d.high)} to {_signed(-d.low)}){after}"
    body = [(row, *(cells.get((row, column), "") for column in labels)) for row in labels]
    return markdown((f"{name} minus that of", *labels), body)


def p_in_words(p: float) -> str:
    """A p-value with three decimals, and never 0."""
    return "unknown" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def chosen_table(rows: Rows) -> str:
    """What the candidates that choose a method themselves chose, and in how many runs; "" where there are none."""
    runs = {_run(row): (row["candidate"], row["chosen"]) for row in rows if row.get("chosen")}
    found = list(runs.values())
    body = [(*pair, found.count(pair)) for pair in sorted(set(found), key=lambda p: (p[0], -found.count(p), p[1]))]
    return markdown(("method", "what it chose", "runs"), body) if body else ""


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def scores_table(facts: dict[str, dict[str, Any]], order: Sequence[str], tolerance_mm: float) -> str:
    """Accuracy and cost of each method."""
    head = ("method", "draws", "Dice", "95 % interval", "spread", f"surface Dice {tolerance_mm:g} mm", "95 % interval")
    body = []
    for label in order:
        fact = facts[label]
        scores = (_number(fact["dice"]), _span(fact["dice_interval"]), _number(fact["dice_spread"]))
        surface = (_number(fact["surface"]), _span(fact["surface_interval"]))
        cost = (_count(fact["trained"]), _percent(fact["share"]))
        ranks = (_number(fact["rank"], 1), _number(fact["effective_rank"], 1))
        effort = (_number(fact["seconds"], 1), _number(fact["cpu_seconds"], 1))
        memory = (_count(fact["memory_added"]), _count(fact["memory"]))
        body.append((label, fact["draws"], *scores, *surface, *cost, *ranks, *effort, *memory))
    costs = ("trained", "of the base", "rank", "effective rank", "time in s", "processor time in s")
    return markdown((*head, *costs, "memory added in MiB", "memory in all in MiB"), body)


def tasks_table(rows: Rows, order: Sequence[str]) -> str:
    """Dice of each method in each task."""
    tables = score_table(over_structures(rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    body = [
        (label, *(f"{_number(mean_of(table))} ({_span(interval(table))})" for table in found))
        for label, found in ((label, [tables[task, label, "all"] for task in tasks]) for label in order)
    ]
    return markdown(("method", *tasks), body)


def structures_table(rows: Rows, tolerance_mm: float) -> str:
    """Accuracy by structure, of one task."""
    dice, surface = score_table(rows), score_table(rows, "surface_dice")
    body = []
    for key in sorted(dice, key=lambda key: key[2]):
        scores = (_number(mean_of(dice[key])), _span(interval(dice[key])), _number(draw_spread(dice[key])))
        body.append((key[2], key[1], *scores, _number(mean_of(surface[key])), _span(interval(surface[key]))))
    surface_head = f"surface Dice {tolerance_mm:g} mm"
    return markdown(("structure", "method", "Dice", "95 % interval", "spread", surface_head, "95 % interval"), body)


def share_table(facts: dict[str, dict[str, Any]], order: Sequence[str]) -> str:
    """Values that trained at the start by kind, and in all with their share of the base."""
    body = []
    for label in order:
        fact, share = facts[label], share_at_start(facts[label])
        size, base = fact["size"], fact["base_total"]
        of_base = _percent(size / base) if base else ""
        body.append((label, *(_count(share[kind]) for kind in SHARE), _count(size), of_base, _count(base)))
    return markdown(("method", *SHARE_HEADS, "trained in all", "of the base", "base in all"), body)


def share_at_start(fact: Mapping[str, float]) -> dict[str, float]:
    """Values by kind as they trained at the start, by the keys of `SHARE`.

    Of a method whose rows are older than these counts: those that were left in the end (`knows_start` tells).

    Parameters
    ----------
    fact : mapping
        With all `COUNTS`, NaN where unknown: from `summaries`, or of `mean_over_runs`.
    """
    known = not any(math.isnan(fact[key]) for key in AT_START)
    return {key: fact[f"{key}_at_start" if known and key != "buffers" else key] for key in SHARE}


def knows_start(fact: Mapping[str, float]) -> bool:
    """Whether all counts by kind at the start are known; where nothing was pruned, they are those at the end."""
    return fact["trained_at_start"] == fact["trained"] or not any(math.isnan(fact[key]) for key in AT_START)


def pareto_table(facts: dict[str, dict[str, Any]], order: Sequence[str]) -> str:
    """Accuracy against size (what trains at the start): the front, and the thesis's score."""
    dices, trained = [facts[k]["dice"] for k in order], [facts[k]["size"] for k in order]
    columns = (pareto_front(dices, trained), thesis_scores(dices, trained), thesis_front(dices, trained))
    body = [
        (label, _number(facts[label]["dice"]), _count(facts[label]["size"]), _yes(front), _number(score), _yes(kept))
        for label, front, score, kept in zip(order, *columns, strict=True)
    ]
    return markdown(("method", "Dice", "trained", "on the Pareto front", "score", "thesis's frontier"), body)


def ranks_table(rows: Rows) -> str:
    """Methods at several initial ranks, of one size of support set."""
    facts = summaries(rows)
    first = {row["candidate"]: int(row["initial_rank"]) for row in rows}
    body = []
    for method in dict.fromkeys(_base_label(label) for label in facts):
        labels = sorted((k for k in facts if _base_label(k) == method), key=lambda k: first[k])
        dices = [facts[k]["dice"] for k in labels]
        across = max(dices) - min(dices)
        for k in labels:
            scores = (_number(facts[k]["dice"]), _span(facts[k]["dice_interval"]), _number(facts[k]["surface"]))
            ranks = (_number(facts[k]["rank"], 1), _number(facts[k]["effective_rank"], 1))
            size = (*ranks, _count(facts[k]["trained"]))
            body.append((method, first[k], *scores, *size, _number(across)))
    head = (
        "method",
        "initial rank",
        "Dice",
        "95 % interval",
        "surface Dice",
        "rank at the end",
        "effective rank",
        "trained",
    )
    return markdown((*head, "Dice from worst to best rank"), body)


def in_order(facts: dict[str, dict[str, Any]]) -> list[str]:
    """Labels, the most accurate first."""
    return sorted(facts, key=lambda label: -_sortable(facts[label]["dice"]))


def count_runs(rows: Rows) -> int:
    """How many runs these rows are of."""
    return len({_run(row) for row in rows})


def _base_label(label: str) -> str:
    return label.partition(RANK_MARK)[0]


def _run(row: dict[str, Any]) -> tuple[str, ...]:
    return row["task"], row["candidate"], row["shots"], row["draw"]


def mean_over_runs(rows: Rows, key: str) -> float:
    """Mean over runs, then over tasks, of a fact that all rows of a run hold; NaN where it is not known."""
    by_run = {_run(row): float(row[key]) for row in rows if row.get(key)}
    tasks = dict.fromkeys(run[0] for run in by_run)
    return mean_of([mean_of([value for run, value in by_run.items() if run[0] == task]) for task in tasks])


def _largest(rows: Rows, key: str) -> float:
    return max((float(row[key]) for row in rows if row.get(key)), default=math.nan)


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
