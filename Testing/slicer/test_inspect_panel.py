"""Step 5, driven like a person does: choose, show, click a layer, remove; and what can go wrong meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_makers import make_adapter, store_adapter
from scene_makers import BRIGHT, DARK, add_labelled_scan, add_scan, balls, pick

NAME = "bright balls, site Ä"
PATIENCE = 240  # seconds for what other processes do; the machine may be busy
CAUTION = "A map does not show that the result is right."


@pytest.fixture
def adapter(tiny_model, tmp_path) -> str:
    return store_adapter(tmp_path / "made", name=NAME)


@pytest.fixture
def panel(adapter, module):
    """The panel with the adapter chosen in step 4, alone unfolded."""
    return open_panel(module, adapter)


def open_panel(module, ref: str):
    from PEFTSegmentLib.panels.inspect import InspectPanel

    module.main.context.state.adapter = ref
    for section in module.main.sections:
        section.collapsed = True
    module.main.unfold(5)
    return module.main.panel(InspectPanel)


def in_view(scan):
    import slicer

    slicer.util.setSliceViewerLayers(background=scan)
    return scan


def all_maps() -> list:
    from PEFTSegmentLib.panels import inspect_maps

    return inspect_maps.all_maps()


def layers_there(panel, host) -> None:
    host.wait_for(lambda: panel.ui.layerTable.rowCount > 0 and panel.ui.showButton.enabled, PATIENCE, "the layers")


def ask(panel, host) -> None:
    """Press the button and wait for the end of the job."""
    assert panel.ui.showButton.enabled, panel.ui.showButton.toolTip
    panel.ui.showButton.click()
    host.wait_for(lambda: panel.jobs.running() is None, PATIENCE, "the job")
    host.process_events(80)


def choose_method(panel, host, number: int) -> None:
    panel.ui.methodCombo.setCurrentIndex(number)
    host.process_events(80)


def click(panel, host, label: str) -> int:
    """Click the layer of this name."""
    table = panel.ui.layerTable
    number = next(n for n in range(table.rowCount) if table.item(n, 0).text().startswith(label))
    table.selectRow(number)
    table.cellClicked.emit(number, 0)
    host.process_events(80)
    return number


def look(host, module, pictures, name: str) -> None:
    host.process_events(80)
    for _ in range(2):  # wrapped labels settle at the second
        host.picture(module.main.form, pictures / f"{name}.png", width=420, height=860)


def shown_in_front() -> tuple:
    import slicer

    composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    return slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or ""), composite.GetForegroundOpacity()


def moved_scan(number: int = 1):
    """A scan with a long name, turned, under a transform, in a study, with its labels as a support scan."""
    import slicer

    turn = np.array([[0.8, -0.6, 0, 10], [0.6, 0.8, 0, 20], [0, 0, 1.0, -30], [0, 0, 0, 1]])
    scan = slicer.util.addVolumeFromArray(
        balls(number)[0], ijkToRAS=turn, name="Müller, a name that is rather long for a list"
    )
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1.0, 1.0, 1.0])))
    scan.SetAndObserveTransformNodeID(transform.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "A study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(scan), study)
    return in_view(scan), study


def test_layers_have_names_that_count_within_encoder_adapter_and_decoder(host):
    from PEFTSegmentLib.panels.inspect_layers import default_layer, named

    def row(name, kind, stride=(1, 1, 1), adapted=False):
        return {"layer": name, "kind": kind, "channels": 8, "stride": stride, "adapted": adapted, "note": ""}

    rows = named(
        [
            row("convInit.conv", "encoder", adapted=True),
            row("down.0::conv", "adapter", (2, 2, 1)),
            row("down.0", "encoder", (2, 2, 2)),
            row("lost::conv", "adapter"),
            row("up.0", "decoder"),
            row("up.1::adapter", "adapter"),
            row("head", "head"),
            row("bottleneck", "other", (4, 4, 4)),
        ]
    )
    assert [r.label for r in rows] == [
        "Encoder 1", "Adapter 1, at Encoder 2", "Encoder 2", "Adapter 2", "Decoder 1", "Adapter 3", "Output", "Middle 1",
    ]  # fmt: skip
    assert [r.detail for r in rows[:4]] == ["full", "1/2 x 1/2 x 1", "1/2", "full"]
    assert default_layer(rows[:-1]) == "up.0"
    assert default_layer([]) == ""


def test_what_is_missing_is_said_and_nothing_can_be_pressed_before(module, host, tiny_model, pictures):
    panel = open_panel(module, "")
    host.process_events(80)
    ui = panel.ui
    assert panel.section.text == "5 Inspect"
    assert "Choose an adapter in step 4" in ui.stateLabel.text
    look(host, module, pictures, "inspect_start")
    module.main.context.models_changed()
    module.main.context.state.model = tiny_model
    host.process_events(80)
    assert ui.sourceCombo.currentText == "Tiny test model (step 1)"
    assert ui.structureCombo.currentText == BRIGHT
    assert ui.stateLabel.text == "Choose a scan first"
    assert not ui.showButton.enabled
    assert "Choose a scan first" in ui.showButton.toolTip
    assert ui.labelsSelector.isHidden()
    assert ui.mapFrame.isHidden()
    assert ui.layerFrame.isHidden() or ui.layerTable.rowCount


@pytest.mark.slow
def test_show_a_grad_cam_then_measure_all_layers_and_click_through_them(panel, module, host, pictures):
    import slicer

    scan, study = moved_scan()
    other = add_scan(2, "A PET")
    slicer.util.setSliceViewerLayers(foreground=other, foregroundOpacity=0.3)
    host.process_events(80)
    assert panel.ui.sourceCombo.currentText == f"{NAME}, version 1 (step 4)"
    assert "being listed" in panel.ui.stateLabel.text
    look(host, module, pictures, "inspect_listing")
    layers_there(panel, host)
    look(host, module, pictures, "inspect_layers")
    node = grad_cam(panel, module, host, pictures, scan, study)
    assert len(all_maps()) == 1
    proto_seg_without_labels(panel, module, host, pictures)
    proto_seg_with_labels(panel, module, host, pictures, scan)
    saved_maps_are_known_again(panel, node)
    panel.ui.removeButton.click()
    host.process_events(80)
    assert not all_maps()
    assert shown_in_front() == (other, 0.3)
    nothing_is_left_but_of([scan, other])
    assert panel.ui.mapFrame.isHidden()
    assert panel.section.text == "5 Inspect"
    print("longest on the GUI thread: {:.3f} s, {}".format(*host.longest_slot()))


def nothing_is_left_but_of(volumes: list) -> None:
    """No display node, and so no legend, of a map is in the scene."""
    import slicer

    displays = slicer.util.getNodesByClass("vtkMRMLScalarVolumeDisplayNode")
    assert all(display.GetDisplayableNode() in volumes for display in displays)
    assert not slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode")


def grad_cam(panel, module, host, pictures, scan, study):
    import slicer

    ui = panel.ui
    click(panel, host, "Output")
    assert "explains nothing" in ui.stateLabel.text
    assert not ui.showButton.enabled
    number = click(panel, host, "Encoder 2")
    ui.showButton.click()
    host.wait_for(lambda: not ui.progressFrame.isHidden(), 10, "progress")
    assert panel.section.text == "5 Inspect - running"
    assert not ui.showButton.enabled
    look(host, module, pictures, "inspect_running")
    host.wait_for(all_maps, PATIENCE, "the map")
    look(host, module, pictures, "inspect_grad_cam")
    node = all_maps()[0]
    is_laid_on(node, scan, study)
    looks_like_a_map(node)
    assert shown_in_front() == (node, 0.6)
    assert ui.mapLabel.text == f"In view: Grad-CAM, Encoder 2, of {NAME}, version 1"
    assert "Bright: what Encoder 2 sees there speaks for 'bright ball'" in ui.readingLabel.text
    assert ui.cautionLabel.text == CAUTION
    ui.opacitySlider.value = 25
    assert shown_in_front() == (node, 0.25)
    host.slice_picture(pictures / "inspect_grad_cam_slice.png")
    assert ui.layerTable.currentRow() == number
    ask(panel, host)  # a new map of the same layer takes the old one's place
    new = all_maps()
    assert len(new) == 1
    assert new[0] is not node
    assert new[0].GetName() == node.GetName()
    other = slicer.util.getNode("A PET")
    slicer.util.setSliceViewerLayers(foreground=other, foregroundOpacity=0.3)
    click(panel, host, "Encoder 2")  # it is in the scene: no job
    assert shown_in_front()[0] is new[0]
    assert not module.main.context.runner.tasks
    return new[0]


def is_laid_on(node, scan, study) -> None:
    """The map has the grid, transform and study of its scan, and is no scan itself."""
    import slicer

    from PEFTSegmentLib import scans

    assert np.allclose(scans.ijk_to_world(node), scans.ijk_to_world(scan))
    assert node.GetTransformNodeID() == scan.GetTransformNodeID()
    assert node.GetImageData().GetDimensions() == scan.GetImageData().GetDimensions()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert node not in scans.usable_scans()
    assert scans.reason_against(node) == "is a map of step 5, not a scan"
    assert node.GetStorageNode() is None
    assert node.GetName() == f"{scan.GetName()} - Grad-CAM {BRIGHT}, Encoder 2 ({NAME}, version 1)"
    assert len(node.GetAttribute("PEFTSegment.adapter_hash")) == 64


def looks_like_a_map(node) -> None:
    """Values from 0 to 1, window, colour table and legend to match."""
    import slicer

    values = slicer.util.arrayFromVolume(node)
    assert (values.min(), values.max()) == (0.0, 1.0)
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 1.0)
    assert not display.GetAutoWindowLevel()
    assert display.GetColorNode().GetName() in ("Inferno", "Iron")
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    assert legend.GetVisibility()
    assert legend.GetTitleText() == "Grad-CAM\nbright ball\nEncoder 2"


def proto_seg_without_labels(panel, module, host, pictures) -> None:
    ui = panel.ui
    choose_method(panel, host, 1)
    assert ui.showButton.text == "Measure all layers"
    assert not ui.labelsSelector.isHidden()
    assert ui.labelsSelector.currentNode() is None
    ask(panel, host)
    assert "not defined without your labels" in ui.stateLabel.text
    assert ui.layerTable.horizontalHeaderItem(3).text() == "Agreement"
    assert len(all_maps()) == 2  # of the layer that was chosen
    look(host, module, pictures, "inspect_agreement")


def proto_seg_with_labels(panel, module, host, pictures, scan) -> None:
    import slicer

    ui, table = panel.ui, panel.ui.layerTable
    mask = balls(1)[1][BRIGHT].astype(np.uint8)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Labels, by hand")
    labels.CreateDefaultDisplayNodes()
    labels.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
    labels.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    pick(ui.labelsSelector, labels)
    host.process_events(80)
    assert "nothing painted that is called 'bright ball'" in ui.stateLabel.text
    assert not ui.showButton.enabled
    segment_id = labels.GetSegmentation().AddEmptySegment("", BRIGHT)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, labels, segment_id, scan)
    pick(ui.labelsSelector, None)
    module.main.context.support.add(scan, labels)
    pick(ui.scanSelector, None)
    host.process_events(80)
    assert ui.labelsSelector.currentNode() is labels  # of the support scan
    first = module.main.context.runner.tasks[0].folder
    ask(panel, host)
    host.wait_for(lambda: not first.exists(), PATIENCE, "the end of the first one's maps")
    assert "Segmentation Ability, 0 to 1" in ui.stateLabel.text
    assert table.horizontalHeaderItem(3).text() == "Ability"
    click(panel, host, "Decoder 1")
    node = shown_in_front()[0]
    assert node.GetName().startswith(f"{scan.GetName()} - ProtoSeg {BRIGHT}, Decoder 1")
    number = table.currentRow()
    found = slicer.util.arrayFromVolume(node) > 0
    dice = 2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum())
    assert float(table.item(number, 2).text()) == pytest.approx(dice, abs=0.03)  # measured on the model's grid
    assert f"(Segmentation Ability): {table.item(number, 2).text()}" in table.item(number, 3).toolTip()
    assert "Control" in table.item(number, 3).toolTip()
    assert "look more like 'bright ball' than like the rest" in ui.readingLabel.text
    assert ui.cautionLabel.text == CAUTION
    look(host, module, pictures, "inspect_ability")
    host.slice_picture(pictures / "inspect_ability_slice.png")
    for row in range(table.rowCount):
        table.selectRow(row)
        table.cellClicked.emit(row, 0)
        assert shown_in_front()[0].GetAttribute("PEFTSegment.MapLayer") in table.item(row, 0).toolTip()
    assert len(all_maps()) <= 8
    assert ui.showButton.enabled


def saved_maps_are_known_again(panel, node) -> None:
    from PEFTSegmentLib.panels import inspect_maps

    facts = inspect_maps.facts_of(all_maps()[-1])
    assert (facts.method, facts.structure, facts.title) == ("proto_seg", BRIGHT, f"{NAME}, version 1")
    assert inspect_maps.find(facts) is all_maps()[-1]


def write_map(folder: Path, scan, values: np.ndarray) -> Path:
    """A map as the engine writes it, on the scan's own grid."""
    import slicer

    from peftseg.volume import read_volume
    from peftseg.writing import write_volume
    from PEFTSegmentLib import exchange

    exchange.write_image(folder / "scan.nrrd", exchange.image_of(scan))
    assert values.shape == slicer.util.arrayFromVolume(scan).shape
    write_volume(folder / "map.nii.gz", values.transpose(2, 1, 0), read_volume(folder / "scan.nrrd").grid)
    return folder / "map.nii.gz"


def test_a_map_is_drawn_over_its_scan_with_a_legend_and_its_rest_is_clear(host, tmp_path, pictures):
    import slicer

    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels import inspect_maps as maps

    scan = in_view(add_scan(1))
    host.slice_picture(tmp_path / "first.png")  # only a view that was drawn before learns of legends
    views, mask = maps.MapViews(), balls(1)[1][BRIGHT]
    for method, values in ((maps.GRAD_CAM, mask.astype(np.float32)), (maps.PROTO_SEG, mask.astype(np.uint8))):
        facts = maps.MapFacts(method, "up.0", "Decoder 2", "gallbladder, a long name", "m", "site B", scans.token(scan))
        node = maps.load(write_map(tmp_path, scan, values), facts, scan, {})
        views.show(node, scan, 1.0)
        place = maps.middle(node)
        assert np.abs(place - np.array([7, 12, 12])).max() < 4  # the bright ball; RAS of a scan made from an array
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place)
        drawn = host.slice_picture(pictures / f"inspect_legend_{method}.png").read_bytes()
        slicer.modules.colors.logic().GetColorLegendDisplayNode(node).SetVisibility(False)
        assert host.slice_picture(tmp_path / "without.png").read_bytes() != drawn
    slicer.util.updateVolumeFromArray(node, np.zeros_like(values))  # nothing is marked: the scan is as without a map
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, 0, 0, 0)
    nothing = host.slice_picture(tmp_path / "nothing.png").read_bytes()
    views.remove_all()
    assert host.slice_picture(tmp_path / "removed.png").read_bytes() == nothing


def test_what_lay_in_front_comes_back_although_a_map_was_replaced(host, tmp_path):
    import slicer

    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels import inspect_maps as maps

    scan, other, views = in_view(add_scan(1)), add_scan(2), maps.MapViews()
    slicer.util.setSliceViewerLayers(foreground=other, foregroundOpacity=0.3)
    path = write_map(tmp_path, scan, balls(1)[1][BRIGHT].astype(np.float32))
    facts = maps.MapFacts(maps.GRAD_CAM, "l", "Decoder 1", "a", "m", "M", scans.token(scan))
    for _ in range(2):
        views.show(maps.load(path, facts, scan, {}), scan, 0.6)
    assert len(all_maps()) == 1
    assert shown_in_front() == (all_maps()[0], 0.6)
    scans.hide_other_scans(scan)
    assert shown_in_front()[0] is all_maps()[0]
    scans.hide_other_scans(other)  # another scan is shown: the map would seem to be of that one
    assert shown_in_front()[0] is None
    views.show(all_maps()[0], scan, 0.6)
    views.remove_all()
    assert shown_in_front() == (other, 0.3)
    nothing_is_left_but_of([scan, other])


def test_few_maps_are_kept_and_one_of_another_size_is_refused(host, tmp_path):
    import slicer

    from peftseg.errors import BadInput
    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels import inspect_maps as maps

    scan = add_scan(1)
    path = write_map(tmp_path, scan, balls(1)[1][BRIGHT].astype(np.float32))
    for number in range(maps.MOST + 2):
        facts = maps.MapFacts(maps.GRAD_CAM, f"l{number}", f"Layer {number}", "a", "m", "M", scans.token(scan))
        node = maps.load(path, facts, scan, {"base": "m"})
    labels = [maps.facts_of(n).label for n in all_maps()]
    assert labels == [f"Layer {n}" for n in range(2, maps.MOST + 2)]
    assert node.GetAttribute("PEFTSegment.base") == "m"
    slicer.util.updateVolumeFromArray(scan, np.zeros((5, 6, 7), np.float32))
    with pytest.raises(BadInput, match="has been changed"):
        maps.load(path, facts, scan, {})
    path.unlink()
    with pytest.raises(BadInput, match="cannot be loaded"):
        maps.load(path, facts, scan, {})
    assert len(all_maps()) == maps.MOST
    maps.remove_like(maps.MapFacts(maps.PROTO_SEG, "", "", "a", "m", "M", scans.token(scan)))
    assert len(all_maps()) == maps.MOST  # they are of the other method
    maps.remove_like(maps.MapFacts(maps.GRAD_CAM, "", "", "a", "m", "M", scans.token(scan)))
    assert not all_maps()


@pytest.mark.slow
def test_nothing_found_is_said_in_words_and_no_empty_map_is_shown(tiny_model, module, host, tmp_path, pictures):
    panel = open_panel(module, blind_adapter(tmp_path))
    scan, _labels = add_labelled_scan(1)
    in_view(scan)
    host.process_events(80)
    layers_there(panel, host)
    ask(panel, host)
    assert "finds nothing of 'bright ball'" in panel.ui.messageLabel.text
    assert not all_maps()
    choose_method(panel, host, 1)
    assert panel.ui.messageLabel.isHidden()
    ask(panel, host)
    assert "Segmentation Ability is not defined, and the maps are empty" in panel.ui.stateLabel.text
    assert panel.ui.layerTable.item(0, 3).text() == "not defined"
    click(panel, host, "Decoder 1")
    assert not all_maps()
    look(host, module, pictures, "inspect_nothing")


def blind_adapter(tmp_path: Path) -> str:
    """An adapter that never finds anything."""
    from peftseg.adapter_file import load_adapter, save_adapter
    from peftseg.library import show_adapter, store

    recipe, state, _digest = load_adapter(make_adapter(tmp_path / "a.safetensors", name="blind"))
    bias = next(key for key in state if key.startswith("conv_final.2") and "bias" in key)
    state[bias] = state[bias] - state[bias].new_tensor([0.0, 1000.0])
    save_adapter(tmp_path / "b.safetensors", recipe, state)
    return show_adapter(store(tmp_path / "b.safetensors"))["ref"]


@pytest.mark.slow
def test_cancel_a_closed_scene_and_a_deleted_scan_leave_nothing_behind(panel, module, host, own_home):
    import slicer

    runner = module.main.context.runner
    scan = in_view(add_scan(1))
    host.process_events(80)
    layers_there(panel, host)
    panel.ui.showButton.click()
    host.process_events(80)
    panel.ui.cancelButton.click()
    host.wait_for(lambda: not runner.tasks, PATIENCE, "the end")
    assert not all_maps()
    host.wait_for(lambda: panel.ui.showButton.enabled, 5, "the button")
    panel.ui.showButton.click()
    slicer.mrmlScene.RemoveNode(scan)
    host.wait_for(lambda: not runner.tasks, PATIENCE, "the job's end")
    host.process_events(80)
    assert "no longer loaded" in panel.ui.messageLabel.text
    in_view(add_scan(2))
    module.main.context.state.adapter = panel.adapters.rows()[0]["ref"]
    choose_method(panel, host, 1)
    host.wait_for(lambda: panel.ui.showButton.enabled, 10, "the layers, known already")
    ask(panel, host)
    assert panel.jobs.measured is not None
    folder = panel.jobs.measured.task.folder
    assert folder.is_dir()
    slicer.mrmlScene.Clear(0)
    host.wait_for(lambda: not runner.busy and not folder.exists(), PATIENCE, "the end of its maps")
    host.process_events(80)
    assert panel.section.text == "5 Inspect"


@pytest.mark.slow
def test_layers_that_cannot_be_listed_are_told_and_can_be_asked_for_again(panel, module, host, own_home, pictures):
    in_view(add_scan(1))
    file = next((own_home / "adapters").glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")  # the list reads headers only
    host.process_events(80)
    host.wait_for(lambda: not panel.ui.againButton.isHidden(), PATIENCE, "the failure")
    assert "could not be listed" in panel.ui.stateLabel.text
    assert not panel.ui.showButton.enabled
    look(host, module, pictures, "inspect_damaged")
    file.write_bytes(content)
    panel.ui.againButton.click()
    layers_there(panel, host)
    assert panel.ui.againButton.isHidden()
    panel.ui.showButton.click()
    host.process_events(80)
    host.wait_for(lambda: module.main.context.runner.tasks[0].state == "running", PATIENCE, "the start")
    folder = module.main.context.runner.tasks[0].folder
    host.unload_module("PEFTSegment")  # the job goes on
    host.load_module(Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py")
    again = host.show_module("PEFTSegment").main
    host.wait_for(
        lambda: not folder.exists() and not again.context.runner.tasks, 60, "the end of a job nobody waits for"
    )
    assert not all_maps()


def test_only_whole_labels_of_a_support_scan_are_offered(panel, module, host):
    from PEFTSegmentLib.panels.inspect_labels import labels_to_offer, reason_against_labels
    from PEFTSegmentLib.support import Mark

    scan, labels = add_labelled_scan(1)
    support = module.main.context.support
    assert labels_to_offer(support, scan, BRIGHT) is None
    row = support.add(scan, labels)
    assert labels_to_offer(support, scan, BRIGHT) is labels
    assert labels_to_offer(support, scan, "spleen") is None
    support.set_mark(row.key, DARK, Mark(slices=(3, 4)))
    assert labels_to_offer(support, scan, DARK) is None
    assert "only some slices" in reason_against_labels(support, labels, scan, DARK)
    assert reason_against_labels(support, labels, scan, BRIGHT) == ""
