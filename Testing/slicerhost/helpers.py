"""`slicer.i18n` and `slicer.packaging`: translation that changes nothing, and installations that are only recorded."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import types
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from . import api


def i18n() -> types.ModuleType:
    """Build `slicer.i18n`; a text that is no plain string is refused, as lupdate would not find it."""
    module = types.ModuleType("slicer.i18n")

    def tr(text):
        if not isinstance(text, str):
            raise TypeError(f"tr() takes a str, not {type(text).__name__}")
        return text

    module.tr = tr
    module.translate = lambda _context, text: tr(text)
    module.getContext = lambda source_file: Path(source_file).stem
    return module


@dataclass
class Packages:
    """What the tests say is installed, and what the module asked for.

    `installed` maps a name to a version, or to None for "not installed"; other names are looked up for real.
    `failure` is raised by the next installation. One that does not block prints `output` and ends with `exit_code`.
    """

    installed: dict[str, str | None] = field(default_factory=dict)
    calls: list[tuple[str, tuple, dict]] = field(default_factory=list)
    failure: Exception | None = None
    output: list[str] = field(default_factory=list)
    exit_code: int = 0

    def version(self, name: str) -> str | None:
        """Return the version that counts as installed."""
        name = canonicalize_name(name)
        if name in self.installed:
            return self.installed[name]
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def check(self, requirement) -> bool:
        """Tell whether all requirements are met."""
        if isinstance(requirement, (list, tuple)):
            return all(self.check(r) for r in requirement)
        parsed = requirement if isinstance(requirement, Requirement) else Requirement(requirement)
        if parsed.marker is not None and not parsed.marker.evaluate():
            return True
        version = self.version(parsed.name)
        return version is not None and parsed.specifier.contains(version, prereleases=True)

    def record(self, name: str, arguments: tuple, options: dict) -> None:
        """Record one call, after its names are compared with the listed signature."""
        known = set(re.findall(r"(\w+): ", api.listed()["slicer.packaging"][name]))
        unknown = set(options) - known
        if unknown:
            raise TypeError(f"slicer.packaging.{name}() got an unexpected keyword argument: {sorted(unknown)}")
        self.calls.append((name, arguments, options))
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def call_back(self, options: dict) -> None:
        """Call the callbacks of a call that does not block."""
        for line in self.output if options.get("logCallback") else ():
            options["logCallback"](line)
        if options.get("completedCallback"):
            options["completedCallback"](self.exit_code)


def load_requirements(path) -> list[Requirement]:
    """Read a requirements file."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def packaging(packages: Packages) -> types.ModuleType:
    """Build `slicer.packaging`."""
    import subprocess

    module = types.ModuleType("slicer.packaging")

    def pip_install(*arguments, **options) -> None:
        packages.record("pip_install", arguments, options)
        packages.call_back(options)

    def pip_ensure(requirements, *arguments, **options):
        packages.record("pip_ensure", (requirements, *arguments), options)
        wanted = requirements if isinstance(requirements, list) else [requirements]
        return [str(r) for r in wanted if not packages.check(r)]

    def pip_uninstall(*arguments, **options) -> None:
        packages.record("pip_uninstall", arguments, options)
        packages.call_back(options)

    found = {
        "CalledProcessError": subprocess.CalledProcessError,
        "InvalidRequirement": InvalidRequirement,
        "Requirement": Requirement,
        "Path": Path,
        "canonicalize_name": canonicalize_name,
        "isPipInstallInProgress": lambda: False,
        "load_requirements": load_requirements,
        "pip_check": packages.check,
        "pip_ensure": pip_ensure,
        "pip_install": pip_install,
        "pip_uninstall": pip_uninstall,
    }
    for name, value in found.items():
        setattr(module, name, value)
    return module


def check_signatures(module: types.ModuleType, section: str) -> list[str]:
    """Compare the parameters of a real module's functions with the list; return the differences."""
    differences = []
    for name, text in api.listed()[section].items():
        function = getattr(module, name, None)
        if text.startswith("class") or not inspect.isfunction(function):
            continue
        listed = re.findall(r"[(,] ?\*{0,2}(\w+)(?=[:=,) ])", text)
        own = list(inspect.signature(function).parameters)
        if not set(own) <= set(listed):
            differences.append(f"{name}: {own} is not {text}")
    return differences
