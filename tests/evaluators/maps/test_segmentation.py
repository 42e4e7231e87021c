"""Label maps at the masks' size, sums over images of different sizes, and what must not win."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from evaluators.maps import segmentation as seg
from evaluators.shared import pixels
from evaluators.shared.base import make_evaluator
from input_pipeline.sources import make_source
from tests.evaluators.shared import toy


def bilinear(logits, height, width):
    """f64[height, width, C], corners aligned; written with the four neighbours of each pixel."""
    h, w, _ = logits.shape
    y = np.linspace(0, h - 1, height) if height > 1 else np.zeros(1)
    x = np.linspace(0, w - 1, width) if width > 1 else np.zeros(1)
    out = np.zeros((height, width, logits.shape[2]))
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
            weight = (1 - abs(y - row))[:, None, None] * (1 - abs(x - column))[:, None]
            out += weight * logits[np.minimum(row, h - 1)][:, np.minimum(column, w - 1)]
    return out


@pytest.mark.parametrize(
    "source, size",
    [((8, 8), (37, 91)), ((5, 9), (5, 9)), ((9, 7), (4, 3)), ((6, 6), (1, 8)), ((1, 1), (3, 2)),
     ((4, 4), (257, 300))],
)  # fmt: skip
def test_label_maps_are_those_of_resized_logits(source, size):
    logits = np.random.default_rng(0).normal(size=(*source, 5)).astype(np.float32)
    scores = np.sort(bilinear(logits, *size), axis=-1)
    clear = scores[..., -1] - scores[..., -2] > 1e-4  # rounding decides the others
    labels = seg.label_map(jnp.asarray(logits), *size)
    assert labels.shape == size and clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], bilinear(logits, *size).argmax(-1)[clear])


def test_label_maps_equal_torchs():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).normal(size=(16, 16, 20)).astype(np.float32)
    channels_first = torch.tensor(logits).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        channels_first, size=(100, 133), mode="bilinear", align_corners=True
    )
    labels = seg.label_map(jnp.asarray(logits), 100, 133)
    assert (labels != resized[0].argmax(0).numpy()).mean() < 1e-3


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_pixel_without_a_highest_logit_has_no_class(value):
    assert (seg.label_map(jnp.full((2, 2, 3), value), 4, 4) == pixels.NO_CLASS).all()
    part = np.zeros((3, 3, 3), np.float32)
    part[..., 1] = 1
    part[0, 0] = [value, np.nan, 5]
    part[2, 2] = [0, 2, 2]
    labels = seg.label_map(jnp.asarray(part), 3, 3)
    assert labels[0, 0] == labels[2, 2] == pixels.NO_CLASS
    assert labels[0, 2] == labels[1, 2] == labels[2, 0] == 1


def test_pixels_are_counted_where_the_mask_is_not_zero():
    mask = np.array([[0, 1, 1], [2, 3, 3]], np.uint8)
    labels = np.array([[2, 0, 1], [1, 2, pixels.NO_CLASS]])
    intersection, predicted, target = pixels.count_pixels(mask, labels, 4)
    np.testing.assert_array_equal(intersection, [1, 1, 1, 0])
    np.testing.assert_array_equal(predicted, [1, 2, 1, 0])  # not the 2 on the uncounted pixel
    np.testing.assert_array_equal(target, [2, 1, 2, 0])
    values = dict(pixels.metrics(intersection, predicted, target))
    assert values["mean_iou"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    assert values["pixel_accuracy"] == pytest.approx(3 / 5)
    assert values["num_classes_present"] == 3
    assert values["pixel_accuracy_baseline"] == pytest.approx(2 / 5)
    assert values["mean_iou_baseline"] == pytest.approx(2 / 5 / 3)


def source(masks, **more):
    return toy.ToySource({"caption": [["?"]] * len(masks)}, mask=masks, **more)


def evaluate(masks, maps, **config):
    model = {"maps": np.asarray(maps, np.float32)}
    return toy.evaluate("segmentation", source(masks), model, preprocess=toy.WHOLE, **config)


def test_sums_run_over_images_of_different_sizes():
    rng = np.random.default_rng(0)
    num_classes, maps = 6, rng.normal(size=(7, 5, 5, 6))
    # Blocks of one class, and class 5 (mask 6) nowhere; masks of each size and integer type.
    masks = [
        np.kron(rng.integers(0, 6, (3, 2)), np.ones((4 + i, 9 - i))).astype(dtype)
        for i, dtype in zip(range(7), [np.uint8, np.int16, np.int64] * 3)
    ]
    confusion = np.zeros((num_classes, num_classes))
    for mask, logits in zip(masks, maps):
        labels = bilinear(logits.astype(np.float32), *mask.shape).argmax(-1)
        for true, given in zip(mask[mask > 0] - 1, labels[mask > 0]):
            confusion[true, given] += 1
    both, true, given = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    values = evaluate(masks, maps, batch_size=3)
    assert values["mean_iou"] == pytest.approx(np.mean((both / (true + given - both))[:5]))
    assert values["pixel_accuracy"] == pytest.approx(both.sum() / true.sum())
    assert values["num_classes_present"] == 5
    assert given[5] > 0  # predicted, though nothing is of that class


def test_a_model_that_knows_and_one_that_says_nothing():
    masks = [np.repeat(np.arange(1, 5), 6).reshape(2, 12).astype(np.uint8)] * 3
    knowing = np.eye(4)[(masks[0] - 1).astype(int)]
    values = evaluate(masks, [knowing] * 3)
    assert values["mean_iou"] == values["pixel_accuracy"] == 1
    values = evaluate(masks, np.zeros((3, 4, 4, 4)))
    assert values["mean_iou"] == values["pixel_accuracy"] == 0
    one = np.zeros((3, 4, 4, 4))
    one[..., 2] = 1
    values = evaluate(masks, one)
    assert values["mean_iou"] == values["mean_iou_baseline"] == 1 / 16
    assert values["pixel_accuracy"] == values["pixel_accuracy_baseline"] == 1 / 4


def test_bad_input_is_explained():
    maps = np.zeros((3, 4, 4, 4))
    with pytest.raises(ValueError, match=r"'toy-0' has values 0 to 5, but there are classes 1"):
        evaluate([np.arange(6).reshape(2, 3)], maps)
    with pytest.raises(ValueError, match=r"integers \[H, W\], not of float64 \(2, 3\)"):
        evaluate([np.ones((2, 3))], maps)
    with pytest.raises(ValueError, match="Every pixel of these masks is 0"):
        evaluate([np.zeros((2, 3), int)], maps)
    with pytest.raises(ValueError, match="'toy-0' has no mask"):
        toy.evaluate("segmentation", toy.ToySource({"caption": [["?"]]}), {}, preprocess=toy.WHOLE)
    with pytest.raises(ValueError, match=r"set resize='squash' .* not 'shortest'"):
        toy.evaluate("segmentation", source([np.ones((2, 3), int)]), {})


def test_scenes_serve_segmentation():
    """A model that gives every pixel to class 3 is right as often as the masks hold it."""
    preprocess = dataclasses.replace(toy.WHOLE, image_size=32)
    source = make_source("scenes", split="val", size=6)

    def segment(model, batch):
        grey = batch["image"].astype(jnp.float32).mean(axis=-1)
        return grey[..., None] * model

    data = {"name": "scenes", "split": "val", "size": 6}
    evaluator = make_evaluator(
        "segmentation", {"segment": segment}, preprocess, toy.mesh(), data=data
    )
    values = dict(evaluator.run(jnp.eye(8)[3]))
    counted = np.concatenate([source[i]["mask"][source[i]["mask"] > 0] for i in range(6)])
    assert values["pixel_accuracy"] == pytest.approx((counted == 4).mean(), abs=0.02)
    assert values["num_classes_present"] == len(np.unique(counted))
