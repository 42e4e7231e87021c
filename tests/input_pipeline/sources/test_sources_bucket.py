"""Data in a bucket: the same records and fingerprints as on a disk, few requests, and faults."""

import pickle
import random
import time

import numpy as np
import pytest

from big_vlp.parallel import processes
from input_pipeline.files import ranges
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.outages import Unreachable
from input_pipeline.loader import Loader
from input_pipeline.plans.constant import Plan
from input_pipeline.records import BrokenRecordError
from input_pipeline.sources import make_source
from input_pipeline.tars import index
from input_pipeline.workers import in_processes
from tests.input_pipeline.files.test_bucket_faults import first, no_waiting  # noqa: F401
from tests.input_pipeline.sources.test_records import COUNT, data, sources  # noqa: F401

URL_SOURCES = range(5)  # of `sources`: those whose data may lie in a bucket


@pytest.fixture(scope="module")
def uploaded(bucket_server, data):  # noqa: F811
    """All of `data`, in the bucket."""
    root = storage_path("gs://bucket/data")
    for path in data.rglob("*"):
        if path.is_file():
            (root / str(path.relative_to(data))).write_bytes(path.read_bytes())
    return root


def both(data, uploaded, number):  # noqa: F811
    """A source on a disk and in the bucket; a table itself stays on the disk."""
    here, there = list(sources(data))[number], list(sources(uploaded))[number]
    if here["name"] == "table":
        there["path"] = here["path"]
    return make_source(**here), make_source(**there)


def requests(bucket_server, act):
    before = len(bucket_server.faults.requests)
    act()
    return len(bucket_server.faults.requests) - before


@pytest.mark.parametrize("number", URL_SOURCES)
def test_records_and_fingerprints_are_those_of_a_disk(data, uploaded, bucket_server, number):  # noqa: F811
    here, there = both(data, uploaded, number)
    assert there.fingerprint() == here.fingerprint()
    assert len(there.files()) == len(here.files())
    there = pickle.loads(pickle.dumps(there))
    chosen = random.Random(0).choices(range(len(here)), k=20)
    assert there.records(chosen) == here.records(chosen)
    assert there[3] == here[3]
    # Where the records lie is known now: one request for each, two where parts are far apart.
    found = requests(bucket_server, lambda: there.records(chosen))
    assert 20 <= found <= 20 + 20 * (number == 1)


def test_a_data_set_is_opened_by_few_requests(uploaded, bucket_server):
    """However many shards there are: each folder is listed once."""
    path = str(uploaded / "prepared")
    assert requests(bucket_server, lambda: make_source("prepared", path=path)) == 2
    path = str(uploaded / "tars" / "index")
    make = lambda: make_source("webdataset", path=path, captions=["txt"])  # noqa: E731
    assert requests(bucket_server, make) == 3


@pytest.mark.parametrize("where", ["tars", "index", pytest.param("both", marks=pytest.mark.slow)])
def test_tars_are_indexed_where_they_are(data, uploaded, tmp_path, where):  # noqa: F811
    """Tars, their index, or both in the bucket: records and fingerprint are the same."""
    pattern = uploaded / "tars" if where != "index" else data / "tars"
    index.build(f"{pattern}/*.tar", tmp_path / "index", in_processes(1))
    path = tmp_path / "index"
    if where != "tars":
        path = uploaded / "tars" / "made"
        for file in (tmp_path / "index").iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    found = make_source("webdataset", path=str(path), captions=["txt"])
    expected = make_source(**list(sources(data))[1])
    assert found.fingerprint() == expected.fingerprint()
    assert found.records(range(COUNT)) == expected.records(range(COUNT))
    before = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    # It finds all of them indexed.
    index.build(f"{pattern}/*.tar", tmp_path / "index", in_processes(1))
    assert (tmp_path / "index" / "0.npy").stat().st_mtime_ns < before


def test_an_index_finds_the_tars_beside_it(uploaded, data, tmp_path):  # noqa: F811
    """By names that let both be moved together, in the bucket and out of it."""
    folder = uploaded / "tars"
    for tar, output, stored in (
        (folder / "0.tar", folder / "index", "../0.tar"),
        (folder / "a" / "0.tar", folder / "index", "../a/0.tar"),
        (folder / "0.tar", uploaded / "other" / "index", f"{folder}/0.tar"),
        (folder / "0.tar", tmp_path, f"{folder}/0.tar"),
        (tmp_path / "0.tar", folder / "index", f"{tmp_path}/0.tar"),
    ):
        assert index._stored_path(tar, output) == stored


def test_data_that_must_be_on_a_disk(uploaded):
    table = {"captions": ["text"], "image_column": "file"}
    for arguments in (
        {"name": "folders", "path": str(uploaded / "images")},
        {"name": "table", "path": str(uploaded / "table.tsv"), **table},
    ):
        with pytest.raises(ValueError, match=r"gs://bucket/data/.*bucket.*mount.*prepare"):
            make_source(**arguments)


def test_what_is_not_there(uploaded, data, tmp_path):  # noqa: F811
    for path in (uploaded / "nothing", storage_path("gs://no_bucket/data")):
        with pytest.raises(FileNotFoundError, match=f"{path}.* does not exist"):
            make_source("prepared", path=str(path))
    shards = uploaded / "cut"
    for name in ("dataset.json", "a.array_record"):
        (shards / name).write_bytes((data / "prepared" / name).read_bytes())
    source = make_source("prepared", path=str(shards))
    (shards / "a.array_record").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"gs://.*a\.array_record has 5 bytes instead of"):
        make_source("prepared", path=str(shards))
    (shards / "a.array_record").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.array_record is missing"):
        make_source("prepared", path=str(shards))
    # One that went away while it was read is missing for good, and told by its name.
    with pytest.raises(FileNotFoundError, match=r"gs://.*a\.array_record does not exist"):
        source[0]


def test_damaged_shards(uploaded, data):  # noqa: F811
    contents = bytearray((data / "prepared" / "a.array_record").read_bytes())
    at = contents.index(b'"r4"')
    contents[at - 8 : at] = bytes(8)
    for name, value in (("dataset.json", None), ("a.array_record", bytes(contents))):
        value = value or (data / "prepared" / name).read_bytes()
        (uploaded / "damaged" / name).write_bytes(value)
    source = make_source("prepared", path=str(uploaded / "damaged"))
    found = source.records(range(COUNT))
    broken = [i for i, one in enumerate(found) if isinstance(one, Exception)]
    assert broken == [4]
    assert "a.array_record is damaged" in str(found[4]) and isinstance(found[4], ValueError)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("fault", [503, 429, "cut", "lost"])
def test_what_passes_is_tried_again(data, uploaded, bucket_server, number, fault):  # noqa: F811
    here, there = both(data, uploaded, number)
    with bucket_server.faults.spoiling(first(3, fault)):
        assert there.records(range(COUNT)) == here.records(range(COUNT))
    with bucket_server.faults.spoiling(first(3, fault)):
        assert both(data, uploaded, number)[1].fingerprint() == here.fingerprint()


def view(record, rng):
    return {"pixels": np.frombuffer(record["image"][:64], np.uint8)}


def load(source, **changes):
    plan = Plan(image_size=8, global_batch=4, total_steps=3, seed=0)
    return Loader(source, {8: view}, plan, total_steps=3, seed=0, **changes)


@pytest.mark.parametrize("status", [503, 403])
@pytest.mark.parametrize("on_broken", ["stop", "replace"])
@pytest.mark.parametrize("number", [0, 1])
def test_an_outage_is_no_broken_record(
    data,  # noqa: F811
    uploaded,
    bucket_server,
    status,
    on_broken,
    number,
):
    """It ends the run, which may go on later; nothing stands in for the record."""
    _, there = both(data, uploaded, number)
    batches = load(there, on_broken=on_broken).iterate(0)
    with bucket_server.faults.spoiling(lambda *_: status):
        with pytest.raises(
            BrokenRecordError, match=r"cannot be read now but may be later"
        ) as error:
            list(batches)
        batches.close()
        with pytest.raises(OSError) as direct:
            both(data, uploaded, number)
    assert processes.status_of(error.value) == (75 if status == 503 else 1)
    assert isinstance(direct.value, Unreachable) == (status == 503)
    batches = load(there, on_broken=on_broken).iterate(0)
    assert len(list(batches)) == 3 and not batches.replaced


@pytest.mark.parametrize("num_workers", [0, 1])
def test_copies_change_no_batch(data, uploaded, bucket_server, tmp_path, num_workers):  # noqa: F811
    """Before, while and after they are made; of shards, and of tars in a mixture."""
    prepared, tars = (list(sources(uploaded))[number] for number in (0, 1))
    parts = {"name": "mixture", "sources": [prepared, {**tars, "fraction": 0.8}]}
    expected = list(load(make_source(**parts)).iterate(0))
    cached = make_source(**parts, cache_dir=tmp_path)
    assert cached.fingerprint() == make_source(**parts).fingerprint()
    deadline = time.monotonic() + 60
    while not all(map(cached_file(tmp_path), ("a.array_record", "0.tar", "1.tar"))):
        assert time.monotonic() < deadline
        batches = load(cached, num_workers=num_workers).iterate(0)
        same(batches, expected)
        batches.close()
    last = load(cached)
    same([last.batch(0)], expected[:1])  # which opens what is not read before
    assert requests(bucket_server, lambda: same(map(last.batch, range(3)), expected)) == 0


def cached_file(folder):
    return lambda name: list(folder.glob(f"*-{name}.json"))


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["pixels"], other["pixels"])


def test_parts_of_files(uploaded, bucket, tmp_path, bucket_server):
    contents = random.Random(0).randbytes(3000)
    (tmp_path / "file").write_bytes(contents)
    (bucket / "file").write_bytes(contents)
    files = [ranges.File(path / "file", 3000) for path in (tmp_path, bucket)]
    places = [(0, 3000), (10, 1), (2999, 1), (5, 700)]
    wanted = [(file, *place) for place in places for file in files]
    found = ranges.read(wanted)
    assert found == [contents[at : at + size] for _, at, size in wanted]
    for file in files:
        [cut, whole] = ranges.read([(file, 2990, 20), (file, 0, 20)])
        assert isinstance(cut, ValueError) and "was cut or changed" in str(cut)
        assert whole == contents[:20]
    paths = [str(bucket / "file"), str(tmp_path / "file"), str(bucket / "no"), str(tmp_path / "no")]
    found = ranges.read_files(paths)
    assert found[:2] == [contents, contents]
    assert all(isinstance(one, FileNotFoundError) for one in found[2:])
