"""Checks of the maps themselves: they point at what matters, follow the weights, and ignore what preprocessing undoes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from explain_cases import CPU, ball_in, image_of, tiny
from peftseg import phantom
from peftseg.errors import BadInput
from peftseg.explain.abilities import Mask
from peftseg.explain.curves import cascading_randomisation, likeness, perturbation_curve, probability_inside, randomise
from peftseg.explain.grad_cam import grad_cam, predicted_mask
from peftseg.explain.layers import choose, default_layer, list_layers
from peftseg.explain.maps import normalise, on_study_grid
from peftseg.explain.proto_seg import proto_seg
from peftseg.explain.subject import model_subject
from peftseg.grid import Grid
from peftseg.preprocess import prepare
from peftseg.volume import Volume

SIDE = 32


@pytest.fixture(scope="module")
def liver():
    """The bundled abdomen model on a small crop at the edge of a liver, one window: subject, study, predicted liver, layers."""
    subject = dataclasses.replace(model_subject("phantom-ct"), window=(SIDE,) * 3)
    case = phantom.make_case(91)
    centre = np.argwhere(case.labels == 1).mean(0) - [12, 0, 0]
    first = np.round(centre).astype(int) - SIDE // 2
    affine = case.volume.grid.affine.copy()
    affine[:, 3] = affine @ [*first, 1]
    crop = np.ascontiguousarray(case.volume.array[tuple(slice(f, f + SIDE) for f in first)])
    prepared = prepare(Volume(crop, Grid(crop.shape, affine), "crop"), subject.preprocessing)
    voxels = predicted_mask(subject, prepared, "liver", CPU, "fp32")
    assert 0.1 < float(voxels.float().mean()) < 0.9
    return subject, prepared, voxels, list_layers(subject.network, subject.anatomy)


def map_of(subject, prepared, voxels, layer, row=1):
    return grad_cam(subject, prepared, [layer], row, voxels, CPU, "fp32")[0]


def test_on_the_bundled_model_the_voxels_that_the_map_shows_matter_more_than_those_that_it_does_not(liver):
    subject, prepared, voxels, layers = liver
    row = subject.row("liver")
    own = map_of(subject, prepared, voxels, default_layer(layers), row)
    score = probability_inside(subject, prepared, row, voxels, CPU)

    def area(values, mode):
        return perturbation_curve(score, prepared.image, values, mode, steps=2, absent=prepared.background).area

    assert area(own, "deletion") < area(-own, "deletion") - 0.05
    assert area(own, "insertion") > area(-own, "insertion") + 0.05


def test_on_the_bundled_model_the_map_does_not_survive_random_weights(liver):
    subject, prepared, voxels, layers = liver
    layer = choose(layers, ["down_layers.2.4.conv2.conv"])[0]
    row = subject.row("liver")
    before = {name: t.clone() for name, t in subject.network.state_dict().items()}

    def explain(network):
        return map_of(dataclasses.replace(subject, network=network), prepared, voxels, layer, row).numpy()

    stages = choose(layers, ["up_layers.0.0.conv1.conv", "conv_final.2.conv"])
    likenesses = dict(cascading_randomisation(subject.network, stages, explain))
    assert list(likenesses) == [stage.name for stage in reversed(stages)]
    assert max(likenesses.values()) < 0.8
    assert all(torch.equal(before[name], t) for name, t in subject.network.state_dict().items())


def test_on_the_bundled_model_deep_layers_tell_the_liver_better_than_the_first(liver):
    subject, prepared, voxels, layers = liver
    chosen = choose(layers, ["convInit.conv", "down_layers.2.4"])
    abilities = proto_seg(subject, prepared, chosen, {"liver": Mask(voxels)}, CPU, "fp32")
    first, deep = (a.agreement for a in abilities if a.built_by == "prediction")
    assert deep > first + 0.05


def test_a_rescaling_of_grey_values_that_preprocessing_undoes_leaves_the_map_as_it_was():
    subject = tiny()
    shape = (8, 8, 8)
    grey = 100 + 10 * image_of(shape).image[0].numpy() + 30 * ball_in(shape).numpy()

    def explain(array):
        prepared = prepare(Volume(array.astype(np.float32), Grid(shape, np.eye(4)), "scan"), subject.preprocessing)
        voxels = predicted_mask(subject, prepared, "ball", CPU, "fp32") | ball_in(shape)
        layer = choose(list_layers(subject.network, subject.anatomy), ["dilated"])[0]
        return normalise(on_study_grid(map_of(subject, prepared, voxels, layer), prepared))

    first = explain(grey)
    assert first.max() == 1
    np.testing.assert_allclose(explain(7 * grey), first, atol=1e-3)
    assert likeness(first, explain(grey**3)) < 0.999  # preprocessing does not undo this


def test_areas_are_those_of_curves_that_can_be_worked_out_by_hand():
    image = torch.zeros(1, 4, 4, 4)
    image[0, 0] = 1.0
    plane = torch.zeros(4, 4, 4)
    plane[0] = 1.0

    def share_left(changed):
        return float((changed[0, 0] == 1.0).float().mean())

    best = perturbation_curve(share_left, image, plane, "deletion", steps=4)
    assert best.scores == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert best.area == pytest.approx(0.125)
    worst = perturbation_curve(share_left, image, -plane, "deletion", steps=4)
    assert worst.scores == (1.0, 1.0, 1.0, 1.0, 0.0)
    inserted = perturbation_curve(share_left, image, plane, "insertion", steps=4)
    assert inserted.scores == (0.0, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(BadInput, match="deletion"):
        perturbation_curve(share_left, image, plane, "removal")


def test_a_composed_layer_is_randomised_with_its_adapter():
    subject = tiny(method="lora", rank=2)
    layer = subject.network.get_submodule("dilated")
    before = layer.weight.detach().clone()
    randomise(layer, torch.Generator().manual_seed(0))
    assert (layer.weight - before).abs().min() > 0
    assert layer.weight.std() < 10 * before.std()


def test_constant_maps_are_like_nothing():
    assert likeness(np.zeros(8), np.arange(8.0)) == 0.0
    assert likeness(np.arange(8.0), np.arange(8.0) * 3) == pytest.approx(1)
