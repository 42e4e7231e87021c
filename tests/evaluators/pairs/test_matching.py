"""Pairs of images and sentences: each of the three scores, by hand and by its rule."""

import numpy as np
import pytest

from tests.evaluators.shared import toy


def pair(name, sentence, kind=""):
    return {"pair": name, "kind": kind, "sentence": sentence}


def evaluate(sentences, model, kinds=None, **config):
    """Two images of each pair, one after the other."""
    kinds = kinds or [""] * len(sentences)
    pairs = [[pair(f"p{i // 2}", s, kinds[i // 2])] for i, s in enumerate(sentences)]
    return toy.evaluate("matching", toy.ToySource({"c": sentences}, pairs=pairs), model, **config)


def test_two_sentences_as_winoground_counts():
    """Of the definition: arXiv 2204.03162, equations 1 to 3."""
    texts = [f"{a} {b}" for a, b in zip(toy.WORDS * 3, toy.WORDS[5:] * 3)][:32]
    model = toy.random_model()
    s = model["image"][:32] @ toy.text_features(model, texts).T
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
        "pairs": 16,
        "pairs_left_out": 0,
    }


def test_one_sentence_and_kinds():
    texts = ["red cat", None, "blue dog", None, "green tree", None]
    seen = ["red cat", "blue dog", "red cat", "blue dog", "green tree", "red cat"]
    found = evaluate(texts, toy.knowing_model(seen), kinds=["subject", "The Verb", "The Verb"])
    assert found == {
        "image_accuracy": pytest.approx(2 / 3),  # "blue dog" finds the other image
        "image_accuracy_chance": 0.5,
        "image_accuracy_of_kinds": 0.75,
        "image_accuracy_subject": 1.0,
        "image_accuracy_the_verb": 0.5,
        "pairs": 3,
        "pairs_left_out": 0,
    }
    prompted = toy.knowing_model([f"photo {text}" for text in seen])
    assert evaluate(texts, prompted, template="photo {}")["image_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_and_nan_win_nothing(value):
    model = toy.random_model()
    model["image"][:] = value
    found = evaluate(["a cat", "a dog"], model)
    assert found["image_accuracy"] == found["text_accuracy"] == found["group_accuracy"] == 0


def test_an_image_may_be_in_many_pairs_and_one_kind_is_a_kind():
    """As in SVO-Probes, where one stands beside several others; it is encoded once."""
    pairs = [
        [pair("0", "red cat", "verb"), pair("1", None, "verb")],
        [pair("0", None, "verb"), pair("2", "blue dog", "verb")],
        [pair("1", "green tree", "verb"), pair("2", None, "verb")],
    ]
    source = toy.ToySource({"c": [None] * 3}, pairs=pairs)
    model = toy.knowing_model(["red cat", "red cat", "blue dog"])
    found = toy.evaluate("matching", source, model)
    scores = model["image"][:3] @ toy.text_features(model, ["green tree"])[0]
    right = [False, bool(scores[2] > scores[0]), False]  # of 0 the two images tie
    assert found["image_accuracy"] == pytest.approx(np.mean(right))
    assert found["image_accuracy_of_kinds"] == found["image_accuracy_verb"] == np.mean(right)


def test_pairs_of_which_an_image_was_lost_are_left_out():
    model = toy.knowing_model(["red cat", "blue dog", "a boat"])
    whole = evaluate(["red cat", "blue dog"], model)
    assert evaluate(["red cat", "blue dog", "a boat"], model) == whole | {"pairs_left_out": 1}
    with pytest.raises(ValueError, match=r"None of the 1 pairs .* two images and a sentence"):
        evaluate(["red cat"], model)
    with pytest.raises(ValueError, match=r"None of the 1 pairs .* two images and a sentence"):
        evaluate([None, None], model)


def test_bad_input_is_explained():
    model = toy.random_model()
    with pytest.raises(ValueError, match=r"needs one \{\}"):
        evaluate(["a", "b"], model, template="photo")
    with pytest.raises(ValueError, match="is of no pair"):
        toy.evaluate("matching", toy.ToySource({"caption": [["a"]]}), model)
