"""The subcommand compare: which method suits these scans. Torch-free until it runs."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg.cli_progress import JsonLines, ProgressBar
from peftseg.errors import BadInput
from peftseg.events import Reporter, plain
from peftseg.licences import usable
from peftseg.study import read_support_folder

DESCRIPTION = """\
Train several methods on support sets drawn from labelled scans, score them on test scans, and write a table of all scores
(runs.csv), a report (report.md) and plots. Each draw is another support set and seed, the same for all methods.
Start the same command again to go on after an end of any kind: only what is missing is run. More methods, shots and draws
may be added; a folder that holds a comparison with other settings is refused."""


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommand to the command line."""
    parser = subparsers.add_parser(
        "compare", help="compare methods on your own labelled scans", description=DESCRIPTION
    )
    add = parser.add_argument
    add("--model", required=True, metavar="ID|DIR", help="a model of the catalogue, or a model folder")
    add("--support", required=True, metavar="DIR", help="images/ and labels/ of the scans to draw support sets from")
    add("--test", required=True, metavar="DIR", help="images/ and labels/ of other patients' scans, to score on")
    add("--structures", required=True, metavar="NAME=VALUE,...", help="what to segment, and its value in the labels")
    add("--out", required=True, metavar="DIR", help="folder for runs.csv, report.md and plots")
    add("--methods", default="all", metavar="A,B,...", help=_METHODS_HELP)
    add("--shots", default="5", metavar="N,...", help="scans in a support set (default: %(default)s)")
    add("--seeds", type=int, default=3, metavar="N", help="draws of the support set (default: %(default)s)")
    add("--ranks", default="", metavar="N,...", help="also run methods with a rank from these ones, e.g. 8,32,64")
    add("--option", action="append", default=[], metavar="METHOD.KEY=VALUE", help="option of a method; may be repeated")
    add("--budget", type=float, metavar="MIN", help="minutes after which a training keeps the best so far")
    add("--epochs", type=int, help="number of epochs of each training (default: the engine's own)")
    add("--tolerance", type=float, default=1.0, metavar="MM", help="of the surface Dice (default: %(default)s)")
    add("--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels")
    options.add_run_options(parser)
    parser.set_defaults(run=compare)


_METHODS_HELP = (
    "see `peftseg methods`; all: all of these that fit the model; scratch: the same network from random weights "
    "(default: %(default)s)"
)


def compare(arguments: Namespace) -> int:
    """`peftseg compare`."""
    names = [name.strip() for name in arguments.methods.split(",")]
    shots, ranks = _numbers(arguments.shots, "--shots"), _numbers(arguments.ranks or None, "--ranks")
    for flag, value in (("--seeds", arguments.seeds), ("--epochs", arguments.epochs), ("--budget", arguments.budget)):
        if value is not None and not value > 0:
            raise BadInput(f"{flag} is {value}; expected more than 0.", f"Correct {flag}.")
    if not 0 <= arguments.tolerance < float("inf"):
        raise BadInput(f"--tolerance is {arguments.tolerance}; expected mm, at least 0.", "Correct --tolerance.")
    if arguments.seed < 0:
        raise BadInput(f"--seed is {arguments.seed}; expected at least 0.", "Correct --seed.")
    entry = usable(arguments.model)
    structures = options.parse_structures(arguments.structures, entry)
    support, test = (
        read_support_folder(options.existing(path, what), structures)
        for path, what in ((arguments.support, "support folder"), (arguments.test, "test folder"))
    )
    from peftseg.compare import Task
    from peftseg.compare_candidates import ALL, make_candidates
    from peftseg.comparison import Comparison, run_comparison
    from peftseg.device import choose_device

    comparison = Comparison(
        entry=entry,
        task=Task(entry.id, structures, support, test),
        candidates=make_candidates(names, options.parse_options(arguments.option), ranks),
        shots=shots,
        draws=tuple(range(arguments.seed, arguments.seed + arguments.seeds)),
        device=choose_device(arguments.device),
        epochs=arguments.epochs,
        budget_minutes=arguments.budget,
        precision=arguments.precision,
        tolerance_mm=arguments.tolerance,
        replace_nonfinite=arguments.replace_nonfinite,
        skipping=ALL in names,
    )
    echo = JsonLines(sys.stdout) if arguments.json else ProgressBar(sys.stderr)
    result = run_comparison(
        comparison, Path(arguments.out), Reporter(lambda kind, fields: echo({"event": kind, **plain(fields)}))
    )
    if arguments.json:
        echo({"event": "finished", **plain(result)})
    else:
        print(f"Report: {result['report']}")
        print(f"Scores: {result['runs']}")
    return 1 if result["failed"] else 0


def _numbers(text: str | None, flag: str) -> tuple[int, ...]:
    """Whole numbers from 1 on of a text such as "5,10", without repeats; none of None."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    wrong = next((p for p in parts if not (p.isascii() and p.isdigit() and int(p) > 0)), None)
    if wrong is not None:
        raise BadInput(f"'{wrong}' in {flag} is not a whole number from 1 on.", f"Write for example {flag} 5,10.")
    return tuple(dict.fromkeys(int(part) for part in parts))
