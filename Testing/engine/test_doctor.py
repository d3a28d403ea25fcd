"""The environment report: which GPUs are there, and whether the installed torch fits them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from peftseg.doctor import examine, report_text
from peftseg.gpu import judge_cuda, nvidia_gpus, parse_gpus, supports

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CUDA_12_4 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
SEEN = [{"name": "NVIDIA X", "driver": "550.54", "memory_gib": 16.0, "free_gib": 15.0}]
posix = pytest.mark.skipif(sys.platform == "win32", reason="makes a program by a shell script")


def torch_facts(**fields) -> dict:
    facts = {"works": True, "version": "2.13.0", "cuda_build": "13.0", "arch_list": CUDA_13, "cuda": [], "mps": False}
    return {**facts, **fields}


def gpu(*capability: int) -> dict:
    return {"name": "NVIDIA X", "capability": list(capability), "memory_gib": 16.0, "free_gib": 15.0}


@pytest.mark.parametrize(
    ("arch_list", "capability", "fits"),
    [
        (CUDA_13, (6, 1), False),  # Pascal
        (CUDA_13, (7, 0), False),  # Volta
        (CUDA_13, (7, 5), True),
        (CUDA_13, (8, 9), True),  # Ada runs code for 8.6
        (CUDA_13, (12, 0), True),
        (CUDA_13, (12, 1), True),
        (CUDA_12_4, (6, 1), True),
        (CUDA_12_4, (12, 0), False),  # Blackwell
        ([*CUDA_12_4, "compute_90"], (12, 0), True),  # portable code
        (["compute_90"], (8, 6), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["gfx942"], (9, 0), False),
        ([], (8, 0), False),
    ],
)
def test_a_build_fits_a_gpu_by_nvidias_rules(arch_list, capability, fits):
    assert supports(arch_list, capability) is fits


@pytest.mark.parametrize(
    ("torch", "nvidia", "usable", "words"),
    [
        (torch_facts(cuda=[gpu(8, 6)]), SEEN, True, ["can be used"]),
        (torch_facts(cuda=[gpu(6, 1)]), SEEN, False, ["6.1", "older than", "an older torch"]),
        (torch_facts(cuda=[gpu(12, 0)], arch_list=CUDA_12_4), SEEN, False, ["12.0", "newer than", "a newer torch"]),
        (torch_facts(cuda_build=None, arch_list=[]), SEEN, False, ["NVIDIA X", "without CUDA"]),
        (torch_facts(), SEEN, False, ["driver 550.54", "update the driver"]),
        (torch_facts(), [], False, ["no NVIDIA GPU"]),
        (torch_facts(mps=True, cuda_build=None), [], False, []),
        ({"works": False, "error": "missing"}, SEEN, False, ["NVIDIA X", "torch does not work"]),
        ({"works": False, "error": "missing"}, [], False, []),
        (torch_facts(cuda=[{"name": "AMD Y", "capability": None}], arch_list=["gfx942"]), [], True, ["can be used"]),
    ],
)
def test_what_fits_and_what_helps_is_said_in_one_sentence(torch, nvidia, usable, words):
    found, sentence = judge_cuda(torch, nvidia)
    assert found is usable
    assert not [word for word in words if word not in sentence], sentence
    assert bool(words) == bool(sentence)


def test_the_drivers_table_is_read_also_where_a_number_is_missing():
    text = "NVIDIA H100 80GB HBM3, 550.54.15, 81559, 80995\nQuadro K2, special, 470.1, [N/A], [N/A]\nbroken\n"
    assert parse_gpus(text) == [
        {"name": "NVIDIA H100 80GB HBM3", "driver": "550.54.15", "memory_gib": 79.6, "free_gib": 79.1},
        {"name": "Quadro K2, special", "driver": "470.1", "memory_gib": None, "free_gib": None},
    ]


def program(folder, monkeypatch, script: str) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@posix
def test_the_driver_is_asked_and_nothing_fails_where_it_does_not_answer(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "echo 'NVIDIA X, 550.54, 16384, 15360'")
    assert nvidia_gpus() == SEEN
    program(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert nvidia_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert nvidia_gpus() == []


@posix
def test_the_report_names_the_gpu_also_without_torch(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "echo 'NVIDIA X, 550.54, 16384, 15360'")
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is missing')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "peftseg", "doctor"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=environment)
    facts = json.loads(done.stdout)
    assert (facts["nvidia"], facts["cuda_usable"]) == (SEEN, False)
    assert "torch does not work" in facts["cuda_note"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "NVIDIA driver 550.54: NVIDIA X (15.0 of 16.0 GiB free)" in text


def test_this_environment_is_examined_with_all_its_facts():
    facts = examine()
    assert isinstance(facts["cuda_usable"], bool)
    assert isinstance(facts["torch"]["arch_list"], list)
    assert facts["home"]["free_gib"] > 0
    assert facts["memory_gib"]["free"] > 0
    assert report_text(facts).count("\n") > 5
