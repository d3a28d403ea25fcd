"""What an installation would do, as steps in plain words, before anything is done. No slicer: importable anywhere.

    state = examine_environment()
    plan = make_plan(state)                    # shown, and agreed to
    installer.Installation(plan, ...).start(agreed=True)

An installed torch, numpy or MONAI is changed only by a plan that says so (`needs_consent`) and names what else uses it;
the way around is a separate environment (`isolated`, see separate_environment.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from packaging.requirements import Requirement

from peftseg.errors import BadInput

from .environment import TORCH, EnvironmentState, Package, all_requirements, examine_environment
from .gpu_builds import driver_helps, recommended_cuda
from .install_steps import InstallPlan, Step, TorchChoice
from .install_warnings import SPACE_CPU, SPACE_CUDA, warnings_of
from .separate_environment import environment_folder, environment_python, find_base_python
from .wheels_folder import TORCH_INDEX, check_wheels, fitting_build

__all__ = ["EnvironmentState", "InstallPlan", "Step", "TorchChoice", "examine_environment", "make_plan"]

_ = getattr(sys.modules.get("slicer.i18n"), "tr", str)

TORCH_EXTENSION = "PyTorchUtils"  # the module of the extension "PyTorch"
# Extensions that import torch in Slicer, as the extension index has them; those found here are named.
EXTENSIONS_WITH_TORCH = {
    "TotalSegmentator": "TotalSegmentator",
    "SlicerNNUNetLib": "NNUNet",
    "MONAIAuto3DSeg": "MONAIAuto3DSeg",
    "SlicerNNInteractive": "NNInteractive",
    "DentalSegmentator": "DentalSegmentator",
    "MONAIViz": "MONAIViz",
    "TomoSAM": "TomoSAM",
    "SegmentWithSAM": "SegmentWithSAM",
    "KonfAI": "KonfAI",
    "VoxTell": "VoxTell",
}
NEVER_SILENTLY = ("torch", "numpy", "monai")
PINNED = ("torch", "numpy", "monai", "scipy", "simpleitk", "pydicom")  # pip must leave these as they are


def make_plan(
    state: EnvironmentState,
    wheels_folder: str | Path | None = None,
    isolated: bool = False,
    torch_by: str | None = None,
    base_python: str | None = None,
    free_bytes: int | None = None,
) -> InstallPlan:
    """Plan what turns a state into "ready".

    Parameters
    ----------
    state : EnvironmentState
        Of Slicer's own or the chosen interpreter.
    wheels_folder : path or None
        Install from this folder only, without internet.
    isolated : bool
        Into the separate environment `environment_folder()` instead; nothing of Slicer's changes.
    torch_by : str or None
        "extension", "cpu" or "cuda"; None: the extension PyTorch where it is installed, else the plan asks.
    base_python : str or None
        The Python that makes the separate environment; None: `find_base_python()`.
    free_bytes : int or None
        Free space; None: look.

    Raises
    ------
    BadInput
        When the folder of wheels cannot be used.
    """
    folder = Path(wheels_folder) if wheels_folder else None
    making = False
    if isolated:
        state, base_python, making = _separate(state, base_python)
    torch_by = torch_by or _obvious_way(state, folder)
    torch_steps = _torch_steps(state, folder, torch_by)
    asks = torch_by is None and bool(torch_steps)
    steps = [_environment_step(base_python)] if making else []
    steps += [_clean_step(p) for p in state.packages if p.broken_metadata]
    steps += torch_steps + _package_steps(state, folder, isolated)
    target = environment_folder() if isolated else Path(state.facts["prefix"])
    space = 0 if not torch_steps else SPACE_CUDA if recommended(state) and torch_by != "cpu" else SPACE_CPU
    return InstallPlan(
        python=state.python,
        own=state.own,
        isolated=isolated,
        steps=tuple(steps),
        warnings=warnings_of(state.facts, target, space, free_bytes) if steps else (),
        question=_torch_question(state) if asks else "",
        choices=_torch_choices(state) if asks else (),
        missing_wheels=_missing_wheels(state, folder, steps),
        base_python=base_python,
        wheels_folder=folder,
        torch_by=torch_by,
    )


def has_torch_extension() -> bool:
    """Whether the extension PyTorch is active in this Slicer."""
    return importlib.util.find_spec(TORCH_EXTENSION) is not None


def extensions_with_torch() -> list[str]:
    """Extensions of this Slicer that are known to use torch."""
    return [title for module, title in EXTENSIONS_WITH_TORCH.items() if importlib.util.find_spec(module) is not None]


def recommended(state: EnvironmentState) -> str | None:
    """CUDA version for this computer's first GPU, None without one that can be used."""
    return recommended_cuda(state.gpus[0]) if state.gpus else None


def constraints_text(facts: dict, changing: tuple[str, ...] = ()) -> str:
    """Constraints for pip that keep what is installed of `PINNED`, but for the names that are to change."""
    installed = facts["installed"]
    return "".join(f"{name}=={installed[name]}\n" for name in PINNED if name in installed and name not in changing)


def _obvious_way(state: EnvironmentState, folder: Path | None) -> str | None:
    """How torch is installed where there is no choice, or the extension PyTorch makes it; None: ask."""
    if folder is None and state.own and has_torch_extension():
        return "extension"
    gpu_build = recommended(state) is not None
    if folder is not None or state.facts["system"] == "darwin" or not (state.own or gpu_build):
        return "cuda" if gpu_build else "cpu"
    return None


def _separate(state: EnvironmentState, base_python: str | None) -> tuple[EnvironmentState, str | None, bool]:
    """(state of the separate environment, base Python, whether it is to be made); made anew where it does not work."""
    python = str(environment_python())
    if environment_python().is_file():
        with contextlib.suppress(BadInput):
            return examine_environment(python, state.gpus), base_python, False
    base_python = base_python or find_base_python()
    facts = {**state.facts, "installed": {}, "prefix": str(environment_folder())}
    if base_python is not None:
        base = examine_environment(base_python, state.gpus, with_tags=True).facts
        facts |= {key: base[key] for key in ("version", "machine", "system", "tags")}
    packages = tuple(Package(requirement, None) for requirement in all_requirements())
    return EnvironmentState(python, False, facts, packages, None, state.gpus), base_python, True


def _torch_steps(state: EnvironmentState, folder: Path | None, torch_by: str | None) -> list[Step]:
    package = state.package("torch")
    if package.met and (not state.cuda_problem or driver_helps(state.gpus[0])):
        return []
    steps = []
    changes: tuple[str, ...] = ()
    if package.version is not None and not package.broken_metadata:
        if not package.problem:
            changes = (_change(package, in_words(TORCH)),)
        steps.append(
            Step("remove", _("Remove PyTorch {version}.").format(version=package.version), ("torch",), (), changes)
        )
    build = fitting_build(state) if torch_by != "cpu" else "cpu"
    title = (
        _("without GPU support") if build == "cpu" else _("for your GPU, CUDA {cuda}").format(cuda=recommended(state))
    )
    if folder is not None or state.facts["system"] == "darwin":
        title = _("from the folder") if folder is not None else _("for macOS")
    if torch_by == "extension":
        sentence = _("Install PyTorch ({title}) with the extension PyTorch.").format(title=title)
        steps.append(Step("torch extension", sentence, (str(TORCH),), (build,)))
        return steps
    sentence = _("Install PyTorch ({title}).").format(title=title)
    options = _source(folder)
    if folder is None and state.facts["system"] != "darwin":
        options += ("--index-url", TORCH_INDEX.format(build=build))
    steps.append(Step("install", sentence, (str(TORCH),), options))
    return steps


def _package_steps(state: EnvironmentState, folder: Path | None, isolated: bool) -> list[Step]:
    todo = [p for p in state.packages if p.name != "torch" and not p.met]
    damaged = [p for p in todo if p.problem and not p.broken_metadata and p.version is not None]
    steps = []
    if damaged:
        names = tuple(p.requirement.name for p in damaged)
        steps.append(Step("remove", _("Remove the damaged {names}.").format(names=", ".join(names)), names))
    if todo:
        changes = tuple(_change(p, in_words(p.requirement)) for p in todo if p.outside and p not in damaged)
        names = ", ".join(p.requirement.name for p in todo)
        where = _("into the separate environment") if isolated else _("into Slicer's Python")
        where = where if isolated or state.own else _("into {python}").format(python=state.python)
        sentence = _("Install {names} {where}.").format(names=names, where=where)
        steps.append(Step("install", sentence, tuple(str(p.requirement) for p in todo), _source(folder), changes))
    return steps


def _source(folder: Path | None) -> tuple[str, ...]:
    return ("--only-binary=:all:", *(("--no-index", "--find-links", str(folder)) if folder is not None else ()))


def _change(package: Package, to: str) -> str:
    """One sentence: what changes, and what else uses it."""
    users = list(package.needed_by)
    if package.name in NEVER_SILENTLY:
        users += [u for u in extensions_with_torch() if u not in users]
    text = _("{name} {version} is replaced (by {to}).").format(
        name=package.requirement.name, version=package.version, to=to
    )
    if users:
        return f"{text} {_('It is also used by: {users}; they may stop working.').format(users=', '.join(users))}"
    return f"{text} {_('Nothing else that is known here uses it.')}"


def in_words(requirement: Requirement) -> str:
    """The versions that suit, e.g. "1.5 or newer, below 1.7"."""
    limits = {s.operator: s.version for s in requirement.specifier}
    return _("{lowest} or newer, below {ceiling}").format(lowest=limits[">="], ceiling=limits["<"])


def _clean_step(package: Package) -> Step:
    sentence = _("Remove what an interrupted installation left of {name}.").format(name=package.requirement.name)
    return Step("clean", sentence, (str(package.broken_metadata),))


def _environment_step(base_python: str | None) -> Step:
    text = _("Make a separate environment in {folder} with {python}; nothing of Slicer changes.")
    sentence = text.format(folder=environment_folder(), python=base_python or "Python")
    return Step("environment", sentence, (str(environment_folder()),))


def _torch_question(state: EnvironmentState) -> str:
    if not state.own:
        return _("Choose how PyTorch is to be installed.")
    return _(
        "Install the extension 'PyTorch' first: open the Extensions Manager (View menu), search for PyTorch, install it and "
        "restart Slicer; the installation then goes on. Or choose a PyTorch below."
    )


def _torch_choices(state: EnvironmentState) -> tuple[TorchChoice, ...]:
    cpu = TorchChoice("cpu", _("PyTorch without GPU support: about 0.2 GB to download, 1 GB on disk"))
    cuda = recommended(state)
    if not cuda:
        return (cpu,)
    title = _("PyTorch for your GPU (CUDA {cuda}): about 3 GB to download, 7 GB on disk").format(cuda=cuda)
    return (TorchChoice("cuda", title), cpu)


def _missing_wheels(state: EnvironmentState, folder: Path | None, steps: list[Step]) -> tuple[str, ...]:
    if folder is None:
        return ()
    wanted = [Requirement(text) for step in steps if step.kind == "install" for text in step.requirements]
    gone = {name for step in steps if step.kind == "remove" for name in step.requirements}
    packages = tuple(replace(p, version=None) if p.name in gone else p for p in state.packages)
    return check_wheels(folder, wanted, replace(state, packages=packages)).missing
