"""Padding and sharding of rows, and errors while they are loaded."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest

from evaluators.shared.rows import RowMap, each_once, map_images, read_fields
from input_pipeline.checks.fields import label_of
from input_pipeline.records import BrokenRecordError
from tests.evaluators.shared import toy


@pytest.mark.parametrize("count", [1, 4, 7])
def test_rows_come_back_in_order_without_padding(count):
    def double(params, batch):
        assert batch.keys() == {"x"}
        return params * batch["x"]

    row_map = RowMap(double, toy.mesh())
    out = row_map(np.float32(2), lambda row: {"x": np.float32([row, -row])}, count, batch_size=4)
    np.testing.assert_array_equal(out, [[2 * i, -2 * i] for i in range(count)])


@pytest.mark.parametrize("count", [1, 4, 7])
def test_local_rows_are_those_of_the_call(count):
    def double(params, batch):
        return params * batch["x"]

    def load(row):
        return {"x": np.float32([row, -row])}

    row_map = RowMap(double, toy.mesh())
    rows = list(row_map.local(np.float32(2), load, count, batch_size=3))
    assert [row for row, _ in rows] == list(range(count))
    expected = row_map(np.float32(2), load, count, batch_size=3)
    np.testing.assert_array_equal([np.asarray(output) for _, output in rows], expected)


def test_an_error_while_loading_reaches_the_caller():
    def load(row):
        raise ValueError(f"row {row} is broken")

    row_map = RowMap(lambda params, batch: batch["x"], toy.mesh())
    with pytest.raises(ValueError, match="is broken"):
        row_map(None, load, 3, 2)


@pytest.mark.parametrize(
    "label, text",
    [
        ("cat", "^Record number 0: invalid literal"),
        (None, "^Record number 0: TypeError: .*fields"),
    ],
)
def test_malformed_records_are_named_in_one_line(label, text):
    source = toy.ToySource({"caption": [["?"]] * 3}, label=[label] * 3)
    row_map = RowMap(lambda params, batch: batch["image"], toy.mesh())
    with pytest.raises(BrokenRecordError, match=text):
        map_images(row_map, None, source, toy.PREPROCESS, 2, label_of)


def test_want_of_memory_is_not_the_records_fault():
    def load(row):
        raise MemoryError

    with pytest.raises(MemoryError):
        RowMap(lambda params, batch: batch["x"], toy.mesh())(None, load, 3, 2)


def test_fields_are_read_with_few_images_in_memory():
    """Of a source that knows no fields without its images."""
    source = toy.ToySource({"caption": [["?"]] * 150}, label=[*range(150)])
    records, most = source.records, []
    with mock.patch.object(source, "records", lambda some: most.append(len(some)) or records(some)):
        found = read_fields(source, lambda record: [record["label"], "image" in record], range(150))
    assert found == [[i, False] for i in range(150)]
    assert sum(most) == 150 and max(most) == 8


def test_what_several_threads_ask_for_is_made_once():
    made, lock = [], threading.Lock()

    def make(row):
        with lock:
            made.append(row)
        time.sleep(0.005)
        return [row]

    get = each_once(make, 16)
    asked = [row for row in range(20) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(get, asked)) == [[row] for row in asked]
    assert sorted(made) == [*range(20)]


def test_what_could_not_be_made_is_tried_again():
    tries = iter([OSError("away"), "there"])

    def make(row):
        found = next(tries)
        if isinstance(found, OSError):
            raise found
        return found

    get = each_once(make, 1)
    with pytest.raises(OSError, match="away"):
        get(0)
    assert get(0) == get(0) == "there"
