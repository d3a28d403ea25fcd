"""What the module says of an environment, and what it would install, before anything is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from made_up_packages import SUITABLE, make_all_wheels, make_python, make_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from peftseg.errors import BadInput
from PEFTSegmentLib import environment, install_plan, separate_environment, wheels_folder
from PEFTSegmentLib.environment import MISSING, PARTLY, READY, RESTART, WRONG_CUDA, examine_environment
from PEFTSegmentLib.gpu_builds import Gpu, probe_gpus, recommended_cuda, runs_on
from PEFTSegmentLib.install_errors import explain_failure
from PEFTSegmentLib.install_plan import constraints_text, make_plan
from PEFTSegmentLib.install_warnings import path_warning, space_warning

PROJECT = Path(__file__).resolve().parents[2]
PASCAL = Gpu("GTX 1080", "582.28", 8192, 8000, (6, 1))
AMPERE = Gpu("RTX A4000", "581.10", 16384, 13400, (8, 6))
BLACKWELL = Gpu("RTX 5090", "581.10", 32768, 32000, (12, 0))
OLD_DRIVER = Gpu("RTX A4000", "551.00", 16384, 13400, (8, 6))
KEPLER = Gpu("K80", "470.10", 12000, 12000, (3, 7))
NO_GPU: tuple[Gpu, ...] = ()


@pytest.fixture
def python(tmp_path):
    """A bare interpreter in a folder whose name has a blank and an umlaut."""
    return make_python(tmp_path / "Über env")


@pytest.fixture
def no_extension(monkeypatch):
    """No extension PyTorch and no other Python, whatever this computer has."""
    monkeypatch.setattr(install_plan, "has_torch_extension", lambda: False)


def full(python, gpus=NO_GPU):
    return examine_environment(python.program, gpus)


def own_state(monkeypatch, python, gpus=NO_GPU):
    """The state of a made-up interpreter as if it were the one that runs this."""
    from dataclasses import replace

    return replace(full(python, gpus), own=True)


def constraint_versions() -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = {}
    for line in (PROJECT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            versions = [Version(s.version) for s in requirement.specifier]
            found.setdefault(canonicalize_name(requirement.name), []).extend(versions)
    return found


def declared() -> dict[str, Requirement]:
    """The requirements of pyproject.toml, with those of its extra `dicom` that Slicer's Python needs as well."""
    text = (PROJECT / "pyproject.toml").read_text()
    block = text.split("\ndependencies = [")[1].split("\n]")[0]
    lines = [line.strip().strip(",").strip('"') for line in block.splitlines() if line.strip()]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def lower(requirement: Requirement) -> str:
    return next(s.version for s in requirement.specifier if s.operator == ">=")


def test_the_requirements_are_those_of_pyproject_with_a_ceiling_above_the_tested_versions():
    ours = {canonicalize_name(r.name): r for r in environment.all_requirements()}
    theirs = declared()
    assert set(theirs) == set(ours) - {"pydicom", "highdicom", "contourpy"}  # in the extra "dicom"
    for name, requirement in ours.items():
        operators = sorted(s.operator for s in requirement.specifier)
        assert operators == ["<", ">="], f"{requirement} needs a lower limit and a ceiling"
        if name in theirs:
            assert lower(requirement) == lower(theirs[name])
        for version in constraint_versions()[name]:
            assert requirement.specifier.contains(version), f"{requirement} leaves out the tested {version}"


def test_the_ceilings_are_not_above_the_next_version_that_was_not_tested():
    for requirement in environment.all_requirements():
        ceiling = next(Version(s.version) for s in requirement.specifier if s.operator == "<")
        tested = max(constraint_versions()[canonicalize_name(requirement.name)])
        nearest = {Version(str(tested.major + 1)), Version(f"{tested.major}.{tested.minor + 1}")}
        assert ceiling in nearest, f"{requirement}: {tested} was tested"


def test_the_requirements_file_leaves_torch_and_what_slicer_ships_out():
    names = {r.name for r in environment.read_requirements()}
    assert names == {"monai", "safetensors", "psutil", "einops", "contourpy"}


def test_an_environment_with_everything_is_ready(python):
    python.add_all()
    state = full(python)
    assert (state.kind, state.sentence, state.button) == (READY, "Everything is installed.", "Copy report")
    assert state.action == "report"
    assert state.torch.build == "cpu"
    assert state.usable
    assert make_plan(state).steps == ()


def test_a_bare_environment_says_what_is_missing(python):
    state = full(python)
    assert state.kind == MISSING
    assert "Not installed yet: torch, monai" in state.sentence
    assert state.button == "Install..."
    assert not state.usable


def test_a_version_outside_of_the_range_is_named(python):
    python.add_all(monai="1.3.0")
    state = full(python)
    assert state.kind == MISSING
    assert state.sentence == "Installed in a version that does not suit: monai 1.3.0."


def drop_record(python, info):
    (info / "RECORD").unlink()
    (info / "INSTALLER").unlink()


def drop_library(python, _info):
    (python.site / "torch" / "_library.so").unlink()


def drop_module(python, _info):
    shutil.rmtree(python.site / "torch")


def drop_description(python, info):
    shutil.rmtree(info)


def drop_metadata(python, info):
    (info / "METADATA").unlink()


@pytest.mark.parametrize(
    ("damage", "words", "steps"),
    [
        (drop_record, "its description is incomplete", ["clean", "install"]),
        (drop_metadata, "its description is incomplete", ["clean", "install"]),
        (drop_library, "some of its files are missing", ["remove", "install"]),
        (drop_module, "its description is there, but not its files", ["remove", "install"]),
        (drop_description, "its files are there, but not its description", ["install"]),
    ],
)
def test_an_interrupted_installation_is_recognised_and_repaired_without_a_question(python, damage, words, steps):
    python.add_all()
    damage(python, python.site / f"torch-{SUITABLE['torch']}.dist-info")
    state = full(python)
    assert state.kind == PARTLY
    assert words in state.sentence
    assert state.button == "Repair..."
    plan = make_plan(state)
    assert [s.kind for s in plan.steps] == steps
    assert not plan.needs_consent
    assert plan.obstacle == ""


def test_a_package_of_a_linux_distribution_needs_no_record(python):
    python.add_all()
    info = python.site / f"numpy-{SUITABLE['numpy']}.dist-info"
    (info / "RECORD").unlink()
    (info / "INSTALLER").write_text("debian\n")
    assert full(python).kind == READY


def test_a_damaged_package_other_than_torch_is_removed_and_installed(python):
    python.add_all()
    (python.site / "psutil" / "_library.so").unlink()
    steps = make_plan(full(python)).steps
    assert [(s.kind, s.requirements) for s in steps] == [
        ("remove", ("psutil",)),
        ("install", ("psutil<8,>=5.9",)),
    ]


def test_a_package_that_changed_under_a_running_slicer_needs_a_restart(monkeypatch):
    old = types.ModuleType("einops")
    old.__version__ = "0.7.0"
    monkeypatch.setitem(sys.modules, "einops", old)
    state = examine_environment(gpus=NO_GPU)
    assert state.kind == RESTART
    assert state.sentence.startswith("einops changed while Slicer was running")
    assert state.button == "Restart Slicer"


@pytest.mark.parametrize(
    ("version", "cuda", "gpu", "words", "button", "usable"),
    [
        ("2.13.0+cu130", "13.0", PASCAL, "does not run on this GPU (GTX 1080", "Change PyTorch...", False),
        ("2.13.0+cu126", "12.6", BLACKWELL, "does not run on this GPU (RTX 5090", "Change PyTorch...", False),
        ("2.13.0+cu130", "13.0", OLD_DRIVER, "driver 551.00", "Change PyTorch...", True),
        ("2.13.0+cpu", None, AMPERE, "without GPU support", "Change PyTorch...", True),
        ("2.13.0", "13.0", KEPLER, "The GPU is too old", "Change PyTorch...", False),
    ],
)
def test_a_torch_that_does_not_fit_the_gpu_is_told(python, version, cuda, gpu, words, button, usable):
    python.add_all(cuda, torch=version)
    state = full(python, (gpu,))
    assert state.kind == WRONG_CUDA
    assert words in state.sentence
    assert state.button == button
    if gpu is not OLD_DRIVER:
        assert state.usable is usable
    assert [s.kind for s in make_plan(state, torch_by="cuda").steps] == ["remove", "install"]


def test_where_only_a_newer_driver_helps_nothing_is_planned(python):
    python.add_all("13.0", torch="2.13.0+cu130")
    state = full(python, (Gpu("RTX 5090", "551.00", 32768, 32000, (12, 0)),))
    assert state.kind == WRONG_CUDA
    assert "newer graphics driver" in state.sentence
    assert state.usable
    assert (state.button, state.action) == ("Copy report", "report")
    assert make_plan(state).steps == ()


def test_a_build_that_fits_is_ready_and_one_that_nobody_knows_is_left_to_the_first_run(python):
    python.add_all("13.0", torch="2.13.0+cu130")
    assert full(python, (AMPERE,)).sentence == "Everything is installed."
    unknown = full(python, (Gpu("RTX 9090", "700.1", 65536, 65000, (14, 0)),))
    assert unknown.kind == READY
    assert unknown.sentence == "Everything is installed. Whether PyTorch can use the RTX 9090 shows at the first run."


def test_the_build_is_read_from_the_version_where_torch_has_no_version_file(python):
    python.add_all(torch="2.13.0+cu126")
    (python.site / "torch" / "version.py").unlink()
    torch = full(python).torch
    assert (torch.build, torch.cuda) == ("cu126", "12.6")


@pytest.mark.parametrize(
    ("cuda", "version", "capability", "expected"),
    [
        ("12.6", "2.8.0", (5, 2), True),
        ("12.6", "2.13.0", (6, 1), True),
        ("12.6", "2.13.0", (7, 0), True),
        ("12.6", "2.13.0", (8, 9), True),
        ("12.6", "2.9.0", (9, 0), True),
        ("12.6", "2.13.0", (9, 0), None),
        ("12.6", "2.13.0", (10, 0), False),
        ("12.8", "2.10.0", (7, 0), True),
        ("12.8", "2.11.0", (7, 0), False),
        ("12.8", "2.9.1", (6, 1), False),
        ("13.0", "2.13.0", (7, 0), False),
        ("13.0", "2.13.0", (7, 5), True),
        ("13.0", "2.13.0", (12, 1), True),
        ("13.0", "2.13.0", (14, 0), None),
        ("13.9", "2.13.0", (8, 6), None),
    ],
)
def test_a_build_of_torch_runs_on_the_gpus_that_the_support_matrix_lists(cuda, version, capability, expected):
    assert runs_on(cuda, version, Gpu("g", "590.1", 1, 1, capability)) is expected


def test_nothing_is_guessed_for_other_processors_or_drivers_that_tell_no_capability():
    assert runs_on("13.0", "2.13.0", AMPERE, "aarch64") is None
    assert runs_on("13.0", "2.13.0", Gpu("g", "590.1", 1, 1, None)) is None
    assert runs_on("13.0", "2.13.0", Gpu("g", "551.1", 1, 1, None)) is False


@pytest.mark.parametrize(
    ("gpu", "expected"), [(PASCAL, "12.6"), (AMPERE, "13.0"), (OLD_DRIVER, "12.6"), (BLACKWELL, "13.0"), (KEPLER, None)]
)
def test_the_build_to_install_is_the_one_that_runs_there(gpu, expected):
    assert recommended_cuda(gpu) == expected
    if expected:
        assert runs_on(expected, "2.13.0", gpu) is True


def fake_smi(folder: Path, text: str) -> str:
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    return str(program)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a script")
def test_gpus_are_asked_for_by_nvidia_smi(tmp_path):
    new = fake_smi(tmp_path, "print('NVIDIA RTX A4000, 581.10, 16376, 13400, 8.6\\nT400, 581.10, 4096, [N/A], [N/A]')")
    assert probe_gpus(new) == (
        Gpu("NVIDIA RTX A4000", "581.10", 16376, 13400, (8, 6)),
        Gpu("T400", "581.10", 4096, 0, None),
    )
    old = fake_smi(
        tmp_path, "import sys\nsys.exit(2) if 'compute_cap' in sys.argv[1] else print('K80, 440.1, 12000, 11000')"
    )
    assert probe_gpus(old) == (Gpu("K80", "440.1", 12000, 11000, None),)
    assert probe_gpus(fake_smi(tmp_path, "import sys\nsys.exit(9)")) == ()
    assert probe_gpus(str(tmp_path / "absent")) == ()


def test_examining_imports_nothing_heavy_and_needs_no_slicer():
    code = (
        "import sys; sys.modules['slicer'] = None; sys.modules['qt'] = None; sys.modules['torch'] = None\n"
        "from PEFTSegmentLib import install_plan as p, install_errors, wheels_folder\n"
        "del sys.modules['torch']\n"
        "p.make_plan(p.examine_environment(gpus=()))\n"
        "print([m for m in ('torch', 'torchvision', 'monai', 'safetensors', 'psutil', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_interpreter_that_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot be started"):
        examine_environment(str(tmp_path / "no python"), NO_GPU)
    with pytest.raises(BadInput, match="no answer that can be read"):
        environment.run_facts("/bin/echo", [])


def test_without_the_extension_the_plan_asks_and_states_the_sizes(python, monkeypatch, no_extension):
    plan = make_plan(own_state(monkeypatch, python, (AMPERE,)))
    assert "Extensions Manager" in plan.question
    assert plan.obstacle == plan.question
    assert [c.key for c in plan.choices] == ["cuda", "cpu"]
    assert "3 GB to download" in plan.choices[0].title
    assert [c.key for c in make_plan(own_state(monkeypatch, python)).choices] == ["cpu"]


def test_a_chosen_build_answers_the_question(python, monkeypatch, no_extension):
    state = own_state(monkeypatch, python, (PASCAL,))
    cuda, cpu = make_plan(state, torch_by="cuda"), make_plan(state, torch_by="cpu")
    assert cuda.obstacle == cpu.obstacle == ""
    assert cuda.steps[0].options[-1].endswith("/cu126")
    assert cpu.steps[0].options[-1].endswith("/cpu")
    assert all("--only-binary=:all:" in step.options for step in cuda.steps)


def test_torch_comes_first_and_by_the_extension_where_it_is_there(python, monkeypatch, tmp_path):
    (tmp_path / "PyTorchUtils.py").write_text("raise RuntimeError('not to be imported for a plan')")
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = make_plan(own_state(monkeypatch, python, (AMPERE,)))
    assert [s.kind for s in plan.steps] == ["torch extension", "install"]
    assert plan.steps[0].options == ("cu130",)
    assert plan.question == ""
    assert not any(r.startswith("torch") for r in plan.steps[1].requirements)


def test_an_installed_torch_or_monai_is_never_changed_silently(python, monkeypatch, tmp_path):
    (tmp_path / "TotalSegmentator.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    python.add_all(torch="2.5.1", monai="1.3.0")
    python.add("nnunetv2", "2.6.2", ("torch>=2.1", "numpy"))
    plan = make_plan(full(python))
    assert plan.needs_consent
    assert [s.kind for s in plan.steps] == ["remove", "install", "install"]
    torch, monai = plan.changes
    assert torch.startswith("torch 2.5.1 is replaced")
    assert "monai, nnunetv2, TotalSegmentator" in torch
    assert monai.startswith("monai 1.3.0 is replaced (by 1.5 or newer, below 1.7)")


def test_what_is_installed_is_kept_by_constraints_unless_it_is_to_change(python):
    python.add_all(monai="1.3.0")
    facts = full(python).facts
    assert "torch==2.13.0+cpu\nnumpy==2.2.6\nmonai==1.3.0\n" in constraints_text(facts)
    assert "monai" not in constraints_text(facts, ("monai",))


def test_the_separate_environment_leaves_slicer_alone(python, monkeypatch, own_home):
    python.add_all(torch="2.5.1")
    plan = make_plan(own_state(monkeypatch, python), isolated=True, base_python=sys.executable)
    assert plan.isolated
    assert not plan.own
    assert not plan.needs_consent
    assert [s.kind for s in plan.steps] == ["environment", "install", "install"]
    assert plan.python == str(separate_environment.environment_python())
    assert Path(plan.python).is_relative_to(own_home)
    assert any(r.startswith("numpy") for r in plan.steps[2].requirements), "Slicer's packages are not there"


def test_without_another_python_the_separate_environment_is_refused_in_words(python, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = make_plan(own_state(monkeypatch, python), isolated=True)
    assert "No other Python" in plan.obstacle


def test_a_separate_environment_that_does_not_work_is_made_anew(python, monkeypatch):
    broken = separate_environment.environment_python()
    broken.parent.mkdir(parents=True)
    broken.write_text("no program")
    plan = make_plan(own_state(monkeypatch, python), isolated=True, base_python=sys.executable)
    assert plan.steps[0].kind == "environment"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for Python are scripts")
def test_another_python_is_tried_before_it_is_taken(monkeypatch, tmp_path):
    for name, text in (("python3.12", "raise SystemExit(1)"), ("python3", "import sys")):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\n{text}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert separate_environment.find_base_python() == str(tmp_path / "python3")


def test_long_paths_and_little_space_are_warned_of(python, monkeypatch, no_extension):
    long = "C:\\Users\\someone with a long name\\AppData\\Local\\slicer.org\\Slicer 5.13.0"
    assert "70 characters" in path_warning(long, windows=True) or f"{len(long)} characters" in path_warning(long, True)
    assert path_warning(long, windows=False) == ""
    assert path_warning("C:\\Slicer", windows=True) == ""
    assert space_warning(4 << 30, 3 << 30, Path("/")) == ""
    state = own_state(monkeypatch, python, (AMPERE,))
    with_gpu = make_plan(state, torch_by="cuda", free_bytes=4 << 30)
    assert any("Only 4.0 GB are free" in text and "15 GB" in text for text in with_gpu.warnings)
    assert not any("free" in text for text in make_plan(state, torch_by="cpu", free_bytes=4 << 30).warnings)


def test_a_folder_of_wheels_that_holds_everything_is_complete(python, tmp_path):
    plan = make_plan(full(python), wheels_folder=make_all_wheels(tmp_path / "wheels"))
    assert plan.missing_wheels == ()
    assert plan.obstacle == ""
    assert plan.question == ""
    assert all("--no-index" in s.options and "--index-url" not in s.options for s in plan.steps)


def test_a_folder_of_wheels_says_what_it_lacks(python, tmp_path):
    folder = make_all_wheels(tmp_path / "wheels", leave_out=("psutil", "sympy", "einops", "scipy"))
    make_wheel(folder, "einops", "2.0")
    make_wheel(folder, "scipy", "1.15.3", tag="cp310-cp310-win_arm64")
    plan = make_plan(full(python), wheels_folder=folder)
    text = "\n".join(plan.missing_wheels)
    assert "sympy>=1.13 (needed by torch-2.13.0+cpu-py3-none-any.whl)" in text
    assert "psutil<8,>=5.9" in text
    assert "einops-2.0-py3-none-any.whl, another version" in text
    assert "scipy-1.15.3-cp310-cp310-win_arm64.whl, for another system or Python" in text
    assert len(plan.missing_wheels) == 4
    assert plan.obstacle


def test_what_is_installed_needs_no_wheel(python, tmp_path):
    python.add_all()
    shutil.rmtree(python.site / "einops")
    shutil.rmtree(python.site / f"einops-{SUITABLE['einops']}.dist-info")
    make_wheel(tmp_path / "wheels", "einops", "0.8.2")
    assert make_plan(full(python), wheels_folder=tmp_path / "wheels").missing_wheels == ()


def test_a_folder_that_is_no_folder_of_wheels_is_refused(python, tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        make_plan(full(python), wheels_folder=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no packages"):
        make_plan(full(python), wheels_folder=tmp_path / "empty")


def test_the_download_command_fits_the_interpreter_and_the_gpu(python):
    python.add_all()
    shutil.rmtree(python.site / "torch")
    shutil.rmtree(python.site / f"torch-{SUITABLE['torch']}.dist-info")
    command = wheels_folder.download_command(full(python, (PASCAL,)), "my wheels")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"--python-version {version} " in command
    assert '--dest "my wheels" "torch<2.14,>=2.8" "numpy==2.2.6"' in command
    assert "/whl/cu126" in command
    assert command in wheels_folder.how_to_fill(full(python, (PASCAL,)), "my wheels")
    if sys.platform == "linux":
        assert "--platform manylinux_2_28_" in command
        assert command.count("--platform") < 12


@pytest.mark.parametrize(
    ("line", "why", "remedy"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full", "Free some space"),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]",
            "secure connection",
            "IT department",
        ),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407", "proxy", "HTTPS_PROXY"),
        ("NameResolutionError: Temporary failure in name resolution", "no connection", "Check the connection"),
        (
            "ERROR: [WinError 5] Access is denied: 'C:\\Program Files\\Slicer'",
            "must not be written",
            "folder of your own",
        ),
        (
            "PermissionError: [Errno 13] Permission denied: '/opt/Slicer/lib'",
            "must not be written",
            "folder of your own",
        ),
        ("[WinError 32] The process cannot access the file", "in use", "Restart Slicer"),
        ("[WinError 206] The filename or extension is too long", "too long", "short name"),
        ("ERROR: No matching distribution found for torch>=2.8", "no package that fits", "made for this system"),
        ("ERROR: ResolutionImpossible: for help visit", "do not go together", "separate environment"),
        ("ERROR: Cannot uninstall torch None, no RECORD file was found", "cannot be replaced", "separate environment"),
        ("/usr/bin/python: No module named pip", "no pip", "complete Python"),
    ],
)
def test_a_failure_of_pip_is_told_with_its_cause_and_a_remedy(line, why, remedy):
    error = explain_failure(["Collecting torch", line, "", "[notice] A new release"], "Install PyTorch.")
    assert why in error.message
    assert "Install PyTorch." in error.message
    assert remedy in error.remedy
    assert line in error.lines
    assert not any("notice" in text for text in error.lines)


def test_a_connection_that_failed_is_not_taken_for_a_missing_package():
    lines = [
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: Network is unreachable'",
        "ERROR: Could not find a version that satisfies the requirement torch",
        "ERROR: No matching distribution found for torch",
    ]
    assert "no connection" in explain_failure(lines, "x").message


def test_an_unknown_failure_asks_for_the_log(tmp_path):
    error = explain_failure(["Something odd"], "Install X.", tmp_path / "install.log")
    assert "no reason that is known" in error.message
    assert "Copy the log" in error.remedy
    assert error.log_path == tmp_path / "install.log"
    assert error.lines == ("Something odd",)
