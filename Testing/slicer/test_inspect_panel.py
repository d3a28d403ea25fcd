"""Step 5 says honestly that it comes later."""

from __future__ import annotations

import importlib.util


def test_the_place_of_step_five_is_there_and_every_control_says_why_it_does_nothing(module, host, pictures):
    from PEFTSegmentLib.panels.inspect import InspectPanel

    main = module.main
    main.refresh()
    panel = main.panel(InspectPanel)
    assert panel.section.text == "5 Inspect - comes later"
    for widget in (panel.ui.structureCombo, panel.ui.opacitySlider, panel.ui.showButton):
        assert not widget.enabled
        assert "later version" in widget.toolTip
    main.unfold(5)
    host.picture(panel.form, pictures / "inspect.png", width=385)


def test_it_does_not_break_when_the_engine_can_explain(module, host, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: object())
    module.main.refresh()
    assert module.main.sections[4].text.startswith("5 Inspect")
