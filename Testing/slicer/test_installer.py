"""Installations as the module runs them: agreed to, step by step, with errors in words, and gone on with after a restart."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from made_up_packages import make_all_wheels, make_python

from peftseg.errors import BadInput

NO_GPU = ()
SCRIPTS = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for programs are scripts")


@pytest.fixture
def lib(host):
    """The modules under test, imported once the host is there."""
    from PEFTSegmentLib import environment, install_plan, installer, separate_environment

    return types.SimpleNamespace(
        environment=environment, plan=install_plan, installer=installer, separate=separate_environment
    )


@pytest.fixture
def older_lib(older_host, lib):
    return lib


@pytest.fixture
def python(tmp_path):
    return make_python(tmp_path / "env")


def own_plan(lib, *steps, changes=()):
    """A plan for Slicer's own Python with given steps of pip."""
    made = tuple(lib.plan.Step("install", f"Install {name}.", (name,), (), changes) for name in steps)
    return lib.plan.InstallPlan(sys.executable, True, False, made)


@pytest.fixture
def no_other_source(monkeypatch):
    """Only the test's own folder of wheels, whatever pip is told on this computer."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


def run(host, lib, plan, **agreement):
    """Run a plan to its end; returns (outcome, lines, sentences of the steps)."""
    outcomes, lines, steps = [], [], []
    installation = lib.installer.Installation(
        plan, lines.append, lambda number, count, text: steps.append((number, count, text)), on_done=outcomes.append
    )
    installation.start(agreed=True, **agreement)
    host.wait_for(lambda: outcomes, 120, "the end of the installation")
    assert not installation.running
    return outcomes[0], lines, steps


def test_importing_the_installer_installs_and_asks_nothing(host, lib):
    lib.installer.pending_after_restart()
    lib.installer.chosen_interpreter()
    assert host.packages.calls == []
    assert host.dialogs.shown == []


def test_nothing_is_installed_without_agreement(host, lib):
    installation = lib.installer.Installation(own_plan(lib, "einops>=0.7"))
    with pytest.raises(BadInput, match="without your agreement"):
        installation.start(agreed=False)
    changing = lib.installer.Installation(own_plan(lib, "monai>=1.5", changes=("monai 1.3 is replaced.",)))
    with pytest.raises(BadInput, match=r"monai 1\.3 is replaced"):
        changing.start(agreed=True)
    assert host.packages.calls == []


def test_a_plan_with_an_open_question_is_not_run(host, lib):
    plan = lib.plan.InstallPlan("python", True, False, (), question="Which PyTorch?")
    with pytest.raises(BadInput, match="Which PyTorch"):
        lib.installer.Installation(plan).start(agreed=True)


def test_slicers_pip_installs_without_blocking_and_keeps_what_is_there(host, lib, monkeypatch):
    import slicer.packaging

    limits = []
    real = slicer.packaging.pip_install

    def keeping(requirements, **options):
        limits.append(Path(options["constraints"]).read_text())
        real(requirements, **options)

    monkeypatch.setattr(slicer.packaging, "pip_install", keeping)
    host.packages.output = ["Collecting einops", "Progress 50 of 100", "Successfully installed einops"]
    outcome, lines, steps = run(host, lib, own_plan(lib, "einops>=0.7", "psutil>=5.9"))
    assert outcome.kind == "finished"
    assert outcome.error is None
    assert steps == [(1, 2, "Install einops>=0.7."), (2, 2, "Install psutil>=5.9.")]
    name, (arguments,), options = host.packages.calls[0]
    assert (name, arguments[:1]) == ("pip_install", ["einops>=0.7"])
    assert options["blocking"] is False
    assert "Successfully installed einops" in lines
    assert not any("Progress" in line for line in lines)
    assert all("torch==" in text and "numpy==" in text for text in limits)
    assert not list(outcome.log_path.parent.glob("install-constraints*"))
    assert "Collecting einops" in outcome.log_path.read_text()


def test_the_progress_of_a_download_is_passed_on(host, lib):
    host.packages.output = ["Progress 50 of 100"]
    seen, outcomes = [], []
    plan = own_plan(lib, "einops")
    lib.installer.Installation(plan, on_progress=lambda *n: seen.append(n), on_done=outcomes.append).start(agreed=True)
    host.wait_for(lambda: outcomes)
    assert seen == [(50, 100)]


def test_a_failed_step_ends_the_run_with_cause_remedy_and_log(host, lib):
    host.packages.output = ["Collecting torch", "ERROR: Could not install: [Errno 28] No space left on device"]
    host.packages.exit_code = 1
    outcome, _lines, steps = run(host, lib, own_plan(lib, "torch>=2.8", "monai>=1.5"))
    assert outcome.kind == "failed"
    assert len(steps) == 1
    assert "disk is full" in outcome.error.message
    assert "Free some space" in outcome.error.remedy
    assert outcome.error.lines == ("ERROR: Could not install: [Errno 28] No space left on device",)
    assert outcome.error.log_path.read_text().count("Collecting torch") == 1


def test_a_pip_that_raises_is_a_failed_step(host, lib):
    host.packages.failure = RuntimeError("A non-blocking pip_install is already in progress")
    outcome, _lines, _steps = run(host, lib, own_plan(lib, "einops"))
    assert outcome.kind == "failed"
    assert "already in progress" in outcome.error.lines[-1]


def test_a_second_installation_waits_for_slicers_pip(host, lib, monkeypatch):
    import slicer.packaging

    monkeypatch.setattr(slicer.packaging, "isPipInstallInProgress", lambda: True)
    with pytest.raises(BadInput, match="Another installation"):
        lib.installer.Installation(own_plan(lib, "einops")).start(agreed=True)


def in_testing_mode(monkeypatch):
    import slicer

    monkeypatch.setattr(slicer, "app", types.SimpleNamespace(testingEnabled=lambda: True))


def test_testing_mode_installs_nothing_unless_told(host, lib, monkeypatch):
    in_testing_mode(monkeypatch)
    outcomes = []
    lib.installer.Installation(own_plan(lib, "einops"), on_done=outcomes.append).start(agreed=True)
    assert [o.kind for o in outcomes] == ["skipped"]
    assert host.packages.calls == []


def test_in_testing_mode_slicers_pip_blocks_and_calls_nobody_back(host, lib, monkeypatch):
    import slicer.packaging

    called = []
    monkeypatch.setattr(slicer.packaging, "pip_install", lambda requirements, **options: called.append(requirements))
    in_testing_mode(monkeypatch)
    outcome, _lines, _steps = run(host, lib, own_plan(lib, "einops"), in_testing=True)
    assert outcome.kind == "finished"
    assert len(called) == 1


def test_slicer_5_10_installs_by_its_own_pip(older_host, older_lib):
    outcome, _lines, _steps = run(older_host, older_lib, own_plan(older_lib, "einops>=0.7"))
    assert outcome.kind == "finished"
    ((name, (arguments,), _options),) = older_host.packages.calls
    assert name == "util.pip_install"
    assert arguments[0] == "einops>=0.7"
    assert "-c" in arguments


def test_a_failure_in_slicer_5_10_is_read_from_pips_own_log(older_host, older_lib, monkeypatch):
    import slicer

    def failing(arguments):
        log = Path(arguments[arguments.index("--log") + 1])
        log.write_text("2026-08-21T10:00:00,123 ERROR: No matching distribution found for torch>=2.8\n")
        raise CalledProcessError(1, "pip")

    monkeypatch.setattr(slicer.util, "pip_install", failing)
    outcome, lines, _steps = run(older_host, older_lib, own_plan(older_lib, "torch>=2.8"))
    assert outcome.kind == "failed"
    assert "no package that fits" in outcome.error.message
    assert "ERROR: No matching distribution found for torch>=2.8" in lines
    assert not list(outcome.log_path.parent.glob("pip.log"))


def test_slicer_5_10_uninstalls_by_its_own_pip(older_host, older_lib):
    step = older_lib.plan.Step("remove", "Remove torch.", ("torch",))
    plan = older_lib.plan.InstallPlan(sys.executable, True, False, (step,))
    assert run(older_host, older_lib, plan)[0].kind == "finished"
    assert older_host.packages.calls == [("util.pip_uninstall", (["torch"],), {})]


def test_a_damaged_package_is_uninstalled_first(host, lib):
    step = lib.plan.Step("remove", "Remove torch.", ("torch",))
    outcome, _lines, _steps = run(host, lib, lib.plan.InstallPlan(sys.executable, True, False, (step,)))
    assert outcome.kind == "finished"
    assert [(name, arguments) for name, arguments, _o in host.packages.calls] == [("pip_uninstall", (["torch"],))]


def test_what_an_interrupted_installation_left_is_removed_but_no_other_folder(host, lib, tmp_path):
    broken, other = tmp_path / "torch-2.8.0.dist-info", tmp_path / "torch"
    for folder in (broken, other):
        folder.mkdir()
    steps = tuple(lib.plan.Step("clean", "Remove.", (str(folder),)) for folder in (broken, other))
    run(host, lib, lib.plan.InstallPlan(sys.executable, True, False, steps))
    assert not broken.exists()
    assert other.exists()


UTILS = """
calls = []
class PyTorchUtilsLogic:
    @staticmethod
    def getCompatibleComputationBackends(forceComputationBackend=None, torchVersionRequirement=None):
        calls.append(torchVersionRequirement)
        return ["cpu", "cu126"]
    def installTorch(self, *arguments, **options):
        raise AssertionError("this would import torch into Slicer")
"""
OLD_UTILS = """
calls = []
class PyTorchUtilsLogic:
    def installTorch(self, askConfirmation=False, forceComputationBackend=None):
        calls.append((askConfirmation, forceComputationBackend))
        return object()
"""


@pytest.fixture
def extension(host, monkeypatch, tmp_path):
    """A folder for the modules of a made-up extension PyTorch, on the paths of Slicer and its processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path
    sys.modules.pop("PyTorchUtils", None)


def torch_plan(lib, build):
    step = lib.plan.Step("torch extension", "Install PyTorch.", ("torch>=2.8,<2.14",), (build,))
    return lib.plan.InstallPlan(sys.executable, True, False, (step,))


@SCRIPTS
def test_torch_comes_by_the_extensions_light_the_torch_and_is_not_imported(host, lib, extension):
    (extension / "PyTorchUtils.py").write_text(UTILS)
    (extension / "light_the_torch").mkdir()
    (extension / "light_the_torch" / "__main__.py").write_text("import sys; print('light', sys.argv[1:])")
    outcome, lines, _steps = run(host, lib, torch_plan(lib, "cu126"))
    assert outcome.kind == "finished"
    said = next(line for line in lines if line.startswith("light"))
    assert "'install', 'torch>=2.8,<2.14'" in said
    assert "'--pytorch-computation-backend=cu126'" in said
    assert "'-c'" in said
    assert sys.modules["PyTorchUtils"].calls[0] in ("<2.14,>=2.8", ">=2.8,<2.14")
    outcome, lines, _steps = run(host, lib, torch_plan(lib, "cu130"))
    assert not any("backend" in line for line in lines), "a build that the extension does not offer is not asked for"


def test_an_older_extension_installs_torch_with_the_arguments_that_it_knows(host, lib, extension):
    (extension / "PyTorchUtils.py").write_text(OLD_UTILS)
    outcome, _lines, _steps = run(host, lib, torch_plan(lib, "cpu"))
    assert outcome.kind == "finished"
    assert sys.modules["PyTorchUtils"].calls == [(False, None)]


def test_a_separate_environment_is_made_and_filled_from_a_folder_of_wheels(
    host, lib, no_other_source, tmp_path, own_home
):
    """The whole way with a real venv and the real pip, without any network."""
    wheels = make_all_wheels(tmp_path / "wheels of the hospital")
    state = lib.environment.examine_environment(gpus=NO_GPU)
    plan = lib.plan.make_plan(state, wheels_folder=wheels, isolated=True, base_python=sys.executable)
    assert plan.obstacle == ""
    outcome, lines, steps = run(host, lib, plan)
    assert outcome.kind == "finished", outcome.error and outcome.error.lines
    assert len(steps) == 3
    assert any(line.startswith("Successfully installed") and "torch-2.13.0+cpu" in line for line in lines)
    assert not outcome.restart
    chosen = lib.installer.chosen_interpreter()
    assert Path(chosen).is_relative_to(own_home)
    assert lib.installer.check_interpreter(chosen).startswith("3.")
    made = lib.environment.examine_environment(chosen, NO_GPU)
    assert made.kind == "ready"
    assert lib.plan.make_plan(state, isolated=True).steps == ()


def test_an_incomplete_folder_fails_with_what_pip_said(host, lib, no_other_source, tmp_path):
    """pip's own refusal, when the folder changed after it was checked."""
    wheels = make_all_wheels(tmp_path / "wheels")
    state = lib.environment.examine_environment(gpus=NO_GPU)
    plan = lib.plan.make_plan(state, wheels_folder=wheels, isolated=True, base_python=sys.executable)
    for wheel in wheels.glob("sympy*"):
        wheel.unlink()
    outcome, _lines, _steps = run(host, lib, plan)
    assert outcome.kind == "failed"
    assert "made for this system" in outcome.error.remedy
    assert any("sympy" in line for line in outcome.error.lines)
    assert lib.installer.chosen_interpreter() == sys.executable


@SCRIPTS
def test_cancel_ends_the_process_and_leaves_no_half_made_environment(host, lib, tmp_path, own_home):
    slow = tmp_path / "python3"
    slow.write_text('#!/bin/sh\nfor folder; do :; done\nmkdir -p "$folder/bin"; touch "$folder/bin/python"\nsleep 60\n')
    slow.chmod(0o755)
    step = lib.plan.Step("environment", "Make it.", (str(lib.separate.environment_folder()),))
    plan = lib.plan.InstallPlan("p", False, True, (step,), base_python=str(slow))
    outcomes = []
    installation = lib.installer.Installation(plan, on_done=outcomes.append)
    installation.start(agreed=True)
    host.wait_for(lib.separate.environment_python().exists)
    began = time.monotonic()
    installation.cancel()
    host.wait_for(lambda: outcomes)
    assert outcomes[0].kind == "cancelled"
    assert time.monotonic() - began < 5
    assert not lib.separate.environment_folder().exists()


def test_qt_works_while_pip_of_another_interpreter_runs(host, lib):
    slowly = "import time; print('first', flush=True); time.sleep(0.5); print('last')"
    lines, ends = [], []
    from peftseg.jobs import worker_environment
    from PEFTSegmentLib.line_process import LineProcess

    process = LineProcess([sys.executable, "-c", slowly], worker_environment(sys.executable), lines.append, ends.append)
    host.wait_for(lambda: lines == ["first"], what="the first line before the end")
    assert ends == []
    host.wait_for(lambda: ends)
    assert (lines, ends) == (["first", "last"], [0])
    process.kill()  # too late, and harmless


def test_the_interpreter_is_slicers_own_until_one_is_chosen(host, lib, python):
    assert lib.installer.chosen_interpreter() == sys.executable
    lib.installer.set_interpreter(python.program)
    assert lib.installer.chosen_interpreter() == python.program
    lib.installer.set_interpreter("")
    assert lib.installer.chosen_interpreter() == sys.executable


@SCRIPTS
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "failed: exit code 3"),
        ("echo 3.8.10", r"is Python 3\.8\.10; 3\.10 to 3\.13 is needed"),
        ("echo hello", "is no Python interpreter"),
        ("sleep 20", "did not answer within 1 s"),
        (
            'case "$*" in *version_info*) echo 3.12.1;; *) echo 99;; esac',
            r"another version of the engine \(99",
        ),
        (
            'case "$*" in *version_info*) echo 3.12.1;; *) echo "No module named x" >&2; exit 1;; esac',
            "No module named x",
        ),
    ],
)
def test_an_interpreter_that_cannot_run_the_engine_is_refused_in_words(host, lib, monkeypatch, tmp_path, script, words):
    from PEFTSegmentLib import interpreter

    monkeypatch.setattr(interpreter, "CHECK_S", 1)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(BadInput, match=words) as caught:
        lib.installer.set_interpreter(str(program))
    assert caught.value.remedy
    assert lib.installer.chosen_interpreter() == sys.executable


def test_a_missing_interpreter_is_refused(host, lib, tmp_path):
    with pytest.raises(BadInput, match="There is no interpreter"):
        lib.installer.check_interpreter(str(tmp_path / "gone"))


def test_an_installation_goes_on_after_the_restart_and_not_before(host, lib, monkeypatch):
    from PEFTSegmentLib import install_resume

    assert lib.installer.pending_after_restart() is None
    chosen = lib.installer.Pending(isolated=False, wheels_folder="/wheels", torch_by="cpu")
    host.dialogs.expect("Restart")
    lib.installer.restart_and_go_on(chosen)
    assert host.restarts == ["restart"]
    assert lib.installer.pending_after_restart() is None, "this is still the session before the restart"
    monkeypatch.setattr(install_resume, "_session", lambda: "another")
    assert lib.installer.pending_after_restart() == chosen
    outcome, _lines, _steps = run(host, lib, own_plan(lib, "einops"))
    assert outcome.kind == "finished"
    assert lib.installer.pending_after_restart() is None, "what was installed is not offered again"


def test_a_restart_says_that_unsaved_work_is_lost_and_enter_does_not_agree_to_it(host, lib, monkeypatch):
    from PEFTSegmentLib import install_resume

    def look(box) -> str:
        assert box.defaultButton().text == "Cancel"
        return "Cancel"

    host.dialogs.expect(look)
    lib.installer.restart_and_go_on(lib.installer.Pending())
    assert "not saved are lost" in host.dialogs.shown[0].informative
    assert host.restarts == []
    monkeypatch.setattr(install_resume, "_session", lambda: "another")
    assert lib.installer.pending_after_restart() is None, "what was called off is not gone on with"


@pytest.mark.parametrize("text", ["{", "[]", '{"isolated": true}', '"x"'])
def test_a_note_that_cannot_be_read_is_forgotten(host, lib, text):
    import qt

    qt.QSettings().setValue("PEFTSegment/resumeInstall", text)
    assert lib.installer.pending_after_restart() is None
    assert qt.QSettings().value("PEFTSegment/resumeInstall") is None


def test_an_old_note_is_forgotten(host, lib):
    import qt

    note = {"isolated": False, "wheels_folder": None, "torch_by": None, "session": "x", "time": time.time() - 8 * 86400}
    qt.QSettings().setValue("PEFTSegment/resumeInstall", json.dumps(note))
    assert lib.installer.pending_after_restart() is None
    assert qt.QSettings().value("PEFTSegment/resumeInstall") is None


def test_the_report_to_copy_comes_from_the_chosen_interpreter(host, lib):
    texts = []
    process = lib.installer.start_report(texts.append)
    host.wait_for(lambda: texts, 120)
    assert "PEFTSegment" in texts[0]
    assert "torch" in texts[0]
    process.kill()


@pytest.fixture
def dialog_of(host, lib, python, monkeypatch):
    """Make the dialog for a made-up interpreter that counts as Slicer's own."""
    from dataclasses import replace

    from PEFTSegmentLib import install_plan
    from PEFTSegmentLib.installer_dialog import InstallDialog

    monkeypatch.setattr(install_plan, "has_torch_extension", lambda: False)
    made = []

    def make(gpus=NO_GPU, pending=None, on_done=None):
        state = replace(lib.environment.examine_environment(python.program, gpus), own=True)
        dialog = InstallDialog(state, None, pending, on_done)
        made.append(dialog)
        dialog.show()
        host.process_events(20)
        return dialog

    yield make
    for dialog in made:
        dialog.deleteLater()
    host.process_events()


def gpu():
    from PEFTSegmentLib.gpu_builds import Gpu

    return Gpu("RTX A4000", "581.10", 16384, 13400, (8, 6))


def test_the_dialog_shows_the_plan_and_asks_for_what_it_needs_to_know(host, dialog_of, pictures):
    dialog = dialog_of((gpu(),))
    assert "Not installed yet: torch" in dialog.stateLabel.text
    assert "1. Install PyTorch" in dialog.planLabel.text
    assert "Extensions Manager" in dialog.torchQuestion.text
    assert not dialog.installButton.enabled
    assert "Extensions Manager" in dialog.installButton.toolTip
    assert dialog.restartButton.visible
    host.picture(dialog, pictures / "install-question.png")
    dialog.cpuRadio.click()
    assert dialog.installButton.enabled
    assert "without GPU support" in dialog.planLabel.text
    dialog.cudaRadio.click()
    assert "CUDA 13.0" in dialog.planLabel.text
    assert not dialog.restartButton.visible


def test_the_dialog_installs_what_was_agreed_to(host, dialog_of, pictures):
    outcomes = []
    dialog = dialog_of(on_done=outcomes.append)
    dialog.cpuRadio.click()
    host.packages.output = ["Collecting torch"]
    dialog.installButton.click()
    host.picture(dialog, pictures / "install-running.png")
    assert dialog.closeButton.text == "Cancel"
    host.wait_for(lambda: outcomes)
    assert outcomes[0].kind == "finished"
    assert dialog.resultLabel.text == "Installed."
    assert "Collecting torch" in dialog.log.plainText
    assert not dialog.installButton.enabled
    assert [name for name, _a, _o in host.packages.calls] == ["pip_install", "pip_install"]
    dialog.closeButton.click()
    assert not dialog.visible


def test_the_dialog_replaces_an_installed_package_only_after_the_tick(host, dialog_of, python, pictures):
    python.add_all(torch="2.5.1", monai="1.3.0")
    dialog = dialog_of()
    dialog.cpuRadio.click()
    assert "torch 2.5.1 is replaced" in dialog.warningLabel.text
    assert dialog.agreeBox.visible
    assert not dialog.installButton.enabled
    assert "Agree" in dialog.installButton.toolTip
    dialog.agreeBox.click()
    assert dialog.installButton.enabled
    host.picture(dialog, pictures / "install-consent.png")


def test_the_dialog_tells_a_failure_and_opens_the_details(host, dialog_of, pictures):
    outcomes = []
    dialog = dialog_of(on_done=outcomes.append)
    dialog.cpuRadio.click()
    host.packages.output = ["ERROR: Could not install: [Errno 13] Permission denied: '/opt/Slicer'"]
    host.packages.exit_code = 1
    dialog.installButton.click()
    host.wait_for(lambda: outcomes)
    assert "must not be written" in dialog.resultLabel.text
    assert "install.log" in dialog.resultLabel.text
    assert not dialog.details.collapsed
    assert dialog.installButton.enabled
    dialog.copyButton.click()
    import slicer

    assert "Permission denied" in slicer.app.clipboard().text()
    host.picture(dialog, pictures / "install-failed.png")


def test_the_dialog_says_what_a_folder_lacks_and_how_to_fill_it(host, dialog_of, tmp_path, pictures):
    wheels = make_all_wheels(tmp_path / "wheels", leave_out=("psutil",))
    dialog = dialog_of()
    dialog.offlineBox.click()
    assert not dialog.installButton.enabled
    dialog.folderEdit.currentPath = str(wheels)
    assert "- psutil" in dialog.warningLabel.text
    assert not dialog.installButton.enabled
    dialog.fillButton.click()
    assert "pip download" in dialog.log.plainText
    host.picture(dialog, pictures / "install-offline.png")
    dialog.folderEdit.currentPath = str(tmp_path / "absent")
    assert "does not exist" in dialog.planLabel.text
    dialog.folderEdit.currentPath = str(make_all_wheels(tmp_path / "complete"))
    assert dialog.installButton.enabled


def test_a_folder_that_is_taken_back_is_not_installed_from(host, dialog_of, tmp_path):
    dialog = dialog_of()
    dialog.offlineBox.click()
    dialog.folderEdit.currentPath = str(make_all_wheels(tmp_path / "wheels"))
    assert dialog.installButton.enabled
    dialog.folderEdit.currentPath = ""
    assert not dialog.installButton.enabled
    assert dialog.plan is None
    assert "Choose the folder" in dialog.planLabel.text


def test_the_python_for_a_separate_environment_is_looked_for_once(host, dialog_of, monkeypatch):
    from PEFTSegmentLib import install_plan

    looks = []
    monkeypatch.setattr(install_plan, "find_base_python", lambda: looks.append(1) or sys.executable)
    dialog = dialog_of()
    dialog.separateRadio.click()
    for radio in (dialog.cpuRadio, dialog.cudaRadio, dialog.ownRadio, dialog.separateRadio):
        radio.click()
    assert dialog.plan.base_python == sys.executable
    assert len(looks) == 1


def test_a_restart_by_the_extensions_manager_offers_the_installation_once_more(host, dialog_of, lib, monkeypatch):
    from PEFTSegmentLib import install_resume

    dialog_of((gpu(),))
    monkeypatch.setattr(install_resume, "_session", lambda: "the next")
    pending = lib.installer.pending_after_restart()
    assert pending == lib.installer.Pending()
    dialog_of((gpu(),), pending)
    monkeypatch.setattr(install_resume, "_session", lambda: "the one after")
    assert lib.installer.pending_after_restart() is None, "without the extension it is not offered at each start"


def test_an_installation_whose_window_was_closed_is_shown_again_and_no_second_one_is_offered(module, host):
    strip = module.main.strip
    strip.install()
    first = strip._dialog
    first.installation = types.SimpleNamespace(running=True)
    first.reject()
    strip.install()
    assert strip._dialog is first
    assert not first.isHidden()
    first.installation = None
    strip.install()
    assert strip._dialog is not first


def test_the_window_of_an_installation_goes_with_the_module_unless_it_installs(module, host):
    import slicer

    def windows() -> list:
        host.process_events(50)
        return [w for w in slicer.app.topLevelWidgets() if w.windowTitle == "Install what PEFTSegment needs"]

    before = len(windows())
    module.main.strip.install()
    assert len(windows()) == before + 1
    module.onReload()
    assert len(windows()) == before
    strip = slicer.modules.PEFTSegmentWidget.main.strip
    host.wait_for(lambda: strip.examined, 30)
    strip.install()
    installing = strip._dialog
    installing.installation = types.SimpleNamespace(running=True)
    slicer.modules.PEFTSegmentWidget.onReload()
    assert len(windows()) == before + 1
    installing.deleteLater()


def test_the_dialog_names_another_interpreter(host, dialog_of, lib, python):
    from PEFTSegmentLib.installer_dialog import InstallDialog

    dialog = InstallDialog(lib.environment.examine_environment(python.program, NO_GPU))
    assert python.program in dialog.ownRadio.text
    assert dialog.plan.python == python.program
    dialog.deleteLater()


def test_the_dialog_takes_the_choices_of_before_the_restart_over(host, dialog_of, lib, tmp_path):
    wheels = make_all_wheels(tmp_path / "wheels")
    dialog = dialog_of(pending=lib.installer.Pending(False, str(wheels), "cpu"))
    assert dialog.offlineBox.checked
    assert dialog.folderEdit.currentPath == str(wheels)
    assert dialog.installButton.enabled
    assert dialog.choices() == lib.installer.Pending(False, str(wheels), "cpu")
