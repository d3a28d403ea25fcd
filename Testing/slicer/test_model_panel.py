"""Step 1: the catalogue, weights that come and go, licences, and trying a model; with the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import scene_makers

from peftseg import licences
from peftseg.models import catalogue


@pytest.fixture
def panel(tiny_model, module):
    from PEFTSegmentLib.panels.model import ModelPanel

    return module.main.panel(ModelPanel)


def choose(panel, host, identity: str) -> None:
    panel.ui.modelCombo.setCurrentIndex(panel.ui.modelCombo.findData(identity))
    host.process_events(120)


def test_the_catalogue_is_offered_and_a_choice_is_explained(panel, host, module, pictures):
    combo = panel.ui.modelCombo
    offered = [combo.itemData(row) for row in range(1, combo.count)]
    assert sorted(offered) == sorted(catalogue())
    assert "choose" in panel.section.text
    assert not panel.ui.tryButton.enabled
    host.picture(module.main.form, pictures / "model_none.png", width=400)
    choose(panel, host, "monai-wholebody-ct-1.5mm")
    assert "Apache-2.0" in panel.ui.factsLabel.text
    assert "not downloaded" in panel.section.text
    assert panel.ui.downloadButton.enabled
    assert "Download" in panel.ui.tryButton.toolTip
    host.picture(module.main.form, pictures / "model_not_here.png", width=400)


def test_models_for_the_scan_in_view_come_first(panel, host):
    from PEFTSegmentLib import scans

    combo = panel.ui.modelCombo
    ct = scene_makers.add_ct()
    scans.show_scan(ct)
    panel.context.refresh()
    host.process_events(120)
    assert panel.context.models()[combo.itemData(1)].modality == "CT"
    assert combo.itemData(1) != "phantom-ct"  # made up: never before a model for patients


def test_a_model_is_tried_on_the_scan_in_view(panel, host, module, pictures):
    import slicer

    from PEFTSegmentLib import scans

    scan = scene_makers.add_scan(1, "Scan Ä 1")
    scans.show_scan(scan)
    choose(panel, host, "tiny")
    assert panel.ui.tryButton.enabled, panel.ui.tryButton.toolTip
    panel.ui.tryButton.click()
    host.wait_for(lambda: not module.main.ui.jobsFrame.isHidden(), 10)
    host.picture(module.main.form, pictures / "model_trying.png", width=400)
    host.wait_for(lambda: not panel.context.runner.busy, 60, "the result")
    host.process_events(120)
    result = slicer.util.getNode("Scan Ä 1 - Tiny test model")
    assert result.GetAttribute("PEFTSegment.base") == "tiny"
    assert "structures found" in panel.ui.tryLabel.text
    host.picture(module.main.form, pictures / "model_tried.png", width=400)


def test_a_result_whose_scan_was_closed_is_told(panel, host):
    import slicer

    from PEFTSegmentLib import scans

    scans.show_scan(scene_makers.add_scan(1))
    choose(panel, host, "tiny")
    panel.ui.tryButton.click()
    host.wait_for(lambda: panel.context.runner.tasks[0].handle is not None, 10)
    slicer.mrmlScene.Clear(False)
    host.wait_for(lambda: not panel.context.runner.busy, 60, "the result")
    host.process_events(120)
    assert "closed before" in panel.ui.tryLabel.text
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == []


def test_details_show_structures_and_can_be_searched(panel, host, pictures):
    choose(panel, host, "monai-wholebody-ct-1.5mm")
    seen = {}

    def look(dialog) -> int:

        seen["title"] = dialog.windowTitle
        return 0

    host.dialogs.expect(look)
    panel.ui.detailsButton.click()
    assert seen["title"] == "MONAI whole-body CT, 1.5 mm"
    from PEFTSegmentLib.panels.model_details import ModelDetails

    details = ModelDetails(panel.context.models()["monai-wholebody-ct-1.5mm"], None)
    details.search.text = "liver"
    visible = [row for row in range(details.list.count) if not details.list.item(row).isHidden()]
    assert [details.list.item(row).text() for row in visible] == ["liver"]
    assert "Wasserthal" in details.text.plainText
    assert not details.delete_button.enabled
    host.picture(details.dialog, pictures / "model_details.png")


def test_a_licence_is_asked_for_before_a_download_and_remembered(panel, host):
    choose(panel, host, "suprem-segresnet")
    host.dialogs.expect("Cancel")
    panel.ui.downloadButton.click()
    assert not panel.context.commands.running
    assert "CC BY-NC-ND" in host.dialogs.shown[-1].informative
    host.dialogs.expect("I accept", "")  # no file is chosen then
    panel.import_file_action.trigger()
    assert licences.acknowledgement(panel.context.models()["suprem-segresnet"]) == "accepted"


def test_a_file_that_is_no_checkpoint_is_refused_in_one_dialog(panel, host, tmp_path):
    choose(panel, host, "monai-wholebody-ct-3mm")
    wrong = tmp_path / "Gewichte 1.pt"
    wrong.write_bytes(b"not a checkpoint")
    from qt import QMessageBox

    host.dialogs.expect(str(wrong), QMessageBox.Ok)
    panel.import_file_action.trigger()
    host.wait_for(lambda: len(host.dialogs.shown) == 2, 60, "the dialog")
    shown = host.dialogs.shown[-1]
    assert shown.text == "The weights were not imported."
    assert shown.informative
    assert catalogue()["monai-wholebody-ct-3mm"].weights_path is None


def test_a_model_folder_is_imported_chosen_and_deleted(panel, host, tmp_path, pictures, module):
    from peftseg.models import read_model_dir
    from peftseg.paths import home

    folder = tmp_path / "Modell ü"
    scene_makers.write_tiny_model(folder, "other")
    host.dialogs.expect(str(folder))
    panel.import_folder_action.trigger()
    host.wait_for(lambda: not module.main.ui.jobsFrame.isHidden(), 10)
    host.picture(module.main.form, pictures / "model_importing.png", width=400)
    host.wait_for(lambda: not panel.context.commands.running, 60, "the import")
    host.process_events(120)
    assert panel.state.model == "other"
    target = home() / "models" / "other"
    assert read_model_dir(target).weights_path is not None
    host.dialogs.expect(lambda dialog: press(dialog, "Delete files"))
    panel.ui.detailsButton.click()
    host.wait_for(lambda: not panel.context.commands.running, 60, "the removal")
    assert not Path(target).exists()


def press(dialog, text: str) -> None:
    import slicer

    button = next(b for b in slicer.util.findChildren(dialog, className="QPushButton") if b.text == text)
    button.click()


def test_the_model_stays_chosen_when_the_module_is_left_and_entered(panel, host, module):
    import slicer

    choose(panel, host, "tiny")
    slicer.util.selectModule("")
    slicer.util.selectModule("PEFTSegment")
    host.process_events(120)
    assert panel.ui.modelCombo.itemData(panel.ui.modelCombo.currentIndex) == "tiny"
    slicer.mrmlScene.Clear(False)
    host.process_events(120)
    assert panel.ui.modelCombo.currentIndex == 0


@pytest.fixture
def unasked(module, monkeypatch):
    """The panel without an engine: commands are noted, and never end."""
    from PEFTSegmentLib.panels.model import ModelPanel

    asked = []
    monkeypatch.setattr(module.main.context, "command", lambda arguments, done, title: asked.append(arguments) or title)
    found = module.main.panel(ModelPanel)
    monkeypatch.setattr(found, "_show_progress", lambda: None)
    return found, asked


def test_an_import_of_an_nnunet_folder_can_be_given_up_and_says_what_to_choose_when_unsure(unasked, host, tmp_path):
    panel, asked = unasked
    (tmp_path / "plans.json").write_text("{}")
    host.dialogs.expect(str(tmp_path), "Cancel")
    panel.import_folder_action.trigger()
    assert asked == []
    assert "If you are not sure" in host.dialogs.shown[-1].informative
    host.dialogs.expect(str(tmp_path), "Another source")
    panel.import_folder_action.trigger()
    assert asked == [["models", "import", str(tmp_path), "--json"]]


def test_nothing_is_deleted_while_a_download_runs(unasked, host):
    from qt import QMessageBox

    from PEFTSegmentLib.panels.model_details import ModelDetails

    panel, asked = unasked
    choose(panel, host, "monai-wholebody-ct-1.5mm")
    panel.download()
    first = panel._command
    host.dialogs.expect(QMessageBox.Ok)
    panel._run(["models", "remove", "x"], "Deleting", "The model's files were not deleted.")
    assert "is running" in host.dialogs.shown[-1].informative
    assert len(asked) == 1
    assert panel._command is first
    here = panel.context.models()["phantom-ct"]
    assert not ModelDetails(here, None, "Wait").delete_button.enabled


def test_enter_in_a_search_field_ends_no_dialog(module):
    import slicer

    from PEFTSegmentLib.panels.model_details import ModelDetails

    details = ModelDetails(module.main.context.models()["monai-wholebody-ct-1.5mm"], None)
    studies = slicer.util.loadUI(str(module.main.context.resources / "UI" / "DicomDialog.ui"))
    for dialog in (details.dialog, studies):
        buttons = slicer.util.findChildren(dialog, className="QPushButton")
        assert len(buttons) > 1
        assert not any(button.default or button.autoDefault for button in buttons)
