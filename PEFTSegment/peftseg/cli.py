"""The command line `peftseg`. Torch-free: the engine is imported inside the subcommands that need it."""

from __future__ import annotations

import sys

from peftseg import cli_jobs, cli_models, cli_show
from peftseg.cli_options import Parser, parse
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
    cli_models.add_subcommands(subparsers)
    cli_show.add_subcommands(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0 done, 1 internal error, 2 bad input, 3 cancelled, 4 out of memory.

    Errors of the user's input are printed as message and remedy on stderr, without a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a Windows console may lack a letter of a structure's name
    try:
        chosen = parse(build_parser(), arguments)
        if chosen.command != "worker":
            delete_scratch()
        return chosen.run(chosen)
    except PeftsegError as error:
        print(f"Error: {error.message}\n{error.remedy}".rstrip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return JobCancelled.exit_code


if __name__ == "__main__":
    sys.exit(main())
