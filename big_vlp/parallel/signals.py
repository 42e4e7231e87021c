"""SIGTERM and Ctrl-C: a run is told to end, and ends between two steps with its state saved.

They are heard while the interpreter waits for a compilation or a device, too: a thread reads them
as they come. A second Ctrl-C ends the process at once.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Wrappers pass on a Ctrl-C that the terminal has sent already: this close together it is one.
_ONE_CTRL_C_SECONDS = 0.5


class Stop(SystemExit):
    """The run was told to end; its exit status is that of a process which the signal ended.

    Attributes:
      agreed: whether every process of the run raises it at this same point.
    """

    def __init__(self, number: int, agreed: bool = False):
        super().__init__(128 + number)
        self.name, self.agreed = signal.Signals(number).name, agreed


_received = 0  # signals belong to the process, and so does this
_raising = False


def received() -> int:
    """The number of the first signal that `heard` has heard; 0: none."""
    return _received


@contextlib.contextmanager
def heard():
    """Within it signals raise Stop where the main thread is, until `only_note` is called.

    Does nothing in other threads than the main one, where Python has no signals, and leaves alone
    a signal that the process was started to ignore.
    """
    global _received, _raising
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {n: signal.getsignal(n) for n in SIGNALS}
    previous = {n: handler for n, handler in previous.items() if handler is not signal.SIG_IGN}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    _received, _raising = 0, True
    for number in previous:
        signal.signal(number, _handle)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        _received, _raising = 0, False
        writer.close()  # ends the thread
        thread.join()
        reader.close()


def only_note() -> None:
    """From here on signals are for the caller to look at, see `received`."""
    global _raising
    _raising = False


@contextlib.contextmanager
def interrupting():
    """Within it signals raise Stop, also after `only_note`: as where a run waits for input.

    One that was noted before raises at once: nobody may send another.
    """
    global _raising
    before, _raising = _raising, True
    try:
        if _received:
            raise Stop(_received)
        yield
    finally:
        _raising = before and not _received  # what is left to do is tidying up


def _handle(number, frame):
    del frame
    global _received, _raising
    _received = _received or number
    if _raising:
        _raising = False  # what is left to do is tidying up
        raise Stop(number)


def _listen(reader: socket.socket) -> None:
    first_ctrl_c = None
    while numbers := reader.recv(1):
        now = time.monotonic()
        if numbers[0] == signal.SIGINT:
            if first_ctrl_c is not None and now - first_ctrl_c > _ONE_CTRL_C_SECONDS:
                os._exit(128 + signal.SIGINT)
            if first_ctrl_c is None:
                print("\nCtrl-C: the run ends after its step. Again: at once.", file=sys.stderr)
            first_ctrl_c = first_ctrl_c or now
