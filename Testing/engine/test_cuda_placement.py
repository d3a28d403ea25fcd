"""The engine on a GPU: nothing mixes tensors of two devices, and none is read by numpy where it lies.

Run on `second_device`, for machines without a GPU, in a process of its own (this file, as a program): all scenes at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils import backend_registration

HERE = Path(__file__).resolve().parent
METHODS = {  # with options that lead into the corners
    "lora": {"rank": 2, "init": "pca"},
    "arena": {"rank": 2},
    "arena, published": {"rank": 2, "mode": "paper", "rho": 0.1},
    "adalora": {"rank": 1, "start_rank": 2},
    "dora": {"rank": 2},
    "convlora": {"bn_mode": "batch", "train_norm": True},
    "conv_adapter": {"sum": "after_norm"},
    "residual_adapter": {},
    "ssf": {"after": "norm_else_conv"},
    "affine": {"bn_mode": "batch"},
    "bitfit": {},
    "adaptformer": {"bottleneck": 2},
    "spatial_adapter": {},
    "linear_probe": {},
    "selective": {},
    "decoder": {},
    "full": {},
}
OF_BATCH = ("convlora", "affine")  # with running statistics that move
MUTATIONS = {
    "patches that are not moved": (
        "optimise",
        "(part.to(self.device, non_blocking=True) for part in batch)",
        "batch",
    ),
    "a generator of the processor": ("patches", "torch.Generator(image.device)", "torch.Generator()"),
    "results that are not fetched": ("infer", "labels.cpu().numpy()", "labels.numpy()"),
}


SITES = {
    "convlora_adabn": {"teacher": "ema"},
    "published": {"keep": "agreement"},
}


def adapt(name: str, gpu: torch.device, stay: bool = False, engine: ModuleType | None = None) -> None:
    """Train, go on from the checkpoint, prune, merge and segment."""
    from peftseg import optimise
    from peftseg.adapters import attach, learning_rates
    from peftseg.events import Reporter
    from peftseg.plan import measure_step
    from tiny_networks import make

    engine = engine or optimise
    case = make("transformer-3d" if name == "adaptformer" else "unet-3d-batch" if name in OF_BATCH else "unet-3d-group")
    torch.manual_seed(0)
    method = name.split(",", maxsplit=1)[0]
    attached = attach(case.network, case.anatomy, method, METHODS[name], method not in ("linear_probe", "lora"))
    case.network.to(gpu)
    measure_step(case.network, gpu, (4, 4, 4), "fp32")
    reporter = Reporter.silent()
    with tempfile.TemporaryDirectory() as folder:
        reporter.checkpoint = Path(folder) / "checkpoint.safetensors"
        rates = learning_rates(_checked(method, METHODS[name]))
        settings = (scans(torch.device("cpu") if stay else gpu), _schedule(), "softmax", reporter)
        engine.fit(attached, attached.parameter_groups(rates), *settings)
        loop = engine._Loop(attached, attached.parameter_groups(rates), *settings)
        loop.resume()
        loop.run_epoch()
    attached.prune()
    attached.load_state(attached.state())
    segment_with(attached.merge(), gpu)


def partly_labelled(gpu: torch.device) -> None:
    """A sigmoid head, one structure labelled in some slices only, and recomputed activations."""
    from dataclasses import replace

    from peftseg.adapters import attach, learning_rates
    from peftseg.events import Reporter
    from peftseg.optimise import fit
    from tiny_networks import make

    case = make("unet-3d-group")
    attached = attach(case.network, case.anatomy, "selective", {})
    case.network.to(gpu)
    groups = attached.parameter_groups(learning_rates(_checked("selective", {})))
    schedule = replace(_schedule(), checkpointing=True)
    fit(attached, groups, scans(gpu, overlapping=True), schedule, "sigmoid", Reporter.silent())
    segment_with(attached.merge(), gpu, "sigmoid")


def explain(gpu: torch.device) -> None:
    """Grad-CAM and ProtoSeg of a network with an adapter beside it."""
    from explain_cases import ball_in, image_of, tiny
    from peftseg.explain.abilities import Mask
    from peftseg.explain.grad_cam import grad_cam, predicted_mask
    from peftseg.explain.layers import list_layers
    from peftseg.explain.proto_seg import proto_seg

    subject, prepared = tiny(method="conv_adapter"), image_of((12, 8, 10))
    layers = list_layers(subject.network, subject.anatomy)
    predicted = predicted_mask(subject, prepared, "ball", gpu)
    grad_cam(subject, prepared, layers, 1, predicted | ball_in((12, 8, 10)), gpu)
    truth = ball_in((12, 8, 10))
    proto_seg(subject, prepared, layers, {"ball": Mask(truth), "rod": Mask(~truth, truth.roll(2))}, gpu)


def site(preset: str, gpu: torch.device) -> None:
    """A whole adaptation without labels, from files to a file."""
    from peftseg import early_head, site_adapt
    from peftseg.config import SiteAdaptJob
    from peftseg.events import Reporter
    from site_cases import write_scans, write_site_model

    early_head.FEWEST_EARLY_STEPS, early_head.EARLY_EPOCHS = 2, 1
    site_adapt.choose_device = lambda _: gpu
    with tempfile.TemporaryDirectory() as folder:
        network = "unet3d_bn" if preset == "convlora_adabn" else "unet2d"
        model = write_site_model(Path(folder) / "model", network, early=None)
        scans = write_scans(Path(folder) / "scans", 1)
        out = Path(folder) / "a.safetensors"
        job = SiteAdaptJob(str(model.directory), tuple(scans), str(out), preset=preset, options=SITES[preset], epochs=1)
        site_adapt.run_site_adapt(job, Reporter.silent())


def mutated(name: str, gpu: torch.device) -> None:
    """Adapt with a mistake in one module's text."""
    from importlib import import_module

    module, right, wrong = MUTATIONS[name]
    known = import_module(f"peftseg.{module}")
    text = Path(known.__file__).read_text(encoding="utf-8")
    assert text.count(right) == 1
    before = dict(vars(known))
    try:
        exec(compile(text.replace(right, wrong), known.__file__, "exec"), vars(known))
        if module == "infer":
            from tiny_networks import make

            segment_with(make("unet-3d-group").network, gpu, segment=known.segment)
        elif module == "patches":
            for seed in range(20):  # noise is added to some patches
                known.sample_batch(scans(gpu), [(0, 0, 0)], (8, 8, 8), known.Augmentation(), seed)
        else:
            adapt("lora", gpu, stay=True, engine=known)
    finally:
        vars(known).clear()
        vars(known).update(before)


def segment_with(
    network: torch.nn.Module, gpu: torch.device, activation: str = "softmax", segment: Callable | None = None
) -> None:
    """Segment a scan that needs several windows."""
    from explain_cases import image_of
    from peftseg import infer

    (segment or infer.segment)(network, image_of((14, 8, 10)), 3, (8, 8, 8), 0.5, activation, gpu)


def scans(device: torch.device, overlapping: bool = False) -> list:
    """Two scans with a ball and a rod (and both as a third structure), on a device."""
    from peftseg.dataset import _moved
    from peftseg.patches import make_scan

    found = []
    for seed in range(2):
        image = torch.randn((1, 10, 9, 8), generator=torch.Generator().manual_seed(seed))
        ball, rod = torch.zeros((2, 10, 9, 8), dtype=torch.bool)
        ball[2:6, 2:6, 2:6], rod[7:9, 1:8, 1:7] = True, True
        some = torch.zeros_like(ball)
        some[:, :, ::2] = True
        masks = [ball, rod, ball | rod] if overlapping else [ball, rod]
        known = [True, some, seed > 0] if overlapping else [True, seed > 0]
        found.append(_moved(make_scan(image, masks, known, overlapping), device))
    return found


def _schedule():
    from peftseg.schedule import Schedule

    return Schedule(
        epochs=1, patch=(8, 8, 8), patches_per_scan=2, patches_per_step=4, micro_batch=2, early_stop=False, pool=1
    )


def _checked(method: str, options: dict) -> dict:
    from peftseg.adapters import check_options

    return check_options(method, options)


def _ending(scene: Callable[[torch.device], None], gpu: torch.device) -> str:
    from second_device import SecondDevice

    try:
        with SecondDevice():
            scene(gpu)
    except Exception as error:  # whatever it is, it is this scene's outcome
        return "".join(traceback.format_exception(error))[-1500:]
    return ""


def scenes() -> dict[str, Callable[[torch.device], None]]:
    """What is run, by name."""
    return {
        **{f"adapting by {name}": lambda gpu, name=name: adapt(name, gpu) for name in METHODS},
        "overlapping structures, partly labelled": partly_labelled,
        "scans in main memory": lambda gpu: adapt("lora", gpu, stay=True),
        "looking into a network": explain,
        **{f"a site's scans by {name}": lambda gpu, name=name: site(name, gpu) for name in SITES},
        **{f"a mutation: {name}": lambda gpu, name=name: mutated(name, gpu) for name in MUTATIONS},
    }


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Scene -> "" or the end of its error."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices in Python")
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("scene", [name for name in scenes() if not name.startswith("a mutation")])
def test_all_tensors_of_an_operation_are_on_one_device(scene, outcomes):
    assert outcomes[scene] == ""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_tensor_on_the_wrong_device_is_found(name, outcomes):
    assert "RuntimeError" in outcomes[f"a mutation: {name}"]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    from second_device import install

    there = install()
    asked = sys.argv[1:]
    print(json.dumps({name: _ending(s, there) for name, s in scenes().items() if not asked or name in asked}))
