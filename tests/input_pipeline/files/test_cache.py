"""Copies of a bucket's files: fetched in the background, checked, bounded; no record changes."""

import errno
import hashlib
import pickle
import random
import subprocess
import sys
import time

import pytest

from input_pipeline.files import cache, listing, ranges
from input_pipeline.files.cache import Cache

SIZE = 40_000


@pytest.fixture
def files(bucket):
    """Three files: with the checksum of their description, with the store's, and without one."""
    found = []
    for number in range(3):
        path = bucket / f"file{number}"
        data = random.Random(number).randbytes(SIZE)
        path.write_bytes(data)
        [status] = listing.statuses([path])
        sums = [f"sha256:{hashlib.sha256(data).hexdigest()}", status.checksum, "version"]
        found.append(ranges.File(path, SIZE, sums[number]))
    return found


@pytest.fixture
def said(monkeypatch):
    texts = []
    monkeypatch.setattr(cache.absl.logging, "warning", lambda *a: texts.append(a[0] % a[1:]))
    monkeypatch.setattr(cache, "_REST_SECONDS", 0.05)
    return texts


def contents(file):
    return random.Random(int(file.path.name[-1])).randbytes(SIZE)


def read(files, copies):
    found = ranges.read([(file, 100, 50) for file in files], copies)
    assert found == [contents(file)[100:150] for file in files]


def wait(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(copies, files):
    """Reads all, also while copies are made, until these are there."""

    def all_are_there():
        read(files, copies)
        return all(map(copies.find, files))

    wait(all_are_there)


def wait_until_full(copies):
    wait(lambda: copies._is_full)


def requests(bucket_server, act):
    before = len(bucket_server.faults.requests)
    act()
    return len(bucket_server.faults.requests) - before


def check_copies(folder, files):
    found = {path.name[17:]: path for path in folder.iterdir() if cache._COPY.fullmatch(path.name)}
    assert found.keys() == {file.path.name for file in files}
    for file in files:
        assert found[file.path.name].read_bytes() == contents(file)
    assert not list(folder.glob("*.tmp"))


def test_what_is_copied_is_read_from_the_disk(files, tmp_path, bucket_server, said):
    copies = Cache(tmp_path / "cache", 1)
    fill(copies, files)
    check_copies(tmp_path / "cache", files)
    assert requests(bucket_server, lambda: read(files, copies)) == 0
    # Also by other processes of this run, which check nothing anew.
    assert requests(bucket_server, lambda: read(files, pickle.loads(pickle.dumps(copies)))) == 0
    assert not said


def test_a_later_run_checks_what_it_finds(files, tmp_path, bucket_server, said, monkeypatch):
    fill(Cache(tmp_path, 1), files)
    time.sleep(0.02)
    monkeypatch.setattr(Cache, "_fetch", None)  # nothing is fetched
    later = Cache(tmp_path, 1)
    assert requests(bucket_server, lambda: read(files, later)) == 3  # until it is checked
    fill(later, files)
    assert requests(bucket_server, lambda: read(files, later)) == 0
    assert not said


@pytest.mark.parametrize("damage", ["bits", "cut", "unknown"])
def test_what_is_damaged_or_foreign_is_fetched_anew(files, tmp_path, said, damage):
    fill(Cache(tmp_path, 1), files)
    for path in tmp_path.glob("*-file?"):
        data = path.read_bytes()
        path.write_bytes(
            {"bits": data[:-1] + b"x", "cut": data[:-1], "unknown": b"x" * SIZE}[damage]
        )
        if damage == "unknown":
            path.with_name(f"{path.name}.json").unlink()
    time.sleep(0.02)
    ranges._open.cache_clear()  # as in a new process
    fill(Cache(tmp_path, 1), files)
    check_copies(tmp_path, files)
    assert len(said) == 3 and all("is damaged; it is fetched anew" in text for text in said)


def test_a_copy_that_goes_away_is_read_where_its_file_is(files, tmp_path):
    copies = Cache(tmp_path, 1)
    fill(copies, files)
    ranges._open.cache_clear()
    for path in tmp_path.glob("*-file?"):
        path.unlink()
    read(files, copies)


def test_the_bound_is_kept(files, tmp_path, said):
    """What came first stays; the rest is read where it is; it is said once, by whomever."""
    copies = Cache(tmp_path, 2.5 * SIZE / 1e9)
    fill(copies, files[:2])
    for one in (copies, pickle.loads(pickle.dumps(copies))):
        read(files, one)
        wait_until_full(one)
    time.sleep(0.05)
    read(files, copies)
    check_copies(tmp_path, files[:2])
    assert len(said) == 1 and "What is not in it is read from the bucket" in said[0]
    # Copies of other runs count, and are checked although nothing more is fetched.
    time.sleep(0.02)
    later = Cache(tmp_path, 2.5 * SIZE / 1e9)
    read(files[2:], later)
    wait_until_full(later)
    fill(later, files[:2])


def test_a_full_disk_is_said_once(files, tmp_path, said, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "no room")

    copies = Cache(tmp_path, 1)
    fill(copies, files[:1])
    monkeypatch.setattr(cache.os, "fsync", full)
    for one in (copies, pickle.loads(pickle.dumps(copies))):
        read(files, one)
        wait_until_full(one)
        read(files, one)
    check_copies(tmp_path, files[:1])
    assert len(said) == 1 and "no room" in said[0]


def test_one_process_fetches_for_all(files, tmp_path, monkeypatch):
    fetched, fetch = [], Cache._fetch

    def slowly(self, file, copy):
        fetched.append(file)
        time.sleep(0.05)
        return fetch(self, file, copy)

    monkeypatch.setattr(Cache, "_fetch", slowly)
    one = Cache(tmp_path, 1)
    other = pickle.loads(pickle.dumps(one))
    for copies in (one, other):
        read(files, copies)
    for copies in (one, other):
        fill(copies, files)
    assert sorted(fetched, key=files.index) == files


def test_a_killed_process_leaves_nothing_in_the_way(files, tmp_path):
    code = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'wb');"
        "fcntl.flock(lock, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline()
        copies = Cache(tmp_path, 1)
        read(files, copies)  # goes on meanwhile
        (tmp_path / ".0123-half.tmp").write_bytes(b"half")
        assert not any(map(copies.find, files))
        holder.kill()
    fill(copies, files)
    check_copies(tmp_path, files)


def test_a_file_that_is_not_what_it_should_be_has_no_copy(files, tmp_path, said):
    """Its records are what the bucket gives, as without copies."""
    wrong = [
        ranges.File(files[0].path, SIZE, f"sha256:{'0' * 64}"),
        ranges.File(files[1].path, SIZE, f"md5:{'0' * 32}"),
    ]
    copies = Cache(tmp_path, 1)
    read(wrong, copies)
    wait(lambda: len(said) == 2)
    read(wrong, copies)
    check_copies(tmp_path, [])
    assert all("has not the checksum" in text for text in said)


def test_an_outage_puts_it_off(files, tmp_path, said, bucket_server):
    copies = Cache(tmp_path, 1)
    with bucket_server.faults.spoiling(lambda *_: 403):
        for file in files:
            assert copies.find(file) is None
        wait(lambda: said)
    fill(copies, files)
    assert "no copy of" in said[0] and "yet" in said[0]
    check_copies(tmp_path, files)


@pytest.mark.parametrize("gigabytes", [0, -1, True])
def test_bounds(tmp_path, gigabytes):
    with pytest.raises(ValueError, match="cache_gb="):
        Cache(tmp_path, gigabytes)


def test_it_lies_in_a_directory_of_a_disk(tmp_path):
    with pytest.raises(ValueError, match="is a URL"):
        Cache("gs://bucket/cache", 1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        Cache(tmp_path / "file", 1)
