"""k-NN and linear probes: their votes, their shots, and one pass of each set for both."""

import numpy as np
import pytest

from evaluators.labels import knn
from evaluators.labels.linear_probe import few_of_each
from evaluators.shared import base, records
from evaluators.shared.sharing import sharing
from tests.evaluators.shared import toy

TRAIN, CLASSES = 40, 5


def worlds():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 60)
    captions = [["?"]] * 60
    whole = toy.ToySource({"caption": captions}, labels.tolist())
    model = toy.random_model()
    centres = rng.normal(size=(CLASSES, 16))[labels]
    features = centres + 2.0 * rng.normal(size=(60, 16))
    model["image"][:60] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return whole, labels, model


class Part(toy.ToySource):
    """Records first..first + count - 1 of another; counts what is read."""

    def __init__(self, whole, first, count):
        self.whole, self.first, self.count, self.reads = whole, first, count, 0

    def __len__(self):
        return self.count

    def record(self, i):
        self.reads += 1
        return self.whole.record(self.first + i)


@pytest.fixture
def evaluate(monkeypatch):
    whole, labels, model = worlds()
    parts = {"train": Part(whole, 0, TRAIN), "test": Part(whole, TRAIN, 20)}
    monkeypatch.setattr(records, "make_source", lambda name: parts[name])

    def run(name, predict_fns=toy.PREDICT_FNS, **config):
        made = base.make_evaluator(
            name,
            predict_fns,
            toy.PREPROCESS,
            toy.mesh(),
            data={"name": "test"},
            train={"name": "train"},
            batch_size=7,
            **config,
        )
        return dict(made.run(model))

    run.parts, run.labels, run.features = parts, labels, model["image"][:60]
    return run


def test_neighbours_vote_by_their_similarity(evaluate):
    found = evaluate("knn", neighbours=[1, 7, 100])
    similarity = evaluate.features[TRAIN:] @ evaluate.features[:TRAIN].T
    for k in (1, 7, 100):
        right = 0
        for row, label in zip(similarity, evaluate.labels[TRAIN:]):
            nearest = np.argsort(-row)[:k]
            votes = np.zeros(CLASSES)
            np.add.at(votes, evaluate.labels[nearest], np.exp(row[nearest] / 0.07))
            right += votes.argmax() == label
        assert found[f"k{k}_top1_accuracy"] == right / 20
    assert 0.2 < found["k7_top1_accuracy"] < 1
    assert found["k7_top1_accuracy_chance"] == 1 / CLASSES
    with pytest.raises(ValueError, match=r"neighbours=\[0\]"):
        evaluate("knn", neighbours=[0])


def test_a_method_without_text_gives_its_features(evaluate):
    def longer(model, batch):
        return 3 * toy.look_up("image")(model, batch)

    assert evaluate("knn", predict_fns={"features": longer}) == evaluate("knn")
    with pytest.raises(ValueError, match=r"'encode_image' or 'features'.*\['classify'\]"):
        evaluate("knn", predict_fns={"classify": longer})


def test_few_shots_are_of_each_class_and_grow():
    labels = np.array([2, 0, 2, 2, 1, 0, 2, 0, 5])
    for draw in range(3):
        two, three = few_of_each(labels, 2, draw), few_of_each(labels, 3, draw)
        assert np.bincount(labels[two]).tolist() == [2, 1, 2, 0, 0, 1]
        assert np.bincount(labels[three]).tolist() == [3, 1, 3, 0, 0, 1]
        assert set(two) < set(three)
    assert len({tuple(few_of_each(labels, 1, draw)) for draw in range(9)}) > 1


def test_probes_and_neighbours_share_one_pass_of_each_set(evaluate):
    with sharing():
        probed = evaluate("linear_probe", shots=[1, 8], draws=2)
        evaluate("knn")
    assert evaluate.parts["train"].reads == TRAIN + 2  # each looks at the first when it is made
    assert evaluate.parts["test"].reads == 20 + 2
    fits = ("ridge", "logistic")
    names = ("top1_accuracy", "top5_accuracy", "mean_per_class_recall")
    expected = {f"{fit}_{name}" for fit in fits for name in names}
    expected |= {"1shot_top1_accuracy", "8shot_top1_accuracy"}
    assert probed.keys() == expected | {f"{name}_chance" for name in expected}
    for name in ("ridge", "logistic", "8shot"):
        assert probed[f"{name}_top1_accuracy"] > probed[f"{name}_top1_accuracy_chance"]
    with pytest.raises(ValueError, match=r"shots=\[0\], draws=3: give 1 or more"):
        evaluate("linear_probe", shots=[0])


def test_copies_along_tensor_hold_no_rows_of_their_own(evaluate, monkeypatch):
    """Of similarities as many at once as said, on a mesh whose devices are copies."""
    asked = []
    monkeypatch.setattr(knn.meshes, "batch_parts", lambda mesh: 1)
    monkeypatch.setattr(knn, "SIMILARITIES_PER_DEVICE", 2 * TRAIN)
    run = knn.RowMap.__call__
    monkeypatch.setattr(
        knn.RowMap,
        "__call__",
        lambda self, p, load, n, rows: asked.append(rows) or run(self, p, load, n, rows),
    )
    evaluate("knn")
    assert asked[-1] == 2
