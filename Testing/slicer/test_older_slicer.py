"""The module from step 1 to step 4, the samples, the installation and a reload in Slicer 5.10, without the later names."""

from __future__ import annotations

import pytest
from scene_makers import BRIGHT
from test_bad_input import MODULE, click, idle, in_view, prepare, segmentations


@pytest.fixture
def older(older_host, tiny_model):
    """The module in Slicer 5.10, from the start of the application on."""
    older_host.load_module(MODULE)
    older_host.finish_startup()
    shown = older_host.show_module("PEFTSegment")
    older_host.wait_for(lambda: shown.main.strip.examined, 30, "the look at the installation")
    older_host.process_events(120)
    yield shown
    older_host.unload_module("PEFTSegment")


def test_the_host_really_is_the_older_one(older):
    import slicer

    assert slicer.app.applicationVersion.startswith("5.10.")
    with pytest.raises(ImportError):
        import slicer.packaging


@pytest.mark.slow
def test_all_steps_work(older, older_host, pictures):
    import slicer

    from PEFTSegmentLib import results

    host, main = older_host, older.main
    (scan, labels), *_more = prepare(older, host, 2)
    main.context.models_changed()
    in_view(scan)
    host.process_events(120)
    model, adapting, applying = (main.panels[n].ui for n in (0, 2, 3))
    model.modelCombo.setCurrentIndex(model.modelCombo.findData("tiny"))
    click(host, model.tryButton)
    idle(main, host)
    assert f"{scan.GetName()} - Tiny test model" in segmentations()
    assert main.sections[1].text == "2 Support scans - 2 of 2 ready"
    main.context.state.minutes, main.context.state.adapterName = 0.05, "made in 5.10"
    click(host, adapting.adaptButton)  # the check comes first by itself
    host.wait_for(main.panels[2].jobs.finished, 120, "the adapter")
    host.process_events(120)
    click(host, adapting.applyButton)
    click(host, applying.applyButton)
    (result,) = host.wait_for(results.all_results, 60, "the result")
    idle_but_kept(main, host)
    assert result.GetName().startswith(f"{scan.GetName()} - made in 5.10")
    assert result.GetSegmentation().GetSegmentIdBySegmentName(BRIGHT)
    applying.resultsTable.selectRow(0)
    click(host, applying.show3DButton)
    click(host, applying.reviewedButton)
    assert "(draft)" not in result.GetName()
    host.dialogs.expect("Keep the other")
    click(host, applying.correctButton)
    assert main.context.support.rows()[0].labels is labels
    click(host, applying.libraryButton)
    assert main.panels[3].library is not None
    main.panels[3].library.form.close()
    for _ in range(2):
        host.picture(main.form, pictures / "older_slicer.png", width=400)
    older.onReload()
    again = slicer.modules.PEFTSegmentWidget.main
    host.wait_for(lambda: again.strip.examined, 30, "the look at the installation")
    host.process_events(120)
    host.wait_for(lambda: again.sections[2].text == "3 Adapt - 'made in 5.10' saved", 30, "the result, found again")
    click(host, again.panels[2].ui.closeButton)
    idle(again, host)


def idle_but_kept(main, host) -> None:
    """The result of step 3 stays on show; nothing else goes on."""
    host.wait_for(lambda: not main.context.runner.active and not main.panels[3].jobs.loading, 60, "the end of all jobs")
    host.process_events(150)


def test_the_samples_are_registered_and_the_made_up_scans_come(older, older_host):
    import SampleData
    import slicer

    sources = [source for sources in slicer.modules.sampleDataSources.values() for source in sources]
    assert not hasattr(SampleData.SampleDataLogic, "registerCustomSampleDataCategory")
    made_up = next(source for source in sources if "made-up" in source.sampleName.lower())
    made_up.customDownloader(made_up)
    older_host.process_events(200)
    click(older_host, older.main.panels[1].ui.addScansButton)
    assert len(older.main.context.support.rows()) == 7


def test_the_installation_is_planned_and_shown(older, older_host, pictures):
    older.main.strip.install()
    older_host.process_events(300)
    dialog = older.main.strip._dialog
    assert dialog.visible
    older_host.picture(dialog, pictures / "older_slicer_install.png")
    dialog.close()
