"""The unlabelled choice of step 3, and the question of step 4 which adapter fits."""

from __future__ import annotations

import shutil

import pytest
import scene_makers
from adapter_makers import make_adapter

BRIGHT, DARK = scene_makers.BRIGHT, scene_makers.DARK
LONG = "Größe_" + "unterarm_mit_sehr_langem_namen_" * 3


class Bench:
    """The module with steps 3 and 4 open."""

    def __init__(self, module, host):
        self.main, self.host = module.main, host
        self.context, self.state = self.main.context, self.main.context.state
        self.adapt, self.apply = self.main.panels[2], self.main.panels[3]
        self.ui, self.apply_ui = self.adapt.ui, self.apply.ui
        self.section = self.main.sections[2]
        self.main.unfold(3)

    def look(self) -> None:
        self.context.refresh()
        self.host.process_events(120)

    def wait(self, condition, seconds: float = 180.0, what: str = "the condition"):
        return self.host.wait_for(condition, seconds, what)

    def picture(self, folder, name: str, step: int = 3) -> None:
        for _ in range(2):  # wrapped labels settle at the second
            self.host.picture(self.main.sections[step - 1], folder / f"site_{name}.png", width=385)

    def unlabelled(self, model: str, scans: int = 3) -> list:
        """Choose a model and the unlabelled way, with so many scans loaded."""
        self.state.model = model
        volumes = [scene_makers.add_scan(n, f"Größe {n} é") for n in range(1, scans + 1)]
        self.look()
        self.ui.unlabelledButton.click()
        self.look()
        return volumes

    def ticked(self) -> list[str]:
        box = self.ui.siteScans
        items = [box.item(n) for n in range(box.count)]
        return [item.text() for item in items if item.checkState()]

    def tick(self, row: int, on: bool) -> None:
        self.ui.siteScans.item(row).setCheckState(2 if on else 0)
        self.look()


@pytest.fixture
def bench(tiny_model, module, host) -> Bench:
    return Bench(module, host)


@pytest.fixture
def site_model(own_home) -> str:
    """The id of a tiny model with batch normalisation."""
    return scene_makers.install_site_model(own_home)


def shown(widget) -> bool:
    return not widget.isHidden()


# what is chosen


def test_the_unlabelled_choice_says_why_it_cannot_be_taken(bench, monkeypatch, pictures):
    from dataclasses import replace

    button = bench.ui.unlabelledButton
    bench.look()
    assert not button.enabled
    assert "Choose a model in step 1 first" in button.toolTip
    bench.state.model = "tiny"
    entry = bench.context.models()["tiny"]
    monkeypatch.setitem(bench.context.models(), "tiny", replace(entry, structures=()))
    bench.look()
    assert not button.enabled
    assert "Tiny test model finds no structure by itself" in button.toolTip
    monkeypatch.setitem(bench.context.models(), "tiny", entry)
    bench.look()
    assert button.enabled
    button.click()
    bench.look()
    assert not bench.state.labelled
    assert shown(bench.ui.siteFrame)
    assert not bench.ui.adaptButton.enabled
    assert "Load scans of the new scanner first" in bench.ui.adaptButton.toolTip
    assert not any(shown(w) for w in (bench.ui.estimateBox, bench.ui.checkButton, bench.ui.methodBox))
    bench.context.engine_ready = lambda: "The engine is not installed"
    bench.look()
    assert "The engine is not installed" in bench.ui.adaptButton.toolTip
    bench.ui.labelledButton.click()
    bench.look()
    assert bench.state.labelled
    assert not shown(bench.ui.siteFrame)
    assert shown(bench.ui.checkButton)
    assert shown(bench.ui.methodBox)
    assert not shown(bench.ui.methodFrame)  # "Advanced" is folded
    bench.ui.advancedBox.collapsed = False
    assert bench.ui.methodBox.isVisibleTo(bench.ui.advancedBox)
    bench.picture(pictures, "labelled_again")
    bench.ui.unlabelledButton.click()
    bench.look()
    assert bench.ui.seedBox.isVisibleTo(bench.ui.advancedBox)
    assert not bench.ui.methodBox.isVisibleTo(bench.ui.advancedBox)
    bench.picture(pictures, "advanced")


def test_all_scans_without_labels_are_ticked_first_and_few_are_warned_of(bench, pictures):
    ui = bench.ui
    bench.unlabelled("tiny", 3)
    scan, labels = scene_makers.add_labelled_scan(5, name="labelled")
    bench.context.support.add(scan, labels)
    in_table = scene_makers.add_scan(6, "in the table, without labels")
    bench.context.support.add(in_table)
    bench.look()
    names = ["Größe 1 é", "Größe 2 é", "Größe 3 é", "in the table, without labels"]
    assert bench.ticked() == names
    assert ui.siteCaption.text == "4 of 4 scans without labels:"
    assert "It learns no new structure" in ui.siteAbout.text
    assert BRIGHT in ui.siteAbout.text
    assert not shown(ui.siteHint)
    assert ui.adaptButton.enabled
    assert bench.section.text == "3 Adapt - ready"
    bench.picture(pictures, "chosen")
    bench.tick(1, False)
    bench.tick(3, False)
    assert bench.ticked() == [names[0], names[2]]
    assert ui.siteHint.text.startswith("Only 2 scans: that says little about the scanner. Take at least 3, better 10.")
    assert ui.adaptButton.enabled
    ui.siteNoneButton.click()
    bench.look()
    assert bench.ticked() == []
    assert "Tick at least one scan" in ui.adaptButton.toolTip
    bench.picture(pictures, "none_ticked")
    ui.siteAllButton.click()
    bench.look()
    assert bench.ticked() == names
    bench.tick(0, False)
    scene_makers.add_scan(7, "one more")
    bench.look()
    assert bench.ticked() == [*names[1:], "one more"]


def test_scans_of_another_kind_and_long_names_are_shown_within_the_width(bench, pictures):
    ui = bench.ui
    bench.unlabelled("tiny", 1)
    scene_makers.add_scan(2, LONG)
    scene_makers.add_ct()
    ui.nameEdit.text = LONG[:95]
    bench.look()
    assert "CT: its grey values look like CT; Tiny test model was made for MR." in ui.siteHint.text
    assert ui.siteScans.item(1).toolTip() == LONG
    bench.picture(pictures, "long_names")
    assert bench.section.minimumSizeHint.width() <= 385
    assert bench.main.form.minimumSizeHint.width() <= 420


def test_a_model_for_both_kinds_of_scan_is_not_warned_of_either(bench):
    from dataclasses import replace

    from PEFTSegmentLib import checks

    entry, ct = bench.context.models()["tiny"], scene_makers.add_ct()
    assert checks.of_another_kind(ct, replace(entry, modality="CT and MR")) == []
    assert checks.of_another_kind(ct, replace(entry, modality="PET/MRI")) == [
        "its grey values look like CT; Tiny test model was made for MR"
    ]


def test_the_two_ways_have_names_of_their_own(bench):
    ui, state = bench.ui, bench.state
    bench.unlabelled("tiny", 1)
    assert ui.nameEdit.text.startswith("Tiny test model, new scanner, 20")
    ui.nameEdit.text = "scanner Ä"
    bench.look()
    assert (state.siteName, state.adapterName, bench.adapt.site.name) == ("scanner Ä", "", "scanner Ä")
    ui.labelledButton.click()
    bench.look()
    assert ui.nameEdit.text == ""
    ui.unlabelledButton.click()
    bench.look()
    assert ui.nameEdit.text == "scanner Ä"
    ui.nameEdit.text = "x" * 101
    bench.look()
    assert "1 to 100 characters" in ui.adaptButton.toolTip


# words


def test_every_stage_is_told_in_plain_words(tmp_path):
    from PEFTSegmentLib.panels import adapt_progress, site_words
    from PEFTSegmentLib.runner import Task

    task = Task(tmp_path, {"purpose": "x", "title": "x", "scans": []}, state="running")

    def words(stage: str = "", step: int = 0, total: int = 0, **more) -> tuple:
        task.progress = {"stage": stage, "step": step, "total": total, "eta_s": None, **more} if stage else {}
        return site_words.stage(task, adapt_progress.stage(task))

    assert words()[0] == "Starting..."
    assert words("read", 2, 10) == ("Reading the scans: 2 of 10", 2, 10)
    assert words("match", 1, 2)[0] == "Comparing the brightness with that of scans that the model knows: 1 of 2"
    assert words("early_head", 3, 20)[0] == "Preparing a second opinion of the model on the scans: 3 of 20"
    assert words("recalibrate", 1, 3) == ("Getting used to the grey values: 1 of 3", 1, 3)
    assert words("train", 0, 5) == ("Learning, pass 1 of 5", 0, 5)
    assert words("train", 2, 5, eta_s=100.0)[0] == "Learning, pass 3 of 5, 1 min 40 s left, then the check"
    assert words("train", 5, 5)[0] == "Learnt; the check is next..."
    assert words("gate", 0, 2) == ("Looking at the model's results as it is...", 0, 0)
    assert words("gate", 1, 2) == ("Checking the results after the adaptation...", 0, 0)
    task.note["part"] = {"stage": "gate", "step": 1, "total": 2}
    assert words("windows", 3, 9)[0] == "Checking the results after the adaptation..."
    task.stopping = True
    assert words("gate", 1, 2)[0] == "Stopping..."
    task.note["keeps"] = True
    assert words("gate", 1, 2)[0] == "Checking the results after the adaptation..."


def test_the_engines_numbers_of_several_scans_get_their_names(host):
    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels.adapt_progress import with_names

    tokens = [scans.token(scene_makers.add_scan(n, f"Größe {n}")) for n in (1, 2, 3)]
    assert with_names("Scan 3: no 4 mm.", tokens) == "Scan 3 (Größe 3): no 4 mm."
    said = "Scans 1, 2 and 3 of 10 differ; 6 of 10 scans are larger, Scans 7 and 1 not."
    assert with_names(said, tokens) == (
        "Scans 1 (Größe 1), 2 (Größe 2) and 3 (Größe 3) of 10 differ; 6 of 10 scans are larger, Scans 7 and 1 (Größe 1) not."
    )


# the verdict


def judged(bench, folder, status: str, file=None, **note):
    """Put a finished adaptation on the list."""
    from PEFTSegmentLib.panels.site_jobs import SITE
    from PEFTSegmentLib.runner import Task

    reasons = [
        "The volume of bright ball changed by 41 % on 6 of 10 scans, which is more than the scans of one site differ by.",
        "The two results of the model agree less than before (0.71 instead of 0.83; 1 is complete agreement).",
    ]
    ending = {
        "event": "finished",
        "adapter": str(folder / "job" / "adapter.safetensors"),
        "verdict": {"status": status, "reasons": reasons, "facts": {}},
        "name": "scanner Ä",
        "version": 1,
        "ref": None,
    }
    (folder / "job").mkdir(parents=True)
    if file is not None:
        shutil.copy(file, ending["adapter"])
    facts = {"purpose": SITE, "title": "x", "adapter": "scanner Ä", "scans": [], **note}
    task = Task(folder / "job", facts, state="finished", ending=ending)
    bench.context.runner.tasks.append(task)
    bench.context.runner._handle(task, [ending])
    bench.look()
    return task


def test_an_accepted_adapter_is_kept_when_the_user_says_so(bench, host, tmp_path, pictures):
    from peftseg import library

    ui = bench.ui
    bench.unlabelled("tiny", 3)
    task = judged(bench, tmp_path, "accepted", make_adapter(tmp_path / "made.safetensors", name="scanner Ä"))
    assert ui.verdictLabel.text == "Accepted: 'scanner Ä' passed the check and can be kept."
    assert ui.verdictReasons.text.count("•") == 2
    assert "6 of 10 scans" in ui.verdictReasons.text
    assert ui.keepButton.text == "Keep it"
    assert bench.section.text == "3 Adapt - keep 'scanner Ä'?"
    assert library.list_adapters() == []
    bench.picture(pictures, "accepted")
    host.dialogs.expect("Cancel")
    ui.verdictCloseButton.click()
    bench.look()
    assert task in bench.context.runner.tasks
    ui.keepButton.click()
    bench.look()
    assert [row["ref"] for row in library.list_adapters()] == ["scanner Ä-v1"]
    assert ui.verdictLabel.text == "Adapter 'scanner Ä', version 1, saved."
    assert not shown(ui.keepButton)
    assert bench.section.text == "3 Adapt - 'scanner Ä' saved"
    bench.picture(pictures, "kept")
    ui.verdictApplyButton.click()
    assert bench.state.adapter == "scanner Ä-v1"
    ui.verdictCloseButton.click()
    bench.look()
    assert not shown(ui.verdictFrame)
    assert not task.folder.exists()


def test_a_version_that_was_taken_meanwhile_becomes_the_next_one(bench, tmp_path):
    from peftseg import library

    bench.unlabelled("tiny", 1)
    library.store(make_adapter(tmp_path / "other.safetensors", name="scanner Ä", seed=3))
    judged(bench, tmp_path, "warning", make_adapter(tmp_path / "made.safetensors", name="scanner Ä"))
    assert bench.ui.verdictLabel.text.startswith("Accepted with a warning: 'scanner Ä' can be kept")
    bench.ui.keepButton.click()
    bench.look()
    assert bench.ui.verdictLabel.text == "Adapter 'scanner Ä', version 2, saved."
    assert [row["ref"] for row in library.list_adapters()] == ["scanner Ä-v1", "scanner Ä-v2"]


def test_what_is_refused_is_discarded_without_a_question_and_a_damaged_file_is_told(bench, host, tmp_path, pictures):
    from peftseg import library

    ui = bench.ui
    bench.unlabelled("tiny", 1)
    task = judged(bench, tmp_path, "refused")
    assert ui.verdictLabel.text.startswith("Refused: keep using the model as it is. 'scanner Ä' would probably")
    assert "nothing was saved" in ui.verdictLabel.text
    assert ui.keepButton.text == "Keep it all the same"
    assert bench.section.text == "3 Adapt - 'scanner Ä' refused"
    bench.picture(pictures, "refused")
    host.dialogs.expect("OK")
    ui.keepButton.click()  # its file is gone
    assert host.dialogs.shown[0].text == "The adapter could not be put into the library."
    ui.verdictCloseButton.click()
    bench.look()
    assert task not in bench.context.runner.tasks
    assert library.list_adapters() == []


def test_a_failure_is_one_dialog_with_the_remedy(bench, host, tmp_path):
    from PEFTSegmentLib.panels.site_jobs import SITE
    from PEFTSegmentLib.runner import Task

    bench.unlabelled("tiny", 1)
    host.dialogs.expect("OK")
    ending = {"event": "failed", "message": "All scans are constant.", "remedy": "Check the scans.", "log": "the log"}
    facts = {"purpose": SITE, "title": "x", "adapter": "scanner Ä", "scans": []}
    task = Task(tmp_path / "job", facts, state="failed", ending=ending)
    task.folder.mkdir()
    bench.context.runner.tasks.append(task)
    bench.context.runner._handle(task, [ending])
    bench.look()
    dialog = host.dialogs.shown[0]
    assert (dialog.text, dialog.details) == ("The adaptation 'scanner Ä' did not finish.", "the log")
    assert dialog.informative == "All scans are constant.\n\nCheck the scans."
    assert not task.folder.exists()


# which adapter fits


def rows(*distances: float) -> list[dict]:
    names = ("scanner Ä", "scanner B", "scanner C", "scanner D", "scanner E")
    sentence = "The scan is like the 10 scans of this site: it differs from them {:.1f} times as much as they do."
    return [
        {
            "kind": "adapter",
            "ref": f"{name}-v1",
            "name": name,
            "reason": sentence.format(distance),
            "distance": distance,
        }
        for name, distance in zip(names, distances, strict=False)
    ]


def answered(bench, tmp_path, scan, ranking: list, suggested: int | None, **more):
    """Tell the panel what a comparison has found."""
    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels.apply_suggest import SUGGEST
    from PEFTSegmentLib.runner import Task

    facts = {
        "advice": "No stored adapter or model fits this scan well.",
        "basis": "Compared by grey values.",
        "not_ranked": [],
    }
    ending = {"event": "finished", "ranking": ranking, "suggested": suggested, **facts, **more}
    note = {"purpose": SUGGEST, "title": "x", "scans": [scans.token(scan)]}
    task = Task(tmp_path / f"job{len(list(tmp_path.iterdir()))}", note, state="finished", ending=ending)
    task.folder.mkdir()
    bench.context.runner.tasks.append(task)
    bench.context.runner._handle(task, [ending])
    bench.look()
    return task


@pytest.fixture
def asking(bench, tmp_path):
    """Two adapters in the library and a scan in view; the bench and the scan."""
    import slicer

    from peftseg import library

    for number, name in enumerate(("scanner Ä", "scanner B"), start=1):
        library.store(make_adapter(tmp_path / f"{number}.safetensors", name=name, seed=number))
    bench.main.unfold(4)
    scan = scene_makers.add_scan(1, "Größe 1")
    slicer.util.setSliceViewerLayers(background=scan)
    bench.look()
    return bench, scan


def test_the_question_can_be_asked_when_there_is_something_to_compare(bench, tmp_path):
    from peftseg import library

    button = bench.apply_ui.suggestButton
    bench.look()
    assert "There is no adapter to choose from yet" in button.toolTip
    library.store(make_adapter(tmp_path / "a.safetensors"))
    bench.look()
    assert "Choose a scan first" in button.toolTip
    bench.state.scan = scene_makers.add_scan(1)
    bench.look()
    assert button.enabled
    bench.state.allScans = True
    bench.look()
    assert "It is asked for one scan" in button.toolTip
    assert not shown(bench.apply_ui.suggestFrame)


def test_the_suggested_adapter_is_chosen_only_by_a_click(asking, tmp_path, pictures):
    bench, scan = asking
    ui, state = bench.apply_ui, bench.state
    gone = [{"ref": "old-v1", "reason": "It does not say what its scans are like."}]
    answered(bench, tmp_path, scan, rows(0.9, 2.4, 3.0, 4.0, 5.0), 0, not_ranked=gone)
    assert state.adapter == ""
    assert ui.suggestLabel.text == "Suggested for this scan: scanner Ä, version 1"
    lines = ui.suggestRanking.text.splitlines()
    assert lines[0].startswith("1. scanner Ä, version 1: The scan is like the 10 scans of this site")
    assert lines[-2:] == ["and 1 more that fit less", "1 could not be compared (see the tooltip)."]
    assert "old-v1: It does not say" in ui.suggestRanking.toolTip
    bench.picture(pictures, "suggested", 4)
    ui.suggestUseButton.click()
    bench.look()
    assert state.adapter == "scanner Ä-v1"
    assert ui.adapterCombo.currentData == "scanner Ä-v1"
    assert "It is chosen already" in ui.suggestUseButton.toolTip
    other = scene_makers.add_scan(2, "Größe 2")
    state.scan = other
    bench.look()
    assert not shown(ui.suggestFrame)
    state.scan = scan
    bench.look()
    assert shown(ui.suggestFrame)
    ui.suggestCloseButton.click()
    bench.look()
    assert not shown(ui.suggestFrame)


def test_a_model_that_fits_best_or_nothing_that_fits_is_said_so(asking, tmp_path, pictures):
    from peftseg import library

    bench, scan = asking
    ui = bench.apply_ui
    base = {**rows(0.5)[0], "kind": "base", "ref": "tiny", "name": "Tiny test model"}
    answered(bench, tmp_path, scan, [base, *rows(2.0)], 0)
    assert ui.suggestLabel.text.startswith("Suggested for this scan: no adapter, but Tiny test model without adapter")
    assert not shown(ui.suggestUseButton)
    answered(bench, tmp_path, scan, rows(9.0, 9.5), None)
    assert ui.suggestLabel.text == "No stored adapter or model fits this scan well."
    assert not shown(ui.suggestUseButton)
    bench.picture(pictures, "none_fits", 4)
    answered(bench, tmp_path, scan, rows(1.0), 0)
    library.remove_adapter("scanner Ä-v1")
    bench.look()
    assert "It is no longer in the library" in ui.suggestUseButton.toolTip


def test_an_adapter_that_its_check_refused_is_passed_over_and_one_with_a_warning_is_named_as_such(
    asking, tmp_path, pictures
):
    bench, scan = asking
    ui = bench.apply_ui
    refused, doubtful = rows(0.6, 0.9)
    refused |= {"verdict": "refused", "reason": f"{refused['reason']} Its check had refused it: use it with care."}
    doubtful |= {"verdict": "warning", "reason": f"{doubtful['reason']} Its check had accepted it with a warning."}
    answered(bench, tmp_path, scan, [refused, doubtful], 1)
    assert ui.suggestLabel.text.splitlines() == [
        "Suggested for this scan: scanner B, version 1",
        "Its check had accepted it with a warning: look at its results with care.",
        "scanner Ä, version 1 fits better, but its check had refused it.",
    ]
    first, second = ui.suggestRanking.text.splitlines()
    assert first.startswith("1. scanner Ä, version 1: ")
    assert first.endswith("Its check had refused it: use it with care.")
    assert second.endswith("Its check had accepted it with a warning.")
    bench.picture(pictures, "refused_passed_over", 4)
    ui.suggestUseButton.click()
    bench.look()
    assert bench.state.adapter == "scanner B-v1"
    base = {**rows(0.5)[0], "kind": "base", "ref": "tiny", "name": "Tiny test model", "verdict": None}
    answered(bench, tmp_path, scan, [refused, base], 1)
    told = ui.suggestLabel.text.splitlines()
    assert told[0].startswith("Suggested for this scan: no adapter, but Tiny test model without adapter as it is")
    assert told[1:] == ["scanner Ä, version 1 fits better, but its check had refused it."]
    advice = "scanner Ä-v1 fits, but its check had refused it. No other stored adapter or model fits this scan well."
    answered(bench, tmp_path, scan, [refused], None, advice=advice)
    assert ui.suggestLabel.text == advice
    assert not shown(ui.suggestUseButton)


def test_an_answer_whose_scan_has_gone_is_said_so(asking, tmp_path):
    import slicer

    from PEFTSegmentLib import scans
    from PEFTSegmentLib.panels.apply_suggest import SUGGEST
    from PEFTSegmentLib.runner import Task

    bench, scan = asking
    note = {"purpose": SUGGEST, "title": "x", "scans": [scans.token(scan)]}
    slicer.mrmlScene.RemoveNode(scan)
    task = Task(tmp_path / "gone", note, state="finished", ending={"event": "finished"})
    task.folder.mkdir()
    bench.context.runner.tasks.append(task)
    bench.context.runner._handle(task, [task.ending])
    bench.look()
    assert "no longer loaded" in bench.apply_ui.suggestLabel.text
    bench.apply_ui.suggestCloseButton.click()
    bench.look()
    assert not shown(bench.apply_ui.suggestFrame)


# with the engine


@pytest.mark.slow
def test_cancelled_gone_on_with_over_a_restart_refused_kept_all_the_same_and_not_suggested(
    bench, site_model, host, pictures
):
    from peftseg import library

    bench.context.models_changed()
    cancelled_in_the_check(bench, bench.unlabelled(site_model, 3), pictures)
    bench.ui.goOnButton.click()
    bench, handle = in_another_session(bench, host)
    done = bench.wait(bench.adapt.site_jobs.finished, what="the verdict in the new session")
    handle.wait(60)  # this Python started the process: without this it would warn of one that it never waited for
    bench.look()
    ui = bench.ui
    assert ui.verdictLabel.text.startswith("Refused: keep using the model as it is.")
    assert ui.verdictReasons.text.startswith("• ")
    assert library.list_adapters() == []
    bench.picture(pictures, "refused_really")
    ui.keepButton.click()
    bench.look()
    row = library.list_adapters()[0]
    assert (row["ref"], row["method"]) == ("scanner Ä, é-v1", "site")
    assert ui.verdictLabel.text.endswith("The check had refused it: use it with care.")
    assert library.show_adapter(row["ref"])["record"]["gate"]["status"] == "refused"
    ui.verdictCloseButton.click()
    bench.wait(lambda: not done.folder.exists())
    record_is_told(bench, row)
    not_suggested(bench, host, scene_makers.add_scan(2, "Größe 2 é"), pictures)


def cancelled_in_the_check(bench, volumes, pictures) -> None:
    ui = bench.ui
    ui.nameEdit.text = "scanner Ä, é"
    bench.look()
    ui.adaptButton.click()
    bench.look()
    assert ui.runTitle.text == "Adapt to a scanner: scanner Ä, é"
    assert "Nothing has been learnt yet" in ui.stopButton.toolTip
    bench.wait(lambda: ui.progressLabel.text.startswith("Looking at the model"), what="the look at the model as it is")
    bench.picture(pictures, "running")
    bench.wait(lambda: ui.progressLabel.text.startswith("Checking the results"), what="the check")
    ui.cancelButton.click()
    bench.wait(lambda: shown(ui.resumeFrame), what="the offer to go on")
    assert ui.resumeLabel.text == "The adaptation 'scanner Ä, é' was cancelled. What it had learnt is kept."
    gone_and_back(bench, volumes[0])


def in_another_session(bench, host):
    """The scene is closed and the module is unloaded while the job runs, and shown again; the new bench."""
    from pathlib import Path

    import slicer

    from PEFTSegmentLib.panels.site_jobs import SITE

    bench.wait(lambda: bench.context.runner.of(SITE)[0].state == "running", what="the job, going on")
    handle = bench.context.runner.of(SITE)[0].handle
    slicer.mrmlScene.Clear(0)
    bench.look()
    assert shown(bench.ui.runFrame)
    host.unload_module("PEFTSegment")
    host.load_module(Path(__file__).resolve().parents[2] / "PEFTSegment" / "PEFTSegment.py")
    again = Bench(host.show_module("PEFTSegment"), host)
    again.wait(lambda: again.main.strip.examined, what="the look at the installation")
    return again, handle


def gone_and_back(bench, scan) -> None:
    """One of its scans leaves the scene, and comes back."""
    import slicer

    slicer.mrmlScene.RemoveNode(scan)
    bench.look()
    assert not bench.ui.goOnButton.enabled
    assert "Its scans are not all loaded" in bench.ui.goOnButton.toolTip
    slicer.mrmlScene.AddNode(scan)
    bench.look()
    assert bench.ui.goOnButton.enabled


def record_is_told(bench, row) -> None:
    from PEFTSegmentLib.library_record import as_text

    text = as_text(row, bench.apply.adapters)
    assert "Learnt from: unlabelled scans of one scanner: 3" in text
    assert "Check without labels: refused: " in text


def not_suggested(bench, host, scan, pictures) -> None:
    ui = bench.apply_ui
    bench.main.unfold(4)
    bench.state.scan = scan
    bench.look()
    ui.suggestButton.click()
    bench.look()
    assert ui.suggestButton.text == "Comparing the scan..."
    bench.wait(lambda: shown(ui.suggestFrame), what="the answer")
    bench.look()
    assert not ui.suggestLabel.text.startswith("Suggested for this scan: scanner Ä, é, version 1")
    assert "its check had refused it" in ui.suggestLabel.text
    assert "scans of this site" in ui.suggestRanking.text
    assert "Its check had refused it: use it with care." in ui.suggestRanking.text
    assert "Tiny model with batch normalisation without adapter: " in ui.suggestRanking.text
    assert not shown(ui.suggestUseButton)
    assert bench.state.adapter == ""
    bench.picture(pictures, "suggested_really", 4)
    print("longest on the GUI thread: {:.3f} s, {}".format(*host.longest_slot()))
