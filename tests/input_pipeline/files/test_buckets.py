"""Paths in a bucket: found, refused, written whole, new for one only; lines that grow."""

import pathlib
import shutil

import pytest

from input_pipeline.checks.paths import PathError
from input_pipeline.files import buckets, lines, outages, ranges, whole
from tests.bucket_server import SERVERS, directory_of


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request):
    return request.param


@pytest.fixture(params=["disk", *SERVERS])
def directory(request, tmp_path, start_bucket_server):
    if request.param == "disk":
        return tmp_path
    start_bucket_server(request.param)
    return directory_of(request.param, request)


@pytest.mark.parametrize(
    "url", ["gs://", "gs:///", "s3://", "az://b/run", "http://b/run", "GS://b/run", "s3://b/r*"]
)
def test_what_is_no_path(url):
    with pytest.raises(PathError):
        buckets.storage_path(url)


def test_a_file_that_is_read_from_end_to_end_is_asked_for_in_large_parts(bucket, bucket_server):
    data = bytes(range(256)) * 2**13  # 2 MB
    whole.write_whole(bucket / "a", data)
    before = len(bucket_server.faults.requests)
    with ranges.open_file(bucket / "a") as file:
        # As a tar's headers: little of much.
        found = [(file.seek(place), file.read(512)) for place in range(0, len(data), 2**14)]
    assert all(read == data[place : place + 512] for place, read in found)
    assert len(bucket_server.faults.requests) - before < 8


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(buckets, "_SCHEMES", {"gs": ("no_such_package", "gcs", None)})
    with pytest.raises(PathError, match=r"needs no_such_package: install big_vlp's extra \[gcs\]"):
        buckets.storage_path("gs://bucket/run")


def test_files_are_written_over_and_created_once(directory):
    buckets.make_directory(directory / "a")
    path = directory / "a" / "b.json"
    for value in (1, 2):
        whole.write_json(path, value)
        assert path.read_text() == f"{value}\n"
    with pytest.raises(FileExistsError):
        buckets.create(path, b"3")
    assert path.read_text() == "2\n"
    buckets.create(directory / "new", b"3")
    assert sorted(found.name for found in directory.iterdir()) == ["a", "new"]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()


def test_a_directory_is_moved_and_removed_as_a_whole(directory):
    written = {"a/1": b"one", "a/b/2": b"", "a/b/c/3": bytes(3000)}
    for name, data in written.items():
        buckets.make_directory((directory / name).parent)
        whole.write_whole(directory / name, data)
    buckets.make_directory(directory / "d")
    whole.write_whole(directory / "d" / "other", b"stays")
    (directory / "a").rename(directory / "moved")
    assert not (directory / "a").exists()
    for name, data in written.items():
        assert (directory / name.replace("a/", "moved/", 1)).read_bytes() == data
    if isinstance(directory, pathlib.PosixPath):
        shutil.rmtree(directory / "moved")
    else:
        (directory / "moved").rmtree()
    assert [path.name for path in directory.iterdir()] == ["d"]


def test_a_bucket_that_is_not_there(bucket_server, scheme):
    path = buckets.storage_path(f"{scheme}://missing/run/file")
    for write in (lambda: whole.write_whole(path, b""), lambda: buckets.create(path, b"")):
        with pytest.raises(OSError, match="there is no bucket 'missing'"):
            write()
    buckets.make_directory(path)
    assert not path.exists()


def test_what_makes_a_checkpoint_count_is_removed_first(bucket_server, bucket):
    for name in ("array", outages.COMMITTED, "item/data"):
        whole.write_whole(bucket / name, b"")

    deletions = []

    def of_others(number, method, path):
        if method not in ("DELETE", "POST"):
            return None
        deletions.append(path)
        return None if outages.COMMITTED in path else 403

    with bucket_server.faults.spoiling(of_others), pytest.raises(OSError):
        bucket.rmtree()
    assert outages.COMMITTED in deletions[0]
    assert not (bucket / outages.COMMITTED).exists()
    assert (bucket / "array").exists() and (bucket / "item/data").exists()


@pytest.mark.parametrize("kept", [0, pytest.param(1, marks=pytest.mark.slow), 4, 8])
def test_lines_grow_and_are_cut(directory, monkeypatch, kept):
    monkeypatch.setattr(lines, "PART_BYTES", 20)
    path, written = directory / "log.jsonl", [f"line {i}\n" for i in range(8)]
    assert not lines.Lines(path).exists()
    for line in written[:5]:
        lines.Lines(path).append(line)
    growing = lines.Lines(path)
    for line in written[5:]:
        growing.append(line)
        assert lines.Lines(path).text() == "".join(written[: written.index(line) + 1])
    growing.replace("".join(written[:kept]))
    growing.append("more\n")
    assert lines.Lines(path).text() == "".join([*written[:kept], "more\n"])
    lines.Lines(path).append("and more\n")
    assert lines.Lines(path).text() == "".join([*written[:kept], "more\n", "and more\n"])
