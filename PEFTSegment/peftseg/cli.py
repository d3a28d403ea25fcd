"""The command line `peftseg`. Torch-free: the engine is imported inside the subcommands that need it."""

from __future__ import annotations

import sys
import traceback

from peftseg import cli_batch, cli_compare, cli_dicom, cli_inspect, cli_jobs, cli_models, cli_show, cli_site
from peftseg.cli_options import Parser, parse
from peftseg.cli_progress import JsonLines
from peftseg.errors import JobCancelled, PeftsegError
from peftseg.jobs import delete_scratch
from peftseg.version import __version__


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="peftseg",
        description="Adapt a 3D segmentation foundation model to your site from a handful of labelled scans. "
        "For research use only; not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"peftseg {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cli_jobs.add_subcommands(subparsers)
    cli_batch.add_subcommands(subparsers)
    cli_site.add_subcommands(subparsers)
    cli_models.add_subcommands(subparsers)
    cli_show.add_subcommands(subparsers)
    cli_compare.add_subcommands(subparsers)
    cli_inspect.add_subcommands(subparsers)
    cli_dicom.add_subcommands(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0 done, 1 internal error, 2 bad input, 3 cancelled, 4 out of memory,
    5 done, but the answer is no (see the subcommand).

    Errors of the user's input are printed as message and remedy on stderr, without a traceback; with --json any error is one
    line of JSON on stdout, an event `failed` or `cancelled` as in Docs/job-protocol.md.
    """
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a Windows console may lack a letter of a structure's name
    if as_json:
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the console's own is: a program reads it
    try:
        chosen = parse(build_parser(), arguments)
        if chosen.command != "worker":
            delete_scratch()
        return chosen.run(chosen)
    except PeftsegError as error:
        return _tell(error, as_json)
    except KeyboardInterrupt:
        if not as_json:
            print("Interrupted.", file=sys.stderr)
            return JobCancelled.exit_code
        return _tell(JobCancelled("Interrupted."), as_json)
    except Exception as error:
        if not as_json:
            raise
        traceback.print_exc()
        message = f"An error inside PEFTSegment: {type(error).__name__}: {error}."
        return _tell(PeftsegError(message, "Report it with the output of `peftseg doctor`."), as_json)


def _tell(error: PeftsegError, as_json: bool) -> int:
    """Say what went wrong; returns the exit code."""
    if not as_json:
        print(f"Error: {error.message}\n{error.remedy}".rstrip(), file=sys.stderr)
    elif isinstance(error, JobCancelled):
        JsonLines(sys.stdout)({"event": "cancelled", "message": error.message})
    else:
        JsonLines(sys.stdout)({"event": "failed", "kind": error.kind, "message": error.message, "remedy": error.remedy})
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
