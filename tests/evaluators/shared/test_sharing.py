"""What evaluators of one round need of one model is computed once."""

from unittest import mock

import numpy as np
import pytest

from evaluators.shared import base, records, rows, towers
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


def test_what_takes_longest_stays_and_what_goes_is_told(caplog):
    """The features of a training set, whose test set comes after, are wanted by another probe."""
    model, large, small = {"w": np.zeros(2)}, Counted(150), Counted(60)
    with sharing(most_bytes=200), caplog.at_level("WARNING", logger="absl"):
        for key, compute in (("large", large), ("a", small), ("b", small), ("large", large)):
            once(model, key, compute)
        assert (large.count, small.count) == (1, 2)
    assert "are dropped" in caplog.text


def test_what_records_say_drops_nothing():
    """Each process has what its own say, and all must drop the same."""
    model, features = {"w": np.zeros(2)}, Counted(150)
    with sharing(most_bytes=200):
        for key, compute in (
            ("a", features),
            ("said", lambda: {0: "x" * 180}),
            ("a", features),
        ):
            once(model, key, compute)
    assert features.count == 1


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


def test_what_a_record_says_is_gathered_only_as_far_as_asked(monkeypatch):
    """Captions of a training set are none of k-NN's."""
    source = CountingSource({"caption": [["a " * 500]] * 8}, list(range(8)))
    gathered = []
    monkeypatch.setattr(rows.cluster, "gather", lambda value: gathered.append(value) or [value])
    with sharing():
        toy.evaluate("retrieval", source, toy.random_model(), caption_field="caption")
        gathered.clear()
        toy.evaluate("knn", source, toy.random_model(), train={"name": "toy"})
    assert list(map(sorted, gathered)) == [[(i, i) for i in range(8)]] * 2


def test_another_preprocessing_or_function_is_encoded_anew():
    source, model = CountingSource({"caption": [["a"]] * 4}, [0, 1, 0, 1]), toy.random_model()
    asked = {"train": {"name": "toy"}, "batch_size": 4}
    with sharing():
        for preprocess in (toy.PREPROCESS, toy.PREPROCESS, toy.WHOLE):
            made = dict(toy.PREDICT_FNS)
            run_knn(source, model, preprocess, made, **asked)
        read = source.reads
        run_knn(source, model, toy.WHOLE, {"encode_image": toy.look_up("image")}, **asked)
    assert read == 2 * 4 + 3 * 2 and source.reads == 3 * 4 + 4 * 2


def run_knn(source, model, preprocess, predict_fns, **config):
    with mock.patch.object(records, "make_source", lambda name: source):
        made = base.make_evaluator(
            "knn", predict_fns, preprocess, toy.mesh(), data={"name": "toy"}, **config
        )
    return dict(made.run(model))


def test_a_function_of_unit_length_is_one_function():
    assert towers._unit(abs) is towers._unit(abs)


def test_equal_data_are_opened_once():
    opened = []
    source = toy.ToySource({"caption": [["a"]]}, [0])
    with mock.patch.object(records, "make_source", lambda **data: opened.append(data) or source):
        with records.each_opened_once():
            for path in "aba":
                assert records.open_source({"name": "toy", "path": path}) is source
        records.open_source({"name": "toy", "path": "a"})
    assert [data["path"] for data in opened] == ["a", "b", "a"]
