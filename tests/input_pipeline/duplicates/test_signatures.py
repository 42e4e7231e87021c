"""Perceptual hashes and thumbnails."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline.duplicates import signatures
from input_pipeline.images import crops
from tests.input_pipeline.duplicates.duplicates_data import copies, picture


def bits(one, other):
    return (one ^ other).bit_count()


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
    assert signatures.hashes(pixels)[0] == expected


def test_hashes_that_imagehash_gave():
    found = [f"{signatures.hashes(picture(seed))[0]:016x}" for seed in range(3)]
    assert found == ["9c51a9f393a46c59", "a1d6a939ec0c16f3", "95d9785613ac6d61"]


@pytest.mark.parametrize("seed", range(20))
def test_the_second_hash_is_that_of_the_mirror_image(seed):
    pixels = picture(seed, (48, 61))
    found, mirrored = signatures.hashes(pixels)
    turned = signatures.hashes(np.ascontiguousarray(pixels[:, ::-1]))
    assert bits(turned[0], mirrored) <= 2 and bits(turned[1], found) <= 2
    small, flipped = thumbnails(pixels, pixels[:, ::-1])
    assert np.abs(signatures.mirrored(small[None])[0].astype(int) - flipped).max() <= 1


def test_a_symmetric_picture_is_its_mirror_image():
    half = picture(3)
    pixels = np.concatenate([half, half[:, ::-1]], axis=1)
    found, mirrored = signatures.hashes(pixels)
    assert found == mirrored


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_near_and_others_far(seed):
    pixels = picture(seed)
    ours = signatures.hashes(pixels)[0]
    for kind, data in copies(pixels).items():
        copy = crops.decode(data)
        turned = kind == "mirrored"
        assert bits(ours, signatures.hashes(copy)[turned]) <= 4, kind
        assert difference(pixels, copy[:, ::-1] if turned else copy) < 0.1, kind
    assert bits(ours, signatures.hashes(picture(seed + 100))[0]) > 12
    assert difference(pixels, picture(seed + 100)) > 0.5


def test_a_small_thing_on_a_white_ground_counts_as_much_as_a_large_one():
    ground = np.full((64, 64, 3), 255, np.uint8)
    one, other = ground.copy(), ground.copy()
    one[28:36, 20:28] = 0
    other[28:36, 36:44] = 0
    assert difference(one, other) > 1
    assert difference(one, one) == 0
    assert signatures.contrast(thumbnails(ground, one)).tolist()[0] == 0
