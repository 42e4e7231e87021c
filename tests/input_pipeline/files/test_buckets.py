"""Paths in a bucket: found, refused, written whole, new for one only; lines that grow."""

import pytest

from input_pipeline.checks.paths import PathError
from input_pipeline.files import buckets, lines, whole


@pytest.fixture(params=["disk", "bucket"])
def directory(request, tmp_path):
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


@pytest.mark.parametrize(
    "url", ["gs://", "gs:///", "s3://b/run", "http://b/run", "GS://b/run", "gs://b/r*"]
)
def test_what_is_no_path(url):
    with pytest.raises(PathError):
        buckets.storage_path(url)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(buckets, "_SCHEMES", {"gs": ("no_such_package", "gcs")})
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


def test_a_bucket_that_is_not_there(bucket_server):
    path = buckets.storage_path("gs://missing/run/file")
    for write in (lambda: whole.write_whole(path, b""), lambda: buckets.create(path, b"")):
        with pytest.raises(OSError, match="there is no bucket 'missing'"):
            write()


@pytest.mark.parametrize("kept", [0, 1, 7, 20])
def test_lines_grow_and_are_cut(directory, monkeypatch, kept):
    monkeypatch.setattr(lines, "PART_BYTES", 40)
    path, written = directory / "log.jsonl", [f"line {i}\n" for i in range(20)]
    assert not lines.Lines(path).exists()
    for line in written[:11]:
        lines.Lines(path).append(line)
    growing = lines.Lines(path)
    for line in written[11:]:
        growing.append(line)
        assert lines.Lines(path).text() == "".join(written[: written.index(line) + 1])
    growing.replace("".join(written[:kept]))
    growing.append("more\n")
    assert lines.Lines(path).text() == "".join([*written[:kept], "more\n"])
    lines.Lines(path).append("and more\n")
    assert lines.Lines(path).text() == "".join([*written[:kept], "more\n", "and more\n"])
