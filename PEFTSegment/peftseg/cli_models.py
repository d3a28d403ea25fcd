"""The subcommand `models`: the catalogue, and how weights come and go. Torch-free until weights are read."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg import licences
from peftseg.cli_progress import JsonLines, ProgressBar
from peftseg.cli_show import print_json
from peftseg.download import MIRROR_VARIABLE, download
from peftseg.errors import BadInput, JobCancelled, unknown_name
from peftseg.events import Reporter, plain
from peftseg.models import (
    BUNDLED,
    EARLY_FILE,
    ModelEntry,
    by_id,
    catalogue,
    known_models,
    read_model_dir,
    resolve,
    to_dict,
)
from peftseg.paths import atomic_write, home, models_dir, remove_tree

DOWNLOADS = ".downloads"  # in the models folder: one folder a model, with what has arrived
MB = 1e6
NAMES_SHOWN = 12
_LEGAL = re.compile(r"(licen[cs]e|notice|readme)", re.IGNORECASE)  # files that go with a model folder's copy
_ID = re.compile(r"\w[\w .+()-]*")
HEADS = {"auto": None, "clip_driven": True, "fresh": False}
_STANDING = {"not needed": "", "needed": "; licence to be accepted", "accepted": "; licence accepted"}


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommands to the command line."""
    parser = subparsers.add_parser("models", help="the catalogue of foundation models; get, import and remove weights")
    parser.add_argument("--dir", action="append", default=[], metavar="MODELDIR", help="show this model folder too")
    options.add_json(parser)
    parser.set_defaults(run=list_models)
    verbs = parser.add_subparsers(dest="verb", metavar="download|import|remove|accept")
    downloading = _add_verb(verbs, "download", "get a model's public weights", run_download)
    downloading.add_argument(
        "--mirror",
        default="",
        metavar="URL",
        help=f"address in place of the public server's (default: environment variable {MIRROR_VARIABLE})",
    )
    text = "take a downloaded checkpoint, a model folder, or an nnU-Net model folder (with plans.json)"
    importing = _add_verb(verbs, "import", text, run_import, "ID|MODELDIR")
    importing.add_argument("file", nargs="?", metavar="FILE", help="the public checkpoint of model ID")
    importing.add_argument("--id", help="id of an nnU-Net model (default: made of data set, configuration and fold)")
    importing.add_argument("--fold", help="fold of an nnU-Net model (default: all, else the lowest)")
    importing.add_argument(
        "--orientation",
        help="axis codes that an nnU-Net model's training data had: RAS for TotalSegmentator, LPS for MRSegmentator "
        "(default: the file's axes as they are, nnU-Net's own rule)",
    )
    for parser in (downloading, importing):
        parser.add_argument(
            "--head",
            choices=tuple(HEADS),
            default="auto",
            help="of models with a text-driven head: take it (clip_driven), leave it out (fresh), or take it where the "
            "file has it (default: %(default)s)",
        )
    _add_verb(verbs, "remove", "delete a model's downloaded or imported weights", run_remove)
    accepting = _add_verb(verbs, "accept", "read and accept a model's licence", run_accept, "ID|MODELDIR")
    accepting.add_argument("--yes", action="store_true", help="accept without being asked")


def _add_verb(verbs: Any, name: str, text: str, run: Callable[[Namespace], int], what: str = "ID") -> options.Parser:
    parser = verbs.add_parser(name, help=text)
    parser.add_argument("model", metavar=what)
    # Only set where it is given, so that it may stand before the verb too.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for another program")
    parser.set_defaults(run=run)
    return parser


# the catalogue


def list_models(arguments: Namespace) -> int:
    """`peftseg models`."""
    entries, problems = known_models()
    for problem in problems:
        print(f"Warning: {problem}", file=sys.stderr)
    rows = [
        _row(entry) for entry in (*by_id(entries).values(), *(read_model_dir(Path(folder)) for folder in arguments.dir))
    ]
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        licence = (row["licence"] or "no licence named") + _STANDING[row["acknowledgement"]]
        print(f"{row['id']}: {row['title']} ({row['modality']}; {licence}; {_weights(row)})")
        print(f"    structures: {_names(row['structures'])}")
        if row["page"]:
            print(f"    source: {row['page']}")
    if not rows:
        print("No models.")
    return 0


def _row(entry: ModelEntry) -> dict[str, Any]:
    """An entry, and how it stands on this machine; `download_mb` is None where the size or the address is not known."""
    source, here = entry.source, entry.weights_path is not None
    sized = not here and source is not None and source.address and source.size
    return {
        **to_dict(entry),
        "weights_here": here,
        "download_mb": round(source.size / MB, 1) if sized else None,
        "page": source.page if source is not None else "",
        "acknowledgement": licences.acknowledgement(entry),
    }


def _names(structures: list[dict[str, Any]]) -> str:
    names = [structure["name"] for structure in structures]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more or "none before it is adapted"


def _weights(row: dict[str, Any]) -> str:
    if row["weights_here"]:
        return "weights here"
    if row["source"] is None:
        return "weights missing"
    if row["download_mb"] is not None:
        return f"{max(row['download_mb'], 1):.0f} MB to download"
    return "weights to be downloaded" if row["source"]["address"] else "a weights file to be imported"


def _find(name: str) -> ModelEntry:
    known = catalogue()
    if name not in known:
        raise unknown_name("model", name, known)
    return known[name]


# weights come


def run_download(arguments: Namespace) -> int:
    """`peftseg models download ID`."""
    entry = _find(arguments.model)
    if entry.weights_path is not None:
        return _print_finished("is here already", entry, arguments.json)
    if entry.source is None:
        raise BadInput(
            f"Model '{entry.id}' has no public weights to download.", "Restore its folder, or train it again."
        )
    licences.require_accepted(entry)
    folder = _downloads(entry.id)
    with shown_reporter(arguments.json) as reporter:
        import_checkpoint = _importer()  # before a long download: without torch it would be in vain
        file = download(
            entry.source, folder, mirror=arguments.mirror, progress=_progress(reporter), check=reporter.check
        )
        imported = import_checkpoint(entry, file, reporter=reporter, clip_driven=HEADS[arguments.head])
    remove_tree(folder)
    return _print_finished("was imported", imported, arguments.json)


def run_import(arguments: Namespace) -> int:
    """`peftseg models import ID FILE` or `peftseg models import MODELDIR`."""
    if arguments.file is None:
        is_nnunet = (Path(arguments.model) / "plans.json").is_file()
        with shown_reporter(arguments.json):
            imported = _import_nnunet(arguments) if is_nnunet else _import_folder(arguments.model)
        return _print_finished("was imported", imported, arguments.json)
    given = [name for name in ("id", "fold", "orientation") if getattr(arguments, name) is not None]
    if given:
        raise BadInput(f"--{given[0]} is for nnU-Net model folders only.", "Leave it out.")
    entry = _find(arguments.model)
    if entry.weights_path is not None:
        raise _taken(entry)
    if entry.source is None:
        raise BadInput(f"Model '{entry.id}' is not made from a public checkpoint.", "Give its folder alone.")
    file = options.existing(arguments.file, "checkpoint")
    licences.require_accepted(entry)
    folder = _downloads(entry.id)
    with shown_reporter(arguments.json) as reporter:
        import_checkpoint = _importer()
        imported = import_checkpoint(entry, file, reporter=reporter, clip_driven=HEADS[arguments.head])
    if folder.is_dir():  # what a download had begun is not needed any more
        remove_tree(folder)
    return _print_finished("was imported", imported, arguments.json)


def _import_folder(name: str) -> ModelEntry:
    """Copy a model folder into PEFTSegment's own, once its weights are known to fit its network."""
    known = catalogue()
    if name in known and not Path(name).is_dir():
        raise BadInput(
            f"`peftseg models import {name}` lacks the checkpoint file.",
            f"Give it: `peftseg models import {name} FILE`, or a model folder alone.",
        )
    entry = read_model_dir(options.existing(name, "model folder"))
    target = models_dir() / _plain_id(entry.id)
    if entry.id in known:
        raise _taken(known[entry.id])
    if (target / "model.json").exists():  # without it, the folder is what an import that was killed left
        raise BadInput(f"The folder {target} exists.", f"Run `peftseg models remove {entry.id}` first.")
    if entry.weights_path is None:
        raise BadInput(f"{entry.directory} has no weights.safetensors.", "Copy the whole model folder.")
    licences.require_accepted(entry)
    with _needs_torch():
        from peftseg.weights import load_base
    load_base(entry)
    try:
        for file in _files_to_copy(entry.directory):
            with atomic_write(target / file.name) as temporary:
                shutil.copyfile(file, temporary)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # the error that is under way says what went wrong
        raise
    return read_model_dir(target)


def _import_nnunet(arguments: Namespace) -> ModelEntry:
    known = catalogue()
    if arguments.id in known:
        raise _taken(known[arguments.id])
    with _needs_torch():
        import torch  # noqa: F401
    try:
        from peftseg.nnunet import import_nnunet
    except ModuleNotFoundError as error:
        raise BadInput(
            f"nnU-Net models need the Python package {error.name}, which is not installed.",
            "Install it: pip install peftseg[nnunet].",
        ) from error
    return import_nnunet(
        Path(arguments.model),
        fold=arguments.fold,
        orientation=arguments.orientation,
        model_id=_plain_id(arguments.id) if arguments.id else None,
    )


def _files_to_copy(folder: Path) -> list[Path]:
    """Weights, early head and legal texts, and last the file that makes it a model folder."""
    others = sorted(p for p in folder.iterdir() if p.is_file() and (_LEGAL.match(p.name) or p.name == EARLY_FILE))
    return [folder / "weights.safetensors", *others, folder / "model.json"]


def _taken(entry: ModelEntry) -> BadInput:
    if entry.weights_path is None:
        remedy = f"Run `peftseg models download {entry.id}`, or import its public checkpoint."
        return BadInput(f"'{entry.id}' is the id of a public model ({entry.title}).", remedy)
    ours = entry.directory.parent == home() / "models"
    remedy = (
        f"Run `peftseg models remove {entry.id}` first." if ours else "Give the new model another id in model.json."
    )
    return BadInput(f"The catalogue has a model '{entry.id}' already, in {entry.directory}.", remedy)


def _plain_id(identity: str) -> str:
    """The id, which names a folder; refused where it could name another one."""
    if not _ID.fullmatch(identity):
        raise BadInput(
            f"The model id '{identity}' cannot name a folder.", "Use letters, digits, '-', '_' and '.' in model.json."
        )
    return identity


def _downloads(identity: str) -> Path:
    return models_dir() / DOWNLOADS / _plain_id(identity)


def _importer() -> Callable[..., ModelEntry]:
    with _needs_torch():
        from peftseg.checkpoint_import import import_checkpoint
    return import_checkpoint


@contextlib.contextmanager
def _needs_torch() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise BadInput(f"Weights cannot be read without torch ({error}).", "See `peftseg doctor`.") from error


# weights go, licences


def run_remove(arguments: Namespace) -> int:
    """`peftseg models remove ID`."""
    known, own = catalogue(), home() / "models"
    name = arguments.model
    entry = known.get(name)
    by_name = [own / name, own / DOWNLOADS / name] if _ID.fullmatch(name) else []  # also a damaged model's folder
    found = [folder for folder in by_name if folder.is_dir()]
    if entry is not None and entry.directory is not None and entry.directory not in found:
        if entry.directory.parent == BUNDLED:
            raise BadInput(f"Model '{name}' is bundled with PEFTSegment; it cannot be removed.", "Leave it.")
        if entry.directory.parent != own:
            raise BadInput(
                f"Model '{name}' lies in {entry.directory}, outside of PEFTSegment's folder.",
                "Delete it yourself there.",
            )
        found.append(entry.directory)
    if not found:
        if entry is None:
            raise unknown_name("model", name, known)
        raise BadInput(f"Model '{name}' has no weights on this machine.", "There is nothing to remove.")
    freed = sum(file.stat().st_size for folder in found for file in folder.rglob("*") if file.is_file())
    for folder in found:
        remove_tree(folder)
    if arguments.json:
        _print_event(removed=[str(folder) for folder in found], freed_mb=round(freed / MB, 1))
    else:
        print(f"Removed {', '.join(map(str, found))}; that freed {freed / MB:.1f} MB.")
    return 0


def run_accept(arguments: Namespace) -> int:
    """`peftseg models accept ID`."""
    entry = resolve(arguments.model)
    if arguments.json and not arguments.yes:
        raise BadInput("With --json nothing is asked.", "Show the licence to the user, then give --yes.")
    if not arguments.json:
        _print_licence(entry)
    if licences.acknowledgement(entry) == "needed":
        _ask_unless(arguments.yes, entry)
        licences.accept(entry)
    standing = licences.acknowledgement(entry)
    if arguments.json:
        facts = ("id", "licence", "licence_notice", "patents", "citation")
        _print_event(**{name: getattr(entry, name) for name in facts}, acknowledgement=standing)
    else:
        print("The licence is accepted." if standing == "accepted" else "It needs no acceptance.")
    return 0


def _print_licence(entry: ModelEntry) -> None:
    print(f"{entry.title} ({entry.id})")
    for what, text in (
        ("Licence", entry.licence or "none named"),
        ("Notice", entry.licence_notice),
        ("Patents", entry.patents),
        ("Please cite", entry.citation),
        ("Page", entry.source.page if entry.source else ""),
    ):
        if text:
            print(f"{what}: {text}")


def _ask_unless(yes: bool, entry: ModelEntry) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(
            "There is no terminal on which the question could be answered.",
            f"Read the licence above, then run `peftseg models accept {entry.id} --yes`.",
        )
    if input("Do you accept this licence? [y/N] ").strip().lower() not in ("y", "yes"):
        raise JobCancelled("The licence was not accepted; nothing was recorded.")


# how it is shown


@contextlib.contextmanager
def shown_reporter(as_json: bool = False) -> Iterator[Reporter]:
    """A reporter that shows how it goes; the bar makes way for what is printed next, also for an error.

    With JSON nothing else comes to stdout: what libraries print goes to stderr. SIGTERM ends the block as Ctrl-C does, so
    that no temporary file stays behind.
    """
    echo = JsonLines(sys.stdout) if as_json else ProgressBar(sys.stderr)
    others = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with others, _terminated_as_interrupted():
            yield Reporter(lambda kind, fields: echo({"event": kind, **plain(fields)}))
    finally:
        if not as_json:
            echo({"event": "finished"})


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _progress(reporter: Reporter) -> Callable[[int, int], None]:
    """Bytes as progress in megabytes, with the time left; said once a megabyte."""
    begun = time.monotonic()
    first = said = -1

    def progress(done: int, total: int) -> None:
        nonlocal first, said
        first = done if first < 0 else first
        whole = done == total
        if done // MB == said and not whole:
            return
        said = done // MB
        if not total:  # the server does not say it
            if said % 50 == 0:
                reporter.log(f"{said:.0f} MB so far.")
            return
        rate = (done - first) / max(time.monotonic() - begun, 1e-3)
        left = (total - done) / rate if rate > 0 else None
        megabytes = -(-total // int(MB))
        reporter.progress("download (MB)", megabytes if whole else int(said), megabytes, left)

    return progress


def _print_finished(done: str, entry: ModelEntry, as_json: bool) -> int:
    if as_json:
        _print_event(id=entry.id, directory=str(entry.directory))
    else:
        print(f"The model {entry.id} {done}: {entry.directory}")
    return 0


def _print_event(**facts: Any) -> None:
    JsonLines(sys.stdout)({"event": "finished", **plain(facts)})
