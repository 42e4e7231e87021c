"""What evaluators of one round need of one model is computed once."""

import numpy as np
import pytest

from evaluators.shared.sharing import once, sharing
from evaluators.shared.towers import TowersEvaluator
from input_pipeline.records import BrokenRecordError
from tests.evaluators.shared import toy


class Counted:
    """Values of its own, and how often they were computed."""

    def __init__(self, size=1):
        self.count, self.size = 0, size

    def __call__(self):
        self.count += 1
        return np.full(self.size, self.count, np.uint8)


def test_the_same_of_the_same_model_is_computed_once():
    model, other, compute = {"w": np.zeros(2)}, {"w": np.zeros(2)}, Counted()
    with sharing():
        first = once(model, "a", compute)
        assert once({"w": model["w"]}, "a", compute) is first  # its arrays tell a model
        assert [once(other, "a", compute)[0], once(model, "b", compute)[0]] == [2, 3]
    with sharing():
        assert once(model, "a", compute)[0] == 4
    assert [once(model, "a", compute)[0] for _ in range(2)] == [5, 6]


def test_what_was_not_asked_for_longest_goes_first():
    model, compute = {"w": np.zeros(2)}, Counted(100)
    with sharing(most_bytes=250):
        for key in ("a", "b", "a", "c", "a", "b"):
            once(model, key, compute)
        assert compute.count == 4  # a, b, c; and b again
        assert once(model, "large", Counted(1000)).size == 1000


class CountingSource(toy.ToySource):
    """Counts the records that are read."""

    def record(self, i):
        self.reads = getattr(self, "reads", 0) + 1
        return super().record(i)


def test_a_set_and_a_classifier_cost_one_pass_each(monkeypatch):
    """1,000 classes in two tasks of one set, retrieval and hard negatives: one pass of images, one
    text for each prompt."""
    count, names = 30, [f"cat number {i}" for i in range(1000)]
    source = CountingSource(
        {"caption": [[f"dog {i}"] for i in range(count)]},
        list(range(count)),
        [["no dog"]] * count,
        names,
    )
    model, alone, encoded = toy.random_model(), {}, []
    encode_texts = TowersEvaluator.encode_texts

    def counted(self, model, texts):
        encoded.append(len(texts))
        return encode_texts(self, model, texts)

    monkeypatch.setattr(TowersEvaluator, "encode_texts", counted)
    asked = {
        "zeroshot": {"templates": ["a {}", "the {}"]},
        "hard_negatives": {},
        "retrieval": {"caption_field": "caption"},
    }
    for name, config in asked.items():
        alone[name] = toy.evaluate(name, source, model, **config)
    assert source.reads == 3 * (count + 1) and encoded == [2000, 31, 30]
    source.reads, encoded[:] = 0, []
    with sharing():
        for name, config in asked.items():
            assert toy.evaluate(name, source, model, **config) == alone[name]
        toy.evaluate("zeroshot", source, model, **asked["zeroshot"])
    assert source.reads == count + 4  # each looks at the first record when it is made
    assert encoded == [2000, 31, 30]


def test_a_record_that_does_not_fit_is_named_also_where_another_read_it():
    source = toy.ToySource({"caption": [["a"], ["b"]]}, [0, 9], class_names=["cat", "dog"])
    model = toy.random_model()
    with sharing():
        toy.evaluate("retrieval", source, model, caption_field="caption")
        with pytest.raises(BrokenRecordError, match=r"toy-1.*label 9.*2 classes"):
            toy.evaluate("zeroshot", source, model)
