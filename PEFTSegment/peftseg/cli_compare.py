"""The subcommand compare: which method suits these scans. Torch-free until it runs."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg.cli_endings import counted
from peftseg.cli_progress import JsonLines, ProgressBar
from peftseg.compare_tasks import Task
from peftseg.errors import BadInput, unknown_name
from peftseg.events import Reporter, plain
from peftseg.licences import usable
from peftseg.models import ModelEntry, Structure
from peftseg.strict_json import in_words
from peftseg.study import read_support_folder

DESCRIPTION = """\
Train several methods on support sets drawn from labelled scans, score them on test scans, and write a table of all scores
(runs.csv), a report (report.md) and plots. Each draw is another support set and seed, the same for all methods.
Scans and structures are those of --support, --test and --structures (one task), or those of each task in the file --tasks:
[{"name": "deep nuclei", "support": "nuclei/support", "test": "nuclei/test", "structures": {"thalamus": 2}}, ...],
with paths relative to the file; each task then counts once in the means.
All scans are read and checked before the first training. A training that fails is named at the end and in the report, and
the exit code is then 1; the others go on.
Start the same command again to go on after an end of any kind: only what is missing is run. More tasks, methods, shots and
draws may be added; a folder that holds a comparison with other settings is refused."""
TASK_FIELDS = ("name", "support", "test", "structures")


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommand to the command line."""
    parser = subparsers.add_parser(
        "compare", help="compare methods on your own labelled scans", description=DESCRIPTION
    )
    add = parser.add_argument
    add("--model", required=True, metavar="ID|DIR", help="a model of the catalogue, or a model folder")
    add("--support", metavar="DIR", help="images/ and labels/ of the scans to draw support sets from")
    add("--test", metavar="DIR", help="images/ and labels/ of other patients' scans, to score on")
    add("--structures", metavar="NAME=VALUE,...", help="what to segment, and its value in the labels")
    add("--tasks", metavar="FILE.json", help="several tasks, in place of the three options above; see there")
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
    "see `peftseg methods`; all: all of these that fit the model; scratch: the same network from random weights; zero-shot: "
    "the model as it is, where it segments all of the structures by itself (default: %(default)s)"
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
    tasks = _tasks(arguments, entry)
    from peftseg.compare_candidates import ALL, make_candidates
    from peftseg.comparison import Comparison, run_comparison
    from peftseg.device import choose_device

    comparison = Comparison(
        entry=entry,
        tasks=tasks,
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
        runs, are = counted(result["done"], "run"), "is" if result["done"] == 1 else "are"
        missing = f" Missing: {result['missing']}; run the same command again." if result["missing"] else ""
        failed = (
            f" Failed: {len(result['failed'])}, for the reasons above and in the report." if result["failed"] else ""
        )
        print(f"{runs} {are} done.{failed}{missing} Every score is in {result['runs']}.")
        print(f"The report with its tables and plots is {result['report']}")
    return 1 if result["failed"] else 0


def _tasks(arguments: Namespace, entry: ModelEntry) -> tuple[Task, ...]:
    """The task of the flags, with the model's name, or those of the file."""
    flags = {f"--{name}": getattr(arguments, name) for name in ("support", "test", "structures")}
    given = [flag for flag, value in flags.items() if value is not None]
    if arguments.tasks is not None:
        if given:
            raise BadInput(
                f"--tasks does not go with {', '.join(given)}.", f"Write them into {arguments.tasks}, or leave it out."
            )
        return read_tasks(options.existing(arguments.tasks, "task file"), entry)
    missing = [flag for flag in flags if flag not in given]
    if missing:
        raise BadInput(f"{', '.join(missing)} is missing.", f"Give {', '.join(flags)}, or several tasks with --tasks.")
    structures = options.parse_structures(arguments.structures, entry)
    support, test = (
        read_support_folder(options.existing(path, what), structures)
        for path, what in ((arguments.support, "support folder"), (arguments.test, "test folder"))
    )
    return (Task(entry.id, structures, support, test),)


def read_tasks(path: Path, entry: ModelEntry | None = None) -> tuple[Task, ...]:
    """Tasks of a JSON file: a list of {"name", "support", "test", "structures"}; reads no voxels.

    Parameters
    ----------
    path : Path
        The file. Folders in it are relative to its own.
    entry : ModelEntry or None
        A structure that this model knows by name takes the model's colour and terminology code.

    Raises
    ------
    BadInput
        No JSON, no list, fields that are missing, unknown or of another kind, doubled names, folders that are not there
        or whose files do not belong together.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}).", _TASKS_REMEDY) from error
    if not isinstance(data, list) or not data:
        raise BadInput(f"{path} holds {in_words(data)}; expected a list of tasks.", _TASKS_REMEDY)
    tasks = tuple(
        _task(found, f"task {number} of {path.name}", path.parent, entry) for number, found in enumerate(data, 1)
    )
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{path} gives the name '{twice}' to two tasks.", "Give each task its own name.")
    return tasks


_TASKS_REMEDY = (
    'Write for example [{"name": "deep nuclei", "support": "nuclei/support", "test": "nuclei/test", '
    '"structures": {"thalamus": 2}}].'
)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that is there twice is an error, not the last of its values."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is there twice in one object")
    return dict(pairs)


def _task(data: Any, where: str, base: Path, entry: ModelEntry | None) -> Task:
    if not isinstance(data, dict):
        raise BadInput(f"The {where} is {in_words(data)}; expected an object.", _TASKS_REMEDY)
    unknown = next((name for name in data if name not in TASK_FIELDS), None)
    if unknown is not None:
        raise unknown_name(f"field of {where}", unknown, TASK_FIELDS)
    missing = [name for name in TASK_FIELDS if name not in data]
    if missing:
        raise BadInput(f"The {where} lacks {', '.join(missing)}.", _TASKS_REMEDY)
    for field in ("name", "support", "test"):
        value = data[field]
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise BadInput(f"The {field} of {where} is {in_words(value)}; expected a text.", _TASKS_REMEDY)
    structures = _structures(data["structures"], where, entry)
    support, test = (
        read_support_folder(options.existing(str(base / Path(data[part]).expanduser()), f"{part} folder"), structures)
        for part in ("support", "test")
    )
    return Task(data["name"].strip(), structures, support, test)


def _structures(data: Any, where: str, entry: ModelEntry | None) -> tuple[Structure, ...]:
    """Structures of {"name": value} or of a text as after --structures."""
    if isinstance(data, dict):
        wrong = next((n for n, v in data.items() if "," in n or "=" in n or type(v) is not int), None)
        if wrong is not None or not data:
            what = "empty" if wrong is None else f"'{wrong}' with {in_words(data[wrong])}"
            raise BadInput(
                f"The structures of {where}: {what}; expected names, without comma or equals sign, with whole numbers.",
                _TASKS_REMEDY,
            )
        data = ",".join(f"{name}={value}" for name, value in data.items())
    if not isinstance(data, str):
        raise BadInput(f"The structures of {where} are {in_words(data)}; expected an object.", _TASKS_REMEDY)
    try:
        return options.parse_structures(data, entry)
    except BadInput as error:
        raise BadInput(f"The {where}: {error.message}", error.remedy) from error


def _numbers(text: str | None, flag: str) -> tuple[int, ...]:
    """Whole numbers from 1 on of a text such as "5,10", without repeats; none of None."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    wrong = next((p for p in parts if not (p.isascii() and p.isdigit() and int(p) > 0)), None)
    if wrong is not None:
        raise BadInput(f"'{wrong}' in {flag} is not a whole number from 1 on.", f"Write for example {flag} 5,10.")
    return tuple(dict.fromkeys(int(part) for part in parts))
