"""The thread that feeds the devices: order, how far it is ahead, errors, and that it ends."""

import itertools
import threading
import time

import numpy as np
import pytest

from big_vlp.parallel.feed import BatchError, Feed
from big_vlp.parallel.meshes import local_rows, make_mesh


class Loaded:
    """Batches of sizes 1, 2, 3, ... (a multiple of the devices), which say their number; what
    stands at `fault` is raised."""

    def __init__(self, mesh, fault=None, error=None):
        self.mesh, self.fault, self.error = mesh, fault, error
        self.asked, self.closed = 0, threading.Event()

    def size(self, number):
        return (number + 1) * self.mesh.size

    def __next__(self):
        number, self.asked = self.asked, self.asked + 1
        if number == self.fault:
            if self.error is None:  # as a worker that is stuck
                self.closed.wait(60)
                raise RuntimeError("closed")
            raise self.error
        return {"x": np.full((len(local_rows(self.mesh, self.size(number))), 3), number)}

    def close(self):
        self.closed.set()


def feed(*check, **faults):
    loaded = Loaded(make_mesh(), **faults)
    return Feed(loaded, map(loaded.size, itertools.count()), loaded.mesh, *check), loaded


def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_batches_come_whole_in_order_and_one_is_ready_ahead():
    fed, loaded = feed()
    for number in range(5):
        # One lies on the devices, one more in memory.
        until(lambda wanted=number + 2: loaded.asked == wanted)
        time.sleep(0.05)
        assert loaded.asked == number + 2
        batch = next(fed)["x"]
        assert batch.is_fully_addressable and batch.shape == (loaded.size(number), 3)
        np.testing.assert_array_equal(batch, number)
    fed.close()
    assert loaded.closed.is_set() and not threads()


def test_an_error_comes_behind_the_batches_before_it_and_stays():
    fed, _ = feed(fault=2, error=ValueError("broken"))
    assert [int(next(fed)["x"][0, 0]) for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(fed)
    assert not threads()
    fed.close()


def test_a_batch_of_another_size_than_announced_is_an_error():
    loaded = Loaded(make_mesh())
    fed = Feed(loaded, itertools.repeat(2 * loaded.mesh.size), loaded.mesh)
    with pytest.raises(ValueError):
        next(fed)
    fed.close()


def test_closing_ends_a_thread_that_waits_for_rows():
    fed, loaded = feed(fault=1)
    next(fed)
    until(lambda: loaded.asked == 2)
    fed.close()
    assert not threads()


def test_rows_that_do_not_fit_end_the_run_behind_those_before():
    """As an error of the user's, and before they are on the devices."""

    def check(rows):
        if rows["x"].max() == 2:
            raise ValueError("row 3 has no room.")

    fed, _ = feed(check)
    for number in range(2):
        assert (np.asarray(next(fed)["x"]) == number).all()
    with pytest.raises(BatchError, match="do not fit: row 3 has no room"):
        next(fed)
    fed.close()
