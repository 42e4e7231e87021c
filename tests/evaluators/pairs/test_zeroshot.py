"""Class weights, accuracies per image and per class, and what must not win."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from evaluators.pairs.zeroshot import zeroshot_weights
from tests.evaluators.shared import toy

NAMES = toy.WORDS[:8]
LABELS = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]


def evaluate(model, labels=LABELS, **config):
    source = toy.ToySource({"caption": [["?"]] * len(labels)}, labels, class_names=NAMES)
    return toy.evaluate("zeroshot", source, model, **config)


def test_weights_are_means_of_unit_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 6)).astype(np.float32)
    expected = np.stack(
        [sum(v / np.linalg.norm(v) for v in prompts) / 4 for prompts in features], axis=1
    )
    expected /= np.linalg.norm(expected, axis=0)
    weights = zeroshot_weights(features.reshape(12, 6), 3)
    assert weights.shape == (6, 3)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_accuracy_counts_images_and_recall_counts_classes():
    seen = list(LABELS)
    seen[4], seen[5] = 7, 0  # two images look like other classes
    model = toy.knowing_model([f"a photo of a {NAMES[label]}." for label in seen])
    metrics = evaluate(model, batch_size=3)
    assert metrics["top1_accuracy"] == 0.8
    # Classes 0, 3, 4, 5, 6 are right, 1 and 2 wrong; class 7 has no image and does not count.
    assert metrics["mean_per_class_recall"] == pytest.approx(5 / 7)
    assert metrics["top1_accuracy"] <= metrics["top5_accuracy"] <= 1
    assert metrics["top1_accuracy_chance"] == metrics["mean_per_class_recall_chance"] == 1 / 8
    assert metrics["top5_accuracy_chance"] == 5 / 8


def test_top5_is_the_five_best_classes():
    model = toy.random_model()
    texts = toy.text_features(model, [f"a {name}" for name in NAMES])
    best = np.argsort(-(model["image"][: len(LABELS)] @ texts.T), axis=1)
    metrics = evaluate(model, templates=["a {}"])
    for k in (1, 5):
        expected = np.mean([label in row[:k] for label, row in zip(LABELS, best)])
        assert metrics[f"top{k}_accuracy"] == pytest.approx(expected)


def test_every_template_is_used():
    model = toy.random_model()
    labels = np.random.default_rng(0).integers(0, 8, 120).tolist()
    one, other, both = (
        evaluate(model, labels, templates=templates)
        for templates in (["a {}"], ["{} bread fish"], ["a {}", "{} bread fish"])
    )
    assert one != other and both not in (one, other)


def test_config_overrides_the_sources_names():
    model = toy.knowing_model(["a photo of a lamp."] * 3)
    assert evaluate(model, [1, 1, 1])["top1_accuracy"] == 0
    assert evaluate(model, [1, 1, 1], class_names=["sky", "lamp"])["top1_accuracy"] == 1


def test_equal_names_stand_for_the_first_of_them():
    """As where the first of equal scores is taken: two pairs of ImageNet's classes."""
    names = ["red", "dog", "dog", "blue"]
    model = toy.knowing_model([f"a photo of a {names[i]}." for i in (0, 1, 2, 3)])
    metrics = evaluate(model, [0, 1, 2, 3], class_names=names)
    assert metrics["top1_accuracy"] == metrics["mean_per_class_recall"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)


def test_the_worst_group_and_f1_are_those_of_the_predictions():
    model = toy.random_model()
    rng = np.random.default_rng(2)
    labels, region = rng.integers(0, 8, 100), rng.integers(2, 5, 100)
    source = toy.ToySource(
        {"caption": [["?"]] * 100},
        labels.tolist(),
        class_names=NAMES,
        groups=[{"region": int(r)} for r in region],
    )
    metrics = toy.evaluate("zeroshot", source, model, group="region", templates=["a {}"])
    texts = toy.text_features(model, [f"a {name}" for name in NAMES])
    order = np.argsort(-(model["image"][:100] @ texts.T), axis=1)
    for k in (1, 5):
        right = (order[:, :k] == labels[:, None]).any(axis=1)
        worst = min(right[region == r].mean() for r in (2, 3, 4))
        assert metrics[f"worst_region_top{k}_accuracy"] == pytest.approx(worst)
    f1 = f1_score(labels, order[:, 0], average="macro", labels=np.unique(labels))
    assert metrics["macro_f1"] == pytest.approx(f1)
    with pytest.raises(ValueError, match=r"no group 'income'; it has \['region'\]"):
        toy.evaluate("zeroshot", source, model, group="income")


def test_prompts_that_come_with_the_data_count():
    model = toy.random_model()
    labels = np.random.default_rng(0).integers(0, 2, 60).tolist()
    source = toy.ToySource({"caption": [["?"]] * 60}, labels, class_names=["7", ""])
    source.templates = ["{} bread", "a {} fish"]
    found = toy.evaluate("zeroshot", source, model)  # a protocol's names are not questioned
    source.templates = None
    named = dict(class_names=["7", "8"], templates=["{} bread", "a {} fish"])
    assert found != toy.evaluate("zeroshot", source, model, **named)
    assert toy.evaluate("zeroshot", source, model, templates="mnist", class_names=["7", "8"]) == (
        toy.evaluate(
            "zeroshot",
            source,
            model,
            templates=['a photo of the number: "{}".'],
            class_names=["7", "8"],
        )
    )


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_constant_or_broken_encoder_scores_nothing(value):
    model = toy.random_model()
    model["word"][:] = value
    metrics = evaluate(model)
    for name in ("top1_accuracy", "top5_accuracy", "mean_per_class_recall"):
        assert metrics[name] == 0
    if np.isnan(value):  # with two classes everything is in the top five, but not this
        assert evaluate(model, [0, 1], class_names=["cat", "dog"])["top5_accuracy"] == 0


@pytest.mark.parametrize(
    "name",
    ["n01440764", "n02085620-Chihuahua", "n2084071", "dog.n.01", "17", "0", "-1", "3.0", "1,000",
     "class_3", "Label 12", "cls7", "/m/0abc9", "/g/11b5m", "Q144", "d41d8cd98f00b204", " 42 ", "",
     "  ", "123e4567-e89b-12d3-a456-426614174000"],
)  # fmt: skip
def test_ids_make_no_prompts(name):
    """Neither as names of the source nor of the config; one of them is enough."""
    for config in ({}, {"class_names": ["cat", name]}):
        source = toy.ToySource({"caption": [["?"]]}, [0], class_names=[name, "cat"])
        with pytest.raises(ValueError, match="1 of 2 class names are no names but ids, such as"):
            toy.evaluate("zeroshot", source, toy.random_model(), **config)


@pytest.mark.parametrize(
    "name", ["747-400", "A300B4", "2001 coupe", "crane (bird)", "t-shirt", "facade", "café",
             "n", "class", "polaroid camera", "Boeing 707", "no. 9"]
)  # fmt: skip
def test_names_with_numbers_are_names(name):
    source = toy.ToySource({"caption": [["?"]]}, [0], class_names=[name, "cat"])
    assert toy.evaluate("zeroshot", source, toy.random_model())["top5_accuracy"] == 1


def test_digits_can_be_classes_where_the_config_says_so():
    source = toy.ToySource({"caption": [["?"]]}, [0], class_names=["0", "1"])
    with pytest.raises(ValueError, match="2 of 2 class names"):
        toy.evaluate("zeroshot", source, toy.random_model())
    for names in (["0", "1"], ["3", "10"]):
        toy.evaluate("zeroshot", source, toy.random_model(), class_names=names)
    with pytest.raises(ValueError, match="a list of strings"):
        toy.evaluate("zeroshot", source, toy.random_model(), class_names=[0, 1])
    with pytest.raises(ValueError, match=r"Unknown list of class_names '01'.*imagenet1k"):
        toy.evaluate("zeroshot", source, toy.random_model(), class_names="01")


def test_bad_input_is_explained():
    model = toy.random_model()
    with pytest.raises(ValueError, match=r"label 9.*8 classes"):
        evaluate(model, [0, 9])
    with pytest.raises(ValueError, match=r"{}.*'a photo'"):
        evaluate(model, templates=["a photo", "a {}"])
    unlabelled = toy.ToySource({"caption": [["?"]]}, class_names=NAMES)
    with pytest.raises(ValueError, match="no label"):
        toy.evaluate("zeroshot", unlabelled, model)
    nameless = toy.ToySource({"caption": [["?"]]}, [0])
    with pytest.raises(ValueError, match="class_names"):
        toy.evaluate("zeroshot", nameless, model)
