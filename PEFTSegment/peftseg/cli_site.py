"""The subcommand `site-adapt`: adaptation without labels. Torch-free until the job runs."""

from __future__ import annotations

from argparse import SUPPRESS, Action, Namespace
from pathlib import Path
from typing import Any

from peftseg import cli_options as options
from peftseg import config, jobs
from peftseg.cli_endings import show_for
from peftseg.cli_jobs import run_here
from peftseg.licences import usable
from peftseg.site_options import DEFAULT_PRESET, PRESET_TITLES, PRESETS, SITE_OPTIONS, check_site_options

REFUSED = 5  # exit code: the adaptation is done, and the gate refused it, so that no adapter was written


class _List(Action):
    """`--list`, as `--help`: print and leave; what else the command needs may be missing."""

    def __call__(self, parser: Any, *_: Any) -> None:
        """Called by argparse."""
        print(presets_and_options())
        parser.exit()


def add_subcommands(subparsers: Any) -> None:
    """Add this module's subcommand to the command line."""
    parser = subparsers.add_parser(
        "site-adapt",
        help=f"adapt a model to a site's scans without labels; exit code {REFUSED}: refused, no adapter written",
    )
    add = parser.add_argument
    add("--list", action=_List, nargs=0, default=SUPPRESS, help="print what presets and options mean, and exit")
    add("--model", required=True, metavar="ID|DIR", help="a model of the catalogue, or a model folder")
    add("--unlabelled", nargs="+", required=True, metavar="PATH", help="the site's scans: folders, files, DICOM series")
    add("--out", required=True, metavar="FILE", help="the adapter to write, *.safetensors")
    add("--name", default="", help="name of the adapter (default: the model's id and 'site')")
    add("--structures", metavar="NAME,...", help="structures that the model must know (default: not checked)")
    add("--preset", default=DEFAULT_PRESET, help=f"{', '.join(PRESETS)} (default: %(default)s)")
    words = ", ".join(option.name for option in SITE_OPTIONS)
    add("--option", action="append", default=[], metavar="KEY=VALUE", help=f"one of {words}; may be repeated")
    add("--budget", type=float, metavar="MIN", help="minutes after which training ends")
    add("--epochs", type=int, help="number of epochs (default: the preset's own)")
    add("--keep-refused", action="store_true", help="write the adapter also when it is refused")
    add("--replace-nonfinite", type=float, metavar="VALUE", help="value in place of NaN and infinite voxels")
    options.add_run_options(parser)
    parser.set_defaults(run=run_site_adapt)


def presets_and_options() -> str:
    """What `--list` prints: every preset with the options that it sets, then every option as `peftseg methods` does."""
    lines = ["Presets, and what they set:"]
    for preset, title in PRESET_TITLES.items():
        lines += [f"    {preset}: {title}.", f"        {settings_of(preset) or 'all defaults'}"]
    lines.append("Options, with the defaults that hold where the preset sets nothing else:")
    for option in SITE_OPTIONS:
        limits = f" ({', '.join(option.choices)})" if option.choices else ""
        default = "" if option.default is None else f"={typed(option.default)}"
        lines.append(f"    {option.name}{default}{limits}: {option.help}")
    return "\n".join(lines)


def settings_of(preset: str) -> str:
    """The options that a preset sets, as they are typed; empty where it sets none."""
    return ", ".join(f"{name}={typed(value)}" for name, value in PRESETS[preset].items())


def typed(value: Any) -> str:
    """A value as it is written in --option."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def run_site_adapt(arguments: Namespace) -> int:
    """`peftseg site-adapt`."""
    given = options.parse_options(arguments.option)
    check_site_options(arguments.preset, given)
    usable(arguments.model)
    names = [part.strip() for part in (arguments.structures or "").split(",")]
    job = config.SiteAdaptJob(
        model=arguments.model,
        unlabelled=tuple(str(_images(options.existing(path, "folder of scans"))) for path in arguments.unlabelled),
        out=arguments.out,
        name=arguments.name,
        preset=arguments.preset,
        options=given,
        structures=tuple(name for name in names if name),
        seed=arguments.seed,
        device=arguments.device,
        budget_minutes=arguments.budget,
        epochs=arguments.epochs,
        replace_nonfinite=arguments.replace_nonfinite,
        precision=arguments.precision,
        keep_refused=arguments.keep_refused,
    )
    code = run_here(jobs.create_job(job), arguments.json, show=show_for(job))
    return code if code or Path(arguments.out).is_file() else REFUSED


def _images(path: Path) -> Path:
    """Of a folder with images/ and labels/ the images: labels are no scans."""
    images = path / "images"
    return images if images.is_dir() else path
