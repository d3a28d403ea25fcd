"""The subcommands that run jobs: adapt, check, rank, pretrain, jobs, worker. Torch-free until a job runs."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg import config, jobs, worker
from peftseg.cli_endings import show_for
from peftseg.cli_progress import JsonLines, ProgressBar, print_facts
from peftseg.events import CANCEL, Event
from peftseg.job_folder import can_resume, ending_of, prepare_resume
from peftseg.licences import usable
from peftseg.paths import remove_tree, write_text
from peftseg.study import find_inputs, read_support_folder


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommands to the command line."""
    _add_adapt(subparsers.add_parser("adapt", help="adapt a model to a support set"))
    _add_check(subparsers.add_parser("check", help="look at a support set before adapting: time, memory, mistakes"))
    _add_rank(subparsers.add_parser("rank", help="which unlabelled scan to label next"))
    _add_pretrain(subparsers.add_parser("pretrain", help="train a foundation model from labelled scans"))
    _add_jobs(subparsers.add_parser("jobs", help="list, cancel, resume and clean up jobs"))
    parser = subparsers.add_parser("worker", help="run a job folder (for programs)")
    parser.add_argument("jobdir", metavar="JOBDIR")
    parser.set_defaults(run=lambda arguments: worker.main(arguments.jobdir))


def _add_adapt(parser: options.Parser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE", help="the adapter to write, *.safetensors")
    parser.add_argument("--name", default="", help="name of the adapter (default: the structures' names)")
    parser.add_argument(
        "--start-from",
        metavar="FILE|NAME",
        help="go on from this adapter, with its scans and new ones, in half the time",
    )
    parser.add_argument(
        "--snapshots",
        action="store_true",
        help="also keep two earlier states in the file (twice as large), for `apply --quality full`",
    )
    _add_training(parser)
    parser.set_defaults(run=run_adapt)


def _add_check(parser: options.Parser) -> None:
    _add_training(parser)
    parser.add_argument("--no-match", action="store_true", help="do not run the model as it is on the scans (faster)")
    parser.set_defaults(run=run_check)


def _add_training(parser: options.Parser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="ID|DIR", help="a model of the catalogue, or a model folder")
    add("--support", required=True, metavar="DIR", help="folder with images/ and labels/ of the same file names")
    add("--structures", required=True, metavar="NAME=VALUE,...", help="what to segment, and its value in the labels")
    add("--method", default=config.AdaptJob.method, help="see `peftseg methods` (default: %(default)s)")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the method; may be repeated")
    add("--layers", metavar="NAME", help="as --option layers=NAME; proto-seg: those that fail on these scans")
    add("--budget", type=float, metavar="MIN", help="minutes after which the best so far is kept")
    add("--epochs", type=int, help="number of epochs (default: the method's own)")
    add(
        "--estimate",
        default="none",
        help="none, or loo: leave one scan out at a time, with all others of the same patient: 'patient' in support.json says "
        "which; where it does not, a patient with two scans makes the numbers too good (default: %(default)s)",
    )
    add("--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels")
    options.add_run_options(parser)


def _add_rank(parser: options.Parser) -> None:
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--adapter", metavar="FILE|NAME", help="an adapter file, or a name in the library")
    which.add_argument("--model", metavar="ID|DIR", help="a model as it is")
    add("--input", nargs="+", required=True, metavar="PATH", help="the unlabelled scans: files, folders, DICOM series")
    add("--labelled", nargs="+", default=[], metavar="PATH", help="images of the scans that are labelled already")
    add("--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels")
    options.add_run_options(parser)
    parser.set_defaults(run=run_rank)


def _add_pretrain(parser: options.Parser) -> None:
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder with images/ and labels/ of the same file names")
    add("--structures", required=True, metavar="NAME=VALUE,...", help="what to segment, and its value in the labels")
    add("--out", required=True, metavar="MODELDIR", help="the model folder to write")
    add("--id", help="id of the model (default: the folder's name)")
    add("--title", help="title of the model (default: its id)")
    add("--network", default="segresnet", help="name of the network (default: %(default)s)")
    add("--argument", action="append", default=[], metavar="KEY=VALUE", help="argument of the network; may be repeated")
    add("--activation", default="softmax", help="softmax, or sigmoid for overlapping structures (default: %(default)s)")
    add(
        "--spacing",
        metavar="X,Y,Z",
        help="voxel size in mm: left-right, front-back, head-foot (default: the scans' median)",
    )
    add("--intensity", default="zscore", help="zscore, percentile, range or window:lo,hi (default: %(default)s)")
    add("--epochs", type=int, default=100, help="number of epochs (default: %(default)s)")
    add("--patch", metavar="X,Y,Z", help="training patch in voxels, in the same order (default: chosen by the engine)")
    add("--plane", help="slices that a 2D network sees: axial, coronal or sagittal (default: axial)")
    add("--square", action="store_true", help="repeat the outer voxels of slices until they are square")
    add("--early-level", type=int, help="level of the early segmentation head, 0 to 3, or -1 for none")
    add("--modality", default="", help="for example CT")
    add("--body-part", default="", help="for example abdomen")
    add("--licence", default="", help="licence of the weights")
    add("--licence-notice", default="", help="what users must know or accept")
    add("--description", default="", help="a sentence for the catalogue")
    add("--budget", type=float, metavar="MIN", help="minutes after which training ends")
    options.add_run_options(parser)
    parser.set_defaults(run=run_pretrain)


def _add_jobs(parser: options.Parser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|cancel|resume|clean")
    for verb, text in (
        ("list", "all jobs"),
        ("cancel", "cancel a job, wherever it was started"),
        ("resume", "run a failed or cancelled job again, from its checkpoint where there is one"),
        ("clean", "delete a job's files, or those of all jobs that have ended"),
    ):
        verb_parser = verbs.add_parser(verb, help=text)
        options.add_json(verb_parser)
        if verb != "list":
            verb_parser.add_argument("id", nargs="?" if verb == "clean" else None, help="id, or its beginning")
        verb_parser.set_defaults(run={"list": list_, "cancel": cancel, "resume": resume, "clean": clean}[verb])


def run_adapt(arguments: Namespace) -> int:
    """`peftseg adapt`."""
    job = config.AdaptJob(
        out=arguments.out,
        name=arguments.name,
        snapshots=arguments.snapshots,
        start_from=arguments.start_from,
        **_training_fields(arguments),
    )
    return run_here(jobs.create_job(job), arguments.json, show=show_for(job))


def run_check(arguments: Namespace) -> int:
    """`peftseg check`."""
    job = config.CheckJob(match=not arguments.no_match, **_training_fields(arguments))
    return run_here(jobs.create_job(job), arguments.json, show=show_for(job))


def _training_fields(arguments: Namespace) -> dict[str, Any]:
    """What an adaptation and the look before it have in common."""
    from peftseg.adapters.table import check_options

    layers = [] if arguments.layers is None else [f"layers={arguments.layers}"]
    method_options = options.parse_options([*arguments.option, *layers])
    check_options(arguments.method, method_options)
    structures = options.parse_structures(arguments.structures, usable(arguments.model))
    return {
        "model": arguments.model,
        "support": read_support_folder(options.existing(arguments.support, "support folder"), structures),
        "structures": structures,
        "method": arguments.method,
        "options": method_options,
        "seed": arguments.seed,
        "device": arguments.device,
        "budget_minutes": arguments.budget,
        "epochs": arguments.epochs,
        "estimate": arguments.estimate,
        "replace_nonfinite": arguments.replace_nonfinite,
        "precision": arguments.precision,
    }


def run_rank(arguments: Namespace) -> int:
    """`peftseg rank`."""
    if arguments.model:
        usable(arguments.model)
    job = config.RankJob(
        adapter=arguments.adapter,
        model=arguments.model,
        inputs=tuple(str(path) for path in find_inputs(arguments.input)),
        support=tuple(str(path) for path in find_inputs(arguments.labelled)),
        device=arguments.device,
        seed=arguments.seed,
        replace_nonfinite=arguments.replace_nonfinite,
        precision=arguments.precision,
    )
    return run_here(jobs.create_job(job), arguments.json, show=show_for(job))


def run_pretrain(arguments: Namespace) -> int:
    """`peftseg pretrain`."""
    identity = arguments.id or Path(arguments.out).name
    structures = options.parse_structures(arguments.structures)
    job = config.PretrainJob(
        data=read_support_folder(options.existing(arguments.data, "data folder"), structures),
        structures=structures,
        out=arguments.out,
        id=identity,
        title=arguments.title or identity,
        network=arguments.network,
        network_arguments=options.parse_options(arguments.argument, "--argument"),
        activation=arguments.activation,
        spacing=options.parse_numbers(arguments.spacing, float, "--spacing"),
        intensity=arguments.intensity,
        epochs=arguments.epochs,
        patch=options.parse_numbers(arguments.patch, int, "--patch"),
        plane=arguments.plane,
        square=arguments.square,
        early_level=arguments.early_level,
        modality=arguments.modality,
        body_part=arguments.body_part,
        licence=arguments.licence,
        licence_notice=arguments.licence_notice,
        description=arguments.description,
        seed=arguments.seed,
        device=arguments.device,
        precision=arguments.precision,
        budget_minutes=arguments.budget,
    )
    return run_here(jobs.create_job(job), arguments.json, show=show_for(job))


def run_here(
    jobdir: Path,
    as_json: bool,
    runners: Mapping[str, worker.Runner] = worker.RUNNERS,
    show: Callable[[Event], None] | None = None,
    on_interrupt: str = CANCEL,
) -> int:
    """Run a job in this process, show how it goes, and delete its folder unless it can be resumed or holds something.

    Ctrl-C cancels the job as the Cancel button does, or asks for what `on_interrupt` says; a second one interrupts it. `show`
    prints what a job that finished has to say to people; None: every fact in a line.
    """
    with worker.output_in(jobdir / "worker.log") as (out, err), _request_on_interrupt(jobdir, on_interrupt):
        echo = JsonLines(out) if as_json else ProgressBar(err)
        code = worker.run(jobdir, runners, echo)
    ending = ending_of(jobdir)
    if not as_json and show is not None and ending["event"] == "finished":
        show(ending)
    elif not as_json:
        _print_ending(ending)
    crashed = ending["event"] == "failed" and ending["kind"] == "internal"
    if code and (crashed or can_resume(jobdir)):
        print(f"The job is kept; go on with: peftseg jobs resume {jobdir.name[:8]}", file=sys.stderr)
        print(f"Its log: {jobdir / 'worker.log'}", file=sys.stderr)
    elif any((jobdir / "result").glob("*")):
        print(f"Reports: {jobdir / 'result'}", file=sys.stderr)
    else:
        remove_tree(jobdir)
    return code


def _print_ending(ending: Event) -> None:
    facts = {key: value for key, value in ending.items() if key not in ("event", "time")}
    if ending["event"] == "finished":
        print_facts(facts)
    else:
        print(" ".join(facts[key] for key in ("message", "remedy") if facts.get(key)), file=sys.stderr)


@contextlib.contextmanager
def _request_on_interrupt(jobdir: Path, request: str) -> Iterator[None]:
    def ask(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        write_text(jobdir / "control", request)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def list_(arguments: Namespace) -> int:
    """`peftseg jobs list`."""
    found = jobs.list_jobs()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    for job in found:
        when = datetime.fromtimestamp(job["created"]).strftime("%Y-%m-%d %H:%M")
        note = "  (can be resumed)" if job["resumable"] else ""
        print(f"{job['id'][:8]}  {when}  {job['kind']:<8}  {job['state']:<9}  {job['name']}{note}")
    if not found:
        print("No jobs.")
    return 0


def cancel(arguments: Namespace) -> int:
    """`peftseg jobs cancel ID`."""
    handle = jobs.attach(jobs.find_job(arguments.id))
    handle.poll()
    already = handle.ending is not None
    handle.cancel()
    ending = handle.wait(30.0)
    note = " already" if already else ""
    print(json.dumps(ending) if arguments.json else f"Job {handle.id[:8]} is{note} {ending['event']}.")
    return 0


def resume(arguments: Namespace) -> int:
    """`peftseg jobs resume ID`."""
    jobdir = jobs.find_job(arguments.id)
    job = config.from_json((jobdir / "job.json").read_text(encoding="utf-8"))
    prepare_resume(jobdir)
    return run_here(jobdir, arguments.json, show=show_for(job))


def clean(arguments: Namespace) -> int:
    """`peftseg jobs clean [ID]`."""
    if arguments.id:
        found = [str(jobs.find_job(arguments.id))]
    else:
        found = [job["folder"] for job in jobs.list_jobs() if not job["alive"]]
    for folder in found:
        jobs.clean_up(Path(folder))
    print(json.dumps(found) if arguments.json else f"{len(found)} job(s) cleaned up.")
    return 0
