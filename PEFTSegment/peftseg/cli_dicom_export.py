"""The subcommand `dicom export`: a result as DICOM SEG or RTSTRUCT that refers to its series. Torch-free."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg.cli_endings import counted, listed
from peftseg.cli_progress import print_json
from peftseg.dicom_source import FORMATS, check_available, series_files
from peftseg.errors import BadInput, unknown_name


def add_export(subparsers: Any) -> None:
    """Add `export` to the verbs of `peftseg dicom`."""
    parser = subparsers.add_parser("export", help="write a result as DICOM SEG or RTSTRUCT")
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="the result: .nii.gz with its .json, or .seg.nrrd")
    add("--source", required=True, metavar="DIR|FILE", help="the DICOM series that was segmented")
    add(
        "--part",
        metavar="TEXT",
        help="which volume of a series with several, e.g. 'echo time 4.92 ms': see `dicom list`",
    )
    add("--out", required=True, metavar="FILE", help="new file, e.g. case.dcm")
    add("--format", default=FORMATS[0], help=f"{' or '.join(FORMATS)} (default: %(default)s)")
    add(
        "--edited", action="store_true", help="a person has changed the result: says SEMIAUTOMATIC instead of AUTOMATIC"
    )
    add("--compress", action="store_true", help="deflate the DICOM SEG file; not every archive takes that")
    add("--structures", metavar="NAME=VALUE,...", help="what is in a label map without a .json")
    options.add_json(parser)
    parser.set_defaults(run=run_export)


def run_export(arguments: Namespace) -> int:
    """`peftseg dicom export`."""
    from peftseg.dicom_seg import write_result
    from peftseg.result_facts import read_facts
    from peftseg.volume import read_labels

    if arguments.format not in FORMATS:
        raise unknown_name("DICOM format", arguments.format, FORMATS)
    if arguments.compress and arguments.format != "dicom-seg":
        raise BadInput("--compress is for dicom-seg only.", "Leave it out.")
    check_available(arguments.format)
    out = Path(arguments.out)
    if out.exists():
        raise BadInput(f"{out} exists; results are not overwritten.", "Choose another name, or remove the file.")
    result, source = options.existing(arguments.input, "result"), options.existing(arguments.source, "series")
    files = _planes_of(source, arguments.part) if arguments.part else series_files(source)
    structures, provenance = read_facts(result)
    if arguments.structures:
        structures = options.parse_structures(arguments.structures)
    if not structures:
        raise BadInput(
            f"{Path(result).name} has no names for its label values: no .json of PEFTSegment beside it.",
            "Name them, e.g. --structures liver=1,spleen=2.",
        )
    labels = read_labels(result)
    written = write_result(
        out,
        labels,
        labels.grid,
        files,
        structures,
        provenance,
        arguments.format,
        arguments.edited,
        arguments.compress,
    )
    if arguments.json:
        print_json({"output": written, "format": arguments.format, "structures": [s.name for s in structures]})
    else:
        names = listed(structure.name for structure in structures)
        print(f"Wrote {counted(len(structures), 'structure')} ({names}) to {written} as {arguments.format}.")
        print("For research use only: it is a draft until a person has reviewed it.")
    return 0


def _planes_of(source: Path, part: str) -> tuple[tuple[Path, int], ...]:
    """The planes of one volume of a series."""
    from peftseg.dicom_sort import find_series

    found = [series for series in find_series([source]) if series.part]
    for series in found:
        if series.part == part:
            return series.planes
    if not found:
        raise BadInput(f"{source} holds no series with several volumes.", "Leave --part out.")
    raise unknown_name("part", part, [series.part for series in found])
