"""Average precision of prompts."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.evaluators.shared import toy

NAMES = ["red", "dog.n.01", "sky boat", "lamp_fish.n.02"]


def evaluate(model, labels, names=NAMES, **config):
    source = toy.ToySource({"caption": [["?"]] * len(labels)}, labels=labels, class_names=names)
    return toy.evaluate("zeroshot_words", source, model, **config)


def test_precision_is_of_the_cosines_with_each_class():
    """Synsets are asked for by their words."""
    rng = np.random.default_rng(0)
    labels = [np.flatnonzero(rng.random(4) < 0.4).tolist() for _ in range(60)]
    model = toy.random_model()
    found = evaluate(model, labels, templates=["a {}"], batch_size=7)
    texts = toy.text_features(model, ["a red", "a dog", "a sky boat", "a lamp fish"])
    truth = np.array([np.isin(np.arange(4), own) for own in labels])
    scores = model["image"][:60] @ texts.T
    expected = average_precision_score(truth, scores, average="macro")
    assert found["macro_ap"] == pytest.approx(expected, rel=1e-5)
    assert found["macro_ap_baseline"] == pytest.approx(truth.mean())


def test_a_class_is_the_mean_of_its_prompts():
    model = toy.random_model()
    labels = [[i % 4] for i in range(40)]
    one, both = (evaluate(model, labels, templates=t) for t in (["a {}"], ["a {}", "{} bread"]))
    assert one != both


@pytest.mark.parametrize(
    "given, message",
    [
        ({"names": None}, "names no classes"),
        ({"templates": ["a dog"]}, "one {} each"),
        ({"labels": [[4]]}, "4"),
        ({"labels": [[], []]}, "nothing to find"),
    ],
)
def test_what_cannot_be_ranked(given, message):
    with pytest.raises(ValueError, match=message):
        evaluate(toy.random_model(), **{"labels": [[0]], **given})
