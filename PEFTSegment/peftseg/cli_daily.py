"""The subcommands for daily use: `adapters show|import|publish|references|drift`. Torch-free until a scan is segmented."""

from __future__ import annotations

import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

from peftseg import cli_options as options
from peftseg.cli_progress import JsonLines, ProgressBar, print_done, print_json, table
from peftseg.events import Reporter, plain
from peftseg.worker import device_lock

WORSE = 5  # exit code of `references run`: a scan is worse than before, or could not be run
REFERENCE_COLUMNS = ("id", "name", "adapter", "structures", "copied", "added")
RUN_COLUMNS = ("name", "adapter", "structure", "before", "dice", "change", "verdict")


def add_verbs(verbs: Any) -> None:
    """Add this module's verbs to `peftseg adapters`."""
    _add_import(verbs.add_parser("import", help="take an adapter file into the library"))
    parser = verbs.add_parser("publish", help="put an adapter into a folder that other machines read")
    parser.add_argument("adapter", metavar="NAME|FILE")
    parser.add_argument("folder", metavar="DIR", help="the shared folder; see `peftseg adapters folders`")
    _add_renumber(parser)
    _done(parser, publish)
    _add_references(verbs.add_parser("references", help="labelled scans that are segmented again after every update"))
    parser = verbs.add_parser("drift", help="flags, volumes and distance to the labelled scans by month, from batches")
    parser.add_argument(
        "--manifest", nargs="+", required=True, metavar="DIR", help="output folders of batches, or their manifest.jsonl"
    )
    parser.add_argument("--out", metavar="FILE", help="write a chart: .html, .png, or the table as .csv")
    _done(parser, drift)


def _add_import(parser: options.Parser) -> None:
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--accept-licence", action="store_true", help="you have read and accept the licence of the adapter's model"
    )
    _add_renumber(parser)
    _done(parser, import_)


def _add_renumber(parser: options.Parser) -> None:
    parser.add_argument(
        "--renumber", action="store_true", help="where its name and version are taken, take the next version"
    )


def _add_references(parser: options.Parser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="add|list|remove|run")
    add = verbs.add_parser("add", help="pin a labelled scan")
    add.add_argument("--adapter", required=True, metavar="NAME|FILE", help="a name runs its newest version every time")
    add.add_argument("--image", required=True, metavar="PATH", help="the scan: a file, or a DICOM series folder")
    add.add_argument("--labels", required=True, metavar="FILE", help="its labels, on the scan's own grid")
    add.add_argument("--structures", required=True, metavar="NAME=VALUE,...", help="what the labels hold")
    add.add_argument("--name", default="", help="what you call the scan; not a patient's name")
    add.add_argument("--copy", action="store_true", help="keep a copy (readable by you only), not the path")
    _done(add, references_add)
    _done(verbs.add_parser("list", help="the pinned scans"), references_list)
    remove = verbs.add_parser("remove", help="unpin a scan; your own files are not touched")
    remove.add_argument("reference", metavar="ID|NAME")
    _done(remove, references_remove)
    run = verbs.add_parser(
        "run", help=f"segment them again; exit code {WORSE}: something is worse, or could not be run"
    )
    run.add_argument("--adapter", nargs="+", default=[], metavar="NAME|FILE", help="only the scans pinned for these")
    run.add_argument("--tolerance", type=float, metavar="DICE", help="smaller losses count as none")
    run.add_argument("--accept", action="store_true", help="hold later runs against this one")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:n or mps (default: %(default)s)")
    _done(run, references_run)


def _done(parser: options.Parser, function: Any) -> None:
    options.add_json(parser)
    parser.set_defaults(run=function)


def show(arguments: Namespace) -> int:
    """`peftseg adapters show NAME|FILE`."""
    from peftseg.adapter_import import base_here
    from peftseg.library import show_adapter
    from peftseg.model_card import model_card

    found = show_adapter(arguments.adapter)
    if arguments.json:
        print_json(found)
    else:
        print(model_card(found, base_here(found["base_id"])), end="")
    return 0


def import_(arguments: Namespace) -> int:
    """`peftseg adapters import FILE`."""
    from peftseg.adapter_import import import_checked

    file = options.existing(arguments.file, "adapter file")
    found = import_checked(file, arguments.accept_licence, arguments.renumber)
    if arguments.json:
        print_json({"imported": found.path, "ref": found.ref, "licence": found.licence, "notes": found.notes})
        return 0
    print(f"Took the adapter into the library as {found.ref}: {found.path}")
    print(f"The licence of its model: {found.licence}")
    for note in found.notes:
        print(f"Note: {note}")
    return 0


def publish(arguments: Namespace) -> int:
    """`peftseg adapters publish NAME DIR`."""
    from peftseg.publish import publish as publish_adapter

    found = publish_adapter(arguments.adapter, arguments.folder, arguments.renumber)
    if arguments.json:
        print_json({"published": found.path, "ref": found.ref, "hash": found.hash, "was_there": found.was_there})
    else:
        done = "is there already" if found.was_there else "was published"
        print(f"The adapter {found.ref} {done}: {found.path}")
    return 0


def references_add(arguments: Namespace) -> int:
    """`peftseg adapters references add`."""
    from peftseg.reference_scans import add_reference

    found = add_reference(
        arguments.adapter,
        options.existing(arguments.image, "scan"),
        options.existing(arguments.labels, "labels"),
        options.parse_structures(arguments.structures),
        arguments.name,
        arguments.copy,
    )
    where = "as a copy in your PEFTSegment folder" if found.copied else "where they are; do not move or change them"
    if arguments.json:
        print_json(vars(found))
    else:
        print(f"Pinned: {found.name} ({found.id}); its files are kept {where}.")
    return 0


def references_list(arguments: Namespace) -> int:
    """`peftseg adapters references list`."""
    from peftseg.reference_scans import read_references

    rows = [vars(entry) for entry in read_references()]
    if arguments.json:
        print_json(rows)
    else:
        named = [{**row, "structures": list(row["structures"])} for row in rows]
        print(table(named, REFERENCE_COLUMNS) if rows else "No reference scans.")
    return 0


def references_remove(arguments: Namespace) -> int:
    """`peftseg adapters references remove ID|NAME`."""
    from peftseg.reference_scans import remove_reference

    name = remove_reference(arguments.reference).name
    return print_done(f"The reference scan {name} is no longer pinned.", arguments.json, removed=name)


def references_run(arguments: Namespace) -> int:
    """`peftseg adapters references run`."""
    from peftseg.reference_runs import TOLERANCE, run_references

    echo = JsonLines(sys.stdout) if arguments.json else ProgressBar(sys.stderr)
    reporter = Reporter(lambda kind, fields: echo({"event": kind, **plain(fields)}))
    log = SimpleNamespace(append=lambda kind, fields: echo({"event": kind, **fields}))
    with device_lock(arguments.device, "references", log, reporter):  # a job may be using it
        found = run_references(
            arguments.adapter,
            device=arguments.device,
            tolerance=TOLERANCE if arguments.tolerance is None else arguments.tolerance,
            accept=arguments.accept,
            reporter=reporter,
        )
    if arguments.json:
        echo({"event": "finished", **plain(found)})
    else:
        print(table(found["rows"], RUN_COLUMNS) if found["rows"] else "")
        for change in found["changes"]:
            print(f"Changed since: {change}")
        for failure in found["failed"]:
            print(f"Not run: {failure['name']}. {failure['message']} {failure['remedy']}")
        print(f"{found['worse']} of {len(found['rows'])} results are worse than before.")
    return WORSE if found["worse"] or found["failed"] else 0


def drift(arguments: Namespace) -> int:
    """`peftseg adapters drift`."""
    from peftseg.drift import COLUMNS, by_month, marked, read_studies

    studies, notes = read_studies(arguments.manifest)
    rows = by_month(studies)
    out = None
    if arguments.out:
        from peftseg.drift_chart import write_drift

        out = write_drift(arguments.out, rows, notes)
    if arguments.json:
        print_json({"rows": rows, "marked": marked(rows), "notes": notes, "out": out})
        return 0
    print(table(rows, [column for column in COLUMNS if column not in ("doubt_median", "marks")]))
    for sentence in marked(rows) or ["No month stands out."]:
        print(sentence)
    for note in notes:
        print(f"Note: {note}")
    if out is not None:
        print(f"Wrote {'the table' if out.suffix == '.csv' else 'the chart'} to {out}.")
    return 0
