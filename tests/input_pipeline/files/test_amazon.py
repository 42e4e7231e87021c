"""What is S3's own: places and errors."""

import urllib.request

import pytest

from input_pipeline.files import amazon, buckets, whole


@pytest.fixture(scope="module")
def scheme():
    return "s3"


def test_where_it_is(monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert (amazon.endpoint(), amazon.region()) == (None, None)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert amazon.region() == "eu-west-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1/")
    assert amazon.endpoint() == "http://all:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:1")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert (amazon.endpoint(), amazon.region()) == ("http://s3:1", "eu-west-2")


def test_an_object_that_may_not_be_deleted_is_an_error(bucket_server, bucket):
    """The service answers with success, and says in the text that it is none."""
    whole.write_whole(bucket / "file", b"data")
    refused = (
        b"<DeleteResult><Error><Key>file</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    )
    answer = {"POST": refused}
    with (
        bucket_server.faults.spoiling(lambda number, method, path: answer.get(method)),
        pytest.raises(OSError, match="AccessDenied: file"),
    ):
        (bucket / "file").unlink()
    assert (bucket / "file").exists()


def test_what_another_writes_anew_is_read_whole(bucket_server, bucket):
    """Between the question for the size and that for the bytes."""
    path = bucket / "file"
    whole.write_whole(path, b"old")

    def overwrite(number, method, name):
        if method == "GET":
            host, port = bucket_server.faults.behind
            request = urllib.request.Request(
                f"http://{host}:{port}{name.partition('?')[0]}",
                b"longer",
                {"Content-Type": "application/octet-stream", "Authorization": "AWS tests:tests"},
                method="PUT",
            )
            urllib.request.urlopen(request).close()

    with bucket_server.faults.spoiling(overwrite):
        assert path.read_bytes() == b"longer"


def test_a_large_file_is_read_in_ranges(bucket_server, bucket, monkeypatch):
    monkeypatch.setattr(amazon, "_SMALL", 10)
    data = bytes(range(100))
    whole.write_whole(bucket / "file", data)
    with (bucket / "file").open("rb") as file:
        file.seek(90)
        assert file.read() == data[90:]
    assert (bucket / "file").read_bytes() == data


def test_no_bucket_is_made(bucket_server):
    before = len(bucket_server.faults.requests)
    buckets.storage_path("s3://another/run").mkdir(parents=True, exist_ok=True)
    assert not any(line.startswith("PUT") for line in bucket_server.faults.requests[before:])
