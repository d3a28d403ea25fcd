"""The state of a Python environment in one word, one sentence and one button. No slicer: importable anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packaging
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from peftseg.errors import BadInput
from peftseg.jobs import worker_environment

from . import environment_facts
from .gpu_builds import Gpu, driver_helps, probe_gpus, recommended_cuda, runs_on

# Slicer's translation where there is one; an alias, because tr() takes its context from the file that calls it.
_ = getattr(sys.modules.get("slicer.i18n"), "tr", str)

REQUIREMENTS_FILE = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TORCH = Requirement("torch>=2.8,<2.14")
SHIPPED = tuple(  # Slicer brings these; a separate environment needs them too
    Requirement(text)
    for text in ("numpy>=1.26,<3", "scipy>=1.11,<2", "SimpleITK>=2.3,<3", "pydicom>=3.0,<4", "highdicom>=0.25,<0.29")
)
READY, MISSING, PARTLY, RESTART = "ready", "missing", "partly installed", "restart needed"
WRONG_CUDA = "wrong CUDA for this GPU"
PATIENCE_S = 60


@dataclass(frozen=True)
class Package:
    """One requirement and what there is of it.

    Attributes
    ----------
    requirement : Requirement
    version : str or None
        Installed version; None when it is not installed.
    problem : str
        What is wrong with its files, "" when nothing is.
    broken_metadata : str or None
        Folder of an incomplete description, which hides from pip that the package is broken.
    loaded : str or None
        Version in the memory of this process.
    needed_by : tuple of str
        Installed packages that require it.
    """

    requirement: Requirement
    version: str | None
    problem: str = ""
    broken_metadata: str | None = None
    loaded: str | None = None
    needed_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The one spelling of its name."""
        return canonicalize_name(self.requirement.name)

    @property
    def outside(self) -> bool:
        """Whether it is installed in a version that does not suit."""
        return self.version is not None and not self.requirement.specifier.contains(self.version, prereleases=True)

    @property
    def met(self) -> bool:
        """Whether nothing is to be done."""
        return self.version is not None and not self.problem and not self.outside

    @property
    def stale(self) -> bool:
        """Whether this process still holds another version in memory."""
        return self.version is not None and self.loaded is not None and _differ(self.version, self.loaded)


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch: `build` is "cpu", "cu126", "rocm..." or "unknown"; `cuda` its CUDA version or None."""

    version: str
    build: str
    cuda: str | None


@dataclass(frozen=True)
class EnvironmentState:
    """What `examine_environment` found.

    Attributes
    ----------
    python : str
        The interpreter.
    own : bool
        Whether it is the one that runs this.
    facts : dict
        Version, prefix, machine, system and wheel tags of the interpreter, as `environment_facts.collect` has them.
    packages : tuple of Package
        torch first, then the requirements file's, then what Slicer ships.
    torch : TorchBuild or None
    gpus : tuple of Gpu
    """

    python: str
    own: bool
    facts: dict[str, Any]
    packages: tuple[Package, ...]
    torch: TorchBuild | None
    gpus: tuple[Gpu, ...]

    def package(self, name: str) -> Package:
        """The package of a name."""
        return next(p for p in self.packages if p.name == canonicalize_name(name))

    @property
    def kind(self) -> str:
        """The state: "ready", "missing", "partly installed", "restart needed" or "wrong CUDA for this GPU"."""
        if any(p.problem for p in self.packages):
            return PARTLY
        if not all(p.met for p in self.packages):
            return MISSING
        if any(p.stale for p in self.packages):
            return RESTART
        return WRONG_CUDA if self.cuda_problem else READY

    @property
    def usable(self) -> bool:
        """Whether jobs can run as it is, on the processor at worst."""
        return self.kind == READY or (self.kind == WRONG_CUDA and (self._no_cuda or driver_helps(self.gpus[0])))

    @property
    def cuda_problem(self) -> str:
        """Why torch cannot use the GPU, as a sentence; "" when it can, there is none, or no build could."""
        if not self.gpus or self.torch is None or self.torch.build == "unknown":
            return ""
        gpu = self.gpus[0]
        if self.torch.cuda is None:
            text = _("PyTorch is installed without GPU support, although there is a GPU ({gpu}): it works, but slowly.")
            return text.format(gpu=gpu.name) if self.torch.build == "cpu" and recommended_cuda(gpu) else ""
        if runs_on(self.torch.cuda, self.torch.version, gpu, self.facts["machine"]) is not False:
            return ""
        text = _("The installed PyTorch (CUDA {cuda}) does not run on this GPU ({gpu}, driver {driver}).")
        text = text.format(cuda=self.torch.cuda, gpu=gpu.name, driver=gpu.driver)
        if recommended_cuda(gpu):
            return text
        if driver_helps(gpu):
            return f"{text} {_('It needs a newer graphics driver; until then the processor is used.')}"
        return f"{text} {_('The GPU is too old; PyTorch without GPU support works.')}"

    @property
    def sentence(self) -> str:
        """The state in plain words."""
        kind = self.kind
        if kind == PARTLY:
            names = [f"{p.requirement.name} ({p.problem})" for p in self.packages if p.problem]
            return _("An earlier installation did not come to its end: {names}.").format(names=_listed(names))
        if kind == MISSING:
            return self._what_is_missing()
        if kind == RESTART:
            names = [p.requirement.name for p in self.packages if p.stale]
            text = _("{names} changed while Slicer was running; Slicer still uses the earlier version.")
            return text.format(names=_listed(names))
        if kind == WRONG_CUDA:
            return self.cuda_problem
        if self.gpu_unsure:
            text = _("Everything is installed. Whether PyTorch can use the {gpu} shows at the first run.")
            return text.format(gpu=self.gpus[0].name)
        return _("Everything is installed.")

    @property
    def action(self) -> str:
        """What helps: "report" (nothing is to be installed), "install" or "restart"."""
        if self.kind == RESTART:
            return "restart"
        only_driver = self.kind == WRONG_CUDA and driver_helps(self.gpus[0])
        return "report" if self.kind == READY or only_driver else "install"

    @property
    def button(self) -> str:
        """The label of the one button that does `action`."""
        if self.action == "report":
            return _("Copy report")
        labels = {MISSING: _("Install..."), PARTLY: _("Repair..."), RESTART: _("Restart Slicer")}
        return labels.get(self.kind, _("Change PyTorch..."))

    @property
    def _no_cuda(self) -> bool:
        return self.torch is not None and self.torch.cuda is None

    @property
    def gpu_unsure(self) -> bool:
        """Whether only a run can tell if torch uses the GPU; `peftseg doctor` does one."""
        if not self.gpus or self.torch is None or self.torch.cuda is None:
            return False
        return runs_on(self.torch.cuda, self.torch.version, self.gpus[0], self.facts["machine"]) is None

    def _what_is_missing(self) -> str:
        absent = [p.requirement.name for p in self.packages if p.version is None]
        outside = [f"{p.requirement.name} {p.version}" for p in self.packages if p.outside]
        parts = []
        if absent:
            parts.append(_("Not installed yet: {names}.").format(names=_listed(absent)))
        if outside:
            parts.append(_("Installed in a version that does not suit: {names}.").format(names=_listed(outside)))
        return " ".join(parts)


def read_requirements(path: Path = REQUIREMENTS_FILE) -> tuple[Requirement, ...]:
    """The requirements of a file; comments, blank lines and pip's options are left out."""
    lines = (line.split(" #")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return tuple(Requirement(line) for line in lines if line and not line.startswith(("#", "-")))


def all_requirements() -> tuple[Requirement, ...]:
    """All that the engine needs: torch first, then the requirements file's, then what Slicer ships."""
    return (TORCH, *read_requirements(), *SHIPPED)


def examine_environment(
    python: str | None = None, gpus: tuple[Gpu, ...] | None = None, with_tags: bool = False
) -> EnvironmentState:
    """Look at an environment without importing or changing anything in it.

    Parameters
    ----------
    python : str or None
        Another interpreter, which is run for up to `PATIENCE_S` seconds; None for the one that runs this.
    gpus : tuple of Gpu or None
        The GPUs; None: ask nvidia-smi.
    with_tags : bool
        Whether the interpreter's wheel tags are read too (`wheels_folder` needs them).

    Raises
    ------
    BadInput
        When the other interpreter cannot be run.
    """
    required = all_requirements()
    names = [r.name for r in required]
    own = python is None or Path(python) == Path(sys.executable)
    facts = environment_facts.collect(names, with_tags) if own else run_facts(str(python), names, with_tags)
    packages = tuple(_package(requirement, facts) for requirement in required)
    return EnvironmentState(
        python=sys.executable if own else str(python),
        own=own,
        facts=facts,
        packages=packages,
        torch=_torch_build(packages[0], facts),
        gpus=probe_gpus() if gpus is None else gpus,
    )


def run_python(python: str, arguments: list[str], patience_s: float = PATIENCE_S) -> str:
    """Run an interpreter as jobs run it, with the engine on its path; returns what it prints.

    Raises
    ------
    BadInput
        When it cannot be started, takes too long, or fails; the message ends with its last line.
    """
    remedy = _("Choose another interpreter in the settings, or clear the field to use Slicer's own.")
    flags = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    try:
        done = subprocess.run(
            [python, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=patience_s,
            env=worker_environment(python),
            stdin=subprocess.DEVNULL,
            creationflags=flags,
        )
    except subprocess.TimeoutExpired as error:
        text = _("{python} did not answer within {seconds:.0f} s.").format(python=python, seconds=patience_s)
        raise BadInput(text, remedy) from error
    except OSError as error:
        text = _("{python} cannot be started: {reason}.").format(python=python, reason=error.strerror or error)
        raise BadInput(text, remedy) from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BadInput(_("{python} failed: {reason}").format(python=python, reason=last), remedy)
    return done.stdout


def run_facts(python: str, names: list[str], with_tags: bool = False) -> dict[str, Any]:
    """`environment_facts.collect` of another interpreter; BadInput where it does not answer."""
    tags = [f"--tags={Path(packaging.__file__).parents[1]}"] if with_tags else []
    arguments = [environment_facts.__file__, *names, *tags]
    text = run_python(python, arguments)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        said = _("{python} gave no answer that can be read: {text}").format(python=python, text=text[-200:])
        raise BadInput(said, _("Choose a Python of version 3.10 to 3.13.")) from error


def _package(requirement: Requirement, facts: dict[str, Any]) -> Package:
    name = canonicalize_name(requirement.name)
    found = facts["packages"][name]
    return Package(
        requirement=requirement,
        version=found["version"],
        problem=found["problem"],
        broken_metadata=found["metadata"],
        loaded=found["loaded"],
        needed_by=tuple(facts["needed_by"].get(name, ())),
    )


def _torch_build(package: Package, facts: dict[str, Any]) -> TorchBuild | None:
    """Build from torch's version file, else from the local part of its version ("+cu126")."""
    if package.version is None:
        return None
    file = facts["torch_files"] or {}
    version = file.get("__version__") or package.version
    if file.get("cuda"):
        return TorchBuild(version, "cu" + file["cuda"].replace(".", ""), file["cuda"])
    if file.get("hip"):
        return TorchBuild(version, "rocm", None)
    local = version.partition("+")[2]
    if local.startswith("cu") and local[2:].isdigit():
        return TorchBuild(version, local, f"{local[2:-1]}.{local[-1]}")
    return TorchBuild(version, "cpu" if file or local == "cpu" else "unknown", None)


def _differ(installed: str, loaded: str) -> bool:
    """Whether two versions differ by their numbers; additions ("+cpu", ".post1") are often left out of one of them."""
    try:
        return Version(installed).base_version != Version(loaded).base_version
    except InvalidVersion:
        return False


def _listed(names: list[str]) -> str:
    return ", ".join(names)
