"""One writer at a time: refused while the holder lives, taken over when it is gone."""

import json
import os
import subprocess
import threading
import time

import pytest

from big_vlp.run import lease
from big_vlp.run.lease import Lease, LeaseError, held_lease
from tests.input_pipeline.checks.test_paths import ODD_NAMES


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 0.8)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.02)


def leave_lease(workdir, number=1, **changes):
    """What a holder that was killed leaves."""
    directory = workdir / lease.DIRECTORY
    directory.mkdir(parents=True)
    holder = {**lease._this_process(), **changes}
    (directory / str(number)).write_bytes(lease._content(holder, 7))
    return directory / str(number)


def ended_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_second_one_is_refused_until_the_first_ends(tmp_path):
    held = Lease.acquire(tmp_path)
    with pytest.raises(LeaseError, match=rf"is in use by process {os.getpid()} on .* since 2"):
        Lease.acquire(tmp_path)
    held.check()
    held.release()
    assert not list(tmp_path.iterdir())
    Lease.acquire(tmp_path).release()


@pytest.mark.parametrize("changes", [{"pid": None}, {"started": "1"}], ids=["ended", "pid reused"])
def test_that_of_a_killed_process_here_is_taken_at_once(tmp_path, changes):
    changes = {key: value or ended_process() for key, value in changes.items()}
    old = leave_lease(tmp_path, 3, **changes)
    start = time.monotonic()
    held = Lease.acquire(tmp_path)
    assert time.monotonic() - start < 5
    assert not old.exists() and (old.parent / "4").exists()
    held.release()


def test_a_zombie_has_ended(tmp_path):
    process = subprocess.Popen(["true"])
    while lease._process(process.pid)[0] != "Z":
        time.sleep(0.01)
    leave_lease(tmp_path, pid=process.pid, started=lease._process(process.pid)[1])
    Lease.acquire(tmp_path).release()
    process.wait()


def test_that_of_another_host_is_taken_when_it_lapses(tmp_path, quick):
    leave_lease(tmp_path, host="elsewhere", pid=123)
    said, start = [], time.monotonic()
    Lease.acquire(tmp_path, said.append).release()
    assert time.monotonic() - start > lease.LAPSE_SECONDS
    assert len(said) == 1 and "process 123 on elsewhere" in said[0]


def test_that_of_another_host_is_kept_while_it_is_renewed(tmp_path, quick, monkeypatch):
    """Clocks are not compared: only that the file changes."""
    held = Lease.acquire(tmp_path)
    os.utime(held._file, (0, 0))
    here = lease._this_process()
    monkeypatch.setattr(lease, "_this_process", lambda: {**here, "host": "elsewhere"})
    with pytest.raises(LeaseError, match="is in use by process"):
        Lease.acquire(tmp_path)
    held.check()
    held.release()


def test_a_suspended_holder_loses_it_and_stops(tmp_path, quick, monkeypatch):
    held = Lease.acquire(tmp_path)
    with held._lock:  # no renewal while this is held
        here = lease._this_process()
        monkeypatch.setattr(lease, "_this_process", lambda: {**here, "host": "elsewhere"})
        taken = Lease.acquire(tmp_path)
    with pytest.raises(LeaseError, match="has taken over"):
        held.check()
    held.release()
    taken.check()  # nothing of it was touched
    assert [file.name for file in (tmp_path / lease.DIRECTORY).iterdir()] == ["2"]
    taken.release()


def test_of_many_takers_one_wins(tmp_path, monkeypatch):
    for _ in range(10):
        if not (tmp_path / lease.DIRECTORY).exists():
            leave_lease(tmp_path, pid=ended_process())
        barrier, won, refused = threading.Barrier(8), [], []

        def take(barrier=barrier, won=won, refused=refused):
            barrier.wait()
            try:
                won.append(Lease.acquire(tmp_path))
            except LeaseError as error:
                refused.append(error)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (1, 7)
        won[0].check()
        won[0].release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]\n", b"\xff\n0\n"])
def test_a_broken_one_lapses_too(tmp_path, quick, content):
    leave_lease(tmp_path).write_bytes(content)
    Lease.acquire(tmp_path).release()


def test_renewing_keeps_its_size_and_holder(tmp_path, quick):
    held = Lease.acquire(tmp_path)
    first = held._file.read_bytes()
    while held._beats < 12:
        time.sleep(0.02)
    last = held._file.read_bytes()
    held.release()
    assert len(first) == len(last) and first != last
    assert json.loads(last.split(b"\n")[0]) == held._holder


@pytest.mark.parametrize("name", ODD_NAMES)
def test_in_a_directory_of_any_name(tmp_path, name):
    with held_lease(tmp_path / name) as check:
        check()
        with pytest.raises(LeaseError), held_lease(tmp_path / name):
            pass
    assert not list((tmp_path / name).iterdir())


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(LeaseError, match="correct --workdir"), held_lease(tmp_path / "run"):
        pass
