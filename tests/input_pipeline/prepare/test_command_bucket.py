"""The command `prepare` into a bucket: the same files, also after it was killed or refused."""

import itertools
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from input_pipeline.files import whole
from input_pipeline.prepare import command as prepare
from input_pipeline.prepare import shards
from tests.input_pipeline.prepare.prepare_data import contents, run_source, write_tar

ROOT = Path(__file__).parents[3]
SCENES = ["scenes", "split=val", "size=7", "image_size=40", "--records-per-shard", "2"]
SCENES += ["--drop-duplicates"]
TIMEOUT = 120


def uploads(numbers, fault):
    """Spoils some of the uploads, counted from 0."""
    count = itertools.count()

    def spoil(number, method, path):
        is_upload = method == "POST" and "/upload/" in path
        return fault if is_upload and next(count) in numbers else None

    return spoil


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    output = tmp_path_factory.mktemp("scenes") / "data"
    assert run_source(output, *SCENES) == 0
    return output


@pytest.mark.slow
def test_a_killed_command_continues_and_leaves_the_same(scenes, bucket, bucket_server, capsys):
    command = [sys.executable, "-m", "input_pipeline.prepare", "source", "--workers", "1"]
    command += ["--input", "scenes:split=val,size=7,image_size=40", *SCENES[4:]]
    command += ["--output", os.fspath(bucket)]

    # Of digests 4, then of each shard itself and its JSON.
    with bucket_server.faults.spoiling(uploads(range(8, 10), 1.0)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + TIMEOUT
        while not (bucket / "scenes-00001.array_record.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
    assert not (bucket / "dataset.json").exists()
    assert any(path.name.endswith(".digests") for path in bucket.iterdir())
    # What a kill of another kind of storage could leave: half a shard, and one without its JSON.
    (bucket / "scenes-00001.array_record").write_bytes(b"half a shard")
    (bucket / "scenes-00003.array_record").write_bytes(b"no JSON")
    (bucket / ".scenes-00003.array_record.0.tmp").write_bytes(b"half")
    assert run_source(bucket, *SCENES) == 0
    assert "of 4 shards are finished already" in capsys.readouterr().out
    assert contents(bucket) == contents(scenes)


def test_a_shard_that_was_replaced_since_is_looked_at(scenes, bucket):
    for name in ("scenes-00000.array_record.json", "scenes-00000.array_record"):
        (bucket / name).write_bytes((scenes / name).read_bytes())
    path, missing = bucket / name, bucket / "missing"
    info = {"bytes": (scenes / name).stat().st_size}
    same, another = (info | {"sha256": sum} for sum in (whole.checksum(scenes / name), "another"))
    found = shards._are_whole([path] * 3 + [missing], [same, another, {"bytes": 3}, info])
    assert found == [True, False, False, False]


def test_a_folder_that_was_made_by_hand_is_empty(bucket, bucket_server):
    name = urllib.parse.quote(f"{os.fspath(bucket).removeprefix('gs://bucket/')}/", safe="")
    url = f"{bucket_server.url}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
    urllib.request.urlopen(urllib.request.Request(url, b"", method="POST")).close()
    assert list(bucket.iterdir()) and whole.in_directory(bucket) == []
    (bucket / bucket.name).write_bytes(b"a file of the folder's name")
    assert whole.in_directory(bucket) == [bucket / bucket.name]


def test_shards_that_are_refused_fail_the_run(scenes, bucket, bucket_server, capsys):
    arguments = SCENES[:-1]
    with bucket_server.faults.spoiling(uploads([4], 403)):  # the third shard
        assert run_source(bucket, *arguments) == 1
    said = capsys.readouterr()
    assert "FAILED scenes, records 4 to 5: " in said.out
    assert "1 of 4 shards failed" in said.err and not (bucket / "dataset.json").exists()
    assert run_source(bucket, *arguments) == 0
    assert "3 of 4 shards are finished already" in capsys.readouterr().out
    assert (bucket / "dataset.json").exists()


def test_what_a_bucket_cannot_hold_is_one_error(bucket, tmp_path, capsys):
    write_tar(tmp_path / "train#1.tar", {"a": (b"", {"title": "x"})})
    arguments = ["--input", f"{tmp_path}/*.tar", "--captions", "title", "--output", str(bucket)]
    assert prepare.main(["webdataset", *arguments]) == 1
    assert "train#1.array_record': give a name without #" in capsys.readouterr().err
    assert not bucket.exists()
    arguments[-1] = "gs://nobodys-bucket/data"
    (tmp_path / "train#1.tar").unlink()
    assert run_source("gs://nobodys-bucket/data", "scenes", "size=2", "image_size=32") == 1
    assert "there is no bucket 'nobodys-bucket'" in capsys.readouterr().out
