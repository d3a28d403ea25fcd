"""What belongs to no step alone: sections that unfold, headers, what is seen in the views, the menu of the strip."""

from __future__ import annotations

from scene_makers import BRIGHT, add_labelled_scan, add_scan

OK = 1024  # QMessageBox.Ok


def unfolded(module) -> list[int]:
    return [number for number, section in enumerate(module.main.sections, start=1) if not section.collapsed]


def test_a_section_unfolds_when_its_turn_comes_and_the_others_stay(tiny_model, module, host):
    from PEFTSegmentLib import structures

    context = module.main.context
    context.models_changed()
    host.process_events(120)
    assert unfolded(module) == [1]
    combo = module.main.panels[0].ui.modelCombo
    away = next(entry for entry in context.models().values() if entry.weights_path is None)
    combo.setCurrentIndex(combo.findData(away.id))
    assert unfolded(module) == [1], "its weights have to come first"
    combo.setCurrentIndex(combo.findData("tiny"))
    assert unfolded(module) == [1, 2]
    structures.write(context.state, [structures.proposed(BRIGHT, (), ())])
    add_labelled_scan(1)
    add_scan(2)
    host.process_events(120)
    support = module.main.panels[1]
    support.ui.addScansButton.click()
    assert unfolded(module) == [1, 2], "one is to be labelled"
    support.actions.remove(support.context.support.rows()[1].key)
    add_labelled_scan(3)
    host.process_events(120)
    support.actions.add([add_labelled_scan(4)[0]])
    assert unfolded(module) == [1, 2, 3]


def test_a_header_has_room_for_a_long_title_and_shows_its_signs(module, host):
    from dataclasses import replace

    from PEFTSegmentLib.panels.model import ModelPanel

    panel = module.main.panel(ModelPanel)
    for entry in list(module.main.context.models().values()):
        panel.state.model = entry.id
        assert len(panel.title()) <= 50, panel.title()
    entry = panel.context.model()
    panel.context.models()[entry.id] = replace(entry, title="Liver & spleen")
    assert panel.title().startswith("1 Model - Liver && spleen, ")


def test_labels_of_another_scan_are_not_seen_on_the_one_that_is_shown(module, host):
    context = module.main.context
    (first, first_labels), (second, second_labels) = add_labelled_scan(1), add_labelled_scan(2)
    rows = [context.support.add(first, first_labels), context.support.add(second, second_labels)]
    module.main.panels[1].actions.show(rows[1].key)
    shown = [bool(labels.GetDisplayNode().GetVisibility()) for labels in (first_labels, second_labels)]
    assert shown == [False, True]


def test_the_report_for_help_is_copied_and_a_wrong_interpreter_is_told(module, host, tmp_path):
    import slicer

    menu = module.main.ui.moreButton.menu()
    actions = {action.text: action for action in menu.actions()}
    slicer.app.clipboard().setText("")
    actions["Copy report (to ask for help)"].trigger()
    host.wait_for(slicer.app.clipboard().text, 60, "the report")
    assert "peftseg" in slicer.app.clipboard().text().lower()
    wrong = tmp_path / "no python ä"
    wrong.write_text("")
    host.dialogs.expect(str(wrong), lambda box: OK)
    actions["Choose another Python for the engine..."].trigger()
    assert str(wrong) in host.dialogs.shown[-1].informative
    host.wait_for(lambda: module.main.strip.examined, 30)
    assert module.main.strip.reason_against_work() == ""


def test_deleting_everything_asks_and_cancel_deletes_nothing(tiny_model, module, host, own_home):
    actions = {action.text: action for action in module.main.ui.moreButton.menu().actions()}
    host.dialogs.expect("Cancel")
    actions["Delete all models, adapters and jobs..."].trigger()
    assert (own_home / "models" / "tiny").is_dir()
    host.dialogs.expect("Delete")
    actions["Delete all models, adapters and jobs..."].trigger()
    assert not (own_home / "models" / "tiny").exists()
    assert "tiny" not in module.main.context.models()
