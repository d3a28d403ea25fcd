"""The tables of `experiment.py`, from its committed rows alone, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import isnan, nan
from pathlib import Path

import numpy as np

from peftseg.compare_bootstrap import ALPHA, holm, verdict
from peftseg.compare_report import markdown, summaries
from peftseg.compare_rows import (
    Difference,
    in_common_draws,
    in_every_task,
    interval,
    mean_of,
    over_structures,
    paired_differences,
    read_rows,
    score_table,
)
from peftseg.compare_tables import p_in_words
from peftseg.pareto import pareto_front, thesis_scores

Rows = list[dict[str, str]]
SHARE = ("trained_adapter", "trained_norm", "trained_head", "trained_decoder", "trained_body", "buffers")
PRUNING = ("adalora", "arena")  # methods that hold fewer values at the end than they trained
REFERENCES = ("lora", "scratch", "zero-shot")  # what is subtracted, where there are rows
AUTO = "auto"
AUTO_AIM = 0.005  # Dice by which it may stay behind the best fixed method on the mean of the tasks
HOLM = (
    "p-values: paired bootstrap over patients and draws, two-sided, adjusted by Holm's method for all methods of a column. "
    f"The words go by them, a tie from {ALPHA:g} on; intervals are not adjusted."
)


def print_tables(
    support: Path, test: Path, references: Path | None, rates: Path, known: Sequence[str], shots: int
) -> None:
    """Print every table for which there are rows, over the draws that all methods have.

    Parameters
    ----------
    support, test, references : Path
        Rows of the support folds, of the test scans, and of the reference rows.
    rates : Path
        Chosen factors, candidate -> factor.
    known : sequence of str
        Structures that the base knows; the others are novel.
    shots : int
        Size of the support sets of the main table.
    """
    chosen = json.loads(rates.read_text(encoding="utf-8")) if rates.is_file() else {}
    factors = {label: record["factor"] for label, record in chosen.items() if "factor" in record}
    _print_rates(read_rows(support), factors)
    rows = read_rows(test)
    own = [row for row in rows if int(row["shots"]) == shots]
    beside = [row for row in (read_rows(references) if references else []) if int(row["shots"]) == shots]
    if own:
        main, words = _comparable([*own, *beside], _tasks(own), list(factors))
        print(f"\n### {shots} shots, all methods\n\n{words}\n")
        print(_scores(main))
        print("\n### Novel and base structures apart, task by task\n")
        print(_by_structure(main, known))
        for reference in REFERENCES:
            if any(row["candidate"] == reference for row in main):
                print(f"\n### Dice minus that of {reference}\n")
                print(f"{_differences(main, reference)}\n\n{HOLM}")
        scored = {(row["task"], row["draw"]) for row in own if row["candidate"] == AUTO}
        if {task for task, _ in scored} == set(_tasks(own)):
            beside_auto = [row for row in own if (row["task"], row["draw"]) in scored]
            common, words = _comparable(beside_auto, _tasks(own), [*factors, AUTO])
            print(f"\n### {AUTO} against the best fixed method in hindsight\n\n{words}\n")
            print(_auto(common))
        print("\n### Size, costs and the front\n")
        print(_costs(main, {row["candidate"] for row in beside}))
    counts = sorted({int(row["shots"]) for row in rows})
    if len(counts) > 1:
        print("\n### By number of shots\n")
        print(_by_shots(rows, counts))


def _comparable(rows: Rows, tasks: Sequence[str], methods: Sequence[str]) -> tuple[Rows, str]:
    """Rows of the candidates that have the same draws in all tasks: those that all methods have; and words about it."""
    kept, lacking_task = in_every_task(rows, tasks)
    kept, lacking_draw = in_common_draws(kept, methods)
    draws = {task: sorted({int(row["draw"]) for row in kept if row["task"] == task}) for task in tasks}
    words = "Draws: " + "; ".join(f"{task} {', '.join(map(str, found))}" for task, found in draws.items()) + "."
    left_out = [*lacking_task, *lacking_draw]
    return kept, words + (f" Not in these tables, as runs are missing: {', '.join(left_out)}." if left_out else "")


def _tasks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _labels(rows: Rows) -> list[str]:
    """Candidates, best mean over the tasks first; all have rows in every task (`_comparable`)."""
    tables = score_table(over_structures(rows))
    labels = dict.fromkeys(row["candidate"] for row in rows)
    means = {label: mean_of([mean_of(t) for (_, name, _), t in tables.items() if name == label]) for label in labels}
    return sorted(means, key=lambda label: -means[label])


def _scores(rows: Rows) -> str:
    """Mean Dice by task over its structures, with interval, and surface Dice."""
    found = {task: summaries([row for row in rows if row["task"] == task]) for task in _tasks(rows)}
    body = []
    for label in _labels(rows):
        facts = [of_task[label] for of_task in found.values()]
        cells = [label, _number(mean_of([f["dice"] for f in facts]))]
        for fact in facts:
            cells += [
                f"{fact['dice']:.3f} ({_span(fact['dice_interval'])})",
                f"{fact['surface']:.3f}",
                str(fact["draws"]),
            ]
        body.append(cells)
    heads = [f"{task} {what}" for task in found for what in ("Dice (95 %)", "surface Dice 1 mm", "draws")]
    return markdown(["method", "mean Dice", *heads], body)


def _by_structure(rows: Rows, known: Sequence[str]) -> str:
    """Mean Dice of novel and of base structures."""
    groups = [
        (f"{task}, {kind}", [r for r in rows if r["task"] == task and (r["structure"] in known) == (kind == "base")])
        for task in _tasks(rows)
        for kind in ("novel", "base")
    ]
    groups = [(name, over_structures(chosen)) for name, chosen in groups if chosen]
    body = []
    for label in _labels(rows):
        cells = [label]
        for _, chosen in groups:
            tables = [t for (_, name, _), t in score_table(chosen).items() if name == label]
            cells.append(f"{mean_of(tables[0]):.3f} ({_span(interval(tables[0]))})" if tables else "")
        body.append(cells)
    return markdown(["method", *(name for name, _ in groups)], body)


def compared(rows: Rows, reference: str, task: str | None = None) -> dict[str, tuple[Difference, float]]:
    """Each candidate's difference to the reference, and its p-value, adjusted for the number of candidates.

    Over one task, or the mean of the tasks. Give rows of `over_structures`, for structures lie in the same scans.
    """
    found = paired_differences(rows, reference, task)
    adjusted = holm({label: d.p for label, d in found.items()})
    return {label: (d, adjusted[label]) for label, d in found.items()}


def _differences(rows: Rows, reference: str) -> str:
    columns = [*_tasks(rows), *([None] if len(_tasks(rows)) > 1 else [])]
    whole = over_structures(rows)
    found = {task: compared(whole, reference, task) for task in columns}
    body = [
        [label, *(paired_cell(*found[task].get(label, (None,))) for task in columns)]
        for label in _labels(rows)
        if label != reference
    ]
    return markdown(["method", *(task or "mean of the tasks" for task in columns)], body)


def _auto(rows: Rows) -> str:
    """Dice of `auto` minus that of the fixed method that is best on each task, and on their mean; and the aim."""
    fixed = [row for row in rows if row["candidate"] != AUTO]
    whole, tables, body = over_structures(rows), score_table(over_structures(fixed)), []
    columns = [*_tasks(rows), *([None] if len(_tasks(rows)) > 1 else [])]
    for task in columns:
        means = {
            label: mean_of([mean_of(t) for (of, name, _), t in tables.items() if name == label and task in (None, of)])
            for label in _labels(fixed)
        }
        best = max(means, key=means.__getitem__)
        found = paired_differences(whole, best, task).get(AUTO)
        body.append([task or "mean of the tasks", f"{best}, {means[best]:.3f}", paired_cell(found)])
    met = found is not None and found.mean >= -AUTO_AIM
    aim = f"Aim: at most {AUTO_AIM:g} behind on the mean of the tasks: {'met' if met else 'MISSED'}."
    table = markdown(["task", "best fixed method, Dice", f"{AUTO} minus it"], body)
    return f"{table}\n\n{aim} The best of many in hindsight is flattered by chance."


def paired_cell(found: Difference | None, p: float | None = None) -> str:
    """A cell with a difference, its interval, verdict and p-value; empty where there is nothing to compare.

    The verdict goes by `p`, which is adjusted for the number of comparisons; without one by the interval. With one draw the
    interval is over patients only, which is no ground for a verdict.
    """
    if found is None:
        return ""
    cell = _with_interval(found.mean, found.low, found.high)
    if found.draws < 2:
        return f"{cell}, one draw"
    if p is None:
        return f"{cell}, {'tie' if found.low <= 0 <= found.high else 'better' if found.mean > 0 else 'worse'}"
    return f"{cell}, {verdict(found.mean, p)}, p {p_in_words(p)}"


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _costs(rows: Rows, references: set[str]) -> str:
    """Trained values by kind, ranks, processor time and memory where known; the true front, and the thesis's score.

    The latter two are over the methods: they compare candidates of one base network, which references are not.
    """
    labels, facts = _labels(rows), {}
    for label in labels:
        each = [summaries([r for r in rows if r["task"] == task])[label] for task in _tasks(rows)]
        means = (
            "dice",
            "trained",
            "trained_at_start",
            "size",
            "share",
            "rank",
            "effective_rank",
            "cpu_seconds",
            *SHARE,
        )
        facts[label] = {key: mean_of([fact[key] for fact in each]) for key in means}
        facts[label]["memory_added"] = max(
            (m for m in (fact["memory_added"] for fact in each) if not isnan(m)), default=nan
        )
    judged = [label for label in labels if label not in references]
    dices, size = ([facts[label][key] for label in judged] for key in ("dice", "size"))
    front = dict(zip(judged, pareto_front(dices, size), strict=True))
    scores = dict(zip(judged, thesis_scores(dices, size), strict=True))
    columns = [("trained_at_start", "trained at the start", 0), ("rank", "components left", 1)]
    columns += [("effective_rank", "effective rank", 1), ("cpu_seconds", "processor s", 0)]
    columns += [("memory_added", "memory added, MiB", 0)]
    columns = [c for c in columns if any(not isnan(fact[c[0]]) for fact in facts.values())]
    body = [
        [
            label,
            f"{facts[label]['trained']:,.0f}" + ("" if isnan(share := facts[label]["share"]) else f" ({share:.1%})"),
            *(f"{facts[label][key]:,.0f}" for key in SHARE),
            *("" if isnan(facts[label][key]) else f"{facts[label][key]:,.{digits}f}" for key, _, digits in columns),
            "yes" if front.get(label) else "",
            f"{scores[label]:.2f}" if label in scores else "",
        ]
        for label in labels
    ]
    heads = [*(key.removeprefix("trained_") for key in SHARE), *(head for _, head, _ in columns)]
    table = markdown(["method", "trained (of the base)", *heads, "on the front", "score (half Dice, half size)"], body)
    return f"{table}\n\n{_about_counts(rows, facts)}"


def _about_counts(rows: Rows, facts: dict[str, dict[str, float]]) -> str:
    """What the counts are, and whose front and score rest on the count after pruning."""
    methods = {row["candidate"]: row["method"] for row in rows}
    unknown = [k for k in facts if methods[k] in PRUNING and isnan(facts[k]["trained_at_start"])]
    words = (
        "Trained values, by kind too, are those that the finished adapter holds, after pruning; the front and the thesis's "
        "score go by what trained at the start, as far as the rows know it."
    )
    return words + (f" Of {', '.join(unknown)} these rows have only the count after pruning." if unknown else "")


def _by_shots(rows: Rows, counts: Sequence[int]) -> str:
    """Mean Dice of the methods that were run at all sizes in all tasks, over the draws that all of these runs have.

    Below it, size by size, the differences from the first reference.
    """
    tasks = _tasks(rows)
    at = {(r["candidate"], r["task"], int(r["shots"])) for r in rows}
    labels = [label for label in _every(rows) if all((label, t, k) in at for t in tasks for k in counts)]
    if not labels:
        return "No method has runs of all sizes in all tasks yet."
    runs = [row | {"candidate": _at(row["candidate"], row["shots"])} for row in rows if row["candidate"] in labels]
    common, _ = in_common_draws(runs)
    tables = {key[:2]: table for key, table in score_table(over_structures(common)).items()}
    body = [
        [task, label, *(_with_draws(tables.get((task, _at(label, k)))) for k in counts)]
        for task in tasks
        for label in labels
    ]
    table = markdown(["task", "method", *(f"{k} shots" for k in counts)], body)
    return "\n\n".join([table, *_differences_by_shots(common, labels, counts)])


def _differences_by_shots(common: Rows, labels: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """The table of differences on the mean of the tasks, and words about it; nothing without the reference."""
    reference = REFERENCES[0]
    if reference not in labels or len(labels) < 2:
        return
    found = {}
    for k in counts:
        of_size = [row for row in common if int(row["shots"]) == k]
        found[k] = compared(over_structures(of_size), _at(reference, k))
    body = [
        [label, *(paired_cell(*found[k].get(_at(label, k), (None,))) for k in counts)]
        for label in labels
        if label != reference
    ]
    yield f"Dice minus that of {reference}, mean of the tasks:"
    yield markdown(["method", *(f"minus {reference}, {k} shots" for k in counts)], body)
    yield HOLM


def _at(label: str, shots: int | str) -> str:
    return f"{label} at {shots}"


def _every(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["candidate"] for row in rows))


def _with_draws(table: np.ndarray | None) -> str:
    return "" if table is None else f"{mean_of(table):.3f} ({_span(interval(table))}), draws: {len(table)}"


def _print_rates(rows: Rows, chosen: dict[str, float]) -> None:
    """Mean Dice on the left-out support scans by factor of the rates, the chosen one bold."""
    tables = score_table(over_structures(rows))
    cells: dict[str, dict[str, list[float]]] = {}
    for (_, name, _), table in tables.items():
        label, _, factor = name.rpartition(" x")
        cells.setdefault(label, {}).setdefault(factor, []).append(mean_of(table))
    factors = sorted({factor for found in cells.values() for factor in found}, key=float)
    body = []
    for label, found in cells.items():
        marked = f"{chosen[label]:.2g}" if label in chosen else ""
        body.append(
            [label]
            + [
                "" if f not in found else f"**{mean_of(found[f]):.3f}**" if f == marked else f"{mean_of(found[f]):.3f}"
                for f in factors
            ]
        )
    print("### Rates: mean Dice on left-out support scans, by factor of the base rates\n")
    print(markdown(["method", *(f"x {factor}" for factor in factors)], body))


def _span(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}"
