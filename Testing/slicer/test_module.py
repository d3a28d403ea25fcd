"""The module as a whole: it loads with and without a window, survives scene close, reload and module switch, and lets go."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import scene_makers

MODULE = Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py"
HEAVY = ("torch", "monai", "torchvision", "safetensors", "slicerio", "psutil", "matplotlib", "pandas", "nibabel")


def test_the_module_loads_and_shows_five_sections(module, host, pictures):
    titles = [section.text for section in module.main.sections]
    assert [title[0] for title in titles] == ["1", "2", "3", "4", "5"]
    host.picture(module.main.form, pictures / "module.png", width=400)


def test_the_module_is_built_where_slicer_has_no_main_window(host, monkeypatch):
    """Slicer's own generic test of every module runs so: without layout manager."""
    import slicer

    manager = host.layout_manager
    monkeypatch.setattr(host, "layout_manager", None)
    host.load_module(MODULE)
    try:
        widget = host.show_module("PEFTSegment")
        host.wait_for(lambda: widget.main.strip.examined, 30)
        scene_makers.add_labelled_scan(1)
        host.process_events(150)
        assert slicer.app.layoutManager() is None
        assert [section.text[0] for section in widget.main.sections] == list("12345")
        host.unload_module("PEFTSegment")
    finally:
        monkeypatch.setattr(host, "layout_manager", manager)


def test_what_the_user_chose_is_saved_with_the_scene_and_gone_when_it_is_closed(module, host, tmp_path, tiny_model):
    import slicer

    from peftseg.models import Structure
    from PEFTSegmentLib import structures

    context = module.main.context
    context.models_changed()
    context.state.model = tiny_model
    structures.write(context.state, [Structure("Müller's Höhle; <left>", 1)])
    context.support.add(*scene_makers.add_labelled_scan(1, name="Größe 1"))
    host.process_events(150)
    file = str(tmp_path / "scene ü.mrb")
    assert slicer.util.saveScene(file)
    slicer.mrmlScene.Clear(False)
    host.process_events(150)
    assert (context.state.model, context.support.rows()) == ("", [])
    slicer.util.loadScene(file)
    host.process_events(150)
    assert context.state.model == tiny_model
    assert [s.name for s in structures.read(context.state)] == ["Müller's Höhle; <left>"]
    assert [(row.scan.GetName(), row.labels.GetName()) for row in context.support.rows()] == [
        ("Größe 1", "Größe 1 labels")
    ]


def test_the_module_can_be_reloaded_by_developers(module, host):
    import slicer

    first = module.main
    module.onReload()
    host.process_events(150)
    again = slicer.modules.PEFTSegmentWidget
    host.wait_for(lambda: again.main.strip.examined, 30)
    assert again.main is not first
    assert type(again.main) is not type(first)  # its files were read again
    assert module.main is None


def test_an_unloaded_module_lets_go_of_everything(host):
    import slicer

    host.load_module(MODULE)
    widget = host.show_module("PEFTSegment")
    host.wait_for(partial(getattr, widget.main.strip, "examined"), 30)
    context = weakref.ref(widget.main.context)
    before = slicer.mrmlScene.GetNumberOfNodes()
    host.unload_module("PEFTSegment")
    del widget
    gc.collect()
    host.process_events(100)
    scene_makers.add_scan(1)  # whoever still observes the scene would look now
    host.process_events(150)
    assert slicer.mrmlScene.GetNumberOfNodes() <= before + 3  # the scan and its display nodes
    assert context() is None or not context()._listeners


def test_an_export_that_is_given_up_at_the_end_starts_no_timer_again(module):
    context = module.main.context
    context.runner.submit(
        {"purpose": "none", "title": "slow"}, [(lambda _scratch: time.sleep(0.3),)], lambda *_all: None
    )
    context.work_changed()
    assert context._poll_timer.active
    module.onReload()
    assert not context._poll_timer.active
    assert not context._refresh_timer.active


def test_all_that_is_deleted_is_asked_about_and_enter_deletes_nothing(module, host, own_home):
    def look(box) -> str:
        assert box.defaultButton().text == "Cancel"
        return "Cancel"

    (own_home / "models").mkdir(parents=True, exist_ok=True)
    host.dialogs.expect(look)
    module.main.strip.delete_everything()
    assert (own_home / "models").is_dir()
    host.dialogs.expect("Delete")
    module.main.strip.delete_everything()
    assert not (own_home / "models").exists()


def test_nothing_heavy_is_imported_into_slicer():
    """In a process of its own: here the engine's tests may have imported it."""
    code = (
        "import os, sys; os.environ['QT_QPA_PLATFORM'] = 'offscreen'\n"
        f"sys.path[:0] = [{str(MODULE.parents[1] / 'Testing')!r}]\n"
        "import slicerhost, pathlib\n"
        "reason = slicerhost.missing_reason()\n"
        "if reason: print('no host'); os._exit(0)\n"
        f"host = slicerhost.start(); host.load_module(pathlib.Path({str(MODULE)!r}))\n"
        "main = host.show_module('PEFTSegment').main\n"
        "host.wait_for(lambda: main.strip.examined, 60)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules]); sys.stdout.flush(); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip().splitlines()[-1:] in (["[]"], ["no host"]), done.stdout + done.stderr
