"""Tables that are read in parts: all rows of all columns, in a memory that the parts decide."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from input_pipeline.files import tables


@pytest.fixture
def table():
    texts = [f"{i}, é" for i in range(1000)]
    return pa.table({"a": range(1000), "b": texts, "c": [[i] for i in range(1000)]})


def write_arrow(table, path):
    with pa.ipc.new_stream(path, table.schema) as file:
        file.write_table(table, max_chunksize=300)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "tsv"])
def test_the_parts_are_the_table(table, tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    expected = table
    if kind in ("csv", "tsv"):
        expected = table.select(["a", "b"]).cast(
            pa.schema([("a", pa.large_string()), ("b", pa.large_string())])
        )
        options = {"csv": {}, "tsv": {"delimiter": "\t", "quoting_style": "none"}}[kind]
        pa.csv.write_csv(expected, path, pa.csv.WriteOptions(**options))
        if kind == "tsv":  # names are quoted in any case
            path.write_bytes(path.read_bytes().replace(b'"', b""))
    elif kind == "arrow":
        write_arrow(table, path)
    else:
        pa.parquet.write_table(table, path, row_group_size=300)
    schema, parts = tables.stream(path, 64)
    parts = list(parts)
    assert schema == expected.schema
    assert max(part.num_rows for part in parts) == 64
    assert pa.Table.from_batches(parts).equals(expected)
    some = list(tables.stream(path, 64, ["b"])[1])
    assert pa.Table.from_batches(some).equals(expected.select(["b"]))
    assert sum(part.num_rows for part in tables.stream(path, 64, [])[1]) == 1000


def test_memory_is_that_of_a_part(tmp_path):
    """Also where all of the file is one group of rows."""
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1000) for _ in range(30_000)]
    pa.parquet.write_table(pa.table({"a": texts}), tmp_path / "x.parquet", compression="none")
    texts, before, most = None, pa.total_allocated_bytes(), 0
    for part in tables.stream(tmp_path / "x.parquet", 500)[1]:
        most = max(most, pa.total_allocated_bytes() - before)
        del part
    assert (tmp_path / "x.parquet").stat().st_size > 29e6 > 10e6 > most
