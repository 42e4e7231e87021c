"""The lease of a workdir in a bucket, where a new object is granted to one writer only."""

import contextlib
import threading
import time

import pytest

from big_vlp.run import lease
from big_vlp.run.lease import Lease, LeaseError, held_lease
from input_pipeline.files.buckets import storage_path
from tests.bucket_server import SERVERS

HERE = lease._this_process()


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request):
    return request.param


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 2.0)


def numbers(bucket):
    return sorted(int(path.name) for path in (bucket / lease.DIRECTORY).iterdir())


def test_a_second_one_is_refused_until_the_first_ends(bucket):
    first = Lease.acquire(bucket)
    with pytest.raises(LeaseError, match="is in use by process"):
        Lease.acquire(bucket)
    first.check()
    first.release()
    second = Lease.acquire(bucket)
    assert len(numbers(bucket)) == 1
    second.release()


def test_one_of_many_gets_it(bucket):
    got, start = [], threading.Barrier(6)

    def take():
        start.wait()
        with contextlib.suppress(LeaseError):
            got.append(Lease.acquire(bucket))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = got
    winner.check()
    winner.release()


def test_one_that_stands_still_is_taken_over_and_writes_no_more(bucket, monkeypatch):
    first = Lease.acquire(bucket)
    held = first._lock  # as a suspended process: its thread cannot renew
    held.acquire()
    # Its process is on another machine, which only the counter tells of.
    monkeypatch.setattr(lease, "_this_process", lambda: {**HERE, "host": "another"})
    second = Lease.acquire(bucket)
    held.release()
    time.sleep(3 * lease.RENEW_SECONDS)
    with pytest.raises(LeaseError, match=f"Another run has taken over {bucket}"):
        first.check()
    second.check()
    first.release()
    assert len(numbers(bucket)) == 1  # that of the second
    second.release()


def test_a_bucket_that_is_not_there_is_one_error(bucket_server, scheme):
    missing = storage_path(f"{scheme}://missing/run")
    with pytest.raises(LeaseError, match="there is no bucket 'missing'"), held_lease(missing):
        pass


def test_one_whose_answer_was_lost_knows_its_own_lease(bucket, bucket_server):
    """The request that is made again meets what the first has written, and is refused."""
    lost = []

    def first_upload(number, method, path):
        if method in ("POST", "PUT") and not lost:
            lost.append(path)
            return "lost"
        return None

    with bucket_server.faults.spoiling(first_upload):
        held = Lease.acquire(bucket)
    assert lost and numbers(bucket) == [1]
    held.check()
    held.release()
