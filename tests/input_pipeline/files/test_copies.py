"""What is copied between a bucket and this machine: once, whole, or one error and nothing left."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline.files import copies, whole

DATA = bytes(range(256)) * 400
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def several_parts(monkeypatch):
    monkeypatch.setattr(copies, "_PART_BYTES", 1000)


def left():
    return [path.name for path in Path(copies._folder()).glob("*/*")]


def test_a_copy_is_made_once(bucket, bucket_server, tmp_path, monkeypatch):
    path, retry = bucket / "weights.npz", pytest.importorskip("gcsfs.retry")

    async def at_once(_):
        return None

    whole.write_whole(path, DATA)

    def downloads(number, method, path):
        return "cut" if number % 50 == 3 and "alt=media" in path else None

    with bucket_server.faults.spoiling(downloads), monkeypatch.context() as changed:
        changed.setattr(retry.asyncio, "sleep", at_once)  # between two tries
        copy = copies.local_copy(path)
    assert copy.read_bytes() == DATA and copy.name == path.name
    before = len(bucket_server.faults.requests)
    assert copies.local_copy(path) == copy and len(bucket_server.faults.requests) == before
    assert copies.local_copy(tmp_path / "here") == tmp_path / "here"
    whole.write_whole(bucket / "empty", b"")
    assert copies.local_copy(bucket / "empty").read_bytes() == b""


def test_what_cannot_be_copied_leaves_nothing(bucket, bucket_server, monkeypatch):
    path, before = bucket / "refused", left()
    with pytest.raises(FileNotFoundError):
        copies.local_copy(path)
    whole.write_whole(path, DATA)

    def last(number, method, path):
        return 403 if number > 40 else None

    with bucket_server.faults.spoiling(last), pytest.raises(OSError, match=r"Forbidden|spoilt"):
        copies.local_copy(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as changed:
        changed.setattr(copies, "open", full, raising=False)
        with pytest.raises(OSError, match=r"refused needs 0.0 GB here .* TMPDIR"):
            copies.local_copy(path)

    class Replaced:
        """Of which another generation is there whenever somebody asks."""

        def __init__(self, path):
            self.files, self.generations = of(path), itertools.count()
            self.cat_file = self.files.cat_file

        def info(self, url):
            return {**self.files.info(url), "generation": next(self.generations)}

    of = copies.files_of
    with monkeypatch.context() as changed:
        changed.setattr(copies, "files_of", Replaced)
        with pytest.raises(OSError, match="was changed while"):
            copies.local_copy(path)
    assert left() == before
    assert copies.local_copy(path).read_bytes() == DATA


def test_copies_end_with_their_process(bucket):
    whole.write_whole(bucket / "file", DATA)
    program = (
        "import sys; from input_pipeline.files import buckets, copies;"
        "copy = copies.local_copy(buckets.storage_path(sys.argv[1])); assert copy.read_bytes();"
        "print(copy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.fspath(bucket / "file")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(done.stdout.strip()).parent.parent.exists()


@pytest.mark.slow  # of gcsfs' pauses
def test_an_upload_that_fails_leaves_what_was_there(bucket, bucket_server, tmp_path):
    path, file = bucket / "shard", tmp_path / "shard"
    file.write_bytes(os.urandom(6 * 2**20))  # more than one request
    whole.write_whole(path, b"old")

    def second(number, method, path):
        return 403 if number else None

    with bucket_server.faults.spoiling(second), pytest.raises(OSError, match=r"Forbidden|spoilt"):
        whole.place(file, path)
    assert path.read_bytes() == b"old" and file.exists()
    expected = file.read_bytes()
    whole.place(file, path)
    assert path.read_bytes() == expected and not file.exists()
    assert whole.checksum(path) == whole.checksum(copies.local_copy(path))


def test_temporary_files_for_a_bucket_are_removed(bucket, tmp_path):
    with whole.scratch(tmp_path) as folder:
        assert folder == tmp_path
    with pytest.raises(KeyboardInterrupt), whole.scratch(bucket) as folder:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt
    assert not folder.exists()
