"""Patches: geometry by hand, keyed randomness, partial labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peftseg.patches import NO_AUGMENTATION, Augmentation, crop_padded, make_scan, rng_for, sample_batch, sample_patch


def cube_scan(known=True, shape=(20, 24, 16)):
    image = torch.zeros(1, *shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[5:11, 8:14, 4:9] = True
    image[0][mask] = 1.0
    return make_scan(image, [mask], [known], overlapping=False)


def test_image_and_labels_move_together():
    scan = cube_scan()
    only_space = Augmentation(gain=0, offset=0, gamma=0, noise=0, probability=1.0)
    for n in range(20):
        image, target, _ = sample_patch(scan, (16, 16, 16), only_space, rng_for(0, n))
        predicted = image[0] > 0.5
        truth = target[0] == 1
        overlap = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert overlap > 0.85, n


def test_without_augmentation_a_covering_patch_is_the_volume_itself():
    scan = cube_scan()
    image, target, _ = sample_patch(scan, (20, 24, 16), NO_AUGMENTATION, rng_for(3, 1))
    assert torch.equal(image, scan.image)
    assert torch.equal(target, scan.target)


def test_a_patch_larger_than_the_volume_pads_with_background():
    image = torch.full((1, 4, 4, 4), 2.0)
    image[0, 0, 0, 0] = -1.0
    scan = make_scan(image, [torch.ones(4, 4, 4, dtype=torch.bool)], [True], overlapping=False)
    patch, target, _ = sample_patch(scan, (8, 8, 8), NO_AUGMENTATION, rng_for(0, 0))
    assert patch.shape == (1, 8, 8, 8)
    assert int((target == 1).sum()) == 64
    assert torch.equal(patch[0, 2:6, 2:6, 2:6], image[0])
    assert patch[0, 0, 0, 0] == -1.0


def test_the_same_key_gives_the_same_patch_and_another_key_another():
    scan = cube_scan()
    keys = [(0, 0, 0), (0, 0, 1)]
    first, again = (sample_batch([scan], keys, (12, 12, 12), Augmentation(), 7)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, sample_batch([scan], keys, (12, 12, 12), Augmentation(), 8)[0])


def test_most_patches_hold_a_small_structure():
    scan = cube_scan(shape=(64, 64, 64))
    held = sum(
        bool((sample_patch(scan, (16, 16, 16), NO_AUGMENTATION, rng_for(1, n))[1] == 1).any()) for n in range(60)
    )
    assert held > 35


def test_left_and_right_are_never_mirrored():
    """A structure in the left half stays in the left half of patches that cover the volume."""
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[2:6, 8:12, 8:12] = True
    scan = make_scan(mask[None].float(), [mask], [True], overlapping=False)
    for n in range(40):
        _, target, _ = sample_patch(scan, (20, 20, 20), Augmentation(probability=1.0), rng_for(5, n))
        where = (target[0] == 1).nonzero()
        assert where[:, 0].float().mean() < 10


def test_unlabelled_slices_travel_with_the_patch():
    known = torch.zeros(20, 24, 16, dtype=torch.bool)
    known[:, :, ::4] = True
    scan = cube_scan(known)
    assert int(scan.target.sum()) == 6 * 6 * 2  # slices 4 and 8 of 4..8
    _, target, patch_known = sample_patch(scan, (20, 24, 16), NO_AUGMENTATION, rng_for(0, 0))
    assert torch.equal(patch_known[0], known)
    assert not bool(((target[0] == 1) & ~patch_known[0]).any())


def test_scans_with_and_without_slice_limits_go_into_one_batch():
    known = torch.ones(20, 24, 16, dtype=torch.bool)
    image, target, patch_known = sample_batch(
        [cube_scan(), cube_scan(known)], [(0, 0, 0), (0, 1, 0)], (8, 8, 8), NO_AUGMENTATION, 0
    )
    assert image.shape == (2, 1, 8, 8, 8)
    assert target.shape == (2, 1, 8, 8, 8)
    assert patch_known.shape == (2, 1, 8, 8, 8)


def test_overlapping_structures_keep_their_own_layer():
    whole = torch.ones(4, 4, 4, dtype=torch.bool)
    part = torch.zeros(4, 4, 4, dtype=torch.bool)
    part[0] = True
    scan = make_scan(torch.zeros(1, 4, 4, 4), [whole, part], [True, True], overlapping=True)
    assert scan.target.shape == (2, 4, 4, 4)
    assert scan.target.flatten(1).sum(1).tolist() == [64, 16]


@pytest.mark.parametrize("start", [(-2, 0, 1), (3, 3, 3), (9, 0, 0)])
def test_padded_crops_agree_with_numpy(start):
    volume = torch.arange(5 * 6 * 7, dtype=torch.float32).view(1, 5, 6, 7)
    padded = np.pad(volume.numpy()[0], 10, constant_values=-1)
    box = tuple(slice(s + 10, s + 14) for s in start)
    assert np.array_equal(crop_padded(volume, np.array(start), (4, 4, 4), -1)[0].numpy(), padded[box])
