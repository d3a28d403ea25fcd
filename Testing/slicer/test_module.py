"""The module as a whole: it loads, shows five steps, survives scene close, reload and module switch."""

from __future__ import annotations


def test_the_module_loads_and_shows_five_sections(module, host, pictures):
    titles = [section.text for section in module.main.sections]
    assert [title[0] for title in titles] == ["1", "2", "3", "4", "5"]
    host.picture(module.main.form, pictures / "module.png", width=400)
