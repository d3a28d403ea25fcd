"""Are maps and abilities of the bundled brain model about what it has learnt? On a real scan, in one window.

The made-up counterpart, with the bundled abdomen model, is `test_explain_curves.py`.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from explain_cases import CPU
from peftseg.explain.abilities import Mask
from peftseg.explain.curves import cascading_randomisation, likeness, perturbation_curve, probability_inside, randomise
from peftseg.explain.grad_cam import grad_cam, predicted_mask
from peftseg.explain.layers import choose, default_layer, list_layers
from peftseg.explain.maps import match, normalise
from peftseg.explain.proto_seg import proto_seg
from peftseg.explain.subject import model_subject
from peftseg.preprocess import prepare, prepare_mask
from peftseg.volume import Volume, read_labels, read_volume

pytestmark = pytest.mark.realdata
STRUCTURE, VALUE = "thalamus", 2
DEEP = "up_layers.0.0"


@pytest.fixture(scope="module")
def brain(shared_data):
    """The model, a scan that it has not seen, the predicted and the labelled thalamus, and the layers."""
    folder = shared_data / "subcortical_ixi" / "test"
    image = sorted((folder / "images").glob("*.nii.gz"))[0]
    subject = model_subject("brain-t1")
    scan = read_volume(image)
    prepared = prepare(scan, subject.preprocessing)
    truth = prepare_mask(read_labels(folder / "labels" / image.name).layers[0] == VALUE, prepared)
    voxels = predicted_mask(subject, prepared, STRUCTURE, CPU, "fp32")
    assert match(voxels.numpy(), truth.numpy()) > 0.8
    return subject, scan, prepared, voxels, truth, list_layers(subject.network, subject.anatomy)


def map_of(subject, prepared, voxels, layer):
    return grad_cam(subject, prepared, [layer], subject.row(STRUCTURE), voxels, CPU, "fp32")[0]


def rescaled(scan, factor, offset):
    return Volume((scan.array * factor + offset).astype(np.float32), scan.grid, scan.name)


def test_the_map_follows_the_weights_and_not_the_edges_of_the_image(brain):
    subject, _, prepared, voxels, _, layers = brain
    layer = choose(layers, [DEEP])[0]

    def explain(network):
        return map_of(dataclasses.replace(subject, network=network), prepared, voxels, layer).numpy()

    stages = choose(layers, [layer.name, "up_layers.1.0.conv1.conv", "conv_final.2.conv"])
    likenesses = [value for _, value in cascading_randomisation(subject.network, stages, explain)]
    assert len(likenesses) == 3
    assert max(likenesses) < 0.9
    assert likenesses[-1] < 0.5


def test_a_rescaling_of_grey_values_that_preprocessing_undoes_leaves_map_and_ability_as_they_were(brain):
    subject, scan, prepared, voxels, truth, layers = brain
    layer = choose(layers, [DEEP])[0]
    again = prepare(rescaled(scan, 3.0, 40.0), subject.preprocessing)
    first, second = (normalise(map_of(subject, p, voxels, layer).numpy()) for p in (prepared, again))
    np.testing.assert_allclose(second, first, atol=2e-3)
    masks = {STRUCTURE: Mask(truth)}
    abilities = [proto_seg(subject, p, [layer], masks, CPU, "fp32") for p in (prepared, again)]
    for one, other in zip(*abilities, strict=True):
        assert one.sa == pytest.approx(other.sa, abs=0.01)
    cubed = Volume(np.sign(scan.array) * np.abs(scan.array / 100) ** 3, scan.grid, scan.name)
    changed = map_of(subject, prepare(cubed, subject.preprocessing), voxels, layer).numpy()
    assert likeness(first, changed) < 0.99  # this, preprocessing does not undo


def test_deleting_what_the_map_shows_costs_more_than_showing_it_alone(brain):
    subject, _, prepared, voxels, _, layers = brain
    own = map_of(subject, prepared, voxels, default_layer(layers))
    score = probability_inside(subject, prepared, subject.row(STRUCTURE), voxels, CPU)
    absent = prepared.background
    deleted, inserted = (
        perturbation_curve(score, prepared.image, own, mode, steps=3, absent=absent)
        for mode in ("deletion", "insertion")
    )
    assert deleted.scores[0] == pytest.approx(inserted.scores[-1])
    assert deleted.scores[0] > 0.8
    assert deleted.scores[1] < 0.2  # a third of the voxels holds what the model needs
    assert inserted.area > deleted.area + 0.1


def test_the_map_of_the_last_features_is_bright_on_the_structure(brain):
    subject, _, prepared, voxels, truth, layers = brain
    own = map_of(subject, prepared, voxels, default_layer(layers))
    assert float(own[truth].mean()) > 5 * float(own[~truth].mean()) > 0


def test_ability_grows_with_depth_and_falls_with_random_weights(brain):
    subject, _, prepared, _, truth, layers = brain
    chosen = choose(layers, ["convInit.conv", "down_layers.2.4", DEEP])
    masks = {STRUCTURE: Mask(truth)}

    def abilities(of):
        found = proto_seg(of, prepared, chosen, masks, CPU, "fp32")
        return [a.sa for a in found if a.built_by == "truth"]

    first, middle, deep = abilities(subject)
    assert first < middle - 0.1
    assert first < deep - 0.1
    noisy = copy.deepcopy(subject.network)
    randomise(noisy, torch.Generator().manual_seed(0))
    assert max(abilities(dataclasses.replace(subject, network=noisy))[1:]) < min(middle, deep) - 0.1
