"""ProtoSeg: the one-channel form gives what the published form gives, over windows too; SA and what is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from explain_cases import CPU, ball_in, hooks_of, image_of, subject_of, tiny
from peftseg.explain.abilities import Mask
from peftseg.explain.grids import adjoint, align, cut_at, enlarge, shrink, size_at
from peftseg.explain.layers import list_layers
from peftseg.explain.maps import blending_weights
from peftseg.explain.proto_seg import proto_seg
from peftseg.models import NetworkSpec
from peftseg.networks import build


def listed(subject):
    return [layer for layer in list_layers(subject.network, subject.anatomy) if layer.listed]


def run(subject, prepared, masks, layers=None, take=None):
    return proto_seg(subject, prepared, layers or listed(subject), masks, CPU, "fp32", take=take)


def blended_features(subject, padded, layer):
    """All channels of a layer on its own grid over the whole image, windows blended: (C, *S)."""
    kept = []
    handle = subject.network.get_submodule(layer.module).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    own = shrink(blending_weights(padded.tiling, CPU), layer.stride)
    total = torch.zeros(layer.channels, *size_at(padded, layer.stride))
    weight = torch.zeros(size_at(padded, layer.stride))
    with torch.no_grad():
        for corner in padded.corners():
            subject.network(padded.cut(padded.image, corner)[None, None])
            features = kept.pop()
            features = features.movedim(0, -1) if features.ndim == 4 else features[0]
            cut_at(total, padded, layer.stride, corner).add_(features * own)
            cut_at(weight, padded, layer.stride, corner).add_(own)
    handle.remove()
    return total / weight


def plain_form(features, p, known, shape):
    """The published form: all channels at full resolution, and how much nearer a voxel is to mu+ than to mu-, squared.

    Where that is positive, the softmax of both negative distances is larger for the structure.
    """
    whole = functional.interpolate(features[None], size=shape, mode="trilinear", align_corners=False)[0]
    n = p.shape
    whole = whole[:, : n[0], : n[1], : n[2]]
    inside, outside = p * known, (1 - p) * known
    mu_in = (whole * inside).sum((1, 2, 3)) / inside.sum()
    mu_out = (whole * outside).sum((1, 2, 3)) / outside.sum()
    outer, inner = [(whole - mu[:, None, None, None]).square().sum(0) for mu in (mu_out, mu_in)]
    return outer - inner


def balanced(subject):
    """The subject with a head that predicts the ball in about a third of noise."""
    with torch.no_grad():
        logits = subject.network(image_of(subject.window).image[None])[0]
        subject.network.head.bias[1] -= (logits[1] - logits[[0, 2]].amax(0)).quantile(0.67)
    return subject


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((8, 8, 8), "unet-3d-batch"),
        ((19, 8, 10), "unet-3d-batch"),
        ((6, 8, 8), "unet-3d-group"),
        ((8, 8, 8), "transformer-3d"),
    ],
)
def test_the_one_channel_form_gives_the_maps_and_scores_of_the_published_form(shape, name):
    subject, prepared = balanced(tiny(name)), image_of(shape)
    truth = ball_in(shape, 3.4)
    known = torch.ones(shape, dtype=torch.bool)
    known[:2] = False
    maps = {}
    abilities = run(
        subject,
        prepared,
        {"ball": Mask(truth, known)},
        take=lambda a, m: maps.setdefault((a.layer.name, a.built_by), m),
    )
    padded = align(subject, prepared, CPU)
    p = probabilities(subject, prepared, padded)[1]
    assert len(abilities) == 2 * len(listed(subject))
    for ability in abilities:
        features = blended_features(subject, padded, ability.layer)
        own = p if ability.built_by == "prediction" else truth.float()
        where = torch.ones(shape) if ability.built_by == "prediction" else known.float()
        own_shape = tuple(padded.image.shape)
        expected = plain_form(features, padded_part(own, padded), padded_part(where, padded), own_shape)
        expected = padded.inner(expected)[: shape[0], : shape[1], : shape[2]]
        sure = expected.abs() > 2e-3 * expected.abs().max()
        found = torch.from_numpy(maps[(ability.layer.name, ability.built_by)])
        assert sure.float().mean() > 0.9
        assert torch.equal(found[sure], (expected > 0)[sure])
        assert ability.sa == pytest.approx(dice(found & known, truth & known), abs=1e-6)


def padded_part(values, padded):
    """A mask of the study on the padded image, 0 around."""
    whole = torch.zeros(padded.tiling.shape)
    whole[tuple(slice(n) for n in values.shape)] = values
    return padded.around(whole)


def probabilities(subject, prepared, padded):
    """Softmax of logits that are blended as segmentation does, on the aligned windows; rounded as ProtoSeg stores them."""
    total, weight = torch.zeros(3, *padded.image.shape), torch.zeros(padded.image.shape)
    own = blending_weights(padded.tiling, CPU)
    with torch.no_grad():
        for corner in padded.corners():
            logits = subject.network(padded.cut(padded.image, corner)[None, None])[0]
            padded.cut(total, corner).add_(logits * own)
            padded.cut(weight, corner).add_(own)
    soft = torch.softmax(padded.inner(total / weight), 0).half().float()
    return soft[(slice(None), *(slice(n) for n in prepared.image.shape[1:]))]


def test_sums_of_interpolated_features_are_native_sums_with_the_adjoints_weights():
    p = torch.rand((8, 6, 10), generator=torch.Generator().manual_seed(0))
    features = torch.randn((3, 4, 3, 5), generator=torch.Generator().manual_seed(1))
    plain = (enlarge(features, p.shape) * p).sum((1, 2, 3))
    torch.testing.assert_close((features * adjoint(p, (4, 3, 5))).sum((1, 2, 3)), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adjoint(p, p.shape), p)


def test_windows_start_at_multiples_of_the_divisor_and_cover_every_voxel():
    subject = tiny()
    for size in (8, 9, 13, 19, 27):
        padded = align(subject, image_of((size, 8, 8)), CPU)
        starts = padded.tiling.starts[0]
        assert all(start % 2 == 0 for start in starts)
        assert padded.image.shape[0] - size in (0, 1)
        covered = {n for start in starts for n in range(start, start + 8)}
        assert covered == set(range(padded.image.shape[0]))


class Bright(nn.Module):
    """A network whose features say where it is bright, and whose prediction is as good as they are."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 2, 1)
        self.head = nn.Conv3d(2, 3, 1)
        with torch.no_grad():
            self.stem.weight.zero_()
            self.stem.weight[0] = 1.0
            self.stem.bias.zero_()
            self.head.weight.zero_()
            self.head.bias[:] = torch.tensor([0.0, bias, -50.0])
            self.head.weight[1, 0] = 10.0

    def forward(self, x):
        return self.head(self.stem(x))


def bright_case(bias: float = -5.0):
    from peftseg.networks import Anatomy

    truth = ball_in((8, 8, 8))
    prepared = image_of()
    image = truth.float()[None]
    subject = subject_of(Bright(bias).eval(), Anatomy("head", ("stem",), (), 1))
    return subject, type(prepared)(image, prepared.grid, prepared.source), truth


def test_a_layer_that_tells_the_structure_has_ability_1_with_both_prototypes():
    subject, prepared, truth = bright_case()
    abilities = run(subject, prepared, {"ball": Mask(truth)})
    assert [(a.layer.name, a.built_by, a.sa, a.agreement) for a in abilities] == [
        (layer, built_by, 1.0, 1.0) for layer in ("stem", "head") for built_by in ("prediction", "truth")
    ]
    assert abilities[-1].layer.note.startswith("trivial")


def test_an_empty_prediction_is_not_defined_and_the_map_is_empty_while_the_control_stands():
    subject, prepared, truth = bright_case(bias=-90.0)
    maps = {}
    abilities = run(
        subject, prepared, {"ball": Mask(truth)}, take=lambda a, m: maps.setdefault((a.layer.name, a.built_by), m)
    )
    own, control = abilities[:2]
    assert math.isnan(own.sa)
    assert math.isnan(own.agreement)
    assert not maps[("stem", "prediction")].any()
    assert (control.sa, control.agreement) == (1.0, 0.0)


def test_without_labels_there_is_agreement_and_no_ability():
    subject, prepared, _ = bright_case()
    abilities = run(subject, prepared, {"ball": Mask()})
    assert {a.built_by for a in abilities} == {"prediction"}
    assert all(math.isnan(a.sa) and a.agreement == 1.0 for a in abilities)


def test_a_structure_that_the_network_does_not_know_has_the_control_only():
    subject, prepared, truth = bright_case()
    abilities = run(subject, prepared, {"novel": Mask(truth)})
    assert [(a.built_by, a.sa) for a in abilities if a.layer.name == "stem" and not math.isnan(a.sa)] == [
        ("truth", 1.0)
    ]


def test_where_labels_say_nothing_voxels_count_neither_way():
    subject, prepared, truth = bright_case()
    image = prepared.image.clone()
    image[0, :, :, 6:] = 1.0  # bright, and not labelled
    known = torch.ones((8, 8, 8), dtype=torch.bool)
    known[:, :, 6:] = False
    changed = type(prepared)(image, prepared.grid, prepared.source)
    (control,) = [a for a in run(subject, changed, {"ball": Mask(truth & known, known)}) if a.built_by == "truth"][:1]
    assert control.sa == 1.0


@pytest.mark.parametrize("method", [None, "conv_adapter", "lora"])
def test_all_layers_are_measured_in_three_passes_and_no_hook_stays(method):
    subject, prepared = tiny(method=method), image_of()
    layers, before = listed(subject), hooks_of(subject.network)
    modes = [m.training for m in subject.network.modules()]
    runs = []
    handle = subject.network.register_forward_hook(lambda *_: runs.append(1))
    run(subject, prepared, {"ball": Mask(ball_in((8, 8, 8))), "rod": Mask()}, layers)
    handle.remove()
    assert len(runs) == 3
    assert hooks_of(subject.network) == before
    assert [m.training for m in subject.network.modules()] == modes


def test_structures_whose_maps_do_not_fit_take_another_pass_with_the_same_result(monkeypatch):
    from peftseg.explain import proto_seg as module

    subject, prepared = tiny(), image_of()
    masks = {"ball": Mask(ball_in((8, 8, 8))), "rod": Mask(~ball_in((8, 8, 8), 5))}
    together = run(subject, prepared, masks)
    monkeypatch.setattr(module, "MAP_BYTES", 1)
    assert [a.sa for a in run(subject, prepared, masks)] == pytest.approx([a.sa for a in together], nan_ok=True)


def test_a_network_of_slices_is_measured_too():
    network, anatomy = build(NetworkSpec("unet2d", {"filters": 4}), 3)
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    subject, shape = subject_of(network.eval(), anatomy, window=(16, 16, 4)), (20, 16, 6)
    prepared, truth = image_of(shape), ball_in(shape, 4)
    layers = [layer for layer in listed(subject) if layer.name in ("shortcut0", "shortcut2")]
    maps = {}
    run(subject, prepared, {"ball": Mask(truth)}, layers, lambda a, m: maps.setdefault((a.layer.name, a.built_by), m))
    padded = align(subject, prepared, CPU)
    for layer in layers:
        features = blended_features(subject, padded, layer)
        expected = plain_form(
            features, padded_part(truth.float(), padded), padded_part(torch.ones(shape), padded), padded.image.shape
        )
        expected = padded.inner(expected)[:20, :16, :6]
        sure = expected.abs() > 2e-3 * expected.abs().max()
        assert np.array_equal(maps[(layer.name, "truth")][sure.numpy()], (expected > 0)[sure].numpy())
