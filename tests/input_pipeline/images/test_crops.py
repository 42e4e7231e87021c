import dataclasses
import io
import math
import random
import statistics

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from input_pipeline.images import crops
from input_pipeline.preprocess import Preprocess

# From 5 on it rounds one value in some 100,000 otherwise where pixels have four bytes.
OPENCV_ROUNDS_BY_CHANNELS = int(cv2.__version__.partition(".")[0]) >= 5


def picture(width, height, seed=0):
    """u8[height, width, 3]: smooth colours with some noise and hard edges."""
    rng = np.random.default_rng(seed)
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 9, (3, 3))]
    pixels = 127 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.uniform(0, 255, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def encode(pixels, format="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def pillow(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(64, 48), (33, 51), (17, 9), (1, 1)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_decodes_as_pillow_does(size, subsampling, progressive):
    data = encode(picture(*size), "JPEG", subsampling=subsampling, progressive=progressive)
    image = crops.decode(data)
    assert image.dtype == np.uint8 and image.shape == (size[1], size[0], 3)
    np.testing.assert_array_equal(image, pillow(data))


@pytest.mark.parametrize(
    "format, modes",
    [
        ("JPEG", ["L", "CMYK"]),
        ("PNG", ["RGB", "RGBA", "L", "LA", "P", "1"]),
        ("WEBP", ["RGB", "RGBA"]),
        ("GIF", ["P"]),
        ("BMP", ["RGB"]),
    ],
)
def test_other_formats_decode_as_pillow_does(format, modes):
    for mode in modes:
        data = encode(picture(40, 30), format, mode)
        np.testing.assert_array_equal(crops.decode(data), pillow(data))


def test_alpha_is_dropped():
    pixels = np.concatenate([picture(20, 10), np.zeros((10, 20, 1), np.uint8)], -1)
    data = encode(pixels, "PNG", "RGBA")
    np.testing.assert_array_equal(crops.decode(data), pixels[..., :3])


def test_broken_images_say_why():
    for format in ("JPEG", "PNG", "WEBP"):
        data = encode(picture(64, 48), format)
        for share in (0.02, 0.3, 0.9):
            with pytest.raises(ValueError, match="cannot decode"):
                crops.decode(data[: int(len(data) * share)])
            with pytest.raises(ValueError, match="cannot decode"):
                crops.random_crops(
                    data[: int(len(data) * share)], [(8, (0.5, 1))], 0, random.Random(0)
                )
    with pytest.raises(ValueError, match="truncated"):
        crops.decode(encode(picture(64, 48), "JPEG")[:-200])
    for junk in (b"", b"not an image", b"\xff\xd8\xff"):
        with pytest.raises(ValueError, match="not a known image format"):
            crops.decode(junk)


def test_stray_bytes_in_a_jpeg_are_tolerated():
    data = encode(picture(64, 48), "JPEG")
    table = data.index(b"\xff\xdb")
    odd = data[:table] + b"\0\0" + data[table:]
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(odd)
    np.testing.assert_array_equal(crops.decode(odd), crops.decode(data))


@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("size", [(512, 384), (300, 300), (200, 260)])
def test_crop_boxes_keep_to_their_ranges(size, scale):
    rng = random.Random(0)
    width, height = size
    shares, aspects, lefts = [], [], []
    for _ in range(1500):
        left, top, w, h = crops.random_resized_crop_box(width, height, scale, rng)
        assert 0 <= left <= width - w and 0 <= top <= height - h
        # Sides are rounded to pixels.
        slack = (w + h) / (width * height)
        assert scale[0] - slack <= w * h / (width * height) <= scale[1] + slack
        assert 0.97 * 3 / 4 <= w / h <= 1.03 * 4 / 3
        shares.append(w * h / (width * height))
        aspects.append(math.log(w / h))
        lefts.append(left / (width - w) if w < width else 0.5)
    assert statistics.mean(lefts) == pytest.approx(0.5, abs=0.04)
    if scale[1] < 1:  # Nothing was refused for lack of room: the draws are as specified.
        assert statistics.mean(shares) == pytest.approx(sum(scale) / 2, rel=0.04)
        assert statistics.mean(aspects) == pytest.approx(0, abs=0.02)
        assert statistics.pstdev(aspects) == pytest.approx(math.log(16 / 9) / 12**0.5, rel=0.06)


def test_boxes_that_do_not_fit_are_drawn_again():
    # Of an image this wide about half the single draws do not fit, but hardly ever ten in a row.
    rng = random.Random(0)
    boxes = [crops.random_resized_crop_box(300, 200, (0.4, 1.0), rng) for _ in range(500)]
    assert boxes.count((16, 0, 267, 200)) < 10


@pytest.mark.parametrize(
    "size, box",
    [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))],
)
def test_extreme_images_get_the_central_box(size, box):
    for seed in range(20):
        rng = random.Random(seed)
        assert crops.random_resized_crop_box(*size, (0.9, 1.0), rng) == box


def _pillow_crop(image, box, size):
    left, top, width, height = box
    corners = (left, top, left + width, top + height)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, corners)
    return np.array(resized, np.float32)


@pytest.mark.parametrize(
    "box", [(5, 7, 40, 40), (0, 0, 64, 64), (9, 3, 90, 70), (0, 0, 128, 128), (20, 10, 300, 240)]
)
def test_crop_resize_is_close_to_pillow(box):
    image = picture(400, 300)
    crop = crops.crop_resize(image, box, 64)
    assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8
    expected = _pillow_crop(image, box, 64)
    assert np.abs(crop - expected).mean() < 2
    # Half a pixel of misplacement would be worse than any difference between filters.
    shifted = _pillow_crop(np.roll(image, 2, 1), box, 64)
    assert np.abs(crop - expected).mean() < np.abs(crop - shifted).mean()


def test_shrinking_does_not_alias():
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    for side in (128, 150, 201, 300):
        crop = crops.crop_resize(stripes, (0, 0, side, side), 64)
        assert abs(crop.mean() - 127.5) < 4
        assert crop.std() < 50  # Stripes that survived would have 127.


def test_crops_of_a_jpeg_are_those_of_its_pixels():
    data = encode(picture(300, 200), "JPEG")
    png = encode(crops.decode(data))
    views = [(128, (0.4, 1.0)), (32, (0.05, 0.4))]  # At most one is shrunk enough to decode less.
    for seed in range(10):
        for a, b in zip(
            crops.random_crops(data, views, 0.5, random.Random(seed)),
            crops.random_crops(png, views, 0.5, random.Random(seed)),
        ):
            np.testing.assert_array_equal(a, b)


def test_crops_are_those_of_three_channels():
    """Which they are made of: a fourth is only there to be fast."""
    differ = []
    for number, (width, height) in enumerate([(300, 200), (90, 127), (513, 384)]):
        image = picture(width, height)
        rng, again = random.Random(number), random.Random(number)
        views = [(rng.randint(1, 120), (0.01, 1.0)) for _ in range(60)]
        for _ in views:
            again.randint(1, 120)
        out = [np.empty((size, size, 3), np.uint8) for size, _ in views]
        made = crops.random_crops(encode(image), views, 0.5, rng, out)
        boxes = [crops.random_resized_crop_box(width, height, s, again) for _, s in views]
        for crop, place, box, (size, _) in zip(made, out, boxes, views):
            expected = crops.crop_resize(image, box, size)
            expected = expected[:, ::-1] if again.random() < 0.5 else expected
            np.testing.assert_array_equal(place, crop)
            is_larger = size > min(box[2:])  # by bicubic interpolation
            atol = 1 if is_larger and OPENCV_ROUNDS_BY_CHANNELS else 0
            np.testing.assert_allclose(crop.astype(int), expected.astype(int), rtol=0, atol=atol)
            differ.append((crop != expected).ravel())
    assert np.concatenate(differ).mean() < 1e-4


@pytest.mark.parametrize("shrink, factor", [(1.9, 1), (2, 2), (3.9, 2), (4, 4), (8, 8), (50, 8)])
def test_decoder_shrinks_by_powers_of_two(shrink, factor):
    data = encode(picture(203, 150), "JPEG")
    image = crops._decode_jpeg(data, 150, 203, shrink)
    assert image.shape == (math.ceil(150 / factor), math.ceil(203 / factor), 3)


def test_crops_of_a_large_jpeg_look_alike_after_scaled_decoding(monkeypatch):
    data = encode(picture(803, 601), "JPEG", quality=95)
    png = encode(crops.decode(data))
    shapes = []
    resize = crops.crop_resize
    monkeypatch.setattr(
        crops,
        "crop_resize",
        lambda im, *others: shapes.append(im.shape) or resize(im, *others),
    )
    for size in (40, 90, 180):
        views = [(size, (0.4, 1.0)), (size // 2, (0.1, 0.4))]
        for seed in range(5):
            fast = crops.random_crops(data, views, 0.5, random.Random(seed))
            full = crops.random_crops(png, views, 0.5, random.Random(seed))
            for a, b in zip(fast, full):
                # Boxes move by up to half an output pixel.
                assert np.abs(a.astype(int) - b).mean() < 8
    assert {shape[:2] for shape in shapes} == {(601, 803), (301, 402), (151, 201), (76, 101)}


def test_flips_mirror_the_same_crops():
    data = encode(picture(100, 80))
    views = [(32, (0.4, 1.0))] * 4
    plain = crops.random_crops(data, views, 0.0, random.Random(3))
    flipped = crops.random_crops(data, views, 1.0, random.Random(3))
    mixed = crops.random_crops(data, views * 25, 0.5, random.Random(3))
    for a, b in zip(plain, flipped):
        np.testing.assert_array_equal(a[:, ::-1], b)
        assert (a != b).any()
    same = crops.random_crops(data, views * 25, 0.0, random.Random(3))
    kept = sum((a == b).all() for a, b in zip(mixed, same))
    assert 30 < kept < 70


PREPROCESS = Preprocess(image_size=32, tokenizer="clip", context_length=77)


@pytest.mark.parametrize("size", [(64, 48), (33, 32), (32, 35), (47, 101), (20, 11), (32, 32)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("short", [None, 32, 33, 40])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval_image_is_pillows(size, format, short, interpolation):
    data = encode(picture(*size), format)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    filter = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[interpolation]
    width, height = size
    side = short or 32
    if width < height:
        image = image.resize((side, int(side * height / width)), filter)
    else:
        image = image.resize((int(side * width / height), side), filter)
    left = round((image.width - 32) / 2.0)
    top = round((image.height - 32) / 2.0)
    expected = np.array(image.crop((left, top, left + 32, top + 32)))
    rule = dataclasses.replace(PREPROCESS, interpolation=interpolation, resize_size=short)
    result = crops.eval_image(data, rule)
    np.testing.assert_array_equal(result, expected)
    assert result.flags.c_contiguous and result.dtype == np.uint8


@pytest.mark.parametrize(
    "rounding, width, left",
    [("even", 33, 0), ("even", 34, 1), ("even", 35, 2), ("even", 37, 2), ("even", 39, 4),
     ("down", 33, 0), ("down", 34, 1), ("down", 35, 1), ("down", 37, 2), ("down", 39, 3)],
)  # fmt: skip
def test_eval_crop_rounds_halves(rounding, width, left):
    rule = dataclasses.replace(PREPROCESS, crop_rounding=rounding)
    wide = picture(width, 32)
    result = crops.eval_image(encode(wide), rule)
    np.testing.assert_array_equal(result, wide[:, left : left + 32])
    high = wide.transpose(1, 0, 2)
    result = crops.eval_image(encode(high), rule)
    np.testing.assert_array_equal(result, high[left : left + 32])


def test_eval_squash():
    pixels = picture(70, 50)
    squash = dataclasses.replace(PREPROCESS, resize="squash")
    for interpolation in ("BICUBIC", "BILINEAR"):
        rule = dataclasses.replace(squash, interpolation=interpolation.lower())
        expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling[interpolation])
        np.testing.assert_array_equal(crops.eval_image(encode(pixels), rule), np.array(expected))


def test_crops_stay_as_they_are_when_the_next_image_is_read():
    """The decoder's memory is used again; also where a crop is not resized at all."""
    data = [encode(picture(64, 64, seed), "JPEG", quality=95) for seed in range(2)]
    whole = [(64, (1.0, 1.0))]
    made = [crops.random_crops(item, whole, 0.0, random.Random(0))[0] for item in data]
    again = crops.random_crops(data[0], whole, 0.0, random.Random(0))[0]
    np.testing.assert_array_equal(made[0], again)
    assert (made[0] != made[1]).any()
