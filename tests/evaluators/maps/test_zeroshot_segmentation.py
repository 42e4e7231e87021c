"""Zero-shot segmentation: which name wins where, and what is asked of the data."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluators.maps import zeroshot_segmentation as seg
from evaluators.shared import dense, pixels
from tests.evaluators.shared import toy

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)  # of WORDS[:3]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def source(masks, **more):
    """Each pixel has the colour of its class; what does not count is black."""
    palette = np.concatenate([np.zeros((1, 3), np.uint8), COLOURS])
    images = [png(palette[mask]) for mask in masks]
    given = {"class_names": toy.WORDS[:3], "image": images, "mask": masks, **more}
    return toy.ToySource({"caption": [["?"]] * len(masks)}, **given)


def knowing_model(**words):
    """Colours have the features of their words, and of other words with correlative attention."""
    model = toy.random_model()
    features = toy.text_features(model, list(words.values()) or toy.WORDS[:3])
    model["colour"] = np.stack([features, features[[1, 2, 0]]])
    return model


def evaluate(source, model, **config):
    given = {"templates": ["{}"], "image_side": 12, **config}
    return toy.evaluate("zeroshot_segmentation", source, model, **given)


def masks():
    """Large parts of one class each."""
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(1, 4, (2, 3)), np.ones((16, 16))).astype(np.uint8) for _ in range(3)
    ]


def test_a_model_that_knows_and_one_that_is_wrong():
    values = evaluate(source(masks()), knowing_model())
    assert values["pixel_accuracy"] > 0.9 > 0.8 < values["mean_iou"]  # edges are stretched
    assert values["correlative_pixel_accuracy"] < 0.1
    assert values["num_classes_present"] == 3
    assert 0 < values["mean_iou_baseline"] < values["pixel_accuracy_baseline"] < 0.6
    assert list(values)[:2] == ["mean_iou", "pixel_accuracy"]
    assert {name for name in values if name.startswith("correlative")} == {
        *("correlative_mean_iou", "correlative_pixel_accuracy")
    }


def test_a_class_is_found_by_any_of_its_names():
    model = knowing_model(red="boat", green="green", blue="blue")
    values = evaluate(source(masks()), model, class_names=[["red", "boat"], "green", "blue"])
    assert values["pixel_accuracy"] > 0.9
    # A name that stands twice is the first class'.
    values = evaluate(
        source(masks()), model, class_names=["sky", ["green", "boat"], ["blue", "boat"]]
    )
    assert 0.4 < values["pixel_accuracy"] < 0.7


def test_pamr_keeps_what_is_right():
    values = evaluate(source(masks()), knowing_model(), pamr_steps=2)
    assert values["pixel_accuracy"] > 0.9


RULE = dense.Rule((0, 1, 1, 2), (False, False, True, False), logit_scale=10.0)


def label(scores, **rule):
    """The labels of one window whose cells are the pixels; scores [H][W][names]."""
    maps = jnp.moveaxis(jnp.asarray(scores, jnp.float32), -1, 0)[None]
    size = maps.shape[2:]
    assert size[0] == size[1]
    return dense.label_map([maps], 0, size, size, size[0], 1, RULE._replace(**rule)).tolist()


def test_the_largest_probability_wins_and_ties_do_not():
    scores = [[[1, 0, 0, 0], [0, 0, 1, 0]], [[0, 1, 0, 1], [0, 1, 0, 0.9]]]
    assert label(scores) == [[0, 1], [pixels.NO_CLASS, 1]]
    assert label(np.full((2, 2, 4), np.nan)) == [[pixels.NO_CLASS] * 2] * 2
    copied = [[[0.0, 0, 1, 1]] * 2] * 2  # the second name is the first again, and gives way
    assert label(copied) == [[2, 2], [2, 2]]


def test_what_is_not_probable_is_background():
    scores = [[[0, 1, 0, 0.9], [0, 0, 0, 1]]] * 2
    assert label(scores) == [[1, 2]] * 2
    assert label(scores, probability_threshold=0.9) == [[0, 2]] * 2


def test_small_classes_are_taken_away():
    one = [0.2, 1, 0, 0]
    scores = [[one] * 3 for _ in range(3)]
    scores[1][1] = [0.2, 0, 0, 1.5]
    scores[0][0] = [0, 0.5, 0, 1]
    assert label(scores) == [[2, 1, 1], [1, 2, 1], [1, 1, 1]]
    found = label(scores, area_threshold=0.25)
    assert found == [[1, 1, 1], [1, 0, 1], [1, 1, 1]]  # what comes next
    assert label(scores, area_threshold=0.2) == label(scores)  # 2 of 9 are more


@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (336, 448)),
        ((427, 640), (336, 504)),
        ((333, 500), (336, 505)),
        ((100, 3000), (224, 6720)),
        ((300, 2400), (256, 2048)),
    ],
)
def test_sizes_are_those_of_the_reference(size, expected):
    assert seg.resized(size, 336, 224) == expected
    assert seg.resized(size[::-1], 336, 224) == expected[::-1]


def test_bad_input_is_explained():
    model, whole = knowing_model(), source(masks())
    with pytest.raises(ValueError, match="image_side=6 must be at least the model's image size, 8"):
        evaluate(whole, model, image_side=6)
    with pytest.raises(ValueError, match="stride=9 must be at most the model's image size, 8"):
        evaluate(whole, model, stride=9)
    with pytest.raises(ValueError, match="names no classes; set class_names"):
        evaluate(source(masks(), class_names=None), model)
    with pytest.raises(ValueError, match="3 of 3 class names are no names but ids, such as '1'"):
        evaluate(source(masks(), class_names=["1", "2", "3"]), model)
    with pytest.raises(ValueError, match="has values 1 to 3, but there are classes 1 to 2"):
        evaluate(whole, model, class_names=["red", "green"])
    with pytest.raises(
        ValueError, match=r"the mask of an image of .32, 48. pixels is of that shape"
    ):
        evaluate(source(masks(), mask=[np.ones((3, 3), int)] * 3), model)
    with pytest.raises(ValueError, match="Unknown list of segmentation_classes 'voc'"):
        evaluate(whole, model, class_names="voc")
