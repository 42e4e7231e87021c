"""Pairs of images and sentences: each of the three scores, by hand and by its rule."""

import numpy as np
import pytest

from tests.evaluators.shared import toy


def evaluate(captions, model, kinds=None, **config):
    count = len(captions)
    more = {"pair": [f"p{i // 2}" for i in range(count)]}
    if kinds:
        more["kind"] = [kind for kind in kinds for _ in (0, 1)]
    source = toy.ToySource({"caption": captions}, **more)
    record = source.record
    source.record = lambda i: record(i) | ({} if captions[i] else {"captions": {}})
    return toy.evaluate("matching", source, model, **config)


def test_two_sentences_as_winoground_counts():
    """Of the definition: arXiv 2204.03162, equations 1 to 3."""
    texts = [[f"{a} {b}"] for a, b in zip(toy.WORDS * 3, toy.WORDS[5:] * 3)][:32]
    model = toy.random_model()
    s = model["image"][:32] @ toy.text_features(model, [t for [t] in texts]).T
    wins = []
    for a in range(0, 32, 2):
        b = a + 1
        text = s[a, a] > s[a, b] and s[b, b] > s[b, a]
        image = s[a, a] > s[b, a] and s[b, b] > s[a, b]
        wins.append((image, text, image and text))
    image, text, group = np.mean(wins, axis=0)
    assert 0 < image < 1 and 0 < text < 1
    assert evaluate(texts, model, batch_size=7) == {
        "image_accuracy": image,
        "image_accuracy_chance": 0.25,
        "text_accuracy": text,
        "text_accuracy_chance": 0.25,
        "group_accuracy": group,
        "group_accuracy_chance": pytest.approx(1 / 6),
    }


def test_one_sentence_and_kinds():
    texts = [["red cat"], [], ["blue dog"], [], ["green tree"], []]
    seen = ["red cat", "blue dog", "red cat", "blue dog", "green tree", "red cat"]
    found = evaluate(texts, toy.knowing_model(seen), kinds=["subject", "The Verb", "The Verb"])
    assert found == {
        "image_accuracy": pytest.approx(2 / 3),  # "blue dog" finds the other image
        "image_accuracy_chance": 0.5,
        "image_accuracy_of_kinds": 0.75,
        "image_accuracy_subject": 1.0,
        "image_accuracy_the_verb": 0.5,
    }
    prompted = toy.knowing_model([f"photo {text}" for text in seen])
    assert evaluate(texts, prompted, template="photo {}")["image_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_and_nan_win_nothing(value):
    model = toy.random_model()
    model["image"][:] = value
    found = evaluate([["a cat"], ["a dog"]], model)
    assert found["image_accuracy"] == found["text_accuracy"] == found["group_accuracy"] == 0


def test_bad_input_is_explained():
    model = toy.random_model()
    with pytest.raises(ValueError, match=r"Pair 'p1' has 1 images and 1 sentences"):
        evaluate([["a"], ["b"], ["c"]], model)
    with pytest.raises(ValueError, match=r"Pair 'p1' has 2 images and 0 sentences"):
        evaluate([["a"], ["b"], [], []], model)
    with pytest.raises(ValueError, match=r"needs one \{\}"):
        evaluate([["a"], ["b"]], model, template="photo")
    with pytest.raises(ValueError, match="is of no pair"):
        toy.evaluate("matching", toy.ToySource({"caption": [["a"]]}), model)
