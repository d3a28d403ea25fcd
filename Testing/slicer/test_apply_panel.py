"""Step 4, driven like a person does: apply, look, review, correct, compare; and what can go wrong meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from adapter_makers import store_adapter
from result_makers import add_result
from scene_makers import BRIGHT, add_scan, balls, pick

MODULE = Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py"
NAME = "bright balls, site Ä"


@pytest.fixture
def adapter(tiny_model, tmp_path) -> str:
    return store_adapter(tmp_path / "made", name=NAME)


@pytest.fixture
def panel(adapter, module):
    """The panel with an adapter in the library, in a module that was made after it."""
    from PEFTSegmentLib.panels.apply import ApplyPanel

    module.main.unfold(4)
    module.main.sections[0].collapsed = True
    return module.main.panel(ApplyPanel)


def choose(panel, host) -> None:
    """Choose the first adapter."""
    panel.ui.adapterCombo.setCurrentIndex(1)
    host.process_events(80)


def in_view(number: int, name: str):
    import slicer

    scan = add_scan(number, name)
    slicer.util.setSliceViewerLayers(background=scan)
    return scan


def found() -> list:
    from PEFTSegmentLib import results

    return results.all_results()


def click(panel, host, row: int) -> None:
    table = panel.ui.resultsTable
    table.selectRow(row)
    table.cellClicked.emit(row, 0)
    host.process_events(80)


def look(host, module, pictures, name: str) -> None:
    host.process_events(80)
    host.picture(module.main.form, pictures / f"{name}.png", width=400, height=740)


def oblique_scan():
    """A scan with a long name, turned, under a transform, in view."""
    import slicer

    turn = np.array([[0.8, -0.6, 0, 10], [0.6, 0.8, 0, 20], [0, 0, 1.0, -30], [0, 0, 0, 1]])
    scan = slicer.util.addVolumeFromArray(
        balls(1)[0], ijkToRAS=turn, name="Müller, a name that is rather long for a table"
    )
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1.0, 1.0, 1.0])))
    scan.SetAndObserveTransformNodeID(transform.GetID())
    slicer.util.setSliceViewerLayers(background=scan)
    return scan


@pytest.mark.slow
def test_apply_look_review_correct_and_compare(panel, module, host, pictures):
    scan = oblique_scan()
    node = apply_to(scan, panel, module, host, pictures)
    shown_in_3d(node, panel)
    mask = reviewed_and_edited(node, scan, panel, host)
    corrected(node, scan, mask, panel, module)
    compared(mask, panel, module, host, pictures)
    print("longest on the GUI thread: {:.3f} s, {}".format(*host.longest_slot()))


def apply_to(scan, panel, module, host, pictures):
    from PEFTSegmentLib import results

    host.process_events(80)
    ui = panel.ui
    assert panel.section.text == "4 Apply"
    assert not ui.applyButton.enabled
    assert "Choose an adapter" in ui.applyButton.toolTip
    look(host, module, pictures, "apply_start")
    choose(panel, host)
    assert ui.applyButton.enabled
    assert "Learnt from 5 scans" in ui.adapterCombo.toolTip
    assert ui.scanSelector.currentNode() is scan
    ui.applyButton.click()
    host.wait_for(lambda: not ui.progressFrame.isHidden() and "Segment" in ui.progressLabel.text, 30, "progress")
    assert panel.section.text == "4 Apply - running"
    look(host, module, pictures, "apply_running")
    host.wait_for(found, 60, "the result")
    host.wait_for(lambda: not module.main.context.runner.tasks, 10, "the job's end")
    look(host, module, pictures, "apply_done")
    node = found()[0]
    assert node.GetName() == f"{scan.GetName()} - {NAME} (draft)"
    assert results.get(node, "adapter_hash")[:8] != ""
    assert panel.section.text == "4 Apply - 1 result, 1 to look at"
    table = ui.resultsTable
    assert table.item(0, 1).text() == BRIGHT
    assert table.item(0, 3).text().startswith("please look: ")
    assert results.content(node)[1] == pytest.approx({BRIGHT: float(table.item(0, 2).text())}, abs=0.01)
    host.slice_picture(pictures / "apply_slice.png")
    return node


def shown_in_3d(node, panel) -> None:
    import slicer

    from PEFTSegmentLib import results

    ui = panel.ui
    ui.show3DButton.click()
    assert results.has_3d(node)
    assert ui.show3DButton.checked
    views = slicer.util.getNodesByClass("vtkMRMLViewNode")
    assert any(view.IsMappedInLayout() for view in views)


def reviewed_and_edited(node, scan, panel, host) -> np.ndarray:
    import slicer

    ui, table = panel.ui, panel.ui.resultsTable
    slicer.app.applicationLogic().GetUserInformation().SetName("Dr. Åse")
    host.process_events(80)
    ui.reviewedButton.click()
    host.process_events(80)
    assert "reviewed by Dr. Åse" in ui.resultLabel.text
    assert not ui.reviewedButton.enabled
    assert panel.section.text == "4 Apply - 1 result"
    segment_id = node.GetSegmentation().GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, scan)
    mask[:3] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, scan)
    host.wait_for(lambda: "edited by hand" in ui.resultLabel.text, 5, "the draft")
    assert table.item(0, 3).text() == "edited"
    return mask


def corrected(node, scan, mask, panel, module) -> None:
    import slicer

    from PEFTSegmentLib import results, structures

    ui = panel.ui
    ui.correctButton.click()
    row = module.main.context.support.rows()[0]
    assert row.scan is scan
    assert row.key == module.main.context.state.currentRow
    assert [s.name for s in structures.read(module.main.context.state)] == [BRIGHT]
    assert not module.main.sections[1].collapsed
    module.main.sections[1].collapsed = True
    copy = row.labels
    assert copy is not node
    assert copy.GetName() == f"{scan.GetName()} labels"
    assert copy.GetAttribute(results.CORRECTED) == results.get(node, "adapter_hash")
    assert np.array_equal(
        slicer.util.arrayFromSegmentBinaryLabelmap(copy, copy.GetSegmentation().GetNthSegmentID(0), scan), mask
    )


def compared(mask, panel, module, host, pictures) -> None:
    import slicer

    ui = panel.ui
    host.process_events(80)
    assert ui.compareCombo.currentText == "with the model as it is: Tiny test model"
    layout = slicer.app.layoutManager().layout
    ui.compareButton.click()
    host.wait_for(lambda: panel.comparing.active, 60, "the comparison")
    look(host, module, pictures, "apply_compared")
    assert ui.compareTable.item(0, 0).text() == BRIGHT
    assert float(ui.compareTable.item(0, 1).text()) == pytest.approx(mask.sum() / 1000, abs=0.01)
    for view in "AB":
        host.slice_picture(pictures / f"apply_compared_{view}.png", f"PEFTSegment{view}", (300, 300))
    ui.leaveButton.click()
    host.process_events(80)
    assert slicer.app.layoutManager().layout == layout
    assert ui.compareFrame.isHidden()
    assert [n.GetName().endswith("Tiny test model (draft)") for n in found()] == [False, True]


def test_all_scans_that_can_be_used_are_segmented_one_that_cannot_is_named(panel, module, host, pictures):
    import slicer

    scans = [in_view(1, "Scan 1"), in_view(2, "Scan 2")]
    vector = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    bad = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty one")
    choose(panel, host)
    ui = panel.ui
    pick(ui.scanSelector, bad)
    host.process_events(80)
    assert ui.targetLabel.text == "empty one is empty"
    assert ui.applyButton.toolTip == "<p>empty one is empty</p>"
    ui.allScansRadio.click()
    host.process_events(80)
    assert module.main.context.state.allScans
    assert ui.allScansRadio.text == "all loaded scans (2)"
    assert "colours is empty" in ui.targetLabel.toolTip
    look(host, module, pictures, "apply_all")
    broken = np.full((24, 24, 24), np.nan, np.float32)
    slicer.util.updateVolumeFromArray(scans[1], broken)
    ui.applyButton.click()
    ui.applyButton.click()  # a second job waits for the first
    host.wait_for(lambda: "1 more to come" in ui.progressLabel.text, 20, "two jobs")
    host.process_events(80)
    look(host, module, pictures, "apply_two_jobs")
    ui.cancelButton.click()
    host.wait_for(lambda: len(panel.jobs.tasks()) == 1, 30, "the first one's end")
    host.show_module("PEFTSegment")
    slicer.mrmlScene.RemoveNode(scans[0])
    slicer.mrmlScene.RemoveNode(vector)
    host.wait_for(lambda: not ui.offerFrame.isHidden(), 60, "the offer")
    assert f"1 result of {NAME}, version 1 is ready; its scan is no longer loaded." == ui.offerLabel.text


def test_a_scene_closed_meanwhile_loses_nothing(panel, module, host, pictures):
    import slicer

    in_view(1, "Scan 1")
    choose(panel, host)
    panel.ui.applyButton.click()
    host.wait_for(lambda: panel.jobs.tasks()[0].state == "running", 30, "the start")
    slicer.mrmlScene.Clear(0)
    other = in_view(2, "Another patient")
    host.wait_for(lambda: not panel.ui.offerFrame.isHidden(), 60, "the offer")
    assert panel.ui.offerLabel.text == f"1 result of {NAME}, version 1 is ready; its scan is no longer loaded."
    assert not found()
    look(host, module, pictures, "apply_offer")
    panel.ui.offerLoadButton.click()
    host.wait_for(found, 20, "the result")
    node = found()[0]
    assert node.GetName() == f"{NAME} (draft)"
    host.wait_for(lambda: not panel.ui.resultsFrame.isHidden(), 5)
    assert not panel.ui.correctButton.enabled
    assert "no longer loaded" in panel.ui.correctButton.toolTip
    assert not panel.ui.compareButton.enabled
    click(panel, host, 0)
    panel.ui.reviewedButton.click()
    assert not module.main.context.runner.tasks
    assert other.GetScene() is not None


@pytest.mark.slow
def test_results_of_an_earlier_session_are_offered_and_a_failure_is_told(panel, module, host, own_home, monkeypatch):
    from PEFTSegmentLib.panels.apply import ApplyPanel

    in_view(1, "Scan 1")
    choose(panel, host)
    panel.ui.applyButton.click()
    host.wait_for(lambda: panel.jobs.tasks()[0].state == "running", 30, "the start")
    folder = panel.jobs.tasks()[0].folder
    host.unload_module("PEFTSegment")
    end = time.monotonic() + 60
    while "finished" not in (folder / "events.jsonl").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    host.load_module(host_module_path())
    again = host.show_module("PEFTSegment").main.panel(ApplyPanel)
    host.wait_for(lambda: not again.ui.offerFrame.isHidden(), 20, "the offer")
    assert "is ready, from an earlier session" in again.ui.offerLabel.text
    again.ui.offerLoadButton.click()
    host.wait_for(found, 20, "the result")
    assert found()[0].GetName() == f"Scan 1 - {NAME} (draft)"
    host.process_events(80)
    host.wait_for(lambda: not folder.exists(), 20, "the end of the job's folder")
    next((own_home / "adapters").glob("*")).write_bytes(b"broken meanwhile")
    host.dialogs.expect("OK")
    again.ui.applyButton.click()
    host.wait_for(lambda: host.dialogs.shown, 90, "the failure")
    assert host.dialogs.shown[0].text in ("The scans were not segmented.", "The adapter could not be applied.")


def host_module_path():
    from pathlib import Path

    return Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py"


def test_rows_are_clicked_results_compared_and_deleted_without_a_job(panel, module, host, tmp_path, pictures):
    import slicer

    from PEFTSegmentLib.compare_views import LAYOUT

    masks = balls(1)[1]
    scan, other = in_view(1, "CT_1"), add_scan(2, "CT_2")
    first = add_result(
        tmp_path, scan, masks, {"dark ball": ["touches the lower border of the scan", "is in 3 separate pieces"]}
    )
    second = add_result(tmp_path, scan, {name: np.roll(mask, 2, axis=2) for name, mask in masks.items()}, name="site B")
    third = add_result(tmp_path, other, balls(2)[1], name="site C")
    host.process_events(80)
    assert panel.section.text == "4 Apply - 3 results, 1 to look at"
    ui = panel.ui
    assert [ui.resultsTable.item(n, 1).text() for n in range(2)] == ["dark ball", "bright ball"]
    click(panel, host, 0)
    assert panel.table.current() is first
    assert "dark ball: touches the lower border of the scan" in ui.resultLabel.text
    assert [n.GetDisplayNode().GetVisibility() for n in (first, second, third)] == [1, 0, 0]
    look(host, module, pictures, "apply_rows")
    ui.compareCombo.currentText = f"with: {second.GetName()}"
    host.process_events(80)
    ui.compareButton.click()
    host.process_events(80)
    assert slicer.app.layoutManager().layout == LAYOUT
    assert [ui.compareTable.item(n, 4).text() != "1.00" for n in range(2)] == [True, True]
    click(panel, host, 5)  # another scan's result ends the comparison
    assert slicer.app.layoutManager().layout != LAYOUT
    click(panel, host, 0)
    ui.compareCombo.currentText = f"with: {second.GetName()}"
    ui.compareButton.click()
    slicer.app.layoutManager().setLayout(3)  # the user leaves by the toolbar
    host.process_events(80)
    assert not panel.comparing.active
    assert first.GetDisplayNode().GetViewNodeIDs() == ()
    ui.compareButton.click()
    slicer.mrmlScene.RemoveNode(second)
    host.process_events(80)
    assert not panel.comparing.active
    slicer.mrmlScene.RemoveNode(first)
    slicer.mrmlScene.RemoveNode(third)
    host.process_events(80)
    assert ui.resultsFrame.isHidden()
    assert panel.section.text == "4 Apply"


def test_a_support_scan_that_has_labels_is_asked_about(panel, module, host, tmp_path):
    from PEFTSegmentLib import support

    masks = balls(1)[1]
    scan = in_view(1, "CT_1")
    own = support.new_segmentation(scan, (), "my own labels")
    row = module.main.context.support.add(scan, own)
    add_result(tmp_path, scan, masks)
    host.process_events(80)
    host.dialogs.expect("Keep the other", "Use the copy of this result")
    panel.ui.correctButton.click()
    assert module.main.context.support.row(row.key).labels is own
    panel.ui.correctButton.click()
    assert "my own labels" in host.dialogs.shown[0].text
    assert module.main.context.support.row(row.key).labels.GetName() == "CT_1 labels"
    assert own.GetScene() is not None


def test_fifty_scans_and_five_hundred_structures_are_looked_at_quickly(panel, module, host, tmp_path, pictures):
    import slicer

    for number in range(50):
        slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name=f"scan {number}")
    scan = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[0]
    codes = np.arange(10 * 10 * 5).reshape(5, 10, 10)
    wide = slicer.util.addVolumeFromArray(np.zeros(codes.shape, np.int16), name="wide")
    add_result(tmp_path, wide, {f"structure {n}": codes == n for n in range(500)}, {"structure 7": ["not found"]})
    host.process_events(80)
    assert panel.ui.resultsTable.item(0, 1).text() == "structure 7"
    assert panel.ui.resultsTable.rowCount == 300
    assert panel.ui.moreLabel.text.startswith("200 more rows")
    panel.refresh()
    assert scan is not None
    look(host, module, pictures, "apply_many")


def test_a_scene_saved_during_a_comparison_comes_back_as_usual(panel, module, host, tmp_path):
    import slicer

    from PEFTSegmentLib.compare_views import LAYOUT

    scan = in_view(1, "CT_1")
    for name in ("a", "b"):
        add_result(tmp_path, scan, balls(1)[1], name=name)
    host.process_events(80)
    panel.ui.compareButton.click()
    assert panel.comparing.active
    slicer.util.saveScene(str(tmp_path / "meanwhile.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "meanwhile.mrb"))
    host.process_events(80)
    assert not panel.comparing.active
    assert slicer.app.layoutManager().layout != LAYOUT
    assert [node.GetDisplayNode().GetViewNodeIDs() for node in found()] == [(), ()]
    assert panel.section.text == "4 Apply - 2 results"


def test_a_scene_saved_during_a_comparison_and_loaded_before_the_module_is_opened_is_put_right(
    panel, module, host, tmp_path
):
    import slicer

    from PEFTSegmentLib.compare_views import LAYOUT

    scan = in_view(1, "CT_1")
    for name in ("a", "b"):
        add_result(tmp_path, scan, balls(1)[1], name=name)
    host.process_events(80)
    panel.ui.compareButton.click()
    slicer.util.saveScene(str(tmp_path / "meanwhile.mrb"))
    slicer.mrmlScene.Clear(0)
    host.unload_module("PEFTSegment")
    slicer.util.loadScene(str(tmp_path / "meanwhile.mrb"))
    assert slicer.app.layoutManager().layout == LAYOUT
    host.load_module(MODULE)
    host.show_module("PEFTSegment")
    assert slicer.app.layoutManager().layout != LAYOUT
    assert [node.GetDisplayNode().GetViewNodeIDs() for node in found()] == [(), ()]
