import contextlib
import random

import numpy as np
import pytest

from input_pipeline import records


def random_plain(rng, depth=0):
    kind = rng.randrange(5 if depth > 2 else 7)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.randint(-(2**60), 2**60)
    if kind == 2:
        return rng.uniform(-1e9, 1e9)
    if kind in (3, 4):
        return "".join(rng.choices('ab "\\\n\0é漢🙂\udc80', k=rng.randrange(12)))
    if kind == 5:
        return [random_plain(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"k{i}é": random_plain(rng, depth + 1) for i in range(rng.randrange(4))}


def random_array(rng):
    dtype = np.dtype(rng.choice(["<f4", ">f4", "u1", "<i8", ">i2", "?", "<f2"]))
    shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
    values = np.random.default_rng(rng.randrange(1000)).integers(0, 2, shape)
    array = np.asarray(values, dtype)
    return array.T if rng.random() < 0.5 else array


def random_bytes(rng):
    return rng.randbytes(rng.randrange(50))


def random_list_of_bytes(rng):
    return [random_bytes(rng) for _ in range(rng.randrange(4))]


def assert_same(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            assert b[name].dtype == value.dtype.newbyteorder("<")
            np.testing.assert_array_equal(b[name], value, strict=False)
            assert b[name].shape == value.shape
        else:
            assert type(b[name]) is type(value)
            assert b[name] == value


@pytest.mark.parametrize("seed", range(200))
def test_round_trip(seed):
    rng = random.Random(seed)
    record = {}
    for i in range(rng.randrange(8)):
        make = rng.choice([random_plain, random_array, random_bytes, random_list_of_bytes])
        record[f"field{i}"] = make(rng)
    data = records.encode(record)
    assert_same(record, records.decode(data))
    assert records.encode(records.decode(data)) == data


def full_record():
    return {
        "id": "train-0000/000001",
        "image": bytes(range(256)),
        "captions": {"raw": ["a cat"], "long": ["one", "two"], "empty": []},
        "boxes": np.array([[0, 0.25, 1, 0.5]], np.float32),
        "mask": np.eye(5, dtype=np.uint8),
        "label": 3,
    }


def test_field_order_of_captions_is_kept():
    captions = records.decode(records.encode(full_record()))["captions"]
    assert list(captions) == ["raw", "long", "empty"]


def test_arrays_are_writable_and_own_their_memory():
    boxes = records.decode(records.encode(full_record()))["boxes"]
    boxes += 1
    assert boxes.flags.owndata and boxes.flags.c_contiguous


def test_every_truncation_is_an_error():
    data = records.encode(full_record())
    for length in range(len(data)):
        with pytest.raises(ValueError, match="damaged"):
            records.decode(data[:length])
    with pytest.raises(ValueError, match="too many"):
        records.decode(data + b"x")


@pytest.mark.parametrize("seed", range(100))
def test_damaged_bytes_raise_nothing_but_value_error(seed):
    rng = random.Random(seed)
    data = bytearray(records.encode(full_record()))
    for _ in range(3):
        data[rng.randrange(200)] = rng.randrange(256)
    # Not every change can be noticed here; shards carry checksums of their own.
    with contextlib.suppress(ValueError):
        records.decode(bytes(data))


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: "a"},
        {"a": [b"bytes"]},
        [np.zeros(2)],
        np.int64(3),
        np.array(["a"]),
        np.array([object()]),
        np.zeros(2, np.longdouble),
        {1, 2},
    ],
)
def test_types_that_would_not_survive_are_refused(value):
    with pytest.raises(TypeError, match="'x"):
        records.encode({"x": value})


def test_infinite_floats_are_refused():
    with pytest.raises(ValueError):
        records.encode({"x": float("inf")})


def test_stored_object_types_are_not_loaded():
    header = b'[{},[["x","O",[1]]]]'
    data = len(header).to_bytes(4, "little") + header + bytes(8)
    with pytest.raises(ValueError, match="type 'O'"):
        records.decode(data)
