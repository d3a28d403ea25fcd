"""Pre-training that is stopped: what it keeps, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftseg import early_head
from peftseg.config import PretrainJob
from peftseg.early_head import EARLY_FILE, load_early_head
from peftseg.events import Reporter
from peftseg.models import read_model_dir
from peftseg.pretrain import run_pretrain
from small_scans import BOTH, make_scan_files


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(early_head, "FEWEST_EARLY_STEPS", 4)
    monkeypatch.setattr(early_head, "EARLY_EPOCHS", 3)
    return PretrainJob(
        data=tuple(make_scan_files(tmp_path, n) for n in range(2)),
        structures=BOTH,
        out=str(tmp_path / "model"),
        id="tiny",
        title="Tiny",
        network="unet3d_bn",
        network_arguments={"width": 2},
        epochs=3,
        device="cpu",
        precision="fp32",
    )


@pytest.mark.parametrize(("stage", "epochs"), [("train", 2), ("early_head", 3), ("", 3)])
def test_stopped_before_its_early_head_is_fitted_a_model_goes_without_and_says_so(job, stage, epochs):
    reporter = Reporter.silent()

    def asked() -> str:
        begun = any((e.get("stage"), e.get("step")) == (stage, 1) for e in reporter.events)
        return "stop_keep" if begun else ""

    reporter._request = asked
    result = run_pretrain(job, reporter)
    entry = read_model_dir(Path(job.out))
    said = [e["message"] for e in reporter.events if e["event"] == "warning"]
    assert result["epochs"] == epochs
    if stage:
        assert result["early_level"] is load_early_head(entry) is None
        assert "early_level" not in entry.record
        assert not (Path(job.out) / EARLY_FILE).exists()
        assert [m for m in said if "without an early segmentation head" in m and "site-adapt" in m] == said
        assert len(said) == 1
    else:
        assert result["early_level"] == entry.record["early_level"] == load_early_head(entry)[0]
        assert said == []
