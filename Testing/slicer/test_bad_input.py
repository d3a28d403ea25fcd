"""What goes wrong around the module as a whole: odd names and folders, nodes that vanish, volumes that are no scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_makers import store_adapter
from scene_makers import BRIGHT, DARK, add_labelled_scan, add_scan, install_tiny_model

MODULE = Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py"
ODD = "Größe é 日本 (1) & söhne's"


def prepare(module, host, scans: int = 1, names: tuple[str, ...] = (BRIGHT,)) -> list:
    """Model, structures and labelled scans, as steps 1 and 2 leave them."""
    from PEFTSegmentLib import structures

    context = module.main.context
    context.state.model = "tiny"
    wanted = []
    for name in names:
        wanted.append(structures.proposed(name, (), wanted))
    structures.write(context.state, wanted)
    pairs = [add_labelled_scan(n, names, f"Größe {n} 'é'") for n in range(1, scans + 1)]
    for scan, labels in pairs:
        context.support.add(scan, labels)
    host.process_events(120)
    return pairs


def click(host, button) -> None:
    """Click a button that must be enabled, once the module has seen what came before."""
    host.process_events(120)
    assert button.enabled, button.toolTip
    button.click()
    host.process_events(120)


def idle(main, host) -> None:
    host.wait_for(lambda: not main.context.runner.busy, 120, "the end of all jobs")
    host.process_events(150)


def in_view(scan) -> None:
    import slicer

    slicer.util.setSliceViewerLayers(background=scan)


def segmentations() -> list[str]:
    import slicer

    return sorted(node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))


# names and folders


@pytest.fixture
def odd_home(tmp_path, monkeypatch) -> Path:
    """A home whose path has spaces, umlauts, signs of the shell and characters of other scripts."""
    home = tmp_path / ODD / "PEFT Segment"
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(home))
    install_tiny_model(home)
    return home


@pytest.mark.slow
def test_spaces_umlauts_and_signs_in_all_names_and_folders_do_no_harm(odd_home, module, host):
    from PEFTSegmentLib import results

    main = module.main
    prepare(module, host, 2)
    main.context.state.minutes, main.context.state.adapterName = 0.05, ODD
    adapting, applying = main.panels[2].ui, main.panels[3].ui
    click(host, adapting.adaptButton)
    host.wait_for(main.panels[2].jobs.finished, 120, "the adapter")
    host.process_events(120)
    assert adapting.doneLabel.text == f"Adapter '{ODD}', version 1, saved."
    click(host, adapting.applyButton)
    main.context.state.scan = add_scan(9, "日本 / é: *?")
    click(host, applying.applyButton)
    (result,) = host.wait_for(results.all_results, 60, "the result")
    assert result.GetName().startswith(f"日本 / é: *? - {ODD}")
    click(host, adapting.closeButton)
    idle(main, host)
    assert not list((odd_home / "jobs").iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write (/proc)")
def test_a_folder_that_cannot_be_written_is_told_in_the_strip_without_a_dialog(host, monkeypatch, pictures):
    monkeypatch.setenv("PEFTSEGMENT_HOME", "/proc/self/PEFT Segment")
    host.load_module(MODULE)
    main = host.show_module("PEFTSegment").main
    host.wait_for(lambda: main.strip.examined, 30, "the look at the installation")
    host.process_events(120)
    assert "/proc/self/PEFT Segment/jobs cannot be written" in main.ui.engineLabel.text
    assert "Set PEFTSEGMENT_HOME to a folder that you may write to" in main.ui.engineLabel.text
    assert main.ui.engineButton.isHidden()
    main.context.state.model = "phantom-ct"
    in_view(add_scan(1))
    main.context.refresh()
    host.process_events(120)
    button = main.panels[0].ui.tryButton
    assert not button.enabled
    assert "cannot be written" in button.toolTip
    for _ in range(2):
        host.picture(main.form, pictures / "read_only_folder.png", width=400)


# nodes that vanish


@pytest.mark.slow
def test_all_nodes_may_be_deleted_while_four_jobs_wait_and_run(tiny_model, tmp_path, module, host):
    import slicer

    main = module.main
    ref = store_adapter(tmp_path / "made")
    (scan, labels), *_more = prepare(module, host, 2)
    other = add_scan(7, "not labelled")
    state = main.context.state
    row = main.context.support.add(other)
    state.currentRow, state.adapter, state.scan = row.key, ref, other
    in_view(other)
    main.context.models_changed()
    main.panels[3].adapters.look_again()
    click(host, main.panels[0].ui.tryButton)
    click(host, main.panels[1].ui.presegmentButton)
    click(host, main.panels[3].ui.applyButton)
    click(host, main.panels[2].ui.checkButton)
    assert len(main.context.runner.active) == 4
    for node in (labels, scan, other, *slicer.util.getNodesByClass("vtkMRMLSegmentationNode")):
        slicer.mrmlScene.RemoveNode(node)
        host.process_events(80)
    host.wait_for(lambda: not main.context.runner.active, 120, "the end of all jobs")
    host.process_events(200)
    assert segmentations() == []
    assert "closed before the result came" in main.panels[0].ui.tryLabel.text
    assert "no longer loaded" in main.panels[1].ui.messageLabel.text
    assert "no longer loaded" in main.panels[3].ui.offerLabel.text
    click(host, main.panels[3].ui.offerDropButton)
    idle(main, host)


def test_the_module_is_loaded_again_while_a_job_runs_and_takes_its_result(tiny_model, module, host):
    import slicer

    prepare(module, host)
    in_view(add_scan(5, "new"))
    click(host, module.main.panels[0].ui.tryButton)
    host.wait_for(lambda: module.main.context.runner.tasks[0].state == "running", 60, "the start of the job")
    before = module.main
    module.onReload()
    again = slicer.modules.PEFTSegmentWidget.main
    assert again is not before
    host.wait_for(lambda: again.strip.examined, 30, "the look at the installation")
    host.process_events(150)
    assert again.sections[1].text == "2 Support scans - 1 of 1 ready"
    idle(again, host)
    assert "new - Tiny test model" in segmentations()


# saved, loaded and added scenes


@pytest.fixture
def saved(tiny_model, module, host, tmp_path) -> Path:
    """A scene file with two support scans; the scene is closed again."""
    import slicer

    from PEFTSegmentLib.support import Mark

    context = module.main.context
    prepare(module, host, 2)
    context.support.set_mark(context.support.rows()[1].key, BRIGHT, Mark(slices=(10, 11, 12)))
    context.state.adapterName = ODD
    folder = tmp_path / "Scène 日本"
    folder.mkdir()
    assert slicer.util.saveScene(str(folder / "étude ä.mrb"))
    slicer.mrmlScene.Clear(0)
    host.process_events(120)
    assert module.main.sections[1].text == "2 Support scans"
    return folder / "étude ä.mrb"


def test_a_saved_scene_brings_the_table_the_marks_and_the_choices_back(saved, module, host):
    import slicer

    slicer.util.loadScene(str(saved))
    host.process_events(200)
    context = module.main.context
    assert module.main.sections[0].text == "1 Model - Tiny test model, ready"
    assert module.main.sections[1].text == "2 Support scans - 2 of 2 ready"
    assert [row.scan.GetName() for row in context.support.rows()] == ["Größe 1 'é'", "Größe 2 'é'"]
    assert context.support.rows()[1].marks[BRIGHT].slices == (10, 11, 12)
    assert context.state.adapterName == ODD


def test_a_scene_that_is_added_to_a_session_joins_it_and_replaces_nothing(saved, module, host):
    import slicer

    from PEFTSegmentLib import structures

    context = module.main.context
    prepare(module, host, 1, (DARK,))
    context.state.adapterName = "mine"
    mine = context.support.rows()[0]
    for times in (1, 2):
        slicer.util.loadScene(str(saved), {"clear": False})
        host.process_events(200)
        rows = context.support.rows()
        assert len(rows) == len({row.key for row in rows}) == 1 + 2 * times
        assert rows[0] == mine
        assert len({row.scan.GetID() for row in rows}) == len({row.labels.GetID() for row in rows}) == len(rows)
        assert rows[-1].marks[BRIGHT].slices == (10, 11, 12)
        assert [(s.name, s.value) for s in structures.read(context.state)] == [(DARK, 1), (BRIGHT, 2)]
        assert context.state.adapterName == "mine"
    assert module.main.sections[1].text == "2 Support scans - 5 of 5 ready"


def test_every_choice_of_a_session_is_kept_when_a_scene_is_added(host):
    from PEFTSegmentLib.scene_import import CHOICES
    from PEFTSegmentLib.state import ModuleState

    assert {*CHOICES, "structures", "support"} == set(ModuleState.__annotations__)


# volumes that are no scans


def add_sequence(name: str = "cine"):
    """A sequence of three frames with grey values around 0, 100 and 200; its browser and the volume that shows it."""
    import slicer

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    for number in range(3):
        frame = add_scan(number)
        slicer.util.arrayFromVolume(frame)[:] += 100 * number
        sequence.SetDataNodeAtValue(frame, str(number))
        slicer.mrmlScene.RemoveNode(frame)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{name} browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    show_frame(browser, 0)
    return browser, browser.GetProxyNode(sequence)


def show_frame(browser, number: int) -> None:
    import slicer

    browser.SetSelectedItemNumber(number)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)


@pytest.mark.slow
def test_of_a_sequence_the_frame_on_view_is_used_and_stays_when_the_sequence_moves_on(tiny_model, module, host):
    import slicer

    main = module.main
    prepare(module, host)
    browser, cine = add_sequence()
    show_frame(browser, 1)
    in_view(cine)
    main.context.models_changed()
    ui = main.panels[1].ui
    host.process_events(150)
    assert ui.addScansButton.text == "Add loaded scans"
    assert "cine is a sequence; show the frame that you want" in ui.refusedLabel.text
    menu = ui.addOneButton.menu()
    menu.aboutToShow.emit()
    action = next(a for a in menu.actions() if a.text == "cine: the frame that it shows now")
    assert ui.addOneButton.enabled
    action.trigger()
    row = main.context.support.rows()[-1]
    assert row.scan.GetName() == "cine, frame 2"
    before = slicer.util.arrayFromVolume(row.scan).copy()
    show_frame(browser, 2)
    assert np.array_equal(slicer.util.arrayFromVolume(row.scan), before)
    assert 150 < before.mean() < 250
    in_view(cine)
    click(host, main.panels[0].ui.tryButton)
    show_frame(browser, 1)  # the module's mark on the moving node would be lost now
    idle(main, host)
    assert "cine, frame 3 - Tiny test model" in segmentations()
    in_view(cine)
    click(host, main.panels[0].ui.tryButton)
    idle(main, host)
    frames = [n.GetName() for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if "frame" in n.GetName()]
    assert sorted(frames) == ["cine, frame 2", "cine, frame 3"], "a frame is copied once"


def test_step_four_takes_the_frame_of_a_sequence_that_is_chosen_alone(tiny_model, tmp_path, module, host):
    from PEFTSegmentLib import results

    main = module.main
    main.context.state.adapter = store_adapter(tmp_path / "made")
    browser, cine = add_sequence()
    main.panels[3].adapters.look_again()
    main.context.state.scan = cine
    host.process_events(120)
    ui = main.panels[3].ui
    assert ui.allScansRadio.text == "all loaded scans (0)"
    click(host, ui.applyButton)
    show_frame(browser, 2)
    (result,) = host.wait_for(results.all_results, 60, "the result")
    assert result.GetName().startswith("cine, frame 1 - ")
    idle(main, host)


def add_refused() -> dict[str, str]:
    """One volume of each kind that is no scan, with words of the reason that is to be told."""
    import slicer
    import vtk

    add = slicer.mrmlScene.AddNewNodeByClass
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_SHORT, 3)
    add("vtkMRMLVectorVolumeNode", "colour").SetAndObserveImageData(image)
    add("vtkMRMLScalarVolumeNode", "four-dimensional").SetAndObserveImageData(image)
    add("vtkMRMLLabelMapVolumeNode", "labels")
    add("vtkMRMLScalarVolumeNode", "hollow")
    warped = add_scan(3, "warped")
    warped.SetAndObserveTransformNodeID(add("vtkMRMLBSplineTransformNode", "warp").GetID())
    return {
        "colour": "several values a voxel",
        "four-dimensional": "several values a voxel",
        "labels": "is a label map",
        "hollow": "is empty",
        "warped": "harden it first",
    }


def test_volumes_that_are_no_scans_are_offered_nowhere_and_the_reason_can_be_read(module, host, pictures):
    reasons = add_refused()
    good = add_scan(1, "scan")
    main = module.main
    host.process_events(150)
    ui = main.panels[1].ui
    assert ui.addScansButton.text == "Add loaded scans (1)"
    menu = ui.addOneButton.menu()
    menu.aboutToShow.emit()
    assert [a.text for a in menu.actions()] == ["scan"]
    ui.refusedButton.click()
    host.process_events(120)
    told = dict(line.split(" ", 1) for line in ui.refusedLabel.text.splitlines())
    assert set(told) == set(reasons)
    for name, words in reasons.items():
        assert words in told[name], name
    main.unfold(2)
    for _ in range(2):
        host.picture(main.form, pictures / "refused_volumes.png", width=400)
    step4 = main.panels[3].ui
    assert step4.allScansRadio.text == "all loaded scans (1)"
    step4.scanSelector.setCurrentNode(good)
    assert step4.scanSelector.currentNode() is good
