"""The tables of `experiment.py`, from its committed rows alone, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from peftseg.compare_report import markdown, summaries
from peftseg.compare_rows import differences, interval, mean_of, over_structures, read_rows, score_table
from peftseg.pareto import pareto_front, thesis_scores

Rows = list[dict[str, str]]
SHARE = ("trained_adapter", "trained_norm", "trained_head", "trained_decoder", "trained_body", "buffers")


def print_tables(support: Path, test: Path, references: Path, rates: Path, known: Sequence[str], shots: int) -> None:
    """Print every table for which there are rows.

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
    _print_rates(
        read_rows(support), {label: record["factor"] for label, record in chosen.items() if "factor" in record}
    )
    rows = read_rows(test)
    main = [row for row in rows if int(row["shots"]) == shots]
    beside = read_rows(references)
    if main:
        print(f"\n### {shots} shots, all methods\n")
        print(_scores(main))
        print("\n### Novel and base structures apart, task by task\n")
        print(_by_structure([*main, *beside], known))
        for reference in ("lora", "scratch"):
            print(f"\n### Dice minus that of {reference}\n")
            print(_differences([*main, *beside], reference))
        print("\n### Size, time and the front\n")
        print(_costs(main))
    counts = sorted({int(row["shots"]) for row in rows})
    if len(counts) > 1:
        print("\n### By number of shots\n")
        print(_by_shots(rows, counts))


def _tasks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _labels(rows: Rows) -> list[str]:
    """Candidates, best mean over the tasks first."""
    tables = score_table(over_structures(rows))
    labels = dict.fromkeys(row["candidate"] for row in rows)
    means = {label: mean_of([mean_of(t) for (_, name, _), t in tables.items() if name == label]) for label in labels}
    return sorted(means, key=lambda label: -means[label])


def _scores(rows: Rows) -> str:
    """Mean Dice by task over its structures, with interval, and surface Dice."""
    found = {task: summaries([row for row in rows if row["task"] == task]) for task in _tasks(rows)}
    body = []
    for label in _labels(rows):
        facts = [of_task.get(label) for of_task in found.values()]
        cells = [label, _number(mean_of([f["dice"] for f in facts if f]))]
        for fact in facts:
            cells += (
                [f"{fact['dice']:.3f} ({_span(fact['dice_interval'])})", f"{fact['surface']:.3f}", str(fact["draws"])]
                if fact
                else ["", "", ""]
            )
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


def _differences(rows: Rows, reference: str) -> str:
    whole = over_structures(rows)
    columns = [*_tasks(rows), None]
    found = {task: differences(whole, reference, task) for task in columns}
    body = [
        [label, *(difference(found[task].get(label)) for task in columns)]
        for label in _labels(rows)
        if label != reference
    ]
    return markdown(["method", *(task or "mean of the tasks" for task in columns)], body)


def difference(found: tuple[int, float, float, float] | None) -> str:
    """A cell with what `differences` found of one candidate; empty where there is nothing to compare."""
    if found is None:
        return ""
    _, mean, low, high = found
    verdict = "tie" if low <= 0 <= high else "better" if mean > 0 else "worse"
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}), {verdict}"


def _costs(rows: Rows) -> str:
    """Trained values by kind, rank, seconds and memory, over both tasks; the true front, and the thesis's score."""
    labels, facts = _labels(rows), {}
    for label in labels:
        each = [summaries([r for r in rows if r["task"] == task]).get(label) for task in _tasks(rows)]
        kept = [fact for fact in each if fact]
        facts[label] = {key: mean_of([f[key] for f in kept]) for key in ("dice", "trained", "share", "rank", *SHARE)}
    dices, trained = ([facts[label][key] for label in labels] for key in ("dice", "trained"))
    front, scores = pareto_front(dices, trained), thesis_scores(dices, trained)
    body = [
        [
            label,
            f"{facts[label]['trained']:,.0f} ({facts[label]['share']:.1%})",
            *(f"{facts[label][key]:,.0f}" for key in SHARE),
            "" if facts[label]["rank"] != facts[label]["rank"] else f"{facts[label]['rank']:.1f}",
            "yes" if on_front else "",
            f"{score:.2f}",
        ]
        for label, on_front, score in zip(labels, front, scores, strict=True)
    ]
    heads = [key.removeprefix("trained_") for key in SHARE]
    return markdown(["method", "trained (of the base)", *heads, "mean rank", "on the front", "thesis score"], body)


def _by_shots(rows: Rows, counts: Iterable[int]) -> str:
    """Mean Dice of the methods that were run at all sizes."""
    at = {(label, k) for label, k in ((r["candidate"], int(r["shots"])) for r in rows)}
    counts = list(counts)
    labels = [label for label in _labels(rows) if all((label, k) in at for k in counts)]
    body = []
    for task in _tasks(rows):
        for label in labels:
            cells = [task, label]
            for k in counts:
                chosen = [r for r in rows if r["task"] == task and r["candidate"] == label and int(r["shots"]) == k]
                table = next(iter(score_table(over_structures(chosen)).values()), None)
                cells.append("" if table is None else f"{mean_of(table):.3f} ({_span(interval(table))})")
            body.append(cells)
    return markdown(["task", "method", *(f"{k} shots" for k in counts)], body)


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
    print("### Rates: mean Dice on left-out support scans, by factor of the method table's rates\n")
    print(markdown(["method", *(f"x {factor}" for factor in factors)], body))


def _span(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}"
