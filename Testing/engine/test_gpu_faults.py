"""What goes wrong on GPUs: drivers and builds that do not fit, memory that runs out, half precision that overflows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from explain_cases import ball_in, image_of, tiny
from peftseg import adapter_training, doctor
from peftseg import device as devices
from peftseg import plan as planner
from peftseg.device import choose_device, choose_precision, free_memory, is_out_of_memory
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.explain import grad_cam, proto_seg
from peftseg.explain.abilities import Mask
from peftseg.explain.layers import list_layers
from peftseg.infer import predict_logits
from peftseg.models import Structure
from peftseg.optimise import _Loop, fit
from peftseg.pretrain import WholeNetwork
from site_cases import make_volume
from test_optimise import SCHEDULE, ball_scans, reporter_with, tiny_network

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
OOM = torch.OutOfMemoryError("CUDA out of memory")


def pretend_gpus(monkeypatch, *capabilities, works=True, built=("sm_80", "sm_86", "sm_90")):
    """Let torch say that there are GPUs of these compute capabilities."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: works)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: capabilities[torch.device("cuda", d).index])


# drivers and builds


def test_a_gpu_whose_driver_is_too_old_is_not_chosen(monkeypatch):
    pretend_gpus(monkeypatch, (8, 0), works=False)  # the driver's own tool counts it all the same
    assert choose_device("auto") == CPU
    with pytest.raises(BadInput, match="cannot be used here; available: cpu") as caught:
        choose_device("cuda")
    assert "doctor" in caught.value.remedy


def test_a_gpu_that_torch_was_not_built_for_is_not_chosen(monkeypatch):
    pretend_gpus(monkeypatch, (3, 5), (8, 6))
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    with pytest.raises(BadInput, match="available: cpu, cuda:1"):
        choose_device("cuda:0")


def test_gpus_of_a_torch_for_amd_are_not_judged_by_nvidias_rules(monkeypatch):
    pretend_gpus(monkeypatch, (9, 4), built=("gfx942",))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose_device("auto") == GPU


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [((9, 0), "bf16 bf16 fp16"), ((7, 5), "fp16 fp32 fp16"), ((6, 1), "fp32 fp32 fp16")],
)
def test_a_gpu_computes_in_what_it_has_units_for(capability, precisions, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert [choose_precision(GPU, wanted) for wanted in ("auto", "bf16", "fp16")] == precisions.split()


def test_the_report_is_whole_where_the_driver_is_too_old(monkeypatch):
    def fails(_):
        raise RuntimeError("The NVIDIA driver on your system is too old")

    fake = ModuleType("torch")
    fake.__version__, fake.get_num_threads = "2.13.0", lambda: 4
    fake.version, fake.backends = SimpleNamespace(cuda="13.0"), torch.backends
    fake.cuda = SimpleNamespace(
        is_available=lambda: False, device_count=lambda: 1, get_device_name=fails, get_arch_list=list
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(doctor._PROBE, {})
    facts = json.loads(out.getvalue())
    assert facts["works"]
    assert facts["cuda"] == []


def test_what_torch_cannot_do_on_apples_gpus_is_left_to_the_processor():
    program = (
        "import os, sys, peftseg.__main__; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "False"]  # it counts only where it is set before torch is imported


# memory


def test_memory_that_torch_keeps_without_using_it_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1500)
    assert free_memory(GPU) == 4500


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("MPS backend out of memory (MPS allocated: 8 GB)", True),
        ("CUDA error: device-side assert triggered", False),
        ("Expected all tensors to be on the same device", False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(text, answer):
    assert is_out_of_memory(RuntimeError(text)) is answer


def test_on_a_gpu_a_whole_patch_is_measured_unless_it_does_not_fit(monkeypatch):
    probes = []

    def measure(_network, _device, probe, *_, **__):
        probes.append(probe)
        if len(probes) == 4:
            raise OOM
        return planner.StepCost(1.0 if len(probes) % 2 else 1e-9, 100.0, 0)

    monkeypatch.setattr(planner, "measure_step", measure)
    monkeypatch.setattr(planner, "choose_precision", lambda *_: "fp32")
    monkeypatch.setattr(planner, "free_memory", lambda _: 10**10)
    seconds = [
        planner.make_plan(nn.Identity(), [(96,) * 3] * 2, (96,) * 3, 8, device, epochs=1).seconds
        for device in (GPU, GPU, CPU)
    ]
    assert probes == [(32,) * 3, (96,) * 3, (32,) * 3, (96,) * 3, (32,) * 3]
    assert seconds[0] < 1 < seconds[1] == seconds[2]


def test_measuring_that_runs_out_of_memory_leaves_the_network_as_it_was():
    class Full(nn.Module):
        def forward(self, x):
            raise OOM

    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), Full())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(torch.OutOfMemoryError):
        planner.measure_step(network, CPU, (8, 8, 8), "fp32", frozen_until="2")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not network[2]._forward_pre_hooks


def test_a_step_in_half_precision_that_runs_out_of_memory_halfway_is_taken_again(monkeypatch):
    network = tiny_network()
    groups = [{"params": list(network.parameters()), "lr": 1e-2}]
    reporter = Reporter.silent()
    loop = _Loop(WholeNetwork(network), groups, ball_scans(), replace(SCHEDULE, precision="fp16"), "softmax", reporter)
    step, fails = loop.optimiser.step, iter([True])

    def stepping(*arguments, **keywords):  # AdamW makes its moments in the first step
        if next(fails, False):
            raise OOM
        return step(*arguments, **keywords)

    monkeypatch.setattr(loop.optimiser, "step", stepping)
    loop.run_epoch()
    assert loop.history.retries == ["smaller patch batch"]
    assert loop.scaler.is_enabled()


def test_a_result_for_which_the_gpus_memory_does_not_suffice_comes_from_the_processor(monkeypatch):
    places = []

    def segment(*arguments, **_):
        places.append(arguments[6])
        if arguments[6].type != "cpu":
            raise OOM
        return np.ones((20, 18, 6), np.uint8)

    monkeypatch.setattr(adapter_training, "segment", segment)
    monkeypatch.setattr(devices, "release_memory", lambda: None)
    setting = SimpleNamespace(
        structures=(Structure("ball", 1),),
        activation="softmax",
        entry=SimpleNamespace(window=(8, 8, 8), overlap=0.5),
        device=GPU,
        precision="fp32",
    )
    adapted = SimpleNamespace(
        setting=setting,
        attached=SimpleNamespace(merge=lambda: None),
        recipe=tiny().preprocessing,
        plan=SimpleNamespace(schedule=SCHEDULE),
        divisor=2,
    )
    reporter = Reporter.silent()
    masks = adapter_training.predict_masks(adapted, SimpleNamespace(volume=make_volume(0)), reporter)
    assert masks["ball"].all()
    assert places == [GPU, CPU]
    assert any("memory of cuda:0 does not suffice" in e["message"] for e in reporter.events if e["event"] == "warning")


# half precision


def overflowing(seed: int = 0) -> nn.Module:
    """A network whose values are beyond 65504 in between."""
    network = tiny_network(seed)
    with torch.no_grad():
        network[0].weight.mul_(1e6)
        network[3].weight.mul_(1e-6)
    return network


def test_a_network_that_half_precision_does_not_hold_trains_in_single_precision(tmp_path):
    schedule = replace(SCHEDULE, epochs=2, precision="fp16")
    reporter = reporter_with(tmp_path / "checkpoint.safetensors")
    network = overflowing()
    groups = [{"params": list(network.parameters()), "lr": 1e-4}]
    history = fit(WholeNetwork(network), groups, ball_scans(), schedule, "softmax", reporter)
    assert history.retries == ["single instead of half precision"]
    assert history.rate_factor == 1.0
    assert len(history.losses) == 2
    loop = _Loop(WholeNetwork(network), groups, ball_scans(), schedule, "softmax", reporter)
    loop.resume()
    assert loop.schedule.precision == "fp32"
    assert not loop.scaler.is_enabled()


def test_windows_that_half_precision_does_not_hold_are_segmented_in_single_precision(monkeypatch):
    network, image = overflowing().eval(), torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = (image, 2, (8, 8, 8), 0.5, CPU)
    expected = predict_logits(network, *settings, precision="fp32")
    monkeypatch.setattr("peftseg.infer.choose_precision", lambda *_: "fp16")
    found = predict_logits(network, *settings)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


def test_features_are_summed_in_single_precision_also_where_the_network_runs_in_16_bits(monkeypatch):
    subject, prepared = tiny(), image_of()
    seen = []
    combined = proto_seg._combined

    def noted(*arguments):
        seen.append((torch.is_autocast_enabled("cpu"), arguments[1].dtype))
        return combined(*arguments)

    monkeypatch.setattr(devices, "cpu_has_fast_bf16", lambda: True)
    monkeypatch.setattr(proto_seg, "_combined", noted)
    layers = list_layers(subject.network, subject.anatomy)
    proto_seg.proto_seg(subject, prepared, layers, {"ball": Mask(ball_in((8, 8, 8)))}, CPU, "bf16")
    assert torch.bfloat16 in {dtype for _, dtype in seen}
    assert not any(active for active, _ in seen)


def test_a_map_is_made_in_single_precision_also_where_the_network_runs_in_16_bits():
    features, gradient = (torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    expected = grad_cam._map(features, gradient, (8, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grad_cam._map(features, gradient, (8, 8, 8)), expected)
