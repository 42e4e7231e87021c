"""Storage that fails: what passes by itself is tried again, anything else is one OSError."""

import asyncio

import pytest

from big_vlp.parallel import processes
from input_pipeline.files import outages, whole
from tests.bucket_server import SERVERS

DATA = bytes(range(256)) * 400


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request):
    return request.param


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Between two tries there are up to 16 s, which these tests do not wait."""

    async def at_once(_):
        return None

    monkeypatch.setattr(asyncio, "sleep", at_once)


def first(count, fault):
    return lambda number, method, path: fault if number < count else None


@pytest.mark.parametrize("fault", [503, 429, 500, "lost", 0.3])
def test_what_passes_is_tried_again(bucket_server, bucket, monkeypatch, fault):
    path, said = bucket / "file", []
    monkeypatch.setattr(outages.absl.logging, "warning", lambda *text: said.append(text))
    with bucket_server.faults.spoiling(first(3, fault)):
        whole.write_whole(path, DATA)
    with bucket_server.faults.spoiling(first(3, fault)):
        assert path.read_bytes() == DATA
    assert fault == 0.3 or "trying again" in said[0][0]


def test_an_answer_that_is_cut_is_never_taken_for_whole(bucket_server, bucket):
    path = bucket / "file"
    whole.write_whole(path, DATA)

    def downloads(number, method, path):
        # Google's server is asked for the size by GET, too.
        is_one = "alt=media" in path or (method == "GET" and "/storage/v1/" not in path)
        return "cut" if number < 4 and is_one else None

    with bucket_server.faults.spoiling(downloads):
        assert path.read_bytes() == DATA


@pytest.mark.parametrize("status", [503, 401, 403, 400])
def test_what_does_not_pass_is_one_error(bucket_server, bucket, status):
    path = bucket / "file"
    whole.write_whole(path, b"old")
    with bucket_server.faults.spoiling(lambda *_: status):
        for act in (
            lambda: whole.write_whole(path, b"new"),
            path.read_bytes,
            path.exists,
            lambda: list(bucket.iterdir()),
            path.unlink,
        ):
            with pytest.raises(OSError, match=f"{status}|Forbidden|spoilt") as error:
                act()
            assert isinstance(error.value, outages.Unreachable) == (status == 503)
            assert processes.status_of(error.value) == (75 if status == 503 else 70)
    assert path.read_bytes() == b"old"
