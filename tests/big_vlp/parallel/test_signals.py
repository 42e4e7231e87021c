"""SIGTERM and Ctrl-C end what is not yet training, are noted in it, and twice means at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from big_vlp.parallel import signals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_training_it_ends_the_program(number, status):
    before = signal.getsignal(number)
    with pytest.raises(signals.Stop) as stop, signals.heard():
        send(number)
        time.sleep(5)
    assert stop.value.code == status and not stop.value.agreed
    assert signal.getsignal(number) is before and signals.received() == 0


def test_in_training_it_is_noted_and_ends_a_wait():
    with signals.heard():
        signals.only_note()
        with signals.interrupting():
            pass
        start = time.monotonic()
        with pytest.raises(signals.Stop), signals.interrupting():
            send(signal.SIGTERM)
            time.sleep(5)
        assert time.monotonic() - start < 4
        send(signal.SIGTERM)  # tidying up is not disturbed
        assert signals.received() == signal.SIGTERM
    assert signals.received() == 0


def test_one_that_was_noted_before_a_wait_ends_it():
    with signals.heard():
        signals.only_note()
        send(signal.SIGTERM)
        assert signals.received() == signal.SIGTERM
        with pytest.raises(signals.Stop) as stop, signals.interrupting():
            pytest.fail("it waits")
        assert stop.value.code == 143


def test_one_that_came_before_training_is_not_lost():
    with signals.heard():
        try:
            send(signal.SIGINT)
            time.sleep(5)
        except SystemExit:
            pass  # as some library might
        signals.only_note()
        assert signals.received() == signal.SIGINT


def test_other_threads_have_no_signals():
    done = []

    def run():
        with signals.heard():
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done


# A call that signals do not interrupt, as a compilation: Python's own handlers wait for its end.
PROGRAM = """
import hashlib
from big_vlp.parallel import signals
with signals.heard():
    signals.only_note()
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_a_second_ctrl_c_ends_at_once():
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "Again: at once" in process.stderr.readline() + process.stderr.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # passed on by a wrapper: the same one
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert "Traceback" not in process.stderr.read()
