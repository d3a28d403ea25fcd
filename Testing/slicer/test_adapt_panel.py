"""Step 3: what can be adapted and why not, check, progress, result, left-out scans, going on, scene close and restart."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import scene_makers

BRIGHT, DARK = scene_makers.BRIGHT, scene_makers.DARK
STEP = 2  # index of the section


class Bench:
    """The module with a model, structures and labelled scans, as a person has prepared it in steps 1 and 2."""

    def __init__(self, module, host):
        self.main, self.host = module.main, host
        self.context = self.main.context
        self.panel = self.main.panels[STEP]
        self.ui, self.section = self.panel.ui, self.main.sections[STEP]
        host.wait_for(lambda: self.main.strip.examined, 20)
        self.main.unfold(3)

    def prepare(self, scans: int = 3, names: tuple[str, ...] = (BRIGHT, DARK)) -> list:
        from PEFTSegmentLib import structures

        self.context.state.model = "tiny"
        wanted = []
        for name in names:
            wanted.append(structures.proposed(name, self.context.model().structures, wanted))
        structures.write(self.context.state, wanted)
        pairs = [scene_makers.add_labelled_scan(n, names, f"Größe {n} é") for n in range(1, scans + 1)]
        for scan, labels in pairs:
            self.context.support.add(scan, labels)
        self.look()
        return pairs

    def look(self) -> None:
        self.host.process_events(120)

    def wait(self, condition, seconds: float = 120.0, what: str = "the condition"):
        return self.host.wait_for(condition, seconds, what)

    def picture(self, folder, name: str) -> None:
        for _ in range(2):  # wrapped labels settle at the second
            self.host.picture(self.section, folder / f"adapt_{name}.png", width=385)


@pytest.fixture
def bench(tiny_model, module, host) -> Bench:
    return Bench(module, host)


def shown(widget) -> bool:
    """Whether a widget is to be seen once its window is."""
    return not widget.isHidden()


def passes(number: int, total: int = 200, **more) -> dict:
    """A progress event as the engine sends it."""
    facts = {"loss": 1 / number, "match": {BRIGHT: 0.5, DARK: None}, "mean_rank": 16 - number / 50}
    return {"event": "progress", "stage": "train", "step": number, "total": total, "eta_s": 100.0, **facts, **more}


# before a job


def test_a_button_that_cannot_work_says_what_is_missing_one_after_the_other(bench, pictures):
    from peftseg.models import Structure
    from PEFTSegmentLib import structures

    ui, state = bench.ui, bench.context.state
    bench.look()
    assert not ui.adaptButton.enabled
    assert "Choose a model in step 1" in ui.adaptButton.toolTip
    assert bench.section.text == "3 Adapt"
    assert not ui.unlabelledButton.enabled
    assert "Choose a model in step 1" in ui.unlabelledButton.toolTip
    bench.picture(pictures, "nothing_yet")
    state.model = "tiny"
    bench.look()
    assert "Name a structure" in ui.adaptButton.toolTip
    structures.write(state, [Structure(BRIGHT, 1)])
    bench.look()
    assert "Label at least one scan" in ui.checkButton.toolTip
    scan, _labels = scene_makers.add_labelled_scan(1)
    bench.context.support.add(scan, _labels)
    bench.context.support.add(scene_makers.add_scan(2))
    bench.look()
    assert ui.adaptButton.enabled
    assert bench.section.text == "3 Adapt - ready"
    assert ui.summaryLabel.text.startswith("1 scan, 1 structure. From one scan it learns this one look only")
    assert "1 scan of the table is not ready" in ui.summaryLabel.text
    assert not ui.estimateBox.enabled
    assert ui.estimateHint.text == "Needs at least 3 ready scans."
    bench.context.engine_ready = lambda: "The engine is not installed"
    bench.context.refresh()
    bench.look()
    assert "The engine is not installed" in ui.adaptButton.toolTip
    bench.picture(pictures, "one_scan")


def test_a_model_whose_licence_is_not_accepted_or_whose_weights_are_missing_is_told(bench):
    bench.prepare(1)
    known = bench.context.models()
    away = next(entry for entry in known.values() if entry.weights_path is None)
    bench.context.state.model = away.id
    bench.look()
    assert "weights are not on this computer" in bench.ui.adaptButton.toolTip


def test_the_name_is_proposed_may_be_typed_and_must_not_be_taken(bench, own_home):
    ui, state = bench.ui, bench.context.state
    bench.prepare(1)
    today = time.strftime("%Y-%m-%d")
    assert ui.nameEdit.text == f"{BRIGHT} + {DARK}, {today}"
    assert state.adapterName == ""
    ui.nameEdit.text = "Größe, Klinik „Süd“"
    bench.look()
    assert bench.panel.name == state.adapterName == "Größe, Klinik „Süd“"
    ui.nameEdit.text = "x" * 101
    bench.look()
    assert "1 to 100 characters" in ui.adaptButton.toolTip
    ui.nameEdit.text = ""
    bench.look()
    assert ui.nameEdit.text.endswith(today)


def test_a_name_of_other_structures_is_taken_and_one_of_the_same_makes_a_version():
    from peftseg.models import Structure
    from PEFTSegmentLib.panels.adapt_choices import name_state

    rows = [
        {"name": "x", "version": 3, "base_id": "tiny", "structures": [BRIGHT], "problem": None},
        {"name": "x", "version": None, "base_id": None, "structures": None, "problem": "damaged"},
    ]
    assert name_state("x", rows, "tiny", [Structure(BRIGHT, 1)]) == (
        "",
        "There is an adapter of this name: this one becomes its version 4.",
    )
    assert "taken" in name_state("x", rows, "tiny", [Structure(DARK, 1)])[0]
    assert "taken" in name_state("x", rows, "other", [Structure(BRIGHT, 1)])[0]
    assert name_state("y", rows, "tiny", [Structure(DARK, 1)]) == ("", "")


def test_the_options_are_those_of_the_chosen_method(bench, pictures):
    from peftseg.adapters.table import METHODS

    ui, state, options = bench.ui, bench.context.state, bench.panel.options
    bench.prepare(1)
    ui.advancedBox.collapsed = False
    assert {ui.methodBox.itemData(n) for n in range(ui.methodBox.count)} == set(METHODS)
    assert set(options.editors) == {option.name for option in METHODS["lora"].options}
    options.editors["rank"].value = 4
    options.editors["alpha"].text = "8,5"
    options.editors["form"].setCurrentIndex(1)
    bench.look()
    assert json.loads(state.methodOptions) == {"rank": 4, "alpha": 8.5, "form": "loralib"}
    assert options.editors["alpha"].text == "8,5"  # as it was typed
    options.editors["alpha"].text = "much"
    bench.look()
    assert not ui.adaptButton.enabled
    assert "alpha" in ui.adaptButton.toolTip
    options.editors["alpha"].text = ""
    options.editors["rank"].value = 16
    bench.look()
    assert json.loads(state.methodOptions) == {"form": "loralib"}  # what is not the default
    ui.methodBox.setCurrentIndex(ui.methodBox.findData("arena"))
    ui.minutesBox.value = 7
    ui.seedBox.value = 3
    ui.deviceBox.setCurrentIndex(ui.deviceBox.findData("cpu"))
    bench.look()
    assert (state.method, state.methodOptions, state.minutes, state.seed, state.device) == (
        "arena",
        "{}",
        7.0,
        3,
        "cpu",
    )
    assert set(options.editors) == {option.name for option in METHODS["arena"].options}
    assert "shrinking" in options.editors["lam"].toolTip
    bench.picture(pictures, "advanced")
    ui.defaultsButton.click()
    bench.look()
    assert (state.method, state.minutes, state.seed, state.device) == ("", 0.0, 0, "auto")
    assert ui.methodBox.currentData == "lora"


def test_looking_stays_quick_with_many_scans_segments_and_adapters(bench):
    pairs = bench.prepare(3)
    for n in range(47):
        bench.context.support.add(scene_makers.add_scan(n))
    for n in range(500):
        pairs[0][1].GetSegmentation().AddEmptySegment("", f"other {n}")
    bench.look()
    bench.panel.refresh()


# curves


def test_curves_are_one_set_of_hidden_nodes_that_are_not_saved(bench, pictures, tmp_path):
    import slicer

    from PEFTSegmentLib import plots

    curves = [plots.Curves(((BRIGHT, (200, 0, 0)), (DARK, (0, 0, 200)))) for _ in range(2)]
    plot = bench.panel.curves.plot
    for one in curves:
        for number in range(1, 101):
            one.add(passes(number))
            plot.show(one, plots.RANK)
    bench.host.picture(plot._widget, pictures / "adapt_curve_rank.png", width=340, height=190)
    kinds = {"vtkMRMLTableNode": 1, "vtkMRMLPlotSeriesNode": 5, "vtkMRMLPlotChartNode": 4, "vtkMRMLPlotViewNode": 1}
    for kind, count in kinds.items():
        nodes = scene_makers.module_nodes(kind)
        assert len(nodes) == count
        assert all(node.GetHideFromEditors() and not node.GetSaveWithScene() for node in nodes)
    table = scene_makers.module_nodes("vtkMRMLTableNode")[0].GetTable()
    assert table.GetNumberOfRows() == 100
    assert table.GetColumnByName("Loss").GetValue(9) == pytest.approx(0.1)
    assert np.isnan(table.GetColumnByName("Match1").GetValue(9))  # nothing of it was in a patch
    slicer.util.saveScene(str(tmp_path / "scene.mrml"))
    assert "PlotSeries" not in (tmp_path / "scene.mrml").read_text(encoding="utf-8")
    slicer.mrmlScene.Clear(0)
    assert not any(scene_makers.module_nodes(kind) for kind in kinds), "Slicer makes a second view for what is left"
    bench.look()
    curves[1].add(passes(101))
    plot.show(curves[1], plots.LOSS)
    assert scene_makers.module_nodes("vtkMRMLTableNode")[0].GetNumberOfRows() == 101
    assert len(scene_makers.module_nodes("vtkMRMLPlotSeriesNode")) == 5
    view = scene_makers.module_nodes("vtkMRMLPlotViewNode")[0]
    assert view.GetParentLayoutNode() is not None  # Slicer's layout manager leaves it alone
    assert view.GetPlotChartNode().GetName() == "Loss"
    plot.remove()
    assert not any(scene_makers.module_nodes(kind) for kind in kinds)


def test_a_chart_that_is_chosen_elsewhere_never_replaces_the_curves(host):
    import qt
    import slicer

    from PEFTSegmentLib import plots

    window = qt.QWidget()
    plot = plots.CurvePlot(
        qt.QVBoxLayout(window), lambda: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    )
    for _scene in range(2):
        curves = plots.Curves(((BRIGHT, (200, 0, 0)),))
        curves.add(passes(1))
        plot.show(curves, plots.LOSS)
        view = scene_makers.module_nodes("vtkMRMLPlotViewNode")[0]
        assert not view.GetDoPropagatePlotChartSelection()
        slicer.mrmlScene.Clear(0)  # without a word to the plot: the nodes are reset, and filled anew
    plot.remove()
    window.deleteLater()


def test_the_curves_are_looked_at_again_when_they_are_unfolded(bench):
    looks = []
    bench.look()
    bench.context.on_refresh(lambda: looks.append(1))
    for fold in (bench.ui.curvesBox, bench.section):
        for collapsed in (True, False):
            bench.look()
            looks.clear()
            fold.collapsed = collapsed
            bench.look()
            assert looks


def test_the_hosts_plot_view_is_as_strict_as_slicers(host):
    import slicer

    view = slicer.qMRMLPlotView()
    view.setMRMLScene(slicer.mrmlScene)
    view.setMRMLPlotViewNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotViewNode"))
    view.setMRMLPlotViewNode(None)
    with pytest.raises(AttributeError):
        view.mrmlPlotViewNode()  # no slot in Slicer's class
    with pytest.raises(ValueError, match="no vtkMRMLPlotViewNode"):
        view.setMRMLPlotViewNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode"))


def test_a_resumed_run_replaces_what_it_tells_again():
    from PEFTSegmentLib.plots import Curves

    curves = Curves(((BRIGHT, (200, 0, 0)),))
    for number in (1, 2, 3, 4, 3, 4, 5):
        assert curves.add(passes(number, loss=float(number)))
    assert [row[0] for row in curves.rows] == [1, 2, 3, 4, 5]
    assert curves.taken_back == 2
    assert not curves.add(passes(6, left_out=2))  # an estimate's training is another one
    assert not curves.add({"event": "progress", "stage": "train", "step": 0, "total": 9})


def test_progress_is_told_in_words(bench):
    from PEFTSegmentLib.panels import adapt_progress
    from PEFTSegmentLib.runner import Task

    note = {"purpose": "adapt", "scans": ["a", "b", "c"], "estimate": False}
    task = Task(bench.context.resources, note, state="queued")
    assert adapt_progress.stage(task)[0] == "Starting..."
    task.note["waits"] = True
    assert adapt_progress.stage(task)[0] == "Waiting for another job to end..."
    task.state, task.progress = "running", passes(61)
    assert adapt_progress.stage(task) == ("Pass 61 of 200 (may stop earlier), 1 min 40 s left", 61, 200)
    assert adapt_progress.title_state(task) == "running, 1 min 40 s left"
    task.note["estimate"] = True
    assert adapt_progress.stage(task)[1:] == (61, 800)
    task.progress = passes(100, left_out=2)
    text, value, maximum = adapt_progress.stage(task)
    assert text.startswith("Estimating the accuracy: scan 2 of 3, ")
    assert value / maximum == pytest.approx(2.5 / 4, abs=0.01)
    task.progress = {"stage": "choose", "step": 30, "total": 120, "eta_s": 210.0, "trying": "LoRA", "without": 2}
    assert adapt_progress.stage(task) == ("Trying out the method, 3 min 30 s left", 30, 120)
    assert adapt_progress.match_now({BRIGHT: 0.912, DARK: None}) == (
        "Match to your own labels (not accuracy): bright ball 0.91"
    )


def ended(bench, tmp_path, state: str, ending: dict, **note) -> object:
    """Put an adaptation that has ended on the list, and tell the panel of it."""
    from PEFTSegmentLib.panels.adapt_jobs import ADAPT
    from PEFTSegmentLib.runner import Task

    facts = {"purpose": ADAPT, "title": "x", "adapter": "x", "scans": [], "structures": [], "colours": [], **note}
    task = Task(tmp_path / "job", facts, state=state, ending={"event": state, **ending})
    task.folder.mkdir()
    bench.context.runner.tasks.append(task)
    bench.context.runner._handle(task, [task.ending])
    return task


def test_out_of_memory_is_one_dialog_with_remedy_and_details(bench, host, tmp_path):
    bench.prepare(1)
    host.dialogs.expect("OK")
    facts = {"message": "Scan 1: the memory does not suffice.", "remedy": "Close other programs.", "log": "the log"}
    ended(bench, tmp_path, "failed", facts, adapter="Größe")
    bench.look()
    dialog = host.dialogs.shown[0]
    assert dialog.text == "The adaptation 'Größe' did not finish."
    assert dialog.informative == "Scan 1: the memory does not suffice.\n\nClose other programs."
    assert dialog.details == "the log"
    assert not bench.context.runner.tasks
    assert not (tmp_path / "job").exists()


def test_what_failed_while_slicer_was_closed_is_told_in_the_panel_without_a_dialog(bench, tmp_path):
    facts = {"message": "The disk is full.", "remedy": "Free some space."}
    ended(bench, tmp_path, "failed", facts, adapter="Größe", earlier=True)
    bench.context.refresh()
    bench.look()
    assert bench.ui.resumeLabel.text == "The adaptation 'Größe' did not finish. The disk is full. Free some space."
    assert not shown(bench.ui.goOnButton)
    bench.ui.discardButton.click()
    bench.look()
    assert not shown(bench.ui.resumeFrame)


def test_a_full_disk_is_told_before_anything_is_written(bench, host, monkeypatch):
    from peftseg import jobs
    from PEFTSegmentLib import exchange

    bench.prepare(1)
    monkeypatch.setattr(exchange.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 1000}))
    host.dialogs.expect("OK")
    bench.ui.adaptButton.click()
    assert host.dialogs.shown[0].text == "The adaptation could not be started."
    assert "0.0 GB free" in host.dialogs.shown[0].informative
    assert not list(jobs.jobs_dir().iterdir())


def test_an_adapter_that_the_library_did_not_take_is_not_lost(bench, host, tmp_path):
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"an adapter")
    facts = {"ref": None, "name": "Größe", "version": 1, "adapter": str(file), "estimate": None}
    task = ended(bench, tmp_path, "finished", facts)
    bench.context.refresh()
    bench.look()
    assert "is not in the library yet" in bench.ui.doneLabel.text
    assert not shown(bench.ui.applyButton)
    host.dialogs.expect("OK")
    bench.ui.saveButton.click()  # it is damaged: still not taken
    assert host.dialogs.shown[0].text == "The adapter could not be put into the library."
    host.dialogs.expect("Keep it")
    bench.ui.closeButton.click()
    bench.look()
    assert task in bench.context.runner.tasks
    host.dialogs.expect("Delete it")
    bench.ui.closeButton.click()
    bench.look()
    assert not task.folder.exists()


def test_a_method_that_was_chosen_by_the_scans_is_named_and_the_reason_is_in_the_tooltip(bench, tmp_path):
    choice = {"label": "LoRA, rank 32", "why": ["Tried LoRA and ARENA.", "LoRA, rank 32: +0.010 Dice: taken."]}
    facts = {"ref": "x-v1", "name": "x", "version": 1, "adapter": "", "estimate": None, "choice": choice}
    ended(bench, tmp_path, "finished", facts)
    bench.context.refresh()
    bench.look()
    assert bench.ui.doneLabel.text == "Adapter 'x', version 1, saved. Method chosen: LoRA, rank 32."
    assert all(sentence in bench.ui.doneLabel.toolTip for sentence in choice["why"])


def test_long_names_do_not_widen_the_panel(bench, tmp_path, pictures):
    names = ("left_superior_longitudinal_fasciculus_part_two_of_three", "Ä" * 60, "with many small words in its name")
    bench.prepare(1)
    values = {name: [0.5, 0.75, None] for name in names}
    facts = {"ref": "x-v1", "name": names[0], "version": 12, "adapter": "", "estimate": values}
    note = {"adapter": names[0], "structures": list(names), "colours": [[200, 0, 0]] * 3}
    task = ended(bench, tmp_path, "finished", facts, **note)
    task.warnings.append("Scan 1: " + "w" * 90)
    for number in range(1, 40):
        bench.panel.jobs.curves[task.folder.name].add(passes(number, match=dict.fromkeys(names, number / 40)))
    bench.ui.nameEdit.text = names[0]
    bench.context.refresh()
    bench.look()
    bench.picture(pictures, "long_names")
    assert bench.section.minimumSizeHint.width() <= 385
    assert bench.main.form.minimumSizeHint.width() <= 420


# with the engine


def test_a_model_that_matches_already_says_so_and_asks(bench, pictures):
    ui = bench.ui
    scan, labels = bench.prepare(1, (BRIGHT,))[0]
    paint_as_the_model_does(scan, labels)
    bench.ui.nameEdit.text = "not needed"
    bench.look()
    ui.adaptButton.click()
    bench.look()
    assert bench.section.text == "3 Adapt - checking"
    assert not ui.adaptButton.enabled
    bench.wait(lambda: not bench.context.runner.busy and shown(ui.asItIsFrame), what="the question")
    assert ui.asItIsLabel.text.startswith("The model already matches your labels. bright ball: 1.00")
    assert ui.costLabel.text.startswith("About ")
    assert "of " in ui.costLabel.text
    assert ui.warningsLabel.text.count("•") >= 1  # one scan only
    bench.picture(pictures, "matches_already")
    assert not bench.context.runner.tasks
    ui.asItIsButton.click()
    bench.look()
    assert not shown(ui.asItIsFrame)
    assert not bench.main.sections[3].collapsed
    paint(scan, labels, np.indices((24, 24, 24)).sum(0) < 20)
    bench.context.refresh()
    bench.look()
    assert ui.costLabel.text.startswith("Before the last changes: ")
    assert "already matches" not in ui.warningsLabel.text


def test_a_check_that_fails_is_one_dialog_with_the_remedy(bench, host, own_home):
    bench.prepare(1, (BRIGHT,))
    (own_home / "models" / "tiny" / "weights.safetensors").write_bytes(b"damaged")
    host.dialogs.expect("OK")
    bench.ui.adaptButton.click()
    bench.wait(lambda: host.dialogs.shown, what="the dialog")
    dialog = host.dialogs.shown[0]
    assert dialog.text == "The check before adapting did not finish."
    assert "\n\n" in dialog.informative  # why, and what to do
    bench.wait(lambda: not bench.context.runner.busy)
    assert bench.section.text == "3 Adapt - ready"


def test_scans_that_cannot_be_used_are_one_dialog_that_names_them(bench, host):
    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels import adapt_jobs

    pairs = bench.prepare(2)
    tokens = [scans.token(scan) for scan, _labels in pairs]
    found = [{"scan": n, "message": f"Scan {n}: it is empty.", "remedy": "Label it."} for n in (1, 2)]
    problem = adapt_jobs._problem(found, tokens)
    assert problem.what == "Nothing was adapted: 2 scans cannot be used."
    assert problem.why == "Scan 1 (Größe 1 é): it is empty.\nScan 2 (Größe 2 é): it is empty."
    assert problem.remedy == "Label it."


@pytest.mark.slow
def test_cancelled_in_the_estimate_gone_on_with_saved_looked_at_and_applied(bench, host, pictures):
    import slicer

    from peftseg import library

    ui, state, panel = bench.ui, bench.context.state, bench.panel
    pairs = bench.prepare(3)
    ui.estimateBox.checked = True
    ui.methodBox.setCurrentIndex(ui.methodBox.findData("arena"))
    ui.nameEdit.text = "Größe, site A"
    state.minutes = 0.06
    bench.look()
    assert ui.estimateHint.text == "Leaves each scan out once and segments it. Takes about 4 times as long."
    ui.adaptButton.click()
    bench.wait(lambda: shown(ui.curvesBox), what="the first curve")
    assert ui.matchNow.text.startswith("Match to your own labels (not accuracy): ")
    bench.wait(lambda: ui.progressLabel.text.startswith("Estimating"), what="the estimate")
    bench.picture(pictures, "running")
    assert [ui.curveBox.itemData(n) for n in range(ui.curveBox.count)] == ["Match", "Loss", "Rank"]
    ui.cancelButton.click()
    bench.wait(lambda: shown(ui.resumeFrame), what="the offer to go on")
    assert ui.resumeLabel.text == "The adaptation 'Größe, site A' was cancelled. What it had learnt is kept."
    assert bench.section.text == "3 Adapt - 'Größe, site A' did not finish"
    bench.picture(pictures, "cancelled")
    folder = panel.running.unfinished().folder
    bench.context.support.remove(bench.context.support.rows()[0].key)
    bench.look()
    assert not ui.goOnButton.enabled
    assert "not all loaded" in ui.goOnButton.toolTip
    bench.context.support.add(*pairs[0])
    bench.look()
    ui.goOnButton.click()
    done = bench.wait(panel.jobs.finished, what="the adapter")
    bench.look()
    assert done.folder == folder
    assert ui.doneLabel.text == "Adapter 'Größe, site A', version 1, saved."
    assert bench.section.text == "3 Adapt - 'Größe, site A' saved"
    assert [row["ref"] for row in library.list_adapters()] == ["Größe, site A-v1"]
    lines = ui.estimateResult.text.splitlines()
    assert lines[1].startswith(f"{BRIGHT}: 0.")
    values = [float(part.split()[0]) for part in lines[1].partition(": ")[2].split(", ")]
    assert values == sorted(values)
    assert len(values) == 3
    assert "mean" not in ui.estimateResult.text
    bench.picture(pictures, "saved")
    look_at_the_left_out_scans(bench, host, pairs, pictures)
    ui.applyButton.click()
    assert state.adapter == "Größe, site A-v1"
    close_the_result(bench)
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == [labels for _scan, labels in pairs]


def close_the_result(bench) -> None:
    from peftseg import jobs

    bench.ui.closeButton.click()
    bench.wait(lambda: not bench.context.runner.busy)
    bench.look()
    assert not list(jobs.jobs_dir().iterdir())
    assert not shown(bench.ui.doneFrame)


def look_at_the_left_out_scans(bench, host, pairs, pictures) -> None:
    import slicer

    from PEFTSegmentLib.panels.adapt_review import TEMPORARY

    ui = bench.ui
    ui.lookButton.click()
    bench.look()
    assert ui.reviewLabel.text.startswith("Scan 1 of 3 (Größe ")
    worst = bench.panel.result.review.cases[0]
    assert worst.worst == min(case.worst for case in bench.panel.result.review.cases)
    loaded = [n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n.GetAttribute(TEMPORARY)]
    colours = {n.GetSegmentation().GetNthSegment(0).GetColor() for n in loaded}
    assert len(loaded) == len(colours) == 3
    assert not any(labels.GetDisplayNode().GetVisibility() for _scan, labels in pairs)
    bench.picture(pictures, "left_out")
    host.slice_picture(pictures / "adapt_left_out_red.png")
    assert not ui.previousButton.enabled
    ui.nextButton.click()
    ui.nextButton.click()
    bench.look()
    assert ui.reviewLabel.text.startswith("Scan 3 of 3")
    assert not ui.nextButton.enabled
    ui.endReviewButton.click()
    bench.look()
    assert not shown(ui.reviewFrame)
    assert all(labels.GetDisplayNode().GetVisibility() for _scan, labels in pairs)


@pytest.mark.slow
def test_an_adaptation_survives_scene_close_and_a_restart_and_another_one_waits(bench, host, pictures):
    import slicer

    from PEFTSegmentLib.panels.adapt_jobs import ADAPT

    ui, runner = bench.ui, bench.context.runner
    pairs = bench.prepare(3)
    ui.nameEdit.text = "first"
    bench.context.state.minutes = 2.0
    bench.look()
    ui.adaptButton.click()
    bench.wait(lambda: shown(ui.curvesBox), what="the first curve")
    ui.nameEdit.text = "second"
    bench.look()
    ui.adaptButton.click()  # the check is still valid: it is asked for at once
    bench.look()
    assert [task.note["adapter"] for task in runner.of(ADAPT)] == ["first", "second"]
    assert ui.waitingLabel.text == "1 more waiting."
    runner.cancel(runner.of(ADAPT)[1])
    bench.wait(lambda: len(runner.of(ADAPT)) == 1)
    slicer.mrmlScene.RemoveNode(pairs[0][0])
    slicer.util.selectModule("Segmentations")
    bench.look()
    assert shown(ui.runFrame)
    slicer.mrmlScene.Clear(0)
    bench.look()
    assert ui.runTitle.text == "Adapt: first"
    assert shown(ui.curvesBox)
    bench.picture(pictures, "scene_closed")
    handle = runner.of(ADAPT)[0].handle
    host.unload_module("PEFTSegment")
    assert not slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    again = Bench(reopened(host), host)
    again.wait(lambda: shown(again.ui.curvesBox), what="its curve in the new session")
    assert again.ui.runTitle.text == "Adapt: first"
    again.ui.stopButton.click()
    again.wait(lambda: shown(again.ui.doneFrame), what="its result in the new session")
    handle.wait(60)  # this Python started the process: without this it would warn of one that it never waited for
    assert again.ui.doneLabel.text == "Adapter 'first', version 1, saved."
    assert again.ui.estimateResult.text == "Accuracy: not estimated."
    again.picture(pictures, "another_session")
    again.ui.closeButton.click()
    again.look()


def reopened(host):
    from pathlib import Path

    host.load_module(Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py")
    return host.show_module("PEFTSegment")


def paint(scan, labels, mask: np.ndarray) -> None:
    import slicer

    segment_id = labels.GetSegmentation().GetNthSegmentID(0)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), labels, segment_id, scan)


def paint_as_the_model_does(scan, labels) -> None:
    """Label a scan with what the tiny model itself makes of it."""
    import slicer
    import torch

    from peftseg.grid import Grid
    from peftseg.models import resolve
    from peftseg.segmenter import entry_segmenter, segment_volume
    from peftseg.volume import Volume
    from PEFTSegmentLib import scans

    array = slicer.util.arrayFromVolume(scan)
    volume = Volume(array.transpose(2, 1, 0).astype(np.float32), Grid(array.shape[::-1], scans.ijk_to_world(scan)), "x")
    result = segment_volume(entry_segmenter(resolve("tiny")), volume, torch.device("cpu"))
    paint(scan, labels, np.asarray(result == 1).transpose(2, 1, 0))
