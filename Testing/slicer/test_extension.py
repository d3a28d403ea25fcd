"""What surrounds the module: CMake lists, catalogue entry, icons. None of it needs Slicer or the host."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import run_in_slicer
import slicerhost
import update_cmake

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://github.com/PEFTSegment/SlicerPEFTSegment"
RAW = "https://raw.githubusercontent.com/PEFTSegment/SlicerPEFTSegment/main/"
# Slicer's Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json: no other keys are allowed.
SCHEMA = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED = ("$schema", "category", "scm_url")


def cmake_text() -> str:
    return (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def cmake_variables() -> dict[str, str]:
    found = re.findall(r'^set\((EXTENSION_\w+) "?([^"\n]*?)"?\)', cmake_text(), re.MULTILINE)
    assert len(found) >= 9
    return dict(found)


def entry() -> dict:
    return json.loads((ROOT / "Docs" / "PEFTSegment.json").read_text(encoding="utf-8"))


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:24])


def needs_git() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git working tree")


def test_cmake_lists_every_script_and_resource_of_the_module():
    needs_git()
    listed = update_cmake.listed_files(update_cmake.CMAKE.read_text(encoding="utf-8"))
    assert listed == update_cmake.module_files(), "run: python Testing/update_cmake.py"


def test_the_lists_hold_the_parts_that_run():
    scripts, resources = update_cmake.listed_files(update_cmake.CMAKE.read_text(encoding="utf-8"))
    assert {"PEFTSegmentLib/sample_data.py", "peftseg/worker.py", "peftseg/adapters/lora.py"} <= set(scripts)
    weights = "peftseg/resources/models/phantom-ct/weights.safetensors"
    assert {"Resources/Icons/PEFTSegment.png", "peftseg/resources/structures.csv", weights} <= set(resources)
    for name in (*scripts, *resources):
        assert re.fullmatch(r"[\w./-]+", name), f"CMake would take {name!r} apart"
        assert (ROOT / "PEFTSegment" / name).is_file()


def test_update_cmake_puts_a_new_file_in_its_place_and_drops_an_old_one():
    old = "set(MODULE_PYTHON_SCRIPTS\n  a.py\n  gone.py\n  )\nset(MODULE_PYTHON_RESOURCES\n  )\nend()\n"
    new = update_cmake.updated(old, (["a.py", "b.py"], ["r.png"]))
    assert new == "set(MODULE_PYTHON_SCRIPTS\n  a.py\n  b.py\n  )\nset(MODULE_PYTHON_RESOURCES\n  r.png\n  )\nend()\n"
    assert update_cmake.listed_files(new) == (["a.py", "b.py"], ["r.png"])


def test_cmake_configures_the_extension_with_slicers_macros_in_place(tmp_path):
    if shutil.which("cmake") is None or shutil.which("cc") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a compiler is missing")
    use = tmp_path / "use.cmake"
    use.write_text(
        "macro(slicerMacroBuildScriptedModule)\n"
        '  cmake_parse_arguments(MY "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})\n'
        "  list(LENGTH MY_SCRIPTS scripts)\n  list(LENGTH MY_RESOURCES resources)\n"
        '  message("module ${MY_NAME} ${scripts} ${resources} ${MY_UNPARSED_ARGUMENTS}")\nendmacro()\n'
    )
    (tmp_path / "last.cmake").write_text(
        "foreach(file ${EXTENSION_LICENSE_FILE} ${EXTENSION_README_FILE})\n"
        '  if(NOT EXISTS "${file}")\n    message(FATAL_ERROR "no ${file}")\n  endif()\nendforeach()\n'
        'message("extension ${PROJECT_NAME} ${EXTENSION_DEPENDS}")\n'
    )
    (tmp_path / "SlicerConfig.cmake").write_text(
        f'set(Slicer_USE_FILE "{use.as_posix()}")\nset(Slicer_EXTENSION_GENERATE_CONFIG "{use.as_posix()}")\n'
        f'set(Slicer_EXTENSION_CPACK "{(tmp_path / "last.cmake").as_posix()}")\n'
    )
    done = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DSlicer_DIR={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    scripts, resources = update_cmake.listed_files(update_cmake.CMAKE.read_text(encoding="utf-8"))
    assert f"module PEFTSegment {len(scripts)} {len(resources)} \n" in said
    assert "extension PEFTSegment PyTorch" in said


def test_the_catalogue_entry_keeps_slicers_schema():
    given = entry()
    assert set(REQUIRED) <= set(given) <= set(SCHEMA)
    for key, value in given.items():
        assert type(value) is SCHEMA[key], key
    assert given["$schema"].endswith("/Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert all(isinstance(name, str) for name in given["build_dependencies"])
    assert 1 <= given["tier"] <= 5
    assert b"\r" not in (ROOT / "Docs" / "PEFTSegment.json").read_bytes()


def test_cmake_and_catalogue_entry_say_the_same():
    given, cmake = entry(), cmake_variables()
    assert cmake["EXTENSION_CATEGORY"] == given["category"]
    assert cmake["EXTENSION_DEPENDS"].split() == given["build_dependencies"] == ["PyTorch"]
    assert cmake["EXTENSION_BUILD_SUBDIRECTORY"] == given["build_subdirectory"]
    assert cmake["EXTENSION_TIER"] == str(given["tier"])
    assert "project(PEFTSegment)" in cmake_text()


def test_all_addresses_name_the_same_repository_and_branch():
    cmake = cmake_variables()
    assert entry()["scm_url"] == cmake["EXTENSION_HOMEPAGE"] == REPOSITORY
    assert entry()["scm_revision"] == "main"
    for address in (cmake["EXTENSION_ICONURL"], *cmake["EXTENSION_SCREENSHOTURLS"].split()):
        assert address.startswith(RAW)


def test_the_description_is_one_line_for_a_clinician_that_says_research_use():
    text = cmake_variables()["EXTENSION_DESCRIPTION"]
    assert ";" not in text  # CMake would make a list of it
    assert "research use only" in text
    assert "patents are pending" in text  # Slicer's catalogue asks for known patents


def test_the_icon_of_the_extension_is_where_the_catalogue_looks_and_has_its_size():
    path = ROOT / cmake_variables()["EXTENSION_ICONURL"].removeprefix(RAW)
    assert png_size(path) == (128, 128)


def test_the_screenshots_are_where_the_catalogue_looks():
    if not (ROOT / "Resources" / "Screenshots").is_dir():
        pytest.skip("there are no screenshots yet")
    for address in cmake_variables()["EXTENSION_SCREENSHOTURLS"].split():
        width, height = png_size(ROOT / address.removeprefix(RAW))
        assert min(width, height) >= 200


@pytest.mark.parametrize("name", ["PEFTSegment", "SampleMadeUp", "SampleHippocampus", "SampleSpleen"])
def test_the_modules_pictures_are_small_png_files_in_its_own_folder(name):
    path = ROOT / "PEFTSegment" / "Resources" / "Icons" / f"{name}.png"
    width, height = png_size(path)
    assert 100 <= min(width, height) <= max(width, height) <= 160
    assert path.stat().st_size < 30_000


def test_slicer_finds_the_modules_icon_by_the_name_of_the_module():
    icons = ROOT / "PEFTSegment" / "Resources" / "Icons"
    assert not (icons / "PEFTSegment.svg").exists()  # Slicer would take it first, and not every Qt draws SVG
    assert png_size(icons / "PEFTSegment.png") == (128, 128)


def test_the_runner_for_slicer_runs_tests_in_the_application_that_is_there(tmp_path):
    """In place of Slicer: the stand-in, started before pytest, as the real application is."""
    reason = slicerhost.missing_reason()
    if reason:
        pytest.skip(reason)
    (tmp_path / "test_small.py").write_text(
        "import pytest\n"
        "def test_a(host):\n    import slicer\n    assert type(host).__name__ == 'RealSlicer'\n"
        "    assert host.wait_for(lambda: slicer.app.applicationVersion)\n"
        "def test_b(older_host):\n    raise AssertionError('is to be skipped')\n"
        "def test_c(host):\n    import slicer, vtk\n    node = slicer.mrmlScene.AddNewNodeByClass('vtkMRMLTextNode')\n"
        "    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: 1 / 0)\n    node.Modified()\n"
    )
    shutil.copy(ROOT / "Testing" / "slicer" / "conftest.py", tmp_path)
    code = (
        "import sys, slicerhost; slicerhost.start(); import run_in_slicer\nsys.exit(run_in_slicer.main(sys.argv[1:]))"
    )
    paths = os.pathsep.join(str(ROOT / "Testing" / part) for part in (".", "slicer"))
    done = subprocess.run(
        [sys.executable, "-c", code, "-rsE", str(tmp_path / "test_small.py")],
        env={**os.environ, "PYTHONPATH": paths, "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "2 passed, 1 skipped, 1 error" in said, said  # an error that VTK only prints fails its test
    assert "ERROR" in said
    assert "test_c - AssertionError: Traceback" in said
    assert "host.slicer_5_10, which only the stand-in has" in said
    assert done.returncode == 1


def test_the_runner_says_how_pytest_comes_into_slicer(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytest", None)
    assert run_in_slicer.main([]) == 1
    assert "PythonSlicer -m pip install pytest" in capsys.readouterr().out


def test_the_runner_is_plain_ascii_which_slicer_reads_in_any_language():
    (ROOT / "Testing" / "run_in_slicer.py").read_text(encoding="ascii")
