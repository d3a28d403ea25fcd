"""Made-up interpreters, installed packages and wheels, small but real: metadata, records and tags as pip writes them."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

SUITABLE = {
    "torch": "2.13.0+cpu",
    "monai": "1.6.1",
    "safetensors": "0.8.0",
    "psutil": "7.2.2",
    "einops": "0.8.2",
    "contourpy": "1.3.3",
    "numpy": "2.2.6",
    "scipy": "1.15.3",
    "simpleitk": "2.5.7",
    "pydicom": "3.0.2",
    "highdicom": "0.28.2",
}
MODULES = {"simpleitk": "SimpleITK"}


@dataclass(frozen=True)
class MadePython:
    """A bare interpreter: its program and its folder of packages."""

    program: str
    site: Path

    def add(self, name: str, version: str, requires: tuple[str, ...] = (), cuda: str | None = None) -> Path:
        """Put a package there as pip does; returns the folder of its description."""
        module = self.site / MODULES.get(name, name.replace("-", "_"))
        module.mkdir()
        (module / "__init__.py").write_text(f'__version__ = "{version}"\n')
        (module / "_library.so").write_bytes(b"")
        if name == "torch":
            written = f"'{cuda}'" if cuda else "None"
            text = f"__version__ = '{version}'\ncuda: Optional[str] = {written}\nhip: Optional[str] = None\n"
            (module / "version.py").write_text(text)
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(metadata(name, version, requires))
        (info / "INSTALLER").write_text("pip\n")
        files = [f"{module.name}/__init__.py", f"{module.name}/_library.so", f"{info.name}/METADATA"]
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        return info

    def add_all(self, cuda: str | None = None, **versions: str) -> None:
        """Put all that the engine needs there, in versions that suit unless others are given."""
        for name, version in {**SUITABLE, **versions}.items():
            self.add(name, version, ("torch>=2.8",) if name == "monai" else (), cuda if name == "torch" else None)


def make_python(folder: Path) -> MadePython:
    """Make an interpreter without packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    program = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    return MadePython(str(program), site)


def metadata(name: str, version: str, requires: tuple[str, ...]) -> str:
    """The text of a METADATA file."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), "", "Text.", ""])


def make_wheel(
    folder: Path, name: str, version: str, requires: tuple[str, ...] = (), tag: str = "py3-none-any"
) -> Path:
    """Write a wheel that pip can install."""
    folder.mkdir(parents=True, exist_ok=True)
    module = MODULES.get(name, name.replace("-", "_"))
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": f'__version__ = "{version}"\n',
        f"{info}/METADATA": metadata(name, version, requires),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: made-up\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if name == "torch":
        files[f"{module}/version.py"] = f"__version__ = '{version}'\ncuda: Optional[str] = None\n"
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def digest(text: str) -> str:
    """The hash of a file as a RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def make_all_wheels(folder: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Write wheels of all that the engine needs, with one that another needs in turn."""
    for name, version in SUITABLE.items():
        requires = {"monai": ("torch>=2.8", "numpy<3"), "torch": ("sympy>=1.13", "nothing; extra == 'more'")}
        if name not in leave_out:
            make_wheel(folder, name, version, requires.get(name, ()))
    if "sympy" not in leave_out:
        make_wheel(folder, "sympy", "1.14.0")
    return folder
