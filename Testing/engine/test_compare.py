"""Comparison of methods: paired differences, and that adapting teaches a real structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peftseg.compare import Candidate, Task, differences, run_candidate
from peftseg.models import Structure, resolve
from peftseg.study import read_support_folder


def rows_of(candidate: str, scores: dict[tuple[int, str], float], task: str = "t", structure: str = "s") -> list[dict]:
    return [
        {"task": task, "candidate": candidate, "draw": str(d), "scan": scan, "structure": structure, "dice": str(score)}
        for (d, scan), score in scores.items()
    ]


def test_differences_are_paired_by_draw_and_scan():
    rng = np.random.default_rng(0)
    cells = [(draw, f"scan{k}") for draw in range(5) for k in range(6)]
    hard = {cell: rng.uniform(0.2, 0.9) for cell in cells}
    better = {cell: score + 0.02 + rng.normal(0, 0.002) for cell, score in hard.items()}
    noisy = {cell: score + rng.normal(0, 0.05) for cell, score in hard.items()}
    rows = rows_of("base", hard) + rows_of("better", better) + rows_of("noisy", noisy)
    found = differences(rows, "base")
    assert set(found) == {"better", "noisy"}
    runs, mean, low, high = found["better"]
    assert runs == 5
    assert mean == pytest.approx(0.02, abs=0.002)
    assert 0.015 < low < high < 0.025  # though scores themselves spread over 0.7
    assert found["noisy"][2] < 0 < found["noisy"][3]


def test_only_runs_that_both_have_count():
    base = rows_of("base", {(0, "a"): 0.5, (1, "a"): 0.5})
    other = rows_of("other", {(0, "a"): 0.6, (2, "a"): 0.9})
    runs, mean, _, _ = differences(base + other, "base")["other"]
    assert runs == 1
    assert mean == pytest.approx(0.1)
    assert differences(base + rows_of("other", {(2, "a"): 0.9}), "base") == {}


@pytest.mark.realdata
@pytest.mark.slow
def test_the_default_method_learns_the_hippocampus_from_five_scans(shared_data):
    """The floor is far under the table in Docs/results.md: a fifth of its epochs."""
    structures = (Structure("hippocampus", 1), Structure("amygdala", 6))
    support = read_support_folder(shared_data / "subcortical_ixi" / "support", structures)
    task = Task("ixi", structures, support[:5], support[5:7])
    rows = run_candidate(resolve("brain-t1"), task, Candidate("LoRA", "lora"), 5, 0, torch.device("cpu"), epochs=24)
    means = {s.name: np.mean([row["dice"] for row in rows if row["structure"] == s.name]) for s in structures}
    assert means["hippocampus"] > 0.72
    assert means["amygdala"] > 0.65
