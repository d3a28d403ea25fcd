"""Arrows point one way: the engine knows nothing of Slicer, and what the GUI needs first is torch-free."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "PEFTSegment" / "peftseg"
FORBIDDEN = {"slicer", "qt", "ctk", "vtk", "torchvision", "PEFTSegmentLib"}
HEAVY = ("torch", "monai", "safetensors", "highdicom", "matplotlib", "slicerio")
TORCH_FREE = (
    "version",
    "errors",
    "models",
    "events",
    "paths",
    "config",
    "jobs",
    "worker",
    "cli",
    "doctor",
    "adapters.table",
    "library",
    "volume",
    "dicom",
    "study",
    "foundation_models",
    "structures",
    "licences",
    "download",
    "cli_models",
)
PROBE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import importlib
importlib.import_module("peftseg.{module}")
"""


def imported_packages(file: Path) -> set[str]:
    """First parts of everything that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_no_module_of_the_engine_imports_slicer_qt_ctk_vtk_or_torchvision():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    guilty = {str(f.relative_to(PACKAGE)): bad for f in files if (bad := imported_packages(f) & FORBIDDEN)}
    assert guilty == {}


def test_the_walk_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "m.py"
    file.write_text("def f():\n    import vtk.util\n    from slicer import util\n    from . import qt\n")
    assert imported_packages(file) == {"vtk", "slicer"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_module_that_the_gui_needs_first_imports_without_torch_and_monai(module):
    script = PROBE.format(blocked=(*HEAVY, "scipy"), module=module)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_torch_free_modules_is_the_one_in_the_design():
    text = (ROOT / "Docs" / "design.md").read_text(encoding="utf-8")
    listed = re.search(r"Torch-free \(.*?\): `(.*?)`", text, re.DOTALL).group(1)
    names = {re.sub(r"\(.*?\)", "", name).replace("/", ".") for name in listed.split()}
    assert names <= set(TORCH_FREE)
