"""The wheel holds what the engine needs at run time, and works outside of the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from peftseg.models import BUNDLED, catalogue

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "PEFTSegment" / "peftseg"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built offline from a copy of what a source tree holds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(PACKAGE, source / "PEFTSegment" / "peftseg", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("peftseg-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder into which the wheel is installed, without its dependencies."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return target


def run_installed(site: Path, cwd: Path, *arguments: str) -> str:
    """Run the installed copy, not the source tree."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PEFTSEGMENT_HOME": str(cwd / "home")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_every_module_and_resource(wheel):
    expected = {
        f"peftseg/{p.relative_to(PACKAGE).as_posix()}"
        for p in PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if n.startswith("peftseg/")}
    assert held == expected


def test_the_wheel_names_licence_version_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(n).decode() for n in names if n.endswith("METADATA"))
        commands = next(archive.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    from peftseg import __version__

    assert f"Version: {__version__}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert any(n.endswith("LICENSE") for n in names)
    assert "peftseg = peftseg.__main__:main" in commands, "which sets what must be set before torch is imported"


def test_the_installed_copy_is_the_one_that_runs(site, tmp_path):
    where = run_installed(site, tmp_path, "-c", "import peftseg; print(peftseg.__file__)")
    assert Path(where.strip()).is_relative_to(site)


def test_the_installed_copy_lists_the_bundled_models_and_finds_their_weights(site, tmp_path):
    bundled = {p.parent.name for p in BUNDLED.glob("*/model.json")}
    assert "phantom-ct" in bundled, "the demo's base model must be bundled"
    listed = json.loads(run_installed(site, tmp_path, "-m", "peftseg", "models", "--json"))
    assert {row["id"] for row in listed} == set(catalogue()) >= {"phantom-ct"}
    assert {row["id"] for row in listed if row["weights_here"]} == bundled
