"""The adapter library's window: found, renamed, exported, imported, removed; shared folders; hundreds of entries."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from adapter_makers import make_adapter, store_adapter
from scene_makers import BRIGHT, DARK

RESOURCES = Path(__file__).resolve().parents[2] / "PEFTSegment" / "Resources"


@pytest.fixture
def panel(tiny_model, module):
    from PEFTSegmentLib.panels.apply import ApplyPanel

    return module.main.panel(ApplyPanel)


@pytest.fixture
def alone(tiny_model, host):
    """The window without the module around it, for the library is only files; closed afterwards."""
    import slicer

    from PEFTSegmentLib.context import Context
    from PEFTSegmentLib.library_dialog import LibraryDialog
    from PEFTSegmentLib.panels.apply_adapters import AdapterList

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    context = Context(RESOURCES, lambda: sys.executable, lambda: node)
    window = LibraryDialog(context, AdapterList(context), lambda ref: setattr(context.state, "adapter", ref))
    yield window
    window.close()
    context.close()


@pytest.fixture
def library(alone, tmp_path):
    """The window, open, with three adapters: two versions of one, and one of another name."""
    store_adapter(tmp_path / "made", name="hippocampus, site A", seed=1)
    store_adapter(tmp_path / "made", name="hippocampus, site A", version=2, seed=2)
    store_adapter(tmp_path / "made", name="Ärzte 心", structures=(DARK, BRIGHT), seed=3)
    alone.show()
    return alone


def tops(library) -> list:
    table = library.ui.table
    return [table.topLevelItem(n) for n in range(table.topLevelItemCount)]


def select(library, ref: str):
    item = next(item for _top, item in library._items() if item.data(0, 0x0100) == ref)
    library.ui.table.setCurrentItem(item)
    return item


def test_versions_are_grouped_newest_first_and_the_record_can_be_read(library, host, pictures):
    assert [top.text(0) for top in tops(library)] == ["hippocampus, site A", "Ärzte 心"]
    first = tops(library)[0]
    assert (first.text(1), first.childCount(), first.child(0).text(1)) == ("2", 1, "1")
    assert [first.text(n) for n in (2, 3, 4, 6)] == [BRIGHT, "Tiny test model", "5", "own"]
    assert len(first.text(5)) == len("2026-01-31")
    select(library, "hippocampus, site A-v1")
    text = library.ui.record.plainText
    for expected in (
        "version 1",
        BRIGHT,
        "5 scans",
        "0.78, 0.81, -",
        "Apache-2.0",
        "obtain local approval",
        "1 x 1 x 1 mm",
    ):
        assert expected in text
    host.picture(library.form, pictures / "library.png")


def test_the_search_field_hides_what_does_not_fit(library):
    library.ui.search.setText("dark")
    assert [top.isHidden() for top in tops(library)] == [True, False]
    library.ui.search.setText("SITE a 1")
    assert [top.isHidden() for top in tops(library)] == [False, True]
    library.ui.search.setText("")
    assert library.ui.countLabel.text == "3 of 3 adapters"


def test_enter_in_the_search_field_presses_no_button(library):
    """A dialog gives Enter to its default button, and makes the first one that may be it where none is."""
    buttons = {name: child for name, child in vars(library.ui).items() if name.endswith("Button")}
    assert len(buttons) == 8
    assert [name for name, button in buttons.items() if button.autoDefault or button.isDefault()] == []


def test_an_adapter_is_renamed_and_step_four_follows(library, host):
    library.context.state.adapter = "Ärzte 心-v1"
    select(library, "Ärzte 心-v1")
    host.dialogs.expect("dark nuclei")
    library.ui.renameButton.click()
    assert [top.text(0) for top in tops(library)] == ["dark nuclei", "hippocampus, site A"]
    assert library.context.state.adapter == "dark nuclei-v1"
    assert "Earlier hashes" in library.ui.record.plainText


def test_a_name_that_cannot_be_is_told_and_nothing_changes(library, host):
    select(library, "Ärzte 心-v1")
    host.dialogs.expect("x" * 300, host_ok())
    library.ui.renameButton.click()
    assert "not renamed" in host.dialogs.shown[-1].text
    assert tops(library)[1].text(0) == "Ärzte 心"


def host_ok() -> str:
    return "OK"


def test_export_says_what_an_adapter_is_and_replaces_only_what_the_file_dialog_asked_about(library, host, tmp_path):
    select(library, "hippocampus, site A-v2")
    target = tmp_path / "für Site B" / "out.safetensors"
    target.parent.mkdir()
    target.write_text("old")
    host.dialogs.expect("Export", str(target))
    library.ui.exportButton.click()
    assert "obtain local approval" in host.dialogs.shown[0].informative
    from peftseg.adapter_file import read_adapter_info

    assert read_adapter_info(target)[0].version == 2
    assert [path.name for path in target.parent.iterdir()] == ["out.safetensors"]
    host.dialogs.expect("Export", str(tmp_path / "für Site B" / "out"), host_ok())
    library.ui.exportButton.click()
    assert "exists" in host.dialogs.shown[-1].informative
    host.dialogs.expect("Cancel")
    library.ui.exportButton.click()
    home = Path(os.environ["PEFTSEGMENT_HOME"]) / "adapters"
    host.dialogs.expect("Export", str(home / "x.safetensors"), host_ok())
    library.ui.exportButton.click()
    assert "the library itself" in host.dialogs.shown[-1].informative


def test_an_adapter_is_imported_and_a_damaged_one_refused(library, host, tmp_path):
    file = make_adapter(tmp_path / "new.safetensors", name="from site B", seed=5)
    host.dialogs.expect(str(file), "OK")
    library.ui.importButton.click()
    assert "made with PEFTSegment 1.0" in host.dialogs.shown[-1].informative
    assert library.ui.table.selectedItems()[0].text(0) == "from site B"
    other = make_adapter(tmp_path / "other.safetensors", name="from site B", seed=7)
    host.dialogs.expect(str(other), "OK")
    library.ui.importButton.click()
    assert "from site B-v2" in host.dialogs.shown[-1].text
    assert "the next version" in host.dialogs.shown[-1].informative
    data = bytearray(make_adapter(tmp_path / "bad.safetensors", name="bad", seed=6).read_bytes())
    data[-3] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    host.dialogs.expect(str(tmp_path / "bad.safetensors"), host_ok())
    library.ui.importButton.click()
    assert "not imported" in host.dialogs.shown[-1].text
    assert len(tops(library)) == 3  # both versions of "from site B" are under one name


def test_removing_asks_and_the_choice_of_a_removed_adapter_is_gone(library, host):
    library.context.state.adapter = "Ärzte 心-v1"
    select(library, "Ärzte 心-v1")

    def look(box) -> str:
        assert box.defaultButton().text == "Cancel"  # what Enter presses
        return "Cancel"

    host.dialogs.expect(look, "Remove")
    library.ui.removeButton.click()
    assert len(tops(library)) == 2
    library.ui.removeButton.click()
    assert "cannot be undone" in host.dialogs.shown[0].informative
    assert len(tops(library)) == 1
    assert library.context.state.adapter == ""


def test_a_damaged_file_and_a_missing_model_are_listed_with_the_reason_and_cannot_be_chosen(
    panel, host, module, own_home, pictures, tmp_path
):
    store_adapter(tmp_path / "made", name="Ärzte 心", seed=3)
    panel.open_library()
    library = panel.library
    (own_home / "adapters" / "broken-v1.safetensors").write_bytes(b"nonsense")
    shutil.rmtree(own_home / "models" / "tiny")
    module.main.context.models_changed()
    library.reload()
    module.main.refresh()
    broken = select(library, "broken-v1")
    assert broken.text(2) == "damaged"
    assert not library.ui.useButton.enabled
    assert not library.ui.exportButton.enabled
    assert library.ui.removeButton.enabled
    assert "cannot be used" in library.ui.record.plainText
    combo = panel.ui.adapterCombo
    for number in range(1, combo.count):
        assert not combo.model().item(number).isEnabled()
    tips = {combo.itemText(n): combo.model().item(n).toolTip() for n in range(combo.count)}
    assert "damaged" in tips["broken-v1"]
    assert "tiny" in tips["Ärzte 心, version 1"]
    host.picture(library.form, pictures / "library_damaged.png")


def test_shared_folders_are_read_only_and_a_vanished_one_is_one_message(library, host, tmp_path, pictures):
    shared = tmp_path / "Abteilung Ä"
    make_adapter(shared / "liver.safetensors", name="liver", seed=7)
    host.dialogs.expect(str(shared))
    library.ui.addFolderButton.click()
    item = select(library, "liver-v1")
    assert item.text(6) == "Abteilung Ä"
    assert not library.ui.renameButton.enabled
    assert "shared folder" in library.ui.removeButton.toolTip
    assert library.ui.exportButton.enabled
    library.ui.useButton.click()
    assert library.context.state.adapter == "liver-v1"
    host.picture(library.form, pictures / "library_shared.png")
    shutil.rmtree(shared)
    library.show()
    assert library.ui.problemLabel.text.count("cannot be read") == 1
    assert library.ui.folders.count == 1
    library.ui.folders.setCurrentRow(0)
    library.ui.removeFolderButton.click()
    assert library.ui.folders.count == 0
    assert not library.ui.problemLabel.visible


def test_two_hundred_adapters_are_listed_and_searched(panel, host, module, own_home, tmp_path, pictures):
    source = make_adapter(tmp_path / "a.safetensors", name="one", seed=1)
    from peftseg.adapter_file import renamed

    folder = own_home / "adapters"
    folder.mkdir(exist_ok=True)
    for number in range(200):
        name = f"structure {number % 50:02d}, a site with a rather long name"
        content, _digest = renamed(source, name, number // 50 + 1)
        (folder / f"{number}.safetensors").write_bytes(content)
    panel.open_library()
    assert len(tops(panel.library)) == 50
    module.main.refresh()
    panel.refresh()
    panel.library.ui.search.setText("structure 33")
    assert [top.isHidden() for top in tops(panel.library)].count(False) == 1
    host.picture(panel.library.form, pictures / "library_200.png")


def test_the_close_button_closes_the_window_which_can_be_opened_again(library):
    library.ui.closeButton.click()
    assert library.form.isHidden()
    library.show()
    assert not library.form.isHidden()
