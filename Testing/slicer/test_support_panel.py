"""Step 2 as a person uses it: structures, table, editor, marks, pre-segmentation, ranking, folders."""

from __future__ import annotations

import numpy as np
import pytest
from scene_makers import BRIGHT, DARK, SIZE, add_labelled_scan, add_scan

WIDTH = 400
LONG = "Thorax/Abdomen nativ, 1. Verlaufskontrolle M\u00fcller"


@pytest.fixture
def panel(module, host):
    """The support panel, its section open."""
    from PEFTSegmentLib.panels.support import SupportPanel

    module.main.sections[0].collapsed = True
    module.main.sections[1].collapsed = False
    host.process_events(80)
    return module.main.panel(SupportPanel)


@pytest.fixture
def learn(panel, host):
    """A function that names the structures to learn."""
    from peftseg.models import Structure
    from PEFTSegmentLib import structures

    def name(*names: str) -> None:
        colours = structures.FREE_COLOURS
        wanted = [Structure(name, n + 1, colours[n % len(colours)]) for n, name in enumerate(names)]
        structures.write(panel.state, wanted)
        host.process_events(80)

    return name


@pytest.fixture
def shoot(module, host, pictures):
    """A function that saves a picture of the module as it is now."""

    def picture(name: str) -> None:
        host.process_events(80)
        least = module.main.form.minimumSizeHint.width()
        assert least <= WIDTH - 15, f"at least {least} pixels wide: the module would scroll sideways"
        host.picture(module.main.form, pictures / f"support_{name}.png", width=WIDTH)

    return picture


def rows(panel) -> list[list[str]]:
    """The texts of the table."""
    table = panel.ui.supportTable
    return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]


def choose(panel, host, name: str) -> None:
    """Click the row of a scan."""
    table = panel.ui.supportTable
    table.selectRow(next(r for r in range(table.rowCount) if table.item(r, 0).text() == name))
    host.process_events(80)


def click(host, button) -> None:
    """Click a button that must be enabled, once the module has seen what came before."""
    host.process_events(80)
    assert button.enabled, button.toolTip
    button.click()
    host.process_events(80)


def menu_action(menu, *path: str):
    """An action of a menu that its button would open, by the texts on the way to it."""
    menu.aboutToShow.emit()
    for number, text in enumerate(path):
        action = next(a for a in menu.actions() if a.text == text)
        if number < len(path) - 1:
            menu = action.menu()
    return action


def more(panel, host, *path: str) -> None:
    """Choose from the menu of the selected row."""
    action = menu_action(panel.ui.moreButton.menu(), *path)
    assert action.enabled, action.toolTip
    action.trigger()
    host.process_events(80)


def paint(labels, name: str, scan, box=np.s_[4:8, 4:8, 4:8]) -> None:
    """Paint into a segment that is there."""
    import slicer

    segment_id = labels.GetSegmentation().GetSegmentIdBySegmentName(name)
    mask = np.zeros((SIZE,) * 3, np.uint8)
    mask[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, labels, segment_id, scan)


# structures


def test_structures_are_added_by_typing_the_known_ones_first_and_free_names_too(
    panel, host, tiny_model, shoot, pictures
):
    import qt
    import slicer

    panel.context.models_changed()
    panel.state.model = tiny_model
    _scan, labels = add_labelled_scan(1, (DARK,))
    slicer.mrmlScene.RemoveNode(labels.GetDisplayNode())
    host.process_events(80)
    shoot("empty")

    def type_and_add(text: str, proposed: list[str], picture: str = ""):
        def answer(dialog) -> None:
            edit, box = dialog.findChildren(qt.QLineEdit)[0], dialog.findChildren(qt.QListWidget)[0]
            edit.text = text
            assert [box.item(n).text() for n in range(min(len(proposed), box.count))] == proposed
            if picture:
                host.picture(dialog, pictures / picture, width=WIDTH)
            assert dialog.findChildren(qt.QPushButton)[0].enabled
            dialog.accept()

        return answer

    host.dialogs.expect(
        type_and_add(
            "ball",
            [f"{BRIGHT}  (known to the model)", f"{DARK}  (in your segmentations)", "ball  (a name of your own)"],
            "support_add_structure.png",
        )
    )
    click(host, panel.ui.addStructureButton)
    host.dialogs.expect(type_and_add("left kidn", ["left kidney  (new)"]))
    click(host, panel.ui.addStructureButton)
    host.dialogs.expect(type_and_add("Tumor, \u00f6dem", ["Tumor, \u00f6dem  (a name of your own)"]))
    click(host, panel.ui.addStructureButton)
    shown = [panel.ui.structureList.item(n).text() for n in range(panel.ui.structureList.count)]
    assert shown == [f"{BRIGHT}  (known to the model)", "left kidney  (new)", "Tumor, \u00f6dem  (new)"]
    from PEFTSegmentLib import structures

    wanted = structures.read(panel.state)
    assert [s.value for s in wanted] == [1, 2, 3]
    assert "Kidney" in wanted[1].code
    assert wanted[2].code == ""


def test_name_colour_and_terminology_can_be_changed_also_in_own_segmentations_only(panel, host, learn, pictures):
    import ctk
    import qt
    import slicer

    from PEFTSegmentLib import structures, terminology

    learn(BRIGHT, DARK)
    users_scan, users = add_labelled_scan(1)
    scan = add_scan(2)
    panel.context.support.add(users_scan, users)
    panel.start(panel.context.support.add(scan).key)
    made = panel.context.support.rows()[1].labels
    panel.context.support.set_mark(panel.context.support.rows()[0].key, DARK, _mark(slices=(1, 2)))
    code = "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure~"
    code += "SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^"

    def choose_code(dialog) -> None:
        selector = dialog.findChildren(slicer.qSlicerTerminologyNavigatorWidget)[0]
        assert not selector.overrideSectionVisible
        selector._raw.select(code)
        dialog.accept()

    def change(dialog) -> None:
        host.dialogs.expect(qt.QColor(10, 20, 30), choose_code)
        dialog.findChildren(ctk.ctkColorPickerButton)[0].click()
        next(b for b in dialog.findChildren(qt.QPushButton) if b.objectName == "terminologyButton").click()
        dialog.findChildren(qt.QLineEdit)[0].text = "Leber"
        host.picture(dialog, pictures / "support_change_structure.png", width=WIDTH)
        dialog.accept()

    panel.ui.structureList.setCurrentRow(1)
    host.dialogs.expect(change)
    menu_action(panel.ui.changeStructureButton.menu(), "Name, colour, terminology...").trigger()
    host.process_events(80)
    liver = structures.read(panel.state)[1]
    assert (liver.name, liver.colour, liver.code) == ("Leber", (10, 20, 30), code)
    assert terminology.meaning(liver.code) == "Liver"
    core = made.GetSegmentation()
    segment = core.GetSegment(core.GetSegmentIdBySegmentName("Leber"))
    assert segment.GetTerminology() == code
    assert segment.GetColor() == pytest.approx([10 / 255, 20 / 255, 30 / 255])
    assert users.GetSegmentation().GetSegmentIdBySegmentName(DARK)  # the user's own is only read
    assert panel.context.support.rows()[0].marks["Leber"].slices == (1, 2)
    panel.ui.structureList.setCurrentRow(0)
    menu_action(panel.ui.changeStructureButton.menu(), "Remove from the list").trigger()
    host.process_events(80)
    assert [s.name for s in structures.read(panel.state)] == ["Leber"]
    assert users.GetSegmentation().GetNumberOfSegments() == 2


def _mark(**facts):
    from PEFTSegmentLib.support import Mark

    return Mark(**facts)


# the table


def test_loaded_scans_are_added_with_their_segmentations_and_the_others_are_told_with_the_reason(
    panel, host, learn, shoot
):
    import slicer

    learn(BRIGHT, DARK)
    add_labelled_scan(1)
    scan, labels = add_labelled_scan(2, (BRIGHT,))
    labels.GetSegmentation().AddEmptySegment("", DARK)
    add_scan(3, LONG)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "old labels")
    host.process_events(80)
    click(host, panel.ui.addScansButton)
    assert rows(panel) == [
        ["Scan 1", "Scan 1 labels", "ok", "ok", "ready"],
        ["Scan 2", "Scan 2 labels", "ok", "empty", f"ready, but {DARK} is empty"],
        [LONG, "-", "", "", "not labelled"],
    ]
    assert panel.section.text == "2 Support scans - 2 of 3 ready"
    assert panel.ui.messageLabel.text == "Scans added: 3, with their segmentation: 2."
    assert panel.ui.refusedButton.text == "Loaded volumes that cannot be used: 1"
    panel.ui.refusedButton.click()
    choose(panel, host, "Scan 2")
    shoot("table")
    assert panel.ui.refusedLabel.text == "old labels is a label map, not a scan."
    assert not panel.ui.addScansButton.enabled
    assert "in the list" in panel.ui.addScansButton.toolTip
    scan.SetName("renamed")
    slicer.mrmlScene.RemoveNode(labels)
    host.process_events(80)
    assert rows(panel)[1] == ["renamed", "-", "", "", "not labelled"]
    paint(panel.context.support.rows()[0].labels, DARK, panel.context.support.rows()[0].scan, np.s_[0:0, 0:0, 0:0])
    host.process_events(80)
    assert rows(panel)[0][3:] == ["empty", f"ready, but {DARK} is empty"]
    slicer.mrmlScene.RemoveNode(scan)
    host.process_events(80)
    assert [row[0] for row in rows(panel)] == ["Scan 1", LONG]
    assert "removed from the scene" in panel.ui.messageLabel.text
    slicer.mrmlScene.Clear(False)
    host.process_events(80)
    assert rows(panel) == []
    assert panel.section.text == "2 Support scans"


def test_absent_structures_and_labelled_slices_are_marked_by_menu_and_by_right_click(panel, host, learn, shoot):
    import qt
    import slicer

    from PEFTSegmentLib import scans

    learn(BRIGHT, DARK)
    scan, _labels = add_labelled_scan(1, (BRIGHT,))
    click(host, panel.ui.addScansButton)
    more(panel, host, DARK, f"{DARK} is not in this scan (absent)")
    assert rows(panel)[0][2:] == ["ok", "absent", "ready"]
    host.dialogs.expect("9-12, 15")
    more(panel, host, BRIGHT, "Only some slices are labelled...")
    assert rows(panel)[0][2:] == ["slices\n9-12, 15", "absent", "ready (partly labelled)"]
    assert panel.context.support.rows()[0].marks[BRIGHT].slices == (8, 9, 10, 11, 14)
    host.dialogs.expect("9-99", qt.QMessageBox.Ok)
    more(panel, host, BRIGHT, "Only some slices are labelled...")
    assert "1 to 24" in host.dialogs.shown[-1].informative
    more(panel, host, BRIGHT, "All slices are labelled")
    scans.show_scan(scan)
    node = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
    node.JumpSliceByOffsetting(0, 0, 11)
    table = panel.ui.supportTable
    position = table.visualItemRect(table.item(0, 2)).center()
    host.dialogs.expect("Labelled up to the slice in view (12)")
    table.customContextMenuRequested.emit(position)
    host.process_events(80)
    assert panel.context.support.rows()[0].marks[BRIGHT].slices[-1] == 11
    offered = host.dialogs.shown[-1].text
    assert DARK not in offered
    assert f"Forget what was said of {BRIGHT}" in offered
    shoot("marks")
    more(panel, host, BRIGHT, f"Forget what was said of {BRIGHT}")
    assert BRIGHT not in panel.context.support.rows()[0].marks
    absent = menu_action(panel.ui.moreButton.menu(), BRIGHT, f"{BRIGHT} is not in this scan (absent)")
    assert not absent.enabled  # it is painted
    assert "painted" in absent.toolTip
    assert menu_action(panel.ui.moreButton.menu(), BRIGHT).menu().toolTipsVisible  # Qt shows no tool tips in menus else
    more(panel, host, "Remove from the list")
    assert rows(panel) == []
    assert scan.GetScene() is not None


def test_another_segmentation_and_a_segment_of_another_name_can_be_chosen(panel, host, learn):
    import slicer

    learn(BRIGHT)
    scan, labels = add_labelled_scan(1, ())
    labels.GetSegmentation().AddEmptySegment("", "Segment_1")
    paint(labels, "Segment_1", scan)
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "other")
    click(host, panel.ui.addScansButton)
    assert "no segment is called bright ball; there are: Segment_1" in rows(panel)[0][3]
    more(panel, host, BRIGHT, f"Segment that holds {BRIGHT}", "Segment_1")
    assert rows(panel)[0][2:] == ["ok", "ready"]
    more(panel, host, "Segmentation", "other")
    assert panel.context.support.rows()[0].labels is other
    assert rows(panel)[0][1] == "other"
    more(panel, host, "Segmentation", "None")
    assert panel.context.support.rows()[0].labels is None
    assert other.GetScene() is not None


def test_many_structures_share_one_column_and_the_details_name_each(panel, host, learn, shoot):
    names = (BRIGHT, DARK, *(f"structure {n} with a long name" for n in range(5)))
    learn(*names)
    add_labelled_scan(1, (BRIGHT, DARK), LONG)
    click(host, panel.ui.addScansButton)
    assert rows(panel)[0][2:] == ["2 of 7", "ready (partly labelled)"]
    assert f"Labelled: {BRIGHT}, {DARK}" in panel.ui.detailLabel.text
    assert "Not labelled, which never counts as absent: structure 0" in panel.ui.detailLabel.text
    shoot("many_structures")


# labelling


def test_labelling_opens_the_embedded_editor_scan_after_scan(panel, host, learn, module, shoot):
    import slicer

    learn(BRIGHT, DARK)
    add_scan(1)
    add_scan(2, LONG)
    host.process_events(80)
    click(host, panel.ui.addScansButton)
    assert panel.editor.widget is None
    assert not panel.ui.editorFrame.visible
    click(host, panel.ui.startButton)
    first, second = panel.context.support.rows()
    core = first.labels.GetSegmentation()
    names = [core.GetSegment(i).GetName() for i in core.GetSegmentIDs()]
    assert names == [BRIGHT, DARK]
    assert first.labels.GetName() == "Scan 1 labels"
    editor = panel.editor.widget
    assert editor.segmentationNode() is first.labels
    assert editor.sourceVolumeNode() is first.scan
    assert core.GetSegment(editor.currentSegmentID()).GetName() == BRIGHT
    assert editor.undoEnabled
    assert editor.maximumNumberOfUndoStates == 10
    assert not (editor.segmentationNodeSelectorVisible)
    assert not (editor.sourceVolumeNodeSelectorVisible)
    assert "Fill between slices" in editor.effectNameOrder()[:4]
    node = editor.mrmlSegmentEditorNode()
    assert node.GetSingletonTag() == "PEFTSegment"
    assert node.GetHideFromEditors()
    assert node.GetOverwriteMode() == node.OverwriteNone
    assert slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode") is None
    red = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceCompositeNodeRed")
    assert red.GetBackgroundVolumeID() == first.scan.GetID()
    shoot("editor")
    paint(first.labels, BRIGHT, first.scan)
    host.process_events(80)
    assert rows(panel)[0][2:] == ["ok", "empty", f"ready, but {DARK} is empty"]
    click(host, panel.ui.doneButton)
    second = panel.context.support.row(second.key)
    assert editor.segmentationNode() is second.labels
    assert panel.state.currentRow == second.key
    assert not first.labels.GetDisplayVisibility()
    assert second.labels.GetDisplayVisibility()
    paint(second.labels, DARK, second.scan)
    click(host, panel.ui.doneButton)
    assert not panel.ui.editorFrame.visible
    assert editor.segmentationNode() is None
    assert "Go on with step 3" in panel.ui.messageLabel.text
    assert not module.main.sections[2].collapsed
    choose(panel, host, "Scan 1")
    assert panel.ui.startButton.text == "Edit"


def test_tools_and_shortcuts_are_active_only_while_the_module_is_shown_and_the_editor_open(panel, host, learn, module):
    import slicer

    learn(BRIGHT)
    add_scan(1)
    host.process_events(80)
    click(host, panel.ui.addScansButton)
    click(host, panel.ui.startButton)
    raw = panel.editor.widget._raw
    assert raw.shortcuts
    assert raw.view_observations
    panel.editor.widget.setActiveEffectByName("Paint")
    slicer.util.selectModule("")
    assert not raw.shortcuts
    assert not raw.view_observations
    assert panel.editor.widget.mrmlSegmentEditorNode().GetActiveEffectName() == ""
    host.show_module("PEFTSegment")
    assert raw.shortcuts
    assert raw.view_observations
    click(host, panel.ui.closeEditorButton)
    assert not raw.shortcuts
    assert not panel.ui.editorFrame.visible
    slicer.util.selectModule("")
    host.show_module("PEFTSegment")
    assert not raw.shortcuts
    click(host, panel.ui.startButton)
    slicer.mrmlScene.Clear(False)
    host.process_events(80)
    assert not raw.shortcuts
    assert panel.editor.key == ""
    assert panel.editor.widget.segmentationNode() is None
    learn(BRIGHT)
    add_scan(2)
    host.process_events(80)
    click(host, panel.ui.addScansButton)
    click(host, panel.ui.startButton)
    assert panel.editor.widget.sourceVolumeNode().GetName() == "Scan 2"
    slicer.mrmlScene.RemoveNode(panel.editor.widget.segmentationNode())
    host.process_events(80)
    assert panel.editor.key == ""
    assert not panel.ui.editorFrame.visible


def test_segments_are_added_to_the_user_s_segmentation_only_after_asking(panel, host, learn):
    learn(BRIGHT, DARK)
    _scan, labels = add_labelled_scan(1, (BRIGHT,))
    click(host, panel.ui.addScansButton)
    host.dialogs.expect("Leave it as it is")
    click(host, panel.ui.startButton)
    assert labels.GetSegmentation().GetNumberOfSegments() == 1
    assert DARK in host.dialogs.shown[-1].text
    click(host, panel.ui.closeEditorButton)
    host.dialogs.expect("Add missing segments")
    click(host, panel.ui.startButton)
    assert labels.GetSegmentation().GetSegmentIdBySegmentName(DARK)


# the model's help


def with_model(panel, host, tiny_model: str) -> None:
    """Choose the tiny model, which knows the bright ball."""
    panel.context.models_changed()
    panel.state.model = tiny_model
    host.process_events(80)


def finish(panel, host) -> None:
    """Wait for all jobs."""
    host.wait_for(lambda: not panel.context.runner.tasks, 90, "the end of the jobs")
    host.process_events(80)


def test_a_scan_is_pre_segmented_into_a_new_segmentation_to_be_corrected(panel, host, learn, tiny_model, shoot):
    import slicer

    learn(BRIGHT, DARK)
    add_scan(1, LONG)
    click(host, panel.ui.addScansButton)
    assert not panel.ui.presegmentButton.enabled
    assert "No model is chosen" in panel.ui.presegmentButton.toolTip
    with_model(panel, host, tiny_model)
    assert BRIGHT in panel.ui.presegmentButton.toolTip
    assert DARK not in panel.ui.presegmentButton.toolTip
    panel.ui.supportTable.cellDoubleClicked.emit(0, 0)  # the editor opens with an empty segmentation
    host.process_events(80)
    empty = panel.context.support.rows()[0].labels
    click(host, panel.ui.presegmentButton)
    assert "being pre-segmented" in panel.ui.presegmentButton.toolTip
    shoot("pre_segmenting")
    finish(panel, host)
    row = panel.context.support.rows()[0]
    assert empty.GetScene() is None  # nothing was painted in it
    assert panel.editor.widget.segmentationNode() is row.labels
    assert [n.GetName() for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")] == [f"{LONG} labels"]
    core = row.labels.GetSegmentation()
    assert {core.GetSegment(i).GetName() for i in core.GetSegmentIDs()} == {BRIGHT, DARK}
    paint(row.labels, BRIGHT, row.scan)
    paint(row.labels, DARK, row.scan)
    host.process_events(80)
    assert rows(panel)[0][4] == "ready, but pre-segmented, not yet corrected"
    shoot("pre_segmented")
    click(host, panel.ui.doneButton)
    assert rows(panel)[0][4] == "ready"


@pytest.mark.slow
def test_painted_labels_are_never_replaced_without_asking_and_a_lost_scan_is_told(panel, host, learn, tiny_model):
    import slicer

    with_model(panel, host, tiny_model)
    learn(BRIGHT)
    _scan, labels = add_labelled_scan(1, (BRIGHT,))
    gone = add_scan(2)
    click(host, panel.ui.addScansButton)
    painted = labels.GetSegmentation().GetMTime()
    click(host, panel.ui.presegmentButton)
    choose(panel, host, "Scan 2")
    click(host, panel.ui.presegmentButton)  # one of the two waits for the other
    slicer.mrmlScene.RemoveNode(gone)
    host.dialogs.expect("Keep my labels")
    said = set()
    host.wait_for(lambda: said.add(panel.ui.messageLabel.text) or not panel.context.runner.tasks, 120)
    finish(panel, host)
    assert "'Scan 1 labels'" in host.dialogs.shown[-1].text
    assert panel.context.support.rows()[0].labels is labels
    assert labels.GetSegmentation().GetMTime() == painted
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
    assert names == ["Scan 1 labels", "Scan 1 labels_1"]  # the new outlines, beside
    assert any("no longer loaded" in text for text in said | {panel.ui.messageLabel.text})


def test_a_pre_segmentation_goes_on_while_the_module_is_loaded_again(panel, host, learn, tiny_model):
    from pathlib import Path

    with_model(panel, host, tiny_model)
    learn(BRIGHT)
    add_scan(1)
    click(host, panel.ui.addScansButton)
    click(host, panel.ui.presegmentButton)
    host.wait_for(lambda: panel.context.runner.of("presegment")[0].state == "running", 60)
    host.unload_module("PEFTSegment")
    host.load_module(Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py")
    again = next(p for p in host.show_module("PEFTSegment").main.panels if type(p).__name__ == "SupportPanel")
    finish(again, host)
    assert again.context.support.rows()[0].labels.GetAttribute("PEFTSegment.ToCorrect") == "Tiny test model"


def test_the_scan_to_label_next_is_found_selected_and_explained(panel, host, learn, tiny_model, shoot):
    with_model(panel, host, tiny_model)
    learn(BRIGHT)
    add_labelled_scan(1, (BRIGHT,))
    click(host, panel.ui.addScansButton)
    assert not panel.ui.nextScanButton.enabled
    assert "without labels" in panel.ui.nextScanButton.toolTip
    for number in (2, 3, 4):
        add_scan(number)
    host.process_events(80)
    click(host, panel.ui.nextScanButton)
    assert not panel.ui.nextScanButton.enabled
    finish(panel, host)
    assert len(rows(panel)) == 2
    assert rows(panel)[1][3] == "not labelled - label next"
    row = panel.context.support.row(panel.state.currentRow)
    assert row.scan.GetName() in panel.ui.messageLabel.text.split(" next.")[0]
    assert "label it as number 1. " in panel.ui.detailLabel.text
    shoot("ranked")


def test_a_failed_ranking_shows_what_to_do_and_a_cancelled_one_says_nothing(panel, host, learn, tiny_model):
    import qt

    with_model(panel, host, tiny_model)
    learn(BRIGHT)
    add_scan(1)
    click(host, panel.ui.nextScanButton)
    panel.context.runner.cancel(panel.context.runner.of("rank")[0])
    host.wait_for(lambda: not panel.context.runner.tasks, 60)
    host.dialogs.expect(qt.QMessageBox.Ok)
    panel.context.model().weights_path.write_bytes(b"broken")
    click(host, panel.ui.nextScanButton)
    host.wait_for(lambda: host.dialogs.shown, 60)
    assert host.dialogs.shown[-1].text == "The scans were not ranked."
    assert not panel.context.runner.tasks


def test_closing_the_scene_while_scans_are_ranked_loses_nothing_and_says_so(panel, host, learn, tiny_model):
    import slicer

    with_model(panel, host, tiny_model)
    add_scan(1)
    click(host, panel.ui.nextScanButton)
    slicer.mrmlScene.Clear(False)
    finish(panel, host)
    assert "none of them is loaded any more" in panel.ui.messageLabel.text


def test_labelling_works_in_slicer_5_10(panel, host, learn):
    with host.slicer_5_10():
        learn(BRIGHT)
        add_scan(1)
        click(host, panel.ui.addScansButton)
        click(host, panel.ui.startButton)
        paint(panel.context.support.rows()[0].labels, BRIGHT, panel.context.support.rows()[0].scan)
        click(host, panel.ui.doneButton)
        assert panel.section.text == "2 Support scans - 1 of 1 ready"


# folders


def test_a_folder_is_loaded_with_progress_after_asking_for_the_names_of_the_values(
    panel, host, learn, tmp_path, shoot, pictures
):
    import qt
    from test_support import write_folder

    learn(BRIGHT)
    folder = write_folder(tmp_path / "Mappe \u00e4", (1, 2, 3))
    (folder / "labels" / "case 2.nii.gz").write_bytes(b"broken")

    def name_values(dialog) -> None:
        boxes = {box.objectName: box for box in dialog.findChildren(qt.QComboBox)}
        assert boxes["value1"].currentText == BRIGHT
        assert boxes["value2"].currentText == ""
        boxes["value2"].setEditText("Dunkle Kugel")
        host.picture(dialog, pictures / "support_values.png", width=WIDTH)
        dialog.accept()

    host.dialogs.expect(str(folder), name_values, qt.QMessageBox.Ok)
    panel.ui.addFolderButton.click()
    assert panel.loader.busy
    assert not panel.ui.loadingFrame.isHidden()
    host.wait_for(lambda: not panel.loader.busy and len(host.dialogs.shown) == 3, 30)
    host.process_events(80)
    assert [row[0] for row in rows(panel)] == ["case 1", "case 3"]
    assert rows(panel)[0][2:] == ["ok", "ok", "ready"]
    assert panel.ui.startButton.enabled
    assert "case 2" in host.dialogs.shown[-1].informative
    assert panel.ui.messageLabel.text == "Scans loaded from Mappe \u00e4: 2."
    shoot("folder")
    host.dialogs.expect(str(tmp_path), qt.QMessageBox.Ok)
    click(host, panel.ui.addFolderButton)
    assert "images" in host.dialogs.shown[-1].informative


def write_named(folder, number: int, *names: str) -> None:
    """A scan and a segmentation with named segments, as a folder has them."""
    from result_makers import write_result

    from PEFTSegmentLib import exchange

    for inner in ("images", "labels"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    scan = add_scan(number)
    mask = np.zeros((SIZE,) * 3, bool)
    mask[4:8, 4:8, 4:8] = True
    exchange.write_image(folder / "images" / f"case {number}.nrrd", exchange.image_of(scan))
    path = write_result(folder / "made", scan, {name: np.roll(mask, 5 * n, 0) for n, name in enumerate(names)})
    path.rename(folder / "labels" / f"case {number}.seg.nrrd")


def load(panel, host, folder) -> None:
    panel.loader.start(str(folder))
    host.wait_for(lambda: not panel.loader.busy, 60, "the end of loading")
    host.process_events(80)


def test_a_name_that_two_files_spell_differently_is_one_structure(panel, host, tmp_path):
    import slicer

    from PEFTSegmentLib import structures

    write_named(tmp_path, 1, "Liver")
    write_named(tmp_path, 2, "liver")
    slicer.mrmlScene.Clear(0)
    load(panel, host, tmp_path)
    assert [s.name for s in structures.read(panel.state)] == ["Liver"]
    assert [row[2:] for row in rows(panel)] == [["ok", "ready"], ["ok", "ready"]]


def test_a_name_that_no_structure_can_have_is_told_and_ends_the_loading(panel, host, tmp_path):
    import qt
    import slicer

    write_named(tmp_path, 1, "Liver", "liver")
    slicer.mrmlScene.Clear(0)
    host.dialogs.expect(qt.QMessageBox.Ok)
    load(panel, host, tmp_path)
    host.wait_for(lambda: host.dialogs.shown, 10, "the dialog")
    assert host.dialogs.shown[0].text == "The folder was not loaded."
    assert "'liver' already" in host.dialogs.shown[0].informative
    assert panel.ui.loadingFrame.isHidden()
    assert panel.ui.addFolderButton.enabled


# the open editor


def test_the_open_editor_goes_on_with_labels_that_come_from_a_result(panel, host, learn, module, tmp_path):
    from result_makers import add_result
    from scene_makers import balls

    from PEFTSegmentLib.panels.apply_correct import correct

    learn(BRIGHT)
    scan = add_scan(1)
    click(host, panel.ui.addScansButton)
    click(host, panel.ui.startButton)
    before = panel.editor.segmentation
    host.dialogs.expect("Use the copy of this result")
    made = correct(panel.context, add_result(tmp_path, scan, balls(1)[1]))
    host.process_events(120)
    assert made is not before
    assert panel.context.support.rows()[0].labels is made
    assert panel.editor.segmentation is made
    assert panel.editor.key


def test_what_the_user_lets_be_painted_over_stays_chosen_until_the_scene_closes(panel, host, learn, module):
    import slicer

    from PEFTSegmentLib.panels.support_editor import editor_node

    learn(BRIGHT)
    add_scan(1)
    click(host, panel.ui.addScansButton)
    click(host, panel.ui.startButton)
    node = editor_node()
    assert node.GetOverwriteMode() == node.OverwriteNone
    node.SetOverwriteMode(node.OverwriteAllSegments)
    slicer.util.selectModule("")
    slicer.util.selectModule("PEFTSegment")
    click(host, panel.ui.closeEditorButton)
    click(host, panel.ui.startButton)
    assert node.GetOverwriteMode() == node.OverwriteAllSegments
    slicer.mrmlScene.Clear(0)
    assert editor_node().GetOverwriteMode() == node.OverwriteNone
    assert editor_node().GetHideFromEditors()


def test_after_a_reload_the_tools_work_at_once(panel, host, learn, module, pictures):
    """A reload makes the widgets anew and does not say that the module is entered."""
    from PEFTSegmentLib import structures
    from PEFTSegmentLib.panels.support_editor import LabelEditor

    learn(BRIGHT)
    panel.context.support.add(*add_labelled_scan(1))
    row = panel.context.support.rows()[0]
    frame = panel.ui.editorFrame
    window = frame.window()
    window.show()
    anew = LabelEditor(frame, panel.ui.editorLabel, frame.layout())
    anew.open(row, structures.read(panel.state))
    assert anew.widget._raw.shortcuts
    anew.close()
    window.hide()
    anew.open(row, structures.read(panel.state))
    assert not anew.widget._raw.shortcuts
    anew.close()


# size


@pytest.mark.slow
def test_fifty_scans_and_five_hundred_segments_stay_usable(panel, host, learn, shoot):
    import slicer

    names = [f"structure {n}" for n in range(5)]
    learn(*names)
    for number in range(50):
        scan, labels = add_labelled_scan(1, (), f"Scan {number}")
        for name in names:
            labels.GetSegmentation().AddEmptySegment("", name)
            paint(labels, name, scan)
        if number == 0:
            for n in range(495):
                labels.GetSegmentation().AddEmptySegment("", f"other {n}")
        panel.context.support.add(scan, labels)
    host.wait_for(lambda: all(row[-1] == "ready" for row in rows(panel)) and len(rows(panel)) == 50, 10)
    panel.refresh()
    assert len(rows(panel)) == 50
    shoot("fifty")
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
