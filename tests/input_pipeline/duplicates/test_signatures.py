"""Perceptual hashes and thumbnails."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline.duplicates import signatures
from input_pipeline.images import crops
from tests.input_pipeline.duplicates.duplicates_data import SETTINGS, copies, picture, scene


def bits(one, other):
    return (one ^ other).bit_count()


def details(one, other, is_mirrored):
    packed = (np.frombuffer(each.detail, np.uint64)[None] for each in (one, other))
    return signatures.details(*packed, np.array([is_mirrored])).item()


def thumbnails(*images):
    return np.stack([signatures.thumbnail(pixels).reshape(-1) for pixels in images])


def difference(one, other):
    small = thumbnails(one, other)
    contrasts = signatures.contrast(small)
    return signatures.differences(small[:1], small[1:], (contrasts[:1], contrasts[1:])).item()


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_is_that_of_imagehash(seed):
    imagehash = pytest.importorskip("imagehash")
    pixels = picture(seed, (50 + 7 * seed, 40))
    expected = int(str(imagehash.phash(Image.fromarray(pixels))), 16)
    assert signatures.frequencies(pixels).hash == expected


def test_hashes_that_imagehash_gave():
    found = [f"{signatures.frequencies(picture(seed))[0]:016x}" for seed in range(3)]
    assert found == ["9c51a9f393a46c59", "a1d6a939ec0c16f3", "95d9785613ac6d61"]


@pytest.mark.parametrize("seed", range(20))
def test_the_second_hash_is_that_of_the_mirror_image(seed):
    pixels = picture(seed, (48, 61))
    found = signatures.frequencies(pixels)
    turned = signatures.frequencies(np.ascontiguousarray(pixels[:, ::-1]))
    assert bits(turned.hash, found.mirrored_hash) <= 2
    assert bits(turned.mirrored_hash, found.hash) <= 2
    assert details(turned, found, True) == 0
    assert details(turned, found, False) > 20
    small, flipped = thumbnails(pixels, pixels[:, ::-1])
    assert np.abs(signatures.mirrored(small[None])[0].astype(int) - flipped).max() <= 1


def test_a_symmetric_picture_is_its_mirror_image():
    half = picture(3)
    pixels = np.concatenate([half, half[:, ::-1]], axis=1)
    found = signatures.frequencies(pixels)
    assert found.hash == found.mirrored_hash
    assert details(found, found, True) == details(found, found, False) == 0


LEAST_FOUND = {"resized": 0.95, "recompressed": 0.95, "cropped": 0.9, "mirrored": 0.95}


@pytest.mark.parametrize("kind", LEAST_FOUND)
def test_of_each_kind_of_copy_so_many_are_found(kind):
    found = []
    for seed in range(60):
        pixels = scene(seed)
        copy = crops.decode(copies(pixels)[kind])
        ours, theirs = signatures.frequencies(pixels), signatures.frequencies(copy)
        is_turned = kind == "mirrored"
        found.append(
            bits(ours.hash, theirs[is_turned]) <= SETTINGS.distance
            and details(ours, theirs, is_turned) <= SETTINGS.detail
            and difference(pixels, copy[:, ::-1] if is_turned else copy) <= SETTINGS.difference
        )
    assert np.mean(found) >= LEAST_FOUND[kind]


@pytest.mark.parametrize("seed", range(5))
def test_others_are_far(seed):
    pixels, other = picture(seed), picture(seed + 100)
    ours, theirs = signatures.frequencies(pixels), signatures.frequencies(other)
    assert bits(ours.hash, theirs.hash) > 12
    assert details(ours, theirs, False) > 20
    assert difference(pixels, other) > 0.5


def test_a_small_thing_on_a_white_ground_counts_as_much_as_a_large_one():
    ground = np.full((64, 64, 3), 255, np.uint8)
    one, other = ground.copy(), ground.copy()
    one[28:36, 20:28] = 0
    other[28:36, 36:44] = 0
    assert difference(one, other) > 1
    assert difference(one, one) == 0
    assert signatures.contrast(thumbnails(ground, one)).tolist()[0] == 0
