"""The subcommands `inspect layers|grad-cam|proto-seg`: what a network looks at. Torch-free until a job runs."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg import config, jobs
from peftseg.adapter_file import read_header
from peftseg.cli_jobs import run_here
from peftseg.cli_progress import table
from peftseg.errors import BadInput
from peftseg.explain.targets import TARGETS, Target
from peftseg.library import find_adapter
from peftseg.licences import usable
from peftseg.models import Structure
from peftseg.study import read_support_folder


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommand to the command line."""
    parser = subparsers.add_parser("inspect", help="what an adapted network looks at: Grad-CAM, ProtoSeg")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="layers|grad-cam|proto-seg")
    _add_layers(verbs.add_parser("layers", help="the layers that can be looked into, in network order"))
    _add_grad_cam(verbs.add_parser("grad-cam", help="which features of a layer speak for a structure"))
    _add_proto_seg(verbs.add_parser("proto-seg", help="how well each layer alone tells a structure from the rest"))


def _add_source(parser: options.Parser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--adapter", metavar="FILE|NAME", help="an adapter file, or a name in the library")
    which.add_argument("--model", metavar="ID|DIR", help="a model as it is")


def _add_layers(parser: options.Parser) -> None:
    _add_source(parser)
    options.add_json(parser)
    parser.set_defaults(run=run_layers)


def _add_grad_cam(parser: options.Parser) -> None:
    add = parser.add_argument
    _add_source(parser)
    add("--input", required=True, metavar="PATH", help="the scan: a file, or a DICOM series folder")
    add("--structure", required=True, metavar="NAME[=VALUE]", help="what to explain, and its value in --labels")
    add(
        "--layer",
        nargs="+",
        default=[],
        metavar="NAME",
        help="see `inspect layers` (default: the last before the head)",
    )
    add("--target", default=None, help=f"voxels to explain: {', '.join(TARGETS)} (default: predicted)")
    add("--point", metavar="R,A,S", help="explain the voxel at this place (mm)")
    add("--region", metavar="R,A,S,R,A,S", help="explain the box between two corners (mm)")
    _add_common(parser)
    parser.set_defaults(run=run_grad_cam)


def _add_proto_seg(parser: options.Parser) -> None:
    add = parser.add_argument
    _add_source(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--input", metavar="PATH", help="the scan: a file, or a DICOM series folder")
    which.add_argument(
        "--support", metavar="DIR", help="folder with images/ and labels/: means before and after adaptation"
    )
    add(
        "--structure",
        nargs="+",
        default=[],
        metavar="NAME[=VALUE]",
        help="which, and their values in the labels (default: all)",
    )
    add("--layer", nargs="+", default=[], metavar="NAME", help="see `inspect layers` (default: all of these)")
    add("--no-maps", action="store_true", help="write no map files")
    _add_common(parser)
    parser.set_defaults(run=run_proto_seg)


def _add_common(parser: options.Parser) -> None:
    add = parser.add_argument
    add("--labels", metavar="FILE", help="labels of the scan, to compare with")
    add("--out", required=True, metavar="DIR", help="folder to write to")
    add("--no-pictures", action="store_true", help="draw no PNG files")
    add("--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels")
    options.add_run_options(parser)


def run_layers(arguments: Namespace) -> int:
    """`peftseg inspect layers`."""
    from peftseg.explain.inputs import load_subject
    from peftseg.explain.layers import list_layers

    subject = load_subject(arguments.adapter, arguments.model)
    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "channels": layer.channels,
            "stride": list(layer.stride),
            "adapted": layer.adapted,
            "note": layer.note,
        }
        for layer in list_layers(subject.network, subject.anatomy)
        if layer.listed
    ]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(table([{**row, "adapted": "yes" if row["adapted"] else "-", "note": row["note"] or "-"} for row in rows]))
    return 0


def run_grad_cam(arguments: Namespace) -> int:
    """`peftseg inspect grad-cam`."""
    structure = _structures(arguments, [arguments.structure])[0]
    job = config.GradCamJob(
        adapter=arguments.adapter,
        model=arguments.model,
        input=str(options.existing(arguments.input, "input")),
        structure=structure,
        out=arguments.out,
        layers=tuple(arguments.layer),
        target=_target(arguments),
        labels=_labels(arguments),
        pictures=not arguments.no_pictures,
        device=arguments.device,
        seed=arguments.seed,
        replace_nonfinite=arguments.replace_nonfinite,
        precision=arguments.precision,
    )
    return run_here(jobs.create_job(job), arguments.json, show=_show_grad_cam)


def run_proto_seg(arguments: Namespace) -> int:
    """`peftseg inspect proto-seg`."""
    structures = _structures(arguments, arguments.structure)
    if arguments.support and arguments.labels:
        raise BadInput(
            "--labels goes with --input; the labels of a support set are in its folder.", "Leave --labels out."
        )
    support: tuple = ()
    if arguments.support:
        named = structures or _own_structures(arguments)
        support = read_support_folder(options.existing(arguments.support, "support folder"), named)
    job = config.ProtoSegJob(
        adapter=arguments.adapter,
        model=arguments.model,
        out=arguments.out,
        input=str(options.existing(arguments.input, "input")) if arguments.input else None,
        labels=_labels(arguments),
        support=support,
        structures=structures,
        layers=tuple(arguments.layer),
        maps=not arguments.no_maps,
        pictures=not arguments.no_pictures,
        device=arguments.device,
        seed=arguments.seed,
        replace_nonfinite=arguments.replace_nonfinite,
        precision=arguments.precision,
    )
    return run_here(jobs.create_job(job), arguments.json, show=_show_proto_seg)


def _own_structures(arguments: Namespace) -> tuple[Structure, ...]:
    if arguments.adapter:
        return read_header(find_adapter(arguments.adapter))[0].structures
    return usable(arguments.model).structures


def _structures(arguments: Namespace, texts: Sequence[str]) -> tuple[Structure, ...]:
    """Structures of texts such as "liver" or "liver=6"; without a value the network's own is taken."""
    known = {s.name: s for s in _own_structures(arguments)}
    found = []
    for number, text in enumerate(texts):
        if text in known:
            found.append(known[text])
            continue
        if "=" not in text:
            raise BadInput(
                f"The network has no structure '{text}'; it has: {', '.join(known) or 'none'}.",
                "Choose one of these; one that it does not know needs labels and its value there, NAME=VALUE.",
            )
        given = options.parse_structures(text)[0]
        own = known.get(given.name)
        colour = own.colour if own else options.PALETTE[number % len(options.PALETTE)]
        found.append(Structure(given.name, given.value, colour, own.code if own else ""))
    return tuple(found)


def _labels(arguments: Namespace) -> str | None:
    return str(options.existing(arguments.labels, "label map")) if arguments.labels else None


def _target(arguments: Namespace) -> Target:
    point = _numbers(arguments.point, 3, "--point")
    region = _numbers(arguments.region, 6, "--region")
    implied = "point" if point else "region" if region else "predicted"
    return Target(arguments.target or implied, point, region)


def _numbers(text: str | None, count: int, flag: str) -> tuple | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise BadInput(
            f"{flag} '{text}' is not {count} numbers with commas.",
            f"Write {flag}={','.join('0' * count)} with mm in place of 0 (with = because of signs).",
        )
    return numbers


def _show_grad_cam(ending: Mapping[str, Any]) -> None:
    columns = ("layer", "kind", "match_prediction", "match_labels", "map")
    rows = [{**{c: row[c] for c in columns}, "note": row["note"] or "-"} for row in ending["layers"]]
    print(table(rows))
    if ending["why"]:
        print(f"The map is empty: {ending['why']}.")
    print(ending["reading"])
    print(_where(ending))


def _where(ending: Mapping[str, Any]) -> str:
    return f"Everything that was written is in {Path(ending['report']).parent}."


def _show_proto_seg(ending: Mapping[str, Any]) -> None:
    if "drops" in ending:
        _show_support(ending)
        return
    rows = [
        {
            "layer": row["layer"],
            "kind": row["kind"],
            "structure": row["structure"],
            "prototype by": row["built_by"],
            "SA": "not defined" if row["sa"] is None else row["sa"],
            "agreement": "not defined" if row["agreement"] is None else row["agreement"],
            "note": row["note"] or "-",
        }
        for row in ending["layers"]
    ]
    print(table(rows))
    for sentence in ending["not_defined"]:
        print(sentence)
    print(ending["reading"])
    print(_where(ending))


def _show_support(ending: Mapping[str, Any]) -> None:
    def score(row: Mapping[str, Any], when: str, built_by: str) -> Any:
        return row[when][built_by] if row[when] else None

    rows = [
        {
            "layer": row["layer"],
            "kind": row["kind"],
            "before": score(row, "before", "truth"),
            "after": score(row, "after", "truth"),
            "drop": row["drop"],
            "by prediction, before": score(row, "before", "prediction"),
            "after ": score(row, "after", "prediction"),
            "note": row["note"] or "-",
        }
        for row in ending["layers"]
    ]
    print(f"Mean Segmentation Ability over {ending['scans']} labelled scans, prototypes built by the labels:")
    print(table(rows))
    if any(row["after"] for row in ending["layers"]):
        print(f"Layers whose ability drops most by the adaptation: {', '.join(ending['drops']) or 'none'}.")
    print(_where(ending))
