"""Tars read through their index: records, threads, pickling, errors."""

import functools
import hashlib
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from input_pipeline.files import ranges
from input_pipeline.prepare.filters import Tally
from input_pipeline.sources import make_source
from input_pipeline.tars import index, samples
from input_pipeline.workers import in_processes


def image(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tars(folder, count=3, samples=8):
    folder.mkdir()
    for i in range(count):
        with tarfile.open(folder / f"{i:05d}.tar", "w") as tar:
            for j in range(samples):
                values = {"title": f"Tar {i}. Item {j}", "tags": ["x.", f"t{j}"], "rare": ""}
                if j == 3:
                    values |= {"title": None, "rare": "seldom"}
                members = {"jpg": image(100 * i + j), "json": json.dumps(values).encode()}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{j:04d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    index.build(f"{folder}/*.tar", folder / "index", in_processes(1))
    return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("data") / "tars")


def open_tars(tars, captions=("title", "tags"), **more):
    return make_source("webdataset", path=tars / "index", captions=list(captions), **more)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("fields", [("title", "tags"), ("title",), ("rare", "title"), ("rare",)])
def test_records_are_those_that_prepare_stores(tars, fields, split):
    source = open_tars(tars, fields, split_sentences=split)
    expected = [
        record
        for tar in sorted(tars.glob("*.tar"))
        for _, record in samples.read_records(tar, fields, split, Tally())
    ]
    assert len(source) == len(expected)
    assert [source[i] for i in range(len(source))] == expected


def test_samples_without_text_are_left_out(tars):
    assert [len(open_tars(tars, f)) for f in (("title",), ("rare",), ("title", "rare"))] == [
        21,
        3,
        24,
    ]
    assert open_tars(tars, ("title",))[3]["id"] == "00000/0004"


def test_threads_read_what_one_reads(tars):
    source, copy = open_tars(tars), open_tars(tars)
    order = np.random.default_rng(0).integers(0, len(source), 600)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, order))
    assert found == [copy[i] for i in order]


def test_more_tars_than_may_be_open(tars, monkeypatch):
    """Files that fall out of the cache while others read them stay open until they have."""
    small = functools.lru_cache(maxsize=1)(ranges._open.__wrapped__)
    monkeypatch.setattr(ranges, "_open", small)
    source, copy = open_tars(tars), open_tars(tars)
    order = np.random.default_rng(1).integers(0, len(source), 300)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, order))
    assert found == [copy[i] for i in order]
    assert small.cache_info().misses > 10


def test_pickling_ships_no_contents(tars):
    source = open_tars(tars)
    fresh = len(pickle.dumps(source))
    expected = [source[i] for i in range(len(source))]
    assert len(pickle.dumps(source)) == fresh < 3000
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(len(copy))] == expected
    assert copy.fingerprint() == source.fingerprint()


def test_the_fingerprint_covers_data_and_options(tars, tmp_path):
    source = open_tars(tars)
    write_tars(tmp_path / "elsewhere")
    assert open_tars(tmp_path / "elsewhere").fingerprint() == source.fingerprint()
    write_tars(tmp_path / "fewer", count=2)
    others = [
        open_tars(tars, ("tags", "title")),
        open_tars(tars, split_sentences=True),
        open_tars(tmp_path / "fewer"),
    ]
    assert len({s.fingerprint() for s in (source, *others)}) == 4
    assert len(source.fingerprint()) == 16
    int(source.fingerprint(), 16)


def test_fractions(tars):
    whole, part = open_tars(tars), open_tars(tars, fraction=0.5)
    ids = [whole[i]["id"] for i in range(len(whole))]
    assert 0 < len(part) < len(whole)
    assert all(part[i]["id"] in ids for i in range(len(part)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["title", "nope"], "No sample of .* has text in the field 'nope'. Available: rare, tags"),
        ([], "give at least one field"),
        (["title", "title"], "each once"),
    ],
)
def test_bad_fields(tars, fields, message):
    with pytest.raises(ValueError, match=message):
        open_tars(tars, fields)


def test_one_string_is_no_list_of_fields(tars):
    with pytest.raises(ValueError, match=r"captions='title': give a list .*\['title'\]"):
        make_source("webdataset", path=tars / "index", captions="title")


@pytest.mark.parametrize("index", [-1, 24])
def test_an_index_out_of_range(tars, index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range: there are 24 records"):
        open_tars(tars)[index]


def test_a_number_among_the_captions_names_tar_and_key(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in (("1.jpg", image()), ("1.json", b'{"title": "t", "tags": ["a", 3]}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index.build(f"{folder}/*.tar", folder / "index", in_processes(1))
    source = open_tars(folder)
    with pytest.raises(ValueError, match=r"a\.tar: key '1', field 'tags': a number in the list"):
        source[0]


def test_images_are_the_bytes_of_the_tar(tars):
    digest = hashlib.sha256(image(203)).digest()
    source = open_tars(tars)
    assert hashlib.sha256(source[19]["image"]).digest() == digest
