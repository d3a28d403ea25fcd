"""Grad-CAM: the map of the definition, for any layer, network and target, and a network that is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.visualize import GradCAM
from skimage.filters import threshold_otsu
from torch import nn
from torch.nn import functional

from explain_cases import CPU, ball_in, hooks_of, image_of, small_segresnet, subject_of, tiny
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.explain.grad_cam import grad_cam, predicted_mask, target_voxels
from peftseg.explain.layers import TRIVIAL, choose, default_layer, list_layers
from peftseg.explain.maps import binarise, is_constant, match, normalise, on_study_grid, otsu
from peftseg.explain.targets import Target
from peftseg.grid import Grid
from peftseg.models import NetworkSpec
from peftseg.networks import build
from peftseg.preprocess import Prepared
from peftseg.windows import logit_slabs

M = ball_in((8, 8, 8))


def maps_of(subject, prepared, names, voxels=M, row=1):
    layers = choose(list_layers(subject.network, subject.anatomy), names)
    return grad_cam(subject, prepared, layers, row, voxels, CPU, "fp32")


def by_definition(network, module, image, voxels, row):
    """Features and gradients straight from autograd, in one window; after the papers' formulas, nothing shared."""
    kept = []
    handle = network.get_submodule(module).register_forward_hook(lambda m, i, o: kept.append(o.clone()) or kept[0])
    x = image[None].clone().requires_grad_()
    score = network(x)[0, row][voxels].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    total = torch.zeros(kept[0].shape[2:])
    for k in range(kept[0].shape[1]):
        total += gradient[0, k].mean() * kept[0][0, k].detach()
    return functional.interpolate(total.clamp(min=0)[None, None], size=image.shape[1:], mode="trilinear")[0, 0]


@pytest.mark.parametrize("name", ["stem", "down", "dilated", "up", "mix"])
def test_in_one_window_the_map_is_that_of_the_definition(name):
    subject, prepared = tiny(), image_of()
    found = torch.cat([maps_of(subject, prepared, [name], row=row) for row in range(3)])
    expected = torch.stack([by_definition(subject.network, name, prepared.image, M, row) for row in range(3)])
    assert expected.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # MONAI detaches its input
def test_the_map_is_monais_on_a_network_that_gives_the_score_as_a_class():
    subject, prepared = tiny(), image_of()

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = subject.network

        def forward(self, x):
            return (self.inner(x) * M).sum(dim=(2, 3, 4))

    reference = GradCAM(Scores(), "inner.dilated", postprocessing=lambda x: x)
    expected = reference(prepared.image[None], class_idx=2)[0, 0]
    found = maps_of(subject, prepared, ["dilated"], row=2)[0]
    assert found.max() > 0
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-4, atol=1e-6)


def pytorch_grad_cam_map(network, module, image, voxels, row):
    """The map of pytorch-grad-cam, before it scales to 0..1, at the layer's own resolution."""
    tool = pytest.importorskip("pytorch_grad_cam", reason="grad-cam needs torchvision, which no test installs")
    cam = tool.GradCAM(model=network, target_layers=[network.get_submodule(module)])
    cam(input_tensor=image[None], targets=[lambda output: output[row][voxels].sum()])
    activations, gradients = (
        found[0].numpy() for found in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
    )
    raw = cam.get_cam_image(image[None], network.get_submodule(module), [], activations, gradients, False)
    cam.activations_and_grads.release()
    return torch.from_numpy(raw[0]).clamp(min=0)


@pytest.mark.parametrize("name", ["stem", "down", "up"])
def test_the_map_is_pytorch_grad_cams_where_that_is_installed(name):
    subject, prepared = tiny(), image_of()
    theirs = pytorch_grad_cam_map(subject.network, name, prepared.image, M, 1)
    expected = functional.interpolate(theirs[None, None], size=prepared.image.shape[1:], mode="trilinear")[0, 0]
    torch.testing.assert_close(maps_of(subject, prepared, [name])[0], expected, rtol=1e-4, atol=1e-6)


def test_features_are_right_where_the_network_adds_to_them_in_place():
    subject = small_segresnet()
    prepared, voxels = image_of((12, 12, 12)), ball_in((12, 12, 12))
    name = "up_layers.1.0.conv2.conv"
    found = maps_of(subject, prepared, [name], voxels)[0]
    expected = by_definition_before_the_sum(subject.network, name, prepared.image, voxels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def by_definition_before_the_sum(network, name, image, voxels):
    kept = []
    block = network.get_submodule(name)

    def keep(module, inputs, output):
        kept.append(output)
        return output.clone()

    handle = block.register_forward_hook(keep)
    score = network(image[None].clone().requires_grad_())[0, 1][voxels].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    alpha = gradient.mean(dim=(2, 3, 4), keepdim=True)
    return (alpha * kept[0]).sum(1)[0].clamp(min=0).detach()


def test_several_layers_in_one_pass_are_the_same_as_one_by_one():
    subject, prepared = tiny(), image_of()
    names = ["stem", "dilated", "mix", "head"]
    together = maps_of(subject, prepared, names)
    for number, name in enumerate(names):
        torch.testing.assert_close(together[number], maps_of(subject, prepared, [name])[0])


def test_the_head_is_trivial_because_its_map_is_the_logit():
    subject, prepared = tiny(), image_of()
    layers = list_layers(subject.network, subject.anatomy)
    assert [layer.name for layer in layers if layer.trivial] == ["head"]
    assert layers[-1].note == TRIVIAL
    assert default_layer(layers).name == "mix"
    with torch.no_grad():
        logit = subject.network(prepared.image[None])[0, 1].clamp(min=0)
    np.testing.assert_allclose(
        normalise(maps_of(subject, prepared, ["head"])[0].numpy()), normalise(logit.numpy()), atol=1e-5
    )


def test_windows_are_blended_with_segmentations_weights_and_one_alpha_each():
    subject, prepared = tiny(), image_of((12, 8, 8))
    voxels = ball_in((12, 8, 8), 5)
    found = maps_of(subject, prepared, ["mix"], voxels)[0]
    weights = compute_importance_map((8, 8, 8), mode="gaussian", sigma_scale=0.125)
    total, weight = torch.zeros(12, 8, 8), torch.zeros(12, 8, 8)
    for start in (0, 4):
        part = slice(start, start + 8)
        total[part] += weights * by_definition(subject.network, "mix", prepared.image[:, part], voxels[part], 1)
        weight[part] += weights
    torch.testing.assert_close(found, total / weight, rtol=1e-3, atol=1e-5)


def test_windows_without_a_voxel_to_explain_are_not_run_and_are_zero():
    subject, prepared = tiny(), image_of((24, 8, 8))
    voxels = torch.zeros(24, 8, 8, dtype=torch.bool)
    voxels[1, 4, 4] = True
    runs = []
    handle = subject.network.register_forward_hook(lambda *_: runs.append(1))
    layers = choose(list_layers(subject.network, subject.anatomy), ["mix"])
    runs.clear()
    found = grad_cam(subject, prepared, layers, 1, voxels, CPU, "fp32")[0]
    handle.remove()
    assert len(runs) == 1
    assert found[:8].max() > 0
    assert found[8:].max() == 0


def test_an_adapters_own_convolutions_can_be_chosen_and_composed_layers_are_marked():
    beside = tiny(method="conv_adapter")
    layers = list_layers(beside.network, beside.anatomy)
    own = [layer for layer in layers if layer.kind == "adapter"]
    assert own
    assert all("::" in layer.name for layer in own)
    found = maps_of(beside, image_of(), [layer.name for layer in own])
    assert (found.flatten(1).max(1).values > 0).any()
    composed = tiny(method="lora", rank=2)
    marked = {layer.name: layer.adapted for layer in list_layers(composed.network, composed.anatomy)}
    assert marked["dilated"]
    assert not marked["head"]
    expected = by_definition(composed.network, "dilated", image_of().image, M, 1)
    torch.testing.assert_close(maps_of(composed, image_of(), ["dilated"])[0], expected, rtol=1e-4, atol=1e-6)


def test_layers_come_in_network_order_with_their_kind_and_resolution():
    subject = tiny()
    layers = list_layers(subject.network, subject.anatomy)
    assert [(la.name, la.kind, la.stride[0]) for la in layers if la.listed] == [
        ("stem", "encoder", 1),
        ("down", "encoder", 2),
        ("dilated", "encoder", 2),
        ("up", "decoder", 1),
        ("mix", "decoder", 1),
        ("head", "head", 1),
    ]


def test_an_unknown_layer_is_told_with_the_closest_names_and_the_list():
    layers = list_layers(*(tiny().network, tiny().anatomy))
    with pytest.raises(BadInput, match=r"'dilate'.*Closest: dilated.*stem, down, dilated"):
        choose(layers, ["dilate"])


@pytest.mark.parametrize("training", [True, False])
def test_hooks_go_and_modes_come_back_whatever_happens(training):
    subject, prepared = tiny(method="conv_adapter"), image_of()
    subject.network.train(training)
    modes = [m.training for m in subject.network.modules()]
    trained = [p.requires_grad for p in subject.network.parameters()]
    before = hooks_of(subject.network)
    maps_of(subject, prepared, ["mix"])

    def fail(module, inputs):
        raise RuntimeError("on purpose")

    layers = choose(list_layers(subject.network, subject.anatomy), ["mix", "stem"])
    handle = subject.network.get_submodule("head").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        grad_cam(subject, prepared, layers, 1, M, CPU, "fp32")
    handle.remove()
    assert hooks_of(subject.network) == before
    assert [m.training for m in subject.network.modules()] == modes
    assert [p.requires_grad for p in subject.network.parameters()] == trained
    assert all(p.grad is None for p in subject.network.parameters())


def test_a_network_of_slices_has_maps_of_the_whole_window():
    network, anatomy = build(NetworkSpec("unet2d", {"filters": 4}), 3)
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    subject = subject_of(network.eval(), anatomy, window=(16, 16, 4))
    prepared, voxels = image_of((16, 16, 6)), ball_in((16, 16, 6))
    layers = list_layers(subject.network, subject.anatomy)
    assert [la.stride for la in layers if la.name in ("shortcut0", "down2.1")] == [(4, 4, 1), (1, 1, 1)]
    found = maps_of(subject, prepared, ["down2.1", "shortcut0"], voxels)
    assert found.shape == (2, 16, 16, 6)
    assert found[1].max() > 0
    lone = prepared.image[..., :4]
    kept = []
    handle = network.get_submodule("shortcut0").register_forward_hook(lambda m, i, o: kept.append(o) or o.clone())
    score = network(lone[None].clone().requires_grad_())[0, 1][voxels[..., :4]].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])  # (4, C, 16, 16): slices
    alpha = gradient.mean(dim=(0, 2, 3))
    expected = torch.einsum("c,kcij->ijk", alpha, kept[0].detach()).clamp(min=0)
    torch.testing.assert_close(found[1][..., 0], expected[..., 0], rtol=1e-3, atol=1e-5)


def test_nothing_predicted_gives_an_empty_map():
    subject, prepared = tiny(), image_of()
    assert grad_cam(subject, prepared, [], 1, torch.zeros(8, 8, 8, dtype=torch.bool), CPU).shape == (0, 8, 8, 8)
    found = maps_of(subject, prepared, ["mix"], torch.zeros(8, 8, 8, dtype=torch.bool))[0].numpy()
    assert is_constant(found)
    assert not binarise(normalise(found)).any()


def test_the_predicted_voxels_are_those_of_the_segmentation():
    subject, prepared = tiny(), image_of()
    with torch.no_grad():
        expected = subject.network(prepared.image[None])[0].argmax(0)
    for row, name in ((1, "ball"), (2, "rod")):
        assert torch.equal(predicted_mask(subject, prepared, name, CPU, "fp32"), expected == row)
    sigmoid = tiny(activation="sigmoid")
    with torch.no_grad():
        expected = sigmoid.network(prepared.image[None])[0, 1] > 0
    assert torch.equal(predicted_mask(sigmoid, prepared, "rod", CPU, "fp32"), expected)


def test_an_unknown_structure_is_told_with_what_there_is():
    with pytest.raises(BadInput, match=r"'bal'.*ball, rod.*'ball'"):
        tiny().row("bal")


def turned() -> Prepared:
    """A study of which the model sees the axes in another order, flipped and at double spacing, cropped at one end."""
    source = Grid((8, 10, 12), np.diag([-2.0, 1.0, 1.0, 1.0]) + np.array([[0, 0, 0, 30], [0] * 4, [0] * 4, [0] * 4]))
    model = Grid((8, 10, 5), np.array([[2.0, 0, 0, 16], [0, 1, 0, 0], [0, 0, 2, 0.5], [0, 0, 0, 1]]))
    return Prepared(torch.zeros(1, 8, 10, 5), model, source)


def test_points_and_boxes_are_places_in_the_patients_space():
    prepared = turned()
    (point,) = target_voxels(Target("point", (18.3, 4.2, 2.6)), prepared, None, None).nonzero().tolist()
    assert point == [1, 4, 1]
    box = target_voxels(Target("region", region=(18.0, 3.0, 6.0, 21.0, 1.0, 0.0)), prepared, None, None)
    assert box.nonzero().min(0).values.tolist() == [1, 1, 0]
    assert box.nonzero().max(0).values.tolist() == [2, 3, 2]
    for target in (Target("point", (500.0, 0, 0)), Target("region", region=(500.0, 0, 0, 600, 1, 1))):
        with pytest.raises(BadInput, match="holds no voxel"):
            target_voxels(target, prepared, None, None)


@pytest.mark.parametrize("wrong", [{"kind": "points"}, {"kind": "point"}, {"region": (0.0,) * 6}])
def test_a_target_that_cannot_be_is_refused(wrong):
    with pytest.raises(BadInput, match="target"):
        Target(**wrong)


def test_a_map_comes_back_on_the_studys_own_grid():
    prepared = turned()
    i, j, k = np.meshgrid(*(np.arange(n) for n in (8, 10, 5)), indexing="ij")
    place = torch.from_numpy(np.einsum("a,a...->...", [1.0, 10.0, 100.0], np.stack([2 * i + 16, j, 2 * k + 0.5])))
    found = on_study_grid(place, prepared)
    u, v, w = np.meshgrid(*(np.arange(n) for n in (8, 10, 12)), indexing="ij")
    expected = (30 - 2 * u) + 10 * v + 100 * w
    np.testing.assert_allclose(found[:, :, 1:9], expected[:, :, 1:9], rtol=1e-5)
    assert not found[:, :, 11].any()  # beyond what the model saw


def test_otsus_threshold_is_scikit_images():
    values = np.random.default_rng(0).beta(0.5, 3, (20, 20, 20)).astype(np.float32)
    values = normalise(values + 0.5 * ball_in((20, 20, 20)).numpy())
    assert otsu(values) == pytest.approx(threshold_otsu(values), abs=1e-6)
    assert np.array_equal(binarise(values), values > threshold_otsu(values))


def test_dice_of_an_empty_map_is_0_and_1_where_the_mask_is_empty_too():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert (match(empty, full), match(empty, empty), match(full, full)) == (0.0, 1.0, 1.0)
    half = full.copy()
    half[1:] = False
    assert match(half, full) == pytest.approx(0.5)


def test_in_16_bits_the_map_is_nearly_the_same(monkeypatch):
    subject, prepared = tiny(), image_of()
    layers = choose(list_layers(subject.network, subject.anatomy), ["stem", "mix"])
    exact = grad_cam(subject, prepared, layers, 2, M, CPU, "fp32")
    monkeypatch.setattr("peftseg.device.cpu_has_fast_bf16", lambda: True)
    coarse = grad_cam(subject, prepared, layers, 2, M, CPU, "auto")
    assert not torch.equal(exact, coarse)
    for one, other in zip(exact, coarse, strict=True):
        assert (one - other).abs().max() < 0.1 * one.max()


def test_where_memory_is_short_layers_take_turns_with_the_same_result(monkeypatch):
    subject, prepared = tiny(), image_of()
    together = maps_of(subject, prepared, ["stem", "mix"])
    monkeypatch.setattr("peftseg.explain.grad_cam.free_memory", lambda device: 0)
    torch.testing.assert_close(maps_of(subject, prepared, ["stem", "mix"]), together)


def test_cancelling_ends_it_between_windows_with_everything_restored():
    subject, prepared = tiny(), image_of((24, 8, 8))
    reporter = Reporter(lambda kind, fields: None, request=lambda: "cancel")
    before = hooks_of(subject.network)
    layers = choose(list_layers(subject.network, subject.anatomy), ["mix"])
    with pytest.raises(JobCancelled):
        grad_cam(subject, prepared, layers, 1, torch.ones(24, 8, 8, dtype=torch.bool), CPU, "fp32", reporter)
    assert hooks_of(subject.network) == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("name", ["swinunetr", "segresnet_ds", "unet3d", "unet3d_bn"])
def test_layers_of_every_kind_of_network_are_found_without_running_it_for_real(name):
    arguments = {
        "swinunetr": {"in_channels": 1, "feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [3, 6, 12, 24]},
        "segresnet_ds": {
            "spatial_dims": 3,
            "init_filters": 8,
            "in_channels": 1,
            "blocks_down": [1, 1],
            "blocks_up": [1],
        },
        "unet3d": {},
        "unet3d_bn": {"width": 4},
    }[name]
    network, anatomy = build(NetworkSpec(name, arguments), 3)
    layers = [layer for layer in list_layers(network, anatomy) if layer.listed]
    kinds = [layer.kind for layer in layers]
    assert {"encoder", "decoder", "head"} <= set(kinds)
    assert kinds[-1] == "head"
    assert layers[-1].channels == 3
    assert layers[-1].stride == (1, 1, 1)
    if name == "swinunetr":
        assert [la.stride[0] for la in layers if la.module.startswith("swinViT.layers")] == [4, 8, 16, 32]


def test_logits_get_less_room_after_the_system_ended_the_job_for_memory(monkeypatch):
    rooms = []

    def watched(*arguments, limit_bytes, **options):
        rooms.append(limit_bytes)
        return logit_slabs(*arguments, limit_bytes=limit_bytes, **options)

    monkeypatch.setattr("peftseg.explain.grad_cam.logit_slabs", watched)
    subject, prepared = tiny(), image_of()
    masks = [
        predicted_mask(
            subject, prepared, subject.structures[0].name, CPU, "fp32", Reporter(lambda *_: None, smaller_plan=smaller)
        )
        for smaller in (False, True)
    ]
    assert rooms[1] < rooms[0]
    assert torch.equal(*masks)
