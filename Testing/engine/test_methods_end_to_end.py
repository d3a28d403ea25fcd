"""Every method from labelled scans to an adapter file to a segmented scan, with its default options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peftseg.adapter_file import load_adapter
from peftseg.adapters import AUTO, METHODS
from peftseg.config import AdaptJob
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.segmenter import adapter_segmenter, segment_volume
from peftseg.train import run_adapt
from peftseg.volume import read_volume
from small_scans import BOTH, make_scan_files, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def job(model, tmp_path):
    return AdaptJob(
        model=str(model),
        support=tuple(make_scan_files(tmp_path, n) for n in range(2)),
        structures=BOTH,
        out=str(tmp_path / "a.safetensors"),
        epochs=3,
        device="cpu",
        precision="fp32",
        store=False,
    )


def changed(job: AdaptJob, method: str, **options) -> AdaptJob:
    return AdaptJob(**{**vars(job), "method": method, "options": options})


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("adaptformer", AUTO)])
def test_a_method_adapts_and_its_file_segments(method, job, tmp_path):
    result = run_adapt(changed(job, method), Reporter.silent())
    recipe, state, _ = load_adapter(result["adapter"])
    assert recipe.method == method
    assert set(recipe.options) == {option.name for option in METHODS[method].options}
    stored = sum(t.numel() for key, t in state.items() if "::buffer" not in key)
    assert stored == sum(n for kind, n in result["trained_share"].items() if kind not in ("buffers", "base_total"))
    labels = segment_volume(adapter_segmenter(result["adapter"]), read_volume(job.support[0].image), CPU)
    assert labels.shape == (24, 24, 24)
    assert set(np.unique(labels)) <= {0, *(s.value for s in BOTH)}


def test_a_published_start_is_said_in_the_log(job):
    reporter = Reporter.silent()
    run_adapt(changed(job, "conv_adapter", preset="official", lr_adapter=1e-3), reporter)
    said = [e["message"] for e in reporter.events if e["event"] == "log"]
    assert any("before it has learnt anything" in message for message in said)


def test_adaptformer_on_a_model_without_transformer_blocks_says_so_and_writes_nothing(job, tmp_path):
    with pytest.raises(BadInput, match="Choose another method"):
        run_adapt(changed(job, "adaptformer"), Reporter.silent())
    assert not (tmp_path / "a.safetensors").exists()


def test_small_modules_beside_the_network_run_in_16_bits_as_in_32(job):
    result = run_adapt(changed(job, "conv_adapter", layers="all"), Reporter.silent())
    segmenter, scan = adapter_segmenter(result["adapter"]), read_volume(job.support[0].image)
    full, half = (segment_volume(segmenter, scan, CPU, precision=p) for p in ("fp32", "bf16"))
    assert (full != half).mean() < 0.01
