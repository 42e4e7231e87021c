"""ArrayRecord files that are read by the places of their records."""

import itertools
import random

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from input_pipeline.files import array_records
from input_pipeline.prepare.shards import WRITER_OPTIONS

BLOCK = 2**16


def write(path, values, options=WRITER_OPTIONS):
    writer = ArrayRecordWriter(str(path), options)
    for value in values:
        writer.write(value)
    writer.close()
    return path.read_bytes()


def places(data, count):
    end = data[len(data) - array_records.end_size(len(data), count) :]
    return array_records.places(end, len(data), count).tolist()


def read(data, count):
    found = places(data, count)
    parts = itertools.pairwise(found)
    return [array_records.record(data[first:end], first) for first, end in parts]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(0, 90), (0, 4000), (60_000, 80_000)])
def test_what_was_written_is_read(tmp_path, seed, sizes):
    rng = random.Random(seed)
    values = [rng.randbytes(rng.randrange(*sizes)) for _ in range(rng.choice([1, 40, 200]))]
    assert read(write(tmp_path / "file", values), len(values)) == values


def test_chunks_that_begin_around_the_ends_of_blocks(tmp_path):
    """Headers of blocks fall into the header of a chunk, between its bytes, and beside it."""
    for missing in range(-45, 30):
        values = [bytes(BLOCK - 64 - 40 - 5 + missing), b"second", bytes(2 * BLOCK), b"", b"last"]
        assert read(write(tmp_path / "file", values), len(values)) == values


def test_without_records(tmp_path):
    assert read(write(tmp_path / "file", []), 0) == []


def test_what_is_no_such_file(tmp_path):
    values = [bytes([i]) * 100 for i in range(50)]
    data = write(tmp_path / "file", values)
    for count in (49, 51):
        with pytest.raises(ValueError, match=f"places of 50 records instead of {count}"):
            places(data, count)
    for other in (bytes(len(data)), data[:-BLOCK], data[: len(data) // 2], b"", b"x"):
        with pytest.raises(ValueError):
            places(other, 50)
    with pytest.raises(ValueError):
        places(write(tmp_path / "grouped", values, "group_size:8,uncompressed"), 50)
    packed = write(tmp_path / "packed", values, "group_size:1,zstd")
    with pytest.raises(ValueError, match="another form"):
        read(packed, 50)
    first, end = places(data, 50)[:2]
    for cut in (first + 1, first + 40, end - 1):
        with pytest.raises(ValueError, match="cut off"):
            array_records.record(data[first:cut], first)
