"""What comes from the background never takes the view from the user, and never lies over another patient's scan."""

from __future__ import annotations

import conftest
import numpy as np
import pytest
from result_makers import PROVENANCE, add_result, write_result
from scene_makers import BRIGHT, add_scan, balls, pick

FOUR_UP = 3


@pytest.fixture
def two_scans(host):
    """A scan, and another one that is in view."""
    import slicer

    slicer.app.layoutManager().setLayout(FOUR_UP)
    scan, other = add_scan(1, "CT_1"), add_scan(2, "CT_2")
    slicer.util.setSliceViewerLayers(background=other)
    return scan, other


def ended(folder, purpose: str, scan, path=None, **note):
    """A job that has segmented a scan; without a path its file is lost."""
    from PEFTSegmentLib import scans
    from PEFTSegmentLib.runner import Task

    path = path or folder / "lost.seg.nrrd"
    ending = {
        "event": "finished",
        "inputs": ["scan_1.nrrd"],
        "outputs": [str(path)],
        "volumes_ml": {path.name: {BRIGHT: 1.0}},
        "provenance": PROVENANCE,
    }
    facts = {"purpose": purpose, "title": "made up", "scans": [scans.token(scan)], **note}
    return Task(folder / "job", facts, state="finished", ending=ending)


def visible(node) -> bool:
    return bool(node.GetDisplayNode().GetVisibility())


def paint_somewhere() -> None:
    """As a Segment Editor does while one of its tools is in use."""
    import slicer

    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode").SetActiveEffectName("Paint")


def in_view():
    from PEFTSegmentLib import scans

    return scans.scan_in_view()


def panels(module) -> dict:
    return {panel.STEP: panel for panel in module.main.panels}


# loading


def test_a_result_comes_hidden_while_another_scan_is_in_view(two_scans, tmp_path):
    scan, other = two_scans
    assert not visible(add_result(tmp_path, scan, balls(1)[1]))
    assert visible(add_result(tmp_path, other, balls(2)[1]))


@pytest.mark.skipif(conftest.IN_SLICER, reason="the list is the main window's")
def test_what_is_loaded_out_of_a_job_does_not_come_into_the_list_of_recent_files(two_scans, host, tmp_path):
    import slicer

    before = len(host.io_manager.recent)
    path = write_result(tmp_path, two_scans[0], balls(1)[1])
    add_result(tmp_path, two_scans[0], balls(1)[1])
    load_map(tmp_path, two_scans[0])
    assert host.io_manager.recent[before:] == []
    slicer.util.loadSegmentation(str(path))  # the user's own
    assert host.io_manager.recent[before:] == [str(path)]


def write_map(folder, scan):
    from PEFTSegmentLib import exchange

    image = exchange.image_of(scan)
    values = np.clip(image.array / 255, 0, 1).astype(np.float32)
    exchange.write_image(folder / "map.nrrd", exchange.Image(values, image.affine))
    return folder / "map.nrrd"


def load_map(folder, scan):
    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels import inspect_maps

    facts = inspect_maps.MapFacts("grad_cam", "up.0", "Decoder 1", BRIGHT, "x", "x", scans.token(scan))
    return inspect_maps.load(write_map(folder, scan), facts, scan, {})


# what counts as in view


def test_only_views_of_the_present_layout_say_what_is_in_view(two_scans, host, tmp_path):
    import slicer

    from PEFTSegmentLib import compare_views
    from PEFTSegmentLib.panels import inspect_maps

    scan, other = two_scans
    both = [add_result(tmp_path, scan, balls(1)[1], name=name) for name in "ab"]
    views = compare_views.CompareViews()
    views.show(both, ["a", "b"], scan)
    assert in_view() is scan
    views.leave()
    left = slicer.app.layoutManager().sliceWidget("PEFTSegmentA").mrmlSliceCompositeNode()
    left.SetBackgroundVolumeID(scan.GetID())
    left.SetForegroundVolumeID(load_map(tmp_path, scan).GetID())
    assert in_view() is other
    assert inspect_maps.in_view() is None
    for name in ("Red", "Green", "Yellow"):
        slicer.app.layoutManager().sliceWidget(name).mrmlSliceCompositeNode().SetBackgroundVolumeID(None)
    assert in_view() is None


# results


def test_a_result_of_another_scan_is_listed_and_not_shown(two_scans, module, host, tmp_path):
    from PEFTSegmentLib import results

    scan, other = two_scans
    panel = panels(module)[4]
    own = add_result(tmp_path, other, balls(2)[1], name="own")
    path = write_result(tmp_path, scan, balls(1)[1])
    panel.jobs.hear(ended(tmp_path, "apply", scan, path, name="x", shown="x"), [])
    host.wait_for(lambda: len(results.all_results()) == 2, 10)
    host.process_events(80)
    assert in_view() is other
    assert visible(own)
    assert not visible(results.all_results()[1])
    assert panel.table.current() is results.all_results()[1]


def test_a_result_of_the_scan_in_view_is_shown_unless_somebody_paints(two_scans, module, host, tmp_path):
    from PEFTSegmentLib import results

    panel, other = panels(module)[4], two_scans[1]
    for number in (1, 2):
        path = write_result(tmp_path, other, balls(2)[1])
        panel.jobs.hear(ended(tmp_path, "apply", other, path, name="x", shown="x"), [])
        host.wait_for(lambda n=number: len(results.all_results()) == n, 10)
        paint_somewhere()
    assert [visible(node) for node in results.all_results()] == [True, False]


def test_a_result_of_a_scan_is_shown_where_nothing_is_in_view(host, tmp_path):
    import slicer

    from PEFTSegmentLib import scans

    slicer.app.layoutManager().setLayout(FOUR_UP)
    scan = add_scan(1)
    assert scans.may_show(scan)
    assert scans.may_show(None)
    slicer.util.setSliceViewerLayers(background=scan)
    assert scans.may_show(scan)
    assert not scans.may_show(None)


def test_a_comparison_waits_while_another_scan_is_in_view(two_scans, module, tmp_path):
    import slicer

    from PEFTSegmentLib import results

    scan, other = two_scans
    first, second = (add_result(tmp_path, scan, balls(1)[1], name=name) for name in "ab")
    task = ended(tmp_path, "compare", scan, beside=results.get(first, results.TOKEN))
    comparing = panels(module)[4].comparing
    comparing.arrived(task, second)
    assert slicer.app.layoutManager().layout == FOUR_UP
    assert in_view() is other
    slicer.util.setSliceViewerLayers(background=scan)
    comparing.arrived(task, second)
    assert comparing.active


def test_the_row_that_the_arrow_keys_go_to_is_the_one_that_the_buttons_work_on(two_scans, module, host, tmp_path):
    scan, other = two_scans
    first = add_result(tmp_path, other, {BRIGHT: balls(2)[1][BRIGHT]}, {BRIGHT: ["is small"]}, name="a")
    second = add_result(tmp_path, scan, {BRIGHT: balls(1)[1][BRIGHT]}, name="b")
    host.process_events(80)
    panel = panels(module)[4]
    assert panel.table.current() is first
    panel.ui.resultsTable.setCurrentCell(1, 0)
    host.process_events(80)
    assert panel.table.current() is second
    assert in_view() is scan
    assert panel.ui.resultLabel.toolTip == f"<p>{second.GetName()}</p>"
    panel.ui.reviewedButton.click()
    assert "(draft)" in first.GetName()
    assert "(draft)" not in second.GetName()
    assert panel.table.current_checks() == ()


# outlines of steps 1 and 2


def test_a_model_that_was_tried_on_another_scan_shows_nothing_over_this_one(two_scans, module, tmp_path):
    import slicer

    panel, scan = panels(module)[1], two_scans[0]
    path = write_result(tmp_path, scan, balls(1)[1])
    panel._hear(ended(tmp_path, "try", scan, path, model="gone"), [])
    made = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert [visible(node) for node in made] == [False]
    assert "another scan is in view" in panel._tried


def test_outlines_to_correct_of_another_scan_come_hidden(two_scans, module, tmp_path):
    from peftseg.models import Structure
    from PEFTSegmentLib import structures

    scan, other = two_scans
    context = module.main.context
    structures.write(context.state, [Structure(BRIGHT, 1)])
    for one, shown in ((scan, False), (other, True)):
        path = write_result(tmp_path, one, balls(1)[1])
        panels(module)[2].jobs._presegmented(
            ended(tmp_path, "presegment", one, path, names={BRIGHT: BRIGHT}, by="x"), []
        )
        assert visible(context.support.row_of(one).labels) is shown


@pytest.mark.parametrize(("step", "purpose"), [(1, "try"), (2, "presegment")])
def test_a_result_that_cannot_be_loaded_is_told_and_its_job_is_forgotten(
    two_scans, module, host, tmp_path, step, purpose
):
    context = module.main.context
    task = ended(tmp_path, purpose, two_scans[0], model="gone", names={}, by="x")
    context.runner.tasks.append(task)
    host.dialogs.expect("OK")
    hear = panels(module)[1]._hear if step == 1 else panels(module)[2].jobs._presegmented
    hear(task, [])
    host.wait_for(lambda: host.dialogs.shown, 10, "the dialog")
    assert host.dialogs.shown[0].text in ("The model could not be tried.", "The scan was not pre-segmented.")
    assert context.runner.tasks == []


# maps


def grad_cam(folder, scan):
    task = ended(folder, "inspect", scan, method="grad_cam", structure=BRIGHT, source="x", source_name="x")
    task.note |= {"layer": "up.0", "label": "Decoder 1", "labelled": False}
    row = {"layer": "up.0", "map": str(write_map(folder, scan)), "empty": False}
    task.ending |= {"layers": [row], "empty": False, "provenance": {}}
    return task


def test_a_map_of_another_scan_waits_for_a_click(two_scans, module, host, tmp_path):
    from PEFTSegmentLib.panels import inspect_maps

    scan, other = two_scans
    panel = panels(module)[5]
    panel.jobs.hear(grad_cam(tmp_path, scan), [])
    assert len(inspect_maps.all_maps()) == 1
    assert inspect_maps.in_view() is None
    assert in_view() is other
    assert panel.jobs.message == "The map of CT_1 is ready; click Decoder 1 in the list to see it."
    panel.jobs.hear(grad_cam(tmp_path, other), [])
    assert inspect_maps.in_view() is inspect_maps.all_maps()[1]
    assert "not needed for use" in panel.ui.purposeLabel.text


def test_the_scan_that_the_user_asks_about_is_turned_to_unless_somebody_paints(two_scans, host, tmp_path):
    from PEFTSegmentLib import scans

    scan, other = two_scans
    own = add_result(tmp_path, other, balls(2)[1])
    scans.turn_to(scan)
    assert in_view() is scan
    assert not visible(own)
    paint_somewhere()
    scans.turn_to(other)
    assert in_view() is scan


# selectors


def test_no_scan_is_chosen_by_choosing_none_or_by_the_removal_of_the_chosen_one(two_scans, module, host):
    import slicer

    scan, other = two_scans
    panel = panels(module)[4]
    third = add_scan(3, "CT_3")
    host.process_events(80)
    pick(panel.ui.scanSelector, scan)
    host.process_events(80)
    assert panel.scan() is scan
    pick(panel.ui.scanSelector, None)
    host.process_events(80)
    assert panel.state.scan is None
    assert panel.scan() is panel.ui.scanSelector.currentNode() is other
    pick(panel.ui.scanSelector, scan)
    host.process_events(80)
    slicer.mrmlScene.RemoveNode(scan)  # the selector goes to its neighbour
    assert panel.ui.scanSelector.currentNode() is other
    slicer.util.setSliceViewerLayers(background=third)
    host.process_events(80)
    assert panel.state.scan is None
    assert panel.ui.scanSelector.currentNode() is third


def test_no_labels_are_chosen_by_the_removal_of_the_chosen_ones(two_scans, module, host, tmp_path):
    import slicer

    panel = panels(module)[5]
    module.main.unfold(5)
    panel.ui.methodCombo.setCurrentIndex(1)
    chosen = add_result(tmp_path, two_scans[1], balls(2)[1], name="chosen")
    add_result(tmp_path, two_scans[0], balls(1)[1], name="unrelated")
    host.process_events(80)
    pick(panel.ui.labelsSelector, chosen)
    host.process_events(80)
    assert panel.choices.labels() is chosen
    slicer.mrmlScene.RemoveNode(chosen)
    host.process_events(80)
    assert panel.choices.labels() is None
    assert panel.ui.labelsSelector.currentNode() is None
