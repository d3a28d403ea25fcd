"""Arrows point one way: the engine knows nothing of Slicer, and what the GUI needs first is torch-free."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftseg.adapter_file import save_adapter
from peftseg.library import store
from test_library import RECIPE

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
    "adapter_file",
    "gpu",
    "library_rows",
    "model_choice",
    "shared_folders",
    "planes",
    "several_rules",
    "publish",
    "adapter_import",
    "model_card",
    "reference_scans",
    "drift",
    "drift_chart",
    "cli_daily",
    "archives",
    "lean_import",
    "dicom_sort",
    "dicom_rules",
    "dicom_inputs",
    "dicom_folders",
    "cli_dicom",
    "dicom_seg",
    "rtstruct",
    "cli_dicom_export",
    "manifest",
    "quality_score",
)
# What Slicer's process imports, and what it has not got: only its own packages (numpy, scipy, SimpleITK, pydicom...).
NOT_IN_SLICER = (*HEAVY, "psutil", "einops", "pandas", "nibabel", "nrrd", "torchvision", "yaml", "skimage")
GUI_SAFE = [
    "version",
    "errors",
    "models",
    "model_choice",
    "foundation_models",
    "structures",
    "licences",
    "download",
    "events",
    "paths",
    "config",
    "jobs",
    "job_folder",
    "processes",
    "locks",
    "adapters.table",
    "library",
    "library_rows",
    "shared_folders",
    "adapter_file",
    "sealed_file",
    "site_presets",
    "verdicts",
    "study",
    "laterality",
    "volume",
    "writing",
    "doctor",
    "gpu",
    "phantom",
    "planes",
    "structure_facts",
    "several_rules",
    "publish",
    "adapter_import",
    "model_card",
    "dicom_rules",
    "dicom_sort",
    "manifest",
]
GUI_WORK = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import importlib
for module in {modules!r}:
    importlib.import_module("peftseg." + module)
from peftseg.library import list_adapters, rename_adapter, show_adapter
from peftseg.models import catalogue, rank_models
from peftseg.phantom import make_case
from peftseg.models import guess_modality
rename_adapter("liver", "site A")
print([row["ref"] for row in list_adapters()], list_adapters(check=False)[0]["problem"], show_adapter("site A")["method"])
print(rank_models(list(catalogue().values()), guess_modality(make_case(0).volume.array), "abdomen")[0][1])
"""
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


def test_everything_that_slicers_process_imports_works_with_slicers_own_packages(tmp_path):
    save_adapter(tmp_path / "a.safetensors", RECIPE, {"w::full": torch.zeros(1)})
    store(tmp_path / "a.safetensors")
    script = GUI_WORK.format(blocked=NOT_IN_SLICER, modules=GUI_SAFE)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['site A-v1'] None lora", "for CT of the abdomen"]


def test_the_list_of_torch_free_modules_is_the_one_in_the_design():
    text = (ROOT / "Docs" / "design.md").read_text(encoding="utf-8")
    listed = re.search(r"Torch-free \(.*?\): `(.*?)`", text, re.DOTALL).group(1)
    names = {re.sub(r"\(.*?\)", "", name).replace("/", ".") for name in listed.split()}
    assert names <= set(TORCH_FREE)
