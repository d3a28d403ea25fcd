"""Step 4's export as DICOM: the file refers to the scan's series and says who has drawn it; else the button says why not."""

from __future__ import annotations

import dicom_makers
import numpy as np
import pydicom
import pytest
from result_makers import PROVENANCE, add_result
from scene_makers import BRIGHT, DARK, add_scan, balls

pytest.importorskip("highdicom")


@pytest.fixture
def panel(tiny_model, module, host):
    from PEFTSegmentLib.panels.apply import ApplyPanel

    module.main.unfold(4)
    module.main.sections[0].collapsed = True
    return module.main.panel(ApplyPanel)


def scan_from_dicom(monkeypatch, folder, number: int):
    """A scan that Slicer's reader has loaded out of its database, in view; the database and the series."""
    import slicer
    from slicerhost import dicom_database

    from PEFTSegmentLib import dicom_scans

    uid = dicom_makers.write_series(folder, number)
    database = dicom_database.install(monkeypatch, folder)
    scan = dicom_scans.load_series(uid)
    slicer.util.setSliceViewerLayers(background=scan)
    return scan, database, uid


def export(panel, host, path, button: str = "exportButton") -> None:
    host.dialogs.expect(str(path))
    getattr(panel.ui, button).click()
    host.process_events(80)
    host.wait_for(lambda: not panel.exporting.running(), 60, "the export")
    host.process_events(120)


def frames_of(data, number: int) -> np.ndarray:
    """A segment's voxels (K, J, I) by the position of its frames, from z = 10 mm on."""
    found = np.zeros((24, data.Rows, data.Columns), bool)
    for frame, facts in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        if facts.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            found[round(facts.PlanePositionSequence[0].ImagePositionPatient[2] - 10)] = frame
    return found


def drawn(data, number: int) -> np.ndarray:
    """A structure's voxels (K, J, I): the centres inside its outlines, by the number of edges to their right."""
    found = np.zeros((24, 24, 24), bool)
    j, i = np.indices((24, 24))
    for contour in data.ROIContourSequence[number].get("ContourSequence", []):
        corners = np.array(contour.ContourData, float).reshape(-1, 3) - (5.0, -7.0, 10.0)  # the first voxel's place
        plane = found[round(corners[0, 2])]
        for (i1, j1, _), (i2, j2, _) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if j1 != j2:
                meets = (min(j1, j2) <= j) & (j < max(j1, j2))
                plane ^= meets & (i < i1 + (j - j1) * (i2 - i1) / (j2 - j1))
    return found


def test_an_edited_result_is_written_beside_its_series_voxel_for_voxel(panel, host, pictures, tmp_path, monkeypatch):
    import slicer

    scan, database, uid = scan_from_dicom(monkeypatch, tmp_path / "db", 1)
    masks = {name: balls(1)[1][name] for name in (BRIGHT, DARK)}
    masks["nothing"] = np.zeros_like(masks[BRIGHT])
    node = add_result(tmp_path / "result", scan, masks)
    host.process_events(120)
    assert panel.ui.exportButton.enabled
    path = tmp_path / "Größe.dcm"
    export(panel, host, path)
    assert panel.ui.exportLabel.text == f"Written: {path}"
    data = pydicom.dcmread(path)
    assert data.Modality == "SEG"
    assert [s.SegmentLabel for s in data.SegmentSequence] == [BRIGHT, DARK, "nothing"]
    assert {s.SegmentAlgorithmType for s in data.SegmentSequence} == {"AUTOMATIC"}
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert np.array_equal(frames_of(data, 1), masks[BRIGHT])
    assert np.array_equal(frames_of(data, 2), masks[DARK])
    assert data.DeviceSerialNumber == PROVENANCE["adapter_hash"]
    changed = masks[BRIGHT].copy()
    changed[2:4, 2:4, 2:4] = True
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3) * 9))
    segment = node.GetSegmentation().GetSegmentIdBySegmentName(BRIGHT)
    slicer.util.updateSegmentBinaryLabelmapFromArray(changed.astype(np.uint8), node, segment, scan)
    for one in (scan, node):  # moved in the scene: DICOM says where the scanner saw it
        one.SetAndObserveTransformNodeID(moved.GetID())
    export(panel, host, path)  # over the first one: the file dialog has asked
    data = pydicom.dcmread(path)
    assert {s.SegmentAlgorithmType for s in data.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert np.array_equal(frames_of(data, 1), changed)
    host.picture(panel.section, pictures / "export_done.png", width=385)
    assert len(database.filesForSeries(uid)) == 24


def test_outlines_are_written_as_an_unapproved_structure_set_that_gives_the_voxels_back(
    panel, host, pictures, tmp_path, monkeypatch
):
    scan, _database, uid = scan_from_dicom(monkeypatch, tmp_path / "db", 1)
    masks = {name: balls(1)[1][name] for name in (BRIGHT, DARK)}
    masks["nothing"] = np.zeros_like(masks[BRIGHT])
    add_result(tmp_path / "result", scan, masks)
    host.process_events(120)
    assert panel.ui.exportContoursButton.enabled
    assert "not approved" in panel.ui.exportContoursButton.toolTip
    path = tmp_path / "Größe.dcm"
    export(panel, host, path, "exportContoursButton")
    assert panel.ui.exportLabel.text == f"Written: {path}"
    data = pydicom.dcmread(path)
    assert (data.Modality, data.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    assert [roi.ROIName for roi in data.StructureSetROISequence] == [BRIGHT, DARK, "nothing"]
    assert {roi.ROIGenerationAlgorithm for roi in data.StructureSetROISequence} == {"AUTOMATIC"}
    study = data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert PROVENANCE["adapter"] in data.StructureSetName
    for number, mask in enumerate(masks.values()):
        assert np.array_equal(drawn(data, number), mask)
    host.picture(panel.section, pictures / "export_contours.png", width=385)


def test_the_database_is_asked_once_about_each_scan_until_the_module_is_left(panel, host, tmp_path, monkeypatch):
    import slicer

    first, database, _uid = scan_from_dicom(monkeypatch, tmp_path / "db", 1)
    second = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, first, "again")
    nodes = [
        add_result(tmp_path / str(n), scan, {BRIGHT: balls(1)[1][BRIGHT]}) for n, scan in enumerate((first, second))
    ]
    host.process_events(120)
    asked = []
    answer = database.fileForInstance
    monkeypatch.setattr(database, "fileForInstance", lambda uid: asked.append(uid) or answer(uid))
    panel.exporting.look_again()
    for node in (*nodes, *nodes):
        panel.table.choose(node)
        for _ in range(2):
            panel.context.refresh()
            host.process_events(80)
        assert panel.table.current() is node
        assert panel.ui.exportButton.enabled
        assert panel.ui.exportContoursButton.enabled
    assert len(asked) == 2
    database._files = []
    panel.enter()  # from the module DICOM
    panel.context.refresh()
    host.process_events(80)
    for button in (panel.ui.exportButton, panel.ui.exportContoursButton):
        assert not button.enabled
        assert "no longer in Slicer's DICOM database" in button.toolTip


def test_without_dicom_files_the_button_says_why(panel, host, tmp_path, monkeypatch):
    import slicer

    from PEFTSegmentLib import dicom_scans

    ui = panel.ui
    host.process_events(120)
    assert "Select a result" in ui.exportButton.toolTip
    plain = add_scan(2)
    add_result(tmp_path / "plain", plain, {BRIGHT: balls(2)[1][BRIGHT]})
    host.process_events(120)
    assert not ui.exportButton.enabled
    assert "not loaded from DICOM" in ui.exportButton.toolTip
    assert not ui.exportContoursButton.enabled
    assert "not loaded from DICOM" in ui.exportContoursButton.toolTip
    scan, database, uid = scan_from_dicom(monkeypatch, tmp_path / "db", 1)
    node = add_result(tmp_path / "result", scan, {BRIGHT: balls(1)[1][BRIGHT]})
    panel.table.choose(node)
    panel.context.refresh()
    host.process_events(120)
    assert ui.exportButton.enabled
    database.isOpen = False
    panel.context.refresh()
    host.process_events(120)
    assert "database is closed" in ui.exportButton.toolTip
    database.isOpen, database._files = True, database._files[:-3]
    with pytest.raises(Exception, match="3 of 24 DICOM files"):
        dicom_scans.source_files(scan)
    database._files[0] = {**database._files[0], "file": ""}  # as of a series on a server
    with pytest.raises(Exception, match="no files in the DICOM database, or not all"):
        dicom_scans.files_of([uid])
    database._files = []
    other = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, scan, "again")
    assert "no longer in Slicer's DICOM database" in dicom_scans.reason_against_files(other)
    slicer.mrmlScene.RemoveNode(scan)
    host.process_events(120)
    assert "no longer loaded" in ui.exportButton.toolTip


def test_an_export_that_fails_is_told_and_leaves_nothing(panel, host, tmp_path, monkeypatch):
    scan, _database, _uid = scan_from_dicom(monkeypatch, tmp_path / "db", 1)
    add_result(tmp_path / "result", scan, {BRIGHT: balls(1)[1][BRIGHT]})
    host.process_events(120)
    (tmp_path / "file").write_text("")
    host.dialogs.expect(str(tmp_path / "file" / "seg.dcm"), "OK")
    panel.ui.exportButton.click()
    host.wait_for(lambda: len(host.dialogs.shown) > 1 and not panel.context.runner.tasks, 60, "the dialog")
    assert host.dialogs.shown[-1].text == "The result was not exported."
    assert panel.ui.exportLabel.isHidden()
    assert not list(tmp_path.glob("*.dcm"))
    (tmp_path / "kept.dcm").write_text("not to be lost")
    host.process_events(120)
    for number, button in enumerate((panel.ui.exportButton, panel.ui.exportContoursButton), start=1):
        host.dialogs.expect(str(tmp_path / "kept"), "OK")  # the dialog asked about "kept" only
        button.click()
        shown = 1 + 2 * number
        host.wait_for(lambda n=shown: len(host.dialogs.shown) > n and not panel.context.runner.tasks, 60, "the dialog")
        assert "kept.dcm exists" in host.dialogs.shown[-1].informative
        host.process_events(120)
    assert (tmp_path / "kept.dcm").read_text() == "not to be lost"


@pytest.mark.realdata
def test_a_result_of_one_of_two_volumes_in_a_real_enhanced_file_refers_to_its_own_frames(
    panel, host, tmp_path, shared_data
):
    """Philips: magnitude and field map in one file."""
    from peftseg.dicom_sort import find_series
    from PEFTSegmentLib.panels import apply_study_load
    from PEFTSegmentLib.studies import Study

    folder = shared_data / "readers" / "mr_enhanced" / "Philips"
    second = find_series((str(folder),))[1]
    read = apply_study_load._read_series((str(folder),), f"{second.study}_{second.key}", {})
    scan = panel.many_studies.loader._add_scan(Study(second.key, "second", "done"), read)
    add_result(tmp_path / "result", scan, {BRIGHT: read.array > np.quantile(read.array, 0.9)})
    host.process_events(120)
    export(panel, host, tmp_path / "second.dcm")
    data = pydicom.dcmread(tmp_path / "second.dcm")
    found = {
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in data.PerFrameFunctionalGroupsSequence
    }
    assert found <= {frame + 1 for _, frame in second.planes}
    assert len(found) > 1
