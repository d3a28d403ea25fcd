"""Step 3's "Faster: go on from ...": when it is offered, when it is on, and what the job then says."""

from __future__ import annotations

import pytest
from adapter_makers import store_adapter
from scene_makers import BRIGHT, DARK, add_labelled_scan

NAME = "bright, site Ä"


@pytest.fixture
def main(tiny_model, module, tmp_path):
    store_adapter(tmp_path / "made", name=NAME)
    module.main.unfold(3)
    return module.main


def wanted(main, host, *names: str) -> None:
    from PEFTSegmentLib import structures

    chosen = []
    for name in names:
        chosen.append(structures.proposed(name, main.context.model().structures, chosen))
    structures.write(main.context.state, chosen)
    host.process_events(120)


def corrected(main, number: int) -> None:
    """A support scan whose labels an adapter has drawn and a person has corrected."""
    from peftseg import library
    from PEFTSegmentLib import results

    scan, labels = add_labelled_scan(number)
    labels.SetAttribute(results.CORRECTED, library.list_adapters(check=False)[0]["hash"])
    main.context.support.add(scan, labels)


def test_going_on_is_offered_after_a_correction_and_on_where_the_structures_are_the_same(main, host, pictures):
    panel, state = main.panels[2], main.context.state
    ui = panel.ui
    state.model = "tiny"
    wanted(main, host, BRIGHT)
    main.context.support.add(*add_labelled_scan(1))
    host.process_events(120)
    assert ui.startBox.isHidden()
    corrected(main, 2)
    main.context.refresh()
    host.process_events(120)
    assert not ui.startBox.isHidden()
    assert ui.startBox.text == f"Faster: go on from {NAME}, version 1"
    assert ui.startBox.checked
    assert ui.startHint.text == "It was learnt from 5 scans and 2 are here: it may forget what the others taught."
    assert ui.nameEdit.text == NAME
    assert ui.nameHint.text.endswith("this one becomes its version 2.")
    assert not ui.estimateBox.enabled
    assert "goes on from an adapter" in ui.estimateBox.toolTip
    for _ in range(2):
        host.picture(main.sections[2], pictures / "adapt_go_on.png", width=385)
    wanted(main, host, BRIGHT, DARK)
    assert not ui.startBox.isHidden()
    assert not ui.startBox.checked  # it does not know one of them
    ui.startBox.click()
    host.process_events(120)
    assert ui.startHint.text.endswith("Structures that it does not know yet: 1.")
    assert panel.start.fields() == {"start_from": f"{NAME}-v1", "method": "lora", "options": {}, "estimate": "none"}
    wanted(main, host, DARK)
    assert ui.startBox.isHidden()  # what it segments would be lost
    state.model = "another"
    wanted_before = panel.start.fields()
    assert wanted_before == {}


def test_adapting_again_goes_on_from_the_adapter_as_its_next_version(main, host):
    from peftseg.adapter_file import read_recipe

    panel, state = main.panels[2], main.context.state
    state.model, state.minutes = "tiny", 0.05
    wanted(main, host, BRIGHT)
    corrected(main, 1)
    main.context.refresh()
    host.process_events(120)
    panel.jobs.asks = True  # as after a check
    panel.adapt_anyway()
    host.wait_for(lambda: panel.jobs.finished() is not None or host.dialogs.shown, 120, "the adaptation")
    ending = panel.jobs.finished().ending
    assert ending["ref"] == f"{NAME}-v2"
    parent = read_recipe(ending["path"]).record["parent"]
    assert parent["version"] == 1
