"""Whole-volume inference: exactly back on the study's grid, the same logits as MONAI, bounded memory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import SegResNet
from scipy import ndimage
from torch import nn
from torch.nn.utils import parametrize

from peftseg import windows
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.infer import predict_logits, ready, segment
from peftseg.models import Intensity, Preprocessing
from peftseg.preprocess import Prepared, prepare
from peftseg.volume import Grid, Volume, read_labels, read_volume

CPU = torch.device("cpu")
ORIENTATIONS = [
    "".join(codes) for letters in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*letters)
]


class Threshold(nn.Module):
    """A "network" whose logits are linear in the image: channel c > 0 wins from grey value c - 0.5 up to c + 0.5."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        levels = torch.arange(self.n_outputs, dtype=x.dtype).view(1, -1, 1, 1, 1)
        return (
            levels * x - levels**2 / 2
        )  # the largest is the level nearest to x; linear in x, so interpolation is exact


def raw(spacing, orientation="RAS", crop=False) -> Preprocessing:
    """A recipe that leaves grey values from 0 to 1000 as they are."""
    return Preprocessing(orientation, spacing, Intensity("window", 0, 1000, 0, 1000), crop)


def grid_for(shape, spacing, codes="RAS", tilt_deg=0.0) -> Grid:
    rows = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    directions = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        directions[rows[code][0], axis] = rows[code][1]
    c, s = math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg))
    tilt = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ directions @ np.diag(spacing)
    affine[:3, 3] = (11.0, -7.0, 40.0)
    return Grid(shape, affine)


def blob(grid: Grid, seed: int = 0) -> np.ndarray:
    """A smooth lopsided structure, about a third of the volume wide, away from the border."""
    unit = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij"), axis=-1)
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-0.3, 0.3, (3, 3))
    return np.any([np.linalg.norm(unit - c, axis=-1) < 0.45 for c in centres], axis=0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def segresnet(n_outputs: int = 3) -> SegResNet:
    torch.manual_seed(0)
    return SegResNet(init_filters=8, in_channels=1, out_channels=n_outputs, blocks_down=(1, 1), blocks_up=(1,)).eval()


def monai_logits(network, image, window, overlap) -> torch.Tensor:
    with torch.inference_mode():
        return sliding_window_inference(
            image[None], window, 1, network, overlap, mode="gaussian", sigma_scale=0.125, cval=float(image.min())
        )[0]


# --- the way back ---


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_mask_comes_back_from_the_model_grid_in_every_orientation(codes):
    grid = grid_for((44, 40, 36), (0.8, 1.1, 1.6), codes, tilt_deg=17)
    mask = blob(grid, seed=ORIENTATIONS.index(codes))
    prepared = prepare(Volume(mask.astype(np.float32), grid, "x"), raw((1.0, 1.2, 1.3), "PIR"))
    result = segment(Threshold(2), prepared, 2, (16, 20, 24), 0.25, "softmax", CPU, "fp32")
    assert result.shape == grid.shape
    assert result.dtype == np.uint8
    assert dice(result == 1, mask) > 0.97


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA", "IAR"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("crop", [False, True])
def test_at_the_recipes_own_spacing_labels_come_back_voxel_for_voxel(codes, activation, crop):
    grid = grid_for((19, 24, 21), (1.0, 1.0, 1.0), codes, tilt_deg=5)
    labels = np.zeros(grid.shape, np.float32)
    labels[3:9, 4:20, 5:16] = 1
    labels[8:15, 9:22, 2:7] = 2
    prepared = prepare(Volume(labels, grid, "x"), raw((1.0, 1.0, 1.0), crop=crop))
    result = segment(Threshold(3), prepared, 3, (8, 8, 8), 0.5, activation, CPU, "fp32")
    if activation == "softmax":
        np.testing.assert_array_equal(result, labels)
    else:
        assert result.shape == (3, *grid.shape)
        assert result.dtype == bool
        np.testing.assert_array_equal(result[1], labels > 0.5)
        np.testing.assert_array_equal(result[2], labels > 1)


@pytest.mark.parametrize("shape", [(5, 4, 4), (40, 44, 9), (30, 30, 30), (33, 20, 1), (1, 1, 1)])
@pytest.mark.parametrize("spacing", [(0.7, 0.7, 5.0), (3.0, 1.0, 1.0)])
def test_tiny_and_thin_studies_come_back_whole(shape, spacing):
    grid = grid_for(shape, spacing, "ALS")
    prepared = prepare(Volume(np.ones(shape, np.float32), grid, "x"), raw((1.5, 1.5, 1.5)))
    result = segment(Threshold(2), prepared, 2, (32, 32, 32), 0.25, "softmax", CPU, "fp32")
    np.testing.assert_array_equal(result, np.ones(shape))


def test_labels_equal_argmax_of_linearly_interpolated_logits():
    grid = grid_for((23, 26, 17), (1.0, 1.3, 2.0))
    rng = np.random.default_rng(3)
    image = ndimage.gaussian_filter(rng.normal(size=grid.shape), 1.5).astype(np.float32)
    prepared = prepare(Volume(image * 500 + 500, grid, "x"), Preprocessing("RAS", (1.6, 1.0, 1.3), Intensity("zscore")))
    network = segresnet(4)
    logits = monai_logits(network, prepared.image, (16, 16, 16), 0.25).numpy()
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(prepared.grid.affine) @ grid.affine
    at = back[:3, :3] @ index + back[:3, 3:]
    reference = np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in logits])
    result = segment(network, prepared, 4, (16, 16, 16), 0.25, "softmax", CPU, "fp32")
    assert (result.ravel() == reference.argmax(0)).mean() > 0.9999
    assert len(np.unique(result)) > 2
    sigmoid = segment(network, prepared, 4, (16, 16, 16), 0.25, "sigmoid", CPU, "fp32")
    assert (sigmoid.reshape(4, -1) == (reference > 0)).mean() > 0.9999


def test_more_than_256_outputs_give_16_bit_labels():
    grid = grid_for((6, 6, 6), (1, 1, 1))
    image = np.arange(216, dtype=np.float32).reshape(grid.shape) + 84
    prepared = prepare(Volume(image, grid, "x"), raw((1, 1, 1)))
    result = segment(Threshold(300), prepared, 300, (6, 6, 6), 0.0, "softmax", CPU, "fp32")
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, image)


# --- the same logits as MONAI ---


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((33, 29, 41), (16, 16, 16), 0.5),
        ((30, 31, 20), (16, 24, 16), 0.25),
        ((24, 24, 24), (16, 8, 24), 0.75),
        ((40, 10, 9), (16, 16, 16), 0.25),  # smaller than the window along two axes
        ((10, 40, 20), (16, 16, 16), 0.0),
        ((7, 5, 3), (8, 8, 8), 0.5),
        ((16, 16, 16), (16, 16, 16), 0.5),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_in_float32_equal_those_of_monai(shape, window, overlap, batch):
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    network = segresnet()
    ours = predict_logits(network, image, 3, window, overlap, CPU, "fp32", batch=batch)
    torch.testing.assert_close(ours, monai_logits(network, image, window, overlap), atol=1e-4, rtol=0)


@pytest.mark.parametrize("limit_bytes", [1, 60_000, 10**9])
def test_strips_do_not_change_the_logits(limit_bytes):
    image = torch.randn(1, 30, 45, 20, generator=torch.Generator().manual_seed(2))
    network, tiling = segresnet(), windows.tile((30, 45, 20), (16, 16, 16), 0.5)
    result = torch.full((3, 30, 45, 20), torch.nan)
    with torch.inference_mode():
        for slab in windows.logit_slabs(network, image, 3, tiling, limit_bytes=limit_bytes):
            result[:, slab.planes[0] : slab.planes[1] + 1, slab.rows[0] : slab.rows[1] + 1] = slab.logits
    torch.testing.assert_close(result, monai_logits(network, image, (16, 16, 16), 0.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("codes", ["RAS", "SPL"])
def test_strips_do_not_change_the_labels(codes):
    grid = grid_for((40, 44, 37), (0.9, 1.1, 1.5), codes)
    prepared = prepare(Volume(blob(grid) * np.float32(2), grid, "x"), raw((1.2, 1.0, 1.1)))
    one, many = (
        segment(Threshold(3), prepared, 3, (16, 16, 16), 0.5, "softmax", CPU, "fp32", accumulator_bytes=limit)
        for limit in (10**9, 1)
    )
    np.testing.assert_array_equal(one, many)


def test_bfloat16_gives_nearly_the_same_logits():
    image = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(4))
    network = segresnet()
    reference = predict_logits(network, image, 3, (16, 16, 16), 0.5, CPU, "fp32")
    ours = predict_logits(network, image, 3, (16, 16, 16), 0.5, CPU, "auto")
    assert ours.dtype == torch.float32
    assert float((ours - reference).abs().mean()) < 0.02 * float(reference.std())


# --- blank windows ---


def test_windows_of_air_are_computed_once_and_change_nothing():
    image = torch.zeros(1, 64, 32, 32)
    image[:, 20:40, 8:24, 8:24] = torch.rand(1, 20, 16, 16, generator=torch.Generator().manual_seed(5)) + 0.5
    network = segresnet()
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    ours = predict_logits(network, image, 3, (16, 16, 16), 0.5, CPU, "fp32")
    skipping, reference = len(calls), monai_logits(network, image, (16, 16, 16), 0.5)
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)
    assert skipping < 0.7 * (len(calls) - skipping)


def test_a_faint_structure_in_air_is_no_blank_window():
    image = torch.full((1, 48, 16, 16), -1000.0)
    image[:, :8] = 1000
    image[:, 40, 8, 8] = -999
    network = Threshold(2)
    predict_logits(network, image, 2, (16, 16, 16), 0.0, CPU, "fp32")
    assert network.calls == 3  # the bright window, one blank one, and the one with the faint voxel


# --- memory ---


class Zeros(nn.Module):
    """A network that costs nothing: logits without memory of their own."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1).expand(len(x), self.n_outputs, *x.shape[2:])


def largest_allocation(monkeypatch, depth: int, n_outputs: int, limit: int) -> int:
    """Bytes of the largest accumulator while segmenting a study of so many planes."""
    sizes = []
    zeros = torch.zeros

    def noted(*args, **kwargs):
        tensor = zeros(*args, **kwargs)
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    monkeypatch.setattr(windows.torch, "zeros", noted)
    grid = grid_for((depth, 40, 40), (1, 1, 1))
    image = torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(6))
    prepared = Prepared(image, grid, grid)
    segment(Zeros(n_outputs), prepared, n_outputs, (16, 16, 16), 0.25, "softmax", CPU, "fp32", accumulator_bytes=limit)
    monkeypatch.undo()
    return max(sizes)


def test_accumulators_do_not_grow_with_the_length_of_the_study(monkeypatch):
    short, long = (largest_allocation(monkeypatch, depth, 4, 10**9) for depth in (40, 200))
    assert long == short == 4 * 5 * 17 * 40 * 40


def test_105_structures_of_a_long_study_keep_to_the_limit(monkeypatch):
    whole = largest_allocation(monkeypatch, 100, 106, 10**9)
    limit = whole // 2
    assert largest_allocation(monkeypatch, 100, 106, limit) <= limit * 1.1  # strips share a row
    assert 4 * limit < 106 * 100 * 40 * 40 * 4


# --- behaviour ---


def small_case() -> Prepared:
    grid = grid_for((20, 20, 20), (1, 1, 1))
    return prepare(Volume(blob(grid).astype(np.float32), grid, "x"), raw((1, 1, 1)))


def test_cancelling_is_asked_for_between_windows():
    asked = []
    reporter = Reporter(lambda *_: None, lambda: "cancel" if len(asked) > 2 else asked.append(1) or "")
    network = Threshold(2)
    with pytest.raises(JobCancelled):
        segment(network, small_case(), 2, (8, 8, 8), 0.5, "softmax", CPU, "fp32", reporter)
    assert network.calls == 3


@pytest.mark.parametrize("limit_bytes", [2**30, 40_000])
def test_windows_are_counted_to_the_last_one(monkeypatch, limit_bytes):
    monkeypatch.setattr(windows, "TELL_S", -1.0)
    reporter, prepared = Reporter.silent(), small_case()
    prepared.image[..., :9] = float(prepared.image.min())  # blank windows count too
    segment(Threshold(2), prepared, 2, (8, 8, 8), 0.5, "softmax", CPU, "fp32", reporter, accumulator_bytes=limit_bytes)
    steps = [e["step"] for e in reporter.events if e.get("stage") == "windows"]
    assert steps == sorted(steps)
    assert steps[-1] == {e["total"] for e in reporter.events}.pop() > 8


def test_training_modes_are_as_before_even_after_an_error():
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)).train()
    network[1].eval()
    statistics = network[1].running_mean.clone()
    with pytest.raises(BadInput, match="expected"):
        segment(network, small_case(), 5, (8, 8, 8), 0.0, "softmax", CPU, "fp32")
    assert [m.training for m in network.modules()] == [True, True, False]
    torch.testing.assert_close(network[1].running_mean, statistics, rtol=0, atol=0)


def test_composed_weights_are_composed_once():
    class Scaled(nn.Module):
        calls = 0

        def forward(self, weight):
            Scaled.calls += 1
            return weight * 2

    network = nn.Sequential(nn.Conv3d(1, 2, 1))
    parametrize.register_parametrization(network[0], "weight", Scaled())
    Scaled.calls = 0
    segment(network, small_case(), 2, (8, 8, 8), 0.5, "softmax", CPU, "fp32")
    assert Scaled.calls == 1


@pytest.mark.parametrize(
    "head",
    [nn.Conv3d(8, 5, 1), nn.Conv3d(8, 5, 1, bias=False), nn.Conv3d(8, 5, 3, padding=1), nn.Conv3d(8, 6, 1, groups=2)],
)
def test_the_head_runs_in_float32_whatever_the_precision_of_the_body(head):
    torch.manual_seed(3)
    network, image = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Tanh(), head), torch.randn(2, 1, 6, 7, 8)
    seen = []
    handle = network[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with ready(network, CPU, "auto") as forward:
        logits = forward(image)
    handle.remove()
    expected = nn.functional.conv3d(
        seen[0].float(), head.weight, head.bias, padding=head.padding, groups=head.groups
    ).detach()
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert logits.dtype == torch.float32
    assert "forward" not in vars(head)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_network_can_be_saved_and_trained_after_it_segmented(precision):
    network = segresnet(2).train()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    segment(network, small_case(), 2, (8, 8, 8), 0.5, "softmax", CPU, precision)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)
        assert parameter.is_contiguous()  # safetensors refuses others
        assert not parameter.is_inference()
    network(torch.randn(1, 1, 8, 8, 8)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_no_gradients_are_recorded():
    network = segresnet(2)
    with ready(network, CPU, "fp32") as forward:
        assert not forward(torch.zeros(1, 1, 8, 8, 8)).requires_grad


@pytest.mark.parametrize(("window", "overlap"), [((8, 8), 0.5), ((8, 0, 8), 0.5), ((8, 8, 8), 1.0), ((8, 8, 8), -0.1)])
def test_a_window_that_cannot_be_is_refused(window, overlap):
    with pytest.raises(BadInput, match="not possible"):
        segment(Threshold(2), small_case(), 2, window, overlap, "softmax", CPU, "fp32")


def test_an_unknown_activation_is_refused_with_the_valid_ones():
    with pytest.raises(BadInput, match="sigmoid, softmax"):
        segment(Threshold(2), small_case(), 2, (8, 8, 8), 0.0, "relu", CPU)


# --- real scans ---


def round_trip(mask: np.ndarray, grid: Grid, spacing) -> np.ndarray:
    prepared = prepare(Volume(mask.astype(np.float32), grid, "x"), raw(spacing))
    return segment(Threshold(2), prepared, 2, (48, 48, 32), 0.25, "softmax", CPU, "fp32") == 1


@pytest.mark.realdata
def test_a_real_spleen_comes_back_through_1_5_mm_voxels(shared_data):
    folder = shared_data / "spleen_ct"
    labels, volume = read_labels(folder / "label.nii.gz"), read_volume(folder / "image.nii.gz")
    mask = labels.layers[0] == 1
    assert volume.grid.same_as(labels.grid, 1e-2)
    assert dice(round_trip(mask, volume.grid, (1.5, 1.5, 1.5)), mask) > 0.97


@pytest.mark.realdata
def test_real_hippocampi_come_back_exactly_at_their_own_spacing(shared_data):
    for path in sorted((shared_data / "hippocampus_msd" / "test" / "labels").glob("*.nii.gz"))[:4]:
        labels = read_labels(path)
        mask = labels.layers[0] > 0
        np.testing.assert_array_equal(round_trip(mask, labels.grid, (1.0, 1.0, 1.0)), mask)


@pytest.mark.realdata
def test_oblique_spine_scans_of_odd_orientations_are_segmented_on_their_own_grid(shared_data):
    tried = 0
    for path in sorted((shared_data / "readers" / "sct_testing_data").rglob("*.nii.gz")):
        try:
            volume = read_volume(path, replace_nonfinite=0.0)
        except BadInput:
            continue  # 4D; readers have their own tests
        prepared = prepare(volume, Preprocessing("RAS", (1.5, 1.5, 3.0), Intensity("zscore")))
        result = segment(Threshold(2), prepared, 2, (32, 32, 32), 0.25, "softmax", CPU, "fp32")
        assert result.shape == volume.grid.shape
        tried += 1
    assert tried >= 2


def test_the_window_just_covers_the_image_within_its_limits():
    def of(shape):
        return windows.window_for(shape, (16, 16, 16), (32, 32, 32), 4)

    assert of((10, 10, 10)) == (16, 16, 16)
    assert of((17, 20, 21)) == (20, 20, 24)
    assert of((90, 33, 32)) == (32, 32, 32)
    assert windows.window_for((90, 5, 5), None, (32, 32, 32), 4) == (32, 32, 32)
