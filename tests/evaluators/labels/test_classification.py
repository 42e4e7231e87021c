"""Accuracies of a trained head, and what must not win."""

import dataclasses

import jax
import numpy as np
import pytest

from evaluators.shared.base import make_evaluator
from tests.evaluators.shared import toy

LABELS = [0, 0, 0, 0, 1, 2, 3, 4]


def source(labels=LABELS, names=None):
    return toy.ToySource({"caption": [["?"]] * len(labels)}, labels, class_names=names)


def evaluate(logits, labels=LABELS, names=None, **config):
    model = {"logits": np.asarray(logits, np.float32)}
    return toy.evaluate("classification", source(labels, names), model, **config)


def test_accuracy_counts_images_and_recall_counts_classes():
    logits = np.eye(6)[LABELS]
    logits[0] = [0.4, 0.5, 0, 0, 0, 0]  # second
    logits[5] = [5, 4, -1, 3, 2, 1]  # last
    metrics = evaluate(logits, batch_size=3)
    assert metrics["top1_accuracy"] == 6 / 8
    assert metrics["top5_accuracy"] == 7 / 8
    # Class 0 is right three times of four, class 2 never; class 5 has no image.
    assert metrics["mean_per_class_recall"] == pytest.approx((3 / 4 + 1 + 0 + 1 + 1) / 5)
    assert metrics["top1_accuracy_chance"] == metrics["mean_per_class_recall_chance"] == 1 / 6
    assert metrics["top5_accuracy_chance"] == 5 / 6


def test_random_logits_agree_with_sorting():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(100, 12)), rng.integers(0, 12, 100)
    best = np.argsort(-logits, axis=1)
    metrics = evaluate(logits, labels.tolist())
    for k in (1, 5):
        expected = np.mean([label in row[:k] for label, row in zip(labels, best)])
        assert metrics[f"top{k}_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_head_that_says_nothing_wins_nothing(value):
    metrics = evaluate(np.full((8, 6), value))
    for name in ("top1_accuracy", "top5_accuracy", "mean_per_class_recall"):
        assert metrics[name] == 0


def test_bad_input_is_explained():
    logits = np.zeros((8, 6))
    with pytest.raises(ValueError, match=r"'toy-1' has label 6, which is none of 6 classes"):
        evaluate(logits, [0, 6])
    with pytest.raises(ValueError, match=r"'toy-0' has label -1"):
        evaluate(logits, [-1])
    with pytest.raises(ValueError, match="tells 6 classes apart, but the data names 2"):
        evaluate(logits, [0], ["cat", "dog"])
    with pytest.raises(ValueError, match="'toy-0' has no label"):
        toy.evaluate("classification", toy.ToySource({"caption": [["?"]]}), {})
    with pytest.raises(ValueError, match=r"predict functions \['classify'\].*\['encode_image'\]"):
        make_evaluator(
            "classification",
            {"encode_image": None},
            toy.PREPROCESS,
            toy.mesh(),
            data={"name": "scenes", "size": 2},
        )


def test_a_broken_image_is_named():
    data = source([0, 1])
    data.more = {"image": [b"no image"] * 2}
    with pytest.raises(ValueError, match=r"Record 'toy-.': cannot decode"):
        toy.evaluate("classification", data, {"logits": np.zeros((8, 6), np.float32)})


def test_scenes_and_a_model_without_text():
    """Colour is not shape: the head is far from right, but everything is finite and repeatable."""
    preprocess = dataclasses.replace(
        toy.PREPROCESS, image_size=32, tokenizer=None, context_length=0, resize_size=36
    )
    model = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def classify(model, batch):
        return batch["image"].astype(np.float32).mean(axis=(1, 2)) @ model

    data = {"name": "scenes", "split": "val", "size": 24}
    arguments = ({"classify": jax.jit(classify)}, preprocess, toy.mesh())
    evaluator = make_evaluator("classification", *arguments, data=data)
    values = dict(evaluator.run(model))
    assert values["top1_accuracy_chance"] == 1 / 8
    assert all(np.isfinite(value) for value in values.values())
    assert values == dict(evaluator.run(model))
