"""What lies in a Python environment, read without importing any of it. Standard library only: any interpreter runs it.

Within this process call `collect`; for another interpreter this file is run as a program and prints the same as JSON.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
from pathlib import Path

IMPORT_NAMES = {"simpleitk": "SimpleITK"}  # where the module is not called as the package is
LIBRARIES = (".so", ".pyd", ".dll", ".dylib")
PACKAGE_FOLDERS = ("site-packages", "dist-packages")


def canonical(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def collect(names: list[str], with_tags: bool = False) -> dict:
    """Facts about this interpreter and the named packages, as JSON data.

    Parameters
    ----------
    names : list of str
        The packages to look at closely; "torch" is always among them.
    with_tags : bool
        Whether the wheel tags that this interpreter accepts are listed too (there are hundreds).

    Returns
    -------
    dict
        `packages`: name -> version (None: not installed), problem ("" or what is wrong with the files), metadata (folder
        of a broken description, to be removed) and loaded (version of the module in memory, None: not imported);
        `torch_files`: what torch's own version file says; `needed_by`: name -> packages whose metadata require it;
        `installed`: version of everything that is installed.
    """
    importlib.invalidate_caches()
    wanted = sorted({canonical(name) for name in [*names, "torch"]})
    needed_by, installed = _survey(wanted)
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "version": platform.python_version(),
        "machine": platform.machine().lower(),
        "system": sys.platform,
        "packages": {name: _package(name) for name in wanted},
        "torch_files": _torch_files(),
        "needed_by": needed_by,
        "installed": installed,
        "tags": wheel_tags() if with_tags else [],
    }


def _package(name: str) -> dict:
    module = IMPORT_NAMES.get(name, name.replace("-", "_"))
    facts = {"version": None, "problem": "", "metadata": None, "loaded": _loaded_version(module)}
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        if _stray_module(module):
            facts["problem"] = "its files are there, but not its description"
        return facts
    folder = getattr(found, "_path", None)
    facts["version"] = _version(found)
    record = found.read_text("RECORD")
    if facts["version"] is None or (record is None and _by_pip(found)):
        facts["problem"] = "its description is incomplete"
        facts["metadata"] = str(folder) if folder is not None else None
    elif not _importable(module):
        facts["problem"] = "its description is there, but not its files"
    elif record is not None and _missing_file(found, record):
        facts["problem"] = "some of its files are missing"
    return facts


def _version(found) -> str | None:
    text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    match = re.search(r"^Version:\s*(\S+)", text, re.MULTILINE)
    return match.group(1) if match else None


def _by_pip(found) -> bool:
    """Whether pip put it there, or may have died while doing so: it writes INSTALLER and RECORD last.

    Linux distributions and conda leave RECORD out on purpose, but name themselves.
    """
    installer = (found.read_text("INSTALLER") or "pip").strip()
    return installer == "pip" and str(getattr(found, "_path", "")).endswith(".dist-info")


def _importable(module: str) -> bool:
    if module in sys.modules:
        return True
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _stray_module(module: str) -> bool:
    """Whether a package folder holds the module although no description of it is there."""
    spec = importlib.util.find_spec(module) if module not in sys.modules else None
    if spec is None:
        return False
    return any(Path(place).parent.name in PACKAGE_FOLDERS for place in spec.submodule_search_locations or ())


def _missing_file(found, record: str) -> str | None:
    """The first of its own libraries and top-level modules that RECORD names and the disk lacks."""
    for line in record.splitlines():
        path = line.rsplit(",", 2)[0].strip('"')
        top_level = path.count("/") == 1 and path.endswith("/__init__.py")
        if (top_level or path.endswith(LIBRARIES)) and not Path(str(found.locate_file(path))).exists():
            return path
    return None


def _loaded_version(module: str) -> str | None:
    version = getattr(sys.modules.get(module), "__version__", None)
    return str(version) if version is not None else None


def _torch_files() -> dict | None:
    """Version and CUDA or ROCm version as torch/version.py has them; None without that file."""
    spec = importlib.util.find_spec("torch") if "torch" not in sys.modules else sys.modules["torch"].__spec__
    places = list(getattr(spec, "submodule_search_locations", None) or ())
    file = next((p for p in (Path(place) / "version.py" for place in places) if p.is_file()), None)
    if file is None:
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    found = {}
    for key in ("__version__", "cuda", "hip"):
        match = re.search(rf"^{key}\b[^=\n]*=\s*(?:'([^']*)'|\"([^\"]*)\"|None)", text, re.MULTILINE)
        found[key] = (match.group(1) or match.group(2)) if match else None
    return found


def _survey(wanted: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(name -> packages that require it, name -> version of everything installed)."""
    needed: dict[str, set[str]] = {name: set() for name in wanted}
    installed: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        head = (found.read_text("METADATA") or "").split("\n\n", 1)[0]
        own = re.search(r"^Name:\s*(\S+)", head, re.MULTILINE)
        version = re.search(r"^Version:\s*(\S+)", head, re.MULTILINE)
        if own is None or version is None:
            continue
        installed.setdefault(canonical(own.group(1)), version.group(1))
        for line in re.findall(r"^Requires-Dist:\s*(.+)$", head, re.MULTILINE):
            name = canonical(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0])
            if name in needed and "extra ==" not in line:
                needed[name].add(own.group(1))
    return {name: sorted(users, key=str.lower) for name, users in needed.items()}, installed


def wheel_tags() -> list[str]:
    """The tags of the wheels that this interpreter accepts, best first."""
    from packaging import tags

    return [str(tag) for tag in tags.sys_tags()]


def main(arguments: list[str]) -> None:
    """Print the facts; `--tags=FOLDER` also the wheel tags, by the `packaging` of that folder where there is no other."""
    folders = [a.partition("=")[2] for a in arguments if a.startswith("--tags=")]
    facts = collect([a for a in arguments if not a.startswith("--")])
    if folders:
        sys.path += folders  # after the look at the environment
        facts["tags"] = wheel_tags()
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1:])
