"""Step 3 without labels, "Advanced": ways to adapt, passes, options; and the curves of such an adaptation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scene_makers
from test_site_panel import Bench, shown

from peftseg.config import SiteAdaptJob, from_json
from peftseg.site_options import DEFAULT_EPOCHS, DEFAULT_PRESET, PRESET_TITLES, PRESETS, SITE_OPTIONS

MODULE = Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py"


@pytest.fixture
def bench(tiny_model, own_home, module, host) -> Bench:
    """With a model that has batch normalisation, "tiny-bn", beside "tiny", which has none."""
    scene_makers.install_site_model(own_home)
    bench = Bench(module, host)
    bench.context.models_changed()
    return bench


def offered(bench) -> list[str]:
    box = bench.ui.siteWayBox
    return [box.itemData(n) for n in range(box.count)]


def choose(bench, preset: str) -> None:
    box = bench.ui.siteWayBox
    box.setCurrentIndex(box.findData(preset))
    bench.look()


def test_the_ways_are_the_engines_in_plain_words_and_the_defaults_are_its_own(bench, pictures):
    ui, ways = bench.ui, bench.adapt.site.ways
    bench.unlabelled("tiny-bn", 3)
    assert offered(bench) == list(PRESETS)
    box = ui.siteWayBox
    said = [box.itemText(n) for n in range(box.count)]
    assert len(set(said)) == len(PRESETS)
    assert not set(said) & set(PRESET_TITLES.values())  # each has words of its own
    assert [text.endswith("(usual)") for text in said] == [name == DEFAULT_PRESET for name in PRESETS]
    assert PRESET_TITLES[DEFAULT_PRESET] in box.toolTip
    way = ways.chosen()
    assert (way.preset, way.options, way.epochs) == (SiteAdaptJob.preset, {}, SiteAdaptJob.epochs)
    assert ui.sitePassesBox.text == f"as usual ({DEFAULT_EPOCHS})"
    usual = {option.name: option.default for option in SITE_OPTIONS}
    assert {name: editor.value for name, editor in ways.editors.items()} == {
        name: usual[name] for name in ("confidence", "source_weight", "rank")
    }
    help_of = next(option.help for option in SITE_OPTIONS if option.name == "confidence")
    assert help_of in ways.editors["confidence"].toolTip
    assert not shown(ui.siteWayHint)
    assert not ui.siteWayBox.isVisibleTo(bench.section)  # folded
    ui.advancedBox.collapsed = False
    bench.look()
    assert ui.siteWayBox.isVisibleTo(ui.advancedBox)
    bench.picture(pictures, "ways")
    assert bench.section.minimumSizeHint.width() <= 385
    ui.labelledButton.click()
    bench.look()
    assert not ui.siteWayBox.isVisibleTo(ui.advancedBox)


def test_a_model_without_batch_normalisation_is_offered_only_what_does_something(bench, pictures):
    ui = bench.ui
    bench.unlabelled("tiny", 3)
    assert offered(bench) == [name for name in PRESETS if name not in ("adabn", "convlora_adabn")]
    assert "no batch normalisation" in ui.siteWayHint.text
    assert set(bench.adapt.site.ways.editors) == {"confidence", "rank"}
    ui.advancedBox.collapsed = False
    bench.picture(pictures, "ways_without_norm")
    choose(bench, "self_training")
    assert not shown(ui.siteWayHint)  # it recalibrates nothing with other models either
    assert set(bench.adapt.site.ways.editors) == {"confidence"}
    assert bench.adapt.site.ways.editors["confidence"].value == PRESETS["self_training"]["confidence"]


def test_a_way_that_is_not_for_the_model_gives_way_to_the_usual_one_and_comes_back(bench):
    ui, state, ways = bench.ui, bench.state, bench.adapt.site.ways
    bench.unlabelled("tiny-bn", 3)
    choose(bench, "adabn")
    assert set(ways.editors) == {"source_weight"}
    assert not ui.sitePassesBox.enabled
    assert "learns nothing" in ui.sitePassesBox.toolTip
    ways.editors["source_weight"].value = 0.25
    bench.look()
    assert (ways.chosen().preset, ways.chosen().options) == ("adabn", {"source_weight": 0.25})
    state.model = "tiny"
    bench.look()
    assert ui.siteWayBox.currentData == DEFAULT_PRESET
    assert "is not for this model: the usual one is taken" in ui.siteWayHint.text
    assert (ways.chosen().preset, ways.chosen().options) == (DEFAULT_PRESET, {})
    state.model = "tiny-bn"
    bench.look()
    assert (ui.siteWayBox.currentData, ways.editors["source_weight"].value) == ("adabn", 0.25)
    choose(bench, "udas_convlora")
    assert ui.siteWayBox.currentText == "Small changes, first layers (published)"
    choose(bench, "udas")
    assert ways.chosen().options == {}  # they were the other way's
    assert ui.sitePassesBox.text == "as usual (at most 50)"


def test_a_value_that_the_engine_refuses_is_told_at_the_button_and_defaults_set_all_back(bench):
    ui, state, ways = bench.ui, bench.state, bench.adapt.site.ways
    bench.unlabelled("tiny-bn", 3)
    ways.editors["confidence"].value = 1.5
    bench.look()
    assert not ui.adaptButton.enabled
    assert "Option 'confidence' is 1.5; expected 0 to 1" in ui.adaptButton.toolTip
    ways.editors["confidence"].value = 0.0
    bench.look()
    assert ui.adaptButton.enabled
    assert state.siteOptions == "{}"  # what is as usual is not kept
    choose(bench, "convlora")
    ui.sitePassesBox.value = 7
    ways.editors["rank"].value = 4
    bench.look()
    assert (state.sitePreset, json.loads(state.siteOptions), state.sitePasses) == ("convlora", {"rank": 4}, 7)
    ui.advancedBox.collapsed = False  # folded, Qt disables what is in it
    ui.defaultsButton.click()
    bench.look()
    assert (state.sitePreset, state.siteOptions, state.sitePasses) == ("", "{}", 0)
    assert ui.siteWayBox.currentData == DEFAULT_PRESET
    assert ways.editors["rank"].value == 2


def test_the_way_survives_a_saved_scene_and_a_reload_of_the_module(bench, host, tmp_path):
    import slicer

    bench.unlabelled("tiny-bn", 1)
    choose(bench, "convlora")
    bench.ui.sitePassesBox.value = 7
    bench.adapt.site.ways.editors["confidence"].value = 0.5
    bench.look()
    slicer.util.saveScene(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Clear(0)
    bench.look()
    assert bench.adapt.site.ways.chosen().preset == DEFAULT_PRESET
    slicer.util.loadScene(str(tmp_path / "scene.mrml"))
    bench.look()
    said = bench.adapt.site.ways.chosen()
    assert (said.preset, said.options, said.epochs) == ("convlora", {"confidence": 0.5}, 7)
    host.unload_module("PEFTSegment")
    host.load_module(MODULE)
    again = Bench(host.show_module("PEFTSegment"), host)
    again.wait(lambda: again.main.strip.examined, what="the look at the installation")
    again.look()
    assert again.adapt.site.ways.chosen() == type(again.adapt.site.ways.chosen())("convlora", {"confidence": 0.5}, 7)
    assert again.ui.siteWayBox.currentData == "convlora"
    assert again.ui.sitePassesBox.value == 7


# curves


def heard(bench, tmp_path, *events: dict, state: str = "running"):
    """An adaptation that has told so much."""
    from PEFTSegmentLib.panels.site_jobs import SITE
    from PEFTSegmentLib.runner import Task

    facts = {"purpose": SITE, "title": "Adapt to a scanner: x", "adapter": "x", "scans": []}
    task = Task(tmp_path / "job", facts, state=state, progress=events[-1])
    task.folder.mkdir()
    bench.context.runner.tasks.append(task)
    bench.context.runner._handle(task, list(events))
    bench.look()
    return task


def passed(number: int, agreement: float | None) -> dict:
    """A progress event as the engine sends it."""
    facts = {"loss": 0.3 / number, "agreement": agreement, "best_epoch": number}
    return {"event": "progress", "stage": "train", "step": number, "total": 5, "eta_s": 90.0, **facts}


def test_agreement_and_loss_are_drawn_while_it_learns(bench, tmp_path, pictures):
    from PEFTSegmentLib import plots

    ui = bench.ui
    bench.unlabelled("tiny-bn", 3)
    begun = {"event": "progress", "stage": "train", "step": 0, "total": 5, "eta_s": None}
    task = heard(bench, tmp_path, begun)
    assert not shown(ui.curvesBox)
    assert "Nothing has been learnt yet" in ui.stopButton.toolTip
    bench.context.runner._handle(task, [passed(1, None)])
    bench.look()
    assert [ui.curveBox.itemData(n) for n in range(ui.curveBox.count)] == [plots.LOSS]
    assert not shown(ui.matchNow)
    assert ui.stopButton.enabled
    told = [passed(number, 0.7 + number / 20) for number in (2, 3, 4)]
    task.progress = told[-1]
    bench.context.runner._handle(task, told)
    bench.look()
    assert [ui.curveBox.itemData(n) for n in range(ui.curveBox.count)] == [plots.AGREEMENT, plots.LOSS]
    assert ui.matchNow.text == "Agreement with itself (not accuracy): 0.90"
    assert ui.progressLabel.text == "Learning, pass 5 of 5, 1 min 30 s left, then the check"
    assert bench.section.text == "3 Adapt - running, 1 min 30 s left"
    table = scene_makers.module_nodes("vtkMRMLTableNode")[0].GetTable()
    column = table.GetColumnByName("Agreement")
    assert [column.GetValue(n) for n in range(1, 4)] == pytest.approx([0.8, 0.85, 0.9])
    view = scene_makers.module_nodes("vtkMRMLPlotViewNode")[0]
    assert view.GetPlotChartNode().GetName() == "Agreement with itself"
    bench.picture(pictures, "curves")
    ui.curveBox.setCurrentIndex(1)
    bench.look()
    assert view.GetPlotChartNode().GetName() == "Loss"
    task.state = "cancelled"
    bench.adapt.site_jobs.dismiss(task)
    bench.look()
    assert not shown(ui.curvesBox)
    assert not bench.adapt.jobs.curves


# with the engine


def test_the_choices_go_into_the_job_and_the_adapters_record_and_its_curves_stay(bench, pictures):
    from peftseg import library

    ui = bench.ui
    bench.unlabelled("tiny-bn", 3)
    choose(bench, "convlora")
    ui.sitePassesBox.value = 3
    bench.adapt.site.ways.editors["confidence"].value = 0.25
    bench.look()
    ui.adaptButton.click()
    bench.wait(lambda: bench.context.runner.tasks[0].state == "running", what="the job")
    task = bench.context.runner.tasks[0]
    job = from_json((task.folder / "job.json").read_text(encoding="utf-8"))
    assert (job.preset, job.options, job.epochs) == ("convlora", {"confidence": 0.25}, 3)
    done = bench.wait(bench.adapt.site_jobs.finished, what="the verdict")
    bench.look()
    assert [row[0] for row in bench.adapt.jobs.curves[done.folder.name].rows] == [1, 2, 3]
    assert shown(ui.curvesBox)
    bench.picture(pictures, "curves_really")
    facts = library.show_adapter(Path(done.ending["adapter"]))
    assert facts["record"]["preset"] == "convlora"
    assert facts["record"]["epochs"] == 3
    assert {name: facts["options"][name] for name in ("confidence", "adabn")} == {"confidence": 0.25, "adabn": "none"}
