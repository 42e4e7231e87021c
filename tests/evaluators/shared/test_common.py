"""Ranking rules, padding and sharding, and equality of the values on any number of devices."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from evaluators.shared import common
from input_pipeline.records import BrokenRecordError
from tests.evaluators.shared import toy

ROOT = pathlib.Path(__file__).parents[3]


def run_toy(*args, devices, **env):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evaluators.shared.toy", *args],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def assert_same(values, expected):
    assert values.keys() == expected.keys()
    for name in expected:
        assert values[name] == pytest.approx(expected[name], abs=1e-6), name


def test_eight_devices_give_the_values_of_one():
    expected = toy.evaluate_all()
    assert 0 < expected["retrieval"]["text_to_image_R@5"] < 1  # or equality would say little
    assert expected == toy.evaluate_all(batch_size=19)
    count, values = result(run_toy("2", devices=8))
    assert count == 8
    assert_same(values, expected)


def test_two_processes_give_the_values_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        run_toy("1", devices=2, PROCESS=str(i), COORDINATOR=f"localhost:{port}") for i in range(2)
    ]
    for process in processes:
        count, values = result(process)
        assert count == 4
        assert_same(values, toy.evaluate_all())


@pytest.mark.parametrize("count", [1, 4, 7])
def test_rows_come_back_in_order_without_padding(count):
    def double(params, batch):
        assert batch.keys() == {"x"}
        return params * batch["x"]

    row_map = common.RowMap(double, toy.mesh())
    out = row_map(np.float32(2), lambda row: {"x": np.float32([row, -row])}, count, batch_size=4)
    np.testing.assert_array_equal(out, [[2 * i, -2 * i] for i in range(count)])


@pytest.mark.parametrize("count", [1, 4, 7])
def test_local_rows_are_those_of_the_call(count):
    def double(params, batch):
        return params * batch["x"]

    def load(row):
        return {"x": np.float32([row, -row])}

    row_map = common.RowMap(double, toy.mesh())
    rows = list(row_map.local(np.float32(2), load, count, batch_size=3))
    assert [row for row, _ in rows] == list(range(count))
    expected = row_map(np.float32(2), load, count, batch_size=3)
    np.testing.assert_array_equal([np.asarray(output) for _, output in rows], expected)


def test_an_error_while_loading_reaches_the_caller():
    def load(row):
        raise ValueError(f"row {row} is broken")

    row_map = common.RowMap(lambda params, batch: batch["x"], toy.mesh())
    with pytest.raises(ValueError, match="is broken"):
        row_map(None, load, 3, 2)


@pytest.mark.parametrize(
    "label, text",
    [("cat", "^Record number 0: invalid literal"), (None, "^Record number 0: TypeError: .*common")],
)
def test_malformed_records_are_named_in_one_line(label, text):
    source = toy.ToySource({"caption": [["?"]] * 3}, label=[label] * 3)
    row_map = common.RowMap(lambda params, batch: batch["image"], toy.mesh())
    with pytest.raises(BrokenRecordError, match=text):
        common.map_images(row_map, None, source, toy.PREPROCESS, 2, common.label_of)


def test_want_of_memory_is_not_the_records_fault():
    def load(row):
        raise MemoryError

    with pytest.raises(MemoryError):
        common.RowMap(lambda params, batch: batch["x"], toy.mesh())(None, load, 3, 2)


def rank(scores, positive, weight=None):
    weight = np.ones(len(scores[0]), np.int32) if weight is None else weight
    ranks = common.ranks(np.float32(scores), np.array(positive, bool), np.int32(weight))
    return np.asarray(ranks).tolist()


def test_ranks_agree_with_sorting():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 20))
    positive = rng.random((50, 20)) < 0.2
    positive[:, 7] = True
    expected = [
        min(np.flatnonzero(np.isin(np.argsort(-row), np.flatnonzero(right))))
        for row, right in zip(scores, positive)
    ]
    assert rank(scores, positive) == expected


def test_ties_and_nan_count_against_the_model():
    nan, inf = np.nan, np.inf
    assert rank([[1, 1, 1, 1]], [[0, 0, 1, 0]]) == [3]
    assert rank([[2, 1, 2, 1]], [[1, 0, 0, 1]]) == [1]
    assert rank([[nan, 0, 1, nan]], [[0, 0, 1, 0]]) == [2]
    assert rank([[nan, 5, 1, 2]], [[1, 0, 1, 0]]) == [2]
    assert rank([[-inf, -inf, 0, 0]], [[1, 0, 0, 0]]) == [3]
    # No usable score at all: behind everything, even where there is nothing to be behind of.
    assert rank([[nan, 0, 1, 2]], [[1, 0, 0, 0]]) == [4]
    assert rank([[nan]], [[1]]) == [1]
    assert not common.hits(np.array([4]), 10, 4)[0]
    assert common.hits(np.array([3]), 10, 4)[0]


def test_a_column_counts_as_often_as_it_stands_for():
    assert rank([[3, 2, 1]], [[0, 0, 1]], weight=[4, 2, 1]) == [6]


def test_missing_parts_are_named():
    source, model = toy.uneven_world(), toy.random_model()
    with pytest.raises(ValueError, match="retrieval"):
        toy.evaluate("retreival", source, model)
    with pytest.raises(ValueError, match=r"encode_text.*generate"):
        common.Towers({"encode_image": None, "generate": None}, toy.PREPROCESS, toy.mesh(), 4)
    textless = dataclasses.replace(toy.PREPROCESS, tokenizer=None, context_length=0)
    with pytest.raises(ValueError, match="needs text, but the model has no tokenizer"):
        common.Towers(toy.PREDICT_FNS, textless, toy.mesh(), 4)
    with pytest.raises(ValueError, match="no records"):
        toy.evaluate("retrieval", toy.ToySource({"caption": []}), model, caption_field="caption")


def test_captions_are_lists_of_an_existing_field():
    record = {"id": "7", "captions": {"raw": ["a"], "long": "a dog", "none": []}}
    assert common.captions_of(record, "raw") == ["a"]
    with pytest.raises(ValueError, match=r"'7'.*'short'.*\['raw', 'long', 'none'\]"):
        common.captions_of(record, "short")
    for field in ("long", "none"):
        with pytest.raises(ValueError, match="list of strings"):
            common.captions_of(record, field)


def test_scenes_serve_every_evaluator():
    data = {"name": "scenes", "split": "val", "size": 12}
    model = {"word": toy.random_model()["word"], "image": np.eye(3, 16, dtype=np.float32)}

    def encode_image(model, batch):
        colour = batch["image"].astype(np.float32).mean(axis=(1, 2)) @ model["image"]
        return colour / jnp.linalg.norm(colour, axis=-1, keepdims=True)

    fns = {"encode_image": encode_image, "encode_text": toy.encode_text}
    preprocess = dataclasses.replace(toy.PREPROCESS, image_size=32, context_length=32)
    config = {"retrieval": {"caption_field": "caption"}, "hard_negatives": {}, "zeroshot": {}}
    for name, args in config.items():
        evaluator = common.make_evaluator(name, fns, preprocess, toy.mesh(), data=data, **args)
        values = dict(evaluator.run(model))
        assert all(np.isfinite(value) for value in values.values())
        assert values == dict(evaluator.run(model))
