"""The subcommand `dicom`: list and sort series, print rules, export results. Torch-free."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg.cli_models import shown_reporter
from peftseg.cli_progress import table
from peftseg.cli_show import print_json
from peftseg.dicom_rules import DEFAULT, LeftOut, choose, load_rules, none_chosen, rules_text
from peftseg.dicom_sort import Series, find_series
from peftseg.events import Reporter

COLUMNS = ("key", "study", "number", "modality", "description", "part", "slices", "size", "step_mm", "orientation")


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommands to the command line."""
    from peftseg.cli_dicom_export import add_export

    parser = subparsers.add_parser("dicom", help="series in folders and archives; results as DICOM")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|rules|sort|export")
    _add_list(verbs.add_parser("list", help="the series in folders and archives, and which of them the rules choose"))
    _add_rules(verbs.add_parser("rules", help="print rules as JSON, to change and to give to --rules"))
    _add_sort(verbs.add_parser("sort", help="copy the chosen series into folders of their own"))
    add_export(verbs)


def _add_list(parser: options.Parser) -> None:
    _add_search(parser)
    parser.add_argument(
        "--paths", action="store_true", help="print the files, too: their names may hold patients' names"
    )
    parser.set_defaults(run=run_list)


def _add_rules(parser: options.Parser) -> None:
    parser.add_argument(
        "--rules", default=DEFAULT, metavar="FILE", help="check and print this file (default: built-in)"
    )
    parser.set_defaults(run=run_rules)


def _add_sort(parser: options.Parser) -> None:
    _add_search(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies, where the disk can")
    parser.set_defaults(run=run_sort)


def _add_search(parser: options.Parser) -> None:
    options.add_json(parser)
    parser.add_argument("paths_in", nargs="+", metavar="PATH", help="files, folders, or zip and tar archives")
    parser.add_argument(
        "--rules",
        default=DEFAULT,
        metavar="FILE",
        help="rules as `peftseg dicom rules` prints them (default: built-in)",
    )


def run_list(arguments: Namespace) -> int:
    """`peftseg dicom list PATH...`."""
    with shown_reporter() as reporter, tempfile.TemporaryDirectory(prefix="peftseg-") as scratch:
        chosen, left_out = _search(arguments, Path(scratch), reporter)
        rows = [_row(series, "", arguments.paths) for series in chosen]
        rows_out = [_row(item.series, item.reason, arguments.paths) for item in left_out]
    if arguments.json:
        print_json({"chosen": rows, "left_out": rows_out})
        return 0
    _print_series(chosen, left_out)
    if arguments.paths:
        for row in (*rows, *rows_out):
            for path in row["paths"]:
                print(f"{row['key']}  {path}")
    return 0


def run_rules(arguments: Namespace) -> int:
    """`peftseg dicom rules`."""
    print(rules_text(load_rules(arguments.rules)))
    return 0


def run_sort(arguments: Namespace) -> int:
    """`peftseg dicom sort PATH... --out DIR`."""
    from peftseg.dicom_folders import lay_out

    with shown_reporter() as reporter, tempfile.TemporaryDirectory(prefix="peftseg-") as scratch:
        chosen, left_out = _search(arguments, Path(scratch), reporter)
        if not chosen:
            raise none_chosen(left_out)
        found = lay_out(chosen, left_out, Path(arguments.out), arguments.link, reporter)
    if arguments.json:
        print_json(
            {
                "sorted": [item.series.facts() | {"folder": item.folder} for item in found],
                "left_out": [item.series.facts() | {"reason": item.reason} for item in left_out],
            }
        )
        return 0
    _print_series(chosen, left_out)
    print(f"{len(found)} series are in {arguments.out}. Headers are unchanged: names in them stay.")
    return 0


def _search(arguments: Namespace, scratch: Path, reporter: Reporter) -> tuple[list[Series], list[LeftOut]]:
    rules = load_rules(arguments.rules)
    return choose(find_series(arguments.paths_in, reporter, scratch), rules)


def _row(series: Series, reason: str, with_paths: bool) -> dict[str, Any]:
    row = series.facts() | ({"reason": reason} if reason else {})
    return row | ({"paths": [str(file) for file in series.files]} if with_paths else {})


def _print_series(chosen: Sequence[Series], left_out: Sequence[LeftOut]) -> None:
    if chosen:
        print(table([_cells(series) for series in chosen], COLUMNS))
    for series in chosen:
        for note in (*series.problems, *series.notes):
            print(f"{series.key}: {note}")
    print(f"{len(chosen)} chosen, {len(left_out)} left out.")
    for item in left_out:
        print(f"Left out: {item.sentence}")


def _cells(series: Series) -> dict[str, Any]:
    return series.facts() | {"size": f"{series.columns} x {series.rows}", "step_mm": series.step}
