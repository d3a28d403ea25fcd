"""The subcommand `apply`: one study, or a batch of any number. Torch-free until a job runs."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg import config, jobs
from peftseg.cli_endings import show_for
from peftseg.cli_jobs import run_here
from peftseg.events import CANCEL, STOP_KEEP
from peftseg.licences import usable
from peftseg.manifest import FILE
from peftseg.several_rules import RULES
from peftseg.volume import is_dicom_input

QUALITY_HELP = (
    "checks of results: none (size, shape, pieces and borders), fast (also how sure the network is, and the study segmented "
    "once more, slightly changed), full (twice more; with an adapter of `adapt --snapshots` four times) (default: %(default)s)"
)


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommand to the command line."""
    parser = subparsers.add_parser("apply", help="segment studies with an adapter or a model")
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--adapter",
        action="append",
        metavar="FILE|NAME",
        help="an adapter file, or a name in the library; may be repeated: their results become one, see --merge",
    )
    which.add_argument("--model", metavar="ID|DIR", help="a model as it is")
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders of files, or DICOM series folders")
    add("--out", required=True, metavar="DIR", help="folder to write to")
    formats = ", ".join(config.FORMATS)
    add("--format", "--output-format", dest="format", default="nifti", help=f"{formats} (default: %(default)s)")
    add("--overlap", type=float, help="overlap of neighbouring windows (default: the adapter's own)")
    add("--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels")
    add(
        "--merge", default=config.ApplyJob.merge, help=f"of several adapters: {', '.join(RULES)} (default: %(default)s)"
    )
    add("--quality", default="none", help=QUALITY_HELP)
    add("--series-rules", metavar="FILE", help="choose among DICOM series by these rules, or by 'default'")
    _add_batch(parser)
    options.add_run_options(parser)
    parser.set_defaults(run=run_apply)


def _add_batch(parser: options.Parser) -> None:
    group = parser.add_argument_group(
        "batch", "A manifest, measurements and a report; what is done is not done again. See Docs/batch.md."
    )
    add = group.add_argument
    add(
        "--batch",
        action=argparse.BooleanOptionalAction,
        help="make a batch, or not (default: for folders, several inputs, DICOM, and where a manifest is)",
    )
    add("--names", default="auto", help="of results: auto (opaque for DICOM), keep or opaque (default: %(default)s)")
    add("--watch", action="store_true", help="go on with studies that arrive later; Ctrl-C ends it")
    add(
        "--settle",
        type=float,
        default=5.0,
        metavar="S",
        help="watched files are taken after S seconds without a change",
    )
    add("--workers", type=int, default=0, metavar="N", help="use N processes of this machine")
    add("--cluster", default="", metavar="ADDRESS", help="use the workers of a Dask scheduler, e.g. tcp://host:8786")
    add("--no-report", action="store_true", help="no report.html and no pictures")


def run_apply(arguments: Namespace) -> int:
    """`peftseg apply`."""
    if arguments.model:
        usable(arguments.model)
    adapters = arguments.adapter or []
    job = config.ApplyJob(
        adapter=adapters[0] if len(adapters) == 1 else None,
        model=arguments.model,
        inputs=tuple(str(options.existing(path, "input")) for path in arguments.input),
        out=arguments.out,
        format=arguments.format,
        device=arguments.device,
        seed=arguments.seed,
        replace_nonfinite=arguments.replace_nonfinite,
        precision=arguments.precision,
        overlap=arguments.overlap,
        adapters=tuple(adapters) if len(adapters) > 1 else (),
        merge=arguments.merge,
        quality=arguments.quality,
        series_rules=arguments.series_rules,
        batch=is_batch(arguments),
        names=arguments.names,
        watch=arguments.watch,
        settle_s=arguments.settle,
        workers=arguments.workers,
        cluster=arguments.cluster,
        report=not arguments.no_report,
    )
    interrupt = STOP_KEEP if job.watch else CANCEL
    return run_here(jobs.create_job(job), arguments.json, show=show_for(job), on_interrupt=interrupt)


def is_batch(arguments: Namespace) -> bool:
    """Whether a command line means a batch: said so, or anything but one file into a folder without a manifest."""
    if arguments.batch is not None:
        return arguments.batch
    if arguments.watch or arguments.workers or arguments.cluster or (Path(arguments.out) / FILE).is_file():
        return True
    paths = [Path(path).expanduser() for path in arguments.input]
    return len(paths) > 1 or any(is_dicom_input(path) for path in paths)
