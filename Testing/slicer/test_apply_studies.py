"""Step 4 over many scans on the disk: a folder, studies of the DICOM database, the table, loading what is asked for."""

from __future__ import annotations

import json

import dicom_makers
import numpy as np
import pytest
from adapter_makers import store_adapter
from result_makers import write_result
from scene_makers import BRIGHT, add_scan, balls

NAME = "bright balls, site Ä"


@pytest.fixture
def adapter(tiny_model, tmp_path) -> str:
    return store_adapter(tmp_path / "made", name=NAME)


@pytest.fixture
def panel(adapter, module, host):
    """The panel with its adapter chosen, in a module that was made after it."""
    from PEFTSegmentLib.panels.apply import ApplyPanel

    module.main.unfold(4)
    module.main.sections[0].collapsed = True
    panel = module.main.panel(ApplyPanel)
    panel.ui.adapterCombo.setCurrentIndex(1)
    host.process_events(80)
    return panel


def press(button, host, *answers) -> None:
    host.dialogs.expect(*answers)
    button.click()
    host.process_events(80)


def cells(panel) -> list[tuple[str, str, str]]:
    table = panel.ui.studiesTable
    return [tuple(table.item(row, column).text() for column in range(3)) for row in range(table.rowCount)]


def look(host, module, pictures, name: str) -> None:
    for _ in range(2):  # wrapped labels settle at the second
        host.process_events(80)
        host.picture(module.main.form, pictures / f"{name}.png", width=400, height=760)


def finished(panel) -> bool:
    task = panel.many_studies.task()
    return task is None or not task.active


def double_click(panel, host, row: int) -> None:
    panel.ui.studiesTable.cellDoubleClicked.emit(row, 0)
    host.wait_for(lambda: not panel.many_studies.loader.busy, 30, "the result")
    host.process_events(80)


def mixed_folder(folder):
    """Two scans as files, a damaged one, and a DICOM series two folders down; one is large, so that the run takes a while."""
    dicom_makers.write_scan(folder / "Größe 1.nrrd", 1)
    dicom_makers.write_scan(folder / "sub" / "scan 2 with a rather long name for a table.nii.gz", 2, times=4)
    (folder / "damaged.nrrd").write_bytes(b"NRRD0004\ntype: float\n")
    dicom_makers.write_series(folder / "MUELLER_JOERG" / "MR", 3)
    return folder


def test_a_folder_is_one_job_with_a_table_and_only_the_results_asked_for_are_loaded(
    panel, module, host, pictures, tmp_path
):
    import slicer

    ui, folder, out = panel.ui, mixed_folder(tmp_path / "in"), tmp_path / "results"
    out.mkdir()
    ui.folderRadio.click()
    host.process_events(80)
    assert "Choose the folder with the scans" in ui.applyButton.toolTip
    press(ui.folderButton, host, str(folder))
    assert "Choose a folder for the results" in ui.applyButton.toolTip
    press(ui.outButton, host, str(out))
    assert ui.applyButton.enabled
    look(host, module, pictures, "studies_chosen")
    ui.applyButton.click()
    host.wait_for(lambda: len(cells(panel)) >= 4, 90, "the list of studies")
    assert panel.section.text == "4 Apply - running"
    assert "cancel it first" in ui.studyCloseButton.toolTip
    look(host, module, pictures, "studies_running")
    slicer.mrmlScene.Clear(0)  # the run is about the disk
    host.wait_for(lambda: finished(panel), 120, "the end of the run")
    host.process_events(100)
    assert panel.many_studies.task().state == "finished"
    host.dialogs.shown.clear()
    states = [state.split(":")[0] for _name, _doubt, state in cells(panel)]
    assert sorted(states, key=["please look", "failed", "done"].index) == states
    assert states.count("failed") == 1
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")  # nothing is loaded unasked
    assert "failed" in ui.studiesLabel.text
    look(host, module, pictures, "studies_done")
    found_by_a_later_session(panel, module, host)
    loaded_from_file_and_from_dicom(panel, module, host, pictures)
    press(ui.studyReportButton, host)
    assert host.dialogs.opened_urls[-1].endswith("report.html")
    press(ui.studyCloseButton, host)
    assert ui.studiesFrame.isHidden()
    assert (out / "manifest.jsonl").is_file()
    assert not module.main.context.runner.tasks


def found_by_a_later_session(panel, module, host) -> None:
    before, runner = cells(panel), module.main.context.runner
    runner.close()  # as at the end of Slicer
    module.main.context.refresh()
    host.process_events(80)
    assert panel.ui.studiesFrame.isHidden()
    runner.find_earlier()
    module.main.context.work_changed()
    host.wait_for(lambda: finished(panel) and not panel.ui.studiesFrame.isHidden(), 10, "the run")
    host.process_events(80)
    assert cells(panel) == before


def loaded_from_file_and_from_dicom(panel, module, host, pictures) -> None:
    import slicer

    from PEFTSegmentLib import results

    names = [name for name, _doubt, _state in cells(panel)]
    double_click(panel, host, names.index("Größe 1"))
    node = results.all_results()[0]
    scan = results.scan_of(node)
    assert scan.GetName() == "Größe 1"
    assert node.GetName() == f"Größe 1 - {NAME} (draft)"
    assert results.get(node, "adapter_version") == "1"
    double_click(panel, host, names.index("Größe 1"))  # again: it is shown, not loaded twice
    assert len(results.all_results()) == 1
    opaque = next(name for name in names if "Größe" not in name and "scan 2" not in name and name != "damaged")
    assert "Jörg" not in opaque
    assert "MUELLER" not in opaque
    panel.ui.studiesTable.selectRow(names.index(opaque))
    host.process_events(80)
    press(panel.ui.studyLoadButton, host)
    host.wait_for(lambda: not panel.many_studies.loader.busy, 30, "the scan out of its DICOM files")
    host.process_events(80)
    second = next(n for n in results.all_results() if n is not node)
    read = results.scan_of(second)
    assert np.array_equal(slicer.util.arrayFromVolume(read), balls(3)[0].astype(np.int16))
    matrix = slicer.util.arrayFromVTKMatrix(_matrix(read))
    assert np.allclose(matrix[:3, 3], [-5, 7, 10])
    assert panel.ui.exportButton.enabled  # its files are known
    table = panel.ui.resultsTable
    assert {table.item(row, 0).text() for row in range(table.rowCount)} == {"Größe 1", "3: T1 3"}
    assert "Doubt: " in table.item(0, 3).toolTip()
    look(host, module, pictures, "studies_loaded")


def _matrix(volume):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def test_studies_of_the_dicom_database_go_by_their_patients_names_here_and_by_opaque_ones_on_the_disk(
    panel, module, host, pictures, tmp_path, monkeypatch
):
    from slicerhost import dicom_database

    from PEFTSegmentLib import dicom_scans, results

    ui, out = panel.ui, tmp_path / "out"
    first = dicom_makers.write_series(tmp_path / "db" / "1", 1)
    dicom_makers.write_series(tmp_path / "db" / "2", 2, "Ångström^Åse")
    scout = dicom_makers.write_series(tmp_path / "db" / "3", 2, "Ångström^Åse", 6, SeriesDescription="Scout")
    dicom_database.install(monkeypatch, tmp_path / "db")
    module.main.context.refresh()
    host.process_events(80)
    ui.dicomRadio.click()
    host.process_events(80)
    press(ui.dicomButton, host, lambda dialog: tick_all(dialog, host, pictures))
    assert ui.dicomButton.text == "3 series"
    press(ui.outButton, host, str(tmp_path))
    panel.many.out = str(out)
    module.main.context.refresh()
    host.process_events(80)
    ui.applyButton.click()
    host.process_events(80)
    assert ("Müller Jörg, 2025-01-01, T1 1", "", "waiting") in cells(panel)
    host.wait_for(lambda: finished(panel), 120, "the end of the run")
    host.process_events(100)
    rows = cells(panel)
    assert {name for name, _doubt, _state in rows} == {
        "Müller Jörg, 2025-01-01, T1 1",
        "Ångström Åse, 2025-01-02, T1 2",
    }
    assert dicom_scans.title_of(scout) not in str(rows)
    assert "1 series was left out" in ui.studiesLabel.text
    look(host, module, pictures, "studies_dicom")
    files = " ".join(path.name for path in out.rglob("*")) + (out / "manifest.jsonl").read_text(encoding="utf-8")
    assert "Müller" not in files
    assert "Jörg" not in files
    double_click(panel, host, [name for name, *_ in rows].index("Müller Jörg, 2025-01-01, T1 1"))
    scan = results.scan_of(results.all_results()[0])
    assert dicom_scans.loaded_scan(first) is scan
    assert panel.ui.exportButton.enabled


def tick_all(dialog, host, pictures) -> None:
    import qt

    tree = dialog.findChild(qt.QTreeWidget)
    boxes = dialog.findChildren(qt.QPushButton)
    use = next(b for b in boxes if b.text == "Use these")
    assert not use.enabled
    assert [tree.topLevelItem(n).text(0) for n in range(2)] == ["Müller Jörg", "Ångström Åse"]
    tree.topLevelItem(0).setExpanded(True)
    study = tree.topLevelItem(0).child(0)
    assert study.text(0) == "2025-01-01, Abdomen"
    leaf = study.child(0)
    assert (leaf.text(0), leaf.text(1)) == ("1, T1 1", "MR")
    leaf.setCheckState(0, qt.Qt.Checked)
    assert tree.topLevelItem(0).checkState(0) == qt.Qt.Checked
    tree.topLevelItem(1).setCheckState(0, qt.Qt.Checked)  # not opened: all that it has
    host.process_events(20)
    label = next(one for one in dialog.findChildren(qt.QLabel) if "series" in one.text)
    assert label.text == "1 series, and all of the ticked patients"
    host.picture(dialog, pictures / "studies_chooser.png", width=460, height=520)
    use.click()


def test_a_cancelled_run_leaves_what_is_done_and_a_closed_database_is_told(panel, module, host, tmp_path, monkeypatch):
    from slicerhost import dicom_database

    ui = panel.ui
    assert not ui.dicomRadio.enabled
    assert "no DICOM module" in ui.dicomRadio.toolTip
    dicom_database.install(monkeypatch, tmp_path, is_open=False)
    module.main.context.refresh()
    host.process_events(80)
    assert "database is closed" in ui.dicomRadio.toolTip
    dicom_makers.write_scan(tmp_path / "in" / "a.nrrd", 1)
    panel.many.kind, panel.many.folder, panel.many.out = "folder", str(tmp_path / "in"), str(tmp_path / "out")
    module.main.context.refresh()
    host.process_events(80)
    ui.applyButton.click()
    host.process_events(80)
    assert ui.cancelButton.enabled
    assert "studies that are done stay" in ui.cancelButton.toolTip
    ui.cancelButton.click()
    host.wait_for(lambda: not module.main.context.runner.tasks, 30, "the end")
    host.process_events(80)
    assert ui.studiesFrame.isHidden()
    assert ui.applyButton.enabled
    panel.many.folder = str(tmp_path / "gone")
    host.dialogs.expect("OK")
    ui.applyButton.click()
    host.wait_for(lambda: host.dialogs.shown and not module.main.context.runner.tasks, 30, "the dialog")
    assert "is there any more" in host.dialogs.shown[-1].informative


def test_what_was_asked_for_first_is_shown_and_stopped_first(panel, module, host, tmp_path):
    from PEFTSegmentLib.panels.apply_folder import STUDIES
    from PEFTSegmentLib.panels.apply_jobs import PURPOSE
    from PEFTSegmentLib.runner import Task

    runner = module.main.context.runner
    many = {"purpose": STUDIES, "title": "many scans", "shown": NAME, "out": str(tmp_path)}
    runner.tasks += [
        Task(tmp_path / "1", many, state="running"),
        Task(tmp_path / "2", {"purpose": PURPOSE, "title": "one scan"}, state="queued"),
    ]
    module.main.context.refresh()
    host.process_events(80)
    assert "many scans" in panel.ui.progressLabel.toolTip
    assert panel.ui.progressLabel.text == "Segmenting; 1 more to come"
    assert "studies that are done stay" in panel.ui.cancelButton.toolTip
    runner.tasks.clear()


def test_a_later_run_of_a_folder_finds_the_series_that_have_come_since(panel, host, tmp_path):
    from peftseg.dicom_sort import find_series
    from PEFTSegmentLib import results
    from PEFTSegmentLib.studies import DONE, Study

    folder, out, loader = tmp_path / "in", tmp_path / "out", panel.many_studies.loader
    for number in (1, 2):
        uid = dicom_makers.write_series(folder / str(number), number)
        series = next(s for s in find_series((str(folder),)) if s.number == str(number))
        path = write_result(out / str(number), add_scan(number), {BRIGHT: balls(number)[1][BRIGHT]})
        output = {"file": f"{number}/{path.name}", "sha256": uid}
        line = {"name": f"{series.study}_{series.key}", "outputs": [output]}
        run = {"out": str(out), "inputs": [str(folder)], "name": NAME, "shown": NAME}
        loader.start(run, [Study(str(number), str(number), DONE, line=line)])
        host.wait_for(lambda: not loader.busy, 30, "the result")
    assert [results.scan_of(node).GetName() for node in results.all_results()] == ["1: T1 1", "2: T1 2"]


def line(study: str, state: str = "done", **more) -> str:
    return json.dumps({"format": 1, "study": study, "state": state, "name": study, **more}) + "\n"


def test_a_manifest_is_followed_line_by_line_and_the_worst_study_comes_first(host, tmp_path, module):
    from PEFTSegmentLib import studies

    reader, path = studies.Reader(tmp_path), tmp_path / "manifest.jsonl"
    assert not reader.update()
    path.write_text(line("a", "started") + line("a", study_doubt=0.1) + line("b", "failed", message="No.")[:-9])
    assert reader.update()
    assert set(reader.lines) == {"a"}
    with open(path, "a") as file:
        file.write(line("b", "failed", message="No.")[-9:] + "damaged\n")
        file.write(line("c", flags={BRIGHT: ["touches the border"]}, study_doubt=0.4) + line("d", study_doubt=0.3))
        file.write(line("e", flags={BRIGHT: ["has no voxels"]}, study_doubt=0.9))
    assert reader.update()
    assert not reader.update()
    planned = [(key, key) for key in "abcdef"]
    found = studies.listed(reader.lines, planned, True, {"f": "Müller"})
    assert [study.name for study in found] == ["e", "c", "b", "d", "a", "Müller"]
    assert studies.state_text(found[0]) == f"please look: {BRIGHT}: has no voxels"
    assert [studies.state_text(study) for study in found[2:]] == ["failed: No.", "done", "done", "waiting"]
    assert studies.doubt_text(found[0]) == "90 %"
    assert studies.counts(found, 8) == "4 of 8 done, 2 to look at, 1 failed"
    assert len(studies.listed(reader.lines, planned, False, {})) == 5  # what never came is no study of the run
    path.write_text(line("z"))  # another run in the same folder
    assert reader.update()
    assert set(reader.lines) == {"z"}
