"""The subcommands that show and share: methods, adapters (with `cli_daily`), evaluate, demo, doctor. Torch-free at first."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftseg import cli_daily, jobs
from peftseg import cli_options as options
from peftseg.cli_endings import evaluated, size_of
from peftseg.cli_jobs import run_here
from peftseg.cli_progress import JsonLines, ProgressBar, print_done, print_json, table
from peftseg.config import SuggestJob
from peftseg.events import Reporter, plain
from peftseg.licences import usable
from peftseg.paths import write_csv

SUGGEST_COLUMNS = ("ref", "kind", "distance", "structures", "reason")
ADAPTER_COLUMNS = ("ref", "method", "base_id", "structures", "shots", "problem")


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommands to the command line."""
    _show(subparsers.add_parser("methods", help="the methods and their options"), methods)
    _add_adapters(subparsers.add_parser("adapters", help="the adapter library"))
    _add_evaluate(subparsers.add_parser("evaluate", help="Dice, surface Dice and HD95 of segmentations"))
    parser = subparsers.add_parser("demo", help="the whole story on made-up anatomy, offline, in minutes")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other persons (default: %(default)s)")
    _show(parser, demo)
    _show(subparsers.add_parser("doctor", help="environment report to paste into a question"), doctor)


def _show(parser: options.Parser, function: Any) -> None:
    options.add_json(parser)
    parser.set_defaults(run=function)


def _add_adapters(parser: options.Parser) -> None:
    verbs = parser.add_subparsers(
        dest="verb",
        required=True,
        metavar="list|show|export|import|publish|rename|remove|suggest|folders|references|drift",
    )
    _show(verbs.add_parser("list", help="all adapters in the library"), adapters_list)
    for verb, text, function in (
        ("show", "its model card: what an adapter is, how it was made, how good it is", cli_daily.show),
        ("export", "copy an adapter out of the library", adapters_export),
        ("remove", "delete an adapter from the library", adapters_remove),
    ):
        verb_parser = verbs.add_parser(verb, help=text)
        verb_parser.add_argument("adapter", metavar="NAME|FILE")
        if verb == "export":
            verb_parser.add_argument("file", metavar="FILE", help="where to write it")
        _show(verb_parser, function)
    cli_daily.add_verbs(verbs)
    verb_parser = verbs.add_parser("rename", help="give an adapter of the library another name")
    verb_parser.add_argument("adapter", metavar="NAME")
    verb_parser.add_argument("new_name", metavar="NEWNAME")
    _show(verb_parser, adapters_rename)
    verb_parser = verbs.add_parser("suggest", help="which adapter fits a new scan: rank them by their sites' scans")
    verb_parser.add_argument(
        "--input", required=True, metavar="PATH", help="the new scan: a file, or a DICOM series folder"
    )
    verb_parser.add_argument("--model", metavar="ID|DIR", help="only this model and its adapters (default: all)")
    verb_parser.add_argument(
        "--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels"
    )
    verb_parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:n or mps (default: %(default)s)")
    _show(verb_parser, adapters_suggest)
    verb_parser = verbs.add_parser("folders", help="shared folders whose adapters are listed beside the own ones")
    change = verb_parser.add_mutually_exclusive_group()
    change.add_argument("--add", metavar="DIR", help="list the adapters of this folder, too")
    change.add_argument("--remove", metavar="DIR", help="list them no longer; the folder itself is not touched")
    _show(verb_parser, adapters_folders)


def _add_evaluate(parser: options.Parser) -> None:
    parser.add_argument("--prediction", required=True, metavar="DIR", help="folder of segmentations, or one file")
    parser.add_argument("--truth", required=True, metavar="DIR", help="folder of the right ones, or one file")
    parser.add_argument("--structures", metavar="NAME=VALUE,...", help="what to compare (default: all)")
    parser.add_argument("--csv", metavar="FILE", help="write the table to a file too")
    _show(parser, evaluate)


def methods(arguments: Namespace) -> int:
    """`peftseg methods`."""
    from dataclasses import asdict

    from peftseg.adapters.table import METHODS

    if arguments.json:
        print_json([asdict(method) for method in METHODS.values()])
        return 0
    for method in METHODS.values():
        print(f"{method.name}: {method.title}. {method.summary}")
        for option in method.options:
            limits = f" ({', '.join(option.choices)})" if option.choices else ""
            print(f"    {option.name}={option.default}{limits}: {option.help}")
    return 0


def adapters_list(arguments: Namespace) -> int:
    """`peftseg adapters list`."""
    from peftseg.library import OWN, list_adapters, shared_problems

    rows = list_adapters()
    for problem in shared_problems():
        print(f"Warning: {problem}", file=sys.stderr)
    shared = any(row["source"] != OWN for row in rows)
    if arguments.json:
        print_json(rows)
    elif not rows:
        print("The library is empty.")
    else:
        print(table(rows, ("source", *ADAPTER_COLUMNS) if shared else ADAPTER_COLUMNS))
    return 0


def adapters_export(arguments: Namespace) -> int:
    """`peftseg adapters export NAME FILE`."""
    from peftseg.library import export_adapter

    path = export_adapter(arguments.adapter, Path(arguments.file))
    return print_done(f"Wrote the adapter to {path} ({size_of(path)}).", arguments.json, exported=path)


def adapters_remove(arguments: Namespace) -> int:
    """`peftseg adapters remove NAME`."""
    from peftseg.library import remove_adapter

    path = remove_adapter(arguments.adapter)
    return print_done(f"Removed the adapter from the library: {path}", arguments.json, removed=path)


def adapters_rename(arguments: Namespace) -> int:
    """`peftseg adapters rename NAME NEWNAME`."""
    from peftseg.library import rename_adapter

    path = rename_adapter(arguments.adapter, arguments.new_name)
    return print_done(f"The adapter is now called {path.stem}: {path}", arguments.json, renamed=path)


def adapters_suggest(arguments: Namespace) -> int:
    """`peftseg adapters suggest --input PATH`."""
    if arguments.model:
        usable(arguments.model)
    job = SuggestJob(
        input=str(options.existing(arguments.input, "input")),
        model=arguments.model,
        device=arguments.device,
        replace_nonfinite=arguments.replace_nonfinite,
    )
    return run_here(jobs.create_job(job), arguments.json, show=_print_suggestions)


def _print_suggestions(ending: Mapping[str, Any]) -> None:
    if ending["ranking"]:
        print(table(ending["ranking"], SUGGEST_COLUMNS))
    for row in ending["not_ranked"]:
        print(f"Not ranked: {row['ref']}. {row['reason']}")
    print(ending["basis"])
    print(ending["advice"])


def adapters_folders(arguments: Namespace) -> int:
    """`peftseg adapters folders [--add DIR | --remove DIR]`."""
    from peftseg.shared_folders import add_shared_folder, remove_shared_folder, shared_folders

    if arguments.add:
        add_shared_folder(arguments.add)
    if arguments.remove:
        remove_shared_folder(arguments.remove)
    folders = [str(folder) for folder in shared_folders()]
    if arguments.json:
        print_json(folders)
    else:
        print("\n".join(folders) or "No shared folders.")
    return 0


def evaluate(arguments: Namespace) -> int:
    """`peftseg evaluate`."""
    from peftseg.metrics import evaluate_folders

    structures = options.parse_structures(arguments.structures) if arguments.structures else None
    prediction = options.existing(arguments.prediction, "prediction")
    rows = evaluate_folders(prediction, options.existing(arguments.truth, "truth"), structures)
    if arguments.csv:
        write_csv(arguments.csv, rows)
    if arguments.json:
        print_json(rows)
    else:
        print(table(rows))
        print("\n".join(evaluated(rows)))
        if arguments.csv:
            print(f"The table is in {arguments.csv}.")
    return 0


def demo(arguments: Namespace) -> int:
    """`peftseg demo`."""
    from peftseg.demo import run_demo

    echo = JsonLines(sys.stdout) if arguments.json else ProgressBar(sys.stderr)
    reporter = Reporter(lambda kind, fields: echo({"event": kind, **plain(fields)}))
    result = run_demo(Path(arguments.out), arguments.seed, reporter)
    if arguments.json:
        echo({"event": "finished", **plain(result)})
    else:
        print(f"Wrote the adapter of the demonstration to {result['adapter']}.")
        print(f"Open the report in a browser: {result['report']}")
    return 0


def doctor(arguments: Namespace) -> int:
    """`peftseg doctor`."""
    from peftseg.doctor import examine, report_text

    facts = examine()
    if arguments.json:
        print_json(facts)
    else:
        print(report_text(facts))
    return 0
