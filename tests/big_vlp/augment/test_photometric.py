"""Each operation against NumPy, colorsys or Pillow; draws and independence of the batch layout."""

import colorsys
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from big_vlp.augment import photometric
from big_vlp.augment.photometric import Photometric

OFF = dict(
    jitter_prob=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey_prob=0.0,
    blur_prob=0.0, solarize_prob=0.0,
)  # fmt: skip
EVERYTHING = Photometric(blur_prob=0.5, solarize_prob=0.3)


def photos(n=1, size=24, seed=0):
    """Smooth u8 images (random low frequencies) with a few hard-edged, saturated patches."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(s).resize((size, size), Image.BICUBIC)) for s in small]
    ).copy()
    for i, colour in enumerate(([255, 0, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [9, 9, 9])):
        images[:, 2 * i : 2 * i + 2, :6] = colour
    return images


@functools.cache
def compiled(config):
    return jax.jit(config.apply)


def apply(config, images, keys):
    return np.asarray(compiled(config)(images, keys))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def unit(image):
    return image.astype(np.float32) / 255


def grey(x):
    return x @ np.array([0.299, 0.587, 0.114], np.float32)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_blends_follow_their_definition_and_pillow(factor):
    image = photos()[0]
    x = unit(image)
    partners = {
        photometric.BRIGHTNESS: (np.zeros_like(x), ImageEnhance.Brightness),
        photometric.CONTRAST: (np.full_like(x, grey(x).mean()), ImageEnhance.Contrast),
        photometric.SATURATION: (np.repeat(grey(x)[..., None], 3, -1), ImageEnhance.Color),
    }
    for step, (partner, pillow) in partners.items():
        ours = np.asarray(photometric.blend(jnp.asarray(x), step, factor))
        np.testing.assert_allclose(
            ours, np.clip(factor * x + (1 - factor) * partner, 0, 1), atol=2e-6
        )
        theirs = np.asarray(pillow(Image.fromarray(image)).enhance(factor))
        assert np.abs(255 * ours - theirs).max() <= 1.6  # Pillow rounds to whole levels, twice


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.07, 1 / 3, 0.5])
def test_hue_follows_colorsys(turns):
    x = unit(photos(seed=1)[0])

    def shift(pixel):
        h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
        return colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)

    expected = np.array([shift(p) for p in x.reshape(-1, 3)]).reshape(x.shape)
    np.testing.assert_allclose(photometric.adjust_hue(jnp.asarray(x), turns), expected, atol=2e-6)


def test_greyscale_is_pillows():
    image = photos(seed=2)[0]
    ours = np.asarray(photometric.greyscale(jnp.asarray(unit(image))))
    assert np.abs(255 * ours - np.asarray(Image.fromarray(image).convert("L"))[..., None]).max() < 1


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_with_repeated_edges(sigma):
    x = unit(photos(seed=3, size=20)[0])
    offsets = np.arange(-20, 21)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(x, ((20, 20), (20, 20), (0, 0)), mode="edge")
    expected = np.zeros_like(x, dtype=np.float64)
    for i, a in enumerate(kernel):
        for j, b in enumerate(kernel):
            expected += a * b * padded[i : i + 20, j : j + 20]
    # The kernel is cut at three of the largest sigmas: 0.3 % of its weight.
    ours = np.asarray(jax.jit(photometric.gaussian_blur)(x, sigma))
    np.testing.assert_allclose(ours, expected, atol=4e-3 if sigma > 1.5 else 2e-6)


def test_blur_is_close_to_pillows():
    image = photos(seed=4, size=64)[0]
    ours = 255 * np.asarray(jax.jit(photometric.gaussian_blur)(unit(image), 1.5))
    theirs = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5)))
    assert np.abs(ours - theirs).mean() < 1.0  # Pillow's is made of three box filters


def test_solarize_is_pillows():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    ours = np.asarray(photometric.solarize(jnp.asarray(unit(image))))
    theirs = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
    np.testing.assert_array_equal(np.rint(255 * ours), theirs)


def test_normalise_takes_bytes_and_floats():
    image = photos()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = (unit(image) - np.float32(mean)) / np.float32(std)
    for x in (image, unit(image)):
        np.testing.assert_allclose(
            photometric.normalise(jnp.asarray(x), mean, std), expected, atol=1e-5
        )
    half = photometric.normalise(jnp.asarray(image), mean, std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), expected, atol=2e-2)


def test_nothing_on_changes_nothing_and_compiles_to_nothing():
    images = photos(3)
    np.testing.assert_allclose(apply(Photometric(**OFF), images, keys(3)), unit(images), rtol=1e-6)
    small = str(jax.make_jaxpr(Photometric(**OFF).apply)(images, keys(3)))
    assert len(small) < len(str(jax.make_jaxpr(EVERYTHING.apply)(images, keys(3)))) / 10


def test_values_stay_in_range():
    images = photos(64, size=12, seed=5)
    out = apply(EVERYTHING, images, keys(64))
    assert out.shape == images.shape and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1


def test_an_image_depends_on_its_own_key_only():
    images, k = photos(6, size=12, seed=6), keys(6)
    out = apply(EVERYTHING, images, k)
    alone = [apply(EVERYTHING, images[i : i + 1], k[i : i + 1])[0] for i in range(6)]
    np.testing.assert_allclose(out, alone, atol=1e-6)
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(apply(EVERYTHING, images[order], k[order]), out[order], atol=1e-6)
    np.testing.assert_array_equal(apply(EVERYTHING, images, k), out)


def test_images_are_augmented_differently():
    out = apply(EVERYTHING, np.repeat(photos(size=12), 64, 0), keys(64))
    # One in 18 is left alone: no jitter, no greyscale, no blur, no solarise.
    assert len(np.unique(out.reshape(64, -1), axis=0)) > 50


def test_steps_come_as_often_as_asked():
    n = 600
    images = np.random.default_rng(7).integers(40, 200, (1, 6, 6, 3), dtype=np.uint8).repeat(n, 0)
    for prob, config in {
        0.8: dict(jitter_prob=0.8, brightness=0.4),
        0.2: dict(grey_prob=0.2),
        0.3: dict(blur_prob=0.3),
        0.1: dict(solarize_prob=0.1),
    }.items():
        out = apply(Photometric(**(OFF | config)), images, keys(n))
        # A sigma below 0.3 hardly blurs: a tenth of the blurs go unseen at any useful threshold.
        seen = prob * (1 - 0.1 / 1.9) if "blur_prob" in config else prob
        changed = (np.abs(out - unit(images)) > 1e-5).any(axis=(1, 2, 3)).mean()
        assert abs(changed - seen) < 4 * np.sqrt(prob * (1 - prob) / n), config


def test_brightness_factors_fill_their_range():
    images, k = np.full((2000, 2, 2, 3), 100, np.uint8), keys(2000)
    factor = apply(Photometric(**(OFF | dict(jitter_prob=1.0, brightness=0.4))), images, k)
    factor = factor[:, 0, 0, 0] * 255 / 100
    assert 0.6 <= factor.min() + 1e-5 < 0.61 and 1.39 < factor.max() <= 1.4 + 1e-5
    assert abs(factor.mean() - 1) < 0.02
    wide = apply(Photometric(**(OFF | dict(jitter_prob=1.0, brightness=1.5))), images, k)
    # Factors start at 0, not at 1 - 1.5; a fifth of the draws would be black otherwise.
    assert (wide == 0).mean() < 0.01


def test_jitter_applies_its_steps_in_an_order_drawn_per_image():
    """Brightness and contrast do not commute: each result is one order's, and both orders occur."""
    image = np.array([[[200, 40, 90], [90, 10, 250]]], np.uint8)
    images, k, x = np.repeat(image[None], 40, 0), keys(40, seed=1), unit(image)
    config = Photometric(**(OFF | dict(jitter_prob=1.0, brightness=1.0, contrast=1.0)))
    both = apply(config, images, k)
    bright = apply(dataclasses.replace(config, contrast=0.0), images, k)
    # The contrast factor is the same unknown draw in either order: search it on a grid.
    c = np.linspace(0, 2, 10001, dtype=np.float32)[:, None, None, None]

    def contrast(x):
        return np.clip(c * x + (1 - c) * grey(x).mean(), 0, 1)

    distance = []
    for got, only_bright in zip(both, bright):
        factor = only_bright[0, 0, 1] / x[0, 0, 1]  # a level of 40 never clips
        brightened_first = contrast(np.clip(factor * x, 0, 1))
        brightened_last = np.clip(factor * contrast(x), 0, 1)
        distance.append(
            [np.abs(y - got).max((1, 2, 3)).min() for y in (brightened_first, brightened_last)]
        )
    distance = np.array(distance)
    assert distance.min(axis=1).max() < 3e-4
    clear = distance[distance.max(axis=1) > 3e-3]
    assert min((clear < 3e-4).sum(axis=0)) > 5


@pytest.mark.parametrize("wrong", [dict(hue=0.6), dict(blur_prob=1.5), dict(contrast=-0.1)])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Photometric(**wrong)
