"""Hard negatives: both accuracies, their chance, and what must not win."""

import numpy as np
import pytest

from tests.evaluators.shared import toy

TRUE = ["red cat", "blue dog", "green tree", "sky", "stone boat"]
NEGATIVES = [["blue cat"], ["red dog", "green dog", "blue cat"], ["red tree"], None, []]


def evaluate(model, true=TRUE, negatives=NEGATIVES, **config):
    captions = {"caption": [[t, "something else"] for t in true]}
    source = toy.ToySource(captions, hard_negatives=negatives)
    return toy.evaluate("hard_negatives", source, model, **config)


def test_a_model_that_knows_is_perfect_and_others_are_left_out():
    assert evaluate(toy.knowing_model(TRUE)) == {
        "accuracy": 1.0,
        "pairwise_accuracy": 1.0,
        "accuracy_chance": pytest.approx((1 / 2 + 1 / 4 + 1 / 2) / 3),
        "pairwise_accuracy_chance": 0.5,
    }


def test_one_better_negative_fails_the_image_but_only_one_pair():
    model = toy.knowing_model(["red cat", "green dog", "green tree"])
    metrics = evaluate(model)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    score = {}
    for name, word in (("own", "blue dog"), ("red", "red dog"), ("cat", "blue cat")):
        score[name] = float(toy.text_features(model, [word])[0] @ model["image"][1])
    won = 2 + (score["own"] > score["red"]) + (score["own"] > score["cat"])
    assert metrics["pairwise_accuracy"] == pytest.approx(won / 5)


@pytest.mark.parametrize("value", [0.37, np.nan])
@pytest.mark.parametrize("part", ["word", "image"])
def test_ties_and_nan_win_nothing(value, part):
    model = toy.random_model(width=37)
    model[part][:] = value
    if part == "image" and not np.isnan(value):
        model["word"][:] = np.linspace(0.1, 1, 37)
    metrics = evaluate(model)
    assert metrics["accuracy"] == metrics["pairwise_accuracy"] == 0


def test_a_random_model_is_at_chance():
    rng = np.random.default_rng(0)
    words = [toy.WORDS[i : i + 4] for i in rng.integers(0, 12, 100)]
    metrics = evaluate(toy.random_model(width=64), [w[0] for w in words], [w[1:] for w in words])
    assert metrics["accuracy_chance"] == 0.25
    assert abs(metrics["accuracy"] - 0.25) < 0.18
    assert abs(metrics["pairwise_accuracy"] - 0.5) < 0.2


def test_bad_input_is_explained():
    model = toy.random_model()
    with pytest.raises(ValueError, match="No record"):
        evaluate(model, ["a"], [None])
    with pytest.raises(ValueError, match=r"toy-0.*true caption"):
        evaluate(model, ["a"], [["b", "a"]])
    with pytest.raises(ValueError, match="'short'"):
        evaluate(model, caption_field="short")


def test_kinds_count_alike():
    texts = [["red cat"], ["blue dog"], ["green tree"], ["a boat"]]
    source = toy.ToySource(
        {"caption": texts},
        hard_negatives=[["no"], ["no"], ["no"], None],
        kind=["swap_att", "swap_att", "add_obj", "replace_rel"],
    )
    model = toy.knowing_model(["red cat", "no", "green tree", "a boat"])
    found = toy.evaluate("hard_negatives", source, model)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["accuracy_swap_att"], found["accuracy_add_obj"]) == (0.5, 1)
    assert found["accuracy_of_kinds"] == 0.75
    assert "accuracy_replace_rel" not in found


def test_one_kind_is_a_kind():
    source = toy.ToySource({"caption": [["red cat"]]}, hard_negatives=[["no"]], kind=["swap_att"])
    found = toy.evaluate("hard_negatives", source, toy.knowing_model(["red cat"]))
    assert found["accuracy_of_kinds"] == found["accuracy_swap_att"] == 1
