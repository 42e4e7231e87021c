import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import input_pipeline
from input_pipeline.prepare import command
from input_pipeline.sources import make_source
from input_pipeline.sources.stores.prepared import Source


def write_tar(path, count, seed):
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(file, "PNG")
            for name, data in ((f"{i}.png", file.getvalue()), (f"{i}.txt", f"{seed} {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def run_prepare(folder, output):
    arguments = ["webdataset", "--input", f"{folder}/*.tar", "--output", str(output)]
    assert command.main([*arguments, "--captions", "txt", "--workers", "1"]) == 0
    return output


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for seed, count in enumerate((7, 1, 12)):
        write_tar(folder / f"{seed}.tar", count, seed)
    return run_prepare(folder, folder / "out")


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


EXPECTED = [f"{seed}/{i}" for seed, count in enumerate((7, 1, 12)) for i in range(count)]


def test_reads_every_record_in_shard_order(prepared):
    source = make_source("prepared", path=str(prepared))
    assert len(source) == len(EXPECTED) == 20
    for i in random.Random(0).sample(range(20), 20):
        record = source[i]
        assert record["id"] == EXPECTED[i]
        assert record["captions"] == {"txt": [EXPECTED[i].replace("/", " ")]}
        assert Image.open(io.BytesIO(record["image"])).size == (12, 12)


def test_indices(prepared):
    source = Source(prepared)
    assert source[np.int64(3)]["id"] == "0/3"
    for index in (-1, 20, 10**9):
        with pytest.raises(IndexError, match="20 records"):
            source[index]


def test_threads_read_the_same(prepared):
    source = Source(prepared)
    indices = random.Random(1).choices(range(20), k=2000)
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda i: source[i]["id"], indices))
    assert ids == [EXPECTED[i] for i in indices]


def test_pickle_is_small_even_after_reading_and_reads_the_same(prepared):
    source = Source(prepared)
    assert source[19]["id"] == "2/11"
    data = pickle.dumps(source)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert [again[i]["id"] for i in range(len(again))] == EXPECTED
    assert again.fingerprint() == source.fingerprint()


def test_another_process_can_use_a_pickled_source_without_jax(prepared, tmp_path):
    source = Source(prepared)
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(source))
    code = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb'));"
        "print(s[8]['id'], 'jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "source.pickle")],
        env={"PYTHONPATH": str(Path(input_pipeline.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "2/0 False\n", result.stderr


def test_fingerprint_follows_the_contents_not_the_place(prepared, copy, tmp_path):
    fingerprint = Source(prepared).fingerprint()
    assert Source(copy).fingerprint() == fingerprint
    int(fingerprint, 16)
    for seed, count in enumerate((7, 1, 12)):
        write_tar(tmp_path / f"{seed}.tar", count, seed + (seed == 2))
    assert Source(run_prepare(tmp_path, tmp_path / "out")).fingerprint() != fingerprint


@pytest.mark.parametrize("cut", [1, 1000, None])
def test_truncated_shard_is_an_error_at_construction(copy, cut):
    shard = copy / "2.array_record"
    shard.write_bytes(shard.read_bytes()[:-cut] if cut else b"")
    with pytest.raises(ValueError, match=r"2\.array_record has .* truncated.*Re-run prepare"):
        Source(copy)


def test_missing_shard_is_an_error_at_construction(copy):
    (copy / "1.array_record").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.array_record is missing.*Re-run prepare"):
        Source(copy)


def test_damaged_contents_are_an_error_that_names_the_shard(copy):
    shard = copy / "1.array_record"
    data = bytearray(shard.read_bytes())
    middle = data.index(b"IHDR")
    data[middle] ^= 0xFF
    shard.write_bytes(data)
    source = Source(copy)
    assert source[6]["id"] == "0/6" and source[8]["id"] == "2/0"
    with pytest.raises(ValueError, match=r"Record 7 .*1\.array_record is damaged.*Delete it"):
        source[7]


def test_description_of_another_version_is_an_error(copy):
    file = copy / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        Source(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_description_is_an_error(copy, text):
    (copy / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        Source(copy)


def test_directory_without_description_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a prepared data set"):
        Source(tmp_path)
