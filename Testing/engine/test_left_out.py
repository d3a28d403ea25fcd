"""Leave-one-out keeps what is needed to look at its results, and tells them scan by scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk

from peftseg.config import AdaptJob
from peftseg.errors import JobCancelled, OutOfMemory
from peftseg.events import Reporter
from peftseg.metrics import dice
from peftseg.train import run_adapt
from peftseg.volume import read_labels, read_volume
from small_scans import BOTH, BRIGHT, DARK, make_scan_files, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def job(model, tmp_path):
    return AdaptJob(
        model=str(model),
        support=tuple(make_scan_files(tmp_path, n) for n in range(3)),
        structures=BOTH,
        out=str(tmp_path / "a.safetensors"),
        epochs=1,
        estimate="loo",
        device="cpu",
        precision="fp32",
    )


@pytest.fixture
def reporter(tmp_path):
    """A reporter that has a folder for results."""
    reporter = Reporter.silent()
    reporter.result_dir = tmp_path / "result"
    reporter.result_dir.mkdir()
    return reporter


def warnings_of(reporter):
    return [e["message"] for e in reporter.events if e["event"] == "warning"]


def test_both_predictions_of_each_scan_are_kept_on_its_own_grid(job, reporter):
    result = run_adapt(replace(job, epochs=3), reporter)
    rows = result["left_out"]
    assert [row["scan"] for row in rows] == [1, 2, 3]
    for n, (row, item) in enumerate(zip(rows, job.support, strict=True), start=1):
        assert row["adapter"].name == f"left_out_{n}.seg.nrrd"
        assert row["base"].name == f"base_{n}.seg.nrrd"
        scan, truth = read_volume(item.image), read_labels(item.labels)
        found, base = read_labels(row["adapter"]), read_labels(row["base"])
        assert found.grid.same_as(scan.grid)
        assert base.grid.same_as(scan.grid)
        assert list(found.segments) == ["bright ball", "dark ball"]
        assert list(base.segments) == ["bright ball"], "the base knows no dark ball"
        for structure in BOTH:
            value = dice(found.mask(structure), truth.mask(structure))
            assert row["dice"][structure.name] == pytest.approx(value)
            assert result["estimate"][structure.name][n - 1] == row["dice"][structure.name]


def test_files_carry_colours_and_codes(job, reporter):
    code = "SCT^78961009^Spleen"
    structures = (replace(BRIGHT, colour=(1, 2, 3), code=code), DARK)
    (first, *_) = run_adapt(replace(job, structures=structures), reporter)["left_out"]
    for path in (first["adapter"], first["base"]):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        colour = [float(c) for c in reader.GetMetaData("Segment0_Color").split()]
        assert colour == pytest.approx([1 / 255, 2 / 255, 3 / 255], abs=1e-4)
        assert code in reader.GetMetaData("Segment0_Tags")


def test_a_base_that_knows_none_of_the_structures_writes_no_file(job, reporter):
    rows = run_adapt(replace(job, structures=(DARK,)), reporter)["left_out"]
    assert [row["base"] for row in rows] == [None, None, None]
    assert not list(reporter.result_dir.glob("base_*"))


def test_a_full_disk_costs_the_files_and_not_the_adapter(job, reporter, monkeypatch):
    monkeypatch.setattr("peftseg.base_match.SPARE_BYTES", 10**18)
    result = run_adapt(job, reporter)
    assert Path(result["adapter"]).is_file()
    assert [row["adapter"] for row in result["left_out"]] == [None, None, None]
    assert len(result["estimate"]["bright ball"]) == 3
    assert sum("free on its disk" in message for message in warnings_of(reporter)) == 1
    assert not list(reporter.result_dir.iterdir())


def test_a_base_that_does_not_fit_into_memory_costs_its_files_only(job, reporter, monkeypatch):
    def full(*arguments, **options):
        raise OutOfMemory("Memory ran out.", "Close other programs.")

    monkeypatch.setattr("peftseg.base_match.segment_volume", full)
    rows = run_adapt(job, reporter)["left_out"]
    assert [row["base"] for row in rows] == [None, None, None]
    assert all(row["adapter"].is_file() for row in rows)
    assert any("could not be run for comparison" in message for message in warnings_of(reporter))


def test_without_a_folder_for_results_only_the_numbers_are_told(job):
    rows = run_adapt(job, Reporter.silent())["left_out"]
    assert {(row["adapter"], row["base"]) for row in rows} == {(None, None)}


def test_stopping_makes_no_estimate_from_trainings_that_were_cut_short(job, reporter):
    reporter._request = lambda: "stop_keep" if any(e.get("left_out") == 2 for e in reporter.events) else ""
    result = run_adapt(replace(job, epochs=3), reporter)
    assert Path(result["adapter"]).is_file()
    assert result["estimate"] is None
    assert [row["scan"] for row in result["left_out"]] == [1]
    assert any("not estimated" in message for message in warnings_of(reporter))


def test_a_cancel_in_its_trainings_leaves_no_adapter(job, reporter, tmp_path):
    reporter._request = lambda: "cancel" if any(e.get("left_out") == 2 for e in reporter.events) else ""
    with pytest.raises(JobCancelled):
        run_adapt(replace(job, epochs=3), reporter)
    assert not list(tmp_path.glob("*.safetensors*"))
