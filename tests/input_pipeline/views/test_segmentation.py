"""Segmentation views: image and mask stay together, sizes, padding, crops that hold classes."""

import io
import pickle
import random

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources import make_source
from input_pipeline.views import make_views, segmentation


def encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_record(height=60, width=80, **changes):
    """A mask of vertical stripes 1, 2, 3, 4; the image is 60 times as bright."""
    mask = np.broadcast_to(1 + np.arange(width) * 4 // width, (height, width)).astype(np.uint8)
    image = np.repeat((60 * mask)[..., None], 3, axis=2)
    return {"id": "r7", "image": encode(image), "mask": mask, **changes}


def make(image_size=32, num_classes=8, **kwargs):
    return make_views("segmentation", image_size=image_size, num_classes=num_classes, **kwargs)


def examples(views, record, count=30):
    return [views(record, random.Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("kwargs", [{}, {"short_side": (0.2, 0.4)}, {"max_class_share": 1.0}])
def test_examples_match_their_spec_and_depend_on_rng_alone(kwargs):
    views, record = make(**kwargs), make_record()
    seen = set()
    for seed in range(10):
        example = views(record, random.Random(seed))
        assert {k: (x.shape, x.dtype) for k, x in example.items()} == views.spec()
        again = pickle.loads(pickle.dumps(views))(record, random.Random(seed))
        for name, value in example.items():
            assert value.flags.c_contiguous
            np.testing.assert_array_equal(value, again[name])
        seen.add(example["mask"].tobytes())
    assert len(seen) > 5


def test_defaults_are_the_published_sizes():
    views = make(512, 150)
    assert views.spec() == {"image": ((512, 512, 3), np.uint8), "mask": ((512, 512), np.int16)}
    assert (views.short_side_px, views.max_long_side_px) == ((256, 768), 1024)
    assert (views.max_class_share, views.flip_prob, views.num_classes) == (0.75, 0.5, 150)


def test_image_and_mask_stay_together():
    """Away from the stripes' borders the brightness is that of the class, however it was cut."""
    for example in examples(make(), make_record()):
        mask, image = example["mask"], example["image"][..., 1].astype(int)
        inside = mask[:, 2:-2]
        for shift in (0, 1, 3, 4):
            inside = np.where(mask[:, shift : shift + 28] == mask[:, 2:-2], inside, -1)
        assert (inside > 0).any()
        off = np.abs(image[:, 2:-2] - 60 * inside)[inside >= 0]
        assert off.max() <= 4  # bicubic overshoots a little


def test_masks_are_never_mixed():
    record = make_record()
    record["mask"] = np.where(record["mask"] > 2, 8, 1).astype(np.uint8)
    for example in examples(make(), record):
        assert set(np.unique(example["mask"])) <= {0, 1, 8}


@pytest.mark.parametrize("height, width", [(60, 80), (80, 60), (40, 400), (7, 5)])
def test_short_sides_are_within_their_range(height, width):
    """Crops as large as anything: the unpadded part tells the scaled size."""
    views = make(64, short_side=(0.5, 1.0), max_long_side=1.0, max_class_share=1.0)
    record = make_record(height, width)
    record["mask"] = np.ones((height, width), np.uint8)
    shorts = []
    for example in examples(views, record, 60):
        labelled = example["mask"] > 0
        h, w = labelled.any(axis=1).sum(), labelled.any(axis=0).sum()
        assert labelled[:h, :w].all()  # padding is at the right and below
        assert (example["image"][~labelled] == 0).all()
        assert abs(h / w - height / width) < 2 / min(h, w) * max(1, height / width)
        assert max(h, w) <= 64
        shorts.append(min(h, w))
    if max(height, width) / min(height, width) < 1.5:
        assert min(shorts) in (31, 32, 33)
        assert max(shorts) >= 64 * min(height, width) / max(height, width) - 2
    elif width == 400:  # the long side decides
        assert set(shorts) == {6}


def test_scales_are_uniform_between_their_ends():
    views = make(32, short_side=(0.5, 1.5), max_long_side=9.0, max_class_share=1.0)
    record = make_record(64, 64, mask=np.ones((64, 64), np.uint8))
    sides = [(e["mask"] > 0).any(axis=1).sum() for e in examples(views, record, 300)]
    assert min(sides) == 16 and max(sides) == 32
    # Between 16 and 48, so that half is cut at 32.
    assert 0.4 < np.mean(np.array(sides) == 32) < 0.65
    assert 0.15 < np.mean(np.array(sides) < 24) < 0.35


def test_flips():
    record = make_record()

    def share_of_flips(p):
        rising = [
            np.diff(example["mask"][0].astype(int)).clip(-1, 1).sum() < 0
            for example in examples(make(48, short_side=(1.0, 1.0), flip_prob=p), record, 100)
        ]
        return np.mean(rising)

    assert share_of_flips(0.0) == 0 and share_of_flips(1.0) == 1
    assert 0.35 < share_of_flips(0.5) < 0.65


def test_crops_with_one_class_are_drawn_again():
    """Of a mask that is one class but for a corner, most crops would hold that class alone."""
    mask = np.ones((64, 64), np.uint8)
    mask[40:, 40:] = 2
    record = make_record(64, 64, mask=mask)
    arguments = {"short_side": (2.0, 2.0), "max_long_side": 4.0}

    def share_of_one_class(limit):
        shares = [
            np.bincount(example["mask"].ravel()).max() / 32**2
            for example in examples(make(max_class_share=limit, **arguments), record, 80)
        ]
        return np.mean(np.array(shares) > 0.75)

    assert share_of_one_class(1.0) > 0.6
    # Ten crops, each good with a chance of a fifth or so.
    assert share_of_one_class(0.75) < 0.3


def test_the_last_crop_is_taken_as_it_is():
    record = make_record(64, 64, mask=np.ones((64, 64), np.uint8))
    for example in examples(make(short_side=(1.5, 1.5)), record, 5):
        assert (example["mask"] == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_masks_of_any_integer_type(dtype):
    record = make_record()
    example = make()({**record, "mask": record["mask"].astype(dtype)}, random.Random(0))
    np.testing.assert_array_equal(example["mask"], make()(record, random.Random(0))["mask"])


def test_resized_masks_take_the_pixel_of_their_centre():
    mask = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(segmentation.resize_mask(mask, 3, 4), mask)
    twice = segmentation.resize_mask(mask, 6, 8)
    np.testing.assert_array_equal(twice, mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(segmentation.resize_mask(mask, 1, 2), [[5, 7]])
    assert segmentation.resize_mask(mask, 5, 9).shape == (5, 9)


def test_resized_images_lie_where_resized_masks_do():
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 2, (6, 6)), np.ones((10, 10))).astype(np.uint8)
    for height, width in ((47, 53), (91, 80), (60, 60), (20, 31)):
        image = segmentation.resize_image(np.repeat(255 * blocks[..., None], 3, 2), height, width)
        mask = segmentation.resize_mask(blocks, height, width)
        assert image.shape == (height, width, 3)
        assert np.mean((image[..., 0] > 127) == (mask == 1)) > 0.97


def test_texts_name_the_largest_classes_first():
    mask = np.zeros((2, 4, 5), np.int16)
    mask[0, :, 1:] = 3
    mask[0, 0, 0] = 7
    assert make(4).texts({"mask": mask}) == [
        ["class 2 80%, no label 15%, class 6 5%"],
        ["no label 100%"],
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask": None}, "'r7' has no mask; use data with masks"),
        ({"mask": np.ones((60, 81), int)}, r"of \(60, 80\) pixels .* not of \(60, 81\)"),
        ({"mask": np.ones((60, 80))}, r"integers \[H, W\], not of float64"),
        ({"mask": np.full((60, 80), 9)}, r"'r7' has values 9 to 9, .* classes 1 to 8"),
        ({"mask": np.full((60, 80), -1)}, "'r7' has values -1 to -1"),
        ({"image": b"no image"}, "'r7': cannot decode 8 bytes.*leave it out"),
    ],
)
def test_bad_records_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        make()(make_record(**changes), random.Random(0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes=0 is out of range"),
        ({"num_classes": 40_000}, "num_classes=40000 is out of range"),
        ({"short_side": (1.5, 0.5)}, r"short_side=\(1.5, 0.5\).*range above 0"),
        ({"short_side": (0.0, 0.5)}, r"short_side=\(0.0, 0.5\)"),
        ({"max_long_side": 0}, "max_long_side=0"),
        ({"max_class_share": 0}, r"max_class_share=0: give a share in \(0, 1\]"),
        ({"max_class_share": 75}, "max_class_share=75"),
        ({"flip_prob": 2}, "flip_prob is a probability"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_scenes_have_masks():
    source = make_source("scenes", split="train", size=4, image_size=48)
    views = make(32, len(source.class_names))
    for index in range(4):
        example = views(source[index], random.Random(index))
        assert 0 < (example["mask"] > 0).mean() < 1
