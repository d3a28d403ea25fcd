"""Installing without internet: does a folder of wheels hold all that is needed, and how is one filled. No slicer."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, parse_tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from peftseg.errors import BadInput

from . import environment_facts
from .environment import SHIPPED, EnvironmentState, run_facts
from .gpu_builds import recommended_cuda

_ = getattr(sys.modules.get("slicer.i18n"), "tr", str)

TORCH_INDEX = "https://download.pytorch.org/whl/{build}"
COMMON_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
COMMON_PLATFORMS += ("manylinux_2_12", "manylinux2010", "manylinux_2_5", "manylinux1")


@dataclass(frozen=True)
class Wheel:
    """One wheel file: name, version and the tags it is made for."""

    path: Path
    name: str
    version: Version
    tags: frozenset[Tag]


@dataclass(frozen=True)
class FolderCheck:
    """What a folder offers: `missing` says what no wheel is there for, `chosen` which wheels would be installed."""

    missing: tuple[str, ...]
    chosen: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether all is there."""
        return not self.missing


def check_wheels(folder: Path, requirements: list[Requirement], state: EnvironmentState) -> FolderCheck:
    """Whether a folder's wheels meet requirements, with what these need in turn, on a state's interpreter.

    Parameters
    ----------
    folder : Path
    requirements : list of Requirement
        What is to be installed.
    state : EnvironmentState
        Of the interpreter; what is installed there and suits needs no wheel.

    Raises
    ------
    BadInput
        When the folder does not exist or holds no wheel at all.
    """
    wheels = read_folder(folder)
    accepted = frozenset(tag for text in tags_of(state) for tag in parse_tag(text))
    installed = dict(state.facts["installed"])
    for package in (p for p in state.packages if not p.met):
        installed.pop(package.name, None)
    environment = target_environment(state)
    missing, chosen, seen = [], [], set()
    todo = [(requirement, "") for requirement in requirements]
    while todo:
        requirement, user = todo.pop(0)
        name = canonicalize_name(requirement.name)
        if (name, str(requirement.specifier)) in seen or not applies(requirement, environment):
            continue
        seen.add((name, str(requirement.specifier)))
        version = installed.get(name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            continue
        offered = [w for w in wheels if w.name == name]
        fitting = [w for w in offered if w.tags & accepted and requirement.specifier.contains(w.version, True)]
        if not fitting:
            missing.append(_reason(requirement, user, offered, accepted))
            continue
        best = max(fitting, key=lambda w: w.version)
        installed[name] = str(best.version)
        chosen.append(best.path)
        todo += [(needed, best.path.name) for needed in needs_of(best.path)]
    return FolderCheck(tuple(missing), tuple(chosen))


def read_folder(folder: Path) -> list[Wheel]:
    """The wheels of a folder; BadInput when there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(_("The folder {folder} does not exist.").format(folder=folder), _("Choose another folder."))
    found = []
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _build, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        found.append(Wheel(path, name, version, tags))
    if not found:
        text = _("The folder {folder} holds no packages (files that end with .whl).").format(folder=folder)
        raise BadInput(text, _("Choose the folder into which the packages were downloaded."))
    return found


def needs_of(wheel: Path) -> list[Requirement]:
    """What a wheel requires in turn; nothing where it cannot be read (pip then says so)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
            lines = HeaderParser().parsestr(archive.read(name).decode("utf-8")).get_all("Requires-Dist") or []
    except (OSError, zipfile.BadZipFile, StopIteration):
        return []
    return [needed for needed in map(_parsed, lines) if needed is not None]


def _parsed(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    """Whether a requirement's marker (system, Python version) holds; requirements of extras do not count."""
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})


def target_environment(state: EnvironmentState) -> dict[str, str]:
    """What markers are evaluated with: this computer, the state's Python version."""
    version = state.facts["version"]
    short = ".".join(version.split(".")[:2])
    return {**default_environment(), "python_version": short, "python_full_version": version}


def download_command(state: EnvironmentState, folder: str | Path, build: str | None = None) -> str:
    """The command that fills a folder of wheels for this interpreter, to be run on any computer with internet.

    Parameters
    ----------
    state : EnvironmentState
        Of the interpreter for which the wheels are.
    folder : path
        Folder on the other computer.
    build : str or None
        The build of torch, "cpu", "cu126" ...; None: the one that fits this computer's GPU.
    """
    version = ".".join(state.facts["version"].split(".")[:2])
    shipped = {r.name for r in SHIPPED} if state.own else set()
    todo = [p.requirement for p in state.packages if not p.met]
    todo = todo or [p.requirement for p in state.packages if p.requirement.name not in shipped]
    # The same numpy and torch as here: others would be downloaded with what needs them, and not used.
    kept = [f"{p.requirement.name}=={p.version}" for p in state.packages if p.met and p.name in ("torch", "numpy")]
    words = ["python", "-m", "pip", "download", "--only-binary=:all:", "--implementation", "cp"]
    words += ["--python-version", version]
    words += [word for platform in platforms(state) for word in ("--platform", platform)]
    if state.facts["system"] != "darwin":
        known = state.torch is not None and state.package("torch").met and state.torch.build.startswith("c")
        here = state.torch.build if known else ""
        words += ["--extra-index-url", TORCH_INDEX.format(build=build or here or fitting_build(state))]
    words += ["--dest", _quoted(str(folder)), *(_quoted(str(word)) for word in [*todo, *kept])]
    return " ".join(words)


def how_to_fill(state: EnvironmentState, folder: str | Path = "wheels", build: str | None = None) -> str:
    """Plain words and the command that fill a folder of wheels on a computer with internet."""
    text = _(
        "On a computer with internet and Python: open a terminal, run the command below, and copy the folder "
        "'{folder}' to this computer. Then choose it here. The packages fit this computer only if it has the same "
        "system and the same version of Slicer."
    )
    return f"{text.format(folder=folder)}\n\n{download_command(state, folder, build)}"


def fitting_build(state: EnvironmentState) -> str:
    """The build of torch for this computer: "cpu" or "cu126" ..."""
    cuda = recommended_cuda(state.gpus[0]) if state.gpus else None
    return "cu" + cuda.replace(".", "") if cuda else "cpu"


def tags_of(state: EnvironmentState) -> list[str]:
    """The tags of the wheels that a state's interpreter accepts; read now where they were not."""
    if state.facts["tags"] or not state.own:
        return state.facts["tags"] or run_facts(state.python, [], with_tags=True)["tags"]
    return environment_facts.wheel_tags()


def platforms(state: EnvironmentState) -> list[str]:
    """The platform tags to download for, newest first; few, as pip tries each."""
    found = list(dict.fromkeys(text.split("-", 2)[2] for text in tags_of(state) if not text.endswith("-any")))
    if state.facts["system"] == "linux":
        return [p for p in found if p.startswith(tuple(f"{common}_" for common in COMMON_PLATFORMS))]
    return found[:12]


def _quoted(word: str) -> str:
    return f'"{word}"' if set(word) & set("<>=!~; ") else word


def _reason(requirement: Requirement, user: str, offered: list[Wheel], accepted: frozenset[Tag]) -> str:
    """One line about what is missing, and why the wheels of that name do not do."""
    text = f"{requirement.name}{requirement.specifier}"
    if user:
        text = _("{requirement} (needed by {user})").format(requirement=text, user=user)
    if not offered:
        return text
    names = ", ".join(w.path.name for w in offered)
    if any(w.tags & accepted for w in offered):
        return _("{requirement}: there is {files}, another version").format(requirement=text, files=names)
    return _("{requirement}: there is {files}, for another system or Python").format(requirement=text, files=names)
